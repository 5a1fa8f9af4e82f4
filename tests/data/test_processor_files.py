"""Files of a processor as a Hub repository holds them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from text_fixtures import text_processor

from polyrec import PolyRecProcessor
from polyrec.hub.files import NEVER, PROCESSOR_FILES, matches


def test_everything_that_a_processor_needs_is_fetched_and_no_more(tmp_path):
    """Prevents a tokenizer, statistics or vectors from staying on the Hub, and weights from being fetched for nothing."""
    saved, fetched = tmp_path / "saved", tmp_path / "fetched"
    processor = text_processor(6)
    processor.save_pretrained(saved)
    (saved / "item_vectors").mkdir(exist_ok=True)
    np.save(saved / "item_vectors" / "image.npy", np.zeros((4, 2)))
    files = _files(saved)
    (saved / "model.safetensors").write_bytes(b"weights")
    for found in _files(saved):
        if matches(found, PROCESSOR_FILES):
            (fetched / found).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(saved / found, fetched / found)
    assert _files(fetched) == files - {*NEVER, "manifest.json"}
    loaded = PolyRecProcessor.from_pretrained(fetched)
    assert np.array_equal(loaded.item_tokens().flat, processor.item_tokens().flat)


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
