"""Items that change while they are served: the server is then what a processor with that catalog makes of the log."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from model_fixtures import fit, synthetic_log, tiny_model
from serving_fixtures import KNOWN, assert_same_state, live, log_of, mark, records_of, saved_run
from text_fixtures import tiny_bert

from polyrec import PolyRecForRecommendation, PolyRecProcessor, Recommender
from polyrec.data.catalog import EntityTable
from polyrec.serving.records import Kind, Record
from polyrec.serving.snapshots import Snapshots
from polyrec.serving.state import ServedState
from polyrec.serving.store import SQLiteStore

CHANGED = {"title": "title 59 drama", "genre": "drama", "tags": ["tag1", "unknown"], "price": None}
NEW = {"title": "title 58", "genre": "action", "price": 0.4}
USERS = [0, 1, 2, 3, 39]


@pytest.fixture(scope="module", params=["no text", "project", "fallback"])
def run(request, tmp_path_factory):
    """A run and the events after it; without texts, or with items that are read as text beside or instead of ids."""
    folder = tmp_path_factory.mktemp("run")
    if request.param == "no text":
        return saved_run(folder)
    log = log_of()
    cut = int(len(log) * KNOWN)
    text = {"model": str(tiny_bert()), "template": "{title} {genre}"}
    text |= {"fusion": "fallback"} if request.param == "fallback" else {}
    processor, _ = fit({**synthetic_log(), "interactions": log[:cut]}, text=text)
    processor.resume(log[:cut])
    model = tiny_model(processor)
    model.load_texts(processor)
    model.save_pretrained(folder / "run")
    processor.save_pretrained(folder / "run", include_users=True)
    return folder / "run", log[cut:].reset_index(drop=True)


def item(item_id, **attributes) -> Record:
    return Record(Kind.ITEM, json.dumps({"item_id": item_id, "attributes": attributes}))


def fresh(folder) -> ServedState:
    processor = PolyRecProcessor.from_pretrained(folder)
    state = ServedState(PolyRecForRecommendation.from_pretrained(folder).eval(), processor)
    state.base_time = processor.log_state.counted
    return state


def stored(folder, state, later):
    """A store: events, a change of a known item, a new one that changes twice, events."""
    store, half = SQLiteStore(folder), len(later) // 2
    store.append(records_of(state.format, later[:half]))
    store.append([mark(store.last, float("inf"))])
    store.append(
        [item(3, **CHANGED), item(900, **NEW), item(900, price=0.1), item(900, title="title 57", tags=["tag2"])]
    )
    store.append(records_of(state.format, later[half:]))
    store.append([mark(store.last, float("inf"))])
    return store


def expected(folder, later) -> Recommender:
    """The same by other means: a table that is changed with pandas and encoded as a whole."""
    model, processor = PolyRecForRecommendation.from_pretrained(folder).eval(), PolyRecProcessor.from_pretrained(folder)
    half = len(later) // 2
    processor.update(later[:half])
    rows = processor.items.table.to_pylist()
    [row] = [row for row in rows if row["item_id"] == 3]
    row.update(CHANGED)
    table = pa.Table.from_pylist(rows, processor.items.table.schema)
    changed = EntityTable(processor.items.ids, table, processor.items.encoders)
    processor.items.table, processor.items.encoded = changed.table, changed.encoded
    model.load_catalog(processor.items.encoded, torch.from_numpy(processor.item_counts).float())
    if processor.text is not None:
        model.load_texts(processor)
    new = {"item_id": 900, **NEW, "price": 0.1, "title": "title 57", "tags": ["tag2"]}
    processor.extend(items=pa.Table.from_pylist([new], processor.items.table.schema))
    model.extend(processor)
    processor.update(later[half:])
    return Recommender(model, processor)


def assert_alike(found: Recommender, known: Recommender) -> None:
    requests = [{"user_id": user} for user in USERS] + [{"history": [3, 900]}]
    for one, other in zip(found.recommend_many(requests, 30), known.recommend_many(requests, 30), strict=True):
        assert [row["item"] for row in one] == [row["item"] for row in other]
        for name in ("score", "like", "rating"):
            np.testing.assert_allclose([r[name] for r in one], [r[name] for r in other], rtol=1e-5, atol=1e-6)
        assert [row["title"] for row in one] == [row["title"] for row in other]
    for where in ("genre == 'drama'", "'tag2' in tags"):
        own = [r["item"] for r in found.recommend([5], 30, where=where)]
        assert own == [r["item"] for r in known.recommend([5], 30, where=where)]


def test_changed_items_are_served_as_a_changed_catalog_is(run, tmp_path):
    """Prevents other attributes from reaching a part of what is served only (features, statistics, texts, conditions,
    titles), and a server that reads its records again, or goes on from a snapshot, from knowing other ones."""
    folder, later = run
    known, state = expected(folder, later), fresh(folder)
    store = stored(tmp_path / "store", state, later)
    served = Recommender(state.model, state.processor)
    before = served.recommend([3], 5)
    snapshots, records = Snapshots(tmp_path, folder), list(store.read())
    for record in records:
        state.fold(record)
        if record.kind is Kind.ITEM:
            served.recommend([3], 1)  # encodes the table, of which then only rows change
            snapshots.write(state)
    assert state.figures.skipped == 0
    assert served.recommend([3], 5) != before
    assert_same_state(state.processor, known.processor)
    assert_alike(served, known)
    again = fresh(folder)
    again.replay(records)
    assert_same_state(again.processor, known.processor)
    assert_alike(Recommender(again.model, again.processor), known)
    own = fresh(folder)
    found = snapshots.recover(own.model, own.processor, 0, store)
    assert found.processor is not own.processor
    assert_same_state(found.processor, known.processor)
    assert_alike(Recommender(found.model, found.processor), known)


def test_only_the_changed_row_is_encoded_anew(run):
    """Prevents each change of an item from encoding the catalog, which a large one makes slow."""
    state = fresh(run[0])
    served = Recommender(state.model, state.processor)
    table, encoder = served.items, state.model.item_encoder
    encoded = []
    own = type(encoder)._encoded_table
    type(encoder)._encoded_table = lambda self: encoded.append(1) or own(self)
    try:
        state.fold(item(3, **CHANGED)._replace(seq=1))
        found = served.items
    finally:
        type(encoder)._encoded_table = own
    assert not encoded
    differs = (found.vectors_MD != table.vectors_MD).any(dim=1)
    if encoder.text is None or not encoder.text.fallback or encoder.attributes.features:
        assert differs.nonzero().flatten().tolist() == [state.format.item_row(3)]
    with torch.no_grad():
        torch.testing.assert_close(found.vectors_MD, encoder._encoded_table().vectors_MD, rtol=0, atol=0)


def test_attributes_over_http(tmp_path):
    """Prevents attributes of known items from being refused, changed in part, or forgotten by a restart."""
    run, _ = saved_run(tmp_path)
    with live(run, tmp_path) as client:
        assert client.put("/items/3", json={"attributes": CHANGED}).status_code == 200
        found = client.get("/items/3").json()["attributes"]
        assert (found["genre"], found["title"], found["price"]) == ("drama", "title 59 drama", None)
        assert client.put("/items/3", json={"attributes": {"price": 0.25}, "hidden": True}).status_code == 200
        for attributes, word in (({"prize": 1}, "price"), ({"price": "dear"}, "price"), ({"tags": [[1]]}, "tags")):
            refused = client.put("/items/3", json={"attributes": attributes})
            assert refused.status_code == 422, refused.text
            assert word in refused.text
    with live(run, tmp_path) as client:
        found = client.get("/items/3").json()
        assert found["hidden"]
        assert (found["attributes"]["genre"], found["attributes"]["price"]) == ("drama", 0.25)
        rows = client.post("/recommend", json={"history": [5], "k": 30, "rules": {"where": "genre == 'drama'"}}).json()
        assert 3 not in [row["item"] for row in rows["items"]]


def test_a_server_of_int8_weights_refuses_new_items_and_goes_on(tmp_path):
    """Prevents one new item from giving the processor a row that the model lacks: all later requests failed."""
    folder, _ = saved_run(tmp_path)
    model = PolyRecForRecommendation.from_pretrained(folder).eval()
    model.quantize()
    model.save_pretrained(folder)
    state = fresh(folder)
    before = state.processor.num_items
    state.control(item(900, genre="drama"), changes=True)  # of a store that another run has served, too
    assert (state.processor.num_items, state.figures.skipped) == (before, 1)
    with live(folder, tmp_path / "state") as client:
        refused = client.put("/items/900", json={"attributes": {"genre": "drama"}})
        assert (refused.status_code, "take no new items" in refused.text) == (422, True)
        assert client.put("/items/3", json={"attributes": {"genre": "drama"}}).status_code == 200
        assert client.post("/recommend", json={"history": [3], "k": 2}).status_code == 200
