"""Tables in, errors out: each names the column, the first bad row and the fix."""

import datetime

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from polyrec import PolyRecProcessor, TaskConfig
from polyrec.core.label import Label
from polyrec.core.schema import Columns
from polyrec.data.tables import as_table, label_values, labels, lookup, normalise_ids, numbers, read_table, times
from polyrec.modules.encoders.history import CandidateAttention

TASKS = [TaskConfig("rating", head="regression")]


def log(**changes):
    return {"user_id": [1, 1, 2], "item_id": [5, 6, 5], "timestamp": [10, 20, 15], "rating": [1.0, 2.0, 3.0]} | changes


def fit(tasks=TASKS, columns=None, items=None, **changes):
    return PolyRecProcessor.fit(log(**changes), items, tasks=tasks, columns=columns)


def test_all_sources_give_one_table(tmp_path):
    """Prevents a format from changing values on the way in."""
    frame = pd.DataFrame(log())
    frame.to_parquet(tmp_path / "x.parquet")
    frame.to_csv(tmp_path / "x.csv", index=False)
    shuffled = datasets.Dataset.from_pandas(frame.iloc[[2, 0, 1]], preserve_index=False).select([1, 2, 0])
    chunked = pa.concat_tables([pa.table(log()).slice(0, 1), pa.table(log()).slice(1)])
    sources = [
        tmp_path / "x.parquet",
        str(tmp_path / "x.csv"),
        frame,
        frame.set_axis([7, 7, 8]),  # an index is no column
        datasets.Dataset.from_pandas(frame),
        shuffled,
        chunked,
        log(),
        {name: np.array(values) for name, values in log().items()},
    ]
    for source in sources:
        table = read_table(source, "interactions")
        assert table.to_pydict() == log()
        assert all(table[name].num_chunks == 1 for name in table.column_names)


def test_all_sources_give_one_encoded_log(tmp_path, tables):
    """Prevents model inputs from depending on how a log was stored: widths of integers, lists, categories of pandas."""
    events, items = tables["interactions"], tables["items"]
    frame = pd.DataFrame(events).astype({"user_id": "int32", "surface": "category"})
    pd.DataFrame(items).to_parquet(tmp_path / "items.parquet")
    expected = encode(events, items)
    for interactions, catalog in (
        (frame, tmp_path / "items.parquet"),
        (pa.table(events), datasets.Dataset.from_dict(items)),
        (datasets.Dataset.from_pandas(frame), pd.DataFrame(items)),
    ):
        for name, values in encode(interactions, catalog).items():
            assert np.array_equal(values, expected[name], equal_nan=values.dtype.kind == "f"), name


