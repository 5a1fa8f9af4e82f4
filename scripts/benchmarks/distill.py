"""Distillation: a large teacher, a small student alone, and the same student taught.

The teacher is the mean of several trainings of a protocol's own model; the student has an eighth of its parameters or
less. Both students have the same data and selection by validation; the taught one learns from answers that the teacher
was asked for once, also about items drawn beside those that were taken (`stored`: from files of half precision, `live`:
while it learns, both without drawn items). All tasks of a protocol are learnt by one model. Protocols A and B are those
of ml-100k, D that of kuairand_late.

`small` is a taught student of at most a quarter of RecBole SASRec's 209k parameters; `classical` is a classical
recommender, and `classical_teacher` a student that learns from it. Where `stored` runs, its training time is compared
with that of `student_alone`, per epoch.

`kept` is the student's share of the teacher's value in each task's main metric (of AUC what lies above 0.5, of RMSE
what the labels' spread is better than), `gap closed` is (student - alone) / (teacher - alone) where the teacher is
ahead by more than the seeds' spread. Throughput is people per second, asked one after the other in one process.

    python scripts/benchmarks/distill.py --data ../shared/data/ml-100k --protocols A,B --seeds 3 --threads 1 \\
        --systems teacher,student_alone,student --output runs/distill.json
"""

from __future__ import annotations

import copy
import statistics
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import common
import yaml

if TYPE_CHECKING:
    import fitting

    from polyrec.distillation.ensemble import EnsembleTeacher
    from polyrec.distillation.teacher import Teacher

ABLATIONS = ("lists_only", "pairs_only", "ranking")
SYSTEMS = (
    "teacher", "student_alone", "student", "small", "stored", "live", "classical", "classical_teacher", *ABLATIONS,
)  # fmt: skip
MAIN = {"retrieval": "ndcg@10", "binary": "auc", "regression": "rmse"}


