"""Trains polyrec once per seed and watches the clock; the part of the benchmarks that needs torch."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import TABLES
from transformers import TrainerCallback, set_seed
from transformers.utils import logging as transformers_logging

from polyrec import PolyRecForRecommendation, PolyRecProcessor, PolyRecTrainer, PolyRecTrainingArguments, Splits
from polyrec.data.batching import BatchReader
from polyrec.data.sequences import SequenceDataset
from polyrec.distillation.teacher import Teacher
from polyrec.modules.encoders.item import ItemRows
from polyrec.training.progress import TrainingLines

LOWER_IS_BETTER = ("logloss", "rmse", "mae", "calibration_error")


def load(data: Path, config: Mapping[str, Any], threads: int, **split: Any) -> tuple[PolyRecProcessor, Splits]:
    """Fit the processor and cut the log.

    Args:
        data: folder of the three tables.
        config: the protocol's file.
        split: arguments of `PolyRecProcessor.split`.
    """
    torch.set_num_threads(threads)
    transformers_logging.set_verbosity_error()
    interactions, items, users = (data / f"{name}.parquet" for name in TABLES)
    processor = PolyRecProcessor.fit(
        interactions,
        items=items,
        users=users,
        tasks=config["tasks"],
        columns=config["columns"],
        **config["processor"],
    )
    past = data / "history.parquet" if config["columns"].get("prior_history") else None
    return processor, processor.split(interactions, prior_history=past, **split, **config["split"])


@dataclass
class Clock:
    """Seconds of the process's cpu time (all threads) and of wall time, while it runs."""

    cpu: float = 0.0
    wall: float = 0.0
    _began: tuple[float, float] | None = None

    def start(self) -> None:
        """Run."""
        self._began = time.process_time(), time.perf_counter()

    @property
    def running(self) -> float | None:
        """Wall seconds since it was started; None while it pauses."""
        return None if self._began is None else time.perf_counter() - self._began[1]

    def stop(self) -> None:
        """Pause."""
        if self._began is not None:
            self.cpu += time.process_time() - self._began[0]
            self.wall += time.perf_counter() - self._began[1]
            self._began = None


@dataclass
class Fit:
    """One trained model, with the weights that validated best.

    Args:
        trainer: holds the model and evaluates it.
        clock: training alone, evaluation not counted.
        epochs: trained, those after the best one included.
        log: one dict per evaluation: `epoch`, `cpu_seconds` so far and the validation metrics.
    """

    trainer: PolyRecTrainer
    clock: Clock
    epochs: int
    log: list[dict[str, float]] = field(default_factory=list)

    @property
    def model(self) -> PolyRecForRecommendation:
        """The model."""
        return self.trainer.model

    @property
    def costs(self) -> dict[str, float]:
        """What the report says beside the metrics."""
        return {
            "train_cpu_seconds": self.clock.cpu,
            "train_wall_seconds": self.clock.wall,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "epochs": self.epochs,
        }


class Selection(TrainerCallback):
    """Evaluates after every epoch, keeps the weights that validate best, and stops when they no longer improve.

    Args:
        clock: counts the epochs themselves.
        metric: of `PolyRecTrainer.evaluate`; None: keep the last weights, evaluate once at the end.
        patience: epochs without improvement after which training stops.
        name: shown before each line of progress.
    """

    def __init__(self, clock: Clock, metric: str | None, patience: int = 1000, name: str = "") -> None:
        self.clock, self.metric, self.patience, self.name = clock, metric, patience, name
        self.trainer: PolyRecTrainer | None = None
        self.log: list[dict[str, float]] = []
        self.epochs = self.bad = 0
        self.best, self.weights = -np.inf, None
        self.improved = False

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
        self.clock.start()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
        self.clock.stop()
        self.epochs += 1
        last = self.epochs >= args.num_train_epochs
        if not last and self.metric is None:
            return
        assert self.trainer is not None
        found = self.trainer.evaluate()
        self.log.append({"epoch": self.epochs, "cpu_seconds": self.clock.cpu, **found})
        shown = self.metric or "eval_mean_improvement"
        progress = f"epoch {self.epochs}/{args.num_train_epochs:.0f}  {shown} {found[shown]:.4f}"
        print(f"{self.name} {progress}  {self.clock.cpu:.0f} cpu-s", flush=True)
        if self.metric is None:
            return
        self.bad = 0 if self.improved else self.bad + 1
        control.should_training_stop |= self.bad >= self.patience

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Mapping[str, float], **unused: Any) -> None:
        """Keep the weights if they are the best so far; here the model holds those that were judged, averages too."""
        if self.metric is None or self.trainer is None:
            return
        value = metrics[self.metric] * (-1 if self.metric.endswith(LOWER_IS_BETTER) else 1)
        self.improved = value > self.best
        if self.improved:
            self.best, self.weights = value, copy.deepcopy(self.trainer.model.state_dict())

    def serve(self) -> None:
        """Training has ended: put the weights that were kept into the model."""
        assert self.trainer is not None
        if self.weights is not None:
            self.trainer.model.load_state_dict(self.weights)
        self.trainer = None


class Until(TrainerCallback):
    """Stops a training after some epochs, in the middle of its schedule; nothing is evaluated."""

    def __init__(self, epochs: int) -> None:
        self.epochs, self.clock = epochs, Clock()

    def on_train_begin(self, *unused: Any, **also_unused: Any) -> None:
        self.clock.start()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
        control.should_training_stop |= state.epoch >= self.epochs

    def on_train_end(self, *unused: Any, **also_unused: Any) -> None:
        self.clock.stop()


