r"""Does multi-task training help? Multi-task, single-task and leave-one-out models on the same test examples.

For each task t, a metric m (its sign turned where less is better) and seeds s = 1..S, the *gain* of sharing is

    gain(t) = mean_s [m_t(all tasks, s) - m_t(only t, s)]

and the *affinity* of task a for task b, what adding a to the others does to b, is

    affinity(a, b) = mean_s [m_b(all tasks, s) - m_b(all but a, s)]

(Standley et al., 2020, "Which Tasks Should Be Learned Together in Multi-task Learning?"; Fifty et al., 2021,
"Efficiently Identifying Task Groupings for Multi-Task Learning"). Intervals resample USERS, all models on the same
draw (`bootstrap`): models on the same users rise and fall together, so the difference is known far better than either
value. The seeds are not resampled: their spread stands beside, and a verdict needs them to agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from polyrec.core.registry import HEADS, nearest
from polyrec.core.schema import TaskConfig
from polyrec.data.sequences import SequenceDataset
from polyrec.evaluation import bootstrap, evaluator, ranking
from polyrec.evaluation.comparison_runs import ComparisonRun, Cost
from polyrec.evaluation.metrics import LOWER_IS_BETTER
from polyrec.evaluation.resampled_metrics import ResampledMetric, repeated_rows, resampled_mean, resampled_metric

MULTI, SINGLE, LEAVE_ONE_OUT = "multi", "single", "leave-one-out"
KINDS = (MULTI, SINGLE, LEAVE_ONE_OUT)
Verdict = Literal["better", "worse", "unclear"]
_MOST_RELATIVE = 100  # times the other model's value; gains beyond it are given in units of the metric alone


@dataclass(frozen=True)
class Variant:
    """One way to train: a name and its tasks, in alphabetical order."""

    name: str
    tasks: tuple[str, ...]


def plan(tasks: Sequence[str], kinds: Sequence[str] = KINDS) -> list[Variant]:
    """The models to train. With two tasks, leaving one out is learning the other alone: one model stands for both.

    Example:
        >>> [v.name for v in plan(["like", "watch", "next"])]
        ['all', 'only_like', 'only_next', 'only_watch', 'without_like', 'without_next', 'without_watch']
        >>> [v.name for v in plan(["like", "watch"], ["multi", "leave-one-out"])]
        ['all', 'only_watch', 'only_like']
    """
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"unknown variant {kind!r}; {nearest(kind, list(KINDS))}")
    if MULTI not in kinds:
        raise ValueError(f"the variants {', '.join(kinds)} lack {MULTI!r}, with which the others are compared: add it")
    if len(tasks) < 2:
        raise ValueError(f"a comparison needs at least two tasks, the recipe has {len(tasks)}")
    names = sorted(tasks)
    found = {tuple(names): "all"}
    for name in names if SINGLE in kinds else []:
        found.setdefault((name,), f"only_{name}")
    for name in names if LEAVE_ONE_OUT in kinds else []:
        rest = tuple(n for n in names if n != name)
        found.setdefault(rest, f"without_{name}" if len(rest) > 1 else f"only_{rest[0]}")
    return [Variant(name, kept) for kept, name in found.items()]


@dataclass
class Effect:
    """What the multi-task model gains over another one; positive = the multi-task model is better.

    Args:
        gain: in units of the metric.
        low, high: interval of `gain` over users.
        relative: gain / |value of the other model|; NaN where that value is next to 0, e.g. an error that is none.
        relative_low, relative_high: the interval in the same unit.
        seeds: gain of each seed.
        verdict: "better" or "worse" if the interval excludes 0 and every seed agrees, else "unclear".
    """

    gain: float
    low: float
    high: float
    relative: float
    relative_low: float
    relative_high: float
    seeds: list[float]
    verdict: Verdict


@dataclass
class MetricComparison:
    """One metric of one task.

    Args:
        higher_is_better: which way is up.
        values: {variant: one value per seed}.
        effect: of all tasks over the task alone; None if one of the two was not trained or there is no interval.
    """

    higher_is_better: bool
    values: dict[str, list[float]]
    effect: Effect | None = None


@dataclass
class TaskComparison:
    """One task: how many rows, which metric decides, and every metric by name."""

    head: str
    users: int
    rows: int
    primary: str
    metrics: dict[str, MetricComparison]


@dataclass
class Comparison:
    """The whole result; `dataclasses.asdict` of it is what the JSON file holds.

    Args:
        tasks: by name.
        affinity: {added task: {other task: Effect on the other's primary metric}}.
        costs: {variant: mean cost over seeds}.
        seeds, resamples, level: of training, of the bootstrap.
        notes: what to know when reading them, beside what always holds.
    """

    tasks: dict[str, TaskComparison]
    affinity: dict[str, dict[str, Effect]]
    costs: dict[str, Cost]
    seeds: list[int]
    resamples: int
    level: float
    notes: list[str] = field(default_factory=list)


def compare(
    runs: Sequence[ComparisonRun],
    tasks: Sequence[TaskConfig],
    dataset: SequenceDataset,
    k: int = 10,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    progress: Callable[[str], None] = lambda task: None,
) -> Comparison:
    """Compare finished runs on the data set of their predictions.

    Args:
        runs: every variant with every seed.
        tasks: all of them.
        dataset: the test examples.
        k: cut-off of ranking metrics.
        resamples, level, seed: of the bootstrap over users.
        progress: called with the name of each task before its metrics are resampled.
    """
    by_tasks = {tuple(sorted(run.tasks)): run.variant for run in runs}
    everything = tuple(sorted(t.name for t in tasks))
    seeds = sorted({run.seed for run in runs})
    _check_complete(runs, by_tasks, everything, seeds)
    result = Comparison({}, {}, _mean_costs(runs), seeds, resamples, level)
    for task in sorted(tasks, key=lambda t: t.name):
        progress(task.name)
        alone = by_tasks.get((task.name,))
        found = measure(
            task, [r for r in runs if task.name in r.tasks], (by_tasks[everything], alone), dataset, k, resamples, seed
        )
        result.tasks[task.name] = found.comparison
        for name, metric in found.comparison.metrics.items():
            if alone is not None and name in found.samples:
                metric.effect = found.effect(name, by_tasks[everything], alone, level)
        for added in everything:
            rest = by_tasks.get(tuple(n for n in everything if n != added))
            if added != task.name and rest is not None and found.comparison.primary in found.samples:
                effect = found.effect(found.comparison.primary, by_tasks[everything], rest, level)
                result.affinity.setdefault(added, {})[task.name] = effect
    result.affinity = dict(sorted(result.affinity.items()))
    return result


@dataclass
class Measured:
    """A task's metrics and, per metric and variant, their values on every resample (mean over seeds)."""

    comparison: TaskComparison
    samples: dict[str, dict[str, np.ndarray]]

    def effect(self, name: str, first: str, second: str, level: float) -> Effect:
        """What the first variant gains over the second in a metric that was resampled for both."""
        metric = self.comparison.metrics[name]
        sign = 1.0 if metric.higher_is_better else -1.0
        per_seed = sign * (np.array(metric.values[first]) - np.array(metric.values[second]))
        gain, base = float(per_seed.mean()), abs(float(np.mean(metric.values[second])))
        if abs(gain) >= _MOST_RELATIVE * base:  # of nothing or next to it everything is a large multiple
            base = float("nan")
        found = bootstrap.interval_of(
            gain, sign * (self.samples[name][first] - self.samples[name][second]), level, self.comparison.users
        )
        verdict: Verdict = "unclear"
        if found.low > 0 and (per_seed > 0).all():
            verdict = "better"
        elif found.high < 0 and (per_seed < 0).all():
            verdict = "worse"
        return Effect(
            gain, found.low, found.high, gain / base, found.low / base, found.high / base, per_seed.tolist(), verdict
        )


def measure(
    task: TaskConfig,
    runs: list[ComparisonRun],
    compared: tuple[str | None, ...],
    dataset: SequenceDataset,
    k: int,
    resamples: int,
    seed: int,
) -> Measured:
    """Measure a task: every metric of every run, and resample what is asked for.

    Args:
        runs: those that have the task.
        compared: variants of which all metrics are resampled; of the others the primary one is.
    """
    if task.name in runs[0].predictions.rankings:
        rows_R, values, prepared, primary = _rankings(task.name, runs, dataset, k)
    else:
        rows_R, values, prepared, primary = _pairs(task, runs, dataset)
    metrics = {
        name: MetricComparison(
            name not in LOWER_IS_BETTER,
            {v: [by_seed[s] for s in sorted(by_seed)] for v, by_seed in per_variant.items()},
        )
        for name, per_variant in values.items()
    }
    users = len(np.unique(dataset.user_codes()[rows_R]))
    prepared = {
        name: {v: per_seed for v, per_seed in per_variant.items() if name == primary or v in compared}
        for name, per_variant in prepared.items()
    }
    samples = {
        name: {variant: np.zeros(resamples) for variant in per_variant} for name, per_variant in prepared.items()
    }
    for i, drawn_G in enumerate(bootstrap.draws(users, resamples, seed)):
        times_G = np.bincount(drawn_G, minlength=users)
        for name, per_variant in prepared.items():
            for variant, per_seed in per_variant.items():
                samples[name][variant][i] = np.mean([metric(times_G) for metric in per_seed])
    return Measured(TaskComparison(task.head, users, len(rows_R), primary, metrics), samples)


_Values = dict[str, dict[str, dict[int, float]]]  # {metric: {variant: {seed: value}}}
_Prepared = dict[str, dict[str, list[ResampledMetric]]]  # {metric: {variant: one per seed}}


def _pairs(
    task: TaskConfig, runs: list[ComparisonRun], dataset: SequenceDataset
) -> tuple[np.ndarray, _Values, _Prepared, str]:
    labels_C = dataset.labels()[:, dataset.task_names.index(task.name)]
    rows_R = np.flatnonzero(~np.isnan(labels_C))
    if not len(rows_R):
        raise ValueError(f"task {task.name!r} has no label in the test set: nothing can be compared")
    labels_R, users_R = labels_C[rows_R], dataset.user_codes()[rows_R]
    code_R = np.unique(users_R, return_inverse=True)[1]
    users, names = int(code_R.max()) + 1, HEADS.get(task.head).metrics
    values: _Values = {}
    prepared: _Prepared = {}
    for run in runs:
        predictions_R = run.predictions.values[task.name][rows_R]
        details = run.predictions.details.get(task.name)
        found, _ = evaluator.pair_metrics(
            names, labels_R, predictions_R, users_R, task.name, None if details is None else details[rows_R]
        )
        for name, value in found.items():
            values.setdefault(name, {}).setdefault(run.variant, {})[run.seed] = value
            metric = resampled_metric(name, labels_R, predictions_R, code_R, users)
            if metric is None and name == names[0]:
                metric = repeated_rows(name, labels_R, predictions_R, code_R, users)
            if metric is not None:
                prepared.setdefault(name, {}).setdefault(run.variant, []).append(metric)
    return rows_R, values, prepared, names[0]


def _rankings(
    task: str, runs: list[ComparisonRun], dataset: SequenceDataset, k: int
) -> tuple[np.ndarray, _Values, _Prepared, str]:
    rows_R = np.sort(runs[0].predictions.rankings[task].rows)
    if not len(rows_R):
        raise ValueError(f"task {task!r} has nothing to rank in the test set: nothing can be compared")
    code_R = np.unique(dataset.user_codes()[rows_R], return_inverse=True)[1]
    users = int(code_R.max()) + 1
    values: _Values = {}
    prepared: _Prepared = {}
    for run in runs:
        found = run.predictions.rankings[task]
        order = np.argsort(found.rows)
        if not np.array_equal(found.rows[order], rows_R):
            raise ValueError(f"run {run.name} ranked other rows of task {task!r} than {runs[0].name}: delete it")
        per_list = ranking.single_target_metrics(found.greater[order], found.ties[order], ks=[k])
        for name in (f"ndcg@{k}", f"recall@{k}", f"mrr@{k}"):
            values.setdefault(name, {}).setdefault(run.variant, {})[run.seed] = float(per_list[name].mean())
            metric = resampled_mean(per_list[name], code_R, users)
            prepared.setdefault(name, {}).setdefault(run.variant, []).append(metric)
    return rows_R, values, prepared, f"ndcg@{k}"


def _check_complete(
    runs: Sequence[ComparisonRun],
    by_tasks: Mapping[tuple[str, ...], str],
    everything: tuple[str, ...],
    seeds: list[int],
) -> None:
    if everything not in by_tasks:
        raise ValueError(f"no run has all tasks ({', '.join(everything)}): there is nothing to compare with")
    done = {(run.variant, run.seed) for run in runs}
    missing = [f"{v} with seed {s}" for v in by_tasks.values() for s in seeds if (v, s) not in done]
    if missing:
        raise ValueError(f"differences are taken seed by seed, but these runs are missing: {', '.join(missing)}")


def _mean_costs(runs: Sequence[ComparisonRun]) -> dict[str, Cost]:
    by_variant: dict[str, list[Cost]] = {}
    for run in runs:
        by_variant.setdefault(run.variant, []).append(run.cost)
    return {variant: Cost.mean(costs) for variant, costs in by_variant.items()}
