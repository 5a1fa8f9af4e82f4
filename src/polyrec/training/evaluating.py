"""Evaluation of all tasks within a training, and what validation rows choose at its end."""

from __future__ import annotations

import copy
import time

import torch
from transformers import TrainerControl
from transformers.trainer_utils import EvalPrediction, speed_metrics

from polyrec.data.sequences import SequenceDataset
from polyrec.evaluation import evaluator
from polyrec.evaluation.chosen_weight import ChosenWeight
from polyrec.evaluation.term_weight import choose_term_weights
from polyrec.evaluation.tree_weight import choose_tree_weights
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor
from polyrec.training.evidence import judging_set, weighed_by_validation
from polyrec.training.loss_steps import ReducesExactly
from polyrec.training.predictions import TaskPredictions
from polyrec.training.sharded import whole_copy


class EvaluatesTasks(ReducesExactly):
    """A Trainer that measures every task: retrieval tasks rank the whole catalog, on every rank's share of the data."""

    validated: dict[str, ChosenWeight]  # {task: what validation chose after training}

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

    def predictions(self, dataset: SequenceDataset) -> evaluator.Predictions:
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
            model.heads[name].weighed[kind].weigh(weight.weight, weight.decay)
            self.log({f"{kind}_{name}": weight.weight, f"{kind}_gain_{name}": weight.value - weight.without})
        for name, (grown, said) in trees.items():
            model.heads[name].trees.load(grown, said.trees, said.weight)
            self.log({f"trees_{name}": said.weight, f"trees_gain_{name}": said.without - said.value})
        self.validated = {f"{name} {kind}": weight for (name, kind), weight in linear.items()}
        self.validated |= {name: said for name, (_, said) in trees.items()}
