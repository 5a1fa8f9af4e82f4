"""What the training log says beside the tasks: gates, learning rates, throughput, memory."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from polyrec.modules.encoders.item import PADDING_ITEM


class StepLog:
    """Counts and sums since the last log line; everything stays on the device until a line is written.

    Args:
        gate_sources: {task: what its gates weigh}, of the model.

    Example:
        >>> log = StepLog({"like": ["expert_0", "expert_1"]})
        >>> gates = {"like": torch.tensor([[[0.25, 0.75], [0.0, 0.0]]])}  # the second candidate is padding
        >>> log.add({"item_ids": torch.tensor([[2, 3, 0]]), "candidate_ids": torch.tensor([[4, 0]])}, gates)
        >>> line = log.line(steps=1)
        >>> line["gate_like_expert_1"], line["events_per_second"] > line["candidates_per_second"]
        (0.75, True)
    """

    def __init__(self, gate_sources: Mapping[str, Sequence[str]]) -> None:
        self.sources = {
            task: [re.sub(r"\W+", "_", source) for source in gate_sources[task]] for task in sorted(gate_sources)
        }
        self.begun = False
        self.clear()

    def begin(self) -> None:
        """Start the clock with the first step of a training."""
        if not self.begun:
            self.begun = True
            self.clear()

    def skip(self, seconds: float) -> None:
        """Leave time out that was not spent on training."""
        self.began += seconds

    def clear(self) -> None:
        """Begin a new line."""
        self.began = time.perf_counter()
        self.count_2 = torch.zeros(2)  # events read, candidates scored
        self.gates = {task: torch.zeros(len(names)) for task, names in self.sources.items()}

    @torch.no_grad()
    def add(self, inputs: Mapping[str, Tensor], gates: Mapping[str, Tensor] | None) -> None:
        """Add a batch.

        Args:
            inputs: item_ids [B, L] and candidate_ids [B, C], 0 = padding.
            gates: {task: [B, C, E]}.
        """
        real_BC = inputs["candidate_ids"] != PADDING_ITEM
        count_2 = torch.stack([(inputs["item_ids"] != PADDING_ITEM).sum(), real_BC.sum()])
        self.count_2 = self.count_2.to(real_BC.device) + count_2
        for task, gate_BCE in (gates or {}).items():
            self.gates[task] = self.gates[task].to(real_BC.device) + gate_BCE[real_BC].float().sum(dim=0)

    def line(self, steps: int, reduce: Callable[[Tensor], Tensor] | None = None) -> dict[str, float]:
        """`steps_`, `events_` and `candidates_per_second` and `gate_<task>_<source>`, means over candidates.

        Args:
            steps: optimizer steps since the last line.
            reduce: sums a tensor over ranks.
        """
        seconds = max(time.perf_counter() - self.began, 1e-9)
        tensors = [self.count_2.float(), *self.gates.values()]
        if reduce is not None:
            tensors = [reduce(tensor.to(self.count_2.device)) for tensor in tensors]
        (events, candidates), *sums = [tensor.tolist() for tensor in tensors]
        found = {"steps_per_second": steps / seconds}
        found |= {"events_per_second": events / seconds, "candidates_per_second": candidates / seconds}
        for (task, names), total in zip(self.sources.items(), sums, strict=True):
            share = max(candidates, 1.0)
            found |= {f"gate_{task}_{name}": value / share for name, value in zip(names, total, strict=True)}
        return found


def learning_rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """`learning_rate_<n>` of the parameter groups that began with different rates, the highest first; not of one alone.

    Example:
        >>> one, two = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
        >>> learning_rates(torch.optim.SGD([{"params": [one], "lr": 0.5}, {"params": [two], "lr": 0.1}]))
        {'learning_rate_1': 0.5, 'learning_rate_2': 0.1}
    """
    # A scheduler keeps what a group began with; in the end all may be 0.
    rates = {float(group.get("initial_lr", group["lr"])): float(group["lr"]) for group in optimizer.param_groups}
    found = [rates[begun] for begun in sorted(rates, reverse=True)]
    return {f"learning_rate_{n}": rate for n, rate in enumerate(found, start=1)} if len(found) > 1 else {}


def memory(device: torch.device, peak_of_process: int | None) -> dict[str, Any]:
    """`memory_gb` (most that the process held) and on GPUs `gpu_memory_gb` (most that was allocated), 10^9 bytes."""
    found = {} if peak_of_process is None else {"memory_gb": peak_of_process / 1e9}
    if device.type == "cuda":
        found["gpu_memory_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
    return found
