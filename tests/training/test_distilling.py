"""A student and its teacher in the real trainer."""

from __future__ import annotations

import pytest
import torch
from model_fixtures import TASKS, arguments, clone, fit, model_inputs, synthetic_log, tiny_config, tiny_model
from torch.nn import functional as F

from polyrec import PolyRecForRecommendation, PolyRecTrainer
from polyrec.core.distillation_config import TaskDistillation
from polyrec.data.collator import PolyRecCollator
from polyrec.data.splits import LeakageError
from polyrec.distillation.ensemble import EnsembleTeacher
from polyrec.distillation.live import LiveTeacher
from polyrec.distillation.soft_losses.catalog import CatalogOutput
from polyrec.distillation.student import attach_soft_losses
from polyrec.distillation.table import TableTeacher
from polyrec.models.training_pass import LossStep

ALL = {name: {"alpha": 0.5} for name in ("next_item", "like", "rating")}


@pytest.fixture(scope="module")
def world():
    return fit(synthetic_log(users=24))


@pytest.fixture(scope="module")
def teacher_model(world):
    """A teacher of another size, with dropout, that has learnt nothing: its answers are as good as any here."""
    return tiny_model(world[0], seed=7, hidden_size=16, dropout=0.5, experts="mmoe")


def teacher_of(world, model, **options):
    return LiveTeacher(model, world[0], **options)


def student_of(world, plan, seed=0, **options):
    return taught(tiny_model(world[0], seed, distillation=None if plan is None else {"tasks": plan}, **options))


def taught(model):
    """A model whose forward pass reads a teacher's answers, as a trainer makes it."""
    attach_soft_losses(model)
    return model.train()


def trained(world, folder, model, teacher=None, **options):
    processor, parts = world
    options = {"per_device_train_batch_size": 8, "learning_rate": 0.01, "num_train_epochs": 2, **options}
    trainer = PolyRecTrainer(
        model, arguments(folder, **options), parts.train, parts.valid, processing_class=processor, teacher=teacher
    )
    trainer.train()
    return trainer


def batch_of(world, size=6):
    dataset = world[1].train
    return PolyRecCollator()([dataset[i] for i in range(min(size, len(dataset)))])


def loss_of(model, batch, teacher, **options):
    answers = teacher.score(batch)
    return model(**model_inputs(batch), teacher=answers, **options)


def test_alpha_of_0_is_plain_training_bit_for_bit(world, teacher_model, tmp_path):
    """Prevents a teacher that is not listened to from changing anything: random draws, order of sums, a factor of 1."""
    plain = trained(world, tmp_path / "a", student_of(world, None, dropout=0.2)).model.state_dict()
    plan = {name: {"alpha": 0.0} for name in ALL}
    deaf = trained(world, tmp_path / "b", student_of(world, plan, dropout=0.2), teacher_of(world, teacher_model))
    torch.testing.assert_close(deaf.model.state_dict(), plain, rtol=0, atol=0, equal_nan=True)


def test_a_teacher_is_never_changed_nor_owned(world, teacher_model, tmp_path):
    """Prevents a teacher with its dropout on, in the optimizer or the checkpoint, or moved by the student's gradient."""
    before = clone(teacher_model.state_dict())
    student = student_of(world, ALL)
    trainer = trained(world, tmp_path, student, teacher_of(world, teacher_model))
    torch.testing.assert_close(teacher_model.state_dict(), before, rtol=0, atol=0, equal_nan=True)
    assert all(p.grad is None for p in teacher_model.parameters())
    own = {id(p) for p in student.parameters()}
    assert {id(p) for group in trainer.optimizer.param_groups for p in group["params"]} <= own
    batch = batch_of(world)
    one, other = (teacher_of_bound(world, teacher_model).score(batch) for _ in range(2))
    assert torch.equal(one["teacher_logits"]["like"].nan_to_num(), other["teacher_logits"]["like"].nan_to_num())


def teacher_of_bound(world, model, **options):
    teacher = teacher_of(world, model, **options)
    teacher.prepare(world[1].train, world[0])
    return teacher


