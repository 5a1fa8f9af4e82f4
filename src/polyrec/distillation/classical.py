"""Classical recommenders as teachers of retrieval tasks.

Letters: M rows, N items of the item table (padding and the unknown item first), K items of a list.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Protocol, Self

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp
from torch import Tensor

from polyrec.core.registry import nearest
from polyrec.data.candidates import excluded_items
from polyrec.data.columns import FIRST
from polyrec.data.histories import visible_history
from polyrec.data.row_lists import positive_items
from polyrec.data.sampling import uniform
from polyrec.data.sequences import SequenceDataset
from polyrec.data.training_rows import TrainingSetSketch
from polyrec.distillation.factors import ALS, BPR
from polyrec.distillation.lists import rows_at_once, top_list
from polyrec.distillation.rows import RowTeacher
from polyrec.distillation.teacher import check_numbers
from polyrec.evaluation.baselines.recommenders import EASE, ItemKNN, Popularity
from polyrec.models.polyrec.fingerprint import data_digest, digest
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor

_NO_NUMBERS = "its recommender gives none; one that diverged wants more regularization or fewer factors"
_HELD_OUT, _AT_MOST = 0.1, 4000  # share of users, and rows of theirs, by which logits are scaled


class Recommender(Protocol):
    """What ranks the catalog for a history; items are numbered 0..N-1, see `evaluation.baselines.recommenders`."""

    def fit(self, users: np.ndarray, items: np.ndarray, n_items: int) -> Self:
        """Learn from events, int [E] each."""

    def score(self, history_offsets: np.ndarray, history_items: np.ndarray) -> np.ndarray:
        """Scores of all items for ragged histories, float [M, N]."""


RECOMMENDERS: dict[str, Callable[..., Recommender]] = {
    "ease": EASE,
    "item_knn": ItemKNN,
    "popularity": Popularity,
    "als": ALS,
    "bpr": BPR,
}


class CatalogTeacher(RowTeacher):
    r"""A classical recommender as a teacher of retrieval tasks: z = a s, or a log(1 + s), with its scores s.

    It is fitted on the training rows alone (the positives), and scores a candidate from the events
    strictly before it, all of them or its last few, whatever fits into the student's window.

    Its scores are no logits. The scale a is the one that makes softmax(z) likeliest: a tenth of the users is left out
    of a first fit, a maximises the likelihood of what they took, and then the recommender is fitted on everybody. With
    scores from one's own training rows a would be far too large, because their positives have shaped them.

    Args:
        recommender: "ease", "item_knn", "popularity", "als", "bpr" or an object with `fit` and `score` that is copied
            and fitted here.
        train: what it learns from, `processor.split(...).train`.
        processor: of these data.
        task: retrieval task; default: the only one.
        options: of a recommender that is given by name, e.g. {"last": 5}.
        scale: a; None: by likelihood.
        log: take log(1 + s), which makes counts a distribution; default: of popularity.
        exclude_seen: leave out the user's history; by default it may be listed again, as labels may hold it.
        seed: of the draw of left-out users.
        others: `top_k`, `temperature`, see [`Teacher`].

    Example:
        >>> teacher = CatalogTeacher("ease", parts.train, processor, options={"last": 10})    # doctest: +SKIP
        >>> trainer = PolyRecTrainer(..., teacher=teacher)                                    # doctest: +SKIP
    """

    def __init__(
        self,
        recommender: str | Recommender,
        train: SequenceDataset,
        processor: PolyRecProcessor,
        task: str | None = None,
        options: dict[str, Any] | None = None,
        scale: float | None = None,
        log: bool | None = None,
        exclude_seen: bool = False,
        seed: int = 0,
        **others: Any,
    ) -> None:
        super().__init__(processor, **others)
        self.task = _retrieval_task(processor, task)
        fresh = _fresh(recommender, options or {})
        self.log = isinstance(fresh, Popularity) if log is None else log
        self.exclude_seen, self.num_items = exclude_seen, processor.num_items
        event = _positives(train, self.task)
        users, items = positive_items(train.log, event)
        number = processor.num_items - FIRST
        if scale is None:
            held_P = uniform(train.log.groups, seed, 0, "people") < _HELD_OUT
            out = held_P[users]
            self.scale = 1.0
            if out.any() and not out.all():
                self.recommender = copy.deepcopy(fresh).fit(users[~out], items[~out], number)
                self.scale = self._likeliest_scale(train, event[held_P[train.log.user[event]]], seed)
        elif not 0 < scale < np.inf:
            raise ValueError(f"scale is {scale}; it must be a number > 0, or None to find it by likelihood")
        else:
            self.scale = scale
        options_of = {name: repr(value) for name, value in sorted(vars(fresh).items())}
        self._revision = digest(
            [
                *(type(fresh).__name__, options_of, self.scale, self.log, exclude_seen, self.task),
                *(data_digest(train.log, processor.items.ids), items.tolist(), users.tolist()),
            ]
        )
        self.recommender = copy.deepcopy(fresh).fit(users, items, number)
        self._trained_on = TrainingSetSketch.of_examples(train, processor.items.ids)

    @property
    def list_tasks(self) -> tuple[str, ...]:
        """The task that it was fitted for."""
        return (self.task,)

    def width(self, task: str) -> tuple[int, ...]:
        """Items of a list."""
        return (min(self.top_k(task), self.num_items),)

    def logits(self, dataset: SequenceDataset, rows: np.ndarray) -> np.ndarray:
        """Logits of every row of the item table, float32 [M, N]; -inf for padding, the unknown and excluded items."""
        seen = visible_history(dataset, rows)
        scores = seen._replace(items=seen.items - FIRST).scores(self.recommender.score)
        found = np.full((len(rows), self.num_items), -np.inf, dtype=np.float32)
        found[:, FIRST:] = self.scale * (np.log1p(scores) if self.log else scores)
        check_numbers(torch.from_numpy(found), True, self.task, _NO_NUMBERS)
        for pairs in excluded_items("history" if self.exclude_seen else "nothing", dataset, rows):
            found[pairs] = -np.inf
        return found

    def lists(self, task: str, dataset: SequenceDataset, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """The best items for candidates of a data set."""
        found = [
            top_list(torch.from_numpy(self.logits(dataset, part)), self.top_k(task), self.temperature(task))
            for part in self._steps(rows)
        ]
        return torch.cat([items for items, _ in found]), torch.cat([scores for _, scores in found])

    def _steps(self, rows: np.ndarray) -> list[np.ndarray]:
        size = rows_at_once(self.num_items)
        return np.split(rows, np.arange(size, len(rows), size))

    def _likeliest_scale(self, train: SequenceDataset, event: np.ndarray, seed: int) -> float:
        """The a that makes the positives of left-out users likeliest; their rows are read in their own view."""
        own = np.flatnonzero(train.own_view & np.isin(train.candidates.event, event))
        rows = np.random.default_rng(seed).permutation(own)[:_AT_MOST]
        target = train.log.item[train.candidates.event[rows]]
        scores = np.concatenate([self.logits(train, part)[:, FIRST:] for part in self._steps(rows)])
        of_target = scores[np.arange(len(rows)), target - FIRST]
        kept = np.isfinite(of_target)  # an item that is excluded, as it was consumed before, says nothing
        scores, of_target = scores[kept], of_target[kept]
        if not len(of_target) or np.ptp(scores[np.isfinite(scores)]) == 0:
            return 1.0

        def loss(log_scale: float) -> float:
            a = np.exp(log_scale)
            return float((logsumexp(a * scores, axis=1) - a * of_target).mean())

        # Convex in a; the bounds are where a softmax is flat, or nothing but its maximum, for any score.
        spread = float(np.std(scores[np.isfinite(scores)])) or 1.0
        bounds = np.log(1e-3 / spread), np.log(1e3 / spread)
        return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-3}).x))


def _fresh(recommender: str | Recommender, options: dict[str, Any]) -> Recommender:
    if not isinstance(recommender, str):
        if options:
            raise ValueError("options are those of a recommender that is given by name: build yours with them")
        return recommender
    if recommender not in RECOMMENDERS:
        raise ValueError(f"unknown recommender {recommender!r}; {nearest(recommender, sorted(RECOMMENDERS))}")
    return RECOMMENDERS[recommender](**options)


def _retrieval_task(processor: PolyRecProcessor, task: str | None) -> str:
    names = [t.name for t in processor.tasks if t.head == "retrieval"]
    if task is None and len(names) == 1:
        return names[0]
    if task not in names:
        what = "say for which one it gives lists" if task is None else f"{task!r} is none"
        raise ValueError(f"a classical recommender scores a retrieval task; these data have {names}: {what}")
    return task


def _positives(train: SequenceDataset, task: str) -> np.ndarray:
    """Events of the log that are positives in their own view, int64 [E]."""
    event = train.candidates.event[train.own_view]
    labels = train.log.labels[event, train.task_names.index(task)]
    event = event[(labels > 0) & (train.log.item[event] >= FIRST)]
    if not len(event):
        raise ValueError(f"task {task!r} has no item taken in the training rows: nothing to fit a recommender on")
    return event
