"""Integrated gradients and curves of deletion and insertion."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from model_fixtures import TASKS, fit, tiny_model

from polyrec.inference.explanation.events import leave_one_out, successive_leave_one_out
from polyrec.inference.explanation.explained import ExplainedRequest
from polyrec.inference.explanation.faithfulness import area, curves
from polyrec.inference.explanation.gradients import integrated_gradients

HISTORY = [{"item_id": i, "rating": r} for i, r in ((3, 5.0), (4, 1.0), (5, 4.0), (6, 2.0), (9, 3.0))]


@pytest.mark.parametrize("baseline", ["mean", "unknown"])
@pytest.mark.parametrize("task", ["next_item", "like", "rating"])
def test_attributions_add_up(task, baseline):
    """Prevents attributions that miss a path: attention of candidates, residuals, or the second layer."""
    processor, _ = fit()
    model = tiny_model(processor, num_hidden_layers=2)
    explained = ExplainedRequest(model, processor, HISTORY, np.array([8, 9, 12]), task)
    found = integrated_gradients(explained, baseline=baseline)
    assert found.effects.shape == (5, 3)
    assert (np.abs(found.total) > 1e-4).all()
    assert (found.gap < 0.01).all()


def test_a_linear_model_has_the_attributions_of_its_weights():
    """Prevents effects at the wrong event, of another item, or with the sign turned."""
    processor, _ = fit(statistics=False)
    tasks = [{**task, "options": {"neighbours": 0}} if task["head"] == "retrieval" else task for task in TASKS]
    model = tiny_model(processor, num_hidden_layers=0, tasks=tasks)  # a state is the mean of the inputs
    explained = ExplainedRequest(model, processor, HISTORY, np.array([8]), "next_item")
    with torch.no_grad():
        x = explained.inputs(next(iter(explained.batches())))[0]
        head, vectors = model.heads["next_item"], explained.items.vectors_MD
        change = (x[1:] - x[1:].mean(0)) / len(x)
        points, weights = np.polynomial.legendre.leggauss(64)
        direction = torch.zeros_like(vectors[0])
        for point, weight in zip((points + 1) / 2, weights / 2, strict=True):
            path = torch.cat([x[:1], x[1:].mean(0) + point * (x[1:] - x[1:].mean(0))]).mean(0)
            share = torch.softmax(head(path.unsqueeze(0), explained.items)[0], 0)
            direction += float(weight) * (vectors[8] - share @ vectors)
        expected = change @ (head.project.weight.T @ direction)
    found = integrated_gradients(explained, baseline="mean").effects[:, 0]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_an_empty_history_and_an_unknown_baseline():
    """Prevents a crash of somebody new, and a typing error from choosing a baseline."""
    processor, _ = fit(statistics=False)
    model = tiny_model(processor)
    explained = ExplainedRequest(model, processor, [], np.array([8]), "next_item")
    assert integrated_gradients(explained).effects.shape == (0, 1)
    assert successive_leave_one_out(explained).tolist() == []
    with pytest.raises(ValueError, match="unknown baseline 'maen'.*did you mean 'mean'"):
        integrated_gradients(explained, baseline="maen")


def test_curves_are_the_answers_of_the_histories_they_stand_for():
    """Prevents a deletion curve that keeps what it should take away, or insertion in the reverse order."""
    processor, _ = fit()
    model = tiny_model(processor)
    explained = ExplainedRequest(model, processor, HISTORY, np.array([8]), "like")
    order = np.array([4, 0, 2, 1, 3])
    found = curves(explained, {"some": order}, steps=5)["some"]
    for step in range(6):
        gone = np.ones((1, 5), dtype=bool)
        gone[0, order[:step]] = False
        assert found["deletion"][step] == pytest.approx(explained.variants(gone)[0][0, 0], abs=1e-5)
        assert found["insertion"][step] == pytest.approx(explained.variants(~gone)[0][0, 0], abs=1e-5)
    assert area(np.array([1.0, 1.0, 4.0])) == 1.75


def test_successive_leave_one_out_is_greedy():
    """Prevents effects from being judged beside events that are gone already."""
    processor, _ = fit()
    model = tiny_model(processor)
    explained = ExplainedRequest(model, processor, HISTORY, np.array([8]), "rating")
    order = successive_leave_one_out(explained)
    assert order[0] == leave_one_out(explained).effects[:, 0].argmax()
    left = list(range(5))
    for event in order:
        fall = {}
        for candidate in left:
            keep = np.zeros((1, 5), dtype=bool)
            keep[0, [e for e in left if e != candidate]] = True
            fall[candidate] = explained.variants(keep)[0][0, 0]
        assert event == min(fall, key=fall.get)
        left.remove(event)
