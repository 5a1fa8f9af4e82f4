"""The data part of the search benchmark: who is a query, what is relevant, and what nobody could have known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from search_data import PARTS, TEST_FROM, VALID_FROM, TravelSearch

DAY = 86_400
CUTS = {"train": (0, VALID_FROM), "valid": (VALID_FROM, TEST_FROM), "test": (TEST_FROM, 1 << 40)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Random tables with every trap: links back, twice, to later questions, to oneself, before and after each cut."""
    path, random, n = tmp_path_factory.mktemp("travel"), np.random.default_rng(0), 60
    asked = np.sort(random.integers(VALID_FROM - 200 * DAY, TEST_FROM + 100 * DAY, n))
    item_id = 3 * np.arange(n) + 7
    items = pd.DataFrame({"item_id": item_id, "title": [f"q {i}" for i in range(n)], "timestamp": asked})
    items["owner_user_id"] = pd.array([None if i % 5 == 0 else i % 7 for i in range(n)], dtype="Int64")
    items.to_parquet(path / "items.parquet")
    one, other = random.integers(0, n, (2, 500))
    time = np.maximum(asked[one], random.integers(asked[0], TEST_FROM + 120 * DAY, 500))
    links = pd.DataFrame(
        {"item_id": item_id[one], "related_item_id": item_id[other], "link": "linked", "timestamp": time}
    )
    links.sample(frac=1, random_state=0).to_parquet(path / "links.parquet")
    rows = 1500
    item = random.integers(0, n, rows)
    kind = random.choice(["comment", "answer", "favorite", "ask"], rows)
    events = pd.DataFrame({"user_id": random.integers(0, 20, rows), "item_id": item_id[item], "event": kind})
    events["timestamp"] = asked[item] + random.integers(-2, 150, rows) * DAY
    events["accepted"] = random.integers(0, 2, rows)
    for name in ("ask", "favorite"):
        events[name] = (kind == name).astype(int)
    events.to_parquet(path / "interactions.parquet")
    return path


@pytest.fixture(scope="module")
def data(folder):
    return TravelSearch(folder)


@pytest.mark.parametrize("part", PARTS)
def test_queries_equal_a_naive_reading_of_the_links(data, folder, part):
    """Prevents links that were known, that point to the future or to oneself from being relevant, and others lost."""
    links = pd.read_parquet(folder / "links.parquet").sort_values("timestamp", kind="stable")
    row = {item_id: i for i, item_id in enumerate(data.items.item_id)}
    known, queries = set(), {}
    for link in links.itertuples():
        one, other = row[link.item_id], row[link.related_item_id]
        if one == other or frozenset((one, other)) in known:
            continue
        known.add(frozenset((one, other)))
        if CUTS[part][0] <= link.timestamp < CUTS[part][1]:
            time, relevant = queries.setdefault(one, (link.timestamp, []))
            if data.asked[other] < time:
                relevant.append(other)
    expected = {(q, time): sorted(relevant) for q, (time, relevant) in queries.items() if relevant}
    lists = data.search(part)
    values, offsets = lists.relevant
    found = {
        (q, t): sorted(values[a:b].tolist())
        for q, t, a, b in zip(lists.query, lists.time, offsets[:-1], offsets[1:], strict=True)
    }
    assert found == expected


@pytest.mark.parametrize("part", PARTS)
def test_no_list_may_hold_itself_a_known_pair_or_the_future(data, part):
    """Prevents a perfect score for finding the query, what training told, or questions nobody had asked."""
    lists = data.search(part)
    excluded = set(zip(*(x.tolist() for x in lists.excluded), strict=True))
    earlier = data.links[data.links.part < PARTS.index(part)]
    pairs = {frozenset(p) for p in zip(earlier.item, earlier.related, strict=True)}
    values, offsets = lists.relevant
    for n, (query, time) in enumerate(zip(lists.query, lists.time, strict=True)):
        relevant = set(values[offsets[n] : offsets[n + 1]].tolist())
        out = {item for at, item in excluded if at == n}
        assert out == {query} | {i for i in range(len(data)) if frozenset((query, i)) in pairs}
        assert not relevant & out
        assert (data.asked[list(relevant)] < time).all()


@pytest.mark.parametrize("of", ["search", "next items"])
def test_the_evaluator_equals_a_naive_one(data, of):
    """Prevents a metric that differs from its definition, or one that looks at what is excluded."""
    lists = data.search("test") if of == "search" else data.next_items("test")
    scores = np.random.default_rng(1).random((len(lists), len(data)))
    found = data.evaluate(lists, lambda rows: scores[rows], (3,))
    values, offsets = lists.relevant
    ndcg, recall = [], []
    for n in range(len(lists)):
        out = {int(i) for at, i in zip(*lists.excluded, strict=True) if at == n}
        allowed = [i for i in range(len(data)) if i not in out and lists.since[n] <= data.asked[i] < lists.time[n]]
        best = sorted(allowed, key=lambda i: -np.float32(scores[n, i]))[:3]
        relevant = set(values[offsets[n] : offsets[n + 1]].tolist())
        gain = sum(1 / np.log2(r + 2) for r, i in enumerate(best) if i in relevant)
        ndcg.append(gain / sum(1 / np.log2(r + 2) for r in range(min(3, len(relevant)))))
        recall.append(len(relevant & set(best)) / len(relevant))
    assert found["ndcg@3"] == pytest.approx(np.mean(ndcg))
    assert found["recall@3"] == pytest.approx(np.mean(recall))


def test_next_items_are_first_turns_and_see_earlier_events_alone(data):
    """Prevents a question that the person knew, or had asked, from being next, and events of the same moment or later
    from being history."""
    lists, events = data.next_items("test"), data.events
    assert len(lists) > 0
    values, offsets = lists.history
    seen = set(zip(*(x.tolist() for x in lists.excluded), strict=True))
    for n in range(len(lists)):
        mine = events[events.user_id == lists.user[n]]
        target = lists.relevant[0][n]
        before = mine[mine.timestamp < lists.time[n]]
        assert target not in set(before.item)
        assert {item for at, item in seen if at == n} == set(before.item)
        history = values[offsets[n] : offsets[n + 1]]
        assert len(set(history)) == len(history) <= 5
        assert set(history) <= set(before.item)
        assert lists.time[n] - 30 * DAY <= data.asked[target] < lists.time[n]
        now = mine[(mine.item == target) & (mine.timestamp == lists.time[n])]
        assert (now.ask == 0).any()


def test_the_log_holds_links_as_searches(data):
    """Prevents searches without query, events with one, and the future from being logged earlier."""
    log = data.log()
    assert log.timestamp.is_monotonic_increasing
    searched = log["query"].notna()
    assert (searched == (log.event == "link")).all()
    assert searched.sum() == len(data.links)
    titles = [data.titles[item] for item in log.query_item[searched]]
    assert titles == log["query"][searched].tolist()
    assert log.turn.sum() == len(data.first_turns)
    assert (log.turn[searched] == 0).all()
    assert log.accepted[log.event != "answer"].isna().all()
    strangers = log.user_id[searched & (log.user_id < 0)]
    assert strangers.nunique() > 1
