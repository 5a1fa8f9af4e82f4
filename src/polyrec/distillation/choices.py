"""Which soft losses a head knows, and a plan checked against them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from polyrec.core.distillation_config import TaskDistillation
from polyrec.core.registry import checked_options, nearest

Rule = tuple[Callable[[Any], bool], str]  # whether a value will do, and the rule in words
WHOLE: Rule = (lambda value: type(value) is int and value >= 1, "it must be a whole number >= 1")
POSITIVE: Rule = (lambda value: 0 < value < math.inf, "it must be a number > 0")
NOT_NEGATIVE: Rule = (lambda value: 0 <= value < math.inf, "it must be a number >= 0")


def one_of(*names: str) -> Rule:
    """The rule that a value is one of these."""
    return lambda value: value in names, f"known: {', '.join(names)}"


@dataclass(frozen=True)
class SoftLoss:
    """What a loss of soft labels reads of a plan.

    Args:
        tempered: whether it has a temperature; a plan that gives one to a loss without is refused, as it would be
            ignored.
        options: with their defaults.
        rules: {option: what holds of its values}.
    """

    tempered: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    rules: Mapping[str, Rule] = field(default_factory=dict)


def chosen(plan: TaskDistillation, known: Mapping[str, SoftLoss], what: str) -> TaskDistillation:
    """The plan with the loss that "auto" means, the first one known, and all of its options.

    Example:
        >>> known = {"kl": SoftLoss(tempered=True), "squared": SoftLoss()}
        >>> chosen(TaskDistillation(temperature=2.0), known, "task 'like'").loss
        'kl'
        >>> chosen(TaskDistillation("squared", temperature=2.0), known, "task 'like'")
        Traceback (most recent call last):
            ...
        ValueError: distillation loss 'squared' of task 'like' has no temperature: leave it 1, not 2.0
    """
    name = next(iter(known)) if plan.loss == "auto" else plan.loss
    if name not in known:
        raise ValueError(f"unknown distillation loss {name!r} of {what}; {nearest(name, ['auto', *known])}")
    loss, said = known[name], f"distillation loss {name!r} of {what}"
    if plan.temperature != 1 and not loss.tempered:
        raise ValueError(f"{said} has no temperature: leave it 1, not {plan.temperature}")
    options = checked_options(plan.options, loss.options, said)
    for option, (holds, rule) in loss.rules.items():
        if not holds(options[option]):
            raise ValueError(f"option {option!r} of {said} is {options[option]!r}; {rule}")
    return replace(plan, loss=name, options=options)
