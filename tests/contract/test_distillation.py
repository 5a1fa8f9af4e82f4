"""What every registered head must do as a student and as a teacher."""

from __future__ import annotations

import pytest
import torch
from head_fixtures import NAN, head_of
from torch import Tensor

from polyrec.core.distillation_config import TaskDistillation
from polyrec.core.registry import HEADS
from polyrec.data.release import NO_TIME
from polyrec.distillation.lists import top_list
from polyrec.distillation.soft_losses.base import checked_plan, kind_of, scored, soft_loss
from polyrec.modules.encoders.item import ItemRows
from polyrec.modules.encoders.request_context import RequestContext
from polyrec.modules.encoders.visible_events import VisibleEvents
from polyrec.modules.heads.base import TaskHead

PAIR_KINDS = [name for name in HEADS.names() if HEADS.get(name).reads == "pair"]
LIST_KINDS = [name for name in HEADS.names() if HEADS.get(name).reads == "state"]
KINDS = [pytest.param(kind, id=kind) for kind in PAIR_KINDS]
LOSSES = [
    pytest.param(kind, loss, id=f"{kind}-{loss}") for kind in PAIR_KINDS for loss in kind_of(HEADS.get(kind)).losses
]
TEMPERED = [p for p in LOSSES if kind_of(HEADS.get(p.values[0])).losses[p.values[1]].tempered]
# Options that change what logits mean, and must not change what is exchanged.
SHIFTED = {
    "binary": {"positive_weight": 3.0, "sampling_rate": 0.1, "label_smoothing": 0.1, "focal_gamma": 1.0},
    "regression": {"mean": 40.0, "std": 7.0, "minimum": 35.0, "maximum": 45.0},
    "quantile": {"mean": 40.0, "std": 7.0, "maximum": 45.0},
}


