"""Tuned baselines against loops over the log that know nothing of blocks, and what they must never read."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest

from polyrec import PolyRecProcessor
from polyrec.data.columns import FIRST
from polyrec.evaluation.baselines import baseline_table, pairs
from polyrec.evaluation.baselines.base import CatalogTask
from polyrec.evaluation.baselines.counts import HALF_LIVES, DecayedCounts, Newest, RecentPopularity
from polyrec.evaluation.baselines.histories import EASE, ItemKNN, Repeat, Transitions
from polyrec.evaluation.baselines.table import CATALOG_BASELINES, ranked_baselines
from polyrec.evaluation.baselines.tuning import choose
from polyrec.evaluation.report import format_report
from polyrec.evaluation.scored import ranked_rows

TASKS = [
    {"name": "next", "head": "retrieval", "label": "taken"},
    {"name": "like", "head": "binary", "label": "rating >= 4"},
    {"name": "rating", "head": "regression"},
]
ITEMS, HOUR = 9, 3600


def log_of(users: int = 12, events: int = 15, seed: int = 0) -> dict[str, np.ndarray]:
    """Times with ties over some weeks, items that were shown and refused, and ratings."""
    random = np.random.default_rng(seed)
    size = users * events
    return {
        "user_id": np.repeat(np.arange(users), events),
        "item_id": random.integers(0, ITEMS, size),
        "timestamp": random.integers(0, 200, size) * HOUR * 6,
        "taken": (random.random(size) < 0.8).astype(float),
        "rating": random.integers(1, 6, size).astype(float),
    }


@pytest.fixture(scope="module")
def world():
    """{how it is split: (processor, parts)}."""
    log, columns = log_of(), {"feedback": ["taken", "rating"], "item_time": "released"}
    items = {"item_id": np.arange(ITEMS), "released": np.arange(ITEMS)[::-1] * HOUR * 100}
    processor = PolyRecProcessor.fit(log, items, tasks=TASKS, columns=columns, verbose=False)
    return {by: (processor, processor.split(log, by=by)) for by in ("time", "leave_one_out")}


def views(world):
    """Every kind of data set that is judged: (task, data set, events it may count, time up to which it knows)."""
    for by, (processor, parts) in world.items():
        task = CatalogTask(parts.train, "next", processor.num_items - FIRST)
        part = np.full(len(parts.train.log), 2)
        for number, own in enumerate((parts.train, parts.valid)):
            part[own.candidates.event] = number
        cutoff = float(np.median(parts.test.log.time[parts.test.candidates.event]))
        hidden = {"train": part > 0, "valid": part > 0, "test": part > 1} if by == "leave_one_out" else {}
        for name in ("train", "valid", "test"):  # training rows hold the first events of items
            counted = ~hidden.get(name, np.zeros(len(part), dtype=bool))
            yield task, getattr(parts, name), counted, np.inf
            yield task, processor.without_updates(getattr(parts, name), cutoff), counted, cutoff


# ------------------------------------------------------------------ what is known when
@pytest.mark.parametrize("half_life", ["none", "1 hour", "7 days"])
def test_popular_lately_is_a_sum_over_strictly_earlier_events(world, half_life):
    """Prevents a row from counting itself, events of its own second, refused items, held-out rows or what is frozen."""
    for task, dataset, counted, known_until in views(world):
        log, rows = dataset.log, ranked_rows(dataset, "next")
        found = RecentPopularity(task).scorer(dataset, half_life=half_life)(rows)
        for scores, event in zip(found, dataset.candidates.event[rows], strict=True):
            until = min(log.time[event], known_until)
            earlier = [e for e in range(len(log)) if counted[e] and log.labels[e, 0] > 0 and log.time[e] < until]
            newest, length = max((log.time[e] for e in earlier), default=0), HALF_LIVES[half_life] or np.inf
            expected = np.zeros(task.num_items)
            for e in earlier:
                expected[log.item[e] - FIRST] += 2.0 ** ((log.time[e] - newest) / length)
            np.testing.assert_allclose(scores, expected / max(expected.max(), 1e-300), rtol=1e-5, atol=1e-30)


def test_counts_do_not_depend_on_blocks_or_overflow():
    """Prevents an hour's half-life over ten years from becoming inf or NaN, and rows from depending on their block."""
    random = np.random.default_rng(0)
    times = np.sort(random.integers(0, 10 * 365 * 24, 300) * HOUR).astype(float)
    counts = DecayedCounts(times, random.integers(0, 5, 300), 5, half_life=HOUR)
    asked = random.permutation(np.append(times, times[-1] + 1e9))
    together = counts.at(asked)
    assert np.isfinite(together).all()
    assert together[asked > times[0]].max(axis=1).min() == 1
    np.testing.assert_allclose(together, np.concatenate([counts.at(asked[[n]]) for n in range(len(asked))]), rtol=1e-6)


