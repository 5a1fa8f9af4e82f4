r"""Weights as int8: a quarter of the size, nearly the same predictions.

Each row of a matrix or table is held as int8 numbers c and one scale s,

    s = max_j |w_j| / 127,   c_j = round(w_j / s),   w_j ~ s c_j,   |w_j - s c_j| <= s / 2

(symmetric: Jacob et al., 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference"; a scale per row: Krishnamoorthi, 2018, "Quantizing deep convolutional networks for efficient inference").
Numbers and scales are buffers, so that files hold plain tensors. Products are computed in single precision, from
numbers that are converted when they are used: torch's CPU kernels for whole numbers (`linear_dynamic`, `_int_mm`) were
not faster at the widths of recommenders when we measured them, and the former are deprecated and packed into objects
that only pickle can save.

Letters: I inputs, O outputs, N rows of a table, D width, n maps side by side.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyrec.modules.encoders.backbone import Backbone
from polyrec.modules.encoders.item_table import ItemTable, LowRankItemTable
from polyrec.modules.experts._batched import BatchedLinear

SMALLEST_WIDTH = 8  # shorter rows gain too little beside their scale
_LARGEST = 127


class Int8Weight(nn.Module):
    """Base of what holds rows of int8 numbers with a scale each.

    Args:
        shape: [..., R], the last axis being the rows' own.
    """

    numbers: Tensor
    scales: Tensor

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.register_buffer("numbers", torch.zeros(shape, dtype=torch.int8))
        self.register_buffer("scales", torch.ones(shape[:-1]))

    def take(self, rows: Tensor) -> None:
        """Become the nearest to these rows."""
        self.numbers, self.scales = to_int8(rows)

    @property
    def weight(self) -> Tensor:
        """What the numbers stand for, for readers; what is written into it is lost."""
        return self.numbers * self.scales.unsqueeze(-1)


class Int8Linear(Int8Weight):
    """A linear map of int8 numbers, y = s (C x) + b; see the module.

    Shapes: [..., I] -> [..., O].

    Example:
        >>> linear, x = nn.Linear(16, 3), torch.ones(5, 16)
        >>> bool((Int8Linear.of(linear)(x) - linear(x)).abs().max() < 0.05)
        True
    """

    bias: Tensor | None

    def __init__(self, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__(outputs, inputs)
        self.register_buffer("bias", torch.zeros(outputs) if bias else None)

    @classmethod
    def of(cls, linear: nn.Linear) -> Int8Linear:
        """The nearest to a linear map."""
        made = cls(linear.in_features, linear.out_features, linear.bias is not None)
        made.take(linear.weight)
        made.bias = None if linear.bias is None else linear.bias.detach().clone()
        return made

    def forward(self, x: Tensor) -> Tensor:
        """Apply, shapes as in the class description."""
        y = F.linear(x, self.numbers.to(x.dtype)) * self.scales.to(x.dtype)
        return y if self.bias is None else y + self.bias.to(x.dtype)


class Int8BatchedLinear(Int8Weight):
    """Several linear maps at once, see [`~polyrec.modules.experts._batched.BatchedLinear`].

    Shapes: x [P, I] or [n, P, I] -> [n, P, O].
    """

    bias: Tensor | None

    def __init__(self, count: int, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__(count, outputs, inputs)
        self.register_buffer("bias", torch.zeros(count, outputs) if bias else None)

    @classmethod
    def of(cls, linear: BatchedLinear) -> Int8BatchedLinear:
        """The nearest to some linear maps."""
        count, inputs, outputs = linear.weight.shape
        made = cls(count, inputs, outputs, linear.bias is not None)
        made.take(linear.weight.transpose(1, 2))
        made.bias = None if linear.bias is None else linear.bias.detach().clone()
        return made

    def forward(self, x: Tensor) -> Tensor:
        """Apply all maps, shapes as in the class description."""
        x_nPI = x.expand(len(self.numbers), -1, -1)
        y_nPO = torch.bmm(x_nPI, self.numbers.to(x.dtype).transpose(1, 2)) * self.scales.to(x.dtype).unsqueeze(1)
        return y_nPO if self.bias is None else y_nPO + self.bias.to(x.dtype).unsqueeze(1)


class Int8Embedding(Int8Weight):
    """A table of int8 numbers; rows are converted when they are looked up. See the module.

    Shapes: ids [...] -> [..., D].

    Example:
        >>> made = Int8Embedding.of(nn.Embedding(10, 16, padding_idx=0))
        >>> made(torch.tensor([[3, 0]])).shape, made(torch.tensor(0)).abs().sum().item()
        (torch.Size([1, 2, 16]), 0.0)
    """

    @classmethod
    def of(cls, table: nn.Embedding) -> Int8Embedding:
        """The nearest to a table."""
        made = cls(*table.weight.shape)
        made.take(table.weight)
        return made

    def forward(self, ids: Tensor) -> Tensor:
        """Look up, shapes as in the class description."""
        return self.numbers[ids] * self.scales[ids].unsqueeze(-1)


@torch.no_grad()
def to_int8(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers and scales of rows, see the module; rows of zeros stay zeros, and scales have the rows' type.

    Example:
        >>> to_int8(torch.tensor([[0.5, -1.27], [0.0, 0.0]]))[0].tolist()
        [[50, -127], [0, 0]]
    """
    exact = rows.detach().float()
    largest = exact.abs().amax(dim=-1)
    scales = torch.where(largest > 0, largest / _LARGEST, 1.0).to(rows.dtype)  # numbers fit the scales that are kept
    numbers = (exact / scales.float().unsqueeze(-1)).nan_to_num()  # a scale may be rounded to 0
    return numbers.round().clamp(-_LARGEST, _LARGEST).to(torch.int8), scales


def convert(module: nn.Module) -> None:
    """Replace the linear maps and tables inside a module by those of int8 numbers, in place.

    Pretrained backbones, whose weights lie elsewhere, stay as they are, and so do rows shorter than `SMALLEST_WIDTH`
    and whatever is more than a linear map or a table.
    """
    for name, child in module.named_children():
        if isinstance(child, Backbone):
            continue
        replacement = _int8(child)
        if replacement is None:
            convert(child)
        else:
            setattr(module, name, replacement)


def _int8(module: nn.Module) -> nn.Module | None:
    if type(module) is nn.Linear and module.in_features >= SMALLEST_WIDTH:
        return Int8Linear.of(module)
    if type(module) is BatchedLinear and module.weight.shape[1] >= SMALLEST_WIDTH:
        return Int8BatchedLinear.of(module)
    if isinstance(module, nn.Embedding) and module.embedding_dim >= SMALLEST_WIDTH:
        if isinstance(module, LowRankItemTable):
            return nn.Sequential(Int8Embedding.of(module), Int8Linear.of(module.up))
        if type(module) in (nn.Embedding, ItemTable):
            return Int8Embedding.of(module)
    return None
