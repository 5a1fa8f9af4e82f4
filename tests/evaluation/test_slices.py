"""Groups of rows: who is in them, and how well they are served."""

import numpy as np
import pandas as pd
import pytest
from model_fixtures import fit, synthetic_log, tiny_model
from sklearn.calibration import calibration_curve
from sklearn.metrics import root_mean_squared_error

from polyrec.evaluation import bootstrap, evaluator
from polyrec.evaluation.intervals import metric_interval
from polyrec.evaluation.reliability import reliability
from polyrec.evaluation.slices import popularity_bias, slice_groups, sliced


@pytest.fixture(scope="module")
def world():
    log = synthetic_log(users=60, keep=0.7)
    processor, parts = fit(log)
    model = tiny_model(processor)
    return log, processor, parts, model, evaluator.predict(model, parts.test)


def test_groups_are_those_of_the_users_own_tables(world):
    """Prevents rows from landing in another item's category or another person's group."""
    log, processor, parts, model, _ = world
    counts = model.item_encoder.counts.numpy()
    groups = slice_groups(parts.train, parts.test, processor, counts, ("genre", "tags", "age"))
    events, items, users = (pd.DataFrame(log[name]) for name in ("interactions", "items", "users"))
    rows = events.iloc[parts.test.log.row[parts.test.candidates.event]].merge(items).merge(users)
    assert (groups["genre"]["drama"] == (rows.genre == "drama")).all()
    assert (groups["tags"]["tag1"] == rows.tags.map(lambda tags: "tag1" in tags)).all()
    young = rows.age[groups["age"]["lowest third"]]
    assert young.max() < rows.age[groups["age"]["highest third"]].min()
    trained = events.iloc[parts.train.log.row[parts.train.candidates.event]]
    active = rows.user_id.map(trained.user_id.value_counts()).fillna(0)
    by = groups["activity"]
    assert active[by["least active third"]].max() < active[by["most active third"]].min()
    assert (by.get("no training events", np.zeros(len(rows), dtype=bool)) == (active == 0)).all()
    popular = rows.item_id.map(trained.item_id.value_counts())
    assert popular[groups["popularity"]["head"]].min() >= popular[groups["popularity"]["tail"]].max()
    for name in ("popularity", "history", "activity", "time", "genre"):
        assert np.sum(list(groups[name].values()), axis=0).max() == 1, name  # each row once
    assert np.sum(list(groups["time"].values()), axis=0).min() == 1


def test_figures_of_a_group_are_those_of_its_rows(world):
    """Prevents a group's figure from being that of other rows, or counting unknown labels."""
    _, processor, parts, model, predictions = world
    groups = slice_groups(parts.train, parts.test, processor, model.item_encoder.counts.numpy())
    found = sliced(model, parts.test, predictions, groups, resamples=20)
    labels = parts.test.labels()[:, parts.test.task_names.index("rating")]
    rows = groups["genre"]["comedy"] & ~np.isnan(labels)
    group = found["rating"]["genre"]["comedy"]
    assert group["rows"] == rows.sum()
    assert group["rmse"] == pytest.approx(root_mean_squared_error(labels[rows], predictions.values["rating"][rows]))
    low, high = group["interval"]["rmse"]
    assert low <= group["rmse"] <= high
    lists = predictions.rankings["next_item"]
    held = groups["genre"]["comedy"][lists.rows]
    whole = evaluator.evaluate(model, parts.test, predictions, groups={"g": groups["genre"]["comedy"]})
    assert found["next_item"]["genre"]["comedy"]["ndcg@10"] == pytest.approx(whole["g/next_item_ndcg@10"])
    assert found["next_item"]["genre"]["comedy"]["rows"] == held.sum()


def test_unknown_attributes_are_refused(world):
    """Prevents a misspelt attribute from silently giving no groups."""
    _, processor, parts, model, _ = world
    with pytest.raises(ValueError, match="did you mean 'genre'"):
        slice_groups(parts.train, parts.test, processor, model.item_encoder.counts.numpy(), ("gnre",))


def test_shares_of_popular_items_are_counted(world):
    """Prevents popularity bias from being told of the wrong lists."""
    _, _, parts, model, predictions = world
    counts = model.item_encoder.counts.numpy()
    found = popularity_bias(parts.test, predictions.rankings["next_item"], counts)
    assert sum(found["recommended"].values()) == pytest.approx(1)
    assert sum(found["taken"].values()) == pytest.approx(1)
    top = predictions.rankings["next_item"].top_ids + 2
    assert found["recommended"]["unseen"] == pytest.approx((counts[top] == 0).mean())


@pytest.mark.parametrize("name", ["auc", "gauc", "logloss", "calibration_error", "rmse", "mae"])
def test_intervals_are_those_of_the_plain_bootstrap(name):
    """Prevents the fast way from giving another interval than resampling the rows themselves."""
    random = np.random.default_rng(0)
    users, labels = random.integers(0, 15, 120), (random.random(120) < 0.4).astype(float)
    values = np.clip(0.3 * labels + random.random(120) * 0.6, 0, 1)
    columns = (labels, values, users)
    plain = bootstrap.bootstrap_interval(evaluator.PAIR_METRICS[name], users, *columns, n=30)
    unknown = np.append(labels, np.nan), np.append(values, 0.5), np.append(users, 3)
    fast = metric_interval(name, *unknown, n=30)
    assert (fast.value, fast.low, fast.high) == pytest.approx((plain.value, plain.low, plain.high))


def test_calibration_is_that_of_sklearn():
    """Prevents a calibration plot that flatters."""
    random = np.random.default_rng(1)
    predictions = random.random(500)
    labels = (random.random(500) < predictions**2).astype(float)
    found = reliability(np.append(labels, np.nan), np.append(predictions, 0.5), bins=10)
    observed, predicted = calibration_curve(labels, predictions, n_bins=10, strategy="quantile")
    assert found["predicted"] == pytest.approx(predicted.tolist())
    assert found["observed"] == pytest.approx(observed.tolist())
    assert sum(found["rows"]) == 500
