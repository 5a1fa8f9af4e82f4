"""Memory grows with a user's history and not with its square, wherever histories are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from memory_fixtures import FEW, GROWTH, MANY, peak_of
from model_fixtures import tiny_config

from polyrec import PolyRecCollator, PolyRecForRecommendation, PolyRecProcessor, Recommender
from polyrec.data.event_log import Candidates, EventLog
from polyrec.data.sequences import SequenceDataset
from polyrec.data.stored_events import StoredEvents
from polyrec.data.window_loader import window_loader
from polyrec.evaluation.evaluator import predict
from polyrec.inference.explanation.events import leave_one_out
from polyrec.inference.explanation.explained import ExplainedRequest
from polyrec.modules.encoders.history import CandidateAttention, HistoryEncoder
from polyrec.modules.encoders.item import ItemRows
from polyrec.modules.encoders.request_context import RequestContext
from polyrec.modules.encoders.visible_events import VisibleEvents
from polyrec.modules.heads.terms import _blocks
from polyrec.modules.heads.terms.base import ItemTerms

ITEMS = 300
# What a processor would else choose by the size of a log.
CHOSEN = {"neighbours": 0, "linear": 0, "transitions": 0, "trending": ()}
OPTIONS = CHOSEN | {"repeats": True, "neighbours": 8, "trending": [[3600.0, 9.0]]}
REPEATS = [{"name": "next_item", "head": "retrieval", "options": OPTIONS}]
PAIRS = [{"name": "like", "head": "binary", "label": "rating >= 4"}]


def log_of(events: int, others: int = 8) -> dict[str, Any]:
    """A user with so many events, and a few with some."""
    random = np.random.default_rng(0)
    user = np.concatenate([np.zeros(events, dtype=np.int64), np.repeat(np.arange(1, others + 1), 20)])
    time = np.concatenate([np.arange(events), *[np.sort(random.integers(0, events, 20)) for _ in range(others)]])
    item, rating = random.integers(0, ITEMS, len(user)), random.integers(1, 6, len(user)).astype(float)
    return {"user_id": user, "item_id": item, "timestamp": time, "rating": rating}


class World:
    """A log with one long history, and a model of it."""

    def __init__(self, events: int, tasks: list[dict[str, Any]]) -> None:
        self.log = log_of(events)
        self.processor = PolyRecProcessor.fit(self.log, tasks=tasks, verbose=False, max_history=20)
        self.splits = self.processor.split(self.log)
        torch.manual_seed(0)
        self.model = PolyRecForRecommendation(tiny_config(self.processor)).eval()
        self.model.load_neighbours(self.processor)
        self.history = {name: values[:events] for name, values in self.log.items() if name != "user_id"}


@pytest.fixture(scope="module")
def worlds() -> tuple[World, World]:
    """Histories of FEW and of MANY events."""
    return World(FEW, [*REPEATS, *PAIRS]), World(MANY, [*REPEATS, *PAIRS])


def check_growth(few: Callable[[], Any], many: Callable[[], Any]) -> None:
    """Memory grows no faster than the history."""
    few()  # imports and caches
    less, more = peak_of(few), peak_of(many)
    assert more <= GROWTH * less, f"{less:,} bytes become {more:,}"


def test_fit_and_split() -> None:
    """Prevents counts of the pairs of a user's events, and statistics that hold a history for each of its events."""

    def prepared(events: int) -> Callable[[], Any]:
        log = log_of(events)
        return lambda: PolyRecProcessor.fit(log, tasks=[*REPEATS, *PAIRS], verbose=False, max_history=50).split(log)

    check_growth(prepared(FEW), prepared(MANY))


def test_training_batches(worlds: tuple[World, World]) -> None:
    """Prevents an epoch whose windows hold more than their own events."""

    def epoch(world: World) -> Callable[[], Any]:
        train, collate = world.splits.train, PolyRecCollator()

        def read() -> None:
            for first in range(0, len(train), 32):
                collate(train.__getitems__([*range(first, min(first + 32, len(train)))]))

        return read

    check_growth(*map(epoch, worlds))


