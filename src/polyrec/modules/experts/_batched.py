"""Many small networks evaluated as one: what experts, masks and task networks are made of."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class BatchedLinear(nn.Module):
    r"""N linear maps in one matrix product, y_n = W_n x_n + b_n.

    The model initialises it like `nn.Linear`, and its `weight` decays like one.

    Shapes: x [P, I], read by all, or [N, P, I], one input each -> [N, P, O].

    Example:
        >>> layer = BatchedLinear(3, 4, 5)
        >>> layer(torch.zeros(2, 4)).shape, layer(torch.zeros(3, 2, 4)).shape
        (torch.Size([3, 2, 5]), torch.Size([3, 2, 5]))
    """

    bias: Tensor | None

    def __init__(self, count: int, width_in: int, width_out: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, width_in, width_out))
        self.register_parameter("bias", nn.Parameter(torch.empty(count, width_out)) if bias else None)

    def forward(self, x: Tensor) -> Tensor:
        """Apply all maps, shapes as in the class description."""
        x_NPI = x.expand(len(self.weight), -1, -1)
        if self.bias is None:
            return torch.bmm(x_NPI, self.weight)
        return torch.baddbmm(self.bias.unsqueeze(1), x_NPI, self.weight)


class BatchedMLP(nn.Module):
    r"""N networks with one hidden layer, f_n(x) = W_n2 dropout(gelu(W_n1 x)).

    Shapes: x [P, I] or [N, P, I] -> [N, P, O].
    """

    def __init__(self, count: int, width_in: int, inner: int, width_out: int, dropout: float) -> None:
        super().__init__()
        self.up, self.down = BatchedLinear(count, width_in, inner), BatchedLinear(count, inner, width_out)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Apply all networks, shapes as in the class description."""
        return self.down(self.dropout(F.gelu(self.up(x))))
