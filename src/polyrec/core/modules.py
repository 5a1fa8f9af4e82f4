"""What any `nn.Module` may need beside torch: a view in evaluation mode, and numbers that stay in single precision."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def eval_view(module: M) -> M:
    """The same module in evaluation mode, beside the one there is: parameters and buffers are shared, modes are not.

    `module.eval()` changes what every other thread computes with the module; this changes nothing. A view sees new
    values of weights, and new parameters in the place of old ones, but not what is set on the module after it was made:
    make one per request (about a microsecond per submodule).

    Example:
        >>> layer = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
        >>> view = eval_view(layer)
        >>> view.training, view[1].training, layer[1].training, view[0].weight is layer[0].weight
        (False, False, True, True)
    """
    return _view(module, {})


def _view(module: Any, made: dict[int, Any]) -> Any:
    if (found := made.get(id(module))) is not None:
        return found
    view = made[id(module)] = object.__new__(type(module))
    own = view.__dict__
    own.update(module.__dict__)
    own["training"] = False
    own["_modules"] = {name: None if child is None else _view(child, made) for name, child in own["_modules"].items()}
    own["_compiled_call_impl"] = None  # it is bound to the module and its mode
    for name, value in module.__dict__.items():
        # accelerate puts its mixed precision around `forward` as a method of the instance.
        if isinstance(value, MethodType) and value.__self__ is module:
            own[name] = MethodType(value.__func__, view)
    return view


class KeepsPrecision(nn.Module):
    """Base of modules whose own parameters and buffers keep their type when a model is cast to half precision.

    Counts and running means of a training: bfloat16 holds 8 binary digits, so that 256 + 1 = 256, and a mean that moves
    by a hundredth of its distance stands still. Parts of the module are cast as usual.

    Give the tensors their type explicitly, `torch.zeros(n, dtype=torch.float32)`: so they keep it in
    `from_pretrained(..., dtype=torch.bfloat16)`, too.

    Example:
        >>> class Counter(KeepsPrecision):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.register_buffer("seen", torch.zeros(2, dtype=torch.float32))
        >>> Counter().half().seen.dtype
        torch.float32
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        held = {name: t.data for own in (self._parameters, self._buffers) for name, t in own.items() if t is not None}
        super()._apply(fn, recurse)
        for name, before in held.items():
            after = self._parameters.get(name)
            if after is not None and after.dtype != before.dtype:
                after.data = before.to(after.device)
            elif (buffer := self._buffers.get(name)) is not None and buffer.dtype != before.dtype:
                self._buffers[name] = before.to(buffer.device)
        return self


def exact(values: Tensor) -> Tensor:
    """Values without gradient, in single precision at least: what sums and means are held in."""
    return values.detach().to(torch.promote_types(values.dtype, torch.float32))


def in_double(values: Tensor) -> Tensor:
    """Values in double precision; on the CPU if their device may have no such (MPS)."""
    return values.double() if values.device.type in ("cpu", "cuda") else values.cpu().double()
