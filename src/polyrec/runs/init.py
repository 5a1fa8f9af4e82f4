"""`polyrec init`: a table of events in, a commented recipe out; `polyrec train events.csv` goes on with it at once."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from polyrec.core.escapes import printable
from polyrec.core.files import write_atomically
from polyrec.core.schema import ROW_ORDER
from polyrec.data.arrays import is_text
from polyrec.data.column_facts import TimeReading, facts
from polyrec.data.column_words import tokens
from polyrec.data.guess import ROLES, Ambiguous, Found, find_columns
from polyrec.data.propose import Proposal, propose_tasks
from polyrec.data.report import main_process
from polyrec.data.setup import setup_for
from polyrec.data.tables import read_table

SAMPLE = 200_000  # rows that are read to decide
_TITLES = {"title", "titel", "titre", "titulo", "name", "nom", "nombre", "nome", "label"}


def recipe_of(table: str, items: str | None, users: str | None, given: Mapping[str, str]) -> dict[str, Any]:
    """The recipe of a table of events: its columns are found, tasks proposed, and both are printed with their reasons.

    Args:
        given: {"user", "item", "time", "time_format": what a flag says}.

    Raises:
        Ambiguous: two readings fit equally well, and there is no terminal to ask in.
        ValueError: a column is missing.
    """
    return _decided(table, items, users, given)[0]


def init(table: str, items: str | None, users: str | None, given: Mapping[str, str], output: str) -> Path:
    """Write the recipe of a table of events, with comments, to a new file."""
    path = Path(output)
    if path.exists():
        raise ValueError(f"{path} is there already: name another file with --output")
    values, found, proposal = _decided(table, items, users, given)
    write_atomically(path, commented(values, found, proposal))
    print(f"written to {path}; try: polyrec train {path}")
    return path


def _decided(
    table: str, items: str | None, users: str | None, given: Mapping[str, str]
) -> tuple[dict[str, Any], Found, Proposal]:
    sample = read_table(table, "interactions", SAMPLE)
    others = {
        role: (path, read_table(path, f"{role}s"))
        for role, path in (("item", items), ("user", users))
        if path is not None
    }
    known = dict(given)
    while True:
        try:
            found = _find(sample, table, known, others)
            break
        except Ambiguous as question:
            known[question.role.replace(" ", "_")] = _asked(question, sample)
    for role, (path, other) in others.items():
        _check_key(getattr(found, role), role, path, other, found)
    proposal = propose_tasks(found)
    values = _values(table, items, users, found, proposal, others)
    if main_process():
        print(described(table, sample.num_rows, found, proposal))
    return values, found, proposal


def _find(sample: pa.Table, table: str, known: Mapping[str, str], others: Mapping[str, tuple[str, pa.Table]]) -> Found:
    keys = {role: _keys(other) for role, (_, other) in others.items()}
    given = {role: known[role] for role in ROLES if role in known}
    return find_columns(sample, Path(table).name, given, keys, known.get("time_format"))


def _keys(table: pa.Table) -> list[str]:
    """Columns that number the rows of a table."""
    held = [facts(table, name) for name in table.column_names]
    return [f.name for f in held if f.is_id and f.distinct == table.num_rows]


def _check_key(key: str, role: str, path: str, other: pa.Table, found: Found) -> None:
    if key not in other.column_names:
        names = ", ".join(map(repr, _keys(other))) or "none has a value of its own in every row"
        raise ValueError(
            f"{path}: no column {key!r}, which is the {role} of the events: give its key that name ({names}), or name "
            f"another with --{role}"
        )


def _asked(question: Ambiguous, sample: pa.Table) -> str:
    """The reply to one prompt; without a terminal, or without a reply, it is an error."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise question
    choices = question.candidates
    print(printable(str(question).partition(": say ")[0]))
    for number, name in enumerate(choices, 1):
        seen = sample[question.column or name][:3].to_pylist()
        print(printable(f"  {number}  {name}   (e.g. {', '.join(map(str, seen))})"))
    try:
        answer = input(f"Which one is the {question.role}? [1-{len(choices)}] ").strip()
    except EOFError:
        raise question from None
    if answer.isdecimal() and 1 <= int(answer) <= len(choices):
        return choices[int(answer) - 1]
    if answer in choices:
        return answer
    raise question


def _values(
    table: str,
    items: str | None,
    users: str | None,
    found: Found,
    proposal: Proposal,
    others: Mapping[str, tuple[str, pa.Table]],
) -> dict[str, Any]:
    """The recipe's values."""
    columns: dict[str, Any] = {role: getattr(found, role) for role in ROLES}
    if found.history is not None:
        columns["history"] = found.history
    if found.reading is not None and found.reading.unit != "s":
        columns["time_unit"] = found.reading.unit
    if found.reading is not None and found.reading.format is not None:
        columns["time_format"] = found.reading.format
    if "item" in others and (title := _title(others["item"][1], found.item)) is not None:
        columns["title"] = title
    paths = {"interactions": table, "items": items, "users": users}
    return {
        **{name: path for name, path in paths.items() if path is not None},
        "columns": columns,
        "tasks": [task for task, _ in proposal.tasks],
        "split": _split(found)[0],
        **setup_for(found).values,
    }


