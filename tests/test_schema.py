"""Names and rules that users type."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict

import pytest

from polyrec.schema import Columns, FeatureConfig, Label, TaskConfig, from_dict, parse_tasks


# ---------------------------------------------------------------------- labels
@pytest.mark.parametrize(
    ("text", "column", "op", "value"),
    [
        ("rating >= 4", "rating", ">=", 4.0),
        ("rating>=4", "rating", ">=", 4.0),
        ("x==-1.5e1", "x", "==", -15.0),
        (" watch.time < .5 ", "watch.time", "<", 0.5),
        ("dur != 0", "dur", "!=", 0.0),
        ("watch_time", "watch_time", None, 0.0),
        ("watch time", "watch time", None, 0.0),
    ],
)
def test_label_rules_are_read(text, column, op, value):
    """Prevents a comparison from being taken for the name of a column."""
    assert Label.parse(text) == Label(column, op, value)


@pytest.mark.parametrize("text", ["rating => 4", "rating >= four", "rating >= 1.2.3", "rating = 4", "a >= 1 > 0"])
def test_unreadable_labels_name_the_form(text):
    """Prevents a half-understood rule from training on something else."""
    with pytest.raises(ValueError, match="cannot read the label .*column >= number"):
        Label.parse(text)
    with pytest.raises(ValueError, match="cannot read the label"):
        TaskConfig("like", head="binary", label=text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("log1p(play_ms)", Label("play_ms", log1p=True)),
        (" log1p( play time / 1e3 ) ", Label("play time", divisor=1000.0, log1p=True)),
        ("play_ms/1000", Label("play_ms", divisor=1000.0)),
        ("a / b", Label("a / b")),
        ("play_ms / 1000 >= 30", Label("play_ms", ">=", 30.0, 1000.0)),
        ("log1p(x) < 2", Label("x", "<", 2.0, log1p=True)),
        ("log1p", Label("log1p")),
    ],
)
def test_label_expressions_are_read(text, expected):
    """Prevents an expression from being taken for the name of a column, and a name for an expression."""
    assert Label.parse(text) == expected


@pytest.mark.parametrize("text", ["log1p(x", "log1p(log1p(x))", "log1p()", "", "log1p(x) / 2"])
def test_unreadable_label_expressions_name_the_forms(text):
    """Prevents half an expression from being looked for as a column."""
    with pytest.raises(ValueError, match=r"cannot read the label .*'log1p\(column / number\)'"):
        Label.parse(text)
    with pytest.raises(ValueError, match="divides by 0"):
        Label.parse("x / 0")


def test_the_default_label_is_the_tasks_name_or_every_event():
    """Prevents a next-item task from looking for a column, and any other task from counting every event."""
    assert TaskConfig("next_item", head="retrieval").parsed_label is None
    assert TaskConfig("next_item", head="retrieval", label="rating >= 4").parsed_label == Label("rating", ">=", 4.0)
    assert TaskConfig("rating", head="regression").parsed_label == Label("rating")


# ----------------------------------------------------------------------- tasks
def test_unknown_part_names_the_nearest():
    """Prevents a misspelt head from ending in an import error."""
    with pytest.raises(ValueError, match="did you mean 'binary'"):
        TaskConfig("like", head="binry")


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_impossible_weights_are_refused(weight):
    """Prevents a loss of NaN or a task that is unlearnt."""
    with pytest.raises(ValueError, match="weight of task 'like'"):
        TaskConfig("like", head="binary", weight=weight)


@pytest.mark.parametrize("name", ["", "my task", "1st", "a.b", "é"])
def test_impossible_names_are_refused(name):
    """Prevents a name that cannot be a module's key from failing when the model is built."""
    with pytest.raises(ValueError, match="must be letters, digits and '_'"):
        TaskConfig(name, head="binary")


