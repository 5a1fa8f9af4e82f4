"""polyrec in the search benchmark: one model of the event log, with all tasks or with the search alone."""

from __future__ import annotations

import copy
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import fitting
import numpy as np
import pandas as pd
import torch
from search_data import TEST_FROM, VALID_FROM, Lists, TravelSearch
from search_peers import SEARCH_KS, Scorer, measure
from transformers import TrainerCallback
from transformers.utils import logging as transformers_logging

from polyrec import PolyRecForRecommendation, PolyRecProcessor, PolyRecTrainer, Splits
from polyrec.data.release import milliseconds
from polyrec.modules.encoders.item import FIRST_ITEM
from polyrec.modules.encoders.request_context import RequestContext

SEARCH, NEXT_ITEM = "search", "next_item"  # tasks of the protocol's file


def load(
    data: TravelSearch, model: str, config: Mapping[str, Any], tasks: Sequence[str], threads: int
) -> tuple[PolyRecProcessor, Splits]:
    """Fit the processor and cut the log; a model of the search alone reads searches, and which questions were asked.

    Args:
        model: the text encoder.
        tasks: names of those to learn.
    """
    torch.set_num_threads(threads)
    transformers_logging.set_verbosity_error()
    log = data.log()
    if list(tasks) == [SEARCH]:
        log = log[log.event.isin(["link", "ask"])]
    processor = PolyRecProcessor.fit(
        log,
        items=pd.DataFrame({"item": np.arange(len(data)), "title": data.titles, "asked": data.asked}),
        tasks=[task for task in config["tasks"] if task["name"] in tasks],
        columns=config["columns"],
        text={"model": model, **config["text"]},
        **config["processor"],
    )
    return processor, processor.split(log, cuts=(VALID_FROM, TEST_FROM), **config["split"])


class Answers:
    """How a model answers the lists of the benchmark.

    Args:
        processor, splits: the log that the model learns from.
    """

    def __init__(self, model: PolyRecForRecommendation, processor: PolyRecProcessor, splits: Splits) -> None:
        self.model, self.processor, self.splits = model, processor, splits
        self.tokens = processor.item_tokens()
        self.expand: tuple[int, float] | None = None

    @torch.no_grad()
    def search(self, lists: Lists) -> Callable[[np.ndarray], np.ndarray]:
        """A query is a title: its tokens are those of the item."""
        model, head, items = self.model, self.model.heads[SEARCH], self._items()
        assert model.item_encoder.text is not None

        @torch.no_grad()
        def score(rows: np.ndarray) -> np.ndarray:
            tokens, mask = (torch.from_numpy(x) for x in self.tokens.padded(lists.query[rows] + FIRST_ITEM))
            queries = model.query_encoder(model.item_encoder.text, tokens, mask, torch.arange(len(rows)).unsqueeze(0))
            query_MD = queries.vectors_BCD.squeeze(0)
            query_state_MD, moment = head.query_state(torch.zeros_like(query_MD), query_MD), _moment(lists, rows)
            if self.expand is not None:
                query_state_MD = head.expanded(query_state_MD, items, *self.expand, moment)
            return head(query_state_MD, items, moment)[:, FIRST_ITEM:].numpy()

        return score

    @torch.no_grad()
    def next_item(self, lists: Lists) -> Callable[[np.ndarray], np.ndarray]:
        """The person's state just before the event."""
        head, items, states = self.model.heads[NEXT_ITEM], self._items(), self._states(lists)

        @torch.no_grad()
        def score(rows: np.ndarray) -> np.ndarray:
            return head(states[torch.from_numpy(rows)], items, _moment(lists, rows))[:, FIRST_ITEM:].numpy()

        return score

    def _items(self) -> Any:
        self.model.eval()
        return self.model.item_encoder.rows(torch.arange(self.model.config.num_items))

    def _states(self, lists: Lists) -> torch.Tensor:
        """[Q, D], by the events of the log that the lists were made of."""
        dataset = next(
            d for d in (self.splits.valid, self.splits.test) if d.log.time[d.candidates.event].max() >= max(lists.time)
        )
        log, task = dataset.log, dataset.task_names.index(NEXT_ITEM)
        turns = pd.DataFrame({"person": np.asarray(log.user_ids)[log.user], "item": log.item - FIRST_ITEM})
        turns = turns.assign(event=np.arange(len(log)))[log.labels[:, task] > 0]
        asked = pd.DataFrame({"person": lists.user, "item": lists.relevant[0]}).merge(turns, how="left")
        rows = np.zeros(len(log), dtype=bool)
        rows[asked.event] = True
        questions = self.processor.evaluation_set(log, rows, None)
        found = torch.zeros(len(log), self.model.config.hidden_size)
        found[questions.candidates.event] = fitting.states(self.model, questions)
        return found[torch.tensor(asked.event.to_numpy())]


