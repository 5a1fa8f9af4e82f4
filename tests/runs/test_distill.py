"""`polyrec distill` and `polyrec quantize` from the command line."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from run_fixtures import two_task_recipe

from polyrec import PolyRecForRecommendation
from polyrec.cli.main import main
from polyrec.runs import student_size
from polyrec.runs.distill import DistillationRun, _ablations
from polyrec.runs.distill_settings import DistillSettings
from polyrec.runs.prepare import prepare, read_run
from polyrec.runs.recipe import Recipe
from polyrec.runs.student_size import parameters_of, sized

NARROW = ["--set", "model.hidden_size=8"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A trained teacher, wider than its students, and the recipe of both."""
    folder = tmp_path_factory.mktemp("distill")
    training = {"per_device_train_batch_size": 8}
    recipe = two_task_recipe(
        folder, 24, "teacher", model={"hidden_size": 16, "num_hidden_layers": 2}, training=training
    )
    assert main(["train", str(recipe), "--set", "training.num_train_epochs=6"]) == 0
    return folder


def distilled(world, output, *flags):
    command = ["distill", str(world / "recipe.yaml"), "--output", str(output), "--resamples", "20", *flags]
    assert main(command) == 0
    return json.loads((Path(output) / "distill.json").read_text())


def test_a_whole_distillation(world, tmp_path, capsys, interrupt):
    """Prevents a student that is no run, a report that lacks a system, and work that is done twice."""
    teacher = str(world / "teacher")
    flags = [
        "--teacher",
        teacher,
        "--classical",
        "item_knn",
        *NARROW,
        "--temperature",
        "2",
        "--alpha",
        "0.4",
    ]
    first = distilled(world, tmp_path / "s", *flags)
    assert not first["brought"]
    flags.append("--ablations")  # may be asked for later
    found = distilled(world, tmp_path / "s", *flags)
    assert found["tasks"] == first["tasks"]
    assert set(found["systems"]) == {"teacher", "alone", "student"}
    for task, primary in (("next_item", "ndcg@10"), ("rating", "rmse")):
        own = found["tasks"][task]
        assert own["primary"] == primary
        assert set(own["metrics"][primary]) == {"teacher", "alone", "student"}
        assert own["gain_over_alone"][primary]["low"] <= own["gain_over_alone"][primary]["high"]
        sign = 1 if own["higher_is_better"][primary] else -1
        values = own["metrics"][primary]
        expected = sign * (values["student"] - values["alone"])
        assert own["gain_over_alone"][primary]["gain"] == pytest.approx(expected)
    plan = found["plan"]["tasks"]
    assert (plan["next_item"]["temperature"], plan["rating"]["temperature"]) == (2.0, 1.0)
    assert set(found["brought"]) == {task for task, b in found["alphas"].items() if b["alpha"] > 0}
    for task, weights in found["weights"].items():
        assert sum(weights) == pytest.approx(1), task
    assert found["systems"]["student"]["people_per_second"] > 0
    assert found["systems"]["student"]["parameters"] == found["systems"]["alone"]["parameters"]
    text = (tmp_path / "s" / "distill.md").read_text()
    assert "gain over alone" in text
    assert "Which loss brought what" in text

    done = interrupt(None)  # counts the steps
    again = distilled(world, tmp_path / "s", *flags)
    assert not done
    assert again["tasks"] == found["tasks"]
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "s")]) == 0
    assert "polyrec" in capsys.readouterr().out
    assert main(["recommend", str(tmp_path / "s"), "--history", "3,4", "-k", "2"]) == 0
    config = PolyRecForRecommendation.from_pretrained(tmp_path / "s").config
    assert config.hidden_size == 8
    assert config.distillation.teacher == f"{teacher}, item_knn"


def test_the_teachers_values_are_those_of_its_own_run(world, tmp_path):
    """Prevents a teacher that is measured by another harness than its run was."""
    found = distilled(world, tmp_path / "s", "--teacher", str(world / "teacher"), *NARROW, "--no-baseline")
    run = json.loads((world / "teacher" / "metrics.json").read_text())
    for task in ("next_item", "rating"):
        own = run[task]["polyrec"]
        for metric, values in found["tasks"][task]["metrics"].items():
            assert values["teacher"] == pytest.approx(own[metric], abs=2e-3), metric
    assert "alone" not in found["systems"]


