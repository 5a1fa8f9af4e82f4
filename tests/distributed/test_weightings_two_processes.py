"""Loss weightings on two processes (gloo) do what they do on one."""

from __future__ import annotations

import pytest
import torch
from launching import on_two_processes
from reduction_fixtures import WINDOWS_PER_STEP, difference, first_step, losses
from safetensors.torch import load_file
from weightings_two_processes import RUNS, STEPS


@pytest.fixture(scope="module")
def run(ranks, tmp_path_factory):
    """Folder and findings of both processes."""
    folder = tmp_path_factory.mktemp("two")
    return folder, on_two_processes(ranks, "weightings_two_processes", folder)


@pytest.mark.parametrize("name", STEPS)
def test_one_step_equals_that_of_one_process(run, tmp_path, name):
    """Prevents terms of a weighting from counting once per rank, and weights from being made of one rank's gradients
    or losses."""
    folder, findings = run
    expected = first_step(tmp_path, WINDOWS_PER_STEP, **STEPS[name])
    assert difference(load_file(folder / f"{name}.safetensors"), expected.gradients) < 1e-5
    shown = {n: v for n, v in expected.log.items() if n.startswith(("weight_", "cosine_"))}
    assert {n: findings[0][name]["log"][n] for n in shown} == pytest.approx(shown, rel=1e-4, abs=1e-6)
    assert losses(findings[0][name]["log"]) == pytest.approx(losses(expected.log), rel=1e-4)
    for rank in findings:
        state = {n: torch.tensor(v) for n, v in rank[name]["state"].items()}
        torch.testing.assert_close(
            state, expected.trainer.model.weighting.state_dict(), rtol=1e-4, atol=1e-6, check_dtype=False
        )


@pytest.mark.parametrize("name", RUNS)
def test_ranks_stay_equal(run, name):
    """Prevents random orders and draws from following each rank's own random state, so that ranks drift apart."""
    _, (first, second) = run
    one, other = first[f"run of {name}"], second[f"run of {name}"]
    assert one["state"] == other["state"]
    assert one["parameters"] == other["parameters"]
    assert len({line["weight_like"] for line in one["log"]}) > 1
