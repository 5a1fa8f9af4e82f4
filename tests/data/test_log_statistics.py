"""Running statistics of an event log as model inputs, against statistics that are counted by hand."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_fixtures import COLUMNS, TASKS, synthetic_log
from scipy.stats import norm

from polyrec import PolyRecProcessor
from polyrec.core.schema import RESIDUALS
from polyrec.data.scaling import StatisticsScaler
from polyrec.data.statistics import EventTable, RunningStatistics, StatisticConfig

LOG = [
    {"keys": ["item"], "baseline": "context", "count": True, "gap": True},
    {"keys": ["user"], "baseline": "item", "recent": 2},
    {"keys": ["user", "item.genre"], "baseline": "item+user", "count": True},
    {"keys": ["item.tags"], "baseline": "global", "reduce": ["mean", "max"]},
    {"keys": ["user.age", "context.surface"], "baseline": "none", "half_life": 3600.0},
]
PAST = [
    {"keys": ["user"], "baseline": "none", "shrinkage": 2.0, "count": True},
    {"keys": ["item"], "baseline": "none", "shrinkage": 1.0, "count": True},
    {"keys": ["user", "item"], "baseline": "none", "shrinkage": 1.0, "count": True},
    {"keys": ["user", "item.genre"], "baseline": "none", "shrinkage": 3.0},
]
CONTEXT = [["context.surface"], ["context.surface", "item.genre"]]
FEEDBACK = ["rating", "like", "seconds"]
PAST_COLUMNS = {"watched": [], "liked": ["like"]}
TASKS_OF_COLUMNS = [*TASKS[:1], {"name": "like", "head": "binary"}, {"name": "rating", "head": "regression"}]


def world(users=12, statistics=None, past=True, order=None, **columns):
    """Tables with a column "like" and one of seconds, a past of most people, and a fitted processor."""
    tables = synthetic_log(users, events=8)
    events, random = tables["interactions"], np.random.default_rng(1)
    rows = len(events["rating"])
    events["like"] = random.choice([0.0, 1.0, np.nan], rows)
    events["seconds"] = np.where(random.random(rows) < 0.1, np.nan, random.exponential(30, rows))
    columns = COLUMNS | {"feedback": FEEDBACK} | columns | ({"prior_history": PAST_COLUMNS} if past else {})
    statistics = {"log": LOG, "past": PAST, "context": CONTEXT, "targets": ["seconds"]} | (statistics or {})
    if not past:
        del statistics["past"]
    tasks = TASKS_OF_COLUMNS if order is None else [TASKS_OF_COLUMNS[i] for i in order]
    processor = PolyRecProcessor.fit(**tables, tasks=tasks, columns=columns, max_history=6, statistics=statistics)
    tables["past"] = {
        "user_id": np.arange(1, users),  # nothing is known of person 0
        "watched": [random.integers(0, 24, p).tolist() for p in range(1, users)],
        "liked": [random.integers(0, 24, p // 2).tolist() for p in range(1, users)],
    }
    return tables, processor


def split_of(tables, processor, past=True, **options):
    return processor.split(tables["interactions"], prior_history=tables["past"] if past else None, **options)


def statistics_of(splits):
    """Scaled features of the rows of the user's table, [R, F]."""
    found = np.full((len(splits.train.log), splits.train.statistics.shape[1]), np.nan, dtype=np.float32)
    for part in splits:
        own = part.candidates.event[part.own_view]
        found[part.log.row[own]] = part.statistics[own]
    return found


def codes_of(values):
    return np.unique(np.asarray(values).astype(str), return_inverse=True)[1] + 1


