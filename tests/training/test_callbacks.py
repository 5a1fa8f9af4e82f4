"""Early stopping task by task, and averaged weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from model_fixtures import arguments, fit, random_config, synthetic_log, tiny_model
from safetensors.torch import load_file
from test_trainer import StopAt, assert_same_weights, weights
from transformers import TrainerCallback, TrainerControl, TrainerState

from polyrec import PolyRecForRecommendation, PolyRecTrainer
from polyrec.training.callbacks import TaskEarlyStopping, WeightAveraging, own_parameters
from polyrec.training.cost import CostMeter
from polyrec.training.soup import Soup

TASKS = [
    {"name": "like", "head": "binary", "label": "rating >= 4"},
    {"name": "noise", "head": "binary"},
    {"name": "next_item", "head": "retrieval", "options": {"neighbours": 0}},  # with which it would be best untrained
]


@pytest.fixture(scope="module")
def world():
    """A log whose task "noise" is a coin toss, which a model can only memorise."""
    log = synthetic_log(users=60)
    rows = len(log["interactions"]["item_id"])
    log["interactions"]["noise"] = np.random.default_rng(7).integers(0, 2, rows).astype(float)
    return fit(log, tasks=TASKS)


def trainer_of(world, folder, callbacks=None, model_options=None, **options):
    processor, splits = world
    return PolyRecTrainer(
        tiny_model(processor, **{"hidden_size": 16, "initializer_range": 0.06, **(model_options or {})}),
        arguments(folder, **({"per_device_train_batch_size": 16, "learning_rate": 1e-2} | options)),
        train_dataset=splits.train,
        eval_dataset=splits.valid,
        processing_class=processor,
        callbacks=callbacks,
    )


def tower(model, task):
    return {name: p.detach().clone() for name, p in own_parameters(model, task).items()}


class Watch(TrainerCallback):
    """Keeps each evaluation's metrics, and the towers and scales that the model had at it and in the step after."""

    def __init__(self):
        self.metrics, self.towers, self.scales, self.later = [], [], [], []

    def on_evaluate(self, args, state, control, model=None, metrics=None, **unused):
        self.metrics.append(metrics)
        self.towers.append({task: tower(model, task) for task in model.heads})

    def on_step_end(self, args, state, control, model=None, **unused):
        self.scales.append(dict(zip(model.weighting.task_names, model.weighting.scale.tolist(), strict=True)))
        self.later.append({task: tower(model, task) for task in model.heads})


# ------------------------------------------------------------------ early stopping in training
@pytest.fixture(scope="module")
def stopped(world, tmp_path_factory):
    """A run in which "noise" overfits at once, and what was seen of it."""
    watch = Watch()
    folder = tmp_path_factory.mktemp("stopped")
    trainer = trainer_of(
        world,
        folder,
        callbacks=[watch],
        num_train_epochs=14,
        eval_strategy="epoch",
        logging_strategy="epoch",
        task_patience=2,
        weight_decay=0.1,
    )
    trainer.train()
    (callback,) = (c for c in trainer.callback_handler.callbacks if isinstance(c, TaskEarlyStopping))
    return trainer, callback, watch


def test_a_task_with_a_limit_stops_where_it_stands(world, tmp_path):
    """Prevents a limit that is accepted and ignored, one that stops the others, and momentum after the end."""
    watch = Watch()
    options = {"num_train_epochs": 4, "eval_strategy": "epoch", "weight_decay": 0.1, "task_epochs": {"noise": 2}}
    trainer_of(world, tmp_path, callbacks=[watch], **options).train()
    assert_same_weights(watch.towers[2]["noise"], watch.towers[3]["noise"])
    assert not torch.equal(*(next(iter(watch.towers[i]["noise"].values())) for i in (0, 1)))
    assert not torch.equal(*(next(iter(watch.towers[i]["like"].values())) for i in (2, 3)))
    with pytest.raises(ValueError, match="limits: unknown task 'noises'"):
        trainer_of(world, tmp_path, task_epochs={"noises": 1}).train()


def test_a_task_that_overfits_stops_alone(stopped):
    """Prevents a noisy task from training on for as long as the others need, or from stopping them."""
    trainer, callback, watch = stopped
    assert callback.frozen[0] == "noise"
    values = [m["eval_noise_logloss"] for m in watch.metrics]
    end = int(np.argmin(values[: callback.patience + int(np.argmin(values))])) + callback.patience
    after = [line["weight_noise"] for line in trainer.state.log_history if "weight_noise" in line]
    assert after[0] == 1.0
    assert after[-1] == 0.0
    assert 0 < sum(w > 0 for w in after) < len(after)
    assert end < len(watch.metrics)
    like = [m["eval_like_logloss"] for m in watch.metrics]
    assert np.argmin(like) > np.argmin(values)  # "like" learnt on


