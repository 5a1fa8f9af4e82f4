"""The benchmark of new items: nothing of them is known before, and rivals know no more than the model."""

import new_items
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

CATALOG = 30


@pytest.fixture
def folder(tmp_path):
    random = np.random.default_rng(0)
    user = np.repeat(np.arange(40), 8)
    interactions = {
        "user_id": user,
        "item_id": 100 + random.integers(0, CATALOG, len(user)),
        "timestamp": random.integers(0, 50, len(user)),
        "file_order": random.permutation(len(user)),
    }
    catalog = {
        "item_id": 100 + random.permutation(CATALOG),
        "title": [f"t{n}" for n in range(CATALOG)],
        "release_year": [1990] * CATALOG,
        "genres": [["a", "b", "c"][n % 3 : n % 3 + 1 + n % 2] for n in range(CATALOG)],
    }
    for name, table in (("interactions", interactions), ("items", catalog)):
        pq.write_table(pa.table(table), tmp_path / f"{name}.parquet")
    return tmp_path


def test_new_items_are_in_no_table_before(folder):
    """Prevents a new item, or another tenth's, from being known, and settings from being chosen on what is reported."""
    tenths = [new_items.NewItems(folder, tenth) for tenth in range(3)]
    assert len(set().union(*(set(d.cold.tolist()) for d in tenths))) == 9
    for data in tenths:
        new = set(data.new_items["item_id"].to_pylist())
        assert len(new) == 3
        assert not new & set(data.old_items["item_id"].to_pylist())
        assert not new & set(data.warm_events["item_id"].to_pylist())
        assert data.old_items.num_rows + data.new_items.num_rows == CATALOG


def test_questions_are_the_last_two_events_that_took_a_new_item(folder):
    """Prevents other events than those of protocol A's parts from being asked about."""
    data = new_items.NewItems(folder)
    expected = []
    for user in range(40):
        rows = np.flatnonzero(data.user == user)
        expected += [r for r in rows[-2:] if data.item[r] in data.cold]
    asked = data.questions()
    assert len(expected) > 2
    assert asked["end/among"].row.tolist() == asked["end/whole"].row.tolist() == expected
    assert asked["end/among"].shelf is data.cold
    assert asked["end/whole"].shelf is None
    assert set(asked["end/among"].row) <= set(asked["anywhere/among"].row)


def test_without_knowledge_chance_orders_new_items(folder):
    """Prevents equal scores from counting as the first place: 3 new items, of which 10 may be named."""
    data = new_items.NewItems(folder)
    found = data.answers(new_items.fixed(np.zeros(CATALOG)))
    ranks = np.arange(1, CATALOG + 1)
    asked = data.questions()["anywhere/whole"]
    sizes = [CATALOG - len(set(data.history(r).tolist()) - {t}) for r, t in zip(asked.row, asked.target, strict=True)]
    expected = np.mean([np.mean(ranks[:size] <= 10) for size in sizes])
    assert found["anywhere/whole/recall@10"] == pytest.approx(expected)
    assert found["anywhere/among/recall@10"] == 1


def test_genre_popularity_is_a_mean_over_old_items(folder):
    """Prevents counts of new items from reaching the rival that is not to know them."""
    data = new_items.NewItems(folder)
    found, genres = new_items.genre_popularity(data), data.items["genres"].to_pylist()
    counts = np.array([(data.item[data.train] == n).sum() for n in range(CATALOG)])
    for n in range(CATALOG):
        if n not in data.cold:
            assert found[n] == counts[n]
            continue
        means = [
            np.mean([counts[m] for m in range(CATALOG) if m not in data.cold and genre in genres[m]])
            for genre in genres[n]
        ]
        assert found[n] == pytest.approx(np.mean(means))
