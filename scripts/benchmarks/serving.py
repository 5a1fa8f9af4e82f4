"""What a server does in a second, how long it lets clients wait, and whether it serves what training showed the model.

    python scripts/benchmarks/serving.py RUN --log interactions.parquet [--only latency ingest ...]

Everything runs on this machine, server and client in processes of their own, through 127.0.0.1. `t` is the model's own
forward of one request: a state and 200 candidates, with the item table encoded. Prints JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pandas as pd
import torch
from served_skew import skew

from polyrec import PolyRecForRecommendation, PolyRecProcessor, Recommender
from polyrec.data.times import read_time
from polyrec.models.batches import as_batch
from polyrec.runs.whole_log import recommender_of_run
from polyrec.serving.loading import load_state, model_name, quiet
from polyrec.serving.records import Kind, Record
from polyrec.serving.store import SQLiteStore

SECONDS, PAIRS, CONNECTIONS = 10.0, 200, 32
_READY = 300.0  # seconds that a start may take


# ------------------------------------------------------------------ server and client
@contextmanager
def server(run: Path, folder: Path, *flags: str) -> Iterator[tuple[int, int, float]]:
    """`polyrec serve` in a process; its port, its id and the seconds until it was ready."""
    port = free_port()
    command = [sys.executable, "-m", "polyrec", "serve", str(run), "--port", str(port), "--state", str(folder), *flags]
    begin = time.monotonic()
    with open(folder / "server.log", "a") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        while asyncio.run(status(port, "GET", "/ready")) != 200:
            if process.poll() is not None or time.monotonic() - begin > _READY:
                raise RuntimeError((folder / "server.log").read_text())
            time.sleep(0.05)
        yield port, process.pid, time.monotonic() - begin
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as some:
        some.bind(("127.0.0.1", 0))
        return int(some.getsockname()[1])


class Connection:
    """HTTP/1.1 with next to no cost: the client must not be what is measured."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def open(self) -> Connection:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        return self

    async def call(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        self.writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        line = await self.reader.readline()
        length = 0
        while (header := await self.reader.readline()) not in (b"\r\n", b""):
            if header.lower().startswith(b"content-length:"):
                length = int(header.split(b":")[1])
        return int(line.split()[1]), await self.reader.readexactly(length)

    def close(self) -> None:
        self.writer.close()


async def status(port: int, method: str, path: str) -> int:
    """The status of one request, 0: nobody listens."""
    try:
        connection = await Connection(port).open()
        code, _ = await connection.call(method, path)
        connection.close()
    except OSError:
        return 0
    return code


async def closed_loop(
    port: int, connections: int, seconds: float, path: str, body: Callable[[], bytes]
) -> tuple[list[float], list[int]]:
    """Each connection sends its next request when it has its response; seconds of each, and statuses."""
    times: list[float] = []
    codes: list[int] = []
    end = time.monotonic() + seconds

    async def one() -> None:
        connection = await Connection(port).open()
        while time.monotonic() < end:
            sent = body()
            begin = time.perf_counter()
            code, _ = await connection.call("POST", path, sent)
            times.append(time.perf_counter() - begin)
            codes.append(code)
        connection.close()

    await asyncio.gather(*(one() for _ in range(connections)))
    return times, codes


async def open_loop(port: int, rate: float, seconds: float, path: str, body: Callable[[], bytes]) -> list[float]:
    """Requests at random times, whether earlier ones have their responses or not; seconds from when each was due."""
    times: list[float] = []
    free: asyncio.Queue[Connection] = asyncio.Queue()
    for _ in range(256):
        free.put_nowait(await Connection(port).open())
    bodies = iter([body() for _ in range(int(2 * rate * seconds) + 100)])

    async def one(due: float) -> None:
        connection = await free.get()
        code, _ = await connection.call("POST", path, next(bodies))
        assert code == 200, code
        times.append(time.monotonic() - due)
        free.put_nowait(connection)

    tasks, due, end = [], time.monotonic(), time.monotonic() + seconds
    while due < end:
        due += random.expovariate(rate)
        await asyncio.sleep(max(due - time.monotonic(), 0.0))
        tasks.append(asyncio.ensure_future(one(due)))
    await asyncio.gather(*tasks)
    return times


def cpu_seconds(process: int) -> float:
    """CPU time of a process and its threads so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def percentiles(times: list[float]) -> dict[str, float]:
    """Milliseconds."""
    return {f"p{q}_ms": round(1e3 * float(np.percentile(times, q)), 2) for q in (50, 99)}


# ------------------------------------------------------------------ rows of the table
def own_times(run: Path, users: list[Any]) -> dict[str, float]:
    """t in milliseconds; users a second of the batched forward, and of `recommend_many`."""
    recommender = Recommender.from_pretrained(run)
    model, processor, items = recommender.model.eval(), recommender.processor, recommender.items
    rows = np.arange(2, 2 + min(PAIRS, processor.num_items - 2))

    def median(call: Callable[[], Any], times: int) -> float:
        found = []
        for _ in range(times):
            begin = time.perf_counter()
            call()
            found.append(time.perf_counter() - begin)
        return float(np.median(found))

    with torch.no_grad():
        one = as_batch([processor.request(None, rows, user_id=users[0])], model)
        t = median(lambda: model(**one, items=items), 50)
        windows = [processor.request(None, rows[:10], user_id=user) for user in users[:64]]
        many = as_batch(windows, model)
        task = next(iter(model.history_tasks), None)

        def forward() -> None:
            states = model(**many, items=items).states[:, 0]
            if task is not None:
                context = model.request_context(**many).at((slice(None), 0))
                model.score_items(states, task, items, context=context).topk(10)

        batched = len(windows) / median(forward, 10)
    calls = [{"user_id": user} for user in users[:64]]
    recommended = len(calls) / median(lambda: recommender.recommend_many(calls, 10), 3)
    return {"t_ms": 1e3 * t, "batched_forward_per_s": batched, "recommend_many_per_s": recommended}


def latency(run: Path, users: list[Any]) -> dict[str, Any]:
    """Waiting times at half of what the server can do."""
    found: dict[str, Any] = own_times(run, users)

    def body() -> bytes:
        return json.dumps({"user_id": random.choice(users), "k": 10}).encode()

    with tempfile.TemporaryDirectory() as folder, server(run, Path(folder)) as (port, process, _):
        asyncio.run(closed_loop(port, 4, 2.0, "/recommend", body))
        began = cpu_seconds(process), time.process_time()
        times, codes = asyncio.run(closed_loop(port, CONNECTIONS, SECONDS, "/recommend", body))
        found["saturated"] = {
            "per_s": len(times) / SECONDS,
            "failed": sum(c != 200 for c in codes),
            "server_cpu_ms": 1e3 * (cpu_seconds(process) - began[0]) / len(times),
            "client_cpu_ms": 1e3 * (time.process_time() - began[1]) / len(times),
            **percentiles(times),
        }
        found["half"] = percentiles(asyncio.run(open_loop(port, len(times) / SECONDS / 2, SECONDS, "/recommend", body)))
        alone, _ = asyncio.run(closed_loop(port, 1, 3.0, "/recommend", body))
        found["alone"] = percentiles(alone)
    found["throughput_to_batched_forward"] = found["saturated"]["per_s"] / found["batched_forward_per_s"]
    return found


def events_body(columns: dict[str, Any], size: int, begin: float) -> Callable[[], bytes]:
    """Bodies of events, each a millisecond after the one before."""
    number = 0

    def body() -> bytes:
        nonlocal number
        events = []
        for _ in range(size):
            number += 1
            event = {name: random.choice(values) for name, values in columns.items()}
            events.append(event | {"event_id": f"{begin}-{number}", "timestamp": begin + number / 1000})
        return json.dumps({"events": events}).encode()

    return body


def columns_of(processor: PolyRecProcessor, log: pd.DataFrame) -> dict[str, list[Any]]:
    """Values of events: users, items and labels as the log has them."""
    own = processor.columns
    labels = [rule.column for task in processor.tasks if (rule := task.parsed_label) is not None]
    found = {"user_id": log[own.user].tolist(), "item_id": log[own.item].tolist()}
    return found | {name: log[name].dropna().astype(float).tolist() for name in labels if name in log}


def end_of(processor: PolyRecProcessor, log: pd.DataFrame) -> float:
    """The time of the latest event, seconds."""
    own = processor.columns
    return read_time(log[own.time].max(), own.time_unit)


def ingest(run: Path, log: pd.DataFrame) -> dict[str, Any]:
    """Durable events a second, and how long acknowledgements take."""
    processor = PolyRecProcessor.from_pretrained(run)
    columns, begin = columns_of(processor, log), end_of(processor, log) + 1
    found: dict[str, Any] = {}
    for size, connections in ((1, 32), (10, 16), (100, 8)):
        body = events_body(columns, size, begin)
        prepared = iter([body() for _ in range(int(40_000 / size))])
        with tempfile.TemporaryDirectory() as folder, server(run, Path(folder)) as (port, _, _):
            wall = time.monotonic()

            async def all_of_them(
                port: int = port, connections: int = connections, prepared: Any = prepared
            ) -> list[float]:
                times: list[float] = []

                async def one() -> None:
                    connection = await Connection(port).open()
                    for sent in prepared:
                        start = time.perf_counter()
                        code, _ = await connection.call("POST", "/events", sent)
                        assert code == 200, code
                        times.append(time.perf_counter() - start)

                await asyncio.gather(*(one() for _ in range(connections)))
                return times

            times = asyncio.run(all_of_them())
            rate = len(times) * size / (time.monotonic() - wall)
        begin += 1_000
        found[f"{size}_a_request"] = {"events_per_s": rate, **percentiles(times)}
    body = events_body(columns, 100, begin)
    with tempfile.TemporaryDirectory() as folder, server(run, Path(folder)) as (port, _, _):
        found["at_10000_per_s"] = percentiles(asyncio.run(open_loop(port, 100.0, SECONDS, "/events", body)))
    return found


def replay(run: Path, log: pd.DataFrame, events: int) -> dict[str, Any]:
    """Bulk into the store, and the time from a start until the server is ready with all of them counted."""
    processor = PolyRecProcessor.from_pretrained(run)
    columns, begin = columns_of(processor, log), end_of(processor, log) + 1
    rng = np.random.default_rng(0)
    drawn = {name: rng.choice(np.array(values), events).tolist() for name, values in columns.items()}
    records = []
    for n in range(events):
        body = {name: values[n] for name, values in drawn.items()} | {"timestamp": begin + n}
        records.append(Record(Kind.EVENT, json.dumps(body), f"e{n}", str(body["user_id"]), begin + n))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        store = SQLiteStore(folder)
        wall = time.monotonic()
        for at in range(0, events, 20_000):
            store.append(records[at : at + 20_000])
            mark = Record(Kind.MARK, json.dumps({"upto": store.last}), time=begin + at + 20_000)
            store.append([mark])
        found: dict[str, Any] = {"events": events, "bulk_per_s": events / (time.monotonic() - wall)}
        found["store_bytes_per_event"] = store.path.stat().st_size / events
        store.close()
        quiet()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        wall, cpu = time.monotonic(), time.process_time()
        store = SQLiteStore(folder)
        state = load_state(run, store, folder)
        found["replay_s"], found["replay_cpu_s"] = time.monotonic() - wall, time.process_time() - cpu
        found["replay_per_s"] = events / found["replay_s"]
        assert state.figures.counted == events
        found["peak_bytes_per_event"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / events
        store.close()
        del state
        with server(run, folder) as (_, _, first):
            found["ready_without_snapshot_s"] = first
        with server(run, folder) as (_, _, second):
            found["ready_with_snapshot_s"] = second
    return found


def swaps(run: Path, users: list[Any], number: int) -> dict[str, Any]:
    """Models exchanged under load: failed requests, responses that are of neither model, and waiting times.

    Two models take turns. After each exchange the server is left alone as long as it took, so that waiting times with
    and without one are of the same minutes: other work on this machine makes both longer.
    """
    quiet()
    sample = users[:100]
    with tempfile.TemporaryDirectory() as folder:
        other = _other_run(run, Path(folder) / "other")
        lists = {model_name(one): _lists(one, sample) for one in (run, other)}
        (Path(folder) / "state").mkdir()
        with server(run, Path(folder) / "state") as (port, _, _):
            return asyncio.run(_swapping(port, [other, run], number, lists))


def _other_run(run: Path, folder: Path) -> Path:
    """The same run with other weights."""
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("checkpoint-*", "data", "graphs"))
    model = PolyRecForRecommendation.from_pretrained(run)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * parameter.abs().mean() * torch.randn_like(parameter))
    model.save_pretrained(folder)
    (folder / "manifest.json").unlink(missing_ok=True)
    return folder


def _lists(run: Path, users: list[Any]) -> dict[Any, list[tuple[Any, float]]]:
    """Offline lists with their scores, of a run that knows its log to the end, as a server does."""
    found = recommender_of_run(run)[0].recommend_many([{"user_id": user} for user in users], 10)
    return {user: [(row["item"], row["score"]) for row in rows] for user, rows in zip(users, found, strict=True)}


def _is_list(found: list[dict[str, Any]], expected: list[tuple[Any, float]]) -> bool:
    """Whether a list is the expected one; items of equal scores may change places."""
    own = {row["item"]: row["score"] for row in found}
    scores = np.allclose([row["score"] for row in found], [score for _, score in expected], atol=1e-3)
    last = expected[-1][1]
    return scores and all(item in own or score - last < 1e-3 for item, score in expected)


async def _swapping(
    port: int, runs: list[Path], number: int, lists: dict[str, dict[Any, list[tuple[Any, float]]]]
) -> dict[str, Any]:
    sample = list(next(iter(lists.values())))
    times: dict[str, list[tuple[float, float]]] = {"with": [], "without": []}
    failed = mixed = 0
    phase, seconds, going = "without", [], True

    async def load() -> None:
        nonlocal failed, mixed
        connection = await Connection(port).open()
        while going:
            user, before, begin = random.choice(sample), phase, time.perf_counter()
            code, body = await connection.call("POST", "/recommend", json.dumps({"user_id": user, "k": 10}).encode())
            # A request that saw both counts as one beside a swap.
            times["with" if "with" in (before, phase) else "without"].append((begin, time.perf_counter() - begin))
            if code != 200:
                failed += 1
                continue
            found = json.loads(body)
            mixed += not _is_list(found["items"], lists[found["model"]][user])
        connection.close()

    loads = [asyncio.ensure_future(load()) for _ in range(4)]
    admin = await Connection(port).open()
    await asyncio.sleep(3.0)
    for turn in range(number):
        begin, phase = time.monotonic(), "with"
        body = json.dumps({"folder": str(runs[turn % 2])}).encode()
        code, _ = await admin.call("POST", "/admin/model", body)
        assert code == 202, code
        while (status := json.loads((await admin.call("GET", "/admin/model"))[1]))["loading"]:
            await asyncio.sleep(0.05)
        assert not status["error"], status
        phase = "without"
        seconds.append(time.monotonic() - begin)
        await asyncio.sleep(seconds[-1])
    going = False
    await asyncio.gather(*loads)
    found: dict[str, Any] = {name: percentiles([own for _, own in some]) for name, some in times.items()}
    return {
        "swaps": number,
        "swap_s": round(float(np.median(seconds)), 2),
        "requests": sum(map(len, times.values())),
        "failed": failed,
        "of_neither_model": mixed,
        **found,
        "p99_to_without": round(found["with"]["p99_ms"] / found["without"]["p99_ms"], 2),
    }


def aborted(run: Path) -> dict[str, Any]:
    """10,000 requests, of which 80% are given up, and 1,000 after them; see scripts/abort_requests.py."""
    sys.path.append(str(Path(__file__).resolve().parents[1]))
    from abort_requests import bodies_of, measured

    with tempfile.TemporaryDirectory() as folder, server(run, Path(folder)) as (port, pid, _):
        return measured(port, pid, bodies_of(run))


def main() -> None:
    parts = ("latency", "ingest", "replay", "skew", "swaps", "aborted")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--log", type=Path, required=True, help="the log that the run was trained on, to its end")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--events", type=int, default=1_000_000, help="of the replay (default: 1,000,000)")
    parser.add_argument("--requests", type=int, default=2_000, help="of the skew (default: 2,000)")
    parser.add_argument("--swaps", type=int, default=20, help="(default: 20)")
    options = parser.parse_args()
    log = pd.read_parquet(options.log)
    user = PolyRecProcessor.from_pretrained(options.run).columns.user
    users = pd.unique(log[user])[:2_000].tolist()
    run: dict[str, Callable[[], Any]] = {
        "latency": lambda: latency(options.run, users),
        "ingest": lambda: ingest(options.run, log),
        "replay": lambda: replay(options.run, log, options.events),
        "skew": lambda: skew(options.run, log, options.requests),
        "swaps": lambda: swaps(options.run, users, options.swaps),
        "aborted": lambda: aborted(options.run),
    }
    for name in options.only:
        print(json.dumps({name: run[name]()}, indent=2), flush=True)


if __name__ == "__main__":
    main()
