"""A recipe from raw files to its card, on a small log; and the cards that are here."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import recipe_card
import recipes
import yaml
from recipe_tables import SOURCES

from polyrec.cards.figures import unsupported_figures
from polyrec.evaluation.report import MODEL

CARDS = Path(recipes.__file__).parents[1] / "model_cards"
SMALL = ["training.num_train_epochs=1", "training.use_cpu=true", "training.disable_tqdm=true", "model.hidden_size=8"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """600 choices among 4 ads, by two policies; the ad men/0 is the one that gets clicks."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "open_bandit_small").mkdir()
    rng = np.random.default_rng(0)
    rows, campaign = 600, np.array(["men", "women"])[np.arange(600) % 2]
    item = rng.integers(2, size=rows)
    log = pd.DataFrame(
        {
            "user_id": rng.integers(5, size=rows),
            "item_id": item,
            "timestamp": 1_574_553_634 + 60 * np.arange(rows),
            "position": rng.integers(1, 4, size=rows),
            "click": (rng.uniform(size=rows) < np.where((item == 0) & (campaign == "men"), 0.5, 0.1)).astype(int),
            "propensity": 0.5,
            "policy": np.array(["random", "bts"])[rng.integers(2, size=rows)],
            "campaign": campaign,
        }
        | {f"user_feature_{n}": np.array(["x", "y"])[rng.integers(2, size=rows)] for n in range(4)}
    )
    log.to_parquet(folder / "open_bandit_small" / "interactions.parquet")
    items = pd.DataFrame({"item_id": [0, 1, 0, 1], "campaign": ["men", "men", "women", "women"]})
    items = items.assign(item_feature_0=[0.1, 0.2, 0.3, 0.4], item_feature_1=list("aabb"))
    items = items.assign(item_feature_2=list("abab"), item_feature_3=list("abba"))
    items.to_parquet(folder / "open_bandit_small" / "items.parquet")
    return folder


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """The ads recipe on it, by its command."""
    folder = tmp_path_factory.mktemp("runs")
    flags = ["--data", str(data), "--output", str(folder), "--cards", str(folder), "--threads", "1"]
    recipes.main(["ads", *flags, *(x for setting in SMALL for x in ("--set", setting))])
    return folder / "ads"


def test_off_policy_of_known_policies(run):
    """Ads of other campaigns counted as choices, or rows and contexts out of step, would make values of nothing."""
    found = json.loads((run / "off_policy.json").read_text())
    log = pd.read_parquet(run / "data" / "interactions.parquet").iloc[360:]  # the last 40%
    own = log[log.policy == "random"].click
    assert found["clicks"]["random"] == own.sum()
    random = found["policies"]["random"]
    assert random["effective_rows"] == pytest.approx(len(own))  # it is the logging policy: all weights are 1
    for estimator in ("ips", "snips"):
        value, low, high = random[estimator]
        assert value == pytest.approx(own.mean())
        assert low <= value <= high
    for name in ("polyrec softmax", "polyrec greedy 90%"):
        assert 0 < found["policies"][name]["effective_rows"] <= len(own)


def test_card_tells_what_the_run_found(run):
    """A card that is not written of the run's figures tells something else after the next change."""
    card, report = (run.parent / "ads.md").read_text(), json.loads((run / "metrics.json").read_text())
    assert f"{report['click'][MODEL]['auc']:.4f}" in card
    assert "What the policy would have earned" in card
    sources = [json.loads((run.parent / "ads.json").read_text()), yaml.safe_load((run / "recipe.yaml").read_text())]
    assert unsupported_figures(card.split("# What the policy")[0], sources) == []
    quoted = json.loads((run.parent / "ads.json").read_text())["metrics"]
    assert json.dumps(quoted) == json.dumps(report)  # NaN is not equal to itself


def test_without_files_it_says_where_they_are_and_runs_the_demo(tmp_path, capsys, monkeypatch):
    """Somebody without the data would stand before a stack trace."""
    started = []
    monkeypatch.setattr(recipes, "demo", started.append)
    recipes.main(["all", "--data", str(tmp_path), "--set", "training.num_train_epochs=1"])
    said = capsys.readouterr().out
    assert all(source.about in said for source in SOURCES.values())
    assert started == [["training.num_train_epochs=1"]]


def test_where_a_baseline_is_better_is_said():
    """A card that hides a lost comparison is an advertisement; for errors lower is better."""
    report = {
        "like": {MODEL: {"auc": 0.7, "logloss": 0.5, "interval": {}}, "bias": {"auc": 0.8, "logloss": 0.6}},
        "rating": {MODEL: {"rmse": 1.0}, "bias": {"rmse": 0.9}, "constant": {"rmse": 1.1}},
    }
    assert recipe_card.behind(report) == [
        "like, auc: 0.7000 against 0.8000 of bias",
        "rating, rmse: 1.0000 against 0.9000 of bias",
    ]


@pytest.mark.parametrize("name", [name for name in SOURCES if (CARDS / f"{name}.md").exists()])
def test_figures_of_cards_are_those_of_their_runs(name):
    """A figure typed into a card, or left from an earlier run, would be believed."""
    card, found = (CARDS / f"{name}.md").read_text(), json.loads((CARDS / f"{name}.json").read_text())
    per_thousand = [[1000 * x for x in value] for value in _lists(found.get("off_policy", {}))]
    card = re.sub(r"BY(-SA)? \d\.\d", "", card)  # versions of licences
    recipe = yaml.safe_load((CARDS.parent / "scripts" / "recipes" / f"{name}.yaml").read_text())
    assert unsupported_figures(card, [found, per_thousand, recipe]) == []


def _lists(found):
    for value in found.values():
        if isinstance(value, dict):
            yield from _lists(value)
        elif isinstance(value, list):
            yield value
