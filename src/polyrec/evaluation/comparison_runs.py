"""Finished runs of a comparison on disk: predictions as .npz, the rest as JSON, a folder each, all or nothing."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self
from zipfile import BadZipFile

import numpy as np

from polyrec.core.files import sync_folder, sync_tree
from polyrec.core.manifest import check_manifest, write_manifest
from polyrec.evaluation.evaluator import Predictions
from polyrec.evaluation.scored import Ranking

RUN_NAME, PREDICTIONS_NAME = "run.json", "predictions.npz"
_RANKING_FIELDS = ("rows", "greater", "ties", "top_ids", "excluded")


@dataclass(frozen=True)
class Cost:
    """What a training took, validation after each epoch included.

    Args:
        cpu_seconds: of all threads of the process.
        wall_seconds: as the clock on the wall says.
        epochs: trained.
        parameters: of the model.
    """

    cpu_seconds: float
    wall_seconds: float
    epochs: float
    parameters: float

    @classmethod
    def mean(cls, costs: Sequence[Cost]) -> Self:
        """The average."""
        return cls(*np.mean([list(asdict(cost).values()) for cost in costs], axis=0).tolist())

    @classmethod
    def total(cls, costs: Sequence[Cost]) -> Self:
        """The sum."""
        return cls(*np.sum([list(asdict(cost).values()) for cost in costs], axis=0).tolist())


@dataclass
class ComparisonRun:
    """One trained and tested model.

    Args:
        variant: its name, see `comparison.plan`.
        tasks: names of its tasks.
        seed: of its training.
        fingerprint: of the recipe, the data and the above; tells whether a folder holds what is wanted.
        cost: of its training.
        metrics: of the test set, as `evaluator.evaluate` names them.
        predictions: for the test set.
    """

    variant: str
    tasks: tuple[str, ...]
    seed: int
    fingerprint: str
    cost: Cost
    metrics: dict[str, float]
    predictions: Predictions

    @property
    def name(self) -> str:
        """Name of its folder."""
        return run_name(self.variant, self.seed)

    def save(self, folder: Path) -> None:
        """Write `folder`; it appears under its name when it is complete, so an interruption leaves no half of it."""
        unfinished = folder.with_name(f".{folder.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        arrays = {f"values.{task}": values for task, values in self.predictions.values.items()}
        arrays |= {f"details.{task}": values for task, values in self.predictions.details.items()}
        for task, found in self.predictions.rankings.items():
            arrays |= {f"ranking.{task}.{name}": getattr(found, name) for name in _RANKING_FIELDS}
        np.savez_compressed(unfinished / PREDICTIONS_NAME, allow_pickle=False, **arrays)
        about = {
            "variant": self.variant,
            "tasks": list(self.tasks),
            "seed": self.seed,
            "fingerprint": self.fingerprint,
            "cost": asdict(self.cost),
            "metrics": {name: value if np.isfinite(value) else None for name, value in self.metrics.items()},
        }
        (unfinished / RUN_NAME).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        write_manifest(unfinished, files=[RUN_NAME, PREDICTIONS_NAME])
        sync_tree(unfinished)
        os.replace(unfinished, folder)
        sync_folder(folder.parent)

    @classmethod
    def load_whole(cls, folder: Path) -> Self | None:
        """The run of a folder; None if there is none, or a damaged one, which is deleted to be made anew."""
        if not folder.exists():
            return None
        try:
            return cls.load(folder)
        except (OSError, ValueError, KeyError, TypeError, BadZipFile) as error:
            warnings.warn(f"{folder} is made anew: {error}", stacklevel=2)
            shutil.rmtree(folder)
            return None

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what [`save`] wrote."""
        check_manifest(folder)
        about = json.loads((folder / RUN_NAME).read_text(encoding="utf-8"))
        predictions = Predictions()
        fields: dict[str, dict[str, np.ndarray]] = {}
        with np.load(folder / PREDICTIONS_NAME, allow_pickle=False) as arrays:
            for key in arrays.files:
                kind, task, *part = key.split(".")  # task names hold no dots
                if kind == "values":
                    predictions.values[task] = arrays[key]
                elif kind == "details":
                    predictions.details[task] = arrays[key]
                else:
                    fields.setdefault(task, {})[part[0]] = arrays[key]
        predictions.rankings = {task: Ranking(**found) for task, found in fields.items()}
        about["metrics"] = {name: float("nan") if v is None else v for name, v in about["metrics"].items()}
        about |= {"tasks": tuple(about["tasks"]), "cost": Cost(**about["cost"])}
        return cls(**about, predictions=predictions)


def run_name(variant: str, seed: int) -> str:
    """Name of the folder of a run."""
    return f"{variant}-seed{seed}"
