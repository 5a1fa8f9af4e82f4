"""Scores every example of a data set once, and turns the predictions into metrics per task."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from polyrec.core.progress import progress as bar
from polyrec.core.progress import showing_bars
from polyrec.data.batch import Batch
from polyrec.data.candidates import LeftOut, left_out
from polyrec.data.sequences import SequenceDataset
from polyrec.data.window_loader import window_loader
from polyrec.evaluation import metrics, ranking
from polyrec.evaluation.cautions import (
    sees_evaluated_labels,
    warn_of_biased_gauc,
    warn_of_constant,
    warn_of_repeats,
)
from polyrec.evaluation.scanned import scan_ranks
from polyrec.evaluation.scored import Ranking, join_rankings, rank_scores, rows_at_once
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation, PolyRecOutput
from polyrec.modules.encoders.item import FIRST_ITEM, ItemRows
from polyrec.modules.encoders.request_context import RequestContext
from polyrec.modules.heads._catalog_scan import LARGE, ROWS, can_scan

logger = logging.getLogger(__name__)


# name -> f(labels, predictions, users), of one number per pair
PAIR_METRICS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], float]] = {
    "auc": lambda y, p, users: metrics.auc(y, p),
    "gauc": lambda y, p, users: metrics.grouped_auc(y, p, users).value,
    "logloss": lambda y, p, users: metrics.log_loss(y, p),
    "calibration_error": lambda y, p, users: metrics.expected_calibration_error(y, p),
    "rmse": lambda y, p, users: metrics.rmse(y, p),
    "mae": lambda y, p, users: metrics.mae(y, p),
    "accuracy": lambda y, p, users: metrics.accuracy(y, p),
    "quadratic_kappa": lambda y, p, users: metrics.quadratic_kappa(y, p),
    "xauc": lambda y, p, users: metrics.xauc(y, p),
    "poisson_deviance": lambda y, p, users: metrics.poisson_deviance(y, p),
}
# name -> f(labels, details), of several numbers per pair (see `TaskHead.details`)
DETAIL_METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "class_logloss": metrics.class_log_loss,
    "interval_coverage": metrics.interval_coverage,
}
# Metric that can evaluate a task -> what it is for a constant prediction that knows the labels' distribution, f(known
# labels).
_CONSTANTS: dict[str, Callable[[np.ndarray], float | np.ndarray]] = {
    "logloss": np.mean,
    "rmse": np.mean,
    "poisson_deviance": np.mean,
    "mae": np.median,
    "class_logloss": lambda y: np.bincount(y.astype(np.int64)) / len(y),
}


@dataclass
class Predictions:
    """Predictions for all candidates of a data set.

    Args:
        values: {pair task: float32 [C]}, probabilities or numbers.
        rankings: {retrieval task: Ranking}.
        details: {pair task: float32 [C, K]}, of heads that say more than one number (probabilities of classes).
    """

    values: dict[str, np.ndarray] = field(default_factory=dict)
    rankings: dict[str, Ranking] = field(default_factory=dict)
    details: dict[str, np.ndarray] = field(default_factory=dict)


class PairPredictions:
    """What pair tasks say of the candidates of a data set, gathered batch by batch, see [`Predictions`].

    Args:
        heads, tasks: {task: head}, and the pair tasks among them.
        candidates: of the data set.
    """

    def __init__(self, heads: Mapping[str, Any], tasks: Sequence[str], candidates: int) -> None:
        self.heads = heads
        self.values = {name: np.full(candidates, np.nan, dtype=np.float32) for name in tasks}
        self.details = {
            name: np.full((candidates, width), np.nan, dtype=np.float32)
            for name in tasks
            if (width := heads[name].detail_width) is not None
        }

    def add(self, rows_BC: torch.Tensor, logits: Mapping[str, torch.Tensor]) -> None:
        """Take the logits of a batch over; rows below 0 are padding."""
        real = rows_BC.flatten() >= 0
        at = rows_BC.flatten()[real].numpy()
        for name, found in self.values.items():
            found[at] = self.heads[name].predict(logits[name].float()).flatten().cpu()[real].numpy()
        for name, found in self.details.items():
            found[at] = self.heads[name].details(logits[name].float()).flatten(0, 1).cpu()[real].numpy()


class RetrievalExamples(NamedTuple):
    """Examples of a retrieval task.

    Args:
        rows: int64 [M], candidates of the data set.
        states: [M, D].
        queries: [M, D], of what was typed; None: nothing.
        context: of each.
    """

    rows: np.ndarray
    states: torch.Tensor
    queries: torch.Tensor | None
    context: RequestContext


class PredictedBatch(NamedTuple):
    """A batch of windows that the model has read.

    Args:
        rows: int64 [B, C], candidates of the data set, below 0 = padding.
        labels: {task: [B, C]}.
        output, contexts: of the model.
        items: the encoded table.
    """

    rows: torch.Tensor
    labels: Mapping[str, torch.Tensor]
    output: PolyRecOutput
    contexts: RequestContext
    items: ItemRows

    def examples(self, task: str, size: int) -> Iterator[RetrievalExamples]:
        """Retrieval examples: candidates whose item is a positive, at most `size` at a time."""
        positive = (self.rows.flatten() >= 0) & (self.labels[task].flatten() > 0)
        states_BCD, queries_BCD = self.output.states, self.output.queries
        assert states_BCD is not None  # there are candidates
        there = positive.to(states_BCD.device)
        states, context = states_BCD.flatten(0, 1)[there], self.contexts.rows(there)
        queries = None if queries_BCD is None else queries_BCD.flatten(0, 1)[there]
        rows = self.rows.flatten()[positive].numpy()
        for chunk in torch.arange(len(rows)).split(size):
            typed = None if queries is None else queries[chunk]
            yield RetrievalExamples(rows[chunk.numpy()], states[chunk], typed, context.at(chunk))


def predicted_batches(
    model: PolyRecForRecommendation,
    dataset: SequenceDataset,
    batch_size: int = 64,
    shard: tuple[int, int] = (0, 1),
    progress: bool = False,
    workers: int = 0,
) -> Iterator[PredictedBatch]:
    """Batches of a data set's windows, short ones first, and what the model says; arguments as of [`predict`]."""
    order = np.argsort(dataset.lengths, kind="stable")[shard[0] :: shard[1]]
    loader = window_loader(dataset, order, batch_size, workers)
    items = model.item_encoder.table()
    with showing_bars() if progress else nullcontext():
        batches = bar(loader, "Evaluation", unit="batch")
    for batch in batches:
        rows, labels = batch.pop("candidate_rows"), batch.pop("labels")
        inputs = Batch.of(batch).to(model.device)
        yield PredictedBatch(rows, labels, model(inputs, items=items), model.request_context(inputs), items)


