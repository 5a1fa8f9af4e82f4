"""Rules of lists: what is forbidden never comes, k items come where k are allowed, and nothing is left unmet in silence."""

import itertools
import json
import warnings

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_fixtures import TASKS, fit, synthetic_log, tiny_model

from polyrec import RecommendationPipeline, Recommender, Rules
from polyrec.core.rules import Diversity, Explore
from polyrec.inference.rules.diversity import diversified
from polyrec.inference.rules.quotas import ColumnValues, Quotas
from polyrec.inference.rules.selection import RuleWarning

ITEMS = 1000
PAIRS = [task for task in TASKS if task["head"] != "retrieval"]


@pytest.fixture(scope="module", params=["retrieval", "pairs"])
def recommender(request):
    log = synthetic_log(items=60 if request.param == "pairs" else ITEMS)
    processor, _ = fit(log) if request.param == "retrieval" else fit(log, tasks=PAIRS)
    processor.resume(log["interactions"])
    model = tiny_model(processor)
    if request.param == "retrieval":
        model.heads["next_item"].bias.weight.data.normal_()
    return Recommender(model, processor, batch_size=3)


@pytest.fixture(scope="module")
def retrieval():
    log = synthetic_log(items=ITEMS)
    processor, _ = fit(log)
    processor.resume(log["interactions"])
    model = tiny_model(processor)
    model.heads["next_item"].bias.weight.data.normal_()
    return Recommender(model, processor)


def ids(rows):
    return [row["item"] for row in rows]


def attribute(recommender, name):
    """{item: value} of the catalog."""
    items = recommender.processor.items
    return dict(zip(items.ids.to_pylist(), items.table[name].to_pylist(), strict=True))


def quietly(recommender, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuleWarning)
        return recommender.recommend(*args, **options)


# ------------------------------------------------------------------ filters
@settings(max_examples=25, deadline=None)
@given(
    share=st.sampled_from([0.5, 0.1, 0.01, 0.001]),
    k=st.integers(1, 12),
    history=st.lists(st.integers(0, 50), max_size=4),
    exclude=st.lists(st.integers(0, ITEMS - 1), max_size=5),
    half=st.booleans(),
    rules=st.sampled_from(
        [
            {},
            {"diversity": 0.5, "best": 20},
            {"score": "next_item + 2*like", "best": 20},
            {"explore": 1.0, "best": 20},
            {"boosts": {"genre == 'drama'": 5.0}},
            {"pins": {1: 3, 2: 900}},
        ]
    ),
)
def test_no_forbidden_item_and_k_where_k_are_allowed(retrieval, share, k, history, exclude, half, rules):
    """Prevents a filter after the cut: forbidden items in a list, or fewer items than there are."""
    where = f"price <= {np.sort(list(attribute(retrieval, 'price').values()))[round(share * ITEMS) - 1]:.17g}"
    price = attribute(retrieval, "price")
    allowed = {item for item, value in price.items() if value <= float(where.split()[-1])}
    assert len(allowed) == round(share * ITEMS)
    candidates = list(range(0, ITEMS, 2)) if half else None
    allowed -= {*exclude, *history} | ({*range(1, ITEMS, 2)} if half else set())
    found = ids(quietly(retrieval, history, k, where=where, exclude=exclude, candidates=candidates, rules=rules))
    assert len(found) == len(set(found)) == min(k, len(allowed))
    assert set(found) <= allowed
    same = ids(
        quietly(retrieval, history, k, rules={"where": where, "exclude": exclude, "candidates": candidates, **rules})
    )
    assert same == found or "explore" in rules


def test_filters_alone_keep_the_order(recommender):
    """Prevents a filter from changing scores, and one of a request from replacing that of the call."""
    whole = recommender.recommend([3, 4], k=ITEMS)
    genre, price = attribute(recommender, "genre"), attribute(recommender, "price")
    found = recommender.recommend([3, 4], k=5, where="genre != 'drama'", rules={"where": "price > 0.5"})
    expected = [r for r in whole if genre[r["item"]] != "drama" and price[r["item"]] > 0.5][:5]
    assert ids(found) == ids(expected)
    for row, other in zip(found, expected, strict=True):
        numbers = [name for name, value in row.items() if isinstance(value, float)]
        np.testing.assert_allclose([row[n] for n in numbers], [other[n] for n in numbers], rtol=1e-4, atol=1e-5)
    many = [{"history": [3, 4], "where": "genre == 'drama'"}, {"history": [3, 4]}]
    first, second = recommender.recommend_many(many, 4, rules=Rules(exclude=ids(whole[:2])))
    assert ids(first) == [i for i in ids(whole) if genre[i] == "drama" and i not in ids(whole[:2])][:4]
    assert ids(second) == ids(whole)[2:6]


