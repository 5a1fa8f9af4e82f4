"""`polyrec distill`: recipe and teachers in; a student, and whether the teachers helped it, out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import transformers
import yaml
from tqdm.auto import tqdm

from polyrec.core.distillation_config import DistillationConfig
from polyrec.core.files import write_atomically
from polyrec.core.lock import locked
from polyrec.core.swap import beside, publish, recover
from polyrec.data.splitter import Splits
from polyrec.distillation.gating import AlphaSelection, gated, select_alpha
from polyrec.distillation.live import LiveTeacher
from polyrec.distillation.student import GATES, STATES, soft_name
from polyrec.distillation.teacher import Teacher
from polyrec.distillation.throughput import one_example_each, users_per_second
from polyrec.evaluation.comparison_runs import ComparisonRun, Cost
from polyrec.evaluation.evaluator import evaluate, improvements
from polyrec.models.polyrec.fingerprint import fingerprint as processor_digest
from polyrec.models.polyrec.fingerprint import item_digest
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor
from polyrec.runs.distill_report import REPORT_NAME, WITHOUT, Study, System, write_report
from polyrec.runs.distill_settings import DistillSettings
from polyrec.runs.distill_teacher import (
    Evaluator,
    answered_plan,
    build_members,
    joined,
    models_of,
    planned,
    run_folders,
    with_plan,
)
from polyrec.runs.evaluate import report_run
from polyrec.runs.facts import about_recipe, about_run, fingerprint, revision_of
from polyrec.runs.prepare import prepare
from polyrec.runs.recipe import Recipe
from polyrec.runs.stopping import train_safely
from polyrec.runs.student_size import sized, width_for_latency, width_for_parameters
from polyrec.runs.train import build_config, build_trainer, name_place, save_training
from polyrec.runs.transaction import complete, distillation_draft, place_of
from polyrec.tracking.run_files import RECIPE_NAME
from polyrec.training.arguments import PolyRecTrainingArguments
from polyrec.training.checkpoints import newest_checkpoint
from polyrec.training.cost import CostMeter, cost_of
from polyrec.training.memory import forget_peak_memory, peak_memory
from polyrec.training.shrink import start_from_teacher
from polyrec.training.trainer import PolyRecTrainer

TEACHER, ALONE, STUDENT = "teacher", "alone", "student"
_NO_RESULT = ("output", "tune")  # what of a recipe changes no result
_MORE = ("baseline", "ablations", "resamples", "skip_overlap_check")  # what may be asked for later, of the same student
_START_NAME, _WIDTH_NAME = "start.json", "width.json"


@dataclass
class DistillationRun:
    """What every training of one distillation shares."""

    recipe: Recipe
    settings: DistillSettings
    about: Mapping[str, Any]
    processor: PolyRecProcessor
    parts: Splits
    arguments: PolyRecTrainingArguments
    notes: list[str] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        """Of the student, while it is drafted."""
        return Path(self.recipe.output)

    def model_folder(self, name: str) -> Path:
        """Where a model is saved."""
        return self.folder / "models" / name

    def train(
        self, name: str, recipe: Recipe, teacher: Teacher | None = None, start: LiveTeacher | None = None
    ) -> ComparisonRun:
        """Train a model, predict the test set and save both; an existing one is kept."""
        home, expected = self.folder / "runs" / name, fingerprint({**self.about, "name": name, "model": recipe.model})
        if (found := ComparisonRun.load_whole(home)) is not None:
            if found.fingerprint != expected:
                raise ValueError(f"{home} does not belong to this recipe and these teachers: delete it")
            return found
        work = home.with_name(f".{name}.work")
        forget_peak_memory()
        trainer = build_trainer(
            recipe,
            self.processor,
            self.parts.train,
            self.parts.valid,
            callbacks=[CostMeter()],
            quiet=True,
            teacher=teacher,
            output_dir=str(work),
            restore_callback_states_from_checkpoint=True,
        )
        if start is not None:
            taken = start_from_teacher(trainer.model, self.processor, start.model, start.processor)
            self._write(trainer, self.folder / _START_NAME, json.dumps(asdict(taken), indent=2) + "\n")
        train_safely(trainer, newest_checkpoint(work), "the same command")
        cost = cost_of(trainer)
        metrics = {"peak_memory": float(peak_memory() or "nan")}
        k = trainer.args.rank_k
        valid = improvements(trainer.model, self.parts.valid, trainer.predictions(self.parts.valid), k)
        metrics |= {f"valid/{task}": value for task, value in valid.items()}
        predictions = trainer.predictions(self.parts.test)
        metrics |= evaluate(trainer.model, self.parts.test, predictions, k)
        tasks = tuple(sorted(t["name"] for t in recipe.tasks))
        run = ComparisonRun(name, tasks, trainer.args.seed, expected, cost, metrics, predictions)
        if trainer.is_world_process_zero():
            shutil.rmtree(
                self.model_folder(name), ignore_errors=True
            )  # its files may be those of the run that is there
        trainer.accelerator.wait_for_everyone()
        trainer.save_model(str(self.model_folder(name)))
        if trainer.is_world_process_zero():
            save_training(trainer, self.processor, self.parts, self.model_folder(name))
            run.save(home)
            shutil.rmtree(work, ignore_errors=True)  # checkpoints
        trainer.accelerator.wait_for_everyone()
        return run

    def model(self, name: str) -> PolyRecForRecommendation:
        """A model that was put away."""
        found = PolyRecForRecommendation.from_pretrained(self.model_folder(name))
        return found.to(self.arguments.device).eval()

    @staticmethod
    def _write(trainer: PolyRecTrainer, path: Path, text: str) -> None:
        if trainer.is_world_process_zero():
            write_atomically(path, text)


def distill_recipe(recipe: Recipe, settings: DistillSettings) -> Study:
    """Make a student of teachers, with the split, budget and seed of the recipe, and say what they were good for.

    The output folder is a run like any other (recipe.yaml, metrics.json, model, processor), with distill.json and
    distill.md. Trainings that are done are kept in `runs/`, so that an interrupted distillation goes on.

    Args:
        recipe: of the student; its plan (`model.distillation`), or every task that the teachers predict.
    """
    if recipe.training.get("teacher") is not None:
        raise ValueError(
            "training.teacher is of `polyrec train`: leave it out, and pass --teacher or --teacher-outputs"
        )
    own_plan = recipe.model.get("distillation") is not None
    asked = {name: value for name, value in _plain(asdict(settings)).items() if name not in _MORE}
    about = about_recipe(recipe.to_dict(), _NO_RESULT) | {"distill": asked, "teachers": _revisions(settings)}
    place = place_of(recipe.output)
    draft = beside(place, "draft")
    facts = about_run(recipe.to_dict())
    arguments = PolyRecTrainingArguments(output_dir=str(draft), **recipe.training)
    with ExitStack() as stack:
        with arguments.main_process_first(local=False):
            if arguments.process_index == 0:
                stack.enter_context(locked(place))
                distillation_draft(place, about)
        study, runs, distillation = _distill(replace(recipe, output=str(draft)), settings, own_plan, about, arguments)
        if arguments.process_index != 0:
            return study
        student = next(run for run in runs if run.variant == STUDENT)
        _finish(distillation, student, place)
        rank_k, seed = arguments.rank_k, arguments.seed
        write_report(study, runs, distillation.processor.tasks, distillation.parts.test, rank_k, seed, draft)
        items, processor = item_digest(distillation.processor), processor_digest(distillation.processor)
        complete(draft, facts | {"items": items, "processor": processor})
        publish(draft, place)
    print(f"the student is in {place}, beside {REPORT_NAME}.json and {REPORT_NAME}.md")
    return study


def _distill(
    recipe: Recipe,
    settings: DistillSettings,
    own_plan: bool,
    about: Mapping[str, Any],
    arguments: PolyRecTrainingArguments,
) -> tuple[Study, list[ComparisonRun], DistillationRun]:
    """Train what is not there yet, in the recipe's output folder."""
    transformers.utils.logging.disable_progress_bar()  # one bar for all trainings
    processor, parts = prepare(recipe, verbose=True)
    recipe = planned(recipe, settings)
    members = build_members(recipe, processor, parts, settings)
    start = _start(members, settings)
    recipe = answered_plan(recipe, members, settings, own_plan)
    with arguments.main_process_first(local=False):
        recipe = _fitted(recipe, processor, parts, settings)
    distillation = DistillationRun(recipe, settings, about, processor, parts, arguments)
    model = PolyRecForRecommendation(build_config(recipe, processor))
    PolyRecTrainer.load_processor(model, processor)
    evaluator = Evaluator(model, processor, parts, arguments)
    teacher, judged, weights = joined(members, evaluator, recipe)
    plan = DistillationConfig.parse(recipe.model["distillation"], [t["name"] for t in recipe.tasks])
    teacher.check_plan(plan, model.gate_sources)  # before hours of training, not after
    evaluator.prepared(teacher, parts.train)
    bar = tqdm(desc="Distillation", disable=arguments.disable_tqdm or None, total=2 + settings.baseline)
    alone = distillation.train(ALONE, with_plan(recipe, None)) if settings.baseline else None
    bar.update(settings.baseline)
    alphas = _alphas(distillation, evaluator, judged, alone)
    recipe = distillation.recipe = with_plan(recipe, replace(gated(plan, alphas), teacher=_name(settings)))
    answers = None if judged is None else _teacher_run(evaluator, judged)
    bar.update()
    student = distillation.train(STUDENT, recipe, teacher, start)
    bar.update()
    runs = [run for run in (answers, alone, student) if run is not None]
    runs += _ablations(distillation, teacher, start, alphas, bar)
    bar.close()
    study = Study(
        settings=_plain(asdict(settings)),
        plan=recipe.model["distillation"],
        weights=weights,
        alphas=alphas,
        systems=_systems(distillation, members, teacher, [alone, student]),
        start=_read(distillation.folder / _START_NAME),
        notes=distillation.notes,
    )
    return study, runs, distillation


