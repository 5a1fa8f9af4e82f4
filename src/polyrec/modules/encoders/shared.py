"""Where the tasks meet: the real pairs of a batch, and how gradients compare at what all tasks read.

Letters: B users, C candidates, D width, E numbers of evidence, T tasks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polyrec.modules.encoders.item import PADDING_ITEM, ItemRows


class PackedPairs:
    """The candidates of a batch that are no padding, as one row of M pairs: [B, C, ...] <-> [1, M, ...].

    Users have very different numbers of candidates, so most of a padded batch may be padding; what costs most,
    the wide layers of pairs, then runs on the others alone.

    Example:
        >>> pairs = PackedPairs(torch.tensor([[5, 6], [7, 0]]))
        >>> packed = pairs.pack(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        >>> packed.tolist(), pairs.unpack(packed).tolist()
        ([[1.0, 2.0, 3.0]], [[1.0, 2.0], [3.0, 0.0]])
    """

    def __init__(self, candidate_ids: Tensor) -> None:
        self.shape = candidate_ids.shape
        self.index_M = (candidate_ids.flatten() != PADDING_ITEM).nonzero().squeeze(-1)

    def pack(self, x: Tensor) -> Tensor:
        """[B, C, ...] -> [1, M, ...]."""
        return x.flatten(0, 1).index_select(0, self.index_M).unsqueeze(0)

    def unpack(self, x: Tensor) -> Tensor:
        """[1, M, ...] -> [B, C, ...], 0 where there is padding."""
        empty = x.new_zeros(self.shape.numel(), *x.shape[2:])
        return empty.index_copy(0, self.index_M, x.squeeze(0)).view(*self.shape, *x.shape[2:])


class SharedRepresentation:
    """Where the tasks meet: what they all read, and the only place at which their gradients are compared.

    Pair tasks meet in the pair vectors (and in the evidence of the candidate attention), retrieval tasks in the states.
    A retrieval task and a pair task share the backbone below, but not these tensors: their gradients count as
    orthogonal. All of them belong to one user: inner products add up over batches and ranks. Those at the item
    vectors, which retrieval tasks read, too, would not.
    """

    def __init__(self, state_BCD: Tensor, items: ItemRows) -> None:
        # A view: gradients of retrieval losses stop here, and those of pair tasks do not pass through their encoder.
        self.state_BCD = state_BCD.view_as(state_BCD)
        self.items = items
        self.pair_BCD: Tensor | None = None
        self.evidence_BCE: Tensor | None = None

    @property
    def meeting(self) -> list[Tensor]:
        """Where gradients are compared: only what lies above is passed backwards, once per task."""
        return [x for x in (self.state_BCD, self.pair_BCD, self.evidence_BCE) if x is not None]


def gramian(losses: dict[str, Tensor], at: list[Tensor]) -> Tensor:
    """Inner products of the losses' gradients at some tensors, float32 [T, T], tasks sorted by name, summed over ranks.

    Tensors without gradient count as nothing.
    """
    at = [x for x in at if x.requires_grad]
    device = next(iter(losses.values())).device
    rows = []
    for name in sorted(losses):
        found = torch.autograd.grad(losses[name], at, retain_graph=True, allow_unused=True)
        rows.append([None if g is None else g.flatten().float() for g in found])
    result = torch.zeros(len(rows), len(rows), device=device)
    # Under autocast the products would be rounded to bfloat16, and cosines near 0 would be noise.
    with torch.autocast(device.type, enabled=False):
        for column in zip(*rows, strict=True):
            known = [i for i, g in enumerate(column) if g is not None]
            if known:
                jacobian_TX = torch.stack([column[i] for i in known])
                index = torch.tensor(known, device=device)
                result[index.unsqueeze(1), index] += jacobian_TX @ jacobian_TX.T
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(result)
    return result
