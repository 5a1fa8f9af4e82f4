"""Which events train, validate and test, and the guard that refuses a training row from the future.

All functions return `part`, int8 [R]: 0 = train, 1 = validation, 2 = test, -1 = used by none (history only).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from polyrec.data.event_log import EventLog
from polyrec.data.sampling import uniform

TRAIN, VALIDATION, TEST, UNUSED = 0, 1, 2, -1
_HELD_OUT = "rows that are held out"


class LeakageError(ValueError):
    """A training row lies later than what the evaluation may know."""


def cut(
    log: EventLog,
    by: str = "time",
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    cuts: Sequence[float] | None = None,
    among: np.ndarray | None = None,
    seed: int = 0,
) -> np.ndarray:
    """The part of each event of a log, cut as `PolyRecProcessor.split` says.

    Args:
        among: bool [R], events that are cut, as if the log had no others; those get -1, as do those of lists of rows.
            Default: all.
        seed: of "random".

    Raises:
        LeakageError: a training row lies later than what the evaluation may know.
    """
    cuttable = np.ones(len(log), dtype=bool) if among is None else among
    kept = np.flatnonzero(cuttable if log.untimed is None else cuttable & ~log.untimed)
    user, time, rows = log.user[kept], log.time[kept], log.row[kept]
    if by == "time":
        order = np.argsort(log.order[kept])
        found = split_by_fractions(order, fractions) if cuts is None else split_by_cuts(time, cuts)
        check_leakage(found, time, rows=rows)
    elif by == "leave_one_out":
        found = leave_one_out(np.append(np.flatnonzero(np.diff(user, prepend=-1)), len(user)))
        check_leakage(found, time, user=user, rows=rows)
    elif by == "random":
        if log.together is None:
            found = hold_out(user, log.order[kept], fractions, seed)
        else:
            found = hold_out_groups(log.together[user], fractions, seed)
    else:
        raise ValueError(f'unknown split {by!r}; known: "time", "leave_one_out", "random"')
    if not (found == TRAIN).any():
        raise ValueError(
            f"the split by {by!r} leaves no training rows: check fractions={tuple(fractions)} or cuts={cuts}"
        )
    part = np.full(len(log), UNUSED, dtype=np.int8)
    part[kept] = found
    return part


def split_by_fractions(order: np.ndarray, fractions: Sequence[float]) -> np.ndarray:
    """Global time split: the first share of all events trains, the next validates, the last tests.

    Args:
        order: int64 [R], row numbers from the earliest to the latest event.
        fractions: three shares that sum to 1.

    Rows of one second may fall on both sides of a cut; under the strictly-before rule they never see each other.

    Example:
        >>> split_by_fractions(np.array([2, 0, 1, 3]), (0.5, 0.25, 0.25)).tolist()
        [0, 1, 0, 2]
    """
    _check_fractions(fractions)
    cuts = np.round(np.cumsum(fractions)[:2] * len(order)).astype(np.int64)
    part = np.full(len(order), TEST, dtype=np.int8)
    part[order[: cuts[1]]] = VALIDATION
    part[order[: cuts[0]]] = TRAIN
    return part


def split_by_cuts(time: np.ndarray, cuts: Sequence[float]) -> np.ndarray:
    """Time cuts: events before cuts[0] train, before cuts[1] validate, the rest test. `time` and `cuts` in seconds."""
    if len(cuts) != 2 or not cuts[0] <= cuts[1]:
        raise ValueError(f"cuts must be two times (validation begins, test begins) in order, not {tuple(cuts)}")
    return np.digitize(time, np.asarray(cuts, dtype=np.float64)).astype(np.int8)


def leave_one_out(offsets: np.ndarray) -> np.ndarray:
    """Each user's last event tests, the one before validates, the others train; users with fewer than 3 only train.

    Args:
        offsets: int64 [P + 1], where each user's events begin in a log sorted by (user, time, order).

    Example:
        >>> leave_one_out(np.array([0, 4, 6])).tolist()
        [0, 0, 1, 2, 0, 0]
    """
    part = np.zeros(offsets[-1], dtype=np.int8)
    last = offsets[1:][np.diff(offsets) >= 3] - 1
    part[last], part[last - 1] = TEST, VALIDATION
    return part


def hold_out(user: np.ndarray, draw: np.ndarray, fractions: Sequence[float], seed: int = 0) -> np.ndarray:
    """Random shares of each user's events validate and test, and the others train: at least one of them.

    Of n events n * share are held out, rounded up or down by chance so that the shares are right over all users.

    Args:
        user: int64 [R].
        draw: int64 [R], a number of each event that names it in all files that hold the same events.
        fractions: three shares that sum to 1.

    Example:
        >>> part = hold_out(np.repeat([0, 1], [1, 40]), np.arange(41), (0.8, 0.1, 0.1))
        >>> int(part[0]), [int((part[1:] == number).sum()) for number in (TRAIN, VALIDATION, TEST)]
        (0, [32, 4, 4])
    """
    _check_fractions(fractions)
    users, number, size = np.unique(user, return_inverse=True, return_counts=True)
    tested, validated = (
        np.floor(size * share + uniform(users, seed, which, _HELD_OUT) * (1 - 1e-9)).astype(np.int64)
        for which, share in ((TEST, fractions[2]), (VALIDATION, fractions[1]))
    )
    tested = np.minimum(tested, size - 1)
    validated = np.minimum(validated, size - 1 - tested)
    sort = np.lexsort((uniform(draw, seed, 0, _HELD_OUT), number))
    rank = np.empty(len(user), dtype=np.int64)
    rank[sort] = np.arange(len(user)) - np.repeat(np.cumsum(size) - size, size)
    part = np.full(len(user), TRAIN, dtype=np.int8)
    part[rank < (tested + validated)[number]] = VALIDATION
    part[rank < tested[number]] = TEST
    return part


def hold_out_groups(group: np.ndarray, fractions: Sequence[float], seed: int = 0) -> np.ndarray:
    """Random shares of all events validate and test, those of one group together.

    Args:
        group: int64 [R].
        fractions: three shares that sum to 1.

    Example:
        >>> hold_out_groups(np.array([7, 7, 8, 8, 9, 9]), (1 / 3, 1 / 3, 1 / 3)).tolist()
        [0, 0, 1, 1, 2, 2]
    """
    _check_fractions(fractions)
    groups, number, size = np.unique(group, return_inverse=True, return_counts=True)
    draw = np.argsort(uniform(groups, seed, 0, _HELD_OUT), kind="stable")
    rank = np.empty(len(groups))
    rank[draw] = (np.cumsum(size[draw]) - size[draw] / 2) / len(group)
    found = np.digitize(rank, np.cumsum(fractions[::-1])[:2])
    return np.array([TEST, VALIDATION, TRAIN], dtype=np.int8)[found[number]]


def _check_fractions(fractions: Sequence[float]) -> None:
    if len(fractions) != 3 or any(f < 0 for f in fractions) or not np.isclose(sum(fractions), 1):
        raise ValueError(
            f"fractions must be three shares >= 0 that sum to 1 (train, validation, test), not {tuple(fractions)}"
        )


def check_leakage(
    part: np.ndarray, time: np.ndarray, user: np.ndarray | None = None, rows: np.ndarray | None = None
) -> None:
    """Refuse a split whose training (or validation) rows lie later than the first row that a later part evaluates.

    Args:
        part: int8 [R].
        time: float64 [R], seconds.
        user: int64 [R]. Given: the rule holds within each user (leave-one-out); None: over the whole log.
        rows: int64 [R], row numbers of the user's table, for the message.

    Raises:
        LeakageError: names the first offending row, its time and the limit.
    """
    names = {TRAIN: "training", VALIDATION: "validation", TEST: "test"}
    group = np.zeros(len(part), dtype=np.int64) if user is None else user
    size = int(group.max()) + 1 if len(group) else 0
    for earlier, later in ((TRAIN, VALIDATION), (TRAIN, TEST), (VALIDATION, TEST)):
        limit = np.full(size, np.inf)
        held = part == later
        np.minimum.at(limit, group[held], time[held])
        late = (part == earlier) & (time > limit[group])
        if late.any():
            row = int(late.argmax())
            where = "" if user is None else " of the same user"
            raise LeakageError(
                f"row {row if rows is None else rows[row]} is a {names[earlier]} row at time {time[row]:.0f}, later "
                f"than the first {names[later]} row{where} at {limit[group[row]]:.0f}: the model would learn from the "
                "future. Split by time, or move the row to the later part."
            )
