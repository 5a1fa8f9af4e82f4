"""Text files in: encoding and separator are found, missing cells are missing, and codes keep their digits."""

from __future__ import annotations

import codecs
import csv
import io
import re
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pv

from polyrec.core.stack import caller_level
from polyrec.data.arrays import is_text
from polyrec.data.typed_text import MISSING_TEXTS, typed

SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
_HEAD = 1 << 18  # bytes by which separator and names are found
_TYPED_NAME = re.compile(r"(?P<name>.+):(?:token|token_seq|float|float_seq)")  # of RecBole's atomic files
_BLOCK = 1 << 24  # bytes; no row may be longer
_LONG_LINE, _MOST_BYTES = 400, 1 << 26  # bytes of a line and of all lines that a sample reads
_MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_WESTERN = "cp1252"  # Latin-1 with printable characters where that has none


def read_csv(path: Path, name: str, rows: int | None = None) -> pa.Table:
    """Read a csv file as `pandas.read_csv` does (missing cells, quotes, line breaks in quotes), with typed columns.

    The separator is the one of comma, semicolon, tab and bar that divides the first rows alike. Text that is not UTF-8
    is read as Windows-1252 (Latin-1) if it looks like it, with a warning. Columns without a name are left out, with
    a warning, too. Types of RecBole in the header (`user_id:token`) are left out if every column has one. See
    [`~polyrec.data.typed_text`] for what becomes a number.

    Args:
        name: what the table is, for messages.
        rows: read about so many of them, the first ones and some from further places, instead of all.

    Raises:
        ValueError: names the file and the row that has too many or too few cells, or what to do about the encoding.
    """
    with pa.input_stream(str(path)) as file:
        head = file.read(_HEAD)
    encoding = next((e for mark, e in _MARKS.items() if head.startswith(mark)), "utf-8")
    if encoding == "utf-8" and head.count(0) > len(head) / 4:  # UTF-16 without a mark
        encoding = "utf-16-le" if head[1::2].count(0) > head[::2].count(0) else "utf-16-be"
    source: Path | pa.Buffer = path
    if rows is not None and encoding == "utf-8":  # of UTF-16, lines end in two bytes
        source = pa.py_buffer(_some_lines(path, rows))
    if encoding == "utf-8" and not _is_utf8(head, cut=True):
        encoding = _other_encoding(source, path, name)
    try:
        return _parse(source, path, name, head, encoding)
    except (pa.ArrowInvalid, UnicodeError) as error:
        if encoding != "utf-8" or not any(not _is_utf8(part) for part in _parts(source)):
            raise ValueError(f"{name}: cannot read {path} ({_short(error)}): it may be of another format") from error
    return _parse(source, path, name, head, _other_encoding(source, path, name))


def _parse(source: Path | pa.Buffer, path: Path, name: str, head: bytes, encoding: str) -> pa.Table:
    text = codecs.getincrementaldecoder(encoding)(errors="replace").decode(head).removeprefix("\ufeff")
    if not text.strip():
        raise ValueError(f"{name}: {path} is empty")
    separator, header = sniff(text)
    quoted = encoding != "utf-8" or any(b'"' in part for part in _parts(source))  # only then may a row be several lines
    bad: list[Any] = []

    def of_other_length(row: Any) -> str:
        if not row.text.strip():
            return "skip"  # a line of blanks, which pandas leaves out
        bad.append(row)
        return "error"

    kinds = {f"f{n}": pa.string() for n in range(len(header))}
    try:
        table = pv.read_csv(
            source if isinstance(source, Path) else pa.BufferReader(source),
            # Numbered names: the header is a row like others, so that no type is guessed for a column.
            read_options=pv.ReadOptions(autogenerate_column_names=True, encoding=encoding, block_size=_BLOCK),
            parse_options=pv.ParseOptions(
                delimiter=separator, newlines_in_values=quoted, invalid_row_handler=of_other_length
            ),
            convert_options=pv.ConvertOptions(
                column_types=kinds, null_values=MISSING_TEXTS, strings_can_be_null=True, quoted_strings_can_be_null=True
            ),
        )
    except pa.ArrowInvalid as error:
        if bad:
            row = bad[0]
            raise ValueError(
                f"{name}: cannot read {path} (its header has {row.expected_columns} cells, separated by "
                f"{SEPARATORS[separator]}, but there is a row of {row.actual_columns}: {_short(row.text)}): quote "
                "texts that hold the separator; the file may be truncated or of another format"
            ) from error
        if "Empty CSV" in str(error) and text.strip():  # a header, and not even an end of its line
            return pa.table({title: pa.nulls(0) for title in header})
        if "straddling" in str(error):
            raise ValueError(
                f"{name}: cannot read {path}: a row is longer than {_BLOCK >> 20} MiB: is a quotation mark left open?"
            ) from error
        raise
    names = [header[n] if n < len(header) else "" for n in range(table.num_columns)]
    if all(typed_names := [_TYPED_NAME.fullmatch(n.strip()) for n in names]):
        names = [found["name"] for found in typed_names if found is not None]
    indented = len(names) > 1 and all(n.startswith(" ") for n in names[1:])  # `a, b, c`
    return _named(table.slice(1), [n.strip() if indented else n for n in names], name, indented, separator)


