"""A student learns the same from stored answers as from a live teacher."""

import torch
from model_fixtures import TASKS, arguments, fit, model_inputs, synthetic_log, tiny_config
from teacher_fixtures import batch_of, live

from polyrec import PolyRecForRecommendation, PolyRecTrainer
from polyrec.distillation.stored import StoredTeacher, write_outputs
from polyrec.distillation.table import TableTeacher

PLAN = {"tasks": {name: {"alpha": 0.7, "temperature": 2.0} for name in ("next_item", "like")}}
PLAN["tasks"]["next_item"]["top_k"] = 8
PLAN["tasks"]["rating"] = {"alpha": 0.5}


def trained(processor, parts, teacher, folder, plan=PLAN):
    """Weights of a student after two epochs with a teacher."""
    torch.manual_seed(5)
    student = PolyRecForRecommendation(tiny_config(processor, distillation=plan))
    run = arguments(folder, num_train_epochs=2, per_device_train_batch_size=8, learning_rate=0.01)
    trainer = PolyRecTrainer(student, run, parts.train, processing_class=processor, teacher=teacher)
    trainer.train()
    learnt = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    return student, learnt


def test_a_student_learns_from_stored_answers_about_items_that_nobody_took(tmp_path):
    """Prevents drawn items from teaching nothing where outputs are stored, and a run that cannot be repeated."""
    processor, parts = fit(synthetic_log(users=30), TASKS)
    teacher = live(processor, seed=7, top_k=8, temperature=2.0)
    teacher.prepare(parts.train, processor)
    table = TableTeacher.of(teacher, parts.train, processor, unlabelled=2)
    batch = model_inputs(batch_of(parts.train))
    found = []
    for unlabelled in (0, 6, 6):
        plan = {**PLAN, "unlabelled": unlabelled}
        student, _ = trained(processor, parts, table, tmp_path / f"{len(found)}", plan)
        with torch.no_grad():
            found.append(student.eval()(**batch).logits["like"])
    assert torch.equal(found[1], found[2])
    assert not torch.equal(found[0], found[1])


def test_stored_answers_teach_what_a_live_teacher_teaches(tmp_path):
    """Prevents a student that learns from files from becoming another one, and a teacher from learning along."""
    tables = synthetic_log(users=30)
    processor, _ = fit(tables, TASKS)
    # Files hold answers to the log's own order and times; a live teacher is asked about what the student sees.
    parts = processor.split(tables["interactions"], shuffle_ties=False, untimed_share=0.0)
    teacher = live(processor, seed=7, top_k=8, temperature=2.0)
    before = {name: p.clone() for name, p in teacher.model.named_parameters()}
    teacher.prepare(parts.train, processor)
    write_outputs(teacher, parts.train, processor, tmp_path / "logits", shard_rows=60)
    memory = TableTeacher.of(teacher, parts.train, processor)
    one, learnt = trained(processor, parts, teacher, tmp_path / "live")
    assert not learnt & {id(p) for p in teacher.model.parameters()}
    for name, p in teacher.model.named_parameters():
        assert torch.equal(p, before[name])
        assert p.grad is None
    # Answers and not weights are compared: Adam makes steps of rounding where a gradient is 0.
    batch = model_inputs(batch_of(parts.train))

    def answers(student):
        with torch.no_grad():
            return torch.cat([values.flatten() for values in student.eval()(**batch).logits.values()])

    torch.manual_seed(5)
    start = answers(PolyRecForRecommendation(tiny_config(processor, distillation=PLAN)))
    # Files hold half precision, which Adam makes the most of where gradients are small: there the mean is compared.
    for other, largest, mean in ((memory, 1e-4, 1e-4), (StoredTeacher(tmp_path / "logits"), 3e-2, 2e-3)):
        two, _ = trained(processor, parts, other, tmp_path / "other")
        torch.testing.assert_close(answers(one), answers(two), rtol=0, atol=largest)
        assert (answers(one) - answers(two)).abs().mean() < mean
    assert (answers(one) - start).abs().mean() > 0.1
