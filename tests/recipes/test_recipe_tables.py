"""The tables of the recipes: what is known when, and nothing of the answer among the inputs."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import recipe_tables

from polyrec.core.schema import Columns, from_dict, parse_tasks
from polyrec.runs.recipe import load_recipe

RECIPES = Path(recipe_tables.__file__).parent / "recipes"


@pytest.fixture
def shop(tmp_path):
    """Customers 4 and 8 (kept) and 5 (left out); customer 4 buys a, b, then a, then b and c, and sends b back."""
    rows = [
        (4, "a", 10, 1, 0, 2),
        (4, "b", 10, 1, 0, 1),
        (4, "a", 20, 1, 0, 6),
        (4, "b", 30, 1, 0, 3),
        (4, "c", 30, 1, 0, 1),
        (4, "b", 40, 0, 1, 3),
        (8, "c", 15, 1, 0, 9),
        (5, "a", 12, 1, 0, 1),
    ]
    log = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp", "purchase", "return", "quantity"])
    log.assign(unit_price=1.0 + np.arange(len(log))).to_parquet(tmp_path / "interactions.parquet")
    pd.DataFrame({"item_id": list("abc"), "title": list("abc"), "median_price": 9.0}).to_parquet(
        tmp_path / "items.parquet"
    )
    pd.DataFrame({"user_id": [4, 5, 8], "country": "UK", "last_seen": 99}).to_parquet(tmp_path / "users.parquet")
    return recipe_tables.ecommerce(tmp_path)


def test_left_out_products_were_bought_strictly_before(shop):
    """A product drawn from the same basket, or from a later one, would tell the answer."""
    log = shop["interactions"]
    drawn = log[log.again == 0]
    assert list(drawn[["item_id", "timestamp"]].itertuples(index=False, name=None)) == [("b", 20), ("a", 30)]
    assert drawn[["quantity", "return"]].isna().all(axis=None)
    assert (drawn.bought == 0).all()
    again = log[log.again == 1]
    assert list(again[["item_id", "timestamp"]].itertuples(index=False, name=None)) == [("a", 20), ("b", 30)]


def test_labels_are_unknown_where_nobody_could_know(shop):
    """A first purchase is no answer to "again?", and a returned number is no quantity bought."""
    log = shop["interactions"]
    assert set(log.user_id) == {4, 8}
    assert log[(log.timestamp == 10) | (log.user_id == 8)].again.isna().all()
    returned = log[log["return"] == 1]
    assert len(returned) == 1
    assert returned[["again", "quantity"]].isna().all(axis=None)
    assert (returned.bought == 0).all()


def test_nothing_of_the_end_is_an_attribute(shop):
    """Prices and dates over the whole period hold the future; the price is that of the first sale."""
    assert set(shop["users"]) == {"user_id", "country"}
    assert set(shop["items"]) == {"item_id", "title", "price"}
    np.testing.assert_allclose(np.expm1(shop["items"].price), [1.0, 2.0, 7.0], rtol=1e-5)


def test_habits_are_strictly_earlier(shop):
    """A baseline that saw the row itself would look unbeatable."""
    log = shop["interactions"].assign(**shop["baselines"].add_prefix("habit_"))
    row = log[(log.item_id == "b") & (log.timestamp == 30)].iloc[0]
    assert row.habit_quantity == pytest.approx(np.log1p(1))
    assert row.habit_again == pytest.approx(1 / 2)  # bought in one of two earlier baskets
    first = log[(log.item_id == "c") & (log.timestamp == 15)].iloc[0]
    assert first.habit_again == pytest.approx(0.02)


def test_items_of_two_campaigns_are_two_items(tmp_path):
    """Numbers of ads repeat in each campaign: taken as they are, clicks of unlike ads would be added up."""
    log = pd.DataFrame(
        {
            "user_id": 0,
            "item_id": [0, 0],
            "timestamp": [2, 1],
            "position": 1,
            "click": [1, 0],
            "propensity": 0.5,
            "policy": "random",
            "campaign": ["men", "women"],
        }
        | {f"user_feature_{n}": "x" for n in range(4)}
    )
    log.to_parquet(tmp_path / "interactions.parquet")
    pd.DataFrame({"item_id": [0, 0], "campaign": ["men", "women"]}).to_parquet(tmp_path / "items.parquet")
    tables = recipe_tables.ads(tmp_path)
    assert tables["interactions"]["item"].tolist() == ["women/0", "men/0"]  # in order of time, as the split cuts it
    assert tables["interactions"]["round"].is_unique
    assert tables["items"]["item"].tolist() == ["men/0", "women/0"]


@pytest.mark.parametrize("name", list(recipe_tables.SOURCES))
def test_recipes_are_read(name):
    """A misspelt key would be found after the tables have been made, or by nobody."""
    recipe = load_recipe(str(RECIPES / f"{name}.yaml"), {})
    parse_tasks(recipe.tasks)
    from_dict(Columns, recipe.columns)
    assert recipe.output == f"runs/recipes/{name}"
    assert recipe.interactions == f"runs/recipes/{name}/data/interactions.parquet"
    assert {path.stem for path in RECIPES.glob("*.yaml")} == set(recipe_tables.SOURCES)
