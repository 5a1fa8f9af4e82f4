"""Losses of linear scores of a catalog, whose logits are never kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

LossFn = Callable[[Tensor, Tensor, bool], Tensor]
# Logits per chunk. CPU: 4 MiB in fp32; fewer cost time per chunk, more leave the cache. Elsewhere each chunk costs the
# launch of some kernels, which 128 MiB keep busy, and memory is the bound.
_CHUNK = 1 << 20
_CHUNK_OF_ACCELERATORS = 1 << 25
_NEVER = -1e4  # whose exponential is 0 beside any logit, and which half precision holds


class GroupBias(NamedTuple):
    """Which group of a row adds its number to which logit.

    Args:
        group: int64, [R, N] or, with `columns`, [R, K].
        columns: int64 [R, K], where the numbers of the K groups belong, for a term that few items of a row have; a
            column may stand there several times, and then gets the sum. None: column n has group n.
    """

    group: Tensor
    columns: Tensor | None = None

    def add(self, logits: Tensor, of_groups: Tensor) -> Tensor:
        """Logits [R, N] with what each row says of each group, [R, G], added in place."""
        numbers = of_groups.gather(1, self.group).to(logits.dtype)
        return logits.add_(numbers) if self.columns is None else logits.scatter_add_(1, self.columns, numbers)

    def collect(self, of_groups: Tensor, gradient: Tensor) -> None:
        """Add the gradient of each group, of a gradient of logits [R, N], to `of_groups` [R, G]."""
        own = gradient if self.columns is None else gradient.gather(1, self.columns)
        of_groups.scatter_add_(1, self.group, own)

    def entries(self, of_groups: Tensor) -> tuple[Tensor, Tensor] | None:
        """Columns of few logits and what is added to them, [R, K] each; None: all logits get something."""
        return None if self.columns is None else (self.columns, of_groups.gather(1, self.group))

    def beyond(self, groups: int) -> GroupBias:
        """The same where some groups of other terms come first."""
        return GroupBias(self.group + groups, self.columns)


class SparseBias(NamedTuple):
    """Numbers of few logits of a row, each the sum of some values times the row's groups.

    The values of a row are H rows of a table, which rows of logits share: they are read where they lie and never
    repeated.

    Args:
        columns: int64 [R, H, K], where the sums belong; a column may stand there several times.
        values: [U, T, K], by which group t of H groups each counts; 0 adds nothing.
        table_rows: int64 [R, H], which of the U rows each row of logits reads.
        first: number of the group t = 0, h = 0; the others follow, h by h, then t by t.
    """

    columns: Tensor
    values: Tensor
    table_rows: Tensor
    first: int = 0

    def add(self, logits: Tensor, of_groups: Tensor) -> Tensor:
        """Logits [R, N] with the sums, added in place."""
        columns, numbers = self.entries(of_groups)
        return logits.scatter_add_(1, columns, numbers.to(logits.dtype))

    def entries(self, of_groups: Tensor) -> tuple[Tensor, Tensor]:
        """Columns of few logits and what is added to them, [R, H * K] each."""
        read, kinds = self.table_rows.shape[1], self.values.shape[1]
        weights = of_groups[:, self.first : self.first + kinds * read].unflatten(1, (kinds, read))
        numbers, columns = self._sums(weights.transpose(1, 2).flatten(0, 1)), self.columns.flatten(1)
        return columns, numbers.view_as(columns)

    def collect(self, of_groups: Tensor, gradient: Tensor) -> None:
        """Add the gradient of each group, of a gradient of logits [R, N], to `of_groups` [R, G]."""
        read, kinds = self.table_rows.shape[1], self.values.shape[1]
        own = gradient.gather(1, self.columns.flatten(1)).view_as(self.columns).flatten(0, 1)
        with torch.enable_grad():  # sums are linear in the weights: any weights have the same gradient
            weights = torch.zeros(len(own), kinds, dtype=own.dtype, device=own.device, requires_grad=True)
            (found,) = torch.autograd.grad(self._sums(weights), weights, own)
        found = found.unflatten(0, (len(gradient), read)).transpose(1, 2).flatten(1)
        of_groups[:, self.first : self.first + kinds * read] += found

    def beyond(self, groups: int) -> SparseBias:
        """The same where some groups of other terms come first."""
        return self._replace(first=self.first + groups)

    def _sums(self, weights: Tensor) -> Tensor:
        """Rows of the table, their kinds weighed and added, [R * H, T] -> [R * H, K]."""
        kinds = self.values.shape[1]
        of_kinds = self.table_rows.view(-1, 1) * kinds + torch.arange(kinds, device=self.table_rows.device)
        table = self.values.flatten(0, 1).to(weights.dtype)
        return F.embedding_bag(of_kinds, table, per_sample_weights=weights, mode="sum")


class DenseBias(NamedTuple):
    """Numbers of all logits of a row, each the sum of some values times the row's groups.

    Args:
        values: [R, T, N], by which group t counts for each logit.
        first: number of the group t = 0.
    """

    values: Tensor
    first: int = 0

    def add(self, logits: Tensor, of_groups: Tensor) -> Tensor:
        """Logits [R, N] with the sums, added in place."""
        for kind in range(self.values.shape[1]):
            weight = of_groups[:, self.first + kind].unsqueeze(-1).to(logits.dtype)
            logits.addcmul_(self.values[:, kind].to(logits.dtype), weight)
        return logits

    def collect(self, of_groups: Tensor, gradient: Tensor) -> None:
        """Add the gradient of each group, of a gradient of logits [R, N], to `of_groups` [R, G]."""
        for kind in range(self.values.shape[1]):
            of_groups[:, self.first + kind] += (self.values[:, kind].to(gradient.dtype) * gradient).sum(-1)

    def entries(self, of_groups: Tensor) -> None:
        """None: all logits get something."""
        return

    def beyond(self, groups: int) -> DenseBias:
        """The same where some groups of other terms come first."""
        return self._replace(first=self.first + groups)


class ExcludedItems(NamedTuple):
    """Logits of a row that are no candidates.

    Args:
        columns: int64 [R, L], which ones, -1 = none; None: all are candidates.
    """

    columns: Tensor | None

    def add(self, logits: Tensor, of_groups: Tensor) -> Tensor:
        """Logits [R, N], those of no candidates far below all others, in place."""
        if self.columns is None:
            return logits
        absent = torch.zeros(len(logits), logits.shape[1] + 1, dtype=torch.bool, device=logits.device)
        absent.scatter_(1, torch.where(self.columns < 0, logits.shape[1], self.columns), True)
        return logits.masked_fill_(absent[:, :-1], _NEVER)

    def collect(self, of_groups: Tensor, gradient: Tensor) -> None:
        """No group has a part in it."""

    def entries(self, of_groups: Tensor) -> tuple[Tensor, Tensor] | None:
        """Nothing, where all are candidates."""
        if self.columns is not None:
            return None
        return of_groups.new_zeros(len(of_groups), 0, dtype=torch.int64), of_groups.new_zeros(len(of_groups), 0)

    def beyond(self, groups: int) -> ExcludedItems:
        """The same: there are no groups."""
        return self


class BlockedBias(NamedTuple):
    """What is added to some logits at a time, and computed anew each time, because that of all rows together is large.

    Args:
        of_rows: numbers of some rows, int64 -> what is added to their logits.
        blocks: the rows' numbers, block by block.
        first: number of the first group.
    """

    of_rows: Callable[[Tensor], AnyBias]
    blocks: Sequence[Tensor]
    first: int = 0

    def add(self, logits: Tensor, of_groups: Tensor) -> Tensor:
        """Logits [R, N] with what each block adds, in place; nothing of the blocks is kept for the gradient."""
        return _AddedBlocks.apply(logits, of_groups, self)

    def collect(self, of_groups: Tensor, gradient: Tensor) -> None:
        """Add the gradient of each group, of a gradient of logits [R, N], to `of_groups` [R, G]."""
        for rows, bias in self.parts():
            bias.collect(of_groups[rows], gradient[rows])

    def entries(self, of_groups: Tensor) -> tuple[Tensor, Tensor] | None:
        """Columns of few logits and what is added to them, [R, K] each; None: all logits get something."""
        found = [bias.entries(of_groups[rows]) for rows, bias in self.parts()]
        columns, numbers = zip(*(own for own in found if own is not None), strict=True)
        return torch.cat(columns), torch.cat(numbers)

    def beyond(self, groups: int) -> BlockedBias:
        """The same where some groups of other terms come first."""
        return self._replace(first=self.first + groups)

    def parts(self) -> Iterator[tuple[slice, AnyBias]]:
        """Rows of the logits, and what is added to them."""
        begin = 0
        for block in self.blocks:
            yield slice(begin, begin + len(block)), self.of_rows(block).beyond(self.first)
            begin += len(block)


class _AddedBlocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, of_groups: Tensor, bias: BlockedBias) -> Tensor:
        for rows, own in bias.parts():
            own.add(logits[rows], of_groups[rows])
        ctx.mark_dirty(logits)
        ctx.bias = bias
        ctx.save_for_backward(of_groups)
        return logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        [of_groups] = ctx.saved_tensors
        own = torch.zeros_like(of_groups, dtype=gradient.dtype)
        ctx.bias.collect(own, gradient)
        return gradient, own.to(of_groups.dtype), None


AnyBias = GroupBias | SparseBias | DenseBias | ExcludedItems | BlockedBias
Groups = Callable[[Tensor], Sequence[AnyBias]]


class _LinearLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query_MD: Tensor,
        items_ND: Tensor,
        bias_N: Tensor,
        of_groups_MG: Tensor | None,
        groups: Groups | None,
        loss_fn: LossFn,
        shares_J: Tensor | None,
    ) -> Tensor:
        wants_gradient = any(ctx.needs_input_grad)
        exact = torch.float64 if query_MD.dtype == torch.float64 else torch.float32
        total = torch.zeros(() if shares_J is None else len(shares_J), device=query_MD.device, dtype=exact)
        grad_query_MD = torch.empty_like(query_MD) if wants_gradient else None
        # Sums over chunks, in single precision at least: in bfloat16, what a chunk adds to many others is rounded off.
        grad_items_ND = torch.zeros_like(items_ND, dtype=exact) if wants_gradient else None
        grad_bias_N = torch.zeros_like(bias_N, dtype=exact) if wants_gradient else None
        grad_groups_MG = torch.zeros_like(of_groups_MG) if wants_gradient and of_groups_MG is not None else None
        chunk = _CHUNK if query_MD.device.type == "cpu" else _CHUNK_OF_ACCELERATORS
        for rows in torch.arange(len(query_MD), device=query_MD.device).split(max(chunk // len(items_ND), 1)):
            query = query_MD[rows]
            logits = F.linear(query, items_ND, bias_N).to(exact)
            biases = () if groups is None or of_groups_MG is None else groups(rows)
            for term in biases:
                term.add(logits, of_groups_MG[rows].to(exact))  # type: ignore[index]
            total += loss_fn(rows, logits, wants_gradient)
            if not wants_gradient:
                continue
            gradient = logits  # the loss_fn has made it that
            grad_bias_N += gradient.sum(0)
            if grad_groups_MG is not None:
                own = gradient.new_zeros(len(rows), grad_groups_MG.shape[1])
                for term in biases:
                    term.collect(own, gradient)
                grad_groups_MG[rows] = own.to(grad_groups_MG.dtype)
            gradient = gradient.to(query.dtype)
            grad_query_MD[rows] = (gradient @ items_ND).to(query.dtype)  # type: ignore[index]
            grad_items_ND += gradient.T @ query
        ctx.save_for_backward(grad_query_MD, grad_items_ND, grad_bias_N, grad_groups_MG)
        ctx.shares_J = shares_J
        ctx.dtypes = [None if x is None else x.dtype for x in (query_MD, items_ND, bias_N, of_groups_MG)]
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.shares_J is not None:
            grad_total = _common_factor(grad_total, ctx.shares_J)
        found = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        # The factor must not be rounded to half precision: all of a gradient would be off by it.
        return (*(None if g is None else (g.to(grad_total) * grad_total).to(t) for g, t in found), None, None, None)


def _common_factor(grad_J: Tensor, shares_J: Tensor) -> Tensor:
    """c of grad = c * shares."""
    largest = shares_J.abs().argmax()
    factor = grad_J[largest] / shares_J[largest]
    if not torch.allclose(grad_J, factor * shares_J, rtol=1e-4, atol=1e-30):
        raise RuntimeError(
            f"losses that were computed together, to be added as {shares_J.tolist()}, are added as {grad_J.tolist()}: "
            "compute them one by one"
        )
    return factor


def linear_loss(
    query_MD: Tensor,
    items_ND: Tensor,
    bias_N: Tensor,
    loss_fn: LossFn,
    of_groups_MG: Tensor | None = None,
    groups: Groups | None = None,
    shares_J: Tensor | None = None,
) -> Tensor:
    r"""The SUM over rows of any loss of their scores of a catalog, z_ij = q_i . v_j + b_j (+ sum_g a_ig).

    The logits [M, N] are never kept: each chunk of rows is turned into its loss and its gradient while it lies in the
    cache (Wijmans et al., 2024, "Cut Your Losses in Large-Vocabulary Language Models").

    Args:
        query_MD, items_ND, bias_N: queries [M, D], items [N, D], biases [N]; a bias of -inf: no candidate.
        loss_fn: numbers of some rows, int64 [R], their logits [R, N], in single precision (or double), and whether a
            gradient is wanted -> the sum of their losses. It leaves the gradient of this sum in the place of the
            logits.
        of_groups_MG: what each row says of each group of items, [M, G].
        groups: which group is added to which item for some rows, int64 [R] -> what says so, any number of them.
        shares_J: of J losses of the same logits: in which proportion they are going to be added. The loss then returns
            their sums [J], and leaves the gradient of sum_j shares_j sum_j. Another proportion is an error in backward:
            gradients of each would take J times as much.

    Example:
        >>> def squares(rows, logits, wants_gradient):
        ...     total = logits.square().sum()
        ...     logits.mul_(2)
        ...     return total
        >>> linear_loss(torch.ones(2, 3), torch.ones(4, 3), torch.zeros(4), squares).item()
        72.0
    """
    return _LinearLoss.apply(query_MD, items_ND, bias_N, of_groups_MG, groups, loss_fn, shares_J)
