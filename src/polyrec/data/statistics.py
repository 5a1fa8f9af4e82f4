r"""Running statistics: what the log knew strictly before each row.

Counts, shrunk residual means and times since last of items, attribute values, people and pairs of them, computed in
one sorted pass per key. Measured on real logs they carry more than any architecture, so they are inputs of every
candidate and every past event.

Residuals are taken against running baselines (Koren, 2009, "Collaborative Filtering with Temporal Dynamics", the
bias model), each at the row's own time: the global mean mu, the item's bias b_i and the person's bias b_u,

    mu_t  = (k mu_0 + sum y) / (k + n)                 over all earlier rows
    b_i,t = sum (y - mu) / (k_i + n_i)                 over earlier rows of the item
    b_u,t = sum (y - mu - b_i) / (k_u + n_u)           over earlier rows of the person

where adding k to the count shrinks a mean towards 0 (empirical Bayes; Efron and Morris, 1975).

Letters: R rows, F features, T targets.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from polyrec.data.prefix_sums import Occurrences
from polyrec.registry import nearest
from polyrec.schema import from_dict

BASELINES = {
    "none": (),
    "global": ("global",),
    "item": ("global", "item"),
    "user": ("global", "user"),
    "item+user": ("global", "item", "user"),
}
_CONFIG_NAME = "statistics.json"


@dataclass(frozen=True)
class EventTable:
    """What statistics read, in any order of rows.

    Args:
        time: float64 [R], seconds.
        keys: {name: int64 [R] or [R, K]}, codes below 2^31; 0 = missing. "item" and "user" must be among them.
        targets: float64 [R, T], labels, NaN = unknown.
    """

    time: np.ndarray
    keys: dict[str, np.ndarray]
    targets: np.ndarray

    def __post_init__(self) -> None:
        for name, values in {**self.keys, "targets": self.targets}.items():
            if len(values) != len(self.time):
                raise ValueError(f"{name!r} has {len(values)} rows but time has {len(self.time)}")
        if np.isnan(self.time).any():
            raise ValueError(f"time is missing in row {int(np.isnan(self.time).argmax())}")

    def take(self, rows: np.ndarray) -> EventTable:
        """Some of the rows."""
        return EventTable(self.time[rows], {n: v[rows] for n, v in self.keys.items()}, self.targets[rows])


@dataclass(frozen=True)
class StatisticConfig:
    """One statistic: residual means of all targets by key.

    Args:
        keys: one or two keys; () = the whole log.
        baseline: what is subtracted from the label first: "none", "global" (mu), "item" (mu + b_i), "user" (mu + b_u),
            "item+user" (mu + b_i + b_u).
        shrinkage: pseudo-count k of the mean.
        recent: None = all earlier rows count alike; h = a row's weight halves with every h later rows of the key.
        count, gap: add log(1 + earlier rows) and log(1 + seconds since the last one).
        reduce: for a key with several values per row: any of "mean", "max", "min" over the values.
    """

    keys: tuple[str, ...]
    baseline: str
    shrinkage: float = 5.0
    recent: float | None = None
    count: bool = False
    gap: bool = False
    reduce: tuple[str, ...] = ("mean",)

    def __post_init__(self) -> None:
        object.__setattr__(self, "keys", tuple(self.keys))
        object.__setattr__(self, "reduce", tuple(self.reduce))
        if self.baseline not in BASELINES:
            raise ValueError(f"unknown baseline {self.baseline!r}; {nearest(self.baseline, list(BASELINES))}")
        if self.shrinkage < 0 or (self.recent is not None and self.recent <= 0):
            raise ValueError(f"shrinkage must be >= 0 and recent > 0, not {self.shrinkage} and {self.recent}")

    @property
    def name(self) -> str:
        """Readable and unique: keys, baseline if it is not what is left after all others, recency."""
        recent = "" if self.recent is None else f".recent{self.recent:g}"
        return f"{'*'.join(self.keys) or 'log'}-{self.baseline}{recent}"

    @property
    def decay(self) -> float:
        """Weight of a row after one later row of the same key."""
        return 1.0 if self.recent is None else 0.5 ** (1 / self.recent)

    def feature_names(self, targets: Sequence[str]) -> list[str]:
        """Names of the features, in order."""
        means = [f"{self.name}.{t}" + ("" if r == "mean" else f".{r}") for r in self.reduce for t in targets]
        extra = [("log_count", self.count), ("log_seconds_since", self.gap)]
        return means + [f"{self.name}.{n}" for n, wanted in extra if wanted]


# The three levels of the bias model; each is also a statistic whose state is kept.
_LEVELS = {
    "global": StatisticConfig((), "none", shrinkage=100.0),
    "item": StatisticConfig(("item",), "global"),
    "user": StatisticConfig(("user",), "item"),
}


class RunningStatistics:
    """Running statistics of a log, and their state for serving.

    Args:
        statistics: what to count.
        targets: names of the T labels.
        prior: [T], mean of each label before anything was seen (mu_0).

    `compute` treats its table as the whole log; `update` advances the state by a table, after which `transform` treats
    a table as the continuation of what was seen.

    Example:
        >>> stats = RunningStatistics([StatisticConfig(("item",), "none", shrinkage=0, count=True)], ["like"])
        >>> table = EventTable(np.array([1.0, 2.0, 3.0]), {"item": np.array([7, 7, 7]), "user": np.array([1, 2, 3])},
        ...                    np.array([[1.0], [0.0], [1.0]]))
        >>> stats.names
        ['baseline.like', 'item-none.like', 'item-none.log_count']
        >>> stats.compute(table)[:, 1].tolist()  # nothing, then 1/1, then 1/2
        [nan, 1.0, 0.5]
    """

    def __init__(
        self, statistics: Sequence[StatisticConfig], targets: Sequence[str], prior: Sequence[float] | None = None
    ) -> None:
        self.statistics, self.targets = list(statistics), list(targets)
        self.prior = np.zeros(len(self.targets)) if prior is None else np.asarray(prior, dtype=np.float64)
        names = [s.name for s in self.statistics]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"statistic {name!r} is listed twice: keys, baseline and recency must differ")
        self.names = [f"baseline.{t}" for t in self.targets]
        self.names += [n for s in self.statistics for n in s.feature_names(self.targets)]
        self.reset()

    @classmethod
    def default(
        cls, item_keys: Sequence[str], user_keys: Sequence[str], targets: Sequence[str], multi: Sequence[str] = ()
    ) -> RunningStatistics:
        """A strong set for any log: biases, attribute values, and pairs of person and item side.

        Args:
            item_keys, user_keys: attribute keys beside "item" and "user".
            targets: names of the labels.
            multi: which of the attribute keys hold several values per row.
        """
        both = ("mean", "max", "min")
        found = [
            StatisticConfig(("user",), "item", count=True, gap=True),
            StatisticConfig(("user",), "global"),
            StatisticConfig(("item",), "global", count=True, gap=True),
            StatisticConfig(("item",), "user"),
            *(StatisticConfig(("user",), "item", shrinkage=1, recent=h) for h in (1, 4)),
        ]
        for a in user_keys:
            found.append(StatisticConfig((a,), "item", shrinkage=50))
            found.append(StatisticConfig(("item", a), "item"))
        for b in item_keys:
            spread = both if b in multi else ("mean",)
            found.append(StatisticConfig((b,), "item", shrinkage=20))
            found.append(StatisticConfig(("user", b), "item+user", shrinkage=3, count=True, reduce=spread))
            found += [
                StatisticConfig((a, b), "item", shrinkage=30) for a in user_keys if not (a in multi and b in multi)
            ]
        return cls(found, targets)

    def reset(self) -> None:
        """Forget everything."""
        self._states: dict[str, _State] = {}
        self.last_time = -np.inf

    # -------------------------------------------------------------- compute
    def compute(
        self, table: EventTable, visible_until: np.ndarray | None = None, source: np.ndarray | None = None
    ) -> np.ndarray:
        """Features of every row of a whole log, float32 [R, F], NaN = unknown.

        Args:
            visible_until: float64 [R], seconds; a row sees only rows before min(its time, this). Default: its time.
            source: bool [R], rows that may be counted at all. Default: all.
        """
        return _Pass(self, table, {}, visible_until, source).features()

    def transform(self, table: EventTable) -> np.ndarray:
        """Features of rows that continue what [`update`] has seen, float32 [R, F]; the state does not change."""
        return _Pass(self, table, self._states, None, None).features()

    def update(self, table: EventTable) -> None:
        """Advance the state by later events.

        Raises:
            ValueError: an event is earlier than the latest one seen: counts would not be those of any moment.
        """
        if not len(table.time):
            return
        early = table.time < self.last_time
        if early.any():
            row = int(early.argmax())
            raise ValueError(
                f"row {row} has time {table.time[row]:.0f}, earlier than {self.last_time:.0f}, the latest event "
                "already counted: update with events in time order, each once"
            )
        self._states = _Pass(self, table, self._states, None, None).advance()
        self.last_time = float(table.time.max())

    # -------------------------------------------------------------- on disk
    def save(self, folder: str | Path, include_users: bool = False) -> None:
        """Write statistics.json and one parquet file per statistic.

        Args:
            include_users: also write what is kept per person (off by default: nothing about people leaves).
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "statistics": [asdict(s) for s in self.statistics],
            "targets": self.targets,
            "prior": self.prior.tolist(),
            "last_time": None if np.isinf(self.last_time) else self.last_time,
            "files": {},
        }
        for number, (name, state) in enumerate(sorted(self._states.items())):
            if include_users or "user" not in name.split("-")[0].split("*"):
                config["files"][name] = f"{number:03d}.parquet"
                pq.write_table(state.to_table(), folder / config["files"][name])
        (folder / _CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> RunningStatistics:
        """Rebuild from [`save`]."""
        folder = Path(folder)
        config = json.loads((folder / _CONFIG_NAME).read_text(encoding="utf-8"))
        stats = cls([from_dict(StatisticConfig, s) for s in config["statistics"]], config["targets"], config["prior"])
        stats.last_time = -np.inf if config["last_time"] is None else config["last_time"]
        stats._states = {
            name: _State.from_table(pq.read_table(folder / file)) for name, file in config["files"].items()
        }
        return stats


@dataclass
class _State:
    """What is kept per key of one statistic: packed keys [G], sums and counts [G, T], rows [G], last time [G]."""

    keys: np.ndarray
    sums: np.ndarray
    counts: np.ndarray
    rows: np.ndarray
    last: np.ndarray

    def at(self, keys: np.ndarray) -> _State:
        """The state of given keys [H]; zeros for keys never seen."""
        index = np.minimum(np.searchsorted(self.keys, keys), max(len(self.keys) - 1, 0))
        known = self.keys[index] == keys if len(self.keys) else np.zeros(len(keys), dtype=bool)

        def pick(values: np.ndarray, empty: float) -> np.ndarray:
            found = np.full((len(keys), *values.shape[1:]), empty)
            found[known] = values[index[known]]
            return found

        return _State(keys, pick(self.sums, 0.0), pick(self.counts, 0.0), pick(self.rows, 0.0), pick(self.last, np.nan))

    @classmethod
    def empty(cls, targets: int) -> _State:
        """Nothing seen."""
        nothing = np.zeros((0, targets))
        return cls(np.zeros(0, dtype=np.int64), nothing, nothing, np.zeros(0), np.zeros(0))

    def merged(self, new: _State) -> _State:
        """Replace the keys of `new`, keep the others."""
        keep = ~np.isin(self.keys, new.keys)
        parts = [
            np.concatenate([getattr(self, n)[keep], getattr(new, n)])
            for n in ("keys", "sums", "counts", "rows", "last")
        ]
        order = np.argsort(parts[0], kind="stable")
        return _State(*(p[order] for p in parts))

    def to_table(self) -> pa.Table:
        columns: dict[str, Any] = {"key": self.keys, "rows": self.rows, "last": self.last}
        for j in range(self.sums.shape[1]):
            columns[f"sum_{j}"], columns[f"count_{j}"] = self.sums[:, j], self.counts[:, j]
        return pa.table(columns)

    @classmethod
    def from_table(cls, table: pa.Table) -> _State:
        width = (table.num_columns - 3) // 2

        def read(name: str) -> np.ndarray:
            return np.asarray(table[name])

        def stacked(name: str) -> np.ndarray:
            return np.stack([read(f"{name}_{j}") for j in range(width)], axis=1)

        return cls(read("key"), stacked("sum"), stacked("count"), read("rows"), read("last"))


class _Pass:
    """One pass over one table: sorts each key once and serves every statistic of it."""

    def __init__(
        self,
        owner: RunningStatistics,
        table: EventTable,
        states: dict[str, _State],
        visible_until: np.ndarray | None,
        source: np.ndarray | None,
    ) -> None:
        self.owner, self.table, self.states = owner, table, states
        rows = len(table.time)
        self.counted = np.ones(rows, dtype=bool) if source is None else source
        moments, self.rank = np.unique(table.time, return_inverse=True)
        self.until = self.rank
        if visible_until is not None:
            self.until = np.minimum(self.rank, np.searchsorted(moments, visible_until))
        self.frozen = visible_until is not None
        self._found: dict[tuple[tuple[str, ...], bool], Occurrences] = {}
        # Baselines of a row's own label are always those of its own time, whatever the row may see of others.
        self.own = self._levels(frozen=False)
        self.seen = self._levels(frozen=True) if self.frozen else self.own

    def _occurrences(self, keys: tuple[str, ...], frozen: bool) -> Occurrences:
        frozen = frozen and self.frozen
        if (keys, frozen) not in self._found:
            for key in keys:
                if key not in self.table.keys:
                    raise ValueError(f"no key {key!r} in the table; {nearest(key, sorted(self.table.keys))}")
            until = self.until if frozen else self.rank
            columns = [self.table.keys[k] for k in keys]
            self._found[keys, frozen] = Occurrences.find(columns, self.rank, until, self.counted)
        return self._found[keys, frozen]

    def _levels(self, frozen: bool) -> dict[str, np.ndarray]:
        """mu, b_i and b_u of every row, {level: [R, T]}."""
        levels: dict[str, np.ndarray] = {}
        self.own = levels if not frozen else self.own
        for level, config in _LEVELS.items():
            sums, counts, _, found = self._before(config, frozen)
            if level == "global":
                sums = sums + config.shrinkage * self.owner.prior
            mean_M = sums / (counts + config.shrinkage)
            levels[level] = np.zeros_like(self.table.targets)
            levels[level][found.row] = mean_M  # "global", "item" and "user" occur at most once per row
        return levels

    def _residual(self, baseline: str) -> np.ndarray:
        """Labels minus the baseline of their own time, [R, T]."""
        return self.table.targets - sum((self.own[level] for level in BASELINES[baseline]), np.zeros(1))

    def _before(self, config: StatisticConfig, frozen: bool) -> tuple[np.ndarray, np.ndarray, _State, Occurrences]:
        """Sums and counts of known residuals before each occurrence, [M, T] both, with the state they started from."""
        found = self._occurrences(config.keys, frozen)
        residual = self._residual(config.baseline)
        known = ~np.isnan(residual)
        state = self.states.get(config.name, _State.empty(len(self.owner.targets))).at(found.keys)
        if config.recent is None:
            sums, counts, kept = found.sums(np.nan_to_num(residual)), found.sums(known.astype(np.float64)), 1.0
        else:
            sums = found.decayed(np.nan_to_num(residual), config.decay)
            counts = found.decayed(known.astype(np.float64), config.decay)
            kept = config.decay ** (found.end - found.begin)[:, None]
        return sums + kept * state.sums[found.group], counts + kept * state.counts[found.group], state, found

    def features(self) -> np.ndarray:
        owner, rows = self.owner, len(self.table.time)
        result = np.full((rows, len(owner.names)), np.nan, dtype=np.float32)
        result[:, : len(owner.targets)] = sum(self.seen.values())
        at = len(owner.targets)
        for config in owner.statistics:
            sums, counts, state, found = self._before(config, frozen=True)
            with np.errstate(invalid="ignore"):
                means = sums / (counts + config.shrinkage)
            columns = [_reduce(means, found.row, rows, how) for how in config.reduce]
            if config.count:
                earlier = found.end - found.begin + state.rows[found.group]
                columns.append(_reduce(np.log1p(earlier)[:, None], found.row, rows, "mean"))
            if config.gap:
                last = np.fmax(found.last_before(self.table.time), state.last[found.group])
                gap = np.log1p(np.maximum(self.table.time[found.row] - last, 0))
                columns.append(_reduce(gap[:, None], found.row, rows, "mean"))
            for block in columns:
                result[:, at : at + block.shape[1]] = block
                at += block.shape[1]
        return result

    def advance(self) -> dict[str, _State]:
        """States after all rows of the table."""
        states = dict(self.states)
        for config in [*_LEVELS.values(), *self.owner.statistics]:
            if config.name in states and states[config.name] is not self.states.get(config.name):
                continue  # a statistic that equals a level shares its state
            found = self._occurrences(config.keys, frozen=False)
            residual = self._residual(config.baseline)
            known = (~np.isnan(residual)).astype(np.float64)
            old_all = self.states.get(config.name, _State.empty(len(self.owner.targets)))
            old = old_all.at(found.keys)
            arrivals = np.bincount(found.group[found.source], minlength=len(found.keys)).astype(np.float64)
            kept = config.decay ** arrivals[:, None]
            gather = (
                found.group_sums if config.recent is None else lambda v, d=config.decay, f=found: f.group_decayed(v, d)
            )
            last = np.full(len(found.keys), -np.inf)
            np.maximum.at(last, found.group[found.source], self.table.time[found.row[found.source]])
            new = _State(
                found.keys,
                kept * old.sums + gather(np.nan_to_num(residual)),
                kept * old.counts + gather(known),
                old.rows + arrivals,
                np.fmax(old.last, np.where(np.isinf(last), np.nan, last)),
            )
            states[config.name] = old_all.merged(new)
        return states


def _reduce(values: np.ndarray, row: np.ndarray, rows: int, how: str) -> np.ndarray:
    """Occurrences [M, T] to rows [R, T]: the mean, max or min over a row's occurrences, NaN where it has none."""
    result = np.full((rows, values.shape[1]), np.nan)
    if not len(row):
        return result
    begins = np.flatnonzero(np.diff(row, prepend=-1))
    combine = {"mean": np.add, "max": np.maximum, "min": np.minimum}[how]
    reduced = combine.reduceat(values, begins, axis=0)
    if how == "mean":
        reduced = reduced / np.diff(np.append(begins, len(row)))[:, None]
    result[row[begins]] = reduced
    return result
