"""What is computed of a model's tensors is computed anew once they are others."""

import torch
from torch import nn

from polyrec.inference.scorer import Stamp


class Held(nn.Module):
    """One buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("values", torch.zeros(3))


def test_a_tensor_in_the_place_of_another_is_noticed():
    """Prevents an encoded catalog that stays as it was after two changes of an item: the second new tensor may get the
    address, and so the id, of the first one."""
    held = Held()
    for n in range(200):
        seen = Stamp(held)
        assert seen == Stamp(held)
        for step in (1, 2):
            held.values = torch.full((3,), float(n + step))
        assert seen != Stamp(held)


def test_a_change_in_place_is_noticed():
    """Prevents the same after an optimizer step."""
    held = Held()
    seen = Stamp(held)
    held.values.add_(1)
    assert seen != Stamp(held)