def test_a_condition_is_read_once_and_anew_for_a_larger_catalog(monkeypatch):
    """Prevents a mask of the old catalog from hiding, or shifting, items that came later."""
    from polyrec.inference.rules import catalog as module

    processor, _ = fit()
    model, read, matching = tiny_model(processor), [], module.matching
    monkeypatch.setattr(module, "matching", lambda *given: read.append(given[0]) or matching(*given))
    recommender = Recommender(model, processor)
    for _ in range(3):
        recommender.recommend([3], where="price > 2")
    assert read == ["price > 2"]
    new = {"item_id": [900, 901], "title": ["a", "b"], "genre": ["drama"] * 2, "tags": [[], []], "price": [3.0, 0.0]}
    processor.extend(new)
    model.extend(processor)
    assert ids(recommender.recommend([3], where="price > 2")) == [900]
    assert ids(Recommender(model, processor).recommend([3], where="item_id in (901, 5)", k=9)) in ([901, 5], [5, 901])


def test_lists_that_are_written_as_text_are_lists():
    """Prevents 'Horror' in genres from finding parts of other words in "Comedy|Drama"."""
    log = synthetic_log()
    log["items"]["tags"] = ["|".join(tags) or None for tags in log["items"]["tags"]]
    columns = {"item_features": {"genre": "categorical", "tags": "multi:|", "price": "numeric"}}
    processor, _ = fit(log, columns=columns)
    recommender = Recommender(tiny_model(processor), processor)
    tags = attribute(recommender, "tags")
    found = ids(recommender.recommend(k=99, where="'drama' in tags", exclude_seen=False))
    assert sorted(found) == [i for i, text in tags.items() if text and "drama" in text.split("|")]
    assert not recommender.recommend(k=99, where="'ram' in tags")
    missing = ids(recommender.recommend(k=99, where="tags is null", exclude_seen=False))
    assert sorted(missing) == [i for i, text in tags.items() if text is None]


# ------------------------------------------------------------- the policy of seen items
def test_seen_items_are_left_out_by_their_feedback(recommender):
    """Prevents items that a user disliked, or met long ago, from being lost or kept against the policy."""
    history = [
        {"item_id": 3, "rating": 5.0, "timestamp": 2_000_000, "surface": "home"},
        {"item_id": 4, "rating": 2.0, "timestamp": 2_000_001, "surface": "search"},
        {"item_id": 5, "timestamp": 2_000_002},
    ]

    def hidden(seen, **request):
        found = ids(recommender.recommend(k=ITEMS, rules={"seen": seen, "candidates": [3, 4, 5, 6]}, **request))
        return sorted({3, 4, 5, 6} - set(found))

    assert hidden(True, history=history) == [3, 4, 5]
    assert hidden(False, history=history) == []
    assert hidden("rating >= 4", history=history) == [3]
    assert hidden("not rating >= 4", history=history) == [4]
    assert hidden("like == 1 or rating is null", history=history) == [3, 5]
    assert hidden("surface == 'search'", history=history) == [4]
    assert hidden("timestamp >= '1970-01-24T03:33:21'", history=history) == [4, 5]
    log = synthetic_log(items=len(recommender.processor.items.ids))["interactions"]
    own = log["user_id"] == 7
    liked = set(log["item_id"][own & (log["rating"] >= 4)].tolist())
    found = set(ids(recommender.recommend(user_id=7, k=ITEMS, rules={"seen": "rating >= 4"})))
    assert set(attribute(recommender, "price")) - found == liked
    with pytest.raises(ValueError, match=r"seen names 'ratng', whose values are not kept; did you mean 'rating'"):
        recommender.recommend([3], rules={"seen": "ratng > 1"})
    with pytest.raises(ValueError, match="give one of both"):
        recommender.recommend([3], exclude_seen=True, rules={"seen": "rating > 1"})


