"""Defaults of the training arguments, and what they refuse."""

from __future__ import annotations

import pytest
from model_fixtures import arguments, fit, tiny_model

from polyrec import PolyRecTrainer
from polyrec.evaluation.metrics import LOWER_IS_BETTER


def test_the_best_model_is_that_of_the_highest_mean_improvement(tmp_path):
    """Prevents transformers' own choice, the lowest `eval_loss`, which does not exist here."""
    args = arguments(tmp_path, load_best_model_at_end=True, eval_strategy="epoch", save_strategy="epoch")
    assert args.metric_for_best_model == "mean_improvement"
    assert args.greater_is_better is True


@pytest.mark.parametrize("prefix", ["", "eval_"])
def test_the_name_of_a_metric_says_which_way_is_better(tmp_path, prefix):
    """Prevents early stopping from keeping the model with the highest RMSE."""
    for name in LOWER_IS_BETTER:
        assert arguments(tmp_path, metric_for_best_model=f"{prefix}rating_{name}").greater_is_better is False, name
    for name in ("like_auc", "next_item_ndcg@10", "valid_mean_improvement", "rating_quadratic_kappa"):
        assert arguments(tmp_path, metric_for_best_model=prefix + name).greater_is_better is True, name
    assert arguments(tmp_path, metric_for_best_model="eval_loss").greater_is_better is False
    assert arguments(tmp_path, metric_for_best_model="odd_rmse", greater_is_better=True).greater_is_better is True


def test_workers_that_never_hear_of_a_new_epoch_are_refused(tmp_path):
    """Prevents each epoch from repeating the draws of the first one."""
    with pytest.raises(ValueError, match="dataloader_persistent_workers=True would draw the same training windows"):
        arguments(tmp_path, dataloader_persistent_workers=True, dataloader_num_workers=1)


def test_a_choice_among_several_evaluation_sets_names_one(tmp_path):
    """Prevents a training from failing after its first epoch."""
    processor, splits = fit()

    def trainer(**options):
        return PolyRecTrainer(
            tiny_model(processor),
            arguments(tmp_path, per_device_train_batch_size=32, **options),
            train_dataset=splits.train,
            eval_dataset={"valid": splits.valid, "test": splits.test},
            processing_class=processor,
        )

    with pytest.raises(ValueError, match="pass e.g. metric_for_best_model='valid_mean_improvement', or None"):
        trainer(eval_strategy="epoch")
    trainer(eval_strategy="no")
    trainer(eval_strategy="epoch", metric_for_best_model=None)
    chosen = trainer(eval_strategy="epoch", metric_for_best_model="valid_like_logloss")
    chosen.train()
    line = next(line for line in chosen.state.log_history if "eval_valid_like_logloss" in line)
    assert chosen.state.best_metric == line["eval_valid_like_logloss"]


def test_several_gpus_in_one_process_are_refused(tmp_path):
    """Prevents DataParallel's mean over its copies of the model from shrinking gradients."""
    args = arguments(tmp_path)
    assert args.n_gpu == 0
    args._n_gpu = 2  # as transformers finds them on such a machine
    with pytest.raises(ValueError, match="one process sees 2 GPUs"):
        PolyRecTrainer(tiny_model(fit()[0]), args)
