"""Baselines that read the user's last events: again the same items, or items that belong to them.

All but the first are score = w S with the events' weights w, decay^n for the n-th back, and an item-item matrix S.

Letters: R rows, N items of the catalog.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp

from polyrec.data.histories import Histories
from polyrec.data.sequences import SequenceDataset
from polyrec.evaluation.baselines import recommenders
from polyrec.evaluation.baselines.base import NO_ORDER, CatalogBaseline, CatalogTask, Scorer

LAST = (10, 1, 3, 5, 20, None)
DECAYS = (0.9, 0.7, 1.0)
_ALL = 1 << 40  # more events than anybody has
_SMALLEST = 1e-3  # weight of an event under which it is not read: a long history would cost as much as it is long


class HistoryBaseline(CatalogBaseline):
    """Reads the user's events: positives, or all, where the log has others."""

    def grids(self) -> Sequence[Mapping[str, Sequence[Any]]]:
        """The stages, after the choice of events where there is one; of a set all events are read, all alike."""
        stages = list(self.stages)
        if not self.task.ordered:
            stages = [{"last": (None,), "decay": (1.0,)}, *(s for s in stages if not {"last", "decay"} & set(s))]
        return [*([{"history": ("taken", "all")}] if self.task.mixed else []), *stages]


class Repeat(HistoryBaseline):
    """The user's own items, the n-th event back counting decay^n (.5: the latest first), then the most popular ones."""

    name = "repeat"
    defaults = {"decay": 0.5}
    stages = ({"decay": (0.5, 0.7, 0.9, 1.0)},)

    @classmethod
    def misfit(cls, task: CatalogTask) -> str | None:
        """Lists without the history have none of the user's items."""
        return (
            "recommendation lists leave out items of the history"
            if task.what == "history"
            else None
            if task.ordered
            else NO_ORDER
        )

    def scorer(self, dataset: SequenceDataset, decay: float = 0.5, history: str = "taken", **settings: Any) -> Scorer:
        """Positive scores of one's own items, negative ones of others."""
        popular_N = self.task.popularity()
        others_N = (popular_N / (popular_N.max(initial=0) + 1) - 1).astype(np.float32)

        def score(rows: np.ndarray) -> np.ndarray:
            seen = self.task.histories(dataset, rows, history=history)
            own_RN = event_weights(seen, self.task.num_items, decay).toarray()
            return np.where(own_RN > 0, own_RN, others_N)

        return score


class ItemToItem(HistoryBaseline):
    """What belongs to the last events."""

    defaults = {"last": 10, "decay": 0.9}
    stages: ClassVar[Sequence[Mapping[str, Sequence[Any]]]] = ({"last": LAST, "decay": DECAYS},)
    once = False  # an item that was taken repeatedly counts once, with the weight of its latest event

    @abstractmethod
    def similarity(self, **settings: Any) -> np.ndarray | sp.csr_array:
        """S, float32 [N, N]."""

    def scorer(self, dataset: SequenceDataset, last: int | None = 10, decay: float = 0.9, **settings: Any) -> Scorer:
        """w S of each row."""
        similarity_NN = self.similarity(**settings)
        history = settings.get("history", "taken")
        last = min(last or _ALL, events_that_count(decay))

        def score(rows: np.ndarray) -> np.ndarray:
            seen = self.task.histories(dataset, rows, last, history)
            scores_RN = event_weights(seen, self.task.num_items, decay, self.once) @ similarity_NN
            return scores_RN.toarray() if sp.issparse(scores_RN) else scores_RN

        return score


class ItemKNN(ItemToItem):
    """S of [`polyrec.evaluation.baselines.recommenders.ItemKNN`]: tf-idf cosine, 200 neighbours of each item."""

    name = "item_knn"

    def __init__(self, task: CatalogTask) -> None:
        super().__init__(task)
        self._fitted = recommenders.ItemKNN().fit(*task.training_events(), task.num_items)

    def similarity(self, **settings: Any) -> sp.csr_array:
        """Cosines."""
        return self._fitted.similarity_NN


