"""Terms that look at every visible event, for so many requests at a time that memory stays linear in their number.

Letters: M requests, L events, K items of a request's own, G groups.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from polyrec.core.linear_loss import AnyBias, BlockedBias
from polyrec.modules.encoders.request_context import RequestContext

EVENTS = 1 << 20  # events of histories that are written out at once


def blocked(biases: Callable[[Tensor], AnyBias], context: RequestContext, ids: Tensor) -> AnyBias:
    """What a term that writes histories out adds to the logits of M requests, computed when it is needed if they are
    long.

    Args:
        biases: numbers of some requests, int64 -> what is added to their logits.
    """
    assert context.history is not None  # whoever writes it out has looked
    every = torch.arange(len(context.history.positions), device=ids.device)
    size = max(EVENTS // max(context.history.length, 1), 1)
    return biases(every) if len(every) <= size else BlockedBias(biases, every.split(size))


def of_items_in_blocks(
    of_items: Callable[[Tensor, RequestContext, Tensor], Tensor],
    of_groups: Tensor,
    context: RequestContext,
    ids: Tensor,
) -> Tensor:
    """`of_items` of a term that looks at every event for each item, [..., G], [...] and [..., K] -> [..., K].

    Args:
        of_items: the same for some requests, [M, G], [M] and [M, K] -> [M, K].
    """
    assert context.history is not None
    size = max(EVENTS // max(context.history.length * ids.shape[-1], 1), 1)
    if ids.shape[:-1].numel() <= size:
        return of_items(of_groups, context, ids)
    dims = ids.dim() - 1
    flat, groups_MG, ids_MK = context.flatten(dims), of_groups.flatten(0, dims - 1), ids.flatten(0, dims - 1)
    found = [
        of_items(groups_MG[at], flat.at(at), ids_MK[at])
        for at in torch.arange(len(ids_MK), device=ids.device).split(size)
    ]
    return torch.cat(found).view(ids.shape)
