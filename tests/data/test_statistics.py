"""Running statistics against a naive loop, and the ways in which they could silently leak, drift or forget."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import QuantileTransformer
from statistics_fixtures import CONTEXT, PERSONAL, PRIOR, STATISTICS, TARGETS, close, log, naive, stats, tables

from polyrec.core.schema import from_dict
from polyrec.data.event_table import MultiValued
from polyrec.data.level_history import LevelHistory
from polyrec.data.scaling import StatisticsScaler, quantile_knots, rank_gaussian
from polyrec.data.statistics import EventTable, RunningStatistics, StatisticConfig


# ------------------------------------------------------------------ definition
@settings(max_examples=60, deadline=None)
@given(tables())
def test_equals_the_definition(table):
    """An off-by-one in a sorted pass (ties seen, a neighbour's group counted) shows in no shape and no error."""
    close(stats().compute(table), naive(STATISTICS, table, PRIOR))


@settings(max_examples=40, deadline=None)
@given(tables(), st.integers(0, 2**32 - 1))
def test_equals_the_definition_when_rows_are_hidden(table, seed):
    """Frozen views and held-out rows must hide labels from levels and residuals too, not from the last step only."""
    rng = np.random.default_rng(seed)
    until, source = rng.integers(-1, 45, len(table)).astype(float), rng.random(len(table)) < 0.6
    actual = stats().compute(table, visible_until=until, source=source)
    close(actual, naive(STATISTICS, table, PRIOR, until, source))


def test_fading_over_decades_stays_exact():
    """exp(t / tau) overflows, and subtracting large running sums cancels, long before a log of decades ends."""
    rng = np.random.default_rng(0)
    time = np.sort(rng.integers(0, 2_000_000_000, 120)).astype(float)
    time[60:90] = time[60] + np.arange(30)  # a burst
    table = replace(log(120), time=time)
    some = [StatisticConfig(("item",), "none", half_life=60.0), StatisticConfig((), "none", half_life=1e8)]
    with np.errstate(over="raise", invalid="raise"):
        actual = RunningStatistics(some, TARGETS, PRIOR, CONTEXT).compute(table)
    close(actual, naive(some, table, PRIOR))


def test_a_row_never_sees_its_own_second():
    """One basket's lines, or one second's ratings, would tell each other their labels."""
    table = replace(log(50), time=np.zeros(50))
    features = stats().compute(table)
    names = stats().names
    assert (features[:, :2] == np.float32(PRIOR)).all()
    assert np.isnan(features[:, names.index("item-none.like")]).all()
    assert np.nanmax(features[:, names.index("item-none.log_count")]) == 0


# --------------------------------------------------------------------- leakage
@pytest.mark.parametrize("seed", range(3))
def test_the_future_changes_nothing_before_it(seed):
    """A statistic that reads the future makes validation brilliant and serving poor."""
    table, rng = log(seed=seed), np.random.default_rng(seed + 100)
    cut = 120.0
    before, future = table.time < cut, np.flatnonzero(table.time >= cut)
    expected = stats().compute(table)[before]
    shuffled = np.arange(len(table))
    shuffled[future] = rng.permutation(future)
    keys = {name: codes[shuffled] for name, codes in table.keys.items()}
    targets = table.targets.copy()
    targets[future] = rng.normal(size=(len(future), 2)) * 100
    later = table.time.copy()
    later[future] = cut + rng.integers(0, 1000, len(future))
    for changed in (replace(table, targets=targets), replace(table, keys=keys), EventTable(later, keys, targets)):
        close(stats().compute(changed)[before], expected)
    close(stats().compute(table.take(before)), expected)


def test_rows_of_the_same_second_change_nothing():
    """The label of the row itself, or of another in its second, is the easiest leak of all."""
    table = log(span=40)
    expected = stats().compute(table)
    for moment in (7.0, 23.0):
        now = table.time == moment
        targets = table.targets.copy()
        targets[now] = 1e3
        close(stats().compute(replace(table, targets=targets))[table.time <= moment], expected[table.time <= moment])


def test_a_frozen_view_ignores_everything_after_the_cut():
    """Frozen evaluation that still reads the test period is prequential evaluation under another name."""
    table = log()
    cut = np.full(len(table), 100.0)
    expected = stats().compute(table, visible_until=cut)
    targets = table.targets.copy()
    targets[table.time >= 100] = 1e3
    close(stats().compute(replace(table, targets=targets), visible_until=cut), expected)
    close(stats().compute(table, visible_until=table.time + 5), stats().compute(table))  # never beyond its own time


@settings(max_examples=20, deadline=None)
@given(tables(max_rows=40), st.randoms(use_true_random=False))
def test_row_order_does_not_matter(table, random):
    """Files come in any order; if ties were broken by it, a re-export would change the model's inputs."""
    order = np.array(random.sample(range(len(table)), len(table)))
    close(stats().compute(table.take(order)), stats().compute(table)[order])


# ----------------------------------------------------------------------- state
@settings(max_examples=40, deadline=None)
@given(tables(max_rows=40), st.lists(st.integers(0, 40), max_size=4))
def test_update_then_transform_continues_compute(table, cuts):
    """A state that drifts from the batch computation serves a model inputs on which it was never trained."""
    cuts = sorted(cuts)
    running = stats()
    part = np.searchsorted(cuts, table.time, side="right")
    expected = stats().compute(table)
    history = LevelHistory()
    for number in range(len(cuts) + 1):
        so_far = np.flatnonzero(part <= number)  # with the users' earlier events, which are held
        new = part[so_far] == number
        now = table.take(so_far)
        close(running.transform(now, history=history)[new], expected[so_far[new]])
        running.update(now, ~new, history)


def test_many_small_updates_continue_compute():
    """Serving advances event by event; errors of in-place inserts show only after many of them."""
    table = log(rows=120, span=60)
    running, expected = stats(), stats().compute(table)
    history = LevelHistory()
    for moment in np.unique(table.time):
        so_far = np.flatnonzero(table.time <= moment)
        new = table.time[so_far] == moment
        now = table.take(so_far)
        close(running.transform(now, history=history)[new], expected[so_far[new]])
        running.update(now, ~new, history)


def test_baselines_of_earlier_times_are_those_of_then():
    """Held rows measured against today's baselines would say something else of a user in serving than in training."""
    table = log(rows=200, span=60)
    running, targets = stats(), len(TARGETS)
    expected = stats().compute(table)[:, :targets]
    running.update(table)
    found = running.transform(table, history=running.recorded(table)[0])
    close(found[:, :targets], expected)
    assert np.abs(running.transform(table)[:, :targets] - expected).max() > 0.05  # today's are others


def joined(one, other):
    """The rows of two tables, none of whose keys is ragged."""
    keys = {name: np.concatenate([codes, other.keys[name]]) for name, codes in one.keys.items()}
    time, targets = np.concatenate([one.time, other.time]), np.concatenate([one.targets, other.targets])
    return EventTable(time, keys, targets, one.missing)


def test_held_rows_count_for_nobody_else():
    """A history sent along that the log holds already would count its items and attributes twice."""
    table = log(rows=200, span=60)
    running = stats()
    running.update(table)
    asked = replace(table.take(np.arange(5)), time=np.full(5, 99.0))
    alone = running.transform(asked)
    with_history = running.transform(joined(table.take(np.arange(50, 100)), asked))[50:]
    mine = np.isin([n.split("-")[0].split(".")[0] for n in running.names], list(PERSONAL))
    close(with_history[:, ~mine], alone[:, ~mine])
    assert not np.array_equal(with_history[:, mine], alone[:, mine], equal_nan=True)


def test_unknown_times_leave_times_unknown_and_nothing_else():
    """A history without times would tell a model gaps that nobody has measured."""
    running, table = stats(), log(rows=60)
    past, asked = replace(table.take(np.arange(40)), time=np.arange(40.0)), table.take(np.arange(40, 60))
    both = joined(past, replace(asked, time=np.full(20, 50.0)))
    old = np.arange(60) < 40
    running.update(past)
    timed, untimed = running.transform(both)[40:], running.transform(both, untimed=old)[40:]
    gap = np.array([n.startswith(("user", "user*")) and n.endswith("log_seconds_since") for n in running.names])
    close(untimed[:, ~gap], timed[:, ~gap])
    assert not np.isnan(timed[:, gap]).all()
    assert np.isnan(untimed[:, gap]).all()


def test_transform_and_failed_update_leave_the_state_alone():
    """A read that writes, or an update that fails half way, counts events twice."""
    table = log()
    running = stats()
    running.update(table.take(table.time < 100))
    later = table.take(table.time >= 100)
    expected = running.transform(later)
    with pytest.raises(ValueError, match="no key 'genres'; known: age, item, user"):
        running.update(replace(later, keys={k: v for k, v in later.keys.items() if k != "genres"}))
    assert np.array_equal(running.transform(later), expected, equal_nan=True)


def test_update_refuses_the_past():
    """Counting events out of order gives numbers that held at no moment."""
    running = stats()
    running.update(log())
    with pytest.raises(
        ValueError, match=r"earlier than 199, the latest event already counted: update .* in time order"
    ):
        running.update(log())
    running.reset()
    running.update(log())


def test_save_and_load_are_bit_equal(tmp_path):
    """A state rounded on disk makes the served model differ from the tested one."""
    table = log()
    running = stats()
    running.update(table.take(table.time < 150))
    running.save(tmp_path)
    loaded, later = RunningStatistics.load(tmp_path), table.take(table.time >= 150)
    assert loaded.statistics == running.statistics
    assert loaded.names == running.names
    assert loaded.last_time == running.last_time
    assert np.array_equal(loaded.transform(later), running.transform(later), equal_nan=True)
    loaded.update(later)  # what comes from disk must be writable
    running.update(later)
    assert np.array_equal(loaded.transform(later), running.transform(later), equal_nan=True)


@settings(max_examples=15, deadline=None)
@given(tables(max_rows=30), st.integers(0, 40))
def test_a_restart_in_between_changes_nothing(table, cut):
    """A server that restarts must go on as if it had not, or its answers depend on when it was deployed."""
    running = stats()
    running.update(table.take(table.time < cut))
    with tempfile.TemporaryDirectory() as folder:
        running.save(folder)
        loaded = RunningStatistics.load(folder)
    assert loaded.last_time == running.last_time
    last = replace(table, time=np.where(table.time < cut, table.time, 50.0))
    assert np.array_equal(loaded.transform(last), running.transform(last), equal_nan=True)


def test_rules_without_labels_count_all_the_same(tmp_path):
    """A next-item model has no labels, and its counts and gaps must not fail or vanish for that."""
    table = replace(log(), targets=np.zeros((300, 0)))
    running = RunningStatistics([s for s in STATISTICS if s.fade is None], [])  # a fading count counts labels
    labelled = stats()
    close(running.compute(table), labelled.compute(log())[:, [labelled.names.index(n) for n in running.names]])
    running.update(table.take(table.time < 100))
    running.save(tmp_path)
    later = table.take(table.time >= 100)
    assert np.array_equal(RunningStatistics.load(tmp_path).transform(later), running.transform(later), equal_nan=True)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("statistics.json", None, "has no statistics.json"),
        ("statistics.json", "{", "statistics.json is not valid JSON"),
        ("state-000.parquet", None, "statistics: no such file: .*state-000.parquet"),
        ("state-000.parquet", "PAR1", "state-000.parquet .*may be truncated"),
    ],
)
def test_damaged_states_are_named(tmp_path, name, content, message):
    """A state that is half there would serve cold answers without a word."""
    running = stats()
    running.update(log())
    running.save(tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        RunningStatistics.load(tmp_path)


def test_nothing_is_kept_by_user(tmp_path):
    """Per-user rows in a folder that is pushed would be a breach that nobody sees, and were most of the memory."""
    running = stats()
    (tmp_path / "state-099.parquet").write_bytes(b"of an earlier version")
    running.update(log())
    running.save(tmp_path)
    files = json.loads((tmp_path / "statistics.json").read_text())["files"]
    assert {p.name for p in tmp_path.iterdir()} == {*files.values(), "statistics.json"}
    assert not any("user" in name.split("-")[0].split("*") for name in files)


@pytest.mark.parametrize(
    ("time", "message"), [(198.0, "earlier than 199, the latest"), (199.0, "the time of the latest")]
)
def test_what_is_not_later_is_not_counted(time, message):
    """Events of the latest time counted, given again, passed the guard and counted twice."""
    running, later = stats(), replace(log(rows=3), time=np.array([300.0, time, 300.0]))
    running.update(log())
    before = running.transform(replace(log(), time=np.full(300, 400.0)))
    with pytest.raises(ValueError, match=f"row 1 has time {time:.0f}, {message} event already counted: update"):
        running.update(later)
    assert np.array_equal(running.transform(replace(log(), time=np.full(300, 400.0))), before, equal_nan=True)


def test_config_round_trip():
    """A tuple that returns from JSON as a list would no longer equal the trained configuration."""
    for config in STATISTICS:
        assert from_dict(StatisticConfig, json.loads(json.dumps(asdict(config)))) == config


# -------------------------------------------------------------------- defaults
def test_default_names_are_unique_and_fill_every_column():
    """Two statistics of one name would share a state, and a column nobody fills would be a constant input."""
    default = RunningStatistics.default(["genres"], ["age"], TARGETS, multi=["genres"])
    assert len(set(default.names)) == len(default.names)
    features = default.compute(log(rows=2000))
    assert features.dtype == np.float32
    assert features.shape == (2000, len(default.names))
    assert not np.isnan(features).all(axis=0).any()
    assert (np.nanstd(features, axis=0) > 0).all()


def test_missing_keys_are_unknown_but_cost_nothing_else():
    """A missing attribute counted as a value would pool everybody who did not fill in a form."""
    table = log()
    known = table.keys["age"] > 0
    some = RunningStatistics([StatisticConfig(("age",), "none", count=True)], TARGETS)
    features = some.compute(table)
    assert np.isnan(features[~known][:, 2:]).all()
    assert not np.isnan(features[known]).any()
    assert not np.isnan(features[:, :2]).any()


def test_a_value_listed_twice_counts_once():
    """Two unknown genres share one code; counting the row twice would double its weight."""
    table = log()
    twice = replace(table, keys={**table.keys, "genres": np.repeat(table.keys["genres"], 2, axis=1)})
    close(stats().compute(twice), stats().compute(table))


# ---------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"time": np.array([1.0, np.nan])}, "time of row 1 is nan"),
        ({"time": np.zeros(3)}, "'item' has 2 rows but time has 3"),
        ({"targets": np.zeros(2)}, r"targets has shape \(2,\): make it \[R, T\]"),
        ({"keys": {"item": np.array([1.0, 2.0]), "user": np.array([1, 2])}}, "key 'item' has dtype float64"),
        ({"keys": {"item": np.array([1, 2**31]), "user": np.array([1, 2])}}, "key 'item' has the code 2147483648"),
        ({"keys": {"item": np.array([1, 2]), "users": np.array([1, 2])}}, "no key 'user'.*did you mean 'users'"),
        ({"keys": {"item": np.array([[1], [2]]), "user": np.array([1, 2])}}, "key 'item' has several values"),
    ],
)
def test_tables_are_checked(change, message):
    """Without a name and a fix, a bad column surfaces as an index error deep in a sort."""
    good = {
        "time": np.zeros(2),
        "keys": {"item": np.array([1, 2]), "user": np.array([1, 2])},
        "targets": np.zeros((2, 2)),
    }
    with pytest.raises(ValueError, match=message):
        EventTable(**{**good, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"baseline": "itm"}, "unknown baseline 'itm'; did you mean 'item'. known: "),
        ({"keys": "item"}, r"write \('item',\)"),
        ({"keys": ("a", "b", "c")}, "at most two"),
        ({"reduce": ("avg",)}, r"reduce\[0\] is 'avg'; it must be 'mean' or"),
        ({"recent": 2.0, "half_life": 3.0}, "choose one"),
        ({"half_life": 0.0}, "half_life is 0.0; it must be a number > 0"),
        ({"shrinkage": -1.0}, "shrinkage is -1.0; it must be a number >= 0"),
    ],
)
def test_configs_are_checked(change, message):
    """A misspelt baseline found after an hour of training is an hour lost."""
    with pytest.raises(ValueError, match=message):
        StatisticConfig(**{"keys": ("item",), "baseline": "none", **change})


