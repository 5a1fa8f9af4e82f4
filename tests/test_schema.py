"""Names and rules that users type."""

import pytest

from polyrec.registry import EXPERTS, HEADS, WEIGHTINGS, Registry
from polyrec.schema import Columns, FeatureConfig, Label, TaskConfig, from_dict, parse_tasks


@pytest.mark.parametrize(
    ("text", "column", "op", "value"),
    [("rating >= 4", "rating", ">=", 4.0), ("x==-1.5e1", "x", "==", -15.0), ("watch_time", "watch_time", None, 0.0)],
)
def test_label_rules_are_read(text, column, op, value):
    """Prevents a comparison from being taken for the name of a column."""
    assert Label.parse(text) == Label(column, op, value)


def test_unreadable_label_names_the_form():
    """Prevents a half-understood rule from training on something else."""
    with pytest.raises(ValueError, match="column >= number"):
        Label.parse("rating => 4")


@pytest.mark.parametrize("registry", [HEADS, EXPERTS, WEIGHTINGS])
def test_every_file_of_a_folder_registers_its_name(registry):
    """Prevents a part from existing as a file that nobody can name."""
    for name in registry.names():
        assert registry.get(name) is not None


def test_unknown_part_names_the_nearest():
    """Prevents a misspelt head from ending in an import error."""
    with pytest.raises(ValueError, match="did you mean 'binary'"):
        TaskConfig("like", head="binry")


def test_a_name_belongs_to_one_class():
    """Prevents a plug-in from replacing a built-in part in silence."""
    registry = Registry("thing", "polyrec.heads")

    @registry.register("mine")
    class First:
        pass

    with pytest.raises(ValueError, match="already registered"):

        @registry.register("mine")
        class Second:
            pass


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_impossible_weights_are_refused(weight):
    """Prevents a loss of NaN or a task that is unlearnt."""
    with pytest.raises(ValueError, match="weight of task 'like'"):
        TaskConfig("like", head="binary", weight=weight)


def test_task_lists_are_checked():
    """Prevents tasks from overwriting each other by name, and a training run that learns nothing."""
    with pytest.raises(ValueError, match="no tasks given"):
        parse_tasks([])
    with pytest.raises(ValueError, match="used 2 times"):
        parse_tasks([TaskConfig("a", "binary"), {"name": "a", "head": "binary"}])
    with pytest.raises(ValueError, match="every task has weight 0"):
        parse_tasks([TaskConfig("a", "binary", weight=0)])


def test_unknown_keys_are_refused_with_the_nearest():
    """Prevents a misspelt option from being ignored."""
    with pytest.raises(ValueError, match="did you mean 'feedback'"):
        from_dict(Columns, {"feedbak": ["rating"]})
    with pytest.raises(ValueError, match="did you mean 'weight'"):
        parse_tasks([{"name": "a", "head": "binary", "wieght": 2}])


def test_columns_are_checked():
    """Prevents one column name from being read as a list of letters, and unknown kinds and units."""
    with pytest.raises(ValueError, match="write \\['rating'\\]"):
        Columns(feedback="rating")
    with pytest.raises(ValueError, match="did you mean 'numeric'"):
        Columns(item_features={"year": "numerc"})
    with pytest.raises(ValueError, match="time_unit"):
        Columns(time_unit="min")
    with pytest.raises(ValueError, match="unknown source"):
        FeatureConfig("x", "itm", "numeric")
