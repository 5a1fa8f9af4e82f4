"""The data of a recipe, which every command but `recommend` begins with."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa

from polyrec.core.manifest import check_manifest, read_manifest
from polyrec.core.older_files import saved_files
from polyrec.core.schema import Columns, from_dict
from polyrec.core.swap import recover
from polyrec.data.ids import with_one_type
from polyrec.data.mixing import concatenate_tables
from polyrec.data.report import DataWarning
from polyrec.data.splitter import Splits
from polyrec.data.storage import Engine
from polyrec.data.tables import read_table
from polyrec.models.polyrec.fingerprint import fingerprint
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor
from polyrec.runs.facts import check_data
from polyrec.runs.prepared import PreparedData, in_memory
from polyrec.runs.recipe import Recipe, read_recipe_file
from polyrec.runs.recipe_checks import check_sections
from polyrec.tracking.facts import fingerprints
from polyrec.tracking.run_files import RECIPE_NAME, missing
from polyrec.tracking.training_file import TRAINING_NAME

Phase = Callable[[str], AbstractContextManager[Any]]


def read_run(run: str | Path, tables: bool = True) -> Recipe:
    """The recipe of a run folder.

    Args:
        tables: its tables must be where it says.
    """
    path = recover(run) / RECIPE_NAME
    check_manifest(run, [RECIPE_NAME])
    if not path.exists():
        raise missing(path.parent, RECIPE_NAME)
    with saved_files():
        recipe = from_dict(Recipe, read_recipe_file(path))
        if tables:
            recipe.check()
    return recipe


def tables_of(recipe: Recipe, name: str) -> list[str]:
    """Paths of a kind of table ("interactions", "items", "users"): that of the recipe and those of its updates."""
    given = [getattr(recipe, name), *(update.get(name) for update in recipe.updates)]
    return [path for path in given if path]


def prepare(
    recipe: Recipe, verbose: bool = False, seed: int | None = None, phase: Phase = nullcontext
) -> tuple[PolyRecProcessor, Splits]:
    """The processor and the split of a recipe; tables of its updates are included.

    Args:
        verbose: print the `DataReport`, which commands that begin with a recipe do once.
        seed: of what is drawn for the split (`max_delay`); default: that of the recipe's training.
        phase: called with "fit" and "split"; the work is done inside what it returns.
    """
    check_sections(recipe)
    prepared = PreparedData.of(recipe, _seed(recipe, seed))
    if prepared is None:
        processor, parts = _read(recipe, seed, phase, None)
    else:
        processor, parts = _of_files(recipe, seed, phase, prepared)
    if verbose and processor.data_report is not None:
        processor.data_report.show()
    return processor, parts


def prepare_recipe(recipe: Recipe, engine: Engine | None = None) -> None:
    """`polyrec prepare`: prepare the data of a recipe in files, whatever the size of its log, and say where.

    Args:
        engine: of `PolyRecProcessor.split`.
    """
    recipe.check()
    check_sections(recipe)
    prepared = PreparedData.of(recipe, _seed(recipe), always=True)
    if prepared is None:
        raise ValueError(
            f"the data of this recipe are not kept in files, as its log has {in_memory(recipe)}: train at once"
        )
    found = prepared.is_complete
    processor, parts = _of_files(recipe, None, nullcontext, prepared, engine)
    if processor.data_report is not None:
        processor.data_report.show()
    rows = ", ".join(f"{len(own):,} {name} windows" for name, own in parts._asdict().items())
    print(f"{'found' if found else 'prepared'} in {prepared.folder}: {rows}")


def _of_files(
    recipe: Recipe, seed: int | None, phase: Phase, prepared: PreparedData, engine: Engine | None = None
) -> tuple[PolyRecProcessor, Splits]:
    """[`prepare`] by files, which are made if they are not there."""
    if not prepared.is_complete:
        with prepared.alone():
            if not prepared.is_complete:  # nobody made them meanwhile
                prepared.clear()
                processor, parts = _read(recipe, seed, phase, prepared.folder, engine)
                stored, processor.stored_events = processor.stored_events, None  # the log has them
                processor.save_pretrained(prepared.processor, include_users=True)
                processor.stored_events = stored
                prepared.complete(fingerprint(processor))
                return processor, parts
    with phase("split"):
        processor = PolyRecProcessor.from_pretrained(prepared.processor)
        return processor, processor.load_split(prepared.folder)


def _read(
    recipe: Recipe, seed: int | None, phase: Phase, cache_dir: Path | None, engine: Engine | None = None
) -> tuple[PolyRecProcessor, Splits]:
    interactions, items, users = (joined_table(recipe, name) for name in ("interactions", "items", "users"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # they stand in the report
        known: dict[str, Any] = {"tasks": recipe.tasks, "columns": recipe.columns, "cache_dir": cache_dir}
        with phase("fit"):
            processor = PolyRecProcessor.fit(interactions, items, users, verbose=False, **known, **recipe.processor)
        chosen = {**recipe.split, "seed": _seed(recipe, seed), "cache_dir": cache_dir, "engine": engine}
        with phase("split"):
            return processor, processor.split(interactions, prior_history=recipe.prior_history, **chosen)


def split_of_run(run: str | Path, recipe: Recipe) -> tuple[PolyRecProcessor, Splits]:
    """The saved processor of a run, and the split that the run was trained on.

    Raises:
        ValueError: the tables have changed since, so it would be another split; says how to evaluate new rows.
    """
    check_data(run, recipe.to_dict())
    processor = PolyRecProcessor.from_pretrained(run)
    for users in tables_of(recipe, "users"):
        processor.extend(users=read_table(users, "users"))  # they are not saved with it
    prepared = PreparedData.of(recipe, _seed(recipe))
    if prepared is not None and prepared.is_complete and prepared.is_of(fingerprint(processor)):
        return processor, processor.load_split(prepared.folder)
    with warnings.catch_warnings(), ExitStack() as stack:
        warnings.simplefilter("ignore", DataWarning)  # they were shown when the run was trained
        own: dict[str, Any] = {**recipe.split, "seed": _seed(recipe)}
        if prepared is not None:  # files that are mapped stay as long as somebody has them
            prepared.folder.parent.mkdir(parents=True, exist_ok=True)
            own["cache_dir"] = stack.enter_context(TemporaryDirectory(dir=prepared.folder.parent))
        table = joined_table(recipe, "interactions")
        parts = processor.split(table, prior_history=recipe.prior_history, **own)
    if read_manifest(run) is None:  # of an earlier version, whose training.json tells of the events alone
        _check_events(Path(run), fingerprints(processor, parts.train)["data"])
    return processor, parts


def _check_events(run: Path, found: str) -> None:
    path = run / TRAINING_NAME
    facts = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    held = facts.get("data", {}).get("fingerprints", {}).get("data")
    if held is not None and held != found:
        raise ValueError(f"the interactions changed since {run} was trained: put the earlier content back")


def _seed(recipe: Recipe, given: int | None = None) -> int:
    """The one that is given, or else that of the split, of the training's data or of the training."""
    named = (given, recipe.split.get("seed"), recipe.training.get("data_seed"), recipe.training.get("seed"))
    return int(next((seed for seed in named if seed is not None), 0))


def joined_table(recipe: Recipe, name: str) -> Any:
    """A table of a recipe with what its updates added; None = it has none."""
    paths = tables_of(recipe, name)
    if len(paths) < 2:
        return paths[0] if paths else None
    tables = {path: read_table(path, name) for path in paths}
    if name == "interactions":
        return concatenate_tables(tables, from_dict(Columns, recipe.columns))
    columns = from_dict(Columns, recipe.columns)
    tables = with_one_type(tables, {columns.item if name == "items" else columns.user: f"{name[:-1]} id"})
    return pa.concat_tables(tables.values(), promote_options="permissive").combine_chunks()