def test_the_objective_is_hard_and_soft_as_planned(world, teacher_model):
    """Prevents a plan that is accepted and not followed: alpha, hard share, temperature squared, reduction."""
    temperature = 2.0
    plan = {"like": {"alpha": 0.3, "hard_share": 0.9, "temperature": temperature}}
    student, teacher = student_of(world, plan), teacher_of_bound(world, teacher_model)
    batch = batch_of(world)
    found = loss_of(student, batch, teacher)
    real = batch["candidate_ids"] > 0
    q = teacher.score(batch)["teacher_logits"]["like"][real] / temperature
    z = found.logits["like"][real] / temperature
    kl = F.binary_cross_entropy_with_logits(z, q.sigmoid(), reduction="none")
    kl = kl - F.binary_cross_entropy_with_logits(q, q.sigmoid(), reduction="none")
    soft = temperature**2 * kl.mean()
    hard = {name: found.losses[name] / found.counts[name] for name in found.losses}
    weight = {task["name"]: task.get("weight", 1.0) for task in TASKS}
    expected = sum(weight[n] * hard[n] for n in hard if n != "like")
    expected = expected + weight["like"] * (0.9 * hard["like"] + 0.3 * soft)
    torch.testing.assert_close(found.soft["like_soft"], soft)
    torch.testing.assert_close(found.loss, expected)


def test_a_whole_catalog_list_is_the_kl_of_two_softmaxes(world, teacher_model):
    """Prevents lists of the wrong rows, padding items in the softmax, and a rest that counts the listed items twice."""
    plan = {"next_item": {"alpha": 0.5, "temperature": 1.5}}
    student, batch = student_of(world, plan), batch_of(world)
    for top_k in (3, 100):
        teacher = teacher_of_bound(world, teacher_model, top_k=top_k, temperature={"next_item": 1.5})
        found = loss_of(student, batch, teacher)
        asked = ((batch["labels"]["next_item"] > 0) & (batch["candidate_ids"] > 1)).flatten()
        states = found.states.flatten(0, 1)[asked]
        with torch.no_grad():
            answer = teacher_model(**{k: v for k, v in model_inputs(batch).items() if k != "labels"})
            context = teacher_model.request_context(**batch).rows(asked)
            theirs = (
                teacher_model.score_items(answer.states.flatten(0, 1)[asked], "next_item", context=context)[:, 2:] / 1.5
            )
        own = student.score_items(states, "next_item", context=context)[:, 2:] / 1.5
        p, q = theirs.softmax(-1), own.softmax(-1)
        if top_k == 100:
            kl = (p * (p / q).log()).sum(-1)
        else:
            listed = p.topk(3).indices
            one, two = (
                torch.cat([x.gather(1, listed), 1 - x.gather(1, listed).sum(1, keepdim=True)], 1) for x in (p, q)
            )
            kl = (one * (one / two).log()).sum(-1)
        torch.testing.assert_close(found.soft["next_item_soft"], 1.5**2 * kl.mean(), rtol=1e-4, atol=1e-6)


def test_a_perfect_teacher_leaves_the_student_where_it_is(world):
    """Prevents a soft loss whose minimum lies elsewhere than at the teacher's answers."""
    plan = {name: {"alpha": 1.0} for name in ALL}
    student = student_of(world, plan).eval()  # in which mode neighbours are those of all users, as a teacher's are
    teacher = teacher_of_bound(world, tiny_model(world[0], 0))
    loss_of(student, batch_of(world), teacher).loss.backward()
    for name, parameter in student.named_parameters():
        if parameter.grad is not None:
            assert parameter.grad.abs().max() < 1e-5, name


@pytest.mark.parametrize("weighting", ["fixed", "uncertainty", "aggregation"])
@pytest.mark.parametrize("missing", ["none", "labels", "answers", "all answers"])
def test_one_pass_for_labels_and_lists_trains_as_two(world, teacher_model, monkeypatch, weighting, missing):
    """Prevents the shared pass from another gradient where labels or answers lack, or a weighting scales the task."""
    batch, found = batch_of(world), []
    answers = teacher_of_bound(world, teacher_model, top_k=4).score(batch)
    if missing == "labels":
        batch["labels"]["next_item"][::2] = float("nan")
    elif missing != "none":
        answers["teacher_scores"]["next_item"][:: 2 if missing == "answers" else 1] = float("nan")
    for together in (True, False):
        student = student_of(world, ALL, weighting=weighting)
        head, plan = student.heads["next_item"], student.soft_losses.plans["next_item"]
        head.options["label_smoothing"] = 0.0
        if not together:
            monkeypatch.setattr(CatalogOutput, "beside_labels", staticmethod(lambda head, plan: False))
        assert CatalogOutput.beside_labels(head, plan) is together
        output = student(**model_inputs(batch), teacher=answers, step=LossStep(progress=0.3))
        output.loss.backward()
        found.append((output.loss, {n: p.grad for n, p in student.named_parameters() if p.grad is not None}))
    torch.testing.assert_close(*(loss for loss, _ in found))
    torch.testing.assert_close(*(gradients for _, gradients in found), rtol=1e-4, atol=1e-6)


