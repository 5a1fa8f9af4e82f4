"""What is popular now: logits against loops, what questions may know, and a news-like log that needs it."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from polyrec import PolyRecCollator, PolyRecConfig, PolyRecForRecommendation, PolyRecProcessor
from polyrec.distillation.live import _ItemRows
from polyrec.evaluation.baselines.table import baseline_table
from polyrec.evaluation.evaluator import evaluate, predict
from polyrec.evaluation.term_weight import choose_term_weights
from polyrec.modules.encoders.item import ItemRows
from polyrec.modules.encoders.request_context import RequestContext, Trending
from polyrec.modules.heads.retrieval import RetrievalHead

ITEMS, WIDTH, HOUR = 30, 8, 3600.0


@pytest.fixture
def head():
    torch.manual_seed(0)
    task = {"name": "next_item", "head": "retrieval", "options": {"trending": [[HOUR, 9.0]], "bias_rate": 3.0}}
    config = PolyRecConfig(tasks=[task], num_items=ITEMS, hidden_size=WIDTH)
    head = RetrievalHead(config.task_configs[0], config)
    head.initialise()
    assert head.trending.rate * head.trending.prior.weight.item() == pytest.approx(1.0)
    torch.nn.init.normal_(head.trending.by_state.weight)
    return head


def question(count):
    """Snapshots as the data make them: ascending, without items on the left, the first one empty."""
    drawn = np.random.default_rng(count)
    items, values = np.zeros((6, 5), dtype=np.int32), np.zeros((6, 5), dtype=np.float16)
    for u in range(1, 6):
        items[u, 5 - u :] = np.sort(drawn.choice(np.arange(2, ITEMS), u, replace=False))
        values[u, 5 - u :] = drawn.random(u) * 4
    snapshot = torch.from_numpy(drawn.integers(0, 6, count))
    return RequestContext(trending={"next_item": Trending(snapshot, torch.from_numpy(items), torch.from_numpy(values))})


def test_logits_are_those_of_a_loop_in_catalog_pairs_and_samples(head):
    """Prevents popularity of the wrong snapshot or item, and lists that disagree with losses and given items."""
    state, items, context = torch.randn(9, WIDTH), ItemRows(torch.randn(ITEMS, WIDTH)), question(9)
    expected, popular = torch.zeros(9, ITEMS), context.trending["next_item"]
    ids, sample = torch.randint(2, ITEMS, (9, 7)), torch.tensor([7, 3, 3, 29, 2])
    spread = RequestContext(
        trending={"next_item": popular._replace(snapshot=popular.snapshot.unsqueeze(1).expand(9, 7))}
    )
    with torch.no_grad():
        weight = head.trending.by_state(state).squeeze(-1) + 1.0
        for m, u in enumerate(popular.snapshot.tolist()):
            for item, value in zip(popular.items[u].tolist(), popular.values[u].tolist(), strict=True):
                expected[m, item] += weight[m] * value
        every = head(state, items, context)
        pairs = head.pair_logits(state.unsqueeze(1).expand(9, 7, WIDTH), items.lookup(ids), ids, items, spread)
        sampled = head.of_sample(state, head.project(state), sample, items, context)
        head.trending.prior.weight.zero_()
        head.trending.by_state.weight.zero_()
        without = head(state, items, context)
    torch.testing.assert_close((every - without)[:, 2:], expected[:, 2:], atol=1e-5, rtol=0)
    torch.testing.assert_close(pairs, every.gather(1, ids), atol=1e-5, rtol=0)
    torch.testing.assert_close(sampled, every[:, sample], atol=1e-5, rtol=0)


def test_gradients_are_those_of_the_whole_softmax(head):
    """Prevents a weight that learns from another gradient than the loss's."""
    state, vectors = torch.randn(9, WIDTH, requires_grad=True), torch.randn(ITEMS, WIDTH, requires_grad=True)
    targets, context = torch.randint(2, ITEMS, (9,)), question(9)
    parameters = [state, vectors, *head.parameters()]
    total, _ = head.retrieval_loss(state, targets, ItemRows(vectors), torch.ones(ITEMS), None, context=context)
    logits = head(state, ItemRows(vectors), context)[:, 2:]
    other = F.cross_entropy(logits, targets - 2, reduction="sum")
    for one, two in zip(*(torch.autograd.grad(x, parameters) for x in (total, other)), strict=True):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)


def test_missing_popularity_is_said(head):
    """Prevents a list without what is popular from a batch of another processor."""
    with pytest.raises(ValueError, match="'next_item' reads `trending` and the batch does not say"):
        head(torch.randn(2, WIDTH), ItemRows(torch.randn(ITEMS, WIDTH)))