def test_its_parts_go_back_to_their_best_and_stay_there(stopped):
    """Prevents a frozen tower from being the overfitted one, and momentum or weight decay from moving it."""
    trainer, callback, watch = stopped
    best = int(np.argmin([m["eval_noise_logloss"] for m in watch.metrics]))
    assert_same_weights(tower(trainer.model, "noise"), watch.towers[best]["noise"])
    frozen = [later for later, scale in zip(watch.later, watch.scales, strict=True) if scale["noise"] == 0]
    assert len(frozen) > 3
    for later in frozen[1:]:
        assert_same_weights(later["noise"], watch.towers[best]["noise"])
    moved = [
        not torch.equal(a, b) for a, b in zip(frozen[0]["like"].values(), frozen[-1]["like"].values(), strict=True)
    ]
    assert any(moved) or "like" in callback.frozen


def test_the_model_is_given_back_with_all_tasks(stopped):
    """Prevents a saved model whose frozen task would silently learn nothing in the next training."""
    trainer, _, _ = stopped
    assert trainer.model.weighting.scale.tolist() == [1, 1, 1]


# ------------------------------------------------------------------ early stopping, step by step
def model_of(world):
    return tiny_model(world[0])


def evaluate(callback, model, **values):
    control = TrainerControl()
    metrics = {f"eval_{name}": value for name, value in values.items()}
    callback.on_evaluate(None, TrainerState(), control, model=model, metrics=metrics)
    return control.should_training_stop


def judged(like=1.0, noise=1.0, ndcg=1.0):
    return {"like_logloss": like, "noise_logloss": noise, "next_item_ndcg@10": ndcg, "like_auc": 0.5}


def test_direction_comes_from_the_metric(world):
    """Prevents stopping a ranking task because its NDCG rises (or the last-best mistake the other way round)."""
    model, callback = model_of(world), TaskEarlyStopping(patience=1)
    for better in (0.9, 0.8, 0.7):
        evaluate(callback, model, **judged(like=better, noise=better, ndcg=1 / better))
    assert callback.frozen == []
    evaluate(callback, model, **judged(like=0.6, noise=0.6, ndcg=1.0))
    assert callback.frozen == ["next_item"]


def test_training_stops_when_all_tasks_are_frozen(world):
    """Prevents a run from going on that trains nothing, or from stopping at the first frozen task."""
    model, callback = model_of(world), TaskEarlyStopping(patience=1)
    assert not evaluate(callback, model, **judged())
    assert not evaluate(callback, model, **judged(like=0.5))
    assert set(callback.frozen) == {"noise", "next_item"}
    assert evaluate(callback, model, **judged(like=0.6))
    assert model.weighting.scale.tolist() == [0, 0, 0]


def test_factor_lowers_step_by_step(world):
    """Prevents a factor above 0 from freezing at once, or from never ending."""
    model, callback = model_of(world), TaskEarlyStopping(patience=2, factor=0.1)
    evaluate(callback, model, **judged())
    found = []
    for _ in range(6):
        evaluate(callback, model, **judged())
        found.append(round(model.weighting.scale_of("like").item(), 6))
    assert found == [1.0, 0.1, 0.1, 0.01, 0.01, 0.0]


def test_other_evaluations_and_missing_metrics_do_not_count(world):
    """Prevents a test set, a data set without labels of a task, or NaN from using up the patience."""
    model, callback = model_of(world), TaskEarlyStopping(patience=1)
    evaluate(callback, model, **judged())
    callback.on_evaluate(None, TrainerState(), TrainerControl(), model=model, metrics={"test_like_logloss": 9.0})
    evaluate(callback, model, next_item_mrr=0.1)
    evaluate(callback, model, like_logloss=float("nan"))
    assert callback.waited == {"like": 0, "noise": 0, "next_item": 0}


@pytest.mark.parametrize("restore", [True, False])
def test_restoring_is_an_option(world, restore):
    """Prevents the option from being ignored."""
    model, callback = model_of(world), TaskEarlyStopping(patience=1, restore_towers=restore)
    evaluate(callback, model, **judged())
    before = tower(model, "noise")
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    evaluate(callback, model, **judged(like=0.5, ndcg=2.0))
    assert callback.frozen == ["noise"]
    after = tower(model, "noise")
    assert all(torch.equal(before[n], after[n]) == restore for n in before)


NAMED_LIKE_PARTS = ["output", "weight", "bias", "norm", "linear", "experts", "skip", "table", "rating", "weighting"]


