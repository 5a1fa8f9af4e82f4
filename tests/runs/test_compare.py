"""`polyrec compare`, as a user types it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from polyrec.cli.main import main
from polyrec.core import extras
from polyrec.evaluation.comparison_runs import ComparisonRun
from polyrec.runs.compare import compare_recipe
from polyrec.runs.prepare import prepare
from polyrec.runs.recipe import load_recipe
from polyrec.runs.train import build_config

RUNS = ["all-seed5", "only_next_item-seed5", "only_rating-seed5"]


def without_cost(folder):
    """The result, but for the time that it took."""
    result = json.loads((folder / "comparison.json").read_text())
    result.pop("costs")
    return result


def test_interrupted_comparison_goes_on_and_ends_the_same(recipe_file, tmp_path, interrupt, capsys):
    """Prevents finished runs from being repeated, and a resumed training from ending elsewhere than an uninterrupted one."""
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    command = ["compare", str(recipe_file), "--seeds", "1", "--resamples", "50", "--no-html", "--output"]
    every = interrupt(None)
    assert main([*command, str(straight)]) == 0
    assert sorted(p.name for p in (straight / "runs").iterdir()) == RUNS
    one_run = len(every) // len(RUNS)
    interrupt(one_run + one_run // 2 + 1)  # in the second epoch of the second run
    assert main([*command, str(broken)]) == 130
    assert [p.name for p in (broken / "runs").iterdir() if not p.name.startswith(".")] == ["all-seed5"]
    rest = interrupt(None)
    assert main([*command, str(broken)]) == 0
    assert len(rest) == len(every) - one_run - one_run // 2  # the second run went on from its first epoch
    assert without_cost(broken) == without_cost(straight)
    assert sorted(p.name for p in (broken / "runs").iterdir()) == RUNS  # no work folders are left
    for name in RUNS:
        first, second = (ComparisonRun.load(f / "runs" / name) for f in (straight, broken))
        assert first.fingerprint == second.fingerprint
        for task, values in first.predictions.values.items():
            np.testing.assert_array_equal(values, second.predictions.values[task])
    capsys.readouterr()
    again = interrupt(0)
    assert main([*command, str(broken)]) == 0
    assert not again
    assert "(kept)" in capsys.readouterr().out


def test_another_recipe_is_refused_and_more_seeds_are_not(recipe_file, tmp_path, capsys):
    """Prevents runs of different settings or data from being mixed in one table."""
    command = ["compare", str(recipe_file), "--resamples", "10", "--no-html", "--output", str(tmp_path / "c")]
    assert main([*command, "--variants", "multi,single", "--seeds", "1"]) == 0
    assert main([*command, "--seeds", "2"]) == 0
    assert json.loads((tmp_path / "c" / "comparison.json").read_text())["seeds"] == [5, 6]
    assert main([*command, "--set", "model.dropout=0.1"]) == 2
    assert "differ in recipe.model.dropout" in capsys.readouterr().err
    items = tmp_path / "items.parquet"
    items.write_bytes(items.read_bytes() + b" ")
    assert main(command) == 2
    assert "differ in data.items" in capsys.readouterr().err


def test_affinity_of_two_tasks_is_read_from_the_single_task_models(recipe_file, tmp_path):
    """Prevents a model from being trained twice under two names, and the report from lacking a figure."""
    recipe = load_recipe(str(recipe_file), {"output": str(tmp_path / "c")})
    result = compare_recipe(recipe, seeds=1, resamples=50, html=False)
    assert set(result.costs) == {"all", "only_next_item", "only_rating"}
    assert result.affinity["next_item"]["rating"] == result.tasks["rating"].metrics["rmse"].effect
    assert all(cost.cpu_seconds > 0 and cost.epochs == 2 for cost in result.costs.values())


def test_parts_of_a_recipe_have_the_same_inputs(recipe_file):
    """Prevents a single-task model from losing because it was given less to read, or has half the learning rate."""
    tasks = [
        {"name": "buy", "head": "binary", "label": "rating >= 5", "parent": "like", "coupling": "monotone"},
        {"name": "like", "head": "binary", "label": "rating >= 4", "weight": 0.3},
        {"name": "next_item", "head": "retrieval"},
    ]
    recipe = load_recipe(str(recipe_file), {"tasks": tasks, "tune": {}, "model.weighting": "uncertainty"})
    processor, _ = prepare(recipe)
    whole = build_config(recipe, processor)
    alone, orphan = build_config(recipe, processor, ["like"]), build_config(recipe, processor, ["buy", "next_item"])
    family = build_config(recipe, processor, ["buy", "like"])
    assert whole.features == alone.features == orphan.features
    assert (alone.task_configs[0].weight, alone.weighting) == (1.0, "fixed")
    assert alone.task_configs[0].options == whole.task_configs[1].options  # starts at the base rate
    assert [(t.name, t.parent, t.coupling) for t in orphan.task_configs] == [
        ("buy", None, None),
        ("next_item", None, None),
    ]
    assert family.task_configs == whole.task_configs[:2]
    assert family.weighting == "uncertainty"


def test_dropped_coupling_is_noted(recipe_file, tmp_path):
    """Prevents a reader from taking the uncoupled child for the coupled one."""
    tasks = [
        {"name": "next_item", "head": "retrieval"},
        {"name": "like", "head": "binary", "label": "rating >= 4"},
        {"name": "buy", "head": "binary", "label": "rating >= 5", "parent": "like", "coupling": "monotone"},
    ]
    recipe = load_recipe(
        str(recipe_file), {"tasks": tasks, "output": str(tmp_path / "c"), "training.num_train_epochs": 1}
    )
    compare_recipe(recipe, seeds=1, resamples=10, html=False)
    text = (tmp_path / "c" / "comparison.md").read_text()
    assert "`buy` follows from `like` (monotone)" in text
    assert "only_buy, without_like" in text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--variants", "multi,singel"], "did you mean 'single'"),
        (["--variants", "single"], "lack 'multi'"),
        (["--seeds", "0"], "--seeds is 0; it must be a whole number in"),
        (["--task", "like=binary:rating >= 4"], "at least two tasks"),
        (["--set", "tasks.raiting.weight=2"], "did you mean 'rating'"),
    ],
)
def test_mistakes_are_one_line(flags, message, recipe_file, capsys):
    """Prevents a typing mistake from ending in a traceback, or in hours of training."""
    assert main(["compare", str(recipe_file), *flags]) == 2
    assert message in capsys.readouterr().err


def test_missing_matplotlib_is_told_before_training(recipe_file, interrupt, monkeypatch, capsys):
    """Prevents the report from failing after all trainings are done."""
    interrupt(0)
    found = extras.importlib.util.find_spec  # the registries look for their parts with it, too
    absent = {"matplotlib", "optuna"}
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None if name in absent else found(name))
    assert main(["compare", str(recipe_file)]) == 2
    error = capsys.readouterr().err
    assert "pip install 'polyrec[report]'" in error
    assert "--no-html" in error
