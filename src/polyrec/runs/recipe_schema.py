"""`polyrec schema`: the JSON schema of recipes, for editors: keys, what they mean, what they take."""

from __future__ import annotations

from typing import Any

from polyrec.core.configuration_polyrec import RANGES, PolyRecConfig
from polyrec.core.documented import arguments_help
from polyrec.core.json_schema import object_schema
from polyrec.core.schema import TaskConfig
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor as Processor
from polyrec.runs.recipe import SECTIONS, Recipe, RecipeUpdate
from polyrec.runs.recipe_checks import OF_TRANSFORMERS, model_arguments
from polyrec.runs.tuning_space import TuneSettings
from polyrec.training.arguments import RANGES as TRAINING_RANGES
from polyrec.training.arguments import PolyRecTrainingArguments


def recipe_schema() -> dict[str, Any]:
    """The schema, of the same classes that read a recipe; keys of earlier versions are not in it.

    Example:
        >>> recipe_schema()["properties"]["model"]["properties"]["hidden_size"]["maximum"]
        65536
    """
    schema = object_schema(Recipe)
    properties = schema["properties"]
    properties["import"] = properties.pop("imports")
    model = object_schema(PolyRecConfig, RANGES, only=model_arguments())
    model["properties"]["text"]["anyOf"][0].pop("required")  # `processor.text` names the model
    model["properties"] |= {name: {"description": "as in transformers."} for name in OF_TRANSFORMERS}
    told = {name: arguments_help(how) for name, how in {"processor": Processor.fit, "split": Processor.split}.items()}
    sections = {name: object_schema(cls, described=told.get(name)) for name, cls in SECTIONS.items()} | {
        "model": model,
        "training": object_schema(PolyRecTrainingArguments, TRAINING_RANGES),
        "tune": object_schema(TuneSettings),
    }
    for name, section in sections.items():
        properties[name] |= section | {"type": ["object", "null"]}  # a section without entries is left out
    for name, cls in {"tasks": TaskConfig, "updates": RecipeUpdate}.items():
        properties[name]["items"] = object_schema(cls)
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": "polyrec recipe", **schema}
