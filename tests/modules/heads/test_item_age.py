"""Ages of items in retrieval: which item is how old for whom, what is impossible, and what must not be known."""

from __future__ import annotations

import copy
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_fixtures import arguments, model_inputs, random_batch, random_config, tiny_model
from torch.nn import functional as F

from polyrec import PolyRecForRecommendation, PolyRecProcessor, PolyRecTrainer
from polyrec.data.collator import PolyRecCollator
from polyrec.data.release import NO_TIME, age_edges, age_start
from polyrec.evaluation.evaluator import evaluate, predict
from polyrec.modules.encoders.item import FIRST_ITEM, ItemRows
from polyrec.modules.encoders.request_context import RequestContext
from polyrec.modules.heads.terms.age import ItemAge

MINUTE, DAY = 60_000, 86_400_000
SOURCES = ("release", "first_event")
ITEMS = 11


def naive_group(source, buckets, now, appeared):
    """The group of one item by its definition, in double precision; None too near to a border to say."""
    if source == "release" and appeared == NO_TIME:
        return buckets
    if source == "release" and appeared > now:
        return buckets + 1
    if source == "first_event" and appeared >= now:
        return buckets
    years = 20 * 365.25 * 24 * 60
    place = buckets * math.log(1 + (now - appeared) / MINUTE) / math.log(years)
    return None if round(place) and abs(place - round(place)) < 1e-4 * buckets else min(int(place), buckets - 1)


@settings(max_examples=60, deadline=None)
@given(
    source=st.sampled_from(SOURCES),
    buckets=st.integers(1, 80),
    now=st.lists(st.integers(0, 2_000_000_000_000), min_size=1, max_size=4),
    ages=st.lists(st.one_of(st.integers(-5, 5), st.integers(-(10**12), 10**12), st.just(None)), min_size=1, max_size=6),
)
def test_groups_equal_their_definition(source, buckets, now, ages):
    """Prevents float32 times (two minutes off), an age that is off by a bucket, and items of the future."""
    appeared = [NO_TIME if age is None else now[0] - age for age in ages]
    age = ItemAge(source, buckets, FIRST_ITEM + len(appeared), hidden_size=2)
    age.load(torch.tensor([NO_TIME, NO_TIME, *appeared]))
    ids = torch.arange(FIRST_ITEM, FIRST_ITEM + len(appeared))
    found = age.groups(RequestContext(torch.tensor(now)), ids)
    for m, context in enumerate(now):
        own = age.own_groups(RequestContext(torch.full_like(ids, context)), ids.unsqueeze(1)).squeeze(1)
        for n, released in enumerate(appeared):
            expected = naive_group(source, buckets, context, released)
            if expected is not None:
                assert found[m, n] == expected
                assert own[n] == (0 if expected == buckets + 1 else expected)  # whoever takes an item says it is there


@settings(max_examples=40, deadline=None)
@given(
    appeared=st.lists(st.one_of(st.just(NO_TIME), st.integers(0, 40 * DAY)), min_size=1, max_size=6),
    events=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40 * DAY)), min_size=1, max_size=6),
    buckets=st.integers(1, 12),
    source=st.sampled_from(SOURCES),
)
def test_ages_start_where_the_training_rows_put_them(appeared, events, buckets, source):
    """Prevents a start that counts items which were not there, and a search for edges that is off by one."""
    item = np.array([FIRST_ITEM + i % len(appeared) for i, _ in events])
    times = np.array([time for _, time in events])
    edges = age_edges(buckets).tolist()

    def group(now, released):
        """None: not there."""
        if released == NO_TIME or (source == "first_event" and released >= now):
            return buckets
        return None if released > now else sum(now - released >= edge for edge in edges)

    taken, expected = np.zeros(buckets + 1), np.zeros(buckets + 1)
    for i, now in zip(item, times.tolist(), strict=True):
        own = group(now, appeared[i - FIRST_ITEM])
        taken[0 if own is None else own] += 1
        for released in appeared:
            if (g := group(now, released)) is not None:
                expected[g] += 1
    expected *= len(times) / max(expected.sum(), 1)
    found = age_start(np.array([NO_TIME] * 2 + appeared), item, times, buckets, source == "first_event")
    for k in range(buckets):
        near = np.clip(np.arange(k - 2, k + 3), 0, buckets - 1)  # means of five neighbours
        assert found[k] == pytest.approx(np.log((taken[near].mean() + 0.01) / (expected[near].mean() + 0.01)), abs=1e-9)
    assert found[-1] == pytest.approx(np.log((taken[-1] + 0.01) / (expected[-1] + 0.01)), abs=1e-9)


