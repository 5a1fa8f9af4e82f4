"""`polyrec tune`, as a user types it."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import yaml

from polyrec.cli.main import main
from polyrec.core import extras
from polyrec.runs.prepare import prepare
from polyrec.runs.recipe import Recipe, load_recipe
from polyrec.runs.train import build_config
from polyrec.runs.tuning_space import SearchSpace, default_space


def trials(folder):
    """What trials.json says, in the order of the trials."""
    return json.loads((folder / "trials.json").read_text())["trials"]


def test_search_goes_on_where_it_stopped(recipe_file, tmp_path):
    """Prevents a resumed search from starting anew, or from drawing the values of its first trials again."""
    command = ["tune", str(recipe_file), "--output", str(tmp_path / "t"), "--trials"]
    assert main([*command, "2"]) == 0
    first = trials(tmp_path / "t")
    assert main([*command, "4"]) == 0
    every = trials(tmp_path / "t")
    assert every[:2] == first
    assert [t["trial"] for t in every] == [0, 1, 2, 3]
    weights = [t["values"]["tasks.rating.weight"] for t in every]
    assert len(set(weights)) == 4
    assert main([*command, "4"]) == 0
    assert trials(tmp_path / "t") == every


def test_interrupted_trial_is_done_again(recipe_file, tmp_path, interrupt):
    """Prevents Ctrl-C from leaving a trial for ever unfinished, or from counting it as a failure of its values."""
    command = ["tune", str(recipe_file), "--output", str(tmp_path / "t"), "--trials", "3"]
    steps = interrupt(None)
    assert main([*command[:-1], "1"]) == 0
    interrupt(len(steps) // 4)  # in the first epoch
    assert main(command) == 130
    with (tmp_path / "t" / "study.journal").open("a") as journal:
        journal.write('{"op_code"')  # a kill inside a write
    interrupt(None)
    assert main(command) == 0
    found = trials(tmp_path / "t")
    assert [t["state"] for t in found][:2] == ["complete", "fail"]
    assert found[2]["values"] == found[1]["values"]
    assert len(found) == 4  # three that count and the one that was cut off


def test_labels_of_the_test_part_change_nothing(recipe_file, tmp_path):
    """Prevents the search from looking at the test part in any way, and so from reporting what it was tuned on."""
    command = ["tune", str(recipe_file), "--trials", "2", "--output"]
    assert main([*command, str(tmp_path / "before")]) == 0
    log = pd.read_parquet(tmp_path / "interactions.parquet")
    place = log["timestamp"].rank(method="first") / len(log)

    def results_with_shuffled_ratings(rows, name):  # shuffled: the scale of a column is that of the whole table
        changed = log.copy()
        changed.loc[rows, "rating"] = np.random.default_rng(0).permutation(log.loc[rows, "rating"])
        assert not changed.equals(log)
        changed.to_parquet(tmp_path / "interactions.parquet")
        assert main([*command, str(tmp_path / name)]) == 0
        return [t["result"] for t in trials(tmp_path / name)]

    before = [t["result"] for t in trials(tmp_path / "before")]
    assert results_with_shuffled_ratings(place > 0.91, "test") == before
    assert results_with_shuffled_ratings(place.between(0.81, 0.89), "valid") != before  # a control


def test_best_recipe_trains_to_the_figure_of_its_trial(recipe_file, tmp_path):
    """Prevents best.yaml from leaving out a value that the trial had (the weight of a task, say)."""
    assert main(["tune", str(recipe_file), "--output", str(tmp_path / "t"), "--trials", "3"]) == 0
    best = max((t for t in trials(tmp_path / "t") if t["state"] == "complete"), key=lambda t: t["result"])
    recipe = yaml.safe_load((tmp_path / "t" / "best.yaml").read_text())
    assert recipe["tasks"][1]["weight"] == best["values"]["tasks.rating.weight"]
    assert main(["train", str(tmp_path / "t" / "best.yaml")]) == 0
    states = [json.loads(p.read_text()) for p in (tmp_path / "t" / "best").glob("checkpoint-*/trainer_state.json")]
    assert max(s["best_metric"] for s in states) == pytest.approx(best["result"], rel=1e-6)


def test_weights_of_a_trial_reach_the_model(recipe_file):
    """Prevents the search from turning a knob that is connected to nothing."""
    recipe = load_recipe(str(recipe_file), {})
    processor, _ = prepare(recipe)
    changed = SearchSpace.of(recipe).apply(recipe, {"tasks.rating.weight": 7.0, "model.hidden_size": 16})
    config = build_config(changed, processor)
    assert [t.weight for t in config.task_configs] == [1.0, 7.0]
    assert config.hidden_size == 16
    assert recipe.tasks[1]["weight"] == 0.5  # the recipe itself stays


def test_trials_that_diverge_do_not_end_the_search(recipe_file, tmp_path, capsys):
    """Prevents one bad learning rate from losing a night's search."""
    space = ["--set", "tune.space={training.learning_rate: [1.0e+30, 0.001]}", "--set", "training.seed=1"]
    assert main(["tune", str(recipe_file), "--output", str(tmp_path / "t"), "--trials", "4", *space]) == 0
    found = trials(tmp_path / "t")
    assert {t["state"] for t in found} == {"fail", "complete"}
    for t in found:
        assert (t["state"] == "fail") == (t["values"]["training.learning_rate"] > 1)
    assert "failed:" in capsys.readouterr().out + capsys.readouterr().err


