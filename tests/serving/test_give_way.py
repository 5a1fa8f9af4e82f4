"""Work that gives way to requests."""

import sys
import time

from polyrec.serving.give_way import giving_way


def work(seconds):
    """How often a function was called."""
    end, number = time.perf_counter() + seconds, 0
    while time.perf_counter() < end:
        sum((1, 2))
        number += 1
    return number


def test_work_rests_while_others_are_busy():
    """Prevents a model that is loaded from taking half of the time of the one that is served, and a thread that is done
    from resting for good."""
    before = sys.getprofile()
    done = {}
    for busy in (False, True):
        with giving_way(lambda busy=busy: busy):
            done[busy] = work(0.2)
    assert 0 < done[True] < 0.5 * done[False]  # 1 ms of 5
    assert sys.getprofile() is before
