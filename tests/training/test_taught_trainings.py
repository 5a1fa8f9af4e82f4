"""A teacher through a whole training: named by its folder, interrupted, in half precision, and kept from what judges."""

from __future__ import annotations

import pytest
import torch
from model_fixtures import arguments, fit, synthetic_log, tiny_model
from transformers import TrainerCallback

from polyrec import PolyRecTrainer
from polyrec.data.splits import LeakageError
from polyrec.distillation.classical import CatalogTeacher
from polyrec.distillation.live import LiveTeacher
from polyrec.distillation.stored import StoredTeacher, write_outputs
from polyrec.training.arguments import for_going_on

PLAN = {
    "tasks": {
        "next_item": {"loss": "rank_distil", "temperature": 2.0, "top_k": 5, "options": {"depth": 3}},
        "like": {"alpha": 0.7, "schedule": "cosine", "warmup": 0.3, "temperature": 2.0},
        "rating": {"alpha": 0.5},
    }
}
LISTS = {"top_k": {"next_item": 5}, "temperature": {"next_item": 2.0}}
STATES = {"states": {"teacher_width": 16, "loss": "experts"}}


@pytest.fixture(scope="module")
def world():
    return fit(synthetic_log(users=24))


@pytest.fixture(scope="module")
def master(world):
    return tiny_model(world[0], seed=7, hidden_size=16, dropout=0.5)


@pytest.fixture(scope="module")
def folder(world, master, tmp_path_factory):
    """The teacher as a run has saved it."""
    place = tmp_path_factory.mktemp("teacher")
    master.save_pretrained(place)
    world[0].save_pretrained(place)
    return place


def trainer_of(world, output, plan, teacher=None, judged=None, callbacks=None, **options):
    """A trainer of a tiny student; `teacher` is an object or a folder."""
    processor, parts = world
    options = {"per_device_train_batch_size": 8, "num_train_epochs": 2, "learning_rate": 0.01, **options}
    named = {"teacher": teacher} if isinstance(teacher, str) else {}
    return PolyRecTrainer(
        tiny_model(processor, distillation=plan, dropout=0.2).train(),
        arguments(output, **options, **named),
        parts.train,
        parts.valid if judged is None else judged,
        processing_class=processor,
        teacher=None if named else teacher,
        callbacks=callbacks,
    )


def trained(trainer, **options):
    trainer.train(**options)
    return {name: values.clone() for name, values in trainer.model.state_dict().items()}