def test_an_interrupted_distillation_goes_on(world, tmp_path, interrupt):
    """Prevents a finished training from being repeated because a later one was interrupted."""
    flags = ["--classical", "ease", *NARROW]
    interrupt(8)
    with pytest.raises(AssertionError, match="130"):
        distilled(world, tmp_path / "s", *flags)
    assert not (tmp_path / "s").exists()  # half a distillation is no run
    interrupt(None)
    found = distilled(world, tmp_path / "s", *flags)
    assert list(found["plan"]["tasks"]) == ["next_item"]  # all that it answers
    with pytest.raises(AssertionError):
        distilled(world, tmp_path / "s", *flags, "--alpha", "0.9")


def test_a_teacher_that_knows_no_person_is_not_believed(world, tmp_path):
    """Prevents popularity from teaching what the labels say better: without it the student is the one alone."""
    found = distilled(world, tmp_path / "s", "--classical", "popularity", *NARROW)
    chosen = found["alphas"]["next_item"]
    assert chosen["teacher"] == chosen["baseline"]
    assert chosen["alpha"] == 0
    for task in found["tasks"].values():
        for values in task["metrics"].values():
            assert values["student"] == values["alone"]


def test_each_ablation_leaves_one_loss_out(monkeypatch):
    """Prevents "without X" from being a student that learns X alone."""
    plan = {"tasks": {name: {"alpha": 0.5} for name in ("next_item", "rating", "like")}, "gates": 0.2}
    tasks = [{"name": name, "head": "binary"} for name in plan["tasks"]]
    recipe = Recipe("log.csv", tasks=tasks, model={"distillation": plan})
    trained = {}
    monkeypatch.setattr(
        DistillationRun,
        "train",
        lambda self, name, recipe, teacher, start: trained.update({name: recipe.model, "t": teacher}),
    )
    shop = DistillationRun(recipe, SimpleNamespace(ablations=True), {}, None, None, None)
    alphas = {name: SimpleNamespace(alpha=float(name != "like")) for name in plan["tasks"]}
    bar = SimpleNamespace(total=None, update=lambda: None)
    _ablations(shop, "teacher", None, alphas, bar)
    assert trained.pop("t") == "teacher"
    left = {name: ({*held["distillation"]["tasks"]}, held["distillation"]["gates"]) for name, held in trained.items()}
    assert left == {
        "without_next_item_soft": ({"rating", "like"}, 0.2),
        "without_rating_soft": ({"next_item", "like"}, 0.2),
        "without_distilled_gates": ({"next_item", "rating", "like"}, 0.0),
    }
    assert bar.total == 3


def test_stored_answers_teach(world, tmp_path):
    """Prevents stored answers from being asked about parts that they do not know."""
    logits = str(tmp_path / "logits")
    assert main(["score", str(world / "teacher"), "--output", logits]) == 0
    found = distilled(world, tmp_path / "s", "--teacher-outputs", logits, *NARROW)
    assert set(found["systems"]) == {"teacher", "alone", "student"}
    assert "teacher" not in found["tasks"]["rating"]["metrics"]["rmse"]
    assert any("not evaluated" in note for note in found["notes"])
    assert all(chosen["alpha"] == 0.5 for chosen in found["alphas"].values())


def test_targets_are_met(world, tmp_path):
    """Prevents a student that is larger than asked for, or smaller than it could be."""
    flags = ["--teacher", str(world / "teacher"), "--no-baseline", "--target-parameters", "6000"]
    found = distilled(world, tmp_path / "s", *flags)
    small = PolyRecForRecommendation.from_pretrained(tmp_path / "s")
    assert json.loads((tmp_path / "s" / "width.json").read_text()) == {"hidden_size": small.config.hidden_size}
    assert found["systems"]["student"]["parameters"] == small.num_parameters() <= 6000
    assert (
        main(["distill", str(world / "recipe.yaml"), *flags, "--output", str(tmp_path / "t"), "--init-from", "teacher"])
        == 0
    )
    start = json.loads((tmp_path / "t" / "distill.json").read_text())["start"]
    assert 0 < start["items_kept"] <= 1
    recipe = read_run(tmp_path / "s")
    processor, _ = prepare(recipe)
    recipe.model["distillation"] = None
    assert parameters_of(recipe, processor) == small.num_parameters()
    assert parameters_of(sized(recipe, small.config.hidden_size + 4), processor) > 6000


