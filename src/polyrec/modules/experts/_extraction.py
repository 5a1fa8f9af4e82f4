"""One level of experts of which some belong to a task and some to all: what CGC and PLE are made of."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from polyrec.modules.experts._batched import BatchedLinear, BatchedMLP
from polyrec.modules.experts._gates import mixture


class Extraction(nn.Module):
    r"""h_t' = h_t + sum_e g_te f_e over task t's own and the shared experts; h_s' = h_s + sum_e g_se f_e over all.

    A task's own experts and its gate read norm(h_t), the shared experts and the shared gate read norm(h_s). Without a
    `shared_gate` there is no h_s': the last level of PLE must not have parameters that nothing depends on.

    Args:
        tasks, own, shared: number of tasks, of experts of each task, of shared experts.

    Shapes: h_t [T, P, D] and h_s [1, P, D], or one [1, P, D] that all read (first level) -> h_t' [T, P, D],
    h_s' [1, P, D] or None, and the gates: [T, P, own + shared], then [1, P, T * own + shared] of a shared gate.
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

    def forward(self, task: Tensor, common: Tensor | None = None) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        """What the next level reads, and the gates."""
        normed_task = normed_common = inputs = self.norm(task)
        if common is None:
            common = task
        else:
            normed_common = self.norm(common)
            inputs = torch.cat(
                [normed_task.repeat_interleave(self.own, dim=0), normed_common.expand(self.shared, -1, -1)]
            )
        experts_EPD = self.experts(inputs)
        own_EPD, shared_EPD = experts_EPD.split([self.tasks * self.own, self.shared])
        gates_TPE = torch.softmax(self.gates(normed_task), dim=-1)
        own_TPE, shared_TPE = gates_TPE.split([self.own, self.shared], dim=-1)
        own_TEPD = own_EPD.unflatten(0, (self.tasks, self.own))
        task_TPD = task + mixture(own_TPE, own_TEPD) + mixture(shared_TPE, shared_EPD)
        if self.shared_gate is None:
            return task_TPD, None, [gates_TPE]
        gates_1PE = torch.softmax(self.shared_gate(normed_common), dim=-1)
        return task_TPD, common + mixture(gates_1PE, experts_EPD), [gates_TPE, gates_1PE]
