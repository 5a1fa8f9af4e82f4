"""How much simple recommenders have to say beside the network, chosen by the ranking of validation rows.

Letters: M examples, N items.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from polyrec.data.sequences import SequenceDataset
from polyrec.evaluation import ranking
from polyrec.evaluation.evaluator import RetrievalExamples, lists_leave_out, predicted_batches
from polyrec.evaluation.scored import rank_scores, ranked_rows, rows_at_once
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.modules.encoders.item import FIRST_ITEM
from polyrec.modules.heads.terms._weighed import WeighedTerm
from polyrec.modules.heads.terms.base import ItemTerms

STRENGTHS = tuple(2.0**n for n in range(-6, 4))  # e.g. what the strongest neighbour of the latest item adds
_SCORES = 40_000_000  # about, of one weight: seconds for the grid
_FEWEST = 500


@dataclass(frozen=True)
class TermWeight:
    """The weight of one term.

    Args:
        kind: which, of `RetrievalHead.weighed`.
        strength, decay: of `WeighedTerm.weigh`; strength 0: it has no say.
        without, value: the metric of the validation rows without and with the term.
        rows: validation rows that were ranked.
        metric: e.g. "ndcg@10".
        title: of the term, as messages name it.
    """

    kind: str
    strength: float
    decay: float
    without: float
    value: float
    rows: int
    metric: str
    title: str

    def __str__(self) -> str:
        if not self.strength:
            return (
                f"{self.title} left out: no weight raises {self.metric} above {self.without:.4f} on {self.rows:,} "
                "validation rows"
            )
        gain = f"{self.metric} {self.without:.4f} -> {self.value:.4f} on {self.rows:,} validation rows"
        fading = f", fading by {self.decay:g}" if self.decay < 1 else ""
        return f"{self.title} of weight {self.strength:g}{fading}: {gain}"


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
    valid = valid.fixed()
    before = {key: term.weights.clone() for key, term in terms.items()}
    found: dict[tuple[str, str], TermWeight] = {}
    try:
        for term in terms.values():
            term.weigh(0.0, 1.0)
        with model.eval_mode() as model, autocast or nullcontext():
            for chosen in dict.fromkeys(kind for _, kind in terms):
                some = {name: term for (name, kind), term in terms.items() if kind == chosen}
                for name, each in (_metrics(model, some, valid, k, exclude_seen) if some else {}).items():
                    weight = found[name, chosen] = _chosen(each, some[name], f"ndcg@{k}", chosen)
                    some[name].weigh(weight.strength, weight.decay)
    finally:
        for key, term in terms.items():
            term.weights.copy_(before[key])
    return found


def _metrics(
    model: PolyRecForRecommendation,
    terms: Mapping[str, WeighedTerm],
    valid: SequenceDataset,
    k: int,
    exclude_seen: bool | None,
) -> dict[str, np.ndarray]:
    """NDCG@k of a task's rows with each weight of its term, {task: [grid, M]}."""
    num_items = model.config.num_items - FIRST_ITEM
    ranked = {name: np.zeros(valid.num_candidates, dtype=bool) for name in terms}
    for name in terms:
        rows = np.random.default_rng(0).permutation(ranked_rows(valid, name))
        ranked[name][rows[: max(_SCORES // num_items, _FEWEST)]] = True
    gains: dict[str, list[np.ndarray]] = {name: [] for name in terms}
    for batch in predicted_batches(model, valid):
        for name, term in terms.items():
            leaves = lists_leave_out(model, name, exclude_seen)
            for examples in batch.examples(name, rows_at_once(model.config.num_items)):
                if (some := _of_rows(examples, ranked[name])) is None:
                    continue
                term.weigh(0.0, 1.0)
                plain_MN = model.score_items(some.states, name, batch.items, some.queries, some.context).float()
                found = []
                for scores_MN in _weighed(plain_MN, term, some):
                    lists = rank_scores(scores_MN[:, FIRST_ITEM:], valid, some.rows, leaves, 0)
                    found.append(ranking.single_target_metrics(lists.greater, lists.ties, ks=[k])[f"ndcg@{k}"])
                gains[name].append(np.stack(found))
    return {name: np.concatenate(found, axis=1) for name, found in gains.items() if found}


def _of_rows(examples: RetrievalExamples, kept: np.ndarray) -> RetrievalExamples | None:
    """The examples of some rows."""
    index = np.flatnonzero(kept[examples.rows])
    if not len(index):
        return None
    at = torch.from_numpy(index).to(examples.states.device)
    typed = None if examples.queries is None else examples.queries[at]
    return RetrievalExamples(examples.rows[index], examples.states[at], typed, examples.context.at(at))


def _grid(decays: tuple[float, ...]) -> list[tuple[float, float]]:
    return [(0.0, 1.0), *((strength, decay) for decay in decays for strength in STRENGTHS)]


def _weighed(plain_MN: torch.Tensor, term: WeighedTerm, examples: RetrievalExamples) -> Iterator[torch.Tensor]:
    """Scores with each weight of the grid; the first one is 0."""
    yield plain_MN.clone()
    ids_N = torch.arange(plain_MN.shape[1], device=plain_MN.device)
    for decay in term.decays:
        term.weigh(1.0, decay)
        own_MN = ItemTerms([term]).add_to(torch.zeros_like(plain_MN), examples.states, examples.context, ids_N)
        for strength in STRENGTHS:
            yield plain_MN + strength * own_MN


def _chosen(each: np.ndarray, term: WeighedTerm, metric: str, kind: str) -> TermWeight:
    """The best of the grid, of metrics [grid, M]."""
    mean = each.mean(axis=1)
    best = int(mean.argmax())
    strength, decay = _grid(term.decays)[best]
    return TermWeight(kind, strength, decay, float(mean[0]), float(mean[best]), each.shape[1], metric, term.title)
