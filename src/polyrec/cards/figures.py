"""Whether the figures of a text are those of its sources."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

_CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_FIGURE = re.compile(r"(?<![\w.,/:-])[-+−]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?![\w,]*\.?\d)(?:e[-+]?\d+)?\s?%?")


def unsupported_figures(text: str, sources: Iterable[Any]) -> list[str]:
    """Decimal and thousands-separated figures of a Markdown text that no source holds, rounded as the text rounds.

    Code blocks are not read. A percentage is 100 times a value.

    Args:
        text: e.g. a model card.
        sources: nested dicts and lists with numbers, e.g. the metrics of a run.

    Example:
        >>> unsupported_figures("AUC 0.813 of 12,345 rows", [{"auc": 0.8127, "rows": 12345}])
        []
        >>> unsupported_figures("AUC 0.823", [{"auc": 0.8127}])
        ['0.823']
    """
    known = list(_numbers(list(sources)))
    wrong = []
    for found in _FIGURE.finditer(_CODE.sub("", text)):
        figure = found.group().strip()
        if "." not in figure and "," not in figure:
            continue  # whole numbers name things: top 10, 3 epochs, 2024
        digits = figure.rstrip("% ").replace(",", "").replace("−", "-")
        scale = 100.0 if figure.endswith("%") else 1.0
        decimals = 0 if "e" in digits else len(digits.partition(".")[2])
        if not any(_equal(float(digits), scale * value, decimals, "e" in digits) for value in known):
            wrong.append(figure)
    return wrong


def _equal(written: float, value: float, decimals: int, scientific: bool) -> bool:
    if scientific:
        return abs(written - value) <= 1e-6 * abs(value)
    return f"{written:.{decimals}f}" == f"{value:.{decimals}f}"


def _numbers(values: Any) -> Iterator[float]:
    if isinstance(values, dict):
        values = list(values.values())
    if isinstance(values, list | tuple):
        for value in values:
            yield from _numbers(value)
    elif isinstance(values, int | float) and not isinstance(values, bool):
        yield float(values)
    elif isinstance(values, str):
        try:
            yield float(values)  # a cell of a csv file
        except ValueError:
            return