@pytest.mark.parametrize("experts", ["shared_bottom", "ple"])
def test_own_parts_are_those_of_the_task_alone(experts):
    """Prevents tasks that are named like parts of other tasks, or like a feature, from owning those, too."""
    tasks = [{"name": name, "head": "binary"} for name in NAMED_LIKE_PARTS]
    tasks[1] |= {"parent": "output", "coupling": "aitm"}
    config = random_config(tasks=[*tasks, {"name": "project", "head": "retrieval"}], experts=experts)
    config.features = [{"name": "statistics", "source": "candidate", "kind": "vector", "size": 3}]
    model = PolyRecForRecommendation(config)
    names = [name for name, _ in model.named_parameters()]
    for task in model.heads:
        roots = (f"heads.{task}.", f"skip.linear.{task}.", f"couplings.{task}.")
        assert list(own_parameters(model, task)) == [name for name in names if name.startswith(roots)]
        assert any(name.startswith("heads.") for name in own_parameters(model, task))


def test_matrices_decay_whatever_their_task_is_called(tmp_path):
    """Prevents a task "bias", "norm" or "unbiased" from going without weight decay because of its name."""
    plain, odd = (
        PolyRecForRecommendation(random_config(tasks=[{"name": n, "head": "binary"} for n in names]))
        for names in (["a", "b", "c", "d"], ["bias", "norm", "unbiased", "weighting"])
    )
    trainer = PolyRecTrainer(plain, arguments(tmp_path))
    sizes = [
        sum(dict(model.named_parameters())[name].numel() for name in trainer.get_decay_parameter_names(model))
        for model in (plain, odd)
    ]
    assert sizes[0] == sizes[1] > 0


def test_impossible_settings_are_refused(tmp_path):
    """Prevents a patience without evaluations, which would never stop anything, and impossible numbers."""
    with pytest.raises(ValueError, match="patience is -1; it must be >= 0"):
        TaskEarlyStopping(patience=-1)
    with pytest.raises(ValueError, match=r"factor is 1.0; it must be in \[0, 1\)"):
        TaskEarlyStopping(patience=1, factor=1.0)
    with pytest.raises(ValueError, match="decay is 1.0; it must be between 0 and 1"):
        WeightAveraging(1.0)
    with pytest.raises(ValueError, match="task_patience needs evaluations during training"):
        arguments(tmp_path, task_patience=2)
    with pytest.raises(ValueError, match="task_patience is -1"):
        arguments(tmp_path, task_patience=-1, eval_strategy="epoch")
    for name in ("task_factor", "ema_decay"):
        with pytest.raises(ValueError, match=rf"{name} is 1.5; it must be a number in \[0, 1\)"):
            arguments(tmp_path, **{name: 1.5})


# ------------------------------------------------------------------ averaging
class Trajectory(TrainerCallback):
    """Keeps the weights in training after each step."""

    def __init__(self):
        self.steps = []

    def on_train_begin(self, args, state, control, model=None, **unused):
        self.steps.append({n: p.detach().clone() for n, p in model.named_parameters()})

    def on_step_end(self, args, state, control, model=None, **unused):
        self.on_train_begin(args, state, control, model=model)


