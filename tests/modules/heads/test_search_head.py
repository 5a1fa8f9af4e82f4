"""Search: what starts as the pretrained encoder's cosine, what is never a result, and who is asked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from model_fixtures import arguments, model_inputs, tiny_config
from text_fixtures import tiny_bert
from torch.nn import functional as F

from polyrec import PolyRecForRecommendation, PolyRecProcessor, PolyRecTrainer
from polyrec.data.collator import PolyRecCollator
from polyrec.data.texts import TokenTable
from polyrec.evaluation.evaluator import evaluate, predict
from polyrec.inference.unknown_ids import UnknownIdWarning
from polyrec.modules.encoders.item import FIRST_ITEM

TITLES = ["title 1", "title 2", "drama 3", "drama 4", "comedy 5", "comedy 6", "action 7", "action 8"]
SEARCH = {"name": "search", "head": "search"}


def search_log(users=24, events=8, seed=0):
    """Every other event was searched for with the title of another item of the same kind; the others were not."""
    random = np.random.default_rng(seed)
    item = random.integers(0, len(TITLES), users * events)
    searched = np.arange(len(item)) % 2 == 0
    return {
        "user_id": np.repeat(np.arange(users), events),
        "item_id": item,
        "timestamp": random.permutation(len(item)),
        "query": [TITLES[i ^ 1] if s else None for i, s in zip(item, searched, strict=True)],
        "source": [i ^ 1 if s else None for i, s in zip(item, searched, strict=True)],
        "like": (item % 4 < 2).astype(float),
    }


def fitted(*tasks, **overrides):
    """Processor, split and a model that starts where texts put its items."""
    log = search_log()
    processor = PolyRecProcessor.fit(
        log,
        {"item_id": np.arange(len(TITLES)), "title": TITLES},
        tasks=list(tasks),
        columns={"query": "query", "query_item": "source"},
        statistics=False,
        max_history=8,
        text={"model": str(tiny_bert())},
    )
    splits = processor.split(log)
    torch.manual_seed(0)
    config = tiny_config(processor, text={"start": "principal"}, hidden_size=16, **overrides)
    return processor, splits, PolyRecForRecommendation(config)


def trainer(processor, splits, model, folder, **options):
    return PolyRecTrainer(model, arguments(folder, **options), splits.train, splits.valid, processing_class=processor)


def batch_of(splits):
    return PolyRecCollator()([splits.train[i] for i in range(6)])


def text_vectors(model, processor):
    return model.item_encoder.text.vectors[FIRST_ITEM:]


def test_it_starts_as_the_cosine_of_texts(tmp_path):
    """Prevents the projections from destroying the pretrained space before training has begun."""
    processor, splits, model = fitted({**SEARCH, "options": {"scale": 7.0}})
    trainer(processor, splits, model, tmp_path)
    batch = batch_of(splits)
    output = model.eval()(**model_inputs(batch))
    asked = batch["candidate_query"] >= 0
    texts = F.normalize(text_vectors(model, processor), dim=-1)
    query = texts[batch["query_items"][asked] - FIRST_ITEM]  # a query is the title of this item
    found = texts[batch["candidate_ids"][asked] - FIRST_ITEM]
    expected = 7.0 * (query * found).sum(-1)
    torch.testing.assert_close(output.logits["search"][asked], expected, rtol=0.05, atol=0.05)


def test_its_loss_is_that_of_torch_without_the_query_s_own_item(tmp_path):
    """Prevents the item that a query is the text of, the nearest of all, from being learnt as a negative."""
    processor, splits, model = fitted(SEARCH)
    trainer(processor, splits, model, tmp_path)
    batch = batch_of(splits)
    output = model.eval()(**model_inputs(batch))
    known = (batch["labels"]["search"] > 0) & (batch["candidate_query"] >= 0)
    assert output.counts["search"] == known.sum() > 0
    scores = model.score_items(output.states[known], "search", queries_MD=output.queries[known])[:, FIRST_ITEM:]
    scores.scatter_(1, batch["query_items"][known].unsqueeze(1) - FIRST_ITEM, float("-inf"))
    expected = F.cross_entropy(scores, batch["candidate_ids"][known] - FIRST_ITEM, reduction="sum")
    torch.testing.assert_close(output.losses["search"], expected)


def test_sampled_softmax_leaves_the_own_item_out():
    """Prevents large catalogs from learning it as a negative after all."""
    _, _, model = fitted({**SEARCH, "options": {"sampled_above": 1, "num_negatives": 4}})
    head, items = model.heads["search"], model.item_encoder.rows(torch.arange(model.config.num_items))
    question, target, own = torch.randn(3, 16), torch.tensor([3, 4, 5]), torch.tensor([6, 7, 0])
    counts = torch.ones(model.config.num_items)
    alone, _ = head.retrieval_loss(question, target, items, counts, torch.tensor([8, 8, 9]), excluded_M=own)
    with_own, _ = head.retrieval_loss(
        question[:2], target[:2], items, counts, torch.tensor([8, 8, 9, 6]), excluded_M=own[:2]
    )
    first, _ = head.retrieval_loss(question[:1], target[:1], items, counts, torch.tensor([8, 8, 9]))
    masked, _ = head.retrieval_loss(
        question[:1], target[:1], items, counts, torch.tensor([8, 8, 9, 6]), excluded_M=own[:1]
    )
    torch.testing.assert_close(masked, first)
    assert torch.isfinite(alone)
    assert torch.isfinite(with_own)


@pytest.mark.parametrize("personal", [False, True])
def test_who_asks_counts_only_where_it_should(personal, tmp_path):
    """Prevents a search by the query alone from depending on the person, and a personal one from ignoring them."""
    processor, splits, model = fitted({**SEARCH, "options": {"personal": personal}})
    trainer(processor, splits, model, tmp_path)
    torch.nn.init.zeros_(model.heads["search"].gate.bias) if personal else None
    assert model.reads_users == personal
    one, other = (model.search(processor, "drama", history, k=3) for history in ([0, 1], [6]))
    assert ([row["score"] for row in one] == [row["score"] for row in other]) == (not personal)


def test_people_are_not_read_for_nothing(tmp_path):
    """Prevents a search by the query alone from paying for histories, and from parameters that get no gradient."""
    processor, splits, model = fitted(SEARCH)
    trainer(processor, splits, model, tmp_path)
    model.train()(**model_inputs(batch_of(splits))).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert not any(p.requires_grad for p in model.model.history_encoder.parameters())
    model.save_pretrained(tmp_path)
    loaded = PolyRecForRecommendation.from_pretrained(tmp_path)
    assert not any(p.requires_grad for p in loaded.model.history_encoder.parameters())


@pytest.mark.parametrize("tuning", ["frozen", "full"])
def test_queries_are_encoded_as_the_text_encoder_does(tuning):
    """Prevents a remembered vector of another query, and one of a tuned encoder that has learnt since."""
    processor, splits, _ = fitted(SEARCH)
    model = PolyRecForRecommendation(tiny_config(processor, text={"tuning": tuning})).eval()
    text = model.item_encoder.text
    for indices in ([0, 1, 2], [2, 1, 5, 0]):
        batch = PolyRecCollator()([splits.train[i] for i in indices])
        found = model.query_encoder(text, batch["query_tokens"], batch["query_mask"], batch["candidate_query"])
        for q, (tokens, mask) in enumerate(zip(batch["query_tokens"], batch["query_mask"], strict=True)):
            alone = text.project(text.encoder(TokenTable.of([tokens[mask].tolist()])))[0]
            at = batch["candidate_query"] == q
            torch.testing.assert_close(found.vectors_BCD[at], alone.expand(int(at.sum()), -1), rtol=1e-4, atol=1e-5)
        assert found.vectors_BCD[batch["candidate_query"] < 0].count_nonzero() == 0
        if tuning == "full":
            torch.nn.init.normal_(text.encoder.backbone.model.encoder.layer[0].attention.self.query.weight)


def test_pair_tasks_read_the_query(tmp_path):
    """Prevents result ranking from judging an item without what was searched for."""
    processor, splits, model = fitted(SEARCH, {"name": "like", "head": "binary"})
    trainer(processor, splits, model, tmp_path)
    batch = model_inputs(batch_of(splits))
    before = model.eval()(**batch).logits["like"]
    asked = batch["candidate_query"] >= 0
    after = model(
        **(
            batch
            | {"query_tokens": batch["query_tokens"].roll(1, dims=0), "query_mask": batch["query_mask"].roll(1, dims=0)}
        )
    ).logits["like"]
    assert (before[asked] != after[asked]).all()
    assert torch.equal(before[~asked], after[~asked])


def test_it_is_evaluated_without_the_own_item_and_with_the_history(tmp_path):
    """Prevents the query's own item from standing first in every list, and what a person knows from being left out."""
    processor, splits, model = fitted(SEARCH)
    trainer(processor, splits, model, tmp_path)
    found = predict(model, splits.test, k=8)
    ranking = found.rankings["search"]
    log, events = splits.test.log, splits.test.candidates.event[ranking.rows]
    own = log.queries.own_item[events] - FIRST_ITEM
    assert len(events) == (log.queries.index[splits.test.candidates.event] >= 0).sum()
    assert not (ranking.top_ids == own[:, None]).any()
    assert all(set(row) == set(range(len(TITLES))) - {o} | {-1} for row, o in zip(ranking.top_ids, own, strict=True))
    metrics = evaluate(model, splits.test, found)
    assert {"search_ndcg@10", "search_recall@10", "search_recall@100"} <= metrics.keys()


