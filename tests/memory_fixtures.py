"""The most memory that a piece of code holds in arrays and tensors, byte for byte and without the allocator's noise."""

from __future__ import annotations

import tracemalloc
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

FEW, MANY = 5_000, 50_000  # events of a long history, and of one ten times as long
GROWTH = 12.0  # by which memory may grow between the two: tables that grow by steps are up to a fifth larger


class _Tensors(TorchDispatchMode):
    """Counts the bytes of CPU tensors that operators make and that are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        for tensor in tree_leaves(found):
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            if storage._cdata not in given and storage._cdata not in self.alive:
                self.alive[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._freed, storage._cdata)
        return found

    def _freed(self, key: int) -> None:
        self.now -= self.alive.pop(key, 0)


def peak_of(run: Callable[[], Any]) -> int:
    """The most bytes of arrays and tensors at one time, of those that `run` makes."""
    tracemalloc.start()
    try:
        with _Tensors() as tensors:
            run()
        return tensors.peak + tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
