"""The best items of a retrieval task by an index, where scores are an inner product and what terms add to few items.

Letters: B users, N rows of the item table, D width.
"""

from __future__ import annotations

import importlib.util
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch

from polyrec.core.extras import check_extra
from polyrec.core.settings import SettingError, nearest
from polyrec.data.batch import Batch
from polyrec.inference.index import LARGE, NONE, InvertedIndex, Raised
from polyrec.inference.scorer import TorchScorer
from polyrec.models.batches import as_batch
from polyrec.models.polyrec.extension import windows_of
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor
from polyrec.modules.encoders.item import FIRST_ITEM, ItemRows
from polyrec.modules.heads.retrieval import RetrievalHead

_log = logging.getLogger("polyrec.inference")
_USERS, _EVENTS = 128, 10  # whose queries tell how many cells are visited
IndexKind = Literal["auto", "exact", "faiss"]


class CatalogIndex:
    """Finds the best items of retrieval tasks without a score of every item; threads may share it.

    Repeats, neighbours, what is popular now and all other terms that speak of few items are added to the scores of
    these exactly. Where a term speaks of all items (their age), or a head scores otherwise, all are scored.

    Args:
        kind: "auto": an inverted file from 300,000 items on; "exact": none; "faiss": always.
        large: items from which on "auto" builds one.
    """

    def __init__(self, kind: IndexKind = "auto", large: int = LARGE) -> None:
        if kind not in get_args(IndexKind):
            raise SettingError("index", f"is {kind!r}; {nearest(str(kind), list(get_args(IndexKind)))}")
        if kind == "faiss":
            check_extra("faiss", "faiss", "inverted files")
        self.kind, self.large = kind, large
        self._built: dict[str, InvertedIndex] = {}
        self._items: dict[str, tuple[ItemRows, np.ndarray]] = {}  # what they were built of
        self._said: set[str] = set()
        self._lock = threading.Lock()

    def serves(self, model: PolyRecForRecommendation, task: str) -> bool:
        """Whether lists of a task come from an index; the first time, the log says why or why not."""
        if task not in model.history_tasks or self.kind == "exact":
            return False
        reason = self._against(model, task)
        if task not in self._said:
            self._said.add(task)
            _log.info("lists of %s: %s", task, f"all items are scored ({reason})" if reason else "by an index of faiss")
        return not reason

    def _against(self, model: PolyRecForRecommendation, task: str) -> str:
        head = model.heads[task]
        if type(head) is not RetrievalHead:
            return f"{type(head).__name__} scores in its own way"
        if dense := [name for name, term in head.named_terms.items() if term.dense]:
            return f"its term {dense[0]} says something of every item"
        if self.kind == "auto" and model.config.num_items < self.large:
            return f"an index is worth it from {self.large:,} items on, there are {model.config.num_items:,}"
        if self.kind == "auto" and importlib.util.find_spec("faiss") is None:
            return "faiss is not installed: pip install 'polyrec[faiss]'"
        return ""

    def best(
        self,
        scorer: TorchScorer,
        processor: PolyRecProcessor,
        task: str,
        batch: Batch,
        read: Any,
        k: int,
        allowed: Sequence[np.ndarray],
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The k best allowed items of each user, rows and scores; fewer where no more are allowed.

        Args:
            batch: with one candidate per user, who sees all events.
            read: what `scorer` read of it.
            allowed: of each user, bool [N].
        """
        model, items = scorer.model, scorer.items
        states_BD, context = model.states_of(batch, read)[:, 0], model.request_context(batch).at((slice(None), 0))
        head = model.heads[task]
        assert isinstance(head, RetrievalHead)
        ids_N = torch.arange(len(items.vectors_MD), device=states_BD.device)
        states_BD = head.query_state(states_BD, None)
        queries_BD = head.project(states_BD).float().cpu().numpy()
        if not np.isfinite(queries_BD).all():
            raise ValueError("scores are not finite: the model has diverged; lower its learning rate and train it anew")
        bias_N = head.item_bias(ids_N, items).float().cpu().numpy()
        bias_N[:FIRST_ITEM] = -np.inf
        index = self._index(task, items, bias_N, lambda: _sampled(scorer, processor, head))
        raised = None
        if terms := head.terms:
            entries = terms.entries(states_BD, context, ids_N)
            assert not isinstance(entries, str), f"the term {entries} is dense"
            raised = [_summed(*(part.cpu().numpy() for part in own)) for own in zip(*entries, strict=True)]
        found = index.search(queries_BD, k, np.stack(allowed), raised)
        for rows, scores in zip(found.rows, found.scores, strict=True):
            listed = rows != NONE
            yield rows[listed], scores[listed]

    def _index(
        self, task: str, items: ItemRows, bias_N: np.ndarray, queries: Callable[[], np.ndarray]
    ) -> InvertedIndex:
        """The index of a table, which is brought up to date where few items have changed, else built anew."""
        with self._lock:
            index, known = self._built.get(task), self._items.get(task)
            if index is not None and known is not None and known[0] is items and np.array_equal(known[1], bias_N):
                return index
            vectors_ND = items.vectors_MD.float().cpu().numpy()
            index = None if index is None else index.changed(vectors_ND, bias_N)
            if index is None:
                begin = time.monotonic()
                index = InvertedIndex(vectors_ND, bias_N, queries(), threads=torch.get_num_threads())
                _log.info("index of %s: %d items in %.1f s", task, len(bias_N), time.monotonic() - begin)
            self._built[task], self._items[task] = index, (items, bias_N)
            return index


def _sampled(scorer: TorchScorer, processor: PolyRecProcessor, head: RetrievalHead) -> np.ndarray:
    """Queries of some users, whose events have items by chance, as often as these occur."""
    counts = processor.item_counts.astype(np.float64)
    counts[:FIRST_ITEM] = 0
    counts[FIRST_ITEM:] += 0.0 if counts.any() else 1.0
    drawn = np.random.default_rng(0).choice(len(counts), (_USERS, _EVENTS), p=counts / counts.sum())
    batch = as_batch(windows_of(processor, drawn), scorer.model)
    states_BD = scorer.model.states_of(batch, scorer.read(batch))[:, 0]
    queries_BD: np.ndarray = head.project(head.query_state(states_BD, None)).float().cpu().numpy()
    return queries_BD


def _summed(rows: np.ndarray, numbers: np.ndarray) -> Raised:
    """What is added to each item, once."""
    spoken = numbers != 0
    found, place = np.unique(rows[spoken], return_inverse=True)
    return Raised(found, np.bincount(place, numbers[spoken], minlength=len(found)).astype(np.float32))