def head_of(source, **options):
    """A head whose age term says something, its items, states, targets, counts and times."""
    torch.manual_seed(3)
    tasks = [{"name": "task", "head": "retrieval", "options": {"item_age": source, "age_buckets": 5, **options}}]
    head = PolyRecForRecommendation(random_config(tasks=tasks, num_items=ITEMS)).heads["task"]
    for parameter in head.parameters():
        parameter.data.normal_()
    released = torch.tensor([NO_TIME] * 2 + [0, 5 * MINUTE, DAY, 10 * DAY, 100 * DAY, 400 * DAY, 11 * DAY, NO_TIME, 7])
    head.age.load(released)
    times = torch.tensor([8, DAY, 11 * DAY, 500 * DAY, 10 * DAY, 9 * DAY])
    targets = torch.tensor([10, 3, 8, 9, 2, 6])  # the last one is taken before the catalog says that it is there
    return head, ItemRows(torch.randn(ITEMS, 8)), torch.randn(6, 8), targets, torch.arange(float(ITEMS)), times


def naive_logit(head, items, state, item, now, target):
    """s . v + b + (A s + c) at the item's group, one by one; None: impossible."""
    age, query = head.age, head.project(state)
    group = naive_group(age.source, age.buckets, int(now), int(age.released[item]))
    if group == age.buckets + 1:
        if item != target:
            return None
        group = 0
    said = age.by_state.weight[group] @ state + head.options["bias_rate"] * age.prior.weight[group, 0]
    return query @ items.vectors_MD[item] + head.options["bias_rate"] * head.bias.weight[item, 0] + said


def naive_losses(head, items, states, targets, times, candidates, correction=None):
    """-log softmax of each target among itself and the other candidates."""
    losses = []
    for state, target, now in zip(states, targets.tolist(), times, strict=True):
        scored = [target, *(j for j in candidates if j != target)]
        logits = {j: naive_logit(head, items, state, j, now, target) for j in scored}
        logits = [z if correction is None else z - correction[j] for j, z in logits.items() if z is not None]
        losses.append(-F.log_softmax(torch.stack(logits), dim=0)[0])
    return torch.stack(losses)


