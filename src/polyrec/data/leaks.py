"""Labels among inputs: columns that a label reads are refused, columns that alone separate a label are found.

Letters: S sampled rows, V values of a column, Y classes of a label.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from polyrec.core.schema import Columns, TaskConfig
from polyrec.data.catalog import EntityTable
from polyrec.data.columns import FIRST, ColumnEncoder
from polyrec.data.derived import with_derived
from polyrec.data.tables import column, numbers

_LOOKED_AT = 1 << 22  # rows, evenly spread, among which samples are drawn
_PER_CLASS = 3_000  # rows of each class (or 2 times as many of a number) that are read
_LEAST, _LEAST_OF_CLASS = 50, 10  # rows, and rows of a class, under which chance may separate
_LEAST_OF_VALUE = 5  # rows of a value, from which on it counts as one
_COVERED = 0.9  # share of rows that such values must have
_PURE = 0.005  # share of rows that may lie on the wrong side
_RANKED = 0.999  # AUC, or rank correlation
_MOST_VALUES = 1_000  # distinct numbers of a column that are also compared one by one
_MOST_CLASSES = 50
_LEAST_ENTITIES, _MOST_ENTITIES = 20, 20_000  # items or users whose label means are compared with an attribute


@dataclass(frozen=True)
class Separation:
    """A column that alone tells a label.

    Args:
        task: whose label it is.
        column: e.g. "context.click2", "item.avg_rating".
        how: the evidence.
    """

    task: str
    column: str
    how: str

    def text(self) -> str:
        """One sentence with the fix."""
        return (
            f"{self.column} alone tells the label of task {self.task!r} ({self.how}): if it is known only "
            "afterwards, make it feedback or leave it out, or figures will flatter"
        )


def refuse_labels_as_inputs(columns: Columns, tasks: Sequence[TaskConfig]) -> None:
    """Refuse inputs known before the event that some task's label reads.

    Raises:
        ValueError: names the column, the task and the fix.

    Example:
        >>> refuse_labels_as_inputs(Columns(context=["click"]), [TaskConfig("click", "binary")])
        Traceback (most recent call last):
        ValueError: columns.context: the label of task 'click' reads 'click', so the model would see the label before
        it predicts it: name it in columns.feedback, which only later events read
    """
    roles = {name: "context" for name in columns.context}
    roles |= {name: role for role in ("time", "order", "query") if (name := getattr(columns, role)) is not None}
    for task in tasks:
        rule = task.parsed_label
        if rule is None or rule.column not in roles:
            continue
        fix = "name it in columns.feedback, which only later events read"
        if roles[rule.column] != "context":
            fix = "give the label a column of its own"
        raise ValueError(
            f"columns.{roles[rule.column]}: the label of task {task.name!r} reads {rule.column!r}, so the model would "
            f"see the label before it predicts it: {fix}"
        )


def separating_columns(
    table: pa.Table,
    labels: np.ndarray,
    columns: Columns,
    tasks: Sequence[TaskConfig],
    entities: Mapping[str, tuple[EntityTable, np.ndarray]],
    context: Mapping[str, ColumnEncoder],
) -> list[Separation]:
    """Inputs known before the event of which one alone tells a task's label; a sample of rows is read.

    Args:
        table: the interactions.
        labels: float32 [R, T], NaN = unknown.
        entities: {"item": (table, its row of each interaction [R]), "user": ...}.
        context: encoders of context columns, the derived ones included.
    """
    pair = [j for j, task in enumerate(tasks) if not task.ranks_catalog]
    sampled = {j: _sample(labels[:, j]) for j in pair}
    rows = np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *sampled.values()]))
    if not len(rows):
        return []
    picked = {j: np.searchsorted(rows, own) for j, own in sampled.items()}
    part = with_derived(table.take(pa.array(rows)), columns, entities["item"][0])
    found = []
    inputs = [*_context(part, context), *_attributes(rows, entities), *_order(part, columns)]
    for name, values in inputs:
        found += [(j, name, values) for j in pair]
    own = {task.name: j for j, task in enumerate(tasks)}
    for role, declared in (("propensity", columns.propensity), ("weight", columns.weight)):
        for task_name, key in declared.items():
            if own.get(task_name) in pair and key in part.column_names:
                values = numbers(column(part, key, "interactions", role), f"interactions: column {key!r}")
                # Weights may well follow the label, but rows without a weight are no rows.
                values = values if role == "propensity" else (values > 0).astype(np.int64)
                found.append((own[task_name], f"{role}.{key}", values))
    result = []
    for j, name, values in found:
        how = separation(values[picked[j]], labels[rows[picked[j]], j])
        if how:
            result.append(Separation(tasks[j].name, name, how))
    return result


def aggregated_labels(
    labels: np.ndarray, tasks: Sequence[TaskConfig], entities: Mapping[str, tuple[EntityTable, np.ndarray]]
) -> list[Separation]:
    """Numeric attributes that order items or users as the mean label in the whole log, or the number of events, does.

    Such a column was made from the log, its validation and test rows included.

    Args:
        labels, entities: see [`separating_columns`].
    """
    found = []
    for source, (entity, rows) in entities.items():
        numeric = [name for name, encoder in entity.encoders.items() if encoder.kind == "numeric"]
        if not numeric:
            continue
        size = len(entity)
        measures = {"the number of events": (tasks[0].name, np.bincount(rows, minlength=size).astype(np.float64))}
        for j, task in enumerate(tasks):
            if task.ranks_catalog:
                continue
            known = ~np.isnan(labels[:, j])
            count = np.bincount(rows, weights=known, minlength=size)
            total = np.bincount(rows, weights=np.where(known, labels[:, j], 0), minlength=size)
            with np.errstate(invalid="ignore"):
                measures[f"the mean of {task.label or task.name}"] = task.name, np.where(count, total / count, np.nan)
        for name in numeric:
            values = entity.encoded[name]
            for what, (task_name, measure) in measures.items():
                own = np.flatnonzero(~np.isnan(values) & ~np.isnan(measure))
                own = own[(own >= FIRST)][:_MOST_ENTITIES]
                if len(own) < _LEAST_ENTITIES or len(np.unique(measure[own])) < _LEAST_OF_VALUE:
                    continue
                if abs(_spearman(values[own], measure[own])) > _RANKED:
                    how = f"it orders {source}s as {what} in the whole log does, test rows included"
                    found.append(Separation(task_name, f"{source}.{name}", how))
    return found


def separation(values: np.ndarray, labels: np.ndarray) -> str:
    """How a column alone tells a label, in words; "" if it does not.

    Args:
        values: [S] numbers (NaN = missing) or codes (0 = missing), or codes [S, K] of a multi-valued column.
        labels: float [S], known ones.

    Example:
        >>> label = np.arange(100) % 2.0
        >>> separation(label + 3, label), separation(np.arange(100.0), label)
        ('AUC 1.000', '')
    """
    classes, code = np.unique(labels, return_inverse=True)
    size = np.bincount(code)
    if len(labels) < _LEAST or len(classes) < 2:
        return ""
    discrete = len(classes) <= _MOST_CLASSES and np.sort(size)[-2] >= _LEAST_OF_CLASS
    if values.ndim > 1:
        return _multi(values, code) if discrete and len(classes) == 2 else ""
    if values.dtype.kind != "f":
        return f"each of its values has one label, in {len(labels):,} rows read" * _is_pure(
            values, code, discrete, labels
        )
    known = ~np.isnan(values)
    if discrete and not known.all() and _is_pure(known.astype(np.int64), code, discrete, labels):
        return "it is missing for one label only"
    return _numeric(values[known], labels[known], code[known], discrete)


def _numeric(values: np.ndarray, labels: np.ndarray, code: np.ndarray, discrete: bool) -> str:
    if len(values) < _LEAST:
        return ""
    size = np.bincount(code, minlength=2)
    if len(size) == 2 and discrete:
        if size.min() < _LEAST_OF_CLASS:
            return ""
        auc = (_ranks(values)[code == 1].sum() - size[1] * (size[1] - 1) / 2) / (size[0] * size[1])
        if max(auc, 1 - auc) > _RANKED:
            return f"AUC {auc:.3f}"
    elif abs(correlation := _spearman(values, labels)) > _RANKED:
        return f"rank correlation {correlation:.3f}"
    distinct, value = np.unique(values, return_inverse=True)
    pure = len(distinct) <= _MOST_VALUES and _is_pure(value, code, discrete, labels)
    return f"each of its values has one label, in {len(labels):,} rows read" * pure


def _is_pure(values: np.ndarray, code: np.ndarray, discrete: bool, labels: np.ndarray) -> bool:
    """Whether rows of one value have one label, for values with enough rows."""
    _, value = np.unique(values, return_inverse=True)
    kept = (np.bincount(value) >= _LEAST_OF_VALUE)[value]
    if kept.mean() < _COVERED:
        return False
    value, code, labels = value[kept], code[kept], labels[kept].astype(np.float64)
    if not discrete:
        size = np.bincount(value)
        mean = np.bincount(value, weights=labels) / np.maximum(size, 1)
        return bool(labels.var() > 0 and ((labels - mean[value]) ** 2).mean() <= (1 - _RANKED) * labels.var())
    classes = int(code.max()) + 1
    count_VY = np.bincount(value * classes + code, minlength=(int(value.max()) + 1) * classes).reshape(-1, classes)
    others = len(code) - np.bincount(code).max()  # rows that are not of the most frequent class
    wrong = len(code) - count_VY.max(axis=1).sum()
    return bool(others >= _LEAST_OF_CLASS and wrong <= _PURE * others)


def _multi(values_SK: np.ndarray, code: np.ndarray) -> str:
    """Whether one of a multi-valued column's values is there for one label and only for it."""
    row, slot = np.nonzero(values_SK >= FIRST)
    if not len(row):
        return ""
    value = values_SK[row, slot]
    one = np.unique(np.stack([row, value]), axis=1)  # a value twice in a row counts once
    there_VY = np.zeros((2, int(value.max()) + 1))
    np.add.at(there_VY, (code[one[0]], one[1]), 1)
    size = np.bincount(code, minlength=2)
    wrong = np.minimum(there_VY[0] + size[1] - there_VY[1], there_VY[1] + size[0] - there_VY[0])
    return "one of its values is there for one label only" * bool(wrong.min() <= _PURE * size.min())


