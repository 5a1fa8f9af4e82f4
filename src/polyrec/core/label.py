"""How a label follows from columns: "rating >= 4", "event in (buy, cart)"."""

from __future__ import annotations

import re
from dataclasses import dataclass

_LOG1P = re.compile(r"^\s*log1p\s*\((?P<inside>[^()]*)\)\s*$")
_NUMBER = r"-?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"


_COMPARISON = re.compile(rf"^(?P<left>[^<>=!]+?)\s*(?P<op>>=|<=|==|!=|>|<)\s*(?P<value>{_NUMBER})\s*$")


_WORD = r"(?:'[^']*'|\"[^\"]*\")"


_ITEM = rf"(?:{_WORD}|{_NUMBER})"


_WORDS = re.compile(rf"^(?P<left>[^<>=!]+?)\s*(?P<op>==|!=)\s*(?P<word>{_WORD})\s*$")


_MEMBER = re.compile(
    rf"^(?P<left>[^<>=!]+?)\s+(?P<op>not\s+in|in)\s*[(\[]\s*(?P<items>{_ITEM}(?:\s*,\s*{_ITEM})*)\s*,?\s*[)\]]\s*$"
)


_QUOTIENT = re.compile(rf"^(?P<column>.*\S)\s*/\s*(?P<divisor>{_NUMBER})\s*$")


@dataclass(frozen=True)
class Label:
    """Where a task's label comes from: a column, or something simple that is computed of it.

    Args:
        column: of the interactions.
        op, value: a comparison with a number (1 = true, 0 = false), or "in" and "not in" with several; None = the
            number itself.
        divisor: the column is divided by it first, e.g. 1000 to make seconds of milliseconds.
        log1p: then log(1 + x) is taken, which brings long watch times and large sums closer together.
        words: the texts that the column is compared with instead of `value`.

    Example:
        >>> label = Label.parse("rating >= 4")
        >>> label.column, label.op, label.value
        ('rating', '>=', 4.0)
        >>> label = Label.parse("log1p(play_ms / 1000)")
        >>> label.column, label.divisor, label.log1p
        ('play_ms', 1000.0, True)
        >>> label = Label.parse("event in ('buy', 'cart')")
        >>> label.column, label.op, label.words
        ('event', 'in', ('buy', 'cart'))
    """

    column: str
    op: str | None = None
    value: float | tuple[float, ...] = 0.0
    divisor: float = 1.0
    log1p: bool = False
    words: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Label:
        """Parse "column", "column / number", "log1p(column)" or "log1p(column / number)", each also compared with a
        number by one of >=, <=, ==, !=, >, <, or with several by `in (4, 5)`, `not in (4, 5)`.

        A column of texts is compared with words in quotes: "event == 'buy'", "event in ('buy', 'cart')".
        """
        left, op, value, words = _compared(text)
        logarithm = _LOG1P.match(left)
        column, divisor = logarithm["inside"] if logarithm else left, 1.0
        if quotient := _QUOTIENT.match(column):
            column, divisor = quotient["column"], float(quotient["divisor"])
        column = column.strip()
        if not column or re.search(r"[<>=!]", column) or re.match(r"log1p\s*\(", column):
            raise ValueError(
                f"cannot read the label {text!r}: write a column name, 'column / number', 'log1p(column)', "
                "'log1p(column / number)' or 'column >= number' (>=, <=, ==, !=, >, <); words in quotes: "
                "\"column == 'word'\", \"column in ('word', 'other')\""
            )
        if divisor == 0:
            raise ValueError(f"the label {text!r} divides by 0: give another number")
        if words and (logarithm or quotient):
            raise ValueError(f"the label {text!r} computes with a column that it compares with a word: do one of both")
        return cls(column, op, value, divisor, logarithm is not None, words)


def _compared(text: str) -> tuple[str, str | None, float | tuple[float, ...], tuple[str, ...]]:
    """What stands left of a comparison, its sign, and the numbers or the words on its right."""
    if found := _COMPARISON.match(text):
        return found["left"], found["op"], float(found["value"]), ()
    if found := _WORDS.match(text):
        return found["left"], found["op"], 0.0, (found["word"][1:-1],)
    if found := _MEMBER.match(text):
        items, op = re.findall(_ITEM, found["items"]), " ".join(found["op"].split())
        words = tuple(item[1:-1] for item in items if item[0] in "'\"")
        if words and len(words) < len(items):
            raise ValueError(f"the label {text!r} mixes words and numbers: quote all of them, or none")
        return found["left"], op, 0.0 if words else tuple(float(item) for item in items), words
    return text, None, 0.0, ()
