"""What lies after training must not reach it: not as a label, nor as a scale, a vocabulary, a count or a vector."""

from __future__ import annotations

from dataclasses import asdict
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_fixtures import TASKS, synthetic_log
from window_fixtures import same_windows

from polyrec import PolyRecProcessor, Splits

TASKS_AND_COUNT = [*TASKS, {"name": "visits", "head": "count"}]
COLUMNS = {
    "feedback": {"rating": "categorical", "seconds": "numeric", "moods": "multi", "visits": "numeric"},
    "context": {"surface": "categorical", "place": "numeric"},
    "item_features": {"genre": "categorical", "price": "numeric"},
    "time_zone": 3,
    "prior_history": {"watched": [], "rated": ["visits"]},
    "weight": {"like": "trust"},
}
STATISTICS = {"targets": ["seconds"], "context": [["context.surface"], ["context.place"]]}
SPLITS = {
    "fractions": {"fractions": (0.6, 0.2, 0.2)},
    "cuts": {"cuts": (1_005_000.0, 1_007_000.0)},
    "leave_one_out": {"by": "leave_one_out"},
}
OPTIONS = {"shuffle_ties": False, "max_delay": 3000.0, "delayed_share": 0.5, "keep_negatives": {"like": 0.5}}


def log_of() -> dict[str, dict[str, Any]]:
    """The synthetic log with feedback, context and weights of every kind."""
    tables, random = synthetic_log(16, 24, 9), np.random.default_rng(5)
    events = tables["interactions"]
    rows = len(events["rating"])
    events["seconds"] = random.exponential(20, rows)
    events["visits"] = random.integers(0, 3, rows)
    events["place"] = random.random(rows)
    events["trust"] = random.random(rows)
    events["moods"] = [random.choice(["glad", "sad"], random.integers(0, 3)).tolist() for _ in range(rows)]
    return tables


PAST = {
    "user_id": np.arange(12),
    "watched": [list(range(p)) for p in range(12)],
    "rated": [[1, 5] if p % 2 else [] for p in range(12)],
}


def fitted(tables, how) -> tuple[PolyRecProcessor, Splits]:
    processor = PolyRecProcessor.fit(
        **tables, tasks=TASKS_AND_COUNT, columns=COLUMNS, max_history=6, statistics=STATISTICS
    )
    return processor, processor.split(tables["interactions"], prior_history=PAST, **SPLITS[how], **OPTIONS)


def rows_of(part) -> np.ndarray:
    return np.unique(part.log.row[part.candidates.event])


def changed(tables, rows, seed):
    """The same log with everything that can be told of some rows told otherwise, by values that occur nowhere else, too."""
    random, events = np.random.default_rng(seed), {n: list(v) for n, v in tables["interactions"].items()}
    for row in rows:
        events["rating"][row] = random.choice([1.0, 5.0, 9.0, np.nan])
        events["seconds"][row] = random.choice([1e5, -3.0, np.nan])
        events["visits"][row] = int(random.integers(0, 50))
        events["place"][row] = random.choice([1e6, -1e6, np.nan])
        events["trust"][row] = random.random() * 100
        events["surface"][row] = random.choice(["home", "billboard", "app"])
        events["moods"][row] = ["furious"] * int(random.integers(0, 9))
        events["item_id"][row] = int(random.integers(0, 24))
    return tables | {"interactions": events}


def assert_same_windows(one, other):
    assert len(one) == len(other)
    for i in range(len(one)):
        # Statistics are differences of running sums, which other numbers elsewhere in the log round otherwise (3e-8).
        assert same_windows(one[i], other[i], atol=1e-6), i


def knowledge(processor) -> dict[str, Any]:
    """Everything that a processor learnt of a log and tells a model."""
    statistics = processor.statistics
    return {
        "encoders": {s: {n: asdict(e) for n, e in es.items()} for s, es in processor.event_encoders.items()},
        "scaler": statistics.scaler.to_dict(),
        "spread": statistics.spread,
        "priors": [statistics.log.prior.tolist(), statistics.past.prior.tolist()],
        "last_time": statistics.last_time,
        "labels": processor.label_summary,
        "counts": processor.item_counts.tolist(),
        "vectors": processor.item_vectors(4).tolist(),
        "model": processor.model_config(num_attention_heads=1).to_dict(),
    }


def assert_same_knowledge(one, other):
    first, second = knowledge(one), knowledge(other)
    for name, value in first.items():
        if name == "scaler":  # sums of other numbers are rounded otherwise, even where only their differences are read
            for part in value:
                np.testing.assert_allclose(value[part], second[name][part], rtol=1e-4, atol=1e-7, err_msg=part)
        else:
            assert value == second[name], name


@cache
def original(how) -> tuple[dict[str, Any], PolyRecProcessor, Splits]:
    tables = log_of()
    return tables, *fitted(tables, how)


@pytest.mark.parametrize("held_out", [("test",), ("valid", "test")], ids="+".join)
@pytest.mark.parametrize("how", SPLITS)
@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_held_out_rows_change_nothing_that_came_before(how, held_out, seed):
    """Prevents the test part from reaching training or model selection through labels, feedback, context, items, scales
    (fitted on the whole log, they did), vocabularies, counts, weights or vectors.
    """
    tables, processor, splits = original(how)
    rows = np.concatenate([rows_of(getattr(splits, part)) for part in held_out])
    assert len(rows)
    other, other_splits = fitted(changed(tables, rows, seed), how)
    assert_same_windows(splits.train, other_splits.train)
    if held_out == ("test",):
        assert_same_windows(splits.valid, other_splits.valid)
    assert_same_knowledge(other, processor)
    asked, history = np.arange(2, processor.num_items), [{"item_id": 3, "rating": 5.0, "seconds": 9.0}, {"item_id": 4}]
    context = {"surface": "home", "place": 0.5}
    assert same_windows(
        other.request(history, asked, context=context), processor.request(history, asked, context=context)
    )


@pytest.mark.parametrize("how", SPLITS)
def test_training_rows_change_what_was_learnt(how):
    """Prevents the test above from passing because nothing depends on the log at all."""
    tables, processor, splits = original(how)
    rows = rows_of(splits.train)[::3]
    other, _ = fitted(changed(tables, rows, 0), how)
    first, second = knowledge(processor), knowledge(other)
    assert [name for name in first if first[name] == second[name]] == ["last_time"]


@pytest.mark.parametrize("how", SPLITS)
def test_a_later_split_forgets_the_earlier_one(how):
    """Prevents scales, vectors and counts of a larger training part from staying with a processor that is split anew."""
    tables, first, first_splits = original(how)
    processor, _ = fitted(tables, how)
    processor.split(tables["interactions"], prior_history=PAST, fractions=(0.9, 0.05, 0.05))
    splits = processor.split(tables["interactions"], prior_history=PAST, **SPLITS[how], **OPTIONS)
    assert_same_knowledge(processor, first)
    for one, other in zip(splits, first_splits, strict=True):
        assert_same_windows(one, other)


def test_rows_of_the_test_are_seen_once_they_lie_in_the_past():
    """Prevents `held out` from meaning `hidden`: a prequential test row knows the validation rows before it."""
    tables, _, splits = original("fractions")
    _, other = fitted(changed(tables, rows_of(splits.valid), 1), "fractions")
    assert not all(same_windows(splits.test[i], other.test[i]) for i in range(min(len(splits.test), len(other.test))))
