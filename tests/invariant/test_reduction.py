"""The same data gives the same gradient, however it is cut into batches (processes: tests/distributed)."""

from __future__ import annotations

import pytest
import torch
from model_fixtures import fit, model_inputs, tiny_model
from reduction_fixtures import WINDOWS_PER_STEP, UnevenCollator, difference, first_step, losses


@pytest.fixture(scope="module", params=["group_by_length", "random"])
def whole(request, tmp_path_factory):
    return request.param, first_step(tmp_path_factory.mktemp("whole"), WINDOWS_PER_STEP, strategy=request.param)


@pytest.mark.parametrize(("batch_size", "accumulation"), [(16, 4), (8, 8), (32, 2)])
def test_accumulation_gives_the_gradient_of_the_whole_batch(whole, tmp_path, batch_size, accumulation):
    """Prevents means of means: labels are missing, weighted, and of one task absent from whole batches."""
    strategy, expected = whole
    found = first_step(tmp_path, batch_size, accumulation, strategy)
    assert difference(found.gradients, expected.gradients) < 1e-5
    assert losses(found.log) == pytest.approx(losses(expected.log), rel=1e-4)
    everything = ["like", "next_item", "rating"]
    assert expected.seen_tasks[0] == everything
    if batch_size == 8:
        assert everything in found.seen_tasks
        assert ["next_item", "rating"] in found.seen_tasks


def test_the_trainers_objective_is_the_models(whole):
    """Prevents the trainer from counting other labels than the model sums (unknown items, zero labels, weights)."""
    _, step = whole
    trainer = step.trainer
    batch = next(iter(trainer.get_train_dataloader()))
    counts = trainer._get_num_items_in_batch([batch], torch.device("cpu"))
    model = trainer.model.eval()
    expected = model(**model_inputs(batch))
    assert {n: c.item() for n, c in counts.items()} == pytest.approx({n: c.item() for n, c in expected.counts.items()})
    assert (batch["candidate_ids"] == 1).any()
    assert counts["next_item"] < batch["sample_weight"]["next_item"].nansum()
    torch.testing.assert_close(trainer.compute_loss(model, batch, num_items_in_batch=counts), expected.loss)


def test_duplicated_data_gives_the_same_gradient():
    """Prevents a sum where a mean is meant: every window twice must change nothing."""
    processor, splits = fit()
    model = tiny_model(processor)
    windows = [splits.train[i] for i in range(8)]
    found = []
    for data in (windows, windows * 2):
        model.zero_grad()
        model(**model_inputs(UnevenCollator()(data))).loss.backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters()})
    assert difference(*found) < 1e-5


WEIGHTINGS = [
    ("uncertainty", None),
    ("rlw", None),
    ("dwa", {"period": 1}),
    ("famo", None),
    ("geometric", None),
    ("gradnorm", None),
]


@pytest.mark.parametrize(("kind", "options"), WEIGHTINGS, ids=[kind for kind, _ in WEIGHTINGS])
def test_weightings_see_the_same_step(tmp_path, kind, options):
    """Prevents a weighting from adding its own terms once per batch, from learning from the last batch of a step, or
    from counting a task as lost that has no labels in one of the batches."""
    model = {"weighting": kind, "weighting_options": options}
    whole = first_step(tmp_path / "whole", WINDOWS_PER_STEP, **model)
    cut = first_step(tmp_path / "cut", 8, 8, **model)
    assert ["next_item", "rating"] in cut.seen_tasks
    assert difference(cut.gradients, whole.gradients) < 1e-5
    assert losses(cut.log) == pytest.approx(losses(whole.log), rel=1e-4)
    one, other = (step.trainer.model.weighting.state_dict() for step in (cut, whole))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    weights = {name: value for name, value in whole.log.items() if name.startswith("weight_")}
    assert {name: cut.log[name] for name in weights} == pytest.approx(weights, rel=1e-4)
