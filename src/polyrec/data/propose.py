"""Tasks that the columns of a log offer, each with its reason, and what is not used."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from polyrec.core.label import Label
from polyrec.core.names import check_task_name, check_task_names
from polyrec.data.column_facts import ColumnFacts, determines
from polyrec.data.column_words import (
    ACTIONS,
    AGAINST,
    EXPOSURES,
    GENERIC,
    NOT_FEEDBACK,
    POSITIVE_FLAGS,
    VIEWS,
    is_about,
    strength,
    tokens,
    words_of,
)
from polyrec.data.guess import Found
from polyrec.data.labels import label_values

LEAST_SHARE = 0.01  # of rows that a word or a flag must have
REPEATED = 0.05  # share of events with an earlier item of their user from which on lists must hold such items
_WORDS = 20  # distinct values of a column of events
_STARS = 21  # distinct values of a rating on a scale
_FEW_COUNTS = 50  # up to here, numbers are counts for a Poisson loss
_UNKNOWN = "no known kind of feedback: add a task for it, or name it in columns.context if it is known beforehand"
_ODD_NAME = "its name cannot stand in a label: rename it if it is feedback"
_YES = words_of("1 y yes true t ja oui si")
_NO = words_of("0 n no false f nein non")


@dataclass
class Proposal:
    """The tasks of a log.

    Args:
        tasks: as in a recipe, (task, why).
        unused: (column, why not).
    """

    tasks: list[tuple[dict[str, Any], str]] = field(default_factory=list)
    unused: list[tuple[str, str]] = field(default_factory=list)

    def add(self, name: str, head: str, label: str, why: str) -> None:
        """Note a task under a name that is free."""
        self.tasks.append(
            ({"name": _free(name, [t["name"] for t, _ in self.tasks]), "head": head, "label": label}, why)
        )


def propose_tasks(found: Found) -> Proposal:
    """Next item, and what the feedback columns offer: ratings, flags, kinds of events, counts and durations.

    Example:
        >>> import pyarrow as pa
        >>> from polyrec.data.guess import find_columns
        >>> rows = {"user": [1, 1, 2, 2], "item": [1, 2, 1, 2], "ts": [10**9, 10**9 + 1, 10**9, 10**9 + 5]}
        >>> proposal = propose_tasks(find_columns(pa.table(rows | {"stars": [5, 1, 4, 3]})))
        >>> [(task["name"], task["head"], task.get("label")) for task, _ in proposal.tasks]
        [('next_item', 'retrieval', None), ('stars', 'regression', 'stars'), ('like', 'binary', 'stars >= 4')]
    """
    proposal = Proposal()
    columns = {n: f for n, f in found.facts.items() if n not in (found.user, found.item, found.time)}
    kinds = {name: _kind(f, found) for name, f in columns.items()}
    next_label, why = _next_item(columns, kinds)
    first: dict[str, Any] = {"name": "next_item", "head": "retrieval"}
    if next_label is not None:
        first["label"] = next_label
    share = found.lists.again if found.lists is not None else 0.0
    if found.time is not None and found.lists is None:
        share = _again(found, columns, next_label)
    if share > REPEATED:
        first["options"] = {"repeats": True}
        why += f"; {share:.0%} take an item again, so lists hold what was taken, too"
    proposal.tasks.append((first, why))
    for kind, add in (
        ("event", _events),
        ("rating", _rating),
        ("flag", _flag),
        ("count", _amount),
        ("duration", _amount),
    ):
        for name, f in columns.items():
            if kinds[name] == kind:
                add(proposal, f, columns)
    proposal.unused += [(name, why) for name, why in kinds.items() if why not in _ADD]
    return proposal


def _kind(f: ColumnFacts, found: Found) -> str:
    """What a column is for: a kind of feedback, or why it is none."""
    if f.kind in ("other", "empty") or f.distinct < 2:
        return {"other": "of a nested type", "empty": "empty"}.get(f.kind, "one value only")
    if not _reads(f.name, f.name):
        return _ODD_NAME
    if f.plain is not None and np.isinf(f.plain).any():
        return "infinite values: make them null if it is feedback"
    for role in ("user", "item"):
        owner = found.facts[getattr(found, role)]
        if determines(owner, f):
            return f"an attribute of the {role}, every {role} has one"
    if f.kind == "time" or strength("time", f.name) > 1:
        return "another time"
    if _is_event(f):
        return "event"
    if strength("rating", f.name) and f.kind in ("whole", "number") and f.distinct > 2:
        return "rating"
    return _number_or_flag(f)


def _number_or_flag(f: ColumnFacts) -> str:
    words = set(tokens(f.name))
    flag = _flag_values(f) is not None
    if flag and not words & NOT_FEEDBACK and not is_about(f.name):
        return "flag"
    if f.kind in ("whole", "number") and not flag:
        for kind in ("count", "duration"):
            if strength(kind, f.name):
                return kind if f.low >= 0 else "negative values: repair them if it is feedback"
    if not words & NOT_FEEDBACK and not is_about(f.name) and _is_scale(f):
        return "rating"
    if f.rows >= 20 and f.distinct >= 0.9 * f.rows and f.kind in ("whole", "text"):
        return "nearly every row has a value of its own"
    return _UNKNOWN


def _is_event(f: ColumnFacts) -> bool:
    if not 2 <= len(f.values) <= _WORDS or f.kind not in ("text", "whole") or _flag_values(f) is not None:
        return False
    if f.plain is not None and not (abs(f.low) < 1000 and abs(f.high) < 1000):
        return False
    known = [_word(v) for v in f.values if _word(v) in VIEWS | EXPOSURES | AGAINST | ACTIONS]
    if strength("event", f.name):
        return bool(known) or not set(tokens(f.name)) <= GENERIC  # the type of a device is no event
    return f.kind == "text" and len(known) >= max(2, len(f.values) / 2)


def _is_scale(f: ColumnFacts) -> bool:
    """Whether the values are stars of 1 to 5 or 10, whole or half, all of them."""
    if f.kind not in ("whole", "number") or not 5 <= len(f.values) <= _STARS:
        return False
    values = sorted(float(str(v)) for v in f.values)
    scales = [np.arange(1, 6), np.arange(1, 11), np.arange(0.5, 5.5, 0.5)]
    return any(len(s) == len(values) and np.array_equal(s, values) for s in scales)


def _flag_values(f: ColumnFacts) -> Any:
    """The value that means yes, in a column of two; None if it is none."""
    if len(f.values) != 2:
        return None
    words = {_word(v): v for v in f.values}
    yes, no = words.keys() & (_YES | {"1.0"}), words.keys() & (_NO | {"0.0", "-1", "-1.0"})
    return words[next(iter(yes))] if len(yes) == 1 and len(no) == 1 else None


def _word(value: object) -> str:
    return re.sub(r"[\s-]+", "_", str(value).strip().lower())


# ------------------------------------------------------------------ tasks
def _next_item(columns: dict[str, ColumnFacts], kinds: dict[str, str]) -> tuple[str | None, str]:
    """Which rows are events that a list should predict."""
    for name, f in columns.items():
        if kinds[name] == "event":
            out = [v for v, _ in f.ranked if _word(v) in AGAINST | EXPOSURES]
            if out and len(out) < len(f.values) and (label := _compared(name, "not in", out)):
                return label, f"always; {', '.join(map(str, out))} of {name} chose no item"
    flags = [f for n, f in columns.items() if kinds[n] == "flag" and set(tokens(n)) & POSITIVE_FLAGS]
    if flags:
        best = max(flags, key=_share)
        return _yes(best), f"always; rows without {best.name} ({1 - _share(best):.1%}) are exposures"
    return None, "always; every row is an event"


def _again(found: Found, columns: dict[str, ColumnFacts], label: str | None) -> float:
    """The share of the events that a list should predict whose user has an earlier one of the same item."""
    user, item = found.facts[found.user].codes, found.facts[found.item].codes
    counts = (user >= 0) & (item >= 0)
    if label is not None:
        rule = Label.parse(label)
        f = columns[rule.column]
        counts &= np.isin(f.codes, np.flatnonzero([_holds(rule, value) for value in f.values]))
    pairs = user[counts].astype(np.int64) * (item.max(initial=0) + 1) + item[counts]
    return 1 - len(np.unique(pairs)) / len(pairs) if len(pairs) else 0.0


def _events(proposal: Proposal, f: ColumnFacts, columns: dict[str, ColumnFacts]) -> None:
    values = [value for value, _ in f.ranked]
    base = next((v for v in values if _word(v) in VIEWS | EXPOSURES), values[0])
    for value, count in f.ranked:
        share = count / f.rows
        if value == base:
            continue
        if share < LEAST_SHARE:
            proposal.unused.append((f"{f.name} {value}", f"{share:.2%} of rows; a task needs {LEAST_SHARE:.0%}"))
        elif label := _compared(f.name, "==", [value]):
            name = str(value) if f.kind == "text" else f"{f.name}_{_written(value)}"
            proposal.add(name, "binary", label, f"{share:.1%} of rows; most common is {base}")


def _rating(proposal: Proposal, f: ColumnFacts, columns: dict[str, ColumnFacts]) -> None:
    scale = f"{f.low:g} to {f.high:g}"
    proposal.add(f.name, "regression", f.name, f"a rating from {scale}" + f", {f.distinct} values" * bool(f.values))
    if not f.values:
        return
    zeros = dict(zip(f.values, f.counts, strict=True)).get(0, 0) / f.rows
    if f.low == 0 and zeros > 0.2:
        proposal.unused.append((f"{f.name} 0", f"{zeros:.1%} of rows: make them null if they mean that none was given"))
    numbers = {float(str(v)): n for v, n in zip(f.values, f.counts, strict=True)}
    above = {v: sum(n for w, n in numbers.items() if w >= v) / f.rows for v in sorted(numbers)[1:]}
    four = next(v for v in above if v >= f.low + 0.75 * (f.high - f.low))  # 4 of 1 to 5
    best, why = four, "the upper quarter of the scale"
    if not 0.05 <= above[four] <= 0.95:
        best = min(above, key=lambda v: abs(above[v] - 0.5))
        why = f"nearest to half of the rows; {above[four]:.1%} are >= {four:g}"
    proposal.add("like", "binary", f"{f.name} >= {_written(best)}", f"{above[best]:.1%} of rows; {why}")


def _flag(proposal: Proposal, f: ColumnFacts, columns: dict[str, ColumnFacts]) -> None:
    share, label = _share(f), _yes(f)
    first = proposal.tasks[0][0].get("label") == label  # what the list predicts
    if (twin := _known_from(f, columns, proposal)) is not None:
        proposal.unused.append((f.name, f"says the same as {twin}"))
    elif not LEAST_SHARE / (10 if first else 1) <= share <= 1 - LEAST_SHARE:
        proposal.unused.append((f.name, f"yes in {share:.2%} of rows; a task needs {LEAST_SHARE:.0%} of each value"))
    elif label:
        proposal.add(f.name, "binary", label, f"yes in {share:.1%} of rows")


def _known_from(f: ColumnFacts, columns: dict[str, ColumnFacts], proposal: Proposal) -> str | None:
    """The column of another task that says whether a flag is set."""
    yes = f.codes == f.values.index(_flag_values(f))
    for other in columns.values():
        if other is not f and _is_event(other) and len(np.unique(other.codes * 2 + yes)) == len(np.unique(other.codes)):
            return other.name
    for task, _ in proposal.tasks:
        rule = Label.parse(task["label"]) if "label" in task else None
        other = columns.get(rule.column, f) if rule else f
        if rule is not None and other is not f and task["head"] == "binary":
            held = np.isin(other.codes, np.flatnonzero([_holds(rule, value) for value in other.values]))
            if (held == yes).all() or (held != yes).all():
                return other.name
    return None


def _holds(rule: Label, value: object) -> bool:
    """Whether a value of the column makes the label of a task 1."""
    number = float(value) if isinstance(value, bool) else value
    return bool(label_values(pa.table({rule.column: [number]}), rule, "label")[0] > 0)


def _amount(proposal: Proposal, f: ColumnFacts, columns: dict[str, ColumnFacts]) -> None:
    most = np.bincount(f.codes[f.codes >= 0]).max() / f.rows
    if most > 1 - LEAST_SHARE * 5:
        proposal.unused.append((f.name, f"one value in {most:.1%} of rows"))
        return
    divisor = " / 1000" if f.name.lower().endswith(("ms", "millis", "milliseconds")) else ""
    label = f"log1p({f.name}{divisor})"
    if strength("count", f.name) and f.kind == "whole" and f.high <= _FEW_COUNTS:
        proposal.add(f.name, "count", f.name, f"counts from {f.low:g} to {f.high:g}")
    elif _reads(label, f.name):
        why = f"from {f.low:g} to {f.high:g}; the logarithm brings large ones closer"
        proposal.add(f"log_{f.name}", "regression", label, why)
    else:
        proposal.unused.append((f.name, _ODD_NAME))


_ADD = {"event": _events, "rating": _rating, "flag": _flag, "count": _amount, "duration": _amount}  # in this order


# ------------------------------------------------------------------ labels and names
def _share(f: ColumnFacts) -> float:
    """Rows of a flag that say yes."""
    return f.counts[f.values.index(_flag_values(f))] / f.rows


def _yes(f: ColumnFacts) -> str:
    """The label of a flag; "" if none can be written."""
    yes = _flag_values(f)
    if f.kind == "text":
        return _compared(f.name, "==", [yes])
    return f.name if f.low == 0 or f.kind == "bool" else f"{f.name} > 0"


def _written(value: object) -> str:
    """A number with all its digits, whole ones without a point."""
    number = float(str(value))
    return str(int(number)) if number.is_integer() else str(value)


def _reads(label: str, name: str) -> bool:
    """Whether a label means a column of this name, which signs in it could prevent."""
    try:
        return Label.parse(label).column == name
    except ValueError:
        return False


def _compared(name: str, op: str, values: list[Any]) -> str:
    """A comparison of a column with words or numbers; "" if they hold both kinds of quotation marks."""
    texts = []
    for value in values:
        if isinstance(value, str):
            if "'" in value and '"' in value:
                return ""
            value = f'"{value}"' if "'" in value else f"'{value}'"
        texts.append(value if isinstance(value, str) else _written(value))
    if len(texts) == 1:
        return f"{name} {'!=' if op == 'not in' else '=='} {texts[0]}"
    return f"{name} {op} ({', '.join(texts)})"


def _free(name: str, used: list[str]) -> str:
    """A valid name of a task that no other has, nor the metrics of another."""
    words = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")[:50]
    words = words if re.match(r"[A-Za-z]", words) else f"task_{words}".rstrip("_")
    try:
        check_task_name(words)
    except ValueError:
        words += "_task"
    found, number = words, 1
    while found in used or not _apart([*used, found]):
        number += 1
        found = f"{words}_{number}"
    return found


def _apart(names: list[str]) -> bool:
    try:
        check_task_names(names)
    except ValueError:
        return False
    return True
