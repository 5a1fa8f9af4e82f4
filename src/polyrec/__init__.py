"""polyrec: one multi-task recommender model from an event log, in the style of Hugging Face Transformers.

Importing names from here registers the Auto classes and `pipeline("recommendation")`. The import is lazy, so the
command line's `--help` needs no torch.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_MODULES = {
    "cross_encoder.configuration_cross_encoder": ["PolyRecCrossEncoderConfig"],
    "cross_encoder.modeling_cross_encoder": ["PolyRecCrossEncoder"],
    "cross_encoder.processing_cross_encoder": ["PolyRecCrossEncoderProcessor"],
    "cross_encoder.sampling": ["CandidateSample"],
    "cross_encoder.trainer": ["CrossEncoderTrainer"],
    "configuration_polyrec": ["PolyRecConfig"],
    "modeling_polyrec": ["PolyRecForRecommendation", "PolyRecModel", "PolyRecOutput", "PolyRecPreTrainedModel"],
    "processing_polyrec": ["PolyRecProcessor", "Splits"],
    "schema": ["Columns", "FeatureConfig", "TaskConfig"],
    "data.collator": ["PolyRecCollator"],
    "training.arguments": ["PolyRecTrainingArguments"],
    "pipeline": ["RecommendationPipeline"],
    "training.trainer": ["PolyRecTrainer"],
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}
__all__ = sorted(_HOME)

if TYPE_CHECKING:
    from polyrec.configuration_polyrec import PolyRecConfig as PolyRecConfig
    from polyrec.cross_encoder.configuration_cross_encoder import (
        PolyRecCrossEncoderConfig as PolyRecCrossEncoderConfig,
    )
    from polyrec.cross_encoder.modeling_cross_encoder import PolyRecCrossEncoder as PolyRecCrossEncoder
    from polyrec.cross_encoder.processing_cross_encoder import (
        PolyRecCrossEncoderProcessor as PolyRecCrossEncoderProcessor,
    )
    from polyrec.cross_encoder.sampling import CandidateSample as CandidateSample
    from polyrec.cross_encoder.trainer import CrossEncoderTrainer as CrossEncoderTrainer
    from polyrec.data.collator import PolyRecCollator as PolyRecCollator
    from polyrec.modeling_polyrec import (
        PolyRecForRecommendation as PolyRecForRecommendation,
    )
    from polyrec.modeling_polyrec import (
        PolyRecModel as PolyRecModel,
    )
    from polyrec.modeling_polyrec import (
        PolyRecOutput as PolyRecOutput,
    )
    from polyrec.modeling_polyrec import (
        PolyRecPreTrainedModel as PolyRecPreTrainedModel,
    )
    from polyrec.pipeline import RecommendationPipeline as RecommendationPipeline
    from polyrec.processing_polyrec import PolyRecProcessor as PolyRecProcessor
    from polyrec.processing_polyrec import Splits as Splits
    from polyrec.schema import Columns as Columns
    from polyrec.schema import FeatureConfig as FeatureConfig
    from polyrec.schema import TaskConfig as TaskConfig
    from polyrec.training.arguments import PolyRecTrainingArguments as PolyRecTrainingArguments
    from polyrec.training.trainer import PolyRecTrainer as PolyRecTrainer


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'polyrec' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"polyrec.{_HOME[name]}"), name)
    globals()[name] = value
    return value


# Importing polyrec registers its Auto classes and its pipeline, which needs torch; only the command line, whose
# `--help` must be quick, is spared (it imports what a command needs when the command runs).
if Path(sys.argv[0]).name != "polyrec":
    _cross_encoder = "cross_encoder.modeling_cross_encoder", "cross_encoder.processing_cross_encoder"
    for _module in ("modeling_polyrec", *_cross_encoder, "pipeline"):
        importlib.import_module(f"polyrec.{_module}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
