"""Where the items of a term's tables stand among the items that are scored.

Letters: M requests, N items, H rows of a table per request, P rows of a table, U of them that are read, T kinds of
numbers, K items of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polyrec.core.linear_loss import SparseBias
from polyrec.modules.encoders.item import FIRST_ITEM


def sparse_bias(items: Tensor, values: Tensor, rows: Tensor, ids: Tensor, num_items: int) -> SparseBias:
    """Numbers of items of each request's own, for the logits of some items.

    Args:
        items: [P, K], rows of the item table, 0 = none.
        values: [P, T, K], 0 where there is no item.
        rows: int64 [M, H], which of the P rows count for a request.
        ids: [N], ascending, each once.
        num_items: rows of the item table.
    """
    read, table_rows = rows.unique(return_inverse=True)  # requests of one user share most of them
    found, numbers = items.index_select(0, read).long(), values.index_select(0, read).float()
    first = int(ids[0])
    if first <= FIRST_ITEM and len(ids) == num_items - first:  # all items; item 0 means none, with values of 0
        return SparseBias(_rows_of((found - first).clamp(min=0), table_rows), numbers, table_rows)
    column_of = torch.full((num_items,), -1, device=ids.device)
    column = column_of.index_copy_(0, ids, torch.arange(len(ids), device=ids.device))[found]
    numbers *= (column >= 0).unsqueeze(-2)
    return SparseBias(_rows_of(column.clamp(min=0), table_rows), numbers, table_rows)


def _rows_of(table: Tensor, rows: Tensor) -> Tensor:
    """Rows of a table, [U, K] and [M, H] -> [M, H, K]; `index_select`, which is faster than indexing on CPU."""
    return table.index_select(0, rows.flatten()).view(*rows.shape, table.shape[1])


def find_items(items: Tensor, rows: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Where items stand in rows of a table, and whether they do, [...] each.

    Args:
        items: int32 [R, K], ascending, 0 = none.
        rows, ids: int64 [...].
    """
    slot = torch.zeros_like(rows)
    step = 1 << (items.shape[1].bit_length() - 1)
    while step:  # rows are sorted: a binary search for all at once, as the rows are too many to be copied
        further = slot + step
        fits = further < items.shape[1]
        slot = torch.where(fits & (items[rows, further.clamp(max=items.shape[1] - 1)] <= ids), further, slot)
        step //= 2
    return slot, (items[rows, slot] == ids) & (ids >= FIRST_ITEM)
