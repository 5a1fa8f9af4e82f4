"""Names and rules that users type."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import asdict

import pytest
from torch import nn

from polyrec.core.label import Label
from polyrec.core.names import METRIC_BEGINNINGS
from polyrec.core.older_files import saved_files
from polyrec.core.registry import HEADS
from polyrec.core.schema import Columns, FeatureConfig, TaskConfig, from_dict, parse_tasks


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
        ("event == 'buy'", Label("event", "==", words=("buy",))),
        ("event not in ('buy', 'cart')", Label("event", "not in", words=("buy", "cart"))),
        ("stars in (4, 5)", Label("stars", "in", (4.0, 5.0))),
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
    with pytest.raises(ValueError, match=r"tasks.like.weight is .*; it must be a number >= 0"):
        TaskConfig("like", head="binary", weight=weight)


@pytest.mark.parametrize("name", ["", "my task", "1st", "a.b", "é"])
def test_impossible_names_are_refused(name):
    """Prevents a name that cannot be a module's key from failing when the model is built."""
    with pytest.raises(ValueError, match="must be letters, digits and '_'"):
        TaskConfig(name, head="binary")


@pytest.mark.parametrize(
    "name", ["item", "score", "rank", "title", "cold_item", "cold_start", "query", "history", "reason", "mean", "type"]
)
def test_names_that_mean_something_else_are_refused(name):
    """Prevents a prediction from overwriting the item's id in a row of `recommend`, and a head that torch cannot keep."""
    with pytest.raises(ValueError, match=f"the task name '{name}' is taken .*: choose another one, e.g. '{name}_task'"):
        TaskConfig(name, head="binary")
    with saved_files(), pytest.warns(UserWarning, match="is taken"):
        assert TaskConfig(name, head="binary").name == name  # a run of before still loads


def test_all_names_of_torch_modules_are_reserved():
    """Prevents a name from being refused only when the model is built, hours after the tables were read."""
    module = nn.ModuleDict()
    for name in dir(module):
        own = (getattr(getattr(module, name), "__module__", None) or "torch").startswith("torch")  # not added by tests
        if own and re.fullmatch("[A-Za-z][A-Za-z0-9_]*", name):
            with pytest.raises(ValueError, match="is taken"):
                TaskConfig(name, head="binary")


def test_metrics_of_two_tasks_never_have_one_name():
    """Prevents `age_class_logloss` of a multiclass task "age" from being that of a binary task "age_class"."""
    with pytest.raises(ValueError, match="'age' and 'age_class' could have one name"):
        parse_tasks([TaskConfig("age", "multiclass"), TaskConfig("age_class", "binary")])
    several = {m for head in HEADS.names() for m in HEADS.get(head).metrics if "_" in m}
    assert {m.split("_")[0] for m in several} <= set(METRIC_BEGINNINGS)


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
    with pytest.raises(ValueError, match="unknown key 'wieght' in tasks.a; .*did you mean 'weight'"):
        parse_tasks([{"name": "a", "head": "binary", "wieght": 2}])


# --------------------------------------------------------------------- columns
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feedback": "rating"}, r"columns\.feedback is 'rating'; it must be a list of texts .*e\.g\. \['rating'\]"),
        ({"context": "hour"}, r"columns\.context is 'hour'; it must be a list of texts .*e\.g\. \['hour'\]"),
        ({"item_features": {"year": "numerc"}}, "unknown kind 'numerc' of column 'year'; .*did you mean 'numeric'"),
        ({"user_features": {"vec": "vector"}}, "unknown kind 'vector' of column 'vec'"),
        ({"item_features": ["genre"]}, r"columns\.item_features is \['genre'\]; it must be a mapping or null"),
        ({"context": {"query": "text"}}, "unknown kind 'text' of column 'query'; known: categorical, multi, numeric"),
        ({"user": "item_id"}, "one column for several of"),
        ({"feedback": ["rating", "time_gap"]}, "columns.feedback names 'time_gap', an input that polyrec makes"),
        ({"context": ["statistics"]}, "columns.context names 'statistics', an input that polyrec makes"),
        ({"propensity_clip": True}, r"columns.propensity_clip is True; it must be a number in \[0, 1\]"),
        ({"prior_history_length": 1.5}, "columns.prior_history_length is 1.5; it must be a whole number >= 0"),
        ({"time_unit": "min"}, "columns.time_unit is 'min'; it must be 's' or 'ms' or 'us' or 'ns'"),
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
        ({"source": "itm"}, "features.x.source is 'itm'; .*did you mean 'item'"),
        ({"kind": "numerc"}, "features.x.kind is 'numerc'; .*did you mean 'numeric'"),
        ({"size": 0}, "features.x.size is 0; it must be a whole number >= 1"),
        ({"width": 0}, "features.x.width is 0; it must be a whole number >= 1"),
    ],
)
def test_features_are_checked(change, message):
    """Prevents an embedding table without rows, and a feature that no encoder reads."""
    with pytest.raises(ValueError, match=message):
        FeatureConfig(**{"name": "x", "source": "item", "kind": "numeric", **change})


def test_the_schema_needs_no_torch():
    """Prevents recipes from being checked only after torch has loaded."""
    code = "import sys; sys.argv = ['polyrec']; import polyrec.core.schema; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
