"""What is deleted stays deleted, and what comes after a deletion is new."""

import json

import pyarrow as pa
import pytest
from serving_fixtures import mark, records_of, saved_run

from polyrec import PolyRecForRecommendation, PolyRecProcessor
from polyrec.serving.records import Kind, Record
from polyrec.serving.state import ServedState
from polyrec.serving.store import SQLiteStore
from polyrec.serving.variant import Variant


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return saved_run(tmp_path_factory.mktemp("run"))


def deletion(kind, user, item) -> Record:
    body = {Kind.RETRACT: {"item_id": int(item)}, Kind.FORGET: {}}[kind]
    return Record(kind, json.dumps(body), user=str(user))


def fresh(folder, covered=0, log=None) -> ServedState:
    """Of a run; with a log: of one that was trained on it, which the store's records up to a number hold."""
    processor = PolyRecProcessor.from_pretrained(folder)
    if log is not None:
        processor.update(log)
    model = PolyRecForRecommendation.from_pretrained(folder).eval()
    return ServedState(model, processor, covered, processor.log_state.counted)


@pytest.mark.parametrize("kind", [Kind.RETRACT, Kind.FORGET])
def test_pending_events_after_a_deletion_stay(run, tmp_path, kind):
    """Prevents an event that is stored together with a deletion, and after it, from missing in the next request."""
    folder, later = run
    form, row = fresh(folder).format, later.iloc[0]
    first, again = records_of(form, later.iloc[[0, 0]])
    records = [first, deletion(kind, row.user_id, row.item_id), again]
    records = [record._replace(seq=n) for n, record in enumerate(records, 1)]
    variant = Variant("one", folder, SQLiteStore(tmp_path), tmp_path, 1000)
    variant.stored(form.read_all([records[0], records[2]]), records)
    assert [event.seq for event in variant.pending.of(str(row.user_id))] == [3]
    assert len(variant.pending) == 1


@pytest.mark.parametrize("kind", [Kind.RETRACT, Kind.FORGET])
def test_what_came_again_after_a_deletion_is_kept_by_a_run_that_was_trained_on_it(run, tmp_path, kind):
    """Prevents a deletion that is read again from taking an event that came after it out of the new run's log."""
    folder, later = run
    old, row = fresh(folder), later.iloc[0]
    user, item = str(row.user_id), row.item_id
    store = SQLiteStore(tmp_path)
    again = later.iloc[[0]].assign(timestamp=later.timestamp[5])
    events = [record._replace(event_id=None) for record in records_of(old.format, later[:1])]
    store.append(events)
    store.append([deletion(kind, user, item)])
    store.append([record._replace(event_id=None) for record in records_of(old.format, again)])
    store.append([mark(store.last, float("inf"))])
    covered = store.last
    new = fresh(folder, covered, again)
    store.append([deletion(Kind.RETRACT, later.user_id[1], later.item_id[1])])  # after the export
    for state in (old, new):
        state.replay(store.read())
    logs = [state.processor.stored_events.of(pa.array([user])) for state in (old, new)]
    assert logs[0].item.tolist() == logs[1].item.tolist()
    assert logs[0].time.tolist() == logs[1].time.tolist()
    assert old.format.item_row(item) == logs[1].item[-1]
    assert len(old.processor.stored_events.log()) == len(new.processor.stored_events.log())  # and nothing twice
