"""`PolyRecTrainer`: transformers' Trainer for many tasks with missing labels."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import speed_metrics

from polyrec.data.collator import PolyRecCollator
from polyrec.data.sequences import SequenceDataset, WindowDataset
from polyrec.evaluation import evaluator
from polyrec.heads.base import TaskHead, known_weight, mean_loss
from polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.processing_polyrec import PolyRecProcessor
from polyrec.training.arguments import PolyRecTrainingArguments
from polyrec.training.memory import keep_freed_memory


class PolyRecTrainer(Trainer):
    """Trains a [`PolyRecForRecommendation`] on [`SequenceDataset`]s.

    What it adds to [`~transformers.Trainer`]:

    * **Exact reduction.** Each task's sum of losses is divided by its number of known labels in the whole accumulation
      window over all ranks, so batch 64 x 1, 16 x 4 accumulated and 2 processes x 32 give the same gradient, whatever
      labels are missing.
    * **Losses and metrics per task**, logged as `loss_<task>` and `eval_<task>_<metric>`, and
      `eval_mean_improvement` (see `polyrec.evaluation.evaluator.evaluate`).
    * **Full-catalog ranking** in `evaluate`, on every rank's share of the data, gathered exactly.
    * The processor's catalog goes into the model before training, and the processor is saved with it.

    Args:
        model: the model.
        args: training arguments.
        train_dataset, eval_dataset: as `PolyRecProcessor.split` returns them; training also takes a `MixedDataset`.
        processing_class: the processor.
    """

    def __init__(
        self,
        model: PolyRecForRecommendation,
        args: PolyRecTrainingArguments,
        train_dataset: WindowDataset | None = None,
        eval_dataset: SequenceDataset | dict[str, SequenceDataset] | None = None,
        processing_class: PolyRecProcessor | None = None,
        data_collator: PolyRecCollator | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(args, PolyRecTrainingArguments):
            raise TypeError(
                f"args must be PolyRecTrainingArguments, not {type(args).__name__}: its defaults fit nested batches"
            )
        if processing_class is not None:
            _load_catalog(model, processing_class)
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator or PolyRecCollator(),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        if args.device.type == "cpu":
            keep_freed_memory()
        # `compute_loss` divides by the counts of the whole accumulation window itself.
        self.loss_is_scaled_for_ga = True
        self._task_sums: dict[str, Tensor] = {}
        self._task_logged_step = 0
        self.add_callback(_EpochCallback())

    # ----------------------------------------------------------------- loss
    def _get_num_items_in_batch(
        self, batch_samples: list[dict[str, Any]], device: torch.device
    ) -> dict[str, Tensor] | None:
        """Known labels (or their weight) per task in the accumulation window, over all ranks: {task: scalar}."""
        if not batch_samples:
            return None
        heads = self._unwrapped.heads
        counts = torch.stack([sum(_known(batch, head) for batch in batch_samples) for head in heads.values()]).to(
            device
        )
        if self.args.world_size > 1:
            counts = self.accelerator.reduce(counts, reduction="sum")
        return dict(zip(heads, counts, strict=True))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: dict[str, Tensor] | None = None,
    ) -> Any:
        """The weighted objective; with DDP multiplied by the number of ranks, because DDP averages gradients."""
        inputs = {k: v for k, v in inputs.items() if k != "candidate_rows"}
        outputs = model(**inputs, denominators=num_items_in_batch)
        if model.training and num_items_in_batch is not None:
            for name, total in outputs.losses.items():
                mean = mean_loss(total.detach(), num_items_in_batch[name])
                self._task_sums[name] = self._task_sums.get(name, torch.zeros_like(mean)) + mean
        loss = outputs.loss * self.args.world_size if num_items_in_batch is not None else outputs.loss
        return (loss, outputs) if return_outputs else loss

    @property
    def _unwrapped(self) -> PolyRecForRecommendation:
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the mean loss of each task since the last log."""
        if "loss" in logs and self._task_sums:
            steps = max(self.state.global_step - self._task_logged_step, 1)
            sums = torch.stack(list(self._task_sums.values()))
            if self.args.world_size > 1:
                sums = self.accelerator.reduce(sums, reduction="sum")
            logs |= {f"loss_{name}": value / steps for name, value in zip(self._task_sums, sums.tolist(), strict=True)}
            self._task_sums, self._task_logged_step = {}, self.state.global_step
        super().log(logs, start_time)

    # ------------------------------------------------------------ optimizer
    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Matrices decay; biases, norms, start vectors, scales of ensemble members and the weights of losses do not.

        Embedding tables do if `args.decay_embeddings` says so.
        """
        tables = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
        spared = set() if self.args.decay_embeddings else tables
        return [
            name
            for name in super().get_decay_parameter_names(model)
            if name.endswith(".weight") and name not in spared and "weighting" not in name.split(".")
        ]

    def _get_train_sampler(self, train_dataset: WindowDataset | None = None) -> torch.utils.data.Sampler | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(dataset)
        window = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return _LengthGroupedSampler(window, dataset, self.args.seed)

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
        predictions = self.predict(dataset)
        model = self._unwrapped
        found = evaluator.evaluate(model, dataset, predictions, self.args.rank_k)
        result = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        result |= speed_metrics(metric_key_prefix, start, num_samples=dataset.num_candidates)
        self.log(result)
        self.control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, result)
        return result

    def predict(self, test_dataset: SequenceDataset, *unused: Any, **also_unused: Any) -> evaluator.Predictions:
        """Answers to every candidate of a data set, on every rank."""
        found = evaluator.predict(
            self._unwrapped,
            test_dataset,
            batch_size=self.args.per_device_eval_batch_size,
            k=self.args.rank_k,
            exclude_seen=self.args.exclude_seen,
            shard=(self.args.process_index, self.args.world_size),
            progress=not self.args.disable_tqdm and self.is_world_process_zero(),
        )
        return evaluator.gather(found) if self.args.world_size > 1 else found

    # -------------------------------------------------------------- on disk
    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Save model and processor; training arguments as JSON, because transformers' own file is a pickle."""
        super()._save(output_dir, state_dict)
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        (folder / "training_args.bin").unlink(missing_ok=True)
        (folder / "training_args.json").write_text(self.args.to_json_string() + "\n", encoding="utf-8")


