"""Soft losses of lists: what a student's order or chances of some items lose against a teacher's.

What all of them have in common:

* A row belongs to one state: logits of K items, by the student and by the teacher. A place where either says
  -inf is empty: there is no item, or one that the student cannot score. A teacher's row with a NaN is no output and
  counts as nothing; one of empty places alone loses nothing.
* They return (sum, number or weight of the rows there are), both scalars. Gradients reach the student alone.
* They compute in single precision (double stays double), whatever comes in, and stay finite for logits of +-1e4.
* A temperature T divides both sides' logits and multiplies the loss by T^2, as in `polyrec.distillation.losses`.
* `rest` stands for all items that are not in the list: the log-sum-exp of their logits (divided by T, where there is a
  temperature). A student's -inf: there are none; a teacher's: they have no chance. See `polyrec.distillation.catalog`.

| | learns | reads scores | minimum |
|---|---|---|---|
| `list_kl` | the chances of items, and how much is left for the rest | yes | the teacher's differences |
| `list_net` | the chances within the list | yes | the teacher's differences |
| `rank_distil` | the order of the first places, likely orders more | yes | the teacher's differences |
| `plackett_luce` | the order of the first places alone | no | none: ever further apart |
| `margin_mse` | differences of scores | yes | the teacher's differences |

Letters: M rows, K places of a list, R places that are put in order.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from polyrec.core.distillation_config import TaskDistillation
from polyrec.core.reduction import masked_sum
from polyrec.distillation.choices import WHOLE, SoftLoss, one_of
from polyrec.distillation.losses import at_least_single, divergence

_NONE = float("-inf")
_FAR_BELOW = -1e30  # of a logit: no chance, where -inf would have a gradient of NaN

LIST_LOSSES = {
    "kl": SoftLoss(tempered=True),
    "list_net": SoftLoss(tempered=True),
    "rank_distil": SoftLoss(tempered=True, options={"depth": 10}, rules={"depth": WHOLE}),
    "plackett_luce": SoftLoss(options={"interesting": 30}, rules={"interesting": WHOLE}),
    "margin_mse": SoftLoss(options={"pairs": "first"}, rules={"pairs": one_of("first", "all")}),
}


def list_loss(
    plan: TaskDistillation, student_MK: Tensor, rest_M: Tensor, teacher_MK1: Tensor, weight_M: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The loss of lists that a plan names, see `LIST_LOSSES`.

    Args:
        plan: checked by `chosen`.
        student_MK, rest_M: of the student.
        teacher_MK1: of the teacher, the rest last.
        weight_M: of the rows.
    """
    teacher_MK, temperature = teacher_MK1[:, :-1], plan.temperature
    if plan.loss == "kl":
        return list_kl(student_MK, rest_M, teacher_MK1, temperature, weight_M)
    if plan.loss == "list_net":
        return list_net(student_MK, teacher_MK, temperature, weight_M)
    if plan.loss == "rank_distil":
        return rank_distil(student_MK, rest_M, teacher_MK1, plan.options["depth"], temperature, weight_M)
    if plan.loss == "plackett_luce":
        return plackett_luce(student_MK, teacher_MK, plan.options["interesting"], rest_M, weight_M)
    return margin_mse(student_MK, teacher_MK, plan.options["pairs"], weight_M)


