"""What users of transformers and datasets expect of a trainer, a processor and a split."""

from __future__ import annotations

import numpy as np
import pytest
from model_fixtures import arguments, fit, synthetic_log, tiny_config
from transformers import AutoModel, AutoProcessor
from transformers.trainer_utils import PredictionOutput

from polyrec import PolyRecForRecommendation, PolyRecProcessor, PolyRecTrainer
from polyrec.evaluation import metrics


@pytest.fixture(scope="module")
def world():
    return fit(synthetic_log(users=24))


def largest_error(found):
    """A user's own metric."""
    predictions, labels = found
    known = ~np.isnan(labels["rating"])
    return {"largest_error": float(np.abs(predictions.values["rating"] - labels["rating"])[known].max())}


def trainer_of(world, folder, model_init=None, **options):
    processor, splits = world

    def made():
        return PolyRecForRecommendation(tiny_config(processor))

    return PolyRecTrainer(
        None if model_init else made(),
        arguments(folder, **{"max_steps": 2, "report_to": "none"} | options),
        splits.train,
        splits.valid,
        processing_class=processor,
        compute_metrics=largest_error,
        model_init=made if model_init else None,
    )


def test_a_metric_of_ones_own_is_computed_and_can_choose_the_best_model(world, tmp_path):
    """Prevents `compute_metrics` from being accepted and never called."""
    options = {
        "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1,
        "load_best_model_at_end": True, "metric_for_best_model": "largest_error", "greater_is_better": False,
    }  # fmt: skip
    trainer = trainer_of(world, tmp_path, **options)
    trainer.train()
    seen = [line["eval_largest_error"] for line in trainer.state.log_history if "eval_largest_error" in line]
    assert trainer.state.best_metric == min(seen)


def test_predictions_unpack_as_those_of_transformers(world, tmp_path):
    """Prevents `predictions, label_ids, metrics = trainer.predict(...)` from failing, or labels in another order."""
    trainer, data = trainer_of(world, tmp_path), world[1].test
    found = trainer.predict(data)
    predictions, label_ids, measured = found
    assert isinstance(found, PredictionOutput)
    known = ~np.isnan(label_ids["rating"])
    assert known.any()
    rmse = metrics.rmse(label_ids["rating"], predictions.values["rating"])
    assert measured["test_rating_rmse"] == pytest.approx(rmse)
    assert measured["test_largest_error"] == largest_error(found[:2])["largest_error"]
    assert trainer.evaluate(data)["eval_rating_rmse"] == pytest.approx(rmse)


def test_hyper_parameters_are_searched_for(world, tmp_path):
    """Prevents trials that go on with the last one's weights, without a catalog, or that sum up losses and AUCs."""
    optuna = pytest.importorskip("optuna")
    trainer = trainer_of(world, tmp_path, model_init=True)
    seen = []

    def space(trial):
        seen.append(trainer.model.item_encoder.counts.sum().item())
        return {"learning_rate": trial.suggest_categorical("learning_rate", [1e-9, 0.05])}

    sampler = optuna.samplers.GridSampler({"learning_rate": [1e-9, 0.05]})
    best = trainer.hyperparameter_search(hp_space=space, n_trials=2, backend="optuna", sampler=sampler)
    assert len(seen) == 2
    assert seen[0] == world[0].item_counts.sum()
    assert best.hyperparameters == {"learning_rate": 0.05}
    assert 0 < best.objective < 1  # a mean improvement, no sum of metrics


def test_auto_classes_know_a_run(world, tmp_path):
    """Prevents AutoProcessor from giving a tokenizer, or nothing, for a saved run."""
    processor = world[0]
    PolyRecForRecommendation(tiny_config(processor)).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    found = AutoProcessor.from_pretrained(tmp_path)
    assert type(found) is PolyRecProcessor
    assert found.items.ids.equals(processor.items.ids)
    assert AutoModel.from_pretrained(tmp_path).config.num_items == processor.num_items


def test_data_sets_show_and_slice_as_lists_do(world):
    """Prevents a notebook that shows a split from printing the whole log."""
    processor, splits = world
    for shown in (splits.train, splits.train.log, splits.train.candidates, processor, processor.items, splits):
        text = repr(shown)
        assert "\n" not in text
        assert len(text) < 600, text
        assert type(shown).__name__ in text
    assert f"{len(splits.train)} windows" in repr(splits.train)
    assert splits.validation is splits.valid
    train, _, test = splits
    assert [w["item_ids"].tolist() for w in train[-2:]] == [train[n]["item_ids"].tolist() for n in (-2, -1)]
    assert len(test[:]) == len(test)
    with pytest.raises(IndexError):
        train[len(train)]
