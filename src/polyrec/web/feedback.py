"""Columns of feedback that a visitor of the page may fill in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor


@dataclass(frozen=True)
class Feedback:
    """A column of feedback that a visitor may fill in.

    Args:
        name: of the column.
        number: whether the model takes numbers there.
        choices: the values it knows, in order; empty = any number.
    """

    name: str
    number: bool
    choices: tuple[Any, ...] = ()

    def parse(self, value: Any) -> Any:
        """What was chosen or typed as the column has it; nothing is unknown."""
        if value is None or value == "":
            return None
        if not self.number:
            return value
        try:
            return float(value)
        except ValueError:
            raise ValueError(f"{self.name} is {value!r}; it must be a number") from None


def feedback_columns(processor: PolyRecProcessor) -> list[Feedback]:
    """Feedback that can be typed: numbers and categories, labels included."""
    rules = [task.parsed_label for task in processor.tasks]
    numbers = dict.fromkeys(rule.column for rule in rules if rule is not None and not rule.words)
    if processor.statistics is not None:
        numbers |= dict.fromkeys(processor.statistics.measures)
    encoders = processor.event_encoders["event"]
    found = []
    for name in dict.fromkeys([*encoders, *numbers]):
        encoder = encoders.get(name)
        if encoder is not None and encoder.kind not in ("categorical", "numeric"):
            continue
        number = name in numbers or encoder is None or encoder.kind == "numeric"
        known = [] if encoder is None or encoder.kind == "numeric" else encoder.vocabulary
        choices = sorted({float(value) for value in known}) if number else known
        found.append(Feedback(name, number, tuple(choices)))
    return found
