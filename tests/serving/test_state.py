"""The state follows of the records alone, and serves what training showed the model."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from model_fixtures import tiny_model
from serving_fixtures import assert_same_state, mark, records_of, saved_run

from polyrec import PolyRecForRecommendation, PolyRecProcessor
from polyrec.data.event_log import Candidates
from polyrec.data.sequences import SequenceDataset
from polyrec.serving.calls import User
from polyrec.serving.engine import Engine
from polyrec.serving.pending import PendingEvents
from polyrec.serving.records import Kind, Record
from polyrec.serving.snapshots import Snapshots
from polyrec.serving.state import ServedState
from polyrec.serving.store import SQLiteStore


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return saved_run(tmp_path_factory.mktemp("run"))


def fresh(run) -> ServedState:
    processor = PolyRecProcessor.from_pretrained(run)
    state = ServedState(PolyRecForRecommendation.from_pretrained(run).eval(), processor)
    state.base_time = processor.log_state.counted
    return state


def stored(folder, state, later, seed=0, shuffled=True):
    """A store of the later events, of which some came out of order, with marks at any place."""
    random = np.random.default_rng(seed)
    rows = later if not shuffled else later.iloc[np.argsort(np.arange(len(later)) + random.normal(0, 3, len(later)))]
    store, at = SQLiteStore(folder), 0
    records = records_of(state.format, rows)
    while at < len(records):
        size = int(random.integers(1, 25))
        store.append(records[at : at + size])
        at += size
        newest = max(record.time for record in records[:at])
        store.append([mark(store.last, newest - float(random.choice([0, 0, 15])))])
    store.append([mark(store.last, float("inf"))])
    return store


def test_replay_gives_what_folding_one_by_one_gave(run, tmp_path):
    """Prevents a restart from counting otherwise than the server that was killed: in other batches, late events twice."""
    folder, later = run
    one, other = fresh(folder), fresh(folder)
    store = stored(tmp_path, one, later)
    for record in store.read():
        one.fold(record)
    other.replay(store.read())
    assert one.figures == other.figures
    assert one.figures.late > 5
    assert one.figures.counted + one.figures.late == len(later)
    assert_same_state(one.processor, other.processor)


def test_events_in_order_give_what_resume_gives(run, tmp_path):
    """Prevents events from being lost, doubled or misordered between the store and the statistics."""
    folder, later = run
    state = fresh(folder)
    state.replay(stored(tmp_path, state, later, shuffled=False).read())
    expected = PolyRecProcessor.from_pretrained(folder)
    expected.update(later)
    assert_same_state(state.processor, expected)
    assert state.figures.late == 0


def test_a_deleted_event_leaves_the_history_alone(run):
    """Prevents an event that is deleted from staying in its user's history or in what is known of them, and the events of
    others, or what is known of the user by the events that stay, from changing with it."""
    folder, later = run
    state = fresh(folder)
    records = [*records_of(state.format, later[:60]), mark(60, float("inf"))]
    for n, record in enumerate(records, 1):
        state.fold(record._replace(seq=n))
    processor, user = state.processor, int(later.user_id[0])

    def states():
        stored = processor.stored_events
        hashes = stored.hashes(pa.array([str(u) for u in range(40)]))
        users = processor.statistics._stored(stored)[1]
        return users.at(users.rows(hashes))

    before, log = states(), processor.stored_events.of(pa.array([str(user)]))
    processor.forget_events(str(user), 0)  # no event has this item
    for name in ("sums", "counts", "rows", "last"):
        np.testing.assert_allclose(getattr(states(), name), getattr(before, name), rtol=1e-9, atol=1e-9)
    row = int(log.item[-1])
    body = f'{{"item_id": {processor.items.ids[row - 2].as_py()}}}'
    state.fold(Record(Kind.RETRACT, body, user=str(user), seq=len(records) + 1))
    kept = processor.stored_events.of(pa.array([str(user)]))
    assert kept.item.tolist() == [item for item in log.item.tolist() if item != row]
    known = len(PolyRecProcessor.from_pretrained(folder).stored_events.log())
    assert len(processor.stored_events.log()) == known + 60 - (len(log) - len(kept))
    after, others = states(), np.arange(40) != user
    for name in ("sums", "counts", "rows", "last"):
        np.testing.assert_array_equal(getattr(after, name)[others], getattr(before, name)[others])
    assert after.rows[user] == before.rows[user] - (len(log) - len(kept))


@pytest.mark.parametrize("at", [30, 61])
def test_a_snapshot_and_what_came_after_it_give_the_state(run, tmp_path, at):
    """Prevents events that waited at a snapshot from being lost or counted again, and late ones from being counted."""
    folder, later = run
    state = fresh(folder)
    store = stored(tmp_path / "store", state, later)
    records = list(store.read())
    snapshots = Snapshots(tmp_path, folder)
    for record in records[:at]:
        state.fold(record)
    snapshots.write(state)
    for record in records[at:]:
        state.fold(record)
    model, processor = PolyRecForRecommendation.from_pretrained(folder), PolyRecProcessor.from_pretrained(folder)
    found = snapshots.recover(model, processor, 0, store)
    assert found.processor is not processor
    assert found.figures == state.figures
    assert_same_state(state.processor, found.processor)


def test_a_damaged_snapshot_is_left_out(run, tmp_path):
    """Prevents a power loss while a snapshot was written from keeping the server from starting."""
    folder, later = run
    state = fresh(folder)
    store = stored(tmp_path / "store", state, later)
    snapshots = Snapshots(tmp_path, folder)
    for n, record in enumerate(store.read()):
        state.fold(record)
        if n in (30, 60):
            snapshots.write(state)
    newest = max(snapshots.folder.iterdir())
    (newest / "stored_events.parquet").write_bytes(b"PAR1")
    model, processor = PolyRecForRecommendation.from_pretrained(folder), PolyRecProcessor.from_pretrained(folder)
    assert_same_state(snapshots.recover(model, processor, 0, store).processor, state.processor)


def reference(folder, log: pd.DataFrame, user: int, time: float, items: np.ndarray):
    """The window of training about some items, by `resume` of the log with rows about them appended."""
    processor = PolyRecProcessor.from_pretrained(folder)
    asked = pd.DataFrame({"user_id": user, "item_id": items, "timestamp": time, "surface": "home"})
    whole, counted = processor.resume(pd.concat([log, asked], ignore_index=True))
    rows = np.flatnonzero(whole.row >= len(log))
    rows = rows[np.argsort(whole.row[rows])]
    names = [task.name for task in processor.tasks]
    return SequenceDataset(whole, Candidates(rows, whole.visible()[rows]), names, counted, 8, stride=1)[0]


def test_a_streamed_log_is_served_as_trained(run, tmp_path):
    """Prevents own events from counting twice, or others' not at all: before each event all features equal `resume`."""
    folder, later = run
    pending = PendingEvents()
    state = fresh(folder)
    state.counted = pending.remove
    engine = Engine(state, pending, "m")
    processor = state.processor
    known = processor.stored_events.log()
    before = pd.DataFrame(
        {
            "user_id": np.zeros(len(known), dtype=int),
            "item_id": known.item - 2,
            "timestamp": known.time,
            "rating": known.labels[:, [t.name for t in processor.tasks].index("rating")],
            "surface": np.array([None, None, *processor.event_encoders["candidate"]["surface"].vocabulary], object)[
                known.candidate_features["surface"]
            ],
        }
    )
    names = processor.stored_events.hashes(pa.array(np.arange(40)))
    of = {int(name): user for user, name in enumerate(names)}
    before["user_id"] = [of[int(known.user_ids[p].as_py())] for p in known.user]
    items = np.arange(6)
    for n, row in enumerate(later.itertuples()):
        if n % 7 == 3:  # own events wait, those of others are counted
            own = engine.request(User(user_id=int(row.user_id), context={"surface": "home"}, time=row.timestamp))
            window = processor.request(own.pop("history"), items + 2, **own)
            waiting = {event.columns["item_id"]: event for event in state.waiting}
            counted = later[:n]
            mine = counted.user_id == row.user_id
            if waiting:
                late = {event.seq for event in state.waiting}
                counted = counted[mine | ~counted.index.isin([s - 1 for s in late])]
            expected = reference(folder, pd.concat([before, counted]), int(row.user_id), row.timestamp, items)
            for key in ("event_features", "candidate_features", "user_features"):
                for name, values in expected[key].items():
                    np.testing.assert_allclose(window[key][name], values, rtol=1e-6, atol=1e-6, err_msg=name)
            assert np.array_equal(window["item_ids"], expected["item_ids"])
        record = records_of(state.format, later[n : n + 1])[0]._replace(seq=n + 1)
        pending.add([state.format.read(record)])
        state.fold(record)
        if n % 3 == 2:
            state.fold(mark(n + 1, row.timestamp)._replace(seq=n + 1))
    assert state.figures.counted >= len(later) - 3