def table_by_hand(tables):
    """What statistics read of the log, coded without any of the package's encoders."""
    events, items, users = tables["interactions"], tables["items"], tables["users"]
    item, user = events["item_id"], events["user_id"]
    tags = sorted({t for row in items["tags"] for t in row})
    padded = np.zeros((len(items["tags"]), 2), dtype=np.int64)
    for i, row in enumerate(items["tags"]):
        padded[i, : len(row)] = [tags.index(t) + 1 for t in row]
    # Numbers are counted in 10 bins of their rank among all people.
    knots = np.quantile(users["age"], np.linspace(0, 1, 100))
    grid = np.linspace(0, 1, 100)
    rank = (np.interp(users["age"], knots, grid) + 1 - np.interp(-users["age"], -knots[::-1], grid)) / 2
    age = np.digitize(norm.ppf(np.clip(rank, 1e-3, 1 - 1e-3)).astype(np.float32), np.linspace(-1.5, 1.5, 9)) + 1
    keys = {
        "item": item + 1,
        "user": user + 1,
        "item.genre": codes_of(items["genre"])[item],
        "item.tags": padded[item],
        "user.age": age[user],
        "context.surface": codes_of(events["surface"]),
    }
    targets = np.column_stack([events["like"], events["rating"], events["seconds"]]).astype(np.float32)
    return EventTable(events["timestamp"].astype(np.float64), keys, targets.astype(np.float64))


def test_what_follows_from_a_users_own_times_is_known():
    """Prevents windows without times that still tell them by a rate that fades, or that lack one that does not."""
    log = [
        {"keys": ["user"], "baseline": "item", "half_life": 3600.0, "count": True},
        {"keys": ["item"], "baseline": "context", "half_life": 3600.0, "count": True, "gap": True},
        {"keys": ["user", "item"], "baseline": "item", "count": True, "gap": True},
        {"keys": ["user"], "baseline": "none", "count": True},
    ]
    statistics = world(past=False, statistics={"log": log})[1].statistics
    fades = [f"user-item.half-1h.{name}" for name in ("like", "rating", "seconds", "log_count")]
    found = [statistics.names[column] for column in statistics.timed_columns]
    assert found == [*fades, "user*item-item.log_seconds_since"]


def past_by_hand(tables):
    """[(person, item, liked)] of the past table."""
    found = []
    for user, watched, liked in zip(*tables["past"].values(), strict=True):
        extra = [i for i in dict.fromkeys(liked) if i not in watched]
        found += [(int(user), i, float(i in liked)) for i in [*extra, *watched]]
    return found


def naive_past(tables):
    """Features of PAST for every row of the log, by loops over the past."""
    held, genre, events = past_by_hand(tables), tables["items"]["genre"], tables["interactions"]
    rows = []
    for user, item in zip(events["user_id"], events["item_id"], strict=True):
        row = [np.mean([liked for _, _, liked in held])]
        for mine, shrinkage, count in (
            ([liked for u, _, liked in held if u == user], 2, True),
            ([liked for _, i, liked in held if i == item], 1, True),
            ([liked for u, i, liked in held if u == user and i == item], 1, True),
            ([liked for u, i, liked in held if u == user and genre[i] == genre[item]], 3, False),
        ):
            row += [sum(mine) / (shrinkage + len(mine))] + [np.log1p(len(mine))] * count
        rows.append(row)
    return np.array(rows)


