"""What people did before the log: which events, in which order, with which marks."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_fixtures import COLUMNS, TASKS, fit, model_inputs, synthetic_log, tiny_model

from polyrec import Columns, PolyRecCollator, PolyRecProcessor
from polyrec.data.candidates import excluded_items
from polyrec.data.catalog import EntityTable
from polyrec.data.prior_history import check_marks, read_prior_history
from polyrec.data.tables import read_table

COLUMNS_OF_PAST = {"watched": [], "liked": ["like"], "finished": ["long", "like"]}
ITEMS = ["a", "b", "c", "d"]  # rows 2, 3, 4, 5 of the item table


def catalog(ids=ITEMS) -> EntityTable:
    return EntityTable(pa.array(ids), pa.table({"item_id": ids}), {})


def read(table, users, past=COLUMNS_OF_PAST, items=None, **options):
    columns = Columns(prior_history=past, **options)
    return read_prior_history(read_table(table, "prior_history"), columns, items or catalog(), pa.array(users))


def naive(table, users, past):
    """[(person, item, {mark: held})], with lists and dicts alone; items by id."""
    found = []
    for user, name in enumerate(users):
        if name not in table["user_id"]:
            continue
        row = table["user_id"].index(name)
        lists = {column: [i for i in (table[column][row] or []) if i is not None] for column in past}
        columns = list(past)
        events, known = list(lists[columns[0]]), set(lists[columns[0]])
        for column in columns[1:]:
            extra = [i for i in dict.fromkeys(lists[column]) if i not in known]
            known |= set(extra)
            events = extra + events
        for item in events:
            held: dict[str, float] = {}
            for column in columns:
                for mark in past[column]:
                    held[mark] = max(held.get(mark, 0.0), float(item in lists[column]))
            found.append((user, item, held))
    return found


ids = st.lists(st.one_of(st.none(), st.sampled_from([*ITEMS, "new", "newer"])), max_size=6)


@st.composite
def tables(draw):
    users = draw(st.lists(st.integers(0, 6), min_size=1, max_size=5, unique=True))
    columns = {name: [draw(st.one_of(st.none(), ids)) for _ in users] for name in COLUMNS_OF_PAST}
    return {"user_id": users, **columns}


# ------------------------------------------------------------------ which events
@settings(max_examples=50, deadline=None)
@given(
    tables(), st.lists(st.integers(0, 8), min_size=1, max_size=5, unique=True), st.permutations(list(COLUMNS_OF_PAST))
)
def test_events_and_marks_are_those_of_a_naive_loop(table, users, order):
    """Prevents events from sliding between people, a wrong order, and a mark of one item from reaching another."""
    past = {name: COLUMNS_OF_PAST[name] for name in order}
    arrow = {n: pa.array(v, pa.int64() if n == "user_id" else pa.list_(pa.string())) for n, v in table.items()}
    found, expected = read(pa.table(arrow), users, past), naive(table, users, past)
    rows = {name: row + 2 for row, name in enumerate(ITEMS)}
    assert found.user.tolist() == [user for user, _, _ in expected]
    assert found.item.tolist() == [rows.get(item, 1) for _, item, _ in expected]
    assert set(found.marks) == {"like", "long"}
    for mark, held in found.marks.items():
        assert held.dtype == np.float64
        assert held.tolist() == [marks[mark] for _, _, marks in expected]
    assert found.offsets.tolist() == [sum(p < n for p, _, _ in expected) for n in range(len(users) + 1)]


def test_what_only_a_later_column_holds_comes_first():
    """Prevents a like that reaches further back than the list of what was watched from passing for the latest event."""
    table = {"user_id": [7], "watched": [["c", "a", "c"]], "liked": [["d", "c", "b", "d"]], "finished": [[]]}
    found = read(table, [7])
    assert found.item.tolist() == [5, 3, 4, 2, 4]  # d b | c a c: repeats of what was watched stay
    assert found.marks["like"].tolist() == [1, 1, 1, 0, 1]
    assert found.marks["long"].tolist() == [0] * 5


def test_unknown_items_are_told_apart():
    """Prevents every item that the catalog does not know from being liked because one of them was."""
    table = {"user_id": [1], "watched": [["new", "a", "newer"]], "liked": [["newer", "newest"]], "finished": [None]}
    found = read(table, [1])
    assert found.item.tolist() == [1, 1, 2, 1]  # newest | new a newer
    assert found.marks["like"].tolist() == [1, 0, 0, 1]


def test_ids_of_any_type_and_lists_of_any_kind():
    """Prevents numbers, strings, slices, missing lists with leftovers and lists of missing ids from being misread."""
    items = catalog([10, 11, 12])
    leftovers = pa.ListArray.from_arrays([0, 2, 4, 5], [10, 11, 12, 12, 11], mask=pa.array([False, True, False]))
    expected = [2, 3, 3]
    for watched in (
        leftovers,
        leftovers.cast(pa.large_list(pa.int32())),
        pa.chunked_array([leftovers.slice(0, 1), leftovers.slice(1)]),
        pa.array([["10", "11"], None, ["11"]]),
        pa.array([[10.0, 11.0], [None], [None, 11.0]]),
        pa.array([np.array([10, 11]), None, np.array([11])]),
    ):
        found = read(pa.table({"user_id": [3, 4, 5], "watched": watched}), [3, 4, 5], {"watched": []}, items)
        assert found.item.tolist() == expected, watched
        assert found.offsets.tolist() == [0, 2, 2, 3]
    nobody = read({"user_id": [3], "watched": [[]], "liked": [None]}, [3], {"watched": [], "liked": ["like"]}, items)
    assert len(nobody.item) == len(nobody.marks["like"]) == 0


def test_people_of_the_log_alone_and_in_their_order():
    """Prevents the past of people whom the log does not know from being counted, or read by somebody else."""
    table = {"user_id": ["9", "8", "7"], "watched": [["a"], ["b"], ["c"]]}
    found = read(table, [7, 5, 9], {"watched": []})  # numbers and strings are the same
    assert found.item.tolist() == [4, 2]
    assert found.user.tolist() == [0, 2]
    assert found.marks == {}


# ------------------------------------------------------------------ refusals
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"user_id": [4, 4]}, "prior_history: user_id 4 has several rows: keep one row per user, with lists"),
        ({"user_id": [4, None]}, r"prior_history: column 'user_id' \(user id\) has no value in row 1"),
        (
            {"watched": ["a,b", "c"]},
            "prior_history: column 'watched' has type string: give a list of item ids per user",
        ),
        ({"watched": [1, 2]}, "prior_history: column 'watched' has type int64: give a list"),
        ({"liked": [[0.5], []]}, r"prior_history: column 'liked' \(item ids\) is fractional in row 0"),
    ],
)
def test_tables_that_cannot_be_meant_are_refused(change, message):
    """Prevents one of two rows of a person, or letters of a text, from being read as their past."""
    table = {"user_id": [4, 5], "watched": [["a"], ["b"]], "liked": [[], []], "finished": [[], []]}
    with pytest.raises(ValueError, match=message):
        read(table | change, [4])


def test_a_missing_column_is_named():
    """Prevents a misspelt column of the past from being read as nobody having done anything."""
    with pytest.raises(
        ValueError, match=r"prior_history: no column 'liked' \(needed as item ids\); did you mean 'likes'"
    ):
        read({"user_id": [4], "watched": [["a"]], "likes": [["a"]], "finished": [[]]}, [4])


def test_marks_must_be_feedback():
    """Prevents a mark that no feature reads from being dropped without a word."""
    check_marks(Columns(prior_history={"liked": ["like"]}), {"like": "categorical"})
    check_marks(Columns(), [])
    with pytest.raises(ValueError, match=r"'liked' marks 'lik', which is not a feedback column of the log: \['like'\]"):
        check_marks(Columns(prior_history={"watched": [], "liked": ["lik"]}), ["like"])
    columns = COLUMNS | {"prior_history": {"watched": ["liked"]}, "feedback": ["rating"]}
    with pytest.raises(ValueError, match="'watched' marks 'liked', which is not a feedback column"):
        PolyRecProcessor.fit(**synthetic_log(8), tasks=TASKS, columns=columns)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prior_history": {}}, "columns.prior_history names no column"),
        ({"prior_history": ["watched"]}, "columns.prior_history is .*it must be a mapping or null"),
        (
            {"prior_history": {"liked": "like"}},
            r"columns.prior_history.liked is 'like'; it must be a list of texts, e.g. \['like'\]",
        ),
        ({"prior_history_length": -1}, "columns.prior_history_length is -1; it must be a whole number >= 0"),
    ],
)
def test_declarations_that_cannot_be_meant_are_refused(options, message):
    """Prevents an error of Python's own, or a negative length that reads other people's events."""
    with pytest.raises(ValueError, match=message):
        Columns(**options)


def test_a_past_that_no_column_declares_is_refused(tables):
    """Prevents a past table from being passed and never read."""
    processor, _ = fit(tables)
    with pytest.raises(ValueError, match="columns.prior_history does not say which of its columns to read"):
        processor.split(tables["interactions"], prior_history={"user_id": [1], "watched": [[1]]})


# ------------------------------------------------------------------ windows and model
PAST = {"watched": [], "liked": ["like"]}


def log_with_prior_history(max_history=6, past_length=4, kind=int, **options):
    """The synthetic log with a column "like", and what its people did before: person p watched p items, liked some."""
    tables = synthetic_log(12, 24, 10)
    events = tables["interactions"]
    events["like"] = (np.nan_to_num(events["rating"]) >= 4).astype(kind)
    columns = COLUMNS | {"feedback": ["like", "rating"], "prior_history": PAST, "prior_history_length": past_length}
    processor = PolyRecProcessor.fit(**tables, tasks=TASKS, columns=columns, max_history=max_history)
    past = {
        "user_id": np.arange(12),
        "watched": [list(range(p)) for p in range(12)],
        "liked": [[i for i in range(p) if i % 2] for p in range(12)],
    }
    return processor, processor.split(events, prior_history=past, shuffle_ties=False, **options)


def test_what_is_counted_of_the_past_unless_said_otherwise():
    """Prevents a rate without the number of events behind it: of one event or a hundred, it would look the same."""
    processor, _ = log_with_prior_history()
    names = {name for name in processor.statistics.names if name.startswith("past.")}
    attributes = [f"item.{name}" for name in ("genre", "tags", "price")]
    pairs = [f"user*{key}" for key in ("item", *attributes)]
    keys = [f"{key}-context" for key in ("item", *attributes)] + [f"{key}-item" for key in ("user", *pairs)]
    expected = {f"past.{key}.{what}" for key in keys for what in ("like", "log_count")}
    assert names == expected | {"past.baseline.like"}


@pytest.mark.parametrize(("max_history", "past_length"), [(12, 4), (12, 0), (1, 4), (30, 30), (8, 9)])
def test_windows_begin_with_the_latest_of_the_past(max_history, past_length):
    """Prevents the oldest events of the past from being read, windows from overflowing, and positions from staying."""
    _, splits = log_with_prior_history(max_history, past_length)
    checked = 0
    for part in splits:
        log = part.log
        for i in range(len(part)):
            window, span = part[i], part.spans(np.array([i]))
            user, start = int(span.user[0]), int(span.start[0])
            own = int(span.stop[0]) - start
            before = min(user, past_length, max_history - own) if start == 0 else 0
            name = log.user_ids[user].as_py()
            assert len(window["item_ids"]) == own + before <= max_history
            read_ = (window["item_ids"][:before] - 2).tolist()
            assert read_ == list(range(name))[name - min(name, before) :]
            asked = window["candidate_rows"]
            assert np.array_equal(
                window["candidate_positions"], part.candidates.position[asked] - start + len(window["item_ids"]) - own
            )
            features = window["event_features"]
            like = features["like"][: len(read_)]
            assert like.tolist() == [3 if item % 2 else 2 for item in read_]  # codes of 1 and 0
            assert (features["rating"][: len(read_)] == 0).all()  # what no column of the past says is unknown
            assert np.isnan(features["time_gap"][: len(read_)]).all()
            checked += len(read_)
    assert (checked > 0) == (max_history > 1 and past_length > 0)  # where own events leave place


def test_lists_leave_out_what_was_taken_before_the_log():
    """Prevents another person's past, or none, from being left out of lists that are measured."""
    _, splits = log_with_prior_history()
    for part in splits:
        rows = np.arange(part.num_candidates)
        pairs = np.concatenate([np.stack(found, 1) for found in excluded_items("history", part, rows)])
        log, expected = part.log, set()
        for row, event in enumerate(part.candidates.event):
            user = log.user[event]
            first = log.offsets[user]
            seen = set(log.item[first : first + part.candidates.position[row]].tolist())
            seen |= {item + 2 for item in range(log.user_ids[user].as_py())}  # what p watched: 0 ... p - 1
            expected |= {(row, item) for item in seen if item >= 2}
        assert set(map(tuple, pairs.tolist())) == expected


