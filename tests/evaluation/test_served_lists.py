"""What is measured is what is served: metrics against lists that `recommend` and `search` give, row by row."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from model_fixtures import arguments, tiny_model

from polyrec import PolyRecProcessor, PolyRecTrainer
from polyrec.core.schema import TaskConfig
from polyrec.data.candidates import excluded_items, left_out
from polyrec.evaluation import cautions, evaluator, ranking
from polyrec.evaluation.baselines.recommenders import Popularity
from polyrec.evaluation.protocol import evaluation_facts, format_facts
from polyrec.evaluation.report import compare_with_baselines
from polyrec.evaluation.scored import Ranking

K, USERS, ITEMS = 5, 12, 16
NEXT = [{"name": "next_item", "head": "retrieval"}]


def log_with_everything():
    """Repeats, baskets of one time, items of the catalog without a training event, and items outside the catalog."""
    random = np.random.default_rng(1)
    user = np.repeat(np.arange(USERS), 12)
    step = np.tile(np.arange(12), USERS)
    item = random.integers(0, ITEMS - 3, len(user))
    late = step >= 9
    item[late] = random.choice([0, 1, 2, *range(ITEMS - 3, ITEMS + 2)], late.sum())
    return {
        "interactions": {
            "user_id": user,
            "item_id": item,
            "timestamp": 1e6 + 1000.0 * (step - step % 3 // 2),  # of three events the last two share one time
            "rating": random.integers(1, 6, len(user)).astype(float),
        },
        "items": {"item_id": np.arange(ITEMS), "genre": [f"g{i % 3}" for i in range(ITEMS)]},
    }


def world_of(options=None, **config):
    log = log_with_everything()
    tasks = [{"name": "next_item", "head": "retrieval", "options": options or {}}]
    columns = {"feedback": ["rating"], "item_features": {"genre": "categorical"}}
    processor = PolyRecProcessor.fit(**log, tasks=tasks, columns=columns, max_history=4, statistics=False)
    parts = processor.split(log["interactions"])
    model = tiny_model(processor, **config)
    if options is None:
        model.heads["next_item"].bias.weight.data.normal_()
    return log["interactions"], processor, parts, model


def served_recall(table, processor, dataset, model, **request):
    """Recall by asking `recommend` for every row of a data set, with the history that the row may see."""
    hits = []
    rows = dataset.log.row[dataset.candidates.event]
    for row in rows:
        earlier = np.flatnonzero(
            (table["user_id"] == table["user_id"][row]) & (table["timestamp"] < table["timestamp"][row])
        )
        earlier = earlier[np.argsort(table["timestamp"][earlier], kind="stable")]
        history = [{n: table[n][e].item() for n in ("item_id", "timestamp", "rating")} for e in earlier]
        found = model.recommend(processor, history, k=K, time=table["timestamp"][row].item(), **request)
        hits.append(table["item_id"][row] in [each["item"] for each in found])
    return float(np.mean(hits))


@pytest.mark.parametrize(
    ("options", "config", "asked"),
    [
        (None, {}, {}),
        (None, {"exclude_seen": False}, {}),
        (None, {}, {"exclude_seen": False}),
        ({"repeats": True}, {}, {}),
        ({"repeats": True}, {"exclude_seen": True}, {}),
    ],
    ids=str,
)
def test_recall_is_that_of_the_served_lists(options, config, asked):
    """Prevents a metric from flattering: a target that no served list can hold (seen, unknown) was put back."""
    table, processor, parts, model = world_of(options, **config)
    predictions = evaluator.predict(model, parts.test, k=K, **asked)
    measured = evaluator.evaluate(model, parts.test, predictions, k=K)[f"next_item_recall@{K}"]
    assert len(predictions.rankings["next_item"].rows) == parts.test.num_candidates
    assert measured == pytest.approx(served_recall(table, processor, parts.test, model, **asked), abs=1e-9)


def test_sure_misses_are_counted_and_said(caplog):
    """Prevents targets that cannot be found from vanishing, or from counting without a word."""
    _, _, parts, model = world_of()
    predictions = evaluator.predict(model, parts.test, k=K)
    log, event = parts.test.log, parts.test.candidates.event
    repeated = [
        log.item[e] in log.item[(log.user == log.user[e]) & (log.time < log.time[e])] and log.item[e] > 1 for e in event
    ]
    facts = evaluation_facts(model, parts.test, predictions)["next_item"]
    unknown = int((log.item[event] == 1).sum())
    assert 0 < unknown < len(event)
    assert (facts["rows"], facts["repeated"], facts["unknown"]) == (len(event), sum(repeated), unknown)
    assert f"{sum(repeated)} taken before" in format_facts({"next_item": facts})
    cautions._say_repeats.cache_clear()
    with caplog.at_level(logging.WARNING):
        evaluator.evaluate(model, parts.test, predictions, k=K)
        evaluator.evaluate(model, parts.test, predictions, k=K)
    assert [r.message for r in caplog.records if "repeats=True" in r.message] == [caplog.records[0].message]
    found = SimpleNamespace(rows=np.arange(4), excluded=np.array([True, False, False, False]))
    with caplog.at_level(logging.WARNING):
        cautions.warn_of_repeats({"again": found})
    assert "'again': 25.0% of the targets" in caplog.records[-1].message


def test_a_user_who_took_everything_is_a_miss_of_every_system():
    """Prevents an empty served list from having an NDCG of 1, also where k is greater than the catalog."""
    log = {"user_id": [0] * 5 + [1] * 3, "item_id": [0, 1, 2, 0, 1, 0, 1, 2], "timestamp": [*range(5), *range(3)]}
    processor = PolyRecProcessor.fit(log, tasks=NEXT, statistics=False)
    parts = processor.split(log, by="leave_one_out")
    model = tiny_model(processor)
    predictions = evaluator.predict(model, parts.test, k=10)
    user_0 = parts.test.user_codes()[predictions.rankings["next_item"].rows] == 0
    per_list = ranking.single_target_metrics(
        *(getattr(predictions.rankings["next_item"], n) for n in ("greater", "ties"))
    )
    assert model.recommend(processor, [0, 1, 2, 0], k=10) == []
    assert per_list["recall@10"][user_0].tolist() == per_list["ndcg@10"][user_0].tolist() == [0.0]
    report = compare_with_baselines(model, parts.train, parts.test, predictions)["next_item"]
    assert {name: found["recall@10"] for name, found in report.items()} == dict.fromkeys(report, 0.5)


def test_the_trainer_tells_the_model_what_it_measures(tmp_path):
    """Prevents `exclude_seen: false` from holding for figures alone, while users are served other lists."""
    table, processor, parts, model = world_of()
    trainer = PolyRecTrainer(model, arguments(tmp_path, exclude_seen=False, rank_k=K), None, parts.test, processor)
    measured = trainer.evaluate()[f"eval_next_item_recall@{K}"]
    assert measured == pytest.approx(served_recall(table, processor, parts.test, model), abs=1e-9)
    model.save_pretrained(tmp_path)
    assert type(model).from_pretrained(tmp_path).config.exclude_seen is False


def test_past_events_are_history():
    """Prevents items of the past table, which a request's history holds, from being listed in evaluations alone."""
    log = {"user_id": [0] * 4, "item_id": [0, 1, 2, 3], "timestamp": [*range(4)]}
    past = {"user_id": [0], "seen": [[3, 9]]}
    columns = {"prior_history": {"seen": []}}
    processor = PolyRecProcessor.fit(log, tasks=NEXT, columns=columns, statistics=False)
    parts = processor.split(log, by="leave_one_out", prior_history=past)
    pairs = list(excluded_items("history", parts.test, np.array([0])))
    assert sorted(np.concatenate([items for _, items in pairs]) - 2) == [0, 1, 2, 3]
    assert evaluator.predict(tiny_model(processor), parts.test).rankings["next_item"].excluded.tolist() == [True]