def test_newest_first_is_by_what_had_an_event_before(world):
    """Prevents an item's first event, which is the answer, from making it the newest item that there is."""
    for task, dataset, counted, known_until in views(world):
        log, rows = dataset.log, ranked_rows(dataset, "next")
        found = Newest(task).scorer(dataset)(rows)
        for scores, event in zip(found, dataset.candidates.event[rows], strict=True):
            first = np.full(task.num_items, np.inf)
            for e in np.flatnonzero(counted & (log.time < min(log.time[event], known_until))):
                first[log.item[e] - FIRST] = min(first[log.item[e] - FIRST], log.time[e])
            age = np.where(np.isinf(first), -np.inf, first)
            assert ((scores[:, None] > scores) == (age[:, None] > age)).all()


def test_newest_by_the_catalog_leaves_what_comes_later_last(world):
    """Prevents items that are not there yet from being the newest of all."""
    parts = world["time"][1]
    released = np.arange(ITEMS)[::-1] * HOUR * 100.0
    task = CatalogTask(parts.train, "next", ITEMS, released=released)
    rows = ranked_rows(parts.test, "next")
    for scores, now in zip(
        Newest(task).scorer(parts.test, by="item_time")(rows), task.request_times(parts.test, rows), strict=True
    ):
        there = released <= now
        assert scores.argmax() == np.where(there, released, -np.inf).argmax()
        assert (scores[~there] == -1).all()


def before(log, event, until=np.inf):
    """Items that a user took strictly before an event, oldest first."""
    same = (log.user == log.user[event]) & (log.time < min(log.time[event], until)) & (log.labels[:, 0] > 0)
    return (log.item[same] - FIRST).tolist()


def test_own_items_come_first_the_latest_of_them_first(world):
    """Prevents an item's own event, or one that was refused, from counting as a habit."""
    for task, dataset, _, known_until in views(world):
        rows = ranked_rows(dataset, "next")
        popular = task.popularity()
        for scores, event in zip(Repeat(task).scorer(dataset)(rows), dataset.candidates.event[rows], strict=True):
            own = before(dataset.log, event, known_until)
            latest = list(dict.fromkeys(own[:-11:-1]))  # weights halve: ten events hold the order of what they hold
            ranked = np.argsort(-scores, kind="stable").tolist()
            assert set(ranked[: len(set(own))]) == set(own)
            others = [i for i in ranked if i not in own]
            assert (np.diff(popular[others]) <= 0).all()
            assert not latest or scores[latest[0]] == scores.max()


@pytest.mark.parametrize(("lag_decay", "damping"), [(0.0, 0.0), (0.7, 0.4)])
def test_transitions_count_what_the_training_questions_saw(world, lag_decay, damping):
    """Prevents pairs of one time or of held-out events from being counted, and rows and columns from changing places."""
    for _, parts in world.values():
        task, log = CatalogTask(parts.train, "next", ITEMS), parts.train.log
        expected = np.zeros((ITEMS, ITEMS))
        for event in parts.train.candidates.event:
            if log.labels[event, 0] > 0:
                for lag, item in enumerate(before(log, event)[: -11 if lag_decay else -2 : -1]):
                    expected[item, log.item[event] - FIRST] += lag_decay**lag
        out, into = expected.sum(1, keepdims=True), expected.sum(0, keepdims=True)
        expected = expected / np.maximum(out, 1e-12) / np.maximum(into, 1e-12) ** damping
        found = Transitions(task).similarity(lag_decay=lag_decay, damping=damping).toarray()
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("kind", [EASE, ItemKNN, Transitions])
def test_scores_are_the_weighted_sum_over_the_last_events(world, kind):
    """Prevents the weights from going to the oldest events, and EASE from reading an item twice."""
    task, dataset = CatalogTask(world["time"][1].train, "next", ITEMS), world["time"][1].valid
    baseline, rows = kind(task), ranked_rows(dataset, "next")
    similarity = baseline.similarity()
    dense = similarity if kind is EASE else similarity.toarray()
    found = baseline.scorer(dataset, last=3, decay=0.7)(rows)
    for scores, event in zip(found, dataset.candidates.event[rows], strict=True):
        expected, read = np.zeros(ITEMS), set()
        for lag, item in enumerate(before(dataset.log, event)[:-4:-1]):
            expected += 0.7**lag * dense[item] * (kind is not EASE or item not in read)
            read.add(item)
        np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-6)


