"""Queries of a log: which text belongs to which event, and how a batch holds each text once."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from text_fixtures import tiny_bert
from window_fixtures import make_log

from polyrec import PolyRecProcessor
from polyrec.data.batching import BatchReader
from polyrec.data.collator import PolyRecCollator
from polyrec.data.event_log import Candidates
from polyrec.data.queries import Queries, in_order_of_appearance, read_queries
from polyrec.data.sequences import SequenceDataset
from polyrec.data.texts import TokenTable

TEXTS = ["title 1", "", None, "  title\t1 ", "drama", "  "]
MESSY = [
    "\u202bשלום עולם\u202c",
    "مرحبا 3",
    "🎬🍿 drama",
    "a" * 1_000_000,
    "drama " * 200_000,
    "\x00\u200b",
    "日本 旅行",
]


def words(texts):
    """A tokenizer of words: their lengths."""
    return TokenTable.of([[len(w) for w in text.split()] for text in texts])


def dataset(users, index, own, tokens, max_history=4):
    """Everybody is asked about each of their events."""
    log = make_log(users, np.arange(sum(users), dtype=float))
    log.queries = Queries(np.asarray(index), TokenTable.of(tokens), np.asarray(own))
    asked = Candidates(np.arange(len(log)), np.arange(len(log)) - log.offsets[log.user])
    return SequenceDataset(log, asked, ["like"], max_history=max_history)


def processor(queries, **text):
    """A processor of a log with these queries, one event each."""
    count = len(queries)
    log = pa.table(
        {
            "user_id": list(range(count)),
            "item_id": [i % 3 for i in range(count)],
            "timestamp": list(range(count)),
            "query": pa.array(queries, pa.string()),
            "source": pa.array([None, 2] * (count // 2) + [1] * (count % 2), pa.int64()),
        }
    )
    found = PolyRecProcessor.fit(
        log,
        {"item_id": [0, 1, 2], "title": ["title 1", "drama", "comedy 2"]},
        tasks=[{"name": "search", "head": "search"}],
        columns={"query": "query", "query_item": "source"},
        statistics=False,
        text={"model": str(tiny_bert()), **text},
    )
    return found, log


# ---------------------------------------------------------------------- reading
def test_missing_and_empty_texts_are_no_search_and_like_ones_are_one():
    """Prevents an empty query from being embedded, and one text with other blanks from being encoded twice."""
    index, tokens = read_queries(pa.table({"q": TEXTS}), "q", "interactions", words)
    assert index.tolist() == [0, -1, -1, 0, 1, -1]
    assert len(tokens) == 2


@settings(max_examples=50, deadline=None)
@given(st.lists(st.one_of(st.none(), st.text(max_size=8), st.sampled_from(["a b", "a  b", "c"])), max_size=12))
def test_reading_equals_a_naive_loop(texts):
    """Prevents a text from being given to the wrong row, whatever Unicode it is made of."""
    index, _ = read_queries(pa.table({"q": pa.array(texts, pa.string())}), "q", "interactions", words)
    seen: list[str] = []
    for row, text in zip(index, texts, strict=True):
        clean = " ".join((text or "").split())
        if clean and clean not in seen:
            seen.append(clean)
        assert row == (seen.index(clean) if clean else -1)


def test_a_column_of_another_type_is_refused():
    """Prevents numbers or lists from being searched for as if they were texts."""
    with pytest.raises(ValueError, match=r"column 'q' \(query\) has type int64: give texts"):
        read_queries(pa.table({"q": [1, 2]}), "q", "interactions", words)


@pytest.mark.parametrize("text", MESSY)
def test_any_text_is_read(text, caplog):
    """Prevents right-to-left text, emoji, invisible signs and a megabyte from raising; long ones are cut and counted."""
    found, log = processor([text, "drama", None], max_length=16)
    queries = found.encode_events(log).queries
    assert queries.tokens.lengths.max() <= 16
    assert queries.index[2] == -1
    assert ("1 of" in caplog.text and "queries are longer" in caplog.text) == (len(text) > 1000)


def test_events_without_a_query_are_no_search():
    """Prevents events that nobody searched for from training the search."""
    found, log = processor(["drama", None, "title 1", ""])
    assert np.isnan(found.encode_events(log).labels[:, 0]).tolist() == [False, True, False, True]


def test_the_query_s_own_item_is_its_row_in_the_table():
    """Prevents the item that a query is the text of from being another one, or padding from being one."""
    found, log = processor(["drama", "title 1"])
    assert found.encode_events(log).queries.own_item.tolist() == [0, 2 + 2]


def test_queries_need_a_text_encoder_and_search_needs_queries():
    """Prevents queries that nothing reads and a search that never has a query."""
    log = {"user_id": [1], "item_id": [1], "timestamp": [1], "query": ["a"]}
    with pytest.raises(ValueError, match=r"columns.query='query' needs a text encoder"):
        PolyRecProcessor.fit(log, tasks=[{"name": "s", "head": "retrieval"}], columns={"query": "query"})
    with pytest.raises(ValueError, match=r"task 's' is a search, but columns.query"):
        PolyRecProcessor.fit(log, tasks=[{"name": "s", "head": "search"}])
    with pytest.raises(ValueError, match="name the column of queries"):
        PolyRecProcessor.fit(log, tasks=[{"name": "s", "head": "retrieval"}], columns={"query_item": "item_id"})


# ---------------------------------------------------------------------- batches
@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-1, 9), max_size=20))
def test_order_of_appearance_equals_a_naive_loop(index):
    """Prevents a candidate from being given another one's query."""
    distinct, place = in_order_of_appearance(np.array(index, dtype=np.int64))
    assert distinct.tolist() == list(dict.fromkeys(i for i in index if i >= 0))
    assert [distinct[p] if p >= 0 else -1 for p in place] == index


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_reading_at_once_equals_the_collator(users, multiple, seed):
    """Prevents the fast path from delivering other queries, other own items or another padding than the collator."""
    random, rows = np.random.default_rng(seed), sum(users)
    tokens = [[*random.integers(1, 50, random.integers(1, 5)).tolist(), 100 + n] for n in range(4)]
    index, own = random.integers(-1, 4, rows), random.integers(0, 9, rows)
    data = dataset(users, index, own, tokens)
    chosen = random.permutation(len(data))[: random.integers(1, len(data) + 1)].tolist()
    fast, slow = BatchReader(data)(chosen, multiple), PolyRecCollator(multiple)([data[i] for i in chosen])
    assert fast.keys() == slow.keys()
    for name in ("query_tokens", "query_mask", "candidate_query", "query_items"):
        assert fast[name].dtype == slow[name].dtype
        torch.testing.assert_close(fast[name], slow[name], rtol=0, atol=0)
    for row in range(fast["candidate_rows"].numel()):  # by definition
        candidate, place = fast["candidate_rows"].flatten()[row], fast["candidate_query"].flatten()[row]
        event = data.candidates.event[candidate]
        if candidate < 0 or index[event] < 0:
            assert place == -1
        else:
            assert fast["query_tokens"][place][fast["query_mask"][place]].tolist() == tokens[index[event]]
    texts = [tuple(t[m].tolist()) for t, m in zip(fast["query_tokens"], fast["query_mask"], strict=True)]
    assert len(set(texts)) == len(texts)  # each once


