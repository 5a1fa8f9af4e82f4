"""Repeats in retrieval: how often and how long ago whom took what, and what that says of the next item."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_fixtures import arguments, random_batch, random_config, tiny_model
from torch.nn import functional as F

from polyrec import PolyRecForRecommendation, PolyRecProcessor, PolyRecTrainer
from polyrec.core.distillation_config import TaskDistillation
from polyrec.data.collator import PolyRecCollator
from polyrec.distillation.live import LiveTeacher
from polyrec.distillation.soft_losses.base import checked_plan, kind_of
from polyrec.evaluation.evaluator import evaluate, predict
from polyrec.modules.encoders.item import FIRST_ITEM, ItemRows
from polyrec.modules.encoders.request_context import RequestContext
from polyrec.modules.encoders.visible_events import VisibleEvents
from polyrec.modules.heads.terms.repeats import _FEW, Repeats

ITEMS, DAY = 11, 86_400_000
OFTEN = ((1, 1), (2, 2), (3, 4), (5, 8), (9, 10**9))
AGO = ((1, 1), (2, 3), (4, 7), (8, 15), (16, 31), (32, 63), (64, 127), (128, 10**9))


def naive_group(history, item):
    """The group of one item by its definition."""
    seen = [event for event in history if event]
    if item < FIRST_ITEM or item not in seen:
        return 0
    times, ago = seen.count(item), seen[::-1].index(item) + 1
    often, latest = (
        [low <= x <= high for low, high in ranges].index(True) for x, ranges in ((times, OFTEN), (ago, AGO))
    )
    return 1 + often * len(AGO) + latest


def test_ranges_begin_where_saved_weights_learnt_them():
    """Prevents a range that is moved by one: the weights of a saved model would speak of other events."""
    history = np.arange(FIRST_ITEM, FIRST_ITEM + 130)[::-1]  # item FIRST_ITEM + n stands n + 1 events ago
    group = groups_of(
        Repeats(hidden_size=2),
        RequestContext(history=VisibleEvents.of_requests(torch.tensor(history.copy())[None])),
        torch.arange(132),
    )
    begins = [low for low, _ in AGO]
    assert group[0, [FIRST_ITEM + low - 1 for low in begins]].tolist() == list(range(1, 9))
    assert group[0, [FIRST_ITEM + low - 2 for low in begins[1:]]].tolist() == list(range(1, 8))


def groups_of(repeats, context, ids):
    """The group of each of some items, [M, N], as the logits of a catalog are told of it."""
    known, place = ids.unique(return_inverse=True)
    group, columns = repeats.biases(context, known)
    return torch.zeros(len(group), len(known), dtype=torch.int64).scatter_add_(1, columns, group)[:, place]


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_groups_equal_their_definition(data):
    """Prevents a count that is off by one, the first event of an item instead of its last, and padding that counts."""
    length, catalog = data.draw(st.integers(0, 200)), data.draw(st.integers(1, 9))
    lengths = data.draw(st.lists(st.integers(0, length), min_size=1, max_size=4))
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    events = [random.integers(1, FIRST_ITEM + catalog, n) for n in lengths]
    history = torch.tensor(np.stack([np.pad(e, (0, length - len(e))) for e in events]))
    ids = torch.tensor(random.integers(0, FIRST_ITEM + catalog, 7))  # unsorted, some of them twice
    expected = [[naive_group(e.tolist(), i) for i in ids.tolist()] for e in events]
    repeats = Repeats(hidden_size=2)
    assert groups_of(repeats, RequestContext(history=VisibleEvents.of_requests(history)), ids).tolist() == expected
    for some in (slice(None), slice(_FEW), slice(_FEW, None)):
        own = repeats.own_groups(
            RequestContext(history=VisibleEvents.of_requests(history)), ids.expand(len(events), -1)[:, some]
        )
        assert own.tolist() == [row[some] for row in expected]


def test_what_was_refused_is_no_repeat():
    """Prevents exposures without a click from counting as habits, and another task's answers from being read."""
    history = torch.tensor([[5, 3, 5, 4, 0]])
    refused = torch.tensor([[False, True, True, False, True]])  # nothing is known of what is not there
    ids = torch.arange(FIRST_ITEM, 6)
    taken = groups_of(
        Repeats(2, task="click"), RequestContext(history=VisibleEvents.of_requests(history, {"click": refused})), ids
    )
    assert taken.tolist() == [[0, 0, naive_group([4], 4), naive_group([5, 1, 1, 4], 5)]]
    every = groups_of(
        Repeats(2, task="view"), RequestContext(history=VisibleEvents.of_requests(history, {"click": refused})), ids
    )
    assert every.tolist() == [[naive_group([5, 3, 5, 4], item) for item in ids.tolist()]]