@torch.no_grad()
def predict(
    model: PolyRecForRecommendation,
    dataset: SequenceDataset,
    batch_size: int = 64,
    k: int = 10,
    exclude_seen: bool | None = None,
    shard: tuple[int, int] = (0, 1),
    progress: bool = False,
    workers: int = 0,
    autocast: AbstractContextManager[Any] | None = None,
) -> Predictions:
    """Score every candidate; each window of the data set is read once.

    Args:
        k: length of ranked lists.
        exclude_seen: leave out all items of the user's visible history (beyond the window, too), as `recommend` does;
            an item taken that is among them is a miss. None: as the model serves (`config.exclude_seen`). A search
            finds them, too; it leaves out the item that the query is the text of.
        shard: (rank, ranks): this process reads every ranks-th window. Values of other windows stay NaN.
        progress: show a progress bar.
        workers: processes that read windows; 0: this one does.
        autocast: in which the model predicts, e.g. `torch.autocast("cuda", torch.bfloat16)`; scores are ranked and
            predictions made in single precision.
    """
    dataset = dataset.fixed()
    k = min(k, model.config.num_items - FIRST_ITEM)
    pairs = PairPredictions(model.heads, model.pair_tasks, dataset.num_candidates)
    parts: dict[str, list[Ranking]] = {name: [] for name in model.state_tasks}
    if model.config.num_items > LARGE and parts:
        batch_size = max(batch_size, ROWS)  # a pass over a large table costs as much for few requests
    with model.eval_mode() as model, autocast or nullcontext():
        for batch in predicted_batches(model, dataset, batch_size, shard, progress, workers):
            assert batch.output.logits is not None  # there are candidates
            pairs.add(batch.rows, batch.output.logits)
            for name in model.state_tasks:
                leaves = lists_leave_out(model, name, exclude_seen)
                if model.config.num_items > LARGE and can_scan(head := model.heads[name]):
                    for own in batch.examples(name, ROWS):
                        state = head.query_state(own.states, own.queries)
                        parts[name].append(
                            scan_ranks(head, state, batch.items, own.context, dataset, own.rows, leaves, k)
                        )
                    continue
                for examples in batch.examples(name, rows_at_once(model.config.num_items)):
                    scores = model.score_items(
                        examples.states, name, batch.items, examples.queries, examples.context
                    ).float()
                    parts[name].append(rank_scores(scores[:, FIRST_ITEM:], dataset, examples.rows, leaves, k))
    rankings = {name: join_rankings(lists, k) for name, lists in parts.items()}
    return Predictions(pairs.values, rankings, pairs.details)


