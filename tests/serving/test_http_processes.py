"""HTTP in processes of its own: they serve one model, and end together, whatever ends them."""

import os
import signal
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import kill_server
import pytest
from kill_server import free_port, start
from prometheus_client.parser import text_string_to_metric_families
from serving_fixtures import event_of, saved_run

from polyrec.core.settings import SettingError
from polyrec.serving import connections
from polyrec.serving.records import Kind
from polyrec.serving.run import ServeOptions
from polyrec.serving.service import Service
from polyrec.serving.store import SQLiteStore

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs fork and /proc")
_LONGEST = 60.0  # seconds of a wait


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return saved_run(tmp_path_factory.mktemp("run"))


def wait_for(condition):
    end = time.monotonic() + _LONGEST
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def ended(pid):
    """Whether a process has gone; one that waits for its parent to look has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@contextmanager
def forked(run, folder, port, processes=1):
    """A server; a client of it, the process of the model, and those of HTTP."""
    engine = start(run, folder, port, snapshot_events=1_000, processes=processes)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30.0) as client:

        def ready():
            try:
                return client.get("/ready").status_code == 200
            except httpx.TransportError:
                return False

        try:
            wait_for(ready)
            yield client, engine, children(engine)
        finally:
            if not ended(engine):
                os.kill(engine, signal.SIGKILL)


def test_several_processes_are_one_server(run, tmp_path):
    """Prevents processes from knowing different events, from counting requests apart, and from keeping a signal for
    themselves."""
    folder, later = run
    rows = [event_of(row, f"e{row.Index}") for row in later[:20].itertuples()]
    with forked(folder, tmp_path, free_port(), processes=2) as (client, engine, fronts):
        assert len(fronts) == 2

        def call(number):
            with httpx.Client(base_url=client.base_url, timeout=30.0) as own:  # whichever process takes it
                seq = own.post("/events", json={"events": [rows[number]]}).json()["seq"]
                asked = {"user_id": rows[number]["user_id"], "k": 3, "after": seq}
                return own.post("/recommend", json=asked).status_code

        with ThreadPoolExecutor(4) as pool:
            assert set(pool.map(call, range(20))) == {200}
        counted = {}

        def count():
            for family in text_string_to_metric_families(client.get("/metrics").text):
                if family.name == "polyrec_requests":
                    counted.update({s.labels["route"]: s.value for s in family.samples if s.labels["status"] == "200"})
            return counted.get("/recommend") == 20  # from a process that nobody calls they come a little later

        wait_for(count)
        assert counted["/events"] == 20
        before = client.get("/admin/model").json()
        for front in fronts:
            os.kill(front, signal.SIGHUP)
        os.kill(engine, signal.SIGHUP)
        wait_for(lambda: not client.get("/admin/model").json()["loading"])
        assert client.get("/admin/model").json() == before
        os.kill(engine, signal.SIGTERM)
        assert os.waitpid(engine, 0)[1] == 0
        assert all(ended(front) for front in fronts)
    store = SQLiteStore(tmp_path)
    assert len(list(store.read(kinds=[Kind.EVENT]))) == 20
    store.close()


def test_the_model_ends_with_its_http(run, tmp_path):
    """Prevents a server that nobody can reach from holding the state, and what it has stored from being lost."""
    folder, later = run
    event = event_of(next(later.itertuples()), "a")
    with forked(folder, tmp_path, free_port(), processes=2) as (client, engine, fronts):
        client.post("/events", json={"events": [event]}).raise_for_status()
        os.kill(fronts[0], signal.SIGKILL)
        status = os.waitpid(engine, 0)[1]
        assert os.WIFEXITED(status)
        assert os.WEXITSTATUS(status) == 1
        assert all(ended(front) for front in fronts)
    store = SQLiteStore(tmp_path)
    assert [record.event_id for record in store.read(kinds=[Kind.EVENT])] == ["a"]
    store.close()


def test_http_ends_with_the_model(run, tmp_path):
    """Prevents orphans that take connections for a model that is dead, and keep the address from the next server."""
    port = free_port()
    with forked(run[0], tmp_path, port, processes=2) as (_, engine, fronts):
        os.kill(engine, signal.SIGKILL)
        os.waitpid(engine, 0)
        with forked(run[0], tmp_path, port) as (client, second, _):
            wait_for(lambda: all(ended(front) for front in fronts))
            assert client.post("/recommend", json={"history": [3], "k": 2}).status_code == 200
            os.kill(second, signal.SIGTERM)
            os.waitpid(second, 0)


def test_a_server_that_cannot_start_leaves_nothing(run, tmp_path, capfd):
    """Prevents processes of HTTP from staying where the model could not be loaded."""
    port = free_port()
    engine = start(tmp_path / "nothing", tmp_path, port, snapshot_events=1_000)
    assert os.WEXITSTATUS(os.waitpid(engine, 0)[1]) == 1
    assert "nothing" in capfd.readouterr().err

    def refused():
        with socket.socket() as some:
            return some.connect_ex(("127.0.0.1", port)) != 0

    wait_for(refused)


def test_connections_are_refused_until_the_model_can_respond(run, tmp_path, monkeypatch):
    """Prevents clients, and who checks the server's health, from waiting for responses that nobody can give yet."""
    loads = tmp_path / "loads"
    loads.touch()

    def slow(*given):
        wait_for(lambda: not loads.exists())
        return Service(*given)

    monkeypatch.setattr(kill_server, "Service", slow)
    port = free_port()
    engine = start(run[0], tmp_path, port, snapshot_events=1_000)
    try:
        wait_for(lambda: children(engine))
        time.sleep(1.0)  # in which a process of HTTP would have begun
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"http://127.0.0.1:{port}/health", timeout=5.0)
        (front,) = children(engine)
        loads.unlink()

        def lives():
            try:
                return httpx.get(f"http://127.0.0.1:{port}/health", timeout=30.0).status_code == 200
            except httpx.ConnectError:
                return False

        wait_for(lives)
    finally:
        os.kill(engine, signal.SIGKILL)
        os.waitpid(engine, 0)
    wait_for(lambda: ended(front))


