"""Labels of tasks: numbers, and comparisons of columns with numbers or words.

Letters: R rows, T tasks.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polyrec.core.label import Label
from polyrec.core.registry import nearest
from polyrec.core.schema import TaskConfig
from polyrec.data.arrays import column, decoded, example, first_bad_row, is_number, is_text, numbers, numbers_of_text


def labels(table: pa.Table, tasks: list[TaskConfig], name: str) -> np.ndarray:
    """Return the labels of all tasks, float32 [R, T], NaN = unknown, checked against each task's head.

    A retrieval task's label is 1 where the event counts as a next item, NaN where it does not.
    """
    result = np.full((table.num_rows, len(tasks)), np.nan, dtype=np.float32)
    for j, task in enumerate(tasks):
        rule = task.parsed_label
        if rule is None:
            result[:, j] = 1.0
            continue
        values = label_values(table, rule, f"{name}: label of task {task.name!r}")
        if task.ranks_catalog:
            values = np.where(values > 0, 1.0, np.nan)
        _check_labels(values, task, rule, name)
        with np.errstate(over="ignore"):  # refused below
            result[:, j] = values
        row = first_bad_row(np.isinf(result[:, j]))
        if row is not None:
            raise ValueError(
                f"{name}: label of task {task.name!r} is {values[row]:g} in row {row}, more than float32 holds: "
                "divide the column by a constant"
            )
    return result


# head -> (labels must be whole numbers, from, to, what to do otherwise); limits by name are options of the task.
_ALLOWED: dict[str, tuple[bool, float | str, float | str, str]] = {
    "binary": (True, 0, 1, 'use a comparison such as label="{column} >= {value:g}", or head="regression"'),
    "multiclass": (True, 0, "num_classes", "number the classes 0, 1, 2, .. and count them all in num_classes"),
    "ordinal": (True, "minimum", "maximum", 'give whole numbers from minimum to maximum, or use head="regression"'),
    "count": (True, 0, np.inf, 'give counts, or use head="regression"'),
    "watch_time": (False, 0, np.inf, "repair the column, or make such values null: unknown"),
}


def _check_labels(values: np.ndarray, task: TaskConfig, rule: Label, name: str) -> None:
    """Refuse the first known label that the task's head cannot mean."""
    if task.head not in _ALLOWED:
        return
    whole, lowest, highest, fix = _ALLOWED[task.head]
    low = task.options.get(lowest, -np.inf) if isinstance(lowest, str) else lowest
    high = task.options.get(highest, np.inf) if isinstance(highest, str) else highest
    if highest == "num_classes":
        high -= 1
    row = first_bad_row((values < low) | (values > high) | (whole & (values % 1 > 0)))  # NaN is none of these
    if row is None:
        return
    limits = f"{low:g} or {high:g}" if high - low == 1 else f"a {'whole ' * whole}number from {low:g} to {high:g}"
    raise ValueError(
        f"{name}: label of {task.head} task {task.name!r} is {values[row]:g} in row {row} (column {rule.column!r}), "
        f"not {limits}: {fix.format(column=rule.column, value=values[row])}"
    )


def label_values(table: pa.Table, rule: Label, what: str) -> np.ndarray:
    """Evaluate one label rule, float64 [R]; a comparison with an unknown value stays unknown (NaN).

    Example:
        >>> label_values(pa.table({"event": ["buy", "view", None]}), Label.parse("event == 'buy'"), "label").tolist()
        [1.0, 0.0, nan]
    """
    if rule.column not in table.column_names:
        raise ValueError(f"{what}: no column {rule.column!r}; {nearest(rule.column, table.column_names)}")
    given, where = decoded(column(table, rule.column, what, "label")), f"{what} (column {rule.column!r})"
    if rule.words:
        return _word_values(given, rule, where)
    if is_text(given.type) and numbers_of_text(given) is None:
        _refuse_words(given, rule, where)
    values = numbers(given, where) / rule.divisor
    if rule.log1p:
        row = first_bad_row(values < 0)
        if row is not None:
            raise ValueError(
                f"{where} is {values[row] * rule.divisor:g} in row {row}: log1p needs numbers "
                ">= 0; repair them, or make them null: unknown"
            )
        values = np.log1p(values)
    if rule.op is None:
        return values
    compare: dict[str, Callable[..., np.ndarray]] = {
        "==": np.equal,
        "!=": np.not_equal,
        ">=": np.greater_equal,
        "<=": np.less_equal,
        ">": np.greater,
        "<": np.less,
        "in": np.isin,
        "not in": lambda x, y: ~np.isin(x, y),
    }
    return np.where(np.isnan(values), np.nan, compare[rule.op](values, rule.value).astype(np.float64))


def _word_values(given: pa.Array, rule: Label, where: str) -> np.ndarray:
    """1 where a text is one of the rule's words (or, negated, none of them), else 0, NaN where it is missing."""
    if pa.types.is_null(given.type):
        return np.full(len(given), np.nan)
    if not is_text(given.type):
        fix = f"{rule.column} == {example(given)}" if is_number(given.type) else f"label={rule.column!r}"
        raise ValueError(
            f"{where} is compared with the word {rule.words[0]!r} but holds {given.type} values such as "
            f"{example(given)!r}: write {fix}"
        )
    found = np.asarray(pc.is_in(given, value_set=pa.array(rule.words, given.type))).astype(np.float64)
    known = np.asarray(pc.not_equal(given, "").fill_null(False))
    return np.where(known, found if rule.op in ("==", "in") else 1 - found, np.nan)


def _refuse_words(given: pa.Array, rule: Label, where: str) -> None:
    """Words where a number was expected: name some of them, and the comparison that could be meant."""
    seen = pc.unique(given.slice(0, 10_000).drop_null())[:3].to_pylist()
    raise ValueError(
        f"{where} holds texts such as {', '.join(map(repr, seen))} but is used as a number: compare it with one of its "
        f'values, e.g. label="{rule.column} == {seen[0]!r}", or convert it'
    )


def check_words(table: pa.Table, tasks: list[TaskConfig], name: str) -> None:
    """Refuse a word that no row of a log holds; the nearest value is named."""
    for task in tasks:
        rule = task.parsed_label
        if rule is None or not rule.words:
            continue
        values = decoded(column(table, rule.column, name, "label"))
        seen = pc.unique(values.drop_null())
        words = pa.array(rule.words, pa.large_string())
        missing = words.filter(pc.invert(pc.is_in(words, value_set=seen.cast(words.type)))).to_pylist()
        if missing:
            raise ValueError(
                f"{name}: label of task {task.name!r}: column {rule.column!r} has no value {missing[0]!r}; "
                f"{nearest(missing[0], seen[:20].to_pylist())}"
            )


def check_learnable(values: np.ndarray, tasks: list[TaskConfig]) -> None:
    """Refuse a task whose training labels are all missing, or (unless retrieval) all the same: nothing can be learned.

    Args:
        values: labels of the training rows, [R, T].
    """
    for j, task in enumerate(tasks):
        known = values[~np.isnan(values[:, j]), j]
        if known.size == 0:
            rule = task.label or task.name
            raise ValueError(
                f"task {task.name!r} has no label in the training rows: check label={rule!r} or drop the task"
            )
        if not task.ranks_catalog and known.min() == known.max():
            raise ValueError(
                f"the label of task {task.name!r} is {known[0]:g} in every training row, so nothing can be learned: "
                f"check label={task.label!r} or drop the task"
            )
