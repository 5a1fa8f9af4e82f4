"""Logs without times: the events of a user are a set, and what is made of them depends on no order.

A model that reads one event after the other, and statistics that run over the log, still need an order. It is *drawn*,
of what the rows say and never of where they stand in a file, so that shuffled rows give the same split and figures.
Training rows come first in it; what is held out comes last and sees all of them.

**Why a drawn order and not all rows but one's own.** A sum over all rows but one's own tells the label, as what is
missing of the total of an item: y = S - S_without. A model that knows the items learns to subtract, and is wrong on
every new row. Running statistics over a random order do not tell it (Prokhorenkova et al., 2018, "CatBoost: unbiased
boosting with categorical features", section 3.2).

Letters: R events, P users.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polyrec.core.schema import TIME_GAP, Columns
from polyrec.data.event_log import EventLog
from polyrec.data.ids import ids
from polyrec.data.sampling import uniform
from polyrec.data.splits import TRAIN

_ORDER = "the order of a set"


def as_sets(log: EventLog, table: pa.Table, columns: Columns) -> EventLog:
    """A log whose events have a drawn order: the place of each over the whole log stands for its time.

    Args:
        log: of a table without times, as `encode_log` reads it.
        table: the interactions.
    """
    users = _ranks(log.user_ids)
    draw = uniform(_positions(table, columns)[log.row], 0, 0, _ORDER)
    drawn = replace(
        log,
        user=users[log.user],
        user_ids=log.user_ids.take(pa.array(np.argsort(users))),
        user_features={name: values[np.argsort(users)] for name, values in log.user_features.items()},
        event_features={name: values for name, values in log.event_features.items() if name != TIME_GAP},
    )
    return _arranged(drawn, np.argsort(np.argsort(draw, kind="stable")), np.inf)


def held_out_last(log: EventLog, part: np.ndarray) -> tuple[EventLog, np.ndarray]:
    """A log of sets in which what is held out comes after all training rows; and the part of each of its events.

    Args:
        part: int8 [R], see `polyrec.data.splits`.
    """
    held = part != TRAIN
    position = np.empty(len(log), dtype=np.int64)
    position[np.lexsort((log.time, held))] = np.arange(len(log))
    return _arranged(log, position, float(len(log) - held.sum())), part[np.lexsort((position, log.user))]


def _arranged(log: EventLog, position: np.ndarray, set_until: float) -> EventLog:
    """The log sorted by (user, place), places being its times."""
    row = np.lexsort((position, log.user))

    def sorted_(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: values[row] for name, values in columns.items()}

    return replace(
        log,
        user=log.user[row],
        item=log.item[row],
        time=position[row].astype(np.float64),
        order=position[row],
        row=log.row[row],
        labels=log.labels[row],
        event_features=sorted_(log.event_features),
        candidate_features=sorted_(log.candidate_features),
        measures=sorted_(log.measures),
        sample_weight=sorted_(log.sample_weight),
        queries=None if log.queries is None else log.queries.of_rows(row),
        set_until=set_until,
        drawn=True,
    )


def _positions(table: pa.Table, columns: Columns) -> np.ndarray:
    """The place of each row when the table is sorted by what its rows say, int64 [R]."""
    user, item = (_ranks(ids(table, key, "interactions", "id")) for key in (columns.user, columns.item))
    pair = user * (int(item.max(initial=0)) + 1) + item
    _, number, size = np.unique(pair, return_inverse=True, return_counts=True)
    alike = np.flatnonzero(size[number] > 1)  # the same item several times: the other columns decide
    rank_of_text = np.zeros(len(pair), dtype=np.int64)
    if len(alike):
        names = sorted(table.column_names)
        texts = [repr([row[name] for name in names]) for row in table.take(pa.array(alike)).to_pylist()]
        rank_of_text[alike] = np.unique(texts, return_inverse=True)[1]
    position = np.empty(len(pair), dtype=np.int64)
    position[np.lexsort((rank_of_text, pair))] = np.arange(len(pair))
    return position


def _ranks(values: pa.Array) -> np.ndarray:
    """The rank of each value among the distinct ones, int64."""
    coded = values.dictionary_encode()
    rank = np.empty(len(coded.dictionary), dtype=np.int64)
    rank[np.asarray(pc.sort_indices(coded.dictionary))] = np.arange(len(rank))
    return rank[np.asarray(coded.indices)]
