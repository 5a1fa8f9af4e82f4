"""Event tables: what running statistics read, and which keys occur in which rows.

Letters: R rows of the table, T targets, M occurrences of a key in a row (M > R where rows have several values).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from polyrec.core.registry import nearest

CODE_BITS = 31  # a pair of codes is packed into one int64: first << 31 | second


@dataclass(frozen=True)
class MultiValued:
    """Several codes per row in Arrow's list layout: row r holds values[offsets[r]:offsets[r + 1]].

    Args:
        values: int64 [M].
        offsets: int64 [R + 1], from 0 to M.
    """

    values: np.ndarray
    offsets: np.ndarray

    def __post_init__(self) -> None:
        offsets = self.offsets
        if not len(offsets) or offsets[0] != 0 or offsets[-1] != len(self.values) or (np.diff(offsets) < 0).any():
            raise ValueError(f"offsets must ascend from 0 to len(values) = {len(self.values)}")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, rows: np.ndarray) -> MultiValued:
        """Some of the rows, by index or boolean mask.

        Example:
            >>> MultiValued(np.array([5, 6, 7]), np.array([0, 2, 3]))[np.array([1, 0])].values.tolist()
            [7, 5, 6]
        """
        rows = np.arange(len(self))[rows]
        lengths = np.diff(self.offsets)[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        inside = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        return MultiValued(self.values[np.repeat(self.offsets[rows], lengths) + inside], offsets)


Codes = np.ndarray | MultiValued


@dataclass(frozen=True)
class EventTable:
    """What statistics read, in any order of rows.

    Args:
        time: [R], seconds.
        keys: {name: codes below 2^31}, int64 [R], or with several values per row int64 [R, K] or [`MultiValued`].
            "item" and "user" must be among them.
        targets: float64 [R, T], labels, NaN = unknown.
        missing: codes up to this one mean that the value is missing. The default, 0, fits padded codes; say -1 where
            0 is a value.
    """

    time: np.ndarray
    keys: dict[str, Codes]
    targets: np.ndarray
    missing: int = 0

    def __post_init__(self) -> None:
        for name, values in {**self.keys, "targets": self.targets}.items():
            if len(values) != len(self.time):
                raise ValueError(
                    f"{name!r} has {len(values)} rows but time has {len(self.time)}: give one row per event"
                )
        if not np.isfinite(self.time).all():
            row = int((~np.isfinite(self.time)).argmax())
            raise ValueError(f"time of row {row} is {self.time[row]}: drop events without a time or give them one")
        if self.targets.ndim != 2:
            raise ValueError(
                f"targets has shape {self.targets.shape}: make it [R, T], e.g. labels[:, None] for one target"
            )
        for name, codes in self.keys.items():
            _check_codes(name, codes.values if isinstance(codes, MultiValued) else codes)
        for name in ("item", "user"):
            codes = self.codes(name)
            if isinstance(codes, MultiValued) or codes.ndim > 1:
                raise ValueError(f"key {name!r} has several values per row: every event has one {name}")

    def __len__(self) -> int:
        return len(self.time)

    def codes(self, key: str) -> Codes:
        """The codes of one key; an unknown name is refused with the nearest known one."""
        if key not in self.keys:
            raise ValueError(f"the table has no key {key!r}; {nearest(key, sorted(self.keys))}")
        return self.keys[key]

    def take(self, rows: np.ndarray) -> EventTable:
        """Some of the rows, by index or boolean mask."""
        keys = {name: codes[rows] for name, codes in self.keys.items()}
        return EventTable(self.time[rows], keys, self.targets[rows], self.missing)


def _check_codes(name: str, codes: np.ndarray) -> None:
    if not np.issubdtype(codes.dtype, np.integer):
        raise ValueError(f"key {name!r} has dtype {codes.dtype}: encode it as integer codes (bin numbers first)")
    if len(codes) and int(codes.max(initial=0)) >= 2**CODE_BITS:
        raise ValueError(f"key {name!r} has the code {codes.max()}: number its values densely, below 2^{CODE_BITS}")


def occurrences(codes: Codes, missing: int) -> tuple[np.ndarray, np.ndarray]:
    """Which codes occur in which rows: each once per row, codes <= `missing` left out.

    Args:
        codes: int64 [R], [R, K] or ragged.

    Returns:
        rows [M], ascending, and codes [M].

    Example:
        >>> rows, codes = occurrences(np.array([[3, 4], [5, 0], [6, 6]]), missing=0)
        >>> rows.tolist(), codes.tolist()
        ([0, 0, 1, 2], [3, 4, 5, 6])
    """
    if isinstance(codes, MultiValued):
        rows, values = np.repeat(np.arange(len(codes)), np.diff(codes.offsets)), codes.values
    else:
        width = codes.shape[1] if codes.ndim > 1 else 1
        rows, values = np.repeat(np.arange(len(codes)), width), codes.reshape(-1)
    present = values > missing
    if present.all():
        rows, values = rows.copy(), values
    else:
        rows, values = rows[present], values[present]
    if len(rows) > 1 and (np.diff(rows) == 0).any():
        # A value listed twice in one row (two unknown genres, say) is one event of that value, not two.
        order = np.lexsort((values, rows))
        rows, values = rows[order], values[order]
        first = np.concatenate([[True], (np.diff(rows) > 0) | (np.diff(values) > 0)])
        rows, values = rows[first], values[first]
    return rows, values


def cross(columns: list[Codes], missing: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Occurrences of a combination of keys, packed into one int64.

    Args:
        columns: none (one group of all rows), one or two columns of codes in [0, 2^31), at most one of them with
            several values per row.
        rows: R.

    Returns:
        rows [M], ascending, and packed codes [M].

    Example:
        >>> row, packed = cross([np.array([1, 2]), np.array([[3, 4], [5, 0]])], missing=0, rows=2)
        >>> row.tolist(), (packed >> CODE_BITS).tolist(), (packed & (2**CODE_BITS - 1)).tolist()
        ([0, 0, 1], [1, 1, 2], [3, 4, 5])
    """
    if not columns:
        return np.arange(rows), np.zeros(rows, dtype=np.int64)
    several = [isinstance(c, MultiValued) or c.ndim > 1 for c in columns]
    if len(columns) > 2 or sum(several) > 1:
        raise ValueError("a statistic takes at most two keys, and at most one of them may be multi-valued")
    row, packed = occurrences(columns[several.index(True) if True in several else 0], missing)
    if len(columns) == 2:
        single = several.index(False) if True in several else 1
        other = columns[single]
        assert isinstance(other, np.ndarray)
        keep = other[row] > missing
        row, packed = row[keep], packed[keep]
        first, second = (other[row], packed) if single == 0 else (packed, other[row])
        packed = (first.astype(np.int64) << CODE_BITS) | second
    return row, packed.astype(np.int64)