def _start(members: Sequence[Teacher], settings: DistillSettings) -> LiveTeacher | None:
    """Whose weights the student begins with."""
    if settings.init_from != "teacher":
        return None
    if not isinstance(members[0], LiveTeacher):
        raise ValueError(
            f"--init-from teacher takes the weights of the first --teacher, and {settings.teachers[0]!r} is no run of "
            "`polyrec train`: name such a run first, each teacher by a --teacher of its own, or leave --init-from out"
        )
    return members[0]


def _fitted(recipe: Recipe, processor: PolyRecProcessor, parts: Splits, settings: DistillSettings) -> Recipe:
    """The recipe with the width that the target asks for, found once: a clock does not say the same twice."""
    if settings.target_parameters is None and settings.target_latency is None:
        return recipe
    place = Path(recipe.output) / _WIDTH_NAME
    if not place.exists():
        plain = with_plan(recipe, None)  # distillation is not part of the served student
        if settings.target_parameters is not None:
            width = width_for_parameters(plain, processor, settings.target_parameters)
        else:
            width = width_for_latency(plain, processor, parts.valid, float(settings.target_latency or 0))
        write_atomically(place, json.dumps({"hidden_size": width}) + "\n")
    return sized(recipe, _read(place)["hidden_size"])


def _alphas(
    distillation: DistillationRun, evaluator: Evaluator, judged: Teacher | None, alone: ComparisonRun | None
) -> dict[str, AlphaSelection]:
    plan = distillation.recipe.model["distillation"]["tasks"]
    found: dict[str, float] = {}
    if judged is None:
        distillation.notes.append(
            "Stored outputs cover the training set only: the teacher was not evaluated, and alpha is unchanged."
        )
    else:
        found = evaluator.improvements(
            evaluator.predictions(judged, distillation.parts.valid), distillation.parts.valid
        )
    popular = evaluator.popularity() if any(task in found for task in evaluator.model.state_tasks) else {}
    own = {} if alone is None else alone.metrics
    return {
        task: select_alpha(p["alpha"], found.get(task), popular.get(task, 0.0), own.get(f"valid/{task}"))
        for task, p in plan.items()
    }


