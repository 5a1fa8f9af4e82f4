"""The processor: fit, split, freeze, serve, save, load."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_fixtures import COLUMNS, TASKS, fit, synthetic_log

from polyrec import PolyRecProcessor
from polyrec.core.manifest import write_manifest

HISTORY = [{"item_id": 3, "rating": 5.0, "surface": "home"}, {"item_id": 4, "rating": 1.0, "surface": "search"}]
REQUEST = {"user": {"age": 30}, "context": {"surface": "home"}}
HISTORY_COLUMNS = ["item_id", "timestamp", "rating", "surface"]
RETRIEVAL = [{"name": "next_item", "head": "retrieval"}]
asked = np.array([2, 3])


@pytest.fixture(scope="module")
def fitted():
    log = synthetic_log()
    processor, parts = fit(log)
    return log, processor, parts


def reloaded(processor: PolyRecProcessor, folder: Path) -> PolyRecProcessor:
    processor.save_pretrained(folder)
    return PolyRecProcessor.from_pretrained(folder)


def windows_equal(first: dict, second: dict) -> None:
    assert set(first) == set(second)
    for key, value in first.items():
        if isinstance(value, dict):
            windows_equal(value, second[key])
        else:
            assert np.array_equal(value, second[key], equal_nan=np.asarray(value).dtype.kind == "f"), key


def change(events: dict, row: int, **values) -> dict:
    """One row of a table, changed."""
    return {name: np.asarray(column)[row : row + 1] for name, column in events.items()} | values


# ----------------------------------------------------------------- save and load
@pytest.mark.parametrize("history", [HISTORY, [3, 4], None])
@pytest.mark.parametrize("request_options", [REQUEST, {}])
def test_a_saved_processor_answers_the_same(fitted, tmp_path, history, request_options):
    """Prevents a vocabulary, scale or statistic from being lost or reordered on disk."""
    _, processor, _ = fitted
    loaded, every = reloaded(processor, tmp_path), np.arange(2, processor.num_items)
    windows_equal(
        processor.request(history, every, **request_options), loaded.request(history, every, **request_options)
    )


@pytest.mark.parametrize("tasks", [TASKS, RETRIEVAL])
@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize("split", [True, False])
def test_a_saved_processor_is_the_same(tables, tmp_path, tasks, statistics, split):
    """Prevents a part (statistics before a split, say) from being left out of the files and of the next model."""
    processor = PolyRecProcessor.fit(**tables, tasks=tasks, columns=COLUMNS, max_history=8, statistics=statistics)
    if split:
        processor.split(tables["interactions"])
    once = reloaded(processor, tmp_path / "one")
    for loaded in (once, reloaded(once, tmp_path / "two")):
        assert loaded.features == processor.features
        assert loaded.model_config().to_dict() == processor.model_config().to_dict()
        assert loaded.columns == processor.columns
        assert (loaded.tasks, loaded.ties, loaded.max_history) == (processor.tasks, processor.ties, 8)
        assert loaded.label_summary == processor.label_summary
        assert loaded.item_counts.tolist() == processor.item_counts.tolist()
        assert loaded.describe(5) == processor.describe(5) == {"item": 3, "title": "title 3"}
        windows_equal(loaded.request(HISTORY, asked), processor.request(HISTORY, asked))


def test_nothing_about_people_is_saved(users_by_name, tmp_path):
    """Prevents user ids from leaving with a model, whatever was done with the processor before."""
    processor, _ = fit(users_by_name)
    processor.split(users_by_name["interactions"], by="leave_one_out")
    processor.request(HISTORY, asked)
    processor.save_pretrained(tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    hashed = tmp_path / "training_rows.safetensors"  # what a teacher has learnt, see polyrec.data.training_rows
    assert {path.suffix for path in files if path != hashed} == {".json", ".parquet"}
    for path in files:
        assert b"secret" not in path.read_bytes(), path
        if path.suffix == ".parquet":
            assert "secret" not in str(pq.read_table(path).to_pydict()), path
    kept = json.loads((tmp_path / "statistics" / "log" / "statistics.json").read_text())["files"]
    assert kept
    assert not any("user" in name.split("-")[0].split("*") for name in kept)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("processor_config.json", None, "has no processor_config.json: it is not a folder saved by"),
        ("processor_config.json", '{"a": ', "processor_config.json is not valid JSON .*damaged"),
        ("processor_config.json", "{}", "processor_config.json has no 'format_version': the file is damaged"),
        ("processor_config.json", '{"format_version": 1}', "processor_config.json has no 'columns'"),
        ("processor_config.json", '{"format_version": 99}', "has format 99, newer than 2: update polyrec"),
        ("items.parquet", "PAR1", "items.parquet .*truncated"),
        ("items.parquet", None, "items: no such file: .*items.parquet"),
        ("statistics/log/statistics.json", None, "has no statistics.json"),
        ("statistics/log/statistics.json", "[", "statistics.json is not valid JSON"),
        ("statistics/log/state-000.parquet", None, "no such file: .*state-000.parquet"),
        ("statistics/log/state-000.parquet", "PAR1", "state-000.parquet .*truncated"),
    ],
)
def test_damaged_folders_say_what_is_wrong(fitted, tmp_path, name, content, message):
    """Prevents a KeyError or a half-loaded processor."""
    fitted[1].save_pretrained(tmp_path)
    (tmp_path / "manifest.json").unlink()  # as in folders of earlier versions; else the digest differs
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        PolyRecProcessor.from_pretrained(tmp_path)


def test_a_catalog_without_counts_says_so(fitted, tmp_path):
    """Prevents an items table that was put in place of the saved one from being read as a catalog nobody trained on."""
    fitted[1].save_pretrained(tmp_path)
    pq.write_table(pa.table({"item_id": [1]}), tmp_path / "items.parquet")
    write_manifest(tmp_path)
    with pytest.raises(
        ValueError, match=r"items.parquet: no column '__training_events__' \(needed as training counts\)"
    ):
        PolyRecProcessor.from_pretrained(tmp_path)


# ------------------------------------------------------------------ what is known
def test_a_frozen_view_knows_nothing_after_its_cutoff(fitted):
    """Prevents a frozen evaluation from reading history or statistics of the evaluated period."""
    log, processor, parts = fitted
    cutoff = float(parts.test.log.time[parts.test.candidates.event].min())
    changed = synthetic_log()["interactions"]
    late = np.asarray(changed["timestamp"]) >= cutoff
    changed["rating"] = np.where(late, 6 - changed["rating"], changed["rating"])
    other = processor.split(changed).test  # training rows are the same, so scales are, too
    processor.split(log["interactions"])  # back to the fixture's statistics
    views = [processor.without_updates(dataset, cutoff) for dataset in (parts.test, other)]
    seen = 0
    for i in range(len(parts.test)):
        first, second = (view[i] for view in views)
        for key in set(first) - {"labels"}:
            windows_equal({key: first[key]}, {key: second[key]})
        seen += int(first["candidate_positions"].max())
    assert seen > 0


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1), share=st.floats(0.3, 0.95))
def test_a_frozen_view_is_blind_to_any_later_change(fitted, seed, share):
    """Prevents later items, contexts and rows, not only labels, from reaching a frozen view."""
    log, processor, _ = fitted
    random, events = np.random.default_rng(seed), log["interactions"]
    cutoff = np.quantile(events["timestamp"], share)
    late = np.flatnonzero(events["timestamp"] >= cutoff)
    changed = {name: column.copy() for name, column in events.items()}
    changed["item_id"][late] = random.integers(0, 30, len(late))
    changed["rating"][late] = random.choice([1.0, 5.0, np.nan], len(late))
    changed["timestamp"][late] += random.choice([0.0, 500.0], len(late))
    original, other = (frozen_inputs(processor, table, cutoff) for table in (events, changed))
    assert original.keys() == other.keys()
    for user, window in original.items():
        windows_equal(window, other[user])
    processor.split(events)


def frozen_inputs(processor, events, cutoff):
    """{person: what each later question sees at the cutoff}, which is the same for all of a person's questions."""
    found = {}
    test = processor.split(events, cuts=(cutoff, cutoff)).test
    view = processor.without_updates(test, cutoff)
    for window in (view[i] for i in range(len(view))):
        user = view.user_codes()[window["candidate_rows"][0]]
        position = window["candidate_positions"].max()
        assert (window["candidate_positions"] == position).all()
        found[user] = {
            "item_ids": window["item_ids"][:position],
            "event_features": {n: v[:position] for n, v in window["event_features"].items()},
            "user_features": window["user_features"],
        }
    return found


