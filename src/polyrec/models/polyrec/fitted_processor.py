"""What a processor knows of its tables, and what models take from it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa

from polyrec.core.backbones import TextConfig
from polyrec.core.registry import HEADS, nearest
from polyrec.core.schema import RESIDUALS, STATISTICS, TIME_GAP, Columns, FeatureConfig, TaskConfig
from polyrec.data.catalog import EntityTable
from polyrec.data.columns import FIRST, ColumnEncoder
from polyrec.data.log_state import LogState
from polyrec.data.log_statistics import LogStatistics
from polyrec.data.neighbours import Neighbours
from polyrec.data.pipeline import LogPipeline
from polyrec.data.processor_checks import check_queries, check_statistics_only, check_text_changes, check_untimed
from polyrec.data.release import item_times, milliseconds
from polyrec.data.report import DataReport
from polyrec.data.setup import DROPOUT
from polyrec.data.stored_events import StoredEvents
from polyrec.data.texts import TokenTable, check_template, load_tokenizer, render, tokenize
from polyrec.data.training_evidence import TrainingEvidence
from polyrec.data.training_rows import TrainingSetSketch
from polyrec.data.trees import PairTrees
from polyrec.data.trends import Trends
from polyrec.models.polyrec.configuration_polyrec import PolyRecConfig


class FittedProcessor:
    """Vocabularies, scales and counts of a log; arguments and attributes as of `PolyRecProcessor`."""

    model_input_names = ("item_ids", "candidate_ids")

    def __init__(
        self,
        columns: Columns,
        tasks: Sequence[TaskConfig],
        items: EntityTable,
        users: EntityTable,
        event_encoders: dict[str, dict[str, ColumnEncoder]],
        max_history: int = 200,
        ties: str = "strict",
        statistics: LogStatistics | None = None,
        text: TextConfig | None = None,
        tokenizer: Any = None,
    ) -> None:
        if ties not in ("strict", "order"):
            raise ValueError(
                f'ties must be "strict" (only earlier times are visible) or "order" (trust the order), not {ties!r}'
            )
        if max_history < 1:
            raise ValueError(f"max_history is {max_history}; it must be >= 1")
        self.columns, self.tasks = columns, list(tasks)
        self.items, self.users = items, users
        self.event_encoders = event_encoders  # {"event": {...}, "candidate": {...}}
        self.max_history, self.ties = max_history, ties
        self.statistics = statistics
        self.text, self.tokenizer = text, tokenizer
        if text is not None:
            check_template(text.template, items.table.column_names)
            self.tokenizer = load_tokenizer(text) if tokenizer is None else tokenizer
        check_queries(columns, self.tasks, text)
        check_untimed(columns, self.tasks)
        self.item_counts = np.zeros(len(items), dtype=np.int64)
        self.first_event = np.full(len(items), np.inf)  # of each item in the log, in seconds
        self.label_summary: dict[str, dict[str, Any]] = {}
        self.log_columns: list[str] = []  # of the log that was fitted, also those that nothing reads; [] = unknown
        self.training_rows: TrainingSetSketch | None = None  # None = unknown
        self.data_report: DataReport | None = None
        self.stored_events: StoredEvents | None = None  # what users did; None = unknown
        self.evidence: TrainingEvidence | None = None  # of the last split; it is not saved
        self._pair_trees: PairTrees | None = None  # of the training rows of a split
        self._saved_mixtures: dict[str, list[list[float]]] | None = None  # of a loaded processor: its models read these
        self.trends = Trends({}, len(items))
        check_statistics_only(columns, items, users, event_encoders["candidate"])

    def __repr__(self) -> str:
        tasks = [task.name for task in self.tasks]
        return f"{type(self).__name__}(tasks={tasks}, {len(self.items.ids):,} items, max_history={self.max_history})"

    @property
    def num_items(self) -> int:
        """Rows of the item table: padding, the unknown item, the catalog."""
        return len(self.items)

    @property
    def features(self) -> list[FeatureConfig]:
        """Every input of the model, described."""
        hidden = set(self.columns.statistics_only)
        found = [e.feature("item") for n, e in self.items.encoders.items() if f"item.{n}" not in hidden]
        found += [e.feature("user") for n, e in self.users.encoders.items() if f"user.{n}" not in hidden]
        found = [f for f in found if f.kind != "text"]
        listed = self.columns.history is not None  # of past events nothing but the items is known then
        found += [] if listed else [e.feature("event") for e in self.event_encoders["event"].values()]
        context = self.event_encoders["candidate"]
        found += [e.feature("candidate") for n, e in context.items() if f"context.{n}" not in hidden]
        if self.columns.time is not None and not listed:
            found.append(FeatureConfig(TIME_GAP, "event", "numeric"))
        if self.statistics is not None and self.statistics.targets and not listed:
            found.append(FeatureConfig(RESIDUALS, "event", "vector", size=len(self.statistics.targets)))
        if self.statistics is not None:
            found.append(FeatureConfig(STATISTICS, "candidate", "vector", size=len(self.statistics.names)))
        return found

    def model_config(self, **overrides: Any) -> PolyRecConfig:
        """A [`PolyRecConfig`] that fits this data; `overrides` are its arguments (hidden_size=64, ...).

        Heads start from the training labels (base rate, mean and spread, classes: `TaskHead.options_from_labels`),
        unless a task's own options say otherwise.
        """
        tasks = []
        for task in self.tasks:
            summary = self.label_summary.get(task.name)
            options = {} if summary is None else HEADS.get(task.head).options_from_labels(task, summary)
            tasks.append(TaskConfig(**{**asdict(task), "options": {**options, **task.options}}))
        defaults = {
            "tasks": tasks,
            "features": self.features,
            "num_items": self.num_items,
            "max_history": self.max_history,
            "dropout": DROPOUT,
        }
        if self.text is not None:
            given = overrides.pop("text", None) or {}
            changes = asdict(given) if isinstance(given, TextConfig) else dict(given)
            check_text_changes(self.text, changes)
            defaults["text"] = asdict(self.text) | changes
            defaults["queries"] = self.columns.query is not None
        return PolyRecConfig(**{**defaults, **overrides})

    def item_tokens(self) -> TokenTable:
        """Tokens of the items' texts, one row per row of the item table; padding and the unknown item have none."""
        if self.text is None:
            raise ValueError("the processor reads no texts: fit it with text={'model': ..., 'template': ...}")
        texts = ["", "", *render(self.items.table, self.text.template)]
        return tokenize(self.tokenizer, texts, self.text, what="item texts")

    def tokens_of(self, items: pa.Table) -> TokenTable:
        """Tokens of the texts of some items, by their columns."""
        assert self.text is not None
        return tokenize(self.tokenizer, render(items, self.text.template), self.text, what="item texts")

    def describe(self, row: int) -> dict[str, Any]:
        """Id and title of a row of the item table."""
        return self.describe_many([row])[0]

    def describe_many(self, rows: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
        """[`describe`] of several rows."""
        at = pa.array(np.asarray(rows, dtype=np.int64) - FIRST)
        found = [{"item": item} for item in self.items.ids.take(at).to_pylist()]
        if self.columns.title in self.items.table.column_names:
            for own, title in zip(found, self.items.table[self.columns.title].take(at).to_pylist(), strict=True):
                own["title"] = title
        return found

    @property
    def mixtures(self) -> dict[str, list[list[float]]]:
        """{retrieval task that reads what is popular now: the option `trending` of its head}; none without times."""
        if self.columns.time is None:
            return {}
        found = {
            task.name: task.options.get("trending", self.label_summary.get(task.name, {}).get("trending", ()))
            for task in self.tasks
            if task.ranks_catalog
        }
        return {name: list(own) for name, own in found.items() if own}

    def item_times(self, source: str) -> np.ndarray:
        """When items appeared, int64 milliseconds since the epoch [N], `NO_TIME` = not known, or not yet.

        Args:
            source: "release" (`columns.item_time`) or "first_event" (of the log that was split, went on or was given
                by [`update`]; those of validation and test, too: whoever reads them compares with the time of the
                request).
        """
        if source == "first_event":
            return milliseconds(self.first_event)
        if self.columns.item_time is None:
            raise ValueError(
                'item_age="release" needs to know when items appeared: give columns.item_time, the column of the items '
                'table that says so, or use item_age="first_event"'
            )
        return milliseconds(item_times(self.columns, self.items))

    def item_vectors(self, size: int) -> np.ndarray:
        """Embeddings of items by their co-occurrence in the training rows of the last split, float32 [N, size].

        Raises:
            ValueError: nothing was split yet; the training rows are not saved with a processor.
        """
        return self._evidence("item embeddings").item_vectors(len(self.items), size)

    @property
    def has_training_rows(self) -> bool:
        """Whether a log was split: training rows are not saved with a processor."""
        return self.evidence is not None

    def item_neighbours(self, task: str, size: int) -> Iterable[Neighbours]:
        """What goes with what in the training rows of the last split: of all users, and without those of each fold.

        Args:
            task: events whose label of it is known to be 0 do not count.
            size: neighbours kept of each item.

        Raises:
            ValueError: nothing was split yet; the training rows are not saved with a processor.
        """
        return self._evidence("neighbours").neighbours(task, len(self.items), size)

    def weighed_neighbours(self, task: str, kind: str, size: int) -> Neighbours | None:
        """Item-to-item scores of the training rows of the last split, see
        [`~polyrec.data.neighbours.weighed_neighbours`]; arguments and errors as of `item_neighbours`."""
        return self._evidence("neighbours").weighed_neighbours(task, kind, len(self.items), size)

    def _evidence(self, what: str) -> TrainingEvidence:
        if self.evidence is None:
            raise ValueError(f"{what} are those of a split's training rows: call split() first")
        return self.evidence

    @property
    def pair_trees(self) -> PairTrees | None:
        """Trees of the pair tasks on the training rows of the last split; None: nothing was split."""
        return self._pair_trees

    @property
    def _ordered(self) -> bool:
        """Whether the events of a user have an order."""
        return self.columns.time is not None or self.columns.history is not None

    def _task(self, name: str) -> TaskConfig:
        found = {t.name: t for t in self.tasks}
        if name not in found:
            raise ValueError(f"unknown task {name!r}; {nearest(name, list(found))}")
        return found[name]

    @property
    def _pipeline(self) -> LogPipeline:
        entities = self.items, self.users, self.event_encoders
        return LogPipeline(self.columns, self.tasks, *entities, self.statistics, self.text, self.tokenizer)

    @property
    def _state(self) -> LogState:
        return LogState(self.statistics, self.trends, self.stored_events, self.first_event)
