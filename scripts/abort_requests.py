"""Clients that go away before they have their responses, and the requests of others after them.

    python scripts/abort_requests.py RUN [--requests 10000] [--share 0.8] [--after 1000]

The server runs in a process of its own. Clients that go away do so while they send their request, right after it, or
some milliseconds later, with an orderly end or a reset. Then all of the requests `after` must succeed, nothing may wait
any more, and memory must be what it was. Prints JSON, and exits with 1 if a request failed or something waits.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import socket
import struct
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

_RESET = struct.pack("ii", 1, 0)  # of SO_LINGER: the connection is reset, not closed
_LONGEST = 0.05  # seconds that a client waits before it goes


async def post(port: int, path: str, body: bytes) -> int:
    """The status of a request on a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(_head(path, body) + body)
    code = int((await reader.readline()).split()[1])
    await reader.read()
    writer.close()
    return code


async def abort(port: int, path: str, body: bytes, chance: random.Random) -> None:
    """A request whose client goes away."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    whole = _head(path, body) + body
    writer.write(whole[: chance.randint(1, len(whole))] if chance.random() < 0.25 else whole)
    await writer.drain()
    if chance.random() < 0.5:
        await asyncio.sleep(chance.uniform(0, _LONGEST))
    if chance.random() < 0.5:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.close()


def _head(path: str, body: bytes) -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    ).encode()


async def abort_requests(
    port: int, path: str, bodies: list[bytes], requests: int, share: float = 0.8, clients: int = 32, seed: int = 0
) -> Counter[str]:
    """Requests of several clients, a share of whom go away; how many went, and the statuses of the others."""
    chance, found = random.Random(seed), Counter[str]()
    left = iter(range(requests))

    async def client() -> None:
        for _ in left:
            body = chance.choice(bodies)
            if chance.random() < share:
                await abort(port, path, body, chance)
                found["aborted"] += 1
            else:
                found[str(await post(port, path, body))] += 1

    await asyncio.gather(*(client() for _ in range(clients)))
    return found


def memory(pid: int) -> int:
    """Resident bytes of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measured(
    port: int, pid: int, bodies: list[bytes], requests: int = 10_000, share: float = 0.8, after: int = 1_000
) -> dict[str, Any]:
    """Aborted requests between two times of ordinary ones."""

    def ordinary(number: int) -> Counter[str]:
        return asyncio.run(abort_requests(port, "/recommend", bodies, number, share=0.0, clients=8))

    def waits() -> float:
        import httpx

        text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
        [line] = [line for line in text.splitlines() if line.startswith("polyrec_waiting_requests ")]
        return float(line.split()[1])

    ordinary(after)
    before = memory(pid)
    begin = time.monotonic()
    some = asyncio.run(abort_requests(port, "/recommend", bodies, requests, share))
    seconds = time.monotonic() - begin
    others = ordinary(after)
    return {
        "requests": dict(some),
        "seconds": round(seconds, 1),
        "after": dict(others),
        "waiting": waits(),
        "memory_before_mb": before >> 20,
        "memory_after_mb": memory(pid) >> 20,
    }


def bodies_of(run: Path, users: int = 500) -> list[bytes]:
    """Requests of users who have seen some items."""
    from polyrec import PolyRecProcessor

    items, chance = PolyRecProcessor.from_pretrained(run).items.ids.to_pylist(), random.Random(0)
    histories = [chance.choices(items, k=chance.randint(0, 30)) for _ in range(users)]
    return [json.dumps({"history": history, "k": 10}).encode() for history in histories]


def main() -> int:
    from benchmarks.serving import server

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--share", type=float, default=0.8, help="of clients that go away (default: 0.8)")
    parser.add_argument("--after", type=int, default=1_000, help="requests before and after (default: 1,000)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, server(options.run, Path(folder)) as (port, pid, _):
        found = measured(port, pid, bodies_of(options.run), options.requests, options.share, options.after)
    print(json.dumps(found, indent=2))
    return int(found["after"] != {"200": options.after} or found["waiting"] > 0)


if __name__ == "__main__":
    sys.exit(main())
