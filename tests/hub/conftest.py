"""A Hub of the tests' own, and clients in processes of their own whose environment says where it is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import HubServer

HERE = Path(__file__).parent


def environment(hub, folder: Path) -> dict[str, str]:
    """Of a client in a clean process."""
    kept = {
        name: os.environ[name] for name in ("PATH", "HOME", "LANG", "PYTHONPATH", "POLYREC_CACHE") if name in os.environ
    }
    return kept | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(folder / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture(scope="session")
def running_hub(tmp_path_factory):
    """The server, and the process whose forks are its clients."""
    with HubServer() as server:
        own = environment(server, tmp_path_factory.mktemp("clients"))
        with subprocess.Popen(
            [sys.executable, str(HERE / "forks.py")],
            env=own,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as clients:
            assert clients.stdin is not None
            assert clients.stdout is not None
            assert clients.stdout.readline() == "ready\n"
            yield server, clients
            clients.stdin.close()


@pytest.fixture
def hub(running_hub):
    """An empty Hub."""
    running_hub[0].reset()
    return running_hub[0]


@pytest.fixture
def client(running_hub, tmp_path):
    """Run Python code as somebody's client of the Hub, in `tmp_path`; returns (exit status, what it printed).

    Its options are the token, the folder of its cache, and whether HF_HUB_OFFLINE is set.
    """
    clients = running_hub[1]

    def run(code: str, token: str = "token-of-ann", home: str = "home", offline: bool = False) -> tuple[int, str]:
        log = tmp_path / "log"
        asked = {"code": code, "cwd": str(tmp_path), "log": str(log), "cache": str(tmp_path / home), "offline": offline}
        clients.stdin.write(json.dumps({**asked, "env": {"HF_TOKEN": token}}) + "\n")
        clients.stdin.flush()
        return int(clients.stdout.readline()), log.read_text()

    return run


@pytest.fixture
def succeed(client):
    """Like `client`, where nothing may go wrong; returns what it printed."""

    def run(code: str, **options) -> str:
        status, printed = client(code, **options)
        assert status == 0, printed
        return printed

    return run


@pytest.fixture
def fail(client):
    """Like `client`, where something must go wrong; returns what it printed."""

    def run(code: str, **options) -> str:
        status, printed = client(code, **options)
        assert status == 1, printed
        return printed

    return run
