"""Kill a server at random moments while it stores events, and compare what it knows with one that was never killed.

    python scripts/kill_server.py RUN [--kills 200] [--state FOLDER]
    python scripts/kill_server.py RUN --load locust --minutes 10     # killed every minute, under mixed traffic

A forked process serves the run; another one kills it with SIGKILL after a random time, while it starts, reads its
records again, stores, counts or writes a snapshot. The client sends what was not acknowledged again, with the same
`event_id`s, to the next server. At the end

* every event must be stored (else it is `lost`), once (else `doubled`), in the order in which they were sent
  (else `misordered`);
* the state must be that of one `update` with all events, and that of all records without a snapshot, to 1e-9.

With `--load` locust (the program, from an environment of its own) sends what `scripts/benchmarks/locustfile.py` says.
Then each event that was acknowledged must be stored, each stored one once, the state must be that of all records, and
clients may get 200, 503 or no connection, nothing else.

Prints the counts and exits with 1 if any is not 0.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import httpx
import numpy as np

from polyrec import PolyRecForRecommendation, PolyRecProcessor
from polyrec.serving.app import AppOptions
from polyrec.serving.engine import Engine
from polyrec.serving.events import EventFormat
from polyrec.serving.loading import load_state, quiet
from polyrec.serving.pending import PendingEvents
from polyrec.serving.records import Kind
from polyrec.serving.run import serve_app
from polyrec.serving.service import Service, ServiceOptions
from polyrec.serving.state import ServedState
from polyrec.serving.store import SQLiteStore

TOLERANCE = 1e-9


@dataclass
class Outcome:
    """What has become of events."""

    kills: int = 0
    sent: int = 0
    lost: int = 0
    doubled: int = 0
    misordered: int = 0
    snapshots: int = 0
    slowest_start: float = 0.0
    from_update: float = 0.0
    from_records: float = 0.0

    @property
    def failed(self) -> bool:
        """Whether anything is wrong."""
        wrong = self.lost or self.doubled or self.misordered
        return bool(wrong) or max(self.from_update, self.from_records) > TOLERANCE


def events_of(processor: PolyRecProcessor, seed: int) -> Iterator[dict[str, Any]]:
    """Events of random users and items, each a second after the one before."""
    rng = np.random.default_rng(seed)
    columns = [c for t in processor.tasks if (rule := t.parsed_label) is not None for c in [rule.column]]
    begin = processor.log_state.counted
    for number in range(1, 10**9):
        item = processor.items.ids[int(rng.integers(len(processor.items.ids)))].as_py()
        event = {
            "event_id": f"e{number}",
            "user_id": int(rng.integers(50)),
            "item_id": item,
            "timestamp": begin + number,
        }
        yield event | {column: float(rng.integers(1, 6)) for column in columns}


def start(run: Path, folder: Path, port: int, snapshot_events: int, processes: int = 1) -> int:
    """Serve in a forked process, which forks others for HTTP."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    try:
        options = ServiceOptions(watermark=0.05, snapshot_events=snapshot_events)
        serve_app(lambda: Service(run, SQLiteStore(folder), folder, options), AppOptions(), port, processes)
        os._exit(0)
    except BaseException as error:
        print(f"the server failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(1)


def kill_later(pid: int, seconds: float) -> int:
    """A process that waits, and kills another one."""
    child = os.fork()
    if child:
        return child
    time.sleep(seconds)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    os._exit(0)


def largest_difference(one: PolyRecProcessor, other: PolyRecProcessor) -> float:
    """The largest relative difference of two states, infinite if they are of other events."""
    found = [0.0]
    states = one.statistics.log._states, other.statistics.log._states
    logs = one.stored_events.log(), other.stored_events.log()
    for name in ("user", "item", "time", "labels"):
        if not np.array_equal(getattr(logs[0], name), getattr(logs[1], name), equal_nan=True):
            return np.inf
    for name, own in states[0].items():
        for part in ("keys", "sums", "counts", "rows", "last"):
            a, b = getattr(own, part), getattr(states[1][name], part)
            if a.shape != b.shape:
                return np.inf
            found.append(float((np.abs(a - b) / np.maximum(1.0, np.abs(b))).max(initial=0.0)))
    for task, recent in one.trends.recent.items():
        found.append(float(np.abs(recent.counts - other.trends.recent[task].counts).max(initial=0.0)))
    return max(found)


def free_port() -> int:
    """A port that nobody listens on."""
    import socket

    with socket.socket() as some:
        some.bind(("127.0.0.1", 0))
        return int(some.getsockname()[1])


class Client:
    """Sends events in order until they are acknowledged."""

    def __init__(self, events: Iterator[dict[str, Any]], port: int, seed: int) -> None:
        self.events, self.random = events, random.Random(seed)
        self.url = f"http://127.0.0.1:{port}"
        self.waiting: list[dict[str, Any]] = []
        self.sent = 0

    def run(self, alive: Any) -> float:
        """Send while the server lives; seconds until it was ready, 0 if it never was."""
        begin, ready = time.monotonic(), 0.0
        with httpx.Client(base_url=self.url, timeout=10.0) as http:
            while alive():
                try:
                    if not ready:
                        if http.get("/ready").status_code != 200:
                            time.sleep(0.02)
                            continue
                        ready = time.monotonic() - begin
                    if not self.waiting:
                        self.waiting = [next(self.events) for _ in range(self.random.randint(1, 30))]
                    response = http.post("/events", json={"events": self.waiting})
                    if response.status_code == 200:
                        self.sent += len(self.waiting)
                        self.waiting = []
                except httpx.HTTPError:
                    time.sleep(0.02)
        return ready


def kill_server(
    run: Path, folder: Path, kills: int, seed: int = 0, longest: float = 5.0, processes: int = 1
) -> Outcome:
    """Kill a server so many times, and look at what is left."""
    quiet()
    processor = PolyRecProcessor.from_pretrained(run)
    store = SQLiteStore(folder)
    Engine(load_state(run, store, folder), PendingEvents(), "").warm()  # what a fork needs is imported now
    store.close()
    port, found, chance = free_port(), Outcome(), random.Random(seed)
    client = Client(events_of(processor, seed), port, seed)
    while found.kills < kills:
        server = start(run, folder, port, snapshot_events=200, processes=processes)
        killer = kill_later(server, chance.uniform(0.0, longest))
        status: list[int] = []

        def alive(server: int = server, status: list[int] = status) -> bool:
            if not status and (done := os.waitpid(server, os.WNOHANG))[0]:
                status.append(done[1])
            return not status

        found.slowest_start = max(found.slowest_start, client.run(alive))
        os.waitpid(killer, 0)
        if not os.WIFSIGNALED(status[0]):
            raise RuntimeError("the server ended by itself")
        found.kills += 1
    # What was not acknowledged is sent once more, and the last server ends as it should.
    server = start(run, folder, port, snapshot_events=200, processes=processes)
    client.waiting = client.waiting or [next(client.events)]
    goal = client.sent + len(client.waiting)
    client.run(lambda: client.sent < goal)
    os.kill(server, signal.SIGTERM)
    os.waitpid(server, 0)
    return look(run, folder, client.sent, found)


@dataclass
class Load:
    """What clients of a loaded server got."""

    kills: int = 0
    requests: int = 0
    statuses: dict[int, int] = field(default_factory=dict)  # 0: no connection; -1: no response in time
    acknowledged: int = 0
    stored: int = 0
    lost: int = 0
    doubled: int = 0
    from_records: float = 0.0

    @property
    def failed(self) -> bool:
        """Whether anything is wrong."""
        return bool(self.lost or self.doubled or {*self.statuses} - {0, 200, 503}) or self.from_records > TOLERANCE


def load_server(run: Path, folder: Path, locust: str, minutes: float, every: float = 60.0, processes: int = 1) -> Load:
    """Kill a server that locust calls, again and again, and look at what is left."""
    quiet()
    processor = PolyRecProcessor.from_pretrained(run)
    store = SQLiteStore(folder)
    Engine(load_state(run, store, folder), PendingEvents(), "").warm()  # what a fork needs is imported now
    store.close()
    columns = [rule.column for t in processor.tasks if (rule := t.parsed_label) is not None]
    port, log, found = free_port(), folder / "load.jsonl", Load()
    file = Path(__file__).parent / "benchmarks" / "locustfile.py"
    command = [locust, "-f", str(file), "--headless", "--only-summary", "-u", "16", "-r", "16"]
    command += ["-t", f"{60 * minutes:g}s", "--host", f"http://127.0.0.1:{port}"]
    given = {"LOAD_LOG": str(log), "LOAD_COLUMNS": ",".join(dict.fromkeys(columns)), "PYTHONPATH": ""}
    server = start(run, folder, port, snapshot_events=2_000, processes=processes)
    with open(folder / "locust.log", "w") as output:
        client = subprocess.Popen(command, env={**os.environ, **given}, stdout=output, stderr=output)
        due = time.monotonic() + every
        while client.poll() is None:
            time.sleep(0.1)
            if time.monotonic() >= due:
                os.kill(server, signal.SIGKILL)
                os.waitpid(server, 0)
                found.kills += 1
                server, due = start(run, folder, port, snapshot_events=2_000, processes=processes), due + every
    os.kill(server, signal.SIGTERM)
    os.waitpid(server, 0)
    return look_at_load(run, folder, log, found)


def look_at_load(run: Path, folder: Path, log: Path, found: Load) -> Load:
    """Compare the store with what clients were told."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    found.requests, found.statuses = len(lines), dict(sorted(Counter(line["status"] for line in lines).items()))
    acknowledged = [one for line in lines for one in line["ids"]]
    store = SQLiteStore(folder)
    stored = [record.event_id for record in store.read(kinds=[Kind.EVENT])]
    found.acknowledged, found.stored = len(acknowledged), len(stored)
    found.lost, found.doubled = len({*acknowledged} - {*stored}), len(stored) - len({*stored})
    state = load_state(run, store, folder).processor
    twin = ServedState(PolyRecForRecommendation.from_pretrained(run), PolyRecProcessor.from_pretrained(run))
    twin.replay(store.read())
    found.from_records = largest_difference(state, twin.processor)
    return found


def look(run: Path, folder: Path, sent: int, found: Outcome) -> Outcome:
    """Compare store and state with what was sent."""
    found.sent = sent
    store = SQLiteStore(folder)
    ids = [int(str(record.event_id)[1:]) for record in store.read(kinds=[Kind.EVENT])]
    found.doubled = len(ids) - len({*ids})
    found.lost = len({*range(1, sent + 1)} - {*ids})
    found.misordered = sum(a > b for a, b in pairwise(ids))
    found.snapshots = sum(1 for path in (folder / "snapshots").rglob("state.json"))
    state = load_state(run, store, folder).processor
    form = EventFormat(PolyRecProcessor.from_pretrained(run))
    expected, plain = form.processor, PolyRecProcessor.from_pretrained(run)
    expected.log_state.advance(form.encode([form.read(record) for record in store.read(kinds=[Kind.EVENT])], {}))
    twin = ServedState(PolyRecForRecommendation.from_pretrained(run), plain)
    twin.replay(store.read())
    found.from_update = largest_difference(state, expected)
    found.from_records = largest_difference(state, plain)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=5.0, help="seconds that a server lives at most (default: 5)")
    parser.add_argument("--load", metavar="LOCUST", help="the program locust: kill the server while it sends traffic")
    parser.add_argument("--minutes", type=float, default=10.0, help="of --load (default: 10)")
    parser.add_argument("--every", type=float, default=60.0, help="seconds between kills under --load (default: 60)")
    parser.add_argument("--http-processes", type=int, default=1, help="of the server (default: 1)")
    parser.add_argument("--state", type=Path, help="folder to work in (default: a temporary one)")
    options = parser.parse_args()
    folder = options.state or Path(tempfile.mkdtemp())
    found: Outcome | Load
    if options.load is None:
        found = kill_server(options.run, folder, options.kills, options.seed, options.longest, options.http_processes)
    else:
        found = load_server(options.run, folder, options.load, options.minutes, options.every, options.http_processes)
    print(json.dumps(vars(found), indent=2))
    return int(found.failed)


if __name__ == "__main__":
    sys.exit(main())
