"""Chance that can be repeated: draws of an event that depend on (seed, epoch, event) and on nothing else.

Windows, batches, ranks and workers then agree about an event without talking to each other, and a resumed run draws
what it would have drawn.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import pyarrow as pa

from polyrec.core.registry import nearest

VIEW = "the view of an event"  # keys of draws; those of negatives are names of tasks
DELAY = "the delay of an event"
ORDER = "the order of windows"


def uniform(event: np.ndarray, seed: int, epoch: int, key: str) -> np.ndarray:
    r"""A number in [0, 1) for each event, float64 with the shape of `event`.

    Formula: u = SplitMix64(s + \gamma e) / 2^{64}, with s from (seed, epoch, key): the e-th number of a stream that can
    be entered anywhere (Steele, Lea and Flood, 2014, "Fast Splittable Pseudorandom Number Generators").

    Args:
        event: int64, rows of a log.
        key: what is drawn; draws of two keys are independent.

    Example:
        >>> one, two = uniform(np.array([7, 8]), 0, 0, "a"), uniform(np.array([8, 7]), 0, 0, "a")
        >>> bool((one == two[::-1]).all())
        True
    """
    # The product wraps, as it should.
    x = splitmix64(_word(seed, epoch, key) + np.asarray(event).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return (x >> np.uint64(11)) * 2.0**-53


def stream(seed: int, epoch: int, key: str) -> int:
    """A seed for one purpose in one epoch, hashed: sums such as seed + epoch give two seeds the same epochs.

    Example:
        >>> stream(0, 1, "order") == stream(1, 0, "order")
        False
    """
    return int(_word(seed, epoch, key)[0] >> np.uint64(1))


@lru_cache(maxsize=128)  # windows that are read one by one ask for the same one
def _word(seed: int, epoch: int, key: str) -> np.ndarray:
    word = np.random.SeedSequence((seed, epoch, zlib.crc32(key.encode()))).generate_state(1, np.uint64)
    word.flags.writeable = False
    return word


def splitmix64(x: np.ndarray) -> np.ndarray:
    """The output function of SplitMix64, a bijection of uint64 after which every bit depends on every bit of `x`."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def id_hashes(ids: pa.Array, salt: bytes) -> np.ndarray:
    """A 64-bit hash of each id, uint64; numbers and the same numbers as text are alike.

    Args:
        salt: up to 64 bytes.
    """
    texts = ids.cast(pa.large_string()).to_pylist()  # ids of one table may be numbers and those of another strings
    digests = (hashlib.blake2b(text.encode(), digest_size=8, key=salt).digest() for text in texts)
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def check_keep_negatives(keep: Mapping[str, float], task_names: list[str], labels: np.ndarray) -> None:
    """Refuse shares outside (0, 1], unknown tasks and tasks whose labels are not yes or no.

    Args:
        keep: {task: share of its negatives that an epoch is asked}.
        task_names, labels: of the log, float32 [R, T].
    """
    for task, share in keep.items():
        if task not in task_names:
            raise ValueError(f"keep_negatives: unknown task {task!r}; {nearest(task, task_names)}")
        if not 0 < share <= 1:
            raise ValueError(f"keep_negatives[{task!r}] is {share}; it must be a share in (0, 1]")
        values = labels[:, task_names.index(task)]
        other = values[~np.isnan(values) & (values != 0) & (values != 1)]
        if len(other):
            raise ValueError(
                f"keep_negatives: task {task!r} has the label {other[0]:g}, so it has no negatives: only yes or no "
                "tasks (labels 0 and 1) can be sampled"
            )


def dropped_negatives(
    labels: np.ndarray, event: np.ndarray, share: float, seed: int, epoch: int, task: str
) -> np.ndarray:
    r"""Which labels of a task an epoch leaves out, bool [C]: positives all stay, negatives with chance `share`.

    Kept negatives being a share r of all, the odds among the kept rows are odds / r. A head that adds -\log r to its
    logit in training, h = z - \log r, is therefore right about the whole population with z alone (King and Zeng, 2001,
    "Logistic Regression in Rare Events Data"): that is the option `sampling_rate` = r of the binary head.

    Args:
        labels: float32 [C], 0, 1 or NaN.
        event: int64 [C], rows of the log.
        task: name of the task; tasks draw independently of each other.
    """
    return (labels == 0) & (uniform(event, seed, epoch, task) >= share)