def _moment(lists: Lists, rows: np.ndarray) -> RequestContext:
    """When lists are asked for, [M]."""
    return RequestContext(torch.from_numpy(milliseconds(lists.time[rows].astype(float))))


class Choose(TrainerCallback):
    """Keeps the weights that validate best by the benchmark's own evaluator, and stops the clock meanwhile."""

    def __init__(self, data: TravelSearch, name: str) -> None:
        self.data, self.name, self.clock = data, name, fitting.Clock()
        self.answers: Answers | None = None
        self.log: list[dict[str, float]] = []
        self.best, self.weights, self.best_epoch = -1.0, None, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
        self._judge(0)

    def on_epoch_begin(self, *unused: Any, **more: Any) -> None:
        self.clock.start()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
        self.clock.stop()
        self._judge(round(state.epoch))

    def _judge(self, epoch: int) -> None:
        assert self.answers is not None
        model = self.answers.model
        next_item = self.answers.next_item if NEXT_ITEM in model.heads else None
        found = measure(self.data, "valid", self.answers.search, next_item)
        self.log.append({"epoch": epoch, "cpu_seconds": self.clock.cpu, **found})
        judged = [found[key] for key in ("ndcg@10", f"{NEXT_ITEM}/ndcg@10") if key in found]
        shown = " and ".join(f"{value:.4f}" for value in judged)
        print(f"{self.name} epoch {epoch}  ndcg@10 {shown}  {self.clock.cpu:.0f} cpu-s", flush=True)
        if statistics.fmean(judged) > self.best:
            self.best, self.weights = statistics.fmean(judged), copy.deepcopy(model.state_dict())
            self.best_epoch = epoch
        model.train()

    def on_train_end(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
        assert self.answers is not None
        self.answers.model.load_state_dict(self.weights)


def run(
    data: TravelSearch, processor: PolyRecProcessor, splits: Splits, config: Mapping[str, Any], seed: int, name: str
) -> dict[str, Any]:
    """Train once and answer."""
    choose = Choose(data, f"{name} seed {seed}")
    with tempfile.TemporaryDirectory() as folder:
        trainer: PolyRecTrainer = fitting.new_trainer(processor, splits, config, folder, seed, choose)
        choose.answers = answers = Answers(trainer.model, processor, splits)
        trainer.train()
    next_item: Scorer | None = answers.next_item if NEXT_ITEM in trainer.model.heads else None
    found = {
        "test": measure(data, "test", answers.search, next_item),
        "validation": measure(data, "valid", answers.search, next_item),
    }
    answers.expand = config["expansion"]["count"], config["expansion"]["weight"]
    for part, short in (("test", "test"), ("validation", "valid")):
        lists = data.search(short)
        widened = data.evaluate(lists, answers.search(lists), SEARCH_KS)
        found[part] |= {f"expanded/{metric}": value for metric, value in widened.items()}
    return {
        **found,
        "train_cpu_seconds": choose.clock.cpu,
        "train_wall_seconds": choose.clock.wall,
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "trained_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "best_epoch": choose.best_epoch,
        "log": choose.log,
    }