def test_it_learns_and_survives_a_file(tmp_path):
    """Prevents a search that trains without learning, and one that loads as another."""
    processor, splits, model = fitted(SEARCH, {"name": "next_item", "head": "retrieval"})
    train = trainer(processor, splits, model, tmp_path, num_train_epochs=15, learning_rate=2e-2)
    before = train.evaluate()["eval_search_mrr@10"]
    train.train()
    assert train.evaluate()["eval_search_mrr@10"] > before
    train.save_model(tmp_path / "saved")
    loaded = PolyRecForRecommendation.from_pretrained(tmp_path / "saved")
    again = PolyRecProcessor.from_pretrained(tmp_path / "saved")
    one, other = loaded.search(again, "drama 3", k=4), model.search(processor, "drama 3", k=4)
    assert [row["item"] for row in one] == [row["item"] for row in other]
    np.testing.assert_allclose([row["score"] for row in one], [row["score"] for row in other], rtol=1e-5)


# ------------------------------------------------------------------ model.search
def test_results_read_like_recommendations(tmp_path):
    """Prevents rows without title, answers of other tasks that were not asked, and a wrong order."""
    processor, splits, model = fitted(SEARCH, {"name": "like", "head": "binary"})
    trainer(processor, splits, model, tmp_path)
    rows = model.search(processor, "drama 3", history=[0], k=3)
    assert [row["rank"] for row in rows] == [1, 2, 3]
    assert rows[0].keys() == {"rank", "item", "title", "score", "like", "cold_item"}
    assert rows[0]["title"] == "drama 3"
    assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)
    assert 0 < rows[0]["like"] < 1
    seen = model.search(processor, "drama 3", history=[rows[0]["item"]], k=3, exclude_seen=True)
    assert rows[0]["item"] not in [row["item"] for row in seen]


