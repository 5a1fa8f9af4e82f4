"""One seed reaches everything that is drawn in training: a spread over seeds must not be too small."""

import numpy as np
import pytest
import torch
from model_fixtures import arguments, fit, synthetic_log, tiny_model

from polyrec import PolyRecCollator, PolyRecProcessor, PolyRecTrainer
from polyrec.data.augmentation import Mask
from polyrec.data.mixing import MixedDataset
from polyrec.data.sampling import stream
from polyrec.models.cross_encoder.sampling import CandidateSample

TASKS = [{"name": "next_item", "head": "retrieval"}, {"name": "like", "head": "binary", "label": "rating >= 4"}]


class Recorder(PolyRecCollator):
    """Keeps what a training read, epoch by epoch: order of windows, order of events, views, labels asked."""

    def __init__(self):
        self.batches = []

    def __call__(self, windows):
        batch = super().__call__(windows)
        self.batches.append(batch)
        return batch

    def epochs(self, count):
        """What each epoch read, in one tuple of arrays that can be compared."""
        size = len(self.batches) // count
        parts = [self.batches[i * size : (i + 1) * size] for i in range(count)]
        return [
            {
                "order": [int(r) for b in part for r in b["candidate_rows"][:, 0]],
                "items": sorted(tuple(row) for b in part for row in b["item_ids"].tolist()),
                "views": sorted(int(r) for b in part for r in b["candidate_rows"].flatten() if r >= 0),
                "labels": sorted(
                    int(r)
                    for b in part
                    for r in b["candidate_rows"][~torch.isnan(b["labels"]["like"])].flatten()
                    if r >= 0
                ),
            }
            for part in parts
        ]


@pytest.fixture(scope="module")
def world():
    log = synthetic_log(users=16)
    processor = PolyRecProcessor.fit(**log, tasks=TASKS, max_history=8, statistics=False)
    options = {"max_delay": 3000.0, "delayed_share": 0.5, "keep_negatives": {"like": 0.5}}
    return processor, log["interactions"], options


def read(world, tmp_path, mix=False, **training):
    """Two epochs of what a training with these arguments reads."""
    processor, table, options = world
    train = processor.split(table, **options).train
    train.transform = Mask(0.3)
    recorder = Recorder()
    trainer = PolyRecTrainer(
        tiny_model(processor),
        arguments(tmp_path, num_train_epochs=2, **training),
        MixedDataset({"all": train}, size=len(train)) if mix else train,
        processing_class=processor,
        data_collator=recorder,
    )
    trainer.train()
    return recorder.epochs(2)


@pytest.mark.parametrize("mix", [False, True], ids=["one set", "mixed"])
@pytest.mark.parametrize("strategy", ["group_by_length", "random"])
def test_seeds_vary_all_that_is_drawn(world, tmp_path, strategy, mix):
    """Prevents seeds that share draws, and seed s in epoch 1 from being seed s + 1 in epoch 0."""
    options = {"train_sampling_strategy": strategy, "mix": mix}
    zero, one = (read(world, tmp_path, seed=seed, **options) for seed in (0, 1))
    for what in ("order", "items", "views", "labels"):
        four = [zero[0], zero[1], one[0], one[1]]
        different = {str(epoch[what]) for epoch in four}
        assert len(different) == 4, what


def test_equal_seeds_read_the_same_and_the_seed_of_the_data_is_obeyed(world, tmp_path):
    """Prevents runs that cannot be repeated, and a `data_seed` that is accepted and never used."""
    first, again = (read(world, tmp_path, seed=7) for _ in range(2))
    assert first == again
    assert read(world, tmp_path, seed=8, data_seed=7) == first


def test_delays_are_those_of_the_seed(world):
    """Prevents every seed from training on the same delayed views."""
    processor, table, options = world
    positions = [processor.split(table, **options, seed=seed).train.candidates.position for seed in (0, 0, 1)]
    assert np.array_equal(positions[0], positions[1])
    assert not np.array_equal(positions[0], positions[2])


def test_the_seed_reaches_what_stands_around_a_data_set():
    """Prevents wrapped data sets from drawing by seed 0 whatever the training's seed is."""
    processor, parts = fit()
    sample = CandidateSample(parts.train, processor.num_items, ["next_item"])
    sample.set_seed(5)
    assert (sample.seed, parts.train.seed) == (5, 5)


def test_streams_do_not_meet():
    """Prevents two purposes, epochs or seeds from drawing the same numbers."""
    found = {stream(seed, epoch, key) for seed in range(20) for epoch in range(20) for key in ("a", "b")}
    assert len(found) == 800