def test_a_frozen_view_of_the_past_is_the_view_itself(fitted):
    """Prevents `frozen` from hiding what happened before the cutoff."""
    _, processor, parts = fitted
    view = processor.without_updates(parts.test, 1e12)
    for i in range(len(view)):
        windows_equal(view[i], parts.test[i])


def test_prequential_rows_do_not_see_their_own_time(fitted):
    """Prevents the label of a row, or of rows of its second, from reaching its own inputs."""
    log, processor, parts = fitted
    changed = synthetic_log()["interactions"]
    last = changed["timestamp"].max()
    changed["rating"][changed["timestamp"] == last] = 5.0
    other = processor.split(changed).test
    processor.split(log["interactions"])  # back to the fixture's statistics
    rows = parts.test.log.time[parts.test.candidates.event] == last
    assert rows.any()
    first = parts.test.statistics[parts.test.candidates.statistic[rows]]
    second = other.statistics[other.candidates.statistic[rows]]
    assert np.array_equal(first, second, equal_nan=True)


def test_held_out_rows_of_leave_one_out_do_not_count_before_their_part(tables):
    """Prevents a person's test rating from reaching training through the statistics of its item."""
    processor, _ = fit(tables)
    first = processor.split(tables["interactions"], by="leave_one_out")
    held = first.test.log.row[first.test.candidates.event]
    tables["interactions"]["rating"][held] = np.nan
    second = processor.split(tables["interactions"], by="leave_one_out")
    for one, two in zip(first, second, strict=True):
        asked = one.candidates.statistic
        assert np.array_equal(one.statistics[asked], two.statistics[asked], equal_nan=True)


