"""The trainer: what it logs, decays, stops at, saves and resumes; and that all of it learns."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from model_fixtures import PAIR_TASKS, TASKS, arguments, fit, synthetic_log, tiny_model
from transformers import EarlyStoppingCallback, TrainerCallback, TrainingArguments
from transformers.utils import logging

from polyrec import PolyRecForRecommendation, PolyRecProcessor, PolyRecTrainer


@pytest.fixture(scope="module")
def world():
    return fit()


def trainer_of(world, folder, model=None, callbacks=None, model_options=None, **options):
    processor, splits = world
    model = tiny_model(processor, **(model_options or {})) if model is None else model
    return PolyRecTrainer(
        model,
        arguments(folder, **({"per_device_train_batch_size": 8} | options)),
        train_dataset=splits.train,
        eval_dataset=splits.valid,
        processing_class=processor,
        callbacks=callbacks,
    )


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same_weights(one, two):
    torch.testing.assert_close(one, two, rtol=0, atol=0, equal_nan=True)


# ------------------------------------------------------------------ logs and metrics
def test_task_losses_are_logged_and_add_up(world, tmp_path):
    """Prevents a task's loss from hiding in the sum, and the log from being scaled by accumulation or logging steps."""
    trainer = trainer_of(world, tmp_path, logging_steps=3, gradient_accumulation_steps=2, num_train_epochs=2)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert len(lines) >= 2
    for line in lines:
        assert {"loss_next_item", "loss_like", "loss_rating"} <= set(line)
        assert line["loss"] == pytest.approx(
            line["loss_next_item"] + line["loss_like"] + 0.5 * line["loss_rating"], rel=1e-3
        )
    assert 0 < lines[0]["loss_like"] < 2 * math.log(2)
    assert lines[0]["loss_next_item"] == pytest.approx(math.log(24), rel=0.5)


def test_metrics_of_each_task_and_data_set(world, tmp_path):
    """Prevents metrics from being named otherwise than documented, or of one data set from overwriting another's."""
    processor, splits = world
    trainer = trainer_of(world, tmp_path, rank_k=5)
    found = trainer.evaluate()
    assert {"eval_like_auc", "eval_rating_rmse", "eval_next_item_ndcg@5", "eval_mean_improvement"} <= set(found)
    several = trainer.evaluate({"valid": splits.valid, "test": splits.test})
    assert several["eval_valid_like_auc"] == found["eval_like_auc"]
    assert several["eval_test_like_auc"] != found["eval_like_auc"]
    assert "test_like_auc" in trainer.evaluate(splits.test, metric_key_prefix="test")
    bare = PolyRecTrainer(tiny_model(processor), arguments(tmp_path), processing_class=processor)
    with pytest.raises(ValueError, match="nothing to evaluate: pass eval_dataset"):
        bare.evaluate()


def test_exclude_seen_reaches_the_evaluation(world, tmp_path):
    """Prevents the argument from being ignored: with it off, items of the history compete."""
    strict, loose = (trainer_of(world, tmp_path, exclude_seen=flag).evaluate() for flag in (True, False))
    assert strict["eval_next_item_mrr@10"] > loose["eval_next_item_mrr@10"]


def test_evaluation_during_training_does_not_change_the_training(world, tmp_path):
    """Prevents an evaluation from consuming random numbers or leaving the model in evaluation mode."""
    plain = trainer_of(world, tmp_path, model_options={"dropout": 0.2})
    plain.train()
    watched = trainer_of(world, tmp_path, model_options={"dropout": 0.2}, eval_strategy="steps", eval_steps=1)
    watched.train()
    assert_same_weights(weights(plain.model), weights(watched.model))


# ------------------------------------------------------------------ weight decay
def test_what_decays(world, tmp_path):
    """Prevents biases, norms, start vectors, embeddings and loss weights from being pulled to 0 by weight decay."""
    options = {"expert_options": {"members": 2}}
    trainer = trainer_of(world, tmp_path, model_options=options)
    trainer.model.weighting.log_variance = torch.nn.Parameter(torch.zeros(3, 3))
    named = dict(trainer.model.named_parameters())
    decayed = set(trainer.get_decay_parameter_names(trainer.model))
    tables = {f"{n}.weight" for n, m in trainer.model.named_modules() if isinstance(m, torch.nn.Embedding)}
    assert len(tables) > 3
    for name in decayed:
        assert named[name].ndim >= 2, name
        assert "norm" not in name, name
        assert "weighting" not in name, name
        assert name not in tables, name
    spared = set(named) - decayed
    scales = {"experts.scale", "experts.blocks.0.scale_in", "experts.blocks.0.scale_out"}
    assert {n for n in spared if named[n].ndim >= 2} == tables | scales | {"weighting.log_variance"}
    assert "model.history_encoder.start" in spared
    with_tables = trainer_of(world, tmp_path, model_options=options, decay_embeddings=True)
    biases = {"heads.next_item.bias.weight"}
    assert set(with_tables.get_decay_parameter_names(with_tables.model)) == decayed | tables - biases