def test_labels_say_what_was_refused():
    """Prevents a model that is told nothing of refusals, or that forgets them where it serves."""
    log = {"user_id": [1] * 4, "item_id": ["a", "b", "a", "c"], "timestamp": [1, 2, 3, 4], "click": [1, 0, None, 1]}
    options = {"repeats": True}
    tasks = [{"name": "next", "head": "retrieval", "label": "click", "options": options}]
    tasks.append({"name": "view", "head": "retrieval", "options": options})
    processor = PolyRecProcessor.fit(log, tasks=tasks, statistics=False)
    model = tiny_model(processor).eval()
    window = processor.split(log, by="leave_one_out").test[0]
    history = [{"item_id": item, "click": click} for item, click in zip("aba", (1, 0, None), strict=True)]
    for windows in ([window], [processor.request(history, np.array([FIRST_ITEM]))]):
        context = model.request_context(**PolyRecCollator()(windows))
        assert context.history.refused["next"][0].tolist() == [False, True, False]
        assert "view" not in context.history.refused  # whose events all count


def head_of(**options):
    """A head whose repeats say something, its items, states, targets, counts and contexts."""
    torch.manual_seed(3)
    tasks = [{"name": "task", "head": "retrieval", "options": {"repeats": True, "age_buckets": 5, **options}}]
    head = PolyRecForRecommendation(random_config(tasks=tasks, num_items=ITEMS)).heads["task"]
    for parameter in head.parameters():
        parameter.data.normal_()
    times = torch.tensor([8, DAY, 11 * DAY, 500 * DAY, 10 * DAY, 9 * DAY])
    if head.age is not None:
        head.age.load(torch.tensor([10**15] * 2 + [0, 5, DAY, 10 * DAY, 100 * DAY, 400 * DAY, 11 * DAY, 3, 7]))
    history = torch.tensor([[5, 3, 5, 5], [0, 0, 0, 0], [10, 1, 1, 0], [2, 3, 4, 5], [9, 9, 9, 9], [6, 0, 0, 0]])
    targets = torch.tensor([5, 3, 8, 9, 2, 6])
    context = RequestContext(times, VisibleEvents.of_requests(history))
    return head, ItemRows(torch.randn(ITEMS, 8)), torch.randn(6, 8), targets, torch.arange(float(ITEMS)), context


def naive_logits(head, items, state, history, now, target=None):
    """s . v + b + (A s + c) at the group of each item, one by one, {item: logit}; impossible ones are left out."""
    found, rate = {}, head.options["bias_rate"]
    for item in range(FIRST_ITEM, ITEMS):
        logit = head.project(state) @ items.vectors_MD[item] + rate * head.bias.weight[item, 0]
        group = naive_group(history.tolist(), item)
        if group:
            logit = logit + head.repeats.by_state.weight[group - 1] @ state
            logit = logit + rate * head.repeats.prior.weight[group - 1, 0]
        if head.age is not None:
            age = head.age.groups(RequestContext(now[None]), torch.tensor([item]))[0, 0]
            if age == head.age.buckets + 1:
                if item != target:
                    continue
                age = torch.tensor(0)
            logit = logit + head.age.logits(state)[age]
        found[item] = logit
    return found


def naive_losses(head, items, states, targets, context, candidates=None, correction=None):
    """-log softmax of each target among itself and the other candidates."""
    losses = []
    for state, target, now, history in zip(
        states, targets.tolist(), context.times, context.history.read(), strict=True
    ):
        logits = naive_logits(head, items, state, history, now, target)
        scored = [target, *(j for j in (candidates or logits) if j != target and j in logits)]
        stacked = torch.stack([logits[j] - (0 if correction is None else correction[j]) for j in scored])
        losses.append(-F.log_softmax(stacked, dim=0)[0])
    return torch.stack(losses)