@pytest.mark.parametrize("updates", [True, False], ids=["prequential", "without_updates"])
def test_evaluation(worlds: tuple[World, World], updates: bool) -> None:
    """Prevents batches padded to a user with thousands of candidates, who all see as much without updates."""

    def evaluation(world: World) -> Callable[[], Any]:
        test = world.splits.test
        if not updates:
            test = world.processor.without_updates(test, float(test.log.time[test.candidates.event].min()))
        return lambda: predict(world.model, test, batch_size=16)

    check_growth(*map(evaluation, worlds))


def one_time(events: int) -> SequenceDataset:
    """A user whose events all have one time, so that each sees none, and some with a few."""
    user = np.concatenate([np.zeros(events, dtype=np.int64), np.repeat(np.arange(1, 9), 20)])
    log = EventLog(
        user,
        np.full(len(user), 5),
        np.zeros(len(user)),
        np.arange(len(user)),
        np.arange(len(user)),
        user_ids=None,
        labels=np.ones((len(user), 1), dtype=np.float32),
    )
    candidates = Candidates(np.arange(len(user)), log.visible("strict"))
    return SequenceDataset(log, candidates, ["like"], max_history=50)


def test_a_library_with_one_timestamp() -> None:
    """Prevents a training batch that is as wide as the largest number of events of one time, for every user in it."""
    widths = [PolyRecCollator()(one_time(n).__getitems__([0, 1]))["candidate_ids"].shape for n in (FEW, MANY)]
    assert widths == [(2, 1024), (2, 1024)]
    dataset = one_time(FEW)
    rows = torch.cat([batch["candidate_rows"].flatten() for batch in window_loader(dataset, np.arange(13), 64)])
    assert sorted(rows[rows >= 0].tolist()) == [*range(FEW + 160)]  # each candidate once
    check_growth(*(lambda n=n: [*window_loader(one_time(n), np.arange(5), 64)] for n in (FEW, MANY)))


# Windows of so many events themselves are read in blocks, which are made small here so that quick sizes show it.
SHORT, LONG = 100, 1_000


@pytest.fixture(scope="module")
def small() -> World:
    """A log whose configuration is read, and nothing else."""
    return World(400, PAIRS)


@pytest.mark.parametrize("training", [True, False])
def test_candidates_attend_to_long_windows(monkeypatch: pytest.MonkeyPatch, small: World, training: bool) -> None:
    """Prevents a mask of all candidates by all events, which the gradient would keep."""
    monkeypatch.setattr("polyrec.modules.encoders.history._MASKS", 1 << 14)
    attention = CandidateAttention(tiny_config(small.processor)).train(training)

    def attend(length: int) -> tuple[torch.Tensor, ...]:
        torch.manual_seed(1)
        candidates, inputs = torch.randn(1, length, 8, requires_grad=True), torch.randn(1, length + 1, 8)
        residuals = torch.randn(1, length, attention.targets)
        found = attention(candidates, inputs, torch.arange(length).unsqueeze(0), residuals)
        if training:
            (found[0].sum() + found[1].square().sum()).backward()
        return *found, candidates.grad if training else found[0]

    check_growth(lambda: attend(SHORT), lambda: attend(LONG))
    monkeypatch.setattr("polyrec.modules.encoders.history._MASKS", 1 << 9)
    blocked = attend(50)
    monkeypatch.setattr("polyrec.modules.encoders.history._MASKS", 1 << 30)
    for one, other in zip(blocked, attend(50), strict=True):
        torch.testing.assert_close(one, other)


def test_a_backbone_reads_long_windows(small: World) -> None:
    """Prevents attention weights, or a mask, of all events by all events."""
    encoder = HistoryEncoder(tiny_config(small.processor))

    def read(length: int) -> None:
        encoder.read(torch.randn(1, length, 8, requires_grad=True)).sum().backward()

    check_growth(lambda: read(SHORT), lambda: read(LONG))


