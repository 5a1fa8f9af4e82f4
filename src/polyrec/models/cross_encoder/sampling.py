"""A few candidates per window, because each costs a pass through the backbone.

Letters: C candidates, K items of a list, H items of a first stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from polyrec.data.sampling import uniform
from polyrec.data.sequences import SequenceDataset, WindowDataset

FIRST_ITEM = 2  # row of the item table
_DRAW = "candidates of a cross-encoder"
_QUERIES = ("query_tokens", "query_items", "candidate_query")


class CandidateSample(WindowDataset):
    """The windows of a data set with some of their candidates, and lists to tell the items taken from.

    Candidates and lists are drawn anew in every epoch; what is drawn depends on seed, epoch and the window alone.

    Args:
        dataset: of training.
        num_items: rows of the item table.
        list_tasks: retrieval tasks; a candidate that one of them counts as taken gets a list.
        candidates_per_window: at most so many, of those with a label.
        negatives: K, items of a list.
        hard: int64 [candidates of the data set, H], what a first stage would show instead of each, 0 = none (see
            `evaluation.reranked.hard_negatives`); half of a list comes from there, the rest is uniform over the
            catalog. None: all of it is.
        seed: of all draws.

    Example:
        >>> from polyrec import PolyRecProcessor
        >>> log = {"user_id": [1] * 5 + [2] * 5, "item_id": list("abcdeabcde"), "timestamp": list(range(10))}
        >>> processor = PolyRecProcessor.fit(log, tasks=[{"name": "next_item", "head": "retrieval"}])
        >>> sample = CandidateSample(processor.split(log).train, processor.num_items, ["next_item"], 2, negatives=3)
        >>> sample[0]["candidate_ids"].shape, sample[0]["list_items"].shape
        ((2,), (2, 3))
    """

    def __init__(
        self,
        dataset: SequenceDataset,
        num_items: int,
        list_tasks: Sequence[str],
        candidates_per_window: int = 4,
        negatives: int = 7,
        hard: np.ndarray | None = None,
        seed: int = 0,
    ) -> None:
        if candidates_per_window < 1 or (negatives < 1 and list_tasks):
            raise ValueError(
                f"candidates_per_window and negatives must be >= 1, not {candidates_per_window} and {negatives}"
            )
        if hard is not None and len(hard) != dataset.num_candidates:
            raise ValueError(
                f"hard has {len(hard)} rows but the data set has {dataset.num_candidates} candidates: make it of this "
                "data set"
            )
        if list_tasks and num_items <= FIRST_ITEM:
            raise ValueError("the catalog is empty: there is nothing to draw negatives from")
        self.dataset, self.num_items, self.list_tasks = dataset, num_items, list(list_tasks)
        self.per_window, self.negatives, self.hard, self.seed = candidates_per_window, negatives, hard, seed

    def __len__(self) -> int:
        """Windows."""
        return len(self.dataset)

    @property
    def lengths(self) -> list[int]:
        """Those of the data set."""
        return self.dataset.lengths

    def set_epoch(self, epoch: int) -> None:
        """Draw for another epoch."""
        super().set_epoch(epoch)
        self.dataset.set_epoch(epoch)

    def set_seed(self, seed: int) -> None:
        """Draw by another seed."""
        super().set_seed(seed)
        self.dataset.set_seed(seed)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One window of this epoch."""
        window = self.dataset[index]
        labelled = ~np.isnan(np.stack(list(window["labels"].values()))).all(axis=0)
        of_tasks = [window["labels"][name] > 0 for name in self.list_tasks]
        positive = np.logical_or.reduce(of_tasks) if of_tasks else np.zeros(len(labelled), dtype=bool)
        draw = uniform(window["candidate_rows"], self.seed, self.epoch, _DRAW)
        draw[~labelled] = 2.0  # after all others
        keep = np.sort(np.argsort(draw, kind="stable")[: self.per_window])
        found = only(window, keep)
        if self.list_tasks:
            wants_list = positive[keep] & (found["candidate_ids"] >= FIRST_ITEM)
            found["list_items"] = self._lists(index, found, wants_list)
        return found

    def _lists(self, index: int, window: dict[str, Any], wants_list: np.ndarray) -> np.ndarray:
        """Negatives of each candidate, int64 [C, K]; 0 where there is none."""
        random = np.random.default_rng((self.seed, self.epoch, index, 2))  # 2: not the draws of the data set
        target, visible = window["candidate_ids"], window["candidate_positions"]
        drawn = random.integers(FIRST_ITEM, self.num_items, (len(target), self.negatives))
        if self.hard is not None:
            pool = self.hard[window["candidate_rows"]]
            half = -(-self.negatives // 2)
            chosen = np.take_along_axis(pool, random.integers(0, pool.shape[1], (len(target), half)), axis=1)
            drawn[:, :half] = np.where(chosen >= FIRST_ITEM, chosen, drawn[:, :half])
        seen = drawn[:, :, None] == window["item_ids"]
        seen &= np.arange(len(window["item_ids"])) < visible[:, None, None]
        no_negative = (drawn == target[:, None]) | seen.any(axis=-1) | ~wants_list[:, None]
        return np.where(no_negative, 0, drawn)


def only(window: dict[str, Any], keep: np.ndarray) -> dict[str, Any]:
    """A window with some of its candidates; queries, which a cross-encoder does not read, are left out.

    Args:
        keep: int64, which.
    """

    def kept(key: str, values: Any) -> Any:
        if key in ("labels", "sample_weight", "candidate_features"):
            return {name: column[keep] for name, column in values.items()}
        return values[keep] if key.startswith("candidate_") else values

    return {key: kept(key, values) for key, values in window.items() if key not in _QUERIES}
