"""How many trees a pair task reads beside its network, and how much they say, chosen by validation rows.

Letters: M rows, T trees.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from polyrec.core.progress import progress
from polyrec.data.sequences import SequenceDataset
from polyrec.data.trees import FORESTS, SOME, Trees, known_features
from polyrec.evaluation.chosen_weight import ChosenWeight
from polyrec.evaluation.evaluator import predicted_batches
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor
from polyrec.modules.heads._trees import read_inputs, read_leaves, tree_inputs

NUMBERS = (0.125, 0.25, 0.5, 0.75, 1.0)  # shares of the trees that are tried, the first ones
WORTHWHILE = 0.002  # share of the loss that twice as many trees must gain: they take twice as long to read
WEIGHTS = tuple(n / 10 for n in range(11))
_ROWS = 512


@dataclass(frozen=True, kw_only=True)
class TreeWeight(ChosenWeight):
    """The weight of the first `trees` trees; the loss is logistic, or squared in units of the label's spread."""

    trees: int


@torch.no_grad()
def choose_tree_weights(
    model: PolyRecForRecommendation,
    processor: PolyRecProcessor,
    valid: SequenceDataset,
    autocast: AbstractContextManager[Any] | None = None,
    tasks: Collection[str] | None = None,
) -> dict[str, tuple[Trees, TreeWeight]]:
    """Trees of the training rows and the number and weight with which validation rows have the smallest loss, {task:
    (trees, weight)} of the tasks that can have some; the model is left as it is.

    A gain within its standard error counts, too, as of `choose_term_weights`. Where the largest number of trees is the
    best one, twice as many are grown, up to the task's option `trees`: large logs take more of them than small ones.

    Args:
        processor: whose last split the training rows are of.
        autocast: as of [`~polyrec.evaluation.evaluator.predict`].
        tasks: that are evaluated; None: all.

    Raises:
        ValueError: the model reads other features than the processor gives.
    """
    heads = {n: h for n, h in model.heads.items() if h.trees is not None and (tasks is None or n in tasks)}
    valid = valid.fixed()
    labels = {name: valid.labels()[:, valid.task_names.index(name)] for name in heads if name in valid.task_names}
    judged = [name for name, known in labels.items() if (~np.isnan(known)).sum() > 1]
    if not judged or processor.pair_trees is None:
        return {}
    if (theirs := tree_inputs(processor.features)) != model.tree_inputs:
        raise ValueError(
            f"trees of task {judged[0]!r} read {model.tree_inputs} but the processor has {theirs} (names and sizes): "
            "build the configuration by processor.model_config(), or set option 'trees' to 0"
        )
    context = [name for name, _ in model.tree_inputs]
    able = [name for name in judged if name in processor.pair_trees.tasks]
    if not able:
        return {}
    own = _network_logits(model, able, valid, autocast)
    known = known_features(valid, np.arange(valid.num_candidates), context)
    found: dict[str, tuple[Trees, TreeWeight]] = {}
    for name in progress(able, "Trees", unit="task"):
        head, grown = heads[name], 0
        scale = {key: head.options.get(key, default) for key, default in (("mean", 0.0), ("std", 1.0))}
        forests = processor.pair_trees.forests(head.task, context, **scale, threads=torch.get_num_threads())
        while grown < head.options["trees"]:
            grown = min(max(2 * grown, SOME), head.options["trees"])
            trees = forests.grow(grown)
            said = _chosen(head, trees, known, labels[name], own[name])
            if name in found and said.value > (1 - WORTHWHILE) * found[name][1].value:
                break
            found[name] = trees, said
            if said.trees < grown:
                break
        forests.release()
    return found


def _network_logits(
    model: PolyRecForRecommendation,
    tasks: list[str],
    valid: SequenceDataset,
    autocast: AbstractContextManager[Any] | None,
) -> dict[str, Tensor]:
    """Logits of all candidates without trees, float32 [C] each."""
    found = {name: torch.full((valid.num_candidates,), torch.nan) for name in tasks}
    before = {name: model.heads[name].trees.weight.clone() for name in tasks}
    try:
        for name in tasks:
            model.heads[name].trees.weight.zero_()
        with model.eval_mode() as model, autocast or nullcontext():
            for batch in predicted_batches(model, valid):
                assert batch.output.logits is not None  # there are candidates
                rows = batch.rows.flatten()
                for name, values in found.items():
                    values[rows[rows >= 0]] = batch.output.logits[name].flatten().float().cpu()[rows >= 0]
    finally:
        for name, weight in before.items():
            model.heads[name].trees.weight.copy_(weight)
    return found


def _chosen(head: Any, trees: Trees, known_CF: np.ndarray, labels: np.ndarray, own_C: Tensor) -> TreeWeight:
    """The best of the grid."""
    rows = np.flatnonzero(~np.isnan(labels))
    y_M, own_M = torch.from_numpy(labels[rows]).float(), own_C[torch.from_numpy(rows)]
    if head.task.head == "regression":
        y_M = head.in_spread(y_M)
    known = torch.from_numpy(known_CF[rows])
    known_MF = read_inputs({"known": known.unsqueeze(0)}, [("known", known.shape[1])])
    arrays = [torch.from_numpy(values) for values in trees]
    numbers = [max(int(share * len(trees.leaf) / FORESTS), 1) * FORESTS for share in NUMBERS]
    best, without = (0, 0.0), _loss(head, own_M, y_M)
    least = without
    last = [number - 1 for number in numbers]
    sums_MN = torch.cat([read_leaves(some, *arrays).cumsum(1)[:, last] for some in known_MF.split(_ROWS)])
    for column, number in enumerate(numbers):
        theirs_M = head.logit_of_mean + sums_MN[:, column]
        for weight in WEIGHTS[1:]:
            loss = _loss(head, torch.lerp(own_M, theirs_M, weight), y_M)
            if loss < least:
                best, least = (number, weight), loss
    number, weight = best
    title = f"{number or numbers[-1]} trees"
    return TreeWeight(
        title=title, trees=number, weight=weight, metric="loss", without=without, value=least, rows=len(rows)
    )


def _loss(head: Any, logits_M: Tensor, y_M: Tensor) -> float:
    """The mean loss, in double precision."""
    logits_M, y_M = logits_M.double(), y_M.double()
    if head.task.head == "binary":
        return F.binary_cross_entropy_with_logits(logits_M, y_M).item()
    return F.mse_loss(logits_M, y_M).item()
