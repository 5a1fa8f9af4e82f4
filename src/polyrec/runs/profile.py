"""`polyrec profile`: where the time and the memory of a recipe go."""

from __future__ import annotations

import json
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import TrainerCallback

from polyrec.core.bars import without_bars
from polyrec.core.files import write_atomically
from polyrec.evaluation.baselines.table import released_at
from polyrec.evaluation.evaluator import evaluate
from polyrec.evaluation.report import compare_with_baselines
from polyrec.runs.prepare import prepare
from polyrec.runs.recipe import Recipe
from polyrec.runs.recipe_checks import check_sections, check_with_data
from polyrec.runs.train import build_trainer
from polyrec.tracking.phases import Phases, Usage
from polyrec.training.trainer import PolyRecTrainer

_GROUPS = {  # parts of fit and split, by the modules that do them
    "statistics": ("data.statistic", "data.log_statistics", "data.log_passes", "data.past_features", "data.scaling"),
    "neighbours": ("data.neighbours", "data.cooccurrence", "data.ridge"),
    "reading tables": ("data.tables", "data.mapped_tables", "data.log_tables", "data.csv_files", "data.encoding"),
}
_OPERATOR_STEPS = 5
_STEP_PARTS = ("data", "forward", "backward", "optimizer")


class ProfiledTrainer(PolyRecTrainer):
    """A trainer that says what each part of a step takes.

    Args:
        phases: that are measured; None: not yet.
        measured: step after the last one that counts.
    """

    phases: Phases | None = None
    measured: int = 0

    def name(self, part: str) -> str:
        """The phase of a part of a step; the first step, which makes much anew, and watched ones stand apart."""
        step = self.state.global_step
        return f"training: {part if 0 < step < self.measured else 'watched steps' if step else 'first step'}"

    def _phase(self, part: str) -> AbstractContextManager[None]:
        return nullcontext() if self.phases is None else self.phases(self.name(part))

    def get_batch_samples(self, *given: Any, **named: Any) -> Any:
        """Batches of the next step."""
        with self._phase("data"):
            return super().get_batch_samples(*given, **named)

    def compute_loss(self, *given: Any, **named: Any) -> Any:
        """The loss of a batch."""
        with self._phase("forward"):
            return super().compute_loss(*given, **named)

    def training_step(self, *given: Any, **named: Any) -> torch.Tensor:
        """One batch; what is no part of the forward pass is the backward one."""
        with self._phase("backward"):
            return super().training_step(*given, **named)

    def weigh_by_validation(self) -> None:
        """What validation rows choose once the training is over."""
        with nullcontext() if self.phases is None else self.phases("weighing by validation"):
            super().weigh_by_validation()


class _OptimizerPhase(TrainerCallback):
    """Tells the steps of the optimizer from the rest, and lets torch's profiler see the last steps of a training."""

    def __init__(self, trainer: ProfiledTrainer, phases: Phases, profiler: torch.profiler.profile | None) -> None:
        self.trainer, self.phases, self.profiler = trainer, phases, profiler

    def on_step_begin(self, args: Any, state: Any, *unused: Any, **named: Any) -> None:
        """Watch operators from here on, if it is time."""
        if self.profiler is not None and state.global_step == self.trainer.measured:
            self.profiler.start()

    def on_pre_optimizer_step(self, *unused: Any, **named: Any) -> None:
        """The optimizer begins."""
        self.phases.begin(self.trainer.name("optimizer"))

    def on_optimizer_step(self, *unused: Any, **named: Any) -> None:
        """It has ended."""
        self.phases.end()

    def on_train_end(self, *unused: Any, **named: Any) -> None:
        """No operator is watched any more."""
        if self.profiler is not None:
            self.profiler.stop()


