"""What a model was trained on, so that no student is evaluated on training rows of its teacher.

Letters: R events of a log, P users, N items, S kept hashes.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from polyrec.data.columns import FIRST
from polyrec.data.event_log import EventLog
from polyrec.data.sampling import id_hashes, splitmix64
from polyrec.data.sequences import SequenceDataset
from polyrec.data.splits import LeakageError

SKETCH = 1 << 16  # hashes that are kept: half a megabyte
_SALT_BYTES = 16


@dataclass(frozen=True)
class TrainingSetSketch:
    r"""Which events a model was trained on: how many, from when to when, and a bottom-k sketch of them.

    An event is (user id, item id, time, and the how-manieth of the log's events that share these three it is). The k =
    65,536 smallest of the events' 64-bit hashes are kept (Cohen and Kaplan, 2007, "Summarizing Data Using Bottom-k
    Sketches"): of n events each is among them with the chance min(1, k/n). An evaluation that shares m of the n is
    found out with the probability

        P = 1 - \binom{n-m}{k} / \binom{n}{k} >= 1 - (1 - k/n)^m,

    which is 1 up to 65,536 training rows; among a million, 100 shared rows are found with P > 0.998, and among a
    hundred million 10,000 shared rows with the same. Chance alone makes two different events look alike about once in
    2^64 / (k x evaluated rows): never in practice. What is found by time needs no luck: of a split by time, a teacher
    may have no training row later than the first evaluated row, and both times are exact.

    **What the hashes hide and what they do not.** Ids and times are not in the file and cannot be read out of it, and
    a random salt keeps files of two models (or a list of hashes made beforehand) from being compared with one another.
    But they hide no more than that: whoever has the file and *guesses* a user, an item and a time can test whether
    that event was a training event, and ids that come from a small or known set (row numbers, e-mail addresses) can be
    guessed by trying all of them. Set `processor.training_rows = None` before saving what you publish if that matters;
    such a model is then refused as a teacher unless its user trusts it.

    Args:
        number: of training events. After [`extended`] with more than k of them it is an estimate.
        first, latest: seconds, times of the earliest and the latest of them.
        sketch: uint64 [S], the smallest hashes, ascending, S = min(number, k).
        salt: of the hashes, bytes.

    Example:
        >>> from polyrec.data.event_log import EventLog
        >>> three = np.arange(3)
        >>> log = EventLog(three * 0, three + 2, three * 1.0, three, three, pa.array([7]), np.ones((3, 1)))
        >>> sketch = TrainingSetSketch.of(log, np.array([True, True, False]), pa.array(["a", "b", "c"]))
        >>> sketch.check(log, np.array([False, False, True]), pa.array(["a", "b", "c"]))
        >>> sketch.check(log, np.array([False, True, True]), pa.array(["a", "b", "c"]))
        Traceback (most recent call last):
            ...
        polyrec.data.splits.LeakageError: the teacher was trained on 1 of the 2 rows that the student is evaluated on...
    """

    number: int
    first: float
    latest: float
    sketch: np.ndarray
    salt: bytes

    @classmethod
    def of(cls, log: EventLog, rows: np.ndarray, items: pa.Array, size: int = SKETCH) -> TrainingSetSketch:
        """Of some events (bool [R]) of a log.

        Args:
            items: ids [N - 2] of the catalog, `processor.items.ids`.
            size: hashes to keep.
        """
        salt = secrets.token_bytes(_SALT_BYTES)
        found, time = np.zeros(0, dtype=np.uint64), log.time[rows]
        for own, hashes in _hashes(log, items, salt):
            found = np.sort(np.concatenate([found, hashes[rows[own]]]))[:size]
        first, latest = (float(time.min()), float(time.max())) if len(time) else (np.inf, -np.inf)
        return cls(len(time), first, latest, found, salt)

    @classmethod
    def of_examples(cls, dataset: SequenceDataset, items: pa.Array) -> TrainingSetSketch:
        """Of all events of a data set's examples."""
        rows = np.isin(np.arange(len(dataset.log)), dataset.candidates.event)
        return cls.of(dataset.log, rows, items)

    @property
    def is_complete(self) -> bool:
        """Whether every training event is in the sketch."""
        return len(self.sketch) == self.number

    def extended(self, log: EventLog, rows: np.ndarray, items: pa.Array, size: int = SKETCH) -> TrainingSetSketch:
        """With further events (bool [R]) of a log; earlier training events may be among them."""
        found = np.sort(event_hashes(log, items, self.salt)[rows])
        if not len(found):
            return self
        # Below the largest hash of the sketch it is known which events were trained on; above, the share of it there
        # speaks.
        inside = found if self.is_complete else found[found <= self.sketch[-1]]
        fresh = 1.0 if not len(inside) else 1 - np.isin(inside, self.sketch).mean()
        number = self.number + round(fresh * len(found))
        sketch = np.union1d(self.sketch, found)
        if not self.is_complete:
            sketch = sketch[: len(self.sketch)]  # hashes of earlier events above these were not kept
        time = log.time[rows]
        return TrainingSetSketch(
            number, min(self.first, float(time.min())), max(self.latest, float(time.max())), sketch[:size], self.salt
        )

    def check(
        self, log: EventLog, judged: np.ndarray, items: pa.Array, by_time: bool = False, what: str = "the teacher"
    ) -> None:
        """Refuse a teacher that was trained on any row that a student is evaluated on.

        Args:
            log: the student's.
            judged: bool [R], events that validate or test.
            items: ids of the student's catalog.
            by_time: the student's split is one by time, so nothing later than the first evaluated row may be known.
            what: whose rows these are, for messages.

        Raises:
            LeakageError: says how many rows, from when, and what to do.
        """
        if not judged.any() or not self.number:
            return
        time = log.time[judged]
        shared = np.isin(event_hashes(log, items, self.salt)[judged], self.sketch)
        fix = (
            "train it on the training rows of the student's split (the same table and `split`), or evaluate the "
            "student on rows that it was not trained on. A run that was updated was also trained on its updates: use "
            "the run before the update as the teacher, or make the student's data with the updated run's own "
            "processor (`resume` of all events; `training_set` of what it was trained on, `evaluation_set` of what the "
            "update held out)"
        )
        if shared.any():
            share = len(self.sketch) / self.number
            least, about = int(shared.sum()), min(round(shared.sum() / share), len(time))
            several = "" if self.is_complete else f" (about {about}: its sketch shows {share:.1%} of its rows)"
            raise LeakageError(
                f"{what} was trained on {least} of the {len(time)} rows that the student is evaluated on{several}, "
                f"at times {time[shared].min():.0f} to {time[shared].max():.0f}: {fix}"
            )
        if by_time and self.latest > time.min():
            raise LeakageError(
                f"{what} was trained on rows up to time {self.latest:.0f}, later than {time.min():.0f}, the first row "
                f"that the student is evaluated on: it knows the future of the student's training set; {fix}"
            )

    # -------------------------------------------------------------- on disk
    def arrays(self) -> dict[str, np.ndarray]:
        """Everything as arrays, for a file."""
        return {
            "number": np.array([self.number], dtype=np.int64),
            "times": np.array([self.first, self.latest]),
            "sketch": self.sketch,
            "salt": np.frombuffer(self.salt, dtype=np.uint8),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> TrainingSetSketch:
        """Rebuild from [`arrays`]."""
        first, latest = arrays["times"].tolist()
        return cls(int(arrays["number"][0]), first, latest, arrays["sketch"], arrays["salt"].tobytes())


def event_hashes(log: EventLog, items: pa.Array, salt: bytes) -> np.ndarray:
    """A 64-bit hash of every event of a log, uint64 [R]: of the ids, the time in milliseconds and the repetition.

    It depends on nothing that a processor decides (rows of tables, order of users), so logs of two processors agree.
    Items that are not in the catalog are all alike.

    Args:
        items: ids [N - 2] of the catalog.
        salt: up to 64 bytes.
    """
    found = np.empty(len(log), dtype=np.uint64)
    for own, hashes in _hashes(log, items, salt):
        found[own] = hashes
    return found


def _hashes(log: EventLog, items: pa.Array, salt: bytes) -> Iterator[tuple[slice, np.ndarray]]:
    """[`event_hashes`] of some users after the other."""
    users, known = id_hashes(log.user_ids, salt), np.append(id_hashes(items, salt), np.uint64(0))
    for own in log.user_blocks():
        item = log.item[own]
        time = log.time[own] if not log.drawn else np.zeros(len(item))  # places of a drawn order say nothing
        item_hash = np.where(item >= FIRST, known[np.maximum(item - FIRST, 0)], np.uint64(1))
        time_hash = np.round(time * 1e3).astype(np.int64).view(np.uint64)
        repeated = _repetition(log.user[own], item, time)
        with np.errstate(over="ignore"):
            yield (
                own,
                splitmix64(users[log.user[own]] + splitmix64(item_hash + splitmix64(time_hash + splitmix64(repeated)))),
            )


def _repetition(user: np.ndarray, item: np.ndarray, time: np.ndarray) -> np.ndarray:
    """How many events of the same user, item and time stand before each event, uint64 [R]."""
    order = np.lexsort((item, time, user))  # stable: the log's order within those that are alike
    alike = np.zeros(len(user), dtype=bool)
    alike[1:] = np.logical_and.reduce([values[order][1:] == values[order][:-1] for values in (user, time, item)])
    index = np.arange(len(user))
    found = np.empty(len(user), dtype=np.uint64)
    found[order] = index - np.maximum.accumulate(np.where(alike, 0, index))
    return found
