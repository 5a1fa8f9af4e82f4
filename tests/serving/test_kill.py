"""A server that is killed loses nothing it has acknowledged."""

import sys

import pytest
from kill_server import kill_server
from serving_fixtures import saved_run


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs fork and SIGKILL")
def test_kill(tmp_path):
    """Prevents acknowledged events from being lost or counted twice when the server dies at any time; the script of
    that name kills it 200 times."""
    run, _ = saved_run(tmp_path)
    found = kill_server(run, tmp_path / "state", kills=2, longest=2.5)
    assert (found.lost, found.doubled, found.misordered) == (0, 0, 0)
    assert found.sent > 0
    assert max(found.from_update, found.from_records) <= 1e-9
