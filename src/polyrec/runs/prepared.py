"""Prepared data of recipes: logs that were read, counted and cut once, in a cache that later commands map."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from polyrec import data
from polyrec.core.cache import cache_root
from polyrec.core.files import write_atomically
from polyrec.core.lock import Locked, locked
from polyrec.core.schema import Columns, from_dict
from polyrec.data.mapped_tables import num_rows
from polyrec.data.stored_split import LOG_FOLDER, SPLIT_NAME, not_stored
from polyrec.data.tables import read_json
from polyrec.runs.facts import data_of, fingerprint, table_digest
from polyrec.runs.recipe import Recipe

LARGE = 5_000_000  # rows of a log from which on it is not held in memory
_SECTIONS = ("columns", "tasks", "split", "processor", "imports")
_DONE, _PROCESSOR, _WAIT = "prepared.json", "processor", 1.0


class PreparedData:
    """The folder of a recipe's prepared data.

    Args:
        recipe: whose tables, columns, tasks and split decide what is prepared.
        seed: of what is drawn for the split.
        root: of the cache.
    """

    def __init__(self, recipe: Recipe, seed: int, root: Path) -> None:
        self.about: dict[str, Any] = {name: getattr(recipe, name) for name in _SECTIONS}
        self.about |= {"data": data_of(recipe.to_dict()), "read": _also_read(recipe), "code": _code()}
        if recipe.split.get("max_delay"):  # all else that is drawn, training draws
            self.about["seed"] = seed
        self.folder = root / "prepared" / fingerprint(json.loads(json.dumps(self.about, default=str)))

    @classmethod
    def of(cls, recipe: Recipe, seed: int, always: bool = False) -> PreparedData | None:
        """Where a recipe has its data prepared; None: in memory, as those of small logs, or of what no file holds.

        Args:
            always: also those of small logs.
        """
        small = recipe.cache_dir is None and not always and num_rows(recipe.interactions) < LARGE
        if small or in_memory(recipe):
            return None
        return cls(recipe, seed, cache_root() if recipe.cache_dir is None else Path(recipe.cache_dir))

    @property
    def is_complete(self) -> bool:
        """Whether the data were prepared."""
        return (self.folder / _DONE).exists() and (self.folder / LOG_FOLDER / SPLIT_NAME).exists()

    @property
    def processor(self) -> Path:
        """The folder of the processor."""
        return self.folder / _PROCESSOR

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until no other process prepares the same data, and let none begin."""
        told = False
        with ExitStack() as held:
            while True:
                try:
                    held.enter_context(locked(self.folder.resolve()))
                    break
                except Locked as error:
                    if not told:
                        print(f"waiting: {error}", file=sys.stderr)
                    told = True
                    time.sleep(_WAIT)
            yield

    def is_of(self, processor: str) -> bool:
        """Whether the log was encoded as a processor does, by its fingerprint."""
        return bool(read_json(self.folder / _DONE).get("fingerprint") == processor)

    def complete(self, processor: str) -> None:
        """Say that all is there, and the fingerprint of its processor; what is not read again goes."""
        for table in self.folder.glob("*.arrow"):
            table.unlink()
        about = self.about | {"fingerprint": processor}
        write_atomically(self.folder / _DONE, json.dumps(about, indent=2, default=str) + "\n")

    def clear(self) -> None:
        """Remove what an earlier try may have left."""
        shutil.rmtree(self.folder, ignore_errors=True)


def in_memory(recipe: Recipe) -> str:
    """What the log of a recipe has, so that it is never kept in files, or ""."""
    return not_stored(from_dict(Columns, recipe.columns), recipe.prior_history is not None)


def _also_read(recipe: Recipe) -> dict[str, Any]:
    """Digests of what decides about prepared data beside the tables: own parts, and a text model in a folder."""
    found: dict[str, Any] = {}
    for name in recipe.imports:
        spec = None if name.endswith(".py") else importlib.util.find_spec(name)
        file = name if spec is None else spec.origin
        found[name] = table_digest(file) if file and os.path.exists(file) else None
    text = recipe.processor.get("text")
    model = text.get("model") if isinstance(text, Mapping) else None
    if isinstance(model, str) and os.path.isdir(model):
        found["text"] = table_digest(model)
    return found


@cache
def _code() -> str:
    """A digest of the code that prepares: what another version has prepared is not found."""
    files = sorted(Path(data.__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