def fit(
    processor: PolyRecProcessor, data: Splits, config: Mapping[str, Any], seed: int, teacher: Teacher | None = None
) -> Fit:
    """Train one model with all tasks; the best weights by the recipe's `metric_for_best_model` stay in it."""
    clock, chosen = Clock(), config["training"].get("metric_for_best_model")
    patience = config.get("early_stopping_patience") or 1000
    selection = Selection(clock, chosen and f"eval_{chosen}", patience, name=f"polyrec seed {seed}")
    with tempfile.TemporaryDirectory() as folder:
        trainer = new_trainer(processor, data, config, folder, seed, selection, teacher=teacher)
        selection.trainer = trainer
        trainer.train()
        selection.serve()
        trainer.weigh_by_validation()
    return Fit(trainer, clock, selection.epochs, selection.log)


def new_trainer(
    processor: PolyRecProcessor,
    data: Splits,
    config: Mapping[str, Any],
    folder: str,
    seed: int,
    *callbacks: TrainerCallback,
    teacher: Teacher | None = None,
    **more: Any,
) -> PolyRecTrainer:
    """A model with fresh weights, ready to be trained."""
    set_seed(seed)
    model = PolyRecForRecommendation(processor.model_config(**config["model"]))
    options: dict[str, Any] = dict.fromkeys(("logging_strategy", "eval_strategy", "save_strategy"), "no")
    options |= {"disable_tqdm": True, "use_cpu": True, "seed": seed}
    arguments = PolyRecTrainingArguments(output_dir=folder, **{**config["training"], **options, **more})
    trainer = PolyRecTrainer(
        model,
        arguments,
        data.train,
        data.valid,
        processing_class=processor,
        callbacks=[*callbacks],
        teacher=teacher,
    )
    trainer.remove_callback(TrainingLines)  # `Selection` prints what matters
    return trainer


class Stopwatch(TrainerCallback):
    """Counts trained positions per second after a warm-up, over whole epochs where they are short enough.

    The warm-up ends with the first epoch or after half of `seconds`; measuring ends with the first epoch after
    `seconds`, or anywhere after three times as many.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self.clock, self.positions = seconds, Clock(), 0
        self.began, self.done = 0.0, False

    def count(self, model: Any, args: Any, inputs: dict[str, Any]) -> None:
        """Forward hook: positions of a batch whose next item is known and that have seen at least one event."""
        if not model.training:
            return  # weighing after training reads the validation set
        seen = inputs["candidate_positions"] > 0
        self.positions += int(((inputs["labels"]["next_item"] > 0) & seen).sum())

    def on_train_begin(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
        self.began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
        self._lap(control, self.seconds / 2, 3 * self.seconds)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
        self._lap(control, 0, self.seconds)

    def _lap(self, control: Any, warm: float, enough: float) -> None:
        if self.done:
            return
        if self.clock.running is None:
            if time.perf_counter() - self.began >= warm:
                self.positions = 0
                self.clock.start()
        elif self.clock.running >= enough:
            self.clock.stop()
            control.should_training_stop = self.done = True


def throughput(
    processor: PolyRecProcessor, data: Splits, config: Mapping[str, Any], seconds: float, bf16: bool
) -> tuple[float, float]:
    """Positions with a next-item target trained per wall and per cpu second, all tasks on and nothing evaluated."""
    watch = Stopwatch(seconds)
    more = {"bf16": bf16, "num_train_epochs": 100_000}
    with tempfile.TemporaryDirectory() as folder:
        trainer = new_trainer(processor, data, config, folder, 0, watch, **more)
        trainer.model.register_forward_pre_hook(watch.count, with_kwargs=True)
        trainer.train()
    wall, cpu = watch.positions / watch.clock.wall, watch.positions / watch.clock.cpu
    name = f"polyrec {'bf16' if bf16 else 'fp32'}"
    print(f"{name}: {wall:,.0f} positions/s, {cpu:,.0f}/cpu-s over {watch.clock.wall:.0f} s", flush=True)
    return wall, cpu


@torch.no_grad()
def states(model: PolyRecForRecommendation, dataset: SequenceDataset, items: ItemRows | None = None) -> torch.Tensor:
    """The state that each candidate of a data set is answered from, [C, D]."""
    reader = BatchReader(dataset)
    found = torch.zeros(dataset.num_candidates, model.config.hidden_size)
    for begin in range(0, len(dataset), 64):
        batch = reader(np.arange(begin, min(begin + 64, len(dataset))))
        rows, _ = batch.pop("candidate_rows"), batch.pop("labels")
        read = model(**batch, items=items).states
        found[rows[rows >= 0]] = read[rows >= 0]
    return found


@torch.no_grad()
def catalog_scores(
    model: PolyRecForRecommendation, dataset: SequenceDataset, task: str
) -> Callable[[np.ndarray], np.ndarray]:
    """Scores [B, N] of all rows of the item table for some candidates [B] of a data set; the model is in eval mode."""
    items = model.item_encoder.table()
    state = states(model, dataset, items)

    def score(index: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model.score_items(state[index], task, items).numpy()

    return score


def labelled(dataset: SequenceDataset) -> int:
    """Rows of a data set with at least one label; other views of the same rows do not count again."""
    return int((~np.isnan(dataset.labels()[dataset.own_view])).any(axis=1).sum())
