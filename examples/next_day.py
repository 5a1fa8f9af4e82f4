"""New events change what a saved model recommends, without training.

python examples/next_day.py
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

DAY = 86_400


def clicks(days: int, users: int = 60, articles: int = 90) -> pd.DataFrame:
    """Each user clicks three articles a day, and an article is popular on one day."""
    drawn = np.random.default_rng(0)
    rows = []
    for day in range(days):
        popular = (7 * day + np.arange(12)) % articles
        for user in range(users):
            for n, article in enumerate(drawn.choice(popular, 3, replace=False)):
                rows.append({"user": user, "article": article, "time": day * DAY + 400 * user + 60 * n})
    return pd.DataFrame(rows)


def main() -> None:
    """Train on ten days, then read the eleventh."""
    log = clicks(days=11)
    known, new = log[log["time"] < 10 * DAY], log[log["time"] >= 10 * DAY]
    processor = PolyRecProcessor.fit(
        known,
        tasks=[TaskConfig("next_article", head="retrieval")],
        columns={"user": "user", "item": "article", "time": "time"},
    )
    splits = processor.split(known)
    model = PolyRecForRecommendation(processor.model_config(hidden_size=16))
    with tempfile.TemporaryDirectory() as folder:
        arguments = PolyRecTrainingArguments(folder, num_train_epochs=2, per_device_train_batch_size=16, use_cpu=True)
        trainer = PolyRecTrainer(model, arguments, splits.train, splits.valid, processing_class=processor)
        trainer.train()
        trainer.save_model(folder)
        recommender = Recommender.from_pretrained(folder)

    # The processor has counted the training set: what came after it, up to now, comes first.
    later = known[known["time"] > splits.train.log.time[splits.train.candidates.event].max()]
    recommender.processor.update(later)
    before = recommender.recommend(user_id=0, k=5)
    recommender.processor.update(new)
    after = recommender.recommend(user_id=0, k=5)
    print("before the eleventh day:", [row["item"] for row in before])
    print("after it:               ", [row["item"] for row in after])
    print("popular on that day:    ", sorted(new["article"].unique().tolist()))


if __name__ == "__main__":
    main()
