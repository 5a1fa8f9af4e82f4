"""Soft losses of lists, against naive loops and F.kl_div."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from polyrec.core.distillation_config import TaskDistillation
from polyrec.distillation.choices import SoftLoss, chosen
from polyrec.distillation.ranking_losses import (
    LIST_LOSSES,
    list_kl,
    list_loss,
    list_net,
    margin_mse,
    plackett_luce,
    rank_distil,
)

NAN, NONE = float("nan"), float("-inf")
SEEDS, TEMPERATURES = st.integers(0, 2**32 - 1), st.floats(0.25, 8.0)
KINDS = [pytest.param(name, id=name) for name in LIST_LOSSES]


def lists(seed: int = 0, rows: int = 4, items: int = 6, dtype=torch.float64):
    """Student [M, K], its rest [M], teacher [M, K + 1]."""
    random = torch.Generator().manual_seed(seed)
    made = 2 * torch.randn(2, rows, items + 1, generator=random, dtype=dtype)
    return made[0, :, :-1], made[0, :, -1], made[1]


def loss_of(kind: str, **plan):
    """A list loss by name, with a draw that is the same each time."""
    known = chosen(TaskDistillation(kind, **plan), LIST_LOSSES, "task 'next'")

    def loss(student, rest, teacher, weight=None):
        torch.manual_seed(0)
        return list_loss(known, student, rest, teacher, weight)

    return loss


# ------------------------------------------------------------------ values
@settings(max_examples=30, deadline=None)
@given(SEEDS, TEMPERATURES)
def test_a_list_of_the_whole_catalog_is_plain_kl(seed, temperature):
    """Prevents the bucket of the rest from taking part where nothing is left over."""
    student, _, teacher = lists(seed)
    nothing = torch.full((4,), NONE).double()
    scores = torch.cat([teacher[:, :-1], nothing.unsqueeze(1)], dim=1)
    total, count = list_kl(student, nothing, scores, temperature)
    log_q, log_p = (F.log_softmax(side / temperature, -1) for side in (student, teacher[:, :-1]))
    expected = temperature**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
    torch.testing.assert_close(total / count, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(list_net(student, teacher[:, :-1], temperature)[0], total, rtol=1e-6, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(SEEDS, TEMPERATURES)
def test_the_rest_is_one_outcome(seed, temperature):
    """Prevents the rest's log-sum-exp from being divided by the temperature again, and items from counting in it."""
    catalog = 2 * torch.randn(2, 4, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    student, teacher = (F.softmax(side / temperature, -1) for side in catalog)
    q, p = (torch.cat([side[:, :5], side[:, 5:].sum(1, keepdim=True)], dim=1) for side in (student, teacher))
    expected = temperature**2 * (p * (p.log() - q.log())).sum()
    rest_M, teacher_rest_M = ((side[:, 5:] / temperature).logsumexp(1) for side in catalog)
    scores = torch.cat([catalog[1, :, :5], teacher_rest_M.unsqueeze(1)], dim=1)
    torch.testing.assert_close(
        list_kl(catalog[0, :, :5], rest_M, scores, temperature)[0], expected, rtol=1e-6, atol=1e-6
    )


def test_a_teacher_sure_of_its_list_leaves_the_rest_no_chance():
    """Prevents what a student gives to the rest from being forgotten where the teacher gives it nothing."""
    student, rest, teacher = lists()
    teacher = torch.cat([teacher[:, :-1], torch.full((4, 1), NONE).double()], dim=1)
    log_q = torch.cat([student, rest.unsqueeze(1)], dim=1).log_softmax(1)
    expected = F.kl_div(log_q[:, :-1], teacher[:, :-1].log_softmax(1), reduction="sum", log_target=True)
    torch.testing.assert_close(list_kl(student, rest, teacher)[0], expected)
    total, count = list_kl(student, rest, torch.full_like(teacher, NONE))
    assert (total, count) == (0, 4)


def naive_plackett_luce(student, rest, teacher, interesting):
    """-1/R log of the chance to draw the teacher's first R items in their order, by a loop."""
    order = sorted(range(len(teacher)), key=lambda k: -teacher[k])
    left, total = [math.exp(s) for s in student], 0.0
    for k in order[:interesting]:
        total -= math.log(math.exp(student[k]) / (sum(left) + math.exp(rest)))
        left[k] = 0.0
    return total / min(interesting, len(teacher))


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(1, 8))
def test_plackett_luce_equals_a_loop(seed, interesting):
    """Prevents the order from running backwards and items from being in their own competition twice."""
    student, rest, teacher = lists(seed)
    rows = zip(student.tolist(), rest.tolist(), teacher[:, :-1].tolist(), strict=True)
    expected = sum(naive_plackett_luce(*row, interesting) for row in rows)
    total, count = plackett_luce(student, teacher[:, :-1], interesting, rest)
    np.testing.assert_allclose(total.item(), expected, rtol=1e-6)
    assert count == 4


