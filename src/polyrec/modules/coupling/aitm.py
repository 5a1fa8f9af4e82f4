"""What the parent found out is passed on to the child's head."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from polyrec.core.configuration_polyrec import PolyRecConfig
from polyrec.core.registry import COUPLINGS
from polyrec.core.schema import TaskConfig
from polyrec.modules.coupling.monotone import Monotone


@COUPLINGS.register("aitm")
class AITM(Monotone):
    r"""Adaptive Information Transfer Multi-task (Xi et al., 2021).

    "Modeling the Sequential Dependence among Audience Multi-step Conversions with Multi-task Learning in Targeted
    Display Advertising". The child's head reads a mixture of its own hidden vector and of what the parent transfers,

        t = dropout(gelu(W_t h_parent + b_t)),    h = a_own v(h_child) + a_transferred v(t),
        (a_own, a_transferred) = softmax(<q(h_child), k(h_child)> / sqrt(D), <q(t), k(t)> / sqrt(D)),

    with linear q, k and v, so each pair decides by itself how much it takes from the parent. In a chain the grandchild
    reads what its parent read, i.e. the mixture. The loss is that of [`Monotone`] (the paper's calibrator),
    L = L_child + c sum_i w_i max(p_child,i - p_parent,i, 0).

    Use it for steps in a row (impression, click, cart, purchase) where the later ones are too rare to learn a good
    representation of their own. The order of probabilities is encouraged, not guaranteed; `esmm` guarantees it.

    Labels: of the child on all rows, 0 where the parent is 0, NaN where unknown. The parent's are not read.

    Options: `penalty` (c; the paper's best value is the default).

    Shapes: hidden [B, C, D] or [B, C, M, D] of child and parent -> the same.

    Example:
        >>> from polyrec import PolyRecConfig
        >>> tasks = [{"name": "click", "head": "binary"},
        ...          {"name": "buy", "head": "binary", "parent": "click", "coupling": "aitm"}]
        >>> config = PolyRecConfig(tasks=tasks, hidden_size=4)
        >>> click, buy = config.task_configs
        >>> AITM(buy, click, config).hidden(torch.zeros(2, 3, 4), torch.ones(2, 3, 4)).shape
        torch.Size([2, 3, 4])
    """

    default_options: ClassVar[dict[str, Any]] = {"penalty": 0.6}

    def __init__(self, task: TaskConfig, parent: TaskConfig, config: PolyRecConfig) -> None:
        super().__init__(task, parent, config)
        width = config.pair_width
        self.transfer = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Dropout(config.dropout))
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def hidden(self, hidden: Tensor, parent_hidden: Tensor) -> Tensor:
        """Mix the child's own vector with what the parent transfers."""
        sources = torch.stack([hidden, self.transfer(parent_hidden)], dim=-2)  # [..., 2, D]
        scores = (self.query(sources) * self.key(sources)).sum(-1, keepdim=True) / hidden.shape[-1] ** 0.5
        return (torch.softmax(scores, dim=-2) * self.value(sources)).sum(-2)
