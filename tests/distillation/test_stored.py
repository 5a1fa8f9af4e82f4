"""Answers that were stored: the same as live ones, whole or refused, and a run that goes on where it stopped."""

import json
import shutil

import numpy as np
import pytest
import torch
from flip_bytes import FAULTS, campaign, draw
from flip_bytes import table as outcomes
from model_fixtures import TASKS, fit, synthetic_log
from teacher_fixtures import batch_of, live, world

from polyrec.data.splits import LeakageError
from polyrec.distillation import stored
from polyrec.distillation.stored import StoredError, StoredTeacher, write_outputs
from polyrec.distillation.table import TableTeacher
from polyrec.distillation.unlabelled import with_unlabelled

LEVELS = {"name": "stars", "head": "ordinal", "label": "rating"}


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A prepared teacher, its data, and a folder with its answers in five shards."""
    _, processor, parts = world(tasks=[*TASKS, LEVELS])
    teacher = live(processor, top_k=6, temperature=2.0)
    teacher.prepare(parts.train, processor)
    folder = tmp_path_factory.mktemp("answers") / "logits"
    write_outputs(teacher, parts.train, processor, folder, shard_rows=50, batch_size=4)
    return teacher, processor, parts, folder


def copied(folder, tmp_path):
    """A copy of a folder of answers that a test may damage."""
    return shutil.copytree(folder, tmp_path / "copy")


def assert_alike(found, expected, rtol=1e-3, atol=2e-3):
    """The same answers but for rounding; ranks of a list may be exchanged where its scores are equal."""
    assert {k for k, v in found.items() if v} == {k for k, v in expected.items() if v}
    for task, values in expected["teacher_logits"].items():
        torch.testing.assert_close(found["teacher_logits"][task], values, equal_nan=True, rtol=rtol, atol=atol)
    for task, values in expected["teacher_scores"].items():
        torch.testing.assert_close(found["teacher_scores"][task], values, equal_nan=True, rtol=rtol, atol=atol)
        assert torch.equal(found["teacher_items"][task], expected["teacher_items"][task])


def test_stored_answers_equal_live_ones(case):
    """Prevents a row of the files from being another candidate's, and rounding beyond half precision."""
    teacher, processor, parts, folder = case
    table = StoredTeacher(folder, revision=teacher.revision)
    assert len(table.tables) == 5
    table.prepare(parts.train, processor)
    fixed = parts.train.fixed()
    for windows in ([0, 1, 2], [7, 3, 20, 11], list(range(len(fixed)))):
        batch = batch_of(fixed, windows)
        assert_alike(table.score(batch), teacher.score(batch))
    memory = TableTeacher.of(teacher, parts.train, processor)
    memory.prepare(parts.train, processor)
    batch = batch_of(fixed)
    assert_alike(memory.score(batch), teacher.score(batch), rtol=1e-5, atol=1e-5)


def test_views_of_an_event_have_answers_of_their_own(tmp_path):
    """Prevents the delayed view of an event from being given what was answered with everything visible."""
    tables, processor, _ = world()
    parts = processor.split(tables["interactions"], max_delay=3000.0, delayed_share=0.5)
    teacher = live(processor, top_k=6)
    teacher.prepare(parts.train, processor)
    write_outputs(teacher, parts.train, processor, tmp_path / "a", shard_rows=200)
    table = StoredTeacher(tmp_path / "a")
    table.prepare(parts.train, processor)
    fixed = parts.train.fixed()
    batch = batch_of(fixed, list(range(len(fixed))))
    assert_alike(table.score(batch), teacher.score(batch))
    drawn = batch_of(parts.train, list(range(len(fixed))))  # an epoch that asks one view of each
    found, rows = table.score(drawn), drawn["candidate_rows"]
    whole = table.score(batch)["teacher_logits"]["like"].flatten()[batch["candidate_rows"].flatten().argsort()]
    expected = whole[(batch["candidate_rows"] < 0).sum() :][rows[rows >= 0]]
    torch.testing.assert_close(found["teacher_logits"]["like"][rows >= 0], expected)
    assert len(expected) < len(whole)


