"""Which items a model takes for alike: neighbourhoods in the space that all tasks share, and a picture of it.

Letters: N items, D width, M items shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from polyrec.core.extras import check_extra
from polyrec.core.modules import in_double
from polyrec.inference.explanation.explain import item_rows
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor
from polyrec.modules.encoders.item import FIRST_ITEM, ItemRows


@torch.no_grad()
def neighbours(
    model: PolyRecForRecommendation,
    processor: PolyRecProcessor,
    item: Any,
    k: int = 10,
    items: ItemRows | None = None,
) -> list[dict[str, Any]]:
    """The items most like one, by the cosine of their vectors (id, attributes and text together).

    Args:
        items: the encoded table, of a caller with many requests; None: encode it.

    Returns:
        k dicts, nearest first: `item`, `title` (if the catalog has one), `similarity` and `events` (in training).
    """
    if k < 1:
        raise ValueError(f"k is {k}; it must be >= 1")
    row = int(item_rows(processor, [item])[0])
    with model.eval_mode() as model:
        items = model.item_encoder.table() if items is None else items
        unit_ND = F.normalize(items.vectors_MD.float(), dim=-1)
    similar_N = unit_ND @ unit_ND[row]
    similar_N[[*range(FIRST_ITEM), row]] = -torch.inf
    found = similar_N.topk(min(k, len(processor.items.ids) - 1))
    return [
        {**processor.describe(n), "similarity": similarity, "events": int(processor.item_counts[n])}
        for n, similarity in zip(found.indices.tolist(), found.values.tolist(), strict=True)
    ]


@torch.no_grad()
def item_map(
    model: PolyRecForRecommendation, processor: PolyRecProcessor, most: int = 500
) -> tuple[np.ndarray, np.ndarray, float]:
    """The items met most often on a plane: rows int64 [M], places float64 [M, 2], and the share of variance it shows.

    Places are the first two principal components of the vectors, scaled to length 1.
    """
    met = np.argsort(-processor.item_counts[FIRST_ITEM:], kind="stable")[:most] + FIRST_ITEM
    with model.eval_mode() as model:
        vectors_MD = in_double(model.item_encoder.table().vectors_MD[torch.from_numpy(met).to(model.device)])
    vectors_MD = F.normalize(vectors_MD, dim=-1)
    left, spread, _ = torch.linalg.svd(vectors_MD - vectors_MD.mean(0), full_matrices=False)
    share = float((spread[:2] ** 2).sum() / (spread**2).sum().clamp(min=1e-12))
    return met, (left[:, :2] * spread[:2]).cpu().numpy(), share


def plot_items(
    model: PolyRecForRecommendation,
    processor: PolyRecProcessor,
    path: str | Path,
    near: Sequence[Any] = (),
    most: int = 500,
    named: int = 25,
) -> Path:
    """Draw [`item_map`] as a picture, its most frequent items (or the neighbours of some) with their titles.

    Args:
        path: .png, .svg or .pdf to write.
        near: ids of items whose neighbourhoods are marked and named instead.
        named: titles written.
    """
    check_extra("matplotlib", "report", "plots")
    from matplotlib.figure import Figure

    rows, points_M2, share = item_map(model, processor, most)
    counts_M = processor.item_counts[rows]
    shown = rows[:named].tolist()
    if near:
        own = [n["item"] for item in near for n in neighbours(model, processor, item, max(named // len(near), 1))]
        shown = item_rows(processor, [*near, *own]).tolist()
    figure = Figure(figsize=(10, 8), layout="constrained")
    axes = figure.add_subplot()
    size_M = 6 + 60 * np.sqrt(counts_M / max(counts_M.max(initial=1), 1))
    x_M, y_M = points_M2.T
    axes.scatter(x_M, y_M, s=size_M, c="#9ab0c8", alpha=0.6, linewidths=0)
    marked = np.isin(rows, shown)
    axes.scatter(x_M[marked], y_M[marked], s=size_M[marked], c="#c0504d", linewidths=0)
    for point, row in zip(points_M2[marked], rows[marked], strict=True):
        described = processor.describe(int(row))
        text = str(described.get("title") or described["item"])
        axes.annotate(text[:28], point, fontsize=7, xytext=(3, 2), textcoords="offset points", parse_math=False)
    axes.set(xticks=[], yticks=[], title=f"{len(rows)} most frequent items, {share:.0%} of their variance")
    figure.savefig(path, dpi=120)
    return Path(path)
