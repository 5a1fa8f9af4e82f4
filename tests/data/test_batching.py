"""Many windows read at once against the collator, which cuts out and pads one at a time."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_fixtures import arguments, fit, synthetic_log, tiny_model
from torch.utils.data import DataLoader, Subset
from window_fixtures import gaps, make_log, two_views, users

from polyrec import PolyRecTrainer
from polyrec.data import batching
from polyrec.data.augmentation import Mask
from polyrec.data.batching import BatchReader, WindowBatch
from polyrec.data.collator import PolyRecCollator
from polyrec.data.event_log import Candidates, EventLog
from polyrec.data.mixing import MixedDataset
from polyrec.data.prior_history import PriorHistory
from polyrec.data.sequences import SequenceDataset
from polyrec.evaluation.evaluator import predict


def assert_same(one, other, name="batch"):
    """Two batches hold the same keys, types, shapes and values; NaN equals NaN."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), name
        for key in one:
            assert_same(one[key], other[key], f"{name}.{key}")
    else:
        assert one.dtype == other.dtype, name
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True, msg=name)


def one_by_one(dataset, indices, multiple=1):
    return PolyRecCollator(multiple)([dataset[i] for i in indices])


def rich_log(users, gaps, random, past=None) -> EventLog:
    """A log with features of every kind and width; each value is drawn, so that no row looks like another.

    Args:
        past: events before the log of each person, and how many of them are read; None: no past.
    """
    rows, count = sum(users), len(users)

    def features(size):
        return {
            "code": random.integers(1, 99, size),
            "codes": random.integers(1, 99, (size, 3)),
            "number": np.where(random.random(size) < 0.2, np.nan, random.random(size)).astype(np.float32),
            "numbers": random.random((size, 2)).astype(np.float32),
        }

    log = make_log(
        users,
        gaps,
        labels=random.choice([0.0, 1.0, np.nan], (rows, 1)).astype(np.float32),
        # A column may have any name; a gap belongs to a place, not to an event.
        event_features=features(rows) | {"item_ids": random.random(rows), "time_gap": random.random(rows)},
        candidate_features={f"context_{name}": values for name, values in features(rows).items()},
        user_features=features(count),
    )
    if past is not None:
        held, length = past
        offsets = np.concatenate([[0], np.cumsum(held)])
        known = features(offsets[-1])
        del known["codes"]  # a feature that the past says nothing about
        log.prior_history = PriorHistory(offsets, random.integers(1, 99, offsets[-1]), {}, known, length)
    return log


@st.composite
def data_sets(draw) -> SequenceDataset:
    """Data sets with and without every option that a reader must know."""
    sizes, times = draw(users), draw(gaps)
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    past = None
    if draw(st.booleans()):
        past = draw(st.lists(st.integers(0, 5), min_size=len(sizes), max_size=len(sizes))), draw(st.integers(0, 4))
    log = rich_log(sizes, times, random, past)
    if draw(st.booleans()):
        log.sample_weight = {"y": random.random(len(log)).astype(np.float32)}
    max_history = draw(st.integers(1, 6))
    options = {
        "stride": draw(st.one_of(st.none(), st.integers(1, max_history))),
        "keep_negatives": draw(st.sampled_from([{}, {"y": 0.4}])),
        "seed": draw(st.integers(0, 3)),
        "shuffle_ties": draw(st.booleans()),
    }
    views = draw(st.sampled_from(["own", "both", "one"]))
    if views != "own":
        options["own_view_tasks"] = draw(st.sampled_from([(), ("y",)]))
        options["delayed_share"] = None if views == "both" else draw(st.sampled_from([0.0, 0.3, 1.0]))
        data = two_views(log, draw(st.floats(0, 4)), max_history, **options)
    else:
        asked = np.array(sorted(draw(st.sets(st.integers(0, len(log) - 1), min_size=1))))
        data = SequenceDataset(log, Candidates(asked, log.visible()[asked]), ["y"], None, max_history, **options)
    if draw(st.booleans()):
        rows = 1 + max(int(data.candidates.statistic.max()), len(log))
        data = data.with_candidates(data.candidates, random.random((rows, 3)).astype(np.float32))
    else:
        data = data.with_candidates(data.candidates, None)
    data.set_epoch(draw(st.integers(0, 3)))
    return data


