"""What single kernels cost on a device, for `gpu.py`: softmax losses of large catalogs, and attention."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from polyrec.core.losses import linear_cross_entropy

CATALOGS = (10_000, 100_000, 1_000_000)
ROWS, WIDTH, NEGATIVES = 4096, 64, 1024
MOST_BYTES = 16 << 30  # of logits that are made at once
ATTENTION = (64, 4, 200, 32)  # users, heads, events, width of a head
KERNELS = (SDPBackend.MATH, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.FLASH_ATTENTION)


def milliseconds(do: Callable[[], Any], on: Any, repeats: int) -> float:
    """Of one call, after a first one."""
    do()
    on.wait()
    begin = time.perf_counter()
    for _ in range(repeats):
        do()
    on.wait()
    return (time.perf_counter() - begin) / repeats * 1e3


def whole(query: Tensor, table: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of logits that are all held."""
    return F.cross_entropy(F.linear(query, table, bias).float(), targets, reduction="sum")


def own(query: Tensor, table: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    """polyrec's, which holds no logits."""
    return linear_cross_entropy(query, table, bias, targets)


def sampled(query: Tensor, table: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy over the target and sampled negatives."""
    drawn = torch.randint(len(table), (NEGATIVES,), device=query.device)
    positive = (query * F.embedding(targets, table)).sum(-1, keepdim=True) + bias[targets].unsqueeze(1)
    negative = F.linear(query, F.embedding(drawn, table), bias[drawn])
    return -torch.log_softmax(torch.cat([positive, negative], 1).float(), 1)[:, 0].sum()


def catalog_losses(on: Any, items: int, kind: str, quick: bool) -> dict[str, Any]:
    """Milliseconds of loss and gradient, and peak memory, of a batch against a catalog."""
    rows, dtype = (64 if quick else ROWS), torch.bfloat16 if kind == "bf16" else torch.float32
    query = torch.randn(rows, WIDTH, device=on.device, dtype=dtype, requires_grad=True)
    table = torch.randn(items, WIDTH, device=on.device, dtype=dtype, requires_grad=True)
    bias = torch.zeros(items, device=on.device, dtype=dtype, requires_grad=True)
    targets = torch.randint(items, (rows,), device=on.device)
    found: dict[str, Any] = {}
    values = {}
    for name, loss in {"whole": whole, "own": own, "sampled": sampled}.items():
        if name == "whole" and 3 * 4 * rows * items > MOST_BYTES:
            continue

        def step(loss: Callable[..., Tensor] = loss) -> Tensor:
            for leaf in (query, table, bias):
                leaf.grad = None
            total = loss(query, table, bias, targets)
            total.backward()
            return total.detach()

        on.peak_gb(reset=True)
        found[f"{name}_ms"] = milliseconds(step, on, 1 if quick else 5)
        if (peak := on.peak_gb()) is not None:
            found[f"{name}_gb"] = peak
        values[name] = step().item()
    if "whole" in values and abs(values["own"] - values["whole"]) > 2e-2 * abs(values["whole"]):
        raise ArithmeticError(f"the loss is {values['own']}, and of whole logits {values['whole']}")
    return found


def attention(on: Any, kind: str, quick: bool) -> dict[str, Any]:
    """Milliseconds of causal attention and its gradient, by each kernel of torch that the device has."""
    shape = (2, 2, 16, 16) if quick else ATTENTION
    dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    leaves = [torch.randn(shape, device=on.device, dtype=dtype, requires_grad=True) for _ in range(3)]
    found: dict[str, Any] = {}
    for kernel in KERNELS:

        def step(kernel: SDPBackend = kernel) -> None:
            with sdpa_kernel(kernel):
                F.scaled_dot_product_attention(*leaves, is_causal=True).sum().backward()

        name = kernel.name.lower().removesuffix("_attention")
        try:
            found[f"{name}_ms"] = milliseconds(step, on, 1 if quick else 20)
        except RuntimeError:  # the device, or the precision, has no such kernel
            found[name] = "none"
    return found
