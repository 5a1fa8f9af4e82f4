"""One level of experts of which some belong to a task and some to all: what CGC and PLE are made of."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from polyrec.experts._batched import BatchedLinear, BatchedMLP
from polyrec.experts._gates import mixture


class Extraction(nn.Module):
    r"""h_t' = h_t + sum_e g_te f_e over task t's own and the shared experts; h_s' = h_s + sum_e g_se f_e over all.

    A task's own experts and its gate read norm(h_t), the shared experts and the shared gate read norm(h_s). Without a
    `shared_gate` there is no h_s': the last level of PLE must not have parameters that nothing depends on.

    Args:
        tasks, own, shared: number of tasks, of experts of each task, of shared experts.

    Shapes: [P, D] (first level: all read the same), or [T + 1, P, D] with the shared one last -> states [T + 1, P, D],
    or [T, P, D] without a shared gate; gates [T, P, own + shared], and [1, P, T * own + shared] of the shared gate.
    """

    def __init__(
        self, tasks: int, own: int, shared: int, width: int, inner: int, dropout: float, shared_gate: bool
    ) -> None:
        super().__init__()
        self.tasks, self.own, self.shared = tasks, own, shared
        count = tasks * own + shared
        self.norm = nn.LayerNorm(width)
        self.experts = BatchedMLP(count, width, inner, width, dropout)
        self.gates = BatchedLinear(tasks, width, own + shared)
        self.shared_gate = nn.Linear(width, count) if shared_gate else None

    def forward(self, states: Tensor) -> tuple[Tensor, list[Tensor]]:
        """States of the next level, and the gates."""
        normed = self.norm(states)
        first = normed.dim() == 2
        task, common_PD = (normed, normed) if first else (normed[:-1], normed[-1])
        experts_EPD = self.experts(normed if first else self._inputs(task, common_PD))
        own_EPD, shared_EPD = experts_EPD.split([self.tasks * self.own, self.shared])
        gates_TPE = torch.softmax(self.gates(task), dim=-1)
        own_TPE, shared_TPE = gates_TPE.split([self.own, self.shared], dim=-1)
        mixed_SPD = mixture(own_TPE, own_EPD.unflatten(0, (self.tasks, self.own))) + mixture(shared_TPE, shared_EPD)
        gates = [gates_TPE]
        if self.shared_gate is not None:
            gates.append(torch.softmax(self.shared_gate(common_PD), dim=-1).unsqueeze(0))
            mixed_SPD = torch.cat([mixed_SPD, mixture(gates[-1], experts_EPD)])
        return (states if first else states[: len(mixed_SPD)]) + mixed_SPD, gates

    def _inputs(self, task_TPD: Tensor, common_PD: Tensor) -> Tensor:
        """What each expert reads, [E, P, D]: task by task, the shared ones last."""
        return torch.cat([task_TPD.repeat_interleave(self.own, dim=0), common_PD.expand(self.shared, -1, -1)])
