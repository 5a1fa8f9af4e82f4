"""Tables of events, statistics of every kind, and their definition as plain loops."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from polyrec.data.event_table import EventTable, MultiValued
from polyrec.data.statistic_config import StatisticConfig
from polyrec.data.statistics import RunningStatistics

TARGETS = ["like", "stars"]
PRIOR = [0.4, 3.5]
STATISTICS = [
    StatisticConfig((), "item", shrinkage=10, count=True, gap=True),
    StatisticConfig((), "none", half_life=3, shrinkage=2, count=True),
    StatisticConfig(("item",), "none", shrinkage=0, count=True, gap=True),
    StatisticConfig(("item",), "item+user", half_life=2.5),
    StatisticConfig(("user",), "item", recent=1.5, shrinkage=1, count=True),
    StatisticConfig(("user", "genres"), "item+user", count=True, gap=True, reduce=("mean", "max", "min")),
    StatisticConfig(("genres", "age"), "user", recent=2, shrinkage=0, reduce=("mean", "min")),
    StatisticConfig(("genres",), "global", half_life=4, reduce=("max",)),
    StatisticConfig(("age", "item"), "context", shrinkage=3),
    StatisticConfig(("user", "age"), "item", gap=True),
]
# The bias model's prediction and everything by person; what remains is the same for everybody.
PERSONAL = {"baseline", *(s.name.split("-")[0] for s in STATISTICS if s.personal)}
CONTEXT = [("age",), ("age", "item")]
# name: keys, levels below, shrinkage
LEVELS = {
    "global": ((), (), 100.0),
    "c0": (("age",), ("global",), 50.0),
    "c1": (("age", "item"), ("global", "c0"), 50.0),
    "item": (("item",), ("global", "c0", "c1"), 5.0),
    "user": (("user",), ("global", "c0", "c1", "item"), 5.0),
}
BASELINES = {
    "none": (),
    "global": ("global",),
    "context": ("global", "c0", "c1"),
    "item": ("global", "c0", "c1", "item"),
    "user": ("global", "c0", "c1", "user"),
    "item+user": tuple(LEVELS),
}


def stats() -> RunningStatistics:
    return RunningStatistics(STATISTICS, TARGETS, PRIOR, CONTEXT)


def close(actual: np.ndarray, expected: np.ndarray) -> None:
    """Equal up to the order in which float64 sums were formed; NaN in the same places."""
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-6)


# ---------------------------------------------------------------- the reference
def _codes(table: EventTable, key: str, r: int) -> set[int]:
    codes = table.keys[key]
    if isinstance(codes, MultiValued):
        found = codes.values[codes.offsets[r] : codes.offsets[r + 1]]
    else:
        found = np.atleast_1d(codes[r])
    return {int(c) for c in found if c > table.missing}


def _combinations(table: EventTable, keys: tuple[str, ...], r: int) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = [()]
    for key in keys:
        found = [(*f, c) for f in found for c in sorted(_codes(table, key, r))]
    return found


def naive(statistics, table, prior, until=None, source=None):  # noqa: C901 - plain loops are the point
    """The definition, row by row and pair by pair."""
    rows, targets = table.targets.shape
    time = table.time
    until = time if until is None else np.minimum(time, until)
    source = np.ones(rows, dtype=bool) if source is None else source

    def earlier(keys, combination, limit):
        return [
            q for q in range(rows) if source[q] and time[q] < limit and combination in _combinations(table, keys, q)
        ]

    def mean(values, weights, shrinkage, start=0.0):
        known = ~np.isnan(values)
        total = (weights[known]).sum() + shrinkage
        return (start + (weights * np.nan_to_num(values))[known].sum()) / total if total > 0 else np.nan

    own: dict[str, np.ndarray] = {}
    seen: dict[str, np.ndarray] = {}
    for level, (keys, below, k) in LEVELS.items():
        residual = table.targets - sum((own[b] for b in below), 0.0)
        for values, limit in ((own, time), (seen, until)):
            values[level] = np.zeros((rows, targets))
            for r in range(rows):
                for combination in _combinations(table, keys, r):
                    q = earlier(keys, combination, limit[r])
                    for t in range(targets):
                        start = k * prior[t] if level == "global" else 0.0
                        values[level][r, t] = mean(residual[q, t], np.ones(len(q)), k, start)
    result = []
    for r in range(rows):
        features = list(sum(seen.values())[r])
        for s in statistics:
            residual = table.targets - sum((own[b] for b in BASELINES[s.baseline]), 0.0)
            means, counts, gaps = [], [], []
            for combination in _combinations(table, s.keys, r):
                q = earlier(s.keys, combination, until[r])
                weights = np.ones(len(q))
                if s.half_life is not None:
                    weights = 0.5 ** ((time[r] - time[q]) / s.half_life)
                if s.recent is not None:
                    weights = np.array([0.5 ** (sum(time[p] > time[a] for p in q) / s.recent) for a in q])
                means.append([mean(residual[q, t], weights, s.shrinkage) for t in range(targets)])
                fading = s.half_life is not None or s.recent is not None
                known = ~np.isnan(table.targets[q])
                counts.append(np.log1p((weights @ known).mean() if fading else len(q)))
                gaps.append(np.log1p(time[r] - time[q].max()) if q else np.nan)
            for how in s.reduce:
                for t in range(targets):
                    known = [m[t] for m in means if not np.isnan(m[t])]
                    features.append({"mean": np.mean, "max": np.max, "min": np.min}[how](known) if known else np.nan)
            if s.count:
                features.append(np.mean(counts) if counts else np.nan)
            if s.gap:
                known = [g for g in gaps if not np.isnan(g)]
                features.append(min(known) if known else np.nan)
        result.append(features)
    return np.array(result, dtype=np.float64).reshape(rows, -1)


@st.composite
def tables(draw, max_rows=14):
    """Few values of everything, so that ties, repeats and missing ones are common."""
    rows = draw(st.integers(1, max_rows))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    missing = draw(st.sampled_from([0, -1]))
    low = missing if draw(st.booleans()) else missing + 1
    stars = rng.integers(1, 6, rows).astype(float)
    targets = np.stack([(stars > 3).astype(float), stars], axis=1)
    targets[rng.random(targets.shape) < draw(st.sampled_from([0.0, 0.3]))] = np.nan
    lengths = rng.integers(0, 4, rows)
    ragged = MultiValued(rng.integers(low, 4, lengths.sum()), np.concatenate([[0], np.cumsum(lengths)]))
    keys = {
        "item": rng.integers(low, 4, rows),
        "user": rng.integers(low, 4, rows),
        "age": rng.integers(low, 3, rows),
        "genres": ragged if draw(st.booleans()) else rng.integers(missing, 4, (rows, 3)),
    }
    return EventTable(rng.integers(0, draw(st.sampled_from([4, 40])), rows).astype(float), keys, targets, missing)


def log(rows: int = 300, seed: int = 0, span: int = 200) -> EventTable:
    rng = np.random.default_rng(seed)
    stars = rng.integers(1, 6, rows).astype(float)
    targets = np.stack([(stars > 3).astype(float), stars], axis=1)
    targets[rng.random(targets.shape) < 0.1] = np.nan
    keys = {"item": rng.integers(0, 30, rows), "user": rng.integers(0, 20, rows), "age": rng.integers(0, 5, rows)}
    return EventTable(
        rng.integers(0, span, rows).astype(float), {**keys, "genres": rng.integers(0, 6, (rows, 3))}, targets
    )