def test_arguments_are_checked():
    """numpy would broadcast or index with them and count the wrong rows."""
    table, running = log(), stats()
    with pytest.raises(ValueError, match="source has dtype int64"):
        running.compute(table, source=np.arange(len(table)))
    with pytest.raises(ValueError, match=r"visible_until has shape \(1,\)"):
        running.compute(table, visible_until=np.zeros(1))
    with pytest.raises(ValueError, match="targets has 1 columns"):
        running.compute(replace(table, targets=table.targets[:, :1]))
    with pytest.raises(ValueError, match="listed twice"):
        RunningStatistics([STATISTICS[0], STATISTICS[0]], TARGETS)
    with pytest.raises(ValueError, match="prior has shape"):
        RunningStatistics(STATISTICS, TARGETS, [0.5])
    with pytest.raises(ValueError, match="at most one of them may be multi-valued"):
        RunningStatistics([StatisticConfig(("genres", "genres"), "none")], TARGETS).compute(table)
    with pytest.raises(ValueError, match="offsets must ascend"):
        MultiValued(np.arange(3), np.array([0, 2]))


# ---------------------------------------------------------------------- scaler
def test_rank_gaussian_agrees_with_sklearn():
    """Interpolating the wrong way round still gives smooth numbers of the right range."""
    rng = np.random.default_rng(0)
    matrix = np.stack([rng.exponential(size=4000), rng.normal(size=4000) ** 3], axis=1).astype(np.float32)
    reference = QuantileTransformer(n_quantiles=100, output_distribution="normal").fit_transform(matrix)
    scaled = np.stack([rank_gaussian(c, quantile_knots(c)) for c in matrix.T], axis=1)
    inside = np.abs(reference) < 2.3
    np.testing.assert_allclose(scaled[inside], reference[inside], atol=0.02)
    assert np.abs(scaled).max() < 4


