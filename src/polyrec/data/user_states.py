"""What running statistics know of each user, so that new events are counted without reading the earlier ones again.

It is kept in memory and made of the stored events, and no file holds it.
"""

from __future__ import annotations

import numpy as np

from polyrec.data.key_states import VALUES, KeyStates


class UserStates:
    """The state of one statistic for each user; its arrays grow by doubling.

    Example:
        >>> states = UserStates(targets=1)
        >>> rows = states.rows(np.array([70, 50], dtype=np.uint64))
        >>> one = np.ones((2, 1))
        >>> states.put(rows, KeyStates(np.array([1, 2]), one, one, np.ones(2), np.array([5.0, 6.0])))
        >>> states.at(states.rows(np.array([50, 60], dtype=np.uint64))).last.tolist()
        [6.0, nan]
    """

    def __init__(self, targets: int) -> None:
        self._rows: dict[int, int] = {}
        self._next = 0
        self._states = KeyStates.empty(np.zeros(0, dtype=np.int64), targets)

    def rows(self, hashes: np.ndarray) -> np.ndarray:
        """Where each user is kept, int64; new users get a place."""
        rows = self._rows
        for user in hashes.tolist():
            if user not in rows:
                rows[user] = self._next
                self._next += 1
        found = np.array([rows[user] for user in hashes.tolist()], dtype=np.int64)
        space = len(self._states.keys)
        if self._next > space:
            grown = KeyStates.empty(np.zeros(max(self._next, 2 * space), dtype=np.int64), self._states.sums.shape[1])
            for name in VALUES:
                getattr(grown, name)[:space] = getattr(self._states, name)
            self._states = grown
        return found

    def forget(self, hashes: np.ndarray) -> None:
        """Nothing is known of some users any more."""
        rows = [self._rows.pop(user) for user in hashes.tolist() if user in self._rows]
        self.put(np.array(rows, dtype=np.int64), KeyStates.empty(np.zeros(len(rows)), self._states.sums.shape[1]))

    def at(self, rows: np.ndarray) -> KeyStates:
        """The states of some places, under the keys 1, 2, ..."""
        own = self._states
        return KeyStates(np.arange(1, len(rows) + 1), own.sums[rows], own.counts[rows], own.rows[rows], own.last[rows])

    def put(self, rows: np.ndarray, new: KeyStates) -> None:
        """Overwrite the states of some places."""
        for name in VALUES:
            getattr(self._states, name)[rows] = getattr(new, name)
