"""What goes with the latest items: tables, logits and folds, each against sums over all pairs of events."""

import math
from collections import defaultdict
from itertools import combinations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from polyrec import (
    PolyRecCollator,
    PolyRecConfig,
    PolyRecForRecommendation,
    PolyRecProcessor,
    PolyRecTrainer,
    PolyRecTrainingArguments,
)
from polyrec.data.neighbours import FOLDS, KINDS, fold_of, neighbours, worthwhile
from polyrec.modules.encoders.item import ItemRows
from polyrec.modules.encoders.request_context import LATEST, RequestContext, latest_items
from polyrec.modules.encoders.visible_events import VisibleEvents
from polyrec.modules.heads.retrieval import RetrievalHead
from polyrec.modules.heads.terms import _cross_fitted

ITEMS, WIDTH = 30, 8


def counted(user, item, items):
    """The three kinds of evidence as dense matrices, by loops over pairs of events."""
    together, following = np.zeros((items, items)), np.zeros((items, items))
    of_user = defaultdict(list)
    for u, i in zip(user, item, strict=True):
        if i >= 2:
            of_user[u].append(i)
    for events in of_user.values():
        for (a, i), (b, j) in combinations(enumerate(events), 2):
            if i != j and b - a <= 10:
                together[i, j] += 0.9 ** (b - a - 1)
                together[j, i] += 0.9 ** (b - a - 1)
            if i != j and b - a <= 5:
                following[i, j] += 0.7 ** (b - a - 1)
    degree = together.sum(1)
    together = np.array(
        [[c / (degree[i] * degree[j]) ** 0.4 if c else 0 for j, c in enumerate(row)] for i, row in enumerate(together)]
    )
    following = following / (following.sum(1, keepdims=True) + 5)
    rows = np.zeros((len(of_user), items))
    for row, events in zip(rows, of_user.values(), strict=True):
        row[list(set(events))] = math.log((1 + items) / (1 + len(set(events))))
    length = np.sqrt((rows**2).sum(0))
    similar = (rows.T @ rows) / np.maximum(np.outer(length, length), 1e-12)
    np.fill_diagonal(similar, 0)
    found = []
    for kind in (together, similar, following):
        largest = kind.max(1)
        found.append(kind / largest[largest > 0].mean())
    return found


@pytest.fixture(scope="module")
def log():
    drawn = np.random.default_rng(0)
    user = np.sort(drawn.integers(0, 12, 250))
    return user, np.minimum(drawn.geometric(0.12, 250), ITEMS - 1)


def test_tables_hold_what_pairs_of_events_say(log):
    """Prevents evidence that is counted across users, in one direction only, or beside its item."""
    kinds = counted(*log, ITEMS)
    found = neighbours(*log, ITEMS, size=ITEMS)
    assert (np.diff(found.items, axis=1) >= 0).all()  # the search in them relies on it
    for at, kind in enumerate(kinds):
        dense = np.zeros((ITEMS, ITEMS))
        for i in range(ITEMS):
            dense[i, found.items[i]] = found.values[i, at].astype(np.float64)
        np.testing.assert_allclose(dense**2, kind, atol=2e-3)
    assert not found.values[:2].any()


def test_only_the_strongest_are_kept(log):
    """Prevents tables cut by chance or by number."""
    total, found = sum(counted(*log, ITEMS)), neighbours(*log, ITEMS, size=4)
    for i in range(2, ITEMS):
        kept = found.items[i][found.items[i] > 0]
        weakest, others = total[i, kept].min(initial=np.inf), np.delete(total[i], kept)
        assert len(kept) == min(4, (total[i] > 0).sum())
        assert weakest >= others.max() - 1e-6


def test_long_histories_and_blocks_change_nothing(log, monkeypatch):
    """Prevents similarities that depend on how many pairs fit into memory at once."""
    whole = neighbours(*log, ITEMS, size=ITEMS)
    monkeypatch.setattr("polyrec.data.neighbours._BLOCK", 40)
    for one, two in zip(whole, neighbours(*log, ITEMS, size=ITEMS), strict=True):
        np.testing.assert_array_equal(one, two)