def test_impressions_are_capped(recommender):
    """Prevents an item that was shown too often from coming again, one that was shown less, long ago or otherwise from
    being lost, and stored events from counting otherwise than those that a request brings."""
    day, now = 86_400, 3_000_000
    shown = [(3, 1, 20), (3, 2, 5), (3, 2, 4), (4, 5, 6), (4, 5, 3), (5, 1, 2), (5, 1, 1.5), (5, 2, 1), (6, 4, 9)]
    shown.sort(key=lambda event: -event[2])
    history = [{"item_id": i, "rating": float(r), "timestamp": now - d * day} for i, r, d in shown]

    def hidden(seen, **request):
        rules = {"seen": seen, "candidates": [3, 4, 5, 6, 7]}
        found = ids(recommender.recommend(k=ITEMS, rules=rules, **{"history": history, "time": now, **request}))
        return sorted({3, 4, 5, 6, 7} - set(found))

    for where, cap, kind, days in itertools.product((None, True, "rating >= 4"), (None, 1, 3), (None, 2), (None, 4, 7)):
        if cap is None and kind is not None:
            continue
        shown_if = None if kind is None else f"rating <= {kind}"
        own = [(i, r) for i, r, d in shown if days is None or d <= days]
        taken = where is True or (where is None and cap is None)
        left = {i for i, r in own if taken or (where == "rating >= 4" and r >= 4)}
        counted = [i for i, r in own if kind is None or r <= kind]
        left |= {i for i in counted if cap is not None and counted.count(i) >= cap}
        seen = {"where": where, "impressions": cap, "shown": shown_if, "days": days}
        assert hidden(seen) == sorted(left), seen
    assert hidden({"impressions": 2}, history=[3, 3, 4], time=None) == [3]
    assert hidden({"impressions": 2, "days": 1}, history=[3, 3, 4], time=None) == [3]  # times are not known
    log = synthetic_log(items=len(recommender.processor.items.ids))["interactions"]
    own = log["user_id"] == 7
    latest = float(log["timestamp"].max()) + 1
    window = latest - float(log["timestamp"][own].max()) + 2_500
    late = own & (log["timestamp"] >= latest - window)
    assert 0 < late.sum() < own.sum()
    many = [{"user_id": 7, "time": latest}, {"history": [3, 3], "time": latest}]
    first, second = recommender.recommend_many(many, ITEMS, rules={"seen": {"days": window / day}})
    assert set(attribute(recommender, "price")) - set(ids(first)) == set(log["item_id"][late].tolist())
    assert set(attribute(recommender, "price")) - set(ids(second)) == {3}
    for seen, word in (
        ({"impressions": 0}, "seen.impressions"),
        ({"days": -1}, "seen.days"),
        ({"shown": "rating < 3"}, "without seen.impressions"),
        ({"where": "ratng > 1"}, r"seen.where names 'ratng'"),
        ({"impression": 1}, "impressions"),
        ({"impressions": 2, "shown": "rating <"}, "seen.shown"),
    ):
        with pytest.raises(ValueError, match=word):
            recommender.recommend([3], rules={"seen": seen})


# ------------------------------------------------------------- quotas, pins and boosts
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_quotas_take_the_best_items_that_they_allow(data):
    """Prevents a better list from being missed: each set of items that the quota allows is tried."""
    size = data.draw(st.integers(1, 9))
    value = data.draw(st.lists(st.sampled_from(["a", "b", "c", None]), min_size=size, max_size=size))
    most, k = data.draw(st.integers(0, 3)), data.draw(st.integers(1, 5))
    score = np.sort(np.random.default_rng(data.draw(st.integers(0, 99))).normal(size=size))[::-1] + 10
    quotas = Quotas({"g": ColumnValues.of(pa.array(value, pa.string()))}, {"g": most}, np.arange(size) + 2)
    found = quotas.walk(k)

    def allowed(chosen):
        own = [value[n] for n in chosen if value[n] is not None]
        return all(own.count(one) <= most for one in own)

    sets = [c for n in range(k + 1) for c in itertools.combinations(range(size), n) if allowed(c)]
    best = max(sets, key=lambda chosen: sum(score[n] for n in chosen))
    assert sorted(found) == sorted(best)