def test_who_is_killed_while_it_loads_leaves_nothing(run, tmp_path, monkeypatch):
    """Prevents processes of HTTP from waiting for ever for a model that was killed before it could respond."""
    monkeypatch.setattr(kill_server, "Service", lambda *given: time.sleep(_LONGEST))
    engine = start(run[0], tmp_path, free_port(), snapshot_events=1_000, processes=2)
    wait_for(lambda: len(children(engine)) == 2)
    fronts = children(engine)
    os.kill(engine, signal.SIGKILL)
    os.waitpid(engine, 0)
    wait_for(lambda: all(ended(front) for front in fronts))


def test_all_addresses_of_a_name_are_listened_at():
    """Prevents `--host localhost` from refusing clients that take its other address, small responses from waiting 40 ms
    for an acknowledgement, and two servers from sharing a port."""
    listens = connections.bound("localhost", free_port())
    for own in listens:
        own.listen()
    try:
        names = {own.getsockname()[0] for own in listens}
        assert "127.0.0.1" in names
        assert names <= {"127.0.0.1", "::1"}
        assert {own.proto for own in listens} == {socket.IPPROTO_TCP}  # asyncio sets TCP_NODELAY by it
        with pytest.raises(OSError, match="in use"):
            connections.bound("127.0.0.1", listens[0].getsockname()[1])
    finally:
        for own in listens:
            own.close()


def test_a_negative_number_of_processes_is_refused():
    """Prevents a mistyped number from being taken for another one."""
    with pytest.raises(SettingError, match="0 or more"):
        ServeOptions(http_processes=-1)