def test_task_lists_are_checked():
    """Prevents tasks from overwriting each other by name, and a training run that learns nothing."""
    with pytest.raises(ValueError, match="no tasks given"):
        parse_tasks([])
    with pytest.raises(ValueError, match="'a' is used 2 times"):
        parse_tasks([TaskConfig("a", "binary"), {"name": "a", "head": "binary"}])
    with pytest.raises(ValueError, match="every task has weight 0"):
        parse_tasks([TaskConfig("a", "binary", weight=0)])
    parsed = parse_tasks([TaskConfig("a", "binary"), {"name": "b", "head": "regression", "weight": 0}])
    assert [t.name for t in parsed] == ["a", "b"]


def test_tasks_do_not_share_options():
    """Prevents one task's options from changing another's (a mutable default)."""
    first, second = TaskConfig("a", "binary"), TaskConfig("b", "binary")
    first.options["prior"] = 0.5
    assert second.options == {}


def test_unknown_keys_are_refused_with_the_nearest():
    """Prevents a misspelt option from being ignored."""
    with pytest.raises(ValueError, match="unknown key 'feedbak' in Columns; .*did you mean 'feedback'"):
        from_dict(Columns, {"feedbak": ["rating"]})
    with pytest.raises(ValueError, match="unknown key 'wieght' in TaskConfig; .*did you mean 'weight'"):
        parse_tasks([{"name": "a", "head": "binary", "wieght": 2}])


# --------------------------------------------------------------------- columns
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feedback": "rating"}, r"columns\.feedback must be a list .* write \['rating'\]"),
        ({"context": "hour"}, r"columns\.context must be a list .* write \['hour'\]"),
        ({"item_features": {"year": "numerc"}}, "unknown kind 'numerc' of column 'year'; .*did you mean 'numeric'"),
        ({"user_features": {"vec": "vector"}}, "unknown kind 'vector' of column 'vec'"),
        ({"item_features": ["genre"]}, r"columns\.item_features must say the kind of each column.*\['genre'\]"),
        ({"context": {"query": "text"}}, "unknown kind 'text' of column 'query'; known: categorical, multi, numeric"),
        ({"time_unit": "min"}, "unknown time_unit 'min'; known: s, ms, us, ns"),
    ],
)
def test_columns_are_checked(change, message):
    """Prevents one column name from being read as a list of letters, and kinds that no encoder knows."""
    with pytest.raises(ValueError, match=message):
        Columns(**change)


@pytest.mark.parametrize(
    "columns",
    [
        Columns(),
        Columns(user="u", order="line", time_unit="ms", feedback=["rating"], context=["hour"], title=None),
        Columns(feedback={"rating": "numeric"}, item_features={"genre": "multi", "about": "text"}),
    ],
)
def test_values_survive_json(columns):
    """Prevents a tuple that returns from JSON as a list from changing the columns of a saved processor."""
    assert from_dict(Columns, json.loads(json.dumps(columns.to_dict()))) == columns


def test_tasks_survive_json():
    """Prevents a reloaded task from differing from the trained one."""
    task = TaskConfig("like", "binary", label="rating >= 4", weight=0.5, options={"prior": 0.25})
    assert parse_tasks([json.loads(json.dumps(asdict(task)))]) == [task]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": "itm"}, "unknown source 'itm' of feature 'x'; .*did you mean 'item'"),
        ({"kind": "numerc"}, "unknown kind 'numerc' of feature 'x'; .*did you mean 'numeric'"),
        ({"size": 0}, "size and width of feature 'x' must be >= 1, not 0 and 1"),
        ({"width": 0}, "size and width of feature 'x' must be >= 1, not 1 and 0"),
    ],
)
def test_features_are_checked(change, message):
    """Prevents an embedding table without rows, and a feature that no encoder reads."""
    with pytest.raises(ValueError, match=message):
        FeatureConfig(**{"name": "x", "source": "item", "kind": "numeric", **change})


def test_the_schema_needs_no_torch():
    """Prevents recipes from being checked only after torch has loaded."""
    code = "import sys; sys.argv = ['polyrec']; import polyrec.schema; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
