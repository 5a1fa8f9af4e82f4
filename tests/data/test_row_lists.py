"""Tables of which each row lists the items before it: what a row sees, what is counted, and what never is a target."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from polyrec import Columns, PolyRecProcessor
from polyrec.core.schema import ROW_ORDER, STATISTICS
from polyrec.data.guess import find_columns
from polyrec.data.id_match import DataWarning
from polyrec.data.neighbours import FOLDS, fold_of, neighbours
from polyrec.data.row_lists import sequences
from polyrec.data.text_lists import id_lists
from polyrec.evaluation.baselines.base import CatalogTask

TASKS = [{"name": "next_item", "head": "retrieval"}, {"name": "like", "head": "binary"}]
LISTS = Columns(user=ROW_ORDER, time=None, history="before")


def sessions(number: int = 60, items: int = 9, seed: int = 0) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [random.integers(0, items, random.integers(2, 6)).tolist() for _ in range(number)]


def prefixes(of: list[list[int]]) -> pd.DataFrame:
    """Every prefix of a session as a row of its own, as public files have them."""
    rows = [(s, items[:n], items[n]) for s, items in enumerate(of) for n in range(1, len(items))]
    table = pd.DataFrame(rows, columns=["session", "before", "item_id"])
    random = np.random.default_rng(1)
    return table.assign(timestamp=1e9 + 100 * np.arange(len(table)), like=random.integers(0, 2, len(table)))


def fit(table, columns=LISTS, tasks=TASKS, **split):
    processor = PolyRecProcessor.fit(table, tasks=tasks, columns=columns, verbose=False)
    return processor, processor.split(table, **split)


def told(log, events) -> Counter:
    """How often each sequence stands among some events."""
    found: dict[int, list[int]] = {}
    for user, item in zip(log.user[events], log.item[events], strict=True):
        found.setdefault(int(user), []).append(int(item))
    return Counter(tuple(items) for items in found.values())


# ------------------------------------------------------------------ what a row is
@pytest.mark.parametrize("columns", [LISTS, Columns(user="session", history="before")])
def test_a_row_sees_its_list_and_only_its_own_item_is_asked_about(columns):
    """Prevents items of lists from becoming targets, and histories of one user's rows from running together."""
    table = prefixes(sessions())
    processor, parts = fit(table, columns)
    found = []
    for part in parts:
        for n in range(len(part)):
            window = part[n]
            known = [processor.items.ids[int(i) - 2].as_py() for i in window["item_ids"]]
            asked = [processor.items.ids[int(i) - 2].as_py() for i in window["candidate_ids"]]
            assert window["candidate_positions"].tolist() == [len(known)]
            found.append((known, asked, window["labels"]["like"].tolist()))
    rows = table[["before", "item_id", "like"]].itertuples(index=False)
    assert sorted(found) == sorted((list(before), [item], [float(like)]) for before, item, like in rows)
    if columns is not LISTS:  # by time
        assert [part.num_candidates for part in parts] == [round(len(table) * s) for s in (0.8, 0.1, 0.1)]


def test_a_random_split_keeps_sessions_whole_whatever_the_order_of_rows():
    """Prevents that a training row holds the target of a test row that it goes on from."""
    table = prefixes(sessions(items=40))

    def tested(of):
        log = (parts := fit(of)[1]).test.log
        group = log.together[log.user]
        own = [set(group[part.candidates.event].tolist()) for part in parts]
        assert not own[0] & own[2]
        assert parts.test.num_candidates == pytest.approx(0.1 * len(table), abs=5)
        assert not own[0] & own[1]
        rows = log.row[parts.test.candidates.event]
        return sorted((tuple(of["before"].iloc[r]), of["item_id"].iloc[r]) for r in rows)

    assert tested(table) == tested(table.sample(frac=1, random_state=3))