def test_latest_items_are_the_last_that_count():
    """Prevents evidence of later, refused or unknown events."""
    drawn = np.random.default_rng(1)
    items, refused = drawn.integers(0, 6, (4, 15)), drawn.random((4, 15)) < 0.3
    positions = drawn.integers(0, 16, (4, 7))
    found = latest_items(*map(torch.from_numpy, (items, positions, refused)))
    for b, c in np.ndindex(4, 7):
        seen = [i for i, no in zip(items[b, : positions[b, c]], refused[b], strict=False) if i >= 2 and not no]
        expected = seen[::-1][:LATEST]
        assert found[b, c].tolist() == expected + [0] * (LATEST - len(expected))


@pytest.fixture
def head(log):
    """A head with all three terms, and the users' folds beside the table of all."""
    torch.manual_seed(0)
    task = {
        "name": "next_item",
        "head": "retrieval",
        "options": {"neighbours": 16, "repeats": True, "item_age": "first_event", "age_buckets": 4},
    }
    config = PolyRecConfig(tasks=[task], num_items=ITEMS, hidden_size=WIDTH)
    head = RetrievalHead(config.task_configs[0], config)
    head.initialise()
    user, item = log
    tables = [neighbours(user[part], item[part], ITEMS, 16) for part in (user >= 0, user % 2 == 0, user % 2 == 1)]
    head.neighbours.load(tables[0], tables[1:])
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    return head, tables


def question(count):
    history = torch.randint(0, ITEMS, (count, 12))
    latest = latest_items(history, torch.full((count, 1), 12)).squeeze(1)
    seen = VisibleEvents.of_requests(history)
    return RequestContext(torch.arange(count) * 10**8, seen, {"next_item": latest}, torch.arange(count) % 3)


def expected(head, tables, state, context):
    """The term by loops, float64 [M, N]."""
    weights = (head.neighbours.by_state(state) + head.neighbours.prior.weight.squeeze(-1)).view(len(state), 3, LATEST)
    found = torch.zeros(len(state), ITEMS, dtype=torch.float64)
    for m, h, t in np.ndindex(len(state), LATEST, len(KINDS)):
        item, table = int(context.latest["next_item"][m, h]), tables[int(context.fold[m])]
        for j, value in zip(table.items[item], table.values[item, t], strict=True):
            found[m, int(j)] += float(weights[m, t, h]) * float(value)
    return found


def test_logits_are_sums_over_latest_items_of_the_right_fold(head):
    """Prevents evidence of the wrong item, lag, kind or fold, in the catalog, in pairs and in samples alike."""
    head, tables = head
    state, items, context = torch.randn(9, WIDTH), ItemRows(torch.randn(ITEMS, WIDTH)), question(9)
    with torch.no_grad():
        every = head(state, items, context)
        only = expected(head, tables, state, context)[:, 2:]
        head.neighbours.prior.weight.zero_()
        head.neighbours.by_state.weight.zero_()
        without = head(state, items, context)
    np.testing.assert_allclose((every - without)[:, 2:], only, atol=2e-5)


def test_pairs_and_samples_say_what_the_catalog_says(head):
    """Prevents lists, losses of samples and scores of given items that disagree."""
    head, _ = head
    state, items, context = torch.randn(9, WIDTH), ItemRows(torch.randn(ITEMS, WIDTH)), question(9)
    ids = torch.randint(2, ITEMS, (9, 5))
    spread = RequestContext(
        context.times.unsqueeze(1).expand(9, 5),
        VisibleEvents.of_batch(context.history.items, torch.full((9, 5), 12)),
        {"next_item": context.latest["next_item"].unsqueeze(1).expand(9, 5, -1)},
        context.fold.unsqueeze(1).expand(9, 5),
    )
    of_pairs = state.unsqueeze(1).expand(9, 5, WIDTH)
    with torch.no_grad():
        every = head(state, items, context)
        pairs = head.pair_logits(of_pairs, items.lookup(ids), ids, items, spread)
        sample = torch.tensor([7, 3, 3, 29, 2])
        sampled = head.of_sample(state, head.project(state), sample, items, context)
    # An age is what an item has that was there; in the catalog all are not seen yet, as in pairs.
    torch.testing.assert_close(pairs, every.gather(1, ids), atol=2e-5, rtol=0)
    torch.testing.assert_close(sampled, every[:, sample], atol=2e-5, rtol=0)


