"""Variants of a served model, and its shadow."""

import shutil
import threading
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_fixtures import tiny_model
from serving_fixtures import assert_same_state, event_of, live, saved_run

from polyrec import PolyRecForRecommendation, PolyRecProcessor, Recommender
from polyrec.core.settings import SettingError
from polyrec.serving.assignment import Assignment, VariantOptions
from polyrec.serving.batcher import Batcher
from polyrec.serving.export import export_events

SALT = "autumn"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run, a second one whose model has other weights, and the events after those that both know."""
    folder = tmp_path_factory.mktemp("runs")
    run, later = saved_run(folder)
    other = shutil.copytree(run, folder / "other")
    tiny_model(PolyRecProcessor.from_pretrained(run), seed=1).save_pretrained(other)
    return run, other, later


@given(
    shares=st.lists(st.integers(0, 40), min_size=1, max_size=3).filter(lambda s: sum(s) <= 100),
    salt=st.text(max_size=20),
)
@settings(max_examples=10, deadline=None)
def test_shares_hold_and_stay(shares, salt):
    """Prevents variants from seeing more or fewer users than they should, users from moving between variants at a restart
    or when a share grows, and two experiments from assigning the same users together."""
    number, users = 3_000, [str(n) for n in range(3_000)]
    variants = [VariantOptions(f"v{n}", "run", share / 100) for n, share in enumerate(shares)]
    own = [Assignment(variants, salt).of(user) for user in users]
    for variant in [*variants, None]:
        share = 1 - sum(shares) / 100 if variant is None else variant.share
        found = own.count("main" if variant is None else variant.name)
        assert abs(found - number * share) <= 5 * np.sqrt(number * share * (1 - share)) + 1e-9
    assert [Assignment(variants, salt).of(user) for user in users] == own
    more = Assignment([VariantOptions("v0", "run", min(1.0, variants[0].share + 0.1))], salt)
    assert all(more.of(user) == "v0" for user, now in zip(users, own, strict=True) if now == "v0")
    halves = [
        np.array([Assignment([VariantOptions("a", "", 0.5)], s).of(u) == "a" for u in users])
        for s in (salt, "?" + salt)
    ]
    assert abs((halves[0] & halves[1]).mean() - 0.25) < 0.04
    assert Assignment(variants, salt).of(None) == "main"


@pytest.mark.parametrize("text", ["new", "new=run", "new=run:2", "main=run:0.5", "a b=run:0.5", "new=run:x"])
def test_mistakes_are_said(text):
    """Prevents a mistyped share from serving a model to everybody."""
    with pytest.raises(SettingError):
        VariantOptions.parse(text)


def test_shares_that_do_not_fit():
    """Prevents a variant from seeing nobody because those before it took all."""
    with pytest.raises(SettingError, match="above 1"):
        Assignment([VariantOptions("a", "run", 0.7), VariantOptions("b", "run", 0.7)], SALT)
    with pytest.raises(SettingError, match="twice"):
        Assignment([VariantOptions("a", "run", 0.1), VariantOptions("a", "run", 0.1)], SALT)


def test_every_variant_is_served_as_trained(runs, tmp_path):
    """Prevents a variant from missing events, from seeing others than its own user's pending ones, from responding with
    another variant's model, and from moving users at a restart or a swap."""
    run, other, later = runs
    options = {"variants": (VariantOptions("new", str(other), 0.5),), "salt": SALT, "shadow": str(other)}
    assignment = Assignment(options["variants"], SALT)
    users = [int(user) for user in pd.unique(later.user_id)[:6]]
    assert {assignment.of(str(user)) for user in users} == {"main", "new"}
    models = {
        "main": PolyRecForRecommendation.from_pretrained(run),
        "new": PolyRecForRecommendation.from_pretrained(other),
    }
    names = {}
    with live(run, tmp_path / "state", **options) as client:
        for begin in range(0, 60, 20):
            events = [event_of(row, f"e{row.Index}") for row in later[begin : begin + 20].itertuples()]
            seq = client.post("/events", json={"events": events}).json()["seq"]
        assert client.service.flush(seq, 10)
        expected = PolyRecProcessor.from_pretrained(run)
        expected.update(later[:60])
        for variant in client.service.variants.values():
            assert_same_state(variant.state.processor, expected)
        time_now = float(later.timestamp[60])
        for user in users:
            name = assignment.of(str(user))
            # An event that nobody has counted is known to its user at once, whatever the variant.
            event = {"user_id": user, "item_id": 3, "rating": 5.0, "surface": "home", "timestamp": time_now}
            client.service.marks._watermark = 1e9
            seq = client.post("/events", json={"events": [event]}).json()["seq"]
            asked = {"user_id": user, "k": 5, "time": time_now + 5, "after": seq}
            found = client.post("/recommend", json=asked).json()
            assert found["variant"] == name
            names.setdefault(name, found["model"])
            assert names[name] == found["model"]
            reference = Recommender(models[name], expected).recommend(
                history=[{k: v for k, v in event.items() if k != "user_id"}], user_id=user, k=5, time=time_now + 5
            )
            assert [row["item"] for row in found["items"]] == [row["item"] for row in reference]
            np.testing.assert_allclose(
                [r["score"] for r in found["items"]], [r["score"] for r in reference], rtol=1e-5, atol=1e-5
            )
            scored = client.post("/score", json={"user_id": user, "items": [1]}).json()
            assert (scored["variant"], scored["model"]) == (name, names[name])
        assert client.post("/recommend", json={"history": [1], "k": 1}).json()["variant"] == "main"
        status = client.get("/admin/model").json()
        assert [(v["variant"], v["share"]) for v in status["variants"]] == [
            ("main", 0.5),
            ("new", 0.5),
            ("shadow", 0.0),
        ]
        metrics = client.get("/metrics").text
        assert 'polyrec_responses_total{variant="new"}' in metrics
        assert 'polyrec_variant_sequence{variant="shadow"}' in metrics
        # One variant's model is exchanged alone.
        assert client.post("/admin/model", json={"folder": str(run), "variant": "nobody"}).status_code == 422
        client.service.swap(run, variant="new")
        for user in users:
            found = client.post("/recommend", json={"user_id": user, "k": 1}).json()
            assert (found["variant"], found["model"]) == (assignment.of(str(user)), names["main"])
    assert names["main"] != names["new"]
    with live(run, tmp_path / "state", **options) as client:
        for user in users:
            found = client.post("/recommend", json={"user_id": user, "k": 1}).json()
            assert (found["variant"], found["model"]) == (assignment.of(str(user)), names[assignment.of(str(user))])
    export_events(str(run), str(tmp_path / "events.parquet"), str(tmp_path / "state"))
    table = pd.read_parquet(tmp_path / "events.parquet")
    assert (table.served_variant == [assignment.of(str(user)) for user in table.user_id]).all()