def test_one_text_of_two_logs_is_one_row_and_two_texts_of_one_number_are_two():
    """Prevents windows of several data sets, whose texts are numbered apart, from reading each other's queries."""
    one, two = dataset([1], [0], [0], [[7, 8]]), dataset([2], [0, 1], [0, 0], [[9], [7, 8]])
    batch = PolyRecCollator()([one[0], two[0], two[1]] if len(two) > 1 else [one[0], two[0]])
    asked = batch["candidate_query"][batch["candidate_rows"] >= 0]
    found = [batch["query_tokens"][q][batch["query_mask"][q]].tolist() for q in asked]
    assert found == [[7, 8], [9], [7, 8]]
    assert len(batch["query_tokens"]) == 2


def test_a_batch_without_search_has_one_empty_query():
    """Prevents the text encoder from being left out of a step on one rank, where the others wait for its gradient."""
    data = dataset([2], [-1, -1], [0, 0], [])
    for batch in (BatchReader(data)([0]), PolyRecCollator()([data[0]])):
        assert batch["query_tokens"].shape == (1, 1)
        assert not batch["query_mask"].any()
        assert (batch["candidate_query"] == -1).all()


def test_a_log_without_queries_has_none_in_its_batches():
    """Prevents models that read no queries from being handed any."""
    data = dataset([2], [0, 0], [0, 0], [[1]])
    data.log.queries = None
    assert "query_tokens" not in BatchReader(data)([0])
    assert "query_tokens" not in PolyRecCollator()([data[0]])


def test_a_request_asks_with_its_query_alone():
    """Prevents the history of a request from being searched for with its query."""
    found, _ = processor(["drama", "title 1"])
    window = found.request([0, 1], np.array([2, 3]), query=" drama ")
    assert window["candidate_query"].tolist() == [0, 0]
    assert len(window["query_tokens"]) == 1
    assert found.request([0], np.array([2]), query="")["candidate_query"].tolist() == [-1]
    assert found.request([0], np.array([2]))["candidate_query"].tolist() == [-1]
