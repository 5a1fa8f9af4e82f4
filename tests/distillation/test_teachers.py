"""Live teachers: what they answer, what they do not touch, and what they refuse."""

import numpy as np
import pytest
import torch
from model_fixtures import TASKS, clone, fit, model_inputs, synthetic_log, tiny_model
from teacher_fixtures import batch_of, live, probabilities, world

from polyrec.core.distillation_config import DistillationConfig
from polyrec.data.mixing import MixedDataset
from polyrec.data.splits import LeakageError
from polyrec.data.training_rows import TrainingSetSketch
from polyrec.distillation.live import LiveTeacher


def test_answers_are_those_of_the_model():
    """Prevents answers from belonging to other candidates, tasks or units than those of the batch."""
    _, processor, parts = world()
    teacher = live(processor, top_k=5, temperature=2.0, states=True)
    teacher.prepare(parts.train, processor)
    batch = batch_of(parts.train)
    found = teacher.score(batch)
    output = teacher.model(**{k: v for k, v in model_inputs(batch).items() if k != "labels"})
    real = batch["candidate_ids"] > 0
    predicted = torch.sigmoid(found["teacher_logits"]["like"])
    torch.testing.assert_close(predicted[real], teacher.model.heads["like"].predict(output.logits["like"])[real])
    rating = teacher.model.heads["rating"]
    expected = rating.options["mean"] + rating.options["std"] * output.logits["rating"]
    torch.testing.assert_close(found["teacher_logits"]["rating"][real], expected[real])
    assert torch.isnan(found["teacher_logits"]["like"][~real]).all()
    torch.testing.assert_close(found["teacher_states"], output.states)
    taken = (batch["labels"]["next_item"] > 0) & (batch["candidate_ids"] > 1)
    scores = found["teacher_scores"]["next_item"]
    assert (~torch.isnan(scores[..., -1]) == taken).all()
    context = teacher.model.request_context(**batch).rows(taken.flatten())
    logits = teacher.model.score_items(output.states[taken], "next_item", context=context)
    listed = probabilities(found["teacher_items"]["next_item"][taken], scores[taken], processor.num_items, 2.0)
    whole = torch.softmax(logits / 2, -1).detach().numpy()
    known = ~np.isnan(listed)
    assert (known.sum(1) == 5).all()
    np.testing.assert_allclose(listed[known], whole[known], rtol=1e-4)
    assert all(set(np.argsort(-w)[:5]) == set(np.flatnonzero(k)) for w, k in zip(whole, known, strict=True))


def test_a_list_of_the_whole_catalog_leaves_nothing():
    """Prevents a full list from giving padding rows a probability."""
    _, processor, parts = world()
    teacher = live(processor, top_k=1000)
    teacher.prepare(parts.train, processor)
    batch = batch_of(parts.train)
    found = teacher.score(batch)
    scores, items = found["teacher_scores"]["next_item"], found["teacher_items"]["next_item"]
    scored = ~torch.isnan(scores[..., -1])
    assert items.shape[-1] == processor.num_items
    assert torch.isneginf(scores[scored][:, -1]).all()
    assert ((items[scored] > 0).sum(1) == processor.num_items - 2).all()
    assert (torch.isneginf(scores[scored][:, :-1]) == (items[scored] == 0)).all()


def test_dropout_is_off_and_nothing_learns():
    """Prevents a teacher that answers by chance, is trained along, or is left in another mode than it was in."""
    _, processor, parts = world()
    teacher = live(processor, model={"dropout": 0.5}, trust=True)
    teacher.model.train()
    teacher.prepare(parts.train, processor)
    batch = batch_of(parts.train)
    one, two = teacher.score(batch), teacher.score(batch)
    torch.testing.assert_close(one, two, equal_nan=True)
    assert teacher.model.training
    assert not any(values.requires_grad for values in one["teacher_logits"].values())
    assert not isinstance(teacher, torch.nn.Module)
    holder = torch.nn.Module()
    holder.teacher = teacher
    assert not list(holder.parameters())
    assert not holder.state_dict()


def test_it_keeps_its_own_precision():
    """Prevents the student's autocast from rounding the teacher's answers."""
    _, processor, parts = world()
    teacher = live(processor)
    teacher.prepare(parts.train, processor)
    batch = batch_of(parts.train)
    plain = teacher.score(batch)
    with torch.autocast("cpu", torch.bfloat16):
        cast = teacher.score(batch)
    torch.testing.assert_close(plain, cast, equal_nan=True, rtol=0, atol=0)


