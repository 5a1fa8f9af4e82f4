"""How much a linear item-item model has to say beside the network, chosen by the ranking of validation rows.

Letters: M questions, N items.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from polyrec.data.sequences import SequenceDataset
from polyrec.encoders.item import FIRST_ITEM
from polyrec.evaluation import ranking
from polyrec.evaluation.evaluator import Asked, answered, lists_leave_out
from polyrec.evaluation.intervals import beyond_chance
from polyrec.evaluation.scored import rank_scores, ranked_rows, rows_at_once
from polyrec.heads._item_terms import ItemTerms
from polyrec.modeling_polyrec import PolyRecForRecommendation

STRENGTHS = tuple(2.0**n for n in range(-5, 3))  # what the strongest neighbour of the latest item adds to its logit
DECAYS = (0.9, 0.7, 1.0)
_SCORES = 40_000_000  # about, of one weight: seconds for the grid
_FEWEST = 500


@dataclass(frozen=True)
class LinearWeight:
    """The weight of a linear term.

    Args:
        strength, decay: of `LinearNeighbours.weigh`; strength 0: it has no say.
        without, value: the metric of the validation rows without and with the term.
        rows: validation rows that were ranked.
        metric: e.g. "ndcg@10".
    """

    strength: float
    decay: float
    without: float
    value: float
    rows: int
    metric: str

    def __str__(self) -> str:
        gain = f"{self.metric} {self.without:.4f} -> {self.value:.4f} on {self.rows:,} validation rows"
        if not self.strength:
            return f"no linear term: it would gain less than chance ({gain})"
        return f"linear term of weight {self.strength:g}, fading by {self.decay:g}: {gain}"


@torch.no_grad()
def choose_linear_weights(
    model: PolyRecForRecommendation,
    valid: SequenceDataset,
    k: int = 10,
    exclude_seen: bool | None = None,
    autocast: AbstractContextManager[Any] | None = None,
    tasks: Collection[str] | None = None,
) -> dict[str, LinearWeight]:
    """The weights that rank validation rows best, {task with a linear term and such rows: weight}; the model is left as
    it is.

    NDCG@k is compared on the same rows, at most a few thousand, with one weight after the other. A term that gains less
    than the standard error of its gain has none.

    Args:
        k: length of the lists.
        exclude_seen: as of [`~polyrec.evaluation.evaluator.predict`].
        autocast: as of `predict`.
        tasks: that are judged; None: all.
    """
    terms = {name: model.heads[name].linear for name in model.state_tasks if tasks is None or name in tasks}
    terms = {name: term for name, term in terms.items() if term is not None and not term.is_new}
    if not terms:
        return {}
    valid = valid.fixed()
    num_items = model.config.num_items - FIRST_ITEM
    ranked = {name: np.zeros(valid.num_candidates, dtype=bool) for name in terms}
    for name in terms:
        rows = np.random.default_rng(0).permutation(ranked_rows(valid, name))
        ranked[name][rows[: max(_SCORES // num_items, _FEWEST)]] = True
    before = {name: term.weights.clone() for name, term in terms.items()}
    gains: dict[str, list[np.ndarray]] = {name: [] for name in terms}
    try:
        with model.eval_mode() as model, autocast or nullcontext():
            for batch in answered(model, valid):
                for name, term in terms.items():
                    leaves = lists_leave_out(model, name, exclude_seen)
                    for asked in batch.questions(name, rows_at_once(model.config.num_items)):
                        if (some := _of_rows(asked, ranked[name])) is None:
                            continue
                        term.weigh(0.0, 1.0)
                        plain_MN = model.score_items(some.states, name, batch.items, some.queries, some.moment).float()
                        found = []
                        for scores_MN in _weighed(plain_MN, term, some):
                            lists = rank_scores(scores_MN[:, FIRST_ITEM:], valid, some.rows, leaves, 0)
                            each = ranking.single_target_metrics(lists.greater, lists.ties, ks=[k])
                            found.append(each[f"ndcg@{k}"])
                        gains[name].append(np.stack(found))
    finally:
        for name, term in terms.items():
            term.weights.copy_(before[name])
    return {name: _chosen(found, f"ndcg@{k}") for name, found in gains.items() if found}


def _of_rows(asked: Asked, kept: np.ndarray) -> Asked | None:
    """The questions that are about some rows."""
    index = np.flatnonzero(kept[asked.rows])
    if not len(index):
        return None
    at = torch.from_numpy(index).to(asked.states.device)
    typed = None if asked.queries is None else asked.queries[at]
    return Asked(asked.rows[index], asked.states[at], typed, asked.moment.at(at))


def _grid() -> list[tuple[float, float]]:
    return [(0.0, 1.0), *((strength, decay) for decay in DECAYS for strength in STRENGTHS)]


def _weighed(plain_MN: torch.Tensor, term: Any, asked: Asked) -> Iterator[torch.Tensor]:
    """Scores with each weight of the grid; the first one is 0."""
    yield plain_MN.clone()
    ids_N = torch.arange(plain_MN.shape[1], device=plain_MN.device)
    for decay in DECAYS:
        term.weigh(1.0, decay)
        own_MN = ItemTerms([term]).add_to(torch.zeros_like(plain_MN), asked.states, asked.moment, ids_N)
        for strength in STRENGTHS:
            yield plain_MN + strength * own_MN


def _chosen(gains: list[np.ndarray], metric: str) -> LinearWeight:
    """The best of the grid, of metrics [grid, M] of some chunks."""
    each = np.concatenate(gains, axis=1)
    mean = each.mean(axis=1)
    best = int(mean.argmax())
    gain = each[best] - each[0]
    strength, decay = _grid()[best]
    if not beyond_chance(gain):
        strength, decay = 0.0, 1.0
    return LinearWeight(strength, decay, float(mean[0]), float(mean[best]), each.shape[1], metric)
