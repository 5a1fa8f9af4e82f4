"""Couplings from raw tables to a trained model."""

from __future__ import annotations

import pytest
import torch
from model_fixtures import arguments, fit, model_inputs, synthetic_log, tiny_model

from polyrec import PolyRecCollator, PolyRecTrainer
from polyrec.core.registry import COUPLINGS

TASKS = [
    {"name": "finish", "head": "binary", "label": "rating >= 3"},
    {"name": "like", "head": "binary", "label": "rating >= 5", "parent": "finish"},
]


def tasks_of(kind, **child):
    return [TASKS[0], {**TASKS[1], "coupling": kind, **child}]


@pytest.mark.parametrize("kind", COUPLINGS.names())
def test_it_trains_and_lowers_the_loss(kind, tmp_path):
    """Prevents a coupling that works on random batches only, e.g. on rates that the processor measures otherwise."""
    processor, splits = fit(synthetic_log(users=80), tasks_of(kind))
    model = tiny_model(processor)
    trainer = PolyRecTrainer(
        model,
        arguments(tmp_path, num_train_epochs=5, per_device_train_batch_size=16, learning_rate=3e-3, logging_steps=1),
        train_dataset=splits.train,
        processing_class=processor,
    )
    trainer.train()
    losses = [line["loss_like"] for line in trainer.state.log_history if "loss_like" in line]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


@pytest.mark.parametrize("kind", ["esmm", "escm2"])
def test_the_measured_rates_start_the_answers(kind):
    """Prevents the processor's rates, which are marginal, from being taken for conditional ones."""
    processor, splits = fit(synthetic_log(users=80), tasks_of(kind))
    model = tiny_model(processor)
    for head in model.heads.values():
        head.output.weight.data.zero_()
    for linear in model.skip.linear.values():
        linear.weight.data.zero_()
    batch = model_inputs(PolyRecCollator()([splits.train[i] for i in range(8)]))
    for task, logits in model(**batch).logits.items():
        rate = torch.full_like(logits, processor.label_summary[task]["mean"])
        torch.testing.assert_close(torch.sigmoid(logits), rate)


def test_a_child_labelled_only_where_its_parent_is_1_is_refused_when_the_model_is_built():
    """Prevents ESMM from silently learning the conditional as if it were the joint probability."""
    log = synthetic_log()
    rows = log["interactions"]
    rows["click"] = (rows["item_id"] % 8 == 0).astype(float)
    rows["rating"][rows["click"] == 0] = float("nan")  # rated after a click only
    tasks = [{"name": "click", "head": "binary"}, {**TASKS[1], "parent": "click", "coupling": "esmm"}]
    processor, _ = fit(log, tasks)
    with pytest.raises(ValueError, match="Label 'like' on all rows, 0 where 'click' is 0"):
        tiny_model(processor)
