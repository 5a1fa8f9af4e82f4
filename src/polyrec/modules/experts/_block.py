"""The network that all tasks share in `shared_bottom` and in layers built on it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SharedBlock(nn.Module):
    r"""f(h) = W_2 dropout(gelu((W_1 (norm(h) * r_m)) * s_m)); the scales r_m and s_m exist for several members only.

    Shapes: [..., D] -> [..., D], or [..., M, D] -> [..., M, D] for M > 1 members.
    """

    def __init__(self, width: int, inner: int, dropout: float, members: int = 1) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.dropout = nn.Dropout(dropout)
        several = members > 1
        self.scale_in = nn.Parameter(torch.empty(members, width)) if several else None
        self.scale_out = nn.Parameter(torch.empty(members, inner)) if several else None

    def forward(self, hidden: Tensor) -> Tensor:
        """What the block adds to its input, shapes as in the class description."""
        hidden = self.norm(hidden)
        if self.scale_in is not None:
            hidden = hidden * self.scale_in
        hidden = self.up(hidden)
        if self.scale_out is not None:
            hidden = hidden * self.scale_out
        return self.down(self.dropout(F.gelu(hidden)))
