"""A recipe: one YAML file (or flags) for data, tasks, model, training and tuning. Needs no torch."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

from polyrec.core.older_files import new_key, reads_section, with_new_keys
from polyrec.core.own_parts import import_parts
from polyrec.core.ranges import NOT_NEGATIVE
from polyrec.core.schema import Columns, from_dict, parse_tasks
from polyrec.core.secrets import without_secrets
from polyrec.core.settings import SettingError, conform, nearest, read, shown
from polyrec.core.yaml_text import read_yaml
from polyrec.data.settings import FitSettings, SplitSettings
from polyrec.runs.card_section import About

# What the sections may hold; `model`, `training` and `tune` need more to be imported, see `recipe_checks`.
SECTIONS = {"columns": Columns, "processor": FitSettings, "split": SplitSettings, "card": About}


@dataclass
class RecipeUpdate:
    """One entry of `Recipe.updates`.

    Args:
        interactions: events that came later.
        items: attributes of new items.
        users: attributes of new users.
        holdout: share of these events that was held out.
    """

    interactions: str
    items: str | None = None
    users: str | None = None
    holdout: float = 0.1


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):  # a name too long, or with a zero byte
        return False


@reads_section("")
@dataclass
class Recipe:
    """What `polyrec train` does.

    Args:
        interactions: event log, .parquet or .csv.
        items: item attributes.
        users: user attributes.
        prior_history: items that users interacted with before the log: lists of item ids. See `Columns.prior_history`.
        tasks: what to learn, see `TaskConfig`.
        imports: modules or .py files of your own that register heads or other parts, see `polyrec.core.own_parts`; the
            key in a file is `import`.
        columns: which column means what, see `Columns`.
        split: arguments of `PolyRecProcessor.split` ({by: time, fractions: [...]}, {by: leave_one_out}); default: by
            time, or random where the log has no times.
        processor: further arguments of `PolyRecProcessor.fit` (max_history, ties, statistics).
        model: arguments of `PolyRecConfig` (hidden_size, dropout, ...).
        training: arguments of `PolyRecTrainingArguments` (num_train_epochs, learning_rate, ...).
        tune: what `polyrec tune` searches, see `polyrec.runs.tuning_space`.
        updates: what `polyrec update` has added, in order; a training takes these tables as further data.
        slices: attributes of items or users by which metrics.json says where the model errs, beside popularity,
            history, activity and time; default: the first categorical attribute of the items.
        card: what a model card cannot know by itself, see `polyrec.runs.card_section.About` (license, datasets, ...).
        cache_dir: folder of data that are prepared once and mapped from files instead of held in memory. Default: that
            of POLYREC_CACHE or of Hugging Face for a log of 5,000,000 rows and more, none for smaller ones.
        early_stopping_patience: stop after so many evaluations without a better metric; 0 = never.
        output: folder of the run.
    """

    interactions: str = ""
    items: str | None = None
    users: str | None = None
    prior_history: str | None = None
    tasks: list[dict[str, Any]] = field(default_factory=list)
    imports: list[str] = field(default_factory=list)
    columns: dict[str, Any] = field(default_factory=dict)
    split: dict[str, Any] = field(default_factory=dict)
    processor: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    tune: dict[str, Any] = field(default_factory=dict)
    updates: list[dict[str, Any]] = field(default_factory=list)
    slices: list[str] = field(default_factory=list)
    card: dict[str, Any] = field(default_factory=dict)
    early_stopping_patience: Annotated[int, NOT_NEGATIVE] = 0
    cache_dir: str | None = None
    output: str = "runs/latest"

    def __post_init__(self) -> None:
        conform(self)

    def check(self) -> None:
        """Refuse what cannot work before anything heavy is imported."""
        if not self.interactions:
            raise ValueError("no interactions given: set `interactions:` in the YAML file or pass --interactions PATH")
        for name in ("interactions", "items", "users", "prior_history"):
            for path in (getattr(self, name), *(update.get(name) for update in self.updates)):
                if path and not _exists(path):
                    raise ValueError(f"{name}: no such file: {shown(path)}")
        if not self.output or (_exists(self.output) and Path(self.output).is_file()):
            raise SettingError(
                "output", f"is {shown(self.output)}, {'a file' if self.output else 'empty'}: name a folder for the run"
            )
        parse_tasks(self.tasks)
        for name, cls in SECTIONS.items():
            read(cls, getattr(self, name), name)
        for n, update in enumerate(self.updates):
            read(RecipeUpdate, update, f"updates[{n}]")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for YAML; tokens and passwords are left out, so they reach no file."""
        values = {"import" if name == "imports" else name: value for name, value in asdict(self).items()}
        if not self.imports:
            del values["import"]
        return without_secrets(values)