def test_the_latest_of_a_long_list_are_read():
    """Prevents windows that begin anew where a list is longer than a window, as those of long logs do."""
    table = pd.DataFrame({"before": [list(range(7)), [1]] * 20, "item_id": [8, 2] * 20})
    processor = PolyRecProcessor.fit(table, tasks=TASKS[:1], columns=LISTS, max_history=4, verbose=False)
    train = processor.split(table).train
    lengths = {len(train[n]["item_ids"]) for n in range(len(train))}
    assert lengths == {4, 1}
    long = next(train[n] for n in range(len(train)) if len(train[n]["item_ids"]) == 4)
    assert [processor.items.ids[int(i) - 2].as_py() for i in long["item_ids"]] == [3, 4, 5, 6]


def test_attributes_of_users_are_joined_to_each_of_their_rows():
    """Prevents attributes that follow the order of users, or of the file, instead of the row's own user."""
    table = prefixes(sessions(20)).sample(frac=1, random_state=0)
    users = pd.DataFrame({"session": np.arange(20)[::-1], "city": [f"city {n % 7}" for n in range(20)]})
    columns = Columns(user="session", history="before")
    processor = PolyRecProcessor.fit(table, users=users, tasks=TASKS, columns=columns, verbose=False)
    log = processor.split(table).train.log
    own = np.flatnonzero(~log.untimed)
    known = users.set_index("session")["city"].loc[table["session"].to_numpy()[log.row[own]]]
    vocabulary = processor.users.encoders["city"].vocabulary
    found = [vocabulary[code - 2] for code in log.user_features["city"][log.user[own]]]
    assert found == known.tolist()


def test_metrics_over_people_take_rows_of_one_user_together():
    """Prevents a per-person AUC over rows of one candidate each, which is none, and intervals that are too narrow."""
    table = prefixes(sessions())
    processor, parts = fit(table, Columns(user="session", history="before"))
    session = table["session"].to_numpy()[parts.train.log.row[parts.train.candidates.event]]
    assert len(np.unique(parts.train.user_codes())) == len(np.unique(session))
    assert len(np.unique(np.stack([parts.train.user_codes(), session]), axis=1).T) == len(np.unique(session))
    assert processor.data_report.split["train"].users == len(np.unique(session))


# ------------------------------------------------------------------ statistics
def test_statistics_count_rows_and_a_list_for_its_own_row_alone():
    """Prevents lists, which most files repeat in row after row, from counting as so many events."""
    table = prefixes(sessions(20))
    processor, parts = fit(table, Columns(user="session", history="before"))
    log, names = parts.train.log, processor.statistics.names
    own = np.flatnonzero(~log.untimed)
    statistics = processor.statistics
    counted = statistics.log.compute(statistics.tables.of_log(statistics.log, log), untimed=log.untimed)[own]
    item, like, before = table["item_id"].to_numpy(), table["like"].to_numpy(), table["before"]
    for n in range(len(table)):
        same = item[:n] == item[n]
        assert counted[n, names.index("item-context.log_count")] == pytest.approx(np.log1p(same.sum()))
        assert counted[n, names.index("user-item.log_count")] == pytest.approx(np.log1p(len(before[n])))
    last = processor.statistics.log.counted("item-context", np.unique(log.item[own]))
    train = np.isin(own, parts.train.candidates.event)
    assert last.rows.sum() == train.sum()
    assert np.nansum(last.counts) == np.isfinite(like[train]).sum()


@pytest.mark.parametrize("updated", [False, True])
def test_a_request_with_a_list_reads_what_a_row_with_it_does(updated):
    """Prevents a model that is served other inputs than it was trained on, and updates that count lists."""
    table = prefixes(sessions(30))
    columns = Columns(user="session", history="before")
    processor, _ = fit(table[:-1], columns)
    processor.resume(table[:-20] if updated else table[:-1])
    if updated:
        processor.update(table[-20:-1])
    row = table.iloc[-1]
    asked = np.array([processor.items.rows(pa.array([row["item_id"]]))[0]])
    served = processor.request(row["before"], asked, time=float(row["timestamp"]))
    log, counted = processor.resume(table)
    window = processor.evaluation_set(log, (log.row == len(table) - 1) & ~log.untimed, counted)[0]
    read = {f.name for f in processor.features if f.source in ("event", "candidate")}
    assert read == {STATISTICS}
    assert served["item_ids"].tolist() == window["item_ids"].tolist()
    assert served["candidate_positions"].tolist() == window["candidate_positions"].tolist()
    np.testing.assert_allclose(
        served["candidate_features"][STATISTICS], window["candidate_features"][STATISTICS], rtol=1e-5, atol=1e-6
    )


