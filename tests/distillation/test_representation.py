"""Losses of states, relations and gates."""

from __future__ import annotations

import itertools
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import rel_entr
from torch.nn import functional as F

from polyrec.core.distillation_config import StateDistillation
from polyrec.core.settings import annotations_of
from polyrec.distillation.representation import STATE_LOSSES, gate_kl, same_sources, state_loss

NAN = float("nan")
KINDS = [pytest.param(name, id=name) for name in STATE_LOSSES]


def made(kind: str, width: int = 4, teacher_width: int = 6, **options):
    torch.manual_seed(0)
    return state_loss(StateDistillation(teacher_width=teacher_width, loss=kind, options=options), width)


def states(rows: int = 8, seed: int = 0):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(2, rows // 2, 4, generator=random), torch.randn(2, rows // 2, 6, generator=random)


def test_every_loss_of_a_configuration_exists():
    """Prevents names that a configuration takes and nobody builds."""
    assert set(STATE_LOSSES) == set(get_args(annotations_of(StateDistillation)["loss"]))


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_gradients_and_counts(kind):
    """Prevents parameters without gradient, overflow in mixed precision, and a teacher that learns."""
    loss, (student, teacher) = made(kind), states()
    student.requires_grad_(), teacher.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, count = loss(student, teacher, progress=0.5)
    total.backward()
    assert total.shape == count.shape == ()
    assert total.dtype == torch.float32
    assert count == 8
    assert teacher.grad is None
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in (student, *loss.parameters()))
    assert student.grad.count_nonzero()


@pytest.mark.parametrize("kind", KINDS)
def test_no_answer_is_nothing(kind):
    """Prevents missing states of a teacher from poisoning or scaling a batch."""
    loss, (student, teacher) = made(kind).eval(), states()
    teacher[1] = NAN
    expected = loss(student[:1], teacher[:1])
    student.requires_grad_()
    found = loss(student, teacher)
    torch.testing.assert_close(found, expected)
    found[0].backward()
    assert student.grad[1].count_nonzero() == 0
    for known in (0, 1, 2):  # too few for relations
        few = torch.full_like(teacher, NAN)
        few[0, :known] = teacher[0, :known]
        student.grad = None
        total, count = loss(student, few)
        total.backward()
        assert count == known
        assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("kind", KINDS)
def test_weights_scale_sum_and_count(kind):
    """Prevents a weight that scales the loss but not the count, and rows of weight 0 from counting."""
    loss, (student, teacher) = made(kind).eval(), states()
    once, thrice = loss(student, teacher), loss(student, teacher, torch.full((2, 4), 3.0))
    torch.testing.assert_close(thrice, (3 * once[0], 3 * once[1]))
    first = torch.tensor([[1.0] * 4, [0.0] * 4])
    torch.testing.assert_close(loss(student, teacher, first), loss(student[:1], teacher[:1]))


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_options_are_refused(kind):
    """Prevents a misspelt option from being ignored."""
    option = next(iter(STATE_LOSSES[kind].default_options))
    with pytest.raises(ValueError, match=f"unknown option '{option}x'.*did you mean '{option}'"):
        made(kind, **{f"{option}x": 1})


@pytest.mark.parametrize(
    ("kind", "option", "value"),
    [
        ("experts", "experts", 0),
        ("experts", "hidden", 0),
        ("experts", "coldest", 2.0),
        ("relation", "rows", 2),
        ("relation", "angle", -1),
    ],
)
def test_bad_options_are_refused(kind, option, value):
    """Prevents options that would fail, or do nothing, in the middle of training."""
    with pytest.raises(ValueError, match=f"option '{option}' of a loss of states is {value}"):
        made(kind, **{option: value})


def test_projection_is_a_mean_squared_error():
    """Prevents a loss that is summed over the width, and a normalisation that cannot be switched off."""
    student, teacher = states()
    loss = made("projection", normalize=False)
    total, count = loss(student, teacher)
    torch.testing.assert_close(total / count, F.mse_loss(loss.project(student), teacher))
    loss = made("projection")
    total, count = loss(student, 7 * teacher + 3)
    torch.testing.assert_close(
        total / count, F.mse_loss(loss.project(student), F.layer_norm(teacher, (6,))), rtol=1e-4, atol=1e-4
    )


def test_one_expert_is_that_expert():
    """Prevents the gate from scaling answers."""
    (student, teacher), loss = states(), made("experts", experts=1, normalize=False)
    total, count = loss(student, teacher)
    torch.testing.assert_close(total / count, F.mse_loss(loss.experts[0](student), teacher))


def test_selection_gets_sharper_and_draws_only_while_training():
    """Prevents an annealing that is accepted and never used, and evaluations that differ from call to call."""
    (student, teacher), loss = states(), made("experts").eval()
    assert torch.equal(loss(student, teacher)[0], loss(student, teacher)[0])
    best = loss.select(F.layer_norm(teacher, (6,))).argmax(-1, keepdim=True).unsqueeze(-1).expand(-1, -1, -1, 6)
    answers = torch.stack([expert(student) for expert in loss.experts], dim=2).gather(2, best).squeeze(2)
    expected = (answers - F.layer_norm(teacher, (6,))).square().mean(-1).sum()
    far = [abs(loss(student, teacher, progress=progress)[0] - expected).item() for progress in (0.0, 0.5, 1.0)]
    assert far[0] > far[1] > far[2]
    assert loss.temperature(0.0) == 1.0
    assert loss.temperature(2.0) == pytest.approx(0.01)
    loss.train()
    assert not torch.equal(loss(student, teacher)[0], loss(student, teacher)[0])


def naive_relations(student, teacher, angle):
    """Relational distillation by loops over pairs and triples."""

    def huber(error):
        return error**2 / 2 if abs(error) <= 1 else abs(error) - 0.5

    sizes = []
    for side in (student, teacher):
        length = {(i, j): np.linalg.norm(side[i] - side[j]) for i, j in itertools.permutations(range(len(side)), 2)}
        mean = np.mean(list(length.values()))
        cosine = {
            (i, j, k): (side[i] - side[j]) @ (side[k] - side[j]) / length[i, j] / length[k, j]
            for i, j, k in itertools.permutations(range(len(side)), 3)
        }
        sizes.append(({pair: value / mean for pair, value in length.items()}, cosine))
    (own, own_angles), (their, their_angles) = sizes
    pairs = np.mean([huber(own[at] - their[at]) for at in own])
    return pairs + angle * np.mean([huber(own_angles[at] - their_angles[at]) for at in own_angles])


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 2.0]))
def test_relations_equal_loops(seed, angle):
    """Prevents pairs of a state with itself from counting, and angles at the wrong vertex."""
    student, teacher = (side.double() for side in states(6, seed))
    total, count = made("relation", angle=angle)(student, teacher)
    expected = naive_relations(student.flatten(0, 1).numpy(), teacher.flatten(0, 1).numpy(), angle)
    np.testing.assert_allclose((total / count).item(), expected, rtol=1e-6)
    if angle == 2:  # as in the paper, where angles weigh twice as much as distances
        assert made("relation")(student, teacher)[0] == total


def test_relations_know_neither_scale_nor_rotation():
    """Prevents a teacher of another width or scale from teaching more than relations."""
    student, _ = states()
    rotation = torch.linalg.qr(torch.randn(6, 6)).Q
    teacher = 9 * F.pad(student, (0, 2)) @ rotation + 5
    assert made("relation")(student, teacher)[0] < 1e-4


def test_equal_states_have_finite_gradients():
    """Prevents the state of nobody, which many people share, from exploding the gradient of a distance of 0."""
    student, teacher = states()
    student[:, :2] = 1.0
    teacher[:, 1:3] = 2.0
    student.requires_grad_()
    made("relation")(student, teacher)[0].backward()
    assert student.grad.abs().max() < 100
    with torch.no_grad():
        same = made("relation")(torch.ones(2, 4, 4), torch.ones(2, 4, 6))
    assert same[0] == 0


def test_many_states_are_compared_by_a_part_of_them():
    """Prevents memory that grows with the third power of the batch; the count is still that of all."""
    student, teacher = (torch.randn(1, 5000, width) for width in (4, 6))
    total, count = made("relation", rows=16)(student, teacher)
    at = torch.linspace(0, 4999, 16).long()
    part, own = made("relation", rows=16)(student[:, at], teacher[:, at])
    assert (count, own) == (5000, 16)
    torch.testing.assert_close(total / count, part / own)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_gates_by_scipy(seed):
    """Prevents the reverse KL of gates."""
    random = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(2, 3, 4, generator=random, dtype=torch.float64).softmax(-1) for _ in range(2))
    teacher[0, 0] = NAN
    total, count = gate_kl(student.requires_grad_(), teacher)
    known = ~torch.isnan(teacher).any(-1)
    np.testing.assert_allclose(
        total.item(), rel_entr(teacher[known].numpy(), student.detach()[known].numpy()).sum(), rtol=1e-6
    )
    assert count == 5
    assert abs(gate_kl(student, student)[0].item()) < 24 * np.finfo(float).eps  # of 24 terms, each rounded by itself


def test_shut_gates_stay_finite():
    """Prevents log 0 of gates that are shut on either side."""
    student = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    total, _ = gate_kl(student, torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(student.grad).all()


def test_gates_of_other_sources_are_refused():
    """Prevents gates from being compared whose sources are in another order, or other ones, or that do not exist."""
    same_sources({"like": ["a", "b"]}, {"like": ["a", "b"], "click": ["a"]})
    for student, teacher in (
        ({"like": ["a", "b"]}, {"like": ["b", "a"]}),
        ({"like": ["a"]}, {}),
        ({}, {"like": ["a"]}),
    ):
        with pytest.raises(
            ValueError, match="different sources.*use the teacher's experts and expert_options, or set gates=0"
        ):
            same_sources(student, teacher)
