"""Whether a teacher reads what a student's data set holds: digests of inputs, of rows and of weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from polyrec.core.label import Label
from polyrec.data.event_log import EventLog
from polyrec.data.training_rows import event_hashes
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor

_SAME_UNITS = ({"regression", "watch_time"},)  # heads whose outputs are in the same units

# Names of parts as version 0.1.0 wrote them into the fingerprints that stored outputs and checkpoints hold.
_AS_STORED = {"attributes of users": "attributes of " + "people"}


def input_parts(processor: PolyRecProcessor) -> dict[str, str]:
    """A digest of everything that decides what a batch's numbers mean, {part: digest}; the catalog is not in it.

    Models can score each other's batches if these agree. The catalog may differ, because its rows can be mapped by
    item id.
    """
    statistics, text = processor.statistics, processor.text
    counted: Any = None
    if statistics is not None:
        scaler = statistics.scaler
        counted = [statistics.names, statistics.spread, None if scaler is None else scaler.to_dict()]
    queries = None
    if processor.columns.query is not None and text is not None:
        queries = {name: asdict(text)[name] for name in ("model", "revision", "max_length", "query_prompt")}
    parts = {
        "feedback": _plain(processor.event_encoders["event"]),
        "context": _plain(processor.event_encoders["candidate"]),
        "attributes of users": _plain(processor.users.encoders),
        "running statistics": counted,
        "queries": queries,
    }
    return {name: digest(values) for name, values in parts.items()}


def fingerprint(processor: PolyRecProcessor) -> str:
    """A digest of everything that decides what a batch holds."""
    parts = {_AS_STORED.get(name, name): value for name, value in input_parts(processor).items()}
    return digest([parts, item_digest(processor), processor.max_history, processor.ties])


def item_digest(processor: PolyRecProcessor) -> str:
    """A digest of the catalog's ids in their order, i.e. of what rows of the item table mean."""
    return digest(processor.items.ids.cast(pa.large_string()).to_pylist())


def task_parts(processor: PolyRecProcessor) -> dict[str, dict[str, Any]]:
    """What must agree of each task, {task: {what: value}}."""
    found = {}
    for task in processor.tasks:
        rule, summary = task.parsed_label, processor.label_summary.get(task.name, {})
        own: dict[str, Any] = {"head": task.head, "label": None if rule is None else _label_parts(rule)}
        if task.head in ("multiclass", "ordinal"):
            own["classes"] = [summary.get("minimum") if task.head == "ordinal" else 0, summary.get("maximum")]
        if "quantiles" in task.options:
            own["quantiles"] = list(task.options["quantiles"])
        found[task.name] = own
    return found


def _label_parts(rule: Label) -> dict[str, Any]:
    """A label rule in JSON's types; words only where there are any, as teachers stored before know none."""
    found = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(rule).items()}
    return found if rule.words else {key: value for key, value in found.items() if key != "words"}


def task_differences(teacher: Mapping[str, Any], student: Mapping[str, Any]) -> list[str]:
    """In what the same task differs between teacher and student so that outputs would mean something else."""
    wrong = []
    for name in sorted({*teacher, *student}):
        one, two = teacher.get(name), student.get(name)
        if one != two and not any({one, two} <= units for units in _SAME_UNITS if isinstance(one, str)):
            wrong.append(f"{name} {one!r} of the teacher, {two!r} of the student")
    return wrong


def data_digest(log: EventLog, items: pa.Array) -> str:
    """A digest of who did what when in each row of the interactions table."""
    hashes = event_hashes(log, items, b"data")
    by_row = np.empty_like(hashes)
    by_row[np.argsort(np.argsort(log.row))] = hashes
    return hashlib.sha256(by_row.tobytes()).hexdigest()


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """A digest of a model's weights: the revision of a teacher."""
    found = hashlib.sha256()
    for name, value in sorted(state.items()):
        found.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def digest(values: Any) -> str:
    """A digest of plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _plain(encoders: Mapping[str, Any]) -> dict[str, Any]:
    return {name: asdict(encoder) for name, encoder in encoders.items()}