def test_long_histories_take_memory_by_events_not_by_rows_times_events():
    """Prevents candidates of one user with a long history from writing it out once each."""
    import tracemalloc

    from polyrec.data.histories import visible_history

    events = 20_000
    log = {"user_id": np.zeros(events, int), "item_id": np.arange(events) % 50, "timestamp": np.arange(events)}
    processor = PolyRecProcessor.fit(log, tasks=NEXT, statistics=False)
    test = processor.split(log, fractions=(0.9, 0.05, 0.05)).test
    rows = np.arange(test.num_candidates)
    tracemalloc.start()
    found = visible_history(test, rows)
    pairs = sum(len(index) for index, _ in excluded_items("history", test, rows))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert pairs == (found.end - found.begin).sum() == sum(range(events - len(rows), events))
    assert peak < 60e6 < 8 * pairs
    offsets, items = found.ragged(slice(0, 2))
    assert offsets.tolist() == [0, events - len(rows), 2 * (events - len(rows)) + 1]
    assert items[-1] == test.log.item[test.candidates.event[0]]


def test_what_tasks_leave_out():
    """Prevents two places from deciding differently what a list may hold."""
    plain, again = TaskConfig("a", "retrieval"), TaskConfig("a", "retrieval", options={"repeats": True})
    assert [left_out(plain, e) for e in (None, True, False)] == ["history", "history", "nothing"]
    assert [left_out(again, e) for e in (None, True, False)] == ["nothing", "history", "nothing"]
    assert {left_out(TaskConfig("s", "search"), e) for e in (None, True, False)} == {"own item"}
    assert left_out(TaskConfig("like", "binary"), None) == "history"


def test_a_ranking_without_reasons_still_loads():
    """Prevents runs of a comparison that were stored before from being refused."""
    one = np.array([0])
    assert Ranking(one, one, one, one[:, None]).of(one).excluded.tolist() == [False]


def test_popular_items_do_not_leave_the_history_to_the_model_alone():
    """Prevents baselines from ranking other candidates than the model: their figures could not be compared."""
    _, processor, parts, model = world_of()
    predictions = evaluator.predict(model, parts.test, k=K)
    report = compare_with_baselines(model, parts.train, parts.test, predictions, k=K)["next_item"]
    found = predictions.rankings["next_item"]
    train = parts.train.log.item[parts.train.candidates.event]
    train = train[train > 1]
    counts = Popularity().fit(np.zeros(len(train), int), train - 2, processor.num_items - 2).counts_N
    log, expected = parts.test.log, []
    for row in found.rows:
        event = parts.test.candidates.event[row]
        seen = log.item[(log.user == log.user[event]) & (log.time < log.time[event])]
        scores = counts.copy()
        scores[seen[seen > 1] - 2] = -np.inf
        mine = scores[log.item[event] - 2] if log.item[event] > 1 else -np.inf
        greater, ties = (scores > mine).sum(), (scores == mine).sum()
        share = np.clip(K - greater, 0, ties) / ties if np.isfinite(mine) else 0.0
        expected.append(share)
    assert report["popularity"][f"recall@{K}"] == pytest.approx(np.mean(expected))


def test_scores_that_are_no_numbers_are_an_error():
    """Prevents a model that has diverged from answering with an empty list."""
    _, processor, _, model = world_of()
    model.heads["next_item"].bias.weight.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="diverged"):
        model.recommend(processor, [0, 1], k=3)
