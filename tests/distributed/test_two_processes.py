"""Two processes on CPU (gloo) do what one process does."""

from __future__ import annotations

import pytest
import torch
from launching import on_two_processes
from model_fixtures import arguments, fit, synthetic_log
from reduction_fixtures import WINDOWS_PER_STEP, difference, first_step, losses
from safetensors.torch import load_file
from two_processes import STEPS, whole_training

from polyrec import PolyRecForRecommendation, PolyRecTrainer


@pytest.fixture(scope="module")
def run(ranks, tmp_path_factory):
    """Folder and findings of both processes."""
    folder = tmp_path_factory.mktemp("two")
    return folder, on_two_processes(ranks, "two_processes", folder)


def measured(evaluation):
    """Names of the metrics that do not measure time or progress."""
    return [name for name in evaluation if not name.endswith(("runtime", "per_second", "epoch"))]


@pytest.mark.parametrize("name", STEPS)
def test_gradient_equals_that_of_one_process(run, tmp_path, name):
    """Prevents DDP's mean over ranks from weighing ranks equally that hold different numbers of labels, learnt weights
    from counting once per rank, and gradients from being balanced by those of one rank."""
    folder, findings = run
    alone = {"batch_size": WINDOWS_PER_STEP, "accumulation": 1}
    expected = first_step(tmp_path, **(STEPS[name] | alone))
    assert difference(load_file(folder / f"{name}.safetensors"), expected.gradients) < 1e-5
    assert losses(findings[0][name]["log"]) == pytest.approx(losses(expected.log), rel=1e-4)
    shown = {n: v for n, v in expected.log.items() if n.startswith("weight_")}
    for rank in findings:
        assert {n: rank[name]["log"][n] for n in shown} == pytest.approx(shown, rel=1e-4)
    if name == "8x4":
        seen = [tasks for f in findings for tasks in f[name]["seen_tasks"]]
        assert ["like", "next_item", "rating"] in seen
        assert ["next_item", "rating"] in seen


def test_whole_training_equals_that_of_one_process(run, tmp_path):
    """Prevents windows with which the last batches of an epoch are filled up from being learnt twice."""
    folder, _ = run
    expected = whole_training(tmp_path, batch_size=8)
    assert difference(load_file(folder / "whole.safetensors"), dict(expected.model.named_parameters())) < 1e-5


def test_every_rank_holds_the_texts_that_any_rank_has_read(run):
    """Prevents a rank's new text vectors from being lost, or overwritten by the stale ones of the first rank."""
    _, findings = run
    first, second = (found["texts"] for found in findings)
    table = torch.tensor(first["start"])
    for of_step in zip(first["read"], second["read"], strict=True):
        for rows, vectors in of_step:  # of one item read by both, the last rank's word counts
            table[rows] = torch.tensor(vectors)
    assert [rows for rows, _ in first["read"]] != [rows for rows, _ in second["read"]]
    for found in (first, second):
        assert torch.equal(torch.tensor(found["end"]), table)


def test_each_window_is_learnt_by_one_process_once_an_epoch(run):
    """Prevents ranks from drawing different orders, so that some data is read twice and some never."""
    _, splits = fit(synthetic_log(keep=0.5))
    _, findings = run
    windows = sorted(splits.train[i]["candidate_rows"][0] for i in range(len(splits.train)))
    assert len(windows) % 8  # of 2 processes x 4 windows the last batch is not full
    orders = []
    for epoch in ("0", "1"):
        first, second = (f["rows"][epoch] for f in findings)
        assert sorted(first + second) == windows
        orders.append(first + second)
    assert orders[0] != orders[1]


def test_ranks_hold_the_same_weights_and_metrics(run):
    """Prevents ranks from drifting apart, and from evaluating different things."""
    _, (first, second) = run
    assert first["weights"] == second["weights"]
    names = measured(first["evaluation"])
    assert {n: first["evaluation"][n] for n in names} == {n: second["evaluation"][n] for n in names}


def test_evaluation_equals_that_of_one_process(run, tmp_path):
    """Prevents a distributed evaluation from averaging metrics of shares, or from counting padded windows twice."""
    folder, findings = run
    processor, splits = fit(synthetic_log(keep=0.5))
    model = PolyRecForRecommendation.from_pretrained(folder / "model")
    alone = PolyRecTrainer(model, arguments(tmp_path), processing_class=processor).evaluate(
        splits.test, metric_key_prefix="test"
    )
    for name in measured(alone):
        assert findings[0]["evaluation"][name] == pytest.approx(alone[name], rel=1e-4), name


def test_logged_losses_are_complete(run):
    """Prevents the log from showing the losses of rank 0 alone."""
    _, findings = run
    for line in findings[0]["log_history"]:
        if "loss" in line:
            parts = line["loss_next_item"] + line["loss_like"] + 0.5 * line["loss_rating"]
            assert line["loss"] == pytest.approx(parts, rel=1e-3)