# ------------------------------------------------------------------ the same as by hand
@pytest.mark.parametrize("by", ["time", "leave_one_out"])
def test_features_are_those_of_statistics_counted_by_hand(by):
    """Prevents a key, label, level or measure from being read of another row or column than the one that it names."""
    tables, processor = world(past=False)
    splits = split_of(tables, processor, past=False, by=by)
    part = {name: part.log.row[part.candidates.event] for name, part in splits._asdict().items()}
    table = table_by_hand(tables)
    train = np.zeros(len(table), dtype=bool)
    train[part["train"]] = True
    stats = RunningStatistics(
        [StatisticConfig(**s) for s in LOG], ["like", "rating", "seconds"],
        prior=np.nanmean(table.targets[train], axis=0), context=CONTEXT,
    )  # fmt: skip
    assert processor.statistics.names == stats.names
    source = train if by == "leave_one_out" else None
    counted = stats.compute(table, source=source)
    scaler = StatisticsScaler.fit(counted[train])
    found, expected = statistics_of(splits), scaler.transform(counted)
    if by == "leave_one_out":  # validation rows count for the test
        tested = np.ones(len(table), dtype=bool)
        tested[part["test"]] = False
        expected[part["test"]] = scaler.transform(stats.compute(table, source=tested))[part["test"]]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    log = splits.train.log
    residuals = (table.targets - counted[:, :3]) / np.nanstd(table.targets[train], axis=0)
    np.testing.assert_allclose(log.event_features[RESIDUALS], residuals[log.row], rtol=1e-3, atol=1e-3)
    assert processor.statistics.spread == pytest.approx(
        dict(zip(stats.targets, np.nanstd(table.targets[train], axis=0), strict=True)), rel=1e-5
    )


def test_features_of_the_past_are_those_of_a_naive_loop():
    """Prevents the past of one person, or of another item, from being told about a row."""
    tables, processor = world()
    splits = split_of(tables, processor)
    log = processor.statistics.log
    assert processor.statistics.names[len(log.names) :][:3] == [
        "past.baseline.like",
        "past.user-none.like",
        "past.user-none.log_count",
    ]
    first = len(log.names)
    scaler, naive = processor.statistics.scaler, naive_past(tables)
    # The first feature is the bias model's prediction, which has tests of its own.
    scaled = np.clip((naive[:, 1:] - scaler.mean[first + 1 :]) / scaler.std[first + 1 :], -4, 4)
    found = statistics_of(splits)[:, first + 1 :]
    assert found.shape == scaled.shape
    # A mean of nothing may be unknown or 0 before scaling; where something is known they must agree.
    known = ~np.isnan(found)
    np.testing.assert_allclose(found[known], scaled[known], rtol=1e-4, atol=1e-4)
    events = tables["interactions"]
    assert (events["user_id"][~known.all(1)] >= 0).all()
    assert np.isfinite(found[events["user_id"] > 0][:, :2]).all()
    assert processor.statistics.past.prior.tolist() == pytest.approx([naive[0, 0]])


def test_the_past_does_not_depend_on_the_time_of_a_row():
    """Prevents what happened before the log from being counted in or out as time goes by."""
    tables, processor = world()
    first = len(processor.statistics.log.names)
    found = statistics_of(split_of(tables, processor))[:, first:]
    events = tables["interactions"]
    for user in range(12):
        rows = events["user_id"] == user
        user_only = found[rows][:, 1:3]  # keyed by the person alone
        assert (np.isnan(user_only) | (user_only == user_only[0])).all()
        for item in set(events["item_id"][rows]):
            same = found[rows & (events["item_id"] == item)]
            assert np.array_equal(same, np.repeat(same[:1], len(same), axis=0), equal_nan=True)
    times = tables["interactions"]["timestamp"]
    tables["interactions"]["timestamp"] = times.max() - times + times.min() + 1e7
    other = statistics_of(split_of(tables, processor))[:, first:]
    scaler = StatisticsScaler.fit(found)
    again = StatisticsScaler.fit(other)
    # Other rows are training rows now, so scales differ; what is counted does not.
    np.testing.assert_allclose(scaler.transform(found), again.transform(other), atol=1e-3)


def test_the_log_does_not_depend_on_the_past():
    """Prevents events without a time from being counted as the log's own."""
    tables, processor = world()
    width = len(processor.statistics.log.names)
    with_past = statistics_of(split_of(tables, processor))
    tables_without, other = world(past=False)
    without = statistics_of(split_of(tables_without, other, past=False))
    assert with_past.shape[1] > without.shape[1] == width
    np.testing.assert_array_equal(with_past[:, :width], without)