def test_one_interesting_item_is_a_label():
    """Prevents relaxed ranking distillation from being off by one place."""
    student, _, teacher = lists()
    expected = F.cross_entropy(student, teacher[:, :-1].argmax(1), reduction="sum")
    torch.testing.assert_close(plackett_luce(student, teacher[:, :-1], interesting=1)[0], expected)


def test_the_order_of_uninteresting_items_does_not_matter():
    """Prevents a long tail, whose order is noise, from being learnt."""
    student, rest, teacher = lists()
    teacher = teacher[:, :-1].sort(dim=1, descending=True).values
    shuffled = torch.cat([teacher[:, :2], teacher[:, 2:].flip(1)], dim=1)
    found = [plackett_luce(student, side, 2, rest)[0] for side in (teacher, shuffled)]
    torch.testing.assert_close(*found)


def plackett_luce_chance(scores, order):
    """Chance to draw these items in this order."""
    left, chance = list(range(len(scores))), 1.0
    for k in order:
        chance *= math.exp(scores[k]) / sum(math.exp(scores[j]) for j in left)
        left.remove(k)
    return chance


def test_rank_distil_is_the_kl_of_plackett_luce_models_on_average():
    """Prevents places from being weighed by the wrong distribution: compared with a sum over all orders."""
    student, _, teacher = lists(seed=5, rows=1, items=4)
    teacher = teacher[:, :-1]
    s, t, depth = student[0].tolist(), teacher[0].tolist(), 3
    orders = list(itertools.permutations(range(4), depth))
    p, q = ([plackett_luce_chance(scores, order) for order in orders] for scores in (t, s))
    expected = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / depth
    torch.manual_seed(0)
    many, nothing = 20_000, torch.full((20_000, 1), NONE).double()
    scores = torch.cat([teacher.expand(many, -1), nothing], dim=1)
    total, count = rank_distil(student.expand(many, -1), nothing[:, 0], scores, depth)
    np.testing.assert_allclose((total / count).item(), expected, rtol=0.02)


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_margins_equal_loops(seed):
    """Prevents pairs with itself from counting, and the formula over all pairs from being off by a factor."""
    student, _, teacher = lists(seed)
    teacher = teacher[:, :-1]
    first, every = 0.0, 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        best, size = t.index(max(t)), len(t)
        margin = [[((s[a] - s[b]) - (t[a] - t[b])) ** 2 for b in range(size)] for a in range(size)]
        first += sum(margin[best]) / (size - 1)
        every += sum(map(sum, margin)) / (size * (size - 1))
    np.testing.assert_allclose(margin_mse(student, teacher)[0].item(), first, rtol=1e-6)
    np.testing.assert_allclose(margin_mse(student, teacher, "all")[0].item(), every, rtol=1e-6)


# ------------------------------------------------------------------ all of them
@pytest.mark.parametrize("kind", [k for k in LIST_LOSSES if k != "plackett_luce"])
def test_a_perfect_student_loses_nothing(kind):
    """Prevents a minimum beside the teacher."""
    _, _, teacher = lists(dtype=torch.float32)
    student, rest = (side.clone().requires_grad_() for side in (teacher[:, :-1], teacher[:, -1]))
    total, _ = loss_of(kind)(student, rest, teacher)
    total.backward()
    assert abs(total.item()) < 1e-5
    assert student.grad.abs().max() < 1e-6
    assert rest.grad is None or rest.grad.abs().max() < 1e-6
    assert loss_of(kind)(teacher[:, :-1].flip(1), rest, teacher)[0] > 0.1


def test_plackett_luce_has_no_minimum_but_the_right_order_is_best():
    """Prevents the loss from preferring another order than the teacher's."""
    teacher = torch.tensor([[3.0, 2.0, 1.0]])
    found = {o: plackett_luce(torch.tensor([o]), teacher, 3)[0].item() for o in itertools.permutations((3.0, 2.0, 1.0))}
    assert min(found, key=found.get) == (3.0, 2.0, 1.0)
    assert max(found, key=found.get) == (1.0, 2.0, 3.0)


@pytest.mark.parametrize("kind", ["kl", "list_net", "rank_distil"])
@settings(max_examples=15, deadline=None)
@given(SEEDS)
def test_temperature_changes_gradients_and_keeps_their_size(kind, seed):
    """Prevents a temperature that is accepted and never used, and one that shrinks soft losses by T^2."""
    gradients = {}
    for temperature in (1.0, 3.0):
        student, rest, teacher = lists(seed)
        student = (student / 4).requires_grad_()
        loss_of(kind, temperature=temperature)(student, rest, teacher / 4)[0].backward()
        gradients[temperature] = student.grad
    assert (gradients[3.0] - gradients[1.0]).norm() > 1e-3 * gradients[1.0].norm()
    assert 1 / 4 < gradients[3.0].norm() / gradients[1.0].norm() < 4


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None)
@given(SEEDS, st.floats(-20, 20))
def test_differences_alone_matter(kind, seed, shift):
    """Prevents the zero of a teacher's scores from teaching anything."""
    student, rest, teacher = lists(seed)
    loss = loss_of(kind)
    found = loss(student, rest, teacher)[0]
    torch.testing.assert_close(loss(student + shift, rest + shift, teacher)[0], found)
    torch.testing.assert_close(loss(student, rest, teacher - shift)[0], found)


