"""Tables of the recipes: what each domain's raw files become before `polyrec train` reads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

# "interactions", "items", "users", "past"; "baselines" has a column for each task that something simple predicts, with
# one prediction for each row of the interactions.
Tables = dict[str, pd.DataFrame]

_EVERY = 4  # e-commerce: every so many-th customer is kept, so that the recipe takes minutes


@dataclass(frozen=True)
class Source:
    """Where a recipe's data comes from.

    Args:
        folder: its name inside the folder given as --data.
        files: that must be there, without ".parquet".
        about: one sentence: what it is, who made it, its terms, where to get it.
        build: reads the folder.
    """

    folder: str
    files: tuple[str, ...]
    about: str
    build: Callable[[Path], Tables]

    def found(self, data: Path) -> bool:
        """Whether all of its files are there."""
        return all((data / self.folder / f"{name}.parquet").is_file() for name in self.files)


def ads(folder: Path) -> Tables:
    """Choices of two policies in three campaigns; an item is known by its campaign, too: numbers repeat in each."""
    log, items = (pd.read_parquet(folder / f"{name}.parquet") for name in ("interactions", "items"))
    log = log.sort_values("timestamp", kind="stable", ignore_index=True)
    users = [f"user_feature_{n}" for n in range(4)]
    log = log.assign(round=np.arange(len(log)), item=log.campaign + "/" + log.item_id.astype(str))
    items = items.assign(item=items.campaign + "/" + items.item_id.astype(str))
    kept = ["round", "item", "timestamp", "click", "propensity", "policy", "campaign", "position", *users]
    return {"interactions": log[kept], "items": items.drop(columns="item_id").assign(title=items["item"])}


def ecommerce(folder: Path) -> Tables:
    """Lines of baskets of every `_EVERY`-th customer, and beside each product that is bought again one that is not.

    `bought` is 1 for lines of a basket and 0 for all else, `again` tells of products that the customer has bought
    before whether they are in this basket (1) or were drawn among those that are not (0), `return` and `quantity` are
    known of lines alone.
    """
    log, items = (pd.read_parquet(folder / f"{name}.parquet") for name in ("interactions", "items"))
    log = log[log.user_id % _EVERY == 0].sort_values(["timestamp", "user_id"], kind="stable", ignore_index=True)
    lines = log[log.purchase == 1]
    first = lines.groupby(["user_id", "item_id"]).timestamp.transform("min")
    log = log.assign(
        bought=(log.purchase == 1).astype(float),
        again=(lines.timestamp > first).astype(float).where(lambda x: x == 1).reindex(log.index),
        **{"return": log["return"].astype(float)},
        quantity=log.quantity.where(log.purchase == 1).astype(float),
    )
    log = pd.concat([log, _left_out(lines, first, np.random.default_rng(0))], ignore_index=True)
    log = log.sort_values(["timestamp", "user_id"], kind="stable", ignore_index=True)
    price = lines.drop_duplicates("item_id").set_index("item_id").unit_price  # at its first sale: nothing later
    items = items[["item_id", "title"]].assign(price=np.log1p(items.item_id.map(price)))
    kept = ["user_id", "item_id", "timestamp", "bought", "again", "quantity", "return"]
    users = pd.read_parquet(folder / "users.parquet", columns=["user_id", "country"])
    return {"interactions": log[kept], "items": items, "users": users, "baselines": _habits(log)}


def _left_out(lines: pd.DataFrame, first: pd.Series, rng: np.random.Generator) -> pd.DataFrame:
    """For each basket as many products bought earlier and not now as there are products bought again."""
    found = []
    for user, own in lines.assign(first=first).groupby("user_id", sort=False):
        known: set[str] = set()
        for time, basket in own.groupby("timestamp"):
            now = set(basket.item_id)
            others = sorted(known - now)
            drawn = rng.permutation(len(others))[: len(known & now)]
            found += [(user, others[n], time, 0.0) for n in drawn]
            known |= now
    return pd.DataFrame(found, columns=["user_id", "item_id", "timestamp", "again"]).assign(bought=0.0)


def _habits(log: pd.DataFrame) -> pd.DataFrame:
    """What the customer's own habit predicts for each row: how often bought before, and how many the last time."""
    rows = log[["user_id", "item_id", "timestamp"]].assign(row=np.arange(len(log)))
    lines = log[log.bought == 1][["user_id", "item_id", "timestamp", "quantity"]].drop_duplicates(
        ["user_id", "item_id", "timestamp"]
    )
    lines = lines.assign(times=lines.groupby(["user_id", "item_id"]).cumcount() + 1.0).sort_values("timestamp")
    baskets = lines.drop_duplicates(["user_id", "timestamp"])[["user_id", "timestamp"]]
    baskets = baskets.assign(visits=baskets.groupby("user_id").cumcount() + 1.0)
    before = {"on": "timestamp", "allow_exact_matches": False, "direction": "backward"}  # strictly before
    rows = pd.merge_asof(rows, lines, by=["user_id", "item_id"], **before)
    rows = pd.merge_asof(rows, baskets, by="user_id", **before).sort_values("row")
    early = log.iloc[: round(0.8 * len(log))]  # the training set: the best guess where there is no habit
    usual = np.log1p(early.quantity).groupby(early.item_id).mean()
    usual = log.item_id.map(usual).fillna(np.log1p(early.quantity).mean())
    return pd.DataFrame(
        {
            "again": (rows.times.fillna(0) / rows.visits.fillna(1)).clip(0.02, 0.98).to_numpy(),
            "quantity": np.log1p(rows.quantity).fillna(usual.set_axis(rows.index)).to_numpy(),
        }
    )