def _teacher_run(evaluator: Evaluator, teacher: Teacher) -> ComparisonRun:
    test = evaluator.parts.test
    predictions = evaluator.predictions(teacher, test)
    metrics = evaluate(evaluator.model, test, predictions, evaluator.arguments.rank_k)
    tasks = tuple(sorted({*predictions.values, *predictions.rankings}))
    nothing = Cost(0.0, 0.0, 0.0, float("nan"))
    return ComparisonRun(TEACHER, tasks, evaluator.arguments.seed, "", nothing, metrics, predictions)


def _ablations(
    distillation: DistillationRun,
    teacher: Teacher,
    start: LiveTeacher | None,
    alphas: Mapping[str, AlphaSelection],
    bar: tqdm,
) -> list[ComparisonRun]:
    """The student without each soft loss, those of states and gates included."""
    if not distillation.settings.ablations:
        return []
    plan = DistillationConfig.parse(
        distillation.recipe.model["distillation"], [t["name"] for t in distillation.recipe.tasks]
    )
    left = {
        soft_name(task): replace(plan, tasks={name: own for name, own in plan.tasks.items() if name != task})
        for task in sorted(task for task, chosen in alphas.items() if chosen.alpha > 0)
    }
    left |= {} if plan.states is None else {STATES: replace(plan, states=None)}
    left |= {GATES: replace(plan, gates=0.0)} if plan.gates else {}
    bar.total = (bar.total or 0) + len(left)
    found = []
    for name, rest in left.items():
        asked = any(own.acts for own in rest.tasks.values()) or rest.states is not None or rest.gates > 0
        recipe = with_plan(distillation.recipe, rest if asked else None)
        found.append(distillation.train(f"{WITHOUT}{name}", recipe, teacher if asked else None, start))
        bar.update()
    return found


