"""Keeping a trained model fresh: it learns new events beside a share of the old ones, and says what it forgot.

A log that went on consists of *chunks*: the table that the model was trained on, and one table for each update. Of the
first, the run's own test set stays held out for good; of each update, the latest events. They tell what later updates
forget.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import set_seed

from polyrec.data import splits
from polyrec.data.event_log import EventLog
from polyrec.data.later_events import shown_time
from polyrec.data.replay import with_replay
from polyrec.data.sequences import SequenceDataset
from polyrec.data.tables import first_bad_row
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor
from polyrec.modules.heads.terms._cross_fitted import CrossFittedNeighbours
from polyrec.training.arguments import PolyRecTrainingArguments, for_going_on
from polyrec.training.cost import CostMeter
from polyrec.training.optim import frozen
from polyrec.training.progress import TrainingLines
from polyrec.training.settings import UpdateSettings
from polyrec.training.soup import Soup
from polyrec.training.trainer import PolyRecTrainer

NEW = "new"  # name of the slice that holds the latest of the new events


@dataclass
class Parts:
    """What becomes of the events of a log that went on, bool [R] each.

    Args:
        trained: trained on before.
        new: to train on now.
        held: {slice: never learnt}, the slice `NEW` and older ones.
    """

    trained: np.ndarray
    new: np.ndarray
    held: dict[str, np.ndarray] = field(default_factory=dict)


def parts_of(
    log: EventLog, rows: Sequence[int], holdouts: Sequence[float], split: Mapping[str, Any] | None = None
) -> Parts:
    """Which events of a log were trained on, are new, and stay held out.

    The validation set of the first chunk chooses nothing any more, so it may be replayed from now on.

    Args:
        rows: rows of each chunk's table, in the order of time; the log is that of all of them under one another.
        holdouts: share of the latest events of each chunk but the first; the last chunk is the new one.
        split: of the first chunk, arguments of `PolyRecProcessor.split`.

    Raises:
        ValueError: an event of a chunk is not later than all of the earlier ones.
    """
    chunk = np.searchsorted(np.cumsum(rows), log.row, side="right")
    if log.untimed is not None:
        chunk[log.untimed] = -1  # what a row lists is of no chunk
    cut = {name: (split or {})[name] for name in ("by", "fractions", "cuts") if name in (split or {})}
    part = splits.cut(log, among=chunk == 0, **cut)
    trained, held = np.isin(part, (splits.TRAIN, splits.VALIDATION)), {"test": part == splits.TEST}
    if not held["test"].any():
        trained, held = part == splits.TRAIN, {"valid": part == splits.VALIDATION}
    new = np.zeros(len(log), dtype=bool)
    for number, holdout in enumerate(holdouts, start=1):
        own, is_last = chunk == number, number == len(holdouts)
        _check_later(
            log,
            own,
            (chunk >= 0) & (chunk < number),
            "the new events" if is_last else f"update {number}",
            sum(rows[:number]),
        )
        latest = splits.cut(log, fractions=(1 - holdout, 0, holdout), among=own)
        held[NEW if is_last else f"update {number}"] = latest == splits.TEST
        if is_last:
            new |= latest == splits.TRAIN
        else:
            trained |= latest == splits.TRAIN
    return Parts(trained, new, {name: rows for name, rows in held.items() if rows.any()})


def _check_later(log: EventLog, own: np.ndarray, earlier: np.ndarray, what: str, first_row: int) -> None:
    """Refuse events from before what the model has seen: they would be trained on twice, or leak the future."""
    latest = log.time[earlier].max()
    early = np.zeros(len(log), dtype=bool)
    early[log.row[own]] = log.time[own] <= latest
    if (row := first_bad_row(early)) is not None:
        time = log.time[own & (log.row == row)][0]
        when = f"earlier than {shown_time(latest)}, the" if time < latest else "the time of the"
        raise ValueError(
            f"{what}: row {row - first_row} has time {shown_time(time)}, {when} latest event known so far, as "
            f"{int(early.sum())} rows do: give only events that came later, those of one time together"
        )


@dataclass
class UpdateData:
    """What an update trains and is evaluated on.

    Args:
        draws: what each member learns, new events and replayed ones.
        held: {slice: questions}, `NEW` and older ones.
        parts: which events they are.
    """

    draws: list[SequenceDataset]
    held: dict[str, SequenceDataset]
    parts: Parts

    @property
    def trained_events(self) -> np.ndarray:
        """Events that some member learns, bool [R]."""
        return np.isin(np.arange(len(self.parts.new)), np.concatenate([d.candidates.event for d in self.draws]))

    @property
    def rows(self) -> dict[str, int]:
        """How many events are new, replayed, and held out of each slice."""
        new = int((self.trained_events & self.parts.new).sum())
        held = {f"held out: {name}": int(rows.sum()) for name, rows in self.parts.held.items()}
        return {"new": new, "replayed": int(self.trained_events.sum()) - new, **held}


def update_data(
    processor: PolyRecProcessor,
    log: EventLog,
    statistics: np.ndarray | None,
    parts: Parts,
    settings: UpdateSettings,
    split: Mapping[str, Any] | None = None,
) -> UpdateData:
    """Examples of an update.

    Args:
        log, statistics: of all events, as `processor.resume` (or a data set of `processor.split`) has them.
        split: arguments of `PolyRecProcessor.split`, of which those that shape training examples are read.
    """
    shaped = ("shuffle_ties", "max_delay", "delayed_share", "keep_negatives", "untimed_share")
    options = {name: (split or {})[name] for name in shaped if name in (split or {})}
    examples = processor.training_set(log, parts.trained | parts.new, statistics, **options)
    held = {name: processor.evaluation_set(log, rows, statistics) for name, rows in parts.held.items()}
    return UpdateData(replays(examples, parts.new, settings), held, parts)


def replays(examples: SequenceDataset, new: np.ndarray, settings: UpdateSettings) -> list[SequenceDataset]:
    """What each member of an update trains on: all examples of new events, and a draw of its own of older ones."""
    return [with_replay(examples, new, settings.replay, seed) for seed in _member_seeds(settings)]


def _member_seeds(settings: UpdateSettings) -> range:
    """Updates with different seeds share no member."""
    return range(settings.seed * settings.members, (settings.seed + 1) * settings.members)


def train_update(
    model: PolyRecForRecommendation,
    processor: PolyRecProcessor,
    data: UpdateData,
    settings: UpdateSettings,
    training: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Go on training; items of new events become known, with vectors that start at the unknown item's.

    Args:
        training: arguments of `PolyRecTrainingArguments` of the run; how often it evaluates and saves is left out.

    Returns:
        cpu_seconds and wall_seconds, of all members.
    """
    log = data.draws[0].log
    counts = np.bincount(log.item[data.parts.new], minlength=processor.num_items)
    processor.item_counts = processor.item_counts + counts
    if processor.training_rows is not None:
        processor.training_rows = processor.training_rows.extended(log, data.trained_events, processor.items.ids)
    meter = CostMeter()
    with (
        frozen([*_neighbours(model), *(_skip(model) if settings.freeze_skip else [])]),
        tempfile.TemporaryDirectory() as folder,
    ):
        soup = Soup(model)
        for seed, drawn in zip(_member_seeds(settings), data.draws, strict=True):
            arguments = PolyRecTrainingArguments(output_dir=folder, **_options(settings, training or {}), seed=seed)
            set_seed(seed)
            trainer = PolyRecTrainer(model, arguments, drawn, processing_class=processor, callbacks=[meter])
            trainer.remove_callback(TrainingLines)
            soup.begin()  # after the trainer has put rows of new items in place
            trainer.train()
            soup.add()
        soup.serve()
    model.eval()
    cpu, wall = meter.seconds
    return {"cpu_seconds": cpu, "wall_seconds": wall}


def _neighbours(model: PolyRecForRecommendation) -> list[torch.nn.Parameter]:
    """Weights of item-to-item evidence: replayed rows would teach them to trust it, as it has counted these rows."""
    terms = [module for module in model.modules() if isinstance(module, CrossFittedNeighbours)]
    return [parameter for term in terms for parameter in term.parameters()]


def _skip(model: PolyRecForRecommendation) -> list[torch.nn.Parameter]:
    """The weights of the linear skip from statistics."""
    return list(model.skip.parameters()) if model.pair_tasks else []


def _options(settings: UpdateSettings, training: Mapping[str, Any]) -> dict[str, Any]:
    options = for_going_on(training)
    rate = settings.learning_rate
    if rate is None:
        rate = settings.rate_share * options.get("learning_rate", PolyRecTrainingArguments.learning_rate)
    return options | {
        "learning_rate": rate,
        "num_train_epochs": settings.epochs,
        "warmup_steps": 0.1,  # of all steps: the optimizer begins anew, without a memory of gradients
        "eval_strategy": "no",
        "save_strategy": "no",
        "logging_strategy": "no",
        "metric_for_best_model": None,
    }