def test_answers_about_padding_or_hidden_candidates_change_nothing(world, teacher_model):
    """Prevents padding from being learnt, and candidates that the teacher has no answer to from counting."""
    student, teacher = student_of(world, ALL), teacher_of_bound(world, teacher_model)
    batch = batch_of(world)
    answers = teacher.score(batch)
    first = student(**model_inputs(batch), teacher=answers)
    changed, padding = clone(answers), batch["candidate_ids"] == 0
    for values in (*changed["teacher_logits"].values(), *changed["teacher_scores"].values()):
        values[padding] = 77.0
    torch.testing.assert_close(student(**model_inputs(batch), teacher=changed).loss, first.loss)
    hidden = clone(answers)
    hidden["teacher_logits"]["like"][0] = float("nan")
    real = (batch["candidate_ids"] > 0)[1:]
    q, z = answers["teacher_logits"]["like"][1:][real], first.logits["like"][1:][real]
    expected = F.binary_cross_entropy_with_logits(z, q.sigmoid()) - F.binary_cross_entropy_with_logits(q, q.sigmoid())
    found = student(**model_inputs(batch), teacher=hidden).soft["like_soft"]
    torch.testing.assert_close(found, expected)


def test_accumulated_batches_give_one_batches_gradient(world, teacher_model, tmp_path):
    """Prevents the mean of means: batches with few answers of the teacher would weigh as much as those with many."""
    steps = []
    for number, (size, accumulated) in enumerate([(16, 1), (4, 4)]):
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulated, "max_steps": 1}
        options |= {"train_sampling_strategy": "random", "optim": "sgd", "max_grad_norm": 0.0}
        student = student_of(world, ALL)
        steps.append(trained(world, tmp_path / str(number), student, teacher_of(world, teacher_model), **options))
    for (name, one), other in zip(steps[0].model.named_parameters(), steps[1].model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6, msg=name)


def test_soft_losses_are_logged_beside_hard_ones(world, teacher_model, tmp_path):
    """Prevents distillation that nobody can see, and a schedule that is accepted and never used."""
    plan = {"like": {"alpha": 0.8, "schedule": "linear", "warmup": 0.2}, "next_item": {"alpha": 0.5}}
    options = {"logging_steps": 1, "num_train_epochs": 4}
    trainer = trained(world, tmp_path, student_of(world, plan), teacher_of(world, teacher_model), **options)
    lines = [line for line in trainer.state.log_history if "loss_like_soft" in line]
    assert len(lines) == trainer.state.max_steps
    alphas = [line["weight_like_soft"] for line in lines]
    assert alphas[0] == 0 < max(alphas) > alphas[-1]
    assert all(line["weight_next_item_soft"] == 0.5 for line in lines)
    for line in lines:
        assert line["loss_next_item_soft"] > 0


def test_kept_apart_the_weighting_sees_labels_alone(world, teacher_model, tmp_path):
    """Prevents soft losses from driving a weighting that was told to balance the hard ones."""
    teacher, batch = teacher_of_bound(world, teacher_model), batch_of(world)
    plan = {"like": {"alpha": 0.5, "hard_share": 1.0}}
    model = taught(tiny_model(world[0], distillation={"tasks": plan, "separate": True}, weighting="uncertainty"))
    plain = model(**model_inputs(batch))
    found = loss_of(model, batch, teacher)
    weight = {task["name"]: task.get("weight", 1.0) for task in TASKS}["like"]
    torch.testing.assert_close(found.loss, plain.loss + weight * 0.5 * found.soft["like_soft"])