def profile(
    recipe: Recipe, steps: int = 20, operators: int | None = None, output: str | Path | None = None
) -> dict[str, Any]:
    """Do all that `polyrec train` does with a few steps of training, print what each phase takes, and save nothing.

    Args:
        steps: of training that are measured, after a first one, which is a phase of its own.
        operators: how many operators to show of five further steps (`torch.profiler`); None: none.
        output: also write the figures there, as JSON.

    Returns:
        "phases" ({name: [`Usage`]}), "total", "windows", "steps_per_epoch" and "operators".
    """
    check_sections(recipe)
    began = time.perf_counter(), time.process_time()
    with TemporaryDirectory() as folder, Phases(_GROUPS) as phases:
        processor, parts = prepare(recipe, phase=phases)
        check_with_data(recipe, processor)
        with phases("model"):
            further = 0 if operators is None else _OPERATOR_STEPS
            trainer = build_trainer(
                *(recipe, processor, parts.train, parts.valid),
                quiet=True,
                trainer_class=ProfiledTrainer,
                output_dir=folder,
                max_steps=1 + steps + further,
                eval_strategy="no",
                save_strategy="no",
                load_best_model_at_end=False,
                report_to="none",
            )
        assert isinstance(trainer, ProfiledTrainer)
        with phases("first batch"):
            next(iter(trainer.get_train_dataloader()))
        watched = None if operators is None else torch.profiler.profile(profile_memory=True)
        trainer.phases, trainer.measured = phases, 1 + steps
        trainer.add_callback(_OptimizerPhase(trainer, phases, watched))
        per_epoch = len(trainer.get_train_dataloader()) // trainer.args.gradient_accumulation_steps
        with without_bars(when=True), phases("training: all else"):
            trainer.train()
        rows = parts.valid if parts.valid.num_candidates else parts.test
        if rows.num_candidates:
            with phases("evaluation"):
                predictions = trainer.predictions(rows)
                evaluate(trainer.model, rows, predictions, trainer.args.rank_k)
            with phases("baselines"):
                compare_with_baselines(
                    *(trainer.model, parts.train, rows, predictions, [trainer.args.rank_k], trainer.args.exclude_seen),
                    valid=parts.valid if parts.valid.num_candidates else None,
                    released=released_at(processor),
                )
        wall, cpu = time.perf_counter() - began[0], time.process_time() - began[1]
    peak = max(usage.peak_bytes for usage in phases.found.values())
    found = {
        "phases": {name: asdict(usage) for name, usage in phases.found.items()},
        "total": asdict(Usage(1, wall, cpu, peak)),
        "steps": steps,
        "windows": len(parts.train),
        "steps_per_epoch": per_epoch,
        "operators": [] if watched is None else _operators(watched, operators or 0),
    }
    print(format_profile(found))
    if watched is not None:
        print(watched.key_averages().table(sort_by="self_cpu_time_total", row_limit=operators or 0))
    if output is not None:
        write_atomically(Path(output), json.dumps(found, indent=2) + "\n")
    return found


def _operators(watched: torch.profiler.profile, most: int) -> list[dict[str, Any]]:
    """The operators that take most time by themselves."""
    every = sorted(watched.key_averages(), key=lambda event: -event.self_cpu_time_total)
    return [
        {"name": e.key, "calls": e.count, "self_cpu_seconds": e.self_cpu_time_total / 1e6}  # of microseconds
        for e in every[:most]
    ]


def format_profile(found: dict[str, Any]) -> str:
    """The table of a profile, and how long an epoch takes at this rate."""
    total = found["total"]["wall_seconds"]
    lines = [f"{'phase':<28}{'wall s':>9}{'cpu s':>9}{'share':>7}{'peak MiB':>10}"]

    def line(name: str, wall: float, cpu: str, peak: str) -> str:
        return f"{name:<28}{wall:>9.2f}{cpu:>9}{wall / max(total, 1e-9):>7.1%}{peak:>10}"

    for name, usage in [*found["phases"].items(), ("total", found["total"])]:
        peak = f"{usage['peak_bytes'] / 2**20:,.0f}"
        lines.append(line(name, usage["wall_seconds"], f"{usage['cpu_seconds']:.2f}", peak))
        for group, seconds in (usage["within"] or {}).items():
            lines.append(line(f"  {group}", seconds, "", ""))
    steps = found["steps"]
    parts = [found["phases"].get(f"training: {part}") for part in _STEP_PARTS]
    seconds = sum(usage["wall_seconds"] for usage in parts if usage is not None) / max(steps, 1)
    lines.append(
        f"\n{1000 * seconds:,.0f} ms a step; an epoch of {found['windows']:,} windows has {found['steps_per_epoch']:,} "
        f"steps and takes about {seconds * found['steps_per_epoch']:,.0f} s"
    )
    return "\n".join(lines)
