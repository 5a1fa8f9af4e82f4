"""Padding: a batch holds exactly its windows, and everything else in it is marked as missing."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polyrec.data.collator import PolyRecCollator

FLOAT, CODES = np.float32, np.int64


def window(events: int, asked: int, seed: int = 0) -> dict:
    """A window with features of every kind and width."""
    random = np.random.default_rng(seed)

    def features(rows: int) -> dict[str, np.ndarray]:
        return {
            "code": random.integers(1, 9, rows),
            "codes": random.integers(1, 9, (rows, 3)),
            "number": random.random(rows).astype(FLOAT),
            "numbers": random.random((rows, 2)).astype(FLOAT),
        }

    return {
        "item_ids": random.integers(1, 99, events),
        "event_features": features(events),
        "user_features": {"age": FLOAT(random.random()), "langs": random.integers(1, 9, 2)},
        "candidate_ids": random.integers(1, 99, asked),
        "candidate_positions": random.integers(0, events + 1, asked),
        "candidate_features": features(asked),
        "labels": {"like": random.random(asked).astype(FLOAT)},
        "candidate_rows": random.integers(0, 99, asked),
    }


def check(batch: dict, windows: list[dict], key: str, row_count: list[int], fill: float) -> None:
    """A part of the batch (a tensor, or a dict of them) is the windows' rows followed by padding."""
    parts = batch[key].items() if isinstance(batch[key], dict) else [(None, batch[key])]
    for name, padded in parts:
        for b, one in enumerate(windows):
            real = one[key] if name is None else one[key][name]
            rest = padded[b, row_count[b] :]
            assert np.array_equal(padded[b, : row_count[b]].numpy(), real), (key, name)
            assert padded[b].numpy().dtype == real.dtype
            marked = torch.isnan(rest) if rest.dtype.is_floating_point else rest == fill
            assert marked.all(), (key, name)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 5)), min_size=1, max_size=5), st.integers(1, 4))
def test_a_batch_is_its_windows_and_padding(sizes, multiple):
    """Prevents rows from sliding between people, and padding from passing for an item, a number or a label."""
    windows = [window(events, asked, seed) for seed, (events, asked) in enumerate(sizes)]
    batch = PolyRecCollator(pad_to_multiple_of=multiple)(windows)
    events, asked = [e for e, _ in sizes], [a for _, a in sizes]
    for key in ("item_ids", "event_features"):
        check(batch, windows, key, events, 0)
    for key in ("candidate_ids", "candidate_positions", "candidate_features", "labels"):
        check(batch, windows, key, asked, 0)
    check(batch, windows, "candidate_rows", asked, -1)
    for name in ("age", "langs"):
        assert np.array_equal(batch["user_features"][name], np.stack([w["user_features"][name] for w in windows]))
    for key, lengths in (("item_ids", events), ("candidate_ids", asked)):
        longest = max(1, *lengths)
        assert batch[key].shape[1] == -(-longest // multiple) * multiple


def test_somebody_unknown_still_has_a_column():
    """Prevents a batch of people without history from having no state 0 to read."""
    batch = PolyRecCollator()([window(0, 1), window(0, 2)])
    assert batch["item_ids"].tolist() == [[0], [0]]


def test_the_batch_does_not_share_memory_with_the_log():
    """Prevents an in-place change of a batch from changing the log for all later epochs."""
    one = window(3, 2)
    before = {k: v.copy() for k, v in one.items() if isinstance(v, np.ndarray)}
    batch = PolyRecCollator()([one])
    for key in before:
        batch[key].fill_(7)
        assert np.array_equal(one[key], before[key])


def test_windows_of_a_log_collate(tables):
    """Prevents a data set from yielding what the collator cannot pad."""
    from model_fixtures import fit

    _, splits = fit(tables)
    indices = range(min(len(splits.train), 8))
    batch = PolyRecCollator()([splits.train[i] for i in indices])
    rows = batch["candidate_rows"][batch["candidate_rows"] >= 0]
    assert sorted(rows.tolist()) == list(range(len(rows)))
    assert set(batch["labels"]) == {"next_item", "like", "rating"}