@pytest.mark.parametrize("part", ["train", "valid", "test"])
def test_a_frozen_view_keeps_to_what_its_rows_may_count(tables, part):
    """Prevents `frozen` on a leave-one-out split from counting held-out labels that lie before the cutoff."""
    processor, _ = fit(tables)
    found = []
    first = processor.split(tables["interactions"], by="leave_one_out")
    held = first.test.log.row[first.test.candidates.event]
    for rating in (1.0, 5.0):
        tables["interactions"]["rating"][held] = rating
        dataset = getattr(processor.split(tables["interactions"], by="leave_one_out"), part)
        view = processor.without_updates(dataset, float(np.quantile(dataset.log.time, 0.9)))
        found.append(view.statistics[view.candidates.statistic])
    assert np.array_equal(*found, equal_nan=True)


def test_scales_come_from_training_rows(tables):
    """Prevents means, counts and label summaries from knowing the test period."""
    processor, _ = fit(tables)
    before = (
        processor.statistics.scaler.to_dict(),
        processor.item_counts.tolist(),
        json.dumps(processor.label_summary),
    )
    times = tables["interactions"]["timestamp"]
    late = np.argsort(times, kind="stable")[320:]
    tables["interactions"]["rating"][late] = 3.0
    tables["interactions"]["item_id"][late] = 0
    processor.split(tables["interactions"])
    assert before == (
        processor.statistics.scaler.to_dict(),
        processor.item_counts.tolist(),
        json.dumps(processor.label_summary),
    )


def test_delayed_rows_train_beside_fresh_ones(tables):
    """Prevents `max_delay` from replacing the fresh view, and from showing a delayed row what lies within its delay."""
    processor, parts = fit(tables)
    delayed = processor.split(tables["interactions"], max_delay=5000.0).train
    assert delayed.own_view.sum() == parts.train.num_candidates
    assert delayed.num_candidates == 2 * parts.train.num_candidates
    asked, hidden = delayed.candidates, ~delayed.own_view
    own = dict(zip(asked.event[~hidden], asked.position[~hidden], strict=True))
    fresh = np.array([own[e] for e in asked.event[hidden]])
    assert (asked.position[hidden] <= fresh).all()
    assert (asked.position[hidden] < fresh).any()


# ---------------------------------------------------------------------- requests
def test_unknown_ids_and_values_are_cold_starts(fitted):
    """Prevents a new item or a new attribute value from being an error at serving time."""
    _, processor, _ = fitted
    for unknown in (12345, "new", 7.0 + 2**40):
        window = processor.request([{"item_id": unknown}], asked, context={"surface": "billboard"}, user={"age": None})
        assert window["item_ids"].tolist() == [1]
        assert window["candidate_features"]["surface"].tolist() == [1, 1]
        assert np.isnan(window["user_features"]["age"])
    window = processor.request([12345, 3], asked, context={"surface": 7})
    assert window["item_ids"].tolist() == [1, processor.items.rows(processor.items.ids[3:4])[0]]
    assert window["candidate_features"]["surface"].tolist() == [1, 1]