def answers(
    head: TaskHead, members: int = 1, seed: int = 0, own: Tensor | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Logits [2, 4(, M)(, K)] as `finish` makes them."""
    random = torch.Generator().manual_seed(seed)
    inner = (() if members == 1 else (members,)) + (() if head.own_width is None else (head.own_width,))
    own = torch.randn(2, 4, *inner, generator=random).to(dtype) if own is None else own
    return head.finish(own, {"length": torch.tensor([[-2.0, -0.5, 0.5, NAN], [2.0, 0.1, -0.1, 1.0]])})


def calibrated(kind: str, **options) -> TaskHead:
    """A head whose probabilities have been calibrated, if it has any."""
    head = head_of(kind, **options)
    if kind == "binary":
        head.calibrate(0.7, -0.4)
    return head


def gradient(head: TaskHead, own: Tensor, teacher: Tensor, plan: TaskDistillation) -> tuple[Tensor, Tensor]:
    """The loss and its gradient by what `forward` says."""
    own = own.clone().requires_grad_()
    total, _ = soft_loss(head, answers(head, own=own), teacher, plan)
    (found,) = torch.autograd.grad(total, own)
    return total.detach(), found


@pytest.mark.parametrize("kind", KINDS)
def test_it_says_what_it_exchanges(kind):
    """Prevents a head that cannot be taught, or whose units a teacher would have to guess."""
    cls = HEADS.get(kind)
    losses = kind_of(cls)
    assert losses.losses
    assert "canonical logits" in " ".join(cls.__doc__.lower().split())
    assert all(f'"{loss}"' in losses.__doc__ for loss in losses.losses)


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_exchanged_answers_have_one_shape_and_type(kind, members):
    """Prevents answers that a student of another kind of ensemble or precision could not take."""
    head = calibrated(kind)
    for dtype in (torch.float32, torch.bfloat16):
        found = head.canonical_logits(answers(head, members, dtype=dtype))
        inner = (() if members == 1 else (members,)) + (() if head.canonical_width is None else (head.canonical_width,))
        assert found.shape == (2, 4, *inner)
        assert found.dtype == torch.float32
        assert torch.isfinite(found).all()


@pytest.mark.parametrize("options", [{}, SHIFTED], ids=["plain", "options"])
@pytest.mark.parametrize(("kind", "loss"), LOSSES)
def test_a_head_as_its_own_teacher_is_at_the_minimum(kind, loss, options):
    """Prevents a soft loss whose minimum lies beside the teacher: by an offset, a clipping, a calibration or a unit."""
    head = calibrated(kind, **options.get(kind, {}))
    own = torch.randn(2, 4, *(() if head.own_width is None else (head.own_width,)))
    teacher = head.canonical_logits(answers(head, own=own))
    total, found = gradient(head, own, teacher, TaskDistillation(loss))
    assert abs(total.item()) < 1e-5
    assert found.abs().max() < 1e-5
    for step in (0.3, -0.3):
        further, found = gradient(head, own + step * torch.rand_like(own), teacher, TaskDistillation(loss))
        assert further > total.abs() + 1e-4
        assert found.abs().max() > 1e-3


@pytest.mark.parametrize("kind", sorted(SHIFTED))
def test_options_of_teacher_and_student_may_differ(kind):
    """Prevents logits from being compared that mean different things, as those of a head with another mean."""
    teacher, student = calibrated(kind, **SHIFTED[kind]), head_of(kind)
    given = teacher.canonical_logits(answers(teacher))  # a plain student has logits in these units
    torch.testing.assert_close(student.canonical_logits(given), given)
    assert soft_loss(student, given, given, TaskDistillation())[0] < 1e-6


@pytest.mark.parametrize(("kind", "loss"), TEMPERED)
def test_temperature_is_used(kind, loss):
    """Prevents a temperature that is accepted and never used."""
    head = head_of(kind)
    own, teacher = (torch.randn(2, 4, *(() if head.own_width is None else (head.own_width,))) for _ in range(2))
    teacher = head.canonical_logits(answers(head, own=teacher))
    cold, warm = (gradient(head, own, teacher, TaskDistillation(loss, temperature=t))[1] for t in (1.0, 3.0))
    assert (warm - cold).norm() > 0.01 * cold.norm()
    assert 1 / 3 < warm.norm() / cold.norm() < 3


@pytest.mark.parametrize(("kind", "loss"), [p for p in LOSSES if p not in TEMPERED])
def test_a_temperature_that_would_be_ignored_is_refused(kind, loss):
    """Prevents a temperature that is accepted and never used."""
    with pytest.raises(ValueError, match=f"{loss!r} of task 'task' .head {kind!r}. has no temperature"):
        checked_plan(head_of(kind), TaskDistillation(loss, temperature=2.0))


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_losses_and_options_are_refused(kind):
    """Prevents a misspelt loss or option from being ignored."""
    loss = next(iter(kind_of(HEADS.get(kind)).losses))
    with pytest.raises(ValueError, match=f"unknown distillation loss '{loss}x' of task 'task'.*did you mean '{loss}'"):
        checked_plan(head_of(kind), TaskDistillation(f"{loss}x"))
    with pytest.raises(ValueError, match=f"unknown option 'x' of distillation loss '{loss}' of task 'task'"):
        checked_plan(head_of(kind), TaskDistillation(options={"x": 1}))


@pytest.mark.parametrize(("kind", "loss"), LOSSES)
def test_missing_answers_weights_members_and_parts(kind, loss):
    """Prevents a NaN from poisoning a batch, and sums and counts that the reduction could not add up."""
    head, plan = head_of(kind), TaskDistillation(loss)
    teacher = head.canonical_logits(answers(head, seed=1))
    teacher[0, 1] = NAN
    if head.canonical_width is not None:
        teacher[0, 1, 0] = 1.0
    labels = torch.tensor([[0.0, 1.0, NAN, 1.0]] * 2)
    known = scored(head, teacher)
    assert known.sum() == 7
    for members in (1, 3):
        logits = answers(head, members)
        total, count = soft_loss(head, logits, teacher, plan, labels=labels)
        assert total.dtype == torch.float32
        assert torch.isfinite(total)
        assert count == 7
        parts = [soft_loss(head, logits[r : r + 1], teacher[r : r + 1], plan, labels=labels[:1]) for r in (0, 1)]
        torch.testing.assert_close(sum(part for part, _ in parts), total)
        weighted = soft_loss(head, logits, teacher, plan, torch.where(known, 3.0, NAN), labels)
        torch.testing.assert_close(weighted, (3 * total, 3 * count))
    apart = [soft_loss(head, logits[:, :, m], teacher, plan, labels=labels)[0] for m in range(3)]
    torch.testing.assert_close(total, sum(apart) / 3)


@pytest.mark.parametrize(("kind", "loss"), LOSSES)
def test_no_answer_gives_a_gradient_of_zero(kind, loss):
    """Prevents an absent gradient, which stops DDP, where a teacher has nothing to say."""
    head = head_of(kind)
    own = torch.randn(2, 4, *(() if head.own_width is None else (head.own_width,)))
    teacher = torch.full_like(head.canonical_logits(answers(head, own=own)), NAN)
    total, found = gradient(head, own, teacher, TaskDistillation(loss))
    assert total == 0
    assert found.count_nonzero() == 0


@pytest.mark.parametrize(("kind", "loss"), LOSSES)
def test_extreme_answers_stay_finite(kind, loss):
    """Prevents one diverging answer, of either side, from making the whole batch NaN."""
    head = head_of(kind)
    values = torch.tensor([[-1e4, -100.0, 100.0, 1e4]] * 2)
    own = values if head.own_width is None else torch.stack([values, *[-values] * (head.own_width - 1)], dim=-1)
    with torch.no_grad():
        teachers = [
            head.canonical_logits(answers(head, own=side)) for side in (own, own.flip(1), torch.zeros_like(own))
        ]
    for teacher in teachers:
        total, found = gradient(head, own, teacher, TaskDistillation(loss))
        assert torch.isfinite(total)
        assert torch.isfinite(found).all()


# ------------------------------------------------------------------ heads that score the catalog
LISTS = [
    pytest.param(kind, loss, id=f"{kind}-{loss}") for kind in LIST_KINDS for loss in kind_of(HEADS.get(kind)).losses
]
ITEMS, DAY = 12, 86_400_000


def searcher(kind: str, **options) -> tuple[TaskHead, ItemRows, Tensor, RequestContext]:
    """A head all of whose parameters say something, items, states and when and after what they ask."""
    head = head_of(kind, **options)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    if options.get("item_age"):
        head.age.load(torch.cat([torch.full((2,), NO_TIME), torch.arange(ITEMS - 2) * DAY]))
    items = ItemRows(torch.randn(ITEMS, 8).requires_grad_(), id_rows_M=torch.arange(ITEMS))
    seen = VisibleEvents.of_requests(torch.randint(2, ITEMS, (6, 5)))
    return head, items, torch.randn(6, 8), RequestContext(torch.arange(3, 9) * DAY, seen)


@pytest.mark.parametrize("sampled", [False, True], ids=["all", "sampled"])
@pytest.mark.parametrize(
    "options",
    [{}, {"item_age": "release"}, {"item_age": "first_event"}, {"repeats": True}, {"cold_negatives": False}],
    ids=str,
)
@pytest.mark.parametrize(("kind", "loss"), LISTS)
def test_a_catalog_as_its_own_teacher_is_at_the_minimum(kind, loss, options, sampled):
    """Prevents a student from scoring lists in another way than a teacher: bias, age, or what is no candidate."""
    head, items, states, asked = searcher(kind, **options)
    plan = checked_plan(head, TaskDistillation(loss, temperature=2.0 if kind_of(head).losses[loss].tempered else 1.0))
    excluded = torch.tensor([0, 4, 0, 7, 0, 0])
    with torch.no_grad():
        scores = head(states, items, asked).scatter(1, excluded.unsqueeze(1), float("-inf"))
        listed, teacher = top_list(scores, 5 if not sampled else ITEMS, plan.temperature)
    counts = torch.ones(ITEMS)  # all items are listed if they are sampled: what is left is an estimate
    negatives = torch.arange(2, ITEMS) if sampled else None
    torch.manual_seed(0)
    leaves = [items.vectors_MD, *head.project.parameters()]
    total, count = kind_of(head).lists(head, plan, states, listed, teacher, items, counts, negatives, excluded, asked)
    gradients = torch.autograd.grad(total, leaves, materialize_grads=True)
    assert count == 6
    if loss != "plackett_luce":  # it has no minimum
        assert abs(total.item()) < 1e-4
        assert all(gradient.abs().max() < 1e-4 for gradient in gradients)
    other, _ = kind_of(head).lists(
        head, plan, states.flip(0), listed, teacher, items, counts, negatives, excluded, asked
    )
    assert other > total + 0.05
    assert any(g.abs().max() > 1e-3 for g in torch.autograd.grad(other, leaves, materialize_grads=True))