@pytest.mark.parametrize("method", ["mmr", "msd", "dpp", "ssd"])
@pytest.mark.parametrize("most", [1, 2, 100])
def test_diversity_keeps_quotas(method, most):
    """Prevents pyversity, which knows no quotas, from breaking them or from ending short."""
    random = np.random.default_rng(3)
    vectors, score = random.normal(size=(60, 8)).astype(np.float32), np.sort(random.normal(size=60))[::-1]
    lists = [[f"v{v}" for v in random.choice(12, random.integers(0, 3), replace=False)] for _ in range(60)]
    values = ColumnValues.of(pa.array(lists, pa.list_(pa.string())))

    def chosen(strength):
        quotas = Quotas({"g": values}, {"g": most}, np.arange(60) + 2)
        return diversified(Diversity(strength, method), vectors, score, 6, quotas)

    found = chosen(0.6)
    counts = [sum(value in lists[n] for n in found) for value in {v for own in lists for v in own}]
    assert len(found) == len(set(found)) == 6
    assert max(counts) <= most
    if most == 100:
        from pyversity import diversify

        relevance = ((score - score.min()) / np.ptp(score)).astype(np.float32)
        assert found == diversify(vectors, relevance, 6, strategy=method, diversity=0.6).indices.tolist()
    plain = Quotas({"g": values}, {"g": most}, np.arange(60) + 2).walk(6)
    assert chosen(0.0) == plain


def test_lists_keep_quotas_of_lists_and_of_numbers(recommender):
    """Prevents one of several quotas, or one entry of a list, from being forgotten."""
    genre, tags = attribute(recommender, "genre"), attribute(recommender, "tags")
    for rules in ({}, {"diversity": 0.4}, {"explore": 2.0}, {"score": "like - rating"}):
        found = ids(quietly(recommender, [3, 4], 9, rules={"at_most": {"genre": 2, "tags": 2}, **rules}))
        assert len(found) == 6
        assert all([genre[i] for i in found].count(g) <= 2 for g in genre.values())
        counted = [tag for i in found for tag in tags[i] or ()]
        assert all(counted.count(tag) <= 2 for tag in counted)


def test_what_quotas_and_thresholds_leave_unmet_is_told(recommender):
    """Prevents a short list from looking like all there is."""
    with pytest.warns(RuleWarning, match=r"at_most leave 3 items of 10$") as told:
        [found] = recommender.rank([{"history": [3]}], 10, rules={"at_most": {"genre": 1}})
    assert found.unmet == ("at_most leave 3 items of 10",)
    assert {w.filename for w in told} == {__file__}
    with pytest.warns(RuleWarning, match=r"at_most leave 3 items of 10 \(2 of 2 lists\)"):
        recommender.recommend_many([{"history": [3]}] * 2, 10, rules={"at_most": {"genre": 1}})
    with pytest.warns(RuleWarning, match=r"the conditions of score leave 0 items of 10"):
        assert recommender.recommend([3], rules={"score": "like >= 2"}) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuleWarning)
        recommender.recommend([3], k=6, rules={"at_most": {"genre": 2}})


def test_pins_stand_where_they_are_said(recommender):
    """Prevents a pinned item from coming twice, from pushing others out, or from being lost in silence."""
    plain = ids(recommender.recommend([3, 4], k=8))
    last = ids(recommender.recommend([3, 4], k=ITEMS))[-1]
    for rules in ({}, {"score": "like"}, {"explore": {"temperature": 0.01, "seed": 1}}):
        found = ids(recommender.recommend([3, 4], k=4, rules={"pins": {2: last, 4: plain[0]}, **rules}))
        assert found[1] == last
        assert found[3] == plain[0]
        assert len(set(found)) == 4
    assert ids(recommender.recommend([3, 4], k=4, rules={"pins": {2: last}})) == [plain[0], last, *plain[1:3]]
    messages = {
        "pins: item 3 of rank 1 is left out by where, candidates, exclude or seen": ({"pins": {1: 3}}, 4),
        "pins: item 9 of rank 7 is left out: the list has 4 items": ({"pins": {7: 9}}, 4),
        "pins: item 9 stands at rank 2, not 4": ({"pins": {4: 9}, "candidates": [9, 10]}, 4),
    }
    for message, (rules, k) in messages.items():
        with pytest.warns(RuleWarning, match=message):
            recommender.recommend([3, 4], k=k, rules=rules)
    genre = attribute(recommender, "genre")
    drama = [i for i, g in genre.items() if g == "drama" and i > 9][:2]
    with pytest.warns(RuleWarning, match=f"pins: item {drama[1]} of rank 3 is left out by at_most"):
        found = ids(recommender.recommend([3], 3, rules={"pins": {1: drama[0], 3: drama[1]}, "at_most": {"genre": 1}}))
    assert found[0] == drama[0]
    assert sorted(genre[i] for i in found) == ["action", "comedy", "drama"]


