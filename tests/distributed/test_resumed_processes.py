"""A training goes on with another number of processes than it was begun with."""

from __future__ import annotations

import pytest
from launching import on_two_processes
from resumed_processes import NAMES, PIECE, STEPS, train


@pytest.fixture(scope="module")
def pieces(ranks, tmp_path_factory):
    """Losses of all steps, of trainings by one process, then two, then one."""
    folder = tmp_path_factory.mktemp("resumed")
    for name in NAMES:
        train(folder, name, PIECE, processes=1, resume=False)
    on_two_processes(ranks, "resumed_processes", folder)
    return {name: train(folder, name, STEPS, processes=1, resume=True) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_losses_are_those_of_one_process(pieces, name, tmp_path):
    """Prevents a run that moves to other machines from reading windows again or leaving some out, from losing what the
    optimizer knows, and sparse gradients of tables from being added up differently over ranks."""
    expected = train(tmp_path, name, STEPS, processes=1, resume=False)
    assert len(expected) == STEPS
    assert expected[-1] < expected[0]
    assert pieces[name] == pytest.approx(expected, abs=1e-5)
