"""Parameters in shards (FSDP2) on two CPU processes."""

from __future__ import annotations

import pytest
from launching import on_two_processes
from sharded_two_processes import WEIGHTINGS


@pytest.fixture(scope="module")
def findings(ranks, tmp_path_factory):
    """What each rank found."""
    return on_two_processes(ranks, "sharded_two_processes", tmp_path_factory.mktemp("sharded"))


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_gradient_equals_that_of_a_whole_model(findings, name):
    """Prevents the extra backward passes of the Gramian, or the mean over ranks, from changing gradients in shards."""
    assert max(rank["gradients"][name] for rank in findings) < 1e-5


def test_evaluation_equals_that_of_a_whole_model(findings):
    """Prevents ranking from reading a shard of the item table, and ranks with fewer batches from being waited for."""
    for rank in findings:
        assert rank["same_weights"]
        assert rank["metrics"] == pytest.approx(
            rank["expected"], rel=1e-5, nan_ok=True
        )  # a ratio to a baseline is in it
