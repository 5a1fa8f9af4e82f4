"""What a model has learnt, and whom that refuses."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_fixtures import fit, synthetic_log
from window_fixtures import gaps, make_log, users

from polyrec import PolyRecProcessor
from polyrec.data.splits import LeakageError
from polyrec.data.training_rows import TrainingSetSketch, event_hashes

ITEMS = pa.array([f"item {n}" for n in range(100)])


def random_log(rows: int, seed: int = 0):
    """Events of a few people and items in few seconds, so that many share some of the three and some share all."""
    random = np.random.default_rng(seed)
    user = np.sort(random.integers(0, 30, rows))
    time = random.integers(0, 50, rows).astype(float)
    order = np.lexsort((time, user))
    log = make_log([1], [1])
    plain = {"item": random.integers(2, 40, rows), "time": time[order], "labels": np.zeros((rows, 1), np.float32)}
    every = np.arange(rows)
    return type(log)(user=user, order=every, row=every, user_ids=pa.array(range(user[-1] + 1)), **plain)


@settings(max_examples=60, deadline=None)
@given(users=users, gaps=gaps, data=st.data())
def test_any_shared_row_is_found_and_no_other_alarms(users, gaps, data):
    """Prevents a teacher from having learnt a single judged row, and honest ones from being refused."""
    log = make_log(users, gaps)
    learnt = np.array(data.draw(st.lists(st.booleans(), min_size=len(log), max_size=len(log))))
    judged = np.array(data.draw(st.lists(st.booleans(), min_size=len(log), max_size=len(log))))
    rows = TrainingSetSketch.of(log, learnt, ITEMS)
    assert (rows.number, rows.is_complete) == (learnt.sum(), True)
    if (learnt & judged).any():
        with pytest.raises(LeakageError, match=rf"trained on {(learnt & judged).sum()} of the {judged.sum()} rows"):
            rows.check(log, judged, ITEMS)
    else:
        rows.check(log, judged, ITEMS)


def test_events_that_share_all_three_are_told_apart():
    """Prevents a false alarm where a log holds an event twice and a cut goes between the two."""
    log = random_log(5000)
    triples = np.stack([log.user, log.item, log.time])
    assert len(np.unique(triples, axis=1).T) < len(log)
    assert len(np.unique(event_hashes(log, ITEMS, b"salt"))) == len(log)


def test_hashes_do_not_depend_on_a_processor():
    """Prevents a leak from going unseen because another catalog or log numbers people and items differently."""
    log = random_log(200)
    other = random_log(200)
    turned = np.random.default_rng(1).permutation(100)
    other.item = np.argsort(turned)[log.item - 2] + 2
    other.user_ids = other.user_ids.cast(pa.string())
    np.testing.assert_array_equal(
        event_hashes(log, ITEMS, b"s"), event_hashes(other, ITEMS.take(pa.array(turned)), b"s")
    )
    assert (event_hashes(log, ITEMS, b"s") != event_hashes(log, ITEMS, b"t")).all()


def test_a_small_leak_in_a_sketch_is_found_as_often_as_promised():
    """Prevents large logs from slipping through: k = 500 of 5,000 rows, 10 shared -> 1 - 0.9^10 = 0.65."""
    log = random_log(6000)
    learnt = np.arange(6000) < 5000
    judged = (np.arange(6000) >= 4990) & (np.arange(6000) < 5500)
    honest = np.arange(6000) >= 5000
    found = 0
    for _ in range(200):
        rows = TrainingSetSketch.of(log, learnt, ITEMS, size=500)
        rows.check(log, honest, ITEMS)
        try:
            rows.check(log, judged, ITEMS)
        except LeakageError:
            found += 1
    assert abs(found / 200 - (1 - 0.9**10)) < 0.12


def test_a_sketch_says_how_many_rows_it_stands_for():
    """Prevents the message from belittling a leak by what happens to be in the sketch."""
    log = random_log(6000)
    rows = TrainingSetSketch.of(log, np.arange(6000) < 4000, ITEMS, size=1000)
    with pytest.raises(LeakageError, match=r"\(about \d+: its sketch shows 25.0% of its rows\)") as caught:
        rows.check(log, np.arange(6000) < 2000, ITEMS)
    about = int(str(caught.value).split("about ")[1].split(":")[0])
    assert 1600 < about <= 2000


@pytest.mark.parametrize("size", [60, 10_000])
def test_rows_learnt_later_are_added_once(size):
    """Prevents an update's rows from being forgotten, and replayed ones from being counted again."""
    log = random_log(3000)
    index = np.arange(3000)
    first = TrainingSetSketch.of(log, index < 1000, ITEMS, size=size)
    both = first.extended(log, (index >= 500) & (index < 2000), ITEMS, size=size)
    assert both.number == pytest.approx(2000, rel=0 if size > 3000 else 0.15)
    whole = np.sort(event_hashes(log, ITEMS, first.salt)[index < 2000])
    np.testing.assert_array_equal(both.sketch, whole[:size])
    if size > 3000:
        with pytest.raises(LeakageError, match="trained on 1 of"):
            both.check(log, index == 1999, ITEMS)
        both.check(log, index == 2000, ITEMS)


def test_a_teacher_from_after_the_cut_is_refused():
    """Prevents a teacher that learnt other people's later events from telling the future of the trends."""
    log = random_log(2000)
    late = TrainingSetSketch.of(log, (log.user < 10) & (log.time <= 40), ITEMS)
    judged = (log.user >= 10) & (log.time >= 30)
    late.check(log, judged, ITEMS)
    with pytest.raises(LeakageError, match="up to time 40, later than 30"):
        late.check(log, judged, ITEMS, by_time=True)
    TrainingSetSketch.of(log, (log.user < 10) & (log.time <= 30), ITEMS).check(log, judged, ITEMS, by_time=True)


def test_a_processor_remembers_its_training_rows(tmp_path, users_by_name):
    """Prevents a saved teacher from forgetting what it learnt, and people's ids from lying in its files."""
    processor, parts = fit(users_by_name)
    processor.save_pretrained(tmp_path)
    loaded = PolyRecProcessor.from_pretrained(tmp_path)
    log = parts.train.log
    for known in (processor.training_rows, loaded.training_rows):
        assert known.number == len(np.unique(parts.train.candidates.event))
        assert known.latest == log.time[parts.train.candidates.event].max()
        known.check(log, np.isin(np.arange(len(log)), parts.test.candidates.event), loaded.items.ids, by_time=True)
        with pytest.raises(LeakageError, match="trained on 1 of"):
            known.check(log, np.arange(len(log)) == parts.train.candidates.event[3], loaded.items.ids)
    content = (tmp_path / "training_rows.safetensors").read_bytes()
    assert b"secret" not in content
    assert not any(np.float64(t).tobytes() in content for t in log.time if t not in (known.first, known.latest))


def test_older_folders_know_nothing(tmp_path):
    """Prevents a folder without the file from being read as one that learnt nothing."""
    processor, _ = fit(synthetic_log(users=6))
    processor.save_pretrained(tmp_path)
    processor.training_rows = None
    processor.save_pretrained(tmp_path)  # a stale file must not stay
    assert PolyRecProcessor.from_pretrained(tmp_path).training_rows is None
