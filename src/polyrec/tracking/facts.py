"""What is known of a run's data, by counting, and a digest that tells whether it is the same data."""

from __future__ import annotations

from typing import Any

import numpy as np

from polyrec.data.sequences import SequenceDataset
from polyrec.data.splitter import Splits
from polyrec.models.polyrec.fingerprint import data_digest, fingerprint
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor
from polyrec.modules.encoders.item import FIRST_ITEM


def fingerprints(processor: PolyRecProcessor, dataset: SequenceDataset) -> dict[str, str]:
    """Short digests of a data set's events and of what the processor makes of them: equal digests, equal inputs."""
    return {
        "data": data_digest(dataset.log, processor.items.ids)[:16],
        "processor": fingerprint(processor)[:16],
    }


def data_facts(processor: PolyRecProcessor, parts: Splits) -> dict[str, Any]:
    """Users, items, events, and for each split its rows, users, first and last time and known labels of each task."""
    log = parts.train.log
    return {
        "events": len(log),
        "people": len(log.user_ids),
        "items": processor.num_items - FIRST_ITEM,
        "fingerprints": fingerprints(processor, parts.train),
        "parts": {name: _part(part) for name, part in parts._asdict().items()},
    }


def _part(dataset: SequenceDataset) -> dict[str, Any]:
    own = dataset.own_view
    times, labels = dataset.log.time[dataset.candidates.event[own]], dataset.labels()[own]
    known = (~np.isnan(labels)).sum(axis=0).tolist()
    known_times = len(times) > 0 and not dataset.log.drawn
    return {
        "rows": int(own.sum()),
        "people": len(np.unique(dataset.user_codes()[own])),
        "first": float(times.min()) if known_times else None,
        "last": float(times.max()) if known_times else None,
        "labels": dict(zip(dataset.task_names, known, strict=True)),
    }