def test_somebody_new_has_no_events_and_no_attributes(fitted):
    """Prevents a new person from borrowing the attributes of whoever has the id 0."""
    log, processor, _ = fitted
    assert 0 in log["users"]["user_id"]
    for nobody in (None, [], {"item_id": []}):
        window = processor.request(nobody, asked)
        assert len(window["item_ids"]) == 0
        assert np.isnan(window["user_features"]["age"])
        assert window["candidate_positions"].tolist() == [0, 0]


def test_requests_do_not_change_the_processor(fitted):
    """Prevents the person of one request from being counted as somebody known in the next."""
    _, processor, _ = fitted
    first = processor.request(HISTORY, asked, **REQUEST)
    processor.request([{"item_id": 3, "rating": 1.0, "timestamp": 1e9}], asked)
    windows_equal(processor.request(HISTORY, asked, **REQUEST), first)


def test_names_of_people_may_be_strings(users_by_name, tmp_path):
    """Prevents a loaded processor, which knows no people, from refusing their names."""
    events = users_by_name["interactions"]
    processor, _ = fit(users_by_name)
    loaded = reloaded(processor, tmp_path)
    windows_equal(loaded.request(HISTORY, asked), processor.request(HISTORY, asked))
    loaded.update(change(events, 5, timestamp=[9e6]))
    assert loaded.statistics.last_time == 9e6
    assert len(loaded.encode_events(events)) == len(events["user_id"])


@pytest.mark.parametrize("length", [1, 7, 8, 9, 10])
def test_a_request_holds_the_latest_events_as_training_saw_them(fitted, length):
    """Prevents long histories from being cut to a stump, and serving from building other inputs than training."""
    log, processor, parts = fitted
    train = parts.train.log
    rows = np.arange(length)  # of the first person
    history = {name: np.asarray(log["interactions"][name])[train.row[rows]] for name in HISTORY_COLUMNS}
    window = processor.request(history, asked, user={"age": log["users"]["age"][0]})
    kept = rows[-8:]  # max_history
    assert window["item_ids"].tolist() == train.item[kept].tolist()
    assert window["candidate_positions"].tolist() == [len(kept)] * 2
    for name in ("rating", "surface", "time_gap"):
        trained = (train.event_features | train.candidate_features)[name][kept]
        assert np.array_equal(window["event_features"][name], trained, equal_nan=name == "time_gap"), name
    assert window["user_features"]["age"] == parts.train[0]["user_features"]["age"]


@pytest.mark.parametrize("declared", ["feedback", "context"])
def test_lists_may_be_feedback_and_context(tables, declared):
    """Prevents a request that says nothing about a multi-valued column from being an error."""
    tables["interactions"]["moods"] = [[["calm"], ["glad", "calm"], []][n % 3] for n in range(400)]
    processor, _ = fit(tables, columns={declared: {"moods": "multi"}})
    history = [{"item_id": 3, "moods": ["calm", "new"]}, 4]
    window = processor.request(history, asked)
    assert window["event_features"]["moods"].tolist() == [[2, 1], [0, 0]]
    if declared == "context":
        assert window["candidate_features"]["moods"].tolist() == [[0, 0], [0, 0]]
        known = processor.request(history, asked, context={"moods": ["glad"]})
        assert known["candidate_features"]["moods"].tolist() == [[3, 0], [3, 0]]


def test_times_of_a_history_may_be_of_any_unit(tables):
    """Prevents a history in milliseconds from being a thousand times as long ago."""
    seconds, _ = fit(tables)
    tables["interactions"]["timestamp"] = (tables["interactions"]["timestamp"] * 1000).astype(np.int64)
    milliseconds, _ = fit(tables, columns={**COLUMNS, "time_unit": "ms"})
    first, second = (
        processor.request([{"item_id": 3, "timestamp": t}, {"item_id": 4, "timestamp": t + 60 * unit}], asked)
        for processor, t, unit in ((seconds, 2e6, 1), (milliseconds, 2_000_000_000, 1000))
    )
    windows_equal(first, second)


