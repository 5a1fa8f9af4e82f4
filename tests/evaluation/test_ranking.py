"""Full-catalog ranking against sorting in a loop, over all orders of ties, scikit-learn and torchmetrics."""

import itertools

import numpy as np
import pytest
import sklearn.metrics
import torch
import torchmetrics.functional.retrieval as tm
from hypothesis import given, settings
from hypothesis import strategies as st

from polyrec.evaluation import ranking

NAMES = ["ndcg", "recall", "hit", "precision", "map", "mrr"]


def textbook(items, relevant, k):
    """All metrics of one list from their definitions, one rank at a time."""
    hits = [item in relevant for item in items[:k]]
    ideal = sum(1 / np.log2(r + 1) for r in range(1, min(k, len(relevant)) + 1))
    return {
        "ndcg": sum(h / np.log2(r + 1) for r, h in enumerate(hits, 1)) / ideal,
        "recall": sum(hits) / len(relevant),
        "hit": float(any(hits)),
        "precision": sum(hits) / k,
        "map": sum(h * sum(hits[:r]) / r for r, h in enumerate(hits, 1)) / min(k, len(relevant)),
        "mrr": max((h / r for r, h in enumerate(hits, 1)), default=0.0),
    }


def ragged(lists):
    return np.array([x for one in lists for x in one], dtype=np.int64), np.cumsum([0, *map(len, lists)])


@st.composite
def chunks(draw):
    """Scores with many ties, targets, and pairs to exclude that may repeat and may hold the target."""
    rows, items = draw(st.integers(1, 6)), draw(st.integers(1, 8))
    values = st.sampled_from([float("-inf"), -1.0, 0.0, 0.5, 2.0])
    scores = draw(st.lists(st.lists(values, min_size=items, max_size=items), min_size=rows, max_size=rows))
    targets = draw(st.lists(st.integers(-1, items - 1), min_size=rows, max_size=rows))  # -1: not in the catalog
    pairs = draw(st.lists(st.tuples(st.integers(0, rows - 1), st.integers(0, items - 1)), max_size=20))
    excluded = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).unbind(1)
    return torch.tensor(scores), torch.tensor(targets), excluded


@settings(deadline=None)
@given(chunks())
def test_rank_targets_equals_counting(chunk):
    """Prevents history items from being counted, or subtracted twice, and a target no list can hold from being found."""
    scores, targets, excluded = chunk
    greater, ties = ranking.rank_targets(scores, targets, excluded)
    seen = set(zip(*(part.tolist() for part in excluded), strict=True))
    for row, target in enumerate(targets.tolist()):
        mine = float("-inf") if target == -1 or (row, target) in seen else scores[row, target].item()
        others = [s for i, s in enumerate(scores[row].tolist()) if i != target and (row, i) not in seen]
        if mine == float("-inf"):
            assert (greater[row], ties[row]) == (ranking.NEVER_LISTED, 0)
        else:
            assert (greater[row], ties[row]) == (sum(s > mine for s in others), sum(s == mine for s in others))


def test_rank_targets_in_blocks(monkeypatch):
    """Prevents a row from being lost or mixed up where a chunk is compared in blocks."""
    scores = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    targets = torch.arange(50) % 7
    whole = ranking.rank_targets(scores, targets)
    monkeypatch.setattr(ranking, "_BLOCK", 20)
    for expected, found in zip(whole, ranking.rank_targets(scores, targets), strict=True):
        assert torch.equal(expected, found)


@pytest.mark.parametrize(
    "function", [lambda s: ranking.rank_targets(s, torch.tensor([0])), lambda s: ranking.top_k(s, 1)]
)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_of_a_diverged_model_are_refused(function, bad):
    """Prevents the perfect NaN: it compares false with everything, so nothing ranks above a NaN target."""
    with pytest.raises(ValueError, match=r"row 0 holds (nan|inf): the model has diverged"):
        function(torch.tensor([[bad, 1.0, 2.0]]))


