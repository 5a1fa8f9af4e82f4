"""AdamW that reads and writes only the rows of large tables that a step has gradients for.

Letters: N rows of a table, K some of them, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

_BLOCK = 1 << 13  # rows that are brought up to date at a time
_TAIL = 256  # steps after which a gradient no longer moves its row: with the usual betas, 0.9^256 = 2e-12
_FADED = 1e-5  # of the movement that may be left then


def momentum_fades(betas: tuple[float, float]) -> bool:
    """Whether a row without gradient stands still soon enough for [`RowwiseAdamW`]."""
    beta1, beta2 = betas
    return (beta1 / beta2**0.5) ** _TAIL <= _FADED


class RowwiseAdamW(torch.optim.AdamW):
    r"""`torch.optim.AdamW`, whose steps on large tables cost as much as the rows that were read.

    AdamW goes on moving a row without gradient: by its momentum, which fades within some dozens of steps, and by weight
    decay. `torch.optim.SparseAdam` leaves both out, so that rare items learn far less. Here a row without gradient
    waits, and makes up for the steps that it has missed right before it is read again or has a gradient:

        m <- b_1^k m,   v <- b_2^k v,   p <- (p - S m / (\sqrt v + eps_s)) \prod_u (1 - lr_u w),

        S = \sum_u c_u (b_1 / \sqrt b_2)^{u - s},   c_u = lr_u \sqrt{1 - b_2^u} / (1 - b_1^u)

    for the k = t - s steps u = s + 1 .. t since its last one, s; eps_s = eps \sqrt{1 - b_2^{s + 1}}. That is AdamW but
    for rounding, eps beside fading gradients, and the order of decay and movement. State is that of AdamW, whose
    checkpoints go on with it and the other way round.

    Args:
        params, options: as of `torch.optim.AdamW`.

    Raises:
        ValueError: with these betas momentum moves rows for longer than the sum S reaches back, 256 steps.

    Example:
        >>> table = nn.Embedding(1000, 4)
        >>> optimizer = RowwiseAdamW(table.parameters(), lr=0.1)
        >>> optimizer.watch([table])
        >>> table(torch.tensor([3, 5])).sum().backward()
        >>> optimizer.step()  # reads and writes two rows
        >>> optimizer.release()
    """

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, **options)
        self._late: dict[nn.Parameter, _LateRows] = {}
        self._watched: list[tuple[nn.Embedding, RemovableHandle]] = []

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As of AdamW, of betas whose momentum fades."""
        betas = param_group.get("betas", self.defaults["betas"])
        if not momentum_fades(betas):
            raise ValueError(f"betas={betas} move rows without gradient for too long: lower the first, or use AdamW")
        super().add_param_group(param_group)

    def watch(self, tables: Iterable[nn.Embedding]) -> None:
        """Let tables have sparse gradients, and bring their rows up to date before they are looked up.

        They must be read by calls alone, until [`release`].
        """
        self.release()
        for table in tables:
            table.sparse = True
            self._watched.append((table, table.register_forward_pre_hook(self._before)))

    def release(self) -> None:
        """Bring all rows up to date, and leave the tables alone from now on."""
        self.settle()
        for table, handle in self._watched:
            table.sparse = False
            handle.remove()
        self._watched = []

    def _before(self, table: Any, given: tuple[Tensor, ...]) -> None:
        late = self._late.get(table.weight)
        if late is not None:
            late.settle(given[0].flatten().unique())

    def settle(self) -> None:
        """Bring all rows of all tables up to date; whoever reads whole tables does."""
        for late in self._late.values():
            for rows in torch.arange(len(late.last), device=late.last.device).split(_BLOCK):
                late.settle(rows)

    def state_dict(self) -> dict[str, Any]:
        """As of AdamW, with all rows up to date."""
        self.settle()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As of AdamW: of rows that are up to date."""
        self._late = {}
        super().load_state_dict(state_dict)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; parameters with sparse gradients by rows, all others as AdamW does."""
        found = closure() if closure is not None else None
        tables = {table.weight for table, _ in self._watched}
        by_row: list[tuple[nn.Parameter, Tensor, dict[str, Any]]] = []
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and (parameter in tables or parameter.grad.is_sparse):
                    by_row.append((parameter, parameter.grad, group))
                    parameter.grad = None
        super().step()
        for parameter, gradient, group in by_row:
            parameter.grad = gradient
            rows = gradient if gradient.is_sparse else gradient.to_sparse(1)
            self._late_rows(parameter, group).step(rows.coalesce(), float(group["lr"]))
        return found

    def _late_rows(self, parameter: nn.Parameter, group: dict[str, Any]) -> _LateRows:
        if parameter not in self._late:
            self._late[parameter] = _LateRows(parameter, self.state[parameter], group)
        return self._late[parameter]


