"""Odd inputs are read as what they are, or refused in one line: a sample of the campaign of scripts/fuzz.py."""

import os

import fuzz
import fuzz_cases
import numpy as np
import pytest

SAMPLE = {"table": 220, "list": 30, "request": 150, "flag": 40, "recipe": 30, "folder": 30}
FIRST = 1_000_000  # other cases than the campaign's


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return fuzz_cases.World(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("kind", SAMPLE)
def test_odd_inputs(world, kind):
    """Prevents a traceback of a library, another answer than the input means, a dead process, a hang, a full memory."""
    found = list(fuzz.run(world, [(kind, FIRST + n) for n in range(SAMPLE[kind])]))
    assert len(found) == SAMPLE[kind]
    assert [case for case in found if case["outcome"] in fuzz.FAULTS] == []


def _silent():
    raise fuzz_cases.Silent


PLANTED = {
    "accepted": lambda: None,
    "raw": lambda: np.array(["a"]).astype(float),  # a ValueError, but a library's
    "silent": _silent,
    "abort": lambda: os._exit(3),
    "hang": lambda: [None for _ in iter(int, 1)],
    "memory": lambda: bytearray(64 << 30),
}


def test_planted_faults_are_noticed(world, monkeypatch):
    """A campaign that cannot fail finds nothing for ever."""
    names = list(PLANTED)
    monkeypatch.setattr(fuzz, "SECONDS", 1)
    monkeypatch.setitem(fuzz.CASES, "table", lambda world, number: (PLANTED[names[number]], names[number]))
    found = list(fuzz.run(world, [("table", n) for n in range(len(names))]))
    assert [case["outcome"] for case in found] == names
