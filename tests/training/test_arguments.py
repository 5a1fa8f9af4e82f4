"""Defaults of the training arguments, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from model_fixtures import arguments, fit, tiny_model
from safetensors.torch import load_file

from polyrec import PolyRecTrainer, PolyRecTrainingArguments
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


def test_without_a_word_the_best_weights_are_kept(tmp_path):
    """Prevents the README's lines from ending with weights that have memorised the log."""
    processor, splits = fit()
    args = PolyRecTrainingArguments(tmp_path, num_train_epochs=3, use_cpu=True, disable_tqdm=True, learning_rate=0.05)
    model = tiny_model(processor)
    trainer = PolyRecTrainer(model, args, splits.train, splits.valid, processing_class=processor)
    assert trainer.args.per_device_train_batch_size == 8
    trainer.train()
    found = [line["eval_mean_improvement"] for line in trainer.state.log_history if "eval_mean_improvement" in line]
    assert len(found) == 3
    assert trainer.state.best_metric == max(found)
    saved = load_file(f"{trainer.state.best_model_checkpoint}/model.safetensors")
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), saved[name], rtol=0, atol=0)


@pytest.mark.parametrize("said", [{"eval_strategy": "no"}, {"keep_best": False}, {"save_strategy": "steps"}])
def test_who_says_when_to_evaluate_or_save_is_obeyed(tmp_path, said):
    """Prevents evaluations and checkpoints that somebody has turned off."""
    processor, splits = fit()
    args = PolyRecTrainingArguments(tmp_path, max_steps=2, use_cpu=True, disable_tqdm=True, **said)
    trainer = PolyRecTrainer(tiny_model(processor), args, splits.train, splits.valid, processing_class=processor)
    trainer.train()
    assert not any("eval_mean_improvement" in line for line in trainer.state.log_history)
    assert trainer.args.load_best_model_at_end is False


@pytest.mark.parametrize("several", [True, False])
def test_nothing_is_kept_without_one_evaluation_set(tmp_path, several):
    """Prevents a refusal by transformers of a training that names no evaluation set, or several."""
    processor, splits = fit()
    args = PolyRecTrainingArguments(tmp_path, max_steps=1, use_cpu=True, disable_tqdm=True)
    PolyRecTrainer(tiny_model(processor), args, splits.train, splits.valid, processing_class=processor)
    sets = {"valid": splits.valid, "test": splits.test} if several else None  # the same arguments, other data
    trainer = PolyRecTrainer(tiny_model(processor), args, splits.train, sets, processing_class=processor)
    trainer.train()
    assert trainer.args.eval_strategy == "no"
    assert args.per_device_train_batch_size is None
    assert args.to_sanitized_dict()["train_batch_size"] == 32


def test_without_a_metric_nothing_is_the_best(tmp_path):
    """Prevents a refusal by transformers of a training that wants no choice of weights."""
    processor, splits = fit()
    args = PolyRecTrainingArguments(tmp_path, max_steps=1, use_cpu=True, disable_tqdm=True, metric_for_best_model=None)
    trainer = PolyRecTrainer(tiny_model(processor), args, splits.train, splits.valid, processing_class=processor)
    trainer.train()
    assert trainer.args.eval_strategy == "no"


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
