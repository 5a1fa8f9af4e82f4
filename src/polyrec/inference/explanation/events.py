r"""Which past events explain a score: exact leave-one-out.

The effect of event i on the score f of an item is

    e_i = f(history) - f(history without event i)

where the history without the event is a request of its own: the event is in no window and in no running statistic, all
else happened when it did, and the time of the request is the same. (Leave-one-out is the deletion diagnostic of
Cook, 1977, "Detection of Influential Observation in Linear Regression", here of an input and not of a training row.)

Letters: V variants, L events of the history, E visible events, C items.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from polyrec.inference.explanation.explained import ExplainedRequest


class EventEffects(NamedTuple):
    """Effects of single events on scores.

    Args:
        events: int64 [E], which events of the history the model reads.
        scores: float64 [C], see [`ExplainedRequest`].
        predictions: float64 [C], what a user reads.
        effects: float64 [E, C], the score minus the score without the event.
        without: float64 [E, C], the prediction without it.
    """

    events: np.ndarray
    scores: np.ndarray
    predictions: np.ndarray
    effects: np.ndarray
    without: np.ndarray


def leave_one_out(explained: ExplainedRequest) -> EventEffects:
    """The effect of every visible event on every candidate item, all variants in few passes."""
    events = explained.visible
    scores_VC, predictions_VC = explained.without_each(events)
    return EventEffects(events, scores_VC[0], predictions_VC[0], scores_VC[0] - scores_VC[1:], predictions_VC[1:])


def successive_leave_one_out(explained: ExplainedRequest, rounds: int = 20) -> np.ndarray:
    """Events in the order in which removing them lowers the first item's score most, int64 [E].

    Leave-one-out is repeated among the events that are left, so that events which stand in for each other come one
    after the other: without either of two alike little is lost, without both much. (A greedy search for the few events
    without which the recommendation changes; rounds x E predictions.)

    Args:
        rounds: after each of which the effects are evaluated anew, of about as many events each.
    """
    left, order = explained.visible, list[int]()
    for size in np.diff(np.linspace(0, len(left), min(rounds, len(left)) + 1).round().astype(np.int64)):
        scores_V = explained.without_each(left, order)[0][:, 0]
        strongest = np.argsort(scores_V[1:], kind="stable")
        order += left[strongest[:size]].tolist()
        left = left[np.sort(strongest[size:])]
    return np.array(order, dtype=np.int64)
