"""`PolyRecProcessor`: raw tables in, sequences and batches out; saved beside the model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
from huggingface_hub import CommitInfo
from safetensors import SafetensorError

from polyrec.core.backbones import TextConfig, resolve
from polyrec.core.registry import HEADS, nearest
from polyrec.core.schema import (
    REFUSED,
    RESIDUALS,
    STATISTICS,
    TIME_GAP,
    Columns,
    FeatureConfig,
    TaskConfig,
    from_dict,
    parse_tasks,
)
from polyrec.data import processor_files, splits
from polyrec.data.catalog import EntityTable
from polyrec.data.columns import FIRST, ColumnEncoder
from polyrec.data.cooccurrence import cooccurrence_vectors
from polyrec.data.derived import derived_names, fit_derived, with_derived
from polyrec.data.encoding import encode_columns, encode_log, encode_past, fit_event_columns, time_gap
from polyrec.data.event_log import Candidates, EventLog
from polyrec.data.label_summary import summarise
from polyrec.data.leaks import refuse_labels_as_inputs
from polyrec.data.log_statistics import LogStatistics
from polyrec.data.neighbours import (
    FOLDS,
    Neighbours,
    fold_of,
    neighbours,
    weighed_neighbours,
    weighed_sizes,
    worthwhile,
)
from polyrec.data.past import check_marks, read_past
from polyrec.data.processor_checks import (
    check_keys_only,
    check_queries,
    check_searches,
    check_split,
    check_text_changes,
    check_untimed,
    refuse_continuation,
)
from polyrec.data.queries import NO_QUERY, Queries
from polyrec.data.questions import Questions
from polyrec.data.release import age_start, first_times, item_times, milliseconds
from polyrec.data.report import DataReport, DataWarning, main_process
from polyrec.data.report_facts import (
    TableIds,
    fit_report,
    list_matches,
    match_log,
    order_warning,
    split_facts,
    table_matches,
)
from polyrec.data.request_reader import RequestReader, read_scalar
from polyrec.data.requests import continued, request_table, variants, without_times
from polyrec.data.row_lists import (
    after_lists,
    check_targets,
    held_rows_last,
    hide_lists,
    item_events,
    sequences,
    with_lists,
    with_row_users,
)
from polyrec.data.sequences import SequenceDataset
from polyrec.data.sets import as_sets, held_out_last
from polyrec.data.settings import UNTIMED_SHARE, FitSettings, SplitSettings
from polyrec.data.setup import DROPOUT
from polyrec.data.statistic_config import StatisticsConfig
from polyrec.data.statistics import check_later, shown_time
from polyrec.data.stored_events import StoredEvents
from polyrec.data.tables import (
    as_array,
    check_learnable,
    check_words,
    column,
    first_bad_row,
    labels,
    normalise_ids,
    numbers,
    read_table,
    times,
)
from polyrec.data.texts import TokenTable, check_template, load_tokenizer, render, tokenize
from polyrec.data.training_rows import TrainingRows
from polyrec.data.trees import MOST, PairTrees
from polyrec.data.trending import RecentCounts, Trending, request_trending
from polyrec.data.trending_fit import fit_trending
from polyrec.data.weights import row_weights
from polyrec.hub.fetch import fetch
from polyrec.hub.files import PROCESSOR_FILES, PROCESSOR_RECORDED
from polyrec.hub.push import push
from polyrec.hub.safety import check_processor, record_saved
from polyrec.models.polyrec.configuration_polyrec import PolyRecConfig


class Splits(NamedTuple):
    """Training, validation and test questions about one event log."""

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


class PolyRecProcessor:
    """Knows the tables: which column means what, the item catalog, vocabularies, scales and running statistics.

    Build one with [`fit`], cut the log with [`split`], save it beside the model (the Trainer does) and load both with
    `from_pretrained`.

    Args:
        columns: which column means what.
        tasks: what to learn.
        items, users: the fitted entity tables.
        max_history: events per window.
        ties: "strict" (a candidate sees earlier times only) or "order" (it sees the rows before it).
        statistics: running statistics, or None.
        text: how items (and queries) are read as text, or None.
        tokenizer: of the text encoder; default: the one of its model.

    Attributes:
        data_report: [`DataReport`], what `fit` and `split` found in the tables; None of a folder saved without one.

    Example:
        >>> interactions = {"user_id": [1, 1, 1, 2], "item_id": ["a", "b", "a", "b"], "rating": [5, 2, 4, 1],
        ...                 "timestamp": [10, 20, 30, 15]}
        >>> processor = PolyRecProcessor.fit(
        ...     interactions, tasks=[TaskConfig("next_item", "retrieval"), TaskConfig("rating", "regression")])
        >>> processor.num_items  # padding, unknown item, a, b
        4
    """

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
        self.training_rows: TrainingRows | None = None  # None = unknown
        self.data_report: DataReport | None = None
        self.stored_events: StoredEvents | None = None  # what users did; None = unknown
        self._taken: tuple[np.ndarray, np.ndarray] | None = None  # people and items of training events, in order
        self._folds = np.zeros(0, dtype=np.int64)  # of the same people
        self._refused: dict[str, np.ndarray] = {}  # {retrieval task: which of them say that the item was not taken}
        self._neighbours: dict[tuple[str, int, int], list[Neighbours]] = {}  # of the same events, as asked for so far
        self._weighed: dict[tuple[str, str, int, int], Neighbours | None] = {}
        self._pair_trees: PairTrees | None = None  # of the training rows of a split
        self._saved_mixtures: dict[str, list[list[float]]] | None = None  # of a loaded processor: its models read these
        self.recent: dict[str, RecentCounts] = {}  # {retrieval task that reads it: what is popular now}
        self._trending: list[tuple[EventLog, np.ndarray | None, Trending]] = []  # of logs and the events that count
        check_keys_only(columns, items, users, event_encoders["candidate"])

    # ------------------------------------------------------------------ fit
    @classmethod
    def fit(
        cls,
        interactions: Any,
        items: Any = None,
        users: Any = None,
        *,
        tasks: Sequence[TaskConfig | Mapping[str, Any]],
        columns: Columns | Mapping[str, Any] | None = None,
        max_history: int = 200,
        ties: str = "strict",
        statistics: bool | StatisticsConfig | Mapping[str, Any] = True,
        text: TextConfig | Mapping[str, Any] | None = None,
        verbose: bool = True,
    ) -> PolyRecProcessor:
        """Learn vocabularies and scales.

        Args:
            interactions: the event log: a path (.parquet, .csv), pandas, `datasets.Dataset`, Arrow table or dict.
            items, users: attribute tables; None: ids only.
            tasks: [`TaskConfig`]s or dicts.
            columns: [`Columns`] or a dict of its arguments; default: user_id, item_id, timestamp, and every label
                column as feedback.
            max_history: events per window.
            ties: see the class.
            statistics: count running statistics (strictly-before rates, residuals, time since last): the default set,
                or which ones as a [`StatisticsConfig`] or a dict of its arguments.
            text: a pretrained encoder of item texts as a [`TextConfig`] or a dict of its arguments, e.g.
                {"model": "sentence-transformers/all-MiniLM-L6-v2", "template": "{title}. {genres}"}. How it is tuned
                is up to the model: `model_config(text={"tuning": "lora"})`.
            verbose: print the [`DataReport`] to stderr; False: only what it warns of, as Python warnings.

        Raises:
            ValueError: names the table, the column, the first bad row and the fix.
        """
        settings = FitSettings(max_history, ties, statistics, text)  # type: ignore[arg-type]
        tasks = parse_tasks(tasks)
        known: Columns = from_dict(Columns, {} if columns is None else columns)
        refuse_labels_as_inputs(known, tasks)
        log = read_table(interactions, "interactions")
        columns = with_row_users(known, log)
        columns = columns if columns.feedback else replace(columns, feedback=_label_columns(tasks))
        log = with_lists(log, columns)
        check_targets(log, columns)
        seconds, known_labels = times(log, columns, "interactions"), labels(log, tasks, "interactions")
        check_words(log, tasks, "interactions")
        catalog = None if items is None else read_table(items, "items")
        item_table = EntityTable.fit(catalog, item_events(log, columns), columns, "items")
        user_table = EntityTable.fit(None if users is None else read_table(users, "users"), log, columns, "users")
        found = TableIds.of(log, columns.item, "item", item_table), TableIds.of(log, columns.user, "user", user_table)
        matches = [*table_matches(found), *list_matches(log, columns, item_table)]
        for match in matches:
            match.check(columns.max_unmatched)
        check_marks(columns, columns.feedback)
        encoders = {
            "event": fit_event_columns(log, columns.feedback),
            "candidate": fit_event_columns(log, columns.context) | fit_derived(log, columns, item_table),
        }
        counted = None
        if settings.statistics:
            wanted = StatisticsConfig() if isinstance(settings.statistics, bool) else settings.statistics
            keyed = {"user": user_table.encoders, "candidate": encoders["candidate"]}
            counted = LogStatistics.of(wanted, columns, tasks, item_table, keyed)
        read = None if settings.text is None else resolve(settings.text)
        own = settings.max_history, settings.ties
        processor = cls(columns, tasks, item_table, user_table, encoders, *own, counted, read)
        processor.log_columns = log.column_names
        report = fit_report(log, columns, tasks, seconds, known_labels, found, matches, encoders, settings.ties)
        processor.data_report = report
        report.show(verbose)
        processor.stored_events = StoredEvents() if columns.history is None else None
        return processor

    # ---------------------------------------------------------------- split
    def split(
        self,
        interactions: Any,
        by: str | None = None,
        fractions: Sequence[float] = (0.8, 0.1, 0.1),
        cuts: Sequence[Any] | None = None,
        shuffle_ties: bool = True,
        max_delay: float = 0.0,
        past: Any = None,
        delayed_share: float | None = None,
        keep_negatives: Mapping[str, float] | None = None,
        seed: int = 0,
        untimed_share: float = UNTIMED_SHARE,
    ) -> Splits:
        """Cut the log into training, validation and test questions; scales and statistics are fitted on training rows.

        Args:
            interactions: the event log, see [`fit`].
            by: "time" (shares of all events in time order, or `cuts`: times at which validation and test begin, as
                seconds, ISO text, dates or timestamps), "leave_one_out" (each person's last event tests, the one
                before validates) or "random" (shares of each user's events, for a log without times). None: "time", or
                "random" if `columns.time` is None.
            shuffle_ties: training draws the order of events of one time anew in every epoch, see [`SequenceDataset`].
            max_delay: seconds. Each training row is also asked as it looks when what happened in the last
                U(0, max_delay) seconds is not known, so that one model answers with and without fresh events. Give it
                the time for which a deployed model will not be fed.
            past: what people did before the log, a table as `columns.past` describes it.
            delayed_share: with `max_delay`, an epoch asks each training row in one of its two views: the delayed one
                with this chance. None: in both, which takes about twice the time.
            keep_negatives: {binary task: share of its training negatives that an epoch asks, drawn anew in each}.
                [`model_config`] tells the head (`sampling_rate`), so that probabilities are those of all rows.
            seed: of the delays, and of what "random" holds out; commands give that of the training. All else that is
                drawn has the trainer's seed.
            untimed_share: share of the training windows that are shown as if nobody knew when their events happened,
                drawn anew in every epoch, so that the model can answer about histories without times.

        In a log without times (`columns.time` None) a user's events are a set. What is held out sees all of the user's
        training events, and statistics of all training events; nothing that is held out is seen. A training row sees a
        random part of its user's other training events, drawn anew in every epoch, and never itself; its statistics
        count the training events before it in an order drawn once (`polyrec.data.sets` says why not all others).

        Otherwise validation and test are *prequential*: every event strictly before a row is visible as history and in
        the running statistics. [`frozen`] hides what happened after a time.

        Raises:
            polyrec.data.splits.LeakageError: a training row lies later than what the evaluation may know.
        """
        drawn: dict[str, Any] = {"keep_negatives": keep_negatives, "untimed_share": untimed_share, "seed": seed}
        by = ("random" if self.columns.time is None else "time") if by is None else by
        asked = SplitSettings(by, fractions, cuts, shuffle_ties, max_delay, delayed_share, **drawn)  # type: ignore[arg-type]
        check_split(self.columns, by)
        table = self._table_of(interactions)
        log, part = self._cut(table, past, asked)
        train = part == splits.TRAIN
        if self.data_report is not None:
            self.data_report.split, texts = split_facts(log, part, self.tasks)
            self.data_report.warn([*order_warning(log, table, self.columns), *texts])
        self._weigh(log, table)
        check_learnable(log.labels[train], self.tasks)
        self._summarise(log, train)
        self.training_rows = TrainingRows.of(log, train, self.items.ids)
        for name, share in (asked.keep_negatives or {}).items():
            if self._task(name).head != "binary":
                raise ValueError(f"keep_negatives: {name!r} is not a binary task, whose head corrects the sampling")
            self.label_summary[name]["sampling_rate"] = share
        # Leave-one-out holds rows out of the middle of the log, so they must not count until their own part; of sets
        # nothing that is held out ever counts.
        learnt_from = train if log.untimed is None else train | log.untimed
        source, known = {
            "time": (None, None), "leave_one_out": (train, part != splits.TEST), "random": (learnt_from, learnt_from)
        }[by]  # fmt: skip
        learnt = tested = None
        if self.statistics is not None:
            learnt = tested = self.statistics.fit(log, train, source=source)
            if known is not source:
                tested = self.statistics.compute(log, source=known)
        self._store(log, train)
        found = Splits(
            self.training_set(
                log,
                train,
                learnt,
                source=source,
                shuffle_ties=asked.shuffle_ties,
                max_delay=asked.max_delay,
                delayed_share=asked.delayed_share,
                untimed_share=asked.untimed_share,
                keep_negatives=asked.keep_negatives,
                seed=asked.seed,
            ),
            self.evaluation_set(log, part == splits.VALIDATION, learnt, source),
            self.evaluation_set(log, part == splits.TEST, tested, known),
        )
        self._allow_trees(found.train)
        return found

    def _allow_trees(self, train: SequenceDataset) -> None:
        """Let the heads of pair tasks have trees beside them, where the training rows allow it."""
        self._pair_trees = PairTrees(train, self.tasks)
        for name in self._pair_trees.tasks:
            self.label_summary[name]["trees"] = MOST
        if self._pair_trees.missing and self.data_report is not None:
            self.data_report.trees = (
                f"none of {', '.join(self._pair_trees.missing)}, which could have them beside the network: "
                "pip install 'polyrec[classical]'"
            )

    def _cut(self, table: pa.Table, past: Any, asked: SplitSettings) -> tuple[EventLog, np.ndarray]:
        """The log, with feedback and context on the scales of its training rows, and the part of each row, int8 [R]."""
        log = self._encode_log(table, past)
        self._check_ids(table, log, self.data_report)
        part = splits.cut(log, asked.by or "time", asked.fractions, asked.cut_times, seed=asked.seed)
        if log.untimed is not None:
            log = held_rows_last(log, part) if log.drawn else log
        elif asked.by == "random":
            log, part = held_out_last(log, part)
        train = part == splits.TRAIN
        # `fit` saw the whole log; how feedback of the test rows is distributed must not reach the model.
        whole = with_derived(table, self.columns, self.items)
        rows = log.row[train]
        learnt = whole.take(
            pa.array(rows if self.columns.time is None else np.sort(rows))
        )  # of sets in no file's order
        for encoders in self.event_encoders.values():
            for name, encoder in encoders.items():
                values = column(learnt, name, "interactions", "feedback or context")
                encoders[name] = encoder.refit(values, f"interactions: column {name!r}")
        encoded = encode_columns(whole, self.event_encoders, log.row)
        log.event_features |= encoded["event"]
        log.candidate_features = encoded["candidate"]
        hide_lists(log, self.event_encoders)
        if log.past is not None:
            encode_past(log.past, self.event_encoders)
        return log, part

    def frozen(self, dataset: SequenceDataset, cutoff: float) -> SequenceDataset:
        """The same questions when nothing at or after `cutoff` (seconds) is known: no history, no statistics.

        Only the row's own context stays. This is how a model answers that is not fed new events.
        """
        return self._questions.frozen(dataset, cutoff)

    def encode_events(self, interactions: Any, past: Any = None) -> EventLog:
        """Check and encode an event log, sorted by (person, time, order). Unknown items and people are cold starts."""
        table = self._table_of(interactions)
        log = self._encode_log(table, past)
        self._check_ids(table, log)
        return log

    def _check_ids(self, table: pa.Table, log: EventLog, report: DataReport | None = None) -> None:
        """Refuse a log of which next to nothing is known, and warn of one of which much is not.

        Args:
            report: where the warnings are to stand, too.
        """
        matches = match_log(table, log, self.columns, self.items, self.users)
        for match in matches:
            match.check(self.columns.max_unmatched, later=True)
        texts = [match.text() for match in matches if match.suspicious(later=True)]
        if report is not None:
            report.matches += [match for match in matches if match not in report.matches]
            report.warn(texts)
        elif main_process():
            for text in texts:
                warnings.warn(text, DataWarning, stacklevel=3)

    def _encode_log(self, table: pa.Table, past: Any = None) -> EventLog:
        log = self._encode(table, past)
        if self.columns.history is not None:
            return after_lists(log, table, self.columns, self.tasks, self.items, self.event_encoders)
        return as_sets(log, table, self.columns) if self.columns.time is None else log

    def _table_of(self, interactions: Any) -> pa.Table:
        return with_lists(read_table(interactions, "interactions"), self.columns)

    def _encode(self, table: pa.Table, past: Any = None) -> EventLog:
        """[`encode_events`] of a table, whatever of it is known: requests are of new users and items, too."""
        columns, what = self.columns, "interactions"
        table = with_derived(table, columns, self.items)
        log = encode_log(table, columns, self.tasks, self.items, self.users, self.event_encoders)
        if self.statistics is not None:
            for name in self.statistics.measures:
                values = numbers(column(table, name, what, "statistics target"), f"{what}: {name!r}")
                log.measures[name] = values[log.row]
        if columns.query is not None:
            assert self.text is not None  # checked at construction
            log.queries = Queries.read(table, columns, self.items, self.tokenizer, self.text).of_rows(log.row)
            searches = [j for j, t in enumerate(self.tasks) if t.head == "search"]
            log.labels[np.ix_(log.queries.index == NO_QUERY, searches)] = np.nan
            check_searches(log, searches, columns, what)
        if past is not None:
            if columns.past is None:
                raise ValueError("a past table is given but columns.past does not say which of its columns to read")
            log.past = read_past(read_table(past, "past"), columns, self.items, log.user_ids)
            encode_past(log.past, self.event_encoders)
        return log

    def resume(self, interactions: Any, past: Any = None) -> tuple[EventLog, np.ndarray | None]:
        """A log that went on after it was split: its events and running statistics, with nothing fitted anew.

        The statistics then stand after its last event. Ask about it with [`training_set`] and [`evaluation_set`].

        Args:
            interactions: all events, the earlier ones included.
            past: as in [`split`].

        Raises:
            ValueError: the log has no times, so that nothing tells what is new.
        """
        refuse_continuation(self.columns)
        table = self._table_of(interactions)
        log = self.encode_events(table, past)
        self._meet(log)
        self._weigh(log, table)
        counted = None if self.statistics is None else self.statistics.resume(log)
        self._store(log)
        return log, counted

    def _store(self, log: EventLog, rows: np.ndarray | None = None) -> None:
        if self.columns.history is None:
            self.stored_events = StoredEvents()
            self.stored_events.add(log, rows)
        self._trending = []
        self.recent = {task: RecentCounts(own, self.num_items) for task, own in self.mixtures.items()}
        self._count_recent(log, rows)

    def _count_recent(self, log: EventLog, rows: np.ndarray | None = None) -> None:
        event = np.arange(len(log)) if rows is None else np.flatnonzero(rows)
        event = event[np.argsort(log.time[event], kind="stable")]
        for task, recent in self.recent.items():
            recent.add(log.time[event], self._taken_items(log, task)[event])

    @staticmethod
    def _taken_items(log: EventLog, task: str) -> np.ndarray:
        """Items of events, 0 where the label of a task is known to be 0, and in lists of rows, int64 [R]."""
        refused = log.event_features.get(REFUSED + task)
        left_out = np.zeros(len(log), dtype=bool) if refused is None else refused > 0
        return np.where(left_out if log.untimed is None else left_out | log.untimed, 0, log.item)

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

    def _trends(self, log: EventLog, source: np.ndarray | None) -> Trending | None:
        """What was popular at each time of a log, counted of the events in `source`; None: no task reads it."""
        mixtures = self.mixtures
        if not mixtures:
            return None
        for known, counted, found in self._trending:
            if known is log and counted is source:
                return found
        items = {task: self._taken_items(log, task) for task in mixtures}
        time = log.time
        if source is not None:
            time, items = time[source], {task: own[source] for task, own in items.items()}
        found = Trending(mixtures, time, items, self.num_items)
        self._trending.append((log, source, found))
        return found

    def _weigh(self, log: EventLog, table: pa.Table) -> None:
        own = np.arange(len(log)) if log.untimed is None else np.flatnonzero(~log.untimed)
        labels = log.labels[own[np.argsort(log.row[own])]]
        weights = row_weights(table, self.columns, self.tasks, labels, "interactions")
        log.sample_weight = {task: values[log.row] for task, values in weights.items()}

    def _summarise(self, log: EventLog, train: np.ndarray) -> None:
        """Count items and summarise labels over the training rows."""
        said = {n: v > 0 for n, v in log.event_features.items() if n.startswith(REFUSED)}
        event = np.flatnonzero(train)
        if log.untimed is not None:
            event = sequences(log, train, ~np.logical_and.reduce([*said.values()]) if said else None)
        self._taken, self._neighbours, self._weighed = (log.person[event], log.item[event]), {}, {}
        self._folds = fold_of(log.groups)
        refused = {n: v[event] for n, v in said.items()}
        if log.past is not None:
            # What people did before the log comes before their training events.
            person = np.concatenate([log.past.person, self._taken[0]])
            order = np.argsort(person, kind="stable")
            self._taken = person[order], np.concatenate([log.past.item, self._taken[1]])[order]
            unknown = np.zeros(len(log.past.item), dtype=bool)
            refused = {name: np.concatenate([unknown, values])[order] for name, values in refused.items()}
        self._refused = {name.removeprefix(REFUSED): values for name, values in refused.items()}
        self.item_counts = np.bincount(self._taken[1], minlength=len(self.items))
        self.first_event = np.full(len(self.items), np.inf)
        self._meet(log)
        context = {name: values[train] for name, values in log.candidate_features.items()}
        for j, task in enumerate(self.tasks):
            self.label_summary[task.name] = summarise(task, log.labels[train, j], context)
            options = {**HEADS.get(task.head).default_options, **task.options}
            if task.head == "retrieval":
                self.label_summary[task.name]["neighbours"] = worthwhile(len(self.items), ordered=self._ordered)
                if self._ordered:
                    self.label_summary[task.name] |= weighed_sizes(self._taken[0], len(self.items), self.max_history)
                else:
                    self.label_summary[task.name]["of_sets"] = True
                self.label_summary[task.name] |= self._trending_options(log, train, task)
            if options.get("item_age") is not None:
                taken = train & (log.labels[:, j] == 1) & (log.item >= FIRST)
                self.label_summary[task.name]["age_start"] = age_start(
                    self.item_times(options["item_age"]),
                    log.item[taken],
                    milliseconds(log.time[taken]),
                    options["age_buckets"],
                    unseen_now=options["item_age"] == "first_event",
                )

    def _trending_options(self, log: EventLog, train: np.ndarray, task: TaskConfig) -> dict[str, Any]:
        """Options that follow from what recent popularity says of late training rows, unless the task's own decide."""
        if "trending" in task.options or self.columns.time is None:
            return {}
        if self._saved_mixtures is not None:
            mixture = self._saved_mixtures.get(task.name, ())
            return {"trending": mixture, "recent": bool(mixture)}
        options = {**HEADS.get(task.head).default_options, **task.options}
        taken = train & (self._taken_items(log, task.name) >= FIRST)
        events = log.person[taken], log.item[taken], log.time[taken]
        found, aged = fit_trending(*events, len(self.items), not options["repeats"]), options["item_age"] == "release"
        if found is None:
            return {}
        if self.data_report is not None:
            self.data_report.trending[task.name] = found.reason(aged)
        return found.options(options["label_smoothing"] > 0, aged)

    def _meet(self, log: EventLog) -> None:
        self.first_event = np.minimum(self.first_event, first_times(log.item, log.time, len(self.items)))

    def item_times(self, source: str) -> np.ndarray:
        """When items appeared, int64 milliseconds since the epoch [N], `NO_TIME` = not known, or not yet.

        Args:
            source: "release" (`columns.item_time`) or "first_event" (of the log that was split, went on or was told of
                by [`update`]; those of validation and test, too: whoever reads them compares with the time of asking).
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
        """Vectors of items by their co-occurrence in the training rows of the last split, float32 [N, size].

        Raises:
            ValueError: nothing was split yet; the training rows are not saved with a processor.
        """
        if self._taken is None:
            raise ValueError("item vectors are those of a split's training rows: call split() first")
        return cooccurrence_vectors(*self._taken, num_items=len(self.items), size=size)

    @property
    def has_training_rows(self) -> bool:
        """Whether a log was split: training rows are not saved with a processor."""
        return self._taken is not None

    def item_neighbours(self, task: str, size: int) -> list[Neighbours]:
        """What goes with what in the training rows of the last split: of all users, and without those of each fold.

        Args:
            task: events whose label of it is known to be 0 do not count.
            size: neighbours kept of each item.

        Raises:
            ValueError: nothing was split yet; the training rows are not saved with a processor.
        """
        key = task, size, len(self.items)
        if key not in self._neighbours:
            user, item = self._taken_for(task)
            fold = self._folds[user]
            parts = (fold != number for number in range(FOLDS + 1))  # no user is in fold 0
            self._neighbours[key] = [
                neighbours(user[part], item[part], len(self.items), size, self._ordered) for part in parts
            ]
        return self._neighbours[key]

    def weighed_neighbours(self, task: str, kind: str, size: int) -> Neighbours | None:
        """Item-to-item scores of the training rows of the last split, see
        [`~polyrec.data.neighbours.weighed_neighbours`]; arguments and errors as of `item_neighbours`."""
        key = task, kind, size, len(self.items)
        if key not in self._weighed:
            self._weighed[key] = weighed_neighbours(kind, *self._taken_for(task), len(self.items), size)
        return self._weighed[key]

    def _taken_for(self, task: str) -> tuple[np.ndarray, np.ndarray]:
        """Users and items of the training rows that a task does not know to be refused."""
        if self._taken is None:
            raise ValueError("neighbours are those of a split's training rows: call split() first")
        user, item = self._taken
        counts = ~self._refused.get(task, np.zeros(len(item), dtype=bool))
        return user[counts], item[counts]

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
    def _questions(self) -> Questions:
        return Questions(self.tasks, self.max_history, self.ties, self.statistics, derived_names(self.columns))

    def evaluation_set(
        self, log: EventLog, rows: np.ndarray, statistics: np.ndarray | None, source: np.ndarray | None = None
    ) -> SequenceDataset:
        """Questions about some events of a log (bool [R]), each with at least half a window of history.

        Args:
            source: bool [R], events that `statistics` count; None: all.
        """
        return self._questions.evaluation(log, rows, statistics, source, self._trends(log, source))

    def training_set(
        self, log: EventLog, rows: np.ndarray, statistics: np.ndarray | None, **options: Any
    ) -> SequenceDataset:
        """Questions to learn from about some events of a log (bool [R]).

        Args:
            statistics: of the log, [R, F].
            options: `source` (bool [R], events that statistics may count) and, as in [`split`], `shuffle_ties`,
                `max_delay`, `delayed_share`, `keep_negatives`, `untimed_share` and `seed`.
        """
        trending = self._trends(log, options.get("source"))
        return self._questions.training(log, rows, statistics, trending=trending, **options)

    # ---------------------------------------------------------------- model
    @property
    def num_items(self) -> int:
        """Rows of the item table: padding, the unknown item, the catalog."""
        return len(self.items)

    @property
    def features(self) -> list[FeatureConfig]:
        """Every input of the model, described."""
        hidden = set(self.columns.keys_only)
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

        Heads start from the training labels (base rate, mean and spread, classes: `TaskHead.starting_options`), unless
        a task's own options say otherwise.
        """
        tasks = []
        for task in self.tasks:
            summary = self.label_summary.get(task.name)
            options = {} if summary is None else HEADS.get(task.head).starting_options(task, summary)
            tasks.append(TaskConfig(**{**asdict(task), "options": {**options, **task.options}}))
        defaults = {
            "tasks": tasks,
            "features": self.features,
            "num_items": self.num_items,
            "max_history": self.max_history,
            "dropout": DROPOUT,
        }
        if self.text is not None:
            changes = dict(overrides.pop("text", None) or {})
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

    # -------------------------------------------------------------- serving
    def request(
        self,
        history: Any,
        items: np.ndarray,
        *,
        user_id: Any = None,
        user: Mapping[str, Any] | None = None,
        context: Mapping[str, Any] | None = None,
        time: Any = None,
        query: str | None = None,
    ) -> dict[str, Any]:
        """One window for the collator: a person's history and the items asked about, all labels unknown.

        Beside the window's inputs it holds `history_items`, int64: the whole history, of which the window may hold
        the last `max_history` events only.

        Features are those that [`resume`] computes for a row of that user and time after all events known so far:

        * With `user_id` the user's stored events are the history, and `history` holds later events.
        * Without it `history` is all that is known of the user. Of its events those that are not later than the latest
          one counted ([`split`], [`resume`], [`update`]) belong to what was counted: they count for the user alone,
          which is also what becomes of an event that comes late. Later ones count for items and attributes, too.
        * If a history has no times, the time since its events is unknown (NaN), and they count for the user alone.

        Args:
            history: events, oldest first: item ids, dicts or a table; None = nobody known yet.
            items: int64 [C], rows of the catalog's items in the item table, i.e. from 2 on.
            user_id: who asks; an id without stored events is somebody new.
            user: attributes of the user, {column: value}; what is absent is missing, or as stored for the `user_id`.
            context: context of the request, {column: value}.
            time: of the request: seconds, ISO text, a date or a timestamp; default: one second after the latest event
                known.
            query: what the person typed; needs `columns.query`.

        Unknown items and attribute values are cold starts, not errors; an unknown column name is an error.
        """
        log = self.request_log(history, items, user_id=user_id, user=user, context=context, time=time, query=query)
        known = log.item[: len(log) - len(items)]
        known = known if log.past is None else np.concatenate([log.past.item, known])
        return self.request_windows(log, len(items))[0] | {"history_items": known}

    def request_log(
        self,
        history: Any,
        items: np.ndarray,
        *,
        user_id: Any = None,
        user: Mapping[str, Any] | None = None,
        context: Mapping[str, Any] | None = None,
        time: Any = None,
        query: str | None = None,
    ) -> EventLog:
        """The events of a [`request`] and then the items asked about, encoded; its running statistics come later."""
        encoders = self.event_encoders
        feedback = {*encoders["event"], *_label_columns(self.tasks)}
        told = self.request_reader
        if time is not None and self.columns.time is None:
            raise ValueError(
                "time is given, but the log that was learnt has no times (columns.time: null): leave it out"
            )
        user = told.attributes(user, "user", self.users.encoders)
        context = told.attributes(context, "context", told.context)
        history, time, user_id = told.history(history), told.time(time), told.user_id(user_id)
        told.check_alike(history, context)
        asked_about = {n: context.get(n) for n in told.context}
        items = np.asarray(items)
        unknown = first_bad_row((items < FIRST) | (items >= self.num_items))
        if unknown is not None:
            raise ValueError(
                f"items[{unknown}] is {items[unknown]}: give rows of the item table, {FIRST}..{self.num_items - 1}"
            )
        asked_ids = self.items.ids.take(pa.array(items - FIRST))
        query = None if query is None else read_scalar("query", query)
        if query is not None and self.columns.query is None:
            raise ValueError("this processor reads no queries: fit it with columns.query and a text encoder")
        stored = self._events_of(user_id, time)
        after = stored.time.max(initial=-np.inf) if stored is not None else -np.inf
        table, seconds, timed = request_table(
            history, asked_ids, self.columns, feedback, asked_about, time, self._latest, query, after
        )
        log = self._encode(table)
        log.time = seconds  # a unit and back may round
        log.event_features[TIME_GAP] = time_gap(log)
        if not timed:
            derived = {name: encoders["candidate"][name] for name in derived_names(self.columns)}
            without_times(log, len(log) - len(items), derived)
        row = None if user_id is None else self.users.rows(pa.array([user_id]))
        for name, encoder in self.users.encoders.items():
            if encoder.kind == "text":
                continue
            if row is not None and name not in user:
                log.user_features[name] = self.users.encoded[name][row]
            else:
                values = as_array([user.get(name)], f"user attribute {name!r}")
                log.user_features[name] = encoder.encode(values, f"user attribute {name!r}")
        return log if stored is None else continued(stored, log)

    def _events_of(self, user_id: Any, time: float | None) -> EventLog | None:
        """Stored events of a user, None if there are none; refuses what could not be answered as of its time."""
        if time is not None and time <= self._counted:
            what = f"time {shown_time(time)} is not after {shown_time(self._counted)}, the latest event counted"
            if user_id is not None:
                raise ValueError(
                    f"{what}, and statistics know only now: ask for a later time, or `resume` the log up to then"
                )
            warnings.warn(f"{what}: running statistics are those of now", stacklevel=4)
        if user_id is None:
            return None
        if self.columns.history is not None:
            raise ValueError(
                "user_id is given, but rows bring their own lists (columns.history), and no user events are stored: "
                "give the list as the history, without user_id"
            )
        if self.stored_events is None:
            raise ValueError(
                "user_id is given, but this processor has no stored events (they never leave with a shared model): "
                "`resume` the log first, or give the user's whole history without user_id"
            )
        if self.stored_events.is_empty:
            return None
        return self.stored_events.of(normalise_ids(pa.array([user_id]), "user_id"))

    @property
    def request_reader(self) -> RequestReader:
        """What reads and checks requests."""
        derived, candidate = derived_names(self.columns), self.event_encoders["candidate"]
        return RequestReader(
            self.columns,
            self.tasks,
            feedback=self.event_encoders["event"],
            context={name: encoder for name, encoder in candidate.items() if name not in derived},
            user=self.users.encoders,
            measured=() if self.statistics is None else self.statistics.measures,
            log_columns=self.log_columns,
            labels=self.label_summary,
        )

    def request_windows(self, log: EventLog, asked: int, keep_VL: np.ndarray | None = None) -> list[dict[str, Any]]:
        """Windows for the collator: a request as it is, or as it would be if some of its events had not happened.

        What did not happen is in no history and in no running statistic of the user (and of others, if it was not
        counted before the request); all else happened when it did, and the question is asked at the same time.

        Args:
            log: of a request, see [`request_log`].
            asked: its last rows, which are the items asked about.
            keep_VL: bool [V, L], which of the L events happened in each variant. None: one variant, all of them.

        Returns:
            one window per variant.
        """
        events = len(log) - asked
        if keep_VL is not None:
            log = variants(log, np.pad(keep_VL, ((0, 0), (0, asked)), constant_values=True))
        counted = None if self.statistics is None else self.statistics.request(log, self.stored_events)
        happened_V = np.array([events]) if keep_VL is None else keep_VL.sum(axis=1)
        candidates = Candidates(
            (log.offsets[:-1, None] + happened_V[:, None] + np.arange(asked)).ravel(), np.repeat(happened_V, asked)
        )
        # One question, one window: a stride of 1 lets it reach back as far as `max_history` goes.
        names = [t.name for t in self.tasks]
        windows = SequenceDataset(log, candidates, names, counted, self.max_history, stride=1)
        return [windows[v] | self._trending_now(log, v, int(n), asked) for v, n in enumerate(happened_V)]

    def _trending_now(self, log: EventLog, variant: int, happened: int, asked: int) -> dict[str, Any]:
        """What is popular when a variant of a request is asked, with its own events since the latest one counted."""
        if not self.recent:
            return {}
        own = np.arange(log.offsets[variant], log.offsets[variant] + happened)
        later = (log.time[own] > self._counted) & (log.time[own] < log.time[log.offsets[variant] + happened])
        own = own[later if log.untimed is None else later & ~log.untimed[own]]
        items = {task: self._taken_items(log, task)[own] for task in self.recent}
        return request_trending(self.recent, log.time[own], items, asked)

    @property
    def _counted(self) -> float:
        """The latest event counted or stored, seconds; -inf = none."""
        stored = -np.inf if self.stored_events is None else self.stored_events.last_time
        stored = max([stored, *(recent.time for recent in self.recent.values())])
        return stored if self.statistics is None else max(stored, self.statistics.last_time)

    @property
    def _latest(self) -> float:
        """The latest event counted, or, where nothing is, the latest first event of an item; seconds, 0 = none."""
        known = self.first_event[np.isfinite(self.first_event)]
        return self._counted if np.isfinite(self._counted) else float(known.max(initial=0.0))

    def describe(self, row: int) -> dict[str, Any]:
        """Id and title of a row of the item table."""
        found = {"item": self.items.ids[row - 2].as_py()}
        if self.columns.title in self.items.table.column_names:
            found["title"] = self.items.table[self.columns.title][row - 2].as_py()
        return found

    # ------------------------------------------------------- what came later
    def extend(self, items: Any = None, users: Any = None) -> None:
        """Add items to the catalog, or people whose attributes are known; what is learnt and counted stays as it is.

        Attributes are encoded with the vocabularies and scales learnt in [`fit`], as inputs and as keys of the running
        statistics; a value that none of them knows is an unknown one. Then give the processor to `model.extend(...)`.

        Args:
            items, users: tables of new rows, with the columns the first ones had. Vectors come as a column of lists,
                also those of an attribute that was declared as a file.

        Raises:
            ValueError: an id is known already, a column is missing or of another type; nothing of that table is
                added then.
        """
        if items is not None:
            shown = (self.columns.item_time, self.columns.title)
            needed = [name for name in shown if name is not None and name in self.items.table.column_names]
            if self.text is not None:
                needed += check_template(self.text.template, self.items.table.column_names)
            self.items.extend(read_table(items, "items"), "items", self.columns.item, needed)
            new = len(self.items) - len(self.item_counts)
            self.item_counts = np.concatenate([self.item_counts, np.zeros(new, dtype=np.int64)])
            self.first_event = np.concatenate([self.first_event, np.full(new, np.inf)])
            for recent in self.recent.values():
                recent.extend(len(self.items))
        if users is not None:
            self.users.extend(read_table(users, "users"), "users", self.columns.user)

    def update(self, interactions: Any) -> None:
        """Advance running statistics, recent popularity and stored events by new ones, later than all known so far.

        Events of one time belong in one call. Late ones are refused: give them to [`resume`] with all others, or as the
        history of a request. Items that occur for the first time have been seen then (`model.load_times` tells a model
        that reads their ages); [`extend`] the catalog first, or events of new items stay those of the unknown item.
        What was learnt (`item_counts`, scales, label summaries) stays as it is.

        Raises:
            ValueError: an event is not later than all known so far, or the log has no times; nothing is counted then.
        """
        refuse_continuation(self.columns)
        log = self.encode_events(interactions)
        own = np.arange(len(log)) if log.untimed is None else np.flatnonzero(~log.untimed)
        check_later(log.time[own[np.argsort(log.row[own])]], self._counted)
        before = None if self.stored_events is None or self.stored_events.is_empty else self.stored_events
        if self.statistics is not None:
            whole = log if before is None else continued(before.of(log.user_ids), log)
            held = whole.time <= self._counted
            self.statistics.update(whole, held if whole.untimed is None else held | whole.untimed, before)
        self._meet(log)
        self._count_recent(log)
        if self.stored_events is not None:
            self.stored_events.add(log)

    # -------------------------------------------------------------- on disk
    def __repr__(self) -> str:
        tasks = [task.name for task in self.tasks]
        return f"{type(self).__name__}(tasks={tasks}, {len(self.items.ids):,} items, max_history={self.max_history})"

    def save_pretrained(self, folder: str | Path, include_users: bool = False, **unused: Any) -> None:
        """Write processor_config.json, items.parquet, statistics/, item_vectors/ and two files that never leave:
        training_rows.safetensors, see [`TrainingRows`], and stored_events.parquet.

        Those two are all that is about users, who are in them as salted hashes. stored_events.parquet holds what each
        of them did, so that requests may give a `user_id`; set `stored_events` to None to leave it out. The
        folder's manifest.json gets the digests of all files, which [`from_pretrained`] checks.

        Args:
            include_users: write the attributes of people, too (users.parquet), row by row.
        """
        self._write(Path(folder), include_users)
        record_saved(folder, PROCESSOR_RECORDED)

    def _write(self, folder: Path, include_users: bool) -> None:
        processor_files.save(
            folder,
            columns=self.columns,
            tasks=self.tasks,
            items=self.items,
            users=self.users,
            event_encoders=self.event_encoders,
            item_counts=self.item_counts,
            first_event=self.first_event,
            statistics=self.statistics,
            text=self.text,
            tokenizer=self.tokenizer,
            max_history=self.max_history,
            ties=self.ties,
            label_summary=self.label_summary,
            log_columns=self.log_columns,
            training_rows=None if self.training_rows is None else self.training_rows.arrays(),
            data_report=None if self.data_report is None else self.data_report.to_dict(),
            stored_events=self.stored_events,
            recent=self.recent,
            include_users=include_users,
        )

    def push_to_hub(self, repo_id: str, *, include_users: bool = False, **options: Any) -> CommitInfo:
        """Share the processor in one commit; `model.push_to_hub(repo_id, processor=processor)` shares both in one.

        Args:
            repo_id: user/name.
            include_users: share the attributes of people, too; warns with their columns.
            options: see [`~polyrec.hub.push.push_folder`].
        """
        return push(repo_id, self, include_users=include_users, **options)

    @classmethod
    def from_pretrained(cls, folder: str | Path, **hub_options: Any) -> Self:
        """Load what [`save_pretrained`] wrote, from a folder or a Hub repository.

        Args:
            hub_options: `revision`, `token`, `cache_dir`, `force_download`, `local_files_only`.

        Raises:
            ValueError: a file is missing, truncated, newer than this version or not one that polyrec writes, with its
                name and the fix.
            OSError: the Hub refused, with what mends it.
        """
        for name in ("_from_auto", "trust_remote_code"):  # of AutoProcessor; code of a repository is never run
            hub_options.pop(name, None)
        place = fetch(folder, PROCESSOR_FILES, **hub_options)
        check_processor(place)
        try:
            return cls._read(place)
        except (LookupError, TypeError, AttributeError, AssertionError, RecursionError, SafetensorError) as error:
            raise ValueError(
                f"{place}: the processor's files do not fit each other ({type(error).__name__}: {error}): they are "
                "damaged or of different runs; restore the folder from a copy"
            ) from error

    @classmethod
    def _read(cls, folder: Path) -> Self:
        found = processor_files.load(folder)
        item_counts, label_summary = found.pop("item_counts"), found.pop("label_summary")
        learnt = found.pop("training_rows")
        log_columns = found.pop("log_columns")
        first_event, report = found.pop("first_event"), found.pop("data_report")
        stored, recent = found.pop("stored_events"), found.pop("recent")
        processor = cls(**found)
        processor.item_counts, processor.label_summary = item_counts, label_summary
        processor.training_rows = None if learnt is None else TrainingRows.from_arrays(learnt)
        processor.first_event, processor.log_columns = first_event, log_columns
        processor.data_report = None if report is None else DataReport.from_dict(report)
        processor.stored_events, processor.recent = stored, recent
        processor._saved_mixtures = processor.mixtures
        return processor


def _label_columns(tasks: list[TaskConfig]) -> tuple[str, ...]:
    """Columns of the labels: what a past event is known to have brought."""
    found = [t.parsed_label.column for t in tasks if t.parsed_label is not None]
    return tuple(dict.fromkeys(found))
