"""What the Hub refuses is told with its fix: in this process, where `test_loading` asks a server."""

from __future__ import annotations

import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from polyrec.hub.errors import explained, httpx

REFUSED = [
    (401, False, "The Hub does not know who you are: log in"),
    (403, False, "This account may not read 'ann/shop'"),
    (403, True, "This account may not write to 'ann/shop'"),
    (404, False, "There is no 'ann/shop', or it is private"),
    (409, True, "Somebody else changed 'ann/shop' meanwhile"),
    (412, True, "Somebody else changed 'ann/shop' meanwhile"),
    (418, False, "The Hub refused the request for 'ann/shop'"),
    (429, True, "Too many requests: wait, then push again"),
    (499, False, "The Hub refused the request for 'ann/shop'"),
    (500, False, "The Hub has trouble: try again"),
    (503, True, "The Hub has trouble: push again"),
]


@pytest.mark.parametrize(("status", "pushing", "fix"), REFUSED)
def test_a_status_has_its_own_fix(status, pushing, fix):
    """Prevents advice that mends another fault: to log in where the name is wrong, to wait where a right is missing."""
    response = httpx.Response(status, request=httpx.Request("GET", "https://hub"))
    with pytest.raises(HfHubHTTPError) as error, explained("ann/shop", pushing=pushing):
        raise HfHubHTTPError("refused", response=response)
    assert f"\n{fix}" in str(error.value)


def test_a_lost_connection_is_told_from_a_fault_of_ours():
    """Prevents a bug from being called a lost connection, and half an upload from being called one of our faults."""
    for inside, expected, said in (
        (httpx.ConnectError("away"), ConnectionError, r"\(away\): try again"),
        (LocalEntryNotFoundError("nothing"), LocalEntryNotFoundError, "not in the local cache"),
    ):
        with pytest.raises(expected, match=said), explained("ann/shop"):
            raise inside
    for pushing, cause, expected in (
        (True, OSError("away"), ConnectionError),
        (True, None, RuntimeError),
        (False, OSError("away"), RuntimeError),
    ):
        with pytest.raises(expected, match="upload"), explained("ann/shop", pushing=pushing):
            raise RuntimeError("upload") from cause