def test_bad_trials_are_pruned(recipe_file, tmp_path):
    """Prevents hopeless trials from being trained to the end: a rate of nearly 0 stays behind the median."""
    space = ["--set", "tune.space={training.learning_rate: {low: 1.0e-9, high: 0.02, log: true}}"]
    command = ["tune", str(recipe_file), "--output", str(tmp_path / "t"), "--trials", "8"]
    assert main([*command, *space, "--set", "training.num_train_epochs=4"]) == 0
    pruned = [t for t in trials(tmp_path / "t") if t["state"] == "pruned"]
    assert pruned
    assert all(t["epochs"] < 4 for t in pruned)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("{modle.dropout: [0.1]}", "must begin with one of model, tasks, training"),
        ("{model.droput: [0.1]}", "did you mean 'dropout'"),
        ("{model.hidden_size: [8, 15]}", "holds 15, which does not work"),
        ("{tasks.rating.label: [a, b]}", "its weight, options, coupling_options can be searched"),
        ("{tasks.raiting.weight: [1, 2]}", "did you mean 'rating'"),
        ("{model.dropout: {low: 0.5, high: 0.1}}", "low <= high"),
        ("{model.dropout: {low: 0, high: 0.1, log: true}}", "low > 0 on a logarithmic scale"),
        ("{model.dropout: {low: zero, high: 0.1}}", "low is 'zero'; it must be a whole number or a number"),
        ("{model.dropout: 0.1}", "model.dropout is 0.1; it must be a list or a mapping of low, high, log"),
        ("[]", "must be a mapping"),
    ],
)
def test_a_space_that_cannot_work_is_refused_at_once(space, message, recipe_file, interrupt, capsys):
    """Prevents a mistake in the space from showing in the middle of the search."""
    interrupt(0)
    assert main(["tune", str(recipe_file), "--set", f"tune.space={space}"]) == 2
    assert message in capsys.readouterr().err


def test_numbers_without_a_dot_are_read(recipe_file):
    """Prevents YAML's reading of 1e-3 as text from becoming a puzzle."""
    recipe = load_recipe(str(recipe_file), {})
    recipe.tune["space"] = yaml.safe_load("{training.learning_rate: {low: 1e-4, high: 1e-2, log: true}}")
    assert SearchSpace.of(recipe).dimensions[0].examples == [1e-4, 1e-2]


def test_default_space_works_and_ignores_the_order_of_tasks(recipe_file):
    """Prevents the defaults from naming parts that do not exist, and the draws from hanging on the order of tasks."""
    recipe = load_recipe(str(recipe_file), {"tune": {}})
    processor, _ = prepare(recipe)
    space = SearchSpace.of(recipe)
    for dimension in space.dimensions:
        for value in dimension.examples:
            build_config(space.apply(recipe, {dimension.key: value}), processor)
    turned = Recipe(**{**recipe.to_dict(), "tasks": recipe.tasks[::-1]})
    assert list(default_space(turned)) == list(default_space(recipe))
    np.testing.assert_allclose(list(default_space(recipe)["tasks.rating.weight"].values())[:2], [0.05, 5.0])


def test_missing_optuna_names_the_command(recipe_file, monkeypatch, capsys):
    """Prevents a ModuleNotFoundError from being all that a user is told."""
    found = extras.importlib.util.find_spec  # the registries look for their parts with it, too
    absent = {"matplotlib", "optuna"}
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None if name in absent else found(name))
    assert main(["tune", str(recipe_file)]) == 2
    assert "pip install 'polyrec[tune]'" in capsys.readouterr().err