def encode(interactions, items):
    """Everything the model may read of a log, flat."""
    columns = Columns(context=["surface"])
    processor = PolyRecProcessor.fit(interactions, items, tasks=TASKS, columns=columns)
    log = processor.encode_events(interactions)
    found = {"item": log.item, "user": log.user, "time": log.time, "labels": log.labels}
    return {**found, **log.event_features, **log.candidate_features, **processor.items.encoded}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"a": [1, 2], "b": [1]}, r"events: columns differ in length \(\{'a': 2, 'b': 1\}\): give one value per row"),
        ({"a": [1, "x"]}, "events: column 'a' mixes types .*: give values of one type"),
        (datasets.DatasetDict(train=datasets.Dataset.from_dict({"a": [1]})), r"\['train'\].*: pass one, .*'train'"),
        (pd.Series([1]), "events: cannot read a Series: pass a .parquet or .csv path"),
        ([1, 2], "events: cannot read a list: pass a .parquet or .csv path"),
        (pd.DataFrame({"a": []}), "events: the table has no rows; check the path or the filter"),
        (pa.table({"a": [1]}).append_column("a", pa.array([2])), "events: column 'a' occurs more than once: rename"),
    ],
)
def test_what_is_no_table_is_named(source, message):
    """Prevents a split of a data set, or a list of rows, from being read as columns."""
    with pytest.raises(ValueError, match=message):
        read_table(source, "events")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"timestamp": [10, None, 15]}, "'timestamp' .* no value in row 1"),
        ({"timestamp": ["2020-01-01", "soon", "2020-01-02"]}, "row 1: soon; use ISO 8601"),
        ({"timestamp": [10.0, 20.0, float("inf")]}, "row 2: times must be finite"),
        ({"timestamp": [1_700_000_000_000, 20, 15]}, "row 0, .*time_unit"),
        ({"user_id": [1, None, 2]}, "'user_id' .* no value in row 1"),
        ({"item_id": [5.0, 6.5, 5.0]}, "fractional in row 1"),
        ({"rating": [1.0, float("-inf"), 3.0]}, "'rating'.* infinite in row 1"),
        ({"rating": ["good", "bad", "good"]}, "'rating'.*'good'.*used as a number"),
    ],
)
def test_bad_values_are_named(changes, message):
    """Prevents training on rows that were repaired or dropped in silence."""
    with pytest.raises(ValueError, match=message):
        fit(**changes)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("user_id", r"interactions: no column 'user_id' \(needed as user id\); known: item_id, rating, timestamp"),
        ("item_id", r"interactions: no column 'item_id' \(needed as item id\)"),
        ("timestamp", r"interactions: no column 'timestamp' \(needed as time\)"),
        ("rating", "interactions: label of task 'rating': no column 'rating'"),
    ],
)
def test_each_missing_column_is_named_with_its_use(column, message):
    """Prevents a KeyError that does not say what the column was for."""
    table = {name: values for name, values in sorted(log().items()) if name != column}
    with pytest.raises(ValueError, match=message):
        PolyRecProcessor.fit(table, tasks=TASKS)


def test_further_columns_are_checked():
    """Prevents a declared context or order column from being left out in silence."""
    with pytest.raises(ValueError, match=r"no column 'hours' \(needed as feedback or context\); .*did you mean 'hour'"):
        fit(columns={"context": ["hours"]}, hour=[1, 2, 3])
    processor = fit(columns={"order": "line"})
    with pytest.raises(ValueError, match=r"interactions: no column 'line' \(needed as order\)"):
        processor.encode_events(log())
    with pytest.raises(ValueError, match=r"column 'line' \(order\) has no value in row 1: fill it in"):
        processor.encode_events(log(line=[1, None, 2]))


def test_ids_are_checked_though_a_users_table_is_given():
    """Prevents events of nobody from becoming one person, whichever tables there are."""
    users = {"user_id": [1, 2], "age": [30, 40]}
    processor = PolyRecProcessor.fit(log(), users=users, tasks=TASKS)
    with pytest.raises(ValueError, match=r"interactions: column 'user_id' \(user id\) has no value in row 2"):
        processor.split(log(user_id=[1, 1, None]))


def test_a_catalog_of_other_ids_is_refused():
    """Prevents every event from being one of the unknown item, on which training runs without an error."""
    with pytest.raises(ValueError, match="2 of 2 items of the interactions are not in the items table .* use the same"):
        fit(items={"item_id": ["x", "y"]})
    assert fit(items={"item_id": ["5", "y"]}).num_items == 4  # one known item is a catalog with gaps


def test_missing_and_duplicate_columns():
    """Prevents a KeyError deep inside, and one of two equal columns from winning by chance."""
    with pytest.raises(ValueError, match="no column 'movie'.*needed as item id"):
        fit(columns={"item": "movie"})
    with pytest.raises(ValueError, match="'a' occurs more than once"):
        read_table(pd.DataFrame([[1, 2]], columns=["a", "a"]), "interactions")
    with pytest.raises(ValueError, match="no rows"):
        read_table({"a": []}, "interactions")


