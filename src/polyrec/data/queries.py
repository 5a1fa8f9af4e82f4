"""What users typed: each text once, and which event it belongs to.

Letters: R events, Q texts, B windows, C candidates, S tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polyrec.core.backbones import TextConfig
from polyrec.core.schema import Columns
from polyrec.data.catalog import EntityTable
from polyrec.data.id_match import IdMatch, match_ids
from polyrec.data.tables import column, is_null, normalise_ids
from polyrec.data.texts import TokenTable, tokenize

NO_QUERY = -1


@dataclass(frozen=True)
class Queries:
    """The queries of a log, each text once.

    Args:
        index: int64 [R], text of each event, -1 = no search.
        tokens: of the Q texts.
        own_item: int64 [R], row of the item that the query is the text of, which is never a result; 0 = none.
        match: the items that queries are the text of, looked up in the catalog.
    """

    index: np.ndarray
    tokens: TokenTable
    own_item: np.ndarray
    match: IdMatch | None = None

    @classmethod
    def read(cls, table: pa.Table, columns: Columns, items: EntityTable, tokenizer: Any, text: TextConfig) -> Queries:
        """Those of an event log's table, in its order; long ones are cut."""
        assert columns.query is not None
        what, prompt = "interactions", text.query_prompt or ""
        index, tokens = read_queries(
            table, columns.query, what, lambda texts: tokenize(tokenizer, texts, text, prompt, "queries")
        )
        own, match = np.zeros(len(index), dtype=np.int64), None
        if columns.query_item is not None:
            values = column(table, columns.query_item, what, "query item")
            known = ~is_null(values)
            found = normalise_ids(values.filter(pa.array(known)), f"{what}: {columns.query_item!r}").dictionary_encode()
            codes = np.asarray(found.indices).astype(np.int64)
            own[known] = items.rows(found.dictionary)[codes]
            rows = np.bincount(codes, minlength=len(found.dictionary))
            match = match_ids(
                found.dictionary, rows, items.ids, f"items in column {columns.query_item!r}", "items table"
            )
        return cls(index, tokens, own, match)

    def of_rows(self, row: np.ndarray) -> Queries:
        """Those of some events, in their order."""
        return replace(self, index=self.index[row], own_item=self.own_item[row])

    def at(self, rows: np.ndarray) -> Queries:
        """The same, as those of some rows of a longer log (bool [R]), of whose others no query is known."""
        index, own = np.full(len(rows), NO_QUERY), np.zeros(len(rows), dtype=np.int64)
        index[rows], own[rows] = self.index, self.own_item
        return replace(self, index=index, own_item=own)

    def window(self, rows: np.ndarray) -> dict[str, object]:
        """Queries of one window's candidates, events `rows` of the log.

        `candidate_query` int64 [C] counts in `query_tokens`, a list of arrays in the order in which they first occur;
        `query_items` int64 [C] are the items that queries are the text of.
        """
        texts, candidate_query = in_order_of_appearance(self.index[rows])
        flat, offsets = self.tokens.flat, self.tokens.offsets
        return {
            "candidate_query": candidate_query,
            "query_items": self.own_item[rows],
            "query_tokens": [flat[offsets[q] : offsets[q + 1]] for q in texts],
        }

    def batch(self, rows_BC: np.ndarray, real_BC: np.ndarray) -> dict[str, np.ndarray]:
        """Queries of a batch's candidates, as the collator gives them."""
        texts, candidate_query = in_order_of_appearance(np.where(real_BC, self.index[rows_BC], NO_QUERY).ravel())
        tokens, mask = self.tokens.padded(texts if len(texts) else np.zeros(0, dtype=np.int64))
        return _at_least_one(tokens, mask) | {
            "candidate_query": candidate_query.reshape(rows_BC.shape),
            "query_items": np.where(real_BC, self.own_item[rows_BC], 0),
        }


def read_queries(
    table: pa.Table, name: str, what: str, tokenize: Callable[[Sequence[str]], TokenTable]
) -> tuple[np.ndarray, TokenTable]:
    """Which text each row searched for, int64 [R] with -1 = none, and the tokens of the texts.

    White space counts as one blank. A missing text, an empty one and one without any token are no search.

    Args:
        tokenize: texts -> tokens; it cuts long ones.

    Example:
        >>> words = lambda texts: TokenTable.of([[len(word) for word in text.split()] for text in texts])
        >>> index, tokens = read_queries(pa.table({"q": ["to  be", None, " ", "to be"]}), "q", "interactions", words)
        >>> index.tolist(), tokens.flat.tolist()
        ([0, -1, -1, 0], [2, 2])
    """
    values = column(table, name, what, "query")
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type) or pa.types.is_null(values.type)):
        raise ValueError(
            f"{what}: column {name!r} (query) has type {values.type}: give texts, null where nobody searched"
        )
    coded = pc.dictionary_encode(values.cast(pa.large_string()))
    texts: dict[str, int] = {}
    known = [" ".join(text.split()) for text in coded.dictionary.to_pylist()]
    position = np.array([texts.setdefault(text, len(texts)) if text else NO_QUERY for text in known], dtype=np.int64)
    tokens = tokenize(list(texts))
    position[position >= 0] = np.where(tokens.lengths[position[position >= 0]] > 0, position[position >= 0], NO_QUERY)
    codes = coded.indices.fill_null(len(position)).to_numpy().astype(np.int64)
    return np.append(position, NO_QUERY)[codes], tokens


def in_order_of_appearance(index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct numbers >= 0 in the order in which they first occur, and where among them each is (-1 stays).

    Example:
        >>> [x.tolist() for x in in_order_of_appearance(np.array([7, -1, 3, 7]))]
        [[7, 3], [0, -1, 1, 0]]
    """
    known = index >= 0
    distinct, first, inverse = np.unique(index[known], return_index=True, return_inverse=True)
    order = np.argsort(first)
    position = np.empty_like(order)
    position[order] = np.arange(len(order))
    found = np.full(len(index), NO_QUERY, dtype=np.int64)
    found[known] = position[inverse]
    return distinct[order], found


def pad_queries(
    windows: Sequence[tuple[np.ndarray, Sequence[np.ndarray]]],
) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """Queries of several windows together, each text once.

    Args:
        windows: (candidate_query, query_tokens) of each.

    Returns:
        `query_tokens` int64 [Q, S] (0 = padding on the right) and `query_mask` bool [Q, S], at least one row of them
        (without tokens, if nobody searched: what reads queries then still takes part in the step); and the windows'
        candidate_query counted in these rows.
    """
    index_of: dict[bytes, int] = {}
    rows: list[np.ndarray] = []
    counted = []
    for candidate_query, tokens in windows:
        position = np.full(len(tokens) + 1, NO_QUERY, dtype=np.int64)  # the last one is read by -1
        for n, text in enumerate(tokens):
            key = text.tobytes()
            if key not in index_of:
                index_of[key] = len(rows)
                rows.append(text)
            position[n] = index_of[key]
        counted.append(position[candidate_query])
    table = TokenTable.of([row.tolist() for row in rows])
    return _at_least_one(*table.padded(np.arange(len(rows)))), counted


def _at_least_one(tokens: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
    if not len(tokens):
        tokens, mask = np.zeros((1, 1), dtype=np.int64), np.zeros((1, 1), dtype=bool)
    return {"query_tokens": tokens, "query_mask": mask}
