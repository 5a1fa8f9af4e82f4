"""Which columns of somebody else's log are the user, the item and the time; two that would do alike are never guessed.

A name counts first (`column_words`), then what the column holds (`column_facts`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from polyrec.core.registry import nearest
from polyrec.core.schema import ROW_ORDER
from polyrec.data.column_facts import ColumnFacts, TimeReading, determines, facts, same, time_readings
from polyrec.data.column_words import NOT_FEEDBACK, is_about, stem, strength, tokens
from polyrec.data.list_columns import ListColumn, find_lists

ROLES = ("user", "item", "time")
_UNIQUE = 0.9  # share of distinct values from which on a column without a telling name numbers rows
_DAY = 86_400.0
NO_TIME, ROWS = "none", "row"  # what --time may say beside the name of a column


class Ambiguous(ValueError):
    """Several readings would do alike.

    Args:
        what: the file, for the message.
        role: "user", "item", "time" or "time format".
        candidates: columns, or formats.
        column: whose format it is.
    """

    def __init__(self, what: str, role: str, candidates: Sequence[str], column: str = "") -> None:
        self.what, self.role, self.candidates, self.column = what, role, tuple(candidates), column
        names = ", ".join(map(repr, candidates[:-1])) + f" and {candidates[-1]!r}"
        if role == "time format":
            text = f"{what}: the times of {column!r} could be written as {names}"
        else:
            text = f"{what}: {names} could {'both' if len(candidates) == 2 else 'all'} be the {role}"
        super().__init__(f"{text}: say {' or '.join(f'{self.flag} {c}' for c in self.candidates[:6])}")

    @property
    def flag(self) -> str:
        """The flag that decides."""
        return f"--{self.role.replace(' ', '-')}"


@dataclass(frozen=True, eq=False)
class Found:
    """The columns of a log.

    Args:
        user, item, time: their names; a time of None: the events of a user are a set, and of ROW_ORDER: the rows stand
            in order of time.
        reasons: {role: why}.
        reading: how the times are read; None: there is no column of them.
        facts: of all columns but that of lists, by name.
        lists: the column that lists the items before each row, if there is one.
    """

    user: str
    item: str
    time: str | None
    reasons: dict[str, str]
    reading: TimeReading | None
    facts: dict[str, ColumnFacts]
    lists: ListColumn | None = None

    @property
    def history(self) -> str | None:
        """The column of lists."""
        return None if self.lists is None else self.lists.name


def find_columns(
    table: pa.Table,
    what: str = "the log",
    given: Mapping[str, str] | None = None,
    keys: Mapping[str, Sequence[str]] | None = None,
    time_format: str | None = None,
) -> Found:
    """Find user, item and time among the columns of a log; without times its users have sets of events.

    Where a column lists the items before each row, a row is a sequence of its own, and users are needless.

    Args:
        table: a sample of its rows.
        what: the file, for messages.
        given: {role: column} that are known; a time of "none" or "row" says that there is no column of times, and
            that the events of a user are a set, or that rows stand in order of time.
        keys: {"item": columns of an items table that number its rows, "user": ...}: one that the log has, too, is it.
        time_format: how the times are written, see `Columns.time_format`.

    Raises:
        Ambiguous: two columns would do alike.
        ValueError: a column is missing, or the first line of a csv is no header.

    Example:
        >>> days = ["2024-01-01", "2024-01-02", "2024-01-03"]
        >>> found = find_columns(pa.table({"visitorid": [1, 1, 2], "itemid": [7, 8, 7], "ts": days}))
        >>> found.user, found.item, found.time
        ('visitorid', 'itemid', 'ts')
    """
    _check_header(table, what)
    given = dict(given or {})
    said = given.pop("time") if given.get("time") in {NO_TIME, ROWS} - set(table.column_names) else None
    if (lists := find_lists(table, given.get("item"))) is not None:
        table = table.drop_columns([lists.name])
        given.setdefault("item", lists.item)
    roles, reasons = _given(table, what, given, keys or {})
    found = {name: facts(table, name) for name in table.column_names}
    clocks = _times(table, found, roles, time_format)
    if lists is not None:
        reasons |= {"history": lists.reason, "item": "the ids that are listed"}
        _row_users(table, roles, reasons, found, clocks)
    if "time" not in roles and clocks and said is None:
        roles["time"], reasons["time"] = _time(what, clocks)
    for choose in (_by_name, _by_content):
        for role in ("user", "item"):
            if role not in roles and (name := choose(what, role, found, roles, clocks)) is not None:
                roles[role] = name
                reasons[role] = "its name" if choose is _by_name else "its values; no other column fits"
    if said is not None:
        roles.pop("time", None)
        reasons["time"] = "as --time says"
    elif "time" not in roles or ("time" not in given and _owner(roles, found)):
        _check_unread(what, roles, found)
        reasons["time"] = _without_time(roles, found, lists is not None)
        roles.pop("time", None)
    for role in ("user", "item"):
        if role not in given and roles[role] != ROW_ORDER and _numbers_rows(found[roles[role]], 1.0):
            raise ValueError(
                f"{what}: {roles[role]!r} seems to be the {role} but is another one in every row, so that no {role} "
                f"has two events: name the column with --{role}"
            )
    time = ROW_ORDER if said == ROWS else roles.get("time")
    reading = _reading(what, time, clocks.get(time, [])) if "time" in roles and time is not None else None
    return Found(roles["user"], roles["item"], time, reasons, reading, found, lists)


def _row_users(
    table: pa.Table,
    roles: dict[str, str],
    reasons: dict[str, str],
    found: dict[str, ColumnFacts],
    clocks: Mapping[str, object],
) -> None:
    """The user of rows with lists: a column of that name whose users come again, else the row itself."""
    name = roles.get("user") or _by_name("the log", "user", found, roles, clocks)
    if name is not None and ("user" in roles or not _numbers_rows(found[name], 1.0)):
        roles["user"] = name
        reasons.setdefault("user", "its name; rows of one are kept together")
        return
    roles["user"] = ROW_ORDER
    reasons["user"] = "each row is a sequence of its own" + f", as {name!r} says" * (name is not None)
    found[ROW_ORDER] = ColumnFacts(ROW_ORDER, "whole", 1.0, table.num_rows, np.arange(table.num_rows))


def _given(
    table: pa.Table, what: str, given: Mapping[str, str], keys: Mapping[str, Sequence[str]]
) -> tuple[dict[str, str], dict[str, str]]:
    """Roles that flags or the keys of other tables decide, and the reasons."""
    for role, name in given.items():
        if name not in table.column_names:
            raise ValueError(f"{what}: no column {name!r} (--{role}); {nearest(name, table.column_names)}")
    roles, reasons = dict(given), {role: f"as --{role} says" for role in given}
    for role, names in keys.items():
        shared = [n for n in names if n in table.column_names]
        if role not in roles and len(shared) == 1:
            roles[role], reasons[role] = shared[0], f"the key of the {role}s table"
    return roles, reasons


def _reading(what: str, name: str, readings: list[TimeReading]) -> TimeReading:
    if not readings:
        raise ValueError(
            f"{what}: column {name!r} (--time) holds no times that can be read: say how they are written, "
            "--time-format '%d.%m.%Y', or name another column"
        )
    if len(readings) > 1:
        raise Ambiguous(what, "time format", [str(r.format) for r in readings], name)
    return readings[0]


def _check_unread(what: str, roles: Mapping[str, str], found: Mapping[str, ColumnFacts]) -> None:
    """Refuse a column that is called a time and cannot be read as one: it is no reason to do without."""
    named = [n for n, f in found.items() if n not in roles.values() and strength("time", n) == 3 and f.distinct > 1]
    if named:
        raise ValueError(
            f"{what}: {named[0]!r} is called a time but holds none that can be read: say how times are written, "
            f"--time-format '%d.%m.%Y', name another column with --time, or say --time {NO_TIME} if the order of "
            "events says nothing"
        )


def _without_time(roles: Mapping[str, str], found: Mapping[str, ColumnFacts], listed: bool) -> str:
    """Why there is no time, and what to say if there is one: the order of rows is not used as time by default."""
    fix = f"say --time {ROWS} if the lines stand in order of time"
    constant = [n for n, f in found.items() if strength("time", n) > 1 and f.distinct == 1]
    rising = [n for n, f in found.items() if n not in roles.values() and _rises(found[roles["user"]], f)]
    if "time" in roles:
        fix = (
            f"each {_owner(roles, found)} has one {roles['time']!r}: say --time {roles['time']} if it is that of events"
        )
    elif rising:
        fix = f"{rising[0]!r} grows from row to row of a {roles['user']!r}: say --time {rising[0]} if it is the order"
    why = f"{constant[0]!r} has one value" if constant else "no column of times"
    what = (
        "a random tenth of the rows tests"
        if listed
        else "the events of a user are a set, a random tenth of which tests"
    )
    return f"{why}: {what}; {fix}"


def _owner(roles: Mapping[str, str], found: Mapping[str, ColumnFacts]) -> str:
    """Whose time it is ("user", "item") if it is none of events, such as a `birth_date`; a session has one date."""
    clock = found[roles["time"]]
    if determines(found[roles["item"]], clock):
        return "item"
    return "user" * (strength("time", clock.name) < 3 and determines(found[roles["user"]], clock))


def _rises(user: ColumnFacts, f: ColumnFacts) -> bool:
    """Whether whole numbers grow within each user, in the order of the file."""
    if f.kind != "whole" or f.plain is None or f.known < 1 or user.repeated < 1.5:
        return False
    order = np.argsort(user.codes, kind="stable")
    inside = np.diff(user.codes[order]) == 0
    return bool(inside.any() and (np.diff(f.plain[order])[inside] > 0).mean() > 0.99)


def _check_header(table: pa.Table, what: str) -> None:
    values = [n for n in table.column_names if re.fullmatch(r"\s*[+-]?\d+([.,:/-]\d+)*([ T]\d+:\d+.*)?\s*", n)]
    if len(values) > 1 or (values and len(table.column_names) < 3):
        raise ValueError(
            f"{what}: the first line is no header but a row ({', '.join(map(repr, table.column_names[:4]))}): put a "
            "line of names before it, e.g. user,item,rating,timestamp"
        )


# ------------------------------------------------------------------ times
def _times(
    table: pa.Table, found: Mapping[str, ColumnFacts], roles: Mapping[str, str], time_format: str | None
) -> dict[str, list[TimeReading]]:
    """Columns that can be read as times, and how."""
    clocks = {}
    for name in table.column_names:
        if name in (roles.get("user"), roles.get("item")) or found[name].distinct < 2:
            continue
        named = strength("time", name) > 1 or roles.get("time") == name
        own = time_format if named or roles.get("time") is None else None
        if not named and max(strength(role, name) for role in ("user", "item")) > 1 and found[name].kind != "time":
            continue
        if readings := time_readings(table, name, named, own):
            clocks[name] = readings
    return clocks


def _time(what: str, clocks: Mapping[str, list[TimeReading]]) -> tuple[str, str]:
    dated = {name: readings for name, readings in clocks.items() if not readings[0].counts} or dict(clocks)
    best = max(strength("time", name) for name in dated)
    names = [name for name in dated if strength("time", name) == best]
    names = _finest(names, dated)
    if len(names) > 1:
        raise Ambiguous(what, "time", names)
    return names[0], "its name" if best else "its values are dates"


def _finest(names: list[str], clocks: Mapping[str, list[TimeReading]]) -> list[str]:
    """Names without those that say the same times, as well or rounded to seconds, hours or days."""
    kept: list[str] = []
    for name in sorted(names, key=lambda n: -len(np.unique(clocks[n][0].seconds))):  # a stable order
        own = clocks[name][0].seconds
        unit = next((u for u in (_DAY, 3600.0) if not (own % u).any()), 1.0)
        near = 1.6 * unit if unit > 1 else unit  # a day of another time zone may be the next one
        if not any(float((np.abs(clocks[k][0].seconds - own) <= near).mean()) > 0.99 for k in kept):
            kept.append(name)
    return kept


# ------------------------------------------------------------------ users and items
def _by_name(
    what: str, role: str, found: Mapping[str, ColumnFacts], roles: Mapping[str, str], clocks: Mapping[str, object]
) -> str | None:
    """The column whose name says the role; None if no name does."""
    fits = {n: strength(role, n) for n, f in found.items() if n not in roles.values() and n not in clocks and f.is_id}
    fits = {n: s for n, s in fits.items() if s and s >= _other_role(role, n)}
    lone = {n for n, s in fits.items() if found[n].known < 0.5 or _numbers_rows(found[n], 1.0)}
    fits = {n: s for n, s in fits.items() if n not in lone} or fits
    if role == "user":  # the author of a book, the seller of a product
        items = [f for n, f in found.items() if strength("item", n) == 3 and f.is_id]
        fits = {n: s for n, s in fits.items() if s > 2 or not any(determines(item, found[n]) for item in items)}
    if not fits:
        return None
    best = max(fits.values())
    names = _without_aliases([n for n, s in fits.items() if s == best], found)
    if best <= 1:  # a category or an order stands for it only if nothing else may
        names += [n for n in _unnamed(found, roles, clocks) if n not in names]
    if len(names) > 1:
        raise Ambiguous(what, role, names)
    return names[0]


def _other_role(role: str, name: str) -> float:
    return strength("item" if role == "user" else "user", name)


def _without_aliases(names: list[str], found: Mapping[str, ColumnFacts]) -> list[str]:
    """Of columns that divide the rows alike (an id and a name), the one that is written as an id, else the first.

    Of `movieId` and `movie`, two ids may share a name.
    """
    kept: list[str] = []
    for name in sorted(names, key=lambda n: (found[n].kind == "text", "id" not in "".join(tokens(n)[1:]))):
        if not any(same(found[k], found[name], stem(k) == stem(name)) for k in kept):
            kept.append(name)
    return [name for name in names if name in kept]


def _by_content(
    what: str, role: str, found: Mapping[str, ColumnFacts], roles: Mapping[str, str], clocks: Mapping[str, object]
) -> str:
    """The only column whose values are ids and whose name says nothing else."""
    pool = _without_aliases(_unnamed(found, roles, clocks), found)
    most = max((found[n].distinct for n in pool), default=0)
    names = [n for n in pool if found[n].distinct * 10 > most]  # others are kinds of things
    if len(names) == 1 and len({"user", "item"} & roles.keys()) == 1:
        return names[0]
    if len(names) < 2:
        known = ", ".join(map(repr, found))
        raise ValueError(f"{what}: no column is surely the {role} (there are {known}): name it with --{role}")
    raise Ambiguous(what, role, names)


def _unnamed(found: Mapping[str, ColumnFacts], roles: Mapping[str, str], clocks: Mapping[str, object]) -> list[str]:
    """Columns of ids whose names say nothing: no row numbers, feedback, prices, few numbers or attributes."""
    known = [found[name] for role, name in roles.items() if role != "time"]
    names = []
    for name, f in found.items():
        named = max(strength(role, name) for role in ("user", "item", "rating", "event", "count", "duration")) > 1
        numbers = f.distinct < 3 or (f.kind == "whole" and f.distinct <= 10 and f.high <= 10)
        if name in roles.values() or name in clocks or not f.is_id or named or numbers or f.known < 0.9:
            continue
        if is_about(name) or set(tokens(name)) & NOT_FEEDBACK or _numbers_rows(f, _UNIQUE):
            continue
        if not any(determines(k, f) for k in known):
            names.append(name)
    return names


def _numbers_rows(f: ColumnFacts, share: float) -> bool:
    return f.rows >= 20 and f.distinct >= share * f.rows