def test_the_order_of_tasks_changes_nothing():
    """Prevents the statistics of one task from being those of another when a configuration lists them otherwise."""
    found = []
    for order in ([0, 1, 2], [2, 0, 1]):
        tables, processor = world(order=order)
        features = statistics_of(split_of(tables, processor))
        found.append(dict(zip(processor.statistics.names, features.T, strict=True)))
    assert found[0].keys() == found[1].keys()
    for name, values in found[0].items():
        np.testing.assert_allclose(values, found[1][name], rtol=1e-5, atol=1e-5, err_msg=name)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_features_do_not_depend_on_the_order_of_the_file(seed):
    """Prevents a row from being described by the statistics of whoever stands in its place in a sorted file."""
    tables, processor = world()
    plain = statistics_of(split_of(tables, processor))
    place = np.random.default_rng(seed).permutation(len(plain))
    events = tables["interactions"]
    events["timestamp"] = events["timestamp"].astype(float)
    tables["interactions"] = {name: values[place] for name, values in events.items()}
    # Ties at the cut may fall on either side of it, so the scales can differ; what is counted before them must not.
    scaler = processor.statistics.scaler
    raw = plain * scaler.std + scaler.mean
    found = statistics_of(split_of(tables, processor))
    scaler = processor.statistics.scaler
    inside = (np.abs(plain[place]) < 4) & (np.abs(found) < 4)
    np.testing.assert_allclose((found * scaler.std + scaler.mean)[inside], raw[place][inside], rtol=1e-2, atol=5e-2)


# ------------------------------------------------------------------ residuals of the past
def test_residuals_of_past_events():
    """Prevents a past event's like from being read as another target's, and unknown labels from saying something."""
    tables, processor = world()
    past = split_of(tables, processor).train.log.prior_history
    targets = processor.statistics.targets
    assert targets == ["like", "rating", "seconds"]
    liked = np.array([liked for _, _, liked in past_by_hand(tables)])
    residuals = past.event_features[RESIDUALS]
    assert residuals.dtype == np.float32
    np.testing.assert_allclose(residuals[:, 0], (liked - liked.mean()) / liked.std(), rtol=1e-5)
    assert np.isnan(residuals[:, 1:]).all()


@pytest.mark.parametrize(
    ("label", "same"),
    [("like", True), ("like >= 1", True), ("like != 0", True), ("like >= 4", False), ("like / 2", False),
     ("log1p(like)", False), ("like == 0", False), ("rating >= 4", False)],
)  # fmt: skip
def test_a_mark_speaks_for_a_task_only_where_it_is_the_label(label, same):
    """Prevents a mark of 1 from being read as a bad rating, or as the opposite of what the label says."""
    tables = synthetic_log(12)
    tables["interactions"]["like"] = np.arange(len(tables["interactions"]["rating"])) % 2
    head = "binary" if ">=" in label or "=" in label else "regression"
    tasks = [{"name": "task", "head": head, "label": label}]
    columns = COLUMNS | {"feedback": ["rating", "like"], "prior_history": PAST_COLUMNS}
    processor = PolyRecProcessor.fit(**tables, tasks=tasks, columns=columns)
    assert processor.statistics.marked == ({"task": "like"} if same else {})


def test_a_mark_speaks_for_a_measure():
    """Prevents the marks of feedback that no task learns from being dropped."""
    tables = synthetic_log(12)
    tables["interactions"]["like"] = np.arange(len(tables["interactions"]["rating"])) % 2
    columns = COLUMNS | {"feedback": ["rating", "like"], "prior_history": PAST_COLUMNS}
    processor = PolyRecProcessor.fit(**tables, tasks=TASKS[2:], columns=columns, statistics={"targets": ["like"]})
    past = {"user_id": [1], "watched": [[1, 2]], "liked": [[2]]}
    log = processor.split(tables["interactions"], prior_history=past).train.log
    assert processor.statistics.targets == ["rating", "like"]
    assert log.prior_history.event_features[RESIDUALS].tolist() == [
        [pytest.approx(float("nan"), nan_ok=True), v] for v in (-1, 1)
    ]


