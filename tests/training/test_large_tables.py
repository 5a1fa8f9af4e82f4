"""Tables of large catalogs are updated by rows, and learn what AdamW teaches them."""

import copy

import pytest
import torch
from model_fixtures import arguments, fit, synthetic_log, tiny_model
from torch import nn

from polyrec import PolyRecTrainer
from polyrec.training import large_tables
from polyrec.training.rowwise import RowwiseAdamW, clip_rows

ROWS, RATE = 40, 1e-2


def both(decay=0.0, betas=(0.9, 0.999)):
    """A table and a layer above it, trained by AdamW and by rows."""
    torch.manual_seed(0)
    parts = nn.ModuleDict({"table": nn.Embedding(ROWS, 4), "layer": nn.Linear(4, 1)})
    models = [parts, copy.deepcopy(parts)]
    kinds = (torch.optim.AdamW, RowwiseAdamW)
    options = {"lr": RATE, "weight_decay": decay, "betas": betas}
    optimizers = [kind(m.parameters(), **options) for kind, m in zip(kinds, models, strict=True)]
    optimizers[1].watch([models[1]["table"]])
    return models, optimizers


def train(models, optimizers, steps, rows_of, begin=0, accumulate=1):
    for step in range(begin, begin + steps):
        batches = [(rows_of(step, n), torch.randn(len(rows_of(step, n)), 1)) for n in range(accumulate)]
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.param_groups[0]["lr"] = RATE * (1 - step / 1000)
            optimizer.zero_grad()
            for rows, target in batches:
                (model["layer"](model["table"](rows)) - target).square().sum().backward()
            clip_rows(model.parameters(), 1.0)
            optimizer.step()


def compare(models, optimizers, tolerance):
    optimizers[1].settle()
    for own, other in zip(*(m.parameters() for m in models), strict=True):
        torch.testing.assert_close(own, other, atol=tolerance, rtol=0)
    states = [optimizer.state_dict()["state"] for optimizer in optimizers]
    for key, own in states[0].items():
        for name, value in own.items():
            torch.testing.assert_close(states[1][key][name], value, atol=max(1e-5, tolerance / 10), rtol=1e-3)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_it_is_adamw_where_all_rows_are_read(decay):
    """Prevents the row-wise optimizer from being another one: bias correction, decay, clipping."""
    models, optimizers = both(decay)
    train(models, optimizers, 50, lambda step, n: torch.randperm(ROWS, generator=torch.Generator().manual_seed(step)))
    compare(models, optimizers, 1e-6)


@pytest.mark.parametrize(("decay", "tolerance"), [(0.0, 1e-4), (0.1, 5e-3)])
def test_rows_that_were_not_read_catch_up(decay, tolerance):
    """Prevents rare items from losing the momentum that AdamW gives them, as `SparseAdam` takes it from them; the rows
    of several batches of a step, an item twice in one of them, and a learning rate that falls."""
    models, optimizers = both(decay)

    def rows_of(step, n):
        random = torch.Generator().manual_seed(10 * step + n)
        return torch.randint(ROWS if step % 17 == 0 else 9, (5,), generator=random)

    train(models, optimizers, 300, rows_of, accumulate=2)
    compare(models, optimizers, tolerance)
    moved = (models[0]["table"].weight - both()[0][0]["table"].weight).abs()
    assert moved.max() > 100 * tolerance  # that is, equal is not untouched


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.95, 0.999), (0.9, 0.95)])
def test_rows_that_wait_long_catch_up(betas):
    """Prevents the movement of rows that wait for more than `_TAIL` steps from being cut off."""
    models, optimizers = both(betas=betas)

    def rows_of(step, n):
        random = torch.Generator().manual_seed(step)
        return torch.randint(ROWS if step % 17 == 0 and step < 300 else 9, (5,), generator=random)

    train(models, optimizers, 700, rows_of)
    compare(models, optimizers, 1e-4)


@pytest.mark.parametrize("betas", [(0.98, 0.999), (0.99, 0.999), (0.95, 0.9)])
def test_betas_whose_momentum_lasts_are_refused(betas):
    """Prevents rows from moving less than by AdamW, by up to .4, without a word."""
    with pytest.raises(ValueError, match="for too long"):
        both(betas=betas)