def test_boosts_add_log_odds(recommender):
    """Prevents a boost from being added to a probability, or from counting after the best were cut."""
    genre = attribute(recommender, "genre")
    plain = recommender.recommend([3, 4], k=ITEMS)
    found = recommender.recommend([3, 4], k=ITEMS, rules={"boosts": {"genre == 'drama'": 0.7, "price >= 0": -0.2}})
    share = "next_item" not in recommender.model.heads

    def expected(row):
        boost = 0.5 if genre[row["item"]] == "drama" else -0.2
        if not share:
            return row["score"] + boost
        odds = row["score"] / (1 - row["score"]) * np.exp(boost)
        return odds / (1 + odds)

    wanted = {row["item"]: expected(row) for row in plain}
    np.testing.assert_allclose([row["score"] for row in found], [wanted[i] for i in ids(found)], rtol=1e-4, atol=1e-5)
    assert [row["score"] for row in found] == sorted((row["score"] for row in found), reverse=True)
    few = recommender.recommend([3, 4], k=3, rules={"boosts": {"genre == 'drama'": 50.0}, "score": "like", "best": 3})
    assert {genre[i] for i in ids(few)} == {"drama"}


# ----------------------------------------------------------------- one score of several tasks
def test_scores_of_several_tasks(recommender):
    """Prevents an item from being ranked by other numbers than those that are shown beside it."""
    tasks = list(recommender.model.heads)
    first = tasks[0]
    plain = {row["item"]: row for row in recommender.recommend([3, 4], k=ITEMS)}

    def odds(item):
        share = plain[item].get("like", plain[item]["score"])
        return np.log(share) - np.log1p(-share)

    own = {i: row["score"] if first == "next_item" else odds(i) for i, row in plain.items()}
    sums = {i: 0.3 * own[i] + 2 * odds(i) - row["rating"] for i, row in plain.items()}
    found = recommender.recommend([3, 4], k=6, rules={"score": f"0.3*{first} + 2*like - rating", "best": ITEMS})
    assert ids(found) == sorted(sums, key=lambda i: -sums[i])[:6]
    np.testing.assert_allclose([row["score"] for row in found], [sums[i] for i in ids(found)], rtol=1e-3, atol=1e-4)

    product = {i: row.get("like", row["score"]) ** 2 * max(row["rating"], 1e-9) for i, row in plain.items()}
    found = recommender.recommend([3, 4], k=6, rules={"score": "like^2 * rating", "best": ITEMS})
    assert ids(found) == sorted(product, key=lambda i: -product[i])[:6]
    np.testing.assert_allclose([row["score"] for row in found], [product[i] for i in ids(found)], rtol=1e-3)

    middle = float(np.median([row["rating"] for row in plain.values()]))
    for best in (3, ITEMS):  # more than the best ones are tried where they do not fill the list
        found = recommender.recommend([3, 4], k=6, rules={"score": f"rating >= {middle}", "best": best})
        assert ids(found) == [i for i, row in plain.items() if row["rating"] >= middle][:6] or best == 3
        assert len(found) == 6
        assert min(row["rating"] for row in found) >= middle - 1e-4
    with pytest.raises(ValueError, match=r"score names no task: 'lik'; did you mean 'like'"):
        recommender.recommend([3], rules={"score": "lik"})