def other_catalog(seed: int = 3):
    """The same log with another catalog: an item less, two more, in another order, and ids that are texts."""
    tables = synthetic_log()
    items = tables["items"]
    order = np.random.default_rng(seed).permutation(np.arange(1, 24))
    names = [str(items["item_id"][i]) for i in order] + ["new", "newer"]
    more = {name: [items[name][i] for i in order] + [items[name][0]] * 2 for name in items if name != "item_id"}
    log = dict(tables["interactions"], item_id=[str(i) for i in tables["interactions"]["item_id"]])
    return tables, {**tables, "interactions": log, "items": {"item_id": names, **more}}


def test_other_catalogs_are_mapped_by_id(caplog):
    """Prevents a teacher from being asked about, or answering with, rows of another item table."""
    tables, other = other_catalog()
    plain = {"statistics": False}
    teachers_own, own_parts = fit(tables, **plain)
    student, parts = fit(other, **plain)
    teacher = live(teachers_own, top_k=40)
    teacher.prepare(parts.train, student, judged=[])
    assert "knows 23 of the student's 25 items: it has no output for the others (new, newer)" in caplog.text
    # The same windows, in both catalogs.
    batch, same = batch_of(parts.train.fixed()), batch_of(own_parts.train.fixed())
    found = teacher.score(batch)
    teacher.prepare(own_parts.train, teachers_own, judged=[])
    expected = teacher.score(same)
    unknown = batch["candidate_ids"] == 1  # item "0" is not in the student's catalog
    assert unknown.any()
    reads_unknown = (batch["item_ids"] == 1).any(1, keepdim=True).expand_as(unknown)
    clear = (batch["candidate_ids"] > 1) & ~reads_unknown
    assert clear.any()
    for task in ("like", "rating"):
        torch.testing.assert_close(found["teacher_logits"][task][clear], expected["teacher_logits"][task][clear])
        assert torch.isnan(found["teacher_logits"][task][unknown]).all()
    ids = [None, None, *student.items.ids.to_pylist()]
    old = [None, None, *map(str, teachers_own.items.ids.to_pylist())]
    at = clear & ~torch.isnan(found["teacher_scores"]["next_item"][..., -1])
    for task, name in (("next_item", "teacher_items"),):
        pairs = []
        for answers, names in ((found, ids), (expected, old)):
            lists, scores = answers[name][task][at], answers["teacher_scores"][task][at]
            pairs.append(
                [
                    {names[i]: s for i, s in zip(*row, strict=True) if i}
                    for row in zip(lists.tolist(), scores[:, :-1].tolist(), strict=True)
                ]
            )
        for mine, theirs in zip(*pairs, strict=True):
            theirs.pop("0")  # the student does not have it
            assert mine.keys() == theirs.keys()  # and the teacher does not know the new ones
            np.testing.assert_allclose([mine[k] for k in theirs], list(theirs.values()), rtol=1e-4)


def test_refuses_what_does_not_fit():
    """Prevents a teacher from answering inputs that mean something else to it: all reasons are named."""
    tables, processor, _ = world()
    teacher = live(processor)
    other = synthetic_log(users=30, seed=5)
    foreign, foreign_parts = fit(other, [TASKS[0], dict(TASKS[1], label="rating >= 3"), TASKS[2]], max_history=16)
    with pytest.raises(ValueError, match="does not fit") as caught:
        teacher.prepare(foreign_parts.train, foreign)
    for reason in ("other running statistics", "hold 16 events", "task 'like': label", "from_pretrained"):
        assert reason in str(caught.value)
    tables["interactions"]["item_id"] = [f"x{i}" for i in tables["interactions"]["item_id"]]
    tables["items"]["item_id"] = [f"x{i}" for i in tables["items"]["item_id"]]
    renamed, renamed_parts = fit(tables)
    with pytest.raises(ValueError, match="knows none of the 24 items"):
        teacher.prepare(renamed_parts.train, renamed, judged=[])
    stars, stars_parts = fit(synthetic_log(users=30), [{"name": "stars", "head": "ordinal", "label": "rating"}])
    with pytest.raises(ValueError, match=r"has the tasks \['next_item', 'like', 'rating'\], and the student"):
        teacher.prepare(stars_parts.train, stars)


def test_refuses_answers_that_are_no_numbers():
    """Prevents a damaged teacher from counting as one that has nothing to say."""
    _, processor, parts = world()
    teacher = live(processor)
    teacher.prepare(parts.train, processor)
    with torch.no_grad():
        teacher.model.heads["like"].output.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"outputs for task 'like' are NaN or infinite: .* load it in float32"):
        teacher.score(batch_of(parts.train))
    with torch.no_grad():
        teacher.model.heads["like"].output.weight.zero_()
        teacher.model.heads["rating"].output.bias.fill_(float("inf"))  # as half precision overflows
    with pytest.raises(ValueError, match=r"outputs for task 'rating' are NaN or infinite"):
        teacher.score(batch_of(parts.train))


