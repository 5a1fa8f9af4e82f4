"""Histories become states; candidates attend to what is visible to them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_fixtures import random_config

from polyrec import FeatureConfig, PolyRecForRecommendation
from polyrec.core.schema import RESIDUALS, STATISTICS
from polyrec.modules.encoders.history import CandidateAttention

FEATURES = [
    FeatureConfig("rating", "event", "categorical", size=7),
    FeatureConfig(RESIDUALS, "event", "vector", size=2),
    FeatureConfig("surface", "candidate", "categorical", size=4),
    FeatureConfig(STATISTICS, "candidate", "vector", size=3),
    FeatureConfig("age", "user", "numeric"),
]


def model_of(**overrides):
    torch.manual_seed(0)
    return PolyRecForRecommendation(random_config(**({"features": FEATURES} | overrides))).eval()


def inputs(users=2, events=4):
    torch.manual_seed(1)
    return {
        "item_ids": torch.randint(2, 12, (users, events)),
        "event_features": {
            "rating": torch.randint(0, 7, (users, events)),
            RESIDUALS: torch.randn(users, events, 2),
            "surface": torch.randint(0, 4, (users, events)),
            STATISTICS: torch.randn(users, events, 3),
        },
        "user_features": {"age": torch.randn(users)},
    }


def states(model, batch):
    return model.model(**batch).last_hidden_state


def test_state_zero_reads_the_person_and_no_event():
    """Prevents the cold-start state from being the same for everybody, or from seeing the history."""
    model, batch = model_of(), inputs()
    before = states(model, batch)
    assert before.shape == (2, 5, 8)
    other_events = batch | {"item_ids": batch["item_ids"].flip(1)}
    torch.testing.assert_close(states(model, other_events)[:, 0], before[:, 0])
    other_user = batch | {"user_features": {"age": batch["user_features"]["age"] + 1}}
    assert not torch.allclose(states(model, other_user)[:, 0], before[:, 0])
    empty = {
        "item_ids": batch["item_ids"][:, :0],
        "event_features": {k: v[:, :0] for k, v in batch["event_features"].items()},
        "user_features": batch["user_features"],
    }
    torch.testing.assert_close(states(model, empty)[:, 0], before[:, 0])


@pytest.mark.parametrize("name", ["rating", RESIDUALS, "surface"])
def test_every_event_feature_is_read(name):
    """Prevents a feature of past events from being dropped on the way."""
    model, batch = model_of(), inputs()
    changed = batch | {"event_features": batch["event_features"] | {name: batch["event_features"][name].flip(1)}}
    assert not torch.allclose(states(model, batch), states(model, changed))


def test_order_of_events_matters():
    """Prevents a backbone without positions, for which a history is a bag."""
    model, batch = model_of(), inputs()
    swapped = [1, 0, 2, 3]
    changed = {
        "item_ids": batch["item_ids"][:, swapped],
        "event_features": {k: v[:, swapped] for k, v in batch["event_features"].items()},
        "user_features": batch["user_features"],
    }
    assert not torch.allclose(states(model, batch)[:, -1], states(model, changed)[:, -1])


def test_backbone_holds_no_token_table():
    """Prevents a parameter without gradient, which would stop DDP, and dead weights in the file."""
    names = [name for name, _ in model_of().named_parameters()]
    assert not [name for name in names if "embed_tokens" in name]


# ------------------------------------------------------------------ candidate attention
def attention_of(features=FEATURES):
    torch.manual_seed(0)
    return CandidateAttention(random_config(features=features, candidate_attention_heads=2))


def naive_attention(attention, candidate_D, inputs_LD, position, residuals_LT):
    """Attention of one candidate, head by head, over the start and the visible events."""
    visible = inputs_LD[: position + 1]
    said = torch.cat([torch.zeros(1, residuals_LT.shape[1]), residuals_LT])[: position + 1].nan_to_num()
    size, learnt = attention.head_size, attention.head_size - attention.targets
    query, key, value = attention.query(candidate_D), attention.key(visible), attention.value(visible)
    found = []
    for head in range(attention.heads):
        part = slice(head * size, (head + 1) * size)
        weight = torch.softmax(key[:, part] @ query[part] / size**0.5, dim=0)
        values = torch.cat([value[:, head * learnt : (head + 1) * learnt], said], dim=1)
        found.append(weight @ values)
    return torch.stack(found)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_attention_equals_the_naive_one(seed):
    """Prevents mixed-up heads, a mask that is off by one, and unknown residuals from becoming NaN."""
    attention, generator = attention_of(), torch.Generator().manual_seed(seed)
    candidates, events = torch.randn(2, 3, 8, generator=generator), torch.randn(2, 5, 8, generator=generator)
    residuals = torch.randn(2, 4, 2, generator=generator)
    residuals[torch.rand(2, 4, 2, generator=generator) < 0.3] = float("nan")
    positions = torch.randint(0, 5, (2, 3), generator=generator)
    attended, evidence = attention(candidates, events, positions, residuals)
    for b in range(2):
        for c in range(3):
            expected = naive_attention(attention, candidates[b, c], events[b], positions[b, c].item(), residuals[b])
            torch.testing.assert_close(attended[b, c], expected.flatten(), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(evidence[b, c], expected[:, -2:].flatten(), rtol=1e-4, atol=1e-5)


def test_nobody_known_gives_no_evidence():
    """Prevents a candidate without visible events from being told about somebody's residuals."""
    attention = attention_of()
    _, evidence = attention(
        torch.randn(1, 1, 8), torch.randn(1, 4, 8), torch.zeros(1, 1, dtype=torch.int64), torch.randn(1, 3, 2)
    )
    assert evidence.count_nonzero() == 0


def test_attention_without_residuals():
    """Prevents a model without running statistics from failing."""
    attention = attention_of([])
    attended, evidence = attention(torch.randn(1, 2, 8), torch.randn(1, 4, 8), torch.tensor([[0, 3]]))
    assert attended.shape == (1, 2, 8)
    assert evidence.shape == (1, 2, 0)


def test_missing_residuals_are_named():
    """Prevents a bare error far from its cause."""
    with pytest.raises(KeyError, match="'residuals' is missing from the batch"):
        attention_of()(torch.randn(1, 2, 8), torch.randn(1, 4, 8), torch.tensor([[0, 3]]))


@pytest.mark.parametrize("targets", [4, 16])
def test_residuals_of_any_number_of_tasks_stand_beside_what_is_learnt(targets):
    """Prevents 16 tasks from being refused by heads of size 4; the evidence is their mean by attention, as ever."""
    attention = attention_of([FeatureConfig(RESIDUALS, "event", "vector", size=targets)])
    residuals = torch.randn(1, 3, targets)
    candidate, inputs, position = torch.randn(1, 2, 8), torch.randn(1, 4, 8), torch.tensor([[0, 3]])
    attended, evidence = attention(candidate, inputs, position, residuals)
    assert attended.shape == (1, 2, 8)
    query, key, value = (
        part(x).view(-1, 2, 4)
        for part, x in zip((attention.query, attention.key, attention.value), (candidate, inputs, inputs), strict=True)
    )
    for head in range(2):
        share = torch.softmax(key[:, head] @ query[1, head] / 2, dim=0)
        torch.testing.assert_close(attended[0, 1].view(2, 4)[head], share @ value[:, head])
        torch.testing.assert_close(evidence[0, 1].view(2, targets)[head], share[1:] @ residuals[0])
    assert not evidence[0, 0].any()  # no event is visible
