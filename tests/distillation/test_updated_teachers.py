"""Runs that went on learning newer events, as teachers: their rows are known, and they fit data made as theirs are."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from model_fixtures import arguments, fit, model_inputs, synthetic_log, tiny_model
from teacher_fixtures import batch_of

from polyrec import PolyRecProcessor, PolyRecTrainer
from polyrec.data.splits import LeakageError
from polyrec.distillation.live import LiveTeacher
from polyrec.training.settings import UpdateSettings
from polyrec.training.update import parts_of, train_update, update_data

USERS = 24
QUIET = {"use_cpu": True, "disable_tqdm": True, "per_device_train_batch_size": 8}


def everything():
    """The events of the first training, and those of an update."""
    first, later = (synthetic_log(users=USERS, seed=seed)["interactions"] for seed in (0, 1))
    return pa.concat_tables([pa.table(first), pa.table({**later, "timestamp": later["timestamp"] + 2e6})])


def continued(folder):
    """A saved processor and all events, in the state in which the last of them has left it."""
    processor = PolyRecProcessor.from_pretrained(folder)
    processor.extend(users=synthetic_log(users=USERS)["users"])
    log, statistics = processor.resume(everything())
    count = USERS * 10
    return processor, log, statistics, parts_of(log, [count, count], [0.1])


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """The first split, and the folder and the model of an update."""
    folder = tmp_path_factory.mktemp("updated")
    first, splits = fit(synthetic_log(users=USERS))
    first.save_pretrained(folder / "first")
    model = tiny_model(first, seed=7, hidden_size=16)
    processor, log, statistics, parts = continued(folder / "first")
    settings = UpdateSettings(members=1, replay=0.2)
    train_update(model, processor, update_data(processor, log, statistics, parts, settings), settings, QUIET)
    processor.save_pretrained(folder / "updated")
    return first, splits, folder / "updated", model


def teacher_of(case):
    return LiveTeacher(case[3], PolyRecProcessor.from_pretrained(case[2]), top_k=6)


def test_a_student_of_the_first_split_is_refused(case):
    """Prevents what came after a student's test part from reaching it by way of an updated teacher."""
    first, splits, _, _ = case
    LiveTeacher(case[3], first).prepare(splits.train, first)  # before the update it would have done
    for judged in (None, [splits.test]):
        with pytest.raises(
            LeakageError, match=r"use the run before the update as the teacher, or .* own processor \(`resume`"
        ):
            teacher_of(case).prepare(splits.train, first, judged)


def test_new_events_that_it_learnt_may_not_judge(case):
    """Prevents the rows of an update from being unknown to the guard."""
    processor, log, statistics, parts = continued(case[2])
    train = processor.training_set(log, parts.trained, statistics)
    learnt_now = processor.evaluation_set(log, parts.new, statistics)
    with pytest.raises(LeakageError, match=f"trained on {parts.new.sum()} of the {parts.new.sum()} rows"):
        teacher_of(case).prepare(train, processor, [learnt_now])
    refitted, again = fit({**synthetic_log(users=USERS), "interactions": everything()})  # as a recipe does
    with pytest.raises(LeakageError, match="A run that was updated was also trained on its updates"):
        teacher_of(case).prepare(again.train, refitted)


def test_it_teaches_a_student_of_its_own_data(case, tmp_path):
    """Prevents the way that the refusals name from being closed, and running statistics that were counted on from being
    read as if they had not been."""
    processor, log, statistics, parts = continued(case[2])
    train = processor.training_set(log, parts.trained | parts.new, statistics, shuffle_ties=False)
    held = [processor.evaluation_set(log, rows, statistics) for rows in parts.held.values()]
    teacher = teacher_of(case)
    teacher.prepare(train, processor, held)
    batch = batch_of(train, list(np.arange(0, len(train), 7)))
    with torch.no_grad():
        expected = case[3](**{k: v for k, v in model_inputs(batch).items() if k != "labels"}).logits["like"]
    real = batch["candidate_ids"] > 0
    torch.testing.assert_close(teacher.score(batch)["teacher_logits"]["like"][real], expected[real])
    plan = {"tasks": {"next_item": {"top_k": 6}, "like": {}}}
    student = tiny_model(processor, distillation=plan)
    run = arguments(tmp_path, per_device_train_batch_size=8, logging_steps=1)
    trainer = PolyRecTrainer(student, run, train, processing_class=processor, teacher=teacher)
    trainer.train()
    assert all(trainer.state.log_history[0][f"loss_{name}_soft"] > 0 for name in plan["tasks"])
