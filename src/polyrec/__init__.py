"""polyrec: one multi-task recommender model from an event log, in the style of Hugging Face Transformers.

Importing names from here registers the Auto classes and `pipeline("recommendation")`. The import is lazy, so the
command line's `--help` needs no torch.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyrec.core.version import __version__ as __version__

_MODULES = {
    "core.rules": ["Rules"],
    "core.schema": ["Columns", "FeatureConfig", "TaskConfig"],
    "data.collator": ["PolyRecCollator"],
    "data.splitter": ["Splits"],
    "models.polyrec.configuration_polyrec": ["PolyRecConfig"],
    "models.polyrec.modeling_polyrec": ["PolyRecForRecommendation", "PolyRecModel"],
    "models.polyrec.processing_polyrec": ["PolyRecProcessor"],
    "models.pretrained": ["PolyRecOutput", "PolyRecPreTrainedModel"],
    "models.cross_encoder.configuration_cross_encoder": ["PolyRecCrossEncoderConfig"],
    "models.cross_encoder.modeling_cross_encoder": ["PolyRecCrossEncoder"],
    "models.cross_encoder.processing_cross_encoder": ["PolyRecCrossEncoderProcessor"],
    "models.cross_encoder.sampling": ["CandidateSample"],
    "inference.pipeline": ["RecommendationPipeline"],
    "inference.recommender": ["Recommender"],
    "training.arguments": ["PolyRecTrainingArguments"],
    "training.cross_encoder_trainer": ["CrossEncoderTrainer"],
    "training.trainer": ["PolyRecTrainer"],
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}
__all__ = sorted(_HOME)

if TYPE_CHECKING:
    from polyrec.core.rules import Rules as Rules
    from polyrec.core.schema import Columns as Columns
    from polyrec.core.schema import FeatureConfig as FeatureConfig
    from polyrec.core.schema import TaskConfig as TaskConfig
    from polyrec.data.collator import PolyRecCollator as PolyRecCollator
    from polyrec.data.splitter import Splits as Splits
    from polyrec.inference.pipeline import RecommendationPipeline as RecommendationPipeline
    from polyrec.inference.recommender import Recommender as Recommender
    from polyrec.models.cross_encoder.configuration_cross_encoder import (
        PolyRecCrossEncoderConfig as PolyRecCrossEncoderConfig,
    )
    from polyrec.models.cross_encoder.modeling_cross_encoder import PolyRecCrossEncoder as PolyRecCrossEncoder
    from polyrec.models.cross_encoder.processing_cross_encoder import (
        PolyRecCrossEncoderProcessor as PolyRecCrossEncoderProcessor,
    )
    from polyrec.models.cross_encoder.sampling import CandidateSample as CandidateSample
    from polyrec.models.polyrec.configuration_polyrec import PolyRecConfig as PolyRecConfig
    from polyrec.models.polyrec.modeling_polyrec import (
        PolyRecForRecommendation as PolyRecForRecommendation,
    )
    from polyrec.models.polyrec.modeling_polyrec import (
        PolyRecModel as PolyRecModel,
    )
    from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor as PolyRecProcessor
    from polyrec.models.pretrained import PolyRecOutput as PolyRecOutput
    from polyrec.models.pretrained import PolyRecPreTrainedModel as PolyRecPreTrainedModel
    from polyrec.training.arguments import PolyRecTrainingArguments as PolyRecTrainingArguments
    from polyrec.training.cross_encoder_trainer import CrossEncoderTrainer as CrossEncoderTrainer
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
    importlib.import_module("polyrec.inference")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
