"""Weights of rows: given as they are, or as the propensity with which a row came to be seen."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from polyrec.core.registry import nearest
from polyrec.core.schema import Columns, TaskConfig
from polyrec.data.tables import column, first_bad_row, numbers


def row_weights(
    table: pa.Table, columns: Columns, tasks: list[TaskConfig], labels: np.ndarray, name: str
) -> dict[str, np.ndarray]:
    r"""Weight of each row in the loss of each task that has one, {task: float32 [R]}.

    A task's loss is the weighted mean L = \sum_i w_i l_i / \sum_i w_i over its known labels. With `propensity` p_i
    (the chance that row i was shown, or its label observed), w_i = 1 / \max(p_i, c): the mean is that of a world
    where everything is seen, up to the clipped rows (self-normalised inverse propensity scoring: Schnabel et al.,
    2016, "Recommendations as Treatments"; clipping: Saito et al., 2020, "Unbiased Recommender Learning from
    Missing-Not-At-Random Implicit Feedback"). A smaller c = `columns.propensity_clip` has less bias and more variance.
    A task with both columns has the product of both.

    Args:
        columns: `weight`, `propensity` ({task: column}) and `propensity_clip`.
        labels: float32 [R, T]; weights matter only where a label is known, elsewhere they may be missing and are 0.
        name: what the table is, for messages.

    Raises:
        ValueError: names the task, the column, the first bad row and the fix.

    Example:
        >>> table = pa.table({"p": [0.5, 0.001, None]})
        >>> columns = Columns(propensity={"like": "p"}, propensity_clip=0.1)
        >>> labels = np.array([[1.0], [0.0], [np.nan]])
        >>> row_weights(table, columns, [TaskConfig("like", "binary")], labels, "interactions")["like"].tolist()
        [2.0, 10.0, 0.0]
    """
    names = [t.name for t in tasks]
    found: dict[str, np.ndarray] = {}
    for role, declared in (("weight", columns.weight), ("propensity", columns.propensity)):
        for task, key in declared.items():
            if task not in names:
                raise ValueError(f"columns.{role}: unknown task {task!r}; {nearest(task, names)}")
            known = ~np.isnan(labels[:, names.index(task)])
            what = f"{name}: column {key!r} ({role} of task {task!r})"
            values = numbers(column(table, key, name, f"{role} of task {task!r}"), what)
            if role == "weight":
                _check(values, known, what, lambda v: v < 0, "weights must be >= 0; 0 leaves a row out")
            else:
                _check(values, known, what, lambda v: (v <= 0) | (v > 1), "propensities must lie in (0, 1]")
                values = 1.0 / np.maximum(values, columns.propensity_clip)
            found[task] = found.get(task, 1.0) * np.where(known, values, 0.0)
    return {task: values.astype(np.float32) for task, values in found.items()}


def _check(
    values: np.ndarray, known: np.ndarray, what: str, refused: Callable[[np.ndarray], np.ndarray], rule: str
) -> None:
    row = first_bad_row(known & np.isnan(values))
    if row is not None:
        raise ValueError(f"{what} has no value in row {row}, whose label is known: fill it in, or remove the label")
    row = first_bad_row(known & refused(values))
    if row is not None:
        raise ValueError(f"{what} is {values[row]:g} in row {row}: {rule}, so correct or remove the row")