def test_only_folders_named_key_value_become_columns(tmp_path):
    """Prevents a plain folder's name from becoming a column, and a column of the file from being written over."""
    place = tmp_path / "log" / "old" / "day=07" / "shop=b"
    place.mkdir(parents=True)
    pd.DataFrame({"user_id": [1, 2], "shop": ["a", "c"]}).to_parquet(place / "part.parquet")
    found = read_table(tmp_path / "log", "interactions").to_pydict()
    assert found == {"user_id": [1, 2], "shop": ["a", "c"], "day": ["07", "07"]}


def test_unreadable_files(tmp_path):
    """Prevents a truncated file from passing for a small one."""
    path = tmp_path / "x.parquet"
    pd.DataFrame(log()).to_parquet(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="truncated"):
        read_table(path, "interactions")
    with pytest.raises(ValueError, match="no such file"):
        read_table(tmp_path / "y.csv", "interactions")
    with pytest.raises(ValueError, match=r"must end in .parquet or .csv: rename it to .csv .tabs and other separators"):
        (tmp_path / "z.dat").write_text("a")
        read_table(tmp_path / "z.dat", "interactions")
    (tmp_path / "z.csv").write_text("a,b\n1,2\n3\n")
    with pytest.raises(ValueError, match="z.csv .*may be truncated or of another format"):
        read_table(tmp_path / "z.csv", "interactions")


def test_binary_labels_out_of_range_show_the_comparison():
    """Prevents stars from being trained as probabilities."""
    with pytest.raises(ValueError, match='is 2 in row 1.*label="rating >= 2"'):
        fit(tasks=[TaskConfig("like", head="binary", label="rating")])
    assert fit(tasks=[TaskConfig("like", head="binary", label="liked")], liked=[True, None, False]) is not None


def test_labels_beyond_float32_are_refused():
    """Prevents a label of infinity, and so a loss of NaN, from a number that was finite in the file."""
    with pytest.raises(ValueError, match=r"label of task 'rating' is 1e\+60 in row 1, more than float32 holds"):
        fit(rating=[1.0, 1e60, 3.0])


def test_a_constant_label_is_refused():
    """Prevents a task that cannot be learnt from looking perfect."""
    constant = log(user_id=[1] * 3, timestamp=[1, 2, 3])
    processor = PolyRecProcessor.fit(constant, tasks=[TaskConfig("like", head="binary", label="rating >= 0")])
    with pytest.raises(ValueError, match="'like' is 1 in every training row"):
        processor.split(constant, fractions=(1, 0, 0))


def test_a_task_without_labels_is_refused():
    """Prevents a task from being trained on nothing, and reported all the same."""
    unlabelled = log(rating=[None, 1.0, None])
    processor = PolyRecProcessor.fit(unlabelled, tasks=TASKS)
    with pytest.raises(ValueError, match="task 'rating' has no label in the training rows: check label="):
        processor.split(unlabelled, cuts=(20, 20))


def test_names_that_polyrec_uses_itself_are_kept_apart(tmp_path):
    """Prevents an attribute `residuals` from being taken for the model's own, and columns of a saved table from meeting."""
    log_ = log(user_id=[1] * 3, timestamp=[1, 2, 3])
    items = {"item_id": [5, 6], "residuals": [0.5, 1.5], "statistics": ["a", "b"], "a.b": [1, 2]}
    processor = PolyRecProcessor.fit(log_, items, tasks=TASKS)
    assert CandidateAttention(processor.model_config(hidden_size=32)).targets == 1  # of the task, not of the attribute
    for name in ("__training_events__", "__first_event__", " "):
        with pytest.raises(ValueError, match="items: .*: (rename it|name it)"):
            PolyRecProcessor.fit(log_, {"item_id": [5, 6], name: [1, 2]}, tasks=TASKS)
    for columns in ({"context": ["time_gap"]}, {"feedback": ["statistics"]}, {"context": ["timestamp"]}):
        with pytest.raises(ValueError, match="an input that polyrec makes: rename it|a column of ids or times"):
            fit(columns=columns, time_gap=[1, 2, 3], statistics=[1, 2, 3])
    with pytest.warns(UserWarning, match="items: column 'image' has type struct.* is left out"):
        PolyRecProcessor.fit(log_, {"item_id": [5, 6], "image": [{"a": 1}, {"a": 2}]}, tasks=TASKS)
    users = {"user_id": ["a", "a ", "b"]}
    with pytest.warns(UserWarning, match="users: 1 values of 'user_id' differ from others in blanks only, e.g. 'a'"):
        PolyRecProcessor.fit(log(user_id=["a", "b", "b"]), users=users, tasks=TASKS)


