"""How sure a gain in `mean_improvement` is: people are drawn again and again, and both systems judged on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from polyrec import PolyRecForRecommendation
    from polyrec.data.sequences import SequenceDataset
    from polyrec.evaluation.evaluator import Predictions

JUDGES = ("logloss", "rmse")  # the metrics of this protocol's pair tasks that a constant is judged by, too


@dataclass
class Answers:
    """One system's answers to the same rows as another's.

    Args:
        users: [R].
        judges: {task: the metric that judges it; None: its values are NDCG already}.
        labels: {task: [R]}, NaN = unknown.
        values: {task: [R]}, what the pair tasks predict; of retrieval tasks the NDCG@10 of each list, NaN = none.
    """

    users: np.ndarray
    judges: Mapping[str, str | None]
    labels: Mapping[str, np.ndarray]
    values: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, model: PolyRecForRecommendation, dataset: SequenceDataset, found: Predictions) -> Answers:
        """From what the evaluator predicted."""
        import numpy as np

        from polyrec.evaluation.ranking import single_target_metrics

        judges: dict[str, str | None] = {
            name: next(m for m in model.heads[name].metrics if m in JUDGES) for name in found.values
        }
        values = dict(found.values)
        for name, lists in found.rankings.items():
            judges[name], values[name] = None, np.full(dataset.num_candidates, np.nan)
            values[name][lists.rows] = single_target_metrics(lists.greater, lists.ties, ks=[10])["ndcg@10"]
        labels = dict(zip(dataset.task_names, dataset.labels().T, strict=True))
        return cls(dataset.user_codes(), judges, labels, values)


def improvement(judges: Mapping[str, str | None], labels: Mapping[str, Any], values: Mapping[str, Any]) -> float:
    """`mean_improvement` of the evaluator, of any rows."""
    import numpy as np

    from polyrec.evaluation.evaluator import pair_metrics

    found = []
    for task, judge in judges.items():
        if judge is None:
            found.append(np.nanmean(values[task]))
        else:  # people matter to grouped metrics only
            found.append(pair_metrics((judge,), labels[task], values[task], labels[task], task)[1])
    return float(np.mean(found))


def gain_interval(first: Sequence[Answers], second: Sequence[Answers], n: int = 1000) -> dict[str, float]:
    """What the first system has over the second, each with one entry per seed; the seeds' mean is what is resampled.

    Returns:
        gain, low and high (95%), p (two-sided).
    """
    import numpy as np

    from polyrec.evaluation.bootstrap import bootstrap_interval

    one = first[0]

    def gain(rows: np.ndarray) -> float:
        labels = {task: column[rows] for task, column in one.labels.items()}
        both = ([improvement(one.judges, labels, {t: v[rows] for t, v in run.values.items()}) for run in runs]
                for runs in (first, second))  # fmt: skip
        return float(np.subtract(*map(np.mean, both)))

    found = bootstrap_interval(gain, one.users, np.arange(len(one.users)), n=n)
    return {"gain": found.value, "low": found.low, "high": found.high, "p": found.p_value}