# ------------------------------------------------------------------ evidence
@pytest.mark.parametrize("columns", [LISTS, Columns(user="session", history="before")])
def test_prefixes_of_a_session_count_as_the_session_does(columns):
    """Prevents that early items of sessions count once for every row that repeats them."""
    of = sessions(80, items=5)
    _, parts = fit(prefixes(of), columns)
    log = parts.train.log
    found = told(log, sequences(log, ~log.untimed))
    assert found == Counter(tuple(item + 2 for item in items) for items in of)


def test_of_rows_that_are_shown_and_not_taken_the_list_counts_once():
    """Prevents one history from counting as often as its user was shown something."""
    table = pd.DataFrame(
        {
            "user_id": [1, 1, 1, 2, 2, 3],
            "before": [[1, 2], [1, 2], [1, 2], [3, 4], [3, 4], [5]],
            "item_id": [6, 7, 8, 6, 7, 9],
            "timestamp": [1.0, 1.0, 1.0, 2.0, 2.0, 3.0],
            "click": [0, 1, 0, 0, 0, 1],
        }
    )
    tasks = [{"name": "next_item", "head": "retrieval", "label": "click"}]
    _, parts = fit(table, Columns(history="before"), tasks, fractions=(1, 0, 0))
    log = parts.train.log
    found = told(log, sequences(log, ~log.untimed, log.event_features["refused:next_item"] == 0))
    item = {n: n + 1 for n in range(1, 10)}  # ids from 1, rows from 2
    assert found == Counter({(item[1], item[2], item[7]): 1, (item[3], item[4]): 1, (item[5], item[9]): 1})


@pytest.mark.filterwarnings("ignore::polyrec.data.id_match.DataWarning")
def test_neighbours_of_a_training_row_do_not_know_its_session():
    """Prevents evidence that tells the target: that of each fold is counted without all rows of its sessions."""
    of = [[4 * s, 4 * s + 1, 4 * s + 2, 4 * s + 3] for s in range(40)]  # of items that no other session has
    processor, parts = fit(prefixes(of))
    log, tables = parts.train.log, processor.item_neighbours("next_item", 4)
    fold = fold_of(log.together)
    assert len(set(fold.tolist())) == FOLDS
    assert tables[0].items[log.item[parts.train.candidates.event]].any(axis=1).all()
    for n in range(len(parts.train)):
        window = parts.train[n]
        known = tables[int(window["user_fold"])].items[window["item_ids"]]
        assert not known.any()
    event = sequences(log, np.isin(np.arange(len(log)), parts.train.candidates.event))
    for number in range(1, FOLDS + 1):
        others = event[fold[log.user[event]] != number]
        expected = neighbours(log.user[others], log.item[others], processor.num_items, 4)
        np.testing.assert_array_equal(tables[number].items, expected.items)


def test_what_many_sessions_begin_with_does_not_join_them():
    """Prevents one group of all rows in a small catalog, which no split and no fold could divide."""
    of = sessions(200, items=5)
    log = fit(prefixes(of))[1].train.log
    size = np.unique(log.together, return_counts=True)[1]
    assert size.max() <= 0.1 * size.sum()
    begin = log.offsets[:-1]
    long = np.flatnonzero(np.diff(log.offsets) == 5)  # these go on from rows of four, and no shorter ones join them
    four = {tuple(log.item[b : b + 4]): log.together[p] for p, b in enumerate(begin) if log.offsets[p + 1] - b == 4}
    same = [four[tuple(log.item[begin[p] : begin[p] + 4])] == log.together[p] for p in long]
    assert np.mean(same) > 0.9


