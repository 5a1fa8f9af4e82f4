"""A recipe: one YAML file (or flags) for data, tasks, model, training and tuning. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from polyrec.core.secrets import without_secrets
from polyrec.registry import nearest
from polyrec.schema import Columns, TaskConfig, from_dict, parse_tasks


@dataclass
class Recipe:
    """What `polyrec train` does.

    Args:
        interactions, items, users: paths of .parquet or .csv tables.
        past: path of a table of what people did before the log, see `Columns.past`.
        tasks: list of task dicts (name, head, label, weight, options).
        columns: arguments of `Columns`.
        split: arguments of `PolyRecProcessor.split` ({by: time, fractions: [...]}, {by: leave_one_out}).
        processor: further arguments of `PolyRecProcessor.fit` (max_history, ties, statistics).
        model: arguments of `PolyRecConfig` (hidden_size, dropout, ...).
        training: arguments of `PolyRecTrainingArguments` (num_train_epochs, learning_rate, ...).
        tune: what `polyrec tune` searches, see `polyrec.cli.tuning_space`.
        updates: what `polyrec update` has added, in order: {interactions, items, users, holdout}; a training takes
            these tables as parts of the data.
        slices: attributes of items or people by which metrics.json says where the model errs, beside popularity,
            history, activity and time; default: the first categorical attribute of the items.
        card: what a model card cannot know by itself, see `polyrec.cards.about.About` (license, datasets, ...).
        early_stopping_patience: stop after so many evaluations without a better metric; 0 = never.
        output: folder of the run.
    """

    interactions: str = ""
    items: str | None = None
    users: str | None = None
    past: str | None = None
    tasks: list[dict[str, Any]] = field(default_factory=list)
    columns: dict[str, Any] = field(default_factory=dict)
    split: dict[str, Any] = field(default_factory=lambda: {"by": "time"})
    processor: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    tune: dict[str, Any] = field(default_factory=dict)
    updates: list[dict[str, Any]] = field(default_factory=list)
    slices: list[str] = field(default_factory=list)
    card: dict[str, Any] = field(default_factory=dict)
    early_stopping_patience: int = 0
    output: str = "runs/latest"

    def check(self) -> None:
        """Refuse what cannot work before anything heavy is imported."""
        if not self.interactions:
            raise ValueError("no interactions given: set `interactions:` in the YAML file or pass --interactions PATH")
        for name in ("interactions", "items", "users", "past"):
            for path in (getattr(self, name), *(update.get(name) for update in self.updates)):
                if path and not Path(path).exists():
                    raise ValueError(f"{name}: no such file: {path}")
        parse_tasks(self.tasks)
        from_dict(Columns, self.columns)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for YAML; tokens and passwords are left out, so they reach no file."""
        return without_secrets(asdict(self))


def load_recipe(path: str | None, overrides: Mapping[str, Any]) -> Recipe:
    """Read a recipe; flags win over the file.

    Args:
        path: a YAML file, or None.
        overrides: {"model.hidden_size": 64, "output": ...}; see `set_entry`.
    """
    import yaml

    values: dict[str, Any] = {}
    if path is not None:
        if not Path(path).exists():
            raise ValueError(f"no such recipe: {path}")
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        if not isinstance(values, dict):
            raise ValueError(f"{path} must hold a mapping such as `interactions: events.parquet`")
    for key, value in overrides.items():
        set_entry(values, key, value)
    return from_dict(Recipe, values)


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
    for depth, section in enumerate(sections):
        if isinstance(place, list):  # the tasks
            names = [task.get("name") for task in place]
            if section not in names:
                raise ValueError(f"unknown task {section!r} in {key!r}; {nearest(section, names)}")
            place = place[names.index(section)]
        else:
            place = place.setdefault(section, [] if (depth, section) == (0, "tasks") else {})
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
    from_dict(TaskConfig, task)
    return task


def parse_override(text: str) -> tuple[str, Any]:
    """Read --set SECTION.KEY=VALUE, the value as YAML.

    Example:
        >>> parse_override("training.num_train_epochs=3")
        ('training.num_train_epochs', 3)
    """
    import yaml

    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"cannot read --set {text!r}: write SECTION.KEY=VALUE, e.g. training.num_train_epochs=3")
    return key.strip(), yaml.safe_load(value)
