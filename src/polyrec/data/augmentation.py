"""Changes to what a training window shows of a history: crop, mask, reorder, substitute, insert.

A transform is any callable `transform(window, rng) -> window` on windows as `SequenceDataset` makes them. It changes
events and, where events come or go, `candidate_positions`; candidates, labels and weights stay. No candidate comes to
see an event that it could not see before, nor anything that was derived of one. Windows share memory with the log, so a
transform writes into copies only.

Letters: L events, C candidates, N items, K neighbours.

Example:
    >>> window = {"item_ids": np.array([5, 6, 7]), "event_features": {}, "candidate_positions": np.array([0, 2, 3])}
    >>> transform = Compose(Crop(0.5), Mask(0.2))
    >>> len(transform(window, np.random.default_rng(0))["item_ids"]) in (2, 3)
    True
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from polyrec.core.schema import TIME_GAP
from polyrec.data.columns import FIRST, UNKNOWN

Window = dict[str, Any]
Transform = Callable[[Window, np.random.Generator], Window]


def with_events(window: Window, take: np.ndarray, positions: np.ndarray) -> Window:
    """The window with its events `take` (indices, in the new order) and the candidates at new positions."""
    return window | {
        "item_ids": window["item_ids"][take],
        "event_features": {name: values[take] for name, values in window["event_features"].items()},
        "candidate_positions": positions,
    }


def missing_rows(like: np.ndarray, rows: int) -> np.ndarray:
    """Values of a feature for events of which it is not known: NaN, or the code 0, [rows(, K)]."""
    return np.full((rows, *like.shape[1:]), np.nan if like.dtype.kind == "f" else 0, dtype=like.dtype)


def without_oldest(window: Window, count: int) -> Window:
    """The window without its first `count` events."""
    kept = np.arange(count, len(window["item_ids"]))
    return with_events(window, kept, np.maximum(window["candidate_positions"] - count, 0))


@dataclass(frozen=True)
class _Share:
    """A transform of a share of the events."""

    share: float

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share of {type(self).__name__} is {self.share}; it must be in [0, 1]")


@dataclass(frozen=True)
class Crop(_Share):
    r"""Forget the oldest events, at most `share` of them: h = (x_{b+1}, ..., x_L) with b ~ U{0, ..., floor(share L)}.

    The crop of CL4SRec (Xie et al., 2020, "Contrastive Learning for Sequential Recommendation") ends anywhere; here
    each candidate reads the events up to its own position, so only the beginning is free. Candidates whose events are
    all gone are treated like those of a new user.

    Shapes: L events become L - b.

    Example:
        >>> window = {"item_ids": np.array([5, 6]), "event_features": {}, "candidate_positions": np.array([2])}
        >>> Crop(0.0)(window, np.random.default_rng(0))["item_ids"].tolist()
        [5, 6]
    """

    def __call__(self, window: Window, rng: np.random.Generator) -> Window:
        """Apply to one window."""
        count = int(rng.integers(0, int(self.share * len(window["item_ids"])) + 1))
        cropped = without_oldest(window, count)
        gap = cropped["event_features"].get(TIME_GAP)  # a copy, to be written into
        if count and gap is not None:
            gap[:1] = np.nan  # it was the time since an event that never happened now
        return cropped


@dataclass(frozen=True)
class Mask(_Share):
    r"""Hide which item it was in a share of the events: h_l = [unknown] with chance `share`, else x_l.

    What is known of the event besides (its feedback, time, context) stays. From CL4SRec (Xie et al., 2020, "Contrastive
    Learning for Sequential Recommendation").

    Shapes: unchanged.

    Example:
        >>> window = {"item_ids": np.array([5, 6]), "event_features": {}, "candidate_positions": np.array([2])}
        >>> Mask(1.0)(window, np.random.default_rng(0))["item_ids"].tolist()  # 1 is the unknown item
        [1, 1]
    """

    def __call__(self, window: Window, rng: np.random.Generator) -> Window:
        """Apply to one window."""
        items = window["item_ids"]
        return window | {"item_ids": np.where(rng.random(len(items)) < self.share, UNKNOWN, items)}


@dataclass(frozen=True)
class Reorder(_Share):
    r"""Shuffle a run of events: h = (x_1, ..., x_a, \pi(x_{a+1}, ..., x_{a+n}), ..., x_L), n = ceil(share L).

    A candidate in the middle of the run would see events of its future in the shuffled span, so it sees the
    events before the run only: keep runs short where every event is scored. From CL4SRec (Xie et al., 2020,
    "Contrastive Learning for Sequential Recommendation").

    Shapes: unchanged.

    Example:
        >>> window = {"item_ids": np.array([5, 6]), "event_features": {}, "candidate_positions": np.array([1, 2])}
        >>> Reorder(1.0)(window, np.random.default_rng(0))["candidate_positions"].tolist()
        [0, 2]
    """

    def __call__(self, window: Window, rng: np.random.Generator) -> Window:
        """Apply to one window."""
        length, position = len(window["item_ids"]), window["candidate_positions"]
        run = int(np.ceil(self.share * length))
        if run < 2:
            return window
        begin = int(rng.integers(0, length - run + 1))
        order = np.arange(length)
        order[begin : begin + run] = rng.permutation(order[begin : begin + run])
        inside = (position > begin) & (position < begin + run)
        changed = with_events(window, order, np.where(inside, begin, position))
        if TIME_GAP in window["event_features"]:
            # Places keep their times; a gap that went with its event would tell where the event stood.
            changed["event_features"][TIME_GAP] = window["event_features"][TIME_GAP]
        return changed


@dataclass(frozen=True)
class SimilarItems:
    r"""Which items users take together: s_{ij} = n_{ij} / \sqrt{n_i n_j}, the cosine of co-occurrences.

    Args:
        neighbours: int64 [N, K], rows of the item table from the most similar on; 0 = no more.

    Example:
        >>> SimilarItems(np.array([[0], [0], [3], [0]])).draw(np.array([2, 3]), np.random.default_rng(0)).tolist()
        [3, 3]
    """

    neighbours: np.ndarray

    @classmethod
    def fit(cls, user: np.ndarray, item: np.ndarray, num_items: int, count: int = 10, span: int = 5) -> SimilarItems:
        """Count pairs of different items at most `span` events of a user apart.

        Args:
            user, item: int64 [R] of the TRAINING events alone, sorted by user and time.
            num_items: N.
            count: K.
        """
        if count < 1 or span < 1:
            raise ValueError(f"count and span must be >= 1, not {count} and {span}")
        pairs = []
        for apart in range(1, span + 1):
            one, two = item[:-apart], item[apart:]
            real = (user[:-apart] == user[apart:]) & (one >= FIRST) & (two >= FIRST) & (one != two)
            pairs += [np.stack([one[real], two[real]]), np.stack([two[real], one[real]])]
        first, second = np.concatenate(pairs, axis=1)
        met = sparse.coo_array((np.ones(len(first)), (first, second)), shape=(num_items, num_items)).tocsr().tocoo()
        times = np.bincount(item, minlength=num_items)
        score = met.data / np.sqrt(times[met.row] * times[met.col])
        order = np.lexsort((met.col, -score, met.row))
        row, col = met.row[order], met.col[order]
        rank = np.arange(len(row)) - np.searchsorted(row, row)
        neighbours = np.zeros((num_items, count), dtype=np.int64)
        best = rank < count
        neighbours[row[best], rank[best]] = col[best]
        return cls(neighbours)

    def known(self, item_ids: np.ndarray) -> np.ndarray:
        """Which items have a neighbour, bool [...]."""
        return self.neighbours[item_ids, 0] > 0

    def draw(self, item_ids: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A neighbour of each item, all equally likely; an item without neighbours stays, int64 [...]."""
        choices = np.count_nonzero(self.neighbours[item_ids], axis=-1)
        drawn = self.neighbours[item_ids, (rng.random(choices.shape) * choices).astype(np.int64)]
        return np.where(choices > 0, drawn, item_ids)


@dataclass(frozen=True)
class Substitute(_Share):
    r"""Put a similar item in place of a share of the events: h_l ~ neighbours(x_l) with chance `share`, else x_l.

    From CoSeRec (Liu et al., 2021, "Contrastive Self-supervised Sequential Recommendation with Robust Augmentation").
    What else is known of the event stays.

    Args:
        share: of the events.
        similar: neighbours of items.

    Shapes: unchanged.

    Example:
        >>> window = {"item_ids": np.array([2, 3]), "event_features": {}, "candidate_positions": np.array([2])}
        >>> similar = SimilarItems(np.array([[0], [0], [3], [2]]))
        >>> Substitute(1.0, similar)(window, np.random.default_rng(0))["item_ids"].tolist()
        [3, 2]
    """

    similar: SimilarItems

    def __call__(self, window: Window, rng: np.random.Generator) -> Window:
        """Apply to one window."""
        items = window["item_ids"]
        chosen = rng.random(len(items)) < self.share
        return window | {"item_ids": np.where(chosen, self.similar.draw(items, rng), items)}


@dataclass(frozen=True)
class Insert(_Share):
    r"""Put a similar item behind a share of the events: h = (..., x_l, y_l, x_{l+1}, ...), y_l ~ neighbours(x_l).

    From CoSeRec (Liu et al., 2021, "Contrastive Self-supervised Sequential Recommendation with Robust Augmentation"),
    which does so with short histories only: see [`ByLength`]. Nothing is known of an inserted event but its item; who
    sees x_l sees y_l. A window that grows beyond `max_history` loses its oldest events.

    Args:
        share: of the events.
        similar: neighbours of items.

    Shapes: L events become up to 2 L.

    Example:
        >>> window = {"item_ids": np.array([2, 3]), "event_features": {}, "candidate_positions": np.array([0, 1, 2])}
        >>> similar = SimilarItems(np.array([[0], [0], [3], [2]]))
        >>> changed = Insert(1.0, similar)(window, np.random.default_rng(0))
        >>> changed["item_ids"].tolist(), changed["candidate_positions"].tolist()
        ([2, 3, 3, 2], [0, 2, 4])
    """

    similar: SimilarItems

    def __call__(self, window: Window, rng: np.random.Generator) -> Window:
        """Apply to one window."""
        items = window["item_ids"]
        chosen = (rng.random(len(items)) < self.share) & self.similar.known(items)
        before = np.concatenate([[0], np.cumsum(chosen)])  # insertions among the first l events
        new = np.flatnonzero(chosen) + before[1:][chosen]  # where they come to stand
        take = np.repeat(np.arange(len(items)), 1 + chosen)
        position = window["candidate_positions"]
        changed = with_events(window, take, position + before[position])  # indexing made copies, to be written into
        changed["item_ids"][new] = self.similar.draw(items[chosen], rng)
        for values in changed["event_features"].values():
            values[new] = missing_rows(values, len(new))
        return changed


class Compose:
    """One transform after the other.

    Example:
        >>> window = {"item_ids": np.array([5]), "event_features": {}, "candidate_positions": np.array([1])}
        >>> Compose(Crop(0.0), Mask(1.0))(window, np.random.default_rng(0))["item_ids"].tolist()
        [1]
    """

    def __init__(self, *transforms: Transform) -> None:
        self.transforms = transforms

    def __call__(self, window: Window, rng: np.random.Generator) -> Window:
        """Apply to one window."""
        for transform in self.transforms:
            window = transform(window, rng)
        return window


class OneOf:
    """One of several transforms, drawn for each window, as CL4SRec and CoSeRec do.

    Args:
        transforms: to choose from.
        chance: that any is applied at all.

    Example:
        >>> window = {"item_ids": np.array([5]), "event_features": {}, "candidate_positions": np.array([1])}
        >>> OneOf(Mask(1.0), Crop(1.0), chance=0.0)(window, np.random.default_rng(0))["item_ids"].tolist()
        [5]
    """

    def __init__(self, *transforms: Transform, chance: float = 1.0) -> None:
        if not transforms or not 0 <= chance <= 1:
            raise ValueError(f"OneOf needs transforms and a chance in [0, 1], not {len(transforms)} and {chance}")
        self.transforms, self.chance = transforms, chance

    def __call__(self, window: Window, rng: np.random.Generator) -> Window:
        """Apply to one window."""
        chosen = self.transforms[int(rng.integers(len(self.transforms)))]
        return chosen(window, rng) if rng.random() < self.chance else window


class ByLength:
    """Short histories are changed in one way, long ones in another.

    CoSeRec (Liu et al., 2021) inserts and substitutes in histories of at most 12 events, to which cropping or masking
    would leave nothing, and crops, masks and reorders longer ones, too.

    Args:
        limit: events of a short history, at most.
        short, long: what to apply; None = nothing.

    Example:
        >>> window = {"item_ids": np.array([5, 6]), "event_features": {}, "candidate_positions": np.array([1])}
        >>> ByLength(1, short=None, long=Mask(1.0))(window, np.random.default_rng(0))["item_ids"].tolist()
        [1, 1]
    """

    def __init__(self, limit: int, short: Transform | None = None, long: Transform | None = None) -> None:
        self.limit, self.short, self.long = limit, short, long

    def __call__(self, window: Window, rng: np.random.Generator) -> Window:
        """Apply to one window."""
        chosen = self.short if len(window["item_ids"]) <= self.limit else self.long
        return window if chosen is None else chosen(window, rng)