def test_baselines_count_pairs_of_lists_and_popularity_of_targets():
    """Prevents item-to-item baselines that see one item of each row, against which anything would look strong."""
    of = sessions(80, items=40)
    table = prefixes(of)
    _, parts = fit(table)
    task = CatalogTask(parts.train, "next_item", 40)
    user, item = task.training_events()
    log, event = parts.train.log, parts.train.candidates.event
    assert len(item) > len(event)
    assert np.bincount(log.item[event] - 2, minlength=40).tolist() == task.popularity().tolist()
    learnt = [of[session] for session in set(table["session"].iloc[log.row[event]])]
    assert Counter(tuple(item[user == one].tolist()) for one in np.unique(user)) == Counter(map(tuple, learnt))
    seen, taken = task.successions(1)
    held = np.flatnonzero(seen.end > seen.begin)
    followed = zip(seen.items[seen.begin[held]].tolist(), taken[held].tolist(), strict=True)
    assert Counter(followed) == Counter(pair for items in learnt for pair in pairwise(items))


# ------------------------------------------------------------------ reading
@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["1 2", None, "", "3"], [[1, 2], None, [], [3]]),
        (["1,2", "3", "4, 5", " "], [[1, 2], [3], [4, 5], []]),
        (["a|b c", "b c"], [["a", "b c"], ["b c"]]),
        (["[1, 2]", "[]", None], [[1, 2], [], None]),
        (["[1 2]", "[3]"], [[1, 2], [3]]),
        (['["a", "b, c"]', "[]"], [["a", "b, c"], []]),
        (["007 8", "9"], [["007", "8"], ["9"]]),
    ],
)
def test_texts_are_read_as_lists(texts, expected):
    """Prevents ids that keep a bracket or a blank, codes without their zeros, and lists that move to other rows."""
    assert id_lists(pa.array(texts, pa.string()), "before").to_pylist() == expected


BAD = {"item_id": [1, 2, 3], "timestamp": [1, 2, 3]}


@pytest.mark.parametrize(
    ("table", "columns", "message"),
    [
        ({"before": [1, 2, 3]}, {}, r"column 'before' \(history\) has type int64: give a list of item ids in each row"),
        ({"before": [[[1]], [[2]], []]}, {}, "give one flat list of item ids in each row"),
        ({"before": ["[1]", "[2]", "[3"]}, {}, r"holds '\[3' in row 2, which is no list"),
        ({"befor": [[1], [2], [3]]}, {}, "no column 'before'.*did you mean 'befor'"),
        ({"before": [[1.5], [2.0], []]}, {}, "fractional"),
        (
            {"before": [[1], [2], [3]]},
            {"prior_history": {"watched": []}},
            "columns.prior_history.* does not go with columns.history",
        ),
        ({"before": [[1], [2], [3]]}, {"item": "before"}, "one column for several"),
        ({"before": [[9, n % 3 + 1] for n in range(30)]}, {}, "also the last id of 'before' in 100% of the rows"),
        ({"before": [[n % 3 + 1, 9] for n in range(30)]}, {}, "also the first id of 'before' in 100% of the rows"),
    ],
)
def test_what_cannot_be_read_is_refused(table, columns, message):
    """Prevents lists that are silently empty, or hold their own row's target."""
    rows = len(next(iter(table.values())))
    full = {name: [values[n % 3] for n in range(rows)] for name, values in BAD.items()} | table
    with pytest.raises(ValueError, match=message):
        PolyRecProcessor.fit(full, tasks=TASKS[:1], columns={"history": "before", **columns}, verbose=False)


def test_lists_of_other_ids_and_empty_ones_are_told():
    """Prevents a history in other ids than the catalog's, or none at all, from passing for a cold start."""
    table = {"item_id": [f"N{n % 5}" for n in range(40)], "timestamp": list(range(40))}
    items = {"item_id": [f"N{n}" for n in range(9)]}
    table |= {"before": [[n % 9] for n in range(40)]}
    columns = Columns(history="before")
    with pytest.raises(ValueError, match="9 of 9 items of the lists are not in the items table .* letters in front"):
        PolyRecProcessor.fit(table, items=items, tasks=TASKS[:1], columns=columns, verbose=False)
    table |= {"before": pa.array([[]] * 40, pa.list_(pa.string()))}
    with pytest.warns(DataWarning, match="100.0% of the lists in 'before' are empty"):
        PolyRecProcessor.fit(table, tasks=TASKS[:1], columns=columns, verbose=False)


