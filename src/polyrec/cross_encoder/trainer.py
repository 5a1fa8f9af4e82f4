"""`CrossEncoderTrainer`: the Trainer of polyrec models, for one that reads prompts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polyrec.cross_encoder import reranking
from polyrec.cross_encoder.collator import CrossEncoderCollator
from polyrec.cross_encoder.modeling_cross_encoder import PolyRecCrossEncoder
from polyrec.cross_encoder.processing_cross_encoder import PolyRecCrossEncoderProcessor
from polyrec.data.sequences import SequenceDataset, WindowDataset
from polyrec.evaluation.evaluator import Predictions, Ranking, gather
from polyrec.training.arguments import PolyRecTrainingArguments
from polyrec.training.trainer import PolyRecTrainer


class CrossEncoderTrainer(PolyRecTrainer):
    """Trains a [`PolyRecCrossEncoder`]; reduction, weighting, logs and files are those of [`PolyRecTrainer`].

    Args:
        model, args: as there. Mind `per_device_train_batch_size`: each window is several prompts.
        train_dataset: a [`CandidateSample`].
        eval_dataset: a [`SequenceDataset`]; every candidate is asked.
        processing_class: writes the prompts.
        first_stage: {retrieval task: lists of another model about the evaluation set}, which `evaluate` reranks; a
            retrieval task without lists is not evaluated.
    """

    def __init__(
        self,
        model: PolyRecCrossEncoder,
        args: PolyRecTrainingArguments,
        train_dataset: WindowDataset | None = None,
        eval_dataset: SequenceDataset | dict[str, SequenceDataset] | None = None,
        *,
        processing_class: PolyRecCrossEncoderProcessor,
        first_stage: Mapping[str, Ranking] | None = None,
        **kwargs: Any,
    ) -> None:
        self.first_stage = first_stage
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

    def _predict(self, test_dataset: SequenceDataset) -> Predictions:
        found = reranking.predict(
            self._unwrapped,
            self.processing_class,
            test_dataset,
            self.first_stage,
            batch_size=self.args.per_device_eval_batch_size,
            k=self.args.rank_k,
            shard=(self.args.process_index, self.args.world_size),
            progress=not self.args.disable_tqdm and self.is_world_process_zero(),
        )
        return gather(found) if self.args.world_size > 1 else found
