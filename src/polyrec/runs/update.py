"""`polyrec update`: a run and newer events in, the fresher run and what it forgot out."""

from __future__ import annotations

import json
import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from polyrec.core.files import write_atomically
from polyrec.core.lock import locked
from polyrec.core.swap import finish
from polyrec.data.event_log import EventLog
from polyrec.data.mixing import concatenate_tables
from polyrec.data.row_lists import item_events, with_lists
from polyrec.data.tables import ids, lookup, read_table
from polyrec.models.polyrec.fingerprint import fingerprint, item_digest
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor
from polyrec.runs.facts import about_run, check_data, table_digest
from polyrec.runs.prepare import read_run, tables_of
from polyrec.runs.recipe import Recipe
from polyrec.runs.transaction import drafted, new_run, place_of
from polyrec.tracking.run_files import RECIPE_NAME
from polyrec.tracking.training_file import TRAINING_NAME
from polyrec.training.arguments import PolyRecTrainingArguments
from polyrec.training.forgetting import falls_beyond, forgetting, format_changes, metrics_of, predict
from polyrec.training.paired_changes import paired_changes
from polyrec.training.settings import UpdateSettings
from polyrec.training.update import Parts, parts_of, train_update, update_data

REPORT_NAME = "update.json"


class UpdateRefused(ValueError):
    """A metric fell by more than is allowed."""


def update_run(
    run: str,
    new: str,
    items: str | None = None,
    users: str | None = None,
    output: str | None = None,
    settings: UpdateSettings | None = None,
    again: bool = False,
) -> dict[str, Any]:
    """Let a saved run learn newer events.

    The updated run is drafted beside its place and replaces what is there as a whole. It holds no checkpoints and no
    metrics.json, which are those of the model before.

    Args:
        run: folder written by `polyrec train` or by an update; its recipe says where the earlier data lie.
        new: events that came later.
        items, users: attributes of new items and users.
        output: folder for the updated run; None: `run` itself, which is replaced if no metric fell too much, else
            `<run>-refused`.
        again: train again on events that the run was trained on.

    Returns:
        the report, which is also written as update.json.

    Raises:
        ValueError: the run was trained on these events already, or its earlier tables have changed.
        UpdateRefused: a metric fell by more than `settings.max_regression` and the run would have been overwritten.
    """
    target = place_of(output or run)
    with locked(target):  # from the first look at the run: of two updates at a time one would be lost
        finish(target)
        return _update(run, new, items, users, output, UpdateSettings() if settings is None else settings, again)


def _update(
    run: str,
    new: str,
    items: str | None,
    users: str | None,
    output: str | None,
    settings: UpdateSettings,
    again: bool,
) -> dict[str, Any]:
    recipe = read_run(run)
    check_data(run, recipe.to_dict())
    known = {table_digest(path): path for path in tables_of(recipe, "interactions")}
    recipe.updates = [
        *recipe.updates,
        {"interactions": new, "items": items, "users": users, "holdout": settings.holdout},
    ]
    recipe.check()
    if not again and (found := known.get(table_digest(new))) is not None:
        raise ValueError(
            f"{run} was already trained on the events of {new} (they are those of {found}), so there is nothing to do; "
            "--again learns them once more, and they count twice then"
        )
    begin = time.process_time()
    processor = PolyRecProcessor.from_pretrained(run)
    model = PolyRecForRecommendation.from_pretrained(run)
    added = _add_items(processor, read_table(new, "the new events"), items)
    model.extend(processor)
    log, statistics, parts = continue_run(recipe, processor)
    data = update_data(processor, log, statistics, parts, settings, recipe.split)
    arguments = PolyRecTrainingArguments(output_dir=run, **recipe.training)
    model.to(arguments.device).eval()
    prepared = time.process_time()
    predicted = predict(model, data.held, arguments)
    before = metrics_of(model, data.held, predicted, arguments)
    cost = train_update(model, processor, data, settings, recipe.training)
    judged = time.process_time()
    predicted_after = predict(model, data.held, arguments)
    after = metrics_of(model, data.held, predicted_after, arguments)
    cost |= {"preparation_cpu_seconds": prepared - begin, "evaluation_cpu_seconds": time.process_time() - judged}
    paired = None
    if (level := settings.confidence) is not None:
        both = predicted, predicted_after
        paired = paired_changes(processor.tasks, data.held, *both, arguments.rank_k, level, settings.seed)
    lost = falls_beyond(before, after, settings.max_regression, paired)
    report = {
        "settings": asdict(settings),
        "rows": data.rows,
        "new_items": added,
        "before": before,
        "after": after,
        "paired": paired,
        "forgetting": forgetting(model, before, after),
        "falls": lost,
        "cost": cost,
    }
    refused = bool(lost) and (output is None or Path(output).resolve() == Path(run).resolve())
    place = Path(f"{run.rstrip('/')}-refused" if refused else output or run)
    recipe.output = str(place)
    facts = about_run(recipe.to_dict()) | {"items": item_digest(processor), "processor": fingerprint(processor)}
    with new_run(place, facts) if refused else drafted(place.resolve(), facts) as draft:
        _save(draft, Path(run), model, processor, recipe, report)
    _show(report, place)
    if refused:
        worst = lost[0]
        raise UpdateRefused(
            f"{run} is left as it was: {worst['metric']} of {worst['task']!r} on {worst['slice']!r} fell by "
            f"{worst['fall']:.1%} ({worst['before']:.4f} -> {worst['after']:.4f}), more than --max-regression "
            f"{settings.max_regression:g} allows, as did {len(lost) - 1} more; the updated model is in {place}. Raise "
            "--replay, lower --learning-rate or --epochs, or allow it with --max-regression"
        )
    return report


