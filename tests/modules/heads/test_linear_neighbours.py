"""EASE's weights and transitions beside the network: read in evaluation alone, as strong as validation says."""

import numpy as np
import pytest
import torch

from polyrec import (
    PolyRecCollator,
    PolyRecForRecommendation,
    PolyRecProcessor,
    PolyRecTrainer,
    PolyRecTrainingArguments,
)
from polyrec.data.neighbours import REACH, weighed_neighbours
from polyrec.evaluation import evaluator
from polyrec.evaluation.term_weight import choose_term_weights
from polyrec.modules.encoders.item import ItemRows
from polyrec.modules.encoders.request_context import RequestContext

TASKS = [{"name": "next_item", "head": "retrieval", "options": {"neighbours": 0}}]


def pairs_log(users=80, pairs=30):
    """Users who take some pairs of items, one after the other."""
    drawn = np.random.default_rng(0)
    chosen = np.concatenate([drawn.choice(pairs, 4, replace=False) for _ in range(users)])
    item = np.stack([2 * chosen, 2 * chosen + 1], axis=1).ravel()
    return {
        "user_id": np.repeat(np.arange(users), 8),
        "item_id": item,
        "timestamp": np.tile(np.arange(8), users) * 3600,
    }


@pytest.fixture(scope="module")
def world():
    log = pairs_log()
    processor = PolyRecProcessor.fit(log, tasks=TASKS, statistics=False, verbose=False)
    return processor, processor.split(log, by="leave_one_out")


def untrained(processor):
    torch.manual_seed(0)
    model = PolyRecForRecommendation(processor.model_config(hidden_size=8, num_attention_heads=2)).eval()
    PolyRecTrainer.load_processor(model, processor)
    return model


def test_weights_are_those_of_the_regression_of_each_item_on_all_others():
    """Prevents weights of another model, of other items, or of another scale than the strongest neighbour's."""
    drawn = np.random.default_rng(1)
    user, item = np.divmod(np.unique(drawn.integers(0, 25 * 12, 120)), 12)
    found = weighed_neighbours("linear", user, item + 2, num_items=14, size=4)
    taken = np.zeros((25, 12))
    taken[user, item] = 1
    expected = np.zeros((12, 12))
    for j in range(12):  # ridge regression, one item at a time
        others = np.delete(np.arange(12), j)
        x = taken[:, others]
        expected[others, j] = np.linalg.solve(x.T @ x + 200 * np.eye(11), x.T @ taken[:, j])
    expected /= expected.max(axis=1).mean()
    for i, row in enumerate(expected):
        kept = sorted(j for j in np.argsort(-row)[:4] if row[j] > 0)
        assert found.items[i + 2][found.items[i + 2] > 0].tolist() == [j + 2 for j in kept]
        np.testing.assert_allclose(found.values[i + 2, 0][-len(kept) :], row[kept], rtol=2e-3)


def test_transitions_are_chances_of_what_comes_next():
    """Prevents counts of what came before, roots of chances, and chances of rare items that one event decides."""
    item = np.random.default_rng(1).integers(2, 9, (6, 12))
    found = weighed_neighbours("transitions", np.repeat(np.arange(6), 12), item.ravel(), num_items=9, size=9)
    expected = np.zeros((9, 9))
    for row in item:
        for at, lag in np.ndindex(12, 6):
            if lag and at + lag < 12 and row[at] != row[at + lag]:
                expected[row[at], row[at + lag]] += 0.7 ** (lag - 1)
    expected /= expected.sum(axis=1, keepdims=True) + 5
    expected /= expected[2:].max(axis=1).mean()
    for i in range(2, 9):
        np.testing.assert_allclose(found.values[i, 0][found.items[i] > 0], expected[i][expected[i] > 0], rtol=2e-3)


