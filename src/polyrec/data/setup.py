"""How to train on a log that nobody has tuned for: the rates and steps that its rows ask for, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from polyrec.data.guess import Found

_STEPS = 150  # of an epoch that a training should have: few, and the first epochs learn next to nothing
_BATCHES = (8, 32)  # windows a step
_MOST_ROWS = 128  # windows a step where each is a row with its list, with one example
DROPOUT = 0.3  # of models that begin without pretrained weights
_WINDOW = 200  # events of a user that are read at once


@dataclass(frozen=True)
class Setup:
    """What a recipe says of a training.

    Args:
        model, training: entries of these sections.
        early_stopping_patience: evaluations without a better figure after which a training ends.
        why: {entry of the recipe: the reason}.
    """

    model: dict[str, Any]
    training: dict[str, Any]
    early_stopping_patience: int
    why: dict[str, str]

    @property
    def values(self) -> dict[str, Any]:
        """The entries of the recipe."""
        return {name: getattr(self, name) for name in self.why}


def batch_size(windows: int, of_rows: bool = False) -> int:
    """Windows a step, so that an epoch of so many has about 150 steps, and no fewer if it can be helped.

    Args:
        of_rows: whether each is a row with a list of what was before (`Columns.history`), with one example.

    Example:
        >>> [batch_size(windows) for windows in (600, 2_400, 100_000)]
        [8, 16, 32]
    """
    least, most = _BATCHES
    return int(np.clip(2 ** round(np.log2(max(windows / _STEPS, 1))), least, _MOST_ROWS if of_rows else most))


def setup_for(found: Found) -> Setup:
    """The set-up of a log with these columns.

    Example:
        >>> import pyarrow as pa
        >>> from polyrec.data.guess import find_columns
        >>> log = {"user": [1, 1, 2, 2], "item": [1, 2, 1, 2], "ts": [10**9, 10**9 + 1, 10**9, 10**9 + 5]}
        >>> setup_for(find_columns(pa.table(log))).training["per_device_train_batch_size"]
        8
    """
    codes = found.facts[found.user].codes
    if found.lists is None:
        windows = int(np.ceil(np.bincount(codes[codes >= 0]) / _WINDOW).sum())
        batch = batch_size(windows)
    else:
        windows = len(codes)
        batch = batch_size(windows, of_rows=True)
    training = {"num_train_epochs": 8, "per_device_train_batch_size": batch, "learning_rate": 0.001}
    return Setup(
        {"dropout": DROPOUT},
        training,
        2,
        {
            "model": "logs of this size are soon memorised",
            "training": f"{windows:,} windows of up to {_WINDOW} events make {-(-windows // batch):,} steps an epoch",
            "early_stopping_patience": "most logs need 2 to 4 epochs; the weights of the best one are kept",
        },
    )