class EASE(ItemToItem):
    """S of [`polyrec.evaluation.baselines.recommenders.EASE`]; the ridge is chosen after `last` and `decay`."""

    name = "ease"
    defaults = {**ItemToItem.defaults, "ridge": 200.0}
    stages = (*ItemToItem.stages, {"ridge": (200.0, 50.0, 800.0)})
    once = True  # as in fitting

    def __init__(self, task: CatalogTask) -> None:
        super().__init__(task)
        self._ridge, self._weights_NN = 0.0, np.zeros((0, 0), dtype=np.float32)

    @classmethod
    def misfit(cls, task: CatalogTask) -> str | None:
        """It needs a dense matrix of the catalog."""
        most = recommenders.EASE().max_items
        return f"a catalog of {task.num_items:,} items is too large: at most {most:,}" * (task.num_items > most) or None

    def similarity(self, ridge: float = 200.0, **settings: Any) -> np.ndarray:
        """Weights, of one ridge at a time."""
        if ridge != self._ridge:
            self._weights_NN = np.zeros((0, 0), dtype=np.float32)  # two of them would be twice the memory
            self._ridge = ridge
            self._weights_NN = (
                recommenders.EASE(ridge).fit(*self.task.training_events(), self.task.num_items).weights_NN
            )
        return self._weights_NN


class Transitions(ItemToItem):
    r"""What came after: S_ij = sum d^(l - 1) / (n_i m_j^a), over training rows of j whose history has i l events back.

    A first-order Markov chain if d = 0 (only the event right before counts), smoothed over the 10 events before
    otherwise. n_i = sum of row i makes it P(j | i); m_j is the sum of column j, and a > 0 favours rarer items. A row's
    history is what its example saw: events of its own time are not in it.
    """

    name = "transitions"
    defaults = {"last": 3, "decay": 0.9, "lag_decay": 0.9, "damping": 0.0}
    stages = ({"lag_decay": (0.9, 0.7, 0.0), "damping": (0.0, 0.4)}, {"last": (3, 1, 5, 10), "decay": (0.9, 0.7)})

    @classmethod
    def misfit(cls, task: CatalogTask) -> str | None:
        """It needs an order."""
        return None if task.ordered else NO_ORDER

    def __init__(self, task: CatalogTask) -> None:
        super().__init__(task)
        self._settings: tuple[Any, ...] | None = None
        self._weights_NN = sp.csr_array((0, 0), dtype=np.float32)

    def similarity(
        self, lag_decay: float = 0.9, damping: float = 0.0, history: str = "taken", **settings: Any
    ) -> sp.csr_array:
        """Damped probabilities, of one choice of settings at a time."""
        if self._settings != (lag_decay, damping, history):
            counts_NN = self._counts(lag_decay, history)
            from_N, to_N = (np.maximum(counts_NN.sum(axis=axis), 1e-12) for axis in (1, 0))
            weights_NN = sp.diags_array(1 / from_N) @ counts_NN @ sp.diags_array(to_N**-damping)
            self._settings, self._weights_NN = (lag_decay, damping, history), weights_NN.tocsr().astype(np.float32)
        return self._weights_NN

    def _counts(self, lag_decay: float, history: str) -> sp.csr_array:
        number = self.task.num_items
        seen, next_item = self.task.successions(10 if lag_decay else 1, history)
        found = sp.csr_array((number, number))
        for block in seen.blocks():
            before = event_weights(Histories(seen.begin[block], seen.end[block], seen.items), number, lag_decay)
            size = before.shape[0]
            after = sp.csr_array((np.ones(size), next_item[block], np.arange(size + 1)), shape=before.shape)
            found = found + before.T @ after
        return found.tocsr()


def events_that_count(decay: float) -> int:
    """How many of the last events weigh at least a thousandth of the latest one.

    Example:
        >>> [events_that_count(decay) for decay in (0.0, 0.5, 0.7)]
        [1, 10, 20]
    """
    if decay >= 1:
        return _ALL
    return 1 if decay <= 0 else int(np.log(_SMALLEST) / np.log(decay)) + 1


def event_weights(seen: Histories, num_items: int, decay: float, once: bool = False) -> sp.csr_array:
    """Weights of the events of histories, the latest one 1, float32 [R, N]; those of one item are added up.

    Args:
        once: only the latest event of an item counts.

    Example:
        >>> seen = Histories(np.array([0]), np.array([3]), np.array([0, 1, 0]))
        >>> event_weights(seen, 2, 0.5).toarray().tolist(), event_weights(seen, 2, 0.5, once=True).toarray().tolist()
        ([[1.25, 0.5]], [[1.0, 0.5]])
    """
    offsets, items = seen.ragged()
    if not once:
        return recommenders.history_matrix(offsets, items, num_items, None, decay)
    length_R = np.diff(offsets)
    row = np.repeat(np.arange(len(length_R)), length_R)
    back = offsets[1:][row] - 1 - np.arange(len(items))
    latest = np.unique((row * num_items + items)[::-1], return_index=True)[1]  # the first of each in reversed order
    at = len(items) - 1 - latest
    weight = np.power(decay, back[at]).astype(np.float32)
    return sp.csr_array((weight, (row[at], items[at])), shape=(len(length_R), num_items))
