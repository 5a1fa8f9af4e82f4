"""What a training shows while it runs: a bar with the loss, and one line an evaluation."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PrinterCallback, ProgressCallback, Trainer


def evaluation_line(logs: Mapping[str, Any], tasks: Sequence[str]) -> str:
    """The main metric of each task, and the mean improvement over the constant predictors.

    Args:
        logs: as a trainer logs them; the first metric of a task is its main one.
        tasks: the names of the tasks.

    Example:
        >>> logs = {"eval_next_item_ndcg@10": 0.0512, "eval_next_item_recall@10": 0.1, "eval_like_auc": 0.8214,
        ...         "eval_mean_improvement": 0.1522, "epoch": 2.0}
        >>> evaluation_line(logs, ["next_item", "like"])
        'epoch 2: next_item ndcg@10 0.0512, like auc 0.8214, mean improvement 0.1522'
    """
    found = []
    names = [name for name in logs if name.startswith("eval_")]
    by_length = sorted(tasks, key=len, reverse=True)  # a task's name may begin as another's does
    shown: dict[tuple[str, str], str] = {}
    for name in names:
        for task in by_length:
            before, own, metric = name.removeprefix("eval_").rpartition(f"{task}_")
            if own and metric and (not before or before.endswith("_")):
                shown.setdefault((before, task), f"{before.replace('_', ' ')}{task} {metric} {logs[name]:.4f}")
                break
        if name.endswith("mean_improvement"):
            before = name.removeprefix("eval_").removesuffix("mean_improvement").replace("_", " ")
            found.append(f"{before}mean improvement {logs[name]:.4f}")
    return f"epoch {logs.get('epoch', 0):g}: " + ", ".join([*shown.values(), *found])


class TrainingLines(ProgressCallback):
    """Shows one line an evaluation, and, unless bars are off, a bar with the loss of the last logged steps.

    What is logged is in `trainer.state.log_history` and wherever `report_to` says.

    Args:
        tasks: the names of the tasks.
        bars: whether to draw progress bars.
    """

    def __init__(self, tasks: Sequence[str], bars: bool = True) -> None:
        super().__init__()
        self.tasks, self.bars, self.explained = tasks, bars, False

    def on_train_begin(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
        """Draw the bar."""
        if self.bars:
            super().on_train_begin(args, state, control, **unused)

    def on_step_end(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
        """Move it."""
        if self.bars:
            super().on_step_end(args, state, control, **unused)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
        """Move the bar of an evaluation."""
        if self.bars:
            super().on_prediction_step(args, state, control, **unused)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **unused: Any) -> None:
        """Show what was logged during a training."""
        if not state.is_world_process_zero or not logs:
            return
        if any(name.startswith("eval_") for name in logs):
            line = evaluation_line(logs, self.tasks)
            if not self.explained and "mean improvement" in line:
                line += " (over constant predictions, mean of the tasks)"
                self.explained = True
            if self.training_bar is not None:
                self.training_bar.write(line)
            elif not self.bars:
                print(line)
        elif self.training_bar is not None and "loss" in logs:
            self.training_bar.set_postfix_str(f"loss {logs['loss']:.4g}")

    def on_train_end(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
        """Close the bar."""
        if self.training_bar is not None:
            super().on_train_end(args, state, control, **unused)


def show_lines(trainer: Trainer, tasks: Sequence[str]) -> None:
    """Put [`TrainingLines`] in the place of what prints each log as a dictionary, if that is there.

    Bars are for terminals: in a file each of their steps would be a line.
    """
    for kind, bars in ((ProgressCallback, sys.stderr.isatty()), (PrinterCallback, False)):
        if trainer.pop_callback(kind) is not None:
            trainer.add_callback(TrainingLines(tasks, bars))