# ------------------------------------------------------------------ choosing
@pytest.mark.parametrize("by", ["time", "leave_one_out"])
def test_the_choice_never_reads_test(world, by):
    """Prevents settings from being chosen by the rows on which the table is then measured."""
    parts = world[by][1]
    hidden = copy.deepcopy(parts.train.log)
    test = parts.test.candidates.event
    hidden.item[test] = FIRST + (hidden.item[test] - FIRST + 1) % ITEMS
    hidden.labels[test] = 5 - hidden.labels[test]
    other = [replace(own, log=hidden) for own in (parts.train, parts.valid)]
    for kind in CATALOG_BASELINES.values():
        first, second = (
            choose(kind(CatalogTask(train, "next", ITEMS, "nothing")), valid, k=3)
            for train, valid in ((parts.train, parts.valid), other)
        )
        assert first == second or (first.rows == 0 and first.settings == second.settings)
    assert {kind(CatalogTask(parts.train, "next", ITEMS, "nothing")).name for kind in (EASE, Repeat)} == {
        "ease",
        "repeat",
    }


def test_what_is_hot_this_hour_is_found():
    """Prevents a news log from being judged beside popularity of all times alone: validation chooses the half-life."""
    random = np.random.default_rng(1)
    size, span = 600, 60
    hour = np.sort(random.integers(0, span, size))
    hot = hour % 20
    item = np.where(random.random(size) < 0.7, hot, random.integers(0, 20, size))
    log = {
        "user_id": random.integers(0, 80, size),
        "item_id": item,
        "timestamp": hour * HOUR + random.integers(0, HOUR, size),
    }
    processor = PolyRecProcessor.fit(log, tasks=[{"name": "next", "head": "retrieval"}], verbose=False)
    table = baseline_table(
        processor,
        processor.split(log),
        ks=(1, 3),
        exclude_seen=False,
        systems=["recent_popularity", "popularity"],
        resamples=0,
    )["next"]
    assert table["recent_popularity"]["chosen"]["settings"] == {"half_life": "1 hour"}
    assert table["recent_popularity"]["ndcg@3"] > 2 * table["popularity"]["ndcg@3"]
    assert table["recent_popularity"]["recall@1"] <= table["recent_popularity"]["recall@3"]


def test_lists_are_in_the_order_of_the_rows_that_were_given(world):
    """Prevents intervals over users from pairing a user's figures with another's, as rows are ranked in time order."""
    parts = world["time"][1]
    task, rows = CatalogTask(parts.train, "next", ITEMS), ranked_rows(parts.test, "next")[::-1]
    for _, lists, _ in ranked_baselines(task, None, parts.test, rows, k=3, systems=["ease", "newest"]):
        assert lists.rows.tolist() == rows.tolist()
    with pytest.raises(ValueError, match="did you mean 'ease'"):
        list(ranked_baselines(task, None, parts.test, rows, systems=["eese"]))


def test_what_was_seen_may_say_what_is_bought_next():
    """Prevents baselines of a shop from reading purchases alone, where views name the item that is bought next."""
    random = np.random.default_rng(2)
    seen = random.integers(0, 12, 300)
    item, bought = np.repeat(seen, 2), np.tile([0.0, 1.0], 300)  # a view, and then a purchase of what goes with it
    item[1::2] = (item[1::2] + 1) % 12
    log = {"user_id": np.repeat(np.arange(30), 20), "item_id": item, "timestamp": np.arange(600), "bought": bought}
    tasks, columns = [{"name": "next", "head": "retrieval", "label": "bought"}], {"feedback": ["bought"]}
    processor = PolyRecProcessor.fit(log, tasks=tasks, columns=columns, verbose=False)
    parts = processor.split(log)
    found = baseline_table(processor, parts, ks=(3,), systems=["transitions"], exclude_seen=False, resamples=0)
    assert found["next"]["transitions"]["chosen"]["settings"]["history"] == "all"
    assert found["next"]["transitions"]["ndcg@3"] > 0.9


