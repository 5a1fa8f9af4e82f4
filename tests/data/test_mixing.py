"""Several data sets in one training: shares, passes, tasks that only some have, tables under one another."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_fixtures import COLUMNS, TASKS, arguments, fit, synthetic_log, tiny_model
from transformers import TrainerCallback
from window_fixtures import dataset, make_log, same_windows, windows

from polyrec import Columns, PolyRecCollator, PolyRecProcessor, PolyRecTrainer
from polyrec.data.mixing import MixedDataset, _round, concatenate_tables, split_by_source

sizes = st.lists(st.integers(1, 9), min_size=1, max_size=4)


def part(windows_of_set, task="y", **options):
    """A data set of so many windows, one per person, whose items say where they come from."""
    return dataclasses.replace(dataset(make_log([2] * windows_of_set, [1]), **options), task_names=[task])


def mixture(sizes, **options):
    return MixedDataset({f"set{i}": part(n) for i, n in enumerate(sizes)}, **options)


def drawn(mixed, epoch):
    """{data set: how often each of its windows is read in an epoch}."""
    counts = {name: np.zeros(len(d), dtype=int) for name, d in mixed.datasets.items()}
    bounds = np.cumsum([0] + [d.num_candidates for d in mixed.datasets.values()])
    names = list(mixed.datasets)
    for window in windows(mixed, epoch):
        which = np.searchsorted(bounds, window["candidate_rows"][0], side="right") - 1
        counts[names[which]][window["user_features"]["age"] // 100] += 1
    return counts


# ------------------------------------------------------------------ shares
@settings(max_examples=60, deadline=None)
@given(sizes, st.floats(1, 10))
def test_shares_follow_the_temperature(sizes, temperature):
    """Prevents the temperature from working the wrong way round (or not at all, or on the wrong sizes)."""
    mixed = mixture(sizes, temperature=temperature)
    raised = np.array(sizes) ** (1 / temperature)
    assert np.allclose(list(mixed.shares.values()), raised / raised.sum())
    total = sum(sizes)
    assert len(mixed) == total
    counts = np.array([c.sum() for c in drawn(mixed, 0).values()])
    exact = raised / raised.sum() * total
    assert (np.abs(counts - exact) < max(1.0, len(sizes) - 1 + 1e-9)).all()
    assert (counts >= 1).all()


def test_without_temperature_every_window_is_read_once():
    """Prevents a mixture that leaves data out although nothing was to be changed."""
    for epoch in range(3):
        assert all((c == 1).all() for c in drawn(mixture([5, 1, 8]), epoch).values())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=6), st.integers(0, 100))
def test_rounding_keeps_the_total_and_leaves_nobody_out(parts, extra):
    """Prevents an epoch from being one window short, and a small data set from never being read."""
    shares = np.array(parts) / sum(parts)
    size = len(parts) + extra
    count = _round(shares, size)
    assert count.sum() == size
    assert (count >= 1).all()
    if (shares * size >= 1).all():
        assert (np.abs(count - shares * size) < 1).all()


def test_fixed_shares_and_size():
    """Prevents shares from being taken in the order of the data sets instead of by name."""
    mixed = mixture([4, 4], shares={"set1": 0.75, "set0": 0.25}, size=40)
    assert {name: c.sum() for name, c in drawn(mixed, 0).items()} == {"set0": 10, "set1": 30}


@settings(max_examples=30, deadline=None)
@given(sizes, st.integers(4, 40), st.integers(0, 3))
def test_no_window_is_read_again_before_all_others(sizes, size, seed):
    """Prevents small shares from reading a few windows of a large set over and over, and others never."""
    mixed = mixture(sizes, temperature=3.0, size=size, seed=seed)
    counts = {name: np.zeros(len(d), dtype=int) for name, d in mixed.datasets.items()}
    for epoch in range(4):
        for name, found in drawn(mixed, epoch).items():
            counts[name] += found
            assert counts[name].max() - counts[name].min() <= 1


@settings(max_examples=20, deadline=None)
@given(sizes, st.integers(0, 5), st.integers(0, 3), st.randoms(use_true_random=False))
def test_an_epoch_depends_on_seed_and_number_alone(sizes, epoch, seed, random):
    """Prevents ranks or a resumed run from reading other windows than the run at whose place they stand."""
    one, two = (mixture(sizes, temperature=2.0, seed=seed) for _ in range(2))
    for _ in range(3):
        two.set_epoch(random.randrange(9))
    assert all(same_windows(a, b) for a, b in zip(windows(one, epoch), windows(two, epoch), strict=True))
    assert [max(len(w["item_ids"]), len(w["candidate_ids"])) for w in windows(one, epoch)] == one.lengths
    other_order = MixedDataset(dict(reversed(one.datasets.items())), temperature=2.0, seed=seed)
    assert {n: c.tolist() for n, c in drawn(one, epoch).items()} == {
        n: c.tolist() for n, c in drawn(other_order, epoch).items()
    }


def test_epochs_and_seeds_differ():
    """Prevents every epoch from leaving the same windows out."""
    chosen = [tuple(drawn(mixture([30], size=10, seed=seed), epoch)["set0"]) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(chosen)) == 4


def test_a_window_draws_for_its_pass():
    """Prevents a window that is read twice in an epoch from showing the same order of ties or the same negatives twice."""
    one = part(1, max_history=12)
    one = dataclasses.replace(one, log=make_log([12], [0]), candidates=dataset(make_log([12], [0]), "order").candidates)
    one = dataclasses.replace(one, shuffle_ties=True)
    mixed = MixedDataset({"only": one}, size=4)
    assert len({tuple(w["item_ids"]) for w in windows(mixed)}) == 4
    assert {tuple(w["item_ids"]) for w in windows(mixed, 1)} != {tuple(w["item_ids"]) for w in windows(mixed, 0)}


# ------------------------------------------------------------------ unequal tasks
def test_tasks_that_a_set_does_not_have_are_unknown():
    """Prevents a missing task from being 0, from breaking the batch, or from taking another task's labels."""
    weighted = part(3, "watch")
    weighted = dataclasses.replace(
        weighted, log=dataclasses.replace(weighted.log, sample_weight={"watch": np.full(6, 2, dtype=np.float32)})
    )
    mixed = MixedDataset({"clicks": part(2, "click"), "views": weighted})
    batch = PolyRecCollator()(windows(mixed))
    click, watch = batch["labels"]["click"], batch["labels"]["watch"]
    assert (click.isnan() ^ watch.isnan()).all()
    assert (
        click[:2].flatten().tolist()
        == mixed.datasets["clicks"].labels()[batch["candidate_rows"][:2].flatten(), 0].tolist()
    )
    assert watch[2:].isnan().logical_not().all()
    assert batch["sample_weight"]["watch"].tolist() == [[1.0, 1.0]] * 2 + [[2.0, 2.0]] * 3
    assert sorted(batch["candidate_rows"].flatten().tolist()) == list(range(mixed.num_candidates))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mixture([1, 1], temperature=0.5), "temperature is 0.5; it must be >= 1"),
        (lambda: mixture([1, 1], temperature=float("nan")), "temperature is nan"),
        (lambda: mixture([1], shares={"set0": 1.0}, temperature=2.0), "either a temperature or shares, not both"),
        (lambda: mixture([1, 1], shares={"set0": 0.5, "sett1": 0.5}), "unknown data set 'sett1'; .*did you mean 'set1'"),
        (lambda: mixture([1, 1], shares={"set0": 1.0}), "data set 'set1' has no share"),
        (lambda: mixture([1, 1], shares={"set0": 0.5, "set1": 0.6}), "must be positive and sum to 1"),
        (lambda: mixture([1, 1], size=1), "size is 1: an epoch must hold a window of each of the 2 data sets"),
        (lambda: MixedDataset({"a": part(1), "b": dataset(make_log([1], [1], event_features={}))}),
         r"'a' and 'b' differ in the features \['event stars'\]: make both with one processor"),
        (lambda: MixedDataset({"a": part(1), "b": dataset(make_log([1], [1]), statistics=np.zeros((1, 3)))}),
         r"differ in the features \['statistics'\]"),
    ],
)  # fmt: skip
def test_wrong_mixtures_are_refused(make, message):
    """Prevents data sets of two processors from being mixed, whose codes mean different things."""
    with pytest.raises(ValueError, match=message):
        make()


