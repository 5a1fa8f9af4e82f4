"""The JSON schema of recipes, and flags of the same source."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from operator import ge, gt, le, lt
from pathlib import Path

import pytest
from recipe_fixtures import REFUSED

from polyrec.cli.main import build_parser, main
from polyrec.core.documented import field_help
from polyrec.core.yaml_text import read_yaml
from polyrec.runs.distill_settings import DistillSettings, ScoreSettings
from polyrec.runs.recipe import load_recipe, parse_override
from polyrec.runs.recipe_schema import recipe_schema
from polyrec.training.settings import FinetuneSettings, UpdateSettings

ROOT = Path(__file__).parents[2]
RECIPES = [*ROOT.glob("scripts/recipes/*.yaml"), ROOT / "scripts" / "demo.yaml"]
DOCS = [*ROOT.glob("docs/*.md"), ROOT / "README.md"]
# Known only with tasks, packages and rules between values, or before the YAML is read.
BEYOND_A_SCHEMA = (
    "training.report_to=", "training.metric_for_best_model=", "training.task_epochs=", "split.fractions=",
    "columns.weight=", "training={lr: ", "training=[&a",
)  # fmt: skip
_KINDS = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}


_NUMBERS = {"minimum": le, "exclusiveMinimum": lt, "maximum": ge, "exclusiveMaximum": gt}  # limit, value
_LENGTHS = {"minItems": le, "maxItems": ge}


def fits(value, schema, path="recipe"):
    """Yield what is wrong, as JSON schema (draft 7) defines it; keywords that are not known here are an error."""
    for word, told in schema.items():
        if word in ("properties", "additionalProperties", "items"):
            yield from inside(value, word, told, schema, path)
        elif word not in ("$schema", "title", "description", "default") and not holds(value, word, told):
            yield f"{path}: {value!r} breaks {word} {told!r}"


def holds(value, word, told):
    """Whether a value keeps to one keyword that does not look into it."""
    if word in _NUMBERS:
        return not is_a(value, "number") or _NUMBERS[word](told, value)
    if word in _LENGTHS:
        return not isinstance(value, list) or _LENGTHS[word](told, len(value))
    return {
        "anyOf": lambda: any(not list(fits(value, one)) for one in told),
        "enum": lambda: value in told,
        "type": lambda: any(is_a(value, kind) for kind in ([told] if isinstance(told, str) else told)),
        "required": lambda: not isinstance(value, dict) or set(told) <= set(value),
    }[word]()


def inside(value, word, told, schema, path):
    if word == "items":
        for n, entry in enumerate(value if isinstance(value, list) else ()):
            yield from fits(entry, told, f"{path}[{n}]")
        return
    for key, entry in value.items() if isinstance(value, dict) else ():
        if word == "properties" and key in told:
            yield from fits(entry, told[key], f"{path}.{key}")
        elif word == "additionalProperties" and key not in schema.get("properties", {}):
            yield from [f"{path}: unknown key {key}"] if told is False else fits(entry, told, f"{path}.{key}")


def is_a(value, kind):
    if kind in ("integer", "number"):
        whole = isinstance(value, int) or (isinstance(value, float) and (kind == "number" or value.is_integer()))
        return whole and not isinstance(value, bool)
    return isinstance(value, _KINDS[kind])


def errors(values):
    """What is wrong with a recipe: by `jsonschema` if it is installed, and by the check above in any case."""
    found = list(fits(values, recipe_schema()))
    try:
        from jsonschema import Draft7Validator
    except ImportError:
        return found
    other = list(Draft7Validator(recipe_schema()).iter_errors(values))
    assert bool(other) == bool(found), (other, found)
    return found


def blocks(path):
    return re.findall(r"```yaml[^\n]*\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.name)
def test_recipes_fit(path):
    """A schema that marks what works teaches users to ignore it."""
    assert not errors(read_yaml(path.read_text(encoding="utf-8"), path.name))


def test_recipes_of_the_docs_fit():
    """Prevents pages and the schema from telling two stories."""
    found = [read_yaml(text, path.name) or {} for path in DOCS for text in blocks(path)]
    assert len(found) >= 3
    assert not [error for values in found for error in errors(values)]


@pytest.mark.parametrize("setting", [setting for setting, _ in REFUSED])
def test_what_training_refuses_is_marked(setting):
    """Prevents an editor from calling a recipe good that `polyrec train` refuses for a key, a type or a range."""
    if setting.startswith(("training={lr: 1", "training={lr: ", "training=[&a", "split.max_delay=.inf")):
        return  # no YAML that is read
    values = {"interactions": "log.csv", "tasks": [{"name": "like", "head": "binary"}]}
    assert not errors(values)
    key, value = parse_override(setting)
    *sections, entry = key.split(".")
    if sections[:1] == ["tasks"]:
        values["tasks"][0][entry] = value
    elif sections:
        values[sections[0]] = {entry: value}
    else:
        values[entry] = value
    assert bool(errors(values)) != setting.startswith(BEYOND_A_SCHEMA)


def test_all_keys_are_described_and_defaults_are_those_of_python():
    """Prevents keys that an editor shows without a word, and a default that is not the one that is used."""
    sections = recipe_schema()["properties"]
    for name, one in sections.items():
        inner = one.get("properties") or one.get("items", {}).get("properties") or {}
        assert not [key for key, value in inner.items() if not value.get("description")], name
    assert sections["output"]["default"] == load_recipe({"interactions": "a"}).output


def test_the_command_prints_it(capsys):
    """Prevents a schema that `polyrec schema > file` would write broken."""
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == recipe_schema()


@pytest.mark.parametrize(
    ("command", "cls"),
    [
        ("distill", DistillSettings),
        ("score", ScoreSettings),
        ("finetune", FinetuneSettings),
        ("update", UpdateSettings),
    ],
)
def test_flags_are_those_of_the_settings(command, cls):
    """Prevents a field that no flag sets, or whose flag has no help, unless it is one of Python alone."""
    given = {"score": ["ease"], "finetune": ["run", "--task", "like"], "update": ["run", "--new", "a"]}.get(command, [])
    parsed = vars(build_parser().parse_args([command, *given]))
    assert {f.name for f in fields(cls)} - set(parsed) <= {"rate_share", "freeze_skip"}
    assert {f.name for f in fields(cls)} <= set(field_help(cls))


def test_a_flag_converts_and_refuses_as_its_field_does(capsys):
    """Prevents a flag from taking what its field refuses, and messages that name no flag."""
    parsed = build_parser().parse_args(["score", "ease", "-k", "3", "--split", "valid"])
    assert (parsed.top_k, parsed.split, parsed.shard_rows, parsed.skip_overlap_check) == (3, "valid", None, None)
    assert build_parser().parse_args(["distill", "--no-baseline"]).baseline is False
    assert build_parser().parse_args(["distill", "--teacher", "a", "--teacher", "b"]).teachers == ["a", "b"]
    assert main(["update", ".", "--new", "x", "--replay", "1.5"]) == 2
    assert "--replay is 1.5; it must be a number in [0, 1]" in capsys.readouterr().err
