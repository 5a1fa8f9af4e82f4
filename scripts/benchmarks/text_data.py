"""Protocol C: what the text benchmark trains on and asks, the same for all systems.

The log is that of protocol A (each person's last event tests, the one before validates, in time and file order). A
tenth of the items, drawn with seed 0, is *cold*: no event of theirs trains anything, and no history that is trained on
has them. Cold questions are events of the whole log that took a cold item, after at least one other event.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from common import one_relevant

COLD_SHARE = 0.1
COLD_QUESTIONS = 3000
K = 10


@dataclass(frozen=True)
class Questions:
    """Which item comes next?

    Args:
        row: int64 [R], rows of the sorted log whose item is the answer; the person's earlier rows are the history.
        target: int64 [R], item (0 .. N - 1).
        shelf: items among which the answer is sought; None = all.
    """

    row: np.ndarray
    target: np.ndarray
    shelf: np.ndarray | None = None


class TextData:
    """The log, sorted by person, time and file order, with texts of items.

    Args:
        folder: of the three tables.
        tenth: which tenth of the items is cold. The first is reported; settings are chosen on others.
    """

    def __init__(self, folder: Path, tenth: int = 0) -> None:
        self.items = pq.read_table(folder / "items.parquet").sort_by("item_id")
        events = pq.read_table(folder / "interactions.parquet")
        self.events = events.sort_by(
            [("user_id", "ascending"), ("timestamp", "ascending"), ("file_order", "ascending")]
        )
        ids = np.asarray(self.items["item_id"])
        self.item = np.searchsorted(ids, np.asarray(self.events["item_id"]))
        self.user = np.unique(np.asarray(self.events["user_id"]), return_inverse=True)[1]
        self.begin = np.searchsorted(self.user, self.user)  # [R], the person's first row
        size = int(COLD_SHARE * len(ids))
        self.cold = np.sort(np.random.default_rng(0).permutation(len(ids))[tenth * size : (tenth + 1) * size])
        self.is_cold = np.isin(self.item, self.cold)
        titles, years = self.items["title"].to_pylist(), self.items["release_year"].to_pylist()
        genres = self.items["genres"].to_pylist()
        self.short = [f"{t} ({y})" if y is not None else t for t, y in zip(titles, years, strict=True)]
        self.texts = [f"{s}. Genres: {', '.join(g)}" for s, g in zip(self.short, genres, strict=True)]
        # Positions in the log without cold items, of which the last two of a person are kept from training.
        warm = np.flatnonzero(~self.is_cold)
        last = np.append(np.diff(self.user[warm]) != 0, True)
        before = np.append(last[1:], False) & ~last
        self.test, self.valid, self.train = warm[last], warm[before], warm[~last & ~before]

    @property
    def warm_events(self) -> pa.Table:
        """The log without events of cold items."""
        return self.events.filter(pa.array(~self.is_cold))

    def history(self, row: int, most: int | None = None, trained: bool = False) -> np.ndarray:
        """Items of the person's rows before a row, the latest `most` of them.

        Args:
            trained: without cold items, as in training.
        """
        rows = np.arange(self.begin[row], row)
        if trained:
            rows = rows[~self.is_cold[rows]]
        return self.item[rows if most is None else rows[-most:]]

    def questions(self) -> dict[str, Questions]:
        """Of validation, test and cold items; those of cold items are drawn with seed 1."""
        asked = np.flatnonzero(self.is_cold & (np.arange(len(self.item)) > self.begin))
        drawn = np.sort(np.random.default_rng(1).permutation(asked)[:COLD_QUESTIONS])
        return {
            "validation": Questions(self.valid, self.item[self.valid]),
            "test": Questions(self.test, self.item[self.test]),
            "cold": Questions(drawn, self.item[drawn], self.cold),
        }

    def evaluate(self, asked: Questions, score: Callable[[np.ndarray], np.ndarray]) -> dict[str, float]:
        """Recall@10 and NDCG@10 of one relevant item each; items of the history are left out, and chance orders ties.

        Args:
            score: scores [B, N] for some positions [B] in the questions.
        """
        better, level = [], []
        for begin in range(0, len(asked.row), 256):
            index = np.arange(begin, min(begin + 256, len(asked.row)))
            scores = np.array(score(index), dtype=np.float32)
            for n, k in enumerate(index):
                target = asked.target[k]
                own = scores[n, target]
                scores[n, self.history(asked.row[k])] = -np.inf
                rivals = scores[n] if asked.shelf is None else scores[n, asked.shelf]
                # The answer may be in the history, too (people rate some films twice).
                better.append(int((rivals > own).sum()))
                scores[n, target] = -np.inf
                rivals = scores[n] if asked.shelf is None else scores[n, asked.shelf]
                level.append(int((rivals == own).sum()))
        return one_relevant(better, K, level)

    def popularity(self) -> np.ndarray:
        """Events of each item in the whole log, cold ones included: what cold items would get if one knew."""
        return np.bincount(self.item, minlength=len(self.texts))
