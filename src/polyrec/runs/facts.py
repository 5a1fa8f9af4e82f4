"""What a run was made from: settings, contents of its tables, version; and in what two runs differ."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from polyrec.core.files import write_atomically
from polyrec.core.manifest import READ_FILES, fits, read_manifest
from polyrec.core.older_files import with_new_keys
from polyrec.core.schema import VECTOR_FILE
from polyrec.core.version import __version__

ABOUT_NAME = "recipe.json"
_TABLES = ("interactions", "items", "users", "prior_history")
# What of a recipe says how results are presented, and where its parts are found, not what they are.
_DESCRIPTION = ("slices", "card", "import", "cache_dir")
# Arguments of a training by which its weights do not change. Secrets are among them, so none gets into a manifest.
_NEUTRAL = (
    "output_dir", "logging_dir", "logging_strategy", "logging_first_step", "logging_steps", "logging_nan_inf_filter",
    "log_level", "log_level_replica", "log_on_each_node", "report_to", "run_name", "project", "trackio_space_id",
    "disable_tqdm", "save_total_limit", "push_to_hub", "hub_model_id", "hub_strategy", "hub_token",
    "hub_private_repo", "hub_always_push", "hub_revision", "dataloader_num_workers", "dataloader_pin_memory",
    "dataloader_prefetch_factor", "per_device_eval_batch_size", "skip_memory_metrics",
    "restore_callback_states_from_checkpoint", "fingerprints",
)  # fmt: skip
# A training may be resumed with more epochs, as in transformers; its learning rates are not those of one training then.
_LENGTH = ("recipe.training.num_train_epochs", "recipe.training.max_steps")


def about_recipe(recipe: Mapping[str, Any], ignore: Sequence[str]) -> dict[str, Any]:
    """All that decides what a run of a recipe gives: settings, contents of the tables, version.

    Args:
        recipe: its values (`Recipe.to_dict`).
        ignore: keys of the recipe that change no result.
    """
    about = {
        "recipe": {name: value for name, value in recipe.items() if name not in (*ignore, *_DESCRIPTION)},
        "data": {name: table_digest(recipe.get(name)) for name in _TABLES},
        "polyrec": __version__,
    }
    return json.loads(json.dumps(about))  # as it comes back from a file


def about_run(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of a run: settings that decide its weights, and contents of its tables, wherever these lie.

    Args:
        recipe: its values (`Recipe.to_dict`).

    Returns:
        {"recipe": settings, "data": {table: SHA-256}, "polyrec": version}.
    """
    left_out = (*_DESCRIPTION, *_TABLES, "output", "tune", "updates")
    settings = {name: value for name, value in recipe.items() if name not in left_out}
    settings["training"] = {name: value for name, value in recipe["training"].items() if name not in _NEUTRAL}
    about = {"recipe": settings, "data": data_of(recipe), "polyrec": __version__}
    teacher = recipe["training"].get("teacher")
    if isinstance(teacher, str) and Path(teacher).is_dir():
        about["teacher"] = revision_of(Path(teacher))
    return json.loads(json.dumps(about, default=str))


def data_of(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """SHA-256 of every table of a recipe and of its updates, and of files of vectors that its columns name."""
    found: dict[str, Any] = {name: table_digest(recipe.get(name)) for name in _TABLES}
    vectors = sorted(_vector_files(recipe.get("columns")))
    if vectors:
        found["vectors"] = [table_digest(path) for path in vectors]
    updates = [{name: table_digest(update.get(name)) for name in _TABLES[:3]} for update in recipe.get("updates", [])]
    return found | ({"updates": updates} if updates else {})


def check_data(folder: str | Path, recipe: Mapping[str, Any]) -> None:
    """Refuse to go on with a run whose tables have changed since it was made.

    Raises:
        ValueError: names the tables. A run without a manifest cannot be checked, and passes.
    """
    manifest = read_manifest(folder)
    held = None if manifest is None else manifest.facts.get("data")
    if held is None:
        return
    changed = differences(with_new_keys(held, say=_silent), data_of(recipe))
    if changed:
        paths = [f"{name} ({recipe[name]})" if recipe.get(name) else name for name in changed]
        raise ValueError(
            f"{', '.join(paths)} changed since {folder} was trained, so split and figures would be others than "
            f"the run's. Put the earlier content back; new rows go into a table of their own: `polyrec update {folder} "
            "--new FILE --output OTHER` says how well the run predicts them (update.json, before) and learns them"
        )


def training_differences(held: Mapping[str, Any], about: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """In what the training of a checkpoint differs from the one that is to be resumed.

    Returns:
        dotted names of what forbids it, and of what does not: how long it trains, and the version.
    """
    found = differences(_current(held), about)
    allowed = [name for name in found if name in (*_LENGTH, "polyrec")]
    return [name for name in found if name not in allowed], allowed


def claim_folder(folder: Path, about: dict[str, Any]) -> None:
    """Make the folder this recipe's, or refuse if it is another one's."""
    path = folder / ABOUT_NAME
    if path.exists():
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}): delete that folder, or choose another --output") from error
        found = differences(_placeless(_current(held)), _placeless(about))
        if found:
            raise ValueError(
                f"{folder} holds results of another recipe or other data, they differ in {', '.join(found)}: choose "
                "another --output, or delete that folder"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(about, indent=2) + "\n")


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


def fingerprint(about: Mapping[str, Any]) -> str:
    """A short name of plain values that changes when any of them does."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


def revision_of(folder: Path) -> str:
    """A short name of a saved model and processor, or of stored outputs, that changes when they do."""
    manifest = read_manifest(folder) if (folder / "config.json").exists() else None
    if manifest is not None:
        read = {name: own["sha256"] for name, own in manifest.files.items() if fits(name, READ_FILES)}
        return fingerprint(read)
    files = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".json"))
    return fingerprint({p.name: [p.stat().st_size, p.stat().st_mtime_ns] for p in files})


def table_digest(path: str | None) -> str | None:
    """SHA-256 of a table's file, or of a folder's files and their names; None for no table. Read once per content."""
    if path is None:
        return None
    if not os.path.isdir(path):
        return _digest_of(path)
    files = sorted(p for p in Path(path).rglob("*") if p.is_file())
    return fingerprint({p.relative_to(path).as_posix(): _digest_of(p) for p in files})


def _digest_of(path: str | Path) -> str:
    found = os.stat(path)
    return _digest(str(path), found.st_ino, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=1024)
def _digest(path: str, *of_this_content: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _current(held: Mapping[str, Any]) -> dict[str, Any]:
    """Facts of a run, which an earlier version may have written, under the names of today."""
    own = {
        name: with_new_keys(held[name], say=_silent) for name in ("recipe", "data") if isinstance(held.get(name), dict)
    }
    return {**held, **own}


def _silent(message: str) -> None:
    """Nobody can change the facts of a run."""


def _placeless(about: dict[str, Any]) -> dict[str, Any]:
    """Without the paths of tables: what counts is what they hold."""
    settings = {name: value for name, value in about.get("recipe", {}).items() if name not in _TABLES}
    return {**about, "recipe": settings}


def _vector_files(columns: Any) -> Iterator[str]:
    if isinstance(columns, Mapping):
        for value in columns.values():
            yield from _vector_files(value)
    elif isinstance(columns, str) and columns.startswith(VECTOR_FILE):
        path = columns.removeprefix(VECTOR_FILE)
        if os.path.exists(path):
            yield path
