"""Exact leave-one-out: what is said of an event is what `recommend` would do had it not happened."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_fixtures import fit, tiny_model

from polyrec.cli.main import main
from polyrec.inference.explanation.events import leave_one_out
from polyrec.inference.explanation.explained import ExplainedRequest
from polyrec.inference.explanation.reasons import ReasonTemplate
from polyrec.modules.encoders.item import FIRST_ITEM

HISTORY = [
    {"item_id": item, "rating": rating, "surface": surface, "timestamp": 2e6 + 500.0 * n}
    for n, (item, rating, surface) in enumerate(
        [
            (3, 5.0, "home"),
            (4, 1.0, "search"),
            (5, 4.0, "home"),
            (3, 2.0, "home"),
            (9, None, "search"),
            (7, 5.0, "home"),
        ]
    )
]
NOW = 2e6 + 10_000.0


@pytest.fixture(scope="module")
def world():
    processor, _ = fit()
    model = tiny_model(processor)
    model.heads["next_item"].bias.weight.data.normal_()
    for name in ("like", "rating"):
        model.skip.linear[name].weight.data.normal_(std=0.3)  # running statistics speak
    return processor, model


def naive(model, processor, history, item, task, **request):
    """The prediction about one item of a model that is asked anew."""
    found = model.recommend(processor, history, k=100, task=task, exclude_seen=False, time=NOW, **request)
    return next(row["score"] for row in found if row["item"] == item)


@pytest.mark.parametrize("task", ["next_item", "like", "rating"])
@pytest.mark.parametrize("length", [1, 6, 12])
def test_every_effect_is_that_of_a_fresh_request_without_the_event(world, task, length):
    """Prevents an event from lingering in a window, a time gap or a running statistic of the history without it."""
    processor, model = world
    history = (HISTORY * 2)[:length]  # 12 events: more than the 8 that are read
    history = [event | {"timestamp": 2e6 + 500.0 * n} for n, event in enumerate(history)]
    rows = np.array([11, 3]) + FIRST_ITEM
    request = {"user": {"age": 33.0}, "context": {"surface": "home"}}
    explained = ExplainedRequest(model, processor, history, rows, task, request | {"time": NOW})
    found = leave_one_out(explained)
    assert found.events.tolist() == list(range(max(length - 8, 0), length))
    for c, item in enumerate((11, 3)):
        assert found.predictions[c] == pytest.approx(naive(model, processor, history, item, task, **request), abs=1e-5)
        for e, position in enumerate(found.events):
            rest = history[:position] + history[position + 1 :]
            assert found.without[e, c] == pytest.approx(naive(model, processor, rest, item, task, **request), abs=1e-5)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=4))
def test_many_histories_at_once_equal_each_alone(world, kept):
    """Prevents variants of one batch from counting each other's events."""
    processor, model = world
    keep_VL = np.array(kept)
    explained = ExplainedRequest(model, processor, HISTORY, np.array([8, 9]), "like", {"time": NOW})
    together, _ = explained.variants(keep_VL)
    for keep_L, answers in zip(keep_VL, together, strict=True):
        rest = [event for event, keep in zip(HISTORY, keep_L, strict=True) if keep]
        alone = ExplainedRequest(model, processor, rest, np.array([8, 9]), "like", {"time": NOW})
        np.testing.assert_allclose(answers, alone.variants(np.ones((1, len(rest)), dtype=bool))[0][0], atol=1e-5)


def test_explanations_of_recommendations_say_what_was_recommended(world):
    """Prevents reasons for another list than the one people see, and seen items as recommendations."""
    processor, model = world
    listed = model.recommend(processor, HISTORY, k=5, time=NOW)
    found = model.explain(processor, HISTORY, k=5, time=NOW, events=2)
    assert [row["item"] for row in found] == [row["item"] for row in listed]
    assert [row["rank"] for row in found] == [1, 2, 3, 4, 5]
    np.testing.assert_allclose([row["score"] for row in found], [row["score"] for row in listed], rtol=1e-5)
    about = model.explain(processor, HISTORY, k=5, time=NOW, task="rating")
    assert [row["item"] for row in about] == [row["item"] for row in listed]  # why these are liked, not what is
    assert {row["task"] for row in about} == {"rating"}
    for row in found:
        assert len(row["events"]) == 2
        assert abs(row["events"][0]["effect"]) >= abs(row["events"][1]["effect"])
        assert row["title"] == f"title {row['item']}"
        assert {a["name"] for a in row["attributes"]} == {"id", "genre", "tags", "price"}


def test_the_sentence_names_the_strongest_events_that_speak_for_the_item(world):
    """Prevents "because you liked X" about an event without which the item would stand higher, or was not liked."""
    processor, model = world
    for row in model.explain(processor, HISTORY, k=10, time=NOW, events=6):
        good = sorted((e for e in row["events"] if e["effect"] > 0), key=lambda e: -e["effect"])
        for event in row["events"]:
            named = f"“{event['title']}”" in row["reason"]
            assert named == any(e["title"] == event["title"] for e in good)
        for event in good:
            assert event["verb"] == ("liked" if (HISTORY[event["position"]]["rating"] or 0) >= 4 else "chose")
            assert event["verb"] in row["reason"]


def test_somebody_new_and_unknown_items(world):
    """Prevents a crash or an invented reason where nothing is known, and reasons for items that do not exist."""
    processor, model = world
    template = ReasonTemplate()
    for history in (None, [], [777]):
        found = model.explain(processor, history, k=2)
        assert [row["reason"] for row in found] == [template.stranger] * 2
    assert found[0]["events"][0]["item"] == 777
    with pytest.raises(ValueError, match="999 is not in the catalog"):
        model.explain(processor, [3], [999])
    with pytest.raises(ValueError, match="unknown task 'lik'.*did you mean 'like'"):
        model.explain(processor, [3], [4], task="lik")
    assert model.explain(processor, [3], []) == []


def test_training_mode_is_left_and_restored(world):
    """Prevents dropout in explanations, and a training that goes on in evaluation mode."""
    processor, model = world
    model.train()
    try:
        first, second = (model.explain(processor, [3, 4], k=3) for _ in range(2))
        assert first == second
        assert model.training
    finally:
        model.eval()


def test_command_line(world, tmp_path, capsys):
    """Prevents a command whose JSON holds something else than the library says, or text without the reason."""
    processor, model = world
    processor.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    assert main(["explain", str(tmp_path), "--history", "3,4", "--item", "5,6", "--task", "like", "--json"]) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    expected = model.explain(processor, [3, 4], [5, 6], task="like")
    assert [row["reason"] for row in printed] == [row["reason"] for row in expected]
    assert printed[0]["events"][0]["effect"] == pytest.approx(expected[0]["events"][0]["effect"], abs=1e-6)
    assert main(["explain", str(tmp_path), "--history", "3,4", "-k", "2"]) == 0
    assert model.explain(processor, [3, 4], k=2)[0]["reason"] in capsys.readouterr().out
    assert main(["explain", str(tmp_path), "--item", "x"]) == 2
    assert "cannot read --item 'x'" in capsys.readouterr().err