def _named(table: pa.Table, names: list[str], name: str, indented: bool, separator: str) -> pa.Table:
    """The table under its header, each column with its type."""
    unnamed = [n for n, title in enumerate(names) if not title.strip()]
    if unnamed and len(unnamed) < len(names):
        warnings.warn(
            f"{name}: column {unnamed[0] + 1} of the csv has no name in the header (an index?) and is left out"
            + (f", as are {len(unnamed) - 1} more" if len(unnamed) > 1 else ""),
            stacklevel=caller_level(),
        )
    found, kept = [], []
    for n, title in enumerate(names):
        if n in unnamed:
            continue
        values = table[n]
        if indented and is_text(values.type):
            values = pc.utf8_ltrim_whitespace(values)
            values = pc.if_else(pc.is_in(values, value_set=pa.array(MISSING_TEXTS)), None, values)
        found.append(typed(values, decimal_comma=separator != ","))
        kept.append(title)
    return pa.Table.from_arrays(found, names=kept)


def sniff(text: str) -> tuple[str, list[str]]:
    r"""The separator of a csv's beginning, and the cells of its header.

    Example:
        >>> sniff("a;b\n1,5;2\n")
        (';', ['a', 'b'])
    """
    widths: dict[str, tuple[bool, int, list[str]]] = {}
    for separator in SEPARATORS:
        try:
            read = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
            rows = list(islice((row for row in read if any(row)), 100))
        except csv.Error:
            rows = []
        if rows:
            compared = rows[:-1] if len(rows) > 2 else rows  # the last one may be cut
            alike = len({len(row) for row in compared}) == 1
            widths[separator] = (alike and len(rows[0]) > 1, len(rows[0]), rows[0])
    if not widths:
        return ",", [text.strip()]
    best = max(widths, key=lambda s: widths[s][:2])  # the first of equals
    return best, widths[best][2]


def _some_lines(path: Path, rows: int) -> bytes:
    """The first lines of a file and, unless texts are quoted or it is compressed, some of eight places further on."""
    most = min(rows * _LONG_LINE, _MOST_BYTES)
    with pa.input_stream(str(path)) as file:
        head = file.read(most)
        whole = len(head) < most
    last = _end_of_line(head, rows)
    found = head if whole and last is None else head[: last or head.rfind(b"\n") + 1]
    end, odd = len(found), found.count(b'"') % 2
    while odd and end > 0:  # it ends in the middle of a quoted text
        cut = found.rfind(b"\n", 0, end - 1) + 1
        odd ^= found.count(b'"', cut, end) % 2
        end = cut
    found = found[: end or len(found)]
    size, length = path.stat().st_size, len(found)
    if b'"' in found or (whole and last is None) or path.suffix == ".gz":
        return found
    parts, width = [found], max(length // 16, 1)
    if size - length > 9 * width:  # else they would hold lines twice
        with path.open("rb") as file:
            for step in range(1, 9):
                file.seek(length + (size - length - width) * step // 8)
                lines = file.read(width)
                parts.append(lines[lines.find(b"\n") + 1 : lines.rfind(b"\n") + 1])
    return b"".join(parts)


def _end_of_line(text: bytes, number: int) -> int | None:
    """Where the line of a number ends (the header is line 0); None if there are not so many."""
    at = -1
    for _ in range(number + 1):
        at = text.find(b"\n", at + 1)
        if at < 0:
            return None
    return at + 1


def _parts(source: Path | pa.Buffer) -> Iterator[bytes]:
    """A file in pieces that end between lines, so that no character is cut."""
    with pa.input_stream(str(source) if isinstance(source, Path) else source) as file:
        rest = b""
        while part := file.read(_BLOCK):
            lines, newline, rest_ = (rest + part).rpartition(b"\n")
            yield lines + newline
            rest = rest_
        yield rest


def _is_utf8(part: bytes, cut: bool = False) -> bool:
    """Whether bytes are UTF-8; if they are `cut`, the last character may be unfinished."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(part, final=not cut)
    except UnicodeDecodeError:
        return False
    return True


def _other_encoding(source: Path | pa.Buffer, path: Path, name: str) -> str:
    """Windows-1252 for a file that is not UTF-8 and looks like a western text; anything else is refused."""
    accents = strange = utf8 = 0
    sample = ""
    for part in _parts(source):
        accents += len(re.findall(rb"[\x80-\xff]", part))
        # Accents stand alone among letters, and few signs of Windows-1252 are ever written.
        strange += len(re.findall(rb"[\x80-\xff](?=[\x80-\xff])|[\x81-\x84\x86-\x8d\x8f\x90\x98\x9b\x9d]", part))
        utf8 += sum(map(len, re.findall(rb"[\xc3-\xf4][\x80-\xbf]+", part)))
        if not sample and (line := re.search(rb"[^\r\n,;\t|]*[\x80-\xff][^\r\n,;\t|]*", part)):
            sample = line[0].decode(_WESTERN, errors="replace")[:40]
    fix = "save it as UTF-8, e.g. pandas.read_csv(path, encoding=...).to_csv(path, index=False)"
    if utf8 * 2 > accents:
        raise ValueError(f"{name}: {path} is UTF-8 in most places but not in all: it is damaged or cut; {fix}")
    if strange * 3 > accents:
        raise ValueError(f"{name}: {path} is neither UTF-8 nor Latin-1 (Windows-1252): {fix}")
    warnings.warn(
        f"{name}: {path} is not UTF-8 and is read as Latin-1 (Windows-1252), e.g. {sample!r}; if that is wrong, {fix}",
        stacklevel=caller_level(),
    )
    return _WESTERN


def _short(message: object) -> str:
    """One line of at most 100 characters."""
    line = " ".join(str(message).split())
    return line if len(line) <= 100 else f"{line[:100]}..."
