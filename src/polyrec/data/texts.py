"""Item texts and queries become tokens.

Letters: N texts, T tokens of all of them.
"""

from __future__ import annotations

import itertools
import logging
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from polyrec.core.backbones import TextConfig
from polyrec.core.progress import progress
from polyrec.core.registry import nearest

logger = logging.getLogger(__name__)

_AT_ONCE = 65_536  # texts that the tokenizer reads at a time: it holds some kilobytes of each
_CHARACTERS = 32  # of a text are looked at per token that is kept; longer words than that are no words


@dataclass(frozen=True)
class TokenTable:
    """Tokens of texts, one after the other.

    Args:
        flat: int32 [T].
        offsets: int64 [N + 1]; text n is flat[offsets[n]:offsets[n + 1]], empty if there is no text.
    """

    flat: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> TokenTable:
        """From lists of tokens."""
        lengths = np.fromiter((len(r) for r in rows), dtype=np.int64, count=len(rows))
        flat = np.fromiter((t for r in rows for t in r), dtype=np.int32, count=int(lengths.sum()))
        return cls(flat, np.concatenate([[0], np.cumsum(lengths)]))

    @classmethod
    def joined(cls, tables: Sequence[TokenTable]) -> TokenTable:
        """One table of several."""
        lengths = np.concatenate([np.zeros(0, dtype=np.int64), *(table.lengths for table in tables)])
        flat = np.concatenate([np.zeros(0, dtype=np.int32), *(table.flat for table in tables)])
        return cls(flat, np.concatenate([[0], np.cumsum(lengths)]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each text, int64 [N]."""
        return np.diff(self.offsets)

    def padded(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens [M, S] of some texts, filled up with 0 on the right, and which of them are real, bool [M, S]."""
        lengths = self.lengths[rows]
        real = np.arange(max(lengths.max(initial=0), 1)) < lengths[:, None]
        tokens = np.zeros(real.shape, dtype=np.int64)
        index = np.repeat(self.offsets[rows] - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())
        tokens[real] = self.flat[index]
        return tokens, real

    def contents(self) -> list[bytes]:
        """The tokens of each text as bytes, by which equal texts are known."""
        return [self.flat[a:b].tobytes() for a, b in itertools.pairwise(self.offsets)]


def check_template(template: str, columns: Sequence[str]) -> list[str]:
    """Names of the columns in a template; unknown ones are refused.

    Example:
        >>> check_template("{title} ({year})", ["title", "year"])
        ['title', 'year']
        >>> check_template("{titel}", ["title"])
        Traceback (most recent call last):
            ...
        ValueError: the text template '{titel}' names a column 'titel' that the items table does not have; did ...
    """
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ValueError(f"cannot read the text template {template!r} ({error}): write e.g. '{{title}}'") from error
    if not names:
        raise ValueError(f"the text template {template!r} names no column: write e.g. '{{title}}'")
    for name in names:
        if name not in columns:
            raise ValueError(
                f"the text template {template!r} names a column {name!r} that the items table does not have; "
                f"{nearest(name, list(columns))}"
            )
    return names


def render(table: pa.Table, template: str) -> list[str]:
    """Texts of items; one whose columns are all empty is ''.

    Example:
        >>> table = pa.table({"title": ["Heat", None], "genres": [["Crime", "Drama"], []]})
        >>> render(table, "{title}. {genres}")
        ['Heat. Crime, Drama', '']
    """
    names = dict.fromkeys(check_template(template, table.column_names))
    columns = {name: [_as_text(value) for value in table[name].to_pylist()] for name in names}
    rows = zip(*columns.values(), strict=True)
    return [template.format(**dict(zip(columns, row, strict=True))) if any(row) else "" for row in rows]


def _as_text(value: Any) -> str:
    if value is None or value != value:  # NaN
        return ""
    if isinstance(value, list):
        return ", ".join(_as_text(v) for v in value)
    if isinstance(value, float) and value.is_integer():  # years of a column with gaps
        value = int(value)
    return " ".join(str(value).split())


def load_tokenizer(config: TextConfig, folder: str | None = None) -> Any:
    """The backbone's tokenizer, from its own files or from a folder; one that does not fit is refused."""
    from transformers import AutoTokenizer

    where = folder or config.model
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            where, revision=None if folder else config.revision or "main", trust_remote_code=False
        )
    except BaseException as error:  # a damaged file may end in a panic of Rust, which is no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"{where!r} has no tokenizer that transformers can read ({error})") from error
    size = config.architecture.get("vocab_size") or config.architecture.get("text_config", {}).get("vocab_size")
    if size is not None and len(tokenizer) > size:
        raise ValueError(
            f"the tokenizer of {where!r} has {len(tokenizer)} tokens but the backbone {config.model!r} knows {size}: "
            "use the tokenizer the model was trained with"
        )
    return tokenizer


def tokenize(
    tokenizer: Any, texts: Sequence[str | None], config: TextConfig, prompt: str | None = None, what: str = "texts"
) -> TokenTable:
    """Tokens of texts, at most `config.max_length` each; cuts are logged. Missing and empty texts have none.

    Args:
        prompt: put before each text; default: that of items.
        what: names the texts in the log.
    """
    prompt = (config.prompt if prompt is None else prompt) or ""
    limit = config.max_length or tokenizer.model_max_length
    tables, cut = [], 0
    for begin in progress(range(0, len(texts), _AT_ONCE), f"Tokens of {what}", unit="block"):
        rows, own_cut = _tokens_of(tokenizer, texts[begin : begin + _AT_ONCE], prompt, limit)
        tables.append(TokenTable.of(rows))
        cut += own_cut
    if cut:
        count = sum(int((table.lengths > 0).sum()) for table in tables)
        logger.warning("%d of %d %s are longer than max_length=%s tokens and were cut", cut, count, what, limit)
    return TokenTable.joined(tables)


def _tokens_of(tokenizer: Any, texts: Sequence[str | None], prompt: str, limit: int) -> tuple[list[Sequence[int]], int]:
    """Tokens of some texts, at most `limit` each, and how many were cut."""
    longest = limit * _CHARACTERS
    cleaned = [" ".join((text or "")[:longest].split()) for text in texts]
    held = [n for n, text in enumerate(cleaned) if text]
    rows: list[Sequence[int]] = [[] for _ in texts]
    if not held:
        return rows, 0
    found = tokenizer([prompt + cleaned[n] for n in held], truncation=False, verbose=False)["input_ids"]
    too_long = [k for k, tokens in enumerate(found) if len(tokens) > limit]
    if too_long:  # cut by the tokenizer, which knows what has to stand at the end
        again = [prompt + cleaned[held[k]] for k in too_long]
        for k, tokens in zip(too_long, tokenizer(again, truncation=True, max_length=limit)["input_ids"], strict=True):
            found[k] = tokens
    for k, n in enumerate(held):
        rows[n] = found[k]
    return rows, len(set(too_long) | {k for k, n in enumerate(held) if len(texts[n] or "") > longest})