@pytest.mark.parametrize("kind", KINDS)
def test_no_answer_and_empty_places_are_nothing(kind):
    """Prevents padding of short lists, items that the student cannot answer, and missing rows from teaching anything."""
    student, rest, teacher = lists()
    # A list of four items, and the same with two places that one side or the other leaves empty. (SampledCandidates orders differ
    # with the number of places: all four are asked about, and their loss is that of their average.)
    short = loss_of(kind)(student[:, :4], rest, torch.cat([teacher[:, :4], teacher[:, -1:]], dim=1))
    longer, own = teacher.clone(), student.clone()
    longer[:, 4] = NONE
    own[:, 5] = NONE
    own.requires_grad_()
    found = loss_of(kind)(own, rest, longer)
    if kind != "rank_distil":
        torch.testing.assert_close(found[0].detach(), short[0])
    assert torch.isfinite(found[0])
    assert found[1] == 4
    found[0].backward()
    assert own.grad[:, 4:].count_nonzero() == 0
    assert torch.isfinite(own.grad).all()
    longer[1] = NAN
    longer[2] = NONE
    own.grad = None
    total, count = loss_of(kind)(own, rest, longer)
    total.backward()
    assert count == 3
    assert own.grad[1:3].count_nonzero() == 0
    assert torch.isfinite(own.grad).all()


@pytest.mark.parametrize("kind", KINDS)
def test_no_row_gives_a_gradient_of_zero(kind):
    """Prevents NaN, or an absent gradient (which stops DDP), where a teacher has no lists."""
    student, rest, teacher = lists()
    total, count = loss_of(kind)(student.requires_grad_(), rest, torch.full_like(teacher, NAN))
    total.backward()
    assert total == count == 0
    assert student.grad.count_nonzero() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_weights_count_like_repetition(kind):
    """Prevents a weight that scales the sum but not the count."""
    student, rest, teacher = lists()
    once, thrice = (loss_of(kind)(student, rest, teacher, weight) for weight in (None, torch.full((4,), 3.0)))
    torch.testing.assert_close(thrice, (3 * once[0], 3 * once[1]))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_values(kind):
    """Prevents a gradient that is not that of the loss; and one of the teacher."""
    student, rest, teacher = lists(rows=2, items=4)
    teacher = teacher.clone()
    teacher[1, 2] = NONE
    teacher.requires_grad_()
    loss = loss_of(kind)
    assert torch.autograd.gradcheck(
        lambda s, r: loss(s, r, teacher)[0], (student.requires_grad_(), rest.requires_grad_())
    )
    loss(student, rest, teacher)[0].backward()
    assert teacher.grad is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_huge_logits_stay_finite(kind, dtype):
    """Prevents one diverging answer from making the batch NaN."""
    values = torch.tensor([-1e4, -90.0, 0.0, 90.0, 1e4])
    student = torch.stack([values, values.flip(0), values.roll(2), torch.zeros(5)]).to(dtype).requires_grad_()
    teacher = torch.cat([values, torch.zeros(1)]).expand(4, -1).to(dtype)
    total, _ = loss_of(kind)(student, torch.tensor([0.0, 1e4, -1e4, NONE]), teacher)
    total.backward()
    assert total.dtype == torch.float32
    assert torch.isfinite(total)
    assert torch.isfinite(student.grad).all()


# ------------------------------------------------------------------ plans
def test_a_plan_is_refused_where_a_loss_would_not_read_it():
    """Prevents a misspelt loss or option, or a temperature without use, from being ignored."""
    with pytest.raises(ValueError, match="unknown distillation loss 'listnet' of task 'next'.*did you mean 'list_net'"):
        chosen(TaskDistillation("listnet"), LIST_LOSSES, "task 'next'")
    with pytest.raises(ValueError, match="unknown option 'dept' of distillation loss 'rank_distil'.*'depth'"):
        chosen(TaskDistillation("rank_distil", options={"dept": 3}), LIST_LOSSES, "task 'next'")
    with pytest.raises(ValueError, match="'margin_mse' of task 'next' has no temperature: leave it 1, not 3.0"):
        chosen(TaskDistillation("margin_mse", temperature=3.0), LIST_LOSSES, "task 'next'")
    with pytest.raises(
        ValueError, match="'pairs' of distillation loss 'margin_mse' of task 'next' is 'some'; known: first, all"
    ):
        chosen(TaskDistillation("margin_mse", options={"pairs": "some"}), LIST_LOSSES, "task 'next'")
    assert chosen(TaskDistillation("rank_distil"), LIST_LOSSES, "task 'next'").options == {"depth": 10}
    assert chosen(TaskDistillation("plackett_luce"), LIST_LOSSES, "task 'next'").options == {"interesting": 30}
    plan = chosen(TaskDistillation(options={}), {"a": SoftLoss(options={"x": 1}), "b": SoftLoss()}, "task")
    assert (plan.loss, plan.options) == ("a", {"x": 1})
