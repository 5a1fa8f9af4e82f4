"""`polyrec init` and `polyrec train events.csv`: from a file in other people's words to recommendations."""

import json
import sys

import numpy as np
import pandas as pd
import pytest
import yaml

from polyrec.cli.main import main
from polyrec.data.propose import Proposal
from polyrec.runs.init import _grouped
from polyrec.runs.recipe import load_recipe

N = 200


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A log of 200 rows with semicolons and days as Germans write them, and its items."""
    place = tmp_path_factory.mktemp("init")
    random = np.random.default_rng(0)
    log = pd.DataFrame(
        {
            "session_id": random.permutation(np.arange(N) % 20),
            "product": [f"{n:03d}" for n in random.integers(0, 12, N)],
            "date": pd.date_range("2024-01-01", periods=N).strftime("%d.%m.%Y"),
            "rating": random.integers(1, 6, N),
        }
    )
    log.to_csv(place / "events.csv", sep=";", index=False)
    both = log.assign(article=random.permutation(log["product"]))
    both.to_csv(place / "both.csv", sep=";", index=False)
    items = pd.DataFrame({"product": [f"{n:03d}" for n in range(12)], "name": [f"thing {n}" for n in range(12)]})
    items.assign(colour=["red", "blue"] * 6).to_csv(place / "items.csv", index=False)
    return place


def test_train_takes_an_event_log(folder, capsys):
    """Prevents that a first model needs a recipe; what was chosen is printed and kept with the run."""
    small = [
        "training.num_train_epochs=1",
        "training.use_cpu=true",
        "training.disable_tqdm=true",
        "model.hidden_size=8",
    ]
    flags = [part for text in small for part in ("--set", text)]
    paths = [str(folder / "events.csv"), "--items", str(folder / "items.csv"), "--output", str(folder / "run")]
    assert main(["train", *paths, *flags]) == 0
    printed = capsys.readouterr().out
    assert "time  date        its name; written %d.%m.%Y, 2024-01-01 to 2024-07-18" in printed
    recipe = yaml.safe_load((folder / "run" / "recipe.yaml").read_text())
    assert recipe["columns"]["user"] == "session_id"
    assert [task["name"] for task in recipe["tasks"]] == ["next_item", "rating", "like"]
    assert recipe["training"]["learning_rate"] == 0.001
    assert recipe["early_stopping_patience"] == 2
    assert main(["recommend", str(folder / "run"), "--history", "001,002", "-k", "3", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 3
    assert all(row["title"] == f"thing {int(row['item'])}" for row in rows)


def test_init_writes_what_train_reads(folder, capsys):
    """Prevents comments that break the recipe, and a recipe of the user's from being overwritten."""
    path = folder / "recipe.yaml"
    paths = [str(folder / "events.csv"), str(folder / "items.csv"), "--output", str(path)]
    assert main(["init", *paths]) == 0
    assert "# 5" not in path.read_text()
    recipe = load_recipe(str(path), {})
    recipe.check()
    assert recipe.columns == {
        "user": "session_id", "item": "product", "time": "date", "time_format": "%d.%m.%Y", "title": "name",
    }  # fmt: skip
    assert recipe.split == {"by": "time", "fractions": [0.8, 0.1, 0.1]}
    assert "upper quarter of the scale" in path.read_text()
    assert main(["init", *paths]) == 2
    assert "is there already: name another file with --output" in capsys.readouterr().err


def test_one_question_is_asked_in_a_terminal_only(folder, monkeypatch, capsys):
    """Prevents a job without a terminal from waiting, or from guessing."""
    arguments = ["init", str(folder / "both.csv"), "--output"]
    assert main([*arguments, str(folder / "no.yaml")]) == 2
    assert (
        "'product' and 'article' could both be the item: say --item product or --item article"
        in capsys.readouterr().err
    )
    assert not (folder / "no.yaml").exists()
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    asked = []
    monkeypatch.setattr("builtins.input", lambda text: asked.append(text) or "2")
    assert main([*arguments, str(folder / "asked.yaml")]) == 0
    assert asked == ["Which one is the item? [1-2] "]
    assert load_recipe(str(folder / "asked.yaml"), {}).columns["item"] == "article"


def test_mistakes_are_named(folder, capsys):
    """Prevents tables that do not fit together, and one log given twice."""
    pd.read_csv(folder / "items.csv", dtype=str).rename(columns={"product": "id"}).to_csv(
        folder / "other.csv", index=False
    )
    assert (
        main(["init", str(folder / "events.csv"), str(folder / "other.csv"), "--output", str(folder / "x.yaml")]) == 2
    )
    assert (
        "no column 'product', which is the item of the events: give its key that name ('id'" in capsys.readouterr().err
    )
    assert main(["train", str(folder / "events.csv"), "--interactions", str(folder / "both.csv")]) == 2
    assert "the event log is given twice" in capsys.readouterr().err


def test_a_log_without_times_is_trained_as_sets(folder, capsys):
    """Prevents a refusal of sets of interactions, and rows taken for times unless somebody says so."""
    random, path = np.random.default_rng(1), folder / "sets.csv"
    rows = {"user": random.integers(0, 20, N), "song": random.integers(0, 12, N), "timestamp": 7}
    pd.DataFrame(rows).to_csv(path, index=False)
    assert main(["init", str(path), "--output", str(folder / "sets.yaml")]) == 0
    assert (
        "time: null  # 'timestamp' has one value: the events of a user are a set" in (folder / "sets.yaml").read_text()
    )
    assert load_recipe(str(folder / "sets.yaml"), {}).split == {"by": "random", "fractions": [0.8, 0.1, 0.1]}
    small = ["training.num_train_epochs=1", "training.use_cpu=true", "model.hidden_size=8"]
    flags = [part for text in small for part in ("--set", text)]
    run = str(folder / "sets")
    assert main(["train", str(folder / "sets.yaml"), "--set", f"output={run}", *flags]) == 0
    assert main(["evaluate", run]) == 0
    assert main(["recommend", run, "--history", "1,2", "-k", "3", "--json"]) == 0
    assert len(capsys.readouterr().out.strip().splitlines()[-3:]) == 3
    assert main(["update", run, "--new", str(path), "--again"]) == 2
    assert "a log without times (columns.time: null) cannot go on" in capsys.readouterr().err
    assert main(["init", str(path), "--time", "row", "--output", str(folder / "rows.yaml")]) == 0
    stated = load_recipe(str(folder / "rows.yaml"), {})
    assert (stated.columns["time"], stated.split) == ("__row__", {"by": "leave_one_out"})


@pytest.mark.parametrize(("columns", "more"), [(6, False), (7, True)])
def test_unused_columns_beyond_six_are_counted_as_more(columns, more):
    """Prevents a column from being left out of the recipe and of what is said about it."""
    unused = [(f"c{n}", "constant") for n in range(columns)]
    names = ", ".join(f"c{n}" for n in range(6)) + ", ..." * more
    assert _grouped(Proposal(unused=unused)) == [(names, "constant")]