def test_duplicate_items_and_text_as_number():
    """Prevents the last of two rows of one item from deciding, and text from becoming NaN."""
    with pytest.raises(ValueError, match="item_id 5 occurs in rows 0 and 2"):
        fit(items={"item_id": [5, 6, 5], "year": [1, 2, 3]})
    with pytest.raises(ValueError, match="'year' holds .*'old'"):
        fit(items={"item_id": [5, 6], "year": ["old", "new"]}, columns={"item_features": {"year": "numeric"}})


def test_times_of_all_types_are_seconds():
    """Prevents microseconds of a timestamp column from being read as seconds."""
    expected = [1577836800.0, 1577836860.0]
    for values in (
        pa.array([1577836800, 1577836860]),
        pa.array(["2020-01-01T00:00:00", "2020-01-01T00:01:00"]),
        pa.array(np.array([1577836800000000, 1577836860000000]), pa.timestamp("us")),
    ):
        assert times(pa.table({"timestamp": values}), Columns(), "x").tolist() == expected
    timestamps = [datetime.datetime(2020, 1, 1, 1, minute, tzinfo=zone(1)) for minute in (0, 1)]
    for values in (
        pa.array(timestamps),
        pa.array(["2020-01-01T01:00:00+01:00", "2019-12-31T19:01:00-05:00"]),
        pa.array([int(t) * 1000 for t in expected], pa.timestamp("ms")),
    ):
        assert times(pa.table({"timestamp": values}), Columns(), "x").tolist() == expected
    dates = pa.array([datetime.date(2020, 1, 1)])
    assert times(pa.table({"timestamp": dates}), Columns(), "x").tolist() == expected[:1]
    for unit, factor in (("ms", 10**3), ("us", 10**6), ("ns", 10**9)):
        plain = pa.table({"timestamp": [int(t) * factor for t in expected]})
        assert times(plain, Columns(time_unit=unit), "x").tolist() == expected
        with pytest.raises(ValueError, match=rf'counts \'s\': say .* Columns\(time_unit="{unit}"\)'):
            times(plain, Columns(), "x")


def zone(hours):
    return datetime.timezone(datetime.timedelta(hours=hours))


@pytest.mark.parametrize("values", [[True, False], [[1], [2]]])
def test_what_is_no_time_is_refused(values):
    """Prevents a wrong column from passing for time."""
    with pytest.raises(ValueError, match=r"column 'timestamp' \(time\) has type .*: give numbers, timestamps or ISO"):
        times(pa.table({"timestamp": values}), Columns(), "x")


def test_numbers_of_all_types():
    """Prevents booleans, decimals and gaps from being refused or read as something else."""
    for values in (pa.array([True, None]), pa.array([1, None], pa.uint8()), pa.array([1, None], pa.decimal128(4, 2))):
        assert np.array_equal(numbers(values, "x"), [1, np.nan], equal_nan=True)
    assert np.isnan(numbers(pa.nulls(2), "x")).all()


def test_unknown_labels_stay_unknown():
    """Prevents a missing rating from becoming a dislike."""
    table = pa.table({"rating": [5.0, None, 2.0]})
    assert np.array_equal(label_values(table, Label("rating", ">=", 4), "x"), [1, np.nan, 0], equal_nan=True)
    found = labels(table, [TaskConfig("next_item", "retrieval", label="rating >= 4")], "x")
    assert np.array_equal(found[:, 0], [1, np.nan, np.nan], equal_nan=True)


