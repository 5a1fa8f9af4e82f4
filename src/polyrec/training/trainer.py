"""`PolyRecTrainer`: transformers' Trainer for many tasks with missing labels."""

from __future__ import annotations

import copy
import json
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import EvalPrediction, speed_metrics

from polyrec.core.reduction import known_weight, mean_loss
from polyrec.core.registry import nearest
from polyrec.core.secrets import without_secrets
from polyrec.data.collator import PolyRecCollator
from polyrec.data.sampling import ORDER, stream
from polyrec.data.sequences import SequenceDataset, WindowDataset
from polyrec.distillation.student import attach_soft_losses, blank
from polyrec.distillation.teacher import Teacher
from polyrec.distillation.unlabelled import with_unlabelled
from polyrec.evaluation import evaluator
from polyrec.evaluation.term_weight import TermWeight, choose_term_weights
from polyrec.evaluation.tree_weight import TreeWeight, choose_tree_weights
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation, PolyRecOutput
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor
from polyrec.models.training_pass import LossStep
from polyrec.modules.encoders.backbone import backbones
from polyrec.modules.encoders.item import PADDING_ITEM
from polyrec.modules.heads.base import TaskHead
from polyrec.modules.weighting.base import LossWeighting
from polyrec.tracking.facts import fingerprints
from polyrec.tracking.step_log import StepLog, learning_rates, memory
from polyrec.training.arguments import PolyRecTrainingArguments
from polyrec.training.callbacks import CheckpointedCallback, TaskEarlyStopping, WeightAveraging
from polyrec.training.checkpoints import without_bars
from polyrec.training.evidence import EvidenceCheck, judging_set, weighed_by_validation
from polyrec.training.memory import keep_freed_memory, peak_memory
from polyrec.training.optim import GradualUnfreezing, parameter_groups
from polyrec.training.predictions import TaskPredictions
from polyrec.training.progress import show_lines
from polyrec.training.resuming import ResumesSafely
from polyrec.training.sharded import whole_copy
from polyrec.training.task_log import TaskLog
from polyrec.training.teachers import chosen_teacher, prepare_teacher

CALLBACK_STATES = "callbacks.safetensors"