def _sample(labels: np.ndarray) -> np.ndarray:
    """Rows with known labels, of each of two classes as many as are needed, int64 [S], ascending."""
    if len(labels) > _LOOKED_AT:  # one row of each of as many equal stretches, drawn: a log may have a period
        stretch = np.arange(_LOOKED_AT) + np.random.default_rng(0).random(_LOOKED_AT)
        looked_at = (stretch * (len(labels) / _LOOKED_AT)).astype(np.int64)
        return looked_at[_sample(labels[looked_at])]
    known = np.flatnonzero(~np.isnan(labels))
    if not len(known):
        return known
    low, high = labels[known].min(), labels[known].max()
    groups = [known]
    if ((labels[known] == low) | (labels[known] == high)).all() and low < high:
        groups = [known[labels[known] == value] for value in (low, high)]
    most = _PER_CLASS * (2 if len(groups) == 1 else 1)
    point = (np.arange(most) + np.random.default_rng(0).random(most)) / most  # one of each of `most` equal stretches
    return np.sort(np.concatenate([g if len(g) <= most else g[(point * len(g)).astype(np.int64)] for g in groups]))


def _context(part: pa.Table, context: Mapping[str, ColumnEncoder]) -> Iterator[tuple[str, np.ndarray]]:
    for name, encoder in context.items():
        if encoder.kind not in ("embedding", "text"):
            values = column(part, name, "interactions", "context")
            yield f"context.{name}", encoder.encode(values, f"interactions: column {name!r}")


def _attributes(
    rows: np.ndarray, entities: Mapping[str, tuple[EntityTable, np.ndarray]]
) -> Iterator[tuple[str, np.ndarray]]:
    for source, (entity, rows_of) in entities.items():
        for name, encoder in entity.encoders.items():
            if encoder.kind not in ("embedding", "text"):
                yield f"{source}.{name}", entity.encoded[name][rows_of[rows]]


def _order(part: pa.Table, columns: Columns) -> Iterator[tuple[str, np.ndarray]]:
    if columns.order in part.column_names:
        values = column(part, str(columns.order), "interactions", "order")
        if pa.types.is_integer(values.type) or pa.types.is_floating(values.type):
            yield f"order.{columns.order}", np.asarray(values.cast(pa.float64()).fill_null(np.nan))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0, equal values share their mean, float64 [S]."""
    _, index, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count + 1) / 2)[index]


def _spearman(one: np.ndarray, other: np.ndarray) -> float:
    """Rank correlation; 0 where one of the two is constant."""
    a, b = _ranks(one), _ranks(other)
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 0 else 0.0
