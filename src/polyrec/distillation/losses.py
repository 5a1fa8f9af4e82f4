"""Soft losses of outputs for pairs: what a student's output loses against a teacher's.

What all of them have in common:

* A teacher's NaN is no output: it counts as nothing. Gradients reach the student alone.
* They return (sum, number or weight of the outputs there are), both scalars.
* A student may have M members, an axis after the pairs' that the teacher does not have; a pair's loss is then
  the mean over members.
* They compute in single precision (double stays double), whatever comes in, and stay finite for logits of +-1e4.
* Where there is a temperature T, both sides' logits are divided by it and the loss is multiplied by T^2, so that its
  gradient stays as large as without (Hinton, Vinyals and Dean, 2015, "Distilling the Knowledge in a Neural Network").
  As T grows, T^2 KL becomes a squared difference of logits.

Letters: B users, C candidates, M members, K classes, thresholds or quantiles. Units of the logits are those in which
teachers and students exchange outputs, see `TaskHead.canonical_logits`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from polyrec.core.losses import LARGEST_LOG_RATE, half_poisson_deviance
from polyrec.core.reduction import masked_sum, over_members, per_member


# ------------------------------------------------------------------ probabilities
def binary_kl(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    r"""Yes or no, L = T^2 sum_i w_i KL(Bernoulli(p_i) || Bernoulli(q_i)), p = sigmoid(t / T), q = sigmoid(s / T).

    (Hinton et al., 2015.) At T = 1 its gradient is that of cross entropy with p as soft label.

    Shapes: student log odds s [B, C(, M)], teacher log odds t [B, C], weight [B, C] -> scalars.

    Example:
        >>> total, count = binary_kl(torch.zeros(3), torch.tensor([0.0, 1e4, float("nan")]))
        >>> round(total.item(), 4), count.item()  # 0 + log 2
        (0.6931, 2.0)
    """
    student, teacher, known = sides(student, teacher)
    losses = temperature**2 * bernoulli_divergence(student / temperature, teacher / temperature)
    return masked_sum(over_members(losses, known), known, weight)


def multiclass_kl(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    r"""One of K classes, L = T^2 sum_i w_i KL(softmax(t_i / T) || softmax(s_i / T)).

    (Hinton et al., 2015.) Only differences of logits within a row matter. A teacher's -inf is an impossible class.

    Shapes: student [B, C(, M), K], teacher [B, C, K], weight [B, C] -> scalars.

    Example:
        >>> total, count = multiclass_kl(torch.zeros(1, 4), torch.tensor([[0.0, -1e4, -1e4, -1e4]]))
        >>> round(total.item(), 4), count.item()  # log 4
        (1.3863, 1.0)
    """
    student, teacher, known = sides(student, teacher, wide=True)
    losses = temperature**2 * divergence(
        F.log_softmax(student / temperature, -1), F.log_softmax(teacher / temperature, -1)
    )
    return masked_sum(over_members(losses, known), known, weight)


def ordinal_kl(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    r"""One of K ordered classes, L = T^2 sum_i w_i sum_k P(y_i >= r_k) KL(Bernoulli(p_ik) || Bernoulli(q_ik)).

    p_ik = sigmoid(t_ik / T) is the teacher's P(y > r_k | y >= r_k), q_ik the student's, and P(y >= r_k) = p_i1 ..
    p_i(k-1) the teacher's. By the chain rule of relative entropy (Cover and Thomas, 2006, "Elements of Information
    Theory", theorem 2.5.3) the sum is the KL of the two distributions of the label, exactly. The conditional thresholds
    are those of CORN (Shi, Cao and Raschka, 2021); the temperature acts on them.

    Shapes: student log odds [B, C(, M), K - 1], teacher log odds [B, C, K - 1], weight [B, C] -> scalars.

    Example:
        >>> surely_lowest = torch.tensor([[-1e4, 0.0]])
        >>> round(ordinal_kl(torch.zeros(1, 2), surely_lowest)[0].item(), 4)  # the student gives it 1/2
        0.6931
    """
    student, teacher, known = sides(student, teacher, wide=True)
    teacher = teacher / temperature
    passed = F.logsigmoid(teacher).cumsum(-1)
    reached = torch.cat([torch.zeros_like(passed[..., :1]), passed[..., :-1]], dim=-1).exp()
    losses = temperature**2 * (reached * bernoulli_divergence(student / temperature, teacher)).sum(-1)
    return masked_sum(over_members(losses, known), known, weight)


def poisson_kl(student: Tensor, teacher: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    r"""A count, L = sum_i w_i KL(Poisson(e^t_i) || Poisson(e^s_i)) = sum_i w_i [e^s_i - e^t_i - e^t_i (s_i - t_i)].

    It is half the Poisson deviance (Nelder and Wedderburn, 1972, "Generalized Linear Models") of the teacher's rate, so
    the soft loss of a count is its hard loss with the expected count in the place of the count.

    Shapes: student log rates s [B, C(, M)], teacher log rates t [B, C], weight [B, C] -> scalars.

    Example:
        >>> total, count = poisson_kl(torch.zeros(2), torch.tensor([1.0, float("nan")]))
        >>> round(total.item(), 4), count.item()  # 1 - e - e (0 - 1)
        (1.0, 1.0)
    """
    student, teacher, known = sides(student, teacher)
    losses = half_poisson_deviance(student, teacher.clamp(max=LARGEST_LOG_RATE).exp())
    return masked_sum(over_members(losses, known), known, weight)


# ------------------------------------------------------------------ numbers
def squared_error(
    student: Tensor, teacher: Tensor, weight: Tensor | None = None, wide: bool = False
) -> tuple[Tensor, Tensor]:
    r"""A number, L = sum_i w_i (s_i - t_i)^2, or K of them, one by one, L = sum_i w_i 1/K sum_k (s_ik - t_ik)^2.

    Give both in units of the label's spread, so that losses of tasks with different units can be added. Of log odds it
    is logit matching (Ba and Caruana, 2014, "Do Deep Nets Really Need to be Deep?").

    Args:
        wide: whether outputs end in an axis K.

    Shapes: student [B, C(, M)(, K)], teacher [B, C(, K)], weight [B, C] -> scalars.

    Example:
        >>> squared_error(torch.zeros(1, 2), torch.tensor([[1.0, 3.0]]), wide=True)[0].item()
        5.0
    """
    student, teacher, known = sides(student, teacher, wide)
    losses = (student - teacher).square()
    return masked_sum(over_members(losses.mean(-1) if wide else losses, known), known, weight)


def huber_error(
    student: Tensor, teacher: Tensor, delta: float = 1.0, weight: Tensor | None = None, wide: bool = False
) -> tuple[Tensor, Tensor]:
    r"""Squares up to a difference of d, a straight line beyond it: L = sum_i w_i H(s_i - t_i).

    H(e) = e^2 for |e| <= d, else 2 d |e| - d^2 (Huber, 1964, "Robust Estimation of a Location Parameter"), for teachers
    that are wildly wrong at times. Of K quantiles it is the mean.

    Args:
        delta: d.
        wide: whether outputs end in an axis K.

    Shapes: as of `squared_error`.

    Example:
        >>> huber_error(torch.zeros(2), torch.tensor([0.5, 3.0]), delta=1.0)[0].item()  # 0.25 + (6 - 1)
        5.25
    """
    student, teacher, known = sides(student, teacher, wide)
    losses = 2 * F.huber_loss(student, teacher, reduction="none", delta=delta)
    return masked_sum(over_members(losses.mean(-1) if wide else losses, known), known, weight)


def bounded_error(
    student: Tensor, teacher: Tensor, labels: Tensor | None, margin: float = 0.0, weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    r"""A number with the teacher as a bound, L = sum_i w_i (s_i - y_i)^2 [(s_i - y_i)^2 + m > (t_i - y_i)^2].

    A teacher can be wrong by more than the student, so it does not say where to go, but when it is enough: a student
    that is nearer to the label y by the margin m loses nothing (Chen et al., 2017, "Learning Efficient Object Detection
    Models with Knowledge Distillation"). Where the label is unknown there is nothing to be nearer to, and the loss is
    (s_i - t_i)^2.

    Args:
        labels: in the units of the outputs, NaN = unknown; None: none is known.
        margin: m, in squared units.

    Shapes: student [B, C(, M)], teacher, labels and weight [B, C] -> scalars.

    Example:
        >>> student, teacher = torch.tensor([1.0, 3.0, 3.0]), torch.tensor([2.0, 1.0, 1.0])
        >>> bounded_error(student, teacher, torch.tensor([0.0, 0.0, float("nan")]))[0].item()  # 0 + 9 + 4
        13.0
    """
    student, teacher, known = sides(student, teacher)
    to_teacher = (student - teacher).square()
    if labels is None:
        return masked_sum(over_members(to_teacher, known), known, weight)
    label = per_member(labels, student).to(student.dtype)
    labelled, label = ~torch.isnan(label), torch.nan_to_num(label)
    to_label = (student - label).square()
    behind = to_label.detach() + margin > (teacher - label).square()
    losses = torch.where(labelled, torch.where(behind, to_label, 0.0), to_teacher)
    return masked_sum(over_members(losses, known), known, weight)


# ------------------------------------------------------------------ what they are made of
def at_least_single(values: Tensor) -> Tensor:
    """Values in single precision, or double if they are."""
    return values if values.dtype == torch.float64 else values.float()


def sides(student: Tensor, teacher: Tensor, wide: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Both sides in one shape and type, the teacher without gradient and NaN, and which outputs there are, [B, C].

    Args:
        wide: whether outputs end in an axis K; one NaN in it makes the whole output none.
    """
    student, teacher = at_least_single(student), at_least_single(teacher.detach())
    absent = torch.isnan(teacher).any(-1, keepdim=True) if wide else torch.isnan(teacher)
    filled = per_member(torch.where(absent, 0.0, teacher), student)
    return student, filled.to(student.dtype), ~(absent.squeeze(-1) if wide else absent)


def bernoulli_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(Bernoulli(sigmoid(t)) || Bernoulli(sigmoid(s))), elementwise; each sign by itself, so that nothing cancels."""
    return _one_side(student, teacher) + _one_side(-student, -teacher)


def _one_side(student: Tensor, teacher: Tensor) -> Tensor:
    p = torch.sigmoid(teacher)
    return torch.where(p > 0, p * (F.logsigmoid(teacher) - F.logsigmoid(student)), 0.0)


def divergence(log_student: Tensor, log_teacher: Tensor) -> Tensor:
    """KL(p || q) of log probabilities [..., K] -> [...]; what the teacher gives no chance to adds nothing."""
    p = log_teacher.exp()
    return torch.where(p > 0, p * (log_teacher - log_student), 0.0).sum(-1)