def test_what_states_and_gates_brought_is_told_beside_tasks(world, tmp_path):
    """Prevents a loss that no ablation leaves out, a projection that counts as part of the student that answers, and
    a start that the report keeps to itself."""
    plan = "model.distillation={tasks: {rating: {alpha: 0.5}}, states: {teacher_width: 16}, gates: 0.1}"
    experts = ["--set", "model.experts=mmoe"]
    assert main(["train", str(world / "recipe.yaml"), *experts, "--output", str(tmp_path / "mmoe")]) == 0
    flags = ["--teacher", str(tmp_path / "mmoe"), "--init-from", "teacher", "--ablations", *experts, "--set", plan]
    found = distilled(world, tmp_path / "s", *flags)
    distilled_tasks = {task for task, chosen in found["alphas"].items() if chosen["alpha"] > 0}
    assert set(found["brought"]) == {*distilled_tasks, "distilled_states", "distilled_gates"}
    systems = found["systems"]
    assert systems["student"]["parameters"] == systems["alone"]["parameters"] == systems["teacher"]["parameters"]
    text = (tmp_path / "s" / "distill.md").read_text()
    assert "| loss of states |" in text
    assert "| loss of gates |" in text
    assert "layers of its history encoder: 0, 1); its id embeddings hold 100.0%" in text


def test_names_of_several_teachers_are_those_of_their_folders(world, tmp_path):
    """Prevents a teacher inside an ensemble from being trained anew unnoticed, and from weighing nothing."""
    copied = tmp_path / "teacher"
    shutil.copytree(world / "teacher", copied, ignore=shutil.ignore_patterns("checkpoint-*"))
    flags = ["--teacher", f"{copied},item_knn", *NARROW, "--no-baseline"]
    found = distilled(world, tmp_path / "s", *flags)
    model = PolyRecForRecommendation.from_pretrained(copied)
    assert found["systems"]["teacher"]["parameters"] == model.num_parameters()
    assert found["systems"]["teacher"]["bytes"] == (copied / "model.safetensors").stat().st_size
    (copied / "model.safetensors").touch()
    distilled(world, tmp_path / "s", *flags)  # the same weights
    next(model.parameters()).data += 1
    model.save_pretrained(copied)
    with pytest.raises(AssertionError):  # another teacher: refused
        distilled(world, tmp_path / "s", *flags)


def test_a_target_of_milliseconds(world, monkeypatch):
    """Prevents a search that stops before the widest student that is fast enough."""
    recipe = read_run(world / "teacher")
    processor, parts = prepare(recipe)
    asked = []

    def slow(system, batch):
        asked.append(batch["candidate_ids"].shape)
        return system.model.config.hidden_size / 10

    monkeypatch.setattr(student_size, "latency", slow)
    assert student_size.width_for_latency(recipe, processor, parts.valid, 4.5) == 44
    assert set(asked) == {(1, 1)}
    with pytest.raises(ValueError, match="the smallest takes 0.40 ms"):
        student_size.width_for_latency(recipe, processor, parts.valid, 0.3)
    monkeypatch.setattr(student_size, "_LARGEST", 50)
    assert student_size.width_for_latency(recipe, processor, parts.valid, 1e9) == 48


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "no teacher given"),
        (["--teacher", "nowhere"], "there is no run folder 'nowhere'"),
        (["--classical", "eese"], "did you mean 'ease'"),
        (["--classical", "ease", "--init-from", "teacher"], "--init-from teacher needs a run"),
        (["--teacher", "ease", "--init-from", "teacher"], "'ease' is no run of `polyrec train`: name such a run first"),
        (["--teacher", "item_knn,ease", "--init-from", "teacher"], "each teacher by a --teacher of its own"),
        (["--classical", "ease", "--set", "training.teacher=runs/mine"], "leave it out, and pass --teacher"),
        (["--classical", "ease", "--alpha", "2"], "--alpha is 2.0"),
        (["--classical", "ease", "--temperature", "0"], "--temperature is 0.0"),
        (["--classical", "ease", "--target-parameters", "10"], "the smallest has"),
        (["--classical", "ease", "--target-parameters", "10", "--target-latency", "1"], "not both"),
        (["--classical", "ease", "--set", "model.distillation={tasks: {rating: {}}}"], "does not score task 'rating'"),
    ],
)
def test_mistakes_are_one_line(flags, message, world, tmp_path, capsys, interrupt):
    """Prevents a typing mistake from ending in a traceback, or after a training."""
    done = interrupt(None)
    assert main(["distill", str(world / "recipe.yaml"), "--output", str(tmp_path / "s"), *flags]) == 2
    assert message in capsys.readouterr().err
    assert not done


