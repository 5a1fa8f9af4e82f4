"""What would leave: every file and column of a folder that is to be shared, read before a byte is sent."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from polyrec.core.manifest import check_manifest, read_manifest
from polyrec.core.schema import from_dict
from polyrec.core.secrets import EMAIL
from polyrec.data.processor_files import CONFIG_NAME, STATISTICS_NAME
from polyrec.data.statistic_config import StatisticConfig
from polyrec.hub.contents import secret_cells, secrets_of_file, text_columns
from polyrec.hub.files import GRAPHS, NEVER, USERS_FILES, graphs_of_others, kind_of, matches

_NAMES = re.compile(
    r"(?:^|_)(e_?mail(?:_?address)?s?|(?:tele|mobile|cell|home|work|contact)?_?phone(?:_?(?:number|no|nr))?s?|"
    r"mobile_?(?:number|no|nr)|tel(?:_?(?:number|no|nr))?|telefon|msisdn|fax|whatsapp|ssn|iban|passport)(?:_|$)"
)
_PHONE = (
    r"(?:^|[^\w.+-])(?:"
    r"\+\d{1,3}(?:[ ()./-]{0,2}\d){7,13}"  # +49 30 1234567
    r"|\(\d{2,5}\)[ ]?\d{2,4}[ ./-]?\d{3,6}"  # (030) 1234567
    r"|\d{3}[ .-]\d{3}[ .-]\d{4}"  # 212-555-0187
    r"|0\d{2,4}[ /-]\d{3,4}[ -]?\d{3,5}"  # 0171 1234567
    r")(?:$|[^\w-])"
)
_ROWS = 1 << 16  # read at once
_UNREADABLE = (ValueError, OSError, KeyError, TypeError, AttributeError, RecursionError)  # what a damaged file raises


@dataclass
class Leaving:
    """A file that is to be shared.

    Args:
        path: inside the folder, with `/`.
        size: bytes.
        kind: what it is, see `polyrec.hub.files.KINDS`.
        columns: {name: type} of a table, without what polyrec counted itself; of a processor's configuration, the
            columns of users and events whose categories it holds.
    """

    path: str
    size: int
    kind: str
    columns: dict[str, str] = field(default_factory=dict)


@dataclass
class Scan:
    """What leaves a folder, what stays, and why it may not leave.

    Args:
        leaving: files that would be pushed.
        staying: files that are nothing of a shared model (checkpoints, data, pickles), or of users.
        users: files of rows about users, which leave only if that is asked for.
        refusals: secrets, links, files that nobody names, and columns that look like e-mail addresses or phone
            numbers, each with where it was seen.
    """

    leaving: list[Leaving] = field(default_factory=list)
    staying: list[str] = field(default_factory=list)
    users: list[Leaving] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Refuse what must not leave.

        Raises:
            ValueError: with every secret, link and column that looks like a way to reach a user.
        """
        if self.refusals:
            raise ValueError(
                "this must not leave:\n"
                + "\n".join(f"  {line}" for line in self.refusals)
                + "\nrevoke tokens and passwords and take them out; fit a processor without these columns, or, if they "
                "are about no user, name them, as well as text files whose addresses are meant to be public: "
                "allow_columns=[...] (--allow-column NAME)"
            )

    def __str__(self) -> str:
        lines = [f"{len(self.leaving)} files leave, {_size(sum(f.size for f in self.leaving))}:"]
        for file in self.leaving:
            lines.append(f"  {file.path:<40} {_size(file.size):>10}  {file.kind}")
            if file.columns:
                lines.append(f"      columns: {', '.join(f'{n} ({t})' for n, t in file.columns.items())}")
        if self.staying:
            tops = Counter(path.split("/")[0] + "/" * ("/" in path) for path in self.staying)
            shown = (f"{top} ({count} files)" if top.endswith("/") else top for top, count in tops.items())
            lines.append(f"{len(self.staying)} stay here: {', '.join(shown)}")
        return "\n".join(lines)


