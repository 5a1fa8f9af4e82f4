"""Learning rates of pretrained layers, and when they begin to learn."""

import pytest
import torch
from model_fixtures import arguments, fit, tiny_model
from text_fixtures import tiny_bert
from transformers import TrainerCallback

from polyrec import PolyRecTrainer
from polyrec.training.optim import GradualUnfreezing


def trainer_of(folder, **options):
    processor, data = fit(text={"model": str(tiny_bert()), "template": "{title} {genre}"})
    model = tiny_model(processor, text={"tuning": "full"})
    settings = arguments(folder, per_device_train_batch_size=32, **options)
    return PolyRecTrainer(model, settings, data.train, data.valid, processing_class=processor)


def test_each_part_has_its_own_rate(tmp_path):
    """Prevents a pretrained model from being ruined by the rate of fresh heads, and any parameter from being left out."""
    trainer = trainer_of(
        tmp_path, learning_rate=1e-2, backbone_learning_rate=1e-3, layer_decay=0.5, embedding_learning_rate=3e-2
    )
    optimizer = trainer.create_optimizer()
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    named = dict(trainer.model.named_parameters())
    assert len(rates) == sum(p.requires_grad for p in named.values())
    for name, parameter in named.items():
        if ".layer.1." in name:
            expected = 1e-3
        elif ".layer.0." in name:
            expected = 5e-4
        elif ".text.encoder." in name:
            expected = 2.5e-4
        elif "id_embedding" in name or name.endswith(("bias.weight", "prior.weight")) or ".tables." in name:
            expected = 3e-2
        else:
            expected = 1e-2
        assert rates[id(parameter)] == pytest.approx(expected), name
        if name.endswith(".bias") or "LayerNorm" in name:
            assert decays[id(parameter)] == 0, name


def test_layers_are_unfrozen_from_the_top(tmp_path):
    """Prevents layers that were to wait from learning, and from staying frozen for ever."""
    trainer = trainer_of(tmp_path, num_train_epochs=4, unfreeze_epochs=1, backbone_learning_rate=1e-3)
    parts = {"embeddings": ".embeddings.", "low": ".layer.0.", "top": ".layer.1."}
    seen = []

    class Look(TrainerCallback):
        def on_epoch_end(self, args, state, control, model=None, **unused):
            found = {
                key: [p.detach().clone() for n, p in model.named_parameters() if mark in n]
                for key, mark in parts.items()
            }
            seen.append(found)

    start = {
        key: [p.detach().clone() for n, p in trainer.model.named_parameters() if m in n] for key, m in parts.items()
    }
    trainer.add_callback(Look())
    trainer.train()
    moved = []
    for before, after in zip([start, *seen[:-1]], seen, strict=True):
        moved.append({k for k in parts if any(not torch.equal(a, b) for a, b in zip(before[k], after[k], strict=True))})
    assert moved == [set(), {"top"}, {"top", "low"}, {"top", "low", "embeddings"}]
    assert all(p.requires_grad for p in trainer.model.parameters())


@pytest.mark.parametrize("options", [{"layer_decay": 0.0}, {"unfreeze_epochs": -1}])
def test_rates_that_mean_nothing_are_refused(options, tmp_path):
    """Prevents a decay of 0 from freezing all layers but one in silence."""
    with pytest.raises(ValueError, match="must be"):
        arguments(tmp_path, **options)
    with pytest.raises(ValueError, match="must be >= 1"):
        GradualUnfreezing(0)
