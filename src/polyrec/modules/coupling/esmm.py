"""The child's probability is a product along its chain of parents."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from polyrec.core.configuration_polyrec import PolyRecConfig
from polyrec.core.registry import COUPLINGS
from polyrec.core.schema import TaskConfig
from polyrec.modules.coupling.base import Coupling
from polyrec.modules.heads.binary import BinaryHead

# Where every positive parent has a positive child the conditional would start, and stay, at infinite log odds.
_SUREST_START = 0.999


@COUPLINGS.register("esmm")
class ESMM(Coupling):
    r"""Entire space multi-task model (Ma et al., 2018), P(child) = P(parent) P(child | parent).

    "Entire Space Multi-Task Model: An Effective Approach for Estimating Post-Click Conversion Rate". The child's own
    head gives the conditional b = logit P(child | parent), yet it is trained on all rows through the product, with
    the logistic loss of the joint event,

        L = -sum_i w_i [y_i log p_i + (1 - y_i) log(1 - p_i)],    p_i = sigmoid(a_i) sigmoid(b_i),

    where a is the parent's output. The child's output is the logit of p, which has an exact and stable closed form,

        logit p = -log(e^{-a} + e^{-b} + e^{-a-b}),

    so losses, metrics and chains of any length work on it as on every other logit. In a chain, p is the product of all
    conditionals.

    The child's head starts at its marginal base rate (option `prior` of the task); the conditional's is
    P(child) / P(parent), and the coupling shifts b by the difference, so that the first predictions are at the marginal
    rates. A child without `prior` is left where its head starts.

    Use it for what cannot happen without its parent (a purchase without a click), most of all where the child is rare:
    P(child) <= P(parent) holds by construction and the conditional is trained without the bias of clicked rows.

    Labels: of the JOINT event on all rows, 0 where the parent is 0, NaN where unknown. Labels given only where the
    parent is 1 make the product learn the conditional; priors that show this are refused. The parent's labels are not
    read here (its own loss reads them).

    Options: `detach_parent` (the child's loss does not train the parent's output; default False as in the paper).

    Shapes: logits [B, C] or [B, C, M] of child and parent -> the same, in float32 at least.

    Example:
        >>> from polyrec import PolyRecConfig
        >>> tasks = [{"name": "click", "head": "binary", "options": {"prior": 0.1}},
        ...          {"name": "buy", "head": "binary", "options": {"prior": 0.02},
        ...           "parent": "click", "coupling": "esmm"}]
        >>> config = PolyRecConfig(tasks=tasks)
        >>> click, buy = config.task_configs
        >>> logit = ESMM(buy, click, config).logits(torch.tensor(0.02).logit(), torch.tensor(0.1).logit())
        >>> round(torch.sigmoid(logit).item(), 4)
        0.02
    """

    default_options: ClassVar[dict[str, Any]] = {"detach_parent": False}

    def __init__(self, task: TaskConfig, parent: TaskConfig, config: PolyRecConfig) -> None:
        super().__init__(task, parent, config)
        prior, parent_prior = ({**BinaryHead.default_options, **t.options}["prior"] for t in (task, parent))
        # The rate at which the conditional starts: without a known rate of the child, that of its head.
        self.start = prior
        if "prior" in task.options:
            if prior > parent_prior:
                raise ValueError(
                    f"{self.what}: the prior {prior:.4g} is above the prior {parent_prior:.4g} of its parent "
                    f"{parent.name!r}, but P({task.name}) = P({parent.name}) P({task.name} | {parent.name}) cannot be. "
                    f"Label {task.name!r} on all rows, 0 where {parent.name!r} is 0 (not only where it is 1), or set "
                    "option 'prior' of both tasks"
                )
            self.start = min(prior / parent_prior, _SUREST_START)
        self.shift = _log_odds(self.start) - _log_odds(prior)

    def conditional(self, own_logits: Tensor) -> Tensor:
        """Log odds of P(child | parent), in float32 at least."""
        return _wide(own_logits) + self.shift

    def logits(self, logits: Tensor, parent_logits: Tensor) -> Tensor:
        """Log odds of P(parent) P(child | parent)."""
        if self.options["detach_parent"]:
            parent_logits = parent_logits.detach()
        return product_logit(parent_logits, self.conditional(logits))


def product_logit(a: Tensor, b: Tensor) -> Tensor:
    r"""logit(sigmoid(a) sigmoid(b)) = -log(e^{-a} + e^{-b} + e^{-a-b}), in float32 at least.

    1 / p = (1 + e^{-a})(1 + e^{-b}), and the odds of p are 1 / (1 / p - 1). Neither probability is ever formed, so
    nothing underflows: for very negative a and b the output is about a + b, for very positive ones about min(a, b).

    Example:
        >>> product_logit(torch.tensor([0.0, -100.0, 100.0]), torch.tensor([0.0, -100.0, -1.0]))
        tensor([  -1.0986, -200.0000,   -1.0000])
    """
    a, b = _wide(a), _wide(b)
    return -torch.logsumexp(torch.stack([-a, -b, -a - b]), dim=0)


def _wide(x: Tensor) -> Tensor:
    # Sums of half precision logits would round away what the smaller one says; float64 stays as it is.
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _log_odds(p: float) -> float:
    return math.log(p / (1 - p))
