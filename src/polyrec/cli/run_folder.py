"""A folder of results that belongs to one recipe and its data, so that a later run may trust what it finds there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from polyrec import __version__
from polyrec.cli.recipe import Recipe

ABOUT_NAME = "recipe.json"
_DESCRIPTION = ("slices", "card")  # what of a recipe says how results are told, not what they are


def about_recipe(recipe: Recipe, ignore: Sequence[str]) -> dict[str, Any]:
    """All that decides what a run of this recipe gives: settings, contents of the tables, version.

    Args:
        ignore: keys of the recipe that change no result.
    """
    about = {
        "recipe": {name: value for name, value in recipe.to_dict().items() if name not in (*ignore, *_DESCRIPTION)},
        "data": {name: _digest(getattr(recipe, name)) for name in ("interactions", "items", "users", "past")},
        "polyrec": __version__,
    }
    return json.loads(json.dumps(about))  # as it comes back from a file


def claim_folder(folder: Path, about: dict[str, Any]) -> None:
    """Make the folder this recipe's, or refuse if it is another one's."""
    path = folder / ABOUT_NAME
    if path.exists():
        held = json.loads(path.read_text(encoding="utf-8"))
        if held != about:
            raise ValueError(
                f"{folder} holds results of another recipe or other data, they differ in "
                f"{', '.join(differences(held, about))}: choose another --output, or delete that folder"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def differences(first: Any, second: Any, name: str = "") -> list[str]:
    """Dotted names of the entries in which two nested mappings differ.

    Example:
        >>> differences({"model": {"dropout": 0.1, "hidden_size": 8}}, {"model": {"dropout": 0.2, "hidden_size": 8}})
        ['model.dropout']
    """
    if not (isinstance(first, dict) and isinstance(second, dict)):
        return [] if first == second else [name]
    found = []
    for key in sorted({*first, *second}):
        found += differences(first.get(key), second.get(key), f"{name}.{key}".lstrip("."))
    return found


def fingerprint(about: dict[str, Any]) -> str:
    """A short name of plain values that changes when any of them does."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


def _digest(path: str | None) -> str | None:
    if path is None:
        return None
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