# ------------------------------------------------------------------ tables
def test_tables_become_one_log_with_the_history_of_all():
    """Prevents events of one table from being invisible to those of another, and unknown labels from being known."""
    clicks = {"user_id": [1, 1, 2], "item_id": [5, 6, 5], "timestamp": [10, 30, 20], "click": [1, 0, 1]}
    stars = {"user_id": [1, 2], "item_id": [7, 8], "timestamp": [20, 40], "rating": [4.0, 2.0]}
    table = concatenate_tables({"clicks": clicks, "stars": stars}, source="origin")
    assert table["origin"].to_pylist() == ["clicks"] * 3 + ["stars"] * 2
    tasks = [{"name": "click", "head": "binary"}, {"name": "rating", "head": "regression"}]
    processor = PolyRecProcessor.fit(table, tasks=tasks, statistics=False)
    train = processor.split(table, cuts=(100, 100)).train
    assert np.isnan(train.labels()).sum(axis=1).tolist() == [1] * 5
    first = processor.items.ids.take(pa.array(train[0]["item_ids"][:2] - 2)).to_pylist()
    assert first == [5, 7]  # what person 1 had done before the click of time 30, over both tables
    parts = split_by_source(train, table["origin"])
    assert {name: d.num_candidates for name, d in parts.items()} == {"clicks": 3, "stars": 2}
    for name, j in (("clicks", 0), ("stars", 1)):
        assert not np.isnan(parts[name].labels()[:, j]).any()
    mixed = MixedDataset(parts, shares={"clicks": 0.5, "stars": 0.5})
    assert mixed.task_names == ["click", "rating"]
    with pytest.raises(ValueError, match="source has 4 values but the log has 5 rows"):
        split_by_source(train, table["origin"][:4])