def scan(folder: str | Path, include_users: bool = False, allow_columns: Sequence[str] = ()) -> Scan:
    """Look through a folder of a model, a processor or a whole run; nothing is sent.

    Args:
        include_users: let rows about users leave, too (users.parquet of `processor.save_pretrained(include_users=
            True)`).
        allow_columns: columns that may leave although they look like addresses or phone numbers, and text files that
            may hold e-mail addresses, such as README.md.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "config.json").write_text("{}"), (folder / "optimizer.pt").write_bytes(b"")
        >>> pq.write_table(pa.table({"item_id": [1], "seller_email": ["a@b.org"]}), folder / "items.parquet")
        >>> found = scan(folder)
        >>> [file.path for file in found.leaving], found.staying
        (['config.json', 'items.parquet'], ['optimizer.pt'])
        >>> found.check()
        Traceback (most recent call last):
            ...
        ValueError: this must not leave:
          items.parquet: column 'seller_email' is named like a way to reach a user ...
    """
    folder, found = Path(folder), Scan()
    if not folder.is_dir():
        raise ValueError(f"no such folder: {folder}")
    found.refusals += _links(folder)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        kind = kind_of(name)
        personal = matches(name, USERS_FILES) or (path.parent.parent.name == STATISTICS_NAME and _about_users(path))
        if kind is None or matches(path.name, NEVER) or path.is_symlink():
            found.staying.append(name)
            continue
        file = Leaving(name, path.stat().st_size, "rows about users" if personal else kind)
        try:
            # Another manifest leaves in its place, of digests alone.
            refused = [] if kind == "manifest" else _look_into(file, path, allow_columns)
        except _UNREADABLE as error:
            refused = [f"{name} cannot be read ({error}): it is damaged or half written"]
        if personal:
            found.users.append(file)
            if not include_users:
                found.staying.append(name)
                continue
        found.leaving.append(file)
        found.refusals += refused
    found.refusals += _unlike_manifest(folder, found.leaving)
    if any(file.kind == "graphs" for file in found.leaving) and graphs_of_others(folder):
        found.refusals.append(
            f"{GRAPHS}: its graphs are of other weights or items than the folder's: run polyrec export again or delete "
            "it"
        )
    return found


def _look_into(file: Leaving, path: Path, allowed: Sequence[str]) -> list[str]:
    """Note the columns of a file; what of it must not leave."""
    found = [*_foreign(path, file.path), *secrets_of_file(path, file.path, addresses=file.path not in allowed)]
    if path.suffix == ".parquet":
        file.columns = {f.name: str(f.type) for f in pq.read_schema(path) if not f.name.startswith("__")}
        found += _suspicious_table(path, file.path, file.columns, allowed)
    elif file.path == CONFIG_NAME:
        file.columns = _vocabularies(path)
        found += _suspicious_vocabularies(path, allowed)
    return found


def _unlike_manifest(folder: Path, leaving: Sequence[Leaving]) -> Iterator[str]:
    """Files that are not those that were saved, or that nobody saved; cards may be written later."""
    try:
        held = read_manifest(folder)
        if held is not None:
            saved = [f.path for f in leaving if f.kind not in ("card", "manifest") or f.path in held.files]
            check_manifest(folder, saved)
    except ValueError as error:
        yield str(error)


def _links(folder: Path) -> Iterator[str]:
    """Names that lead to other files: what they hold is not what their names say."""
    paths = [p for p in sorted(folder.rglob("*")) if p.is_symlink() or p.is_file()]
    names = {path: path.relative_to(folder).as_posix() for path in paths}
    for path, name in names.items():
        if path.is_symlink() and (path.is_dir() or kind_of(name) is not None):
            yield f"{name} is a link to {os.readlink(path)}: put the file itself there"
    files = [(path.stat(), name) for path, name in names.items() if path.is_file() and not path.is_symlink()]
    staying = {(about.st_dev, about.st_ino): name for about, name in files if kind_of(name) is None}
    for about, name in files:
        if kind_of(name) is not None and (other := staying.get((about.st_dev, about.st_ino))) is not None:
            yield f"{name} is the same file as {other}, which stays here: put a file of its own there"


