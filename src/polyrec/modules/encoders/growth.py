"""Tables that grow by rows, and products over them that do not change when they do.

Letters: N rows of a table, K new ones, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyrec.core.modules import in_double

_RIDGE = 1.0  # .1 to 3 put new films about as well
BLOCK = 1024  # rows that go through a matrix product at once


@torch.no_grad()
def add_rows(table: nn.Embedding, rows_KD: Tensor) -> None:
    """Append rows to an embedding; those it has stay bit-equal. Its weight is a new parameter for any optimizer.

    Example:
        >>> table = nn.Embedding(3, 2)
        >>> add_rows(table, torch.ones(2, 2))
        >>> table.weight.shape, table(torch.tensor(4)).tolist()
        (torch.Size([5, 2]), [1.0, 1.0])
    """
    weight = torch.cat([table.weight, rows_KD.to(table.weight)])
    table.weight = nn.Parameter(weight, requires_grad=table.weight.requires_grad)
    table.num_embeddings = len(weight)


def predict_rows(inputs_NW: Tensor, values_NY: Tensor, known_N: Tensor, new_N: Tensor) -> Tensor:
    r"""Values of new rows by ridge regression on those of known rows, \min_A |Y - X A|^2 + |A|^2, X and Y centred.

    Inputs are scaled to a mean square length of 1. What a text says of a row lies nearer to the mean of all than its
    value will.

    Args:
        inputs_NW: what is known of all rows.
        values_NY: only those of known rows are read.
        known_N, new_N: bool [N].

    Returns:
        [new rows, Y].

    Example:
        >>> values = torch.tensor([[0.0], [1.0], [7.0]])
        >>> predict_rows(torch.eye(3), values, torch.tensor([True, True, False]), torch.tensor([False, False, True]))
        tensor([[0.5000]])
    """
    inputs_NW, y_MY = in_double(inputs_NW), in_double(values_NY[known_N])
    known_N, new_N = known_N.to(inputs_NW.device), new_N.to(inputs_NW.device)
    inputs_NW = inputs_NW / inputs_NW[known_N].square().sum(1).mean().sqrt()
    x_MW = inputs_NW[known_N]
    x_1W, y_1Y = x_MW.mean(0, keepdim=True), y_MY.mean(0, keepdim=True)
    centred_MW = x_MW - x_1W
    gram_WW = centred_MW.T @ centred_MW
    gram_WW.diagonal().add_(_RIDGE)
    map_WY = torch.linalg.solve(gram_WW, centred_MW.T @ (y_MY - y_1Y))
    return (y_1Y + (inputs_NW[new_N] - x_1W) @ map_WY).to(values_NY)


def in_blocks(function: Callable[[Tensor], Tensor], rows: Tensor, dim: int = 0) -> Tensor:
    """`function` over blocks of `BLOCK` rows, joined again along `dim`; the last block is filled up with zeros.

    The last bits of a matrix product depend on its shape, because libraries compute the rows at its edge in another
    way. In blocks of one shape, what a row gives does not depend on how many rows there are: outputs about old items
    stay bit-equal when new ones are added.

    Args:
        rows: [N, ...].

    Example:
        >>> in_blocks(lambda x: 2 * x, torch.arange(3)).tolist()
        [0, 2, 4]
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return torch.cat([own for _, own in _blocks(function, rows, dim)], dim=dim)
    joined: Tensor | None = None  # written block by block: a large table is never held twice
    for begin, own in _blocks(function, rows, dim):
        if joined is None:
            joined = own.new_empty(*own.shape[:dim], len(rows), *own.shape[dim + 1 :])
        joined.narrow(dim, begin, own.shape[dim]).copy_(own)
    return function(rows) if joined is None else joined


def _blocks(function: Callable[[Tensor], Tensor], rows: Tensor, dim: int) -> Iterator[tuple[int, Tensor]]:
    """Where each block begins, and what `function` gives of it."""
    for begin in range(0, len(rows), BLOCK):
        block = rows[begin : begin + BLOCK]
        filled = F.pad(block, [0, 0] * (block.dim() - 1) + [0, BLOCK - len(block)])
        yield begin, function(filled).narrow(dim, 0, len(block))