def test_a_split_without_past_forgets_an_earlier_one():
    """Prevents the past of one log from describing the people of another."""
    tables, processor = world()
    split_of(tables, processor)
    found = statistics_of(processor.split(tables["interactions"]))
    tables_fresh, fresh = world()
    expected = statistics_of(fresh.split(tables_fresh["interactions"]))
    np.testing.assert_array_equal(found, expected)
    assert processor.statistics.past.prior.tolist() == [0.0]


# ------------------------------------------------------------------ default sets
def test_default_statistics_count_everything_declared():
    """Prevents attributes, context levels or the past from being left out of the default set."""
    tables, processor = world(statistics={"log": None, "past": None})
    names = processor.statistics.names
    for key in ("item.genre", "item.tags", "item.price", "user.age"):
        assert any(name.split("-")[0].split("*")[-1] == key or key in name.split("-")[0] for name in names), key
    assert any(name.startswith("item*context.surface-") for name in names)
    past = [name.removeprefix("past.") for name in names if name.startswith("past.")]
    for key in ("item", "user", "user*item", "item.genre", "user*item.genre"):
        assert f"{key}-{'context' if key in ('item', 'item.genre') else 'item'}.like" in past, key
    assert split_of(tables, processor).train.statistics.shape[1] == len(names)


def test_marks_are_needed_to_count_the_past():
    """Prevents statistics of a past without feedback, which have no target, from failing in a matrix of no columns."""
    tables = synthetic_log(8)
    columns = COLUMNS | {"prior_history": {"watched": []}}
    processor = PolyRecProcessor.fit(**tables, tasks=TASKS, columns=columns)
    log = processor.split(tables["interactions"], prior_history={"user_id": [1], "watched": [[2]]}).train.log
    assert processor.statistics.past is None
    assert np.isnan(log.prior_history.event_features.get(RESIDUALS, np.array([np.nan]))).all()


# ------------------------------------------------------------------ refusals
@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        ({"log": [{"keys": ["item.gener"], "baseline": "none"}]}, "no key 'item.gener' .*did you mean 'item.genre'"),
        ({"log": [{"keys": ["itm"], "baseline": "none"}]}, "no key 'itm' .*did you mean 'item'"),
        (
            {"past": [{"keys": ["user", "context.surfac"], "baseline": "none"}]},
            "no key 'context.surfac' .*mean 'context.surface'",
        ),
        ({"context": [["context.tab"]]}, "no key 'context.tab' .*known: item, user, item.genre"),
        ({"targets": ["second"]}, "statistics.targets: 'second' is no feedback; .*mean 'seconds'"),
        ({"targets": ["surface"]}, "'surface' is no feedback; known: rating, like, seconds"),
        ({"targets": ["like"]}, "'like' is a task, whose label is counted anyway"),
        (
            {"past": [{"keys": ["user"], "baseline": "none", "half_life": 60}]},
            "'user-none.half-.*h' fades .* have no times",
        ),
        ({"past": [{"keys": ["user"], "baseline": "none", "recent": 3}]}, "'user-none.recent3' fades .* have no times"),
        ({"past": [{"keys": ["user"], "baseline": "none", "gap": True}]}, "'user-none' fades or asks for a gap"),
        ({"logs": []}, "unknown key 'logs' in statistics; .*did you mean 'log'"),
    ],
)
def test_statistics_that_cannot_be_counted_are_refused_before_anything_is_read(statistics, message):
    """Prevents a misspelt key from surfacing after the log was encoded, and a fading past from being 0 everywhere."""
    with pytest.raises(ValueError, match=message):
        world(statistics=statistics)


