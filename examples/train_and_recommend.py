"""From a table of ratings to many users' recommendations, in Python.

python examples/train_and_recommend.py
"""

from __future__ import annotations

import tempfile

import numpy as np
import pandas as pd

from polyrec import (
    PolyRecForRecommendation,
    PolyRecProcessor,
    PolyRecTrainer,
    PolyRecTrainingArguments,
    Recommender,
    TaskConfig,
)


def ratings(users: int = 60, films: int = 60, per_user: int = 20) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Users who like one genre and watch series in order; and the films."""
    drawn = np.random.default_rng(0)
    catalog = pd.DataFrame(
        {"film": np.arange(films), "genre": np.array(["comedy", "drama", "crime"])[np.arange(films) % 3]}
    )
    catalog["title"] = [f"{row.genre} no. {row.film}" for row in catalog.itertuples()]
    rows = []
    for user in range(users):
        first = drawn.integers(films)
        for n in range(per_user):
            film = (first + 3 * n) % films if drawn.random() < 0.7 else drawn.integers(films)
            stars = drawn.integers(4, 6) if film % 3 == user % 3 else drawn.integers(1, 5)
            rows.append({"user": user, "film": film, "seconds": 1000 * n + user, "stars": float(stars)})
    return pd.DataFrame(rows), catalog


def main() -> None:
    """Train, evaluate, recommend."""
    log, films = ratings()
    processor = PolyRecProcessor.fit(
        log,
        items=films,
        columns={"user": "user", "item": "film", "time": "seconds"},
        tasks=[
            TaskConfig("next_film", head="retrieval"),
            TaskConfig("like", head="binary", label="stars >= 4"),
        ],
    )
    splits = processor.split(log)
    model = PolyRecForRecommendation(processor.model_config(hidden_size=32))
    with tempfile.TemporaryDirectory() as folder:
        trainer = PolyRecTrainer(
            model,
            PolyRecTrainingArguments(folder, num_train_epochs=3, per_device_train_batch_size=16, use_cpu=True),
            train_dataset=splits.train,
            eval_dataset=splits.valid,
            processing_class=processor,
        )
        trainer.train()
        found = trainer.evaluate(splits.test)
        print({name: round(found[name], 3) for name in ("eval_next_film_ndcg@10", "eval_like_auc")})
        trainer.save_model(folder)
        recommender = Recommender.from_pretrained(folder)

    requests = [{"user_id": 0}, {"history": [3, 6, 9]}, {"history": None}]
    lists = recommender.recommend_many(requests, k=3)
    for request, rows in zip(requests, lists, strict=True):
        print(request, "->", [f"{row['title']} ({row['like']:.0%})" for row in rows])


if __name__ == "__main__":
    main()
