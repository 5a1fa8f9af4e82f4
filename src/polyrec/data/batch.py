"""`Batch`: what a model reads of some windows.

Letters: B users, L events, C candidates, K numbers of a wide feature or classes, Q queries, S tokens, U snapshots,
D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from polyrec.core.settings import nearest


@dataclass(eq=False, kw_only=True)
class Batch(Mapping[str, Any]):
    """The histories of some users and the candidates that are scored for them; padding is on the right.

    It is a mapping, too: `batch["item_ids"]` is `batch.item_ids`, and `model(**batch)` is `model(batch)`. A field that
    is None is not in the mapping.

    Args:
        item_ids: [B, L] int64, a user's events in time order, 0 = padding.
        candidate_ids: [B, C] int64, candidate items, 0 = padding.
        candidate_positions: [B, C] int64, how many events (0..L) are visible to the candidate.
        event_features: {name: [B, L(, K)]}, known once the event had happened.
        user_features: {name: [B(, K)]}.
        candidate_features: {name: [B, C(, K)]}, context and running statistics, known before the impression.
        labels: {task: [B, C]} float, NaN = unknown. Without labels there is no loss.
        sample_weight: {task: [B, C]}, e.g. inverse propensities.
        candidate_times: [B, C] int64, timestamps of the candidates, milliseconds since the epoch; for tasks that read
            the age of items.
        candidate_rows: [B, C] int64, which candidate of the data set this is, -1 = padding; no model reads it.
        user_fold: [B] int64, of training windows: the fold of the user, without whom the neighbours of items were
            counted that the window reads in training mode. 0 or None: the neighbours of all users.
        query_tokens, query_mask: [Q, S], the queries of the batch and which tokens are real.
        candidate_query: [B, C] int64, the query by which the candidate was found, -1 = none.
        query_items: [B, C] int64, the item that this query is the text of and that it cannot find, 0 = none.
        trending: {task: {"items": [U, K], "values": [U, K]}}, snapshots of what was popular, see
            [`~polyrec.data.trending.Snapshots`]; for tasks that read it.
        candidate_trending: [B, C] int64, the snapshot that each candidate reads.
        teacher: outputs of a teacher, see [`~polyrec.distillation.teacher.Teacher`]; a student learns from them.

    Example:
        >>> batch = Batch(item_ids=torch.tensor([[3, 4, 0]]), candidate_ids=torch.tensor([[5]]),
        ...               candidate_positions=torch.tensor([[2]]))
        >>> batch.to("cpu").shape, list(batch)
        ((1, 1), ['item_ids', 'candidate_ids', 'candidate_positions', 'event_features', 'user_features', ...])
    """

    item_ids: Tensor
    candidate_ids: Tensor
    candidate_positions: Tensor
    event_features: dict[str, Tensor] = field(default_factory=dict)
    user_features: dict[str, Tensor] = field(default_factory=dict)
    candidate_features: dict[str, Tensor] = field(default_factory=dict)
    labels: dict[str, Tensor] | None = None
    sample_weight: dict[str, Tensor] = field(default_factory=dict)
    candidate_times: Tensor | None = None
    candidate_rows: Tensor | None = None
    user_fold: Tensor | None = None
    query_tokens: Tensor | None = None
    query_mask: Tensor | None = None
    candidate_query: Tensor | None = None
    query_items: Tensor | None = None
    trending: dict[str, dict[str, Tensor]] | None = None
    candidate_trending: Tensor | None = None
    teacher: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Batch:
        """A batch of what the collator made, or of a model's keyword arguments; None stands for a field's default."""
        if isinstance(given, cls):
            return given
        if not isinstance(given, Mapping):
            raise TypeError(f"a batch is a Batch or a dict, not {type(given).__name__}: pass item_ids=... by its name")
        if unknown := [name for name in given if name not in _NAMES]:
            raise TypeError(f"a batch has no {unknown[0]!r}; {nearest(unknown[0], list(_NAMES))}")
        if given.get("candidate_ids") is None or given.get("candidate_positions") is None:
            raise ValueError(
                "pass candidate_ids and candidate_positions [B, C]: the items to be scored, and after how many events"
            )
        return cls(**{name: values for name, values in given.items() if values is not None})

    @classmethod
    def inputs(cls, given: Mapping[str, Any]) -> Batch:
        """The part of a collated batch from which candidates are scored: no labels, weights, folds or teacher."""
        return cls.of({name: given[name] for name in _NAMES if name in given and name not in _OF_TRAINING})

    @property
    def shape(self) -> tuple[int, int]:
        """(B, C)."""
        return self.candidate_ids.shape[0], self.candidate_ids.shape[1]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch on a device."""
        return Batch(**{name: _to(values, device, non_blocking) for name, values in self.items()})

    def __getitem__(self, name: str) -> Any:
        values = getattr(self, name) if name in _NAMES else None
        if values is None:
            raise KeyError(name)
        return values

    def __iter__(self) -> Iterator[str]:
        return (name for name in _NAMES if getattr(self, name) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)


_NAMES = tuple(own.name for own in fields(Batch))
_OF_TRAINING = ("labels", "sample_weight", "user_fold", "teacher", "candidate_rows")


def _to(values: Any, device: torch.device | str, non_blocking: bool) -> Any:
    if isinstance(values, Mapping):
        return {name: _to(inner, device, non_blocking) for name, inner in values.items()}
    return values.to(device, non_blocking=non_blocking)
