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


@spoiler("model", "do not hold|makes a model of")
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


@spoiler("model", "num_experts is 1,000,000,000")
def a_billion_experts(folder: Path) -> None:
    _change(folder / "config.json", experts="mmoe", expert_options={"num_experts": 10**9})


@spoiler("model", "n_layer is 1,000,000,000")
def a_billion_layers_by_another_name(folder: Path) -> None:
    history = {"model_type": "gpt2", "n_layer": 10**9, "n_embd": 8, "n_head": 2, "vocab_size": 8}
    _change(folder / "config.json", history_config=history)


@spoiler("model", "tasks has 2,000 entries")
def tasks_without_end(folder: Path) -> None:
    tasks = [{"name": f"t{n}", "head": "binary", "label": "rating > 1"} for n in range(2_000)]
    _change(folder / "config.json", tasks=tasks)


@spoiler("model", "beside the")
def a_mask_of_all_positions(folder: Path) -> None:
    """No file stores it, so that no tensor contradicts its size."""
    history = {"model_type": "gpt_neo", "num_layers": 1, "attention_types": [[["global"], 1]], "num_heads": 2}
    history |= {"hidden_size": 8, "vocab_size": 8, "max_position_embeddings": 1 << 20}
    _change(folder / "config.json", history_config=history)


@spoiler("model", "must be a mapping")
def a_number_in_the_place_of_a_section(folder: Path) -> None:
    _change(folder / "config.json", text=7)


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


@spoiler("processor", "made to fill memory")
def statistics_that_unpack_without_end(folder: Path) -> None:
    path = folder / "statistics" / "log" / "state-000.parquet"
    schema = pq.read_schema(path)
    rows = pa.table({f.name: pa.array(np.zeros(1_000_000)).cast(f.type) for f in schema}, schema=schema)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for _ in range(8):
            writer.write_table(rows)


@spoiler("processor", "made to fill memory")
def columns_without_end(folder: Path) -> None:
    """Of so few rows for the file's size that they may all be different items."""
    rows, table = 100_000, pq.read_table(folder / "items.parquet")
    columns = {f.name: pa.nulls(rows, f.type) for f in table.schema} | {"item_id": np.arange(rows)}
    constant = pa.array(np.zeros(rows))
    pq.write_table(
        pa.table(columns | {f"x{n}": constant for n in range(600)}), folder / "items.parquet", compression="zstd"
    )


@spoiler("processor", "more than the 5,000 that the file says")
def a_page_that_unpacks_without_end(folder: Path) -> None:
    """Its footer tells of 600 rows in 5,000 bytes; room is made for the 320 MB of its only page."""
    path, rows = folder / "items.parquet", 40_000_000
    table = pa.table({"item_id": np.zeros(rows, dtype=np.int64)})
    whole = {"row_group_size": rows, "data_page_size": 1 << 30, "max_rows_per_page": rows, "write_batch_size": rows}
    pq.write_table(table, path, compression="zstd", use_dictionary=False, **whole)
    raw, size = path.read_bytes(), pq.read_metadata(path).row_group(0).column(0).total_uncompressed_size
    at = len(raw) - 8 - int.from_bytes(raw[-8:-4], "little")
    footer = raw[at:]
    for true, told in ((size, 5000), (rows, 600)):
        assert _varint(true) in footer
        footer = footer.replace(_varint(true), _varint(told, len(_varint(true))))
    path.write_bytes(raw[:at] + footer)


def _varint(number: int, length: int = 0) -> bytes:
    """A number > 0 as Thrift writes it; further bytes of 0 are allowed."""
    number, found = 2 * number, []
    while number or len(found) < length:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes(found[:-1]) + bytes([found[-1] & 127])


@spoiler("processor", "width is 1,000,000,000|has width")
def an_encoder_that_fills_the_memory(folder: Path) -> None:
    encoders = json.loads((folder / "processor_config.json").read_text())["item_encoders"]
    encoders["tags"]["width"] = 10**9
    _change(folder / "processor_config.json", item_encoders=encoders)


@spoiler("processor", "has width 65,536")
def many_rows_of_a_wide_encoder(folder: Path) -> None:
    encoders = json.loads((folder / "processor_config.json").read_text())["item_encoders"]
    encoders["tags"]["width"] = 1 << 16
    _change(folder / "processor_config.json", item_encoders=encoders)
    table = pq.read_table(folder / "items.parquet")
    columns = {f.name: pa.nulls(5000, f.type) for f in table.schema} | {"item_id": np.arange(5000)}
    pq.write_table(pa.table(columns), folder / "items.parquet")


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


@spoiler("processor", "padding has Fixed 1,000,000,000")
def texts_padded_to_a_billion_tokens(folder: Path) -> None:
    (folder / "tokenizer.json").write_text(json.dumps({"padding": {"strategy": {"Fixed": 10**9}, "pad_id": 0}}))


@spoiler("model", "has adapter_config.json")
def a_model_of_another_place(folder: Path) -> None:
    other = folder.parent / "other"
    (folder / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(other), "peft_type": "LORA"})
    )


@spoiler("processor", "cannot be read")
def a_footer_that_ends_the_reader(folder: Path) -> None:
    path = folder / "statistics" / "log" / "state-000.parquet"
    raw = bytearray(path.read_bytes())
    begin = len(raw) - 8 - int.from_bytes(raw[-8:-4], "little")
    raw[begin : begin + 40] = bytes(255 for _ in range(40))
    path.write_bytes(raw)


@spoiler("processor", "only names columns")
def a_template_that_fills_the_memory(folder: Path) -> None:
    _change(folder / "processor_config.json", text={"model": "x", "template": "{title:>9999999999}"})