def test_states_and_gates_are_learnt_as_well(world, tmp_path):
    """Prevents projections that are never trained, gates of padding that count, and weights that are ignored."""
    experts = {"experts": "mmoe", "expert_options": {"num_experts": 2}}
    master = tiny_model(world[0], seed=7, hidden_size=16, **experts)
    plan = {"tasks": {}, "states": {"teacher_width": 16, "weight": 0.2}, "gates": 0.3}
    student, batch = taught(tiny_model(world[0], distillation=plan, **experts)), batch_of(world)
    teacher = teacher_of_bound(world, master, states=True, gates=True)
    answers, plain = teacher.score(batch), student(**model_inputs(batch)).loss
    found = student(**model_inputs(batch), teacher=answers)
    real = batch["candidate_ids"] > 0
    target = F.layer_norm(answers["teacher_states"][real], (16,))
    states = F.mse_loss(student.soft_losses.states.project(found.states[real]), target)
    kl = [
        (p * (p / q).log()).sum(-1).mean()
        for p, q in ((answers["teacher_gates"][n][real], found.gates[n][real]) for n in ("like", "rating"))
    ]
    torch.testing.assert_close(found.loss, plain + 0.2 * states + 0.3 * sum(kl) / 2)
    trainer = trained(world, tmp_path, student, teacher_of(world, master, states=True, gates=True), logging_steps=1)
    lines = [line["loss_distilled_states"] for line in trainer.state.log_history if "loss_distilled_states" in line]
    assert lines[-1] < lines[0]
    with pytest.raises(ValueError, match="weigh different sources"):
        trained(world, tmp_path, tiny_model(world[0], distillation=plan, experts="mmoe"), teacher)
    with pytest.raises(ValueError, match=r"learns from states, .* LiveTeacher\(..., states=True\)"):
        plan = {"tasks": {}, "states": {"teacher_width": 16}}
        trained(world, tmp_path, tiny_model(world[0], distillation=plan), teacher_of(world, master))


def test_items_that_nobody_took_are_asked_of_the_teacher_alone(world, teacher_model, tmp_path):
    """Prevents drawn items from counting as negatives of a hard loss, and statistics of another item from being read."""
    plan = {"tasks": {"like": {"alpha": 0.5}, "rating": {"alpha": 0.5}}, "unlabelled": 3}
    student = tiny_model(world[0], distillation=plan).train()
    trainer = trained(world, tmp_path, student, teacher_of(world, teacher_model), max_steps=1)
    batch, plain = batch_of(world), batch_of(world)
    asked = plain["candidate_ids"].shape[1]
    trainer._score_by_teacher(trainer.teacher, batch, 0)
    assert batch["candidate_ids"].shape[1] == asked + 3
    drawn = batch["candidate_ids"][:, asked:]
    has_own = (plain["candidate_ids"] > 0).any(1)
    assert ((drawn[has_own] > 1) & (drawn[has_own] < world[0].num_items)).all()
    assert torch.isnan(batch["candidate_features"]["statistics"][:, asked:]).all()
    assert all(torch.isnan(values[:, asked:]).all() for values in batch["labels"].values())
    assert not torch.isnan(batch["teacher"]["teacher_logits"]["like"][:, asked:][has_own]).any()
    with_drawn = student(**model_inputs(batch))
    torch.testing.assert_close(with_drawn.losses, student(**model_inputs(plain)).losses)
    counts = student.soft_losses.counts(batch, student.heads)
    assert counts["like_soft"] == (batch["candidate_ids"] > 0).sum()
    again = batch_of(world)
    trainer._score_by_teacher(trainer.teacher, again, 0)
    assert torch.equal(again["candidate_ids"], batch["candidate_ids"])  # a resumed run draws the same


def test_stored_answers_cannot_answer_drawn_items(world, teacher_model, tmp_path):
    """Prevents a plan for unlabelled items from being accepted and never followed."""
    teacher = TableTeacher.of(teacher_of_bound(world, teacher_model), world[1].train, world[0])
    plan = {"tasks": {"like": {"alpha": 0.5}}, "unlabelled": 3}
    with pytest.raises(ValueError, match="unlabelled=3 needs outputs for items without labels"):
        trained(world, tmp_path, tiny_model(world[0], distillation=plan).train(), teacher)


def test_a_batch_with_answers_alone_counts_for_a_weighting(world, teacher_model):
    """Prevents a weighting from leaving a task out of a step in which only the teacher has answered it."""
    plan = {"tasks": {"like": {"alpha": 0.5}}}
    student = taught(tiny_model(world[0], distillation=plan, weighting="uncertainty"))
    batch = batch_of(world)
    batch["labels"]["like"].fill_(float("nan"))
    answers, asked = teacher_of_bound(world, teacher_model).score(batch), []
    student.weighting.register_forward_pre_hook(lambda module, inputs: asked.append(inputs[1].active))
    student(**model_inputs(batch), teacher=answers)
    student(**model_inputs(batch))
    assert [bool(active["like"]) for active in asked] == [True, False]
    assert all(bool(active["rating"]) for active in asked)