def list_kl(
    student_MK: Tensor,
    rest_M: Tensor,
    teacher_MK1: Tensor,
    temperature: float = 1.0,
    weight_M: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""K items and all others as one, L = T^2 sum_i w_i KL(P_i || Q_i) over K + 1 outcomes.

    Q_i = softmax([s_i1 / T, .., s_iK / T, r_i]) with r_i = log sum_{j not in the list} exp(s_ij / T), and P_i likewise.
    This is the KL of two softmaxes over a catalog (Hinton et al., 2015) less what the student gets wrong among the
    items that the list leaves out (the chain rule of relative entropy), and all of it if the list is the catalog. The
    rest keeps the chances of the listed items honest: without it, items the teacher does not care for cost nothing.

    Shapes: student [M, K], student's rest [M], teacher [M, K + 1], weight [M] -> scalars.

    Example:
        >>> half_left = torch.tensor([[0.0, 0.0, torch.tensor(2.0).log()]])
        >>> total, count = list_kl(half_left[:, :2], half_left[:, 2], half_left)
        >>> total.item(), count.item()
        (0.0, 1.0)
    """
    student, teacher, known_M = _lists(*_with_rest(student_MK, rest_M, teacher_MK1, temperature), rest=True)
    losses = temperature**2 * divergence(F.log_softmax(student, -1), F.log_softmax(teacher, -1))
    return masked_sum(losses, known_M, weight_M)


def list_net(
    student_MK: Tensor, teacher_MK: Tensor, temperature: float = 1.0, weight_M: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    r"""Chances to come first within the list, L = T^2 sum_i w_i KL(softmax(t_i / T) || softmax(s_i / T)).

    ListNet with top-one probabilities (Cao et al., 2007, "Learning to Rank: From Pairwise Approach to Listwise
    Approach"), less the teacher's entropy: 0 is for a perfect student. It says nothing about items outside the list,
    so it needs a hard loss or lists with uninteresting items beside it.

    Shapes: student [M, K], teacher [M, K], weight [M] -> scalars.

    Example:
        >>> list_net(torch.zeros(1, 2), torch.tensor([[7.0, 7.0]]))[0].item()
        0.0
    """
    student, teacher, known_M = _lists(student_MK, teacher_MK)
    student, teacher = student / temperature, teacher / temperature
    losses = temperature**2 * divergence(F.log_softmax(student, -1), F.log_softmax(teacher, -1))
    return masked_sum(losses, known_M, weight_M)


def plackett_luce(
    student_MK: Tensor,
    teacher_MK: Tensor,
    interesting: int,
    rest_M: Tensor | None = None,
    weight_M: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Interesting items in the teacher's order, all above the others: relaxed ranking distillation.

        L = -sum_i w_i 1/R sum_{r <= R} log [exp s_i(r) / (sum_{r <= u <= K} exp s_i(u) + exp rest_i)]

    where (1), (2), .. are the places in the order of the teacher's scores and R the interesting ones: a Plackett-Luce
    model of the first R, in which the order of the others does not matter (Kang et al., 2020, "DE-RRD: A Knowledge
    Distillation Framework for Recommender System"; there the interesting items are drawn anew per epoch, by rank, and
    the sum is not divided by R, which is done here so that lists of any length weigh alike). Only the teacher's order
    counts, so its scores may be of any kind. With R = 1 it is cross entropy with the teacher's first item as label.

    Args:
        interesting: R, or all items of a shorter list.
        rest_M: of the student at T = 1; None: items outside the list count as nothing.

    Shapes: student [M, K], teacher [M, K], rest [M], weight [M] -> scalars.

    Example:
        >>> total, _ = plackett_luce(torch.zeros(1, 3), torch.tensor([[3.0, 2.0, 1.0]]), interesting=2)
        >>> round(2 * total.item(), 4)  # log 3 + log 2
        1.7918
    """
    student, teacher, known_M = _lists(student_MK, teacher_MK)
    teacher, order_MK = teacher.sort(dim=1, descending=True, stable=True)
    student, count = student.gather(1, order_MK).clamp(min=_FAR_BELOW), min(interesting, teacher.shape[1])
    below = student.flip(1).logcumsumexp(1).flip(1)  # of a place and all after it
    if rest_M is not None:
        below = torch.logaddexp(below, at_least_single(rest_M).to(student.dtype).unsqueeze(1))
    real = (teacher > _NONE)[:, :count]
    losses = torch.where(real, below[:, :count] - student[:, :count], 0.0).sum(1) / real.sum(1).clamp(min=1)
    return masked_sum(losses, known_M, weight_M)


def rank_distil(
    student_MK: Tensor,
    rest_M: Tensor,
    teacher_MK1: Tensor,
    depth: int,
    temperature: float = 1.0,
    weight_M: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""The first R places of a ranking drawn from the teacher, as likely orders as it finds them.

        L = T^2 sum_i w_i E_{order ~ teacher} 1/R sum_{r <= R} KL(P_i(. | first r - 1) || Q_i(. | first r - 1))

    P(. | ..) is the teacher's softmax over the items that are left, and all that are not in the list as one. Without
    that rest it is, by the chain rule, 1/R of the KL of two Plackett-Luce models of the first R places. In the spirit
    of RankDistil (Reddi et al., 2021, "RankDistil: Knowledge Distillation for Ranking"): it preserves the teacher's
    order at the top, weighs orders by their chances, and high scores of items that the teacher ranks low cost at every
    place. (There it is cross entropy with drawn orders; a KL per place has less variance, and is 0 for a perfect
    prediction.)

    The order is drawn anew each time: Gumbel noise on the teacher's scores (Yellott, 1977).

    Args:
        depth: R, or all items but the last of a shorter list.

    Shapes: as of `list_kl`; needs [M, R, K + 1] numbers.

    Example:
        >>> teacher = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
        >>> rank_distil(teacher[:, :3], teacher[:, 3], teacher, depth=2)[0].item()
        0.0
    """
    student, teacher, known_M = _lists(*_with_rest(student_MK, rest_M, teacher_MK1, temperature), rest=True)
    noise = -torch.empty_like(teacher[:, :-1]).exponential_().log()
    drawn_MR = (teacher[:, :-1] + noise).topk(min(depth, teacher.shape[1] - 1), dim=1).indices
    # Place r still has what was not drawn before it.
    draw = F.one_hot(drawn_MR, teacher.shape[1]).bool()
    earlier_draw = draw.cumsum(1).bool() & ~draw
    student, teacher = (side.unsqueeze(1).masked_fill(earlier_draw, _NONE) for side in (student, teacher))
    left = teacher > _NONE
    # Once the list is used up, nothing is compared.
    compared = left.gather(2, drawn_MR.unsqueeze(2)).squeeze(2)
    student, teacher = (torch.where(compared.unsqueeze(2), side, 0.0) for side in (student, teacher))
    losses = divergence(F.log_softmax(student, -1), F.log_softmax(teacher, -1))
    losses = temperature**2 * losses.sum(1) / compared.sum(1).clamp(min=1)
    return masked_sum(losses, known_M, weight_M)


def margin_mse(
    student_MK: Tensor, teacher_MK: Tensor, pairs: str = "first", weight_M: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    r"""Differences of scores, L = sum_i w_i mean_{(a, b)} [(s_ia - s_ib) - (t_ia - t_ib)]^2.

    Margin-MSE (Hofstaetter et al., 2020, "Improving Efficient Neural Ranking Models with Cross-Architecture Knowledge
    Distillation"). Only differences count, so a teacher may have another zero, but not another unit.

    Args:
        pairs: "first": the teacher's first item with each other; "all": all pairs.

    Shapes: student [M, K], teacher [M, K], weight [M] -> scalars. A row needs two items.

    Example:
        >>> margin_mse(torch.zeros(1, 3), torch.tensor([[9.0, 8.0, 7.0]]))[0].item()  # (1 + 4) / 2
        2.5
        >>> margin_mse(torch.zeros(1, 3), torch.tensor([[9.0, 8.0, 7.0]]), pairs="all")[0].item()  # (1 + 1 + 4) / 3
        2.0
    """
    student, teacher, known_M = _lists(student_MK, teacher_MK)
    real = teacher > _NONE
    count_M = real.sum(1)
    apart = torch.where(real, student, 0.0) - torch.where(real, teacher, 0.0)
    if pairs == "first":
        squares = torch.where(real, apart - apart.gather(1, teacher.argmax(1, keepdim=True)), 0.0).square()
        losses = squares.sum(1) / (count_M - 1).clamp(min=1)
    else:  # over ordered pairs, sum_ab (d_a - d_b)^2 = 2 n sum_a (d_a - mean)^2
        mean_M1 = (apart.sum(1) / count_M.clamp(min=1)).unsqueeze(1)
        losses = 2 * torch.where(real, apart - mean_M1, 0.0).square().sum(1) / (count_M - 1).clamp(min=1)
    return masked_sum(losses, known_M, weight_M)


def _with_rest(student_MK: Tensor, rest_M: Tensor, teacher_MK1: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Logits over T of the K items and, last, the rest, of both sides, [M, K + 1]."""
    student, teacher = at_least_single(student_MK), at_least_single(teacher_MK1)
    own_rest_M1 = at_least_single(rest_M).to(student.dtype).unsqueeze(1)
    return (
        torch.cat([student / temperature, own_rest_M1], dim=1),
        torch.cat([teacher[:, :-1] / temperature, teacher[:, -1:]], dim=1),
    )


def _lists(student_MK: Tensor, teacher_MK: Tensor, rest: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Both sides with the same empty places (-inf), and which rows count.

    A row without an output, or without items, is zeros on both sides.

    Args:
        rest: whether the last place is the rest, to which a teacher may leave no chance (-inf) where the student does.
    """
    student, teacher = at_least_single(student_MK), at_least_single(teacher_MK.detach())
    no_chance = teacher == _NONE
    if rest:
        no_chance = no_chance & (torch.arange(no_chance.shape[1], device=no_chance.device) < no_chance.shape[1] - 1)
    known_M, empty = ~torch.isnan(teacher).any(1), (student == _NONE) | no_chance
    student, teacher = (side.masked_fill(empty, _NONE) for side in (student, teacher))
    nothing_M1 = (~known_M | (teacher == _NONE).all(1)).unsqueeze(1)
    student, teacher = (torch.where(nothing_M1, 0.0, side) for side in (student, teacher))
    return student, teacher.to(student.dtype), known_M
