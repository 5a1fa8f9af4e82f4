"""The arithmetic of AITM's transfer."""

from __future__ import annotations

import math

import pytest
import torch
from coupling_fixtures import chain, chain_batch, coupling_of, model_of


def naive(coupling, own_D, parent_D):
    """One pair, term by term."""

    def linear(layer, x_D):
        return layer.weight @ x_D + layer.bias

    transferred_D = torch.nn.functional.gelu(linear(coupling.transfer[0], parent_D))
    scores, values = [], []
    for source_D in (own_D, transferred_D):
        scores.append(linear(coupling.query, source_D).dot(linear(coupling.key, source_D)) / math.sqrt(len(own_D)))
        values.append(linear(coupling.value, source_D))
    odds = [math.exp(score) for score in scores]
    return sum(o / sum(odds) * v for o, v in zip(odds, values, strict=True))


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4)], ids=["one", "members"])
def test_transfer_equals_a_naive_loop(shape):
    """Prevents attention over candidates or members, a missing scale, and own and parent exchanged."""
    coupling = coupling_of("aitm")
    with torch.no_grad():
        for p in coupling.parameters():
            p.normal_()
        own, parent = torch.randn(2, *shape, 8)
        mixed = coupling.hidden(own, parent)
        for index in torch.cartesian_prod(*(torch.arange(n) for n in shape)):
            at = tuple(index.tolist())
            torch.testing.assert_close(mixed[at], naive(coupling, own[at], parent[at]), rtol=1e-4, atol=1e-5)


def test_a_chain_transfers_what_was_transferred():
    """Prevents a grandchild from reading its parent's vector of before the transfer."""
    names = ["click", "cart", "buy"]
    model, batch = model_of(chain("aitm", names)), chain_batch(names)
    before, after = {}, {}
    model.experts.register_forward_hook(lambda module, args, out: before.update(out.hidden))
    for name in names:
        model.heads[name].register_forward_hook(lambda module, args, out, name=name: after.update({name: args[0]}))
    model(**batch)
    torch.testing.assert_close(after["click"], before["click"])
    for parent, name in (("click", "cart"), ("cart", "buy")):
        torch.testing.assert_close(after[name], model.couplings[name].hidden(before[name], after[parent]))


def test_dropout_acts_on_the_transfer_in_training_only():
    """Prevents noise at serving time."""
    coupling = model_of(chain("aitm", ["click", "buy"]), dropout=0.5).couplings["buy"]
    own, parent = torch.randn(2, 4, 8)
    assert torch.equal(coupling.hidden(own, parent), coupling.hidden(own, parent))
    coupling.train()
    assert not torch.equal(coupling.hidden(own, parent), coupling.hidden(own, parent))
