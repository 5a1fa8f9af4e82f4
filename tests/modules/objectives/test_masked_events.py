"""Masked events: what is hidden, what is predicted, and how often it counts."""

from __future__ import annotations

import pytest
import torch
from objective_fixtures import objective_batch, objective_model
from torch.nn import functional as F

from polyrec.modules.encoders.item import FIRST_ITEM


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def test_the_loss_is_the_plain_formula():
    """Prevents the prediction from being read one event off, or the item itself from standing in the history."""
    model, batch = without_dropout(objective_model("masked_events", share=1.0)), objective_batch()
    found = model(**batch).objectives["masked_events"]
    objective, ids = model.objectives["masked_events"], batch["item_ids"]
    items = model.item_encoder.encode(torch.arange(model.config.num_items))
    table = torch.cat([items, objective.mask.unsqueeze(0)])
    total, count = 0.0, 0
    for row in ids:
        length = int((row != 0).sum())
        vectors = torch.stack([table[-1] if item >= FIRST_ITEM else table[item] for item in row[:length]])
        history = model.model.history_encoder
        inputs = history.norm(torch.cat([history.start.unsqueeze(0), vectors]))
        states = history.backbone(inputs_embeds=inputs.unsqueeze(0)).last_hidden_state[0]
        for at, item in enumerate(row[:length].tolist()):
            if item < FIRST_ITEM:
                continue
            scores = objective.head.project(states[at + 1]) @ items.T + objective.head.bias.weight[:, 0]
            total += F.cross_entropy(scores[FIRST_ITEM:], torch.tensor(item - FIRST_ITEM))
            count += 1
    assert model.objectives["masked_events"].count(model.item_encoder, ids) == count
    torch.testing.assert_close(found, total / count, rtol=1e-5, atol=1e-5)


def test_the_expected_count_makes_the_mean_unbiased():
    """Prevents a small share from being divided by all events, i.e. a loss that depends on the share."""
    model = without_dropout(objective_model("masked_events", share=0.3)).requires_grad_(False)
    batch = objective_batch(users=16)
    batch["item_ids"] = torch.randint(2, 12, batch["item_ids"].shape)
    # Untrained and with all weights of the scores 0, the loss of each mask is log(items).
    model.objectives["masked_events"].head.project.weight.zero_()
    model.objectives["masked_events"].head.project.bias.zero_()
    model.objectives["masked_events"].head.bias.weight.zero_()
    torch.manual_seed(0)
    found = [model(**batch).objectives["masked_events"].item() for _ in range(100)]
    assert sum(found) / 100 == pytest.approx(torch.log(torch.tensor(10.0)).item(), rel=0.03)


@pytest.mark.parametrize("small_table", [True, False])
def test_the_sampled_softmax_finds_its_rows(monkeypatch, small_table):
    """Prevents negatives that were never encoded from being read as other items, and the mask from being one of them."""
    if not small_table:
        monkeypatch.setattr("polyrec.modules.encoders.item.WHOLE_TABLE", 4)
    model = objective_model("masked_events", share=1.0, sampled_above=2, num_negatives=5)
    batch = objective_batch()
    output = model(**batch)
    assert torch.isfinite(output.loss)
    output.loss.backward()
    assert model.objectives["masked_events"].mask.grad.abs().sum() > 0


@pytest.mark.parametrize("share", [0.0, 1.5, -1])
def test_a_share_that_masks_nothing_is_refused(share):
    """Prevents an objective that costs a reading and teaches nothing."""
    with pytest.raises(ValueError, match="option 'share' of objective 'masked_events'"):
        objective_model("masked_events", share=share)
