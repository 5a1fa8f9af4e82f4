"""Several teachers as one: means over those that answer, lists over the union of their items."""

import numpy as np
import pytest
import torch
from teacher_fixtures import batch_of, live, probabilities, world

from polyrec.distillation.classical import CatalogTeacher
from polyrec.distillation.ensemble import EnsembleTeacher, _dense


@pytest.fixture(scope="module")
def prepared():
    """A processor, data, and two teachers whose lists of 6 items differ."""
    _, processor, parts = world()
    teachers = [live(processor, seed, top_k=6, temperature=2.0) for seed in (0, 1)]
    return processor, parts, teachers


def test_numbers_are_averaged_as_they_are_exchanged(prepared):
    """Prevents averaging probabilities, or answers on the scale of one of the heads."""
    processor, parts, teachers = prepared
    ensemble = EnsembleTeacher(teachers, {"like": [1, 3]})
    ensemble.prepare(parts.train, processor)
    batch = batch_of(parts.train)
    one, two = (t.score(batch)["teacher_logits"] for t in teachers)
    found = ensemble.score(batch)["teacher_logits"]
    torch.testing.assert_close(found["like"], (one["like"] + 3 * two["like"]) / 4, equal_nan=True)
    torch.testing.assert_close(found["rating"], (one["rating"] + two["rating"]) / 2, equal_nan=True)


def test_whoever_has_no_answer_is_left_out(prepared):
    """Prevents one teacher's missing answer from removing all, and a weight of 0 from answering."""
    processor, parts, teachers = prepared
    batch = batch_of(parts.train)

    class Silent(type(teachers[1])):
        def score(self, batch):
            found = super().score(batch)
            found["teacher_logits"]["like"][0] = float("nan")
            return found

    silent = Silent(teachers[1].model, processor, top_k=6, temperature=2.0)
    ensemble = EnsembleTeacher([teachers[0], silent], {"rating": [0, 1]})
    ensemble.prepare(parts.train, processor)
    found, first = ensemble.score(batch)["teacher_logits"], teachers[0].score(batch)["teacher_logits"]
    torch.testing.assert_close(found["like"][0], first["like"][0], equal_nan=True)
    assert not torch.allclose(found["like"][1], first["like"][1], equal_nan=True)
    torch.testing.assert_close(found["rating"], teachers[1].score(batch)["teacher_logits"]["rating"], equal_nan=True)


def test_lists_are_merged_as_a_loop_would(prepared):
    """Prevents items of one list from being lost or doubled, and the mass of all others from being counted twice."""
    processor, parts, teachers = prepared
    ensemble, batch, temperature = (
        EnsembleTeacher(teachers, {"next_item": [1, 2]}, top_k=12),
        batch_of(parts.train),
        2.0,
    )
    ensemble.prepare(parts.train, processor)
    members = [t.score(batch) for t in teachers]
    found = ensemble.score(batch)
    scores = found["teacher_scores"]["next_item"]
    at = ~torch.isnan(scores[..., -1])
    assert at.any()
    listed = probabilities(found["teacher_items"]["next_item"][at], scores[at], processor.num_items, temperature)
    items = range(2, processor.num_items)
    for row, (b, c) in enumerate(at.nonzero().tolist()):
        logits = dict.fromkeys(items, 0.0)
        for weight, member in zip((1, 2), members, strict=True):
            own = member["teacher_items"]["next_item"][b, c].tolist()
            values = member["teacher_scores"]["next_item"][b, c].tolist()
            rest = temperature * (values[-1] - np.log(len(items) - len(own)))
            for item in items:
                logits[item] += weight / 3 * (values[own.index(item)] if item in own else rest)
        weights = {item: np.exp(z / temperature) for item, z in logits.items()}
        total = sum(weights.values())
        best = sorted(items, key=logits.get, reverse=True)[:12]
        known = np.flatnonzero(~np.isnan(listed[row]))
        np.testing.assert_allclose(sorted(logits[i] for i in known), sorted(logits[i] for i in best), rtol=1e-5)
        np.testing.assert_allclose(listed[row][known], [weights[i] / total for i in known], rtol=1e-4)


def test_an_ensemble_of_one_changes_nothing(prepared):
    """Prevents the merge from bending a list."""
    processor, parts, teachers = prepared
    ensemble = EnsembleTeacher(teachers[:1], top_k=6)
    ensemble.prepare(parts.train, processor)
    batch = batch_of(parts.train)
    torch.testing.assert_close(ensemble.score(batch), teachers[0].score(batch), equal_nan=True)


def test_dense_lists_keep_their_mass():
    """Prevents the spread over items that are not listed from adding or losing probability."""
    items, scores = torch.tensor([[4, 2]]), torch.tensor([[1.0, 0.5, 0.3]])
    dense = _dense(items, scores, 9, 2.0)
    total = torch.logsumexp(dense / 2.0, 1)
    torch.testing.assert_close(total, torch.logsumexp(torch.tensor([[0.5, 0.25, 0.3]]), 1))


def test_what_is_refused(prepared):
    """Prevents weights that mean nothing, lists of several temperatures and members that learnt judged rows."""
    processor, parts, teachers = prepared
    with pytest.raises(ValueError, match="at least one teacher"):
        EnsembleTeacher([])
    for weights in ([1], [0, 0], [-1, 2]):
        with pytest.raises(ValueError, match="weights of task 'like'"):
            EnsembleTeacher(teachers, {"like": weights})
    classical = CatalogTeacher("popularity", parts.train, processor, top_k=6, temperature=2.0)
    with pytest.raises(ValueError, match="nobody would teach it"):
        EnsembleTeacher([teachers[0], classical], {"like": [0, 1]}).prepare(parts.train, processor)
    with pytest.raises(ValueError, match="unknown|did you mean 'like'"):
        EnsembleTeacher(teachers, {"likes": [1, 1]}).prepare(parts.train, processor)
    with pytest.raises(ValueError, match=r"temperatures \[1.0, 2.0\]"):
        EnsembleTeacher([teachers[0], live(processor)]).prepare(parts.train, processor)
    unknown = live(processor)
    unknown._trained_on = None
    with pytest.raises(ValueError, match="does not say which rows"):
        EnsembleTeacher([teachers[0], unknown]).prepare(parts.train, processor)