@pytest.mark.parametrize("value", [[3600.0, 1.0], [[3600.0]], [[0.0, 1.0]]])
def test_half_lives_without_weights_are_refused(value):
    """Prevents an option that is read as something else."""
    config = PolyRecConfig(tasks=[{"name": "a", "head": "retrieval", "options": {"trending": value}}], num_items=5)
    with pytest.raises(ValueError, match="'trending'.*pairs"):
        RetrievalHead(config.task_configs[0], config)


def news(events=4000, days=20):
    """Each day some new items are all that is read, the first of them most."""
    drawn = np.random.default_rng(0)
    time = np.sort(drawn.random(events)) * days * 24 * HOUR
    item = (time // (24 * HOUR)).astype(int) * 12 + np.minimum(drawn.geometric(0.3, events) - 1, 11)
    log = pd.DataFrame({"user_id": drawn.integers(0, 400, events), "item_id": item, "timestamp": time.round()})
    return log.drop_duplicates(["user_id", "item_id"])


def prepared(**options):
    task = {"name": "next_item", "head": "retrieval", "options": options}
    log = news()
    known = {}
    if "item_age" in options:
        first = log.groupby("item_id", as_index=False).timestamp.min()
        known = {"items": first, "columns": {"item_time": "timestamp", "item_features": {}}}
    processor = PolyRecProcessor.fit(log, tasks=[task], statistics=False, verbose=False, max_history=16, **known)
    return processor, processor.split(news())


@pytest.fixture(scope="module")
def world():
    return prepared()


def ndcg(processor, splits, steps):
    torch.manual_seed(0)
    model = PolyRecForRecommendation(processor.model_config(hidden_size=8, num_attention_heads=2, num_hidden_layers=1))
    model.load_catalog(processor.items.encoded, torch.from_numpy(processor.item_counts).float())
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    loader = torch.utils.data.DataLoader(splits.train, 64, shuffle=True, collate_fn=PolyRecCollator())
    for _ in range(steps):
        for batch in loader:
            batch.pop("candidate_rows")
            optimizer.zero_grad()
            model(**batch).loss.backward()
            optimizer.step()
    return model, evaluate(model, splits.test, predict(model, splits.test))["next_item_ndcg@10"]


def test_news_needs_it_and_the_processor_finds_out(world):
    """Prevents a model that ranks what nobody reads any more where all that comes is new."""
    processor, splits = world
    assert processor.model_config().task_configs[0].options["trending"]
    assert "next_item: training reads recent popularity (half-lives 1 hours)" in " ".join(
        str(processor.data_report).split()
    )
    best = baseline_table(processor, splits, systems=["recent_popularity"], resamples=0)["next_item"]
    model, found = ndcg(processor, splits, 2)
    assert found > 0.97 * best["recent_popularity"]["ndcg@10"] > 0.4
    assert ndcg(*prepared(trending=()), 2)[1] < 0.1
    frozen = processor.without_updates(splits.test, float(splits.test.log.time[splits.train.candidates.event].max()))
    assert evaluate(model, frozen, predict(model, frozen))["next_item_ndcg@10"] < 0.5 * found


def test_what_is_new_counts_once():
    """Prevents recent popularity, fitted without ages, from being added to ages that say the same."""
    processor, _ = prepared(item_age="release")
    options = processor.model_config().task_configs[0].options
    assert (options["trending_start"], options["neighbours"], options["cold_negatives"]) == (0, 0, False)
    assert "the option item_age tells what is new already" in " ".join(str(processor.data_report).split())


def test_a_saved_processor_keeps_what_its_models_read(world, tmp_path):
    """Prevents a later split of more events from counting by other half-lives than the trained model's, or not at all."""
    world[0].save_pretrained(tmp_path)
    again = PolyRecProcessor.from_pretrained(tmp_path)
    parts = again.split(news().iloc[::3])
    assert again.mixtures == world[0].mixtures
    assert parts.train.trending is not None


def test_batches_read_at_once_hold_what_windows_hold(world):
    """Prevents evaluation, which reads batches at once, from seeing other snapshots than training."""
    test = world[1].test
    one = PolyRecCollator()([test[i] for i in range(9)])
    two = PolyRecCollator()(test.__getitems__(list(range(9))))
    for name in ("items", "values"):
        found = [b["trending"]["next_item"][name][b["candidate_trending"]] for b in (one, two)]
        assert torch.equal(*found)
        assert not found[0][one["candidate_ids"] == 0].any()  # padding sees nothing
        assert found[0].any()


def test_teachers_of_other_catalogs_read_their_own_rows():
    """Prevents popularity of other items, and rows out of order, in which the search in them goes astray."""
    rows = _ItemRows(np.array([0, 1, 9, 1, 4, 7]))  # what the student calls 3, the teacher does not know
    items = torch.tensor([[0, 2, 3, 4, 5]], dtype=torch.int32)
    popular = {
        "item_ids": items.long(),
        "trending": {"a": {"items": items, "values": torch.arange(5.0).view(1, 5)}},
    }
    found = rows.to_teacher(popular)["trending"]["a"]
    assert found["items"].tolist() == [[0, 0, 4, 7, 9]]
    assert found["values"].tolist() == [[0, 0, 3, 4, 1]]


def test_held_out_events_do_not_count_before_their_set(world):
    """Prevents popularity that has counted the answers of leave-one-out."""
    processor = PolyRecProcessor.fit(news(), tasks=world[0].tasks, statistics=False, verbose=False)
    splits = processor.split(news(), by="leave_one_out")
    held = set(splits.valid.candidates.event) | set(splits.test.candidates.event)
    log = splits.train.log
    for part, hidden in ((splits.train, held), (splits.valid, held), (splits.test, set(splits.test.candidates.event))):
        counts = np.isin(np.arange(len(log)), list(hidden), invert=True)
        window = part[len(part) // 2]
        event = part.candidates.event[window["candidate_rows"][-1]]
        items = window["trending"]["next_item"]["items"][window["candidate_trending"][-1]]
        now = np.sort(log.time[counts & (log.time < log.time[event])])[-1]
        fresh = log.item[counts & (log.time == now)]
        assert set(fresh) <= set(items)
        assert set(items[items > 0]) <= set(log.item[counts & (log.time < log.time[event])])


def test_lists_follow_the_news_after_update_and_reload(world, tmp_path):
    """Prevents served lists of what was popular when the model was trained."""
    processor, splits = world
    torch.manual_seed(0)
    model = PolyRecForRecommendation(processor.model_config(hidden_size=8, num_attention_heads=2)).eval()
    model.load_catalog(processor.items.encoded, torch.from_numpy(processor.item_counts).float())
    before = model.recommend(processor, k=3)
    test = news()[news().timestamp >= splits.test.log.time[splits.test.candidates.event].min()]
    later = news()[news().timestamp > processor._state.counted]
    processor.update(later)
    after = model.recommend(processor, k=3)
    today = test[test.timestamp >= test.timestamp.max() - 24 * HOUR].item_id
    assert {row["item"] for row in after} <= set(today) | {int(test.item_id.iloc[-1])}
    assert {row["item"] for row in before}.isdisjoint(today)
    processor.save_pretrained(tmp_path)
    again = PolyRecProcessor.from_pretrained(tmp_path)
    assert model.recommend(again, k=3) == after
    again.extend({"item_id": [10_000]})
    again.save_pretrained(tmp_path)
    assert PolyRecProcessor.from_pretrained(tmp_path).trends.recent["next_item"].counts.shape[1] == again.num_items


def test_what_training_does_not_read_validation_weighs():
    """Prevents recent popularity that says little of likelihood, and much of ranks, from being left out, and a weight
    of it that training reads or that is not the one that was measured."""
    processor, splits = prepared(
        trending=[[3600.0, 10.0]], trending_start=0.0, recent=True, neighbours=0, linear=0, transitions=0
    )
    torch.manual_seed(0)
    config = processor.model_config(hidden_size=8, num_attention_heads=2, num_hidden_layers=1)
    model = PolyRecForRecommendation(config).eval()
    head = model.heads["next_item"]
    assert head.trending is None
    assert list(head.weighed) == ["recent"]
    (said,) = choose_term_weights(model, splits.valid).values()
    batch = PolyRecCollator()([splits.train[n] for n in range(4)])
    batch.pop("candidate_rows")
    lost, found = [], []
    for strength in (0.0, said.weight):
        head.recent.weigh(strength, said.decay)
        torch.manual_seed(0)
        lost.append(model.train()(**batch).loss.item())
        found.append(evaluate(model, splits.valid, predict(model, splits.valid))["next_item_ndcg@10"])
    assert lost[0] == lost[1]
    np.testing.assert_allclose(found, [said.without, said.value], atol=1e-9)
    assert found[1] > 0.4 > 10 * found[0]
    window = splits.valid[0]
    shown = window["trending"]["next_item"]
    row = window["candidate_trending"][0]
    context = RequestContext(
        trending={"next_item": Trending(torch.tensor([row]), *map(torch.from_numpy, shown.values()))}
    )
    items = ItemRows(torch.randn(processor.num_items, 8))
    with torch.no_grad():
        model.eval()
        weighed = head(torch.zeros(1, 8), items, context)
        head.recent.weigh(0.0, 1.0)
        added = (weighed - head(torch.zeros(1, 8), items, context))[0].numpy()
    expected = np.zeros(processor.num_items)
    expected[shown["items"][row]] = said.weight * shown["values"][row].astype(float)
    np.testing.assert_allclose(added[2:], expected[2:], atol=2e-3)