@pytest.mark.parametrize(
    ("op", "expected"),
    [(">=", [0, 1, 1]), (">", [0, 0, 1]), ("<=", [1, 1, 0]), ("<", [1, 0, 0]), ("==", [0, 1, 0]), ("!=", [1, 0, 1])],
)
def test_comparisons_are_what_they_say(op, expected):
    """Prevents a threshold from being exclusive where it reads inclusive."""
    table = pa.table({"rating": [3, 4, 5]})
    assert label_values(table, Label.parse(f"rating {op} 4"), "x").tolist() == expected


def test_label_expressions_are_computed():
    """Prevents milliseconds from being trained as seconds, and log1p from being taken before the division."""
    table = pa.table({"ms": [0, 3000, None]})
    assert np.array_equal(label_values(table, Label.parse("ms / 1000"), "x"), [0, 3, np.nan], equal_nan=True)
    found = label_values(table, Label.parse("log1p(ms / 1000)"), "x")
    np.testing.assert_allclose(found, [0, np.log(4), np.nan])
    compared = label_values(table, Label.parse("log1p(ms / 1000) >= 1"), "x")
    assert np.array_equal(compared, [0, 1, np.nan], equal_nan=True)
    with pytest.raises(ValueError, match=r"what \(column 'ms'\) is -5 in row 1: log1p needs numbers >= 0"):
        label_values(pa.table({"ms": [1.0, -5.0]}), Label.parse("log1p(ms / 1000)"), "what")
    with pytest.raises(ValueError, match="no column 'm'; .*did you mean 'ms'"):
        label_values(table, Label.parse("log1p(m)"), "x")


@pytest.mark.parametrize(
    ("rule", "values", "expected"),
    [
        ("event == 'buy'", ["buy", "view", None, ""], [1, 0, np.nan, np.nan]),
        ('event != "view"', pa.array(["buy", "view", None]).dictionary_encode(), [1, 0, np.nan]),
        ("event in ('buy', 'cart')", ["buy", "cart", "view"], [1, 1, 0]),
        ("event not in ['buy', 'cart']", ["buy", "view", None], [0, 1, np.nan]),
        ("stars in (4, 5)", [4, 3, 5.0, None], [1, 0, 1, np.nan]),
        ("stars >= 4", ["05", "3", None], [1, 0, np.nan]),  # a csv keeps padded numbers as text
        ("event == 'it is >= 4'", ["it is >= 4", "x"], [1, 0]),
    ],
)
def test_labels_may_be_words(rule, values, expected):
    """Prevents logs that name their events from needing a column of numbers first."""
    rule = Label.parse(rule)
    values = values if isinstance(values, pa.Array) else pa.array(values)
    assert np.array_equal(label_values(pa.table({rule.column: values}), rule, "x"), expected, equal_nan=True)


@pytest.mark.parametrize(
    ("label", "values", "message"),
    [
        (
            "event == 'transacton'",
            ["transaction", "view", "view"],
            "no value 'transacton'; .*did you mean 'transaction'",
        ),
        ("event == '5'", [5, 1, 2], "compared with the word '5' but holds int64 values such as 5: write event == 5"),
        ("event == 'yes'", [True, False, True], "bool values such as True: write label='event'"),
        ("event >= 4", ["buy", "view", "view"], "texts such as 'buy', 'view' .*label=\"event == 'buy'\""),
        ("event", ["buy", "view", "view"], "texts such as 'buy', 'view' but is used as a number"),
        ("event == buy", ["buy", "view", "view"], "cannot read the label .*words in quotes"),
        ("event in ('buy', 1)", ["buy", "view", "view"], "mixes words and numbers"),
        ("event / 2 == 'buy'", ["buy", "view", "view"], "computes with a column"),
    ],
)
def test_words_and_numbers_are_not_compared(label, values, message):
    """Prevents a misspelt word from being a label of zeros, and a number from being compared as text."""
    with pytest.raises(ValueError, match=message):
        fit(tasks=[TaskConfig("buy", "binary", label=label)], event=values)


