"""Whether tensors hold what they held: a fingerprint of their bytes, for caches of what is computed from them.

Version counters of tensors miss writes through `.data` and by other libraries, so contents are read: far cheaper than
computing anew what was made of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import torch
from torch import Tensor

_BLOCK = 1 << 16  # words that one sum covers: half a MiB, which stays in cache


def content_key(tensors: Iterable[Tensor]) -> tuple[object, ...]:
    r"""A key that changes with any value, shape, type or device among the tensors.

    Formula: \sum_i m_i w_i \bmod 2^{64} over the 8-byte words w_i of a block with fixed odd random multipliers m_i, and
    the same over the sums of the blocks: a single changed word always changes it, several by all but a chance of about
    2^{-64} (multilinear hashing: Lemire and Kaser, 2014, "Strongly universal string hashing is fast").

    Example:
        >>> table = torch.zeros(3)
        >>> key = content_key([table])
        >>> table.data[1] = 1.0  # which no version counter of `table` tells
        >>> key == content_key([table])
        False
    """
    return tuple((_hash(_words(t)), tuple(t.shape), t.dtype, t.device) for t in tensors)


def _words(tensor: Tensor) -> Tensor:
    """Its bytes as int64, the last ones filled up with zeros."""
    flat = tensor.detach().contiguous().reshape(-1)
    data = flat.view(torch.uint8)
    if len(data) % 8:
        data = torch.cat([data, data.new_zeros(8 - len(data) % 8)])
    elif flat.storage_offset() * flat.element_size() % 8:
        data = data.clone()  # of a file that is mapped into memory: words must begin at a multiple of 8
    return data.view(torch.int64)


@cache
def _multipliers(device: torch.device) -> Tensor:
    return (torch.randint(-(1 << 62), 1 << 62, (_BLOCK,), generator=torch.Generator().manual_seed(0)) * 2 + 1).to(
        device
    )


def _hash(words: Tensor) -> int:
    multipliers = _multipliers(words.device)
    while len(words) > _BLOCK:
        sums = [(block * multipliers[: len(block)]).sum() for block in words.split(_BLOCK)]
        words = torch.stack(sums)
    return int((words * multipliers[: len(words)]).sum())