def test_checkpoints_go_on_with_either_optimizer():
    """Prevents a resumed training from forgetting what rows were waiting for."""
    models, optimizers = both()
    train(models, optimizers, 30, lambda step, n: torch.tensor([step % 7, step % 3]))
    states = [optimizer.state_dict() for optimizer in optimizers]
    optimizers[0].load_state_dict(states[1])
    optimizers[1].load_state_dict(states[0])
    train(models, optimizers, 30, lambda step, n: torch.tensor([step % 11, step % 5]), begin=30)
    compare(models, optimizers, 2e-5)


def test_rows_are_up_to_date_when_they_are_read():
    """Prevents an evaluation in the midst of a training from reading rows that still wait."""
    models, optimizers = both()
    train(models, optimizers, 20, lambda step, n: torch.tensor([step % 2 + 2 * (step == 0)]))
    rows = torch.arange(ROWS)
    torch.testing.assert_close(models[0]["table"](rows), models[1]["table"](rows), atol=2e-5, rtol=0)


def trainer_of(folder, rowwise, **options):
    processor, data = fit(synthetic_log(keep=0.7))
    settings = {"max_steps": 12, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "rowwise_tables": rowwise}
    model = tiny_model(processor, tasks=[{"name": "next_item", "head": "retrieval", "options": SAMPLED}])
    trained = arguments(folder, **{**settings, "keep_best": False, **options})
    return PolyRecTrainer(model, trained, data.train, data.valid, processing_class=processor)


SAMPLED = {"sampled_above": 4, "num_negatives": 5}


@pytest.mark.parametrize(
    "options", [{}, {"gradient_accumulation_steps": 2}, {"max_grad_norm": 0.0}, {"keep_best": True}]
)
def test_a_training_by_rows_ends_like_one_by_adamw(options, tmp_path, monkeypatch):
    """Prevents weights that are logged, evaluated, saved or kept as the best from being those of rows that wait."""
    monkeypatch.setattr(large_tables, "WHOLE_TABLE", 4)
    found = []
    for rowwise in (False, None):
        trainer = trainer_of(tmp_path / str(rowwise), rowwise, **{"eval_strategy": "steps", "eval_steps": 5, **options})
        trainer.train()
        assert isinstance(trainer._rowwise, RowwiseAdamW) is (rowwise is None)
        assert not any(m.sparse or m._forward_pre_hooks for m in trainer.model.modules() if isinstance(m, nn.Embedding))
        found.append(
            (
                dict(trainer.model.named_parameters()),
                [log for log in trainer.state.log_history if "eval_loss" not in log],
            )
        )
    for name, value in found[0][0].items():
        torch.testing.assert_close(found[1][0][name], value, atol=1e-4, rtol=1e-4, msg=name)
    ranked = [[log["eval_next_item_ndcg@10"] for log in own[1] if "eval_next_item_ndcg@10" in log] for own in found]
    assert len(ranked[0]) >= 2
    assert ranked[0] == pytest.approx(ranked[1], abs=1e-6)


def test_what_tables_by_rows_cannot_have_is_said(tmp_path, monkeypatch):
    """Prevents a wish from being left out without a word; by default the dense optimizer trains."""
    monkeypatch.setattr(large_tables, "WHOLE_TABLE", 4)
    assert trainer_of(tmp_path, None, ema_decay=0.9).create_optimizer().__class__ is torch.optim.AdamW
    with pytest.raises(ValueError, match="ema_decay averages all rows"):
        trainer_of(tmp_path, True, ema_decay=0.9).create_optimizer()
    assert trainer_of(tmp_path, None, adam_beta1=0.98).create_optimizer().__class__ is torch.optim.AdamW
    with pytest.raises(ValueError, match="adam_beta1=0.98 and adam_beta2=0.999 momentum fades too slowly"):
        trainer_of(tmp_path, True, adam_beta1=0.98).create_optimizer()
    with pytest.raises(ValueError, match="is not AdamW"):
        trainer_of(tmp_path, True, optim="sgd").create_optimizer()


def test_small_catalogs_are_trained_as_before(tmp_path):
    """Prevents models of small logs from getting another optimizer."""
    assert trainer_of(tmp_path, None).create_optimizer().__class__ is torch.optim.AdamW
