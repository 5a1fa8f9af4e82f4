"""Trainings push what transformers' `hub_strategy` says, and nothing that must not leave."""

from __future__ import annotations

from pathlib import Path

import pytest

PATHS = [str(Path(__file__).parents[1])]
TRAIN = """
from model_fixtures import arguments, fit, tiny_model
from polyrec import PolyRecTrainer
processor, splits = fit(statistics=False)
args = arguments("run", push_to_hub=True, hub_model_id="ann/shop", hub_strategy={strategy!r}, hub_always_push=True,
                 save_strategy="steps", save_steps=2, max_steps=4, save_total_limit=1, hub_private_repo=True)
trainer = PolyRecTrainer(tiny_model(processor), args, splits.train, processing_class=processor)
trainer.train()
print(trainer.push_to_hub(tags=["shop"]).oid)
"""
LOAD = """
from polyrec import PolyRecForRecommendation, PolyRecProcessor
model = PolyRecForRecommendation.from_pretrained("ann/shop")
print(model.recommend(PolyRecProcessor.from_pretrained("ann/shop"), [3], k=1)[0]["rank"])
"""


@pytest.mark.parametrize("strategy", ["end", "every_save", "checkpoint", "all_checkpoints"])
def test_strategies_of_transformers_are_kept(hub, succeed, strategy):
    """Prevents hub_strategy from pushing pickled arguments and hashes of people's rows, or from not pushing at all."""
    succeed(f"import sys\nsys.path[:0] = {PATHS!r}\n" + TRAIN.format(strategy=strategy))
    repo = hub.repos["ann/shop"]
    assert repo.private
    files = set(repo.files())
    assert {"config.json", "model.safetensors", "processor_config.json", "items.parquet", "README.md"} <= files
    assert not [path for path in files if "training_rows" in path or path.endswith("training_args.bin")]
    while_training = [message for message in repo.history() if message.startswith("Training in progress")]
    assert len(while_training) == (0 if strategy == "end" else 2)
    assert repo.history()[-1] in ("End of training", while_training[-1] if while_training else None)
    folders = {path.split("/")[0] for path in files if path.endswith("/optimizer.pt")}
    assert folders == {"checkpoint": {"last-checkpoint"}, "all_checkpoints": {"checkpoint-2", "checkpoint-4"}}.get(
        strategy, set()
    )
    assert succeed(LOAD).split()[-1] == "1"
