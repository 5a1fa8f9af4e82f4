"""`polyrec export`: a run in, its graphs and a report of how they agree with the model out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from polyrec.core.files import write_atomically
from polyrec.core.manifest import MANIFEST_NAME, refresh_manifest
from polyrec.core.progress import progress
from polyrec.data.batching import BatchReader
from polyrec.data.collator import PolyRecCollator
from polyrec.data.sequences import SequenceDataset
from polyrec.evaluation.page import plain
from polyrec.hub.files import GRAPH_FILES, exported_weights
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor
from polyrec.modules.encoders.item import FIRST_ITEM
from polyrec.runs.evaluate import parts_of_run
from polyrec.runs.prepare import read_run
from polyrec.serving.export_graphs import load_export, write_export
from polyrec.serving.parity import parity, parity_text

_USERS = 32  # of a batch
_CANDIDATES = 8  # of a request that is made up


def export_run(
    run: str | Path, form: str = "onnx", int8: bool = False, output: str | Path | None = None, windows: int = 1000
) -> dict[str, Any]:
    """Export a run and compare the graphs with its model.

    Args:
        form: "onnx" or "torch".
        int8: turn weights into int8 first, as `polyrec quantize` does; the graphs are compared with that model then.
        output: folder of the result; None: a folder of the run named like the format.
        windows: by which both are compared: of the test set, and then of made-up histories.

    Returns:
        the report, which is also written as parity.json and parity.md.

    Raises:
        ValueError: the model has a part that cannot be exported.
    """
    model, processor = PolyRecForRecommendation.from_pretrained(run).float(), PolyRecProcessor.from_pretrained(run)
    if int8 and not model.config.int8:
        model.quantize()
    place = Path(run) / form if output is None else Path(output)
    manifest = write_export(model, processor, place, form, source=exported_weights(run))
    batches, what = _batches(str(run), processor, windows)
    shown = progress(batches, "Comparison", -(-windows // _USERS), "batch")
    report = parity(load_export(place), model, shown) | {"windows": what, "format": form, "int8": manifest["int8"]}
    text = parity_text(report, [f"Windows: {what}."])
    write_atomically(place / "parity.json", json.dumps(plain(report), indent=2) + "\n")
    write_atomically(place / "parity.md", text)
    if (Path(run) / MANIFEST_NAME).exists() and place.resolve() == (Path(run) / "onnx").resolve():
        refresh_manifest(run, GRAPH_FILES)  # so that the next training of the run drops them
    print(text)
    print(f"written to {place}")
    if not report["met"]:
        raise ValueError(f"graphs and model differ by more than they may: {place / 'parity.md'} says where")
    return report


def _batches(run: str, processor: PolyRecProcessor, windows: int) -> tuple[Iterator[dict[str, Any]], str]:
    """Windows to compare by, and what they are."""
    try:
        *_, test = parts_of_run(run, read_run(run), "test")
    except (OSError, ValueError) as error:
        return _made_up(processor, windows), f"of made-up histories alone: no test set ({error})"
    real = min(windows, len(test))
    what = f"{real:,} of the test set, {windows - real:,} of made-up histories"
    return chain(_of_data(test, real), _made_up(processor, windows - real)), what


def _of_data(test: SequenceDataset, windows: int) -> Iterator[dict[str, Any]]:
    for begin in range(0, windows, _USERS):
        at = np.arange(begin, min(begin + _USERS, windows))
        yield BatchReader(test)(at) if BatchReader.supports(test) else PolyRecCollator()([test[int(i)] for i in at])


def _made_up(processor: PolyRecProcessor, windows: int) -> Iterator[dict[str, Any]]:
    """Requests with histories of all lengths, of items drawn at random."""
    random, ids = np.random.default_rng(0), processor.items.ids.to_pylist()
    for begin in range(0, windows, _USERS):
        found = []
        for _ in range(min(_USERS, windows - begin)):
            history = [ids[n] for n in random.integers(0, len(ids), random.integers(0, processor.max_history + 1))]
            asked = FIRST_ITEM + random.integers(0, len(ids), _CANDIDATES)
            found.append(processor.request(history, asked))
        yield PolyRecCollator()(found)