def same(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


class Interrupt(TrainerCallback):
    """Stops after so many steps with a checkpoint, as a killed job leaves one."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **unused):
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


# ------------------------------------------------------------------ named by its folder
def test_a_folder_teaches_what_the_object_teaches(world, master, folder, tmp_path):
    """Prevents an argument that is accepted and never used, or that asks for other lists and no states."""
    plan = PLAN | STATES
    live = LiveTeacher(master, world[0], **LISTS, states=True)
    expected = trained(trainer_of(world, tmp_path / "a", plan, live))
    same(trained(trainer_of(world, tmp_path / "b", plan, str(folder))), expected)
    live.prepare(world[1].train, world[0])
    write_outputs(live, world[1].train, world[0], tmp_path / "logits")
    expected = trained(trainer_of(world, tmp_path / "c", PLAN, StoredTeacher(tmp_path / "logits")))
    same(trained(trainer_of(world, tmp_path / "d", PLAN, str(tmp_path / "logits"))), expected)


def test_folders_that_cannot_teach_are_refused(world, master, folder, tmp_path):
    """Prevents training on without the teacher that was named, or one that is named beside another."""
    with pytest.raises(ValueError, match=r"holds neither a saved model \(config.json\) nor stored outputs"):
        trainer_of(world, tmp_path, PLAN, str(tmp_path))
    with pytest.raises(ValueError, match="does not say what to learn of it"):
        trainer_of(world, tmp_path, None, str(folder))
    with pytest.raises(ValueError, match="its arguments name another"):
        PolyRecTrainer(
            tiny_model(world[0], distillation=PLAN),
            arguments(tmp_path, teacher=str(folder)),
            world[1].train,
            processing_class=world[0],
            teacher=LiveTeacher(master, world[0], **LISTS),
        )
    assert for_going_on({"teacher": str(folder), "weight_decay": 0.1}) == {"weight_decay": 0.1}  # no plan is left


# ------------------------------------------------------------------ interrupted, and in half precision
@pytest.mark.parametrize("step", [1, 4], ids=["first_epoch", "second_epoch"])
def test_a_resumed_training_goes_on_with_its_teacher(world, master, tmp_path, step):
    """Prevents a resumed run from another alpha, drawn items, drawn orders, expert noise or projection than it had."""
    plan = PLAN | STATES | {"unlabelled": 2}

    def training(output, **options):
        teacher = LiveTeacher(master, world[0], **LISTS, states=True)
        return trainer_of(world, output, plan, teacher, gradient_accumulation_steps=2, **options)

    whole = training(tmp_path / "whole", num_train_epochs=3)
    expected = trained(whole)
    assert whole.state.global_step > step + 1
    training(tmp_path / "cut", num_train_epochs=3, callbacks=[Interrupt(step)]).train()
    resumed = training(tmp_path / "cut", num_train_epochs=3)
    same(trained(resumed, resume_from_checkpoint=True), expected)
    assert resumed.state.global_step == whole.state.global_step


def test_half_precision_learns_from_a_teacher(world, master, tmp_path):
    """Prevents soft losses from being rounded, or NaN, where the student computes in bf16."""
    plan, lines = PLAN | STATES, []
    for bf16 in (False, True):
        teacher = LiveTeacher(master, world[0], **LISTS, states=True)
        trainer = trainer_of(world, tmp_path / str(bf16), plan, teacher, bf16=bf16, max_steps=2, logging_steps=1)
        trainer.train()
        lines.append(trainer.state.log_history[0])
        assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    soft = [name for name in lines[0] if name.startswith("loss_") and ("_soft" in name or "distilled" in name)]
    assert len(soft) == 4
    # The first step: the same weights and, but for their rounding, the same answers.
    assert {n: lines[1][n] for n in soft} == pytest.approx({n: lines[0][n] for n in soft}, rel=0.05)


# ------------------------------------------------------------------ kept from what judges
def test_evaluation_sets_of_another_log_are_kept_from_the_teacher(world, master, tmp_path):
    """Prevents a teacher from having learnt what validates the student because that lies in a table of its own."""
    teacher = LiveTeacher(master, world[0], **LISTS)
    log = synthetic_log(users=24)
    learnt_rows = world[1].train.log.row[world[1].train.candidates.event[:40]]
    table = {name: values[sorted(set(learnt_rows.tolist()))] for name, values in log["interactions"].items()}
    other, statistics = world[0].resume(table)
    shared = world[0].evaluation_set(other, other.time == other.time, statistics)
    for judged in (shared, {"valid": world[1].valid, "other": shared}):
        more = {"metric_for_best_model": "valid_mean_improvement"} if isinstance(judged, dict) else {}
        with pytest.raises(LeakageError, match="rows that the student is evaluated on"):
            trainer_of(world, tmp_path, PLAN, teacher, judged, **more)
    again, statistics = world[0].resume(log["interactions"])
    held = ~(again.time < world[1].valid.log.time[world[1].valid.candidates.event].min())
    trainer_of(world, tmp_path, PLAN, teacher, world[0].evaluation_set(again, held, statistics))


def test_drawn_items_need_a_task_about_pairs(world, tmp_path):
    """Prevents items from being drawn in every batch of a plan in which nobody answers them."""
    classical = CatalogTeacher("ease", world[1].train, world[0])
    plan = {"tasks": {"next_item": {}}, "unlabelled": 3}
    with pytest.raises(ValueError, match="scores the candidates of the data set alone"):
        trainer_of(world, tmp_path, plan, classical)
    silent = {"tasks": {"next_item": {}, "like": {"alpha": 0.0}}, "unlabelled": 3}
    with pytest.raises(ValueError, match=r"teaches none of those that the teacher scores \(like, rating\)"):
        trainer_of(world, tmp_path, silent, LiveTeacher(tiny_model(world[0], seed=7), world[0]))
