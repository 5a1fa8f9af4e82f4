"""Training windows as requests without times show them: a model that never saw unknown gaps would read them at random.

Letters: B windows, L events, C candidates, F statistics.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from polyrec.core.schema import STATISTICS
from polyrec.data.sampling import uniform

_KEY = "a history without times"


@dataclass(frozen=True, eq=False)
class Untimed:
    """Hides what follows from the times of a window's events in a share of the windows, drawn anew in every epoch.

    Args:
        share: of the windows, in [0, 1].
        events: event features that follow from times.
        statistics: int64, columns of the running statistics that follow from the times of the user's events.

    Example:
        >>> untimed = Untimed(1.0, ("time_gap",), np.array([1]))
        >>> untimed.drawn(np.arange(3), seed=0, epoch=0).tolist()
        [True, True, True]
        >>> features = {"time_gap": np.zeros(2), "stars": np.ones(2)}
        >>> untimed.events_of(features)["time_gap"].tolist()
        [nan, nan]
    """

    share: float
    events: tuple[str, ...]
    statistics: np.ndarray

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"untimed_share is {self.share}; it must be a share of the training windows, in [0, 1]")

    def drawn(self, windows: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        """Which of some windows (int64 [B]) have no times in this epoch, bool [B]."""
        return uniform(windows, seed, epoch, _KEY) < self.share

    def events_of(self, features: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Event features of one window, [L] each, without times."""
        hidden = {n: np.full_like(v, np.nan if v.dtype.kind == "f" else 0) for n, v in self._named(features).items()}
        return features | hidden

    def candidates_of(self, features: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Candidate features of one window, [C] each, without times."""
        if STATISTICS not in features:
            return features
        values = features[STATISTICS].copy()
        values[:, self.statistics] = np.nan
        return features | {STATISTICS: values}

    def hide(self, hidden: np.ndarray, batch: dict[str, Any]) -> None:
        """Do both to some windows (bool [B]) of a batch, in place."""
        rows = torch.from_numpy(np.flatnonzero(hidden))
        if not len(rows):
            return
        for values in self._named(batch["event_features"]).values():
            values[rows] = float("nan") if values.is_floating_point() else 0
        if STATISTICS in batch["candidate_features"]:
            values = batch["candidate_features"][STATISTICS]
            some = values[rows]
            some[..., torch.from_numpy(self.statistics)] = float("nan")
            values[rows] = some

    def _named(self, features: dict[str, Any]) -> dict[str, Any]:
        return {name: features[name] for name in self.events if name in features}
