"""Repositories that want to harm who loads them. Each takes a folder of a good model and spoils it."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import load_file, save_file

RAN = "ran"  # the file that code of a repository would write

SPOILERS: dict[str, tuple[str, str, Callable[[Path], None]]] = {}


def spoiler(loader: str, message: str) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    """Args: what must refuse it ("model" or "processor"), and what the error says."""

    def add(function: Callable[[Path], None]) -> Callable[[Path], None]:
        SPOILERS[function.__name__] = (loader, message, function)
        return function

    return add


class _Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {RAN}",)


def _change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _sparse(path: Path, start: bytes, size: int) -> None:
    with path.open("wb") as file:
        file.write(start)
        file.truncate(size)


@spoiler("model", "no model.safetensors; pytorch_model.bin is not read")
def pickled_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Runs()))


@spoiler("model", "asks for code of its repository")
def code_of_the_model(folder: Path) -> None:
    (folder / "evil.py").write_text(f"open({RAN!r}, 'w')\nclass Model: pass\n")
    names = ("AutoConfig", "AutoModel", "PolyRecForRecommendation")
    _change(folder / "config.json", auto_map={name: "evil.Model" for name in names})


@spoiler("processor", "asks for code of its repository")
def code_of_the_tokenizer(folder: Path) -> None:
    (folder / "evil.py").write_text(f"open({RAN!r}, 'w')\nclass Model: pass\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["evil.Model", None]}}))


@spoiler("processor", "none of its folder")
def tokenizer_of_another_folder(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"vocab_file": "../../../etc/passwd"}))


@spoiler("model", "none of its folder")
def shards_of_another_folder(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "secret.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))


@spoiler("processor", "none of its folder")
def statistics_of_another_folder(folder: Path) -> None:
    path = folder / "statistics" / "log" / "statistics.json"
    files = json.loads(path.read_text())["files"]
    _change(path, files={name: f"../../../secret/{file}" for name, file in files.items()})


@spoiler("processor", "link out of its folder")
def links(folder: Path) -> None:
    (folder / "items.parquet").unlink()
    (folder / "items.parquet").symlink_to("/etc/passwd")


@spoiler("model", "header claims")
def header_without_end(folder: Path) -> None:
    _sparse(folder / "model.safetensors", struct.pack("<Q", 1 << 62), 1 << 12)


@spoiler("model", "header claims")
def header_that_fills_the_memory(folder: Path) -> None:
    _sparse(folder / "model.safetensors", struct.pack("<Q", 1 << 33) + b"{", (1 << 33) + 8)


@spoiler("model", "not copied completely")
def weights_cut_off(folder: Path) -> None:
    raw = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(raw[: len(raw) - 100])


@spoiler("model", "bytes for shape")
def shape_that_fills_the_memory(folder: Path) -> None:
    header = json.dumps({"x": {"dtype": "F32", "shape": [1 << 40, 1 << 20], "data_offsets": [0, 4]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)


@spoiler("model", r"has shape \[.*\], but config.json asks for")
def wrong_shapes(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = max((n for n in tensors if n.startswith("model.")), key=lambda n: tensors[n].size)
    tensors[name] = np.concatenate([tensors[name], tensors[name]])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@spoiler("model", "NaN or infinite")
def weights_that_are_no_numbers(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = next(n for n in sorted(tensors) if n.startswith("model.") and "mlp" in n)
    tensors[name].flat[-1] = np.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@spoiler("model", "num_items is 1,000,000,000 but items.parquet has 24 items")
def a_billion_items(folder: Path) -> None:
    _change(folder / "config.json", num_items=10**9)


@spoiler("model", "has shape|do not hold")
def a_billion_items_without_a_catalog(folder: Path) -> None:
    _change(folder / "config.json", num_items=10**9)
    (folder / "items.parquet").unlink()


@spoiler("model", "do not hold")
def tables_that_no_file_holds(folder: Path) -> None:
    """Every pair task's own table of vectors is new, so nothing contradicts it."""
    tensors = load_file(folder / "model.safetensors")
    save_file({"x": np.zeros(1, np.float32)}, folder / "model.safetensors", metadata={"format": "pt"})
    assert tensors
    _change(folder / "config.json", num_items=10**9, task_item_embeddings=True)
    (folder / "items.parquet").unlink()


@spoiler("model", "num_hidden_layers is 1,000,000,000")
def a_billion_layers(folder: Path) -> None:
    history = json.loads((folder / "config.json").read_text())["history_config"]
    _change(folder / "config.json", history_config=history | {"num_hidden_layers": 10**9})


@spoiler("model", "not valid JSON|nested more than")
def nested_without_end(folder: Path) -> None:
    (folder / "config.json").write_text('{"a":' + "[" * 100_000 + "]" * 100_000 + "}")


@spoiler("processor", "at most")
def a_configuration_that_fills_the_memory(folder: Path) -> None:
    _sparse(folder / "processor_config.json", b"{", 1 << 33)


@spoiler("processor", "made to fill memory")
def a_catalog_that_unpacks_without_end(folder: Path) -> None:
    ids = pa.table({"item_id": np.zeros(2_000_000, dtype=np.int64)})
    with pq.ParquetWriter(folder / "items.parquet", ids.schema, compression="zstd") as writer:
        for _ in range(20):
            writer.write_table(ids)


@spoiler("processor", "made to fill memory")
def one_text_a_hundred_thousand_times(folder: Path) -> None:
    text = pa.DictionaryArray.from_arrays(pa.array(np.zeros(100_000, np.int32)), pa.array(["a" * 4_000_000]))
    table = pa.table({"item_id": np.arange(100_000), "title": text})
    pq.write_table(table, folder / "items.parquet", store_schema=False)


@spoiler("processor", "made to fill memory")
def one_tag_a_hundred_thousand_times(folder: Path) -> None:
    text = pa.DictionaryArray.from_arrays(pa.array(np.zeros(100_000, np.int32)), pa.array(["a" * 4_000_000]))
    tags = pa.ListArray.from_arrays(pa.array(np.arange(100_001, dtype=np.int32)), text)
    pq.write_table(
        pa.table({"item_id": np.arange(100_000), "tags": tags}), folder / "items.parquet", store_schema=False
    )


@spoiler("processor", "can run code")
def vectors_that_are_pickles(folder: Path) -> None:
    (folder / "item_vectors").mkdir()
    np.save(folder / "item_vectors" / "image.npy", np.array([_Runs()], dtype=object), allow_pickle=True)


@spoiler("processor", "has shape")
def vectors_that_fill_the_memory(folder: Path) -> None:
    (folder / "item_vectors").mkdir()
    path = folder / "item_vectors" / "image.npy"
    np.save(path, np.zeros((1, 1), dtype=np.float16))
    claimed = b"(%d, 9999999), }" % 10**9
    path.write_bytes(path.read_bytes().replace(b"(1, 1), }" + b" " * (len(claimed) - 9), claimed))


@spoiler("processor", "only names columns")
def a_template_that_fills_the_memory(folder: Path) -> None:
    _change(folder / "processor_config.json", text={"model": "x", "template": "{title:>9999999999}"})
