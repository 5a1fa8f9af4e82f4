"""Scales: monotone, bounded, and blind to what is missing."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtri

from polyrec.data.scaling import GROUPS, KNOTS, StatisticsScaler, grouped_quantiles, quantile_knots, rank_gaussian

numbers = st.lists(st.floats(-1e6, 1e6) | st.just(float("nan")), min_size=1, max_size=30).map(np.array)


@settings(max_examples=60, deadline=None)
@given(numbers, numbers)
def test_ranks_are_monotone_bounded_and_keep_gaps(trained, asked):
    """Prevents two numbers from changing places, an outlier from exploding, and a gap from becoming a number."""
    scaled = rank_gaussian(asked, quantile_knots(trained))
    assert scaled.dtype == np.float32
    assert np.array_equal(np.isnan(scaled), np.isnan(asked))
    known = scaled[~np.isnan(asked)][np.argsort(asked[~np.isnan(asked)], kind="stable")]
    assert (np.diff(known) >= -1e-6).all()
    assert (np.abs(known) < 3.2).all()


def test_ranks_are_the_normal_quantiles():
    """Prevents a skewed column (prices, counts) from living in a corner of the grid that the model reads."""
    values = np.random.default_rng(0).exponential(size=5000)
    scaled = rank_gaussian(values, quantile_knots(values))
    assert abs(scaled.mean()) < 0.02
    assert scaled.std() == pytest.approx(1, abs=0.05)


def test_a_frequent_value_lies_in_the_middle_of_its_ranks():
    """Prevents zero, if half of all values are zero, from being an extreme."""
    values = np.concatenate([np.zeros(500), np.arange(1, 501)])
    scaled = rank_gaussian(np.array([0.0, 1.0, 500.0]), quantile_knots(values))
    assert scaled[0] == pytest.approx(-0.67, abs=0.03)  # the quantile of .25
    assert scaled[1] > -0.1


@pytest.mark.parametrize("values", [[3.0, 3.0], [3.0], [np.nan, np.nan]])
def test_constants_are_zero(values):
    """Prevents a column without spread from being divided by it."""
    knots = quantile_knots(np.array(values))
    assert knots.shape == (KNOTS,)
    assert rank_gaussian(np.array([3.0, 99.0]), knots).tolist() == [0, 0]
    assert np.isnan(rank_gaussian(np.array([np.nan]), knots)).all()


def test_groups_hold_the_rows_of_their_part():
    """Prevents watch times of short videos from being ranked among those of all other lengths."""
    edges = ndtri((np.arange(GROUPS) + 0.5) / GROUPS)  # one number inside each group, and one that is unknown
    scaled = np.append(np.repeat(edges, 2), np.nan)
    values = np.append(np.repeat(np.arange(GROUPS, dtype=float), 2), 1000.0)
    knots = grouped_quantiles(values, scaled)
    for g in range(GROUPS):
        assert knots[g].tolist() == [g] * KNOTS
    assert (knots[GROUPS, 0], knots[GROUPS, -1]) == (0.0, 1000.0)
    assert np.array_equal(grouped_quantiles(np.array([7.0]), np.array([0.0]))[0], np.full(KNOTS, 7.0))  # an empty group


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_standardising_is_the_definition(rows, width, seed):
    """Prevents missing values from pulling the mean to 0, and a constant column from becoming NaN."""
    random = np.random.default_rng(seed)
    matrix = random.normal(size=(rows, width)).astype(np.float32) * 10 + 5
    matrix[random.random(matrix.shape) < 0.3] = np.nan
    matrix[:, 0] = 2.5
    scaler = StatisticsScaler.fit(matrix)
    scaled = StatisticsScaler.from_dict(json.loads(json.dumps(scaler.to_dict()))).transform(matrix)
    assert scaled.dtype == np.float32
    assert np.array_equal(np.isnan(scaled), np.isnan(matrix))
    assert (scaled[:, 0] == 0).all()
    for j in range(1, width):
        known = matrix[~np.isnan(matrix[:, j]), j].astype(np.float64)
        spread = known.std() if len(known) and known.std() > 1e-6 else 1.0
        expected = np.clip((known - known.mean()) / spread, -4, 4) if len(known) else known
        np.testing.assert_allclose(scaled[~np.isnan(matrix[:, j]), j], expected, atol=1e-4)


def test_outliers_are_clipped():
    """Prevents one absurd count at serving time from saturating every expert."""
    scaler = StatisticsScaler.fit(np.array([[0.0], [1.0]]))
    assert scaler.transform(np.array([[1e9], [-1e9]])).tolist() == [[4.0], [-4.0]]


def test_statistics_are_scaled_in_blocks_of_rows():
    """Prevents copies in double precision of the whole matrix, and rows of the last block from being left out."""
    matrix = np.random.default_rng(0).normal(3, 2, (50_000, 7)).astype(np.float32)
    matrix[::3, 2] = np.nan
    tracemalloc.start()
    scaler = StatisticsScaler.fit(matrix)
    scaled = scaler.transform(matrix)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 3 * matrix.nbytes  # the answer itself is 1 of them
    np.testing.assert_allclose(scaler.mean, np.nanmean(matrix.astype(np.float64), 0), rtol=1e-12)
    np.testing.assert_allclose(scaler.std, np.nanstd(matrix.astype(np.float64), 0), rtol=1e-12)
    expected = np.clip((matrix - scaler.mean) / scaler.std, -4, 4)
    np.testing.assert_allclose(scaled, expected, rtol=1e-6, atol=1e-6)