# ------------------------------------------------------------------- the ways in
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"were": "x > 1"}, "unknown key 'were' in rules; did you mean 'where'"),
        ({"where": 3}, "where is 3; it must be text or null"),
        ({"where": "x >"}, "where cannot be read: 'x >': a value is missing"),
        ({"boosts": {"x >": 1}}, "boosts cannot be read"),
        ({"boosts": {"x > 1": "a"}}, "boosts.x > 1 is 'a'; it must be a number"),
        ({"boosts": {"x > 1": float("inf")}}, "finite"),
        ({"at_most": {"genre": -1}}, "at_most.genre is -1; it must be a whole number >= 0"),
        ({"at_most": 3}, "at_most is 3; it must be a mapping"),
        ({"pins": {"0": 5}}, "pins has the rank 0; ranks are whole numbers from 1 on"),
        ({"pins": {"a": 5}}, "pins has the rank 'a'"),
        ({"pins": {1: 5, 2: 5}}, "pins names an item twice"),
        ({"pins": {1: [5]}}, r"pins\[1\] is \[5\]; it must be an item id"),
        ({"exclude": "abc"}, r"exclude is 'abc'; it must be a list, e.g. \['abc'\]"),
        ({"candidates": [1, None]}, r"candidates\[1\] is None; it must be an item id"),
        ({"diversity": 2}, "diversity"),
        ({"diversity": {"method": "mrr"}}, "did you mean 'mmr'"),
        ({"explore": 0}, "explore.temperature is 0.0; it must be a number > 0"),
        ({"explore": 1, "diversity": 0.5}, "give one of both"),
        ({"score": "like * * 2"}, "score cannot be read"),
        ({"seen": 5}, "seen is 5"),
        ({"best": 0}, "best is 0; it must be a whole number in"),
        ([], "rules are"),
    ],
)
def test_mistakes_are_refused_when_rules_are_made(values, message):
    """Prevents a mistake from being found at the first request, or never."""
    with pytest.raises(ValueError, match=message):
        Rules.from_dict(values)


def test_rules_come_from_json():
    """Prevents keys of JSON, which are texts, from being no ranks."""
    text = (
        '{"where": null, "pins": {"2": "a"}, "exclude": [1], "explore": {"temperature": 1, "seed": 3}, "seen": false}'
    )
    assert Rules.from_dict(json.loads(text)) == Rules(pins={2: "a"}, exclude=[1], explore=Explore(1.0, 3), seen=False)
    with pytest.raises(AttributeError):
        Rules().where = "x > 1"


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"where": "prise > 1"}, r"where 'prise > 1': there is no column 'prise'; did you mean 'price'"),
        ({"at_most": {"gener": 1}}, "at_most has the unknown column 'gener'; did you mean 'genre'"),
        ({"boosts": {"genre > 3": 1}}, r"boosts 'genre > 3': genre \(text\) cannot be compared"),
        ({"pins": {1: 5555}}, r"pins: 1 are not in the catalog, e.g. \[5555\]"),
        ({"exclude": [5555]}, r"exclude: 1 are not in the catalog"),
    ],
)
def test_mistakes_about_the_catalog_name_the_rule(recommender, rules, message):
    """Prevents a search for the rule that is wrong."""
    with pytest.raises(ValueError, match=message):
        recommender.recommend([3], rules=rules)
    with pytest.raises(ValueError, match=r"requests\[1\].where 'prise"):
        recommender.recommend_many([{}, {"where": "prise > 1"}])
    with pytest.raises(ValueError, match=r"where cannot read 3|where cannot be read: 3"):
        recommender.recommend([3], where=3)


def test_pipelines_and_files_take_rules(recommender, tmp_path):
    """Prevents a way in that accepts rules and forgets them."""
    import pandas as pd

    rules = {"at_most": {"genre": 1}, "where": "price > 0.2"}
    requests = [{"history": [3, 4], "exclude": [9]}, {"user_id": 3, "where": "price < 0.9"}]
    expected = [ids(rows) for rows in recommender.recommend_many(requests, 3, rules=rules)]
    ask = RecommendationPipeline(recommender.model, recommender.processor)
    assert [ids(rows) for rows in ask(requests, k=3, rules=rules)] == expected
    folder = recommender.recommend_all([3, 5], tmp_path / "recs", k=3, rules=Rules(**rules), progress=False)
    found = pd.read_parquet(folder / "part-00000.parquet")
    many = recommender.recommend_many([{"user_id": 3}, {"user_id": 5}], 3, rules=rules)
    assert {u: own.item_id.tolist() for u, own in found.groupby("user_id")} == {
        3: ids(many[0]),
        5: ids(many[1]),
    }
    with pytest.raises(ValueError, match="another job"):
        recommender.recommend_all([3, 5], tmp_path / "recs", k=3, progress=False)