def lists_leave_out(model: PolyRecForRecommendation, task: str, exclude_seen: bool | None = None) -> LeftOut:
    """What the lists of a model's task leave out; `exclude_seen=None`: as `recommend` has it."""
    return left_out(model.heads[task].task, model.config.exclude_seen if exclude_seen is None else exclude_seen)


def evaluate(
    model: PolyRecForRecommendation,
    dataset: SequenceDataset,
    predictions: Predictions,
    k: int = 10,
    groups: dict[str, np.ndarray] | None = None,
) -> dict[str, float]:
    """Metrics per task, {"<task>_<metric>": value}, and "mean_improvement".

    `mean_improvement` is the mean over tasks of the improvement over a constant prediction: 1 - logloss /
    logloss of the base rate (binary, multiclass), 1 - RMSE / standard deviation (regression, ordinal), 1 - deviance /
    deviance of the mean (count), 1 - MAE / MAE of the median (quantile, watch_time), NDCG@k (retrieval). A task whose
    known labels are all one value is left out of it, and a warning says so: the constant is perfect there, and the
    ratio to it says nothing. NaN where no task is left.

    **The GAUC trap.** Splits evaluate *prequentially*: a candidate sees its user's feedback on
    earlier candidates. GAUC counts users with both labels only, and among them an earlier positive predicts a
    negative, like drawing without replacement: of users with two rows and both labels, a first positive means a second
    negative. A model that rightly learns from what it sees is punished, and one warning says so. Evaluate prequential
    predictions by AUC, logloss and RMSE, and GAUC on `processor.without_updates(...)`, where nothing evaluated is
    visible.

    Args:
        groups: {name: bool [C]} of candidates to report apart, as "<name>/<task>_<metric>".
    """
    labels, users = dataset.labels(), dataset.user_codes()
    by_user = [name for name, head in model.heads.items() if name in predictions.values and "gauc" in head.metrics]
    if by_user and sees_evaluated_labels(dataset):
        warn_of_biased_gauc(", ".join(map(repr, sorted(by_user))))
    warn_of_repeats(predictions.rankings)
    result: dict[str, float] = {}
    for prefix, keep in [("", None), *((f"{name}/", mask) for name, mask in (groups or {}).items())]:
        improvements = []
        for j, task in enumerate(dataset.task_names):
            if task not in predictions.rankings and task not in predictions.values:
                continue
            if task in predictions.rankings:
                found, better = _ranking_metrics(predictions.rankings[task], keep, model, task, k)
            else:
                rows = np.ones(len(labels), dtype=bool) if keep is None else keep
                details = predictions.details.get(task)
                found, better = pair_metrics(
                    model.heads[task].metrics,
                    labels[rows, j],
                    predictions.values[task][rows],
                    users[rows],
                    task,
                    None if details is None else details[rows],
                )
            result |= {f"{prefix}{task}_{name}": value for name, value in found.items()}
            improvements += [better] if np.isfinite(better) else []
        if improvements or not prefix:
            result[f"{prefix}mean_improvement"] = float(np.mean(improvements)) if improvements else float("nan")
    return result