class _LateRows:
    """A table whose rows stand at different steps.

    Args:
        parameter: [N, D].
        state: of AdamW; empty before the first step.
        group: of the optimizer.
    """

    def __init__(self, parameter: nn.Parameter, state: dict[str, Any], group: dict[str, Any]) -> None:
        is_new = not state
        if is_new:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        self.parameter, self.state, self.group = parameter, state, group
        self.begin = int(state["step"])  # steps are counted from here
        self.steps = 0
        device = parameter.device
        # Step of each row. Rows without any gradient so far have no momentum, and wait for nothing but decay.
        self.last = torch.zeros(len(parameter), dtype=torch.int32, device=device)
        if is_new and not group["weight_decay"]:
            self.last.fill_(torch.iinfo(torch.int32).max)
        beta1, beta2 = group["betas"]
        self.fades = (beta1 / beta2**0.5) ** torch.arange(_TAIL, 0, -1, dtype=torch.float64, device=device)
        # Of each step s: what a row that stands there has missed, the sum above and the logarithm of the product.
        self.missed = torch.zeros(1024, dtype=torch.float64, device=device)
        self.decay = torch.zeros(1024, dtype=torch.float64, device=device)

    @torch.no_grad()
    def settle(self, rows_K: Tensor) -> None:
        """Bring rows (int64, each once) up to date."""
        last_K = self.last.index_select(0, rows_K)
        late_K = (last_K < self.steps).nonzero().squeeze(1)
        if not len(late_K):
            return
        rows_K, last_K = rows_K.index_select(0, late_K), last_K.index_select(0, late_K).long()
        age_K1 = (self.steps - last_K).unsqueeze(1)
        beta1, beta2 = self.group["betas"]
        first, second = self.state["exp_avg"], self.state["exp_avg_sq"]
        m_KD, v_KD = first.index_select(0, rows_K), second.index_select(0, rows_K)
        p_KD = self.parameter.index_select(0, rows_K)
        part_K1 = (1 - beta2 ** (self.begin + last_K + 1.0)).sqrt().unsqueeze(1).to(p_KD)  # by which eps counts less
        p_KD -= self.missed[last_K].unsqueeze(1).to(p_KD) * m_KD / (v_KD.sqrt() + self.group["eps"] * part_K1)
        if self.group["weight_decay"]:  # the movement comes first: momentum fades before decay counts
            p_KD *= (self.decay[self.steps] - self.decay[last_K]).exp().unsqueeze(1).to(p_KD)
        first.index_copy_(0, rows_K, m_KD * (beta1**age_K1).to(m_KD))
        second.index_copy_(0, rows_K, v_KD * (beta2**age_K1).to(v_KD))
        self.parameter.index_copy_(0, rows_K, p_KD)
        self.last.index_fill_(0, rows_K, self.steps)

    @torch.no_grad()
    def step(self, gradient: Tensor, rate: float) -> None:
        """Take a step with a coalesced gradient.

        Args:
            rate: of this step.
        """
        rows_K, g_KD = gradient.indices()[0], gradient.values()
        self.settle(rows_K)
        self.state["step"] += 1
        (beta1, beta2), eps, decay = self.group["betas"], self.group["eps"], self.group["weight_decay"]
        first, second = self.state["exp_avg"], self.state["exp_avg_sq"]
        m_KD = first.index_select(0, rows_K).lerp_(g_KD, 1 - beta1)
        v_KD = second.index_select(0, rows_K).mul_(beta2).addcmul_(g_KD, g_KD, value=1 - beta2)
        number = self.begin + self.steps + 1
        part1, part2 = 1 - beta1**number, (1 - beta2**number) ** 0.5
        p_KD = self.parameter.index_select(0, rows_K).mul_(1 - rate * decay)
        p_KD.addcdiv_(m_KD, (v_KD.sqrt() / part2).add_(eps), value=-rate / part1)
        first.index_copy_(0, rows_K, m_KD)
        second.index_copy_(0, rows_K, v_KD)
        self.parameter.index_copy_(0, rows_K, p_KD)
        self._count(rate * part2 / part1, rate * decay)
        self.last.index_fill_(0, rows_K, self.steps)

    def _count(self, movement: float, decay: float) -> None:
        """Note what all rows miss that have no part in a step."""
        self.steps += 1
        if self.steps == len(self.missed):
            self.missed, self.decay = (torch.cat([own, torch.zeros_like(own)]) for own in (self.missed, self.decay))
        before = min(self.steps, _TAIL)
        self.missed[self.steps - before : self.steps] += movement * self.fades[-before:]
        self.decay[self.steps] = self.decay[self.steps - 1] + torch.log1p(torch.tensor(-decay, dtype=torch.float64))


def clip_rows(parameters: Iterable[nn.Parameter], most: float) -> Tensor:
    """`torch.nn.utils.clip_grad_norm_` that takes sparse gradients, too; returns the norm before."""
    with_gradient = [p for p in parameters if p.grad is not None]
    for parameter in with_gradient:
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
    held = [_numbers(p.grad) for p in with_gradient if p.grad is not None]
    total = nn.utils.get_total_norm(held)
    share = (most / (total + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(held, share)
    return total


def _numbers(gradient: Tensor) -> Tensor:
    """The memory of a gradient's numbers."""
    return gradient._values() if gradient.is_sparse else gradient
