"""Files of a processor as a Hub repository holds them."""

from __future__ import annotations

import shutil
from pathlib import Path

import huggingface_hub
import numpy as np
from huggingface_hub.utils import filter_repo_objects
from text_fixtures import text_processor

from polyrec import PolyRecProcessor


def test_everything_that_a_processor_needs_is_fetched_and_no_more(tmp_path, monkeypatch):
    """Prevents a tokenizer, statistics or vectors from staying on the Hub, and weights from being fetched for nothing."""
    saved, fetched = tmp_path / "saved", tmp_path / "fetched"
    processor = text_processor(6)
    processor.save_pretrained(saved)
    (saved / "item_vectors").mkdir(exist_ok=True)
    np.save(saved / "item_vectors" / "image.npy", np.zeros((4, 2)))
    files = {str(path.relative_to(saved)) for path in saved.rglob("*") if path.is_file()}
    (saved / "model.safetensors").write_bytes(b"weights")

    def snapshot_download(name: str, allow_patterns: list[str], revision: str) -> str:
        assert (name, revision) == ("someone/films", "v1")
        for found in filter_repo_objects(sorted({*files, "model.safetensors"}), allow_patterns=allow_patterns):
            (fetched / found).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(saved / found, fetched / found)
        return str(fetched)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    loaded = PolyRecProcessor.from_pretrained("someone/films", revision="v1")
    assert {str(path.relative_to(fetched)) for path in Path(fetched).rglob("*") if path.is_file()} == files
    assert np.array_equal(loaded.item_tokens().flat, processor.item_tokens().flat)
