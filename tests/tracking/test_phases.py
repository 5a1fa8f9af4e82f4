"""Phases of a piece of work: whose seconds and whose memory."""

from __future__ import annotations

import sys
import time

import numpy as np
import pytest

from polyrec.tracking.phases import Phases


def test_each_second_counts_once() -> None:
    """Prevents a phase that is told its own time and that of the phases in it, and calls that are lost."""
    with Phases() as phases:
        began = time.perf_counter()
        with phases("outer"):
            for _ in range(3):
                with phases("inner"):
                    time.sleep(0.02)
            time.sleep(0.01)
        wall = time.perf_counter() - began
    outer, inner = phases.found["outer"], phases.found["inner"]
    assert (outer.calls, inner.calls) == (1, 3)
    assert inner.wall_seconds >= 0.06
    assert outer.wall_seconds >= 0.01
    assert outer.wall_seconds + inner.wall_seconds <= wall
    assert inner.cpu_seconds < inner.wall_seconds  # it slept


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not tell whose pages are whose")
def test_memory_is_that_of_the_phase() -> None:
    """Prevents memory that nobody looked at."""
    with Phases() as phases:
        with phases("small"):
            time.sleep(0.03)
        with phases("large"):
            kept = np.ones(1 << 25)  # 256 MiB
    small, large = (phases.found[name].peak_bytes for name in ("small", "large"))
    assert large - small > kept.nbytes // 2


def test_groups_of_modules() -> None:
    """Prevents statistics and reading that nobody can tell from the rest of a split."""
    namespace = {"__name__": "polyrec.data.statistics_of_a_test", "sleep": time.sleep}
    exec("def work():\n    sleep(0.2)", namespace)
    with Phases({"statistics": ("data.statistic",), "other": ("data.other",)}) as phases, phases("split"):
        namespace["work"]()
    within = phases.found["split"].within
    assert within is not None
    assert set(within) == {"statistics"}
    assert 0.05 < within["statistics"] <= phases.found["split"].wall_seconds
