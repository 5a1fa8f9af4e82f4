"""Groups of candidates about which little is known."""

import numpy as np
import pytest
from model_fixtures import fit, tiny_model

from polyrec.evaluation import evaluator
from polyrec.evaluation.cold_start import cold_start, cold_start_groups, format_cold_start


@pytest.fixture(scope="module")
def world():
    processor, data = fit()
    model = tiny_model(processor)
    counts = model.item_encoder.counts
    for item in np.unique(data.test.log.item[data.test.candidates.event])[:3]:
        counts[item] = 0
    return model, data.test, evaluator.predict(model, data.test)


def test_groups_are_what_their_names_say(world):
    """Prevents history from being counted within the window, or the unknown item from being called a new one."""
    model, test, _ = world
    counts = model.item_encoder.counts.numpy()
    whole = test.with_candidates(type(test.candidates)(np.arange(len(test.log)), test.log.visible()), test.statistics)
    groups = cold_start_groups(whole, counts, histories=(0, 1, 2, 3, 7))
    log = whole.log
    for c, event in enumerate(whole.candidates.event):
        earlier = ((log.user == log.user[event]) & (log.time < log.time[event])).sum()
        for name, rows in groups.items():
            expected = counts[log.item[event]] == 0 if name == "new_items" else name == f"history_{earlier}"
            assert rows[c] == expected
    assert {"history_0", "history_1", "history_2", "new_items"} <= set(groups)


def test_metrics_of_a_group_are_those_of_its_rows(world):
    """Prevents a group from being reported with the metrics of all rows."""
    model, test, predictions = world
    found = cold_start(model, test, predictions)
    groups = cold_start_groups(test, model.item_encoder.counts.numpy())
    rows = groups["new_items"]
    labels = test.labels()[:, test.task_names.index("rating")]
    known = rows & ~np.isnan(labels)
    expected = np.sqrt(np.mean((labels[known] - predictions.values["rating"][known]) ** 2))
    assert found["rating"]["new_items"]["rmse"] == pytest.approx(expected, rel=1e-5)
    assert found["rating"]["new_items"]["rows"] == known.sum()
    assert 0 <= found["next_item"]["new_items"]["recall@10"] <= 1
    table = format_cold_start(found)
    assert "new_items" in table
    assert format_cold_start({}) == ""


def test_no_group_without_rows(world):
    """Prevents means over nothing where everything is well known."""
    model, test, _ = world
    groups = cold_start_groups(test, np.ones(model.config.num_items))
    assert "new_items" not in groups
    assert all(rows.any() for rows in groups.values())


def test_what_a_group_does_not_have_is_a_dash():
    """Prevents a metric that could not be computed from standing in the table as a figure."""
    found = {"like": {"new_items": {"rows": 1200.0, "auc": float("nan")}, "old_items": {"rows": 3.0, "auc": 0.75}}}
    assert [line.split() for line in format_cold_start(found).splitlines()[1:]] == [
        ["like", "rows", "auc"],
        ["new_items", "1,200", "-"],
        ["old_items", "3", "0.7500"],
    ]
