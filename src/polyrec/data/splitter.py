"""Cutting a log into training, validation and test sets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from polyrec.data import splits
from polyrec.data.event_log import EventLog
from polyrec.data.pipeline import LogPipeline
from polyrec.data.report import DataReport
from polyrec.data.report_facts import order_warning, split_facts
from polyrec.data.row_lists import held_rows_last
from polyrec.data.sequences import SequenceDataset
from polyrec.data.sets import held_out_last
from polyrec.data.settings import SplitSettings
from polyrec.data.storage import MEMORY, Storage
from polyrec.data.tables import check_learnable


class Splits(NamedTuple):
    """Training, validation and test examples of one event log."""

    train: SequenceDataset
    valid: SequenceDataset
    test: SequenceDataset

    @property
    def validation(self) -> SequenceDataset:
        """The same as `valid`, by the name that `datasets` has for it."""
        return self.valid

    def require(self, *names: str) -> None:
        """Refuse a split without rows in a set that is needed, before hours of training and not after.

        Args:
            names: "valid", "test".
        """
        for name in names:
            if not getattr(self, name).num_candidates:
                word = {"valid": "validation", "test": "test"}[name]
                raise ValueError(
                    f"the split leaves no {word} rows: give each set a share (fractions=[0.8, 0.1, 0.1]) or "
                    "cuts within the log (leave_one_out needs users of 3 events)"
                )


@dataclass(frozen=True)
class CutLog:
    """A log and the set of each of its rows.

    Args:
        log: with feedback and context on the scales of its training rows, and sample weights.
        part: int8 [R], see [`polyrec.data.splits`].
        by: how it was cut.
    """

    log: EventLog
    part: np.ndarray
    by: str

    @property
    def train(self) -> np.ndarray:
        """Its training rows, bool [R]."""
        return self.part == splits.TRAIN

    @property
    def counted(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Events that statistics count for training and validation, and for test, bool [R]; None: all before a row.

        Leave-one-out holds rows out of the middle of the log, so they must not count until their own set comes; of sets
        nothing that is held out ever counts.
        """
        if self.by == "time":
            return None, None
        if self.by == "leave_one_out":
            return self.train, self.part != splits.TEST
        trained = self.train if self.log.untimed is None else self.train | self.log.untimed
        return trained, trained


def cut_log(
    pipeline: LogPipeline,
    table: pa.Table,
    prior_history: Any,
    settings: SplitSettings,
    report: DataReport | None,
    storage: Storage = MEMORY,
) -> CutLog:
    """Encode a log and cut it; the pipeline's encoders take the scales of the training rows.

    Args:
        table: as of `LogPipeline.read`.
        prior_history: as of `LogPipeline.encode`.
        report: takes what was found.
        storage: where the arrays of the log go.

    Raises:
        polyrec.data.splits.LeakageError: a training row lies later than what the evaluation may know.
        ValueError: a task has no label in the training rows.
    """
    by = settings.by or ("random" if pipeline.columns.time is None else "time")
    log = pipeline.encode_events(table, prior_history, report, storage)
    part = splits.cut(log, by, settings.fractions, settings.cut_times, seed=settings.seed)
    if log.untimed is not None:
        log = held_rows_last(log, part) if log.drawn else log
    elif by == "random":
        log, part = held_out_last(log, part)
    train = part == splits.TRAIN
    pipeline.rescale(log, table, train, storage)
    if report is not None:
        report.split, texts = split_facts(log, part, pipeline.tasks)
        report.warn([*order_warning(log, table, pipeline.columns), *texts])
    pipeline.weigh(log, table, storage)
    check_learnable(log.labels[train], pipeline.tasks)
    return CutLog(log, part, by)
