"""Model cards say what their run has measured, and nothing else."""

import copy
import json
import re
import shutil
from dataclasses import replace

import pytest
import yaml
from huggingface_hub import ModelCard
from run_fixtures import trained_run

from polyrec.cards import About, make_card, unsupported_figures
from polyrec.cli.main import main
from polyrec.evaluation.report import format_report
from polyrec.tracking.run_files import RunFiles


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return trained_run(tmp_path_factory.mktemp("cards"))


@pytest.fixture(scope="module")
def run(folder):
    return RunFiles.read(folder)


def test_every_figure_of_a_card_is_in_its_runs_files(folder, run, capsys):
    """Prevents a card from quoting a figure that its run has not measured."""
    assert main(["card", str(folder)]) == 0
    text = (folder / "README.md").read_text()
    assert unsupported_figures(text, run.sources) == []
    assert "no file of the run says" not in capsys.readouterr().out
    for task, systems in run.metrics.items():  # ... and that no task is left out
        first = run.primary(task)
        assert f"{systems['polyrec'][first]:.4f}" in text
        assert all(re.search(rf"^\| {system} \|", text, re.MULTILINE) for system in systems)


def test_a_changed_figure_is_found(run):
    """Prevents the test above from passing whatever the card says."""
    other = copy.deepcopy(run.metrics)
    other["rating"]["polyrec"]["rmse"] += 0.01
    other["next_item"]["polyrec"]["slices"]["genre"]["drama"]["rows"] = 123456
    text = str(make_card(replace(run, metrics=other)))
    wrong = unsupported_figures(text, run.sources)
    assert f"{other['rating']['polyrec']['rmse']:.4f}" in wrong
    assert "123,456" in wrong


def test_facts_beside_the_tasks_are_not_read_as_tasks(folder, run, tmp_path):
    """Prevents "_data" or "_evaluation" of metrics.json from becoming a task of cards and reports, or breaking them."""
    home = tmp_path / folder.name
    home.mkdir()
    for name in ("recipe.yaml", "config.json", "training.json"):
        shutil.copy(folder / name, home / name)
    report = json.loads((folder / "metrics.json").read_text())
    report |= {"_evaluation": {"candidates": "all"}, "_data": {"rows": 7}}
    (home / "metrics.json").write_text(json.dumps(report))
    found = RunFiles.read(home)
    assert (found.metrics, found.facts["_data"]) == (run.metrics, {"rows": 7})
    assert str(make_card(found)) == str(make_card(run))
    assert format_report(report) == format_report(run.metrics)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("0.50 of 1,234", []),
        ("AUC 0.1234, 12.3%", []),
        ("AUC 0.1235", ["0.1235"]),
        ("1,235 rows", ["1,235"]),
        ("-0.1234", ["-0.1234"]),
        ("torch 2.13.0 on 2024-01-02, top 10", []),
        ("```\n0.999\n```", []),
    ],
)
def test_figures_are_read_as_people_write_them(text, wrong):
    """Prevents signs, percentages, separators and versions from being misread by the check."""
    assert unsupported_figures(text, [{"a": 0.12341, "b": [0.5, 1234]}]) == wrong


def test_the_hub_reads_the_front(folder, run):
    """Prevents metadata that the Hub refuses or cannot index; its own parser is the judge."""
    main(["card", str(folder)])
    data = ModelCard.load(folder / "README.md").data
    assert (data.library_name, data.license, data.datasets) == ("polyrec", "mit", ["walks"])
    found = {(r.metric_args["task"], r.metric_type): r for r in data.eval_results}
    rmse = found["rating", "rmse"]
    assert rmse.metric_value == run.metrics["rating"]["polyrec"]["rmse"]  # not rounded
    assert rmse.metric_args["interval_95_over_people"] == run.metrics["rating"]["polyrec"]["interval"]["rmse"]


def test_the_lines_that_load_a_model_run(folder, run, monkeypatch, capsys):
    """Prevents a card whose own example does not work."""
    code = re.search(r"```python\n(.*?)```", str(make_card(run)), re.DOTALL).group(1)
    assert len([line for line in code.splitlines() if line]) <= 5
    monkeypatch.chdir(folder.parent)
    exec(code, {})
    assert "'rank': 1" in capsys.readouterr().out


def test_no_path_of_the_machine_is_in_a_card(folder, run):
    """Prevents a published card from telling where somebody keeps their data."""
    text = str(make_card(run))
    assert str(folder.parent) not in text
    recipe = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.DOTALL).group(1))
    assert recipe["interactions"] == "interactions.parquet"
    own = run.recipe | {"interactions": "interactions.parquet", "items": "items.parquet", "users": "users.parquet"}
    said = {name: value for name, value in own.items() if value is not None and value != {} and value != []}
    del said["card"]
    assert recipe == said | {"output": "run"}


