"""Bars of steps that may take long: in a terminal, where they are wanted, and nowhere else."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from model_fixtures import arguments, fit, synthetic_log, tiny_model

from polyrec import PolyRecTrainer
from polyrec.core.progress import progress, showing_bars
from polyrec.evaluation.baselines.table import baseline_table
from polyrec.evaluation.evaluator import predict


class Terminal(io.StringIO):
    """Somewhere to draw bars."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """What a step draws on a terminal, or elsewhere, if bars show at once."""
    monkeypatch.setattr("polyrec.core.progress._DELAY", 0.0)

    def of(step: Callable[[], Any], shown: bool = True, place: type[io.StringIO] = Terminal) -> str:
        stream = place()
        monkeypatch.setattr("sys.stderr", stream)
        with showing_bars(shown):
            step()
        monkeypatch.undo()
        monkeypatch.setattr("polyrec.core.progress._DELAY", 0.0)
        return stream.getvalue()

    return of


def test_bars_are_for_terminals_that_want_them(drawn: Callable[..., str]) -> None:
    """Prevents bars in files, in libraries that were not told to draw, and in threads of a server."""

    def step() -> None:
        assert list(progress([1, 2], "Counting", unit="row")) == [1, 2]

    assert "Counting" in drawn(step)
    assert drawn(step, place=io.StringIO) == ""
    assert drawn(step, shown=False) == ""

    def elsewhere() -> None:
        thread = threading.Thread(target=step)
        thread.start()
        thread.join()

    assert drawn(elsewhere) == ""


def test_what_is_over_soon_has_no_bar(drawn: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents a flicker of bars in a small training."""

    def step() -> None:
        monkeypatch.setattr("polyrec.core.progress._DELAY", 60.0)
        list(progress(range(3), "Counting"))

    assert drawn(step) == ""


def test_long_steps_have_bars(drawn: Callable[..., str], tmp_path: Path) -> None:
    """Prevents minutes without a sign of life: neighbours of items, evaluations, weights, baselines."""
    processor, splits = fit(synthetic_log(), tasks=[{"name": "next_item", "head": "retrieval"}])
    model = tiny_model(processor)
    steps = {
        "Evaluation": lambda: predict(model, splits.test),
        "Ranking": lambda: baseline_table(processor, splits, systems=["popularity"], resamples=0),
        "Settings of": lambda: baseline_table(processor, splits, systems=["transitions"], resamples=0),
        "Item neighbours": lambda: fit(synthetic_log(seed=1))[0].item_neighbours("next_item", 4),
    }
    for name, step in steps.items():
        assert name in drawn(step)
    for quiet in (True, False):
        trainer = PolyRecTrainer(
            tiny_model(processor),
            arguments(tmp_path, max_steps=1, disable_tqdm=quiet),
            train_dataset=splits.train,
            eval_dataset=splits.valid,
            processing_class=processor,
        )
        assert ("Weight of" in drawn(trainer.train)) is not quiet