def test_rows_of_the_log_are_a_history(tables, tmp_path):
    """Prevents columns of the log that nothing reads from being called mistakes, before and after saving."""
    tables["interactions"]["session"] = np.arange(400)
    processor, _ = fit(tables)
    rows = {name: np.asarray(values)[:2] for name, values in tables["interactions"].items()}
    processor.save_pretrained(tmp_path)
    for known in (processor, PolyRecProcessor.from_pretrained(tmp_path)):
        events = [{"item_id": int(i), "session": 3, "user_id": 7} for i in rows["item_id"]]
        windows_equal(known.request(events, asked), known.request(rows["item_id"], asked))
        with pytest.raises(ValueError, match="unknown key 'sesion' in the history.*did you mean 'session'"):
            known.request({"item_id": [3], "sesion": [1]}, asked)


@pytest.mark.parametrize(
    ("history", "options", "message"),
    [
        ([3], {"user": {"aged": 3}}, "unknown user column 'aged'.*did you mean 'age'"),
        ([3], {"context": {"surfaces": "home"}}, "unknown context column 'surfaces'.*did you mean 'surface'"),
        ([3], {"user": {"age": "old"}}, "user.age is 'old'; it must be a finite number or null"),
        (
            [{"item_id": 3, "timestamp": 2e6}, {"item_id": 4, "timestamp": 1e6}],
            {},
            "goes back in time in row 1: oldest",
        ),
        ([{"item_id": 3, "timestamp": 2e6}], {"time": 1.5e6}, "time 1500000 is not after .*would see the future"),
        ([{"item_id": 3, "timestamp": 2e6}], {"time": 2e6}, "time 2000000 is not after .*would see the future"),
        ([{"item_id": 3, "timestamp": 2e6}, 4], {}, r"history: column 'timestamp' \(time\) has no value in row 1"),
        ([{"item": 3}], {}, "unknown key 'item' in history.0.; did you mean 'item_id'. known: item_id"),
        ([3, None], {}, r"history\[1\] is None; it must be an item id: text or a whole number"),
        ([3, True], {}, r"history\[1\] is True; it must be an item id"),
        ([3, 4.5], {}, r"history\[1\] is 4.5; it must be an item id"),
        ([{"item_id": 3, "ratng": 5.0}], {}, r"unknown key 'ratng' in history\[0\]; .*did you mean 'rating'"),
        ({"item_id": [3], "ratng": [5.0]}, {}, "unknown key 'ratng' in the history; .*did you mean 'rating'"),
        ([{"item_id": 3, "rating": "good"}], {}, r"history\[0\].rating is 'good'; it must be a finite number or null"),
        ([3, {"item_id": 3, "rating": float("inf")}], {}, r"history\[1\].rating is inf; it must be a finite number"),
        ([{"item_id": 3, "surface": "home"}], {"context": {"surface": 1}}, "context.surface is 1, but the history has"),
        ([{"item_id": 3, "surface": {"a": 1}}], {}, r"history\[0\].surface is .*; it must be one value or a list"),
        ([{"rating": 5.0}], {}, r"history\[0\] has no 'item_id': say which item it is about"),
        ({"item_id": 3, "rating": 5.0}, {}, "history is .*, one event: put it into a list"),
        ([3], {"user": ["age"]}, r"user is \['age'\]; it must be a mapping of columns to values"),
        ([3], {"user": {"age": float("inf")}}, "user.age is inf; it must be a finite number"),
        ([3], {"context": 3}, "context is 3; it must be a mapping of columns to values"),
        ([3], {"time": "soon"}, "time cannot be read as a time: soon; use ISO 8601"),
        ([3], {"time": True}, "time has type bool"),
        ([3], {"time": float("nan")}, "time is nan: give an ISO 8601 string, a date or a number"),
        ([3], {"time": 1.6e12}, "time is 1600000000000.0, which is after the year 3000"),
        ([3, "new"], {}, "history: column 'item_id' mixes types"),
        (3, {}, "history: cannot read a int: pass"),
    ],
)
def test_impossible_requests_are_refused(fitted, history, options, message):
    """Prevents misspelt attributes from being ignored, and answers that would see the future."""
    with pytest.raises(ValueError, match=message):
        fitted[1].request(history, asked, **options)


# ----------------------------------------------------------------------- updates
def test_updates_are_counted_once(tables):
    """Prevents events that are given again, all or those of the latest time alone, from being counted twice."""
    processor, _ = fit(tables)
    new = change(tables["interactions"], 0, timestamp=[9e6], user_id=[777])
    processor.update(new)
    assert processor.statistics.last_time == 9e6
    before = processor.request(None, asked, user_id=777)
    for again in (new, tables["interactions"]):
        with pytest.raises(ValueError, match="already counted"):
            processor.update(again)
    windows_equal(processor.request(None, asked, user_id=777), before)
    assert len(before["item_ids"]) == 1


