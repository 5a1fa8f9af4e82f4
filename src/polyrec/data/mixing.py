"""Several data sets in one training: tables under one another, or windows of several sets in one epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polyrec.core.registry import nearest
from polyrec.core.schema import ROW_ORDER, Columns
from polyrec.data.event_log import Candidates
from polyrec.data.ids import with_one_type
from polyrec.data.row_lists import with_lists, with_row_users
from polyrec.data.sequences import SequenceDataset, WindowDataset
from polyrec.data.tables import column, read_table


def concatenate_tables(
    tables: Mapping[str, Any], columns: Columns | None = None, source: str | None = None
) -> pa.Table:
    """One event log of several, which may label different tasks: what a table has no column for is unknown there.

    A user's history then holds the events of all tables, in the order of their times. Rows are not joined: a click
    and a rating of the same item are two events.

    Args:
        tables: {name: anything `read_table` takes}; names are for messages and for `source`.
        columns: user, item and time (and order, if given) must be in every table.
        source: a new column that holds the name of each row's table.

    Raises:
        ValueError: names the table and the column that is missing, in the way, or of another type.

    Example:
        >>> clicks = {"user_id": [1, 2], "item_id": [7, 8], "timestamp": [10, 11], "click": [1, 0]}
        >>> stars = {"user_id": [1], "item_id": [9], "timestamp": [12], "rating": [4.5]}
        >>> concatenate_tables({"clicks": clicks, "stars": stars}, source="origin").to_pydict()["rating"]
        [None, None, 4.5]
    """
    columns = Columns() if columns is None else columns
    if not tables:
        raise ValueError("no tables given: pass at least one, e.g. {'clicks': 'clicks.parquet'}")
    read: dict[str, pa.Table] = {}
    for name, given in tables.items():
        table = read_table(given, name)
        columns = with_row_users(columns, table)
        table = with_lists(table, columns, name)
        for key, role in ((columns.user, "user id"), (columns.item, "item id"), (columns.time, "time")):
            if key is not None and key != ROW_ORDER:
                column(table, key, name, role)
        if columns.order is not None:
            column(table, columns.order, name, "order")
        if source is not None and source in table.column_names:
            raise ValueError(f"{name}: there is a column {source!r} already: give the source column another name")
        read[name] = table if source is None else table.append_column(source, pa.array([name] * table.num_rows))
    read = with_one_type(read, {columns.user: "user id", columns.item: "item id"})
    if columns.history is not None:  # lists of ids have the type of the items
        read = {name: with_lists(table, columns, name) for name, table in read.items()}
    try:
        return pa.concat_tables(read.values(), promote_options="permissive").combine_chunks()
    except pa.ArrowException as error:
        raise ValueError(f"{_other_types(read)}: give the columns of all tables one type ({error})") from error


def _other_types(tables: Mapping[str, pa.Table]) -> str:
    """Which columns have several types, for a message."""
    found: dict[str, dict[str, str]] = {}
    for name, table in tables.items():
        for field in table.schema:
            found.setdefault(field.name, {})[str(field.type)] = name
    return "; ".join(
        f"column {key!r} is {' and '.join(f'{kind} in {name}' for kind, name in kinds.items())}"
        for key, kinds in found.items()
        if len(kinds) > 1
    )


def split_by_source(dataset: SequenceDataset, source: Any) -> dict[str, SequenceDataset]:
    """One data set per source of its candidates; all of them read the same log.

    Args:
        dataset: of a log whose table has a column of sources, see [`concatenate_tables`].
        source: that column, one value per row of the table.

    Example:
        >>> table = concatenate_tables({"clicks": clicks, "stars": stars}, source="origin")    # doctest: +SKIP
        >>> parts = split_by_source(processor.split(table).train, table["origin"])             # doctest: +SKIP
        >>> train = MixedDataset(parts, temperature=2.0)                                       # doctest: +SKIP
    """
    candidates = dataset.candidates
    coded = pc.dictionary_encode(pa.chunked_array(source) if isinstance(source, pa.ChunkedArray) else pa.array(source))
    coded = coded.combine_chunks() if isinstance(coded, pa.ChunkedArray) else coded
    untimed = dataset.log.untimed  # what rows list is of no row of the table
    rows = len(dataset.log) if untimed is None else int((~untimed).sum())
    if len(coded) != rows:
        raise ValueError(f"source has {len(coded)} values but the log has {rows} rows: give one per row")
    codes = np.asarray(coded.indices)[dataset.log.row][candidates.event]
    found = {}
    for code, name in enumerate(coded.dictionary.to_pylist()):
        if (codes == code).any():
            kept = Candidates(
                *(values[codes == code] for values in (candidates.event, candidates.position, candidates.statistic))
            )
            found[str(name)] = dataset.with_candidates(kept, dataset.statistics)
    return found


class MixedDataset(WindowDataset):
    r"""Windows of several data sets, mixed in fixed shares.

    Formula: data set i, of n_i windows, has the share q_i = n_i^{1/\tau} / \sum_j n_j^{1/\tau} of an epoch: \tau = 1
    leaves the mixture as it is, a larger temperature \tau raises the share of small sets, \tau = \infty makes all equal
    (Conneau et al., 2020, "Unsupervised Cross-lingual Representation Learning at Scale"; Xue et al., 2021, "mT5: A
    Massively Multilingual Pre-trained Text-to-Text Transformer").

    Every epoch has the same number of windows of each set. A set is read in passes, each in an order of its own, and
    an epoch goes on where the last one stopped: no window is read again before all others of its set were. What a
    window draws (order of ties, view, negatives) it draws for the pass. All of this depends on seed and epoch alone.

    All sets come of one processor, i.e. have the same features and item table. They may label different tasks: tasks
    that a set does not have are unknown there (NaN), and sets without weights weigh 1.

    Args:
        datasets: {name: data set}.
        temperature: \tau >= 1.
        shares: {name: share of an epoch}, in place of a temperature; positive, summing to 1.
        size: windows of an epoch; default: as many as the sets have together.
        seed: of the orders; in training the trainer's takes its place, here and in the data sets.

    Example:
        >>> MixedDataset({}, temperature=2.0)
        Traceback (most recent call last):
            ...
        ValueError: no data sets given: pass at least one, e.g. {'clicks': dataset}
    """

    def __init__(
        self,
        datasets: Mapping[str, SequenceDataset],
        temperature: float = 1.0,
        shares: Mapping[str, float] | None = None,
        size: int | None = None,
        seed: int = 0,
    ) -> None:
        if not datasets:
            raise ValueError("no data sets given: pass at least one, e.g. {'clicks': dataset}")
        self.datasets, self.seed = dict(sorted(datasets.items())), seed  # the order given must not change what is drawn
        self._parts = list(self.datasets.values())
        for name, dataset in self.datasets.items():
            if not len(dataset):
                raise ValueError(f"data set {name!r} has no windows: leave it out")
        _check_features(self.datasets)
        sizes = np.array([len(d) for d in self._parts])
        self.shares = _shares(self.datasets, sizes, temperature, shares)
        self._quota = _round(np.array(list(self.shares.values())), int(sizes.sum()) if size is None else size)
        self.task_names = list(dict.fromkeys(name for d in self._parts for name in d.task_names))
        self._weighted = sorted({name for d in self._parts for name in d.log.sample_weight})
        self._first_candidate = np.cumsum([0] + [d.num_candidates for d in self._parts])
        self.set_epoch(0)

    def __len__(self) -> int:
        return int(self._quota.sum())

    @property
    def num_candidates(self) -> int:
        """Candidates of all data sets."""
        return int(self._first_candidate[-1])

    @property
    def lengths(self) -> list[int]:
        """Events or candidates of each window of this epoch, whichever are more."""
        lengths = [np.array(d.lengths) for d in self._parts]
        return np.concatenate([lengths[i][drawn] for i, drawn in enumerate(self._windows)]).tolist()

    def set_epoch(self, epoch: int) -> None:
        """Choose the windows of an epoch."""
        self.epoch = epoch
        drawn = [self._draw(i, epoch) for i in range(len(self._parts))]
        self._windows, self._passes = [w for w, _ in drawn], [p for _, p in drawn]
        self._ends = np.cumsum(self._quota)

    def set_seed(self, seed: int) -> None:
        """Draw by another seed, the data sets' windows, too."""
        super().set_seed(seed)
        for dataset in self._parts:
            dataset.set_seed(seed)
        self.set_epoch(self.epoch)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One window; `candidate_rows` count through the data sets one after the other."""
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        part = int(np.searchsorted(self._ends, index, side="right"))
        at = index - (self._ends[part] - self._quota[part])
        window = self._parts[part].window(int(self._windows[part][at]), int(self._passes[part][at]))
        count = len(window["candidate_ids"])
        unknown = np.full(count, np.nan, dtype=np.float32)
        window["labels"] = {name: window["labels"].get(name, unknown) for name in self.task_names}
        window["candidate_rows"] = window["candidate_rows"] + self._first_candidate[part]
        if self._weighted:
            given, one = window.get("sample_weight", {}), np.ones(count, dtype=np.float32)
            window["sample_weight"] = {name: given.get(name, one) for name in self._weighted}
        return window

    def _draw(self, part: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Windows of a data set in an epoch and the pass that each belongs to, int64 [quota] each."""
        size, quota = len(self._parts[part]), int(self._quota[part])
        at = np.arange(epoch * quota, (epoch + 1) * quota)  # in the endless row of passes
        passes = at // size
        key = int.from_bytes(list(self.datasets)[part].encode(), "big")
        windows = np.empty(quota, dtype=np.int64)
        for one in np.unique(passes):
            order = np.random.default_rng((self.seed, key, int(one))).permutation(size)
            windows[passes == one] = order[at[passes == one] % size]
        return windows, passes


def _shares(
    datasets: Mapping[str, SequenceDataset],
    sizes: np.ndarray,
    temperature: float,
    given: Mapping[str, float] | None,
) -> dict[str, float]:
    if given is None:
        if not temperature >= 1:
            raise ValueError(f"temperature is {temperature}; it must be >= 1 (1 leaves the mixture as it is)")
        raised = sizes ** (1 / temperature)
        return dict(zip(datasets, (raised / raised.sum()).tolist(), strict=True))
    if temperature != 1:
        raise ValueError("give either a temperature or shares, not both")
    for name in given:
        if name not in datasets:
            raise ValueError(f"shares: unknown data set {name!r}; {nearest(name, list(datasets))}")
    for name in datasets:
        if name not in given:
            raise ValueError(f"shares: data set {name!r} has no share: give one to each, or leave the data set out")
    if not all(share > 0 for share in given.values()) or not np.isclose(sum(given.values()), 1):
        raise ValueError(f"shares must be positive and sum to 1, not {dict(given)}")
    return {name: float(given[name]) for name in datasets}


def _round(shares: np.ndarray, size: int) -> np.ndarray:
    """Whole numbers in these shares that sum to `size`, by the largest remainders; none is 0."""
    if size < len(shares):
        raise ValueError(f"size is {size}: an epoch must hold a window of each of the {len(shares)} data sets")
    exact = shares * size
    count = np.maximum(np.floor(exact).astype(np.int64), 1)
    while (left := int(size - count.sum())) != 0:  # a handful of data sets, a handful of turns
        missing = exact - count if left > 0 else np.where(count > 1, count - exact, -np.inf)
        count[np.argmax(missing)] += np.sign(left)
    return count


def _check_features(datasets: Mapping[str, SequenceDataset]) -> None:
    """Refuse data sets that give the model different inputs: they would not fit into one batch."""
    names = list(datasets)
    expected = _features(datasets[names[0]])
    for name in names[1:]:
        found = _features(datasets[name])
        different = sorted(key for key in {*expected, *found} if expected.get(key) != found.get(key))
        if different:
            raise ValueError(
                f"data sets {names[0]!r} and {name!r} differ in the features {different}: make both with one processor"
            )


def _features(dataset: SequenceDataset) -> dict[str, tuple]:
    log = dataset.log
    groups = {"event": log.event_features, "candidate": log.candidate_features, "user": log.user_features}
    found = {f"{g} {n}": (v.shape[1:], v.dtype.kind) for g, features in groups.items() for n, v in features.items()}
    if dataset.statistics is not None:
        found["statistics"] = (dataset.statistics.shape[1:], dataset.statistics.dtype.kind)
    return found