def test_an_interrupted_run_goes_on(case, tmp_path, monkeypatch):
    """Prevents a run from starting anew, or from keeping what a killed one has left half-written."""
    teacher, processor, parts, folder = case
    plain, calls = stored.score_windows, []

    def dies(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return plain(*arguments)

    monkeypatch.setattr(stored, "score_windows", dies)
    with pytest.raises(KeyboardInterrupt):
        write_outputs(teacher, parts.train, processor, tmp_path / "a", shard_rows=50)
    (tmp_path / "a" / ".shard-00002.safetensors.1-1.tmp").write_bytes(b"half a shard")
    with pytest.raises(StoredError, match="holds 2 of 5 shards: scoring was interrupted; run the same"):
        StoredTeacher(tmp_path / "a")
    calls[:] = [1] * 10
    write_outputs(teacher, parts.train, processor, tmp_path / "a", shard_rows=50)
    assert len(calls) == 13
    again, whole = StoredTeacher(tmp_path / "a"), StoredTeacher(folder)
    batch = batch_of(parts.train.fixed())
    for table in (again, whole):
        table.prepare(parts.train, processor)
    assert_alike(again.score(batch), whole.score(batch))


@pytest.mark.parametrize("files", [False, True], ids=["memory", "files"])
def test_drawn_items_have_the_answers_that_were_given_about_them(case, tmp_path, files):
    """Prevents a drawn item from being taught what the teacher said of another one, of another person or event."""
    teacher, processor, parts, _ = case
    if files:
        folder = write_outputs(
            teacher, parts.train, processor, tmp_path / "a", shard_rows=50, batch_size=4, unlabelled=3
        )
        table, tolerance = StoredTeacher(folder), {"rtol": 1e-3, "atol": 2e-3}
    else:
        table = TableTeacher.of(teacher, parts.train, processor, unlabelled=3)
        tolerance = {"rtol": 1e-5, "atol": 1e-5}
    table.prepare(parts.train, processor)
    fixed = parts.train.fixed()
    items = set()
    for seed, windows in enumerate([[0, 1, 2], [7, 3, 20, 11], list(range(len(fixed)))]):
        batch = batch_of(fixed, windows)
        drawn = table.draw(batch, 5, processor.num_items, torch.Generator().manual_seed(seed))
        assert drawn.items_BU.shape == (len(windows), 5)
        asked = with_unlabelled(batch, drawn)
        assert_alike(table.score({**asked, "drawn": drawn}), teacher.score(asked), **tolerance)
        items |= set(drawn.items_BU.flatten().tolist())
    assert len(items) > processor.num_items // 2
    assert min(items) >= 2
    # Answers about the candidates themselves are those of a table without drawn items.
    batch, plain = batch_of(fixed), TableTeacher.of(teacher, parts.train, processor)
    plain.prepare(parts.train, processor)
    assert_alike(table.score(batch), plain.score(batch))


def test_a_run_with_drawn_items_goes_on_to_the_same_bytes(case, tmp_path):
    """Prevents a shard that is written anew from asking about other items than the answers beside it say."""
    teacher, processor, parts, _ = case
    folder = write_outputs(teacher, parts.train, processor, tmp_path / "a", shard_rows=50, unlabelled=2)
    shard = folder / "shard-00002.safetensors"
    content = shard.read_bytes()
    shard.unlink()
    for other in (0, 1):
        with pytest.raises(StoredError, match="differ in unlabelled"):
            write_outputs(teacher, parts.train, processor, folder, shard_rows=50, unlabelled=other)
    write_outputs(teacher, parts.train, processor, folder, shard_rows=50, unlabelled=2)
    assert shard.read_bytes() == content


def test_teachers_that_know_the_candidates_alone_are_not_asked_about_others(case):
    """Prevents a file of empty answers about drawn items."""
    _, processor, parts, folder = case
    stored_before = StoredTeacher(folder)
    stored_before.prepare(parts.train, processor)
    with pytest.raises(ValueError, match="unlabelled=2 needs outputs for items without labels"):
        TableTeacher.of(stored_before, parts.train, processor, unlabelled=2)


def test_damaged_shards_are_refused_and_written_anew(case, tmp_path):
    """Prevents training from learning from half a file, or from bytes that have changed."""
    teacher, processor, parts, original = case
    folder = copied(original, tmp_path)
    shard = folder / "shard-00001.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[:-10])
    with pytest.raises(StoredError, match="it is cut off or damaged; run the same `polyrec score` again"):
        StoredTeacher(folder)
    shard.write_bytes(content[:-10] + bytes(byte ^ 1 for byte in content[-10:]))
    with pytest.raises(StoredError, match="does not have the checksum"):
        StoredTeacher(folder)
    shard.unlink()
    with pytest.raises(StoredError, match="is missing"):
        StoredTeacher(folder)
    write_outputs(teacher, parts.train, processor, folder, shard_rows=50, batch_size=4)
    assert shard.read_bytes() == content
    StoredTeacher(folder)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(StoredError, match=r"manifest.json is damaged"):
        StoredTeacher(folder)
    with pytest.raises(StoredError, match="not a folder written by"):
        StoredTeacher(tmp_path)


def test_a_changed_byte_is_noticed(case, tmp_path):
    """Shards had a checksum, but what the teacher was trained on, and the manifest itself, had none."""
    folder = copied(case[3], tmp_path)
    other = shutil.copytree(folder, tmp_path / "other")
    batch = batch_of(case[2].train.fixed())

    def answers(place) -> bytes:
        teacher = StoredTeacher(place)
        teacher.prepare(case[2].train, case[1])
        found = teacher.score(batch)
        rows = [r.arrays() for r in teacher.training_rows if r is not None]
        parts = [values for kind in found.values() if kind for values in kind.values()]
        return b"".join(np.asarray(v).tobytes() for v in [*parts, *(a for r in rows for a in r.values())])

    found = campaign(folder, other, answers, draw(folder, 60, seed=3))
    assert not [entry for entry in found if entry[1] in FAULTS], outcomes(found)
    assert sum(entry[1] == "refused" for entry in found) > 40


def test_other_teachers_and_other_data_are_refused(case, tmp_path):
    """Prevents answers of changed weights, or about rows of another table, from teaching."""
    _, processor, parts, folder = case
    other = live(processor, seed=1, top_k=6, temperature=2.0)
    other.prepare(parts.train, processor)
    with pytest.raises(StoredError, match="differ in revision: choose another --output"):
        write_outputs(other, parts.train, processor, copied(folder, tmp_path), shard_rows=50)
    with pytest.raises(StoredError, match=f"not of {other.revision[:12]}"):
        StoredTeacher(folder, revision=other.revision)
    table = StoredTeacher(folder)
    tables = synthetic_log(users=30, seed=9)
    foreign, foreign_parts = fit(tables, [*TASKS, LEVELS])
    with pytest.raises(ValueError, match="the interactions table is another one"):
        table.prepare(foreign_parts.train, foreign, judged=[])
    changed = [{**TASKS[0]}, {**TASKS[1], "label": "rating >= 2"}, LEVELS]
    same, same_parts = fit(synthetic_log(users=30), changed)
    with pytest.raises(ValueError, match="task 'like': label"):
        table.prepare(same_parts.train, same)
    ordered, ordered_parts = fit(synthetic_log(users=30), [*TASKS, LEVELS], ties="order")
    with pytest.raises(ValueError, match="visible events, and the student reads it with"):
        table.prepare(ordered_parts.train, ordered)


def test_rows_without_an_answer_are_refused_or_skipped(case):
    """Prevents a student from silently learning a part of its data without its teacher."""
    _, processor, parts, folder = case
    with pytest.raises(ValueError, match="candidates of the student's data have no stored output, e.g. that of row"):
        StoredTeacher(folder).prepare(parts.valid, processor, judged=[])
    absent, both = len(parts.valid.candidates.event), sum(len(p.candidates.event) for p in parts[:2])
    first = parts.valid.log.row[parts.valid.candidates.event[0]]
    with pytest.raises(ValueError, match=f"^{absent} of the {both} candidates .*e.g. that of row {first} of"):
        StoredTeacher(folder).bind([parts.train, parts.valid], processor)
    table = StoredTeacher(folder, missing="skip")
    table.prepare(parts.valid, processor, judged=[])
    found = table.score(batch_of(parts.valid))
    assert torch.isnan(found["teacher_logits"]["like"]).all()
    assert torch.isnan(found["teacher_scores"]["next_item"]).all()


def test_what_the_teacher_learnt_lies_beside_its_answers(case, tmp_path):
    """Prevents a leak by way of the files: they refuse where the teacher itself would."""
    teacher, processor, parts, folder = case
    table = StoredTeacher(folder)
    np.testing.assert_array_equal(table.training_rows[0].sketch, teacher.training_rows[0].sketch)
    with pytest.raises(LeakageError, match="was trained on"):
        table.prepare(parts.train, processor, judged=[parts.train])
    nameless = copied(folder, tmp_path)
    (nameless / "training_rows.0.safetensors").unlink()
    with pytest.raises(LeakageError, match="does not say which rows"):
        StoredTeacher(nameless).prepare(parts.train, processor)
    StoredTeacher(nameless, trust=True).prepare(parts.train, processor)


def test_numbers_in_the_labels_unit_are_not_halved(case):
    """Prevents watch times of a million milliseconds from becoming infinite."""
    _, _, _, folder = case
    table = StoredTeacher(folder).tables[0]
    assert {task: values.dtype for task, values in table.numbers.items()} == {
        "like": np.float16,
        "rating": np.float32,
        "stars": np.float16,
    }
    np.testing.assert_array_equal(
        stored._halved(np.array([1e6, -np.inf, np.nan, 1.0])), np.array([65504, -np.inf, np.nan, 1], np.float16)
    )
    manifest = json.loads((folder / "manifest.json").read_text())
    assert sum(shard["rows"] for shard in manifest["written"]) == manifest["candidates"]
