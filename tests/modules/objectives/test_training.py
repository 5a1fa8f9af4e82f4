"""Objectives in the trainer: the reduction over an accumulation window, and the log."""

from __future__ import annotations

import pytest
import torch
from objective_fixtures import OPTIONS
from reduction_fixtures import WINDOWS_PER_STEP, difference, first_step, losses

MASKED = {"masked_events": {"weight": 0.5, **OPTIONS["masked_events"]}}


def test_accumulation_gives_the_gradient_of_the_whole_batch(tmp_path):
    """Prevents means of means: histories differ in length, so batches hold different numbers of masks."""
    whole = first_step(tmp_path / "whole", WINDOWS_PER_STEP, objectives=MASKED)
    cut = first_step(tmp_path / "cut", 8, 8, objectives=MASKED)
    assert difference(cut.gradients, whole.gradients) < 1e-5
    assert losses(cut.log) == pytest.approx(losses(whole.log), rel=1e-4)
    names = ("like", "next_item", "rating", "masked_events")
    weighted = [whole.log[f"weight_{name}"] * whole.log[f"loss_{name}"] for name in names]
    assert whole.log["weight_masked_events"] == 0.5
    assert whole.log["loss"] == pytest.approx(sum(weighted), rel=1e-4)


def test_in_batch_negatives_are_divided_by_the_whole_window(tmp_path):
    """Prevents the contrastive loss of 8 batches from being 8 times that of one (its negatives do differ)."""
    options = {"contrastive": {"weight": 0.5, "temperature": 1.0, **OPTIONS["contrastive"]}}
    whole = first_step(tmp_path / "whole", WINDOWS_PER_STEP, objectives=options)
    cut = first_step(tmp_path / "cut", 16, 4, objectives=options)
    assert cut.log["loss_contrastive"] == pytest.approx(whole.log["loss_contrastive"], rel=0.5)
    assert cut.log["loss_contrastive"] < whole.log["loss_contrastive"]  # fewer to be told apart from


def test_without_objectives_the_log_has_none(tmp_path):
    """Prevents a column of zeros for what nobody asked for."""
    step = first_step(tmp_path, WINDOWS_PER_STEP)
    assert not [name for name in step.log if "masked" in name or "contrastive" in name]


@pytest.mark.parametrize("objectives", [MASKED, {}])
def test_windows_that_only_fill_a_batch_are_not_read_again(tmp_path, objectives):
    """Prevents several processes from learning the first windows of an epoch twice through their objectives."""
    trainer = first_step(tmp_path, 24, objectives=objectives).trainer
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(24)])
    histories = batch["item_ids"].clone()
    left = len(trainer.train_dataset) % 24
    assert 0 < left < 24
    trainer._blank_repeated(batch)
    assert all(values[left:].isnan().all() for values in batch["labels"].values())
    assert torch.equal(batch["item_ids"][:left], histories[:left])
    assert bool(batch["item_ids"][left:].any()) == (not objectives)
