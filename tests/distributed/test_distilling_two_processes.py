"""Two processes teach a student what one process teaches it."""

from __future__ import annotations

import pytest
from distilling_two_processes import STEPS, whole_training
from launching import on_two_processes
from reduction_fixtures import WINDOWS_PER_STEP, difference, first_step, losses
from safetensors.torch import load_file


@pytest.fixture(scope="module")
def run(ranks, tmp_path_factory):
    """Folder and findings of both processes."""
    folder = tmp_path_factory.mktemp("taught")
    return folder, on_two_processes(ranks, "distilling_two_processes", folder)


@pytest.mark.parametrize("name", STEPS)
def test_gradient_equals_that_of_one_process(run, tmp_path, name):
    """Prevents soft losses from being divided by the answers of one rank, and ranks to whom the teacher said much from
    weighing as much as those to whom it said little."""
    folder, findings = run
    expected = first_step(tmp_path, **(STEPS[name] | {"batch_size": WINDOWS_PER_STEP, "accumulation": 1}))
    assert difference(load_file(folder / f"{name}.safetensors"), expected.gradients) < 1e-5
    soft = {n for n in losses(expected.log) if n.endswith("_soft") or "distilled" in n}
    assert len(soft) == (5 if name == "all" else 3)
    assert all(expected.log[n] > 0 for n in soft)
    assert losses(findings[0][name]) == pytest.approx(losses(expected.log), rel=1e-4)


def test_whole_training_equals_that_of_one_process(run, tmp_path):
    """Prevents answers about windows that fill up the last batches from being learnt twice, and alphas of a schedule
    from depending on the number of processes."""
    folder, findings = run
    expected = whole_training(tmp_path, batch_size=8)
    assert difference(load_file(folder / "whole.safetensors"), dict(expected.model.named_parameters())) < 1e-5
    for found, line in zip(findings[0]["log_history"], expected.state.log_history, strict=True):
        shown = {n: v for n, v in line.items() if n.endswith("_soft")}
        assert {n: found[n] for n in shown} == pytest.approx(shown, rel=1e-4)