def test_a_task_with_a_word_is_learnt(tmp_path):
    """Prevents words from being lost on the way through a saved processor, or from being no feedback."""
    events = log(event=["view", "buy", "view"])
    tasks = [TaskConfig("buy", "binary", label="event == 'buy'"), TaskConfig("next_item", "retrieval")]
    processor = PolyRecProcessor.fit(events, tasks=tasks)
    processor.save_pretrained(tmp_path)
    loaded = PolyRecProcessor.from_pretrained(tmp_path)
    assert loaded.encode_events(events).labels[:, 0].tolist() == [0, 1, 0]
    assert loaded.event_encoders["event"]["event"].vocabulary == ["buy", "view"]
    window = loaded.request([{"item_id": 5, "event": "buy"}], np.array([2]))
    assert window["event_features"]["event"].tolist() == [2]


@pytest.mark.parametrize(
    ("head", "options", "values", "message"),
    [
        ("multiclass", {}, [0, 1.5], "is 1.5 in row 1 .column 'y'., not a whole number from 0 to inf: number the"),
        ("multiclass", {"num_classes": 3}, [None, 2, 3], "is 3 in row 2 .*not a whole number from 0 to 2"),
        ("multiclass", {}, [-1], "is -1 in row 0"),
        ("ordinal", {}, [1, 2.5], "is 2.5 in row 1 .*give whole numbers"),
        ("ordinal", {"minimum": 1, "maximum": 5}, [1, 5, 0], "is 0 in row 2 .*not a whole number from 1 to 5"),
        ("count", {}, [0, 2, 0.5], "is 0.5 in row 2 .*give counts"),
        ("count", {}, [-1], "is -1 in row 0 .*not a whole number from 0"),
        ("watch_time", {}, [0.0, -0.5], "is -0.5 in row 1 .*not a number from 0 to inf: repair the column"),
    ],
)
def test_labels_that_a_head_cannot_mean_are_refused(head, options, values, message):
    """Prevents stars from becoming classes by rounding, and negative counts from giving a loss of NaN."""
    with pytest.raises(ValueError, match=f"label of {head} task 'task' {message}"):
        labels(pa.table({"y": values}), [TaskConfig("task", head, label="y", options=options)], "x")


def test_ids_of_any_width_compare_equal():
    """Prevents int32 ids of one table from missing int64 ids of another."""
    assert normalise_ids(pa.array([1, 2], pa.int32())).equals(normalise_ids(pa.array([1, 2], pa.uint8())))
    assert normalise_ids(pa.array(["a"])).equals(normalise_ids(pa.array(["a"]).dictionary_encode()))
    assert normalise_ids(pa.array([1.0, 2.0])).equals(pa.array([1, 2]))
    assert lookup(pa.array(["2", "x", None]), pa.array([1, 2])).to_pylist() == [1, None, None]


def test_a_history_keeps_what_any_of_its_events_tells():
    """Prevents feedback from being dropped because the first event of a history has none."""
    events = [3, {"item_id": 4, "rating": 5.0}, {"surface": "home", "item_id": 5}]
    assert as_table(events, "item_id").to_pydict() == {
        "item_id": [3, 4, 5],
        "rating": [None, 5.0, None],
        "surface": [None, None, "home"],
    }


@pytest.mark.parametrize(
    "empty", [None, [], {}, {"item_id": []}, pd.DataFrame({"item_id": []}), pa.table({"item_id": []})]
)
def test_an_empty_history_is_nobody(empty):
    """Prevents the first request of a new person from being an error."""
    assert as_table(empty, "item_id") is None
