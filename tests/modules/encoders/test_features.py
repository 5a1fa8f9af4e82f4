"""Numbers, codes and lists of codes become vectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_fixtures import random_config

from polyrec import FeatureConfig
from polyrec.modules.encoders.features import FeatureEncoder, NumericEncoder, module_name

NAN = float("nan")


def numeric(size=1, bins=4):
    torch.manual_seed(0)
    encoder = NumericEncoder(size, 8, bins)
    with torch.no_grad():
        encoder.reset_edges()
    return encoder


def encoder_of(*features):
    torch.manual_seed(0)
    encoder = FeatureEncoder(random_config(), list(features))
    for module in encoder.modules():
        if isinstance(module, NumericEncoder):
            with torch.no_grad():
                module.reset_edges()
    return encoder


def naive_ramps(x, edges):
    """The piecewise-linear encoding of one number, from its definition."""
    bins = len(edges) - 1
    if np.isnan(x):
        return [0.0] * bins + [1.0]
    ramps = [(x - edges[k]) / (edges[k + 1] - edges[k]) for k in range(bins)]
    low = [ramps[0] if k == 0 else max(ramps[k], 0.0) for k in range(bins)]
    return [low[k] if k == bins - 1 else min(low[k], 1.0) for k in range(bins)] + [0.0]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.one_of(st.floats(-6, 6, width=32), st.just(NAN)), min_size=1, max_size=5), st.integers(1, 6))
def test_ramps_equal_the_definition(values, bins):
    """Prevents a bin from being clipped on the wrong side, and missing numbers from looking like a number."""
    encoder = numeric(len(values), bins)
    edges = encoder.edges.double().numpy()
    found = encoder.ramps(torch.tensor(values)).numpy()
    each = [naive_ramps(x, edges) for x in values]
    expected = [r for ramps in each for r in ramps[:-1]] + [ramps[-1] for ramps in each]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


@settings(max_examples=50, deadline=None)
@given(st.floats(-8, 8, width=32), st.floats(0.0625, 5, width=32), st.integers(1, 8))
def test_encoding_never_saturates_and_is_monotone(x, step, bins):
    """Prevents numbers beyond the outer edges from becoming indistinguishable (outliers would all look alike)."""
    one, two = numeric(1, bins).ramps(torch.tensor([[x], [x + step]]))
    assert (two >= one - 1e-6).all()
    assert (two > one).any()


def test_missing_differs_from_the_middle():
    """Prevents an unknown number from being read as the mean."""
    encoder = numeric()
    assert not torch.allclose(encoder(torch.tensor([NAN])), encoder(torch.tensor([0.0])))


def test_encoding_is_continuous_and_has_finite_gradients():
    """Prevents NaN from passing through a mask into the gradient."""
    encoder = numeric(3)
    x = torch.tensor([[1.0, NAN, -2.0]], requires_grad=True)
    encoder(x).sum().backward()
    assert torch.isfinite(x.grad).all()
    assert x.grad[0, 1] == 0
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters())


def test_multi_is_the_mean_of_the_known_codes():
    """Prevents padding from diluting the mean, and an empty list from giving NaN."""
    encoder = encoder_of(FeatureConfig("tags", "item", "multi", size=6, width=3))
    table = encoder.tables["tags"].weight
    codes = torch.tensor([[[2, 4, 0], [5, 0, 0], [0, 0, 0]]])
    found = encoder({"tags": codes})
    torch.testing.assert_close(found[0, 0], (table[2] + table[4]) / 2)
    torch.testing.assert_close(found[0, 1], table[5])
    assert found[0, 2].count_nonzero() == 0
    found.sum().backward()
    assert torch.isfinite(table.grad).all()
    assert table.grad[0].count_nonzero() == 0


def test_features_are_added_and_each_one_matters():
    """Prevents a feature from being overwritten by the next one."""
    features = [
        FeatureConfig("genre", "item", "categorical", size=5),
        FeatureConfig("tags", "item", "multi", size=6, width=2),
        FeatureConfig("price", "item", "numeric"),
        FeatureConfig("embedding", "item", "vector", size=3),
    ]
    values = {
        "genre": torch.tensor([1, 3]),
        "tags": torch.tensor([[2, 0], [3, 5]]),
        "price": torch.tensor([0.5, NAN]),
        "embedding": torch.randn(2, 3),
    }
    encoder = encoder_of(*features)
    total = encoder(values)
    assert total.shape == (2, 8)
    numbers = torch.cat([values["price"].unsqueeze(-1), values["embedding"]], dim=-1)
    parts = [encoder.tables["genre"](values["genre"]), encoder.numbers(numbers)]
    tags = encoder.tables["tags"].weight
    parts.append(torch.stack([tags[2], (tags[3] + tags[5]) / 2]))
    torch.testing.assert_close(total, sum(parts))
    other = {
        "genre": torch.tensor([2, 3]),
        "tags": torch.tensor([[3, 0], [3, 5]]),
        "price": torch.tensor([NAN, NAN]),
        "embedding": values["embedding"] + 1,
    }
    for name, value in other.items():
        changed = encoder(values | {name: value})
        assert not torch.allclose(changed[0], total[0]), name


def test_missing_code_is_the_zero_vector():
    """Prevents a missing category from being learnt as one more value with a random start."""
    encoder = encoder_of(FeatureConfig("genre", "item", "categorical", size=5))
    assert encoder({"genre": torch.tensor([0])}).count_nonzero() == 0


def test_nothing_to_read_gives_none_and_text_is_skipped():
    """Prevents a model without attributes from failing, and text from being read as codes."""
    assert encoder_of()({}) is None
    assert encoder_of(FeatureConfig("plot", "item", "text"))({}) is None


def test_absent_feature_is_named():
    """Prevents a bare KeyError, or a silently skipped input."""
    encoder = encoder_of(FeatureConfig("genre", "item", "categorical", size=5))
    with pytest.raises(KeyError, match=r"feature 'genre' is missing from the batch; it has \['gnre'\]"):
        encoder({"gnre": torch.tensor([1])})


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=8), min_size=2, max_size=2, unique=True))
def test_names_of_parts_are_distinct_and_accepted_by_torch(names):
    """Prevents two columns from sharing one embedding table, and a column's name from breaking the model."""
    modules = torch.nn.ModuleDict({module_name(name): torch.nn.Identity() for name in names})
    assert len(modules) == 2


@pytest.mark.parametrize("name", ["type", "items", "keys", "training", "forward", "a.b", "a b", "%type", "a%2Eb", "ä"])
def test_awkward_names(name):
    """Prevents a column called like one of torch's own attributes from failing at construction."""
    encoder = encoder_of(FeatureConfig(name, "item", "categorical", size=5))
    assert encoder({name: torch.tensor([1])}).shape == (1, 8)