def _systems(
    distillation: DistillationRun, members: Sequence[Teacher], teacher: Teacher, runs: Sequence[ComparisonRun | None]
) -> dict[str, System]:
    """Size and speed of teacher, student alone and student, side by side."""
    lists = [t.name for t in distillation.processor.tasks if t.ranks_catalog]
    runs_of_teacher = run_folders(distillation.settings.teachers)
    own = [model for member in members for model in models_of(member)]
    found = {
        TEACHER: System(
            parameters=sum(model.num_parameters() for model in own) if own else None,
            bytes=sum(_bytes(folder) for folder in runs_of_teacher) if runs_of_teacher else None,
        )
    }
    if own and not all(models_of(member) for member in members):
        distillation.notes.append("Size of the teacher: that of its trained runs; what else teaches is not counted.")
    asked: dict[str, Teacher] = {} if distillation.settings.teacher_outputs else {TEACHER: teacher}
    for run in runs:
        if run is not None:
            model = distillation.model(run.variant)
            found[run.variant] = System(
                parameters=model.num_parameters(),
                bytes=_bytes(distillation.model_folder(run.variant)),
                cost=asdict(run.cost),
                peak_memory=run.metrics["peak_memory"],
            )
            asked[run.variant] = LiveTeacher(model, distillation.processor, trust=True)
    for system in asked.values():
        system.prepare(
            distillation.parts.test, distillation.processor, [distillation.parts.valid, distillation.parts.test]
        )
    batches = one_example_each(distillation.parts.test, lists)
    for name, speed in users_per_second(asked, batches).items():
        found[name].people_per_second = speed
    return found


def _finish(distillation: DistillationRun, student: ComparisonRun, place: Path) -> None:
    """Make the draft a run: the student, its recipe and its metrics."""
    shutil.copytree(distillation.model_folder(STUDENT), distillation.folder, dirs_exist_ok=True)
    text = yaml.safe_dump(replace(distillation.recipe, output=str(place)).to_dict(), sort_keys=False)
    write_atomically(distillation.folder / RECIPE_NAME, text)
    name_place(distillation.folder / "training_args.json", place)
    metrics = distillation.folder / "metrics.json"
    parts = distillation.parts
    model, slices = distillation.model(STUDENT), distillation.recipe.slices
    own = student.predictions, distillation.arguments, metrics, distillation.processor, slices
    report_run(model, parts.train, parts.test, *own, valid=parts.valid)


def _revisions(settings: DistillSettings) -> dict[str, str]:
    """What changes when a run that teaches is trained anew."""
    stored = [Path(settings.teacher_outputs)] if settings.teacher_outputs else []
    found = {}
    for folder in (f for f in [*run_folders(settings.teachers), *stored] if f.is_dir()):
        found[str(folder)] = revision_of(recover(folder))
    return found


def _name(settings: DistillSettings) -> str:
    return ", ".join(
        [*settings.teachers, *settings.classical, *([settings.teacher_outputs] if settings.teacher_outputs else [])]
    )


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("model*.safetensors"))


def _plain(values: Any) -> Any:
    return json.loads(json.dumps(values))


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