def test_a_shadow_compares_and_harms_nobody(runs, tmp_path):
    """Prevents a shadow from being compared with other lists than those that were served, and its faults from reaching
    anybody."""
    run, other, later = runs
    users = [int(user) for user in pd.unique(later.user_id)[:4]]

    def settled(client, name, number):
        end = time.monotonic() + 10
        while value(client, name) < number and time.monotonic() < end:
            time.sleep(0.02)
        return value(client, name)

    def value(client, name):
        lines = [line for line in client.get("/metrics").text.splitlines() if line.startswith(name + " ")]
        return float(lines[0].split()[-1]) if lines else 0.0

    def lists(client):
        for user in users:
            response = client.post("/recommend", json={"user_id": user, "k": 3})
            assert response.json()["variant"] == "main"
            yield {row["item"] for row in response.json()["items"]}

    overlap = {}
    for name, shadow in {"same": run, "other": other}.items():
        with live(run, tmp_path / name, shadow=str(shadow)) as client:
            served = list(lists(client))
            assert settled(client, 'polyrec_shadow_requests_total{result="compared"}', len(users)) == len(users)
            overlap[name] = value(client, "polyrec_shadow_overlap_sum")
            if name == "same":
                assert value(client, "polyrec_shadow_score_difference_sum") == pytest.approx(0, abs=1e-5)
    assert overlap["same"] == len(users)
    reference = Recommender.from_pretrained(other)
    theirs = [{row["item"] for row in reference.recommend(user_id=user, k=3)} for user in users]
    assert overlap["other"] == pytest.approx(sum(len(a & b) / 3 for a, b in zip(served, theirs, strict=True)))
    with live(run, tmp_path / "broken", shadow=str(other)) as client:
        client.service.shadow.variant.engine.respond = lambda calls: [ValueError("broken")] * len(calls)
        assert len(list(lists(client))) == len(users)
        assert settled(client, 'polyrec_shadow_requests_total{result="failed"}', len(users)) == len(users)


def test_an_idle_model_works_and_a_busy_one_does_not():
    """Prevents a shadow from taking its turn while requests wait, and from taking all of the idle time."""
    order, hold, idle = [], threading.Event(), threading.Event()

    def respond(calls):
        hold.wait(5)
        order.extend(calls)
        return calls

    batcher = Batcher(respond, most=1)
    for n in range(70):
        batcher.when_idle(lambda n=n: (order.append(f"idle {n}"), time.sleep(0.02), idle.set()))
    assert idle.wait(5)  # nothing waits
    jobs = [batcher.submit(n, 30.0) for n in range(4)]
    hold.set()
    for job in jobs:
        job.future.result(5)
    begin, done = time.monotonic(), sum(str(one).startswith("idle") for one in order)
    at = [order.index(n) for n in range(4)]
    assert at == list(range(at[0], at[0] + 4))
    time.sleep(0.5)
    batcher.close()
    more = sum(str(one).startswith("idle") for one in order) - done
    assert 1 <= more <= (time.monotonic() - begin) / (5 * 0.02) + 2
    assert order[0] == "idle 6"  # the oldest were given up
