"""A file of rows with lists, as it is: from `polyrec init` to recommendations and an update."""

import json

import numpy as np
import pandas as pd
import pytest
import yaml

from polyrec import PolyRecForRecommendation, PolyRecProcessor
from polyrec.cli.main import main
from polyrec.data.tables import read_table
from polyrec.reporting.choose_examples import example_users
from polyrec.web.session import DemoSession

SMALL = ["num_train_epochs=1", "use_cpu=true", "disable_tqdm=true"]
FLAGS = [part for text in [*(f"training.{s}" for s in SMALL), "model.hidden_size=8"] for part in ("--set", text)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on rows of which four in five go from an item to the one that follows it by a rule."""
    place = tmp_path_factory.mktemp("rows")
    random, rows = np.random.default_rng(0), []
    for session in range(120):
        items = [int(random.integers(0, 30))]
        for _ in range(int(random.integers(2, 6))):
            items.append((7 * items[-1] + 3) % 30 if random.random() < 0.8 else int(random.integers(0, 30)))
        for n in range(1, len(items)):
            time = 1_600_000_000 + 3600 * len(rows)
            rows.append((session, " ".join(f"{i:03d}" for i in items[:n]), f"{items[n]:03d}", time))
    table = pd.DataFrame(rows, columns=["session_id", "item_id_list", "item_id", "timestamp"])
    table[:-40].to_csv(place / "rows.csv", index=False)
    table[-40:].assign(item_id_list=table["item_id_list"][-40:] + " 030").to_csv(place / "later.csv", index=False)
    assert main(["train", str(place / "rows.csv"), "--output", str(place / "run"), *FLAGS]) == 0
    return place / "run"


def test_rows_train_without_a_recipe_and_beat_popularity(run, capsys):
    """Prevents that a file of lists needs code; the list column is told with its reason, and its evidence is used."""
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    assert recipe["columns"] == {
        "user": "session_id", "item": "item_id", "time": "timestamp", "history": "item_id_list",
    }  # fmt: skip
    assert recipe["split"] == {"by": "time", "fractions": [0.8, 0.1, 0.1]}
    found = json.loads((run / "metrics.json").read_text())["next_item"]
    assert found["polyrec"]["ndcg@10"] > 2 * found["popularity"]["ndcg@10"]
    path = run.parent / "recipe.yaml"
    assert main(["init", str(run.parent / "rows.csv"), "--output", str(path)]) == 0
    assert "history  item_id_list  its name, and" in capsys.readouterr().out
    assert "  history: item_id_list  # its name, and" in path.read_text()


def test_a_saved_run_recommends_and_evaluates_as_in_python(run, capsys):
    """Prevents that a list means something else to the command than to Python, or after saving."""
    assert main(["recommend", str(run), "--history", "003,024", "-k", "3", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    model, processor = PolyRecForRecommendation.from_pretrained(run), PolyRecProcessor.from_pretrained(run)
    again = model.recommend(processor, ["003", "024"], k=3)
    assert [(r["item"], pytest.approx(r["score"])) for r in again] == [(r["item"], r["score"]) for r in rows]
    assert "021" in [r["item"] for r in rows]  # 7 * 24 + 3 = 171
    before = json.loads((run / "metrics.json").read_text())["next_item"]["polyrec"]
    assert main(["evaluate", str(run)]) == 0
    after = json.loads((run / "metrics.json").read_text())["next_item"]["polyrec"]
    assert after["ndcg@10"] == pytest.approx(before["ndcg@10"])


def test_examples_of_people_are_rows_with_their_lists(run):
    """Prevents a report, or a page, that takes all rows of a session for one history of repeated items."""
    table = pd.read_csv(run.parent / "rows.csv", dtype=str)
    told = set(zip(table["item_id_list"], table["item_id"], strict=True))
    for example in example_users(run, 3):
        assert (" ".join(example.history), example.then) in told
    model, processor = PolyRecForRecommendation.from_pretrained(run), PolyRecProcessor.from_pretrained(run)
    session = DemoSession(model, processor, read_table(run.parent / "rows.csv", "interactions"))
    own = table[table["session_id"] == "3"].iloc[-1]
    shown = [event["item_id"] for event in session.history_of(3)]
    assert " ".join(shown) == f"{own['item_id_list']} {own['item_id']}"


def test_later_rows_update_a_run(run, capsys):
    """Prevents that an update asks about items of lists, or leaves out a new item that only lists hold."""
    fresh = ["--output", str(run.parent / "fresh"), "--members", "1", "--max-regression", "1"]
    assert main(["update", str(run), "--new", str(run.parent / "later.csv"), *fresh]) == 0
    printed = capsys.readouterr().out
    assert "events: new 36," in printed
    assert "new items 1" in printed