def test_results_keep_rules(tmp_path):
    """Prevents forbidden items from being found by a search, and a filter after the cut."""
    processor, splits, model = fitted(SEARCH, {"name": "like", "head": "binary"})
    trainer(processor, splits, model, tmp_path)
    plain = [row["item"] for row in model.search(processor, "drama 3", k=20)]

    def found(k=3, history=None, **rules):
        return [row["item"] for row in model.search(processor, "drama 3", history, k=k, **rules)]

    key = processor.columns.item
    assert found(where=f"{key} != {plain[0]}") == plain[1:4]
    assert found(candidates=plain[2:5], exclude=[plain[3]]) == [plain[2], plain[4]]
    assert found(rules={"pins": {1: plain[-1]}}) == [plain[-1], *plain[:2]]
    assert found(rules={"boosts": {f"{key} == {plain[-1]}": 99.0}})[0] == plain[-1]
    assert found(history=[plain[0]], rules={"seen": True}) == plain[1:4]
    ranked = sorted(model.search(processor, "drama 3", k=20), key=lambda row: -row["like"])
    assert found(rules={"score": "like"}) == [row["item"] for row in ranked[:3]]
    [row] = model.search(processor, "drama 3", k=1, rules={"explore": 1.0})
    assert 0 < row["propensity"] <= 1
    with pytest.raises(ValueError, match=f"no column 'nothing'.*{key}"):
        found(where="nothing > 1")


