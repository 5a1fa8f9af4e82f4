"""Files of a shared model: which travel, which are read, which never leave."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from polyrec.core.manifest import MANIFEST_NAME, digest_of_file, fits, read_manifest
from polyrec.data.processor_files import (
    CONFIG_NAME,
    EVENTS_NAME,
    ITEMS_NAME,
    ROWS_NAME,
    STATISTICS_NAME,
    USERS_NAME,
    VECTORS_NAME,
)

CARD_NAME = "README.md"
MODEL_CONFIG = "config.json"
WEIGHTS_NAME, INDEX_NAME = "model.safetensors", "model.safetensors.index.json"
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "chat_template.jinja",
)  # fmt: skip

GRAPHS = "onnx"  # folder of an export, see `polyrec.serving.export_graphs`
GRAPH_FILES = tuple(
    f"{GRAPHS}/{name}"
    for name in (
        "*.onnx",
        "*.onnx.data",
        "items.safetensors",
        "items.json",
        "manifest.json",
        "parity.json",
        "parity.md",
    )
)
# {what it is: patterns of its files}. `*` does not cross a folder.
KINDS = {
    "model": (MODEL_CONFIG, WEIGHTS_NAME, "model-*-of-*.safetensors", INDEX_NAME),
    "processor": (CONFIG_NAME, "prompt_config.json"),
    "catalog of items": (ITEMS_NAME, f"{VECTORS_NAME}/*.npy"),
    "statistics of items": (
        *(f"{STATISTICS_NAME}/{name}" for name in ("scales.json", "*/statistics.json", "*/state-*.parquet")),
    ),
    "tokenizer": TOKENIZER_FILES,
    "graphs": GRAPH_FILES,
    "card": (CARD_NAME, "training_curves.png", "LICENSE", "metrics.json", "training.json"),
}
USERS_FILES = (USERS_NAME,)
# Salted hashes of training rows, for the leakage guard of its owner, and what users did, for serving them.
NEVER = (ROWS_NAME, EVENTS_NAME)

MODEL_FILES = KINDS["model"]
PROCESSOR_FILES = (
    *KINDS["processor"],
    *KINDS["catalog of items"],
    *KINDS["statistics of items"],
    *KINDS["tokenizer"],
    *USERS_FILES,
)
# What is checked against the manifest before a model or a processor is read, and recorded after it was written.
MODEL_RECORDED = (*MODEL_FILES, "generation_config.json")
PROCESSOR_RECORDED = (*PROCESSOR_FILES, *NEVER)


def matches(path: str, patterns: Iterable[str]) -> bool:
    """Whether a path, with `/` between folders, fits a pattern, folder by folder.

    Example:
        >>> matches("item_vectors/image.npy", ["item_vectors/*.npy"])
        True
        >>> matches("item_vectors/../../x.npy", ["item_vectors/*.npy"])
        False
    """
    plain = all(part not in ("", ".", "..") and "\\" not in part and "\0" not in part for part in path.split("/"))
    return plain and fits(path, patterns)


def kind_of(path: str) -> str | None:
    """What a file is; None: nothing of a shared model."""
    if matches(path, USERS_FILES):
        return "rows about users"
    if path == MANIFEST_NAME:
        return "manifest"
    return next((kind for kind, patterns in KINDS.items() if matches(path, patterns)), None)


def exported_weights(folder: str | Path) -> dict[str, str]:
    """{file: SHA-256} of what graphs of a folder are made of, weights and catalog, as its manifest says."""
    held, wanted = read_manifest(folder), (WEIGHTS_NAME, "model-*-of-*.safetensors", ITEMS_NAME)
    if held is None:  # a folder of `save_pretrained`
        files = {path.name: digest_of_file(path) for path in Path(folder).glob("*") if fits(path.name, wanted)}
    else:
        files = {name: own for name, own in held.files.items() if fits(name, wanted)}
    return {name: str(own["sha256"]) for name, own in files.items()}


def graphs_of_others(folder: str | Path) -> bool:
    """Whether the graphs of a folder were made of other weights or another catalog than it holds now."""
    path = Path(folder) / GRAPHS / "manifest.json"
    if not path.exists():
        return False
    return json.loads(path.read_text(encoding="utf-8")).get("source") != exported_weights(folder)
