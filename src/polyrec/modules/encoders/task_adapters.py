"""A small step of its own that a task takes before its head reads: what `polyrec finetune` trains."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import initialization as init


class TaskAdapter(nn.Module):
    r"""h' = h + B A h, of low rank.

    The form of Hu et al. (2022, "LoRA: Low-Rank Adaptation of Large Language Models") at the one place where a task
    stands alone: pair tasks read h from the expert layer, retrieval tasks read the state h. Other tasks read what
    they read before, bit by bit, so that adapters of several tasks lie side by side in one model. B starts at 0: a new
    adapter changes nothing yet.

    Shapes: [..., D] -> [..., D].

    Example:
        >>> import torch
        >>> adapter = TaskAdapter(4, rank=2)
        >>> adapter.initialise()
        >>> bool((adapter(torch.ones(3, 4)) == 1).all())
        True
    """

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, rank, bias=False), nn.Linear(rank, width, bias=False)

    def initialise(self) -> None:
        """Start as no step at all."""
        init.zeros_(self.up.weight)

    def forward(self, hidden: Tensor) -> Tensor:
        """What the head reads, shapes as in the class description."""
        return hidden + self.up(self.down(hidden))
