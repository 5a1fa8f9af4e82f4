"""What a prompt says and how long it may be. Needs no torch."""

from __future__ import annotations

import string
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated

from polyrec.core.ranges import AT_LEAST_ONE, Range
from polyrec.core.registry import nearest
from polyrec.core.settings import conform

LAYOUTS = {"encoder": "{candidate}{sep}{history}", "decoder": "{history}{sep}{candidate}"}


@dataclass(frozen=True)
class PromptConfig:
    """The text a cross-encoder reads about one user and one candidate.

    Every piece is tokenized once and prompts are put together of tokens, so a template's words are split where its
    fields begin and end.

    Args:
        max_length: tokens of a prompt, the special ones included; default: 256, or what the backbone can read. The
            newest events that fit are in it.
        item_tokens: tokens of an item's text that are read; the text itself is `TextConfig.template`.
        layout: of {candidate}, {history} and {sep} (the tokenizer's separator, a line break if it has none). Default:
            the candidate first for encoders, last for decoders, whose last token has then read all others.
        event: one event of the history, of {item} and {feedback}.
        feedback: {column of feedback or context: words with {value}, or {value: words}}; several columns' words follow
            each other. A missing value, and one that has no words, says nothing. Default: every column of feedback, as
            " rating 4".
        untitled: stands for items without text, unknown ones included.

    Example:
        >>> PromptConfig(feedback={"rating": {"5": " and loved it"}}, event="took {item}{feedback};").fields("event")
        ['item', 'feedback']
        >>> PromptConfig(event="{title}")
        Traceback (most recent call last):
            ...
        ValueError: prompt: unknown field 'title' in event='{title}'; did you mean 'item'? known: feedback, item
    """

    max_length: Annotated[int, Range(8)] | None = None
    item_tokens: Annotated[int, AT_LEAST_ONE] = 32
    layout: str | None = None
    event: str = "{item}{feedback};"
    feedback: Mapping[str, str | Mapping[str, str]] | None = None
    untitled: str = "unknown"

    def __post_init__(self) -> None:
        conform(self, where="prompt")
        self._check("event", once={"item"}, known={"item", "feedback"})
        if self.layout is not None:
            self._check("layout", once={"candidate", "history"}, known={"candidate", "history", "sep"})
        for column, words in (self.feedback or {}).items():
            if isinstance(words, str) and "{value}" not in words:
                raise ValueError(
                    f"prompt: the words {words!r} for {column!r} say no {{value}}: write ' rated {{value}}'"
                )

    def pieces(self, name: str) -> list[tuple[str, str | None]]:
        """Words and the field that follows them, None at the end."""
        template = getattr(self, name)
        return [(literal, field) for literal, field, _, _ in string.Formatter().parse(template)]

    def fields(self, name: str) -> list[str]:
        """Fields of a template, in order."""
        return [field for _, field in self.pieces(name) if field is not None]

    def _check(self, name: str, once: Collection[str], known: Collection[str]) -> None:
        template = getattr(self, name)
        try:
            found = self.fields(name)
        except ValueError as error:
            raise ValueError(f"prompt: cannot read {name}={template!r} ({error})") from error
        for field in found:
            if field not in known:
                raise ValueError(
                    f"prompt: unknown field {field!r} in {name}={template!r}; {nearest(field, sorted(known))}"
                )
        for field in sorted(once):
            if found.count(field) != 1:
                raise ValueError(f"prompt: {name}={template!r} must hold {{{field}}} once")