def improvements(
    model: PolyRecForRecommendation, dataset: SequenceDataset, predictions: Predictions, k: int = 10
) -> dict[str, float]:
    """The improvement of each task over a constant prediction, see [`evaluate`]; NaN where the labels do not tell."""
    labels, users = dataset.labels(), dataset.user_codes()
    found = {task: _ranking_metrics(own, None, model, task, k)[1] for task, own in predictions.rankings.items()}
    for task, values in predictions.values.items():
        known = labels[:, dataset.task_names.index(task)]
        found[task] = pair_metrics(
            model.heads[task].metrics, known, values, users, task, predictions.details.get(task)
        )[1]
    return found


def pair_metrics(
    names: tuple[str, ...],
    labels: np.ndarray,
    values: np.ndarray,
    users: np.ndarray,
    task: str,
    details: np.ndarray | None = None,
) -> tuple[dict[str, float], float]:
    """Metrics of one pair task by name, and how much better than the constant it is (see `evaluate`).

    Without `details` (a baseline knows one number per pair only) their metrics are left out, and GAUC is where no user
    has both labels. The improvement is NaN where all known labels are one value.
    """
    known = ~np.isnan(labels)
    if not known.any():
        logger.warning("task %r has no label in the evaluated rows: it has no metrics", task)
        return {}, float("nan")

    def measured(name: str, values: np.ndarray, details: np.ndarray | None) -> float | None:
        if name in PAIR_METRICS:
            return PAIR_METRICS[name](labels, values, users)
        return None if details is None else DETAIL_METRICS[name](labels, details)

    found = {name: value for name in names if (value := measured(name, values, details)) is not None}
    if np.isnan(found.get("gauc", 0.0)):
        del found["gauc"]
    if (labels[known] == labels[known][0]).all():
        warn_of_constant(task, f"{labels[known][0]:g}")
        return found, float("nan")
    judge = next((name for name in names if name in _CONSTANTS and name in found), None)
    if judge is None:
        return found, float("nan")
    constant = _CONSTANTS[judge](labels[known])
    rows = np.broadcast_to(constant, (len(labels), *np.shape(constant)))
    trivial = measured(judge, rows, rows)
    assert trivial is not None
    return found, 1 - found[judge] / trivial


def _ranking_metrics(
    found: Ranking, keep: np.ndarray | None, model: PolyRecForRecommendation, task: str, k: int
) -> tuple[dict[str, float], float]:
    rows = np.ones(len(found.rows), dtype=bool) if keep is None else keep[found.rows]
    if not rows.any():
        return {}, float("nan")
    cutoffs = [k, *model.heads[task].further_cutoffs]
    per_list = ranking.single_target_metrics(found.greater[rows], found.ties[rows], ks=cutoffs)
    result = {f"{name}@{k}": float(per_list[f"{name}@{k}"].mean()) for name in ("ndcg", "recall", "mrr")}
    result |= {f"recall@{more}": float(per_list[f"recall@{more}"].mean()) for more in cutoffs[1:]}
    counts = model.item_counts[FIRST_ITEM:].cpu().numpy()
    result[f"coverage@{k}"] = ranking.coverage(found.top_ids[rows], len(counts))
    result[f"novelty@{k}"] = ranking.novelty(found.top_ids[rows], counts)
    return result, result[f"ndcg@{k}"]


def gather(predictions: Predictions) -> Predictions:
    """Join the shares of all ranks, exactly: each window was read by one rank."""
    ranks = torch.distributed.get_world_size()
    shares: list[Predictions] = [predictions] * ranks
    torch.distributed.all_gather_object(shares, predictions)
    values, details = {}, {}
    for name in predictions.values:
        stacked = np.stack([s.values[name] for s in shares])
        reader = np.argmin(np.isnan(stacked), axis=0), np.arange(stacked.shape[1])
        values[name] = stacked[reader]
        if name in predictions.details:
            details[name] = np.stack([s.details[name] for s in shares])[reader]
    rankings = {name: join_rankings([s.rankings[name] for s in shares], 0) for name in predictions.rankings}
    return Predictions(values, rankings, details)