def load_recipe(
    source: str | Path | dict[str, Any] | None, overrides: Mapping[str, Any] | None = None, imports: bool = True
) -> Recipe:
    """Read a recipe; flags win over the file.

    Args:
        source: a YAML file, the values themselves, or None.
        overrides: {"model.hidden_size": 64, "output": ...}; see `set_entry`.
        imports: import the modules that it names, which register heads and other parts.
    """
    values = read_recipe_file(Path(source)) if isinstance(source, str | Path) else source or {}
    what = source if isinstance(source, str | Path) else "the recipe"
    values = with_new_keys(values, say=lambda text: print(f"{what}: {text}", file=sys.stderr))
    for key, value in (overrides or {}).items():
        set_entry(values, new_key(key, say=lambda text: print(text, file=sys.stderr)), value)
    recipe = from_dict(Recipe, values)
    if imports:
        import_parts(recipe.imports)
    return recipe


def read_recipe_file(path: Path) -> dict[str, Any]:
    """The values of a recipe's file; sections without entries are left out.

    Raises:
        ValueError: there is no such file, or it is not a recipe's.
    """
    if not path.is_file():
        raise ValueError(f"no such recipe: {path}" + " is a folder: name the file in it" * path.is_dir())
    try:
        values = read_yaml(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}): save it as UTF-8") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a mapping such as `interactions: events.parquet`")
    sections = [f.name for f in fields(Recipe) if f.default_factory is not MISSING]
    return {key: value for key, value in values.items() if not (value is None and key in sections)}


def set_entry(values: dict[str, Any], key: str, value: Any) -> None:
    """Set one entry of a recipe's values in place; each dot goes one section deeper, and tasks are known by name.

    Example:
        >>> values = {"tasks": [{"name": "like", "head": "binary"}]}
        >>> set_entry(values, "model.expert_options.members", 4)
        >>> set_entry(values, "tasks.like.weight", 0.5)
        >>> values
        {'tasks': [{'name': 'like', 'head': 'binary', 'weight': 0.5}], 'model': {'expert_options': {'members': 4}}}
    """
    *sections, entry = key.split(".")
    place: Any = values
    for depth, part in enumerate(sections):
        if isinstance(place, list):  # the tasks
            names = [task.get("name") if isinstance(task, Mapping) else None for task in place]
            if part not in names:
                raise ValueError(f"unknown task {part!r} in {key!r}; {nearest(part, names)}")
            place = place[names.index(part)]
        else:
            if place.get(part) is None:
                place[part] = [] if (depth, part) == (0, "tasks") else {}
            place = place[part]
        if not isinstance(place, dict | list):
            raise ValueError(
                f"cannot set {key!r}: {'.'.join(sections[: depth + 1])} is {place!r}, which has no entries"
            )
    if isinstance(place, list):
        raise ValueError(f"cannot set {key!r}: write {'.'.join(sections)}.NAME.KEY, e.g. tasks.like.weight")
    place[entry] = value


def parse_task(text: str) -> dict[str, Any]:
    """Read --task NAME=HEAD[:LABEL].

    Example:
        >>> parse_task("like=binary:rating >= 4")
        {'name': 'like', 'head': 'binary', 'label': 'rating >= 4'}
    """
    name, equals, rest = text.partition("=")
    head, _, label = rest.partition(":")
    if not equals or not head:
        raise ValueError(
            f"cannot read the task {text!r}: write NAME=HEAD or NAME=HEAD:LABEL, e.g. 'like=binary:rating >= 4'"
        )
    task = {"name": name.strip(), "head": head.strip()} | ({"label": label.strip()} if label else {})
    return task


def parse_override(text: str) -> tuple[str, Any]:
    """Read --set SECTION.KEY=VALUE, the value as YAML.

    Example:
        >>> parse_override("training.num_train_epochs=3")
        ('training.num_train_epochs', 3)
    """
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"cannot read --set {text!r}: write SECTION.KEY=VALUE, e.g. training.num_train_epochs=3")
    return key.strip(), read_yaml(value, f"--set {key.strip()}")