# ------------------------------------------------------------------ the same batches
@settings(max_examples=100, deadline=None)
@given(data_sets(), st.sampled_from([1, 2, 8]), st.data())
def test_a_batch_is_what_the_collator_makes_of_its_windows(dataset, multiple, data):
    """Prevents the fast path from showing, asking or padding anything else than the windows that all other tests read."""
    indices = data.draw(st.lists(st.integers(0, len(dataset) - 1), min_size=1, max_size=8))
    assert_same(BatchReader(dataset)(indices, multiple), one_by_one(dataset, indices, multiple))


@pytest.mark.parametrize("part", ["train", "valid", "test"])
def test_batches_of_a_processors_data_sets(part):
    """Prevents a feature that only real logs have (residuals, gaps, lists, weights) from being lost or misplaced."""
    tables = synthetic_log(keep=0.7)
    tables["interactions"]["weight"] = np.linspace(0.1, 1, len(tables["interactions"]["rating"]))
    columns = {
        "context": ["surface"],
        "prior_history": {"watched": [], "liked": ["like"]},
        "feedback": ["rating", "like"],
    }
    tables["interactions"]["like"] = (np.arange(len(tables["interactions"]["rating"])) % 3 == 0).astype(int)
    processor, _ = fit(tables, columns=columns | {"weight": {"like": "weight"}}, max_history=4)
    past = {"user_id": [3, 1, 99], "watched": [[1, 2, 3, 4, 5], [7], [1]], "liked": [[2, 9], [], [4]]}
    splits = processor.split(
        tables["interactions"], prior_history=past, max_delay=3000.0, delayed_share=0.5,
        keep_negatives={"like": 0.5},
    )  # fmt: skip
    dataset = getattr(splits, part)
    dataset.set_epoch(2)
    assert dataset.log.prior_history is not None
    for indices in np.array_split(np.random.default_rng(0).permutation(len(dataset)), 3):
        found = BatchReader(dataset)(indices)
        assert {"statistics", "surface"} == set(found["candidate_features"])
        assert {"residuals", "time_gap", "rating", "like", "surface"} == set(found["event_features"])
        assert_same(found, one_by_one(dataset, indices.tolist()))


def test_the_batch_does_not_share_memory_with_the_log():
    """Prevents an in-place change of a batch from changing the log, and with it all later epochs."""
    random = np.random.default_rng(0)
    log = rich_log([4, 3], [1], random, past=([2, 0], 2))
    log.sample_weight = {"y": np.ones(7, dtype=np.float32)}
    data = two_views(log, 1.0)
    before = data._reader([0, 1])
    for changed in (data._reader([0, 1]), data._reader([0, 1])):
        assert_same(changed, before)
        _fill(changed)


def _fill(batch):
    for value in batch.values():
        _fill(value) if isinstance(value, dict) else value.fill_(7)


# ------------------------------------------------------------------ where it is used
@pytest.fixture
def used(monkeypatch):
    """Indices of the windows that were read at once."""
    read = BatchReader.__call__
    found: list[int] = []

    def counting(self, indices, multiple=1):
        found.extend(indices)
        return read(self, indices, multiple)

    monkeypatch.setattr(batching.BatchReader, "__call__", counting)
    return found


@pytest.fixture(scope="module")
def world():
    processor, _ = fit()
    splits = processor.split(synthetic_log()["interactions"], shuffle_ties=False, keep_negatives={"like": 0.5})
    return processor, splits


def test_loaders_read_at_once_through_subsets_too(world, used):
    """Prevents a loader from falling back to window after window without anybody noticing."""
    data = world[1].train
    some = [5, 2, 9, 0]
    for dataset, expected in ((data, list(range(len(data)))), (Subset(data, some), some)):
        used.clear()
        batches = list(DataLoader(dataset, batch_size=3, collate_fn=PolyRecCollator(2)))
        assert used == expected
        for start, batch in zip(range(0, len(expected), 3), batches, strict=True):
            assert_same(batch, one_by_one(data, expected[start : start + 3], 2))


def test_worker_processes_read_at_once(world):
    """Prevents a reader that cannot be sent to a worker process."""
    data = Subset(world[1].train, [3, 1, 4])
    context = "fork"  # a spawned worker imports torch anew, which takes seconds
    (batch,) = DataLoader(data, 3, collate_fn=PolyRecCollator(), num_workers=1, multiprocessing_context=context)
    assert_same(batch, one_by_one(world[1].train, [3, 1, 4]))
    dataset = pickle.loads(pickle.dumps(world[1].train))
    assert_same(dataset._reader([3, 1]), one_by_one(world[1].train, [3, 1]))


