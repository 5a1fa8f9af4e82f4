"""Whether a server's state gives the features and predictions that training would have shown the model.

A log that goes on behind the one a run was trained on is stored and counted as a server does it. Before some of its
rows their user is asked for, by id and with the whole history sent along; half of the way the state is restarted from a
snapshot. Each answer is compared with that row of `processor.resume`, which reads the whole log at once.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch

from polyrec import PolyRecCollator, PolyRecForRecommendation, PolyRecProcessor
from polyrec.data.event_log import Candidates
from polyrec.data.sequences import SequenceDataset
from polyrec.data.tables import read_table
from polyrec.serving.calls import User
from polyrec.serving.engine import Engine
from polyrec.serving.loading import load_state, quiet, tables_of_run
from polyrec.serving.pending import PendingEvents
from polyrec.serving.records import Kind, Record
from polyrec.serving.snapshots import Snapshots
from polyrec.serving.store import SQLiteStore

FEATURES, PREDICTIONS = 1e-6, 1e-5  # allowed, in units of a value that is above 1


class Offline:
    """Windows of the rows of a whole log.

    Args:
        run: folder of a saved run.
        log: all events, in order of time.
    """

    def __init__(self, run: Path, log: pd.DataFrame) -> None:
        self.processor = PolyRecProcessor.from_pretrained(run)
        for path in tables_of_run(run, "users") if not len(self.processor.users.ids) else ():
            self.processor.extend(users=read_table(path, "users"))  # they are not saved with it
        self.log, self.counted = self.processor.resume(log, next(iter(tables_of_run(run, "prior_history")), None))
        self.row_of = np.empty(len(log), dtype=np.int64)
        self.row_of[self.log.row] = np.arange(len(log))
        self.visible, self.names = self.log.visible(), [task.name for task in self.processor.tasks]
        every = np.ones(len(self.log), dtype=bool)
        self.trending = self.processor.evaluation_set(self.log, every, self.counted).trending

    def window(self, at: int) -> dict[str, Any]:
        """That of a row of the log."""
        row = self.row_of[at]
        candidates = Candidates(np.array([row]), self.visible[[row]])
        length, own = self.processor.max_history, {"stride": 1, "trending": self.trending}
        return SequenceDataset(self.log, candidates, self.names, self.counted, length, **own)[0]


class Served:
    """The state of a server, without HTTP."""

    def __init__(self, run: Path, folder: Path) -> None:
        self.run, self.folder, self.store = run, folder, SQLiteStore(folder)
        self.start()

    def start(self) -> None:
        """Recover the state."""
        self.state, self.pending = load_state(self.run, self.store, self.folder, whole_log=False), PendingEvents()
        self.state.counted = self.pending.remove
        self.pending.add(self.state.waiting)
        self.engine = Engine(self.state, self.pending, "")

    def restart(self) -> None:
        """Write a snapshot, and begin anew."""
        Snapshots(self.folder, self.run).write(self.state)
        self.store.close()
        self.store = SQLiteStore(self.folder)
        self.start()

    def take(self, records: list[Record]) -> None:
        """Store records and fold them."""
        seqs = self.store.append(records)
        records = [record._replace(seq=seq) for record, seq in zip(records, seqs, strict=True)]
        self.pending.add([self.state.format.read(record) for record in records if record.kind is Kind.EVENT])
        for record in records:
            self.state.fold(record)

    def window(self, who: User, item: np.ndarray) -> dict[str, Any]:
        """That of a request about one item."""
        request = self.engine.request(who)
        window = self.state.processor.request(request.pop("history"), item, **request)
        window.pop("history_items")
        return window


def skew(run: Path, log: pd.DataFrame, requests: int) -> dict[str, Any]:
    """Largest differences of features and predictions, and how many rows are off by more than they may."""
    quiet()
    own = PolyRecProcessor.from_pretrained(run).columns
    log = log.sort_values(own.time, kind="stable", ignore_index=True)
    offline, model = Offline(run, log), PolyRecForRecommendation.from_pretrained(run).eval()
    with tempfile.TemporaryDirectory() as folder:
        return _compared(Served(run, Path(folder)), offline, model, log, requests)


def _compared(
    served: Served, offline: Offline, model: PolyRecForRecommendation, log: pd.DataFrame, requests: int
) -> dict[str, Any]:
    own, reader = offline.processor.columns, offline.processor.request_reader
    later = np.flatnonzero(log[own.time].to_numpy() > served.state.processor.log_state.counted)
    every, restarted = max(len(later) // requests, 1), False
    form, columns = served.state.format, [c for c in served.state.format.columns if c in log]
    found = {how: {"requests": 0, "features": 0.0, "predictions": 0.0, "rows_off": 0} for how in ("id", "history")}
    waiting: list[Record] = []
    before = when = -np.inf
    for n, at in enumerate(later):
        row = {name: _plain(value) for name, value in log.iloc[at].items()}
        if row[own.time] > when:
            before, when = when, row[own.time]
        item = served.state.processor.items.rows(pa.array([row[own.item]]))
        if n % every == 0 and item[0] >= 2:
            # What happened before is counted; what happens at one time does not see itself.
            served.take([*waiting, Record(Kind.MARK, json.dumps({"upto": 2**62}), time=before)])
            waiting.clear()
            if not restarted and n >= len(later) // 2:
                served.restart()
                restarted = True
            context = {name: row[name] for name in reader.context if row.get(name) is not None}
            ways = {"id": User(row[own.user], context=context, time=when)}
            if own.prior_history is None:  # which no request can send
                ways["history"] = _history(served, log, at, context)
            expected = offline.window(at)
            for how, who in ways.items():
                _note(found[how], _difference(served.window(who, item), expected, model))
        event = {"user_id": row[own.user], "item_id": row[own.item], "timestamp": row[own.time]}
        event |= {name: row[name] for name in columns if row[name] is not None}
        waiting.append(form.record(event, "event"))
    return {**found, "restarted": restarted}


def _history(served: Served, log: pd.DataFrame, at: int, context: dict[str, Any]) -> User:
    """The same request with all earlier events of its user, by somebody whom the server does not know."""
    processor, row = served.state.processor, log.iloc[at]
    own, reader = processor.columns, processor.request_reader
    rows = log[(log[own.user] == row[own.user]) & (log[own.time] < row[own.time])]
    names = [name for name in dict.fromkeys((own.item, own.time, *reader.event_columns)) if name in log]
    events = [{name: _plain(value) for name, value in event.items()} for event in rows[names].to_dict("records")]
    events = [{name: value for name, value in event.items() if value is not None} for event in events]
    user = None
    if reader.user:
        place = int(processor.users.rows(pa.array([_plain(row[own.user])]))[0]) - 2
        user = {name: processor.users.table[name][place].as_py() for name in reader.user} if place >= 0 else None
    return User(history=events, user=user, context=context, time=float(row[own.time]))


def _plain(value: Any) -> Any:
    """A value as JSON has it; None: unknown."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and np.isnan(value) else value


