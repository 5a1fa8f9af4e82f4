"""What a training prints: lines that people read."""

import sys

import pytest
from model_fixtures import arguments, fit, synthetic_log, tiny_model

from polyrec import PolyRecTrainer
from polyrec.training.progress import TrainingLines, evaluation_line


@pytest.fixture(scope="module")
def world():
    return fit(synthetic_log(users=24))


@pytest.mark.parametrize(("terminal", "disabled"), [(True, False), (True, True), (False, False)])
def test_one_line_an_evaluation_and_no_dictionaries(world, tmp_path, capsys, monkeypatch, terminal, disabled):
    """Prevents pages of raw dictionaries between the figures that users look for, bars in files, a silent training."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    bars = terminal and not disabled
    processor, splits = world
    options = arguments(
        tmp_path, max_steps=4, logging_steps=1, eval_strategy="steps", eval_steps=2, disable_tqdm=disabled
    )
    trainer = PolyRecTrainer(tiny_model(processor), options, splits.train, splits.valid, processing_class=processor)
    trainer.train()
    shown = capsys.readouterr()
    text = shown.out + shown.err
    assert "{" not in text
    lines = [line for line in text.replace("\r", "\n").split("\n") if "epoch" in line and "ndcg" in line]
    assert len(lines) == 2
    logged = [log for log in trainer.state.log_history if "eval_like_auc" in log]
    for line, log in zip(lines, logged, strict=True):
        assert f"like auc {log['eval_like_auc']:.4f}" in line
        assert f"next_item ndcg@10 {log['eval_next_item_ndcg@10']:.4f}" in line
        assert f"rating rmse {log['eval_rating_rmse']:.4f}" in line
    assert ("loss" in text) == bars
    assert text.count("(over constant predictions, mean of the tasks)") == 1


def test_it_can_be_silenced(world, tmp_path, capsys):
    """Prevents lines in the middle of a caller's own progress."""
    processor, splits = world
    options = arguments(tmp_path, max_steps=1, eval_strategy="steps", eval_steps=1, disable_tqdm=True)
    trainer = PolyRecTrainer(tiny_model(processor), options, splits.train, splits.valid, processing_class=processor)
    trainer.remove_callback(TrainingLines)
    trainer.train()
    assert capsys.readouterr().out == ""


def test_tasks_and_sets_are_told_apart():
    """Prevents a task whose name ends another's from taking its figures, and sets from being mixed up."""
    logs = {"eval_a_next_item_ndcg@10": 0.1, "eval_b_item_auc": 0.2, "eval_b_item_gauc": 0.3, "epoch": 1.5}
    found = evaluation_line(logs, ["item", "next_item"])
    assert found == "epoch 1.5: a next_item ndcg@10 0.1000, b item auc 0.2000"