def test_splits_and_delays_of_users_events_are_refused():
    """Prevents a leave-one-out that would hold out every row, for each is its user's last."""
    table = prefixes(sessions(20))
    processor = PolyRecProcessor.fit(table, tasks=TASKS, columns=Columns(history="before"), verbose=False)
    assert processor.columns.user == ROW_ORDER  # no column of users
    with pytest.raises(ValueError, match=r'each row is a sequence .* leave `by` out, or by="time"'):
        processor.split(table, by="leave_one_out")
    with pytest.raises(ValueError, match="lists of rows .* have no times"):
        processor.split(table, max_delay=5.0)
    with pytest.raises(ValueError, match="rows bring their own lists .* give the list as the history"):
        processor.request([1], np.array([2]), user_id=3)
    with pytest.raises(ValueError, match="needs columns.history"):
        Columns(user=ROW_ORDER)


def test_ids_of_lists_and_items_have_one_type():
    """Prevents the same item from being two because one column of a csv is text and another a number."""
    table = {"before": ["5 6", "6", ""], "item_id": ["6", "a", "5"], "timestamp": [1, 2, 3]}
    processor = PolyRecProcessor.fit(table, tasks=TASKS[:1], columns=Columns(history="before"), verbose=False)
    assert processor.items.ids.to_pylist() == ["5", "6", "a"]


# ------------------------------------------------------------------ found without being told
def test_the_column_of_lists_is_found_by_name_and_content():
    """Prevents attributes of items and slates from being taken for histories, and histories from being left out."""
    table = prefixes(sessions(60, items=30)).astype({"item_id": str})
    table["before"] = [" ".join(map(str, items)) for items in table["before"]]
    found = find_columns(pa.Table.from_pandas(table.rename(columns={"before": "item_id_list"})))
    assert (found.history, found.item, found.user, found.time) == ("item_id_list", "item_id", "session", "timestamp")
    assert "of the ids that it lists are in 'item_id'" in found.reasons["history"]
    found = find_columns(pa.Table.from_pandas(table.drop(columns="session").rename(columns={"before": "x"})))
    assert (found.history, found.user) == ("x", ROW_ORDER)
    log = {"user": table["session"], "item": table["item_id"], "timestamp": table["timestamp"]}
    genres = ["Drama|Comedy" if int(i) % 2 else "Comedy|Action" for i in table["item_id"]]
    slate = [[i, "1", "2"] for i in table["item_id"]]
    similar = [[str(int(i) // 2), str(int(i) // 3)] for i in table["item_id"]]
    for name, values in (("genres", genres), ("slate", slate), ("similar", similar)):
        assert find_columns(pa.table({**log, name: values})).history is None


def test_small_numbers_of_anything_else_are_no_history():
    """Prevents interests, places and vectors of a log from making each of its rows a sequence of its own."""
    drawn, rows = np.random.default_rng(0), 1000
    log = {
        "user_id": np.repeat(np.arange(50), 20),
        "item_id": drawn.integers(0, 300, rows),
        "timestamp": 1_600_000_000 + np.arange(rows) * 100,
    }
    interests = [",".join(map(str, drawn.integers(0, 300, drawn.integers(1, 20)))) for _ in range(50)]
    for name, values in (
        ("interests", np.repeat(interests, 20)),
        ("slots", [f"{a},{b}" for a, b in drawn.integers(0, 10, (rows, 2))]),
        ("vector", drawn.integers(0, 256, (rows, 4)).tolist()),
    ):
        assert find_columns(pa.table({**log, name: values})).history is None, name


def test_a_number_of_the_row_is_no_item_of_its_list():
    """Prevents prescriptions, which number the rows, from being recommended by small numbers of symptoms."""
    rows = {"number": np.arange(100), "symptoms": [[n % 7, 7 + n % 5] for n in range(100)]}
    with pytest.raises(ValueError, match="no column is surely the user"):
        find_columns(pa.table(rows))
