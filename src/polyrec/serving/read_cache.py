"""What a model read of histories, kept until it is asked for the same ones again."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

import numpy as np

Arrays = dict[str, np.ndarray]
_BYTES = 1 << 28


class ReadCache:
    """Outputs of a graph that reads histories, by what it reads: a history that has changed is another one, so nothing
    goes out of date when events come.

    Letters: B users, L events.

    Args:
        most: bytes of all outputs that are kept; those that were not asked for the longest go first.

    Example:
        >>> cache, calls = ReadCache(), []
        >>> def graph(given):
        ...     calls.append(len(given["item_ids"]))
        ...     return {"states": np.pad(given["item_ids"], ((0, 0), (1, 0)))[..., None].astype(float)}
        >>> found = cache.read({"item_ids": np.array([[5, 7], [6, 0]])}, ["item_ids"], graph)
        >>> found = cache.read({"item_ids": np.array([[6, 0, 0], [5, 6, 7]])}, ["item_ids"], graph)
        >>> found["states"][..., 0].tolist(), calls
        ([[0.0, 6.0, 0.0, 0.0], [0.0, 5.0, 6.0, 7.0]], [2, 1])
    """

    def __init__(self, most: int = _BYTES) -> None:
        self.most, self.size = most, 0
        self._kept: OrderedDict[bytes, Arrays] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def clear(self) -> None:
        """Forget all, as the model has changed."""
        self._kept.clear()
        self.size = 0

    def read(self, given: Mapping[str, np.ndarray], inputs: Sequence[str], graph: Callable[[Arrays], Arrays]) -> Arrays:
        """The outputs of a graph, [B, L + 1, ...], zeros behind the end of a history.

        Args:
            given: the batch; `item_ids` [B, L], 0 = padding on the right.
            inputs: names of what the graph reads of it: `item_ids`, features of events and of users.
            graph: called with the rows that are not known.
        """
        ids_BL = given["item_ids"]
        lengths = (ids_BL > 0).sum(axis=1).tolist()
        of_events = {name: name == "item_ids" or name.startswith("event_features.") for name in inputs}
        keys = []
        for row, length in enumerate(lengths):
            digest = hashlib.blake2b(digest_size=16)
            for name, cut in of_events.items():
                own = given[name][row]
                digest.update((own[:length] if cut else own).tobytes())
            keys.append(digest.digest())
        known = {key: self._kept[key] for key in keys if key in self._kept}
        missing = [n for n, key in enumerate(keys) if key not in known]
        if missing:
            longest = max(lengths[n] for n in missing)
            some = {n: given[n][missing][:, :longest] if cut else given[n][missing] for n, cut in of_events.items()}
            for name, values in graph(some).items():
                for place, n in enumerate(missing):
                    known.setdefault(keys[n], {})[name] = values[place, : lengths[n] + 1].copy()
        self._keep({key: known[key] for key in keys})
        return _padded([known[key] for key in keys], ids_BL.shape[1] + 1)

    def _keep(self, used: Mapping[bytes, Arrays]) -> None:
        for key, outputs in used.items():
            if key not in self._kept:
                self.size += _bytes(outputs)
            self._kept[key] = outputs
            self._kept.move_to_end(key)
        while self.size > self.most:
            self.size -= _bytes(self._kept.popitem(last=False)[1])


def _bytes(outputs: Arrays) -> int:
    return sum(values.nbytes for values in outputs.values())


def _padded(rows: Sequence[Arrays], length: int) -> Arrays:
    found = {}
    for name, first in rows[0].items():
        values = found[name] = np.zeros((len(rows), length, *first.shape[1:]), first.dtype)
        for n, own in enumerate(rows):
            values[n, : len(own[name])] = own[name]
    return found