def test_weaknesses_are_told(run):
    """Prevents a card from keeping silent about a baseline that wins and about groups that are served badly."""
    metrics = copy.deepcopy(run.metrics)
    metrics["rating"]["bias"]["rmse"] = 0.001
    metrics["rating"]["polyrec"]["cold_start"] = {"new_items": {"rows": 7, "rmse": 9.87654}}
    text = str(make_card(replace(run, metrics=metrics)))
    assert "`rating`: the baseline `bias` is better" in text
    assert "items never seen in training: rmse 9.8765 of 7 rows" in text
    assert "| genre | drama |" in text
    assert "| age | lowest third |" in text


def test_a_student_names_its_teachers(run):
    """Prevents a distilled model from hiding where its knowledge comes from, or telling a path."""
    settings = {"teachers": ["/home/somebody/runs/large"], "classical": ["ease"]}
    card = make_card(replace(run, distillation={"settings": settings}))
    assert card.data.to_dict()["distilled-from"] == ["large", "ease"]
    assert "/home/somebody" not in str(card)


def test_emissions_only_where_they_were_measured(folder, run):
    """Prevents a card from guessing what a training has emitted."""
    assert "co2_eq_emissions" not in make_card(run).data.to_dict()
    path = folder / "emissions.csv"
    path.write_text("timestamp,emissions\nx,0.001\ny,0.002\n")
    measured = RunFiles.read(folder)
    path.unlink()
    assert make_card(measured).data.to_dict()["co2_eq_emissions"]["emissions"] == 2.0  # grams


def test_values_of_the_data_cannot_write_into_the_card(run):
    """Prevents a category's name from breaking a table, or from bringing a link or HTML along."""
    metrics = copy.deepcopy(run.metrics)
    groups = metrics["rating"]["polyrec"]["slices"]["genre"]
    groups["a|b\n<img src=x> [y](http://z)"] = groups.pop("drama")
    text = str(make_card(replace(run, metrics=metrics)))
    assert "<img" not in text
    assert "](http" not in text


def test_words_of_a_recipe_cannot_write_into_the_card(run):
    """Prevents a recipe from somewhere from putting HTML, pictures or metadata of its own into what is published."""
    evil = "fine\n---\n# <script>x</script> ![i](http://track.example/i.png) [y](javascript:x)"
    about = About(description=evil, limits=[evil], data=[evil])
    text = str(make_card(run, about))
    assert "<script" not in text
    assert "![i]" not in text
    assert "javascript:" not in text
    assert text.count("\n---\n") == str(make_card(run, About())).count("\n---\n")
    fenced = replace(run, recipe={**run.recipe, "split": {"by": "time\n```\n<b>"}})
    assert "\n````yaml\n" in str(make_card(fenced, About()))


@pytest.mark.parametrize(
    "given", [{"license": "mit\ntags: [x]"}, {"datasets": "walks"}, {"name": 3}, {"repository": 'a/b"); evil("'}]
)
def test_odd_words_of_a_card_are_refused(given):
    """Prevents datasets that are told letter by letter, and names that end their line, or a string of the code."""
    with pytest.raises(ValueError, match=f"card[.:] ?{next(iter(given))} is"):
        About(**given)


def test_what_no_file_knows_comes_from_the_recipe_or_the_flags(folder, tmp_path):
    """Prevents licence and name from being lost, and a misspelt key from being ignored."""
    output = tmp_path / "other.md"
    assert main(["card", str(folder), "--output", str(output), "--name", "walker", "--license", "apache-2.0"]) == 0
    assert output.read_text().count("# walker\n") == 1
    assert "license: apache-2.0" in output.read_text()
    assert (tmp_path / "other_training_curves.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(TypeError):
        About(licence="mit")


def test_an_old_run_has_a_card_too(folder, tmp_path):
    """Prevents runs without training.json from having no card, and a folder that is no run from a traceback."""
    for name in ("recipe.yaml", "metrics.json", "config.json"):
        (tmp_path / name).write_text((folder / name).read_text())
    assert "# " in str(make_card(RunFiles.read(tmp_path)))
    (tmp_path / "metrics.json").unlink()
    with pytest.raises(ValueError, match="polyrec evaluate"):
        RunFiles.read(tmp_path)


def test_tasks_without_labels_or_with_one_class_have_a_card(run):
    """Prevents a test part without labels of a task, or with labels of one class, from leaving a run without a card."""
    metrics = copy.deepcopy(run.metrics)
    metrics["like"] = {name: {"auc": None, "logloss": 0.25, "interval": {}} for name in metrics["like"]}
    metrics["rating"] = {name: {"interval": {}} for name in metrics["rating"]}
    text = str(make_card(replace(run, metrics=metrics)))
    assert "`logloss` decides" in text
    assert "Figures: `rating`" not in text


def test_training_json_tells_what_the_training_was(folder):
    """Prevents a run that cannot say which data it saw and what it cost."""
    found = json.loads((folder / "training.json").read_text())
    assert found["data"]["parts"]["train"]["rows"] == 320
    assert found["data"]["people"] == 40
    assert len(found["data"]["fingerprints"]["data"]) == 16
    assert found["cost"]["epochs"] == 2.0
    assert any("loss_like" in row for row in found["history"])