def test_constant_scores_measure_as_chance():
    """Prevents a model that has learnt nothing from measuring as perfect (ties won) or as the catalog's order."""
    items, k = 40, 10
    greater, ties = ranking.rank_targets(torch.zeros(items, items), torch.arange(items))
    found = ranking.single_target_metrics(greater, ties, ks=(k,))
    np.testing.assert_allclose(found["recall@10"], k / items)
    np.testing.assert_allclose(found["ndcg@10"], sum(1 / np.log2(r + 1) for r in range(1, k + 1)) / items)


@settings(deadline=None)
@given(st.integers(0, 8), st.integers(0, 8), st.integers(1, 10))
def test_ties_give_the_mean_over_all_ranks(greater, ties, k):
    """Prevents an off-by-one in the expected value: it must equal the mean over each rank the target may take."""
    found = ranking.single_target_metrics(np.array([greater]), np.array([ties]), ks=(k,))
    possible = []
    for rank in range(greater + 1, greater + ties + 2):
        items = [*range(100, 100 + rank - 1), 7, *range(200, 220)]
        possible.append(textbook(items, {7}, k))
    for name in NAMES:
        assert found[f"{name}@{k}"][0] == pytest.approx(np.mean([p[name] for p in possible]), abs=1e-12)


def test_ties_equal_the_mean_over_all_orders():
    """Prevents a wrong model of ties: averages real lists over every order of the tied items."""
    scores = torch.tensor([[0.3, 0.7, 0.3, 0.3, 0.9]])
    greater, ties = ranking.rank_targets(scores, torch.tensor([2]))
    found = ranking.single_target_metrics(greater, ties, ks=(3, 4))
    for k in (3, 4):
        orders = [textbook([4, 1, *order], {2}, k) for order in itertools.permutations([0, 2, 3])]
        for name in NAMES:
            assert found[f"{name}@{k}"][0] == pytest.approx(np.mean([o[name] for o in orders]))


@settings(deadline=None)
@given(chunks())
def test_without_ties_both_ways_of_measuring_agree(chunk):
    """Prevents two definitions of one name: counting ranks and looking into lists must give the same metrics."""
    scores, targets, excluded = chunk
    rng = np.random.default_rng(0)
    scores = torch.from_numpy(rng.permuted(np.arange(scores.numel(), dtype=np.float64).reshape(scores.shape), axis=1))
    number = scores.shape[1]
    k = number + 2  # a miss is none of the k either where lists could be longer than the catalog
    by_rank = ranking.single_target_metrics(*ranking.rank_targets(scores, targets, excluded), ks=(k,))
    top = np.pad(ranking.top_k(scores, number, excluded).numpy(), ((0, 0), (0, 2)), constant_values=-1)
    relevant = np.where(targets.numpy() == -1, number, targets.numpy())
    by_list = ranking.list_metrics(top, (relevant, np.arange(len(targets) + 1)), ks=(k,))
    for name, expected in by_rank.items():
        np.testing.assert_allclose(by_list[name], expected)


@settings(deadline=None)
@given(chunks(), st.integers(1, 8))
def test_top_k_equals_sorting(chunk, k):
    """Prevents history items or padding in the lists, and wrong order; the caller's scores must stay as they were."""
    scores, _, excluded = chunk
    k = min(k, scores.shape[1])
    before = scores.clone()
    top = ranking.top_k(scores, k, excluded)
    assert torch.equal(scores, before)
    seen = set(zip(*(part.tolist() for part in excluded), strict=True))
    for row, items in enumerate(top.tolist()):
        allowed = {i: s for i, s in enumerate(scores[row].tolist()) if (row, i) not in seen and s != float("-inf")}
        real = [i for i in items if i != ranking.NO_ITEM]
        assert items == real + [ranking.NO_ITEM] * (k - len(real))
        assert len(set(real)) == len(real) == min(k, len(allowed))
        assert [allowed[i] for i in real] == sorted(allowed.values(), reverse=True)[: len(real)]