class Protocol:
    """Data of one protocol, its teacher, and how students of it are trained.

    Args:
        name: "A", "B" or "D".
        plan: the whole of distill.yaml.
    """

    def __init__(self, name: str, args: Namespace, plan: Mapping[str, Any]) -> None:
        import fitting  # here, because the number of threads must be set before torch is imported

        self.name, self.plan, self.own, self.epochs = name, plan, plan["protocols"][name], args.epochs
        self.config = common.read_config(common.HERE / self.own["base"], args.epochs)
        self.processor, self.data = fitting.load(args.data, self.config, args.threads, **self.own["split"])
        self.main = {t.name: MAIN[t.head] for t in self.processor.tasks if t.head in MAIN}

    def configured(self, *changes: str) -> dict[str, Any]:
        """The protocol's configuration with what its parts of distill.yaml change, one after the other."""
        config = copy.deepcopy(self.config)
        for part in changes:
            for name, values in self.own.get(part, {}).items():
                if name in ("model", "training"):
                    config[name] |= values
        if self.epochs is not None:
            config["training"]["num_train_epochs"] = self.epochs
        return config

    @cached_property
    def members(self) -> list[fitting.Fit]:
        """The trainings that the teacher consists of; their seeds are none of the students'."""
        import fitting

        config, seeds = self.configured("teacher"), range(100, 100 + self.own["teacher"]["members"])
        return [fitting.fit(self.processor, self.data, config, seed) for seed in seeds]

    @cached_property
    def teacher(self) -> EnsembleTeacher:
        """The mean of the members."""
        from polyrec.distillation.ensemble import EnsembleTeacher
        from polyrec.distillation.live import LiveTeacher

        options = {"top_k": self.own["teacher"]["top_k"]}
        return EnsembleTeacher([LiveTeacher(f.model, self.processor, **options) for f in self.members], **options)

    @cached_property
    def table(self) -> Teacher:
        """What the teacher says of the training part, asked once."""
        from polyrec.distillation.table import TableTeacher

        drawn = 1 if self.own.get("unlabelled") else 0
        return TableTeacher.of(self._prepared(self.teacher), self.data.train, self.processor, unlabelled=drawn)

    def _prepared(self, teacher: Teacher) -> Teacher:
        teacher.prepare(self.data.train, self.processor, [self.data.valid, self.data.test])
        return teacher

    def _classical(self, **options: Any) -> Teacher:
        from polyrec.distillation.classical import CatalogTeacher

        return CatalogTeacher(self.plan["classical"]["name"], self.data.train, self.processor, **options)

    def teacher_for(self, system: str) -> Teacher | None:
        """Who teaches a system."""
        if system == "student_alone":
            return None
        if system == "classical_teacher":
            return self._classical()
        if system == "live":
            return self.teacher
        if system == "stored":
            from polyrec.distillation.stored import StoredTeacher, write_outputs

            self._prepared(self.teacher)
            folder = tempfile.mkdtemp()
            return StoredTeacher(write_outputs(self.teacher, self.data.train, self.processor, folder))
        return self.table

    def distillation(self, system: str) -> dict[str, Any] | None:
        """The plan of a system's student."""
        if system == "student_alone":
            return None
        changes, tasks = self.plan["changes"].get(system, {}), copy.deepcopy(self.own["plan"])
        tasks = {n: own for n, own in tasks.items() if n in changes.get("only", tasks)}
        tasks = {n: own | changes.get("change", {}).get(n, {}) for n, own in tasks.items()}
        tasks = {n: own for n, own in tasks.items() if n not in changes.get("without", ())}
        return {"tasks": tasks, "unlabelled": changes.get("unlabelled", self.own.get("unlabelled", 0))}

    def student(self, system: str, seed: int) -> dict[str, Any]:
        """Train and test one student."""
        import fitting

        also = {"student_alone": "alone", "small": "small", "classical_teacher": "alone"}.get(system)
        config = self.configured("student", *([] if also is None else [also]))
        if (distillation := self.distillation(system)) is not None:
            config["model"]["distillation"] = distillation
        fit = fitting.fit(self.processor, self.data, config, seed, self.teacher_for(system))
        found = {part: self.metrics(fit.trainer.evaluate(data)) for part, data in self.judged.items()}
        return {**found, **fit.costs, "model": fit.model}

    def ask_teacher(self) -> dict[str, Any]:
        """The teacher's metrics, as those of a model."""
        from polyrec.distillation.ensemble import EnsembleTeacher

        whole = self.processor.num_items
        teacher = EnsembleTeacher([one.listing(whole) for one in self.teacher.teachers], top_k=whole)
        parameters = sum(sum(p.numel() for p in fit.model.parameters()) for fit in self.members)
        costs = {"parameters": parameters, "train_cpu_seconds": sum(f.clock.cpu for f in self.members)}
        return self._asked(teacher) | costs

    def ask_classical(self) -> dict[str, Any]:
        """The metrics of the classical recommender."""
        return self._asked(self._classical(top_k=self.processor.num_items))

    def _asked(self, teacher: Teacher) -> dict[str, Any]:
        from polyrec import PolyRecForRecommendation
        from polyrec.distillation.predictions import teacher_predictions
        from polyrec.evaluation import evaluator

        model, found = PolyRecForRecommendation(self.processor.model_config(**self.config["model"])), {}
        for part, data in self.judged.items():
            teacher.bind([data], self.processor)
            said = teacher_predictions(teacher, model.heads, data, self.processor.num_items)
            values = evaluator.evaluate(model, data, said, 10)
            found[part] = self.metrics({f"eval_{name}": value for name, value in values.items()})
        return found

    @property
    def judged(self) -> dict[str, Any]:
        """Parts by which systems are judged."""
        return {"validation": self.data.valid, "test": self.data.test}

    def metrics(self, found: Mapping[str, float]) -> dict[str, float]:
        """Main metrics by "<protocol>/<task>/<metric>"."""
        named = {f"eval_{task}_{metric}": f"{self.name}/{task}/{metric}" for task, metric in self.main.items()}
        return {key: found[name] for name, key in named.items() if name in found}

    def constants(self) -> dict[str, float]:
        """What a constant reaches in each main metric of the test part."""
        import numpy as np

        spread = dict(zip(self.data.test.task_names, np.nanstd(self.data.test.labels(), axis=0), strict=True))
        known = {"auc": 0.5, "ndcg@10": 0.0}
        return {f"{self.name}/{n}/{m}": known.get(m, float(spread[n])) for n, m in self.main.items()}

    def throughput(self, student: Any) -> tuple[float, float]:
        """People per second that the teacher and a student answer."""
        from polyrec.distillation.live import LiveTeacher
        from polyrec.distillation.throughput import one_example_each, users_per_second

        lists = [t.name for t in self.processor.tasks if t.ranks_catalog]
        systems = {"teacher": self.teacher, "student": LiveTeacher(student, self.processor, top_k=10)}
        for system in systems.values():
            system.bind([self.data.test], self.processor)
        found = users_per_second(systems, one_example_each(self.data.test, lists))
        return found["teacher"], found["student"]


