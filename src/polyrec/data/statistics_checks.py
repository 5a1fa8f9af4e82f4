"""What running statistics can count, given the columns and tasks."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from polyrec.core.label import Label
from polyrec.core.registry import nearest
from polyrec.core.schema import Columns
from polyrec.data.statistic_config import StatisticConfig, StatisticsConfig
from polyrec.data.tables import label_values


def check_statistics(
    config: StatisticsConfig, columns: Columns, tasks: Sequence[str], attributes: Sequence[str]
) -> None:
    """Refuse, before any row is read, what could not be counted."""
    known = ["item", "user", *attributes]
    statistics: list[StatisticConfig] = [*(config.log or []), *(config.past or [])]
    for statistic in config.log or [] if columns.time is None else []:
        if statistic.fade is not None or statistic.gap:
            raise ValueError(
                f"statistics.log: {statistic.name!r} fades or asks for a gap, but the log has no times (columns.time: "
                "null): leave out recent, half_life and gap"
            )
    for key in [k for s in statistics for k in s.keys] + [k for keys in config.context for k in keys]:
        if key not in known:
            raise ValueError(f"statistics: there is no key {key!r} to count by; {nearest(key, known)}")
    for statistic in config.past or []:
        if statistic.fade is not None or statistic.gap:
            raise ValueError(
                f"statistics.past: {statistic.name!r} fades or asks for a gap, but events of the past have no times: "
                "leave out recent, half_life and gap"
            )
    for name in config.targets:
        if name not in columns.feedback:
            raise ValueError(f"statistics.targets: {name!r} is no feedback; {nearest(name, list(columns.feedback))}")
        if name in tasks:
            raise ValueError(f"statistics.targets: {name!r} is a task, whose label is counted anyway: leave it out")


def says_the_same(rule: Label, marks: Sequence[str]) -> bool:
    """Whether a mark of the past, 1 or 0, is itself the label that a rule makes of its column."""
    if rule.column not in marks:
        return False
    return label_values(pa.table({rule.column: [0, 1]}), rule, "past").tolist() == [0.0, 1.0]


def default_history_statistics(item_keys: Sequence[str]) -> list[StatisticConfig]:
    """How often, and with which feedback: the item, the user, and the user with the item and its attributes."""
    found = [
        StatisticConfig(("item",), "context", shrinkage=6, count=True),
        StatisticConfig(("user",), "item", count=True),
        StatisticConfig(("user", "item"), "item", shrinkage=1, count=True),
    ]
    for key in item_keys:
        found.append(StatisticConfig((key,), "context", shrinkage=20, count=True))
        found.append(StatisticConfig(("user", key), "item", shrinkage=3, count=True))
    return found