# ------------------------------------------------------------------ learning
class Constants(TrainerCallback):
    """Keeps the task losses of every log line."""

    def __init__(self):
        self.lines = []

    def on_log(self, args, state, control, logs=None, **unused):
        if "loss" in logs:
            self.lines.append(logs)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model trained on a log with rules to learn, its trainer and data."""
    folder = tmp_path_factory.mktemp("learnt")
    world = fit(synthetic_log(users=120, items=20, events=12), max_history=12)
    keep = Constants()
    model = tiny_model(world[0], hidden_size=16, initializer_range=0.06)
    options = {"num_train_epochs": 24, "per_device_train_batch_size": 16, "learning_rate": 1.5e-2, "logging_steps": 8}
    trainer = trainer_of(world, folder, model=model, callbacks=[keep], **options)
    trainer.train()
    return world, trainer, keep.lines


def test_every_task_learns_and_beats_the_constant(trained):
    """Prevents the whole from running without learning: what a constant answers is the least to beat, on later data."""
    (_, splits), trainer, lines = trained
    for task in ("next_item", "like", "rating"):
        assert np.mean([line[f"loss_{task}"] for line in lines[-3:]]) < 0.8 * lines[0][f"loss_{task}"], task
    found = trainer.evaluate(splits.test, metric_key_prefix="test")
    labels = splits.test.labels()
    base = np.nanmean(labels[:, 1])
    assert found["test_like_logloss"] < 0.9 * -(base * np.log(base) + (1 - base) * np.log(1 - base))
    assert found["test_like_auc"] > 0.8
    assert found["test_rating_rmse"] < 0.9 * np.nanstd(labels[:, 2])
    assert found["test_next_item_mrr@10"] > 0.5


def test_saved_folder_gives_everything_needed_and_no_pickle(trained, tmp_path):
    """Prevents a saved run that cannot recommend by itself, or that executes code when it is loaded."""
    (processor, _splits), trainer, _ = trained
    trainer.save_model(str(tmp_path))
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert {p.suffix for p in files} == {".json", ".safetensors", ".parquet"}
    assert json.loads((tmp_path / "training_args.json").read_text())["num_train_epochs"] == 24
    for path in files:
        if path.suffix == ".safetensors":
            assert path.read_bytes()[8:9] == b"{", path  # after the length of the header, which may be any byte
        else:
            assert not path.read_bytes().startswith((b"\x80", b"PK")), path  # pickle and zipped pickle
    model = PolyRecForRecommendation.from_pretrained(tmp_path)
    loaded = PolyRecProcessor.from_pretrained(tmp_path)
    history = [3, 4, 5]
    expected = trainer.model.recommend(processor, history, k=3)
    for one, other in zip(model.recommend(loaded, history, k=3), expected, strict=True):
        assert one["title"] == other["title"]
        for column in ("score", "like", "rating"):
            assert one[column] == pytest.approx(other[column], rel=1e-4)


# ------------------------------------------------------------------ stopping, resuming
class Sabotage(TrainerCallback):
    """Destroys the model after some epochs, so that the best epoch is known."""

    def __init__(self, after):
        self.after, self.best, self.epochs = after, None, 0

    def on_epoch_end(self, args, state, control, model=None, **unused):
        self.epochs += 1
        if self.epochs == self.after:
            self.best = weights(model)
        if self.epochs > self.after:
            with torch.no_grad():
                for head in model.heads.values():
                    for p in head.parameters():
                        p.add_(torch.randn_like(p) * 20)


def test_early_stopping_keeps_the_best_weights(world, tmp_path):
    """Prevents early stopping from keeping the worst model (a metric read the wrong way round) or the last one."""
    sabotage = Sabotage(after=2)
    trainer = trainer_of(
        world,
        tmp_path,
        callbacks=[sabotage, EarlyStoppingCallback(2)],
        num_train_epochs=9,
        learning_rate=1e-2,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
    )
    trainer.train()
    assert sabotage.epochs == 4
    scores = [line["eval_mean_improvement"] for line in trainer.state.log_history if "eval_mean_improvement" in line]
    assert np.argmax(scores) == 1
    assert trainer.state.best_metric == scores[1]
    trained = {name: parameter.detach() for name, parameter in trainer.model.named_parameters()}
    assert_same_weights(trained, {name: sabotage.best[name] for name in trained})
    assert not list(tmp_path.rglob("training_args.bin"))


@pytest.mark.parametrize("quiet", [True, False])
def test_bars_of_saving_follow_disable_tqdm(world, tmp_path, capfd, quiet):
    """Prevents a bar for every checkpoint in the log of whoever turned bars off, and one that stays off for others."""
    logging.enable_progress_bar()  # commands that ran before may have turned it off for all
    trainer_of(world, tmp_path, disable_tqdm=quiet, num_train_epochs=1, save_strategy="epoch").train()
    assert ("Writing model shards" in capfd.readouterr().err) is not quiet
    assert list(tmp_path.glob("checkpoint-*/model.safetensors"))
    if quiet:
        tiny_model(world[0]).save_pretrained(tmp_path)
        assert "Writing model shards" in capfd.readouterr().err


class StopAt(TrainerCallback):
    """Saves and stops at a step, like a machine that goes away."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **unused):
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


