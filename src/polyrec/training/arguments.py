"""Training arguments: those of transformers with defaults that fit recommenders."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.trainer_utils import IntervalStrategy, SaveStrategy, SchedulerType
from transformers.training_args import trainer_log_levels

from polyrec.core.documented import with_help
from polyrec.core.ranges import AT_LEAST_ONE, BELOW_ONE, NOT_NEGATIVE, POSITIVE, Range
from polyrec.core.settings import SettingError, conform, nearest
from polyrec.data.setup import batch_size
from polyrec.evaluation.metrics import LOWER_IS_BETTER

HUB_ARGUMENTS = (
    "push_to_hub", "hub_model_id", "hub_strategy", "hub_token", "hub_private_repo", "hub_always_push", "hub_revision",
)  # fmt: skip
_SEED = Range(0, 2**32 - 1)  # what numpy takes
_ROWS = Range(1, 1_000_000)
# Numbers that make sense, of the arguments of transformers and of those below.
RANGES: Mapping[str, Range] = {
    **dict.fromkeys(("learning_rate", "num_train_epochs", "adam_epsilon", "logging_steps", "save_steps"), POSITIVE),
    **dict.fromkeys(("backbone_learning_rate", "embedding_learning_rate", "eval_steps"), POSITIVE),
    **dict.fromkeys(("weight_decay", "warmup_steps", "eval_delay", "max_grad_norm", "task_patience"), NOT_NEGATIVE),
    **dict.fromkeys(("unfreeze_epochs", "neftune_noise_alpha", "ddp_timeout"), NOT_NEGATIVE),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "label_smoothing_factor", "task_factor", "ema_decay"), BELOW_ONE),
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size", "rank_k"), _ROWS),
    **dict.fromkeys(("gradient_accumulation_steps", "eval_accumulation_steps", "torch_empty_cache_steps"), _ROWS),
    **dict.fromkeys(("save_total_limit", "dataloader_prefetch_factor", "ddp_bucket_cap_mb"), AT_LEAST_ONE),
    **dict.fromkeys(("seed", "data_seed"), _SEED),
    "task_epochs": NOT_NEGATIVE,
    "max_steps": Range(-1, 10**12),
    "layer_decay": Range(0, 1, open_low=True),
    "dataloader_num_workers": Range(0, max(64, 4 * (os.cpu_count() or 1))),
}

# Arguments of a training from scratch that mean nothing when a trained model goes on for a little while.
_OF_A_WHOLE_RUN = (
    "max_steps", "load_best_model_at_end", "save_total_limit", "task_patience", "task_epochs", "ema_decay",
    "eval_steps", "restore_callback_states_from_checkpoint", "seed", "teacher", "keep_best", *HUB_ARGUMENTS,
)  # fmt: skip


def for_going_on(training: Mapping[str, Any]) -> dict[str, Any]:
    """What a short training takes over from the arguments of the run whose model it trains further.

    Example:
        >>> for_going_on({"max_steps": 1000, "weight_decay": 0.1})
        {'weight_decay': 0.1}
    """
    return {name: value for name, value in training.items() if name not in _OF_A_WHOLE_RUN}


@with_help
@dataclass
class PolyRecTrainingArguments(TrainingArguments):
    """[`~transformers.TrainingArguments`] with other defaults and a few additions.

    Args:
        learning_rate: peak learning rate; small models from scratch want more than pretrained ones.
        lr_scheduler_type: how the rate falls.
        per_device_train_batch_size: windows of users per device and step; default: 8 to 32, by their number
            ([`~polyrec.data.setup.batch_size`]).
        eval_strategy: when to evaluate; default: "no", unless `keep_best`.
        save_strategy: when to save checkpoints; default: every `save_steps`, unless `keep_best`.
        per_device_eval_batch_size: windows of users per device in evaluation.
        remove_unused_columns: must stay False: batches are nested.
        train_sampling_strategy: "group_by_length" spends little on padding; "random" mixes fully.
        report_to: trackers: "none", "tensorboard", ...
        metric_for_best_model: what chooses the best model: "<task>_<metric>", or the mean over tasks.
        greater_is_better: whether more of that metric is better; default: as its name says.
        ddp_find_unused_parameters: costs a walk through the graph in every step and finds nothing: each parameter gets
            a gradient in each batch, zeros where a task has no label.
        ddp_broadcast_buffers: send buffers (the whole catalog) from the first rank to the others in every step; those
            that change in training change alike on all ranks without.
        keep_best: evaluate and save after each epoch (or as `eval_strategy` says) and end with the best weights: small
            logs are soon memorised. None: if there is one `eval_dataset`, and none of `eval_strategy`, `save_strategy`,
            `save_steps` and `load_best_model_at_end` is given.
        decay_embeddings: apply `weight_decay` to embedding tables, too (biases, norms and loss weights never decay).
        rank_k: length of the ranked lists in evaluation.
        exclude_seen: leave the items of the user's visible history out of the lists, measured and served, as the
            published protocols do; an item taken that is among them is a miss. None: as the model's configuration says,
            which leaves them out unless a task models repeated consumption (the option `repeats`). Set it to False
            where users take an item again (groceries, music).
        task_patience: stop a task by itself once it has not improved for so many evaluations (0 = never), see
            [`~polyrec.training.callbacks.TaskEarlyStopping`].
        task_factor: what the weight of such a task is multiplied by; 0 freezes it and puts its tower back to its best.
        task_epochs: {task: epochs after which it is frozen where it stands}, for tasks that learn faster than others.
        ema_decay: of an exponential moving average of the weights (0 = none), which evaluations and saved models use,
            see [`~polyrec.training.callbacks.WeightAveraging`].
        backbone_learning_rate: of pretrained backbones that are tuned; default: 5e-5, or 5e-4 for LoRA.
        layer_decay: what each pretrained layer's rate is multiplied by for the one below it.
        embedding_learning_rate: of tables of items and other codes; default: `learning_rate`.
        rowwise_tables: update, of tables with a row per item, only the rows that a step has read, as AdamW would (see
            [`~polyrec.training.rowwise.RowwiseAdamW`]); of catalogs of more than 65,536 items, as all rows of smaller
            ones are read in each step. None: where AdamW trains with betas whose momentum fades within 256 steps, and
            without `ema_decay`, FSDP, `torch_compile` and several GPUs.
        unfreeze_epochs: start with frozen backbones and tune one layer more every so many epochs (0 = all at once), see
            [`~polyrec.training.optim.GradualUnfreezing`].
        teacher: folder of a trained run, or of outputs stored by `polyrec score`, to distil from
            what the model's `distillation` says; other teachers are given to the trainer.
        fingerprints: digests of the training's events and inputs; the trainer fills them in, so that trackers show
            them among the hyper-parameters.
    """

    learning_rate: float = 1e-3
    lr_scheduler_type: SchedulerType | str = "cosine"
    per_device_train_batch_size: int | None = None
    eval_strategy: IntervalStrategy | str | None = None
    save_strategy: SaveStrategy | str | None = None
    per_device_eval_batch_size: int = 64
    remove_unused_columns: bool = False
    train_sampling_strategy: str = "group_by_length"
    report_to: str | list[str] | None = "none"
    metric_for_best_model: str | None = "mean_improvement"
    greater_is_better: bool | None = None
    ddp_find_unused_parameters: bool | None = False
    ddp_broadcast_buffers: bool | None = False
    keep_best: bool | None = None
    decay_embeddings: bool = False
    rank_k: int = 10
    exclude_seen: bool | None = None
    task_patience: int = 0
    task_factor: float = 0.0
    task_epochs: dict[str, float] | None = None
    ema_decay: float = 0.0
    backbone_learning_rate: float | None = None
    layer_decay: float = 1.0
    embedding_learning_rate: float | None = None
    rowwise_tables: bool | None = None
    unfreeze_epochs: int = 0
    teacher: str | None = None
    fingerprints: dict[str, str] | None = None

    def __post_init__(self) -> None:
        conform(self, RANGES)
        self.check_names(vars(self))
        if self.keep_best is None:
            unsaid = self.eval_strategy is None and self.save_strategy is None and not self.load_best_model_at_end
            self.keep_best = unsaid and self.save_steps == TrainingArguments.save_steps
        self.eval_strategy, self.save_strategy = self.eval_strategy or "no", self.save_strategy or "steps"
        if self.greater_is_better is None and self.metric_for_best_model is not None:
            # transformers knows names that end with "loss" only: the highest RMSE would be the best.
            lower = ("loss", *(f"_{name}" for name in LOWER_IS_BETTER))
            self.greater_is_better = not self.metric_for_best_model.endswith(lower)
        super().__post_init__()
        if not torch.accelerator.is_available():
            self.dataloader_pin_memory = False  # torch would warn in every epoch that there is nothing to pin it for
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns=True would drop the nested inputs of polyrec: leave it False")
        if self.dataloader_persistent_workers:
            raise ValueError(
                "dataloader_persistent_workers=True would draw the same training windows in every epoch: workers that "
                "live on never hear of a new epoch; leave it False"
            )
        if self.task_patience and self.eval_strategy == "no":
            raise ValueError("task_patience needs evaluations during training: pass eval_strategy='epoch' or 'steps'")

    def settled(self, windows: int, of_rows: bool, evaluated: bool) -> PolyRecTrainingArguments:
        """A copy with what depends on the data, for one trainer.

        Args:
            windows, of_rows: of `batch_size`.
            evaluated: whether there is one `eval_dataset`.
        """
        found = copy.copy(self)
        if found.per_device_train_batch_size is None:
            found.per_device_train_batch_size = max(batch_size(windows, of_rows) // self.world_size, 1)
        if self.keep_best and evaluated and self.metric_for_best_model is not None:
            given = found.__dict__  # mypy cannot tell the types that transformers' fields have
            when = IntervalStrategy.EPOCH if given["eval_strategy"] == "no" else given["eval_strategy"]
            given.update(eval_strategy=when, do_eval=True, save_strategy=SaveStrategy(when))
            given.update(save_steps=given["eval_steps"] or given["save_steps"], load_best_model_at_end=True)
        return found

    @property
    def train_batch_size(self) -> int:
        """Windows a step of this process; before a trainer knows its data, the most that it would take."""
        return super().train_batch_size if self.per_device_train_batch_size is not None else batch_size(1 << 30)

    @staticmethod
    def check_names(given: Mapping[str, Any]) -> None:
        """Refuse names among arguments that transformers would look up later, when hours may have gone by."""
        for name in ("log_level", "log_level_replica"):
            if (level := given.get(name, "passive")) not in trainer_log_levels:
                raise SettingError(name, f"is {level!r}; {nearest(level, list(trainer_log_levels))}")
        known, report = ["none", "all", *INTEGRATION_TO_CALLBACK], given.get("report_to")
        for tracker in [report] if isinstance(report, str) else report or []:
            if tracker not in known:
                raise SettingError("report_to", f"names {tracker!r}; {nearest(tracker, sorted(known))}")
        for name in ("lr_scheduler_kwargs", "gradient_checkpointing_kwargs"):
            if isinstance(value := given.get(name), str) and not value.lstrip().startswith("{"):
                raise SettingError(name, f"is {value!r}; it must be a mapping or null")
