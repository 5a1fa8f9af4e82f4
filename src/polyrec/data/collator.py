"""Windows become a padded batch of tensors: the batch contract of the package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from polyrec.data.batching import WindowBatch
from polyrec.data.queries import NO_QUERY, pad_queries


@dataclass
class PolyRecCollator:
    """Pads windows on the right and stacks them.

    Letters: B users, L events, C candidates, K codes or floats of a wide feature.

    Returns a dict with `item_ids` [B, L] int64 (0 = padding), `event_features` {name: [B, L(, K)]}, `user_features`
    {name: [B(, K)]}, `candidate_ids` [B, C] (0 = padding), `candidate_positions` [B, C], `candidate_features`
    {name: [B, C(, K)]}, `labels` {task: [B, C]} (NaN = missing or padding) and `candidate_rows` [B, C] (-1 = padding;
    which candidate of the data set this is). Where the windows have them, also `candidate_times` [B, C] int64
    (milliseconds since the epoch, 0 = padding), `user_fold` [B] int64, `sample_weight` {task: [B, C]} (NaN = padding),
    `trending` {task: {"items" [U, K], "values" [U, K]}} and `candidate_trending` [B, C] (which of the U snapshots),
    and `query_tokens` [Q, S], `query_mask` [Q, S], `candidate_query` [B, C] (row of the query, -1 = none) and
    `query_items` [B, C] (the item that the query is the text of, 0 = none).

    Args:
        pad_to_multiple_of: round L and C up, so that compiled kernels meet fewer shapes.

    Example:
        >>> window = {"item_ids": np.array([5, 7]), "event_features": {}, "user_features": {},
        ...           "candidate_ids": np.array([7]), "candidate_positions": np.array([1]), "candidate_features": {},
        ...           "labels": {"like": np.array([1.0], dtype=np.float32)}, "candidate_rows": np.array([0])}
        >>> empty = window | {"item_ids": np.array([], dtype=np.int64), "candidate_positions": np.array([0])}
        >>> PolyRecCollator()([window, empty])["item_ids"].tolist()
        [[5, 7], [0, 0]]
    """

    pad_to_multiple_of: int = 1

    def __call__(self, windows: Sequence[dict[str, Any]] | WindowBatch) -> dict[str, Any]:
        """Collate windows as `SequenceDataset.__getitem__` returns them, or read those of a `WindowBatch` at once."""
        if isinstance(windows, WindowBatch):
            return windows.reader(windows.indices, self.pad_to_multiple_of)
        events = _Padder([len(w["item_ids"]) for w in windows], self.pad_to_multiple_of)
        candidates = _Padder([len(w["candidate_ids"]) for w in windows], self.pad_to_multiple_of)

        def padded(key: str, padder: _Padder) -> dict[str, torch.Tensor]:
            return {name: padder([w[key][name] for w in windows]) for name in windows[0][key]}

        batch = {
            "item_ids": events([w["item_ids"] for w in windows]),
            "event_features": padded("event_features", events),
            "user_features": {
                name: torch.from_numpy(np.stack([w["user_features"][name] for w in windows]))
                for name in windows[0]["user_features"]
            },
            "candidate_ids": candidates([w["candidate_ids"] for w in windows]),
            "candidate_positions": candidates([w["candidate_positions"] for w in windows]),
            "candidate_features": padded("candidate_features", candidates),
            "labels": padded("labels", candidates),
            "candidate_rows": candidates([w["candidate_rows"] for w in windows], fill=-1),
        }
        if "user_fold" in windows[0]:
            batch["user_fold"] = torch.tensor([w["user_fold"] for w in windows])
        if "candidate_times" in windows[0]:
            batch["candidate_times"] = candidates([w["candidate_times"] for w in windows])
        if "candidate_trending" in windows[0]:
            # Snapshots of one window after the other; the first of each is empty, and what padding reads.
            begins = np.cumsum([0, *(_num_snapshots(w) for w in windows[:-1])])
            batch["candidate_trending"] = candidates(
                [b + w["candidate_trending"] for b, w in zip(begins, windows, strict=True)]
            )
            batch["trending"] = {
                task: {n: torch.from_numpy(np.concatenate([w["trending"][task][n] for w in windows])) for n in tables}
                for task, tables in windows[0]["trending"].items()
            }
        if "sample_weight" in windows[0]:
            batch["sample_weight"] = padded("sample_weight", candidates)
        if "candidate_query" in windows[0]:
            queries, counted = pad_queries([(w["candidate_query"], w["query_tokens"]) for w in windows])
            batch |= {name: torch.from_numpy(values) for name, values in queries.items()}
            batch["candidate_query"] = candidates(counted, fill=NO_QUERY)
            batch["query_items"] = candidates([w["query_items"] for w in windows])
        return batch


def _num_snapshots(window: dict[str, Any]) -> int:
    return len(next(iter(window["trending"].values()))["items"])


class _Padder:
    """Pads ragged columns that share their lengths; one scatter per column, no loop over events."""

    def __init__(self, lengths: list[int], multiple: int) -> None:
        longest = max(max(lengths), 1)
        self.shape = (len(lengths), -(-longest // multiple) * multiple)
        self.filled = np.arange(self.shape[1]) < np.asarray(lengths)[:, None]

    def __call__(self, columns: list[np.ndarray], fill: float | None = None) -> torch.Tensor:
        flat = np.concatenate(columns)
        if fill is None:
            fill = (
                np.nan if flat.dtype.kind == "f" else 0
            )  # a padded number is a missing number, a padded code is code 0
        padded = np.full(self.shape + flat.shape[1:], fill, dtype=flat.dtype)
        padded[self.filled] = flat
        return torch.from_numpy(padded)
