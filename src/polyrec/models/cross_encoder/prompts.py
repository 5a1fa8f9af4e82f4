"""Prompts of tokens: every item, phrase and word of the template is tokenized once, a prompt is their concatenation.

Letters: B users, L events, M prompts, N pieces of text, T tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.special import ndtr

from polyrec.core.registry import nearest
from polyrec.data.columns import FIRST, ColumnEncoder
from polyrec.data.texts import TokenTable
from polyrec.models.cross_encoder.prompt_config import PromptConfig

logger = logging.getLogger(__name__)

PADDING_ROW = 0  # of the item table


class Spans(NamedTuple):
    """N stretches of a row of tokens.

    Args:
        flat: int32 [T].
        start, length: int64 [N].
    """

    flat: np.ndarray
    start: np.ndarray
    length: np.ndarray

    @classmethod
    def rows(cls, table: TokenTable, rows: np.ndarray) -> Spans:
        """Texts of a table."""
        return cls(table.flat, table.offsets[rows], table.lengths[rows])

    @classmethod
    def same(cls, tokens: np.ndarray, count: int) -> Spans:
        """The same tokens N times."""
        return cls(tokens, np.zeros(count, dtype=np.int64), np.full(count, len(tokens), dtype=np.int64))

    def where(self, keep: np.ndarray) -> Spans:
        """Empty where `keep` [N] is false."""
        return self._replace(length=np.where(keep, self.length, 0))


def joined(parts: Sequence[Spans]) -> TokenTable:
    """Text n is parts[0][n] + parts[1][n] + ...; one copy per part and no loop over texts.

    Example:
        >>> words = TokenTable.of([[7, 8], [9]])
        >>> found = joined([Spans.rows(words, np.array([0, 1])), Spans.same(np.array([3]), 2)])
        >>> found.flat.tolist(), found.offsets.tolist()
        ([7, 8, 3, 9, 3], [0, 3, 5])
    """
    lengths = np.stack([part.length for part in parts], axis=1)
    offsets = np.concatenate([[0], np.cumsum(lengths.sum(axis=1))])
    begin = offsets[:-1, None] + np.cumsum(lengths, axis=1) - lengths
    flat = np.empty(offsets[-1], dtype=np.int32)
    for k, part in enumerate(parts):
        count = part.length
        inside = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        flat[np.repeat(begin[:, k], count) + inside] = part.flat[np.repeat(part.start, count) + inside]
    return TokenTable(flat, offsets)


class Prompts(NamedTuple):
    """Prompts, and how many of the visible events they tell.

    Args:
        tokens: one text per prompt.
        shown, visible: int64 [M], events.
    """

    tokens: TokenTable
    shown: np.ndarray
    visible: np.ndarray

    @property
    def cut(self) -> int:
        """Prompts that do not tell all events."""
        return int((self.shown < self.visible).sum())


@dataclass(frozen=True)
class _Frame:
    """Special tokens that a tokenizer puts around a text, and between two parts of one."""

    before: np.ndarray
    after: np.ndarray
    separator: np.ndarray

    @classmethod
    def of(cls, tokenizer: Any) -> _Frame:
        framed, bare = tokenizer("a")["input_ids"], _tokens(tokenizer, "a").tolist()
        begin = next(n for n in range(len(framed)) if framed[n : n + len(bare)] == bare)
        sep = tokenizer.sep_token_id
        separator = _tokens(tokenizer, "\n") if sep is None else np.array([sep], dtype=np.int32)
        before, after = framed[:begin], framed[begin + len(bare) :]
        return cls(np.array(before, dtype=np.int32), np.array(after, dtype=np.int32), separator)


class PromptBuilder:
    """Puts prompts together.

    Args:
        config: what they say; layout and longest prompt are filled in.
        tokenizer: of the backbone.
        items: tokens of the items' texts as the tokenizer frames them, one row per row of the item table.
        encoders: {column: encoder} of feedback and context, as event features hold them.
        feedback: columns in prompts by default.
    """

    def __init__(
        self,
        config: PromptConfig,
        tokenizer: Any,
        items: TokenTable,
        encoders: Mapping[str, ColumnEncoder],
        feedback: Sequence[str],
    ) -> None:
        assert config.layout is not None
        assert config.max_length is not None
        self.config, self.max_length = config, config.max_length
        self._frame = _Frame.of(tokenizer)
        self._items = self._item_texts(tokenizer, items)
        said = config.feedback
        if said is None:
            tellable = [name for name in feedback if encoders[name].kind in ("categorical", "numeric")]
            said = {name: f" {name} {{value}}" for name in tellable}
        self._phrases = {n: _Phrases.of(n, words, encoders, tokenizer) for n, words in sorted(said.items())}
        self._event = [(_tokens(tokenizer, words), field) for words, field in config.pieces("event")]
        self._layout = [(_tokens(tokenizer, words), field) for words, field in config.pieces("layout")]
        separators = config.fields("layout").count("sep") * len(self._frame.separator)
        self._fixed = len(self._frame.before) + len(self._frame.after) + separators
        self._fixed += sum(len(words) for words, _ in self._layout)
        if (least := self._fixed + int(self._items.lengths.max(initial=0))) > config.max_length:
            raise ValueError(
                f"prompt: {least} tokens are needed without any event but max_length is {config.max_length}: raise it "
                "or lower item_tokens"
            )

    def build(
        self,
        item_ids_BL: np.ndarray,
        event_features: Mapping[str, np.ndarray],
        window_M: np.ndarray,
        position_M: np.ndarray,
        candidate_M: np.ndarray,
    ) -> Prompts:
        """One prompt per candidate, of the newest visible events that fit.

        Args:
            item_ids_BL: rows of the item table, 0 = padding on the right.
            event_features: {column: [B, L]}.
            window_M: whose history it is, 0..B - 1.
            position_M: how many of the events are visible.
            candidate_M: rows of the item table.
        """
        length = item_ids_BL.shape[1]
        events = self._events(item_ids_BL.ravel(), {n: event_features[n].ravel() for n in self._phrases})
        candidate = Spans.rows(self._items, candidate_M)
        first, stop = window_M * length, window_M * length + position_M
        end = events.offsets[stop]
        free = self.max_length - self._fixed - candidate.length
        begin = np.maximum(np.searchsorted(events.offsets, end - free), first)
        history = Spans(events.flat, events.offsets[begin], end - events.offsets[begin])
        fields = {
            "candidate": candidate,
            "history": history,
            "sep": Spans.same(self._frame.separator, len(window_M)),
        }
        parts = [Spans.same(self._frame.before, len(window_M))]
        for words, field in self._layout:
            parts.append(Spans.same(words, len(window_M)))
            if field is not None:
                parts.append(fields[field])
        parts.append(Spans.same(self._frame.after, len(window_M)))
        return Prompts(joined(parts), stop - begin, position_M)

    def _events(self, item_X: np.ndarray, features: Mapping[str, np.ndarray]) -> TokenTable:
        """The texts of events, one after the other; padding has none."""
        real = item_X != PADDING_ROW
        parts: list[Spans] = []
        for words, field in self._event:
            parts.append(Spans.same(words, len(item_X)))
            if field == "item":
                parts.append(Spans.rows(self._items, item_X))
            elif field == "feedback":
                parts += [Spans.rows(p.table, p.codes(features[name])) for name, p in self._phrases.items()]
        return joined([part.where(real) for part in parts])

    def _item_texts(self, tokenizer: Any, framed: TokenTable) -> TokenTable:
        """Item texts without special tokens, cut; those without one are `untitled`, padding is empty."""
        before, around = len(self._frame.before), len(self._frame.before) + len(self._frame.after)
        bare, limit = framed.lengths - around, self.config.item_tokens
        if (too_long := int((bare > limit).sum())) > 0:
            logger.warning("prompt: %d item texts are longer than item_tokens=%d and were cut", too_long, limit)
        missing = bare <= 0
        missing[PADDING_ROW] = False
        own = Spans(framed.flat, framed.offsets[:-1] + before, np.clip(bare, 0, limit))
        words = _tokens(tokenizer, self.config.untitled)[:limit]
        return joined([own, Spans.same(words, len(framed)).where(missing)])


@dataclass(frozen=True)
class _Phrases:
    """What the values of a column are called.

    Args:
        encoder: of the column.
        table: a phrase per code, or, of a numeric column, per known quantile and one (empty) before them.
    """

    encoder: ColumnEncoder
    table: TokenTable

    @classmethod
    def of(
        cls, name: str, words: str | Mapping[str, str], encoders: Mapping[str, ColumnEncoder], tokenizer: Any
    ) -> _Phrases:
        if name not in encoders:
            raise ValueError(
                f"prompt: unknown column {name!r} of feedback or context; {nearest(name, sorted(encoders))}"
            )
        encoder = encoders[name]
        if encoder.kind not in ("categorical", "numeric"):
            raise ValueError(
                f"prompt: column {name!r} is {encoder.kind!r}; only categories and numbers can be in prompts"
            )
        numeric = encoder.kind == "numeric"
        values = [None, *encoder.knots] if numeric else [*[None] * FIRST, *encoder.vocabulary]
        texts = ["" if v is None else _phrase(words, _value(v)) for v in values]
        # Quantiles of a number repeat: each phrase is tokenized once.
        known = {text: _tokens(tokenizer, text).tolist() for text in dict.fromkeys(texts)}
        return cls(encoder, TokenTable.of([known[text] for text in texts]))

    def codes(self, encoded: np.ndarray) -> np.ndarray:
        """Rows of the table for encoded values; a number is called by the nearest quantile."""
        if self.encoder.kind == "categorical":
            return encoded
        missing = np.isnan(encoded)
        rank = ndtr(np.where(missing, 0.0, encoded)) * (len(self.encoder.knots) - 1)
        return np.where(missing, 0, np.rint(rank).astype(np.int64) + 1)


def _phrase(words: str | Mapping[str, str], value: str) -> str:
    return words.replace("{value}", value) if isinstance(words, str) else words.get(value, "")


def _value(value: Any) -> str:
    """A number with two digits, or those before the point; anything else as it is.

    Example:
        >>> [_value(v) for v in ("4.0", 0.1234, 1.0, 7.47, 12345.6, "mobile", "007")]
        ['4', '0.12', '1', '7.5', '12346', 'mobile', '007']
    """
    if isinstance(value, float):
        return f"{value:.2g}" if abs(value) < 10 else f"{value:.0f}"
    return str(value).removesuffix(".0")  # categories of floats are kept as text


def _tokens(tokenizer: Any, text: str) -> np.ndarray:
    """Tokens of words of a template, int32, without special ones."""
    found = tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
    return np.array(found, dtype=np.int32)
