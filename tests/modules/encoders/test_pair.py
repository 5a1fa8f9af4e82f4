"""What the pair tasks read."""

from __future__ import annotations

import pytest
import torch
from model_fixtures import random_config
from torch.nn import functional as F

from polyrec import FeatureConfig
from polyrec.modules.encoders.pair import LinearSkip, PairEncoder
from polyrec.modules.encoders.shared import PackedPairs

FEATURES = [
    FeatureConfig("surface", "candidate", "categorical", size=4),
    FeatureConfig("hour", "candidate", "numeric"),
    FeatureConfig("statistics", "candidate", "vector", size=3),
    FeatureConfig("rating", "event", "numeric"),
]
ALL_REAL = PackedPairs(torch.tensor([[2, 3, 4]]))


def values():
    torch.manual_seed(1)
    return {
        "surface": torch.tensor([[1, 2, 3]]),
        "hour": torch.tensor([[0.5, float("nan"), -1.0]]),
        "statistics": torch.randn(1, 3, 3),
    }


def encoder_of(**overrides):
    torch.manual_seed(0)
    encoder = PairEncoder(random_config(**({"features": FEATURES} | overrides))).eval()
    with torch.no_grad():
        encoder.features.numbers.reset_edges()
    return encoder


def test_without_attention_it_equals_its_formula():
    """Prevents a part of the pair (their product, say) from being lost."""
    encoder = encoder_of(candidate_attention_heads=0)
    state, candidate = torch.randn(1, 3, 8), torch.randn(1, 3, 8)
    found, evidence = encoder(state, candidate, torch.randn(1, 5, 8), torch.zeros(1, 3), ALL_REAL, values())
    mixed = encoder.mix(torch.cat([state, candidate, state * candidate], dim=-1))
    torch.testing.assert_close(found, F.gelu(mixed + encoder.features(values())))
    assert evidence is None


def test_state_candidate_history_and_features_all_matter():
    """Prevents a pair task from being answered without one of its inputs."""
    encoder = encoder_of()
    given = {
        "state_BCD": torch.randn(1, 3, 8),
        "candidate_BCD": torch.randn(1, 3, 8),
        "inputs_BLD": torch.randn(1, 5, 8),
        "positions_BC": torch.tensor([[4, 4, 4]]),
        "candidate_features": values(),
    }
    before, _ = encoder(**given, pairs=ALL_REAL)
    assert before.shape == (1, 3, 8)
    for name, value in given.items():
        other = value | {"surface": (value["surface"] + 1) % 4} if name == "candidate_features" else value * 0 + 1
        after, _ = encoder(**(given | {name: other}), pairs=ALL_REAL)
        assert not torch.allclose(before, after), name


@pytest.mark.parametrize("evidence", [0, 2])
def test_skip_is_linear_and_reads_missing_numbers_as_zero(evidence):
    """Prevents NaN statistics from reaching a logit, and the skip from having a constant of its own."""
    skip = LinearSkip(random_config(features=FEATURES), dict.fromkeys(["like", "rating"]), evidence)
    said = torch.randn(1, 3, 2) if evidence else None
    found = skip(values(), said)
    given = values()
    x = torch.cat([given["hour"].nan_to_num().unsqueeze(-1), given["statistics"]] + ([said] if evidence else []), -1)
    for task in ("like", "rating"):
        torch.testing.assert_close(found[task], (x @ skip.linear[task].weight.T).squeeze(-1))
    assert not torch.allclose(found["like"], found["rating"])


def test_skip_belongs_to_tasks_by_name():
    """Prevents the order of tasks in a configuration from exchanging their skips when weights are loaded."""
    config = random_config(features=FEATURES)
    one, other = (LinearSkip(config, dict.fromkeys(names), 0) for names in (["like", "rating"], ["rating", "like"]))
    other.load_state_dict(one.state_dict())
    for task, value in one(values(), None).items():
        assert torch.equal(value, other(values(), None)[task])


def test_heads_of_several_numbers_get_as_many():
    """Prevents one number from being added to every class of a task, which changes no probability."""
    skip = LinearSkip(random_config(features=FEATURES), {"like": None, "genre": 4, "one": 1}, 0)
    found = skip(values(), None)
    assert {name: tuple(x.shape) for name, x in found.items()} == {"like": (1, 3), "genre": (1, 3, 4), "one": (1, 3, 1)}
    assert not torch.allclose(found["genre"][..., 0], found["genre"][..., 1])


def test_nothing_to_skip():
    """Prevents a model without numbers from carrying an empty matrix."""
    skip = LinearSkip(random_config(features=FEATURES[:1]), {"like": None}, 0)
    assert skip(values(), None) == {}
    assert list(skip.parameters()) == []


def test_padding_is_not_encoded_and_real_pairs_keep_their_places():
    """Prevents an answer from landing at another candidate, or at padding, when batches are ragged."""
    ids = torch.tensor([[5, 0, 7], [0, 0, 0], [8, 9, 0]])
    pairs = PackedPairs(ids)
    packed = pairs.pack(torch.stack([ids, 10 * ids], dim=-1))
    assert packed.tolist() == [[[5, 50], [7, 70], [8, 80], [9, 90]]]
    assert torch.equal(pairs.unpack(packed), torch.stack([ids, 10 * ids], dim=-1))
    nothing = PackedPairs(torch.zeros(2, 3, dtype=torch.int64))
    assert nothing.unpack(nothing.pack(torch.randn(2, 3, 4))).count_nonzero() == 0