def test_what_cannot_teach_is_refused(world, teacher_model, tmp_path):
    """Prevents training on without the teacher that was meant, or with one that knows the answers."""
    with pytest.raises(ValueError, match="does not say what to learn of it"):
        trained(world, tmp_path, student_of(world, None), teacher_of(world, teacher_model))
    plan = {"next_item": {"temperature": 3.0}}
    with pytest.raises(ValueError, match="at the temperature 3"):
        trained(world, tmp_path, student_of(world, plan), teacher_of(world, teacher_model))
    log = synthetic_log(users=24)
    processor, _ = fit(log)
    processor.split(log["interactions"], fractions=(1.0, 0.0, 0.0))  # has learnt every row
    knows = LiveTeacher(teacher_model, processor)
    with pytest.raises(LeakageError, match="was trained on"):
        trained(world, tmp_path, student_of(world, ALL), knows)


def test_what_a_teacher_does_not_give_is_refused_before_training(world, teacher_model, tmp_path):
    """Prevents training from failing at its first batch, or lists of another length from teaching unnoticed."""
    processor, parts = world

    def built(plan, teacher, **options):
        model = tiny_model(processor, distillation={"tasks": {}, **plan}, **options)
        PolyRecTrainer(model, arguments(tmp_path), parts.train, processing_class=processor, teacher=teacher)

    whole = teacher_of(world, teacher_model, states=True, gates=True)
    table = TableTeacher.of(teacher_of_bound(world, teacher_model), parts.train, processor)
    states, gates = {"states": {"teacher_width": 16}}, {"gates": 0.1}
    for other in (EnsembleTeacher([whole]), table, teacher_of(world, teacher_model)):
        with pytest.raises(ValueError, match=r"learns from states, .* no ensemble, .* leave `states` out of the plan"):
            built(states, other)
        with pytest.raises(ValueError, match=r"learns from gates, .* LiveTeacher\(..., gates=True\).* set gates=0"):
            built(gates, other, experts="mmoe")
    with pytest.raises(ValueError, match="set teacher_width=16"):
        built({"states": {"teacher_width": 8}}, whole)
    built(states | gates, whole, experts="mmoe")
    shorter = {"tasks": {"next_item": {"top_k": 7}}}
    with pytest.raises(ValueError, match="top_k=7 items, but the teacher's have 100: give both the same"):
        built(shorter, whole)
    built(shorter, teacher_of(world, teacher_model, top_k={"next_item": 7}))
    with pytest.raises(ValueError, match="'like' .* is distilled without lists: leave top_k out"):
        built({"tasks": {"like": {"top_k": 7}}}, whole)


def test_a_student_is_loaded_as_it_was_saved(world, teacher_model, tmp_path):
    """Prevents a plan from being lost with the training, and a saved student from wanting its teacher."""
    trainer = trained(world, tmp_path / "run", student_of(world, ALL), teacher_of(world, teacher_model))
    trainer.save_model(tmp_path / "saved")
    loaded = PolyRecForRecommendation.from_pretrained(tmp_path / "saved")
    assert loaded.config.student_of == trainer.model.config.student_of
    batch = {k: v for k, v in model_inputs(batch_of(world)).items() if k != "labels"}
    one, other = loaded.eval()(**batch).logits, trainer.model.eval()(**batch).logits
    for name in ALL:
        assert torch.equal(one[name], other[name])


def test_a_task_cannot_take_the_name_of_a_soft_loss(world):
    """Prevents one of two losses from disappearing behind the other."""
    tasks = [{"name": name, "head": "binary"} for name in ("like", "like_soft")]
    with pytest.raises(ValueError, match="has the name of the task 'like_soft'"):
        tiny_config(world[0], tasks=tasks, distillation={"tasks": {"like": {}}})


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("constant", [0, 0.4, 0.8, 0.8, 0.8]), ("linear", [0, 0.4, 0.8, 0.4, 0]), ("cosine", [0, 0.4, 0.8, 0.4, 0])],
)
def test_the_weight_of_soft_losses_rises_and_falls(schedule, expected):
    """Prevents a weight above the one that was set, and one that never falls: half of the way back is half of it."""
    plan = TaskDistillation(alpha=0.8, schedule=schedule, warmup=0.2)
    assert [plan.alpha_at(progress) for progress in (0, 0.1, 0.2, 0.6, 1)] == pytest.approx(expected)
