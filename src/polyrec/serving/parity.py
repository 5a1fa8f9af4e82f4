"""Graphs against the model they were exported from, head by head, on real windows.

Letters: B users, C candidates, N items.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from polyrec.data.batch import Batch
from polyrec.evaluation.page import Section, Table, markdown
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.serving.runtime import Runtime, flat

TOLERANCE = 1e-5
_PROBABILITIES = ("bernoulli",)
_K = 10


def as_arrays(batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """A batch as the runtime reads it: {name with dots: array}, without labels.

    It can be saved for other machines: `numpy.savez("batch.npz", **as_arrays(batch))`.
    """
    inputs = dict(Batch.inputs(batch))
    return {name: value.numpy() for name, value in flat(inputs).items() if isinstance(value, torch.Tensor)}


@torch.no_grad()
def parity(runtime: Runtime, model: PolyRecForRecommendation, batches: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """How far outputs lie apart, {"requests", "heads": {task: {...}}, "met"}.

    `largest` is the largest difference of a prediction or a score, `spread` the standard deviation of the model's own;
    `lists` the number of lists whose first 10 items differ otherwise than by exchanged ties.
    """
    found: dict[str, _Compared] = {}
    requests = 0
    with model.eval_mode() as view:
        items = view.item_encoder.table()
        for batch in batches:
            requests += len(batch["item_ids"])
            for task, (ours, theirs) in _outputs(runtime, view, items, Batch.inputs(batch)).items():
                found.setdefault(task, _Compared()).add(ours, theirs)
    heads = {}
    for task, own in runtime.tasks.items():
        if task in found:
            heads[task] = {"head": own["head"], **found[task].report(own["reads"] == "state")}
            unit = 1.0 if own["output"] in _PROBABILITIES else max(heads[task]["spread"], 1.0)
            if own["reads"] == "state":  # a sum of several parts, each known to so many digits
                unit = max(found[task].greatest, 1.0)
            heads[task]["met"] = heads[task]["largest"] <= TOLERANCE * unit and not heads[task].get("lists")
    return {"requests": requests, "heads": heads, "met": all(own["met"] for own in heads.values())}


def _outputs(
    runtime: Runtime, model: PolyRecForRecommendation, items: Any, batch: Batch
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{task: what the model says, what the graphs say}: pairs that are no padding [M], or scores [B, N]."""
    arrays = as_arrays(batch)
    output = model(batch, items=items)
    known = runtime.states(arrays) | runtime.queries(arrays)
    found = {}
    if model.pair_tasks:
        theirs, real_BC = runtime.predictions(arrays, known), arrays["candidate_ids"] > 0
        for task in model.pair_tasks:
            ours = model.heads[task].predict(output.logits[task]).float().numpy()
            found[task] = ours[real_BC], theirs[task][real_BC]
    if model.state_tasks:
        last = torch.from_numpy(arrays["candidate_positions"].argmax(1))
        rows = torch.arange(len(last)), last
        context = model.request_context(batch).at(rows)
        queries = None if output.queries is None else output.queries[rows]
        scores = runtime.scores(arrays, known)
        for task in model.state_tasks:
            ours = model.score_items(output.states[rows], task, items, queries, context).float().numpy()
            found[task] = ours, scores[task]
    return found


class _Compared:
    """What was said of one task."""

    def __init__(self) -> None:
        self.largest, self.greatest, self.count, self.lists = 0.0, 0.0, 0, 0
        self.total = self.squares = 0.0

    def add(self, ours: np.ndarray, theirs: np.ndarray) -> None:
        """Compare the outputs of a batch."""
        finite = np.isfinite(ours)
        if not np.array_equal(finite, np.isfinite(theirs)):
            self.largest = float("inf")
            return
        if ours.ndim == 2:
            self.lists += sum(not same_list(a, b) for a, b in zip(ours, theirs, strict=True))
        ours, theirs = ours[finite].astype(float), theirs[finite].astype(float)
        self.largest = max(self.largest, float(np.abs(ours - theirs).max(initial=0.0)))
        self.greatest = max(self.greatest, float(np.abs(ours).max(initial=0.0)))
        self.count, self.total = self.count + len(ours), self.total + ours.sum()
        self.squares += np.square(ours).sum()

    def report(self, ranks: bool) -> dict[str, Any]:
        """Figures."""
        mean = self.total / max(self.count, 1)
        spread = max(self.squares / max(self.count, 1) - mean**2, 0.0) ** 0.5
        found: dict[str, Any] = {"outputs": self.count, "largest": self.largest, "spread": float(spread)}
        return found | ({"lists": self.lists} if ranks else {})


def same_list(ours: np.ndarray, theirs: np.ndarray, k: int = _K) -> bool:
    """Whether two rows of scores have the same best k items, but for ties.

    Example:
        >>> same_list(np.array([1.0, 2.0, 2.0]), np.array([1.0, 2.0, 2.0 + 1e-7]), k=1)
        True
        >>> same_list(np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0]), k=1)
        False
    """
    listed = min(k, int(np.isfinite(ours).sum()))
    first, second = (np.argsort(-scores, kind="stable")[:listed] for scores in (ours, theirs))
    apart = np.abs(ours[first] - ours[second])
    return bool((apart <= TOLERANCE * np.maximum(1, np.abs(ours[first]))).all())


def parity_text(report: Mapping[str, Any], facts: Sequence[str] = ()) -> str:
    """The report as markdown."""
    rows = []
    for task, own in report["heads"].items():
        figures = f"{own['outputs']:,}", f"{own['largest']:.1e}", f"{own['spread']:.3g}", str(own.get("lists", ""))
        rows.append([task, own["head"], *figures, "yes" if own["met"] else "NO"])
    table = Table(["task", "head", "outputs", "largest difference", "spread", "other lists", "within 1e-5"], rows)
    points = [
        f"{report['requests']:,} windows. Lists: the 10 best items, other than by exchanged ties. Differences of "
        "numbers count in units of their spread, those of scores in units of the largest score, where it is above 1.",
        *facts,
    ]
    return markdown("Graphs against the model", [Section("Parity", points, table)])