def test_a_measure_that_is_no_number_is_named():
    """Prevents text from being averaged."""
    tables, processor = world()
    tables["interactions"]["seconds"] = ["long"] * len(tables["interactions"]["seconds"])
    with pytest.raises(ValueError, match="'seconds' holds .* values such as 'long' but is used as a number"):
        processor.encode_events(tables["interactions"])


# ------------------------------------------------------------------ serving and disk
def test_saved_statistics_answer_the_same_and_say_nothing_about_people(tmp_path):
    """Prevents a scale, mark or state from being lost, and what is kept per person from leaving with the model."""
    tables, processor = world(max_unmatched=1.0)
    for name in ("interactions", "users", "past"):
        tables[name]["user_id"] = [f"secret{u}" for u in tables[name]["user_id"]]
    split_of(tables, processor)
    processor.save_pretrained(tmp_path)
    for path in [p for p in tmp_path.rglob("*") if p.is_file()]:
        assert b"secret" not in path.read_bytes(), path
        if path.suffix == ".parquet":
            assert "secret" not in str(pq.read_table(path).to_pydict()), path
    for part in ("log", "past"):
        saved = json.loads((tmp_path / "statistics" / part / "statistics.json").read_text())["files"]
        assert saved
        assert not [name for name in saved if "user" in name.split("-")[0].split("*")]
    loaded = PolyRecProcessor.from_pretrained(tmp_path)
    one, two = processor.statistics, loaded.statistics
    assert (two.names, two.targets, two.measures, two.marked) == (one.names, one.targets, one.measures, one.marked)
    assert (two.spread, two.last_time) == (one.spread, one.last_time)
    assert two.past.prior.tolist() == one.past.prior.tolist()
    history = [{"item_id": 3, "rating": 4.0, "like": 1.0, "seconds": 9.0, "surface": "home"}, {"item_id": 4}]
    asked = np.arange(2, processor.num_items)
    windows = [p.request(history, asked, user={"age": 30.0}, context={"surface": "home"}) for p in (processor, loaded)]
    for name in ("candidate_features", "event_features"):
        for feature, values in windows[0][name].items():
            kind = np.asarray(values).dtype.kind
            assert np.array_equal(values, windows[1][name][feature], equal_nan=kind == "f"), feature


def test_statistics_before_a_split_are_saved_as_such(tmp_path):
    """Prevents a processor that was never split from being loaded as one whose scales are all 0."""
    _, processor = world()
    processor.save_pretrained(tmp_path)
    loaded = PolyRecProcessor.from_pretrained(tmp_path).statistics
    assert loaded.scaler is None
    assert loaded.past is not None
    assert "statistics" not in processor.request([3], np.array([2]))["candidate_features"]


def test_a_request_knows_the_items_past_and_its_own_history_alone():
    """Prevents somebody new from being described by what a person of the log did before it."""
    tables, processor = world()
    splits = split_of(tables, processor)
    first = len(processor.statistics.log.names)
    item = int(np.bincount([i for _, i, _ in past_by_hand(tables)]).argmax())
    row = processor.items.rows(pa.array([item]))
    features = processor.request([3], row)["candidate_features"]["statistics"][0, first:]
    names = processor.statistics.names[first:]
    by_item = [j for j, n in enumerate(names) if n.startswith("past.item-")]
    events = tables["interactions"]
    same = np.flatnonzero(events["item_id"] == item)
    expected = statistics_of(splits)[same[0], first:]
    np.testing.assert_allclose(features[by_item], expected[by_item], rtol=1e-5)
    nobody = processor.request([4, 5, 6], row)["candidate_features"]["statistics"][0, first:]
    assert np.array_equal(features, nobody, equal_nan=True)
    counts = names.index("past.user-none.log_count")
    scaler = processor.statistics.scaler
    assert features[counts] * scaler.std[first + counts] + scaler.mean[first + counts] == pytest.approx(0, abs=1e-5)