def test_scores_add_the_weights_of_the_latest_items(world):
    """Prevents lists, pairs and training from reading a term that is not theirs."""
    processor, splits = world
    model = untrained(processor)
    head, table = model.heads["next_item"], processor.weighed_neighbours("next_item", "linear", 128)
    items, state = ItemRows(torch.randn(processor.num_items, 8)), torch.randn(3, 8)
    latest = torch.zeros(3, REACH, dtype=torch.int64)
    latest[:, :2], latest[0, 30] = torch.tensor([[4, 9], [2, 0], [0, 0]]), 12
    context = RequestContext(latest={"next_item": latest})
    with torch.no_grad():
        without = head(state, items, context)
        head.linear.weigh(3.0, 0.9)
        found = (head(state, items, context) - without)[:, 2:].numpy()
        ids = torch.tensor([[5, 7]]).expand(3, 2)
        of_pairs = head.terms.of_pairs(state, context, ids)
    expected = np.zeros((3, processor.num_items))
    for m, h in np.argwhere(latest.numpy()):
        item = int(latest[m, h])
        expected[m, table.items[item]] += 3.0 * 0.9**h * table.values[item, 0].astype(float)
    np.testing.assert_allclose(found, expected[:, 2:], atol=1e-5)
    np.testing.assert_allclose(of_pairs, expected[:, [5, 7]], atol=1e-5)
    batch = PolyRecCollator()([splits.train[n] for n in range(4)])
    batch.pop("candidate_rows")
    model.eval()
    losses = []
    for strength in (0.0, 3.0):
        head.linear.weigh(strength, 0.5)
        torch.manual_seed(0)
        losses.append(model.train()(**batch).loss.item())
    assert losses[0] == losses[1]  # its weights have seen the answers of training rows


def test_the_weight_that_is_chosen_measures_what_it_said(world):
    """Prevents a weight chosen by other lists than those that are measured and served."""
    processor, splits = world
    model = untrained(processor)
    asked = splits.test  # whose targets are the second of a pair
    chosen = choose_term_weights(model, asked)
    head = model.heads["next_item"]
    assert list(chosen) == [("next_item", "linear"), ("next_item", "transitions")]
    assert not any(term.speaks for term in head.weighed.values())  # they are the caller's to set
    measured = []
    for kind, weight in [("linear", None), *((kind, weight) for (_, kind), weight in chosen.items())]:
        if weight is not None:
            head.weighed[kind].weigh(weight.weight, weight.decay)
        found = evaluator.evaluate(model, asked, evaluator.predict(model, asked))
        measured.append(found["next_item_ndcg@10"])
    linear, transitions = chosen.values()
    said = [linear.without, linear.value, transitions.value]
    np.testing.assert_allclose(measured, said, atol=1e-9)
    assert transitions.without == pytest.approx(linear.value, abs=1e-9)
    assert measured[1] > 2 * measured[0]
    assert measured[2] >= measured[1]


def test_a_trained_model_serves_the_weight_and_keeps_it(world, tmp_path):
    """Prevents a term that training forgets to weigh, or that is lost when the model is saved or gets new items."""
    processor, splits = world
    model = untrained(processor)
    arguments = PolyRecTrainingArguments(
        output_dir=tmp_path, use_cpu=True, max_steps=1, learning_rate=1e-5, save_strategy="no", report_to=[]
    )
    trainer = PolyRecTrainer(model, arguments, splits.train, splits.test, processing_class=processor)
    trainer.train()
    logged = {name: value for line in trainer.state.log_history for name, value in line.items()}
    assert logged["linear_next_item"] > 0
    assert logged["linear_gain_next_item"] > 0
    trainer.save_model(tmp_path)
    again = PolyRecForRecommendation.from_pretrained(tmp_path).eval()
    model.eval()
    answers = again.recommend(processor, [6, 10], k=5)
    assert answers == model.recommend(processor, [6, 10], k=5)
    assert {7, 11} <= {row["item"] for row in answers}
    reasons = {row["item"]: row for row in again.explain(processor, [6, 10], [7, 20])}
    assert list(reasons[7]["terms"])[:3] == ["network", "bias", "linear"]
    for item, row in reasons.items():
        assert sum(row["terms"].values()) == pytest.approx(row["score"], abs=1e-5), item
    assert reasons[7]["terms"]["linear"] > 2 * reasons[20]["terms"]["linear"]
    assert "6" in reasons[7]["reason"]
    more = processor.num_items + 2
    again.heads["next_item"].extend(more, torch.ones(processor.num_items, dtype=torch.bool))
    assert again.heads["next_item"].linear.items.shape[0] == more
    assert again.heads["next_item"].linear.speaks