def test_top_k_breaks_ties_without_favour():
    """Prevents constant scores from recommending the catalog's first items, often the popular ones."""
    for best in (0.0, 5.0):  # all tie; or one item leads and the tie only decides who else is in
        scores = torch.zeros(1, 100)
        scores[0, 50] = best
        lists = [ranking.top_k(scores, 2, seed=seed)[0].tolist() for seed in range(60)]
        counts = np.bincount([i for items in lists for i in items if i != 50], minlength=100)
        assert counts.max() < 10  # about 1 expected; an order of the catalog gives 60
        assert lists[3] == ranking.top_k(scores, 2, seed=3)[0].tolist()


def test_top_k_of_broadcast_scores():
    """Prevents writing through shared memory: masking one row of expanded scores would mask all rows."""
    scores = torch.tensor([[3.0, 2.0, 1.0]]).expand(2, 3)
    top = ranking.top_k(scores, 1, excluded=(torch.tensor([0]), torch.tensor([0])))
    assert top.tolist() == [[1], [0]]


@st.composite
def lists_of_items(draw):
    items = draw(st.integers(3, 9))
    rows, length = draw(st.integers(1, 5)), draw(st.integers(1, items))
    top = [draw(st.permutations(range(items)))[:length] for _ in range(rows)]
    relevant = [draw(st.lists(st.integers(0, items + 2), max_size=7)) for _ in range(rows)]
    return np.array(top), relevant


@settings(deadline=None)
@given(lists_of_items())
def test_list_metrics_equal_the_textbook(drawn):
    """Prevents MAP@k that is not MAP@k (denominator), repeated relevant items, and empty rows counting as 0."""
    top, relevant = drawn
    ks = range(1, top.shape[1] + 1)
    found = ranking.list_metrics(top, ragged(relevant), ks)
    for k, (row, mine) in itertools.product(ks, enumerate(relevant)):
        expected = textbook(top[row].tolist(), set(mine), k) if mine else dict.fromkeys(NAMES, np.nan)
        for name in NAMES:
            np.testing.assert_allclose(found[f"{name}@{k}"][row], expected[name], err_msg=f"{name}@{k}")


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 12))
def test_list_metrics_equal_sklearn_and_torchmetrics(seed, k):
    """Prevents a private meaning of the well-known names; full lists also give scikit-learn's average precision."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation([1, *rng.integers(0, 2, 11)])
    scores = rng.permutation(12) + 1.0  # positive: torchmetrics 1.9 takes items of score <= 0 for not retrieved
    top = np.argsort(-scores)[None]
    found = ranking.list_metrics(top, ragged([np.flatnonzero(labels)]), ks=(k, 12))
    value = {name: found[f"{name}@{k}"][0] for name in NAMES}
    assert value["ndcg"] == pytest.approx(sklearn.metrics.ndcg_score(labels[None], scores[None], k=k))
    assert found["map@12"][0] == pytest.approx(sklearn.metrics.average_precision_score(labels, scores))
    preds, target = torch.tensor(scores), torch.tensor(labels)
    for name, reference in {
        "recall": tm.retrieval_recall,
        "precision": tm.retrieval_precision,
        "hit": tm.retrieval_hit_rate,
        "mrr": tm.retrieval_reciprocal_rank,
        "ndcg": tm.retrieval_normalized_dcg,
    }.items():
        assert value[name] == pytest.approx(reference(preds, target, top_k=k).item(), abs=1e-6), name


def test_map_of_a_perfect_list_is_one():
    """Prevents both usual mistakes: dividing by the number of relevant items (< 1 here for k = 2) or by k (k = 5)."""
    found = ranking.list_metrics(np.array([[4, 2, 9, 1, 0]]), ragged([[4, 2, 9]]), ks=(2, 5))
    assert found["map@2"] == found["map@5"] == 1


def test_padding_is_no_item():
    """Prevents -1 from counting as an item: as a hit, in coverage, or as the last item of the catalog by indexing."""
    top = np.array([[0, -1, -1], [-3, -3, -3]])
    assert ranking.list_metrics(top, ragged([[0], [0]]), ks=(3,))["recall@3"].tolist() == [1, 0]
    assert ranking.coverage(top, 4) == 0.25
    assert ranking.novelty(top, np.array([1, 0, 0, 7])) == 3
    assert np.isnan(ranking.diversity(top, np.eye(4)))


@settings(deadline=None)
@given(lists_of_items(), st.integers(0, 1000))
def test_beyond_accuracy_equals_loops(drawn, seed):
    """Prevents the item's similarity with itself in diversity, and unseen items making novelty infinite."""
    top, _ = drawn
    rng = np.random.default_rng(seed)
    items = int(top.max()) + 1 + seed % 3
    counts, vectors = rng.integers(0, 4, items), rng.normal(size=(items, 3)) * rng.integers(0, 2, (items, 1))
    counts[0] = 5
    assert ranking.coverage(top, items) == len(set(top.ravel().tolist())) / items
    bits = [np.mean([-np.log2(max(counts[i], 1) / counts.sum()) for i in row]) for row in top]
    assert ranking.novelty(top, counts) == pytest.approx(np.mean(bits))
    if top.shape[1] > 1:
        cosine = sklearn.metrics.pairwise.cosine_similarity(vectors)
        pairs = [np.mean([cosine[i, j] for i, j in itertools.combinations(row, 2)]) for row in top.tolist()]
        assert ranking.diversity(top, vectors) == pytest.approx(1 - np.mean(pairs))