def test_the_whole_range_of_alpha_may_be_given():
    """Prevents labels alone, or the teacher alone, from being refused."""
    assert [DistillSettings(classical=("ease",), alpha=alpha).alpha for alpha in (0.0, 1.0)] == [0.0, 1.0]


def test_a_teacher_of_judged_rows_is_refused(world, tmp_path, capsys, interrupt):
    """Prevents a student from being taught the rows that it is judged by."""
    done = interrupt(None)
    flags = ["--teacher", str(world / "teacher"), "--set", "split.fractions=[0.5, 0.2, 0.3]"]
    assert main(["distill", str(world / "recipe.yaml"), "--output", str(tmp_path / "s"), *flags]) == 2
    assert "rows that the student is evaluated on" in capsys.readouterr().err
    assert not done


def test_factorize_a_run(world, tmp_path, capsys):
    """Prevents id vectors of low rank that are not measured, or a run that nothing goes on from."""
    run, output = str(world / "teacher"), str(tmp_path / "low")
    assert main(["factorize", run, "--rank", "4", "--output", output]) == 0
    report = json.loads((tmp_path / "low" / "factorize.json").read_text())
    saved = report["before"]["parameters"] - report["after"]["parameters"]
    assert saved == 26 * 16 - (26 * 4 + 4 * 16)
    assert report["after"]["bytes"] < report["before"]["bytes"]
    assert report["after"]["people_per_second"] > 0
    assert "they hold " in (tmp_path / "low" / "factorize.md").read_text()
    assert main(["evaluate", output]) == 0
    assert main(["finetune", output, "--task", "rating", "--epochs", "1"]) == 0
    assert main(["quantize", output, "--output", str(tmp_path / "both")]) == 0
    capsys.readouterr()
    assert main(["factorize", run, "--rank", "17"]) == 2
    assert "a rank of 1 to 16" in capsys.readouterr().err
    assert main(["factorize", run, "--rank", "4", "--output", run]) == 2
    assert "choose another --output" in capsys.readouterr().err


def test_quantize_a_run(world, tmp_path, capsys):
    """Prevents weights of 8 bits that are not measured, or a run that others cannot read."""
    run, output = str(world / "teacher"), str(tmp_path / "int8")
    assert main(["quantize", run, "--output", output]) == 0
    report = json.loads((tmp_path / "int8" / "quantize.json").read_text())
    assert report["after"]["bytes"] < 0.8 * report["before"]["bytes"]
    for name in ("rating_rmse", "next_item_ndcg@10"):
        assert report["after"]["metrics"][name] == pytest.approx(report["before"]["metrics"][name], abs=0.05)
    assert report["after"]["people_per_second"] > 0
    assert main(["evaluate", output]) == 0
    assert main(["recommend", output, "--history", "3,4"]) == 0
    capsys.readouterr()
    for command, message in (
        (["quantize", output], "no second quantization"),
        (["quantize", run, "--output", run], "choose another --output"),
        (["quantize", str(tmp_path)], "has no recipe.yaml"),
        (["finetune", output, "--task", "rating"], "take no training"),
    ):
        assert main(command) == 2
        assert message in capsys.readouterr().err