def test_scaler_round_trip_constants_and_missing():
    """A constant column divided by its spread would be NaN or huge, and a missing value must stay recognisable."""
    matrix = np.array([[1.0, 5.0], [np.nan, 5.0], [3.0, 5.0]], dtype=np.float32)
    scaler = StatisticsScaler.fit(matrix)
    again = StatisticsScaler.from_dict(json.loads(json.dumps(scaler.to_dict())))
    scaled = again.transform(matrix)
    assert np.array_equal(scaled, scaler.transform(matrix), equal_nan=True)
    assert (scaled[:, 1] == 0).all()
    assert np.isnan(scaled).tolist() == np.isnan(matrix).tolist()


def test_nothing_in_nothing_out():
    """An empty batch at serving, or a part of a log without rows, must not raise."""
    running, nothing = stats(), log().take(np.zeros(0, dtype=np.int64))
    running.update(nothing)
    assert running.transform(nothing).shape == (0, len(running.names))
    running.update(log())
    assert running.transform(nothing).shape == (0, len(running.names))
    assert running.compute(log(), source=np.zeros(300, dtype=bool)).shape == (300, len(running.names))


def test_a_context_key_has_one_value_per_row():
    """Prevents a row of several genres from overwriting its own baseline by that of the last genre."""
    with pytest.raises(ValueError, match="key 'genres' of a context level has several values per row"):
        RunningStatistics([], TARGETS, PRIOR, [("genres",)]).compute(log())
