"""How much simple recommenders have to say beside the network, chosen by the ranking of validation rows.

Letters: M examples, N items.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from polyrec.core.progress import progress
from polyrec.data.candidates import LeftOut
from polyrec.data.sequences import SequenceDataset
from polyrec.evaluation import ranking
from polyrec.evaluation.chosen_weight import ChosenWeight
from polyrec.evaluation.evaluator import RetrievalExamples, lists_leave_out, predicted_batches
from polyrec.evaluation.scored import rank_scores, ranked_rows, rows_at_once
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.modules.encoders.item import FIRST_ITEM, ItemRows
from polyrec.modules.heads.terms._weighed import WeighedTerm
from polyrec.modules.heads.terms.base import ItemTerms

STRENGTHS = tuple(2.0**n for n in range(-6, 4))  # e.g. what the strongest neighbour of the latest item adds
_SCORES = 40_000_000  # about, of one weight: seconds for the grid
_FEWEST = 500


@dataclass(frozen=True, kw_only=True)
class TermWeight(ChosenWeight):
    """The weight of one term; `weight` and `decay` are those of `WeighedTerm.weigh`."""

    decay: float

    def __str__(self) -> str:
        return super().__str__() + (f"; it fades by {self.decay:g}" if self.decay < 1 else "")


@torch.no_grad()
def choose_term_weights(
    model: PolyRecForRecommendation,
    valid: SequenceDataset,
    k: int = 10,
    exclude_seen: bool | None = None,
    autocast: AbstractContextManager[Any] | None = None,
    tasks: Collection[str] | None = None,
) -> dict[tuple[str, str], TermWeight]:
    """The weights that rank validation rows best, {(task, kind of term): weight} of tasks with such terms and rows; the
    model is left as it is.

    NDCG@k is compared on the same rows, at most a few thousand, with one weight after the other; of each kind of term
    beside what was chosen of those before. A gain within its standard error counts, too: sums of unlike
    recommenders are rarely worse than one of them (of four logs, such gains held on later rows, 6% in the mean).

    Args:
        k: length of the lists.
        exclude_seen: as of [`~polyrec.evaluation.evaluator.predict`].
        autocast: as of `predict`.
        tasks: that are evaluated; None: all.
    """
    heads = {name: model.heads[name] for name in model.state_tasks if tasks is None or name in tasks}
    terms = {
        (name, kind): term for name, head in heads.items() for kind, term in head.weighed.items() if not term.is_new
    }
    kinds, valid = list(dict.fromkeys(kind for _, kind in terms)), valid.fixed()
    before = {key: term.weights.clone() for key, term in terms.items()}
    found: dict[tuple[str, str], TermWeight] = {}
    try:
        for term in terms.values():
            term.weigh(0.0, 1.0)
        with model.eval_mode() as model, autocast or nullcontext():
            ranked = _ranked(model, list(dict.fromkeys(name for name, _ in terms)), valid)
            for name, kind in sorted(terms, key=lambda key: kinds.index(key[1])):
                term, leaves = terms[name, kind], lists_leave_out(model, name, exclude_seen)
                parts = progress(ranked[name], f"Weight of {term.title}", unit="batch")
                if each := [_metrics(model, name, term, some, valid, leaves, k) for some in parts]:
                    best = found[name, kind] = _chosen(np.concatenate(each, axis=1), term, f"ndcg@{k}")
                    term.weigh(best.weight, best.decay)
    finally:
        for key, term in terms.items():
            term.weights.copy_(before[key])
    return found


def _ranked(
    model: PolyRecForRecommendation, tasks: list[str], valid: SequenceDataset
) -> dict[str, list[tuple[RetrievalExamples, ItemRows]]]:
    """The examples of a few thousand rows of each task, which one pass of the model serves, with the items to rank."""
    num_items = model.config.num_items - FIRST_ITEM
    kept, found = {}, {name: list[tuple[RetrievalExamples, ItemRows]]() for name in tasks}
    for name in tasks:
        rows = np.random.default_rng(0).permutation(ranked_rows(valid, name))
        kept[name] = np.zeros(valid.num_candidates, dtype=bool)
        kept[name][rows[: max(_SCORES // num_items, _FEWEST)]] = True
    for batch in predicted_batches(model, valid) if tasks else ():
        for name in tasks:
            for examples in batch.examples(name, rows_at_once(model.config.num_items)):
                if (some := _of_rows(examples, kept[name])) is not None:
                    found[name].append((some, batch.items))
    return found


def _metrics(
    model: PolyRecForRecommendation,
    task: str,
    term: WeighedTerm,
    ranked: tuple[RetrievalExamples, ItemRows],
    valid: SequenceDataset,
    leaves: LeftOut,
    k: int,
) -> np.ndarray:
    """NDCG@k of some rows with each weight of a term, [grid, M]."""
    some, items = ranked
    term.weigh(0.0, 1.0)
    plain_MN = model.score_items(some.states, task, items, some.queries, some.context).float()
    found = []
    for scores_MN in _weighed(plain_MN, term, some):
        lists = rank_scores(scores_MN[:, FIRST_ITEM:], valid, some.rows, leaves, 0)
        found.append(ranking.single_target_metrics(lists.greater, lists.ties, ks=[k])[f"ndcg@{k}"])
    return np.stack(found)


def _of_rows(examples: RetrievalExamples, kept: np.ndarray) -> RetrievalExamples | None:
    """The examples of some rows."""
    index = np.flatnonzero(kept[examples.rows])
    if not len(index):
        return None
    at = torch.from_numpy(index).to(examples.states.device)
    typed = None if examples.queries is None else examples.queries[at]
    return RetrievalExamples(examples.rows[index], examples.states[at], typed, examples.context.at(at))


def _weighed(plain_MN: torch.Tensor, term: WeighedTerm, examples: RetrievalExamples) -> Iterator[torch.Tensor]:
    """Scores with each weight of the grid; the first one is 0."""
    yield plain_MN.clone()
    ids_N = torch.arange(plain_MN.shape[1], device=plain_MN.device)
    for decay in term.decays:
        term.weigh(1.0, decay)
        own_MN = ItemTerms([term]).add_to(torch.zeros_like(plain_MN), examples.states, examples.context, ids_N)
        for strength in STRENGTHS:
            yield plain_MN + strength * own_MN


def _chosen(each: np.ndarray, term: WeighedTerm, metric: str) -> TermWeight:
    """The best of the grid, of metrics [grid, M]."""
    mean, grid = each.mean(axis=1), [(0.0, 1.0), *((strength, d) for d in term.decays for strength in STRENGTHS)]
    best = int(mean.argmax())
    return TermWeight(
        title=term.title,
        weight=grid[best][0],
        decay=grid[best][1],
        metric=metric,
        without=float(mean[0]),
        value=float(mean[best]),
        rows=each.shape[1],
    )