def test_expansion_moves_towards_the_first_results(tmp_path):
    """Prevents an expansion of weight 0 from changing anything, and one of weight 1 from keeping the query."""
    processor, splits, model = fitted(SEARCH)
    trainer(processor, splits, model, tmp_path)
    plain = model.search(processor, "drama 3", k=8)
    assert model.search(processor, "drama 3", k=8, expand=3, expand_weight=0.0) == plain
    head, items = model.heads["search"], model.item_encoder.rows(torch.arange(model.config.num_items))
    question = torch.randn(2, 16)
    nearest = head(question, items).topk(3).indices
    whole = head.expanded(question, items, 3, 1.0)
    torch.testing.assert_close(
        F.normalize(whole, dim=-1), F.normalize(torch.stack([items.vectors_MD[n].mean(0) for n in nearest]), dim=-1)
    )
    torch.testing.assert_close(whole.norm(dim=-1), question.norm(dim=-1))


def test_wrong_searches_are_refused(tmp_path):
    """Prevents a search of a model that has none, and questions that mean nothing, from failing far inside."""
    processor, splits, model = fitted(SEARCH, {"name": "next_item", "head": "retrieval"})
    trainer(processor, splits, model, tmp_path)
    assert model.search(processor, "   ") == []
    with pytest.warns(UnknownIdWarning, match="1 of 2 items of the history are not in the catalog: 99"):
        model.search(processor, "drama", history=[1, 99])
    with pytest.raises(ValueError, match=r"unknown search task 'serch'.*did you mean 'search'"):
        model.search(processor, "drama", task="serch")
    with pytest.raises(ValueError, match="query is 3; it must be text"):
        model.search(processor, 3)
    with pytest.raises(ValueError, match="k is 0; it must be a whole number >= 1"):
        model.search(processor, "drama", k=0)
    with pytest.raises(ValueError, match=r"needs a query: call model.search"):
        model.recommend(processor, [1], task="search")
    assert "search" not in model.recommend(processor, [1], k=1)[0]
    batch = model_inputs(batch_of(splits)) | {"query_tokens": None}
    with pytest.raises(ValueError, match="this model reads queries"):
        model(**batch)
    _, _, without = fitted({"name": "next_item", "head": "retrieval"})
    with pytest.raises(ValueError, match="has no search task"):
        without.search(processor, "drama")


@pytest.mark.parametrize(
    ("options", "message"), [({"scale": 0.0}, "must be > 0"), ({"label_smoothing": 0.1}, "own item: leave it 0")]
)
def test_options_are_checked(options, message):
    """Prevents a search that cannot learn from being found in training."""
    with pytest.raises(ValueError, match=message):
        fitted({**SEARCH, "options": options})


# ------------------------------------------------------------------- cold items
@pytest.mark.parametrize("sampled", [False, True])
def test_cold_items_are_no_negatives_and_share_a_bias(sampled):
    """Prevents new items from being learnt away because nobody could take them yet, and -inf from becoming NaN."""
    options = {"cold_negatives": False, "sampled_above": 1 if sampled else 99, "num_negatives": 4}
    _, _, model = fitted({**SEARCH, "options": options})
    encoder, head = model.item_encoder, model.heads["search"]
    counts = torch.ones(model.config.num_items)
    counts[[0, 1, 5]] = 0
    encoder.known.copy_(counts > 0)
    torch.nn.init.normal_(head.bias.weight)
    items = encoder.eval().rows(torch.arange(model.config.num_items))
    items.vectors_MD = torch.randn_like(items.vectors_MD).requires_grad_()
    drawn = head.negatives(counts) if sampled else None
    assert drawn is None or not (drawn == 5).any()
    cold, count = head.retrieval_loss(torch.randn(1, 16), torch.tensor([5]), items, counts, drawn)
    assert torch.isfinite(cold)  # somebody took it after all
    assert count == 1
    total, _ = head.retrieval_loss(torch.randn(2, 16), torch.tensor([6, 7]), items, counts, drawn)
    total.backward()
    assert torch.isfinite(total)
    assert items.vectors_MD.grad[6].count_nonzero()
    assert items.vectors_MD.grad[5].count_nonzero() == 0
    scores = head(torch.zeros(1, 16), items)[0] - head.project.bias @ items.vectors_MD.T
    assert scores[5].item() == pytest.approx(head.bias.weight[1].item(), abs=1e-5)
    assert scores[6].item() == pytest.approx(head.bias.weight[6].item(), abs=1e-5)


def test_a_query_that_takes_its_own_item_is_refused():
    """Prevents an infinite loss: an item is never a result of its own text."""
    log, row = search_log(), 6
    log["source"][row] = int(log["item_id"][row])
    processor, _, _ = fitted(SEARCH)
    with pytest.raises(ValueError, match=rf"row {row} has a query with the text of its own item.*leave 'source' empty"):
        processor.encode_events(log)