def test_loss_and_gradients_are_those_of_the_whole_softmax(head):
    """Prevents weights that learn from another gradient than the loss's."""
    head, _ = head
    state, vectors = torch.randn(9, WIDTH, requires_grad=True), torch.randn(ITEMS, WIDTH, requires_grad=True)
    targets, context, counts = torch.randint(2, ITEMS, (9,)), question(9), torch.ones(ITEMS)
    parameters = [state, vectors, *head.parameters()]
    total, _ = head.retrieval_loss(state, targets, ItemRows(vectors), counts, None, context=context)
    own = torch.autograd.grad(total, parameters, allow_unused=True)
    logits = head(state, ItemRows(vectors), context)[:, 2:]
    other = torch.autograd.grad(F.cross_entropy(logits, targets - 2, reduction="sum"), parameters, allow_unused=True)
    for one, two in zip(own, other, strict=True):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)


def test_new_items_have_no_neighbours_and_old_ones_keep_theirs(head):
    """Prevents a catalog that grows and forgets."""
    head, _ = head
    before = head.neighbours.items.clone()
    head.extend(ITEMS + 3, torch.ones(ITEMS, dtype=torch.bool))
    assert torch.equal(head.neighbours.items[:ITEMS], before)
    assert not head.neighbours.values[ITEMS:].any()


def random_log(users=150, events=8, items=300):
    """Users who take what has no order and no company: nothing can be learnt but popularity."""
    drawn = np.random.default_rng(0)
    return {
        "user_id": np.repeat(np.arange(users), events),
        "item_id": np.concatenate([drawn.choice(items, events, replace=False) for _ in range(users)]),
        "timestamp": np.tile(np.arange(events), users) * 3600.0,
    }


@pytest.fixture(scope="module")
def world():
    processor = PolyRecProcessor.fit(random_log(), tasks=[{"name": "next_item", "head": "retrieval"}], statistics=False)
    return processor, processor.split(random_log(), by="leave_one_out")


def trained(processor, splits, leaking):
    """How much a model came to rely on neighbours: the sum of its weights."""
    torch.manual_seed(0)
    model = PolyRecForRecommendation(processor.model_config(hidden_size=8, num_attention_heads=2))
    model.load_catalog(processor.items.encoded, torch.from_numpy(processor.item_counts).float())
    model.load_neighbours(processor)
    batch = PolyRecCollator()([splits.train[i] for i in range(len(splits.train))])
    batch.pop("candidate_rows")
    if leaking:
        batch["user_fold"] = torch.zeros_like(batch["user_fold"])
    prior = model.heads["next_item"].neighbours.prior.weight
    optimizer, before = torch.optim.Adam([prior], lr=0.1), float(prior.detach().sum())
    for _ in range(20):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    return float(prior.detach().sum()) - before


def test_questions_that_find_their_own_answer_learn_to_trust_it(world):
    """Prevents training on evidence that holds the answer: it would be trusted where nothing is to be known."""
    assert trained(*world, leaking=True) > 5
    assert trained(*world, leaking=False) < -5