def test_novelty_without_counts_is_unknown():
    """Prevents an untrained model, whose counts are all 0, from stopping the evaluation."""
    assert np.isnan(ranking.novelty(np.array([[0, 1]]), np.zeros(2)))


def test_messages_name_the_fix():
    """Prevents silent wrap-around of indices, repeated items, and cut-offs that the lists cannot answer."""
    scores = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"targets_R must lie in 0\.\.2"):
        ranking.rank_targets(scores, torch.tensor([0, -2]))
    with pytest.raises(ValueError, match="one item per row"):
        ranking.rank_targets(scores, torch.tensor([0]))
    with pytest.raises(ValueError, match=r"excluded items must lie in 0\.\.2"):
        ranking.rank_targets(scores, torch.tensor([0, 1]), (torch.tensor([0]), torch.tensor([3])))
    with pytest.raises(ValueError, match="excluded must be"):
        ranking.top_k(scores, 1, (torch.tensor([0]), torch.tensor([0, 1])))
    with pytest.raises(ValueError, match="k must be between 1 and the 3"):
        ranking.top_k(scores, 4)
    with pytest.raises(ValueError, match="floating"):
        ranking.top_k(scores.long(), 1)
    with pytest.raises(ValueError, match=r"sequence of cut-offs"):
        ranking.single_target_metrics(np.array([0]), np.array([0]), ks=10)
    with pytest.raises(ValueError, match="counts >= 0"):
        ranking.single_target_metrics(np.array([-1]), np.array([0]))
    with pytest.raises(ValueError, match="call top_k with k=3"):
        ranking.list_metrics(np.array([[0, 1]]), ragged([[0]]), ks=(3,))
    with pytest.raises(ValueError, match="list 1 holds an item twice"):
        ranking.list_metrics(np.array([[0, 1], [0, 0]]), ragged([[0], [0]]), ks=(2,))
    with pytest.raises(ValueError, match="offsets of 2"):
        ranking.list_metrics(np.array([[0, 1]]), (np.array([0]), np.array([0])), ks=(2,))
    with pytest.raises(ValueError, match="negative item"):
        ranking.list_metrics(np.array([[0, 1]]), ragged([[-1]]), ks=(2,))
    with pytest.raises(ValueError, match="numbered alike"):
        ranking.coverage(np.array([[3]]), 3)
    with pytest.raises(ValueError, match="integers"):
        ranking.coverage(np.array([[0.5]]), 3)
    with pytest.raises(ValueError, match="item_counts_N"):
        ranking.novelty(np.array([[0]]), np.array([-1]))