def _note(found: dict[str, Any], difference: tuple[float, float]) -> None:
    features, predictions = difference
    found["requests"] += 1
    found["features"] = max(found["features"], features)
    found["predictions"] = max(found["predictions"], predictions)
    found["rows_off"] += features > FEATURES or predictions > PREDICTIONS


def _difference(
    window: dict[str, Any], expected: dict[str, Any], model: PolyRecForRecommendation
) -> tuple[float, float]:
    """Largest differences of features and of predictions."""
    features = 0.0
    for key in ("event_features", "candidate_features", "user_features"):
        for name, values in expected[key].items():
            a, b = np.asarray(window[key][name], dtype=np.float64), np.asarray(values, dtype=np.float64)
            if a.shape != b.shape or (np.isnan(a) != np.isnan(b)).any():
                return float("inf"), float("inf")
            features = max(features, _largest(np.nan_to_num(a), np.nan_to_num(b)))
    predicted: list[dict[str, np.ndarray]] = []
    for one in (window, expected):
        batch = PolyRecCollator()([one])
        with torch.no_grad():
            logits = model(**{k: v for k, v in batch.items() if k not in ("labels", "candidate_rows")}).logits
        predicted.append({name: model.heads[name].predict(v).double().numpy() for name, v in logits.items()})
    return features, max(_largest(predicted[0][name], values) for name, values in predicted[1].items())


def _largest(a: np.ndarray, b: np.ndarray) -> float:
    return float((np.abs(a - b) / np.maximum(1, np.abs(b))).max(initial=0))
