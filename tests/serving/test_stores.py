"""Every store keeps records in order, once, and forgets users."""

import os
import pwd
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from serving_fixtures import assert_same_state, event_of, live, saved_run, served

from polyrec import PolyRecProcessor
from polyrec.core.manifest import refresh_manifest
from polyrec.serving.records import Kind, Record
from polyrec.serving.service import Service, ServiceOptions
from polyrec.serving.store import SQLiteStore
from polyrec.serving.writer import QueueFull, Writer


def _binaries() -> Path | None:
    """Where PostgreSQL's programs lie; Debian keeps them out of the path."""
    found = shutil.which("initdb")
    places = [Path(found).resolve().parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return next((place for place in reversed(places) if (place / "initdb").exists()), None)


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """A PostgreSQL of its own, on a socket in a folder."""
    binaries = _binaries()
    if binaries is None:
        pytest.skip("there is no PostgreSQL here")
    pytest.importorskip("psycopg")
    folder = tmp_path_factory.mktemp("postgres")
    who = {}
    if os.getuid() == 0:  # it refuses to run as root
        try:
            user = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("root cannot run PostgreSQL, and there is no user postgres")
        who = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        os.chown(folder, user.pw_uid, user.pw_gid)
        for parent in folder.parents[:3]:
            parent.chmod(parent.stat().st_mode | 0o055)
    quiet = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder, **who}
    subprocess.run([binaries / "initdb", "-D", folder / "data", "-U", "test", "-A", "trust", "--no-sync"], **quiet)
    options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c shared_buffers=8MB"
    subprocess.run([binaries / "pg_ctl", "-D", folder / "data", "-w", "-o", options, "start"], **quiet)
    yield f"host={folder} user=test dbname=postgres"
    subprocess.run([binaries / "pg_ctl", "-D", folder / "data", "-m", "immediate", "stop"], **quiet)


@pytest.fixture(params=["sqlite", "postgres"])
def opened(request, tmp_path):
    """Opens the same store again and again."""
    if request.param == "sqlite":
        yield lambda: SQLiteStore(tmp_path)
        return
    url = request.getfixturevalue("database")
    import psycopg

    from polyrec.serving.postgres import PostgresStore

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS polyrec_log, polyrec_about")
    yield lambda: PostgresStore(url)


def event(number: int, user: str = "u") -> Record:
    return Record(Kind.EVENT, f'{{"n":{number}}}', f"e{number}", user, float(number))


def test_a_store_keeps_records_once_and_in_order(opened):
    """Prevents numbers from being given twice or out of order, or an event that comes again from being stored again."""
    store = opened()
    assert store.append([event(1), event(2), event(1)]) == [1, 2, 1]
    assert store.append([Record(Kind.MARK, "{}", time=2.0), event(3, "v"), event(2)]) == [3, 4, 2]
    store.close()
    store = opened()
    assert store.append([Record(Kind.EVENT, "{}", None, "u", 5.0)] * 2) == [5, 6]
    records = list(store.read())
    assert [r.seq for r in records] == [1, 2, 3, 4, 5, 6]
    assert records[3] == event(3, "v")._replace(seq=4)
    assert [r.seq for r in store.read(after=1, before=6, kinds=[Kind.EVENT])] == [2, 4, 5]
    assert [r.seq for r in store.read(kinds=[Kind.MARK, Kind.USER])] == [3]
    assert [r.seq for r in store.of_user("u", 3)] == [6, 5, 2]
    assert store.append([Record(Kind.FORGET, "{}", user="u"), event(9)]) == [7, 8]
    assert [(r.seq, r.kind) for r in store.read()] == [(3, 1), (4, 0), (7, 4), (8, 0)]
    assert store.last == 8
    store.close()


def test_events_that_are_deleted_leave_the_store(opened):
    """Prevents deleted events from being read again by a restart, those of others from going with them, an event that is
    sent again after that from being taken for a known one, and a user who has gone from being listed."""
    store = opened()
    store.append(
        [item_event(1, "é", 7), item_event(2, "é", 8), item_event(3, "b", 7), Record(Kind.USER, "{}", user="Z")]
    )
    store.append([Record(Kind.RETRACT, '{"item_id":"7"}', user="é")])
    assert [r.seq for r in store.read()] == [2, 3, 4, 5]
    assert store.append([item_event(1, "é", 7), item_event(2, "é", 8)]) == [6, 2]
    assert [r.seq for r in store.of_user("é", 9)] == [2, 6]
    assert (store.users("", 9), store.users("Z", 1), store.users("é", 9)) == (["Z", "b", "é"], ["b"], [])
    store.append([Record(Kind.FORGET, "{}", user="é")])
    assert [r.kind for r in store.read()] == [Kind.EVENT, Kind.USER, Kind.FORGET]
    assert store.users("", 9) == ["Z", "b"]
    store.close()


def item_event(number: int, user: str, item: int) -> Record:
    return Record(Kind.EVENT, f'{{"item_id":{item}}}', f"e{number}", user, float(number))


def test_two_stores_are_two(opened, tmp_path):
    """Prevents a table of one server's events from telling another that it has counted its own."""
    store = opened()
    name = store.store_id
    store.close()
    store = opened()
    assert store.store_id == name
    store.close()
    other = SQLiteStore(tmp_path / "other")
    assert other.store_id != name


