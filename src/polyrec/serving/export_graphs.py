"""A model as graphs for onnxruntime or torch, with everything they read beside them.

The folder of an export:

* `states`, `catalog`, `pairs` and `query`, as far as the model has them, `.onnx` or `.pt2`;
* `items.safetensors`, what the catalog holds: an input of the graphs, so that new items change this file alone;
  `items.json`, the item id of each of its rows;
* `manifest.json`: inputs and outputs of the graphs with types and shapes, tasks, and fingerprints of what was exported;
* `runtime.py`: runs all this with numpy and onnxruntime alone;
* `parity.json` and `parity.md`: graphs against model.
"""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.export import Dim, ExportedProgram

from polyrec.core.extras import check_extra
from polyrec.core.files import write_atomically
from polyrec.core.progress import progress
from polyrec.core.settings import nearest
from polyrec.core.version import __version__
from polyrec.data.candidates import left_out
from polyrec.models.polyrec.fingerprint import fingerprint
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor
from polyrec.modules.encoders.backbone import fingerprint as weights_fingerprint
from polyrec.modules.encoders.item import FIRST_ITEM
from polyrec.serving import runtime
from polyrec.serving.graphs import Graph, graphs_of, item_tensors
from polyrec.serving.runtime import Runtime
from polyrec.serving.tree_graphs import fill_in

FORMATS = ("onnx", "torch")
FORMAT_VERSION = 1
_SUFFIX = {"onnx": ".onnx", "torch": ".pt2"}
# Sizes of the example that is traced: no two alike and none a usual width, so that no size is taken for another one.
_SIZES = {"B": 3, "L": 13, "C": 7, "N": 1009, "U": 5, "S": 19, "Q": 11, "T": 17}
_LARGEST = 1 << 30  # bytes of weights in one .onnx file, of which protobuf allows two


def write_export(
    model: PolyRecForRecommendation,
    processor: PolyRecProcessor,
    folder: str | Path,
    form: str = "onnx",
    source: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Write the graphs of a model and what they read; returns the manifest.

    Args:
        processor: that was saved with the model.
        folder: written beside its place and then put there as a whole.
        form: "onnx" or "torch".
        source: digests of the files that the model was loaded from, see `polyrec.hub.files.exported_weights`.

    Raises:
        ValueError: a part of the model cannot be exported, with its name.
    """
    if form not in FORMATS:
        raise ValueError(f"unknown format {form!r}; {nearest(form, list(FORMATS))}")
    if form == "onnx":
        for package in ("onnxscript", "onnxruntime"):
            check_extra(package, "onnx", "exports to ONNX")
    if not isinstance(model, PolyRecForRecommendation):
        raise ValueError(
            f"a {type(model).__name__} cannot be exported: only models with one vector per item can (distil it)"
        )
    if model.config.num_items != processor.num_items:
        raise ValueError(
            "model and processor have different catalogs: load the processor that was saved with the model"
        )
    facts = {"processor": fingerprint(processor), "max_history": processor.max_history, "source": source or {}}
    return Exported(model, processor.items.ids.to_pylist(), facts).write(folder, form)


@dataclass(frozen=True)
class Exported:
    """What an export is made of.

    Args:
        item_ids: of the rows of the item table from the first item on.
        facts: further entries of the manifest.
    """

    model: PolyRecForRecommendation
    item_ids: Sequence[Any]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def write(self, folder: str | Path, form: str) -> dict[str, Any]:
        """Write it, see [`write_export`]."""
        place = Path(folder).resolve()
        draft = place.with_name(f".{place.name}.draft")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        with self.model.eval_mode() as model:
            graphs = graphs_of(model, form == "onnx")
            for name, graph in progress(graphs.items(), "Graphs", unit="graph"):
                _write_graph(name, graph, draft / f"{name}{_SUFFIX[form]}", form)
            save_file(item_tensors(model), draft / "items.safetensors")
            about = {"format": form, "polyrec": __version__, "model": weights_fingerprint(model)}
            manifest = {**about, **self.facts, **self.described(model, graphs, _SUFFIX[form])}
        ids = [None] * FIRST_ITEM + list(self.item_ids)
        write_atomically(draft / "items.json", json.dumps(ids, default=str) + "\n")
        write_atomically(draft / "manifest.json", json.dumps(manifest, indent=2) + "\n")
        shutil.copy(runtime.__file__, draft / "runtime.py")
        shutil.rmtree(place, ignore_errors=True)
        draft.rename(place)
        return manifest

    @staticmethod
    def described(model: PolyRecForRecommendation, graphs: Mapping[str, Graph], suffix: str = "") -> dict[str, Any]:
        """What a runner must know of the graphs."""
        heads = {name: model.heads[name] for name in (*model.state_tasks, *model.pair_tasks)}
        hides = model.config.exclude_seen
        tasks = {
            name: {
                "head": head.task.head,
                "reads": head.reads,
                "output": head.output_kind,
                "excludes_history": head.reads == "state" and left_out(head.task, hides) == "history",
            }
            for name, head in heads.items()
        }
        return {
            "format_version": FORMAT_VERSION,
            "int8": bool(model.config.int8),
            "num_items": model.config.num_items,
            "tasks": tasks,
            "graphs": {
                name: {"file": f"{name}{suffix}", "inputs": _described(graph), "outputs": graph.outputs}
                for name, graph in graphs.items()
            },
        }


def _described(graph: Graph) -> dict[str, Any]:
    """Inputs as the manifest has them."""
    found: dict[str, Any] = {}
    for name, own in graph.inputs.items():
        found[name] = {"dtype": str(own.dtype).removeprefix("torch."), "shape": list(own.shape)}
        if own.optional is not None:
            found[name]["fill"] = own.optional
    return found


def traced(name: str, graph: Graph) -> ExportedProgram:
    """The graph with symbolic sizes, each from 1 on.

    Raises:
        ValueError: a part cannot be traced, or takes a size for a fixed one.
    """
    letters = {d for own in graph.inputs.values() for d in own.shape if isinstance(d, str)}
    dims: dict[Any, Any] = {d: Dim(d, min=1, max=graph.most.get(d)) for d in letters if d != "L+1"}
    if "L+1" in letters:
        dims["L+1"] = dims["L"] + 1 if "L" in dims else Dim("L1", min=2)
    example = {key: torch.ones([_size(d) for d in own.shape], dtype=own.dtype) for key, own in graph.inputs.items()}
    shapes = {key: {at: dims[d] for at, d in enumerate(own.shape) if d in dims} for key, own in graph.inputs.items()}
    try:
        with torch.no_grad():
            return torch.export.export(graph.module, (example,), dynamic_shapes=(shapes,))
    except Exception as error:  # torch raises whatever a part raises
        raise ValueError(f"graph {name!r} cannot be exported ({_first_line(error)})") from error


def _size(d: str | int) -> int:
    return d if isinstance(d, int) else _SIZES["L"] + 1 if d == "L+1" else _SIZES[d]


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _write_graph(name: str, graph: Graph, path: Path, form: str) -> None:
    program = traced(name, graph)
    if form == "torch":
        torch.export.save(program, path)
        return
    # Small int8 matrices would be folded into the single precision that they are read in.
    folds = not any(tensor.dtype == torch.int8 for tensor in program.state_dict.values())
    with _quiet():
        try:
            found = torch.onnx.export(
                program,
                input_names=list(graph.inputs),
                output_names=graph.outputs,
                verbose=False,
                dynamo=True,
                optimize=folds,
            )
        except Exception as error:  # whatever its passes raise; nothing is tried in another way
            raise ValueError(f"graph {name!r} cannot be written as ONNX ({_first_line(error)})") from error
    _name_sizes(found.model.graph, graph)
    fill_in(found.model.graph, graph.module)
    for node in found.model.graph.all_nodes():  # torch notes the paths of this machine's files there
        node.metadata_props.clear()
    weights = sum(tensor.nbytes for tensor in program.state_dict.values())
    found.save(path, external_data=weights > _LARGEST)


def _name_sizes(onnx_graph: Any, graph: Graph) -> None:
    """Give sizes of inputs and outputs their letters, in the place of the numbers that torch gives symbols."""
    import onnx_ir

    letters = {}
    for value in onnx_graph.inputs:
        own = graph.inputs[value.name].shape
        if len(value.shape) != len(own):
            raise ValueError(f"input {value.name!r} has the shape {value.shape} in the graph and not {own}")
        for found, wanted in zip(value.shape, own, strict=True):
            if isinstance(wanted, str) and isinstance(found, int):
                raise ValueError(f"size {wanted} of input {value.name!r} was taken for the fixed number {found}")
            if isinstance(wanted, str) and wanted != "L+1":
                letters[str(found.value)] = wanted
    for value in (*onnx_graph.inputs, *onnx_graph.outputs):
        sizes = [d if isinstance(d, int) else _renamed(str(d.value), letters) for d in value.shape or ()]
        value.shape = onnx_ir.Shape(sizes)


def _renamed(text: str, letters: dict[str, str]) -> str:
    return re.sub(r"\w+", lambda found: letters.get(found[0], found[0]), text)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch says of packages that are not installed and of its own deprecations."""
    import logging

    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class TorchRuntime(Runtime):
    """Runs graphs of `--format torch`, which needs torch alone."""

    def _outputs(self, graph: str, ready: dict[str, np.ndarray]) -> list[np.ndarray]:
        if graph not in self._sessions:
            path = self.folder / self.manifest["graphs"][graph]["file"]
            self._sessions[graph] = torch.export.load(path).module()
        given = {name: torch.from_numpy(np.require(array, requirements="W")) for name, array in ready.items()}
        with torch.no_grad():
            found: Sequence[Tensor] = self._sessions[graph](given)
        return [tensor.numpy() for tensor in found]


def load_export(folder: str | Path, threads: int = 1) -> Runtime:
    """What runs an export, of either format."""
    form = json.loads((Path(folder) / "manifest.json").read_text(encoding="utf-8"))["format"]
    return TorchRuntime(folder) if form == "torch" else Runtime(folder, threads)
