"""The loop of serving and training on the demo's data: `python scripts/serve_and_retrain.py`.

Of 100,004 MovieLens ratings the latest are kept back. A model is trained on the others and served; those that were
kept back arrive over HTTP, while other clients ask for recommendations; `polyrec retrain` trains on them, compares, and
the server exchanges the model. A small table shows what it brought, and what became of the requests meanwhile.
"""

from __future__ import annotations

import argparse
import collections
import json
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import demo
import pandas as pd

from polyrec.cli.main import main as polyrec

FOLDER = Path("runs/loop")
_AT_ONCE = 500  # events of a request


def call(url: str, body: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
    """Status and content of a response."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, {}


def train(kept_back: int, epochs: float) -> pd.DataFrame:
    """Train on the earlier ratings; the later ones."""
    demo.tables(FOLDER / "data")
    log = pd.read_parquet(FOLDER / "data" / "interactions.parquet").sort_values("timestamp", ignore_index=True)
    cut = log["timestamp"].iloc[-kept_back]  # those of one time stay together
    log[log["timestamp"] < cut].to_parquet(FOLDER / "data" / "earlier.parquet")
    tables = {"interactions": "earlier.parquet", "items": "items.parquet"}
    arguments = ["train", "scripts/demo.yaml", "--output", str(FOLDER / "run")]
    arguments += [text for flag, name in tables.items() for text in (f"--{flag}", str(FOLDER / "data" / name))]
    arguments += ["--set", f"training.num_train_epochs={epochs}"]
    if code := polyrec(arguments):
        raise SystemExit(code)
    return log[log["timestamp"] >= cut]


class Clients:
    """One thread that asks for recommendations of one user after the other, until it is told to stop."""

    def __init__(self, url: str, users: list[int]) -> None:
        self.url, self.users = url, users
        self.found: collections.Counter[tuple[int, str]] = collections.Counter()
        self.worst, self._going = 0.0, True
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        number = 0
        while self._going:
            number += 1
            begin = time.monotonic()
            status, body = call(f"{self.url}/recommend", {"user_id": self.users[number % len(self.users)], "k": 10})
            self.worst = max(self.worst, time.monotonic() - begin)
            self.found[status, body.get("model", "")] += 1

    def stop(self) -> None:
        """Ask no more."""
        self._going = False
        self._thread.join()


def loop(later: pd.DataFrame, port: int) -> None:
    """Serve, send the later ratings, retrain, and say what happened."""
    run, state, url = FOLDER / "run", FOLDER / "state", f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "polyrec", "serve", str(run), "--port", str(port), "--state", str(state)]
    with open(FOLDER / "server.log", "w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait(url, server)
        clients = Clients(url, later["userId"].unique().tolist())
        for first in range(0, len(later), _AT_ONCE):
            rows = later[first : first + _AT_ONCE].itertuples()
            events = [
                {"event_id": f"{row.userId}-{row.movieId}", "user_id": row.userId, "item_id": row.movieId}
                | {"rating": row.rating, "timestamp": row.timestamp}
                for row in rows
            ]
            status, body = call(f"{url}/events", {"events": events})
            assert status == 200, body
        print(f"{len(later):,} ratings were sent to the server")
        code = polyrec(["retrain", str(run), "--state", str(state), "--server", url])
        time.sleep(2)
        clients.stop()
        if code not in (0, 3):
            raise SystemExit(code)
        print("\nrequests meanwhile:", f"the slowest took {clients.worst:.2f} s")
        for (status, model), count in clients.found.items():
            print(f"  {count:6,} with status {status} from {model}")
    finally:
        server.terminate()
        server.wait()


def wait(url: str, server: subprocess.Popen[bytes]) -> None:
    """Until the server is ready."""
    while True:
        if server.poll() is not None:
            raise SystemExit(f"the server has ended, see {FOLDER / 'server.log'}")
        try:
            if call(f"{url}/ready")[0] == 200:
                return
        except OSError:
            pass
        time.sleep(0.2)


def main() -> None:
    """The whole loop."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=float, default=4, help="of the first training (default: 4)")
    parser.add_argument("--kept-back", type=int, default=5_000, help="ratings that arrive later (default: 5,000)")
    parser.add_argument("--port", type=int, default=8017, help="of the server (default: 8017)")
    options = parser.parse_args()
    loop(train(options.kept_back, options.epochs), options.port)


if __name__ == "__main__":
    main()