@pytest.mark.parametrize(
    ("tables", "options", "message"),
    [
        ({}, {}, "no tables given"),
        ({"a": {"user_id": [1], "item_id": [1]}}, {}, r"a: no column 'timestamp' \(needed as time\)"),
        ({"a": {"user_id": [1], "item_id": [1], "timestamp": [1]}}, {"source": "item_id"},
         "a: there is a column 'item_id' already"),
        ({"a": {"user_id": [1], "item_id": [1], "timestamp": [1], "rating": [1]},
          "b": {"user_id": [1], "item_id": [1], "timestamp": [1], "rating": ["x"]}}, {},
         "column 'rating' is int64 in a and string in b: give the columns of all tables one type"),
        ({"a": {"user_id": [1], "item_id": [1], "timestamp": [1]}}, {"columns": Columns(order="line")},
         r"a: no column 'line' \(needed as order\)"),
    ],
)  # fmt: skip
def test_wrong_tables_are_named(tables, options, message):
    """Prevents rows without a person or a time from being found only later, under a row number of no table."""
    with pytest.raises(ValueError, match=message):
        concatenate_tables(tables, **options)


def test_ids_of_all_tables_are_of_one_type():
    """Prevents 007 of one log from becoming the 7 of another, and 2^53 + 1 from losing a digit beside ids with gaps."""
    rest = {"user_id": [1], "timestamp": [1]}
    codes = concatenate_tables({"a": rest | {"item_id": [7]}, "b": rest | {"item_id": ["007"]}})
    assert codes["item_id"].to_pylist() == ["7", "007"]
    large = concatenate_tables({"a": rest | {"item_id": [2**53 + 1]}, "b": rest | {"item_id": [3.0]}})
    assert large["item_id"].to_pylist() == [2**53 + 1, 3]


