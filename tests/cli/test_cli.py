"""The command line, as a user types it."""

import json
import subprocess
import sys

import pytest
from model_fixtures import synthetic_log
from run_fixtures import two_task_recipe

from polyrec import PolyRecForRecommendation, PolyRecProcessor
from polyrec.cli.main import main
from polyrec.cli.recommend import format_recommendations
from polyrec.runs.recipe import load_recipe


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained run folder and its recipe."""
    folder = tmp_path_factory.mktemp("cli")
    recipe = two_task_recipe(folder)
    task = ["--task", "next_item=retrieval", "--task", "rating=regression", "--task", "like=binary:rating >= 4"]
    assert main(["train", str(recipe), *task, "--set", "training.num_train_epochs=1"]) == 0
    return folder / "run"


def test_train_writes_all_that_is_needed(run):
    """Prevents a run folder that cannot be evaluated, loaded or understood."""
    names = {
        "config.json",
        "model.safetensors",
        "processor_config.json",
        "items.parquet",
        "recipe.yaml",
        "metrics.json",
        "training.json",
    }
    assert names <= {p.name for p in run.iterdir()}
    report = json.loads((run / "metrics.json").read_text())
    assert {n for n in report if n[0] != "_"} == {"next_item", "rating", "like"}  # flags win over the file
    assert report["_evaluation"]["tasks"]["next_item"]["rows"] > 0
    assert report["_data"]["split"]["test"]["rows"] > 0
    simple = {"ease", "item_knn", "transitions", "recent_popularity", "popularity", "newest"}
    assert {"polyrec", *simple} == set(report["next_item"])
    assert report["next_item"]["ease"]["chosen"]["rows"] > 0  # `train` hands the validation rows over
    assert "leave out" in report["next_item"]["polyrec"]["baselines_left_out"]["repeat"]
    assert {"polyrec", "bias", "running_bias", "constant"} == set(report["like"])
    assert "too few" in report["like"]["polyrec"]["baselines_left_out"]["lightgbm"]
    low, high = report["next_item"]["polyrec"]["interval"]["ndcg@10"]
    assert low - 1e-9 <= report["next_item"]["polyrec"]["ndcg@10"] <= high + 1e-9


def test_evaluate_repeats_the_figures(run, tmp_path, capsys):
    """Prevents the saved model from measuring otherwise than the trained one."""
    assert main(["evaluate", str(run), "--k", "10,3", "--output", str(tmp_path / "m.json")]) == 0
    again, first = (json.loads(p.read_text()) for p in (tmp_path / "m.json", run / "metrics.json"))
    assert again["rating"]["polyrec"]["rmse"] == pytest.approx(first["rating"]["polyrec"]["rmse"], rel=1e-5)
    for system, figures in first["next_item"].items():
        own = again["next_item"][system]
        intervals = figures.pop("interval")
        assert {name: own[name] for name in figures} == figures
        assert {name: own["interval"][name] for name in intervals} == intervals
        assert own["recall@3"] <= own["recall@10"]
    assert "popularity" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["evaluate", "card", "report", "finetune"])
def test_a_saved_model_is_no_run(run, tmp_path, capsys, command):
    """Prevents a model that was trained in Python from being refused without a way to evaluate it."""
    for part in (PolyRecForRecommendation, PolyRecProcessor):
        part.from_pretrained(run).save_pretrained(tmp_path / "saved")
    assert main([command, str(tmp_path / "saved"), *["--task", "rating"] * (command == "finetune")]) == 2
    said = capsys.readouterr().err
    assert "use trainer.evaluate(test) in Python, or train from a recipe: polyrec train recipe.yaml" in said


def test_recommend_says_what_it_does_not_know(run, capsys):
    """Prevents a misspelt id from being dropped in silence."""
    assert main(["recommend", str(run), "--history", "3,9999", "--user-id", "98765"]) == 0
    said = capsys.readouterr().err.splitlines()
    assert "1 of 2 items of the history are not in the catalog: 9999" in said
    assert any(line.startswith("user '98765' has no stored events: treated as a new user") for line in said)


def test_the_table_keeps_its_columns_apart():
    """Prevents long names of tasks from running together, and a bracket around an id that has no title before it."""
    row = {"rank": 1, "item": "i056", "score": 0.5, "cold_item": False, "cold_start": False}
    head, line = format_recommendations([row | {"watched_to_the_end": 0.25, "finished_early": 0.75}]).splitlines()
    assert head.split() == ["#", "item", "score", "watched_to_the_end", "finished_early"]
    assert line.split() == ["1", "i056", "0.500", "0.250", "0.750"]
    assert [head.index(name) + len(name) for name in head.split()[2:]] == [
        line.index(figure) + len(figure) for figure in line.split()[2:]
    ]


def test_no_bars_in_a_file(run):
    """Prevents a log file from being full of steps of bars."""
    command = [sys.executable, "-m", "polyrec", "evaluate", str(run), "-k", "3"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "%|" not in found.stderr
    assert "it/s" not in found.stderr


def test_recommend_prints_titles(run, capsys):
    """Prevents ids from being read as text, and a history from being recommended back."""
    assert main(["recommend", str(run), "--history", "3,4", "-k", "4", "--user", "age=30", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 4
    assert all(row["title"] == f"title {row['item']}" and row["item"] not in (3, 4) for row in rows)
    assert main(["recommend", str(run)]) == 0
    assert "nothing of the history is known" in capsys.readouterr().out


def test_recommend_takes_rules(run, tmp_path, capsys):
    """Prevents a flag that is read and forgotten, and an unmet rule from being dropped in silence."""

    def asked(*flags):
        assert main(["recommend", str(run), "--history", "3,4", "-k", "4", "--json", *flags]) == 0
        said = capsys.readouterr()
        return [json.loads(line) for line in said.out.splitlines()], said.err

    genre = {item: genre for item, genre in enumerate(synthetic_log()["items"]["genre"])}
    rows, _ = asked("--where", "genre != 'drama'", "--at-most", "genre=2", "--pin", "2=9", "--exclude", "0,1,6")
    assert rows[1]["item"] == 9
    assert sorted(genre[row["item"]] for row in rows) == ["action", "action", "comedy", "comedy"]
    rows, said = asked("--at-most", "genre=1", "--candidates", "7,10,13")
    assert len(rows) == 1
    assert "rules are not all kept: at_most leave 1 items of 4" in said
    rows, _ = asked("--boost", "genre == 'drama'=90", "--score", "like, rating >= 0", "--seen", "false")
    assert {genre[row["item"]] for row in rows} == {"drama"}
    (tmp_path / "rules.yaml").write_text("explore: {temperature: 1, seed: 3}\nwhere: price > 0.2\n")
    rows, _ = asked("--rules", str(tmp_path / "rules.yaml"))
    assert all(0 < row["propensity"] <= 1 for row in rows)
    for flags, message in (
        (["--where", "gener == 'a'"], "no column 'gener'; did you mean 'genre'?"),
        (["--diversity", "3"], "diversity"),
        (["--at-most", "genre"], "--at-most is 'genre': write COLUMN=N"),
        (["--at-most", "genre=x"], "at_most.genre is 'x'; it must be a whole number"),
    ):
        assert main(["recommend", str(run), *flags]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "no interactions given"),
        (["train", "nowhere.yaml"], "no such recipe"),
        (["train", "--interactions", "nowhere.parquet"], "no such file"),
        (["train", "--task", "like"], "NAME=HEAD"),
        (["train", "--set", "x"], "SECTION.KEY=VALUE"),
        (["train", "--set", "modle.hidden_size=3"], "did you mean 'model'"),
        (["train", "--task", "like=binary", "--set", "tasks.lik.weight=2"], "did you mean 'like'"),
        (["train", "--set", "output.folder=x", "--output", "y"], "cannot set 'output.folder'"),
        (["evaluate", "nowhere"], "not a folder written by"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys):
    """Prevents a typing mistake from ending in a traceback."""
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_recommend_explains_wrong_ids(run, capsys):
    """Prevents text ids from silently being unknown items of an integer catalog."""
    assert main(["recommend", str(run), "--history", "abc"]) == 2
    assert "integers" in capsys.readouterr().err


def test_a_plan_without_a_teacher_is_refused(recipe_file, tmp_path, capsys, interrupt):
    """Prevents what a recipe says of a teacher from being ignored, and a student from being called one."""
    done, plan = interrupt(None), ["--set", "model.distillation={tasks: {rating: {}}}"]
    assert main(["train", str(recipe_file), *plan]) == 2
    assert "training.teacher" in capsys.readouterr().err
    assert not done
    assert main(["train", str(recipe_file)]) == 0
    output = ["--output", str(tmp_path / "taught")]
    assert (
        main(
            [
                "train",
                str(recipe_file),
                *plan,
                *output,
                "--set",
                f"training.teacher={tmp_path / 'run'}",
                "--set",
                "training.logging_steps=1",
            ]
        )
        == 0
    )
    logged = json.loads((tmp_path / "taught" / "training.json").read_text())
    assert "loss_rating_soft" in json.dumps(logged)


def test_unknown_recipe_keys_are_refused(tmp_path):
    """Prevents a misspelt section from being ignored."""
    (tmp_path / "r.yaml").write_text("interacions: a.csv\n")
    with pytest.raises(ValueError, match="did you mean 'interactions'"):
        load_recipe(str(tmp_path / "r.yaml"), {})


@pytest.mark.parametrize("command", ["train", "compare", "tune", "evaluate", "recommend", "card", "report"])
def test_help_needs_no_torch(command):
    """Prevents `polyrec --help` from taking seconds."""
    code = (
        f"import sys; sys.argv = ['polyrec', '{command}', '--help']\n"
        "from polyrec.cli.main import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True)