def continue_run(recipe: Recipe, processor: PolyRecProcessor) -> tuple[EventLog, np.ndarray | None, Parts]:
    """The events of a run and of all its updates, their statistics, and what becomes of them.

    Args:
        processor: of the run, with all items; it gets the users' attributes, which are not saved with it.
    """
    for number, users in enumerate(tables_of(recipe, "users")):
        processor.extend(users=read_table(users, "users" if number == 0 else f"users of update {number}"))
    paths = tables_of(recipe, "interactions")
    names = ["interactions", *(f"update {n}" for n in range(1, len(paths)))]
    tables = {name: read_table(path, name) for name, path in zip(names, paths, strict=True)}
    log, statistics = processor.resume(concatenate_tables(tables, processor.columns), recipe.prior_history)
    holdouts = [update["holdout"] for update in recipe.updates]
    return log, statistics, parts_of(log, [t.num_rows for t in tables.values()], holdouts, recipe.split)


def _add_items(processor: PolyRecProcessor, events: pa.Table, items: str | None) -> int:
    """Put new items into the catalog; how many they are. A catalog of ids alone takes them from the events."""
    key, before = processor.columns.item, processor.num_items
    events = item_events(with_lists(events, processor.columns, "the new events"), processor.columns)
    if items is not None:
        processor.extend(items)
    taken = ids(events, key, "the new events", "item id")
    unknown = taken.filter(lookup(taken, processor.items.ids).is_null())
    if len(unknown) and processor.items.table.column_names == [key]:
        processor.extend(pa.table({key: unknown.unique().sort()}))
    elif len(unknown):
        print(
            f"{len(unknown)} of {len(events)} new events are of {len(unknown.unique())} items that are not in the "
            f"catalog, e.g. {unknown[0]}: they count as the unknown item; pass their attributes with --items",
            file=sys.stderr,
        )
    return processor.num_items - before


def _save(
    draft: Path,
    run: Path,
    model: PolyRecForRecommendation,
    processor: PolyRecProcessor,
    recipe: Recipe,
    report: dict[str, Any],
) -> None:
    """Fill a draft."""
    model.save_pretrained(draft)
    processor.save_pretrained(draft)
    write_atomically(draft / RECIPE_NAME, yaml.safe_dump(recipe.to_dict(), sort_keys=False))
    write_atomically(draft / REPORT_NAME, json.dumps(report, indent=2) + "\n")
    if (run / TRAINING_NAME).exists():
        shutil.copy(run / TRAINING_NAME, draft / TRAINING_NAME)


def _show(report: dict[str, Any], place: Path) -> None:
    print(format_changes(report["before"], report["after"], report["paired"]))
    print("events: " + ", ".join(f"{name} {rows:,}" for name, rows in report["rows"].items()), end="")
    print(f"; new items {report['new_items']}")
    for task, found in report["forgetting"].items():
        word = "forgot" if found["fall"] > 0 else "gained"
        print(f"{task}: {word} {abs(found['fall']):.2%} of {found['metric']} on old events ({found['slice']})")
    cost = report["cost"]
    print(
        f"{cost['cpu_seconds']:.1f} cpu-seconds of training, {cost['preparation_cpu_seconds']:.1f} of preparation, "
        f"{cost['evaluation_cpu_seconds']:.1f} of one evaluation; written to {place}"
    )
