"""The questions of the text benchmark: no cold item trains anything, and all systems are judged alike."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import text_data
from text_systems import with_lora


@pytest.fixture
def data(tmp_path):
    random = np.random.default_rng(0)
    users, items = 30, 40
    user = np.repeat(np.arange(users), 8)
    interactions = {
        "user_id": user,
        "item_id": 100 + random.integers(0, items, len(user)),
        "timestamp": random.integers(0, 50, len(user)),
        "file_order": random.permutation(len(user)),
    }
    catalog = {
        "item_id": 100 + random.permutation(items),
        "title": [f"t{n}" for n in range(items)],
        "release_year": [None if n % 7 == 0 else 1990 + n for n in range(items)],
        "genres": [["a", "b"][: n % 3] for n in range(items)],
    }
    for name, table in (("interactions", interactions), ("items", catalog)):
        pq.write_table(pa.table(table), tmp_path / f"{name}.parquet")
    return text_data.TextData(tmp_path)


def test_cold_items_train_nothing_and_no_question_is_trained(data):
    """Prevents the cold figure from being one of items that were learnt, and test rows from training."""
    cold = set(data.cold.tolist())
    assert len(cold) == 4
    assert not cold & set(data.item[data.train].tolist())
    assert not cold & set(data.item[~data.is_cold].tolist())
    parts = [set(rows.tolist()) for rows in (data.train, data.valid, data.test)]
    assert sum(map(len, parts)) == len(set().union(*parts)) == data.warm_events.num_rows
    for part, asked in data.questions().items():
        for row, target in zip(asked.row, asked.target, strict=True):
            assert data.item[row] == target
            assert (target in cold) == (part == "cold")
            assert not cold & set(data.history(row, trained=True).tolist())


def test_history_is_what_came_before(data):
    """Prevents later events from being read as history."""
    time = data.events["timestamp"].to_numpy()
    order = data.events["file_order"].to_numpy()
    for row in data.test:
        rows = [
            r
            for r in range(len(data.item))
            if data.user[r] == data.user[row] and (time[r], order[r]) < (time[row], order[row])
        ]
        assert data.history(row).tolist() == data.item[rows].tolist()
        assert data.history(row, 3).tolist() == data.item[rows][-3:].tolist()


def test_measures_equal_a_naive_loop(data):
    """Prevents the history, or the shelf of cold items, from entering the ranks wrongly."""
    random = np.random.default_rng(1)
    for asked in data.questions().values():
        scores = random.normal(size=(len(asked.row), len(data.texts))).astype(np.float32)
        hits, gains = [], []
        for n, (row, target) in enumerate(zip(asked.row, asked.target, strict=True)):
            shelf = range(len(data.texts)) if asked.shelf is None else asked.shelf
            seen = set(data.history(row).tolist())
            better = [i for i in shelf if i != target and i not in seen and scores[n, i] > scores[n, target]]
            hits.append(len(better) < 10)
            gains.append(1 / np.log2(len(better) + 2) if len(better) < 10 else 0.0)
        found = data.evaluate(asked, lambda index, s=scores: s[index])
        assert found == pytest.approx({"recall@10": np.mean(hits), "ndcg@10": np.mean(gains)})


def test_lora_changes_the_tuning_alone():
    """Prevents the comparison of LoRA with full tuning from being one of other settings."""
    config = {
        "model": {"hidden_size": 8, "text": {"tuning": "full", "live_items": 3}},
        "training": {"learning_rate": 1.0, "backbone_learning_rate": 2.0},
        "lora": {"tuning": "lora", "backbone_learning_rate": 3.0},
    }
    found = with_lora(config)
    assert found["model"] == {"hidden_size": 8, "text": {"tuning": "lora", "live_items": 3}}
    assert found["training"] == {"learning_rate": 1.0, "backbone_learning_rate": 3.0}