class _LengthGroupedSampler(LengthGroupedSampler):
    """An order that depends on seed and epoch alone, so that ranks agree and a resumed run goes on."""

    def __init__(self, window: int, dataset: WindowDataset, seed: int) -> None:
        super().__init__(window, lengths=dataset.lengths)
        self.dataset, self.seed = dataset, seed

    def __iter__(self) -> Iterator[int]:
        self.lengths = self.dataset.lengths  # of this epoch's windows
        self.generator = torch.Generator().manual_seed(self.seed + self.dataset.epoch)
        return super().__iter__()


class _EpochCallback(TrainerCallback):
    """Tells the training data which epoch it is; accelerate's data loader does so only for some samplers."""

    def on_epoch_begin(
        self, args: Any, state: TrainerState, control: Any, train_dataloader: Any = None, **unused: Any
    ) -> None:
        if train_dataloader is not None and isinstance(train_dataloader.dataset, WindowDataset):
            train_dataloader.dataset.set_epoch(int(state.epoch or 0))


def _known(batch: dict[str, Any], head: TaskHead) -> Tensor:
    """Number, or weight, of the labels of a batch that count in a head's loss, a float scalar."""
    labels = batch["labels"].get(head.task.name)
    if labels is None:
        return torch.zeros(())
    weight = (batch.get("sample_weight") or {}).get(head.task.name)
    return known_weight(head.known(labels, batch["candidate_ids"]), weight).sum()


def _load_catalog(model: PolyRecForRecommendation, processor: PolyRecProcessor) -> None:
    attributes = {name: torch.from_numpy(values) for name, values in processor.items.encoded.items()}
    model.load_catalog(attributes, torch.from_numpy(processor.item_counts).float())
