"""Questions that only the teacher answers: items drawn at random, about which nobody has said anything.

Letters: B people, C candidates, U drawn items per window.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from polyrec.encoders.item import FIRST_ITEM, PADDING_ITEM

_COPIED = ("candidate_positions", "candidate_times", "candidate_query", "query_items")


def with_unlabelled(
    batch: Mapping[str, Any], count: int, num_items: int, of_item: Collection[str], generator: torch.Generator
) -> dict[str, Any]:
    """A batch with U more candidates per window, all labels of which are unknown.

    Each stands where one of the window's own candidates stands, drawn at random: it sees as many events and has the
    same context, but asks about another item, drawn evenly from the catalog. Labels of what people were shown say
    little about the rest of the catalog; a teacher may be asked about that, too (semi-supervised distillation: Chen et
    al., 2020, "Big Self-Supervised Models are Strong Semi-Supervised Learners").

    Args:
        batch: as the collator makes it.
        count: U.
        num_items: rows of the item table.
        of_item: candidate features that belong to the item asked about (running statistics, its age): missing here.
        generator: of the draws.

    Example:
        >>> batch = {"candidate_ids": torch.tensor([[5, 6, 0]]), "candidate_positions": torch.tensor([[1, 4, 0]]),
        ...          "candidate_rows": torch.tensor([[0, 1, -1]]), "candidate_features": {}, "labels": {}}
        >>> more = with_unlabelled(batch, 2, 10, (), torch.Generator().manual_seed(0))
        >>> more["candidate_ids"].shape, more["candidate_rows"].tolist()
        (torch.Size([1, 5]), [[0, 1, -1, -1, -1]])
    """
    ids_BC = batch["candidate_ids"]
    device, people = ids_BC.device, len(ids_BC)
    real_B1 = (ids_BC != PADDING_ITEM).sum(1, keepdim=True)
    drawn_BU = torch.rand((people, count), generator=generator).to(device)
    beside_BU = (drawn_BU * real_B1).long()  # padding is on the right
    items_BU = torch.randint(FIRST_ITEM, num_items, (people, count), generator=generator).to(device)

    def copied(values: Tensor) -> Tensor:
        index = beside_BU.view(people, count, *[1] * (values.dim() - 2)).expand(-1, -1, *values.shape[2:])
        return torch.cat([values, values.gather(1, index)], dim=1)

    def empty(values: Tensor, fill: float) -> Tensor:
        return torch.cat([values, values.new_full((people, count, *values.shape[2:]), fill)], dim=1)

    def missing(values: Tensor) -> Tensor:
        return empty(values, float("nan") if values.is_floating_point() else 0)

    found = dict(batch)
    found["candidate_ids"] = torch.cat([ids_BC, items_BU.masked_fill(real_B1 == 0, PADDING_ITEM)], dim=1)
    found["candidate_rows"] = empty(batch["candidate_rows"], -1)
    found |= {name: copied(batch[name]) for name in _COPIED if name in batch}
    found["candidate_features"] = {
        name: (missing if name in of_item else copied)(values) for name, values in batch["candidate_features"].items()
    }
    for kind in ("labels", "sample_weight"):
        if kind in batch:
            found[kind] = {name: missing(values) for name, values in batch[kind].items()}
    return found