def _split(found: Found) -> tuple[dict[str, Any], str]:
    """How the log is cut, and why."""
    shares = {"fractions": [0.8, 0.1, 0.1]}
    if found.time is None:
        whose = "each user's events" if found.lists is None else "the rows"
        return {"by": "random", **shares}, f"no times: a random tenth of {whose} tests"
    if found.lists is not None:
        return {"by": "time", **shares}, "the last tenth of the time tests"
    if found.reading is None:
        return {"by": "leave_one_out"}, "rows stand for times"
    if found.reading.counts:
        return {"by": "leave_one_out"}, "times are counts of events"
    return {"by": "time", **shares}, "the last tenth of the time tests"


def _title(items: pa.Table, key: str) -> str | None:
    """The column of titles of an items table that has none of the default name."""
    names = [n for n in items.column_names if n != key and is_text(items[n].type) and set(tokens(n)) & _TITLES]
    return None if not names or "title" in items.column_names else names[0]


# ------------------------------------------------------------------ what is printed and written
def _notes(found: Found) -> dict[str, str]:
    """{role: why}, with what the column holds."""
    notes = {}
    for role in ("user", "item"):
        f = found.facts[getattr(found, role)]
        notes[role] = f"{found.reasons[role]}; {f.distinct:,} {role}s, {f.repeated:.1f} rows each"
        if f.known < 1:
            notes[role] += f"; missing in {1 - f.known:.1%} of rows, which training refuses: remove them"
        if getattr(found, role) == ROW_ORDER:
            notes[role] = found.reasons[role]
    if found.lists is not None:
        notes["history"] = found.reasons["history"] + "; a row sees its list and nothing else"
    notes["time"] = found.reasons["time"]
    if found.reading is not None:
        notes["time"] += f"; {_written(found.reading)}{found.reading.span}"
    return notes


def _written(reading: TimeReading) -> str:
    if reading.format is not None:
        return f"written {reading.format}, "
    return f"{reading.unit}, " if reading.unit != "s" else ""


def described(table: str, rows: int, found: Found, proposal: Proposal) -> str:
    """A short table of what was decided and why."""
    lines = [(role, getattr(found, role) or "none", "", note) for role, note in _notes(found).items()]
    tasks = [(t["name"], t["head"], t.get("label", ""), why) for t, why in proposal.tasks]
    unused = [(names, "", "", why) for names, why in _grouped(proposal)]
    read = f"{rows:,} rows read{' to decide' * (rows >= SAMPLE)}"
    text = [f"{Path(table).name}: {read}", *_aligned(lines), "tasks", *_aligned(tasks)]
    text += ["not used", *_aligned(unused)] if unused else []
    setup = setup_for(found)
    text += ["set-up", *_aligned([(name, _flow(setup.values[name]), "", why) for name, why in setup.why.items()])]
    return "\n".join(printable(line) for line in text)


def _grouped(proposal: Proposal) -> list[tuple[str, str]]:
    """Unused columns, those of one reason together."""
    by_reason: dict[str, list[str]] = {}
    for name, why in proposal.unused:
        by_reason.setdefault(why, []).append(name)
    return [(", ".join(names[:6]) + ", ..." * (len(names) > 6), why) for why, names in by_reason.items()]


def _aligned(rows: list[tuple[str, str, str, str]]) -> list[str]:
    widths = [max(len(row[n]) for row in rows) for n in range(3)]
    return ["  " + "  ".join(c.ljust(w) for c, w in zip(row, (*widths, 0), strict=True) if w or c) for row in rows]


def commented(values: Mapping[str, Any], found: Found, proposal: Proposal) -> str:
    """A recipe as YAML with the reason of each choice beside it."""
    notes = _notes(found)
    table = Path(values["interactions"]).name
    lines = [_comment(f"Written by `polyrec init {table}`. Every line can be changed; `polyrec train` reads it.")]
    lines += [f"{name}: {_flow(values[name])}" for name in ("interactions", "items", "users") if name in values]
    lines.append("columns:")
    for name, value in values["columns"].items():
        lines.append(f"  {name}: {_flow(value)}" + (f"  {_comment(notes[name])}" if name in notes else ""))
    lines.append("  # context: [...]  # columns known BEFORE an event (device, slot); never one that a label reads")
    lines.append("tasks:")
    lines += [f"  - {_flow(task)}  {_comment(why)}" for task, why in proposal.tasks]
    if proposal.unused:
        lines += ["# Not used:", *(_comment(f"  {names}: {why}") for names, why in _grouped(proposal))]
    lines.append(f"split: {_flow(values['split'])}  {_comment(_split(found)[1])}")
    lines += [f"{name}: {_flow(values[name])}  {_comment(why)}" for name, why in setup_for(found).why.items()]
    return "\n".join(lines) + "\n"


def _flow(value: Any) -> str:
    return yaml.safe_dump([value], default_flow_style=True, width=1 << 30, sort_keys=False, allow_unicode=True)[1:-2]


def _comment(text: str) -> str:
    indent = len(text) - len(text.lstrip())
    return f"# {' ' * indent}{printable(' '.join(text.split()))}"
