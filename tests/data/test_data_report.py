"""What the DataReport counts and warns of, beside pandas."""

import json
import warnings

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from polyrec import Columns, PolyRecProcessor, TaskConfig
from polyrec.core.backbones import TextConfig
from polyrec.data import leaks as leaks_module
from polyrec.data.queries import Queries
from polyrec.data.report import DataReport, DataWarning

NEXT, LIKE = TaskConfig("next_item", "retrieval"), TaskConfig("like", "binary", label="rating >= 4")


def events(users=24, per_user=8, seed=0):
    random = np.random.default_rng(seed)
    rows = users * per_user
    user = np.repeat(np.arange(users), per_user)
    return pd.DataFrame(
        {
            "user_id": user,
            "item_id": random.integers(0, 20, rows),
            "timestamp": 1000 * np.tile(np.arange(per_user), users) + user,
            "rating": random.integers(1, 6, rows),
            "click": random.integers(0, 2, rows),
        }
    )


def fit(log, tasks=(NEXT, LIKE), **options):
    return PolyRecProcessor.fit(log, tasks=list(tasks), verbose=False, statistics=False, **options)


def report_of(log, tasks=(NEXT, LIKE), **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        return fit(log, tasks, **options).data_report


# ------------------------------------------------------------------ counts
def test_counts_are_those_of_pandas():
    """Prevents a report that says something else of a table than the table holds."""
    log = events()
    log = pd.concat([log, log.iloc[[5, 5, 77]]], ignore_index=True)  # three duplicates
    log.loc[10, "timestamp"] = log.loc[11, "timestamp"]
    items = pd.DataFrame({"item_id": np.arange(2, 30), "genre": "drama"})
    found = report_of(log, items=items, columns={"context": {"click": "categorical"}})
    per_user = log.groupby("user_id").size()
    assert (found.rows, found.users, found.items) == (len(log), 24, log.item_id.nunique())
    assert found.events_per_user == {"min": 8, "median": 8, "p90": per_user.quantile(0.9), "max": per_user.max()}
    assert found.ties == pytest.approx(log.duplicated(["user_id", "timestamp"], keep=False).mean())
    assert found.repeats == pytest.approx(log.duplicated(["user_id", "item_id"]).mean())
    assert found.duplicates == log.duplicated().sum() == 3
    assert found.time == {
        "first": "1970-01-01T00:00:00",
        "last": str(pd.Timestamp(log.timestamp.max(), unit="s").isoformat()),
        "resolution": "second",
        "distinct": log.timestamp.nunique(),
    }
    assert found.constant == ["item.genre"]
    unknown = ~log.item_id.isin(items.item_id)
    match = found.matches[0]
    assert (match.unmatched, match.unused) == (log.item_id[unknown].nunique(), 28 - log.item_id[~unknown].nunique())
    assert match.rows == pytest.approx(unknown.mean())
    label = log.rating >= 4
    assert found.labels["like"] == {"rows": len(log), "mean": pytest.approx(label.mean()), "min": 0, "max": 1}


@pytest.mark.parametrize(
    ("unit", "name"), [(86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"), (0.25, "below a second")]
)
def test_ties_and_times_of_any_resolution(unit, name):
    """Prevents ties from being missed where times are no whole seconds, or large."""
    log = events()
    log["timestamp"] = 1.7e9 // 86400 * 86400 + unit * (log.timestamp % 7)
    found = report_of(log)
    assert (found.time["resolution"], found.time["distinct"]) == (name, log.timestamp.nunique())
    assert found.ties == pytest.approx(log.duplicated(["user_id", "timestamp"], keep=False).mean())
    first = log.groupby("user_id").timestamp.transform("min") == log.timestamp
    blind = first & log.duplicated(["user_id", "timestamp"], keep=False)  # others are there, and none is earlier
    assert found.blind == pytest.approx(blind.mean())


def test_the_split_is_counted_as_pandas_counts_it():
    """Prevents unranked test rows, and items that training has not seen, from staying unknown."""
    log = events()
    log["timestamp"] = np.arange(len(log))
    log.loc[180:, "item_id"] = [100, 101] * 6  # not in the catalog
    log.loc[170:175, "item_id"] = 19
    log.loc[:150, "item_id"] = log.loc[:150, "item_id"] % 19
    processor = fit(log, items={"item_id": np.arange(20), "year": np.arange(20)})
    with pytest.warns(
        DataWarning, match="12 of 19 positives of task 'next_item' in the test set .* not in the catalog"
    ):
        processor.split(log)
    train, test = log[:154], log[173:]
    found = processor.data_report.split["test"]
    assert (found.rows, found.users) == (len(test), test.user_id.nunique())
    assert (found.first, found.last) == ("1970-01-01T00:02:53", "1970-01-01T00:03:11")
    assert found.unranked == {"next_item": 12}
    assert found.unseen_items == pytest.approx((~test.item_id.isin(train.item_id)).mean())
    assert found.unseen_users == pytest.approx((~test.user_id.isin(train.user_id)).mean())
    assert found.labels["like"] == pytest.approx((test.rating >= 4).mean())


@pytest.mark.parametrize("unseen", [10, 11])
def test_a_test_set_of_mostly_unseen_items_is_warned_of(unseen):
    """Prevents figures of items without a training event from being read as those of the catalog."""
    log = events(users=25).sort_values("timestamp", ignore_index=True)
    log["item_id"] %= 10
    log.loc[200 - unseen :, "item_id"] = 19
    processor = fit(log, items={"item_id": np.arange(20), "year": np.arange(20)})
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        processor.split(log)
    said = [str(w.message) for w in told if "items without a training event" in str(w.message)]
    assert said == (["55.0% of the test rows are items without a training event"] if unseen == 11 else [])


def test_a_column_that_changes_late_is_not_constant():
    """Prevents a column from being called constant by its first thousand rows."""
    items = pd.DataFrame({"item_id": np.arange(1002), "late": ["a"] * 1001 + ["b"], "same": "a"})
    assert report_of(events(), items=items).constant == ["item.same"]


def test_a_part_with_one_label_is_named():
    """Prevents a metric of a test set without positives from being read as one."""
    log = events().sort_values("timestamp", ignore_index=True)
    log.loc[154:172, "rating"], log.loc[173:, "rating"] = 5, 1
    processor = fit(log)
    with pytest.warns(DataWarning) as told:
        processor.split(log)
    said = [str(w.message) for w in told]
    assert any("every label of task 'like' in the validation set is 1" in text for text in said)
    assert any("every label of task 'like' in the test set is 0" in text for text in said)
    assert told[0].filename == __file__


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"timestamp": 5},
            "every event has the same time .* no event sees another.* columns.time: null .* ties: order",
        ),
        ({"user_id": 7}, "all events are of one user"),
        ({"timestamp": 4_000_000_000}, "rows lie in the future"),
        ({"timestamp": lambda log: log.timestamp // 7000}, "share their time .* columns.time: null .* ties: order"),
    ],
)
def test_what_misleads_is_warned_of(change, said):
    """Prevents a training without histories, of one user, or on times misread, from looking like any other."""
    log = events().assign(**change)
    assert any(pd.Series(report_of(log).warnings).str.contains(said))


def test_a_bot_and_an_order_against_time_are_named():
    """Prevents one id that stands for many users, and an order column that means something else."""
    log = events(users=30, per_user=40)
    log.loc[:300, "user_id"] = 0
    log["line"] = -log.timestamp
    processor = fit(log, columns={"order": "line"})
    assert any("one user has 2" in text for text in processor.data_report.warnings)
    with pytest.warns(DataWarning, match="columns.order 'line' falls in 100.0%"):
        processor.split(log)


# ------------------------------------------------------------------ labels among inputs
@pytest.mark.parametrize(
    ("columns", "tasks", "said"),
    [
        ({"context": ["click"]}, [TaskConfig("click", "binary")], "columns.context: the label of task 'click' reads"),
        ({"context": ["rating"]}, [LIKE], "'rating', .* name it in columns.feedback"),
        ({"context": {"rating": "numeric"}, "statistics_only": ["context.rating"]}, [LIKE], "columns.context"),
        ({"order": "click"}, [TaskConfig("click", "binary")], "columns.order"),
        ({}, [TaskConfig("late", "binary", label="timestamp > 3000")], "columns.time"),
    ],
)
def test_inputs_that_a_label_reads_are_refused(columns, tasks, said):
    """Prevents a test AUC of 1.0 that comes of the answer among the inputs."""
    with pytest.raises(ValueError, match=said):
        fit(events(), tasks, columns=columns)


def leaks(log):
    """Columns that alone tell `like`, of every kind."""
    like = log.rating >= 4
    random = np.random.default_rng(1)
    return {
        "copy": like.astype(int),
        "noisy_number": like + random.normal(0, 0.01, len(log)),
        "falling": -log.rating * 3.0,
        "word": np.where(like, "yes", "no"),
        "finer_words": np.where(like, random.choice(["a", "b"], len(log)), random.choice(["c", "d"], len(log))),
        "only_if_liked": np.where(like, random.random(len(log)), np.nan),
        "middle": (random.integers(0, 2, len(log)) * 2 - 1) * np.where(like, 0, 5.0),
        "tags": [["x", "y"] if one else ["x"] for one in like],
    }


@pytest.mark.parametrize("name", list(leaks(events())))
def test_a_context_column_that_tells_the_label_is_warned_of(name):
    """Prevents a copy of the label under another name, type, sign or as a gap from flattering every metric."""
    log = events()
    log[name] = leaks(log)[name]
    log["honest"] = log.rating + np.random.default_rng(2).normal(0, 1.5, len(log))
    found = report_of(log, columns={"context": [name, "honest"]})
    assert [(s.task, s.column) for s in found.separations] == [("like", f"context.{name}")]
    assert f"context.{name} alone tells the label of task 'like'" in "\n".join(found.warnings)


def test_a_number_that_orders_a_regression_label_is_warned_of():
    """Prevents a label in other units, or its word for each value, from being an input of its own regression."""
    log = events()
    log["seconds"] = np.random.default_rng(3).exponential(30, len(log))
    log["minutes"], log["bucket"] = np.log(log.seconds) / 60, (log.rating * 100).astype(str)
    log["other"] = log.seconds * np.random.default_rng(4).uniform(0.5, 1.5, len(log))
    tasks = [TaskConfig("seconds", "regression"), TaskConfig("rating", "regression")]
    found = report_of(log, tasks, columns={"context": ["minutes", "bucket", "other"]})
    assert {(s.task, s.column) for s in found.separations} == {
        ("seconds", "context.minutes"),
        ("rating", "context.bucket"),
    }


def test_attributes_that_tell_a_label_are_warned_of():
    """Prevents attributes made of the labels: a flag of items, and means over the whole log, test rows included."""
    log = events(users=60, per_user=30).assign(item_id=lambda t: (t.index * 7919) % 40)
    log["long"] = (log.item_id % 3 == 0).astype(int)
    mean = log.groupby("item_id").rating.mean()
    items = {"item_id": mean.index, "kind": np.where(mean.index % 3 == 0, "film", "clip"), "avg": mean.round(3)}
    shown = log.groupby("user_id").size()
    users = {"user_id": shown.index, "age": np.arange(len(shown)) % 50.0}
    tasks = [TaskConfig("long", "binary"), TaskConfig("rating", "regression")]
    found = report_of(log, tasks, items=items, users=users)
    assert {(s.task, s.column) for s in found.separations} == {("long", "item.kind"), ("rating", "item.avg")}
    assert any("item.avg" in text and "test rows included" in text for text in found.warnings)
    train = log[log.timestamp < 20_000].groupby("item_id").rating.mean()  # fitted on training rows: an honest input
    assert report_of(log, tasks[1:], items={"item_id": train.index, "avg": train}).separations == []


def test_rare_labels_and_small_groups_are_no_leak():
    """Prevents a warning of every column of a log with few positives or many categories."""
    log = events(users=100, per_user=50)
    random = np.random.default_rng(5)
    log["click"] = (random.random(len(log)) < 0.01).astype(int)
    log["session"], log["price"] = random.integers(0, 1000, len(log)).astype(str), random.normal(size=len(log))
    log["hour"] = random.integers(0, 24, len(log))
    columns = {"context": {"session": "categorical", "price": "numeric", "hour": "categorical"}}
    assert report_of(log, [TaskConfig("click", "binary")], columns=columns).separations == []


def test_propensities_that_tell_the_label_are_warned_of():
    """Prevents weights of clicks alone from passing for the chances of being shown."""
    log = events()
    log["p"] = np.where(log.rating >= 4, 0.9, 0.1)
    found = report_of(log, columns=Columns(propensity={"like": "p"}))
    assert [(s.task, s.column) for s in found.separations] == [("like", "propensity.p")]
    log["w"] = np.where(log.rating >= 4, log.rating, 0)  # no negative counts
    assert [s.column for s in report_of(log, columns=Columns(weight={"like": "w"})).separations] == ["weight.w"]
    log["w"] = np.where(log.rating >= 4, log.rating, 1)
    assert report_of(log, columns=Columns(weight={"like": "w"})).separations == []


# ------------------------------------------------------------------ ids that match nothing
@pytest.mark.parametrize(
    ("table", "ids", "said"),
    [
        ("users", [f"u{n}" for n in range(24)], "24 of 24 users .* without the letters in front: 0 and 'u0'"),
        ("items", [f"{n}.0" for n in range(20)], "20 of 20 items .* without '.0' at the end: 17 and '17.0'"),
        ("items", [f" {n} " for n in range(20)], "without white space"),
        ("items", [f"{n}_a" for n in range(20)], "without the letters at the end: 17 and '17_a'"),
        ("items", list(range(500, 520)), "20 of 20 items .* use the same ids in both tables"),
    ],
)
def test_tables_of_other_ids_are_refused(table, ids, said):
    """Prevents a training in which nobody has attributes, or every item is unknown, from running without a word."""
    other = {f"{table[:-1]}_id": ids, "kind": ["a", "b"] * (len(ids) // 2)}
    log = events()
    with pytest.raises(ValueError, match=said):
        fit(log, **{table: other})
    allowed = fit(log, **{table: other}, columns={"max_unmatched": 1}).data_report
    assert [match.unmatched for match in allowed.matches if table in match.table] == [len(ids)]
    assert any("same ids" not in text and "not in the" in text for text in allowed.warnings)


def test_a_few_unknown_ids_are_warned_of_and_fewer_are_not():
    """Prevents a catalog with holes from going unsaid, and a warning of every cold start."""
    log = events(users=200, per_user=5)
    items, most = {"item_id": np.arange(20)}, {"item_id": np.arange(15)}
    assert not [text for text in report_of(log, items=items).warnings if "not in the" in text]
    said = next(text for text in report_of(log, items=most).warnings if "not in the" in text)
    assert said.startswith("5 of 20 items of the interactions are not in the items table (")
    with pytest.warns(DataWarning, match="5 of 20 items of the interactions"):
        fit(log, items=items).encode_events(log.replace({"item_id": {n: n + 100 for n in range(5)}}))


def test_later_logs_of_other_ids_are_refused():
    """Prevents an update or an evaluation on events that nothing is known of."""
    log = events()
    users = {"user_id": np.arange(24), "age": np.arange(24.0)}
    processor = fit(log, users=users)
    renamed = log.assign(item_id="i" + log.item_id.astype(str))
    for call in (processor.update, processor.encode_events, processor.resume, processor.split):
        with pytest.raises(ValueError, match="20 of 20 items .* without the letters in front"):
            call(renamed)
    with pytest.raises(ValueError, match="24 of 24 users .* without the letters in front"):
        processor.encode_events(log.assign(user_id="u" + log.user_id.astype(str)))
    with pytest.warns(DataWarning, match="24 of 24 users"):  # an evaluation on new users
        processor.encode_events(log.assign(user_id=log.user_id + 1000))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        processor.update({"user_id": [777], "item_id": [999], "timestamp": [10**6], "rating": [5]})  # one new event
        processor.request([999, 1], np.array([2]))


def test_past_tables_and_new_rows_of_other_ids_are_named():
    """Prevents pasts of nobody or of unknown items, and items that are added a second time in another spelling."""
    log = events()
    past = {"user_id": np.arange(24), "watched": [[n % 20, (n + 1) % 20] for n in range(24)]}
    processor = fit(log, columns={"prior_history": {"watched": []}})
    processor.split(log, prior_history=past)
    with pytest.raises(ValueError, match="20 of 20 items of the prior history are not in the items table"):
        processor.split(log, prior_history=past | {"watched": [[f"i{n}" for n in taken] for taken in past["watched"]]})
    with pytest.raises(
        ValueError, match="24 of 24 users of the interactions are not in the prior history .* 0 and 'u0'"
    ):
        processor.split(log, prior_history=past | {"user_id": [f"u{n}" for n in range(24)]})
    with pytest.warns(DataWarning, match="3 of 23 items of the prior history"):
        processor.split(log, prior_history=past | {"watched": [*past["watched"][:-1], [700, 701, 702]]})
    assert processor.data_report.matches[-1].unmatched == 3
    with pytest.warns(DataWarning, match="items: item_id: most of the new ids are known ones .* without the letters"):
        processor.extend({"item_id": [f"item{n}" for n in range(20)]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        processor.extend({"item_id": [500, 501]})


def test_the_items_that_queries_are_of_are_looked_up():
    """Prevents queries from finding the very item they are the text of, because its id is written otherwise."""
    table, items = pa.table({"q": ["a b", "c", None], "of": ["x1", "x2", None]}), {"item_id": [1, 2, 3]}
    catalog = fit({"user_id": [1], "item_id": [1], "timestamp": [1]}, [NEXT], items=items).items
    columns = Columns(query="q", query_item="of")
    tokens = lambda *_, **__: {"input_ids": [[1], [2]]}  # noqa: E731  # what a tokenizer gives for two texts
    found = Queries.read(table, columns, catalog, tokens, TextConfig("any", "{title}", max_length=8)).match
    assert (found.unmatched, found.used) == (2, 2)
    assert "without the letters in front: 'x1' and 1" in found.text()


# ------------------------------------------------------------------ where it goes
def test_it_is_printed_by_one_process_only(capsys, monkeypatch):
    """Prevents a report per rank, and one on stdout, where answers go."""
    PolyRecProcessor.fit(events(), tasks=[NEXT])
    printed = capsys.readouterr()
    assert (printed.out, printed.err.splitlines()[0]) == ("", "Data")
    assert 5 < len(printed.err.splitlines()) < 26
    monkeypatch.setenv("RANK", "1")
    PolyRecProcessor.fit(events().assign(timestamp=3), tasks=[NEXT])
    assert capsys.readouterr().err == ""


def test_ids_of_users_stay_here_and_the_rest_is_saved(tmp_path):
    """Prevents ids of users in files that are shared, and facts that are lost on the way to disk."""
    log = events(users=200, per_user=5).assign(user_id=lambda t: "secret" + t.user_id.astype(str))
    users = {"user_id": [f"other{n}" for n in range(100)] + [f"secret{n}" for n in range(100)], "age": [3.0] * 200}
    processor = fit(log, users=users, items={"item_id": np.arange(15), "year": np.arange(15)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        processor.split(log)
    report = processor.data_report
    assert "secret" in str(report.warnings)  # on this machine, who has them sees which
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "processor_config.json").read_text())["data_report"]
    assert "secret" not in str(saved)
    assert "other" not in str(saved)
    loaded = PolyRecProcessor.from_pretrained(tmp_path).data_report
    assert loaded == DataReport.from_dict(saved)
    assert loaded.to_dict() == report.to_dict() == saved
    assert loaded.lines() == report.lines()


def test_no_items_table_is_not_spoken_of():
    """Prevents "all 20 items are in the items table" where there is none: the catalog came from the log itself."""
    log = events()
    for items in (None, pd.DataFrame({"item_id": range(20), "genre": ["a", "b"] * 10})):
        assert ("in the items table" in str(report_of(log, items=items))) == (items is not None)


def test_samples_of_a_large_log_hold_both_classes_of_a_log_with_a_period(monkeypatch):
    """Prevents the check for leaks from seeing positives alone where each list begins with its positive."""
    monkeypatch.setattr(leaks_module, "_LOOKED_AT", 1000)
    labels = np.tile([1.0, 0, 0, 0, 0], 1000)
    found = leaks_module._sample(labels)
    assert (np.diff(found) > 0).all()
    assert labels[found].mean() == pytest.approx(0.2, abs=0.05)