def test_a_teacher_of_judged_rows_is_refused():
    """Prevents the student's validation or test from measuring what its teacher has memorised."""
    tables, processor, parts = world()
    later = fit(tables)[0]
    later.split(tables["interactions"], fractions=(0.9, 0.05, 0.05))
    with pytest.raises(LeakageError, match="was trained on .* rows that the student is evaluated on"):
        live(later).prepare(parts.train, processor)
    live(later).check_unlearnt([parts.train], processor, judged=[])
    early, one_out = fit(tables)[0], fit(tables)[0]
    halves = early.split(tables["interactions"], fractions=(0.5, 0.2, 0.3))
    one_out.split(tables["interactions"], by="leave_one_out")
    with pytest.raises(LeakageError, match="was trained on"):
        live(one_out).prepare(halves.train, early, judged=[halves.test])
    live(processor).prepare(parts.train, processor)


def test_a_teacher_of_later_times_is_refused():
    """Prevents a teacher from other people's future, in which no judged row is."""
    _, processor, parts = world()
    log = parts.train.log
    teacher = live(processor)
    late = np.isin(np.arange(len(log)), parts.test.candidates.event[-1:])
    teacher._trained_on = TrainingSetSketch.of(log, late, processor.items.ids)
    with pytest.raises(LeakageError, match="later than"):
        teacher.prepare(parts.train, processor, judged=[parts.valid])


def test_unknown_training_rows_need_trust():
    """Prevents an older folder, which cannot say what was learnt, from being taken for a clean one."""
    _, processor, parts = world()
    processor.training_rows = None
    with pytest.raises(LeakageError, match=r"trust=True \(--skip-overlap-check\)"):
        live(processor).prepare(parts.train, processor)
    live(processor, trust=True).prepare(parts.train, processor)


def test_a_plan_is_checked_against_the_teacher():
    """Prevents a task from learning from nobody, or from lists made for another temperature."""
    _, processor, _ = world()
    teacher = live(processor, temperature={"next_item": 2.0})
    plan = {"next_item": {"temperature": 2.0}, "like": {"temperature": 3.0}}
    teacher.check_plan(DistillationConfig.parse({"tasks": plan}, processor.tasks and [t.name for t in processor.tasks]))
    plan["next_item"]["temperature"] = 1.0
    with pytest.raises(ValueError, match="at the temperature 1, but the teacher's lists are made for 2"):
        teacher.check_plan(DistillationConfig.parse({"tasks": plan}, ["next_item", "like"]))
    with pytest.raises(ValueError, match="does not score task 'likes'"):
        teacher.check_plan(DistillationConfig.parse({"tasks": {"likes": {}}}, ["likes"]))
    with pytest.raises(ValueError, match="top_k of the teacher is 0"):
        live(processor, top_k=0)


def test_what_else_a_batch_holds_changes_nothing():
    """Prevents labels, weights or another teacher's answers from reaching the teacher."""
    _, processor, parts = world()
    teacher = live(processor)
    teacher.prepare(parts.train, processor)
    batch = batch_of(parts.train)
    more = clone(batch)
    more["sample_weight"] = {"like": torch.zeros_like(batch["labels"]["like"])}
    more["teacher_logits"] = {"like": torch.zeros_like(batch["labels"]["like"])}
    more["labels"]["like"] = 1 - more["labels"]["like"]
    torch.testing.assert_close(teacher.score(batch), teacher.score(more), equal_nan=True)


def test_mixtures_of_data_sets():
    """Prevents rows that several parts of a mixture ask about from counting as judged ones."""
    _, processor, parts = world()
    half = parts.train.candidates.event < len(parts.train.log) // 2
    keep = [
        type(parts.train.candidates)(
            *(getattr(parts.train.candidates, n)[m] for n in ("event", "position", "statistic"))
        )
        for m in (half, ~half)
    ]
    first, second = (parts.train.with_candidates(c, parts.train.statistics) for c in keep)
    teacher = live(processor)
    teacher.prepare(MixedDataset({"a": first, "b": second}), processor)
    with pytest.raises(LeakageError):
        teacher.prepare(first, processor)
    assert isinstance(teacher, LiveTeacher)
    assert tiny_model(processor).pair_tasks == list(teacher.pair_tasks)
