"""Weights and propensities of rows: what they become, and that wrong ones are named."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from model_fixtures import COLUMNS, TASKS, fit, model_inputs, synthetic_log, tiny_model

from polyrec import Columns, PolyRecCollator, PolyRecProcessor, TaskConfig
from polyrec.data.weights import row_weights

LIKE = [TaskConfig("rating", "regression"), TaskConfig("like", "binary")]


def weights(values, labels=(1.0, 0.0, 1.0), **columns):
    table = pa.table({"w": values, "p": values})
    both = np.stack([np.ones(len(labels)), labels], axis=1)
    return row_weights(table, Columns(**columns), LIKE, both, "interactions")


def test_weights_are_the_inverse_of_clipped_propensities():
    """Prevents the clip from being applied to the weight instead of the propensity, or to the wrong side."""
    found = weights([0.5, 1.0, 0.001], propensity={"like": "p"}, propensity_clip=0.05)
    assert found["like"].tolist() == [2.0, 1.0, 20.0]
    assert found["like"].dtype == np.float32
    assert list(found) == ["like"]
    assert weights([2, 0, 3], weight={"like": "w"})["like"].tolist() == [2.0, 0.0, 3.0]
    product = weights([0.5, 1.0, 0.25], weight={"like": "w"}, propensity={"like": "p"})
    assert product["like"].tolist() == [1.0, 1.0, 1.0]
    assert weights([1, 1, 1]) == {}


def test_weights_matter_where_a_label_is():
    """Prevents rows that nobody learns from from being refused for their weights."""
    found = weights([0.5, None, -3.0], labels=(1.0, np.nan, np.nan), propensity={"like": "p"}, weight={"like": "w"})
    assert found["like"].tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("role", "value", "message"),
    [
        ("propensity", 0.0, r"column 'p' \(propensity of task 'like'\) is 0 in row 1: .* in \(0, 1\], so correct or"),
        ("propensity", -0.1, "is -0.1 in row 1"),
        ("propensity", 1.5, "is 1.5 in row 1"),
        ("propensity", None, "has no value in row 1, whose label is known: fill it in"),
        ("propensity", float("nan"), "has no value in row 1"),
        ("weight", -1.0, r"column 'w' \(weight of task 'like'\) is -1 in row 1: weights must be >= 0"),
        ("weight", None, "has no value in row 1"),
        ("weight", float("inf"), "is infinite in row 1"),
    ],
)
def test_wrong_values_are_named(role, value, message):
    """Prevents an infinite or negative loss from a propensity of 0, and NaN gradients from a missing weight."""
    with pytest.raises(ValueError, match=message):
        weights([1.0, value, 1.0], **{role: {"like": role[0]}})


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"weight": {"lik": "w"}}, "columns.weight: unknown task 'lik'; .*did you mean 'like'"),
        ({"weight": {"like": "v"}}, r"no column 'v' \(needed as weight of task 'like'\)"),
        ({"propensity": "p"}, "columns.propensity is 'p'; it must be a mapping"),
        ({"propensity_clip": -0.1}, r"propensity_clip is -0.1; it must be a number in \[0, 1\]"),
    ],
)
def test_wrong_columns_are_named(columns, message):
    """Prevents weights from being ignored because of a spelling."""
    with pytest.raises(ValueError, match=message):
        weights([1.0, 1.0, 1.0], **columns)


def test_inverse_propensities_undo_the_selection():
    """Prevents a weighted mean that is still that of what was shown: simulated, with a selection that depends on the label."""
    random = np.random.default_rng(0)
    label = (random.random(40_000) < 0.3).astype(float)
    propensity = np.where(label == 1, 0.8, 0.2)
    seen = random.random(len(label)) < propensity
    table = pa.table({"p": propensity[seen]})
    found = row_weights(table, Columns(propensity={"like": "p"}), LIKE[1:], label[seen][:, None], "interactions")[
        "like"
    ]
    assert label[seen].mean() > 0.55
    assert np.average(label[seen], weights=found) == pytest.approx(0.3, abs=0.02)


# ------------------------------------------------------------------ through processor, data set, collator and model
@pytest.fixture(scope="module")
def weighted():
    log = synthetic_log()
    rows = len(log["interactions"]["user_id"])
    log["interactions"]["w"] = np.random.default_rng(1).uniform(0.5, 3.0, rows)
    processor, splits = fit(log, columns={**COLUMNS, "weight": {"rating": "w", "next_item": "w"}})
    return log, processor, splits


def test_weights_reach_the_batch_of_their_row(weighted):
    """Prevents the sorting of the log from handing weights to other rows."""
    log, _, splits = weighted
    for data in splits:
        batch = PolyRecCollator()([data[i] for i in range(len(data))])
        assert set(batch["sample_weight"]) == {"rating", "next_item"}
        real = batch["candidate_rows"] >= 0
        rows = data.log.row[data.candidates.event[batch["candidate_rows"][real].numpy()]]
        known = ~batch["labels"]["rating"][real].isnan().numpy()
        expected = np.where(known, log["interactions"]["w"][rows], 0.0).astype(np.float32)
        np.testing.assert_array_equal(batch["sample_weight"]["rating"][real].numpy(), expected)
        assert batch["sample_weight"]["rating"][~real].isnan().all()


def test_the_model_counts_weights(weighted):
    """Prevents weights from being read and not used: the count of a task is the sum of its weights."""
    _, processor, splits = weighted
    batch = PolyRecCollator()([splits.train[i] for i in range(4)])
    output = tiny_model(processor)(**model_inputs(batch))
    known = ~batch["labels"]["rating"].isnan()
    assert output.counts["rating"].item() == pytest.approx(batch["sample_weight"]["rating"][known].sum().item())
    assert output.counts["like"].item() == (~batch["labels"]["like"].isnan()).sum().item()
    assert output.loss.isfinite()


def test_a_weighted_model_serves_without_weights(weighted, tmp_path):
    """Prevents requests from needing a column that only training reads."""
    _, processor, _ = weighted
    processor.save_pretrained(tmp_path)
    loaded = PolyRecProcessor.from_pretrained(tmp_path)
    assert loaded.columns.weight == {"rating": "w", "next_item": "w"}
    assert "sample_weight" not in loaded.request([3, 4], np.array([2, 3]))
    assert {t["name"] for t in TASKS} == {t.name for t in loaded.tasks}