def test_training_reads_folds_and_nothing_else_does(world, tmp_path):
    """Prevents folds that are the user's own, are saved, or are read by evaluation and serving."""
    processor, splits = world
    log = splits.train.log
    reader = splits.train.reader if hasattr(splits.train, "reader") else None
    for index in range(5):
        window = splits.train[index]
        assert window["user_fold"] == fold_of(np.array([splits.train._user[index]]))[0]
    assert reader is None or reader(np.arange(3))["user_fold"].tolist() == [
        splits.train[i]["user_fold"] for i in range(3)
    ]
    assert set(fold_of(np.arange(len(log.user_ids)))) == set(range(1, FOLDS + 1))
    assert "user_fold" not in splits.valid[0]
    model = PolyRecForRecommendation(processor.model_config(hidden_size=8, num_attention_heads=2)).eval()
    model.load_catalog(processor.items.encoded, torch.from_numpy(processor.item_counts).float())
    model.load_neighbours(processor)
    without = processor.item_neighbours("next_item", 128)[2]
    np.testing.assert_array_equal(
        model.heads["next_item"].neighbours.fold_items.view(1 + FOLDS, -1, 128)[2], without.items
    )
    assert not any("fold" in name for name in model.state_dict())
    answers = model.recommend(processor, [3, 4], k=5)
    model.save_pretrained(tmp_path)
    again = PolyRecForRecommendation.from_pretrained(tmp_path).eval()
    assert again.recommend(processor, [3, 4], k=5) == answers


def test_a_training_that_may_read_its_own_answers_says_so(world, tmp_path, caplog):
    """Prevents weights that silently learn to trust evidence which has counted the rows that are learnt."""
    processor, splits = world
    arguments = PolyRecTrainingArguments(
        output_dir=tmp_path, use_cpu=True, disable_tqdm=True, max_steps=1, save_strategy="no"
    )
    torch.manual_seed(0)
    model = PolyRecForRecommendation(processor.model_config(hidden_size=8, num_attention_heads=2))
    PolyRecTrainer(model, arguments, splits.train, processing_class=processor).train()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = PolyRecProcessor.from_pretrained(tmp_path)
    log, _ = loaded.resume(random_log())
    resumed = loaded.training_set(log, np.ones(len(log), dtype=bool), None)

    def said(processor, rows, frozen=False):
        again = PolyRecForRecommendation.from_pretrained(tmp_path)
        again.heads["next_item"].neighbours.requires_grad_(not frozen)
        caplog.clear()
        PolyRecTrainer(again, arguments, rows, processing_class=processor).train()
        return "task 'next_item': nothing says which of the training rows its `neighbours` have counted" in caplog.text

    assert said(loaded, resumed)
    assert not said(loaded, resumed, frozen=True)
    parts = loaded.split(random_log(), by="leave_one_out")
    assert not said(loaded, parts.train)
    other = random_log(users=149)
    assert said(loaded, loaded.split(other, by="leave_one_out").train)  # of which the model has no folds


def test_a_large_catalog_takes_no_more_than_twice_its_vectors():
    """Prevents tables that outgrow what they explain."""
    size = worthwhile(1_000_000)
    assert size >= 8
    assert (1 + FOLDS) * size * (4 + 2 * len(KINDS)) <= 2 * 64 * 4
    assert worthwhile(10_000) == 128


def test_packed_tables_say_what_whole_ones_do(world, monkeypatch):
    """Prevents the training of a large catalog, which holds rows with neighbours alone, from reading other rows."""
    processor, splits = world
    batch = PolyRecCollator()([splits.train[i] for i in range(len(splits.train))])
    losses, tables = [], []
    for packed in (1 << 40, 0):
        monkeypatch.setattr(_cross_fitted, "PACKED", packed)
        torch.manual_seed(0)
        model = PolyRecForRecommendation(
            processor.model_config(hidden_size=8, num_attention_heads=2, dropout=0.0, item_id_dropout=0.0)
        )
        model.load_catalog(processor.items.encoded, torch.from_numpy(processor.item_counts).float())
        model.load_neighbours(processor)
        model.train()
        losses.append(model(**{name: v for name, v in batch.items() if name != "candidate_rows"}).loss.item())
        tables.append(model.heads["next_item"].neighbours)
    assert losses[0] == losses[1]
    assert not len(tables[0].fold_rows)
    assert len(tables[1].fold_rows) == (1 + FOLDS) * processor.num_items
    assert not tables[1].fold_items[0].any()
