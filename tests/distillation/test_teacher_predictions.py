"""Teachers asked the questions of an evaluation, and how far they are believed."""

import numpy as np
import pytest
import torch
from head_fixtures import head_of
from model_fixtures import fit, synthetic_log, tiny_model

from polyrec.core.distillation_config import DistillationConfig
from polyrec.core.registry import HEADS
from polyrec.distillation.classical import CatalogTeacher
from polyrec.distillation.gating import gated, select_alpha
from polyrec.distillation.live import LiveTeacher
from polyrec.distillation.predictions import teacher_predictions
from polyrec.distillation.throughput import one_example_each, users_per_second
from polyrec.evaluation import evaluator
from polyrec.evaluation.scored import rank_rows
from polyrec.modules.encoders.item import FIRST_ITEM


@pytest.fixture(scope="module")
def world():
    return fit(synthetic_log(users=24))


def asked(world, teacher, model, part="test", **options):
    processor, parts = world
    dataset = getattr(parts, part)
    teacher.prepare(dataset, processor, [parts.valid, parts.test])
    return teacher_predictions(teacher, model.heads, dataset, processor.num_items, batch_size=5, **options)


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_a_live_teacher_is_measured_as_its_model(world, exclude_seen):
    """Prevents a teacher's table from holding other numbers than its own evaluation gives."""
    processor, parts = world
    model = tiny_model(processor, 3)
    expected = evaluator.predict(model, parts.test, 5, exclude_seen=exclude_seen)
    teacher = LiveTeacher(model, processor, trust=True).listing(processor.num_items)
    found = asked(world, teacher, tiny_model(processor, 4), exclude_seen=exclude_seen)
    for task, values in expected.values.items():
        np.testing.assert_allclose(found.values[task], values, atol=1e-5)
    one, other = (p.rankings["next_item"] for p in (found, expected))
    for at, rank in ((np.argsort(r.rows), r) for r in (one, other)):
        rank.rows, rank.greater, rank.ties = rank.rows[at], rank.greater[at], rank.ties[at]
    for name in ("rows", "greater", "ties"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    metrics = (evaluator.evaluate(model, parts.test, p) for p in (found, expected))
    assert next(metrics) == pytest.approx(next(metrics), abs=1e-5, nan_ok=True)


def test_a_classical_teacher_is_measured_as_a_baseline(world):
    """Prevents lists whose items are not the catalog's rows."""
    processor, parts = world
    teacher = CatalogTeacher("item_knn", parts.train, processor).listing(processor.num_items)
    found = asked(world, teacher, tiny_model(processor)).rankings["next_item"]
    order = np.argsort(found.rows)
    expected = rank_rows(lambda rows: teacher.logits(parts.test, rows)[:, FIRST_ITEM:], parts.test, found.rows[order])
    np.testing.assert_array_equal(found.greater[order], expected.greater)
    np.testing.assert_array_equal(found.ties[order], expected.ties)


def test_what_is_not_listed_stands_behind(world):
    """Prevents an item beyond the list from tying with those in it."""
    processor, _ = world
    teacher = LiveTeacher(tiny_model(processor), processor, trust=True)
    short, long = (
        asked(world, teacher.listing(n), tiny_model(processor), exclude_seen=False).rankings["next_item"]
        for n in (3, processor.num_items)
    )
    listed = long.greater < 3
    assert listed.any()
    assert (~listed).any()
    np.testing.assert_array_equal(short.greater[listed], long.greater[listed])
    assert (short.greater[~listed] >= 3).all()
    assert teacher.top_k("next_item") == 100


class Silent(LiveTeacher):
    """It has no answer about some candidates and none about a task."""

    def score(self, batch):
        answers = super().score(batch)
        answers["teacher_logits"]["rating"][batch["candidate_rows"] % 3 == 0] = float("nan")
        answers["teacher_logits"]["like"].fill_(float("nan"))
        return answers


def test_missing_answers_say_what_a_constant_says(world):
    """Prevents NaN in metrics, and a task without answers from being measured."""
    processor, _ = world
    found = asked(world, Silent(tiny_model(processor), processor, trust=True), tiny_model(processor))
    assert set(found.values) == {"rating"}
    values, missing = found.values["rating"], np.arange(len(found.values["rating"])) % 3 == 0
    np.testing.assert_allclose(values[missing], values[~missing].mean(), rtol=1e-5)


@pytest.mark.parametrize("kind", [n for n in HEADS.names() if HEADS.get(n).reads == "pair"])
def test_exchanged_answers_read_as_the_heads_own(kind):
    """Prevents a kind of head whose teachers cannot be measured, or are measured in another unit."""
    head = head_of(kind)
    inner = () if head.own_width is None else (head.own_width,)
    own = torch.randn(2, 4, *inner, generator=torch.Generator().manual_seed(0))
    logits = head.finish(own, {"length": torch.tensor([[-2.0, -0.5, 0.5, 0.1], [2.0, 0.1, -0.1, 1.0]])})
    said, more = head.read_canonical(head.canonical_logits(logits))
    torch.testing.assert_close(said, head.predict(logits), rtol=1e-4, atol=1e-5)
    expected = head.details(logits)
    assert (more is None) == (expected is None)
    if more is not None:
        torch.testing.assert_close(more, expected, rtol=1e-4, atol=1e-5)


def test_speed_asks_each_person_once(world):
    """Prevents people with several windows, or tasks without a list, from counting otherwise."""
    processor, parts = world
    batches = one_example_each(parts.test, ["next_item"], users=7, batch_size=4)
    assert [len(b["item_ids"]) for b in batches] == [4, 3]
    assert all(b["candidate_ids"].shape[1] == 1 and (b["labels"]["next_item"] == 1).all() for b in batches)
    user_of = parts.test.user_codes()[torch.cat([b["candidate_rows"].flatten() for b in batches]).numpy()]
    assert len(set(user_of)) == 7
    live = LiveTeacher(tiny_model(processor), processor, trust=True)
    answers = live.score(batches[0])
    assert not torch.isnan(answers["teacher_scores"]["next_item"]).any()
    assert all(speed > 0 for speed in users_per_second({"a": live, "b": live}, batches, rounds=1).values())


@pytest.mark.parametrize(
    ("teacher", "baseline", "alone", "alpha"),
    [
        (0.3, 0.1, 0.2, 0.6),
        (0.2, 0.1, 0.2, 0.6),
        (0.15, 0.1, 0.2, 0.3),
        (0.1, 0.1, 0.2, 0.0),
        (-0.4, 0.0, -0.1, 0.0),
        (0.05, 0.0, -0.1, 0.6),
        (float("nan"), 0.0, 0.1, 0.6),  # labels of one value judge nobody
        (0.15, 0.1, None, 0.6),
        (None, 0.1, 0.2, 0.6),
    ],
)
def test_beliefs(teacher, baseline, alone, alpha):
    """Prevents a teacher that knows nothing from teaching, and one that is better than the student from being muted."""
    assert select_alpha(0.6, teacher, baseline, alone).alpha == pytest.approx(alpha)


def test_a_task_that_is_not_taught_learns_from_its_labels_in_full():
    """Prevents a share of the hard loss from being kept for a teacher that is not believed."""
    plan = DistillationConfig.parse(
        {"tasks": {"like": {"alpha": 0.5, "hard_share": 0.3}, "love": {"alpha": 0.5, "temperature": 2}}, "gates": 0.1},
        ["like", "love"],
    )
    found = gated(plan, {"like": select_alpha(0.5, 0.0, 0.0, None), "love": select_alpha(0.5, 0.1, 0.0, 0.2)})
    assert not found.tasks["like"].acts
    assert (found.tasks["love"].alpha, found.tasks["love"].temperature, found.gates) == (0.25, 2, 0.1)
