"""Baselines against their definitions, solved by other means."""

import numpy as np
import pytest
import sklearn.linear_model
import sklearn.metrics.pairwise
from hypothesis import given, settings
from hypothesis import strategies as st

from polyrec.evaluation.baselines import recommenders
from polyrec.evaluation.baselines.recommenders import EASE, BiasModel, ItemKNN, Popularity

N = 7
LOG = st.lists(st.tuples(st.integers(0, 5), st.integers(0, N - 1)), min_size=1, max_size=40)


def events(rows):
    users, items = np.array(rows).T
    return users, items


def matrix(users, items, n_items=N):
    counts = np.zeros((users.max() + 1, n_items))
    np.add.at(counts, (users, items), 1)
    return counts


ONE_EACH = np.arange(N + 1), np.arange(N)  # N histories, history i holds item i: scores are the item-item weights


@settings(deadline=None)
@given(LOG)
def test_popularity_counts_events(rows):
    """Prevents items beyond the last one seen from falling off the end of the catalog."""
    users, items = events(rows)
    scores = Popularity().fit(users, items, N).score(np.array([0, 0, 1]), np.array([3]))
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(scores, np.tile(matrix(users, items).sum(0), (2, 1)))


@settings(deadline=None, max_examples=50)
@given(LOG)
def test_cosine_neighbours_equal_sklearn(rows):
    """Prevents normalising people instead of items, and an item recommending itself."""
    users, items = events(rows)
    expected = sklearn.metrics.pairwise.cosine_similarity(matrix(users, items).T)
    np.fill_diagonal(expected, 0)
    scores = ItemKNN("cosine", neighbours=N, last=None).fit(users, items, N).score(*ONE_EACH)
    np.testing.assert_allclose(scores, expected, atol=1e-6)


@settings(deadline=None, max_examples=50)
@given(LOG)
def test_tfidf_neighbours_equal_the_formula(rows):
    """Prevents the weight from going to items (idf of popularity) instead of to people who took little."""
    users, items = events(rows)
    counts = matrix(users, items)
    weighted = np.sqrt(counts) * np.log((1 + N) / (1 + (counts > 0).sum(1, keepdims=True)))
    expected = sklearn.metrics.pairwise.cosine_similarity(weighted.T)
    np.fill_diagonal(expected, 0)
    scores = ItemKNN("tfidf", neighbours=N, last=None).fit(users, items, N).score(*ONE_EACH)
    np.testing.assert_allclose(scores, expected, atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(LOG, st.integers(1, 4), st.integers(1, 30))
def test_only_the_nearest_are_kept_in_blocks_of_any_size(rows, neighbours, block):
    """Prevents neighbours from depending on how the catalog was cut into blocks, and others than the nearest ones."""
    users, items = events(rows)
    full = ItemKNN("cosine", N, None).fit(users, items, N).score(*ONE_EACH)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recommenders, "_BLOCK", block)
        kept = ItemKNN("cosine", neighbours, None).fit(users, items, N).score(*ONE_EACH)
    for mine, whole in zip(kept, full, strict=True):
        np.testing.assert_allclose(np.sort(mine)[::-1], np.append(np.sort(whole)[::-1][:neighbours], np.zeros(N))[:N])
        assert np.isin(mine[mine > 0], whole).all()


@settings(deadline=None, max_examples=30)
@given(LOG, st.floats(0.5, 20), st.booleans())
def test_ease_equals_one_ridge_regression_per_item(rows, ridge, many_users):
    """Prevents a transposed solution or a wrong diagonal: column j is the ridge regression of item j on all others.

    With more users than items it is solved by another matrix.
    """
    users, items = events(rows)
    if many_users:
        users = np.arange(len(users)) % 20
    taken = (matrix(users, items) > 0).astype(float)
    expected = np.zeros((N, N))
    for item in range(N):
        others = np.arange(N) != item
        model = sklearn.linear_model.Ridge(alpha=ridge, fit_intercept=False).fit(taken[:, others], taken[:, item])
        expected[others, item] = model.coef_
    scores = EASE(ridge).fit(users, items, N).score(*ONE_EACH)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, atol=1e-5)


@pytest.mark.parametrize("model", [ItemKNN("cosine", N, last=2), EASE(1.0, last=2)])
def test_only_the_last_events_are_read(model):
    """Prevents reading the FIRST events, another person's events, or a short history reaching into its neighbour's."""
    rng = np.random.default_rng(0)
    model.fit(rng.integers(0, 20, 100), rng.integers(0, N, 100), N)
    weights = model.score(*ONE_EACH)
    offsets, items = np.array([0, 4, 4, 5, 7]), np.array([6, 0, 1, 2, 3, 4, 5])
    expected = [weights[1] + weights[2], np.zeros(N), weights[3], weights[4] + weights[5]]
    np.testing.assert_allclose(model.score(offsets, items), expected, atol=1e-6)
    # A slice of larger offsets works on the whole values, as slices of Arrow lists do.
    np.testing.assert_allclose(model.score(offsets[2:], items), expected[2:], atol=1e-6)


@pytest.mark.parametrize(("model", "times"), [(ItemKNN(last=None), 3), (EASE(last=None), 1)])
def test_repeated_events_vote_as_documented(model, times):
    """Prevents EASE, fitted on binary rows, from being asked about a row of counts; in ItemKNN each event votes."""
    model.fit(np.array([0, 0, 1, 1, 2]), np.array([0, 1, 0, 2, 3]), N)
    once, thrice = model.score(np.array([0, 1, 4]), np.array([0, 0, 0, 0]))
    assert once.max() > 0
    np.testing.assert_allclose(thrice, times * once, rtol=1e-6)


