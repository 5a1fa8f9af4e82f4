"""Candidates that only the teacher scores: items drawn at random, without any label.

Letters: B users, C candidates, U drawn items per window.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from polyrec.core.schema import STATISTICS
from polyrec.data.derived import AGE
from polyrec.modules.encoders.item import FIRST_ITEM, PADDING_ITEM

_OF_ITEM = (STATISTICS, AGE)
_COPIED = ("candidate_positions", "candidate_times", "candidate_query", "query_items", "candidate_trending")


class SampledCandidates(NamedTuple):
    """Items drawn for the windows of a batch.

    Args:
        beside_BU: int64, the candidate of the window that each stands beside.
        items_BU: int64, rows of the item table, 0 = none.
        numbers_BU: int64, which of the items it is that were drawn for that candidate, where outputs are stored.
    """

    beside_BU: Tensor
    items_BU: Tensor
    numbers_BU: Tensor


def draw_positions(batch: Mapping[str, Any], count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """For each window so many of its own candidates, drawn evenly, int64 [B, U], and which windows have any, [B, 1]."""
    real_B1 = (batch["candidate_ids"] != PADDING_ITEM).sum(1, keepdim=True)
    drawn_BU = torch.rand((len(real_B1), count), generator=generator).to(real_B1.device)
    return (drawn_BU * real_B1).long(), real_B1 > 0  # padding is on the right


def draw_evenly(batch: Mapping[str, Any], count: int, num_items: int, generator: torch.Generator) -> SampledCandidates:
    """Items drawn evenly from the catalog, each beside a candidate of its window that is drawn, too."""
    beside_BU, has_candidate_B1 = draw_positions(batch, count, generator)
    items_BU = torch.randint(FIRST_ITEM, num_items, tuple(beside_BU.shape), generator=generator).to(beside_BU.device)
    return SampledCandidates(
        beside_BU, items_BU.masked_fill(~has_candidate_B1, PADDING_ITEM), torch.zeros_like(beside_BU)
    )


def with_unlabelled(batch: Mapping[str, Any], drawn: SampledCandidates) -> dict[str, Any]:
    """A batch with U more candidates per window, all labels of which are unknown.

    Each stands where one of the window's own candidates stands: it sees as many events and has the same context, but
    has another item, whose own features (running statistics, its age) are missing. Labels of what users were
    shown say little about the rest of the catalog; a teacher may score that, too (semi-supervised
    distillation: Chen et al., 2020, "Big Self-Supervised Models are Strong Semi-Supervised Learners").

    Args:
        batch: as the collator makes it.

    Example:
        >>> batch = {"candidate_ids": torch.tensor([[5, 6, 0]]), "candidate_positions": torch.tensor([[1, 4, 0]]),
        ...          "candidate_rows": torch.tensor([[0, 1, -1]]), "candidate_features": {}, "labels": {}}
        >>> sampled = SampledCandidates(torch.tensor([[1, 0]]), torch.tensor([[7, 8]]), torch.zeros(1, 2))
        >>> more = with_unlabelled(batch, sampled)
        >>> more["candidate_ids"].tolist(), more["candidate_positions"].tolist(), more["candidate_rows"].tolist()
        ([[5, 6, 0, 7, 8]], [[1, 4, 0, 4, 1]], [[0, 1, -1, -1, -1]])
    """
    users, count = drawn.items_BU.shape

    def copied(values: Tensor) -> Tensor:
        index = drawn.beside_BU.view(users, count, *[1] * (values.dim() - 2)).expand(-1, -1, *values.shape[2:])
        return torch.cat([values, values.gather(1, index)], dim=1)

    def empty(values: Tensor, fill: float) -> Tensor:
        return torch.cat([values, values.new_full((users, count, *values.shape[2:]), fill)], dim=1)

    def missing(values: Tensor) -> Tensor:
        return empty(values, float("nan") if values.is_floating_point() else 0)

    found = dict(batch)
    found["candidate_ids"] = torch.cat([batch["candidate_ids"], drawn.items_BU], dim=1)
    found["candidate_rows"] = empty(batch["candidate_rows"], -1)
    found |= {name: copied(batch[name]) for name in _COPIED if name in batch}
    found["candidate_features"] = {
        name: (missing if name in _OF_ITEM else copied)(values) for name, values in batch["candidate_features"].items()
    }
    for kind in ("labels", "sample_weight"):
        if kind in batch:
            found[kind] = {name: missing(values) for name, values in batch[kind].items()}
    return found
