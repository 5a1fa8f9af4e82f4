"""What `polyrec tune` searches: the `tune:` section of a recipe. Needs neither torch nor Optuna.

    tune:
      startup_trials: 10                 # drawn at random before the search learns from what it saw
      space:
        training.learning_rate: {low: 0.001, high: 0.01, log: true}
        model.hidden_size: [32, 64, 128]
        model.expert_options.num_experts: {low: 2, high: 8}
        tasks.like.weight: {low: 0.1, high: 10.0, log: true}

Keys are those of --set: sections `model` and `training`, and the weight and options of a task by its name. A list
holds choices; low and high bound a number, an integer if both are integers. A given space replaces the default one.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Annotated, Any, Protocol

from polyrec.core.older_files import new_key
from polyrec.core.ranges import NOT_NEGATIVE
from polyrec.core.registry import nearest
from polyrec.core.schema import from_dict
from polyrec.core.settings import SettingError, read_arguments, read_value
from polyrec.runs.recipe import Recipe, set_entry

_SECTIONS = ("model", "tasks", "training")
_OF_A_TASK = ("weight", "options", "coupling_options")  # the rest is data, which is prepared once


class Trial(Protocol):
    """The part of an Optuna trial that draws values."""

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        """One of the choices."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> float:
        """A number."""

    def suggest_int(self, name: str, low: int, high: int, *, log: bool) -> int:
        """An integer."""


@dataclass(frozen=True)
class Bounds:
    """A number to search.

    Args:
        low: lowest value; integers are searched if both bounds are.
        high: highest value, included.
        log: draw on a logarithmic scale.
    """

    low: int | float
    high: int | float
    log: bool = False


Choices = list[Any] | Bounds  # what may be given for a key


@dataclass(frozen=True)
class TuneSettings:
    """The `tune:` section.

    Args:
        space: {dotted key as in --set: choices or bounds}; default: see `default_space`.
        startup_trials: trials that are drawn at random first.
    """

    space: dict[str, Choices] | None = None
    startup_trials: Annotated[int, NOT_NEGATIVE] = 10


@dataclass(frozen=True)
class Dimension:
    """One thing to search.

    Args:
        key: dotted, as in --set.
        choices: values to choose from; () = a number between low and high.
        low, high: bounds, both included; integers if both are.
        log: draw on a logarithmic scale.
    """

    key: str
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False

    @classmethod
    def parse(cls, key: str, value: Any) -> Dimension:
        """Read one entry of the space.

        Example:
            >>> Dimension.parse("model.dropout", {"low": 0.0, "high": 0.5}).high
            0.5
            >>> Dimension.parse("model.dropout", {"low": 0.0, "hihg": 0.5})
            Traceback (most recent call last):
                ...
            ValueError: unknown key 'hihg' in tune.space.model.dropout; did you mean 'high'? known: low, high, log
        """
        what = f"tune.space.{key}"
        section, *rest = key.split(".")
        if section not in _SECTIONS or not rest:
            raise ValueError(f"{what}: cannot search {key!r}; it must begin with one of {', '.join(_SECTIONS)}")
        if section == "tasks" and (len(rest) < 2 or rest[1] not in _OF_A_TASK):
            raise ValueError(f"{what}: of a task its {', '.join(_OF_A_TASK)} can be searched, e.g. tasks.like.weight")
        if isinstance(value, list):
            if not value or not all(v is None or isinstance(v, bool | int | float | str) for v in value):
                raise ValueError(f"{what} must list at least one plain value, not {value!r}")
            return cls(key, tuple(value))
        low, high, log = astuple(read_value(Choices, value, what))
        if not low <= high or (log and low <= 0):
            raise ValueError(f"{what} needs low <= high, and low > 0 on a logarithmic scale, not {low} and {high}")
        return cls(key, (), low, high, log)

    def suggest(self, trial: Trial) -> Any:
        """Draw a value."""
        if self.choices:
            return trial.suggest_categorical(self.key, list(self.choices))
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(self.key, self.low, self.high, log=self.log)
        return trial.suggest_float(self.key, self.low, self.high, log=self.log)

    @property
    def examples(self) -> list[Any]:
        """Its choices or its bounds: what must work if the rest is to work."""
        return list(self.choices) or [self.low, self.high]


@dataclass(frozen=True)
class SearchSpace:
    """All dimensions, and how many trials are drawn at random first."""

    dimensions: tuple[Dimension, ...]
    startup_trials: int

    @classmethod
    def of(cls, recipe: Recipe) -> SearchSpace:
        """The space that a recipe asks for."""
        given = TuneSettings(**read_arguments(TuneSettings, recipe.tune, "tune"))
        space = default_space(recipe) if given.space is None else given.space
        if not space:
            raise SettingError("tune.space", "is empty: say what to search")
        dimensions = [Dimension.parse(new_key(key), value) for key, value in space.items()]
        found = cls(tuple(dimensions), given.startup_trials)
        for dimension in found.dimensions:
            found.apply(recipe, {dimension.key: dimension.examples[0]})  # unknown tasks and sections are refused
        return found

    def apply(self, recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
        """The recipe with these values."""
        known = [d.key for d in self.dimensions]
        changed = copy.deepcopy(recipe.to_dict())
        for key, value in values.items():
            if key not in known:
                raise ValueError(f"{key!r} is not in the search space; {nearest(key, known)}")
            set_entry(changed, key, value)
        return from_dict(Recipe, changed)


def default_space(recipe: Recipe) -> dict[str, Any]:
    """Weights of the tasks within a factor of 10, experts, loss weighting, width, dropout and learning rate.

    Example:
        >>> recipe = Recipe(tasks=[{"name": "next", "head": "retrieval"}, {"name": "like", "head": "binary"}])
        >>> default_space(recipe)["tasks.like.weight"]
        {'low': 0.1, 'high': 10.0, 'log': True}
    """
    space: dict[str, Any] = {
        "training.learning_rate": {"low": 0.0005, "high": 0.01, "log": True},
        "model.hidden_size": [32, 64, 128],
        "model.dropout": {"low": 0.0, "high": 0.5},
    }
    if len(recipe.tasks) > 1:
        space |= {"model.experts": ["shared_bottom", "mmoe", "ple"], "model.weighting": ["fixed", "uncertainty"]}
        for task in sorted(recipe.tasks, key=lambda t: t["name"]):
            weight = float(task.get("weight", 1.0))
            if weight > 0:
                space[f"tasks.{task['name']}.weight"] = {"low": weight / 10, "high": weight * 10, "log": True}
    return space