def test_evaluation_reads_at_once_and_without_draws(world, used):
    """Prevents evaluation from being slow, and from leaving out the negatives that training does not ask."""
    processor, splits = world
    model, data = tiny_model(processor), splits.train
    assert data.keep_negatives
    fast = predict(model, data, batch_size=16)
    assert sorted(used) == list(range(len(data)))
    slow = predict(model, _OneByOne(**_fields(data)), batch_size=16)
    assert len(used) == len(data)  # no more than before
    for name, values in fast.values.items():
        assert np.array_equal(values, slow.values[name])
    assert np.array_equal(fast.rankings["next_item"].greater, slow.rankings["next_item"].greater)


class _OneByOne(SequenceDataset):
    """A data set that does not offer to be read at once."""

    __getitems__ = None  # type: ignore[assignment]


def _fields(data):
    return {f.name: getattr(data, f.name) for f in dataclasses.fields(data)}


def test_the_trainer_reads_at_once_and_draws_anew_in_every_epoch(world, used, tmp_path):
    """Prevents training from repeating the first epoch's negatives, because the reader remembers them."""
    processor, splits = world
    seen: list[dict] = []

    class Recording(PolyRecCollator):
        def __call__(self, windows):
            batch = super().__call__(windows)
            seen.append({"rows": batch["candidate_rows"], "like": batch["labels"]["like"]})
            return batch

    model = tiny_model(processor)
    options = arguments(tmp_path, num_train_epochs=2, per_device_train_batch_size=len(splits.train))
    trainer = PolyRecTrainer(model, options, splits.train, processing_class=processor, data_collator=Recording())
    trainer.train()
    assert sorted(used) == sorted([*range(len(splits.train))] * 2)
    asked = [set(batch["rows"][~torch.isnan(batch["like"])].tolist()) for batch in seen]
    assert len(asked) == 2
    assert asked[0] != asked[1]
    for epoch in range(2):
        splits.train.set_epoch(epoch)
        batch = one_by_one(splits.train, range(len(splits.train)))
        assert asked[epoch] == set(batch["candidate_rows"][~torch.isnan(batch["labels"]["like"])].tolist())


def test_a_mixture_reads_the_same_windows(world):
    """Prevents a mixture of data sets from being handed a batch where it expects windows, or the other way round."""
    data = world[1].train
    mixed = MixedDataset({"a": data, "b": data})
    batches = DataLoader(mixed, batch_size=4, collate_fn=PolyRecCollator())
    assert_same(next(iter(batches)), PolyRecCollator()([mixed[i] for i in range(4)]))


# ------------------------------------------------------------------ memory and processes
def test_the_log_is_looked_into_and_not_copied(world):
    """Prevents each worker from holding a copy of the log, as a reader of its own or in what it is sent."""
    data = dataclasses.replace(world[1].train)
    expected = PolyRecCollator()(data.__getitems__([0, 1]))
    log, reader = data.log, data._reader
    for name, values in {**log.event_features, **log.candidate_features}.items():
        assert reader._events[name].values.data_ptr() == values.__array_interface__["data"][0], name
    assert reader._items.values.data_ptr() == log.item.__array_interface__["data"][0]
    sent = pickle.loads(pickle.dumps(data))  # as to a worker that is spawned
    assert "_reader" not in vars(sent)
    assert_same(PolyRecCollator()(sent.__getitems__([0, 1])), expected)
    forked = DataLoader(data, 2, collate_fn=PolyRecCollator(), num_workers=1, multiprocessing_context="fork")
    assert_same(next(iter(forked)), expected)


# ------------------------------------------------------------------ what it does not support
def test_windows_that_are_changed_one_by_one_are_read_one_by_one(world, used):
    """Prevents augmentation from being skipped in silence."""
    data = world[1].train
    changed = dataclasses.replace(data, transform=Mask(0.5))
    assert not BatchReader.supports(changed)
    with pytest.raises(ValueError, match="windows with a transform are read one by one: use the collator"):
        BatchReader(changed)
    (batch,) = DataLoader(changed, batch_size=len(data), collate_fn=PolyRecCollator())
    assert_same(batch, one_by_one(changed, range(len(changed))))
    assert not used
    assert isinstance(changed.fixed().__getitems__([0]), WindowBatch)