class PolyRecTrainer(ResumesSafely):
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

    optimizer: torch.optim.Optimizer | None

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
        self._bare: tuple[Any, PolyRecForRecommendation] | None = None  # see `_unwrapped`
        self.validated: dict[str, TermWeight | TreeWeight] = {}  # {task: what validation chose after training}
        if args.device.type == "cpu":
            keep_freed_memory()
        # `compute_loss` divides by the counts of the whole accumulation window itself.
        self.loss_is_scaled_for_ga = True
        self._task_log, self._objective_log = TaskLog(model.weighting.task_names), TaskLog(list(model.objectives))
        self._soft_log = TaskLog([] if teacher is None or model.soft_losses is None else model.soft_losses.names)
        self._step_log = StepLog(model.gate_sources)
        self._rates: dict[str, float] = {}
        self._task_logged_step = 0
        self._window = _Window(1.0)
        if teacher is not None:
            prepare_teacher(teacher, model, train_dataset, eval_dataset, processing_class)
            teacher.to(args.device)
        show_lines(self, list(self._unwrapped.heads))
        self.add_callback(_EpochCallback())
        self.add_callback(EvidenceCheck())
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
        _load_catalog(model, processor)

    def _ask_teacher(self, teacher: Teacher, batch: dict[str, Any], number: int) -> None:
        """Add the teacher's outputs to a batch, the number-th of this step, and the sampled candidates that only it
        scores."""
        soft_losses = self._unwrapped.soft_losses
        assert soft_losses is not None  # without a plan a teacher is refused
        if not (unlabelled := soft_losses.config.unlabelled):
            batch["teacher"] = teacher.score(batch)
            return
        processor = self.processing_class
        assert isinstance(processor, PolyRecProcessor)  # a teacher needs one
        place = (self.args.seed, self.state.global_step, number, self.args.process_index)
        generator = torch.Generator().manual_seed(hash(place) % 2**63)
        drawn = teacher.draw(batch, unlabelled, processor.num_items, generator)
        batch.update(with_unlabelled(batch, drawn))
        batch["teacher"] = teacher.score({**batch, "drawn": drawn})

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, see [`~polyrec.training.resuming.ResumesSafely.train`], and `weigh_by_validation`."""
        found = super().train(*args, **kwargs)
        self.weigh_by_validation()
        return found

    def weigh_by_validation(self) -> None:
        """Let validation rows say how much of its linear terms a retrieval task serves, and of its trees a pair task;
        `train` ends with it.

        The rows are those of `eval_dataset`; of several sets, those of the one that `metric_for_best_model` names, or
        else of the first one. Without any, what the model said before stays, and a warning says what is left out.

        Both are of the training rows of the processor's last split: nothing happens with a processor that was loaded.
        Tasks of which every parameter is frozen predict as before.
        """
        model, processor = self._unwrapped, self.processing_class
        if not isinstance(model, PolyRecForRecommendation) or not isinstance(processor, PolyRecProcessor):
            return
        tasks = weighed_by_validation(model, processor) if processor.has_training_rows else {}
        valid = judging_set(self.eval_dataset, self.args.metric_for_best_model, tasks) if tasks else None
        if valid is None:
            return
        with self._averaged():
            judged, autocast = self._evaluated(), self.accelerator.autocast
            linear = choose_term_weights(judged, valid, self.args.rank_k, self.args.exclude_seen, autocast(), tasks)
            trees = choose_tree_weights(judged, processor, valid, autocast(), tasks)
        for (name, kind), weight in linear.items():
            model.heads[name].weighed[kind].weigh(weight.strength, weight.decay)
            self.log({f"{kind}_{name}": weight.strength, f"{kind}_gain_{name}": weight.value - weight.without})
        for name, (grown, said) in trees.items():
            model.heads[name].trees.load(grown, said.trees, said.weight)
            self.log({f"trees_{name}": said.weight, f"trees_gain_{name}": said.without - said.value})
        self.validated = {f"{name} {kind}": weight for (name, kind), weight in linear.items()}
        self.validated |= {name: said for name, (_, said) in trees.items()}

    # ----------------------------------------------------------------- loss
    def _get_num_items_in_batch(
        self, batch_samples: list[dict[str, Any]], device: torch.device
    ) -> dict[str, Tensor] | None:
        """Known labels (or their weight) per task in the accumulation window, over all ranks: {task: scalar}.

        Objectives stand beside the tasks with their own counts.
        """
        if not batch_samples:
            return None
        if self.teacher is not None and self._soft_log.names:  # a plan may ask for nothing
            for number, batch in enumerate(batch_samples):
                self._ask_teacher(self.teacher, batch, number)
        several, padded = self.args.world_size > 1, not self.args.dataloader_drop_last
        if several and padded and self.accelerator.gradient_state.end_of_dataloader:
            self._blank_repeated(batch_samples[-1])
        model = self._unwrapped
        known = {n: sum(_known(batch, head) for batch in batch_samples) for n, head in model.heads.items()}
        for name, objective in model.objectives.items():
            known[name] = sum(objective.count(model.item_encoder, b["item_ids"].to(device)) for b in batch_samples)
        if self.teacher is not None and model.soft_losses is not None:
            soft = [model.soft_losses.counts(batch, model.heads) for batch in batch_samples]
            known |= {name: sum(own[name].to(device) for own in soft) for name in model.soft_losses.names}
        counts = torch.stack([count.to(device) for count in known.values()])
        if several:
            counts = self.accelerator.reduce(counts, reduction="sum")
        self._window = _Window(1 / (len(batch_samples) * self.args.world_size))
        return dict(zip(known, counts, strict=True))

    def _blank_repeated(self, batch: dict[str, Any]) -> None:
        """Take the labels from windows that this rank reads for the second time in an epoch.

        Ranks need equally large batches, so accelerate fills the last ones up with the first windows of the epoch.
        Without labels they train nothing, and several processes do what one does.
        """
        assert self.train_dataset is not None
        size, ranks, rank = len(batch["item_ids"]), self.args.world_size, self.args.process_index
        left = len(self.train_dataset) % (size * ranks) or size * ranks
        repeated = slice(max(left - size * rank, 0), None)
        for values in batch["labels"].values():
            values[repeated] = float("nan")
        blank(batch.get("teacher") or {}, repeated)
        if self._unwrapped.objectives:
            batch["item_ids"][repeated] = PADDING_ITEM  # without labels, only objectives read these histories

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: dict[str, Tensor] | None = None,
    ) -> Any:
        """The weighted objective; with DDP multiplied by the number of ranks, because DDP averages gradients."""
        step = LossStep(num_items_in_batch, 1.0 if num_items_in_batch is None else self._window.share, self._progress)
        outputs = model(**inputs, step=step)
        if model.training and num_items_in_batch is not None:
            self._remember(inputs, outputs, num_items_in_batch)
        loss = outputs.loss * self.args.world_size if num_items_in_batch is not None else outputs.loss
        return (loss, outputs) if return_outputs else loss

    def _remember(self, inputs: dict[str, Any], outputs: PolyRecOutput, counts: dict[str, Tensor]) -> None:
        """Keep what the log and the loss weighting want to know of a batch."""
        assert outputs.losses is not None  # there are labels
        assert outputs.weights is not None
        weighting, names = self._unwrapped.weighting, self._task_log.names
        loss_T = torch.stack([mean_loss(outputs.losses[name].detach(), counts[name]) for name in names])
        weight_T = torch.stack(list(weighting.scaled({name: outputs.weights[name] for name in names}).values()))
        self._task_log.add(loss_T, weight_T, outputs.gramian)
        self._step_log.add(inputs, outputs.gates)
        if outputs.objectives is not None:
            weights = [self._unwrapped.objectives[name].weight for name in self._objective_log.names]
            losses = [outputs.objectives[name].detach() for name in self._objective_log.names]
            self._objective_log.add(torch.stack(losses), torch.tensor(weights))
        if outputs.soft:
            assert self._unwrapped.soft_losses is not None  # it made them
            alphas = self._unwrapped.soft_losses.alphas(self._progress)
            soft_T = torch.stack([outputs.soft[name].detach() for name in self._soft_log.names])
            self._soft_log.add(soft_T, torch.tensor([alphas[name] for name in self._soft_log.names]))
        self._window.add(loss_T, outputs.gramian)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: dict[str, Tensor] | None = None
    ) -> Tensor:
        """One batch; with the last one of an optimizer step the loss weighting learns from the step."""
        self._step_log.begin()
        assert self.optimizer is not None  # train() made it
        self._rates = learning_rates(self.optimizer)  # of this step; when it is logged, the scheduler has gone on
        loss = super().training_step(model, inputs, num_items_in_batch)
        weighting = self._unwrapped.weighting
        if self.accelerator.sync_gradients and weighting.observes and num_items_in_batch is not None:
            window = self._window
            values = self._reduce(window.loss_T).tolist() if self.args.world_size > 1 else window.loss_T.tolist()
            counts = torch.stack([num_items_in_batch[name] for name in self._task_log.names]).tolist()
            found = zip(self._task_log.names, values, counts, strict=True)
            weighting.observe({name: value for name, value, count in found if count > 0}, window.gramian)
        return loss

    @property
    def _progress(self) -> float:
        """Share of the training that is done."""
        return self.state.global_step / max(self.state.max_steps, 1)

    def _reduce(self, values: Tensor) -> Tensor:
        return self.accelerator.reduce(values, reduction="sum")

    @property
    def _checkpointed_callbacks(self) -> list[CheckpointedCallback]:
        return [c for c in self.callback_handler.callbacks if isinstance(c, CheckpointedCallback)]

    def _averaged(self) -> AbstractContextManager[None]:
        """Inside, the model has averaged weights, if weights are averaged."""
        found = [c for c in self._checkpointed_callbacks if isinstance(c, WeightAveraging)]
        return found[0].applied(self._unwrapped) if found else nullcontext()

    @property
    def _unwrapped(self) -> PolyRecForRecommendation:
        """The bare model; it is looked for once, as accelerate walks through all modules each time."""
        if self._bare is None or self._bare[0] is not self.model:
            self._bare = self.model, self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        return self._bare[1]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what the tasks did since the last log, see [`TaskLog`]."""
        if "loss" in logs and self._task_log.batches:
            steps = max(self.state.global_step - self._task_logged_step, 1)
            reduce = self._reduce if self.args.world_size > 1 else None
            for log in (self._task_log, self._objective_log, self._soft_log):
                logs |= log.line(steps, reduce if log.names else None)
                log.clear()
            logs |= self._step_log.line(steps, reduce) | memory(self.args.device, peak_memory())
            logs |= self._rates
            self._step_log.clear()
            self._task_logged_step = self.state.global_step
        super().log(logs, start_time)

    # ------------------------------------------------------------ optimizer
    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Matrices decay; biases, norms, start vectors, scales of ensemble members and the weights of losses do not.

        Embedding tables do if `args.decay_embeddings` says so.
        """
        # By kind of module, not by name as transformers does: a task "bias" or "unbiased" would never decay.
        spared = {id(p) for module in model.modules() if isinstance(module, LossWeighting) for p in module.parameters()}
        for path, module in model.named_modules():
            if isinstance(module, nn.Embedding):
                is_bias = path.endswith(".bias") and module.embedding_dim == 1  # of each item
                if is_bias or not self.args.decay_embeddings:
                    spared.add(id(module.weight))
        return [
            name
            for name, p in model.named_parameters()
            if name.endswith(".weight") and p.dim() > 1 and id(p) not in spared
        ]

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
            optimizer, options = self.get_optimizer_cls_and_kwargs(args, model)
            self.optimizer = optimizer(groups, **options)
        return super().create_optimizer(model)

    def _get_train_sampler(self, train_dataset: WindowDataset | None = None) -> torch.utils.data.Sampler | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if not isinstance(dataset, WindowDataset):
            return super()._get_train_sampler(dataset)
        dataset.set_seed(_data_seed(self.args))
        if self.args.train_sampling_strategy == "random":
            return _RandomSampler(dataset)
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(dataset)
        window = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return _LengthGroupedSampler(window, dataset)

    # ----------------------------------------------------------- evaluation
    def evaluate(
        self,
        eval_dataset: SequenceDataset | dict[str, SequenceDataset] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Metrics of every task, named `<prefix>_<task>_<metric>`; retrieval tasks rank the whole catalog.

        Args:
            eval_dataset: default: the validation set. A dict evaluates each and adds its key to the prefix.
        """
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if dataset is None:
            raise ValueError("nothing to evaluate: pass eval_dataset to the trainer or to evaluate()")
        if isinstance(dataset, dict):
            found: dict[str, float] = {}
            for name, part in dataset.items():
                found |= self.evaluate(part, ignore_keys, f"{metric_key_prefix}_{name}")
            return found
        start = time.time()
        with self._averaged():  # also for callbacks, which may keep the weights that were evaluated
            result = self._measured(dataset, self._predict(dataset), metric_key_prefix)
            result |= speed_metrics(metric_key_prefix, start, num_samples=dataset.num_candidates)
            self._step_log.skip(time.time() - start)
            self.log(result)
            self.control: TrainerControl = self.callback_handler.on_evaluate(
                self.args, self.state, self.control, result
            )
        return result

    def _measured(self, dataset: SequenceDataset, predictions: evaluator.Predictions, prefix: str) -> dict[str, float]:
        """Metrics of a data set's predictions, those of `compute_metrics` included."""
        found = evaluator.evaluate(self._unwrapped, dataset, predictions, self.args.rank_k)
        result = {f"{prefix}_{name}": value for name, value in found.items()}
        if self.compute_metrics is not None:
            own = self.compute_metrics(EvalPrediction(predictions=predictions, label_ids=dataset.labels_by_task()))
            result |= {name if name.startswith(f"{prefix}_") else f"{prefix}_{name}": v for name, v in own.items()}
        return result

    def answers(self, dataset: SequenceDataset) -> evaluator.Predictions:
        """Predictions for every candidate of a data set, on every rank."""
        with self._averaged():
            return self._predict(dataset)

    def predict(
        self, test_dataset: SequenceDataset, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> TaskPredictions:
        """Predictions, labels and metrics, as [`~transformers.Trainer`] gives them, see [`TaskPredictions`]."""
        with self._averaged():
            found = self._predict(test_dataset)
            metrics = self._measured(test_dataset, found, metric_key_prefix)
        return TaskPredictions(found, test_dataset.labels_by_task(), metrics)

    def _evaluated(self) -> PolyRecForRecommendation:
        """The model of an evaluation; outside of training in the precision that `bf16_full_eval` names, as a copy."""
        if self.is_fsdp_enabled:
            return whole_copy(self._unwrapped)
        half = {"bf16_full_eval": torch.bfloat16, "fp16_full_eval": torch.float16}
        wanted = [kind for name, kind in half.items() if getattr(self.args, name)]
        if not wanted or self.is_in_train:
            return self._unwrapped
        return copy.deepcopy(self._unwrapped).to(wanted[0])

    def _predict(self, test_dataset: SequenceDataset) -> evaluator.Predictions:
        found = evaluator.predict(
            self._evaluated(),
            test_dataset,
            batch_size=self.args.per_device_eval_batch_size,
            k=self.args.rank_k,
            exclude_seen=self.args.exclude_seen,
            shard=(self.args.process_index, self.args.world_size),
            progress=not self.args.disable_tqdm and self.is_world_process_zero(),
            workers=self.args.dataloader_num_workers,
            autocast=self.accelerator.autocast(),
        )
        return evaluator.gather(found) if self.args.world_size > 1 else found

    # -------------------------------------------------------------- on disk
    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Save model and processor; training arguments as JSON, because transformers' own file is a pickle."""
        with self._averaged(), without_bars() if self.args.disable_tqdm else nullcontext():
            super()._save(output_dir, state_dict)
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        (folder / "training_args.bin").unlink(missing_ok=True)
        written = json.dumps(without_secrets(self.args.to_dict()), indent=2)
        (folder / "training_args.json").write_text(written + "\n", encoding="utf-8")

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save and self._checkpointed_callbacks:
            states = {
                f"{type(callback).__name__}/{key}": value.contiguous()
                for callback in self._checkpointed_callbacks
                for key, value in callback.tensors(self._unwrapped).items()
            }
            save_file(states, Path(output_dir) / CALLBACK_STATES)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or not (path := Path(checkpoint) / CALLBACK_STATES).exists():
            return
        states = load_file(path, device=str(self.args.device))
        for callback in self._checkpointed_callbacks:
            start = f"{type(callback).__name__}/"
            own = {key.removeprefix(start): value for key, value in states.items() if key.startswith(start)}
            if own:
                callback.load_tensors(self._unwrapped, own)


class _Window:
    """What the batches of one optimizer step were, on this rank."""

    def __init__(self, share: float) -> None:
        self.share = share
        self.loss_T = torch.zeros(())
        self.gramian: Tensor | None = None

    def add(self, loss_T: Tensor, gramian: Tensor | None) -> None:
        self.loss_T = self.loss_T.to(loss_T) + loss_T
        if gramian is not None:
            self.gramian = gramian if self.gramian is None else self.gramian + gramian


class _LengthGroupedSampler(LengthGroupedSampler):
    """An order that depends on seed and epoch alone, so that ranks agree and a resumed run goes on."""

    def __init__(self, window: int, dataset: WindowDataset) -> None:
        super().__init__(window, lengths=dataset.lengths)
        self.dataset = dataset

    def __iter__(self) -> Iterator[int]:
        self.lengths = self.dataset.lengths  # of this epoch's windows
        self.generator = _order(self.dataset)
        return super().__iter__()


class _RandomSampler(torch.utils.data.Sampler):
    """The same without regard to lengths. (accelerate would draw torch's own sampler by seed + epoch.)"""

    def __init__(self, dataset: WindowDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(len(self.dataset), generator=_order(self.dataset)).tolist())


def _order(dataset: WindowDataset) -> torch.Generator:
    return torch.Generator().manual_seed(stream(dataset.seed, dataset.epoch, ORDER))


def _data_seed(args: Any) -> int:
    """The seed of all that is drawn of the data: order, ties, views, negatives, augmentation."""
    return args.seed if args.data_seed is None else args.data_seed


class _EpochCallback(TrainerCallback):
    """Tells the training data seed and epoch; accelerate's data loader tells the epoch only for some samplers."""

    def on_epoch_begin(
        self, args: Any, state: TrainerState, control: Any, train_dataloader: Any = None, **unused: Any
    ) -> None:
        if train_dataloader is not None and isinstance(train_dataloader.dataset, WindowDataset):
            train_dataloader.dataset.set_seed(_data_seed(args))
            train_dataloader.dataset.set_epoch(int(state.epoch or 0))


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


def _known(batch: dict[str, Any], head: TaskHead) -> Tensor:
    """Number, or weight, of the labels of a batch that count in a head's loss, a float scalar."""
    labels = batch["labels"].get(head.task.name)
    if labels is None:
        return torch.zeros(())
    weight = (batch.get("sample_weight") or {}).get(head.task.name)
    return known_weight(head.known(labels, batch["candidate_ids"]), weight).sum()


def _load_catalog(model: PolyRecForRecommendation, processor: PolyRecProcessor) -> None:
    vectors = None
    # A model that holds a catalog has been trained, or was loaded: it keeps its id embeddings.
    is_new = not model.item_encoder.known.any()
    if model.config.item_cooccurrence and is_new:
        found = processor.item_vectors(model.config.hidden_size)
        vectors = model.config.item_cooccurrence * torch.from_numpy(found)
    model.load_catalog(processor.items.encoded, torch.from_numpy(processor.item_counts).float(), vectors)
    model.load_texts(processor)
    model.load_times(processor)
    if processor.has_training_rows:
        model.load_neighbours(processor)
    if is_new:
        model.item_encoder.start_from_text(model.config)
