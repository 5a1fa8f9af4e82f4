"""Requests of strangers: nothing of the server is opened, and nothing fills its memory."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from polyrec.core.escapes import printable, printable_lines
from polyrec.inference.pipeline import RecommendationPipeline

REFUSED = {
    "a file": ({"history": "/srv/log.parquet"}, "history is a str"),
    "a path": ({"history": Path("/srv/log.parquet")}, "history is a PosixPath"),
    "a table": ({"history": pd.DataFrame({"item_id": [1]})}, "history is a DataFrame"),
    "a mapping of columns": ({"history": {"item_id": "/srv/log.parquet"}}, "history is a dict"),
    "a file in an event": ({"history": [{"item_id": 3, "image": {"path": "/x"}}]}, r"history\[0\]\['image'\] is a dict"),
    "bytes": ({"history": [b"3"]}, r"history\[0\] is a bytes"),
    "millions of events": ({"history": [3] * 10_000_000}, "10,000,000 events; send the latest 10,000"),
    "a long id": ({"history": ["x" * 1_000_000]}, "1,000,000 characters"),
    "a long list": ({"user": {"tags": ["a"] * 1_000_000}}, "1,000,000 values"),
    "lists of lists": ({"user": {"tags": [["a"]]}}, "is a list; send a number"),
    "many columns": ({"context": {str(n): n for n in range(2000)}}, "2,000 entries"),
    "a user's file": ({"user": "/srv/users.parquet"}, "user is a str"),
    "a long query": ({"query": "x" * 1_000_000}, "1,000,000 characters"),
    "a huge number": ({"history": [10**30]}, "beyond 64 bits"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_odd_requests_are_refused(name):
    """`{"history": "/path/x.parquet"}` opened files of the server."""
    request, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as error:
        RecommendationPipeline.preprocess(None, request)
    assert len(str(error.value)) < 200


def test_plain_requests_pass():
    """A request with all that one may hold, which a check that is too strict would refuse."""
    history = [3, "b", {"item_id": 4, "rating": 4.5, "at": pd.Timestamp("2024-01-01"), "tags": ["a"], "seen": None}]
    given = {"history": history, "user": {"age": 3}, "context": {}, "time": 1e9, "query": "red shoes"}
    assert RecommendationPipeline.preprocess(None, given)["request"] == given


def test_a_title_cannot_move_the_cursor():
    """Titles with escape sequences cleared the terminal, or wrote other rows over it."""
    for odd in ("\x1b[2J", "\x9b2J", "\r\n", "\u202e", "\x07", "\x00"):
        shown = printable(f"Alien{odd} 映画 é")
        assert shown.isprintable()
        assert shown.startswith("Alien\\u")
        assert shown.endswith(" 映画 é")
    assert printable_lines("a\nb\x1b") == "a\nb\\u001b"
