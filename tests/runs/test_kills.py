"""A sample of `scripts/kill_runs.py`: commands that die, or find the disk full, at one of their file operations."""

import kill_runs
import pytest

from polyrec.evaluation import bootstrap


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """What commands find: nothing, a run, an interrupted training."""
    folder, draws = tmp_path_factory.mktemp("kills"), bootstrap.draws
    kill_runs.build_world(folder)
    yield folder
    bootstrap.draws = draws


@pytest.mark.parametrize(
    ("name", "how", "shares"),
    [
        ("train over a run", "kill", (0.55, 0.97)),
        ("train --resume", "fail", (0.5,)),
        ("update", "kill", (0.98,)),
    ],
)
def test_commands_that_die_leave_the_old_run_or_the_new_one(world, name, how, shares):
    """7 of 24 killed trainings over a run lost it or mixed two; 6 of 28 updates left nothing that loads."""
    command = next(c for c in kill_runs.COMMANDS if c.name == name)
    said = []
    found = kill_runs.campaign(world, command, how, lambda n: [int(share * n) for share in shares], said.append)
    assert found.trials == len(shares)
    assert found.faults == 0, said