@pytest.mark.parametrize("body", ['{"user_id":1,"item_id":{},"timestamp":1.0}', '{"user_id":1,'])
def test_what_cannot_be_read_is_left_out_alone(run, tmp_path, caplog, body):
    """Prevents one damaged record from stopping all that come after it, or from taking its batch with it."""
    folder, later = run
    state = fresh(folder)
    # Without columns, as a store reads them.
    records = [record._replace(columns=None) for record in records_of(state.format, later[:20])]
    records[7] = records[7]._replace(body=body)
    numbered = [record._replace(seq=n + 1) for n, record in enumerate(records)]
    state.replay([*numbered, mark(20, float("inf"))._replace(seq=21)])
    assert (state.figures.counted, state.figures.skipped) == (19, 1)
    assert "record 8 cannot be counted" in caplog.text
    expected = PolyRecProcessor.from_pretrained(folder)
    expected.update(later[:20].drop(index=7))
    assert_same_state(state.processor, expected)


def test_a_deleted_user_is_in_no_history(run, tmp_path):
    """Prevents a deleted user's events from coming back, of the run's own log, of the store or of a snapshot."""
    folder, later = run
    state = fresh(folder)
    store = SQLiteStore(tmp_path)
    user = int(later.user_id[0])
    store.append(records_of(state.format, later[:50]))
    store.append([mark(50, float("inf"))])
    before = store.last
    store.append([Record(Kind.FORGET, "{}", user=str(user))])
    assert not store.of_user(str(user), 10)
    assert str(user) not in {r.user for r in store.read(before=before + 1)}
    raw = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert f'"user_id":{user},'.encode() not in raw
    state.replay(store.read())
    Snapshots(tmp_path, folder).write(state, forgetting=True)
    found = Snapshots(tmp_path, folder).recover(state.model, PolyRecProcessor.from_pretrained(folder), 0, store)
    for processor in (state.processor, found.processor):
        assert not processor.stored_events.has_events(pa.array([user]))[0]
        assert processor.stored_events.has_events(pa.array([int(u) for u in range(40) if u != user])).all()


def test_a_first_event_is_one_for_the_model(run):
    """Prevents a task that reads the age of items from taking an item for one that nobody has met, for good."""
    folder, later = run
    processor = PolyRecProcessor.from_pretrained(folder)
    tasks = [{"name": "next", "head": "retrieval", "options": {"item_age": "first_event"}}]
    state = ServedState(tiny_model(processor, tasks=tasks), processor)
    unseen = int(np.flatnonzero(np.isinf(processor.first_event))[2:][0])
    when = float(later.timestamp.max()) + 9
    event = {"user_id": 1, "item_id": processor.describe(unseen)["item"], "timestamp": when}
    state.fold(state.format.record(event, "event")._replace(seq=1))
    state.fold(mark(1, when)._replace(seq=2))
    released = state.model.heads["next"].named_terms["item_age"].released
    assert released[unseen] == 1e3 * when
    np.testing.assert_array_equal(released.numpy(), processor.item_times("first_event"))
