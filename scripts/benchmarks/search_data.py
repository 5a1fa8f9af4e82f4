"""Search on Travel Stack Exchange: queries, what is relevant to them, what people took next, and ONE evaluator for all.

A **query** is the title of a question that somebody linked to another question ("linked" or "duplicate"), put at the
time of the link (median: 2.4 hours after the question was asked, and it is the link that the data dates). The links of
one question that fall into one part make one query, put at the first of them. **Relevant** is what it was linked to.

**Split** by the time of the link: before 2016-09-01 it trains, before 2017-02-01 it validates, later it tests.

**No leaks.** A result must have existed: questions asked at or after the query's time are no candidates (a link to one
that was asked later still is dropped from the relevant ones, and counted). The question itself is never a result. A
pair that was linked before, in either direction, is known: neither a result nor relevant. Counters of the items table
(score, views, favourites, ...) are as of the dump of 2017 and read by nobody. Titles are as of the dump, too; there are
no others.

**Next item**: of what people did (all but asking), the first time that a person turns to a question, as a question to
the model: which one, given everything the person did strictly before? Half of them were asked within the last 9 hours,
so that ranking by age alone (system `newest`) beats whoever does not know the age; to see what is known of the person,
candidates are questions of the last `NEXT_DAYS` days that the person has not touched, for all systems, and events that
turn to older ones are left out. A sample of `NEXT_ITEMS` events of validation and test each is ranked.

Letters: Q lists, N questions of the catalog, P (list, question) pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

VALID_FROM, TEST_FROM = 1472688000, 1485907200  # 2016-09-01 and 2017-02-01, UTC
PARTS = ("train", "valid", "test")
NEXT_ITEMS, NEXT_DAYS, HISTORY = 3000, 30, 5
_ROWS = 256  # lists scored at a time

Ragged = tuple[np.ndarray, np.ndarray]  # values and offsets: row r holds values[offsets[r]:offsets[r + 1]]


@dataclass
class Lists:
    """Questions to a ranking system.

    Args:
        query: int64 [Q], the question whose title is the query; -1 = there is none (next item).
        user: int64 [Q], who asks; -1 = unknown.
        since, time: int64 [Q], seconds; questions asked before `since`, at `time` or later are no candidates.
        relevant: ragged, catalog rows that should be found.
        excluded: (lists [P], catalog rows [P]), no candidates.
        history: ragged, the latest questions that the person turned to, oldest first.
    """

    query: np.ndarray
    user: np.ndarray
    since: np.ndarray
    time: np.ndarray
    relevant: Ragged
    excluded: tuple[np.ndarray, np.ndarray]
    history: Ragged

    def __len__(self) -> int:
        return len(self.query)


class TravelSearch:
    """The tables, cut into lists.

    Args:
        folder: of the parquet files.

    `items`, `links` and `events` keep the tables' columns; `items` is in catalog order, `links` and `events` hold the
    catalog row of each question in `item` (and `related`).
    """

    def __init__(self, folder: Path) -> None:
        columns = ["item_id", "title", "timestamp", "owner_user_id"]
        self.items = pd.read_parquet(folder / "items.parquet", columns=columns)
        self.titles: list[str] = self.items.title.fillna("").tolist()
        self.asked = self.items.timestamp.to_numpy()
        self.owner = self.items.owner_user_id.fillna(-1).to_numpy(np.int64)
        row = pd.Series(np.arange(len(self.items)), self.items.item_id)
        events = pd.read_parquet(folder / "interactions.parquet")
        self.events = events.assign(item=events.item_id.map(row)).dropna(subset="item").astype({"item": np.int64})
        self.links, self.later = self._links(pd.read_parquet(folder / "links.parquet"), row)

    def __len__(self) -> int:
        return len(self.items)

    def _links(self, links: pd.DataFrame, row: pd.Series) -> tuple[pd.DataFrame, int]:
        """One row per link that says something new, with its part; and how many point to a later question."""
        links = links.assign(item=links.item_id.map(row), related=links.related_item_id.map(row))
        links = links.dropna(subset=["item", "related"]).astype({"item": np.int64, "related": np.int64})
        links = links[links.item != links.related].sort_values("timestamp", kind="stable")
        pair = np.sort(links[["item", "related"]].to_numpy(), axis=1)
        links = links[~pd.DataFrame(pair).duplicated().to_numpy()]  # known before, in either direction
        links = links.assign(part=np.digitize(links.timestamp, [VALID_FROM, TEST_FROM]))
        query_time = links.groupby(["item", "part"]).timestamp.transform("min")
        exists = self.asked[links.related] < query_time
        return links.assign(query_time=query_time)[exists].reset_index(drop=True), int((~exists).sum())

    def search(self, part: str) -> Lists:
        """Queries of a part with what is relevant to them."""
        chosen = self.links[self.links.part == PARTS.index(part)].sort_values(["query_time", "item"], kind="stable")
        query, time = chosen.item.to_numpy(), chosen.query_time.to_numpy()
        begins = np.flatnonzero(np.diff(query, prepend=-1) | np.diff(time, prepend=-1))
        relevant = chosen.related.to_numpy(), np.append(begins, len(chosen))
        query, time = query[begins], time[begins]
        # Nothing of this part's links is known; of earlier parts', all.
        earlier = self.links[self.links.part < PARTS.index(part)]
        both = np.concatenate([earlier[["item", "related"]], earlier[["related", "item"]]])
        known = pd.DataFrame(both, columns=["item", "related"])
        lists = pd.DataFrame({"item": query, "list": np.arange(len(query))}).merge(known, on="item")
        excluded = (
            np.concatenate([np.arange(len(query)), lists["list"].to_numpy()]),
            np.concatenate([query, lists.related.to_numpy()]),
        )
        return Lists(query, self.owner[query], np.zeros_like(time), time, relevant, excluded, _nothing(len(query)))

    @cached_property
    def first_turns(self) -> pd.DataFrame:
        """Events by which a person turns to a question for the first time, asking left out, in order of time."""
        events = self.events.sort_values("timestamp", kind="stable")
        first = events[~events.duplicated(["user_id", "item"])]
        return first[(first.ask == 0) & (first.timestamp > self.asked[first.item])]

    def log(self) -> pd.DataFrame:
        """One event log of all: what people did, and links as searches by whoever asked the question.

        Columns: `user_id`, `item` (catalog row), `timestamp`, `event`, `query` and `query_item` (links only), `turn` (1
        where the person turns to a question for the first time), `favorite`, `accepted` (answers only).
        """
        events = self.events[["user_id", "item", "timestamp", "event", "favorite", "accepted"]]
        turn = self.first_turns
        events = events.assign(
            turn=events.index.isin(turn.index).astype(np.int64),
            accepted=events.accepted.where(events.event == "answer"),
        )
        links = self.links[["related", "timestamp", "item"]].rename(columns={"related": "item", "item": "query_item"})
        query_item = links.query_item.to_numpy()
        # Whoever is not known is somebody else each time.
        owner = np.where(self.owner[query_item] >= 0, self.owner[query_item], -2 - query_item)
        titles = np.array(self.titles, dtype=object)
        links = links.assign(user_id=owner, event="link", query=titles[query_item], turn=0)
        log = pd.concat([events, links], ignore_index=True).astype({"query_item": "Int64"})
        return log.sort_values("timestamp", kind="stable", ignore_index=True)

    def next_items(self, part: str, seed: int = 0) -> Lists:
        """A sample of a part's first turns."""
        turns = self.first_turns
        turns = turns[np.digitize(turns.timestamp, [VALID_FROM, TEST_FROM]) == PARTS.index(part)]
        turns = turns[self.asked[turns.item] >= turns.timestamp - NEXT_DAYS * 86_400]
        turns = turns.sample(min(NEXT_ITEMS, len(turns)), random_state=seed).sort_values("timestamp", kind="stable")
        asked = pd.DataFrame(
            {"list": np.arange(len(turns)), "user_id": turns.user_id.to_numpy(), "now": turns.timestamp.to_numpy()}
        )
        before = asked.merge(self.events[["user_id", "item", "timestamp"]], on="user_id")
        before = before[before.timestamp < before.now].sort_values(["list", "timestamp"], kind="stable")
        latest = before.drop_duplicates(["list", "item"], keep="last").groupby("list").tail(HISTORY)
        counts = latest.groupby("list").size().reindex(range(len(turns)), fill_value=0)
        offsets = np.concatenate([[0], np.cumsum(counts)])
        return Lists(
            np.full(len(turns), -1),
            turns.user_id.to_numpy(),
            turns.timestamp.to_numpy() - NEXT_DAYS * 86_400,
            turns.timestamp.to_numpy(),
            (turns.item.to_numpy(), np.arange(len(turns) + 1)),
            (before["list"].to_numpy(), before.item.to_numpy()),
            (latest.item.to_numpy(), offsets),
        )

    def evaluate(
        self, lists: Lists, score: Callable[[np.ndarray], np.ndarray], ks: tuple[int, ...]
    ) -> dict[str, float]:
        """Metrics of a system, the same for all of them.

        Args:
            score: list numbers int64 [q] -> scores of the whole catalog [q, N], any float type; higher is better.
            ks: cut-offs.
        """
        import torch

        from polyrec.evaluation import ranking

        found = []
        for rows, excluded in self._chunks(lists):
            scores = torch.from_numpy(np.ascontiguousarray(score(rows), dtype=np.float32))
            existed = (self.asked >= lists.since[rows, None]) & (self.asked < lists.time[rows, None])
            scores = scores.masked_fill(torch.from_numpy(~existed), float("-inf"))
            found.append(ranking.top_k(scores, max(ks), excluded).numpy())
        per_list = ranking.list_metrics(np.concatenate(found), lists.relevant, ks=ks)
        return {f"{name}@{k}": float(per_list[f"{name}@{k}"].mean()) for name in ("ndcg", "recall") for k in ks}

    @staticmethod
    def _chunks(lists: Lists) -> Iterator[tuple[np.ndarray, tuple]]:
        import torch

        order = np.argsort(lists.excluded[0], kind="stable")
        at, item = lists.excluded[0][order], lists.excluded[1][order]
        for begin in range(0, len(lists), _ROWS):
            rows = np.arange(begin, min(begin + _ROWS, len(lists)))
            held = slice(*np.searchsorted(at, [rows[0], rows[-1] + 1]))
            yield rows, (torch.from_numpy(at[held] - begin), torch.from_numpy(item[held]))


def _nothing(rows: int) -> Ragged:
    return np.zeros(0, dtype=np.int64), np.zeros(rows + 1, dtype=np.int64)
