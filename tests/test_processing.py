"""The processor: fit, split, freeze, serve, save, load."""

import json

import numpy as np
import pytest
from model_fixtures import fit, synthetic_log

from polyrec import PolyRecProcessor


@pytest.fixture(scope="module")
def fitted():
    log = synthetic_log()
    processor, parts = fit(log)
    return log, processor, parts


HISTORY = [{"item_id": 3, "rating": 5.0, "surface": "home"}, {"item_id": 4, "rating": 1.0, "surface": "search"}]


def windows_equal(first, second):
    for key, value in first.items():
        if isinstance(value, dict):
            windows_equal(value, second[key])
        else:
            assert np.array_equal(value, second[key], equal_nan=value.dtype.kind == "f"), key


def test_a_saved_processor_answers_the_same(fitted, tmp_path):
    """Prevents a vocabulary, scale or statistic from being lost or reordered on disk."""
    _, processor, _ = fitted
    processor.save_pretrained(tmp_path)
    loaded = PolyRecProcessor.from_pretrained(tmp_path)
    assert loaded.features == processor.features
    assert loaded.model_config().to_dict() == processor.model_config().to_dict()
    asked = np.arange(2, processor.num_items)
    request = {"user": {"age": 30}, "context": {"surface": "home"}}
    windows_equal(processor.request(HISTORY, asked, **request), loaded.request(HISTORY, asked, **request))
    assert processor.describe(5) == loaded.describe(5)


def test_nothing_about_people_is_saved(tmp_path):
    """Prevents user ids from leaving with a model."""
    log = synthetic_log()
    log["interactions"]["user_id"] = [f"secret{u}" for u in log["interactions"]["user_id"]]
    log["users"]["user_id"] = [f"secret{u}" for u in log["users"]["user_id"]]
    processor, _ = fit(log)
    processor.save_pretrained(tmp_path)
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or b"secret" not in path.read_bytes(), path


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda f: (f / "processor_config.json").unlink(), "has no processor_config.json"),
        (lambda f: (f / "processor_config.json").write_text('{"a": '), "not valid JSON"),
        (lambda f: (f / "items.parquet").write_bytes(b"PAR1"), "truncated"),
        (lambda f: (f / "items.parquet").unlink(), "no such file"),
        (
            lambda f: (f / "processor_config.json").write_text(json.dumps({"format_version": 99})),
            "format 99, newer than 1: update polyrec",
        ),
    ],
)
def test_damaged_folders_say_what_is_wrong(fitted, tmp_path, break_it, message):
    """Prevents a KeyError or a half-loaded processor."""
    fitted[1].save_pretrained(tmp_path)
    break_it(tmp_path)
    with pytest.raises(ValueError, match=message):
        PolyRecProcessor.from_pretrained(tmp_path)


def test_a_frozen_view_knows_nothing_after_its_cutoff(fitted):
    """Prevents a frozen evaluation from reading history or statistics of the evaluated period."""
    log, processor, parts = fitted
    cutoff = float(parts.test.log.time[parts.test.candidates.event].min())
    changed = synthetic_log()
    late = np.asarray(changed["interactions"]["timestamp"]) >= cutoff
    changed["interactions"]["rating"] = np.where(late, 6 - log["interactions"]["rating"], log["interactions"]["rating"])
    other = processor.split(changed["interactions"]).test  # training rows are the same, so scales are, too
    for i in range(len(parts.test)):
        first, second = (processor.frozen(d, cutoff)[i] for d in (parts.test, other))
        for key in ("item_ids", "candidate_positions", "candidate_features", "event_features"):
            windows_equal({key: first[key]}, {key: second[key]})


def test_prequential_rows_do_not_see_their_own_time(fitted):
    """Prevents the label of a row, or of rows of its second, from reaching its own inputs."""
    log, processor, parts = fitted
    changed = synthetic_log()
    rating = np.array(changed["interactions"]["rating"])
    last = np.asarray(changed["interactions"]["timestamp"]).max()
    rating[np.asarray(changed["interactions"]["timestamp"]) == last] = 5.0
    changed["interactions"]["rating"] = rating
    other = processor.split(changed["interactions"]).test
    processor.split(log["interactions"])  # back to the fixture's statistics
    rows = parts.test.log.time[parts.test.candidates.event] == last
    assert rows.any()
    for name, data in (("first", parts.test), ("second", other)):
        assert data.statistics is not None, name
    first = parts.test.statistics[parts.test.candidates.statistic[rows]]
    second = other.statistics[other.candidates.statistic[rows]]
    assert np.array_equal(first, second, equal_nan=True)


def test_unknown_ids_and_values_are_cold_starts(fitted):
    """Prevents a new item or a new attribute value from being an error at serving time."""
    _, processor, _ = fitted
    window = processor.request([12345, 3], np.array([2, 3]), context={"surface": "billboard"}, user={"age": None})
    assert window["item_ids"].tolist() == [1, processor.items.rows(processor.items.ids[3:4])[0]]
    assert window["candidate_features"]["surface"].tolist() == [1, 1]
    assert len(processor.request(None, np.array([2]))["item_ids"]) == 0


def test_impossible_requests_are_refused(fitted):
    """Prevents misspelt attributes from being ignored, and answers that would see the future."""
    _, processor, _ = fitted
    with pytest.raises(ValueError, match="unknown user column 'aged'.*did you mean 'age'"):
        processor.request([3], np.array([2]), user={"aged": 3})
    events = [{"item_id": 3, "timestamp": 2e6}, {"item_id": 4, "timestamp": 1e6}]
    with pytest.raises(ValueError, match="goes back in time in row 1"):
        processor.request(events, np.array([2]))
    with pytest.raises(ValueError, match="would see the future"):
        processor.request(events[:1], np.array([2]), time=1.5e6)


def test_updates_advance_statistics_and_keep_people_apart(fitted):
    """Prevents the state of one person from being continued by another whose number in a later table is the same."""
    log, _, _ = fitted
    processor, _ = fit(log)
    before = processor._person_codes(processor.encode_events(log["interactions"]).user_ids)
    new = {k: np.asarray(v)[-1:] for k, v in log["interactions"].items()} | {"timestamp": [9e6], "user_id": ["new"]}
    new["user_id"] = [777]
    processor.update(new)
    assert processor.statistics.last_time == 9e6
    after = processor._person_codes(processor.encode_events(new).user_ids)
    assert after[0] not in before
    with pytest.raises(ValueError, match="already counted"):
        processor.update(log["interactions"])


def test_delayed_rows_train_beside_fresh_ones(fitted):
    """Prevents `max_delay` from replacing the fresh view, and from showing a delayed row what lies within its delay."""
    log, processor, parts = fitted
    delayed = processor.split(log["interactions"], max_delay=5000.0).train
    assert delayed.own_view.sum() == parts.train.num_candidates
    assert delayed.num_candidates == 2 * parts.train.num_candidates
    own = dict(
        zip(delayed.candidates.event[delayed.own_view], delayed.candidates.position[delayed.own_view], strict=True)
    )
    hidden = ~delayed.own_view
    fresh = np.array([own[e] for e in delayed.candidates.event[hidden]])
    assert (delayed.candidates.position[hidden] <= fresh).all()
    assert (delayed.candidates.position[hidden] < fresh).any()
    processor.split(log["interactions"])