def parameters(model):
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def test_average_is_the_formula_and_leaves_training_alone(world, tmp_path):
    """Prevents an average of other weights, and an average that leaks into the training or misses the saved model."""
    plain, seen = trainer_of(world, tmp_path / "plain", max_steps=6), Trajectory()
    plain.train()
    trainer = trainer_of(
        world, tmp_path, callbacks=[seen], max_steps=6, ema_decay=0.6, eval_strategy="steps", eval_steps=2
    )
    trainer.train()
    assert_same_weights(seen.steps[-1], parameters(plain.model))
    average = seen.steps[0]
    for t, weight in enumerate(seen.steps[1:], start=1):
        decay = min(0.6, (1 + t) / (10 + t))
        average = {n: decay * average[n] + (1 - decay) * weight[n] for n in average}
    torch.testing.assert_close(parameters(trainer.model), average, rtol=1e-5, atol=1e-6)
    trainer.save_model(str(tmp_path / "saved"))
    loaded = PolyRecForRecommendation.from_pretrained(tmp_path / "saved")
    assert_same_weights(parameters(loaded), parameters(trainer.model))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_average_of_half_precision_weights_moves(dtype):
    """Prevents an average that stands still because each of its steps rounds to none, also after it was shown, saved
    and loaded."""
    model = torch.nn.Linear(1, 1, bias=False).to(dtype)
    torch.nn.init.constant_(model.weight, 1.0)
    averaging, expected = WeightAveraging(0.999), 1.0
    averaging.start(model)
    torch.nn.init.constant_(model.weight, 1.5)
    for step in range(1, 3001):
        averaging.update(model)
        decay = min(0.999, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * 1.5
        if step % 1000 == 0:
            with averaging.applied(model):
                assert model.weight.item() == pytest.approx(expected, rel=4e-3)
            stored = {name: value.clone() for name, value in averaging.tensors(model).items()}
            with averaging.applied(model):
                averaging = WeightAveraging(0.999)  # the model file of a checkpoint holds the rounded average
                averaging.load_tensors(model, stored)
            model.weight.data.fill_(1.5)
    assert averaging.average["weight"].item() == pytest.approx(expected, rel=1e-5)
    assert model.weight.dtype == dtype


def test_mean_of_half_precision_trainings_is_not_rounded_at_each_one():
    """Prevents a soup whose later members round to nothing."""
    model = torch.nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    soup, ends = Soup(model), [1.0, 1.0, 1.015625, 1.0, 1.03125]
    for end in ends:
        soup.begin()
        model.weight.data.fill_(end)
        soup.add()
    assert soup.mean["weight"].item() == pytest.approx(np.mean(ends), abs=1e-6)


def test_evaluation_uses_the_average(world, tmp_path):
    """Prevents metrics of other weights than those that are saved: the last evaluation is that of the final model."""
    trainer = trainer_of(world, tmp_path, num_train_epochs=2, ema_decay=0.9, eval_strategy="epoch")
    trainer.train()
    logged = [line for line in trainer.state.log_history if "eval_like_logloss" in line][-1]
    assert trainer.evaluate()["eval_like_logloss"] == pytest.approx(logged["eval_like_logloss"], rel=1e-6)


def test_best_checkpoint_is_an_average_too(world, tmp_path):
    """Prevents the average of the last steps from overwriting the best model that was loaded at the end."""
    trainer = trainer_of(
        world,
        tmp_path,
        num_train_epochs=4,
        learning_rate=0.1,
        ema_decay=0.5,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="noise_logloss",
        greater_is_better=False,
    )
    trainer.train()
    best = PolyRecForRecommendation.from_pretrained(trainer.state.best_model_checkpoint)
    assert_same_weights(parameters(best), parameters(trainer.model))
    assert trainer.evaluate()["eval_noise_logloss"] == pytest.approx(trainer.state.best_metric, rel=1e-6)


# ------------------------------------------------------------------ resuming
def test_resumed_training_is_bit_identical(world, tmp_path):
    """Prevents patience, best towers, frozen tasks or the average from beginning anew in a resumed run."""
    settings = {
        "num_train_epochs": 8,
        "eval_strategy": "epoch",
        "task_patience": 1,
        "ema_decay": 0.7,
        "model_options": {"dropout": 0.1},
    }
    whole = trainer_of(world, tmp_path / "whole", **settings)
    whole.train()
    (expected,) = (c for c in whole.callback_handler.callbacks if isinstance(c, TaskEarlyStopping))
    per_epoch = whole.state.max_steps // 8
    assert "noise" in expected.frozen
    for epoch in (3, 5):
        step = epoch * per_epoch + 1
        folder = tmp_path / f"cut{epoch}"
        trainer_of(world, folder, callbacks=[StopAt(step)], **settings).train()
        assert (folder / f"checkpoint-{step}" / "callbacks.safetensors").exists()
        resumed = trainer_of(world, folder, **settings)
        resumed.train(resume_from_checkpoint=True)
        (callback,) = (c for c in resumed.callback_handler.callbacks if isinstance(c, TaskEarlyStopping))
        assert (callback.best, callback.waited) == (expected.best, expected.waited)
        assert sorted(callback.frozen) == sorted(expected.frozen)
        assert resumed.state.global_step == whole.state.global_step
        assert_same_weights(weights(resumed.model), weights(whole.model))


def test_checkpoints_hold_the_average_and_the_weights_in_training(world, tmp_path):
    """Prevents a checkpoint that cannot be used as a model, or that training cannot go on from."""
    seen = Trajectory()
    trainer_of(world, tmp_path, callbacks=[seen, StopAt(2)], ema_decay=0.5, num_train_epochs=2).train()
    model = PolyRecForRecommendation.from_pretrained(tmp_path / "checkpoint-2")
    stored = load_file(tmp_path / "checkpoint-2" / "callbacks.safetensors")
    start = "WeightAveraging/weights/"
    raw = {n.removeprefix(start): value for n, value in stored.items() if n.startswith(start)}
    assert_same_weights(raw, seen.steps[2])
    assert any(not torch.equal(value, raw[name]) for name, value in parameters(model).items())


def test_the_cost_goes_on_from_what_was_spent_before():
    """Prevents seconds that count from the start of the machine, or forget what an interrupted training had cost."""
    meter = CostMeter(1.0, 2.0)
    assert meter.seconds == (1.0, 2.0)
    meter.on_train_begin()
    cpu, wall = meter.seconds
    assert 1 <= cpu < 2
    assert 2 <= wall < 3
