"""Recommendations and predictions from a folder that `polyrec export` wrote, with numpy and onnxruntime alone.

A batch is {name: array} as the collator makes it; nested names may have dots ("event_features.rating"), as in an npz.

    runtime = Runtime("runs/demo/onnx")
    batch = dict(numpy.load("batch.npz"))
    runtime.recommend(batch, k=10)     # the best items of each user
    runtime.predictions(batch)         # what each task says of the batch's candidates, {task: [B, C]}

Letters: B users, L events, C candidates, N items, D width.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

FIRST_ITEM = 2  # rows 0 and 1 of the item table are padding and the unknown item
_TYPES = {"F32": np.float32, "F16": np.float16, "I64": np.int64, "I32": np.int32, "BOOL": np.bool_, "I8": np.int8}


class Runtime:
    """Runs the exported graphs.

    Args:
        folder: that `polyrec export` wrote.
        threads: that one graph may use.
    """

    def __init__(self, folder: str | Path, threads: int = 1) -> None:
        self.folder, self.threads = Path(folder), threads
        self.manifest = json.loads((self.folder / "manifest.json").read_text(encoding="utf-8"))
        self.items = read_safetensors(self.folder / "items.safetensors")
        self.ids: list[Any] = json.loads((self.folder / "items.json").read_text(encoding="utf-8"))
        self.tasks: dict[str, dict[str, Any]] = self.manifest["tasks"]
        self._sessions: dict[str, Any] = {}

    def load_items(self, items: Mapping[str, np.ndarray]) -> None:
        """Another catalog, as `items.safetensors` holds it."""
        types = {
            name.removeprefix("items."): own["dtype"]
            for graph in self.manifest["graphs"].values()
            for name, own in graph["inputs"].items()
        }
        self.items = {name: np.ascontiguousarray(own, types.get(name, own.dtype)) for name, own in items.items()}

    def run(self, graph: str, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs of one graph; what the catalog holds is added to its inputs."""
        inputs = self.manifest["graphs"][graph]["inputs"]
        ready = {name: self._input(name, own, given) for name, own in inputs.items()}
        return dict(zip(self.manifest["graphs"][graph]["outputs"], self._outputs(graph, ready), strict=True))

    def _input(self, name: str, own: Mapping[str, Any], given: Mapping[str, np.ndarray]) -> np.ndarray:
        if name.startswith("items."):
            return self.items[name.removeprefix("items.")]
        if name in given:
            return np.ascontiguousarray(given[name], dtype=own["dtype"])
        if "fill" not in own:
            raise KeyError(f"{name!r} is missing from the batch; it has {sorted(given)}")
        return np.full(np.shape(given["item_ids"]), own["fill"], dtype=own["dtype"])

    def _outputs(self, graph: str, ready: dict[str, np.ndarray]) -> list[np.ndarray]:
        import onnxruntime

        if graph not in self._sessions:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = self.threads  # the default is every core, for each graph
            options.log_severity_level = 3
            path = str(self.folder / self.manifest["graphs"][graph]["file"])
            self._sessions[graph] = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return self._sessions[graph].run(None, ready)

    def states(self, batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """`inputs` and `states`, [B, L + 1, D] each; they depend on events and attributes of users alone, and may be
        kept until these change."""
        return self.run("states", flat(batch)) if "states" in self.manifest["graphs"] else {}

    def queries(self, batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """`queries`, [B, C, D], where the model reads them."""
        if "query" not in self.manifest["graphs"]:
            return {}
        given = flat(batch)
        found = self.run("query", given)["vectors"]
        with_none = np.concatenate([np.zeros_like(found[:1]), found])
        return {"queries": with_none[given["candidate_query"] + 1]}

    def scores(self, batch: Mapping[str, Any], known: Mapping[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        """Scores of all items by each retrieval task, {task: [B, N]}, after all events that a user's candidates see.

        Args:
            known: what `states` and `queries` gave of the batch.
        """
        given = flat(batch) | dict(self.states(batch) | self.queries(batch) if known is None else known)
        rows, last = np.arange(len(given["candidate_positions"])), given["candidate_positions"].argmax(1)
        position = given["candidate_positions"][rows, last]
        given["position"] = position
        if "states" in given:
            given["state"] = given["states"][rows, position]
        for name, source in (("time", "candidate_times"), ("snapshot", "candidate_trending"), ("query", "queries")):
            if source in given:
                given[name] = given[source][rows, last]
        return self.run("catalog", given)

    def predictions(
        self, batch: Mapping[str, Any], known: Mapping[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        """What each pair task says of the batch's candidates, {task: [B, C]}, and {task.details: [B, C, K]} of tasks
        that say more than a number; arguments as of `scores`."""
        given = flat(batch) | dict(self.states(batch) | self.queries(batch) if known is None else known)
        return self.run("pairs", given)

    def recommend(
        self,
        batch: Mapping[str, Any],
        k: int = 10,
        task: str | None = None,
        exclude_seen: bool | None = None,
        allowed: np.ndarray | None = None,
    ) -> list[list[dict[str, Any]]]:
        """The k best items of each user, [{"item", "row", "score"}, ...], best first.

        Args:
            task: the retrieval task that ranks; None: the first one.
            exclude_seen: leave out items of the history; None: as the model was evaluated.
            allowed: bool [N] or [B, N], items that may be listed.
        """
        name = task or next(n for n, own in self.tasks.items() if own["reads"] == "state")
        scores_BN = self.scores(batch)[name]
        hides = self.tasks[name]["excludes_history"] if exclude_seen is None else exclude_seen
        if hides:
            np.put_along_axis(scores_BN, np.asarray(flat(batch)["item_ids"]), -np.inf, axis=1)
        if allowed is not None:
            scores_BN = np.where(allowed, scores_BN, -np.inf)
        found = [np.argsort(-row, kind="stable")[: min(k, int(np.isfinite(row).sum()))] for row in scores_BN]
        return [
            [{"item": self.ids[n], "row": int(n), "score": float(row[n])} for n in best]
            for best, row in zip(found, scores_BN, strict=True)
        ]


def flat(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch without nested dicts: {"a": {"b": x}} -> {"a.b": x}."""
    found: dict[str, Any] = {}
    for name, value in batch.items():
        inner = flat(value) if isinstance(value, Mapping) else None
        found |= {name: value} if inner is None else {f"{name}.{key}": x for key, x in inner.items()}
    return found


def read_safetensors(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a file, read where they lie: its format is a length, a JSON of places and the bytes."""
    data = np.memmap(path, dtype=np.uint8, mode="r")
    size = int(data[:8].view(np.int64)[0])
    header = json.loads(bytes(data[8 : 8 + size]))
    body, found = data[8 + size :], {}
    for name, own in header.items():
        if name != "__metadata__":
            begin, end = own["data_offsets"]
            kind = np.dtype(_TYPES[own["dtype"]])
            found[name] = np.frombuffer(body[begin:end].tobytes(), kind).reshape(own["shape"])
    return found


def main(arguments: list[str]) -> None:
    """`python runtime.py batch.npz [K]`: lists and predictions as JSON lines, one per user."""
    runtime, batch = Runtime(Path(__file__).parent), dict(np.load(arguments[0]))
    k = int(arguments[1]) if len(arguments) > 1 else 10
    graphs = runtime.manifest["graphs"]
    lists = runtime.recommend(batch, k) if "catalog" in graphs else [[] for _ in batch["item_ids"]]
    found = runtime.predictions(batch) if "pairs" in graphs else {}
    for row, best in enumerate(lists):
        print(json.dumps({"best": best, **{task: values[row].tolist() for task, values in found.items()}}))


if __name__ == "__main__":
    main(sys.argv[1:])
