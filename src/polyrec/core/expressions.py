r"""A small language of conditions and scores, read by a parser of its own: nothing of it is ever executed.

    price <= 20 and genre != 'Horror'             1990 <= year < 2000 or year is null
    'Horror' in genres                            brand in ('a', 'b')
    not (`in stock` == true)                      (price - cost) / price > 0.3
    0.3*next_item + 2*like, like >= 0.2           like^2 * watch_time

Words are and, or, not, in, is null, true, false (in capitals, too); names with blanks stand in `backticks`; = is ==, <>
is !=, and ^ is **. Texts stand in ' or ", a doubled quote in them is one.

[`parse`] gives a tree of the classes below; `filters` and `objective` say what it means.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from polyrec.core.settings import SettingError, shown

_UNREADABLE = "cannot read "  # begins messages of the parser
MAX_TEXT = 4_000  # characters of an expression
_MAX_DEPTH = 40  # of parentheses, `not` and signs inside of each other

_TOKEN = re.compile(
    r"""(?P<blank>\s+)
      | (?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)
      | (?P<text>'(?:[^']|'')*'|"(?:[^"]|"")*")
      | (?P<quoted>`[^`]+`)
      | (?P<name>[^\W\d]\w*)
      | (?P<sign>\*\*|==|!=|<>|<=|>=|[-+*/^=<>(),\[\]])""",
    re.VERBOSE,
)
_WORDS = ("and", "or", "not", "in", "is", "null", "none", "true", "false")
_COMPARISONS = {"==": "==", "=": "==", "!=": "!=", "<>": "!=", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
_HINTS = {"&": "write and", "|": "write or", "!": "write not, or !=", "~": "write not", "'": "close the quote"}


@dataclass(frozen=True)
class Literal:
    """A number, a text, true or false, or null (None)."""

    value: int | float | str | bool | None


@dataclass(frozen=True)
class Name:
    """A column, or a task."""

    name: str


@dataclass(frozen=True)
class Items:
    """Values in brackets."""

    values: tuple[Literal, ...]


@dataclass(frozen=True)
class Arithmetic:
    """Operands that are added and subtracted, or multiplied and divided, from left to right.

    Args:
        first: the first one.
        rest: (sign, operand) of each further one; signs are + and -, or * and /.
    """

    first: Node
    rest: tuple[tuple[str, Node], ...]


@dataclass(frozen=True)
class Negative:
    """A minus in front."""

    inner: Node


@dataclass(frozen=True)
class Power:
    """base ^ exponent."""

    base: Node
    exponent: Node


@dataclass(frozen=True)
class Comparison:
    """left op right, op one of ==, !=, <, <=, >, >=."""

    left: Node
    op: str
    right: Node


@dataclass(frozen=True)
class Member:
    """left in right."""

    left: Node
    right: Node


@dataclass(frozen=True)
class IsNull:
    """inner is null."""

    inner: Node


@dataclass(frozen=True)
class Not:
    """not inner."""

    inner: Node


@dataclass(frozen=True)
class Both:
    """All of several conditions: and."""

    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Either:
    """One of several conditions at least: or."""

    parts: tuple[Node, ...]


Node = Literal | Name | Items | Arithmetic | Negative | Power | Comparison | Member | IsNull | Not | Both | Either


def parse(text: str) -> Node:
    """The tree of one expression.

    Raises:
        ValueError: it cannot be read, with the place and what could be meant.

    Example:
        >>> parse("price <= 20")
        Comparison(left=Name(name='price'), op='<=', right=Literal(value=20))
        >>> parse("price <=")
        Traceback (most recent call last):
            ...
        ValueError: cannot read 'price <=': a value is missing at its end
    """
    found = parse_list(text)
    if len(found) > 1:
        raise ValueError(f"cannot read {shown(text)}: it has a comma outside of brackets: join conditions by and")
    return found[0]


def parse_list(text: str) -> tuple[Node, ...]:
    """The trees of expressions that are separated by commas."""
    if not isinstance(text, str):
        raise ValueError(f"cannot read {shown(text)}: it must be text")
    if len(text) > MAX_TEXT:
        raise ValueError(f"cannot read {shown(text)}: it has {len(text):,} characters; {MAX_TEXT:,} at most")
    return _parsed(text)


@contextmanager
def said_by(rule: str) -> Iterator[None]:
    """Errors of expressions say whose they are.

    Example:
        >>> with said_by("where"):
        ...     parse("price <=")
        Traceback (most recent call last):
            ...
        polyrec.core.settings.SettingError: where cannot be read: 'price <=': a value is missing at its end
    """
    try:
        yield
    except SettingError:
        raise
    except ValueError as error:
        text = str(error)
        if text.startswith(_UNREADABLE):
            text = f"cannot be read: {text.removeprefix(_UNREADABLE)}"
        raise SettingError(rule, text) from error


@lru_cache(maxsize=1024)
def _parsed(text: str) -> tuple[Node, ...]:
    return _Parser(text).all()


class _Token(NamedTuple):
    kind: str  # "number", "text", "name", "word" (and, or, ...), "sign" or "end"
    text: str
    at: int


def _tokens(text: str) -> list[_Token]:
    found, at = [], 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            hint = _HINTS.get(
                "'" if text[at] in "'\"" else text[at], "names of columns with such signs stand in `backticks`"
            )
            raise ValueError(f"cannot read {shown(text)}: {text[at]!r} at character {at + 1}: {hint}")
        kind, part = str(match.lastgroup), match[0]
        if kind == "quoted":
            kind, part = "name", part[1:-1]
        elif kind == "name" and part.lower() in _WORDS:
            kind, part = "word", part.lower()
        if kind != "blank":
            found.append(_Token(kind, part, at))
        at = match.end()
    return [*found, _Token("end", "", at)]


class _Parser:
    """Reads by recursive descent, weakest operator first."""

    def __init__(self, text: str) -> None:
        self.text, self.tokens, self.at, self.depth = text, _tokens(text), 0, 0

    def all(self) -> tuple[Node, ...]:
        found = [self._either()]
        while self._take("sign", ","):
            found.append(self._either())
        if self._now.kind != "end":
            raise self._error("is not expected")
        return tuple(found)

    # ------------------------------------------------------------------ tokens
    @property
    def _now(self) -> _Token:
        return self.tokens[self.at]

    def _take(self, kind: str, *texts: str) -> str | None:
        """The token, and go on, if it is one of these."""
        token = self._now
        if token.kind != kind or (texts and token.text not in texts):
            return None
        self.at += 1
        return token.text

    def _error(self, problem: str) -> ValueError:
        token = self._now
        where = "its end" if token.kind == "end" else f"{token.text!r} at character {token.at + 1}"
        text = f"a value is missing at {where}" if token.kind == "end" else f"{where} {problem}"
        return ValueError(f"cannot read {shown(self.text)}: {text}")

    def _inside(self, read: Callable[[], Node]) -> Node:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise self._error(f"is nested more than {_MAX_DEPTH} deep")
        found = read()
        self.depth -= 1
        return found

    # -------------------------------------------------------------- conditions
    def _either(self) -> Node:
        parts = [self._both()]
        while self._take("word", "or"):
            parts.append(self._both())
        return parts[0] if len(parts) == 1 else Either(tuple(parts))

    def _both(self) -> Node:
        parts = [self._not()]
        while self._take("word", "and"):
            parts.append(self._not())
        return parts[0] if len(parts) == 1 else Both(tuple(parts))

    def _not(self) -> Node:
        return Not(self._inside(self._not)) if self._take("word", "not") else self._comparison()

    def _comparison(self) -> Node:
        left, parts = self._sum(), list[Node]()
        while True:
            if op := self._take("sign", *_COMPARISONS):
                right = self._sum()
                parts.append(Comparison(left, _COMPARISONS[op], right))
                left = right  # 1 < x < 2
            elif self._take("word", "in"):
                parts.append(Member(left, self._sum()))
            elif self._now[:2] == ("word", "not") and self.tokens[self.at + 1][:2] == ("word", "in"):
                self.at += 2
                parts.append(Not(Member(left, self._sum())))
            elif self._take("word", "is"):
                negated = self._take("word", "not")
                if not self._take("word", "null", "none"):
                    raise self._error("must be null or not null after is")
                parts.append(Not(IsNull(left)) if negated else IsNull(left))
            else:
                return left if not parts else parts[0] if len(parts) == 1 else Both(tuple(parts))

    # ------------------------------------------------------------------ values
    def _chain(self, read: Callable[[], Node], *signs: str) -> Node:
        first, rest = read(), []
        while sign := self._take("sign", *signs):
            rest.append((sign, read()))
        return Arithmetic(first, tuple(rest)) if rest else first

    def _sum(self) -> Node:
        return self._chain(self._product, "+", "-")

    def _product(self) -> Node:
        return self._chain(self._signed, "*", "/")

    def _signed(self) -> Node:
        if self._take("sign", "-"):
            inner = self._inside(self._signed)
            number = (
                isinstance(inner, Literal)
                and isinstance(inner.value, int | float)
                and not isinstance(inner.value, bool)
            )
            return Literal(-inner.value) if number else Negative(inner)  # type: ignore[union-attr, operator]
        if self._take("sign", "+"):
            return self._inside(self._signed)
        base = self._value()
        return Power(base, self._inside(self._signed)) if self._take("sign", "^", "**") else base

    def _value(self) -> Node:
        if number := self._take("number"):
            return Literal(_number(number, self.text))
        if text := self._take("text"):
            return Literal(text[1:-1].replace(text[0] * 2, text[0]))
        if name := self._take("name"):
            return Name(name)
        if word := self._take("word", "true", "false", "null", "none"):
            return Literal({"true": True, "false": False}.get(word))
        if bracket := self._take("sign", "(", "["):
            return self._inside(lambda: self._bracketed(")" if bracket == "(" else "]"))
        raise self._error("is not expected")

    def _bracketed(self, end: str) -> Node:
        """What stands in brackets: one expression, or values of a list."""
        found: list[Node] = []
        comma = end == "]"
        while not self._take("sign", end):
            found.append(self._either())
            if self._take("sign", ","):
                comma = True
            elif not (self._now.kind == "sign" and self._now.text == end):
                raise self._error(f"stands where {end!r} is expected")
        if not comma and len(found) == 1:
            return found[0]
        values = [one for one in found if isinstance(one, Literal)]
        if not found or len(values) < len(found):
            raise ValueError(f"cannot read {shown(self.text)}: a list must hold numbers or texts, at least one")
        return Items(tuple(values))


def _number(digits: str, text: str) -> int | float:
    """A whole number that fits into 64 bits, else a fraction."""
    if digits.isdecimal() and len(digits) < 20 and int(digits) < 1 << 63:
        return int(digits)
    number = float(digits)
    if number == float("inf"):
        raise ValueError(f"cannot read {shown(text)}: {shown(digits)} is too large a number")
    return number


def names_in(node: Node) -> set[str]:
    """The columns or tasks that an expression reads.

    Example:
        >>> sorted(names_in(parse("a > 1 and not b in (2, 3)")))
        ['a', 'b']
    """
    if isinstance(node, Name):
        return {node.name}
    inner: list[Node] = []
    for value in vars(node).values():
        inner += value if isinstance(value, tuple) else [value]
    found: set[str] = set()
    for one in inner:
        one = one[1] if isinstance(one, tuple) else one  # (sign, operand)
        if isinstance(one, Node):
            found |= names_in(one)
    return found
