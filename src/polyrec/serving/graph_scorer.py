"""Scores of exported graphs in onnxruntime, for a server: the same numbers within 1e-5, in a part of the time."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch

from polyrec.data.batch import Batch
from polyrec.hub.files import GRAPHS, graphs_of_others
from polyrec.inference.scorer import Stamp
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.serving.graphs import item_tensors
from polyrec.serving.parity import as_arrays
from polyrec.serving.read_cache import ReadCache
from polyrec.serving.runtime import Runtime

_log = logging.getLogger("polyrec.serving")


class GraphScorer:
    """[`Scorer`][polyrec.inference.scorer.Scorer] by the graphs of an export.

    What they read of the catalog is taken from the model, and again once its tensors have changed: so new items are
    known to the graphs when they are known to the model.

    Args:
        runtime: of an export of the model.
    """

    def __init__(self, runtime: Runtime, model: PolyRecForRecommendation) -> None:
        self.runtime, self.model = runtime, model
        self._stamp: Stamp | None = None
        self._cache = ReadCache()
        graphs = runtime.manifest["graphs"]
        reads = graphs["states"]["inputs"] if "states" in graphs else {}
        self._reads = [name for name in reads if not name.startswith("items.")]

    def read(self, batch: Batch) -> dict[str, Any]:
        """See `Scorer`."""
        parts = self.model.item_encoder, self.model.heads, self.model.task_items  # what `item_tensors` reads
        now = Stamp(*(part for part in parts if part is not None))
        if now != self._stamp:
            self.runtime.load_items({name: own.numpy() for name, own in item_tensors(self.model).items()})
            self._stamp = now
            self._cache.clear()
        if not self._reads:
            return {}
        return dict(self._cache.read(as_arrays(batch), self._reads, self.runtime.states))

    def catalog(self, task: str, batch: Batch, read: dict[str, Any]) -> np.ndarray:
        """See `Scorer`."""
        if task not in read:
            read |= self.runtime.scores(as_arrays(batch), read)
        # Callers write into it.
        scores: np.ndarray = read[task].copy()
        return scores

    def pairs(self, batch: Batch, read: dict[str, Any] | None = None) -> dict[str, np.ndarray]:
        """See `Scorer`."""
        read = self.read(batch) if read is None else read
        arrays = as_arrays(batch)
        found = self.runtime.predictions(arrays, read) if self.model.pair_tasks else {}
        found = {name: found[name] for name in self.model.pair_tasks}
        if self.model.state_tasks:
            if self.model.state_tasks[0] not in read:
                read |= self.runtime.scores(arrays, read)
            found |= {
                name: np.take_along_axis(read[name], arrays["candidate_ids"], axis=1) for name in self.model.state_tasks
            }
        return found


def graph_scorer(run: str | Path, model: PolyRecForRecommendation) -> GraphScorer | None:
    """What scores with the graphs that `polyrec export` wrote into a run; None where torch does.

    Graphs that were made of other weights are left alone, and so are those of models that read queries.
    """
    folder = Path(run) / GRAPHS
    if not (folder / "manifest.json").exists():
        _log.info("scores by torch; `polyrec export %s` writes graphs by which they are faster", run)
    elif importlib.util.find_spec("onnxruntime") is None:
        _log.warning("scores by torch: onnxruntime is not installed (pip install 'polyrec[onnx]')")
    elif graphs_of_others(run):
        _log.warning("scores by torch: the graphs in %s were made of other weights; export anew", folder)
    elif model.config.queries or model.device.type != "cpu" or model.dtype != torch.float32:
        _log.info("scores by torch: the model reads queries, or is no float32 model on a CPU")
    else:
        _log.info("scores by the graphs in %s", folder)
        return GraphScorer(Runtime(folder, threads=torch.get_num_threads()), model)
    return None
