"""Two processes on CPU (gloo)."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
from pathlib import Path

from forks import Forks

HERE = Path(__file__).parent
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")]),
}
SECONDS = 500


def on_two_processes(ranks: list[Forks], module: str, folder: Path) -> list[dict]:
    """Run `main` of a module of this folder in the environment that torchrun makes; returns the findings that each
    rank wrote to `folder`."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    homes = [folder / f"rank{rank}" for rank in range(len(ranks))]
    for rank, (process, home) in enumerate(zip(ranks, homes, strict=True)):
        home.mkdir()
        size = {"WORLD_SIZE": str(len(ranks)), "LOCAL_WORLD_SIZE": str(len(ranks))}
        env = {**size, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        code = f"from pathlib import Path\nimport {module}\n{module}.main(Path({str(folder)!r}))"
        process.start(code, home, home / "log", env=env)
    waiting, failed = dict(enumerate(ranks)), []
    while waiting:
        done, _, _ = select.select([process.answers for process in waiting.values()], [], [], SECONDS)
        finished = [rank for rank, process in waiting.items() if process.answers in done]
        for rank in finished:
            failed += [rank] if int(waiting.pop(rank).answers.readline()) else []
        if waiting and (failed or not finished):  # the others would wait for it for ever
            failed += list(waiting)
            for rank in waiting:
                os.kill(int((homes[rank] / "pid").read_text()), signal.SIGKILL)
    assert not failed, (homes[failed[0]] / "log").read_text()[-4000:]
    return [json.loads((folder / f"findings{rank}.json").read_text()) for rank in range(len(ranks))]


def run(command: list[str]) -> str:
    """Run a command to its good end; returns what it printed."""
    done = subprocess.run(
        command, env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout
