"""Soft losses of answers about pairs, against torch.distributions, scipy and autograd of the plain formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import rel_entr
from torch.nn import functional as F

from polyrec.distillation.losses import (
    binary_kl,
    bounded_error,
    huber_error,
    multiclass_kl,
    ordinal_kl,
    poisson_kl,
    squared_error,
)

NAN = float("nan")
CLOSE = {"rtol": 1e-6, "atol": 1e-6}
TEMPERED = [
    pytest.param(loss, wide, id=loss.__name__) for loss, wide in ((binary_kl, 0), (multiclass_kl, 4), (ordinal_kl, 3))
]
ALL = [
    *TEMPERED,
    pytest.param(poisson_kl, 0, id="poisson_kl"),
    pytest.param(squared_error, 0, id="squared_error"),
    pytest.param(huber_error, 0, id="huber_error"),
    pytest.param(lambda s, t, weight=None: bounded_error(s, t, None, weight=weight), 0, id="bounded_error"),
    pytest.param(lambda s, t, weight=None: squared_error(s, t, weight, wide=True), 3, id="squared_error of quantiles"),
    pytest.param(lambda s, t, weight=None: huber_error(s, t, 1.0, weight, wide=True), 3, id="huber_error of quantiles"),
]
SEEDS, TEMPERATURES = st.integers(0, 2**32 - 1), st.floats(0.25, 8.0)


def sides(wide: int, seed: int = 0, members: int | None = None, dtype=torch.float64, spread: float = 3.0):
    """Student [2, 5(, M)(, K)] and teacher [2, 5(, K)]."""
    random = torch.Generator().manual_seed(seed)
    inner, outer = ((members,) if members else ()), ((wide,) if wide else ())
    student = spread * torch.randn(2, 5, *inner, *outer, generator=random, dtype=dtype)
    return student, spread * torch.randn(2, 5, *outer, generator=random, dtype=dtype)


def chain(conditional: torch.Tensor) -> torch.Tensor:
    """The distribution of an ordinal label from its conditional log odds, by the plain product."""
    p = torch.sigmoid(conditional)
    above = torch.cat([torch.ones_like(p[..., :1]), p.cumprod(-1), torch.zeros_like(p[..., :1])], dim=-1)
    return above[..., :-1] - above[..., 1:]


def sizes(gradient: torch.Tensor) -> float:
    return gradient.norm().item()


# ------------------------------------------------------------------ values
@settings(max_examples=30, deadline=None)
@given(SEEDS, TEMPERATURES)
def test_binary_is_the_kl_of_bernoullis(seed, temperature):
    """Prevents the reverse KL, a forgotten side of it, and a temperature on one side alone."""
    student, teacher = sides(0, seed)
    made = [torch.distributions.Bernoulli(logits=side / temperature) for side in (teacher, student)]
    expected = temperature**2 * torch.distributions.kl_divergence(*made).sum()
    torch.testing.assert_close(binary_kl(student, teacher, temperature)[0], expected, **CLOSE)


@settings(max_examples=30, deadline=None)
@given(SEEDS, TEMPERATURES)
def test_multiclass_is_what_torch_and_scipy_call_kl(seed, temperature):
    """Prevents a mean where a sum belongs (F.kl_div's default) and swapped arguments."""
    student, teacher = sides(4, seed)
    total, count = multiclass_kl(student, teacher, temperature)
    flat = [(side / temperature).flatten(0, 1) for side in (student, teacher)]
    torchs = F.kl_div(F.log_softmax(flat[0], -1), F.log_softmax(flat[1], -1), reduction="batchmean", log_target=True)
    torch.testing.assert_close(total / count, temperature**2 * torchs, **CLOSE)
    p, q = (F.softmax(side, -1).numpy() for side in reversed(flat))
    np.testing.assert_allclose(total.item(), temperature**2 * rel_entr(p, q).sum(), rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(SEEDS, TEMPERATURES)
def test_ordinal_is_the_kl_of_the_labels_distributions(seed, temperature):
    """Prevents questions that nobody gets to from counting, or from counting as much as the first."""
    student, teacher = sides(3, seed, spread=2.0)
    p, q = (chain(side / temperature).numpy() for side in (teacher, student))
    total, _ = ordinal_kl(student, teacher, temperature)
    np.testing.assert_allclose(total.item(), temperature**2 * rel_entr(p, q).sum(), rtol=1e-6, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_poisson_is_the_kl_of_poissons(seed):
    """Prevents rates that are taken for their logarithms, and a deviance of twice the size."""
    student, teacher = sides(0, seed, spread=1.5)
    made = [torch.distributions.Poisson(side.exp()) for side in (teacher, student)]
    torch.testing.assert_close(poisson_kl(student, teacher)[0], torch.distributions.kl_divergence(*made).sum(), **CLOSE)


def test_numbers_equal_torchs_losses():
    """Prevents halves and means that torch's losses have and ours do not."""
    student, teacher = sides(0)
    torch.testing.assert_close(squared_error(student, teacher)[0], F.mse_loss(student, teacher, reduction="sum"))
    expected = 2 * F.huber_loss(student, teacher, reduction="sum", delta=0.7)
    torch.testing.assert_close(huber_error(student, teacher, 0.7)[0], expected)
    student, teacher = sides(3)
    total, count = squared_error(student, teacher, wide=True)
    torch.testing.assert_close(total / count, F.mse_loss(student, teacher))
    total, count = huber_error(student, teacher, 0.7, wide=True)
    torch.testing.assert_close(total / count, 2 * F.huber_loss(student, teacher, delta=0.7))


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.floats(0, 4))
def test_bounded_equals_a_loop_over_rows(seed, margin):
    """Prevents a bound that compares with the teacher instead of the label, or that forgets unlabelled rows."""
    student, teacher = sides(0, seed, spread=1.0)
    labels = torch.where(torch.rand(2, 5) < 0.3, NAN, torch.randn(2, 5)).double()
    expected = 0.0
    for s, t, y in zip(student.flatten().tolist(), teacher.flatten().tolist(), labels.flatten().tolist(), strict=True):
        if math.isnan(y):
            expected += (s - t) ** 2
        elif (s - y) ** 2 + margin > (t - y) ** 2:
            expected += (s - y) ** 2
    total, count = bounded_error(student, teacher, labels, margin)
    np.testing.assert_allclose(total.item(), expected, rtol=1e-6, atol=1e-12)
    assert count == 10


def test_bounded_leaves_a_better_student_alone():
    """Prevents a worse teacher from pulling a student away from the label."""
    student = torch.tensor([1.0, 3.0], requires_grad=True)
    bounded_error(student, torch.tensor([2.0, 2.0]), torch.zeros(2))[0].backward()
    assert student.grad.tolist() == [0.0, 6.0]


# ------------------------------------------------------------------ temperature
@pytest.mark.parametrize(("loss", "wide"), TEMPERED)
@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_temperature_changes_gradients_and_keeps_their_size(loss, wide, seed):
    """Prevents a temperature that is accepted and never used, and one that shrinks soft losses by T^2."""
    gradients = {}
    for temperature in (1.0, 4.0, 100.0, 200.0):
        student, teacher = sides(wide, seed, spread=0.5)
        loss(student.requires_grad_(), teacher, temperature)[0].backward()
        gradients[temperature] = student.grad
    assert sizes(gradients[4.0] - gradients[1.0]) > 1e-3 * sizes(gradients[1.0])
    assert 1 / 3 < sizes(gradients[4.0]) / sizes(gradients[1.0]) < 3
    # With T^2 it has a limit, without it would be 4 times as small at twice the temperature.
    torch.testing.assert_close(gradients[200.0], gradients[100.0], rtol=0.05, atol=1e-3)


def test_at_high_temperature_kl_is_a_squared_difference_of_logits():
    """Prevents a wrong power of T: T^2 KL -> (s - t)^2 / 8 for two outcomes (Hinton et al., 2015)."""
    student, teacher = sides(0)
    torch.testing.assert_close(
        binary_kl(student, teacher, 1e3)[0], (student - teacher).square().sum() / 8, rtol=1e-4, atol=0
    )


# ------------------------------------------------------------------ perfect teachers
@pytest.mark.parametrize(("loss", "wide"), ALL)
def test_an_answer_like_the_teachers_costs_nothing(loss, wide):
    """Prevents a loss whose minimum lies beside the teacher."""
    teacher = sides(wide, dtype=torch.float32, spread=2.0)[1]
    student = teacher.clone().requires_grad_()
    total, _ = loss(student, teacher)
    total.backward()
    assert abs(total.item()) < 1e-5
    assert student.grad.abs().max() < 1e-5
    assert loss(teacher + 0.3 * torch.randn_like(teacher), teacher)[0] > 1e-3


@pytest.mark.parametrize("smoothing", [0.05, 0.3])
def test_a_teacher_of_smoothed_labels_is_label_smoothing(smoothing):
    """Prevents soft and hard losses of one row from having different scales or signs."""
    labels = torch.tensor([[1.0, 0.0, 1.0]]).double()
    target = labels * (1 - smoothing) + smoothing / 2
    student = torch.randn(1, 3, dtype=torch.float64, requires_grad=True)
    (soft,) = torch.autograd.grad(binary_kl(student, torch.logit(target))[0], student)
    (hard,) = torch.autograd.grad(F.binary_cross_entropy_with_logits(student, target, reduction="sum"), student)
    torch.testing.assert_close(soft, hard)

    classes, student = torch.tensor([2, 0]), torch.randn(1, 2, 4, dtype=torch.float64, requires_grad=True)
    shares = F.one_hot(classes, 4) * (1 - smoothing) + smoothing / 4
    (soft,) = torch.autograd.grad(multiclass_kl(student, shares.log().unsqueeze(0))[0], student)
    hard_loss = F.cross_entropy(student[0], classes, label_smoothing=smoothing, reduction="sum")
    (hard,) = torch.autograd.grad(hard_loss, student)
    torch.testing.assert_close(soft, hard)


def test_a_sure_teacher_is_a_label():
    """Prevents NaN (0 log 0) from a teacher of probabilities 0 and 1, as trees and counts give them."""
    student = torch.randn(1, 2, requires_grad=True)
    (soft,) = torch.autograd.grad(binary_kl(student, torch.tensor([[math.inf, -math.inf]]))[0], student)
    target = torch.tensor([[1.0, 0.0]])
    (hard,) = torch.autograd.grad(F.binary_cross_entropy_with_logits(student, target, reduction="sum"), student)
    torch.testing.assert_close(soft, hard)
    student = torch.randn(1, 3, requires_grad=True)
    total, _ = multiclass_kl(student, torch.tensor([[-math.inf, 0.0, -math.inf]]))
    torch.testing.assert_close(total, F.cross_entropy(student, torch.tensor([1])))


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.floats(-50, 50))
def test_multiclass_knows_differences_alone(seed, shift):
    """Prevents teachers with another zero (log probabilities, log-weights) from teaching something else."""
    student, teacher = sides(4, seed)
    found = multiclass_kl(student, teacher, 2.0)[0]
    torch.testing.assert_close(multiclass_kl(student + shift, teacher, 2.0)[0], found, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(multiclass_kl(student, teacher - shift, 2.0)[0], found, rtol=1e-6, atol=1e-9)


# ------------------------------------------------------------------ what counts
@pytest.mark.parametrize(("loss", "wide"), ALL)
def test_no_answer_is_nothing(loss, wide):
    """Prevents missing answers of a teacher from poisoning a batch, from counting, and from having a gradient."""
    student, teacher = sides(wide)
    expected = loss(student[:, 1:], teacher[:, 1:])
    teacher[:, 0] = NAN
    if wide:  # one missing number makes the answer none
        teacher[0, 0, 1:] = 1.0
    student = student.clone().requires_grad_()
    total, count = loss(student, teacher)
    total.backward()
    torch.testing.assert_close(total.detach(), expected[0])
    assert count == expected[1] == 8
    assert student.grad[:, 0].count_nonzero() == 0
    assert student.grad[:, 1:].count_nonzero() > 0
    total, count = loss(student, torch.full_like(teacher, NAN))
    total.backward()  # DDP needs a gradient, of 0
    assert total == count == 0


@pytest.mark.parametrize(("loss", "wide"), ALL)
def test_weights_count_like_repetition(loss, wide):
    """Prevents a weight that scales the sum but not the count, and a padded one (NaN) from poisoning it."""
    student, teacher = sides(wide)
    once = loss(student, teacher)
    torch.testing.assert_close(loss(student, teacher, weight=torch.full((2, 5), 3.0)), (3 * once[0], 3 * once[1]))
    teacher[0, 0] = NAN
    weight = torch.ones(2, 5)
    weight[0, 0] = NAN
    torch.testing.assert_close(loss(student, teacher, weight=weight), loss(student, teacher))


@pytest.mark.parametrize(("loss", "wide"), ALL)
def test_members_are_averaged(loss, wide):
    """Prevents an ensemble from counting M times, or from meeting the teacher along the wrong axis."""
    student, teacher = sides(wide, members=3)
    total, count = loss(student, teacher)
    apart = [loss(student[:, :, m], teacher) for m in range(3)]
    torch.testing.assert_close(total, sum(part for part, _ in apart) / 3)
    assert count == apart[0][1] == 10


@pytest.mark.parametrize(("loss", "wide"), ALL)
def test_parts_add_up(loss, wide):
    """Prevents means inside a loss, which would break the reduction over accumulated batches and ranks."""
    student, teacher = sides(wide)
    parts = [loss(student[rows], teacher[rows]) for rows in (slice(0, 1), slice(1, 2))]
    torch.testing.assert_close(loss(student, teacher)[0], parts[0][0] + parts[1][0])


@pytest.mark.parametrize(("loss", "wide"), ALL)
def test_the_teacher_gets_no_gradient(loss, wide):
    """Prevents a live teacher from being pulled towards its student."""
    student, teacher = sides(wide)
    total, _ = loss(student.requires_grad_(), teacher.requires_grad_())
    total.backward()
    assert teacher.grad is None


# ------------------------------------------------------------------ numerics
@pytest.mark.parametrize(("loss", "wide"), ALL)
def test_gradients_are_those_of_the_values(loss, wide):
    """Prevents a gradient that is not that of the loss."""
    student, teacher = sides(wide, seed=3, members=2, spread=1.0)
    teacher[0, 0] = NAN
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher)[0], student.requires_grad_())


@pytest.mark.parametrize("temperature", [0.1, 1.0, 10.0])
@pytest.mark.parametrize(("loss", "wide"), TEMPERED)
def test_huge_logits_stay_finite(loss, wide, temperature):
    """Prevents one diverging answer from making the batch NaN."""
    values = torch.tensor([-1e4, -90.0, 0.0, 90.0, 1e4])
    student, teacher = (side.reshape(1, -1) for side in torch.meshgrid(values, values, indexing="ij"))
    if wide:
        student, teacher = (torch.stack([side, *[-side] * (wide - 1)], dim=-1) for side in (student, teacher))
    student.requires_grad_()
    total, _ = loss(student, teacher, temperature)
    total.backward()
    assert torch.isfinite(total)
    assert total >= 0
    assert torch.isfinite(student.grad).all()


def test_huge_rates_stay_finite():
    """Prevents exp of a rate from overflowing, on either side, and a teacher beyond the tangent from pulling upwards."""
    values = torch.tensor([-1e4, -30.0, 0.0, 25.0, 1e4])
    student, teacher = (side.reshape(1, -1) for side in torch.meshgrid(values, values, indexing="ij"))
    student.requires_grad_()
    total, _ = poisson_kl(student, teacher)
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(student.grad).all()
    student = torch.tensor([25.0], requires_grad=True)
    poisson_kl(student, torch.tensor([25.0]))[0].backward()
    assert student.grad == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("loss", "wide"), ALL)
def test_half_precision_is_computed_in_single(loss, wide, dtype):
    """Prevents rounding inside a loss under autocast: only the inputs may be rounded."""
    student, teacher = (side.to(dtype) for side in sides(wide, dtype=torch.float32))
    found, expected = loss(student, teacher), loss(student.float(), teacher.float())
    assert found[0].dtype == torch.float32
    assert torch.equal(found[0], expected[0])
