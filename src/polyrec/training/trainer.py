"""`PolyRecTrainer`: transformers' Trainer for many tasks with missing labels."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from polyrec.core.progress import showing_bars
from polyrec.core.registry import nearest
from polyrec.data.collator import PolyRecCollator
from polyrec.data.sequences import SequenceDataset, WindowDataset
from polyrec.distillation.student import attach_soft_losses
from polyrec.distillation.teacher import Teacher
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor
from polyrec.modules.encoders.backbone import backbones
from polyrec.tracking.facts import fingerprints
from polyrec.training.arguments import PolyRecTrainingArguments
from polyrec.training.callbacks import TaskEarlyStopping, WeightAveraging
from polyrec.training.catalog import load_catalog
from polyrec.training.data_order import EpochCallback, OrderedByLength, RandomOrder, data_seed
from polyrec.training.evaluating import EvaluatesTasks
from polyrec.training.evidence import EvidenceCheck
from polyrec.training.large_tables import RowsAtEpochEnd
from polyrec.training.memory import keep_freed_memory
from polyrec.training.optim import GradualUnfreezing, decayed_parameters, parameter_groups
from polyrec.training.progress import show_lines
from polyrec.training.teachers import chosen_teacher, prepare_teacher


class PolyRecTrainer(EvaluatesTasks):
    """Trains a [`PolyRecForRecommendation`] on [`SequenceDataset`]s.

    What it adds to [`~transformers.Trainer`]:

    * **Exact reduction.** Each task's sum of losses is divided by its number of known labels in the whole accumulation
      window over all ranks, so batch 64 x 1, 16 x 4 accumulated and 2 processes x 32 give the same gradient, whatever
      labels are missing.
    * **Losses and metrics per task**, logged as `loss_<task>` (and `loss_<objective>`) and `eval_<task>_<metric>`, and
      `eval_mean_improvement` (see `polyrec.evaluation.evaluator.evaluate`); `weight_<task>`, what the task's loss was
      multiplied by, and, where the loss weighting compares gradients, `cosine_<task>_<other task>`.
    * **Gates, throughput, memory**: `gate_<task>_<source>`, `events_per_second`, `candidates_per_second`,
      `steps_per_second`, `memory_gb`, and `learning_rate_<n>` where groups of parameters have rates of their own. All
      goes through `log`, and so to any `report_to`; digests of data and inputs are among the arguments that trackers
      show as hyper-parameters (`fingerprints`).
    * **Loss weightings** observe the mean losses of each optimizer step over all batches and ranks.
    * **Early stopping per task** (`task_patience`) and a **moving average** of the weights (`ema_decay`).
    * **Full-catalog ranking** in `evaluate`, on every rank's share of the data, gathered exactly.
    * **Several processes** (`scripts/accelerate/*.yaml`) do what one does: each window goes to one of them. Under
      FSDP, evaluation takes a whole copy of the weights to each rank; it has not been run on GPUs yet, see
      `scripts/accelerate/fsdp.yaml`.
    * **Checkpoints are whole or not there**, and a training resumes only with the data and processor that it was begun
      with, see [`~polyrec.training.resuming.ResumesSafely`].
    * The processor's catalog goes into the model before training, and the processor is saved with it.

    Args:
        model: the model; None with `model_init` (a function that makes one, see [`~transformers.Trainer`]).
        args: training arguments.
        train_dataset, eval_dataset: as `PolyRecProcessor.split` returns them; training also takes a `MixedDataset`.
            Evaluation takes several sets, {name: set}, too. See `weigh_by_validation` for what evaluation rows choose
            at the end, and what is left out without any.
        processing_class: the processor.
        teacher: to distil from, or the folder of one as `args.teacher`; the model's configuration says
            how (`distillation`). It is checked against the data, and for having been trained on what the
            model is evaluated by.
    """

    def __init__(
        self,
        model: PolyRecForRecommendation | None,
        args: PolyRecTrainingArguments,
        train_dataset: WindowDataset | None = None,
        eval_dataset: SequenceDataset | dict[str, SequenceDataset] | None = None,
        processing_class: PolyRecProcessor | None = None,
        data_collator: PolyRecCollator | None = None,
        teacher: Teacher | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(args, PolyRecTrainingArguments):
            raise TypeError(
                f"args must be PolyRecTrainingArguments, not {type(args).__name__}: its defaults fit nested batches"
            )
        windows = len(train_dataset) if isinstance(train_dataset, WindowDataset) else 0
        of_rows = isinstance(processing_class, PolyRecProcessor) and processing_class.columns.history is not None
        one_set = isinstance(eval_dataset, SequenceDataset) and eval_dataset.num_candidates > 0
        args = args.settled(windows, of_rows, one_set)
        _check_selection(args, list(eval_dataset) if isinstance(eval_dataset, dict) else [])
        if isinstance(processing_class, PolyRecProcessor) and isinstance(train_dataset, SequenceDataset):
            args.fingerprints = fingerprints(processing_class, train_dataset)
        self.processing_class, self.args, self.teacher = processing_class, args, teacher  # `call_model_init` reads them
        if model is not None:
            self.teacher = chosen_teacher(args, model, teacher)
            self._prepare_model(model)
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator or PolyRecCollator(),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        if model is None:
            model = self._unwrapped_at_start()
            self.teacher = chosen_teacher(args, model, teacher)
            self._attach(model)
        teacher = self.teacher
        if args.n_gpu > 1:
            raise ValueError(
                f"one process sees {args.n_gpu} GPUs, and torch's DataParallel would weigh their labels wrongly: start "
                "one process per GPU (accelerate launch --config_file scripts/accelerate/multi_gpu.yaml ...), or set "
                "CUDA_VISIBLE_DEVICES=0"
            )
        # torch 2.13 has a new name for the argument; accelerate (https://github.com/huggingface/accelerate) and
        # transformers know the old one alone. Goes away when `ddp_broadcast_buffers` is handed on by the new name.
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
        self.validated = {}
        if args.device.type == "cpu":
            keep_freed_memory()
        self._begin_logs(model)
        if teacher is not None:
            prepare_teacher(teacher, model, train_dataset, eval_dataset, processing_class)
            teacher.to(args.device)
        show_lines(self, list(self._unwrapped.heads))
        self.add_callback(EpochCallback())
        self.add_callback(EvidenceCheck())
        self.add_callback(RowsAtEpochEnd(self))
        if args.task_patience or args.task_epochs:
            self.add_callback(TaskEarlyStopping(args.task_patience, args.task_factor, limits=args.task_epochs))
        if args.ema_decay:
            self.add_callback(WeightAveraging(args.ema_decay))
        if args.unfreeze_epochs:
            self.add_callback(GradualUnfreezing(args.unfreeze_epochs))
        if self._checkpointed_callbacks and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise ValueError("task_patience and ema_decay need whole parameters: turn them off with FSDP or DeepSpeed")

    def _prepare_model(self, model: PolyRecForRecommendation) -> None:
        """Give a model what the arguments and the processor say of it."""
        if self.args.exclude_seen is not None:  # what is measured is served
            model.config.exclude_seen = self.args.exclude_seen
        if self.processing_class is not None:
            self.load_processor(model, self.processing_class)
        self._attach(model)

    def _attach(self, model: PolyRecForRecommendation) -> None:
        """Let a student's `forward` add what it learns of its teacher."""
        if self.teacher is not None:
            attach_soft_losses(model, self.args.seed)

    def _unwrapped_at_start(self) -> PolyRecForRecommendation:
        """The model that `model_init` made."""
        assert isinstance(self.model, nn.Module)  # transformers made it, or has refused
        return self.model

    def call_model_init(self, trial: Any = None) -> PolyRecForRecommendation:
        """A new model of `model_init`, with the processor's catalog; each training, and each trial, begins with one."""
        model = super().call_model_init(trial)
        self._prepare_model(model)
        return model

    def hyperparameter_search(
        self,
        hp_space: Any = None,
        compute_objective: Callable[[dict[str, float]], float] | None = None,
        n_trials: int = 20,
        direction: str | list[str] | None = None,
        **options: Any,
    ) -> Any:
        """As [`~transformers.Trainer`]'s, of which the objective is the metric that chooses the best model.

        Args:
            compute_objective: default: `args.metric_for_best_model`, e.g. the mean improvement over tasks. transformers
                would add up all metrics, losses and AUCs alike.
            direction: default: whether more of that metric is better, by its name.
        """
        if compute_objective is None and self.args.metric_for_best_model is not None:
            metric = self.args.metric_for_best_model
            name = metric if metric.startswith("eval_") else f"eval_{metric}"

            def compute_objective(metrics: dict[str, float]) -> float:
                if name not in metrics:
                    raise ValueError(
                        f"metric_for_best_model={metric!r} was not measured; {nearest(name, list(metrics))}"
                    )
                return metrics[name]

            direction = direction or ("maximize" if self.args.greater_is_better else "minimize")
        return super().hyperparameter_search(hp_space, compute_objective, n_trials, direction or "minimize", **options)

    @staticmethod
    def load_processor(model: PolyRecForRecommendation, processor: PolyRecProcessor) -> None:
        """Give the model what the processor knows of the items."""
        load_catalog(model, processor)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, see [`~polyrec.training.resuming.ResumesSafely.train`], and `weigh_by_validation`."""
        with showing_bars(not self.args.disable_tqdm and self.is_world_process_zero()):
            found = super().train(*args, **kwargs)
            self.weigh_by_validation()
        return found

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """See [`~polyrec.training.optim.decayed_parameters`]; embedding tables if `args.decay_embeddings` says so."""
        return decayed_parameters(model, self.args.decay_embeddings)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer of transformers; with a tuned backbone its layers have learning rates of their own."""
        args, model = self.args, self.model if model is None else model
        tuned = any(backbone.model is not None for _, backbone in backbones(model))
        if self.optimizer is None and (tuned or args.embedding_learning_rate is not None):
            groups = parameter_groups(
                model,
                set(self.get_decay_parameter_names(model)),
                args.learning_rate,
                args.weight_decay,
                args.backbone_learning_rate,
                args.layer_decay,
                args.embedding_learning_rate,
            )
            optimizer, options = self.optimizer_class(model)
            self.optimizer = optimizer(groups, **options)
        return super().create_optimizer(model)

    def _get_train_sampler(self, train_dataset: WindowDataset | None = None) -> torch.utils.data.Sampler | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if not isinstance(dataset, WindowDataset):
            return super()._get_train_sampler(dataset)
        dataset.set_seed(data_seed(self.args))
        if self.args.train_sampling_strategy == "random":
            return RandomOrder(dataset)
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(dataset)
        window = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return OrderedByLength(window, dataset)


def _check_selection(args: PolyRecTrainingArguments, parts: list[str]) -> None:
    """Refuse a metric that chooses the best model and names none of several evaluation sets."""
    metric = args.metric_for_best_model
    if args.eval_strategy == "no" or metric is None or not parts:
        return
    if not metric.removeprefix("eval_").startswith(tuple(f"{part}_" for part in parts)):
        raise ValueError(
            f"metric_for_best_model={metric!r} names none of the evaluation sets {', '.join(map(repr, parts))}: pass "
            f"e.g. metric_for_best_model='{parts[0]}_{metric.removeprefix('eval_')}', or None for no choice"
        )