def test_a_catalog_too_large_for_ease_is_one_line():
    """Prevents a table that silently lacks its strongest baseline."""
    assert "20,000" in str(EASE.misfit(CatalogTask(None, "next", 20_001)))
    assert EASE.misfit(CatalogTask(None, "next", 20_000)) is None


# ------------------------------------------------------------------ pairs
def test_running_rates_know_earlier_labels_alone(world):
    """Prevents a row's own label, or one of the same second, from predicting it; frozen, nothing new is known."""
    for processor, parts in world.values():
        log, known = parts.test.log, parts.train.labels()[:, 1]
        for dataset in (parts.test, processor.without_updates(parts.test, float(np.median(log.time)))):
            first = pairs.running_bias(known, dataset, 1)
            for c, event in enumerate(dataset.candidates.event[:10]):
                late = log.time >= min(log.time[event], dataset.known_until)
                late |= np.zeros(len(log), bool) if dataset.source is None else ~dataset.source
                changed = copy.deepcopy(log)
                changed.labels[late, 1] = 1 - changed.labels[late, 1]
                assert pairs.running_bias(known, replace(dataset, log=changed), 1)[c] == first[c]
        assert len(np.unique(first)) > 1


def test_trees_stop_by_validation_and_never_read_test(world, monkeypatch):
    """Prevents trees that stop where the test rows would have them stop."""
    pytest.importorskip("lightgbm")
    monkeypatch.setattr(pairs, "_FEWEST", 10)
    monkeypatch.setattr(pairs, "_TREES", {**pairs._TREES, "min_data_in_leaf": 5})
    _, parts = world["time"]
    hidden = copy.deepcopy(parts.test.log)
    hidden.labels[parts.test.candidates.event] = 1 - hidden.labels[parts.test.candidates.event]
    for task, metrics in (("like", ("auc", "logloss")), ("rating", ("rmse", "mae"))):
        first, second = (
            pairs.PairBaselines(metrics, task, *(replace(part, log=log) for part in parts))
            for log in (parts.test.log, hidden)
        )
        np.testing.assert_array_equal(first.values["lightgbm"], second.values["lightgbm"])
        assert first.chosen == second.chosen
        assert 0 < first.chosen["lightgbm"]["settings"]["trees"] < pairs._ROUNDS
        assert first.left_out == {}


# ------------------------------------------------------------------ the table
def test_a_table_says_where_the_model_is_not_first():
    """Prevents a bad model from being mistaken for a good one because a baseline's better figure is overlooked."""
    report = {
        "next": {
            "polyrec": {"ndcg@3": 0.1, "coverage@3": 0.5, "baselines_left_out": {"repeat": "no repeats"}},
            "ease": {"ndcg@3": 0.2, "coverage@3": 0.6, "chosen": {"settings": {"last": None}, "rows": 9}},
        },
        "like": {"polyrec": {"auc": 0.8, "logloss": 0.6}, "bias": {"auc": 0.7, "logloss": 0.5}},
        "stars": {"polyrec": {"rmse": 1.0}, "bias": {"rmse": 1.1}},
    }
    text = format_report(report)
    assert [line.strip() for line in text.splitlines() if "not first" in line] == [
        "! polyrec is not first: ndcg@3 (ease 0.2000)",
        "! polyrec is not first: logloss (bias 0.5000)",
    ]
    assert text.count("0.1000!") == text.count("0.6000!") == 1
    assert "chosen on validation: ease last=all" in text
    assert "baseline repeat left out: no repeats" in text
    assert text.splitlines()[-1] == "* best value of the metric; ! a baseline is better than polyrec"


def test_figures_that_look_alike_are_equal():
    """Prevents "not first: logloss (lightgbm 0.0000)" beside a model's own 0.0000."""
    text = format_report({"like": {"polyrec": {"logloss": 0.00004}, "lightgbm": {"logloss": 0.00001}}})
    assert "not first" not in text
    assert text.count("0.0000*") == 2
