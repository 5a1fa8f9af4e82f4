"""training.json of a run folder: what the training was, beside metrics.json, which says what it led to."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from polyrec.core.files import write_atomically
from polyrec.core.secrets import without_secrets
from polyrec.core.version import __version__
from polyrec.evaluation.page import plain

TRAINING_NAME = "training.json"
_VERSIONS = ("torch", "transformers", "accelerate", "numpy")


def training_facts(
    cost: dict[str, float], data: dict[str, Any], history: list[dict[str, Any]], **more: Any
) -> dict[str, Any]:
    """What training.json holds.

    Args:
        cost: of the training, see `polyrec.evaluation.comparison_runs.Cost`.
        data: see `polyrec.tracking.facts.data_facts`.
        history: what the trainer has logged (`trainer.state.log_history`).
        more: further entries, e.g. seed and device.
    """
    found = {name: version(name) for name in _VERSIONS}
    return {
        "cost": cost,
        "data": data,
        "versions": {"polyrec": __version__, "python": platform.python_version(), **found},
        **more,
        "history": history,
    }


def write_training(folder: str | Path, facts: dict[str, Any]) -> None:
    """Write training.json."""
    path = Path(folder) / TRAINING_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(without_secrets(plain(facts)), indent=1) + "\n")
