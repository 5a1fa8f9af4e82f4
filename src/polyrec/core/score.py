r"""One score of several tasks as it is written.

| written | score |
|---|---|
| 0.3*next_item + 2*like | sum_t w_t z_t: weighted log-odds |
| like^2 * watch_time | prod_t y_t^{e_t}: a product of predictions |
| ..., like >= 0.2 | of the items whose predictions fulfil it |

z_t is the log-odds of a probability, the score of a retrieval task, else the prediction in the label's unit; y_t is
the prediction, exp(score) of a retrieval task. Lists are ranked, boosted and drawn by the sum, or by the product's
logarithm.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Self

from polyrec.core.expressions import (
    Arithmetic,
    Both,
    Comparison,
    Either,
    Literal,
    Name,
    Negative,
    Node,
    Not,
    Power,
    names_in,
    parse_list,
)
from polyrec.core.settings import SettingError, nearest, shown

_HOW = "write a weighted sum of tasks ('0.3*next_item + 2*like') or one product ('like^2 * watch_time')"


@dataclass(frozen=True)
class Score:
    """A score as it was written.

    Args:
        text: of messages.
        weights: {task: weight}, or exponents of a product; {}: the task that ranks.
        product: of predictions, not a sum of log-odds.
        conditions: on predictions.

    Example:
        >>> Score.parse("0.3*next_item + 2*like, like >= 0.2").weights
        {'next_item': 0.3, 'like': 2.0}
        >>> Score.parse("like^2 * watch_time / price").weights
        {'like': 2.0, 'watch_time': 1.0, 'price': -1.0}
    """

    text: str
    weights: Mapping[str, float]
    product: bool = False
    conditions: tuple[Node, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read it.

        Raises:
            ValueError: it is neither a sum nor a product.
        """
        nodes = parse_list(text)
        conditions = tuple(node for node in nodes if isinstance(node, Comparison | Both | Either | Not))
        scores = [node for node in nodes if node not in conditions]
        if len(scores) > 1:
            raise ValueError(f"cannot read {shown(text)}: it has {len(scores)} scores: {_HOW}")
        if not scores:
            return cls(text, {}, False, conditions)
        product = _is_product(scores[0])
        found: dict[str, float] = {}
        (_multiply if product else _add)(found, scores[0], 1.0, text)
        return cls(text, found, product, conditions)

    def check(self, tasks: Collection[str]) -> None:
        """Refuse a task that there is not.

        Args:
            tasks: that score items.
        """
        for name in (*self.weights, *(name for condition in self.conditions for name in names_in(condition))):
            if name not in tasks:
                raise SettingError("score", f"names no task: {name!r}; {nearest(name, list(tasks))}")


def _is_product(node: Node) -> bool:
    """Whether predictions are multiplied, divided or raised."""
    if isinstance(node, Negative):
        return _is_product(node.inner)
    if isinstance(node, Power):
        return True
    if isinstance(node, Arithmetic) and node.rest[0][0] in "*/":
        operands = (node.first, *(operand for _, operand in node.rest))
        return sum(_number_of(one) is None for one in operands) > 1 or any(
            isinstance(operand, Power) or (sign == "/" and _number_of(operand) is None)
            for sign, operand in (("*", node.first), *node.rest)
        )
    return False


def _number_of(node: Node) -> float | None:
    """The number that a node is, or None."""
    if isinstance(node, Literal) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return float(node.value)
    return None


def _add(found: dict[str, float], node: Node, weight: float, text: str) -> None:
    """Add a term of a weighted sum."""
    if isinstance(node, Name):
        found[node.name] = found.get(node.name, 0.0) + weight
    elif isinstance(node, Negative):
        _add(found, node.inner, -weight, text)
    elif isinstance(node, Arithmetic) and node.rest[0][0] in "+-":
        for sign, operand in (("+", node.first), *node.rest):
            _add(found, operand, weight if sign == "+" else -weight, text)
    elif isinstance(node, Arithmetic) and not _is_product(node):
        named: list[Node] = []
        for sign, operand in (("*", node.first), *node.rest):
            number = _number_of(operand)
            if number is None:
                named.append(operand)
            elif number or sign == "*":
                weight = weight * number if sign == "*" else weight / number
            else:
                raise ValueError(f"cannot read {shown(text)}: it divides by 0")
        if not named:
            raise ValueError(f"cannot read {shown(text)}: a number alone ranks nothing: {_HOW}")
        _add(found, named[0], weight, text)
    else:
        raise ValueError(f"cannot read {shown(text)}: {_HOW}")
    if not math.isfinite(weight):
        raise ValueError(f"cannot read {shown(text)}: its weights are too large")


def _multiply(found: dict[str, float], node: Node, exponent: float, text: str) -> None:
    """Multiply by a factor of a product."""
    number = _number_of(node)
    if isinstance(node, Name):
        found[node.name] = found.get(node.name, 0.0) + exponent
    elif isinstance(node, Power) and (inner := _number_of(node.exponent)) is not None:
        _multiply(found, node.base, exponent * inner, text)
    elif isinstance(node, Arithmetic) and node.rest[0][0] in "*/":
        for sign, operand in (("*", node.first), *node.rest):
            _multiply(found, operand, exponent if sign == "*" else -exponent, text)
    elif number is None or number <= 0:  # a positive factor changes no order
        raise ValueError(f"cannot read {shown(text)}: {_HOW}")
    if not math.isfinite(exponent):
        raise ValueError(f"cannot read {shown(text)}: its exponents are too large")
