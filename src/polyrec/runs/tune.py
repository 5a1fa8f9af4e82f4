"""`polyrec tune`: search the settings of a recipe on the validation set; the test set plays no role."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Annotated, Any

import optuna
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import TrialState
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerState

from polyrec.core.files import write_atomically
from polyrec.core.lock import locked
from polyrec.core.ranges import Range
from polyrec.core.settings import read_value
from polyrec.core.swap import finish
from polyrec.data.sequences import SequenceDataset
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor
from polyrec.runs.facts import about_recipe, claim_folder
from polyrec.runs.prepare import prepare
from polyrec.runs.recipe import Recipe
from polyrec.runs.train import SELECTION_METRIC, build_config, build_trainer
from polyrec.runs.transaction import changes, place_of
from polyrec.runs.tuning_report import write_trials
from polyrec.runs.tuning_space import SearchSpace
from polyrec.training.arguments import PolyRecTrainingArguments

STUDY_NAME, BEST_NAME = "study.journal", "best.yaml"
_REPEATS = "repeats"  # user attribute of a trial: number of the interrupted one that it does again


class _TrainingFailed(Exception):
    """A trial that diverged."""


def tune_recipe(recipe: Recipe, trials: int = 30) -> Recipe:
    """Search, and write the best recipe and a table of the trials into the recipe's output folder.

    A trial is evaluated by the best `mean_improvement` of the validation set over its epochs, the same figure by which
    `polyrec train` keeps weights. Trials that fall behind the median of the earlier ones in an epoch are stopped there.
    Trials are recorded as they end; one that was interrupted is done again with the same values.

    Args:
        trials: in all, those of earlier calls counted.

    Returns:
        the recipe with the best values.
    """
    read_value(Annotated[int, Range(1, 1_000_000)], trials, "--trials")
    space, folder = SearchSpace.of(recipe), place_of(recipe.output)
    with locked(folder):
        finish(folder)
        claim_folder(folder, about_recipe(recipe.to_dict(), ignore=["output"]))
        return _search(recipe, space, folder, trials)


def _search(recipe: Recipe, space: SearchSpace, folder: Path, trials: int) -> Recipe:
    processor, parts = prepare(recipe, verbose=True)
    parts.require("valid")
    train, valid, _ = parts  # the test set is dropped here and not known to anything below
    for dimension in space.dimensions:
        for value in dimension.examples:
            _check(space.apply(recipe, {dimension.key: value}), processor, dimension.key, value)
    base = PolyRecTrainingArguments(output_dir=recipe.output, **recipe.training)
    study = _open_study(folder, space, base.seed)
    with tqdm(
        total=trials, initial=min(_finished(study), trials), desc="Trials", disable=base.disable_tqdm or None
    ) as bar:
        while _finished(study) < trials:
            trial = study.ask()
            values = {dimension.key: dimension.suggest(trial) for dimension in space.dimensions}
            state, value = TrialState.COMPLETE, None
            try:
                value = _run(space.apply(recipe, values), processor, train, valid, trial, folder / ".work")
            except optuna.TrialPruned:
                state = TrialState.PRUNED
            except _TrainingFailed as error:
                state = TrialState.FAIL
                tqdm.write(f"trial {trial.number} failed: {error}")
            study.tell(trial, value, state)
            told = f"{value:.5f}" if value is not None else state.name.lower()
            tqdm.write(f"trial {trial.number}: {told} with {', '.join(f'{k}={v}' for k, v in values.items())}")
            bar.update()
    shutil.rmtree(folder / ".work", ignore_errors=True)
    if not study.get_trials(states=[TrialState.COMPLETE]):
        raise ValueError(f"no trial of {folder} came to its end: widen the search space or lower the learning rate")
    best = space.apply(recipe, study.best_params)
    best.output = str(Path(recipe.output) / "best")
    with changes(folder) as draft:
        write_atomically(draft / BEST_NAME, yaml.safe_dump(best.to_dict(), sort_keys=False))
        write_trials(study.get_trials(), SELECTION_METRIC, draft)
    print(f"best of {_finished(study)} trials: {SELECTION_METRIC} {study.best_value:.5f} of the validation set")
    print(f"next: polyrec train {Path(recipe.output) / BEST_NAME}")
    return best


def _run(
    recipe: Recipe,
    processor: PolyRecProcessor,
    train: SequenceDataset,
    valid: SequenceDataset,
    trial: optuna.Trial,
    work: Path,
) -> float:
    """Train one candidate; the best validation figure over its epochs."""
    judge = _Judge(trial)
    trainer = build_trainer(
        recipe,
        processor,
        train,
        valid,
        callbacks=[judge],
        quiet=True,
        output_dir=str(work),
        eval_strategy="epoch",
        save_strategy="no",
        load_best_model_at_end=False,
    )
    try:
        trainer.train()
    except ValueError as error:  # of the metrics: predictions are not finite
        raise _TrainingFailed(str(error)) from error
    if not math.isfinite(judge.best):
        raise ValueError(
            f"{SELECTION_METRIC} is no number: no task of the validation set has labels of two values by which trials "
            "could be evaluated; choose other split.fractions or split.cuts"
        )
    return judge.best


class _Judge(TrainerCallback):
    """Reports each epoch to the trial, and ends it where it falls behind."""

    def __init__(self, trial: optuna.Trial) -> None:
        self.trial, self.best = trial, -math.inf

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, metrics: dict[str, float], **_: Any) -> None:
        value = metrics.get(f"eval_{SELECTION_METRIC}", math.nan)
        if not math.isfinite(value):
            return
        self.best = max(self.best, value)
        self.trial.report(self.best, step=round(state.epoch or 0))
        if self.trial.should_prune():
            raise optuna.TrialPruned


def _check(recipe: Recipe, processor: PolyRecProcessor, key: str, value: Any) -> None:
    """Refuse a space that cannot work, before the first trial and not in the middle of the night."""
    try:
        build_config(recipe, processor)
        PolyRecTrainingArguments(output_dir=recipe.output, **recipe.training)
    except (TypeError, ValueError) as error:
        raise ValueError(f"tune.space.{key} holds {value!r}, which does not work: {error}") from error


def _open_study(folder: Path, space: SearchSpace, seed: int) -> optuna.Study:
    """The folder's study; what was interrupted stands in line again."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    _cut_half_line(folder / STUDY_NAME)
    study = optuna.create_study(
        study_name="polyrec",
        storage=JournalStorage(JournalFileBackend(str(folder / STUDY_NAME), _Held(str(folder / STUDY_NAME)))),
        direction="maximize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=max(space.startup_trials // 2, 1), n_warmup_steps=2),
    )
    # A resumed search must not draw the values of its first trials again.
    study.sampler = optuna.samplers.TPESampler(
        seed=seed + len(study.get_trials()), n_startup_trials=space.startup_trials
    )
    for trial in study.get_trials(states=[TrialState.RUNNING]):
        study.tell(trial.number, state=TrialState.FAIL)
        if len(trial.params) == len(space.dimensions):
            study.enqueue_trial(trial.params, user_attrs={_REPEATS: trial.number})
    return study


class _Held(JournalFileOpenLock):
    """No lock of its own: that of the folder is held, and ends with the process, which optuna's would not."""

    def acquire(self) -> bool:
        """Nobody else writes."""
        return True

    def release(self) -> None:
        """Nothing to release."""


def _cut_half_line(journal: Path) -> None:
    """Take away what an interrupted write has left: optuna reads no further than that for good."""
    content = journal.read_bytes() if journal.exists() else b""
    if content and not content.endswith(b"\n"):
        write_atomically(journal, content[: content.rfind(b"\n") + 1])


def _finished(study: optuna.Study) -> int:
    """Trials that count; one that was interrupted and is done again counts once."""
    trials = study.get_trials()
    repeated = {t.user_attrs[_REPEATS] for t in trials if _REPEATS in t.user_attrs}
    return sum(t.state.is_finished() and t.number not in repeated for t in trials)
