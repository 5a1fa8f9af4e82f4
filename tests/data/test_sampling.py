"""Draws that can be repeated, and negatives that are left out without biasing a probability."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_fixtures import fit, synthetic_log
from scipy import stats
from sklearn.linear_model import LogisticRegression
from window_fixtures import dataset, joined, make_log, windows

from polyrec import PolyRecConfig, PolyRecProcessor
from polyrec.data.sampling import dropped_negatives, uniform
from polyrec.modules.heads.binary import BinaryHead


# ------------------------------------------------------------------ draws
def test_draws_are_uniform_and_independent():
    """Prevents a share of 0.1 from being 0.2, and neighbours, epochs, seeds or tasks from being drawn together."""
    events = np.arange(20_000)
    first = uniform(events, 0, 0, "like")
    assert stats.kstest(first, "uniform").pvalue > 1e-3
    for other in (uniform(events + 1, 0, 0, "like"), uniform(events, 0, 1, "like"), uniform(events, 1, 0, "like"),
                  uniform(events, 0, 0, "buy")):  # fmt: skip
        assert abs(np.corrcoef(first, other)[0, 1]) < 0.03


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=20), st.integers(0, 2**31), st.integers(0, 99))
def test_a_draw_depends_on_its_event_alone(events, seed, epoch):
    """Prevents windows, ranks and resumed runs from drawing differently for one event."""
    together = uniform(np.array(events), seed, epoch, "x")
    assert ((together >= 0) & (together < 1)).all()
    for event, value in zip(events, together, strict=True):
        assert uniform(np.array([event]), seed, epoch, "x")[0] == value


# ------------------------------------------------------------------ negatives
def population(rows: int = 60_000, seed: int = 0):
    """Features and rare labels with known log odds."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, 2))
    chance = 1 / (1 + np.exp(-(x @ np.array([1.0, -0.5]) - 3.0)))
    return x, chance, (random.random(rows) < chance).astype(np.float32)


def test_probabilities_after_the_correction_are_those_of_the_population():
    """Prevents a model of sampled rows from answering ten times too high: base rate, calibration and slopes."""
    x, chance, labels = population()
    share = 0.1
    kept = ~dropped_negatives(labels, np.arange(len(labels)), share, seed=0, epoch=0, task="click")
    assert kept[labels == 1].all()
    assert kept[labels == 0].mean() == pytest.approx(share, abs=0.01)
    model = LogisticRegression(C=1e6).fit(x[kept], labels[kept])
    logits = model.decision_function(x)
    corrected = 1 / (1 + np.exp(-(logits + np.log(share))))
    assert corrected.mean() == pytest.approx(labels.mean(), rel=0.05)
    assert (1 / (1 + np.exp(-logits))).mean() > 3 * labels.mean()
    for tenth in np.array_split(np.argsort(chance), 10):
        assert corrected[tenth].mean() == pytest.approx(chance[tenth].mean(), rel=0.2)


def test_the_head_learns_the_population_from_sampled_labels():
    """Prevents data set and head from correcting twice, not at all, or in the wrong direction."""
    _, _, labels = population()
    labels[dropped_negatives(labels, np.arange(len(labels)), 0.1, 0, 0, "click")] = np.nan
    task = {"name": "click", "head": "binary", "options": {"sampling_rate": 0.1}}
    config = PolyRecConfig(tasks=[task], hidden_size=4)
    head = BinaryHead(config.task_configs[0], config)
    logit = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS([logit], max_iter=50)

    def closure():
        optimizer.zero_grad()
        total, count = head.loss(logit.expand(len(labels)), torch.from_numpy(labels))
        (total / count).backward()
        return total / count

    optimizer.step(closure)
    assert torch.sigmoid(logit).item() == pytest.approx(population()[2].mean(), rel=0.05)


def test_epochs_ask_all_positives_and_other_negatives():
    """Prevents positives from being lost, negatives from being lost for good, and other tasks from losing labels."""
    random = np.random.default_rng(0)
    labels = (random.random((400, 1)) < 0.2).astype(np.float32)
    labels[random.random(400) < 0.1] = np.nan
    log = make_log([10] * 40, [1], labels=np.concatenate([labels, labels], axis=1))
    data = dataclasses.replace(
        dataset(log, max_history=10), task_names=["click", "buy"], keep_negatives={"click": 0.25}
    )
    asked = []
    for epoch in range(30):
        found = windows(data, epoch)
        rows = joined(found, "candidate_rows")
        click, buy = (np.concatenate([w["labels"][task] for w in found]) for task in ("click", "buy"))
        assert np.array_equal(buy, data.labels()[rows, 1], equal_nan=True)
        known = ~np.isnan(click)
        assert np.array_equal(click[known], data.labels()[rows[known], 0])
        assert known[buy == 1].all()
        asked.append(set(rows[known & (click == 0)]))
    negatives = int((labels == 0).sum())
    assert abs(np.mean([len(a) for a in asked]) / negatives - 0.25) < 0.03
    assert len(set().union(*asked)) > 0.99 * negatives


def test_reading_a_window_twice_in_an_epoch_draws_the_same():
    """Prevents two ranks or workers from disagreeing about a label, and labels of the log from being overwritten."""
    log = make_log([20], [1], labels=np.zeros((20, 1), dtype=np.float32))
    data = dataset(log, max_history=20, keep_negatives={"y": 0.5})
    one, two = data[0]["labels"]["y"], data[0]["labels"]["y"]
    assert np.array_equal(one, two, equal_nan=True)
    assert 0 < np.isnan(one).sum() < 20
    assert not np.isnan(log.labels).any()


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ({"clik": 0.5}, "unknown task 'clik'; known: y"),
        ({"y": 0.0}, r"keep_negatives\['y'\] is 0.0; it must be a share in \(0, 1\]"),
        ({"y": 1.5}, r"is 1.5; it must be a share"),
        ({"y": 0.5}, "task 'y' has the label 2, so it has no negatives"),
    ],
)
def test_what_cannot_be_sampled_is_refused(keep, message):
    """Prevents ratings of 0 from being dropped as negatives, and a misspelt task from being sampled silently not at all."""
    with pytest.raises(ValueError, match=message):
        dataset(make_log([3], [1]), keep_negatives=keep)


# ------------------------------------------------------------------ the processor
def test_the_processor_tells_the_head_what_was_sampled(tmp_path):
    """Prevents training on sampled rows with a head that takes them for all, also after saving and loading."""
    log = synthetic_log()
    processor, _ = fit(log)
    train = processor.split(log["interactions"], keep_negatives={"like": 0.5}).train
    assert train.keep_negatives == {"like": 0.5}
    processor.save_pretrained(tmp_path)
    for known in (processor, PolyRecProcessor.from_pretrained(tmp_path)):
        options = {t.name: t.options for t in known.model_config().task_configs}
        assert options["like"]["sampling_rate"] == 0.5
        assert "sampling_rate" not in options["rating"]
    plain = processor.split(log["interactions"])
    assert plain.train.keep_negatives == {}
    assert "sampling_rate" not in {t.name: t.options for t in processor.model_config().task_configs}["like"]
    for name, message in (("rating", "'rating' is not a binary task"), ("lik", "unknown task 'lik'; .*'like'")):
        with pytest.raises(ValueError, match=message):
            processor.split(log["interactions"], keep_negatives={name: 0.5})