@pytest.mark.parametrize("options", [{"repeats": True}, {"of_sets": True, "neighbours": 4}], ids=["repeats", "sets"])
@pytest.mark.parametrize("sampled_above", [10_000, 10], ids=["full", "sampled"])
def test_terms_read_long_windows(monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], sampled_above: int) -> None:
    """Prevents the visible events of each request, written out for all requests or kept for the gradient."""
    monkeypatch.setattr(_blocks, "EVENTS", 1 << 14)
    monkeypatch.setattr("polyrec.core.linear_loss._CHUNK", 1 << 16)
    tasks = [{"name": "t", "head": "retrieval", "options": CHOSEN | options | {"sampled_above": sampled_above}}]
    processor = PolyRecProcessor.fit(log_of(400), tasks=tasks, verbose=False)
    processor.split(log_of(400))
    torch.manual_seed(0)
    model = PolyRecForRecommendation(tiny_config(processor))
    model.load_neighbours(processor)
    head, items = model.heads["t"].train(), ItemRows(torch.randn(processor.num_items, 8))
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.1)

    def requests(length: int) -> tuple[torch.Tensor, RequestContext, torch.Tensor]:
        random = torch.Generator().manual_seed(length)
        history = torch.randint(2, processor.num_items, (1, length + 1), generator=random)
        seen = VisibleEvents.of_batch(history[:, :-1], torch.arange(length).unsqueeze(0)).flatten()
        return torch.randn(length, 8, generator=random), RequestContext(history=seen), history[0, 1:]

    def losses(length: int) -> list[torch.Tensor]:
        states, context, targets = requests(length)
        head.zero_grad()
        negatives = torch.arange(2, 40) if head.sampled else None
        counts = torch.ones(processor.num_items)
        total, _ = head.retrieval_loss(states.requires_grad_(), targets, items, counts, negatives, context=context)
        total.backward()
        scores = head.terms.of_pairs(states.detach(), context, targets.unsqueeze(1))
        return [total, scores, states.grad, *(p.grad for p in head.parameters() if p.grad is not None)]

    check_growth(lambda: losses(SHORT), lambda: losses(LONG))
    monkeypatch.setattr(_blocks, "EVENTS", 1 << 10)
    blocked = losses(90)
    monkeypatch.setattr(_blocks, "EVENTS", 1 << 30)
    for one, other in zip(blocked, losses(90), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_entries_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents an index of the catalog that finds other repeats in long histories."""
    tasks = [{"name": "t", "head": "retrieval", "options": CHOSEN | {"repeats": True}}]
    model = PolyRecForRecommendation(tiny_config(PolyRecProcessor.fit(log_of(400), tasks=tasks, verbose=False))).eval()
    terms = ItemTerms([model.heads["t"].every_term["repeats"]])
    torch.nn.init.normal_(terms.terms[0].prior.weight)
    context = RequestContext(history=VisibleEvents.of_requests(torch.randint(2, 40, (9, 12))))
    whole = terms.entries(torch.zeros(9, 8), context, torch.arange(ITEMS))
    monkeypatch.setattr(_blocks, "EVENTS", 30)
    for one, other in zip(whole, terms.entries(torch.zeros(9, 8), context, torch.arange(ITEMS)), strict=True):
        assert torch.equal(one, other)


def test_graphs_of_repeats() -> None:
    """Prevents an exported graph that compares each event with all others."""
    tasks = [{"name": "t", "head": "retrieval", "options": CHOSEN | {"repeats": True}}]
    model = PolyRecForRecommendation(tiny_config(PolyRecProcessor.fit(log_of(400), tasks=tasks, verbose=False)))
    term = model.heads["t"].every_term["repeats"]

    def catalog(length: int) -> None:
        context = RequestContext(history=VisibleEvents.of_requests(torch.randint(2, ITEMS, (2, length))))
        term.of_catalog(torch.randn(2, term.size), context, ITEMS)

    check_growth(lambda: catalog(SHORT), lambda: catalog(LONG))


def test_requests(worlds: tuple[World, World]) -> None:
    """Prevents a request whose statistics or windows cost more than its history."""

    def request(world: World) -> Callable[[], Any]:
        recommender = Recommender(world.model, world.processor)
        return lambda: recommender.recommend(world.history, k=5)

    check_growth(*map(request, worlds))


def test_explanations(worlds: tuple[World, World]) -> None:
    """Prevents a whole history for each event that is left out, all at once."""

    def explain(world: World) -> Callable[[], Any]:
        return lambda: leave_one_out(ExplainedRequest(world.model, world.processor, world.history, [3], "like"))

    check_growth(*map(explain, worlds))


def test_what_serving_keeps(worlds: tuple[World, World]) -> None:
    """Prevents a server that keeps or reads more of a user than their events."""

    def stored(world: World) -> Callable[[], Any]:
        def counted() -> None:
            kept = StoredEvents()
            log = world.processor.encode_events(world.log)
            kept.add(log)
            kept.of(log.user_ids[:1])

        return counted

    check_growth(*map(stored, worlds))