@pytest.mark.parametrize("kind", [int, float, bool])
def test_marks_are_read_like_feedback_of_any_type(kind):
    """Prevents a like before the log from being another value than one in it, because one is 1 and the other true."""
    processor, splits = log_with_prior_history(kind=kind)
    log, encoder = splits.train.log, processor.event_encoders["event"]["like"]
    assert encoder.kind == "categorical"
    yes, no = (log.event_features["like"][log.labels[:, 1] == label] for label in (1, 0))
    held = log.prior_history.event_features["like"]
    assert set(held[log.prior_history.marks["like"] == 1]) == set(yes)
    assert set(held[log.prior_history.marks["like"] == 0]) == set(no)


def test_history_across_windows_has_no_past():
    """Prevents events of the past from being read between two windows of one person, where they did not happen."""
    _, splits = log_with_prior_history(max_history=3)
    part = splits.train
    spans = part.spans(np.arange(len(part)))
    later = np.flatnonzero(spans.start > 0)
    assert len(later)
    for i in later:
        first = part.log.offsets[spans.user[i]] + spans.start[i]
        own = part.log.item[first : first + spans.stop[i] - spans.start[i]]
        assert np.array_equal(part[i]["item_ids"], own)


def test_the_first_question_sees_all_of_the_past_and_nothing_else():
    """Prevents a person's first event from being asked of a stranger, or of somebody who has already answered."""
    processor, splits = log_with_prior_history(max_history=16, past_length=9)
    model, data = tiny_model(processor), splits.train
    window = data[len(data) - 1]
    held = min(int(data.log.user_ids[int(data.spans(np.array([len(data) - 1])).user[0])].as_py()), 9)
    first = int(window["candidate_positions"].argmin())
    assert window["candidate_positions"][first] == held > 0

    def answers(changed):
        batch = model_inputs(PolyRecCollator()([window | changed]))
        with torch.no_grad():
            return {name: values[0, first] for name, values in model(**batch).logits.items()}

    plain = answers({})
    for place in range(len(window["item_ids"])):
        item = window["item_ids"].copy()
        item[place] = 25 - item[place]
        found = answers({"item_ids": item})
        for name, value in plain.items():
            assert torch.equal(found[name], value) == (place >= held), (name, place)