# ------------------------------------------------------------------ training
class StopAt(TrainerCallback):
    """Saves and stops at a step."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **unused):
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


@pytest.fixture(scope="module")
def two_sources():
    """A processor and a mixture of one log's ratings at home and in search."""
    log = synthetic_log(keep=0.7)
    table = {**log["interactions"], "source": np.where(np.asarray(log["interactions"]["user_id"]) % 3 == 0, "a", "b")}
    processor = PolyRecProcessor.fit(**{**log, "interactions": table}, tasks=TASKS, columns=COLUMNS, max_history=8)
    parts = split_by_source(processor.split(table).train, table["source"])
    assert len(parts["a"]) < len(parts["b"])
    return processor, MixedDataset(parts, temperature=4.0, size=40)


def trainer_of(world, folder, **options):
    processor, mixed = world
    mixed.set_epoch(0)
    given = {"per_device_train_batch_size": 8, "num_train_epochs": 2, **options}
    callbacks = given.pop("callbacks", None)
    return PolyRecTrainer(
        tiny_model(processor, dropout=0.2), arguments(folder, **given),
        train_dataset=mixed, processing_class=processor, callbacks=callbacks,
    )  # fmt: skip


@pytest.mark.parametrize("strategy", ["group_by_length", "random"])
def test_resumed_training_of_a_mixture_is_bit_identical(two_sources, tmp_path, strategy):
    """Prevents a resumed epoch from mixing other windows, and lengths of one epoch from grouping another's."""
    whole = trainer_of(two_sources, tmp_path / "whole", train_sampling_strategy=strategy)
    whole.train()
    assert whole.state.global_step == 10
    trainer_of(two_sources, tmp_path / "cut", train_sampling_strategy=strategy, callbacks=[StopAt(7)]).train()
    resumed = trainer_of(two_sources, tmp_path / "cut", train_sampling_strategy=strategy)
    resumed.train(resume_from_checkpoint=True)
    torch.testing.assert_close(
        dict(resumed.model.state_dict()), dict(whole.model.state_dict()), rtol=0, atol=0, equal_nan=True
    )


def test_training_reads_each_epoch_of_the_mixture(two_sources, tmp_path):
    """Prevents the trainer from reading the first epoch's windows for ever."""
    seen: list[list[int]] = []

    class Recording(PolyRecTrainer):
        def training_step(self, model, inputs, *args, **kwargs):
            seen.append(inputs["candidate_rows"][:, 0].tolist())
            return super().training_step(model, inputs, *args, **kwargs)

    processor, mixed = two_sources
    mixed.set_epoch(0)
    model = tiny_model(processor)
    options = {"per_device_train_batch_size": 8, "num_train_epochs": 2}
    Recording(model, arguments(tmp_path, **options), train_dataset=mixed, processing_class=processor).train()
    read = [sorted(row for rows in half for row in rows) for half in (seen[:5], seen[5:])]
    expected = [sorted(int(w["candidate_rows"][0]) for w in windows(mixed, epoch)) for epoch in range(2)]
    assert read == expected
    assert read[0] != read[1]


def test_one_view_per_epoch_trains(tmp_path):
    """Prevents windows without candidates, which some epochs have, from breaking a step."""
    log = synthetic_log(keep=0.5)
    processor, _ = fit(log)
    train = processor.split(log["interactions"], max_delay=20_000.0, delayed_share=0.9).train
    trainer = PolyRecTrainer(
        tiny_model(processor), arguments(tmp_path, per_device_train_batch_size=1, max_steps=60, logging_steps=1),
        train_dataset=train, processing_class=processor,
    )  # fmt: skip
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert len(losses) == 60
    assert np.isfinite(losses).all()
