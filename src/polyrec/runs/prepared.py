"""Prepared data of recipes: logs that were read, counted and cut once, in a cache that later commands map."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from polyrec.core.cache import cache_root
from polyrec.core.files import write_atomically
from polyrec.core.lock import Locked, locked
from polyrec.core.version import __version__
from polyrec.data.mapped_tables import num_rows
from polyrec.runs.facts import data_of, fingerprint
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
        about = {name: getattr(recipe, name) for name in _SECTIONS} | {"seed": seed, "polyrec": __version__}
        self.about = about | {"data": data_of(recipe.to_dict())}
        plain = json.loads(json.dumps(self.about, default=str))
        self.folder = root / "prepared" / fingerprint(plain)

    @classmethod
    def of(cls, recipe: Recipe, seed: int, always: bool = False) -> PreparedData | None:
        """Where a recipe has its data prepared; None: in memory, as those of small logs.

        Args:
            always: also those of small logs.
        """
        if recipe.cache_dir is None and not always and num_rows(recipe.interactions) < LARGE:
            return None
        return cls(recipe, seed, cache_root() if recipe.cache_dir is None else Path(recipe.cache_dir))

    @property
    def is_complete(self) -> bool:
        """Whether the data were prepared."""
        return (self.folder / _DONE).exists()

    @property
    def processor(self) -> Path:
        """The folder of the processor."""
        return self.folder / _PROCESSOR

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until no other process prepares the same data, and let none begin."""
        with ExitStack() as held:
            while True:
                try:
                    held.enter_context(locked(self.folder.resolve()))
                    break
                except Locked:
                    time.sleep(_WAIT)
            yield

    def complete(self) -> None:
        """Say that all is there; what is not read again goes."""
        for table in self.folder.glob("*.arrow"):
            table.unlink()
        write_atomically(self.folder / _DONE, json.dumps(self.about, indent=2, default=str) + "\n")

    def clear(self) -> None:
        """Remove what an earlier try may have left."""
        shutil.rmtree(self.folder, ignore_errors=True)
