"""The benchmark of large catalogs works on a small one."""

import torch
from million_items import World, evaluate, prepare, train


def test_phases_leave_what_the_next_ones_read(tmp_path):
    """Prevents the benchmark from breaking in silence: nobody runs it between two measurements."""
    world = World(tmp_path, items=200, events=2_000, quick=True)
    torch.manual_seed(0)
    assert prepare(world)["seconds"] > 0
    assert train(world)["step_ms"] > 0
    assert evaluate(world)["rows"] > 50