def test_a_user_is_the_same_as_number_and_as_text(tables, tmp_path):
    """Prevents a request that has the id as text, as the command line does, from being that of somebody new."""
    processor, _ = fit(tables)
    for one in (processor, reloaded(processor, tmp_path)):
        number, text, nobody = (one.request(None, asked, user_id=user) for user in (5, "5", "x"))
        windows_equal(number, text)
        assert (len(number["item_ids"]), len(nobody["item_ids"])) == (8, 0)


def test_a_late_update_names_the_row_of_its_table(tables):
    """Prevents the message from counting rows of the sorted log, which the user has never seen."""
    processor, _ = fit(tables)
    new = {"item_id": [3, 3], "timestamp": [9e6, 5.0], "rating": [4.0, 4.0], "surface": ["home", "home"]}
    with pytest.raises(ValueError, match="row 1 has time 5, earlier than"):
        processor.update({"user_id": [2, 1], **new})


def test_updates_reach_requests(tables):
    """Prevents a deployed model from being fed without effect."""
    processor, _ = fit(tables)
    before = processor.request(None, asked)
    processor.update(change(tables["interactions"], 0, item_id=[0], timestamp=[9e6], rating=[1.0]))
    after = processor.request(None, asked, time=9e6 + 1)
    names, first = processor.statistics.names, "item-context.rating"
    one, two = (w["candidate_features"]["statistics"][0, names.index(first)] for w in (before, after))
    assert two < one


# ------------------------------------------------------------------- construction
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ties": "strickt"}, "ties is 'strickt'; it must be .*did you mean 'strict'"),
        ({"max_history": 0}, "max_history is 0; it must be a whole number in"),
        ({"tasks": []}, "no tasks given"),
        ({"columns": {"itm": "id"}}, "unknown key 'itm' in Columns; .*did you mean 'item'"),
        ({"columns": {"item_features": {"genr": "categorical"}}}, "items: no column 'genr'.*did you mean 'genre'"),
    ],
)
def test_impossible_processors_are_refused_at_once(tables, options, message):
    """Prevents a misspelt option from surfacing after an hour of encoding."""
    with pytest.raises(ValueError, match=message):
        PolyRecProcessor.fit(**tables, **{"tasks": TASKS, **options})


def test_next_item_alone_needs_no_labels(tables, tmp_path):
    """Prevents the simplest recommender, one without any rating, from being impossible with statistics."""
    del tables["interactions"]["rating"]
    processor, parts = fit(tables, tasks=RETRIEVAL)
    names = [feature.name for feature in processor.features]
    assert "residuals" not in names
    assert "statistics" in names
    assert "residuals" not in parts.train[0]["event_features"]
    assert processor.without_updates(parts.test, 1e6 + 500)[0]["candidate_features"]["statistics"].shape[1] > 0
    windows_equal(reloaded(processor, tmp_path).request([3, 4], asked), processor.request([3, 4], asked))


def test_labels_are_feedback_unless_said_otherwise(tables):
    """Prevents a model from not knowing how past events were rated, and from reading a rating before it was given."""
    processor, parts = fit(tables)
    assert processor.columns.feedback == ("rating",)
    window = parts.train[0]
    assert "rating" in window["event_features"]
    assert "rating" not in window["candidate_features"]
    assert "surface" in window["candidate_features"]
    assert "surface" in window["event_features"]


def test_every_feature_is_in_the_windows_with_its_shape(fitted):
    """Prevents the configuration from describing other inputs than the batches hold."""
    _, processor, parts = fitted
    window = parts.train[0]
    found = {
        "user": window["user_features"],
        "event": window["event_features"],
        "candidate": window["candidate_features"],
        "item": {name: values[window["candidate_ids"]] for name, values in processor.items.encoded.items()},
    }
    for feature in processor.features:
        values = np.asarray(found[feature.source][feature.name])
        if feature.kind in ("categorical", "multi"):
            assert values.dtype == np.int64
            assert values.max() < feature.size
            assert feature.kind != "multi" or values.shape[-1] == feature.width
        else:
            assert values.dtype == np.float32
            assert feature.kind != "vector" or values.shape[-1] == feature.size
