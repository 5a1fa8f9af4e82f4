"""A device that no machine lacks: tensors that say they lie elsewhere and are refused beside tensors of the CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

ELSEWHERE = torch.device("meta")  # torch's other devices need their libraries, and this one holds numbers here
# Operations that take the CPU's tensors beside those of another device, as they do on GPUs.
_MAY_MIX = (
    "aten::_to_copy",
    "aten::copy_",
    "aten::index",
    "aten::index_put",
    "aten::index_put_",
    "aten::_index_put_impl_",
)


class Elsewhere(torch.Tensor):
    """A tensor that says it lies elsewhere; its numbers lie here."""

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Elsewhere:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=ELSEWHERE,
            requires_grad=held.requires_grad,
        )

    def __init__(self, held: torch.Tensor) -> None:
        self.held = held

    def __repr__(self) -> str:
        return f"Elsewhere({self.held})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Elsewhere:
        copied = Elsewhere(self.held.detach().clone())
        return torch.nn.Parameter(copied, self.requires_grad) if isinstance(self, torch.nn.Parameter) else copied

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class _Python(TorchFunctionMode):
    """What does not reach the dispatcher: numbers that become tensors, and tensors that become numbers."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.tensor and kwargs.get("device") == ELSEWHERE:
            return func(*args, **kwargs | {"device": "cpu"}).to(ELSEWHERE)
        if func is torch.Tensor.new_tensor and isinstance(args[0], Elsewhere):
            return args[0].held.new_tensor(*args[1:], **kwargs).to(ELSEWHERE)
        if func is torch.Tensor.tolist and isinstance(args[0], Elsewhere):
            return args[0].held.tolist()
        return func(*args, **kwargs)


class AnotherDevice(TorchDispatchMode):
    """Inside, `ELSEWHERE` is a device like a GPU: tensors are made there, moved there, and not mixed with others."""

    def __enter__(self) -> Any:
        self.autocast, self.enabled = autocast, enabled = torch.autocast, torch.is_autocast_enabled
        torch.is_autocast_enabled = lambda kind="cpu": kind != "meta" and enabled(kind)
        torch.autocast = lambda kind, **options: autocast("cpu" if kind == "meta" else kind, **options)
        self.python = _Python()
        self.python.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.python.__exit__(*error)
        torch.autocast, torch.is_autocast_enabled = self.autocast, self.enabled

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Do an operation where its tensors lie, or refuse it as a GPU would."""
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
    there = [isinstance(x, Elsewhere) for x in tensors]
    name = func._schema.name
    if any(there) and not all(there) and name not in _MAY_MIX:
        strangers = [tuple(x.shape) for x, away in zip(tensors, there, strict=True) if not away and x.dim()]
        if strangers:
            raise RuntimeError(f"{name}: tensors {strangers} of the CPU beside those of another device")
    far_index = any(away and x.dim() for x, away in zip(tensors, there, strict=True))
    if name.startswith("aten::index") and name in _MAY_MIX and not there[0] and far_index:
        raise RuntimeError(f"{name}: an index on another device for a tensor of the CPU")
    target = kwargs.get("device")
    if kwargs.get("dtype") is torch.float64 and (target == ELSEWHERE or (target is None and any(there))):
        raise RuntimeError(f"{name}: another device may have no double precision")
    away = target == ELSEWHERE if target is not None else (there[0] if name == "aten::copy_" else any(there))
    if target is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    args, kwargs = tree_map(lambda x: x.held if isinstance(x, Elsewhere) else x, (args, kwargs))
    inplace = name.endswith("_") and tensors and there[0]
    found = func(*args, **kwargs)
    if inplace:
        return None if found is None else tensors[0]
    return tree_map(lambda x: Elsewhere(x) if away and type(x) is torch.Tensor else x, found)