def short_video(folder: Path) -> Tables:
    """Exposures as they are; `past` is what users did before the log. Counters of the whole period stay out."""
    names = {"interactions": "interactions", "items": "items", "users": "users", "past": "history"}
    return {table: pd.read_parquet(folder / f"{name}.parquet") for table, name in names.items()}


def questions(folder: Path) -> Tables:
    """Turns to questions, favourites, accepted answers, and links between questions as searches for the linked one.

    What counts as a query and as its result is defined in scripts/benchmarks/search_data.py.
    """
    from benchmarks.search_data import TravelSearch

    data = TravelSearch(folder)
    items = pd.DataFrame({"item": np.arange(len(data)), "title": data.titles, "asked": data.asked})
    return {"interactions": data.log(), "items": items}


def movies(folder: Path) -> Tables:
    """Ratings as they are."""
    return {table: pd.read_parquet(folder / f"{table}.parquet") for table in ("interactions", "items", "users")}


SOURCES = {
    "ads": Source(
        "open_bandit_small",
        ("interactions", "items"),
        "Open Bandit Dataset, small edition (ZOZOTOWN fashion ads, November 2019; Saito et al., 2021, Apache-2.0): it "
        "comes with the package `obp` (pip download obp, folder obp/dataset/obd)",
        ads,
    ),
    "ecommerce": Source(
        "online_retail_ii",
        ("interactions", "items", "users"),
        "Online Retail II (a British gift shop, 2009 to 2011; Chen, UCI Machine Learning Repository, CC BY "
        "4.0): https://doi.org/10.24432/C5CG6D",
        ecommerce,
    ),
    "short_video": Source(
        "kuairand_late",
        ("interactions", "items", "users", "history"),
        "KuaiRand-Pure, the last two weeks (Kuaishou, 2022; Gao et al., 2022, CC BY-SA 4.0): https://kuairand.com",
        short_video,
    ),
    "questions": Source(
        "travel_se",
        ("interactions", "items", "links"),
        "Travel Stack Exchange, 2011 to 2017 (Stack Exchange data dump of October 2017, CC BY-SA 3.0): "
        "https://archive.org/details/stackexchange",
        questions,
    ),
    "movies": Source(
        "ml-100k",
        ("interactions", "items", "users"),
        "MovieLens 100k (GroupLens, 1997 to 1998; Harper and Konstan, 2015; research use, no redistribution): "
        "https://grouplens.org/datasets/movielens/100k",
        movies,
    ),
}