@pytest.mark.parametrize("chunk", [1, 1 << 18])
@pytest.mark.parametrize("age", [None, "release"])
def test_the_full_softmax_equals_the_plain_formula(monkeypatch, age, chunk):
    """Prevents a fused gradient that differs from autograd's, and a chunk that reads another one's histories."""
    monkeypatch.setattr("polyrec.core.linear_loss._CHUNK", chunk)
    head, items, states, targets, counts, context = head_of(item_age=age, bias_rate=2.0)
    leaves = [states.requires_grad_(), items.vectors_MD.requires_grad_(), *head.parameters()]
    weight = torch.rand(len(targets)) + 0.5
    total, _ = head.retrieval_loss(states, targets, items, counts, None, weight, context=context)
    expected = (naive_losses(head, items, states, targets, context) * weight).sum()
    torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-4)
    found = torch.autograd.grad(total, leaves)
    for a, b in zip(found, torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_the_sampled_softmax_equals_the_naive_one():
    """Prevents samples, some drawn twice, that are told apart by where they stand instead of by what they are."""
    head, items, states, targets, counts, context = head_of(sampled_above=0)
    negatives = torch.tensor([3, 6, 5, 8, 4])
    q = torch.log((counts + 1) / (counts + 1).sum())
    total, _ = head.retrieval_loss(states, targets, items, counts, negatives, context=context)
    expected = naive_losses(head, items, states, targets, context, negatives.tolist(), q)
    torch.testing.assert_close(total, expected.sum(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampled_above", [0, 100], ids=["sampled", "full"])
def test_lists_of_a_teacher_are_learnt_with_repeats(sampled_above):
    """Prevents a student that is judged by other scores than it answers with: its own top lists cost nothing to learn."""
    head, items, states, _, counts, context = head_of(sampled_above=sampled_above)
    plan = checked_plan(head, TaskDistillation())
    everything = torch.arange(FIRST_ITEM, ITEMS)
    scores = head(states, items, context)[:, FIRST_ITEM:].detach()
    teacher = F.pad(scores, (0, 1), value=float("-inf"))
    listed = everything.expand(len(states), -1)
    negatives = everything if head.sampled else None
    states.requires_grad_()
    total, count = kind_of(head).lists(head, plan, states, listed, teacher, items, counts, negatives, context=context)
    entropy = torch.distributions.Categorical(logits=scores).entropy().sum()
    assert count == len(states)
    assert min(abs(total.item()), abs(total.item() - entropy.item())) < 1e-3  # a KL, or a cross entropy
    assert torch.autograd.grad(total, states)[0].abs().max() < 1e-4


def test_scores_and_pair_logits_equal_the_naive_ones():
    """Prevents a ranking by other repeats than the loss learnt."""
    head, items, states, _, _, context = head_of()
    scores = head(states, items, context)
    ids = torch.arange(FIRST_ITEM, ITEMS).expand(len(states), -1)
    history = VisibleEvents.of_batch(context.history.items, torch.full_like(ids, 4))
    of_pairs = states.unsqueeze(1).expand(-1, ids.shape[1], -1)
    pairs = head.pair_logits(of_pairs, items.lookup(ids), ids, items, RequestContext(history=history))
    for m, state in enumerate(states):
        expected = torch.stack(
            list(naive_logits(head, items, state, context.history.read()[m], context.times[m]).values())
        )
        torch.testing.assert_close(scores[m, FIRST_ITEM:], expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(pairs[m], expected, rtol=1e-4, atol=1e-4)


def test_a_candidate_knows_nothing_from_its_own_event_on():
    """Prevents the answer from being among what was taken before it."""
    tasks = [{"name": "task", "head": "retrieval", "options": {"repeats": True}}]
    torch.manual_seed(0)
    model = PolyRecForRecommendation(random_config(tasks=tasks)).eval()
    model.heads["task"].repeats.prior.weight.data.normal_()
    batch = random_batch(["task"])
    labels = batch.pop("labels")
    changed = {**batch, "item_ids": batch["item_ids"].clone()}
    for b, positions in enumerate(batch["candidate_positions"]):
        changed["item_ids"][b, positions.max() :] = 7
    with torch.no_grad():
        before, after = (model(**x).logits["task"] for x in (batch, changed))
    last = batch["candidate_positions"] == batch["candidate_positions"].max(dim=1, keepdim=True).values
    assert torch.equal(before[last], after[last])
    model.train()(**batch, labels=labels).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.heads.parameters())


def habits(users=40, items=30, visits=6, seed=0):
    """Everybody takes their own two things every day, of which nobody else's tell anything, and one at random."""
    random = np.random.default_rng(seed)
    own = np.stack([random.permutation(items)[:2] for _ in range(users)])
    rows = [
        (user, int(item), day * 86_400.0)
        for user in range(users)
        for day in range(visits)
        for item in {*own[user].tolist(), int(random.integers(items))}
    ]
    user_id, item, time = zip(*rows, strict=True)
    return {"user_id": user_id, "item_id": item, "timestamp": time}


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """{whether repeats are read: (processor, split, trained model)}."""
    found = {}
    for repeats in (False, True):
        options = {"repeats": repeats, "bias_rate": 10.0}
        tasks = [{"name": "next_item", "head": "retrieval", "options": options}]
        processor = PolyRecProcessor.fit(habits(), tasks=tasks, statistics=False, max_history=24)
        splits = processor.split(habits(), by="leave_one_out")
        model = tiny_model(processor)
        training = arguments(tmp_path_factory.mktemp("run"), num_train_epochs=10, learning_rate=0.02)
        PolyRecTrainer(model, training, splits.train, splits.valid, processing_class=processor).train()
        found[repeats] = processor, splits, model.eval()
    return found


def test_habits_are_learnt(worlds):
    """Prevents a term that is there and learns nothing: who takes what is known from their own past alone."""
    found = {}
    for repeats, (_, splits, model) in worlds.items():
        predictions = predict(model, splits.test, exclude_seen=False)
        found[repeats] = evaluate(model, splits.test, predictions)["next_item_ndcg@10"]
    assert found[True] > found[False] + 0.1


def test_everybody_ranks_by_the_same_scores(worlds, tmp_path):
    """Prevents a served list, a teacher's list, an explained answer or a loaded model that forgets the repeats."""
    processor, splits, model = worlds[True]
    window = splits.test[0]
    batch = PolyRecCollator()([window])
    batch.pop("labels")
    with torch.no_grad():
        output = model(**{k: v for k, v in batch.items() if k != "candidate_rows"})
        context = model.request_context(**batch)
        assert context.history.items is batch["item_ids"]
        assert torch.equal(context.history.positions, batch["candidate_positions"])
        scores = model.score_items(output.states[:, -1], "next_item", context=context.at((slice(None), -1)))[0]
    best = scores[FIRST_ITEM:].argsort(descending=True)[:5] + FIRST_ITEM

    user = splits.test.log.user_ids[int(splits.test.log.user[splits.test.candidates.event[0]])].as_py()
    log = habits()
    last = max(t for u, t in zip(log["user_id"], log["timestamp"], strict=True) if u == user)
    # With their times: how long ago an item was taken is unknown without.
    history = [{"item_id": i, "timestamp": t} for u, i, t in zip(*log.values(), strict=True) if u == user and t < last]
    known = {event["item_id"] for event in history}
    ids = processor.items.ids.to_pylist()
    expected = [ids[row - FIRST_ITEM] for row in best.tolist()]
    model.save_pretrained(tmp_path)
    loaded = PolyRecForRecommendation.from_pretrained(tmp_path).eval()
    for one in (model, loaded):
        served = one.recommend(processor, history, k=5, time=last)
        assert [row["item"] for row in served] == expected
        assert not {row["item"] for row in one.recommend(processor, history, k=5, exclude_seen=True)} & known
    answers = LiveTeacher(model, processor, top_k=5).score(PolyRecCollator()([window]))
    assert answers["teacher_items"]["next_item"][0, -1].tolist() == best.tolist()
    asked = batch["candidate_ids"][0, -1]
    assert output.logits["next_item"][0, -1] == pytest.approx(scores[asked].item(), abs=1e-5)
    reason = model.explain(processor, history, items=expected[:1])[0]
    assert reason["events"][0]["item"] == expected[0]  # it comes again because it was there


def test_scores_without_a_history_are_refused():
    """Prevents a silent ranking as of somebody who never took anything."""
    head, items, states, *_ = head_of()
    with pytest.raises(ValueError, match="needs the events before"):
        head(states, items)
