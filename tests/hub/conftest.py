"""A Hub of the tests' own, and clients in processes of their own whose environment says where it is."""

import os
from pathlib import Path

import pytest
from forks import Forks
from hub_server import HubServer


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
        "SSL_CERT_DIR": str(folder),  # none: reading certificates takes long, and this server has none
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture(scope="session")
def running_hub(tmp_path_factory):
    """The server, and the process whose forks are its clients."""
    with HubServer() as server, Forks(environment(server, tmp_path_factory.mktemp("clients"))) as clients:
        yield server, clients


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
        clients.start(
            code,
            tmp_path,
            log,
            env={"HF_TOKEN": token},
            cache=str(tmp_path / home),
            offline=offline,
            longest_sleep=0.05,  # a server of one's own needs no rest before the next try
        )
        return int(clients.answers.readline()), log.read_text()

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
