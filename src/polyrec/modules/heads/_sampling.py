"""Numbers drawn in proportion to weights, of any number of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from polyrec.core.modules import in_double

_MULTINOMIAL = 1 << 24  # what torch.multinomial takes; its sums in single precision would lose more


def draw(weight_N: Tensor, count: int) -> Tensor:
    """`count` of the numbers 0..N-1 with replacement, int64, each in proportion to its weight.

    Example:
        >>> draw(torch.tensor([0.0, 1.0, 0.0]), 3).tolist()
        [1, 1, 1]
    """
    if len(weight_N) <= _MULTINOMIAL:
        return torch.multinomial(weight_N, count, replacement=True)
    return draw_by_sums(weight_N, torch.rand(count, device=weight_N.device))


def draw_by_sums(weight_N: Tensor, chance_K: Tensor) -> Tensor:
    """The numbers at which the running sum of weights first exceeds shares of the total, in [0, 1), int64 [K].

    Example:
        >>> draw_by_sums(torch.tensor([1.0, 0.0, 3.0]), torch.tensor([0.0, 0.2, 0.3, 0.9])).tolist()
        [0, 0, 2, 2]
    """
    sums_N = in_double(weight_N).cumsum(0)
    found_K = torch.searchsorted(sums_N, in_double(chance_K) * sums_N[-1], right=True)
    last = torch.searchsorted(sums_N, sums_N[-1:])  # of a weight above 0: a product may round up to the total
    return torch.minimum(found_K, last).to(weight_N.device)


def log_chances(weight_N: Tensor) -> Callable[[Tensor], Tensor]:
    """Logarithms of the chances of some numbers to be drawn in proportion to weights; of all N it would cost more.

    Weights below 1 count as 1, which only those do that are never drawn.

    Example:
        >>> log_chances(torch.tensor([1.0, 3.0]))(torch.tensor([1])).exp().tolist()
        [0.75]
    """
    total = weight_N.sum()
    return lambda numbers: torch.log(weight_N[numbers].clamp(min=1) / total)