def run(args: Namespace, plan: Mapping[str, Any], report: common.Report) -> None:
    """All systems on all protocols; a system's entry holds the metrics of every protocol."""
    runs: dict[str, list[dict[str, Any]]] = {system: [{} for _ in range(args.seeds)] for system in args.systems}
    constants: dict[str, float] = {}
    for name in args.protocols:
        protocol = Protocol(name, args, plan)
        constants |= protocol.constants()
        asked = [s for s in args.systems if not s.startswith("classical") or name in plan["classical"]["protocols"]]
        for system in asked:
            for seed in range(args.seeds):
                if seed and system in ("teacher", "classical", "live", *ABLATIONS):
                    break  # there is one teacher, and one seed has to do for what is slow and for ablations
                if system == "teacher":
                    found = protocol.ask_teacher()
                elif system == "classical":
                    found = protocol.ask_classical()
                else:
                    found = protocol.student(system, seed)
                model = found.pop("model", None)
                if system == "student" and seed == 0 and "teacher" in args.systems:
                    slow, fast = protocol.throughput(model)
                    report.content["ratios"][f"{name}: throughput, student / teacher"] = fast / slow
                _join(runs[system][seed], found, name)
                print(name, system, seed, {k: round(v, 4) for k, v in found["test"].items()}, flush=True)
            report.add(system, common.summarise([entry for entry in runs[system] if entry]))
        compare(report, constants)


def _join(entry: dict[str, Any], found: Mapping[str, Any], protocol: str) -> None:
    """Add one protocol's figures to a run."""
    for part in ("test", "validation"):
        entry[part] = {**entry.get(part, {}), **found[part]}
    entry |= {f"{protocol}/{k}": v for k, v in found.items() if k not in ("test", "validation")}


def compare(report: common.Report, constants: Mapping[str, float]) -> None:
    """Ratios of the student to the teacher, and how much of the gap to it is closed."""
    systems, ratios = report.content["systems"], report.content["ratios"]
    for key in [k for k in systems.get("student_alone", {}) if k.endswith("/train_cpu_seconds")]:
        epochs = key.replace("train_cpu_seconds", "epochs")
        each = {s: systems[s][key] / systems[s][epochs] for s in ("student_alone", "student", "stored") if s in systems}
        for name in [s for s in each if s != "student_alone"]:
            ratios[f"{key}, {name} / alone, per epoch"] = each[name] / each["student_alone"]
    if not {"teacher", "student"} <= set(systems):
        return
    teacher, student, alone = systems["teacher"], systems["student"], systems.get("student_alone")
    kept, closed = {}, {}
    for key, constant in constants.items():
        if key not in teacher:
            continue
        kept[key] = (student[key] - constant) / (teacher[key] - constant)
        if alone is not None:
            gap = teacher[key] - alone[key]
            noise = max(alone["std"][key], student["std"][key])
            if gap * (-1 if key.endswith("rmse") else 1) > noise:
                closed[key] = (student[key] - alone[key]) / gap
    for key in student:
        if key.endswith("/parameters"):
            ratios[f"{key}, student / teacher"] = student[key] / teacher[key]
    ratios |= {"kept_min": min(kept.values()), "kept_mean": statistics.fmean(kept.values())}
    report.content["kept"], report.content["gap_closed"] = kept, closed
    if closed:
        ratios["gap_closed_mean"] = statistics.fmean(closed.values())


def _protocols() -> list[str]:
    parser = ArgumentParser(add_help=False)
    parser.add_argument("--protocols", default="A,B")
    found, sys.argv[1:] = parser.parse_known_args()
    return found.protocols.split(",")


def main() -> None:
    """Run the systems asked for and write the report."""
    protocols = _protocols()
    args = common.arguments(__doc__, "distill.yaml", SYSTEMS)
    args.protocols = protocols
    plan = yaml.safe_load(args.config.read_text(encoding="utf-8"))
    report = common.Report(args, {"plan": plan, "protocols": protocols})
    run(args, plan, report)
    report.write()
    keys = sorted({key for entry in report.content["systems"].values() for key in entry["std"]})
    report.show(keys)
    for name in ("kept", "gap_closed"):
        for key, value in report.content.get(name, {}).items():
            print(f"{name} {key}: {value:.3f}")


if __name__ == "__main__":
    main()
