"""Searches of an index: never a forbidden item, always k if k are allowed, as the plain product ranks."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyrec.inference.index import NONE, ExactIndex, InvertedIndex, Raised, build_index

N, D = 6000, 16


@functools.cache
def catalog():
    """Vectors in clusters, of different lengths, biases and two rows that are never listed."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(40, D))
    vectors = centres[random.integers(0, 40, N)] + 0.5 * random.normal(size=(N, D))
    vectors = (vectors * random.uniform(0.5, 2, (N, 1))).astype(np.float32)
    bias = random.normal(size=N).astype(np.float32)
    bias[:2] = -np.inf
    return vectors, bias


@functools.cache
def indexes():
    return ExactIndex(*catalog()), InvertedIndex(*catalog(), threads=1)


def ranked(query, mask, added=None):
    """The plain product, sorted."""
    vectors, bias = catalog()
    scores = (vectors @ query + bias).astype(np.float64)
    if added is not None:
        np.add.at(scores, added.rows, added.added)
    scores[~mask] = -np.inf
    order = np.argsort(-scores, kind="stable")
    return order[np.isfinite(scores[order])], scores


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    share=st.sampled_from([1.0, 0.5, 0.1, 0.01, 0.001, 0.0]),
    k=st.sampled_from([1, 10, 100, 300]),
    clustered=st.booleans(),
    raises=st.booleans(),
)
def test_never_a_forbidden_item_and_always_k(seed, share, k, clustered, raises):
    """Prevents filters after the search: lists that are short, or hold what was excluded."""
    random = np.random.default_rng(seed)
    vectors, bias = catalog()
    chance = vectors @ random.normal(size=D) if clustered else random.random(N)  # of one side, or of any
    mask = chance <= np.quantile(chance, share) if share else np.zeros(N, dtype=bool)
    query = random.normal(size=D).astype(np.float32)
    added = Raised(random.integers(2, N, 20), 5 * random.normal(size=20).astype(np.float32)) if raises else None
    wanted, scores = ranked(query, mask, added)
    for index in indexes():
        found = index.search(query[None], k, mask, None if added is None else [added])
        rows = found.rows[0][found.rows[0] != NONE]
        assert len(rows) == min(k, len(wanted))
        assert len(set(rows)) == len(rows)
        assert mask[rows].all()
        assert np.isfinite(bias[rows]).all()
        np.testing.assert_allclose(found.scores[0][: len(rows)], scores[rows], atol=1e-3, rtol=1e-4)
        assert (np.diff(found.scores[0][: len(rows)]) <= 0).all()
        if index is indexes()[0] or mask.mean() < 0.2:
            np.testing.assert_allclose(scores[rows], scores[wanted[: len(rows)]], atol=1e-4)


@pytest.mark.parametrize("share", [1.0, 0.5, 0.2])
def test_the_inverted_file_finds_the_best(share):
    """Prevents cells that are visited too rarely, or scores that are not exact."""
    random = np.random.default_rng(1)
    exact, inverted = indexes()
    queries = catalog()[0][random.integers(2, N, 50)]
    allowed = random.random((50, N)) < share
    best, found = (index.search(queries, 100, allowed) for index in (exact, inverted))
    recall = np.mean([np.isin(a, b).mean() for a, b in zip(best.rows, found.rows, strict=True)])
    assert recall >= 0.98
    assert max(own.cells for own in inverted._visits) < inverted._file.nlist  # else it is a slow exact search


def test_masks_of_each_query_and_few_items():
    """Prevents one user's filter from reaching another, and a catalog smaller than the list from failing."""
    exact = ExactIndex(np.eye(3))
    allowed = np.array([[True, False, True], [False, True, False]])
    found = exact.search(np.ones((2, 3)), 10, allowed)
    assert found.rows.tolist() == [[0, 2, NONE], [1, NONE, NONE]]  # of equal ones the first
    assert isinstance(build_index(np.eye(3)), ExactIndex)
    assert isinstance(build_index(*catalog(), large=100), InvertedIndex)
