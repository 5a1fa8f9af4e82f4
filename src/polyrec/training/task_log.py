"""What the training log says about each task."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class TaskLog:
    """Sums since the last log line: losses, weights, and cosines between the gradients of tasks.

    Everything stays on the device until a line is written.

    Example:
        >>> log = TaskLog(["like", "rating"])
        >>> losses, weights = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 1.5])
        >>> log.add(losses, weights, gramian=torch.tensor([[1.0, -1.0], [-1.0, 4.0]]))
        >>> log.line(steps=2)["cosine_like_rating"]
        -0.5
    """

    def __init__(self, task_names: list[str]) -> None:
        self.names = sorted(task_names)
        self.clear()

    def clear(self) -> None:
        """Begin a new line."""
        self.batches = 0
        self.loss_T = self.weight_T = torch.zeros(len(self.names))
        self.cosine_TT = self.count_TT = torch.zeros(0)

    def add(self, loss_T: Tensor, weight_T: Tensor, gramian: Tensor | None = None) -> None:
        """Add a batch; all of them sorted by name.

        Args:
            loss_T: [T], shares of the optimizer step's mean losses.
            weight_T: [T], what the raw loss of each task was multiplied by.
            gramian: [T, T].
        """
        self.batches += 1
        self.loss_T, self.weight_T = self.loss_T.to(loss_T) + loss_T, self.weight_T.to(weight_T) + weight_T
        if gramian is not None:
            norm_T = gramian.diagonal().clamp(min=0).sqrt()
            norm_TT = norm_T.outer(norm_T)
            known_TT = norm_TT > 0  # a task without labels in the batch has no direction
            cosine_TT = torch.where(known_TT, gramian / torch.where(known_TT, norm_TT, 1.0), 0.0)
            if len(self.cosine_TT) == 0:
                self.cosine_TT, self.count_TT = torch.zeros_like(cosine_TT), torch.zeros_like(cosine_TT)
            self.cosine_TT, self.count_TT = self.cosine_TT + cosine_TT, self.count_TT + known_TT

    def line(self, steps: int, reduce: Callable[[Tensor], Tensor] | None = None) -> dict[str, float]:
        """`loss_<task>`, `weight_<task>` and `cosine_<a>_<b>`, a before b.

        Args:
            steps: optimizer steps since the last line.
            reduce: sums a tensor over ranks; needed for losses alone, as weights and Gramian are the same everywhere.
        """
        loss_T = self.loss_T if reduce is None else reduce(self.loss_T)
        found = {f"loss_{n}": value / steps for n, value in zip(self.names, loss_T.tolist(), strict=True)}
        weights = (self.weight_T / max(self.batches, 1)).tolist()
        found |= {f"weight_{n}": value for n, value in zip(self.names, weights, strict=True)}
        counts, cosines = self.count_TT.tolist(), self.cosine_TT.tolist()
        for i, row in enumerate(counts):
            for j in range(i + 1, len(row)):
                if row[j]:
                    found[f"cosine_{self.names[i]}_{self.names[j]}"] = cosines[i][j] / row[j]
        return found