def _foreign(path: Path, name: str) -> Iterator[str]:
    """A table of statistics that their configuration does not name: nobody would read it."""
    if path.suffix == ".parquet" and path.parent.parent.name == STATISTICS_NAME:
        config = path.parent / "statistics.json"
        if not config.exists() or path.name not in json.loads(config.read_text(encoding="utf-8"))["files"].values():
            yield f"{name} is a file that {config.name} does not name: delete it, or save the processor again"


def _about_users(path: Path) -> bool:
    """Whether a table of running statistics is kept per user."""
    config = path.parent / "statistics.json"
    if path.suffix != ".parquet" or not config.exists():
        return False
    try:
        held = json.loads(config.read_text(encoding="utf-8"))
        names = [name for name, file in held["files"].items() if file == path.name]
        counted = [from_dict(StatisticConfig, values) for values in held["statistics"]]
    except _UNREADABLE:
        return True  # nobody knows, so it stays
    return any(statistic.personal for statistic in counted if statistic.name in names)


def _suspicious_table(path: Path, name: str, columns: dict[str, str], allowed: Sequence[str]) -> Iterator[str]:
    for column in columns:
        yield from secret_cells(path, name, column)
    read = []
    for column in columns:
        if column in allowed:
            continue
        if _NAMES.search(_words(column)):
            yield f"{name}: column {column!r} is named like a way to reach a user"
        else:
            read.append(column)
    seen: set[str] = set()
    first = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(_ROWS, columns=read):
            for column, values in zip(batch.schema.names, batch.columns, strict=True):
                if column not in seen and (found := _suspicious(values)) is not None:
                    seen.add(column)
                    yield f"{name}: column {column!r} holds {found[1]}, first in row {first + found[0]}"
            first += batch.num_rows


def _suspicious_vocabularies(path: Path, allowed: Sequence[str]) -> Iterator[str]:
    """Vocabularies of encoders are saved in the processor's configuration, those of users' columns, too."""
    for source, column, encoder in _encoders(json.loads(path.read_text(encoding="utf-8"))):
        if column in allowed:
            continue
        what = f"{path.name}: {source} column {column!r}"
        if _NAMES.search(_words(column)):
            yield f"{what} is named like a way to reach a user"
            continue
        texts = [v for values in encoder.values() if isinstance(values, list) for v in values if isinstance(v, str)]
        if texts and (found := _suspicious(pa.array(texts))) is not None:
            yield f"{what} knows {found[1]} among its categories"


def _vocabularies(path: Path) -> dict[str, str]:
    """Columns without a table of their own whose categories leave all the same, and how many there are."""
    held = _encoders(json.loads(path.read_text(encoding="utf-8")))
    counted = {f"{source}.{column}": len(encoder.get("vocabulary", ())) for source, column, encoder in held}
    return {name: f"{count} categories" for name, count in counted.items() if count and not name.startswith("item.")}


def _encoders(config: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for source in ("item", "user"):
        for column, encoder in config.get(f"{source}_encoders", {}).items():
            yield source, column, encoder
    for source, encoders in config.get("event_encoders", {}).items():
        for column, encoder in encoders.items():
            yield source, column, encoder


def _suspicious(values: pa.Array) -> tuple[int, str] | None:
    """First row that holds an address or a phone number, and which of them."""
    for texts, rows in text_columns(values):
        for pattern, what in ((EMAIL, "e-mail addresses"), (_PHONE, "phone numbers")):
            at = pc.index(pc.fill_null(pc.match_substring_regex(texts, pattern), False), True).as_py()
            if at >= 0:
                return (at if rows is None else rows[at].as_py()), what
    return None


def _words(column: str) -> str:
    """A column's name in lower case with `_` between its words."""
    return re.sub(r"[^a-z0-9]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", column).lower())


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
