"""Recommending to one user or many, with the catalog encoded once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from accelerate import PartialState
from tqdm.auto import tqdm

from polyrec.core.names import ROW_KEYS
from polyrec.core.offers import offer
from polyrec.core.rules import Explore, Rules, Seen
from polyrec.core.settings import nearest
from polyrec.data.candidates import left_out
from polyrec.data.request_reader import read_scalar
from polyrec.inference.catalog_index import CatalogIndex, IndexKind
from polyrec.inference.part_files import PartFiles, part_of
from polyrec.inference.predictions import pair_scores, predictions
from polyrec.inference.ranked import Ranked, as_table, best_items
from polyrec.inference.rules.catalog import CatalogColumns
from polyrec.inference.rules.seen import SeenPolicy
from polyrec.inference.rules.selection import Chosen, Selector, Unmet
from polyrec.inference.scanned import scan_lists, scans
from polyrec.inference.scorer import Scorer, Stamp, TorchScorer
from polyrec.inference.unknown_ids import UnknownIds
from polyrec.inference.user_requests import UserRequest, UserRequests
from polyrec.models.batches import as_batch
from polyrec.models.polyrec.fingerprint import digest, fingerprint, weights_digest
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor
from polyrec.modules.encoders.item import ItemRows

GivenRules = Rules | Mapping[str, Any] | None


@dataclass(frozen=True)
class _Call:
    """What holds for all requests of a call, and what is gathered from them.

    Args:
        selector: makes lists by rules; None: the best items that are allowed.
    """

    k: int
    task: str
    requests: UserRequests
    seen: SeenPolicy
    selector: Selector | None
    unknown: UnknownIds
    unmet: Unmet


class Recommender:
    """Recommends with one model: for one user or many, from the whole catalog or from candidates.

    The item table is encoded when it is first needed, and again once weights or catalog have changed. The model keeps
    its mode, and threads may share one recommender.

    Args:
        model, processor: that were saved together.
        batch_size: users that are read at a time.
        scorer: computes scores in the model's place.
        index: how the best items are found: "exact", "faiss", or "auto", which is by faiss in large catalogs; see
            [`CatalogIndex`][polyrec.inference.catalog_index.CatalogIndex].

    Example:
        >>> recommender = Recommender.from_pretrained("runs/demo")                         # doctest: +SKIP
        >>> recommender.recommend([318, 858], k=10, exclude=[1])                           # doctest: +SKIP
        >>> recommender.recommend_many([{"user_id": 7}, {"history": [318]}], k=10)         # doctest: +SKIP
    """

    def __init__(
        self,
        model: PolyRecForRecommendation,
        processor: PolyRecProcessor,
        batch_size: int = 64,
        scorer: Scorer | None = None,
        index: IndexKind | CatalogIndex = "exact",
    ) -> None:
        if model.config.num_items != processor.num_items:
            raise ValueError(
                f"the model has {model.config.num_items} rows of items and the processor {processor.num_items}: load "
                "the processor that was saved with the model"
            )
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be >= 1")
        self.model, self.processor, self.batch_size = model, processor, batch_size
        self.catalog, self._scorer = CatalogColumns(processor), scorer
        self.index = index if isinstance(index, CatalogIndex) else CatalogIndex(index)
        self._encoded: tuple[Stamp, ItemRows] | None = None

    @classmethod
    def from_pretrained(cls, folder: Any, batch_size: int = 64, **hub_options: Any) -> Self:
        """Load model and processor, from a folder or a Hub repository; `hub_options` as of `from_pretrained`."""
        model = PolyRecForRecommendation.from_pretrained(folder, **hub_options)
        return cls(model, PolyRecProcessor.from_pretrained(folder, **hub_options), batch_size)

    @property
    @torch.no_grad()
    def items(self) -> ItemRows:
        """The encoded item table."""
        encoded, now = self._encoded, Stamp(self.model.item_encoder)
        if encoded is None or encoded[0] != now:
            with self.model.eval_mode() as model:
                encoded = self._encoded = now, model.item_encoder.table()
        return encoded[1]

    @contextmanager
    def scorer(self, by_model: bool = False) -> Iterator[Scorer]:
        """What computes scores, without gradients; `by_model`: the model itself."""
        with torch.no_grad():
            if self._scorer is not None and not by_model:
                yield self._scorer
                return
            with self.model.eval_mode() as model:
                yield TorchScorer(model, self.items)

    def recommend(
        self,
        history: Any = None,
        k: int = 10,
        *,
        candidates: Sequence[Any] | None = None,
        exclude: Sequence[Any] = (),
        task: str | None = None,
        exclude_seen: bool | None = None,
        where: str | None = None,
        rules: GivenRules = None,
        **request: Any,
    ) -> list[dict[str, Any]]:
        """Recommend items to one user.

        Args:
            history: the user's events, oldest first: item ids, or dicts (or any table) with the item column and
                whatever else is known of an event: feedback, context, time. None or empty: a new user.
            k: number of recommendations.
            candidates: ids of the items to choose from; None: the whole catalog.
            exclude: ids of items that are never listed.
            task: the retrieval task that ranks; default: the model's first one that needs no query. A model without
                retrieval tasks ranks by its first pair task.
            exclude_seen: leave out items of the history; None: as the model was evaluated (`config.exclude_seen`), by
                default unless the task that ranks models repeated consumption (the option `repeats`).
            where: a condition on columns of the catalog, e.g. "price <= 20 and genre != 'Horror'".
            rules: further ones, as [`Rules`][polyrec.core.rules.Rules] or as a dict of them: quotas,
                pins, boosts, diversity, one score of several tasks, exploration.
            request: `user` (attributes, {column: value}), `context` ({column: value}), `time` (seconds, ISO text, a
                date or a timestamp; default: right after the latest event that is known) and `user_id` (whose stored
                events are the history, see `PolyRecProcessor.request`; `history` then holds later ones).

        Returns:
            At most k dicts, best first: `rank`, `item` (id), `title` (if the catalog has one), `score`, one entry per
            other task (probability, or a number in the label's unit), `cold_item` (True: without training events,
            scored by its attributes alone), `cold_start` (True: none of the history's items is known, so only the
            user's attributes and overall trends count) and, of lists that are drawn, `propensity`.

        Raises:
            ValueError: an unknown task, item, column or key, with the fix.
        """
        one = {"history": history, "candidates": candidates, "exclude": exclude, "where": where, **request}
        # To its end, where it warns of unknown ids.
        [found] = self._described([one], k, task, exclude_seen, rules, alone=True)
        return found

    def recommend_many(
        self,
        requests: Iterable[Mapping[str, Any]],
        k: int = 10,
        *,
        task: str | None = None,
        exclude_seen: bool | None = None,
        rules: GivenRules = None,
    ) -> list[list[dict[str, Any]]]:
        """The lists of many users, in the order of the requests, see [`recommend`].

        Args:
            requests: dicts with any of `history`, `user_id`, `user`, `context`, `time`, `candidates`, `exclude` and
                `where`.
            k, task, exclude_seen, rules: of all of them.
        """
        return list(self.iterate(requests, k, task=task, exclude_seen=exclude_seen, rules=rules))

    def iterate(
        self,
        requests: Iterable[Mapping[str, Any]],
        k: int = 10,
        *,
        task: str | None = None,
        exclude_seen: bool | None = None,
        rules: GivenRules = None,
    ) -> Iterator[list[dict[str, Any]]]:
        """[`recommend_many`], one batch of users in memory at a time."""
        yield from self._described(requests, k, task, exclude_seen, rules)

    def rank(
        self,
        requests: Iterable[Mapping[str, Any]],
        k: int = 10,
        *,
        task: str | None = None,
        exclude_seen: bool | None = None,
        rules: GivenRules = None,
    ) -> Iterator[Ranked]:
        """[`iterate`] in arrays, for jobs that write millions of lists."""
        yield from self._ranked(requests, k, self._ranking_task(task), exclude_seen, rules)

    def recommend_all(
        self,
        users: Sequence[Any],
        folder: str | Path,
        k: int = 10,
        *,
        task: str | None = None,
        exclude_seen: bool | None = None,
        rules: GivenRules = None,
        users_per_file: int = 4096,
        only: Sequence[int] | None = None,
        overwrite: bool = False,
        progress: bool = True,
    ) -> Path:
        """Write the lists of users with stored events, in parquet files: user, rank, item, score, other tasks.

        A job that was stopped goes on where it stopped, with the same files in the end; under `accelerate launch`
        each process writes its own. Users are spread over files by a hash of their ids.

        Args:
            users: ids, each once.
            folder: of the files; `pyarrow.dataset.dataset(folder, ...)` or pandas read them together.
            k, task, exclude_seen, rules: as of [`recommend`].
            users_per_file: about.
            only: numbers of the files that this call writes; None: all, or the share of this process.
            overwrite: replace the files of another job, e.g. of another model.
            progress: draw a bar.

        Raises:
            ValueError: the folder holds the files of another job.
        """
        users, state, rules = list(users), PartialState(), Rules.of(rules)
        if rules is not None and isinstance(rules.explore, Explore) and rules.explore.seed is None:
            raise ValueError("explore needs a seed here, so that a job that goes on draws the same lists")
        task, stored = self._ranking_task(task), self.processor.stored_events
        parts = max(-(-len(users) // users_per_file), 1)
        job = {
            "model": weights_digest(self.model.state_dict()),
            "processor": fingerprint(self.processor),
            "events": None if stored is None else stored.digest(),
            "users": digest(sorted(map(str, users))),
            "parts": parts,
            "arguments": {"k": k, "task": task, "exclude_seen": exclude_seen}
            | ({} if rules is None else {"rules": digest(asdict(rules))})
            | ({"index": "faiss"} if self.index.serves(self.model, task) else {}),
        }
        files = PartFiles(Path(folder), job)
        files.open(overwrite, first=state.is_main_process)
        part = part_of(users, parts)
        waiting = files.waiting(state.process_index, state.num_processes)
        own = {n: [users[i] for i in np.flatnonzero(part == n)] for n in waiting if only is None or n in only}
        shown = progress and state.is_main_process
        bar = tqdm(total=sum(map(len, own.values())), unit="user", disable=None if shown else True)
        with bar:
            for number, ids in own.items():
                found, wanted = [], [{"user_id": i} for i in ids]
                for ranked in self.rank(wanted, k, task=task, exclude_seen=exclude_seen, rules=rules):
                    found.append(ranked)
                    bar.update()
                files.write(number, as_table(self.processor, ids, found, self.shown_tasks(task)))
        return files.folder

    def shown_tasks(self, task: str | None = None) -> list[str]:
        """Tasks whose predictions stand beside the score of the task that ranks (None: the default one)."""
        task = self._ranking_task(task)
        # A run of before names were reserved may have a task "item": its prediction must not stand where the id does.
        return [n for n in (*self.model.history_tasks, *self.model.pair_tasks) if n != task and n not in ROW_KEYS]

    def _described(
        self,
        requests: Iterable[Any],
        k: int,
        task: str | None,
        exclude_seen: bool | None,
        rules: GivenRules,
        alone: bool = False,
    ) -> Iterator[list[dict[str, Any]]]:
        """[`iterate`]; what is wrong with a request is said with its number, if it is not `alone`."""
        processor, task = self.processor, self._ranking_task(task)
        shown = self.shown_tasks(task)
        for found in self._ranked(requests, k, task, exclude_seen, rules, alone):
            yield found.described(processor, shown)

    def _ranked(
        self,
        requests: Iterable[Any],
        k: int,
        task: str,
        exclude_seen: bool | None,
        rules: GivenRules,
        alone: bool = False,
    ) -> Iterator[Ranked]:
        call = self._call(k, task, exclude_seen, rules)
        waiting = enumerate(requests)
        while some := [
            call.requests.read(request, "" if alone else f"requests[{n}]")
            for n, request in islice(waiting, self.batch_size)
        ]:
            yield from self._batch(some, call)
        call.unknown.warn()
        call.unmet.warn()

    def _call(self, k: int, task: str, exclude_seen: bool | None, given: GivenRules) -> _Call:
        rules, model = Rules.of(given), self.model
        k, exclude_seen = read_scalar("k", k), read_scalar("exclude_seen", exclude_seen)
        seen = None if rules is None else rules.seen
        if seen is not None and exclude_seen is not None:
            raise ValueError("exclude_seen is given beside the rule seen: give one of both")
        if not isinstance(seen, str | Seen):
            hides = exclude_seen if seen is None else seen
            hides = model.config.exclude_seen if hides is None else hides
            seen = left_out(model.heads[task].task, hides) == "history"
        selector = None
        if rules is not None and rules.orders:
            tasks = dict.fromkeys((task, *model.history_tasks, *model.pair_tasks))
            kinds = {name: model.heads[name].output_kind for name in tasks}
            selector = Selector(rules, self.catalog, task, kinds, lambda: self.items.vectors_MD.float().cpu().numpy())
        policy, unknown = SeenPolicy(seen, self.processor), UnknownIds(self.processor)
        return _Call(k, task, UserRequests(self.catalog, rules), policy, selector, unknown, Unmet())

    def _ranking_task(self, task: str | None) -> str:
        model, task = self.model, read_scalar("task", task)
        if task is not None and task not in model.heads:
            raise ValueError(f"unknown task {task!r}; {nearest(task, list(model.heads))}")
        if task is None and not (model.history_tasks or model.pair_tasks):
            raise ValueError(f"the model can only search ({list(model.heads)}): call model.search(processor, query)")
        found = task or next(iter(model.history_tasks or model.pair_tasks))
        if found in model.state_tasks and found not in model.history_tasks:
            raise ValueError(f"task {found!r} needs a query: call model.search(processor, query)")
        return found

    def retrieval_task(self, task: str | None = None) -> str:
        """The retrieval task of a name, or the one that ranks."""
        found = self._ranking_task(task)
        if found not in self.model.history_tasks:
            raise ValueError(f"task {found!r} scores pairs; retrieval tasks: {self.model.history_tasks or 'none'}")
        return found

    def rows(self, given: Any, name: str = "items") -> np.ndarray:
        """Rows of the item table of some ids, int64; `name` is what messages call them."""
        return self.catalog.rows_of(given, name)

    def _batch(self, requests: Sequence[UserRequest], call: _Call) -> Iterator[Ranked]:
        processor, task, model = self.processor, call.task, self.model
        given = [own.window for own in requests]
        indexed = call.selector is None and self.index.serves(model, task)
        with self.scorer(by_model=indexed) as scorer:
            opened = processor.open_requests(given)
            for window, items in zip(given, opened.history_items, strict=True):
                call.unknown.add(window, items)
            batch = as_batch(opened.histories(), model) if task in model.state_tasks else None
            read = None if batch is None else scorer.read(batch)
            seen = call.seen.rows(opened)
            predict = partial(predictions, model, opened, scorer=scorer, read=read)
            if indexed and batch is not None and isinstance(scorer, TorchScorer):
                allowed = [own.listable(rows, processor.num_items) for own, rows in zip(requests, seen, strict=True)]
                best = self.index.best(scorer, processor, task, batch, read, call.k, allowed)
                lists = [Chosen(*one) for one in best]
            elif batch is not None and call.selector is None and scans(scorer, task, requests):
                lists = [Chosen(*one) for one in scan_lists(scorer, task, batch, read, call.k, requests, seen)]
            else:
                if batch is not None:
                    scores_BN = scorer.catalog(task, batch, read)
                else:
                    scores_BN = pair_scores(model, scorer, task, opened, [own.allowed for own in requests])
                for scores_N, own, rows in zip(scores_BN, requests, seen, strict=True):
                    own.mask(scores_N, rows)
                if call.selector is None:
                    lists = [Chosen(rows := best_items(own, call.k), own[rows]) for own in scores_BN]
                else:
                    lists = call.selector.choose(scores_BN, call.k, given, predict)
            found = [one.predictions for one in lists if one.predictions is not None]
            if len(found) < len(lists):
                found = predict([one.rows for one in lists])
        for one, others, items in zip(lists, found, opened.history_items, strict=True):
            cold_start = not (processor.item_counts[items] > 0).any()
            call.unmet.add(one.unmet)
            yield Ranked(one.rows, one.scores, others, cold_start, one.propensities, one.unmet)


@offer
def recommend(
    model: PolyRecForRecommendation, processor: PolyRecProcessor, history: Any = None, k: int = 10, **request: Any
) -> list[dict[str, Any]]:
    """Recommend items to one user, as `Recommender.recommend` does, with the catalog encoded for this call alone."""
    return Recommender(model, processor).recommend(history, k, **request)