def test_one_record_that_cannot_be_stored_takes_no_other_with_it(tmp_path):
    """Prevents a group commit from failing for all because of one, or the writer from ending."""
    stored = []
    writer = Writer(SQLiteStore(tmp_path), stored.extend, most_waiting=50)
    with ThreadPoolExecutor(8) as pool:
        bad = event(0)._replace(body="\ud800")
        futures = list(pool.map(lambda n: writer.submit([bad if n == 7 else event(n)]), range(1, 21)))
    with pytest.raises(UnicodeEncodeError):
        futures[6].result(10)
    numbers = [future.result(10) for n, future in enumerate(futures) if n != 6]
    assert sorted(seq for seqs in numbers for seq in seqs) == list(range(1, 20))
    assert [record.seq for record in stored] == list(range(1, 20))
    with pytest.raises(QueueFull, match="wait to be stored"):
        writer.submit([event(100)] * 51)
    writer.close()
    with pytest.raises(QueueFull, match="stops"):
        writer.submit([event(101)])


def test_servers_of_one_database_share_their_events(database, tmp_path):
    """Prevents what one server has stored from being unknown to another, or from being counted otherwise there."""
    import psycopg

    from polyrec.serving.postgres import PostgresStore

    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS polyrec_log, polyrec_about")
    run, later = saved_run(tmp_path)
    services = [
        Service(run, PostgresStore(database), tmp_path / f"state{n}", ServiceOptions(watermark=0.05)) for n in range(2)
    ]
    for service in services:
        service.start()
    try:
        form = services[0].state.format
        for n, row in enumerate(later[:40].itertuples()):
            seqs = services[n % 2].submit([form.record(event_of(row, f"e{n}"), "event")]).result(10)
        for service in services:
            assert service.wait_for(lambda service=service: service.writer.known >= seqs[0], 10)
            assert service.flush(seqs[0], 10)
        expected = PolyRecProcessor.from_pretrained(run)
        expected.update(later[:40])
        for service in services:
            assert_same_state(service.state.processor, expected)
    finally:
        for service in services:
            service.stop()


def test_another_model_takes_over_without_a_failure(tmp_path):
    """Prevents a request from failing, or from being scored by half of each, while models are exchanged; events that the
    new model was trained on from counting twice; and a model of another kind from being served by mistake."""
    run, later = saved_run(tmp_path)
    import pandas as pd
    import yaml
    from model_fixtures import fit, synthetic_log, tiny_model

    with live(run, tmp_path / "state") as client, ThreadPoolExecutor(3) as pool:
        first = [event_of(row, f"e{row.Index}") for row in later[:60].itertuples()]
        seq = client.post("/events", json={"events": first}).json()["seq"]
        client.service.flush(seq, 10)
        from polyrec.serving.export import export_events

        table = tmp_path / "events.parquet"
        assert export_events(str(run), str(table), str(tmp_path / "state")) == 60
        exported = pd.read_parquet(table)
        assert exported[["user_id", "item_id", "timestamp"]].equals(later[:60][["user_id", "item_id", "timestamp"]])
        processor = PolyRecProcessor.from_pretrained(run)
        processor.update(later[:60])
        updated = tmp_path / "updated"
        tiny_model(processor, seed=1).save_pretrained(updated)
        processor.save_pretrained(updated, include_users=True)
        recipe = {"interactions": str(tmp_path / "elsewhere.parquet"), "tasks": [], "output": str(updated)}
        (updated / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"updates": [{"interactions": str(table)}]}))
        refresh_manifest(updated, ["recipe.yaml"])
        going, found = [True], []

        def load(number):
            while going[0]:
                response = client.post("/recommend", json={"user_id": number, "k": 3})
                found.append((response.status_code, response.json().get("model")))

        loads = [pool.submit(load, n) for n in range(3)]
        more = [event_of(row, f"e{row.Index}") for row in later[60:80].itertuples()]
        seq = client.post("/events", json={"events": more}).json()["seq"]
        try:
            for folder in (updated, run, updated):
                client.service.swap(folder)
        finally:
            going[0] = False
        for one in loads:
            one.result()
        assert {code for code, _ in found} == {200}
        assert len({model for _, model in found}) == 2
        assert client.get("/ready").json()["model"].startswith("updated-")
        client.service.flush(seq, 10)
        assert client.service.state.figures.known == 60
        expected = PolyRecProcessor.from_pretrained(run)
        expected.update(later[:80])
        assert_same_state(client.service.state.processor, expected)
        tables = synthetic_log()
        other, _ = fit(tables, tasks=[{"name": "like", "head": "binary", "label": "rating >= 4"}])
        tiny_model(other).save_pretrained(tmp_path / "other")
        other.save_pretrained(tmp_path / "other")
        with pytest.raises(ValueError, match=r"the new model has other tasks \(next_item, rating\): pass force"):
            client.service.swap(tmp_path / "other")
        with pytest.raises((ValueError, OSError)):
            client.service.swap(tmp_path / "nothing")
        assert client.get("/admin/model").json()["error"]
        assert client.post("/recommend", json={"user_id": 1}).status_code == 200


def test_a_model_that_keeps_no_events_is_served(tmp_path):
    """Prevents a model without times from failing at the start, or from swallowing events that it cannot use."""
    from model_fixtures import TASKS, tiny_model

    log = {"user_id": [1, 1, 1, 2, 2, 2] * 3, "item_id": [1, 2, 3, 4, 5, 6] * 3, "rating": [5, 2, 4, 1, 3, 5] * 3}
    processor = PolyRecProcessor.fit(log, tasks=TASKS, columns={"time": None}, verbose=False)
    processor.split(log)
    tiny_model(processor).save_pretrained(tmp_path / "run")
    processor.save_pretrained(tmp_path / "run")
    with served(tmp_path / "run", tmp_path) as service, pytest.raises(ValueError, match="this model keeps no events"):
        service.check_keeps_events()