@pytest.mark.parametrize("model", [Popularity(), ItemKNN(), EASE()])
def test_people_are_names_only(model):
    """Prevents memory in the size of the largest person number, and results that depend on how people are numbered."""
    users, items = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 1, 2, 2])
    first = model.fit(users, items, N).score(*ONE_EACH)
    second = model.fit(10**12 - users, items, N).score(*ONE_EACH)
    np.testing.assert_allclose(first, second, atol=1e-6)


@pytest.mark.parametrize("model", [Popularity(), ItemKNN(), EASE()])
def test_nothing_to_learn_from(model):
    """Prevents NaN scores from an empty log or from a person who took everything (idf 0)."""
    nothing = np.empty(0, dtype=np.int64)
    assert (model.fit(nothing, nothing, N).score(*ONE_EACH) == 0).all()
    assert np.isfinite(model.fit(np.zeros(N, dtype=np.int64), np.arange(N), N).score(*ONE_EACH)).all()


RATINGS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(2, 6)), min_size=1, max_size=30)


@settings(deadline=None, max_examples=30)
@given(RATINGS, st.floats(2, 20), st.floats(2, 20))
def test_biases_minimise_the_penalised_squares(rows, item_prior, user_prior):
    """Prevents a wrong residual or prior: turns must end at the ridge solution, found here by one linear solve."""
    users, items, labels = np.array(rows).T
    design = np.hstack([np.eye(5)[users], np.eye(5)[items]])
    penalty = np.diag([user_prior] * 5 + [item_prior] * 5)
    solution = np.linalg.solve(design.T @ design + penalty, design.T @ (labels - labels.mean()))
    model = BiasModel(item_prior, user_prior, iterations=150).fit(users, items, labels)
    expected = (labels.mean() + design @ solution).clip(labels.min(), labels.max())
    np.testing.assert_allclose(model.predict(users, items), expected, atol=1e-6)


def test_unknown_people_and_items_have_no_bias():
    """Prevents -1 from reading the last person's bias, and new numbers from raising, both met in frozen evaluation."""
    model = BiasModel(1, 1).fit(np.array([0, 2, 2]), np.array([0, 0, 3]), np.array([5.0, 1.0, 3.0]))
    unknown = model.predict(np.array([-1, 3, 99, 1]), np.array([-1, 4, 99, 1]))
    np.testing.assert_array_equal(unknown, model.mean)
    assert model.predict(np.array([-1]), np.array([0])) != model.mean


def test_unknown_labels_teach_nothing():
    """Prevents NaN from spreading through the mean to every prediction."""
    users, items = np.array([0, 1, 1, 2]), np.array([0, 0, 1, 1])
    with_unknown = BiasModel().fit(users, items, np.array([1.0, 4.0, 2.0, np.nan]))
    without = BiasModel().fit(users[:3], items[:3], np.array([1.0, 4.0, 2.0]))
    np.testing.assert_array_equal(with_unknown.predict(users, items), without.predict(users, items))


@pytest.mark.parametrize("dtype", [bool, np.int8, np.float32])
def test_binary_predictions_are_never_certain(dtype):
    """Prevents an infinite log loss, and int8 labels from overflowing in sums."""
    users = np.repeat(np.arange(2), 500)
    model = BiasModel(0, 0).fit(users, users, (users == 1).astype(dtype))
    np.testing.assert_allclose(model.predict(np.array([0, 1, 5]), np.array([0, 1, 5])), [0.01, 0.99, 0.5])


def test_messages_name_the_fix():
    """Prevents ids in the place of numbers, unbounded memory and settings that mean nothing."""
    users, items = np.array([0, 1]), np.array([0, 1])
    with pytest.raises(ValueError, match="use ItemKNN"):
        EASE(max_items=10).fit(users, items, 11)
    with pytest.raises(ValueError, match=r"items must lie in 0\.\.0"):
        ItemKNN().fit(users, items, 1)
    with pytest.raises(ValueError, match="map ids to"):
        Popularity().fit(users, np.array(["a", "b"]), 2)
    with pytest.raises(ValueError, match="equally long"):
        Popularity().fit(users, items[:1], 2)
    with pytest.raises(ValueError, match="history_items must lie"):
        EASE().fit(users, items, 2).score(np.array([0, 1]), np.array([2]))
    with pytest.raises(ValueError, match="history_offsets"):
        EASE().fit(users, items, 2).score(np.array([0, 3]), np.array([0]))
    with pytest.raises(ValueError, match="unknown weighting 'bm25'"):
        ItemKNN("bm25")
    for wrong in (lambda: ItemKNN(neighbours=0), lambda: ItemKNN(last=0), lambda: EASE(ridge=0), lambda: EASE(last=-1)):
        with pytest.raises(ValueError, match="must be"):
            wrong()
    with pytest.raises(ValueError, match="priors"):
        BiasModel(iterations=0)
    with pytest.raises(ValueError, match="one label per event"):
        BiasModel().fit(users, items, np.array([1.0]))
    with pytest.raises(ValueError, match="no label is known"):
        BiasModel().fit(users, items, np.array([np.nan, np.nan]))
