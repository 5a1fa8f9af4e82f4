"""The state of a served model: what follows of the records of a store, one after the other.

Nothing but the sequence of records decides it, when events are counted together included: marks are records, too. So a
server that was killed stands, once it has read its records again, where it would have stood.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from polyrec.models.polyrec.attribute_change import prepared_change
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor
from polyrec.serving.events import Event, EventFormat
from polyrec.serving.records import Kind, Record

_log = logging.getLogger("polyrec.serving")
_MOST = 100_000  # events of a replay that are counted together; statistics keep intermediate results of so many
_PAGE = 20_000  # events of a replay that are read together
Change = Callable[[], None]


def at_once(change: Change) -> None:
    """Make a change where nobody reads."""
    change()


def _item_of(event: Event) -> str:
    return str(event.columns.get("item_id"))


@dataclass
class Figures:
    """What became of events."""

    counted: int = 0
    late: int = 0
    skipped: int = 0
    known: int = 0


@dataclass
class ServedState:
    """Folds records into a processor.

    Args:
        model, processor: of the run; both change. None of them is read by others while `between` runs a change.
        covered: events up to this sequence number and `base_time` are part of the log that the run was trained on.
        base_time: seconds, the latest event that the run itself has counted.
        left_out: events up to `covered` that are no part of that log all the same: they came too late for it.
        between: runs a change while nobody reads.
    """

    model: PolyRecForRecommendation
    processor: PolyRecProcessor
    covered: int = 0
    base_time: float = float("-inf")
    between: Callable[[Change], None] = at_once
    seq: int = 0  # of the latest record that was folded
    left_out: frozenset[int] = frozenset()
    attributes: dict[str, dict[str, Any]] = field(default_factory=dict)
    hidden: dict[str, Any] = field(default_factory=dict)  # {item as text: id}
    waiting: list[Event] = field(default_factory=list)  # events that no mark has counted
    figures: Figures = field(default_factory=Figures)
    counted: Callable[[Sequence[Event]], None] = lambda events: None  # called with events that are in the state now

    def __post_init__(self) -> None:
        self.format = EventFormat(self.processor)
        # Whose events, and which, a replay has removed from the run's own log: what came again later is there no more.
        self._forgotten: set[str] = set()
        self._retracted: set[tuple[str, str]] = set()
        options = (head.options for head in self.model.heads.values())
        self._reads_first_events = any(own.get("item_age") == "first_event" for own in options)
        if self._reads_first_events:
            self.model.load_times(self.processor)

    # ------------------------------------------------------------------ fold
    def fold(self, record: Record) -> None:
        """Take in one record, in order."""
        if record.kind is Kind.EVENT:
            self._wait([record])
        elif record.kind is Kind.MARK:
            late, timely = self._due(record, self.processor.log_state.counted)
            self._count(late)
            self._count(timely)
        else:
            self.control(record, changes=True)
        self.seq = max(self.seq, record.seq)

    def replay(self, records: Iterable[Record]) -> None:
        """Take in many records; what gives the same state together is counted together."""
        gathered: list[Event] = []

        def flush() -> None:
            self._count(gathered)
            gathered.clear()

        latest = self.processor.log_state.counted
        page: list[Record] = []
        for record in records:
            if record.kind is Kind.EVENT:
                page.append(record)
                if len(page) < _PAGE:
                    continue
            self._wait(page)
            page.clear()
            if record.kind is Kind.MARK:
                late, timely = self._due(record, latest)
                if late:
                    flush()
                    self._count(late)
                gathered += timely
                latest = max([latest, *(event.time for event in timely)])
                if len(gathered) >= _MOST:
                    flush()
            elif record.kind is not Kind.EVENT:
                flush()
                self.control(record, changes=True)
            self.seq = max(self.seq, record.seq)
        self._wait(page)
        flush()

    def _wait(self, records: Sequence[Record]) -> None:
        known: list[Event] = []
        for event in self.format.read_all(records):
            (known if self._is_known(event) else self.waiting).append(event)
        if records:
            self.seq = max(self.seq, records[-1].seq)
        if known:
            self.figures.known += len(known)
            self.counted(known)

    def _is_known(self, event: Event) -> bool:
        """Whether an event is in the run's own log, and no deletion before it took it out of there."""
        if event.seq > self.covered or event.time > self.base_time or event.seq in self.left_out:
            return False
        return event.user not in self._forgotten and (event.user, _item_of(event)) not in self._retracted

    def _due(self, mark: Record, latest: float) -> tuple[list[Event], list[Event]]:
        """Events that a mark counts: those that come late, which are not later than `latest`, and the others."""
        upto, time = json.loads(mark.body)["upto"], mark.time
        assert time is not None
        late: list[Event] = []
        timely: list[Event] = []
        kept: list[Event] = []
        for event in self.waiting:
            if event.seq > upto or event.time > time:
                kept.append(event)
            elif event.time <= latest:
                late.append(event)
            else:
                timely.append(event)
        self.waiting = kept
        return late, timely

    def _count(self, events: Sequence[Event]) -> None:
        """Count events, all of them late or none; what cannot be read is left out, with its number in the log."""
        if not events:
            return
        state = self.processor.log_state
        late = events[0].time <= state.counted
        try:
            log = self.format.encode(events, self.attributes)
            change = state.prepared_late(log) if late else state.prepared(log)
        except Exception as error:
            if len(events) > 1:
                middle = len(events) // 2
                ordered = sorted(events, key=lambda event: event.time)
                for half in (ordered[:middle], ordered[middle:]):
                    # Those of one time that fell into two halves come too late in the second one.
                    now = self.processor.log_state.counted
                    self._count([event for event in half if event.time <= now])
                    self._count([event for event in half if event.time > now])
                return
            _log.error("record %d cannot be counted (%s) and is left out", events[0].seq, type(error).__name__)
            self.figures.skipped += 1
            self.between(lambda: self.counted(events))
            return

        def apply() -> None:
            change()
            if self._reads_first_events:
                self.model.load_times(self.processor)
            self.counted(events)

        self.between(apply)
        if late:
            self.figures.late += len(events)
        else:
            self.figures.counted += len(events)

    def control(self, record: Record, changes: bool) -> None:
        """Take in a record that is no event.

        Args:
            changes: False: the processor knows it already, of a snapshot.
        """
        if record.kind is Kind.USER:
            assert record.user is not None
            known = self.attributes.get(record.user, {})
            self.attributes = self.attributes | {record.user: known | json.loads(record.body)}
        elif record.kind is Kind.ITEM:
            self._item(json.loads(record.body), changes)
        elif record.kind is Kind.FORGET:
            assert record.user is not None
            user = record.user
            self.waiting = [event for event in self.waiting if event.user != user]
            self.attributes = {name: own for name, own in self.attributes.items() if name != user}
            if changes:
                if record.seq < self.covered:
                    self._forgotten.add(user)
                self.between(lambda: self.processor.forget([user]))
        elif record.kind is Kind.RETRACT:
            assert record.user is not None
            self._retract(record.user, json.loads(record.body)["item_id"], record.seq, changes)

    def _retract(self, user: str, item: Any, seq: int, changes: bool) -> None:
        """Events of a user with an item are no part of their history any more."""
        self.waiting = [e for e in self.waiting if e.user != user or _item_of(e) != str(item)]
        row = self.format.item_row(item)
        if changes and row is not None:
            if seq < self.covered:
                self._retracted.add((user, str(item)))
            self.between(lambda: self.processor.forget_events(user, row))

    def _item(self, item: Mapping[str, Any], changes: bool) -> None:
        name = str(item["item_id"])
        hidden = item.get("hidden")
        if hidden:
            self.hidden = self.hidden | {name: item["item_id"]}
        elif hidden is not None:
            self.hidden = {other: known for other, known in self.hidden.items() if other != name}
        if not changes or "attributes" not in item:
            return
        try:
            self.between(self._prepared_item(item))
        except Exception as error:
            _log.error("record of an item cannot be read (%s) and is left out", type(error).__name__)
            self.figures.skipped += 1

    def _prepared_item(self, item: Mapping[str, Any]) -> Change:
        """What a new item, or other attributes of a known one, change."""
        row = self.format.item_row(item["item_id"])
        if row is not None:
            values = self.format.attributes(item)
            return prepared_change(self.model, self.processor, np.array([row]), values)
        self.model.refuse_int8("new items")  # before the processor has them
        table = self.format.items_table([item])

        def extend() -> None:
            self.processor.extend(items=table)
            self.model.extend(self.processor)

        return extend
