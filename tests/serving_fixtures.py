"""A small model with its state, with and without HTTP, for the tests of serving."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import uvicorn
from model_fixtures import fit, synthetic_log, tiny_model

from polyrec import PolyRecProcessor
from polyrec.serving.app import AppOptions, build_app, build_unguarded
from polyrec.serving.connections import uvicorn_config
from polyrec.serving.front import Front
from polyrec.serving.fronts import engine_link
from polyrec.serving.loading import quiet
from polyrec.serving.records import Kind, Record
from polyrec.serving.service import Service, ServiceOptions
from polyrec.serving.store import SQLiteStore

KNOWN = 0.6  # share of the log's times that a saved run has counted


def log_of(seed: int = 0, **options: Any) -> pd.DataFrame:
    """Events of which no two share a time, in order; so they may be counted together or one by one."""
    log = pd.DataFrame(synthetic_log(seed=seed, **options)["interactions"])
    log = log.sort_values("timestamp", kind="stable", ignore_index=True)
    return log.assign(timestamp=1e6 + 10.0 * np.arange(len(log)))


def saved_run(folder: Path) -> tuple[Path, pd.DataFrame]:
    """A run that knows the first events of a log, and the events after them."""
    tables = synthetic_log()
    log = log_of()
    cut = int(len(log) * KNOWN)
    processor, _ = fit({**tables, "interactions": log[:cut]})
    processor.resume(log[:cut])
    model = tiny_model(processor)
    run = folder / "run"
    model.save_pretrained(run)
    processor.save_pretrained(run, include_users=True)
    return run, log[cut:].reset_index(drop=True)


def event_of(row: Any, event_id: str | None = None) -> dict[str, Any]:
    """A row of the log as a client sends it."""
    found = {"user_id": int(row.user_id), "item_id": int(row.item_id), "timestamp": float(row.timestamp)}
    found["surface"] = row.surface
    if not np.isnan(row.rating):
        found["rating"] = float(row.rating)
    return found if event_id is None else found | {"event_id": event_id}


def records_of(processor_format: Any, rows: pd.DataFrame) -> list[Record]:
    """Rows of the log as records that are not stored yet."""
    return [processor_format.record(event_of(row, f"e{row.Index}"), "event") for row in rows.itertuples()]


def mark(upto: int, time: float) -> Record:
    """A mark that counts events up to a number and a time."""
    return Record(Kind.MARK, json.dumps({"upto": upto}), time=time)


def assert_same_state(one: PolyRecProcessor, other: PolyRecProcessor, tolerance: float = 1e-9) -> None:
    """Statistics, recent popularity, first events and stored events are the same."""
    assert one.statistics is not None
    assert other.statistics is not None
    states = one.statistics.log._states, other.statistics.log._states
    assert states[0].keys() == states[1].keys()
    for name, own in states[0].items():
        for part in ("keys", "sums", "counts", "rows", "last"):
            found = getattr(states[1][name], part)
            np.testing.assert_allclose(getattr(own, part), found, rtol=tolerance, atol=tolerance, err_msg=name)
    assert one.log_state.counted == other.log_state.counted
    np.testing.assert_array_equal(one.first_event, other.first_event)
    for task, recent in one.trends.recent.items():
        np.testing.assert_allclose(recent.counts, other.trends.recent[task].counts, rtol=tolerance, atol=tolerance)
    assert one.stored_events is not None
    assert other.stored_events is not None
    logs = one.stored_events.log(), other.stored_events.log()
    for name in ("user", "item", "time", "labels"):
        np.testing.assert_array_equal(getattr(logs[0], name), getattr(logs[1], name), err_msg=name)
    for log, known in ((logs[0], logs[1]), (logs[1], logs[0])):
        late = np.zeros(len(log), dtype=bool) if log.uncounted is None else log.uncounted
        assert late.sum() == (0 if known.uncounted is None else known.uncounted.sum())


@contextmanager
def served(run: Path, folder: Path, options: ServiceOptions | None = None) -> Iterator[Service]:
    """A service without HTTP."""
    quiet()
    service = Service(run, SQLiteStore(folder), folder, options or ServiceOptions(watermark=0.05))
    service.start()
    try:
        yield service
    finally:
        service.stop()


@contextmanager
def live(
    run: Path, folder: Path, options: AppOptions | None = None, front: bool = False, **service: Any
) -> Iterator[httpx.Client]:
    """A server on a free port of this machine, and a client of it, whose `base_url` says where.

    Args:
        front: HTTP and the model talk as two processes do, here within one.
    """
    quiet()
    own = Service(run, SQLiteStore(folder), folder, ServiceOptions(**{"watermark": 0.05, **service}))
    options = AppOptions() if options is None else options
    ends = socket.socketpair()
    app = Front(ends[1], options).app if front else build_app(own, options)
    server = uvicorn.Server(uvicorn_config(app, "127.0.0.1", 0))

    async def engine() -> None:
        behind, gone = build_unguarded(own, options), asyncio.Event()
        await asyncio.get_running_loop().create_connection(lambda: engine_link(behind, gone.set), sock=ends[0])
        async with behind.router.lifespan_context(behind):
            await server.serve()
            await gone.wait()

    thread = threading.Thread(target=lambda: asyncio.run(engine() if front else server.serve()), daemon=True)
    thread.start()
    try:
        while not (own.ready and server.started):
            assert thread.is_alive()
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30.0) as client:
            client.service = own  # type: ignore[attr-defined]
            yield client
    finally:
        server.should_exit = True
        thread.join()
        for end in ends:
            end.close()
