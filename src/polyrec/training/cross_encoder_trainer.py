"""`CrossEncoderTrainer`: the Trainer of polyrec models, for one that reads prompts."""

from __future__ import annotations

from typing import Any

from polyrec.data.sequences import SequenceDataset, WindowDataset
from polyrec.evaluation import evaluator, reranked
from polyrec.models.cross_encoder.collator import CrossEncoderCollator
from polyrec.models.cross_encoder.modeling_cross_encoder import PolyRecCrossEncoder
from polyrec.models.cross_encoder.processing_cross_encoder import PolyRecCrossEncoderProcessor
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.training.arguments import PolyRecTrainingArguments
from polyrec.training.trainer import PolyRecTrainer


class CrossEncoderTrainer(PolyRecTrainer):
    """Trains a [`PolyRecCrossEncoder`]; reduction, weighting, logs and files are those of [`PolyRecTrainer`].

    Args:
        model, args: as there. Mind `per_device_train_batch_size`: each window is several prompts.
        train_dataset: a [`CandidateSample`].
        eval_dataset: a [`SequenceDataset`]; every candidate is scored.
        processing_class: writes the prompts.
        first_stage: a model of the same data, whose lists `evaluate` reranks. Without one retrieval tasks are not
            evaluated.
        first_k: items per list.
    """

    def __init__(
        self,
        model: PolyRecCrossEncoder,
        args: PolyRecTrainingArguments,
        train_dataset: WindowDataset | None = None,
        eval_dataset: SequenceDataset | dict[str, SequenceDataset] | None = None,
        *,
        processing_class: PolyRecCrossEncoderProcessor,
        first_stage: PolyRecForRecommendation | None = None,
        first_k: int = 50,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("teacher") is not None or args.teacher is not None:
            raise ValueError(
                "a cross-encoder teaches and is not taught: leave out `teacher`, and let the cross-encoder teach a "
                "PolyRecForRecommendation (CrossEncoderTeacher), which predicts faster"
            )
        self.first_stage, self.first_k = first_stage, first_k
        super().__init__(
            model,
            args,
            train_dataset,
            eval_dataset,
            processing_class,
            data_collator=CrossEncoderCollator(processor=processing_class),
            **kwargs,
        )

    @staticmethod
    def load_processor(model: PolyRecCrossEncoder, processor: Any) -> None:
        """Give the model the items' training counts."""
        model.load_processor(processor)

    def _predict(self, test_dataset: SequenceDataset) -> evaluator.Predictions:
        args, model = self.args, self._unwrapped
        shard = args.process_index, args.world_size
        lists = {}
        if self.first_stage is not None and model.state_tasks:
            first = evaluator.predict(
                self.first_stage, test_dataset, k=self.first_k, exclude_seen=args.exclude_seen, shard=shard
            )
            lists = {name: first.rankings[name] for name in model.state_tasks if name in first.rankings}
        found = reranked.predict(
            model,
            self.processing_class,
            test_dataset,
            lists,
            batch_size=args.per_device_eval_batch_size,
            k=args.rank_k,
            shard=shard,
            progress=not args.disable_tqdm and self.is_world_process_zero(),
        )
        return evaluator.gather(found) if args.world_size > 1 else found