RESUMED = {
    "num_train_epochs": 2,
    "gradient_accumulation_steps": 2,
    "per_device_train_batch_size": 8,
    "model_options": {
        "dropout": 0.2,
        "item_id_dropout": 0.2,
        "tasks": [
            {"name": "next_item", "head": "retrieval", "options": {"sampled_above": 2, "num_negatives": 5}},
            *PAIR_TASKS,
        ],
    },
}


@pytest.fixture(scope="module", params=["group_by_length", "random"])
def uninterrupted(request, world, tmp_path_factory):
    """Options of a run of 2 epochs with 3 steps each, and its weights."""
    options = RESUMED | {"train_sampling_strategy": request.param}
    trainer = trainer_of(world, tmp_path_factory.mktemp("whole"), **options)
    trainer.train()
    assert trainer.state.global_step == 6
    return options, weights(trainer.model)


@pytest.mark.parametrize("step", [2, 3, 5], ids=["first_epoch", "end_of_epoch", "second_epoch"])
def test_resumed_training_is_bit_identical(world, uninterrupted, tmp_path, step):
    """Prevents a resumed run from reading other data, drawing other dropout or negatives, or losing optimizer state."""
    options, expected = uninterrupted
    trainer_of(world, tmp_path, callbacks=[StopAt(step)], **options).train()
    resumed = trainer_of(world, tmp_path, **options)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 6
    assert_same_weights(weights(resumed.model), expected)
    assert not list(tmp_path.rglob("training_args.bin"))


# ------------------------------------------------------------------ precision and memory
def test_bf16_trains(world, tmp_path):
    """Prevents mixed precision from failing or giving NaN."""
    trainer = trainer_of(world, tmp_path, bf16=True, max_steps=3, logging_steps=1)
    trainer.train()
    assert all(np.isfinite(line["loss"]) for line in trainer.state.log_history if "loss" in line)
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    assert np.isfinite(trainer.evaluate()["eval_mean_improvement"])


def test_gradient_checkpointing_trains_the_same(world, tmp_path):
    """Prevents checkpointing from changing what is learnt."""
    found = []
    for flag in (False, True):
        trainer = trainer_of(world, tmp_path, activation_checkpointing=flag, max_steps=3)
        trainer.train()
        assert trainer.model.is_activation_checkpointing is flag
        found.append(weights(trainer.model))
    torch.testing.assert_close(*found, equal_nan=True)


@pytest.mark.parametrize("tasks", [TASKS[:1], PAIR_TASKS])
def test_other_sets_of_tasks_train(world, tmp_path, tasks):
    """Prevents the trainer from needing a retrieval task, or a pair task, or all label columns of the data."""
    trainer = trainer_of(world, tmp_path, max_steps=2, logging_steps=1, model_options={"tasks": tasks})
    trainer.train()
    assert {f"loss_{t['name']}" for t in tasks} == {n for n in trainer.state.log_history[0] if n.startswith("loss_")}
    assert np.isfinite(trainer.evaluate()["eval_mean_improvement"])


# ------------------------------------------------------------------ mistakes
def test_wrong_arguments_are_refused(world, tmp_path):
    """Prevents transformers' own defaults from dropping nested inputs."""
    processor, _ = world
    with pytest.raises(TypeError, match="must be PolyRecTrainingArguments, not TrainingArguments"):
        PolyRecTrainer(tiny_model(processor), TrainingArguments(output_dir=str(tmp_path), use_cpu=True))
    with pytest.raises(ValueError, match="remove_unused_columns=True would drop"):
        arguments(tmp_path, remove_unused_columns=True)


def test_catalog_of_the_processor_is_in_the_model(world, tmp_path):
    """Prevents training without item attributes because nobody loaded them."""
    processor, _ = world
    model = PolyRecForRecommendation(tiny_model(processor).config)
    assert not model.item_encoder.known.any()
    trainer_of(world, tmp_path, model=model)
    assert model.item_encoder.known.sum() == (processor.item_counts > 0).sum()
    np.testing.assert_array_equal(model.item_encoder.catalog.genre, processor.items.encoded["genre"])