@pytest.mark.parametrize("chunk", [1, 1 << 18])
@pytest.mark.parametrize(("source", "smoothing"), [("release", 0.0), ("first_event", 0.0), ("first_event", 0.2)])
def test_the_full_softmax_equals_the_plain_formula(monkeypatch, source, smoothing, chunk):
    """Prevents a fused gradient of ages that differs from autograd's, and impossible items in the denominator."""
    monkeypatch.setattr("polyrec.core.linear_loss._CHUNK", chunk)
    head, items, states, targets, counts, times = head_of(source, label_smoothing=smoothing, bias_rate=2.0)
    leaves = [states.requires_grad_(), items.vectors_MD.requires_grad_(), *head.parameters()]
    weight = torch.rand(len(targets)) + 0.5
    total, count = head.retrieval_loss(states, targets, items, counts, None, weight, context=RequestContext(times))
    everything = range(FIRST_ITEM, ITEMS)
    losses = naive_losses(head, items, states, targets, times, everything)
    if smoothing:
        rows = [
            torch.stack([naive_logit(head, items, s, j, now, None) for j in everything])
            for s, now in zip(states, times, strict=True)
        ]
        losses = F.cross_entropy(torch.stack(rows), targets - FIRST_ITEM, reduction="none", label_smoothing=smoothing)
    expected = (losses * weight).sum()
    torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-4)
    assert count == pytest.approx(weight.sum().item())
    found = torch.autograd.grad(total, leaves)
    for a, b in zip(found, torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("source", SOURCES)
def test_the_sampled_and_the_batch_softmax_equal_the_naive_ones(source):
    """Prevents negatives that did not exist when the target was taken, and a target without its age."""
    head, items, states, targets, counts, times = head_of(source, sampled_above=0)
    negatives = torch.tensor([3, 6, 7, 8, 4])
    q = torch.log((counts + 1) / (counts + 1).sum())
    total, _ = head.retrieval_loss(states, targets, items, counts, negatives, context=RequestContext(times))
    expected = naive_losses(head, items, states, targets, times, negatives.tolist(), q)
    torch.testing.assert_close(total, expected.sum(), rtol=1e-4, atol=1e-4)

    every = ItemRows(items.vectors_MD, rows_M=torch.arange(ITEMS))
    total, _ = head.retrieval_loss(states, targets, every, counts, None, context=RequestContext(times))
    chance = torch.log(1 - (1 - q.exp()) ** len(targets))
    expected = naive_losses(head, items, states, targets, times, range(FIRST_ITEM, ITEMS), chance)
    torch.testing.assert_close(total, expected.sum(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("source", SOURCES)
def test_scores_and_pair_logits_equal_the_naive_ones(source):
    """Prevents a ranking by other ages than the loss learnt, and NaN where an item is asked about too early."""
    head, items, states, _, _, times = head_of(source)
    scores = head(states, items, RequestContext(times))
    ids = torch.arange(FIRST_ITEM, ITEMS).expand(len(states), -1)
    pairs = head.pair_logits(
        states.unsqueeze(1).expand(-1, ids.shape[1], -1),
        items.lookup(ids),
        ids,
        items,
        RequestContext(times.unsqueeze(1).expand_as(ids)),
    )
    assert scores[:, :FIRST_ITEM].eq(float("-inf")).all()
    assert pairs.isfinite().all()
    for m, state in enumerate(states):
        for n in range(FIRST_ITEM, ITEMS):
            expected = naive_logit(head, items, state, n, times[m], None)
            if expected is None:
                assert scores[m, n] == float("-inf")
            else:
                assert scores[m, n].item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-4)
            taken = naive_logit(head, items, state, n, times[m], n)
            assert pairs[m, n - FIRST_ITEM].item() == pytest.approx(taken.item(), rel=1e-4, abs=1e-4)


@settings(max_examples=30, deadline=None)
@given(source=st.sampled_from(SOURCES), now=st.integers(1, 500 * DAY), seed=st.integers(0, 99))
def test_nothing_at_or_after_the_request_is_known(source, now, seed):
    """Prevents a leak: scores must not tell which of the unseen items comes at this moment and which one never.

    By the catalog, an item that is released at this very moment is there; what is released later makes no difference.
    """
    head, items, states, _, _, _ = head_of(source)
    times = torch.full((len(states),), now)
    before = head(states, items, RequestContext(times))
    released = head.age.released.clone()
    later = (released > now) & (released < NO_TIME) if source == "release" else released >= now
    moved = now + int(source == "release") + torch.randint(0, 10**9, (ITEMS,), generator=torch.manual_seed(seed))
    head.age.load(torch.where(later, moved, released))
    assert torch.equal(head(states, items, RequestContext(times)), before)


# ------------------------------------------------------------------ from a log to recommendations
def young_log(users=30, items=40, events=10, seed=0):
    """Items appear one a day; people take one of the two latest, in no order that ids could tell."""
    random = np.random.default_rng(seed)
    names = random.permutation(items) + 100  # ids say nothing of ages
    day = np.sort(random.integers(2, items, (users, events)), axis=1) + random.random((users, events)) * 0.9
    born = np.arange(items)
    newest = np.floor(day).astype(int) - random.integers(0, 2, day.shape)
    log = {
        "user_id": np.repeat(np.arange(users), events),
        "item_id": names[newest].ravel(),
        "timestamp": (day * 86_400).ravel(),
    }
    return log, {"item_id": names, "title": [f"title {n}" for n in names], "born": born * 86_400}


def fitted(source, log=None, items=None, **options):
    """Processor, split and untrained model."""
    known, catalog = young_log()
    tasks = [{"name": "next_item", "head": "retrieval", "options": {"item_age": source, "age_buckets": 16, **options}}]
    columns = {"item_features": {}} | ({"item_time": "born"} if source == "release" else {})
    log, items = log or known, items or catalog
    processor = PolyRecProcessor.fit(log, items, tasks=tasks, columns=columns, statistics=False, max_history=8)
    splits = processor.split(log)
    model = tiny_model(processor)
    model.load_times(processor)
    return processor, splits, model


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """Processor, split and trained model by what ages count from; each caller has its own copy."""
    found = {}
    for source in (None, *SOURCES):
        processor, splits, model = fitted(source, bias_rate=10.0)
        options = {"num_train_epochs": 6, "learning_rate": 0.02, "per_device_train_batch_size": 8}
        training = arguments(tmp_path_factory.mktemp("run"), **options)
        PolyRecTrainer(model, training, splits.train, splits.valid, processing_class=processor).train()
        found[source] = processor, splits, model.eval()
    return lambda source: copy.deepcopy(found[source])


def test_what_comes_next_is_new(worlds):
    """Prevents a term that is there and learns nothing: new items have no vectors, only their age tells them."""
    found = {}
    for source in (None, *SOURCES):
        _, splits, model = worlds(source)
        found[source] = evaluate(model, splits.test, predict(model, splits.test))["next_item_ndcg@10"]
    assert min(found[source] for source in SOURCES) > found[None] + 0.3


def test_only_what_was_taken_says_at_which_age():
    """Prevents impressions without a click, unknown labels and test rows from being counted as chosen."""
    log, items = young_log(users=6)
    begin = items["item_id"].tolist().index(log["item_id"][0])  # a catalog whose first item is chosen
    items = {name: np.roll(values, -begin) for name, values in items.items()}
    clicked = np.tile([1.0, 0.0, np.nan, 1.0], 15)
    tasks = [{"name": "next", "head": "retrieval", "label": "clicked",
              "options": {"item_age": "release", "age_buckets": 16}}]  # fmt: skip
    processor = PolyRecProcessor.fit(
        log | {"clicked": clicked},
        items,
        tasks=tasks,
        columns={"item_features": {}, "item_time": "born"},
        statistics=False,
    )
    train = processor.split(log | {"clicked": clicked}).train
    rows = [row for row in np.unique(train.log.row[train.candidates.event]) if clicked[row] == 1]
    place = {name: FIRST_ITEM + n for n, name in enumerate(processor.items.ids.to_pylist())}
    expected = age_start(
        processor.item_times("release"),
        np.array([place[log["item_id"][row]] for row in rows]),
        np.array([round(1000 * log["timestamp"][row]) for row in rows]),
        16,
        unseen_now=False,
    )
    assert processor.label_summary["next"]["age_start"] == pytest.approx(expected)


def test_a_list_holds_nothing_that_is_not_there(worlds):
    """Prevents an evaluation and a serving that recommend what is released tomorrow."""
    processor, splits, model = worlds("release")
    rankings = predict(model, splits.test).rankings["next_item"]
    born = processor.item_times("release")[FIRST_ITEM:] / 1000
    now = splits.test.log.time[splits.test.candidates.event[rankings.rows]]
    many = (born[None] <= now[:, None]).sum(1) >= 10
    assert (born[rankings.top_ids] <= now[:, None])[many].all()
    history = [{"item_id": int(processor.items.ids[3].as_py()), "timestamp": 20 * 86_400}]
    ages = dict(zip(processor.items.ids.to_pylist(), born, strict=True))
    for day in (21, 30):
        best = model.recommend(processor, history, k=40, time=day * 86_400 + 1)
        assert {ages[entry["item"]] for entry in best} <= set(np.arange(day + 1) * 86_400)
        assert ages[best[0]["item"]] >= (day - 3) * 86_400  # what comes next is new
    # Nobody says when it is asked: right after the latest event known, not in 1970.
    assert ages[model.recommend(processor, k=1)[0]["item"]] > 30 * 86_400


@pytest.mark.parametrize("source", SOURCES)
def test_a_reloaded_model_knows_the_ages(worlds, source, tmp_path):
    """Prevents a loaded model for which every item is unborn, and times that half precision would blur."""
    processor, splits, model = worlds(source)
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    again = PolyRecForRecommendation.from_pretrained(tmp_path / "saved").eval()
    known = PolyRecProcessor.from_pretrained(tmp_path / "saved")
    assert (known.item_times(source) == processor.item_times(source)).all()
    half = PolyRecForRecommendation.from_pretrained(tmp_path / "saved", dtype=torch.bfloat16)
    assert torch.equal(half.heads["next_item"].age.released, model.heads["next_item"].age.released)
    batch = PolyRecCollator()([splits.test[i] for i in range(4)])
    with torch.no_grad():
        found, expected = (m(**model_inputs(batch)).logits["next_item"] for m in (again, model))
    assert torch.equal(found, expected)
    found, expected = again.recommend(known, [103], k=5), model.recommend(processor, [103], k=5)
    assert [entry["item"] for entry in found] == [entry["item"] for entry in expected]
    assert [entry["score"] for entry in found] == pytest.approx([entry["score"] for entry in expected], rel=1e-5)


def test_folders_of_before_there_were_ages_load(tmp_path):
    """Prevents an update of the package from breaking what people have saved."""
    processor, _, model = fitted(None)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert not [name for name in model.state_dict() if ".age." in name]
    table = pq.read_table(tmp_path / "items.parquet")
    pq.write_table(table.drop_columns(["__first_event__"]), tmp_path / "items.parquet")
    (tmp_path / "manifest.json").unlink()  # nor had they manifests
    known = PolyRecProcessor.from_pretrained(tmp_path)
    assert (known.item_times("first_event") == NO_TIME).all()
    assert PolyRecForRecommendation.from_pretrained(tmp_path).eval().recommend(known, [103], k=3)


@pytest.mark.parametrize("source", SOURCES)
def test_new_items_have_an_age_and_old_answers_stay(worlds, source, tmp_path):
    """Prevents an extended catalog whose new items never appear, or which moves what is said of old ones."""
    processor, splits, model = worlds(source)
    batch = PolyRecCollator()([splits.test[i] for i in range(4)])
    inputs = model_inputs(batch)

    def scores():
        with torch.no_grad():
            states = model(**inputs).states.flatten(0, 1)
            context = model.request_context(**inputs).rows(torch.arange(len(states)))
            return model.score_items(states, "next_item", context=context)

    before, old = scores(), processor.num_items
    processor.extend({"item_id": [900], "title": ["new"], "born": [50 * 86_400]})
    if source == "first_event":
        processor.update({"user_id": [0], "item_id": [900], "timestamp": [50 * 86_400]})
    model.extend(processor)
    assert model.heads["next_item"].age.released[-1] == 50 * DAY
    after = scores()
    assert torch.equal(after[:, :old], before)
    if source == "release":
        assert after[:, -1].eq(float("-inf")).all()
    best = model.recommend(processor, [103], k=3, time=50.5 * 86_400)
    assert 900 in [entry["item"] for entry in best]  # by the log, what nobody has taken yet is even newer
    model.save_pretrained(tmp_path / "saved")
    loaded = PolyRecForRecommendation.from_pretrained(tmp_path / "saved")
    assert loaded.heads["next_item"].age.released[-1] == 50 * DAY


@pytest.mark.parametrize("options", [{}, {"sampled_above": 4, "num_negatives": 5}], ids=["full", "sampled"])
@pytest.mark.parametrize("labels", [["task"], []], ids=["labels", "none"])
def test_every_parameter_gets_a_finite_gradient(options, labels):
    """Prevents ranks from waiting for a gradient that never comes, and NaN from -inf where there are no labels."""
    torch.manual_seed(0)
    tasks = [{"name": "task", "head": "retrieval", "options": {"item_age": "release", **options}}]
    model = PolyRecForRecommendation(random_config(tasks=tasks)).train()
    batch = random_batch(labels)
    batch["candidate_times"] = torch.randint(0, 10**9, batch["candidate_ids"].shape)
    model.heads["task"].age.load(torch.randint(0, 10**9, (12,)))
    model(**batch).loss.backward()
    gradients = {name: p.grad for name, p in model.heads.named_parameters()}
    assert all(g is not None and torch.isfinite(g).all() for g in gradients.values())


def test_mistakes_are_explained():
    """Prevents a silent ranking without ages, and options that contradict each other from being found in training."""
    with pytest.raises(ValueError, match="did you mean 'release'"):
        head_of("relese")
    with pytest.raises(ValueError, match="age_buckets"):
        head_of("release", age_buckets=0)
    with pytest.raises(ValueError, match="label_smoothing"):
        head_of("release", label_smoothing=0.1)
    head, items, states, *_ = head_of("release")
    with pytest.raises(ValueError, match="candidate_times"):
        head(states, items)
    processor, _, _ = fitted("first_event")
    with pytest.raises(ValueError, match=r"columns\.item_time"):
        processor.item_times("release")
