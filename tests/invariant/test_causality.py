"""A candidate's answer depends on what happened strictly before it, and on nothing else in the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from model_fixtures import clone, fit, model_inputs, synthetic_log, tiny_model

from polyrec import PolyRecCollator

TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
SEEDS = st.integers(0, 2**32 - 1)
quick = settings(max_examples=25, deadline=None)


@pytest.fixture(scope="module")
def world():
    log = synthetic_log()
    processor, splits = fit(log)
    cuts = np.quantile(log["interactions"]["timestamp"], [0.5, 0.75]).tolist()
    return log, processor, splits, cuts, tiny_model(processor)


def batch_of(dataset, indices, **collator):
    return model_inputs(PolyRecCollator(**collator)([dataset[i] for i in indices]))


def answer(model, batch):
    with torch.no_grad():
        return model(**{k: v for k, v in batch.items() if k != "labels"})


def scramble(values: torch.Tensor, where: torch.Tensor, random: np.random.Generator, largest: int) -> None:
    """Overwrite the rows of `values` at which `where` is True by other values of the same kind, some of them missing."""
    shape = values[where].shape
    if values.dtype.is_floating_point:
        noise = random.normal(scale=3, size=shape)
        noise[random.random(shape) < 0.2] = np.nan
    else:
        noise = random.integers(0, largest, shape)
    values[where] = torch.from_numpy(noise).to(values.dtype)


def scramble_events(model, batch, where, random):
    """Change item and every feature of the events at which `where` [B, L] is True."""
    scramble(batch["item_ids"], where, random, model.config.num_items)
    for name, values in batch["event_features"].items():
        scramble(values, where, random, next((f.size for f in model.config.feature_configs if f.name == name), 2))


def assert_same_answers(one, two, keep):
    """Compare logits and states of the candidates at which `keep` [B, C] is True."""
    torch.testing.assert_close(one.states[keep], two.states[keep], **TOLERANCE)
    for task in one.logits:
        torch.testing.assert_close(one.logits[task][keep], two.logits[task][keep], **TOLERANCE)


@quick
@given(SEEDS)
def test_later_events_of_the_window_change_nothing(world, seed):
    """Prevents a candidate from attending to events behind its position: through the backbone, the attention or a norm."""
    _, _, splits, _, model = world
    random = np.random.default_rng(seed)
    batch = batch_of(splits.train, random.integers(0, len(splits.train), 4))
    boundary = torch.from_numpy(random.integers(0, batch["item_ids"].shape[1], (4, 1)))
    changed = clone(batch)
    scramble_events(model, changed, torch.arange(batch["item_ids"].shape[1]) >= boundary, random)
    before = (batch["candidate_positions"] <= boundary) & (batch["candidate_ids"] > 0)
    assert_same_answers(answer(model, batch), answer(model, changed), before)


@quick
@given(SEEDS)
def test_earlier_events_do_change_something(world, seed):
    """Prevents the test above from passing because the model ignores the history (or `scramble` does nothing)."""
    _, _, splits, _, model = world
    random = np.random.default_rng(seed)
    batch = batch_of(splits.train, random.integers(0, len(splits.train), 4))
    changed = clone(batch)
    scramble_events(model, changed, torch.ones_like(batch["item_ids"], dtype=torch.bool), random)
    seen = batch["candidate_positions"] > 0
    for task, logits in answer(model, batch).logits.items():
        assert not torch.allclose(logits[seen], answer(model, changed).logits[task][seen], atol=1e-4)


@quick
@given(SEEDS)
def test_other_candidates_change_nothing(world, seed):
    """Prevents candidates of one person from seeing each other: their items, contexts, statistics or labels."""
    _, _, splits, _, model = world
    random = np.random.default_rng(seed)
    batch = batch_of(splits.train, random.integers(0, len(splits.train), 3))
    changed = clone(batch)
    others = torch.from_numpy(random.random(batch["candidate_ids"].shape) < 0.5)
    scramble(changed["candidate_ids"], others, random, model.config.num_items)
    for values in changed["candidate_features"].values():
        scramble(values, others, random, 2)
    assert_same_answers(answer(model, batch), answer(model, changed), ~others)


@quick
@given(SEEDS, st.integers(1, 7))
def test_padding_and_company_change_nothing(world, seed, multiple):
    """Prevents answers from depending on the length of the batch, the people in it or their order."""
    _, _, splits, _, model = world
    random = np.random.default_rng(seed)
    indices = random.choice(len(splits.train), 5, replace=False)
    together = answer(model, batch_of(splits.train, indices, pad_to_multiple_of=multiple))
    for row, index in enumerate(indices):
        alone = batch_of(splits.train, [index])
        asked = alone["candidate_ids"].shape[1]
        expected = answer(model, alone)
        torch.testing.assert_close(together.states[row, :asked], expected.states[0], **TOLERANCE)
        for task, logits in expected.logits.items():
            torch.testing.assert_close(together.logits[task][row, :asked], logits[0], **TOLERANCE)


@quick
@given(SEEDS)
def test_content_of_padding_changes_nothing(world, seed):
    """Prevents a value that a collator leaves in the padded places from reaching a real answer."""
    _, _, splits, _, model = world
    random = np.random.default_rng(seed)
    batch = batch_of(splits.train, random.integers(0, len(splits.train), 4), pad_to_multiple_of=12)
    changed = clone(batch)
    scramble_events(model, changed, batch["item_ids"] == 0, random)
    assert_same_answers(answer(model, batch), answer(model, changed), batch["candidate_ids"] > 0)


def test_padding_does_not_change_the_losses(world):
    """Prevents padded candidates from being counted or averaged into a loss."""
    _, _, splits, _, model = world
    windows = list(range(6))
    short, long = batch_of(splits.train, windows), batch_of(splits.train, windows, pad_to_multiple_of=50)
    with torch.no_grad():
        one, two = model(**short), model(**long)
    for task in one.losses:
        torch.testing.assert_close(one.losses[task], two.losses[task], **TOLERANCE)
        assert one.counts[task] == two.counts[task] > 0


# ------------------------------------------------------------------ from the raw log
def answers_by_row(world, interactions):
    """{original row: (time, {task: logit})} of the evaluated rows of a log, computed from the raw table."""
    _, processor, _, cuts, model = world
    splits = processor.split({k: v for k, v in interactions.items() if k != "row"}, cuts=cuts)
    found = {}
    for dataset in (splits.valid, splits.test):
        batch = PolyRecCollator()([dataset[i] for i in range(len(dataset))])
        logits = answer(model, model_inputs(batch)).logits
        real = batch["candidate_rows"] >= 0
        events = dataset.candidates.event[batch["candidate_rows"][real].numpy()]
        table = torch.stack([logits[task][real] for task in sorted(logits)], dim=1).numpy()
        for event, values in zip(events, table, strict=True):
            found[int(interactions["row"][dataset.log.row[event]])] = (dataset.log.time[event], values)
    return found


def change_log(interactions, time, random):
    """The log with what happens at or after `time` changed at random, and which rows [R] are asked the same as before.

    All ratings change; of later rows and half of those at `time` everything else does, too, or the row is gone.
    """
    changed = {k: v.copy() for k, v in interactions.items()}
    not_before = interactions["timestamp"] >= time
    changed["rating"][not_before] = random.choice([1.0, 5.0, np.nan], int(not_before.sum()))
    other = (interactions["timestamp"] > time) | (not_before & (random.random(len(not_before)) < 0.5))
    amount = int(other.sum())
    changed["item_id"][other] = random.integers(0, 30, amount)  # some of them are not in the catalog
    changed["surface"][other] = random.choice(["home", "search", "elsewhere"], amount)
    changed["timestamp"][other] += random.choice([0.0, 1.0, 500.0, 1e5], amount)
    keep = ~other | (random.random(len(other)) < 0.7)
    return {k: v[keep] for k, v in changed.items()}, np.flatnonzero(~other)


@settings(max_examples=12, deadline=None)
@given(SEEDS, st.floats(0, 1))
def test_nothing_at_or_after_its_time_reaches_a_candidate(world, seed, share):
    """Prevents leakage anywhere between the raw table and the logits, by ties, statistics, residuals or time gaps.

    A candidate's own item and context are the question itself and stay; the rating it brought is part of what changes.
    """
    log, _, _, cuts, _ = world
    original = {**log["interactions"], "row": np.arange(len(log["interactions"]["user_id"]))}
    times = np.unique(original["timestamp"])
    times = times[times >= cuts[0]]
    time = times[int(share * (len(times) - 1))]
    changed, same = change_log(original, time, np.random.default_rng(seed))
    expected, found = answers_by_row(world, original), answers_by_row(world, changed)
    compared = set(same) & set(expected)
    assume(compared)
    for row in compared:
        np.testing.assert_allclose(found[row][1], expected[row][1], **TOLERANCE, err_msg=f"row {row}")


def test_a_frozen_view_hides_everything_after_the_cutoff(world):
    """Prevents `frozen` from leaving later events, or statistics that counted them, visible."""
    log, processor, _, cuts, model = world
    original = {**log["interactions"], "row": np.arange(len(log["interactions"]["user_id"]))}
    changed = {k: v.copy() for k, v in original.items()}
    later = original["timestamp"] >= cuts[1]
    changed["rating"][later] = 6 - changed["rating"][later]

    def frozen_logits(interactions):
        splits = processor.split({k: v for k, v in interactions.items() if k != "row"}, cuts=cuts)
        view = processor.without_updates(splits.test, cuts[1])
        batch = model_inputs(PolyRecCollator()([view[i] for i in range(len(view))]))
        return answer(model, batch).logits

    one, two = frozen_logits(original), frozen_logits(changed)
    for task in one:
        torch.testing.assert_close(one[task], two[task], **TOLERANCE)
