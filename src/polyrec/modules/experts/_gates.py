"""What gated layers share: mixtures of experts, and a penalty on experts that are left out."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from polyrec.core.configuration_polyrec import PolyRecConfig
from polyrec.modules.experts.base import ExpertLayer


def mixture(gates_TPE: Tensor, experts: Tensor) -> Tensor:
    """Sum of the experts' outputs, weighted by each task's gate.

    Args:
        gates_TPE: [T, P, E].
        experts: [E, P, D], the same for all tasks, or [T, E, P, D].

    Returns:
        [T, P, D], in the type of the experts' outputs.
    """
    # Elementwise: as a matrix product this is P tiny ones, which take three times as long on CPU.
    weights_TEP1 = gates_TPE.to(experts.dtype).transpose(1, 2).unsqueeze(-1)
    return (weights_TEP1 * experts).sum(1)


def load_imbalance(gates_GPE: Tensor, real_P: Tensor | None) -> Tensor:
    r"""How unevenly gates use their experts: CV(importance)^2, averaged over the gates G.

    The importance of an expert is its gate value summed over real pairs, and CV the standard deviation over the mean
    (Shazeer et al., 2017, "Outrageously Large Neural Networks"). For gates that sum to 1 this is E sum_e p_e^2 - 1 with
    p_e the mean gate: the loss of Fedus et al. (2021, "Switch Transformers") for soft gates, less its minimum. It is
    0 when all are used alike, E - 1 when one takes all, and 0 without real pairs.

    Example:
        >>> used_alike, one_takes_all = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]), torch.tensor([[[1.0, 0.0]] * 2])
        >>> load_imbalance(used_alike, None).item(), load_imbalance(one_takes_all, None).item()
        (0.0, 1.0)
    """
    real_P1 = gates_GPE.new_ones(gates_GPE.shape[1], 1) if real_P is None else real_P.to(gates_GPE.dtype).unsqueeze(-1)
    mean_GE = (gates_GPE * real_P1).sum(1) / real_P1.sum().clamp(min=1)
    return mean_GE.var(-1, unbiased=False).mean() * mean_GE.shape[-1] ** 2


class GatedLayer(ExpertLayer):
    """Base of layers with gates: they have an option `load_balancing`, the coefficient of `load_imbalance`."""

    default_options: dict[str, Any] = {"load_balancing": 0.0}

    def __init__(self, config: PolyRecConfig, task_names: list[str]) -> None:
        super().__init__(config, task_names)
        self.load_balancing = self.options["load_balancing"]
        if not 0 <= self.load_balancing < math.inf:
            raise ValueError(
                f"option 'load_balancing' of expert layer {config.experts!r} is {self.load_balancing}; it must be a "
                "finite number >= 0 (0 = no penalty)"
            )

    def penalty(self, gates: list[Tensor], real_BC: Tensor | None) -> Tensor | None:
        """The penalty of several sets of gates [G, P, E]; None if its coefficient is 0."""
        if not self.load_balancing:
            return None
        real_P = None if real_BC is None else real_BC.flatten()
        return self.load_balancing * torch.stack([load_imbalance(g, real_P) for g in gates]).sum()
