"""Staying fresh on protocol B: short updates with new events against doing nothing and against training anew.

All events in time order: the first 80% train, the next 10% validate, the rest is cut into steps of time. A model that
was trained on the first 80% learns each step once it is over (`update`: those events and a replay of older ones) and
answers the next step prequentially: everything strictly before a row is visible, to all systems alike. The first
update learns the validation part, the last step is only asked.

* `static`: never updated;
* `updated`: updated after each step;
* `retrained`: trained from scratch after each step on all events so far, as often as the first training validated best;
* `forgetting`: updated after each step of the test part, and asked each time what became of the answers to the
  validation part, which it never learns.

Each step is also asked *between updates* (`between/`): as a deployed model answers that is told of new events with its
updates alone. Updated and retrained models then know nothing (no history, no statistics) of the step they are asked
about, the static one nothing after the events it was trained on.

`mean/` is the mean over steps of each metric; `gain` what the updated model has over the static one, step by step, in
`mean_improvement` (mean over tasks of 1 - loss / loss of a constant, and NDCG@10), with the interval of a bootstrap
over people. `--systems choose` tries settings of the update in rehearsals: the same with an earlier beginning, so that
all ends before the test part.

    python scripts/benchmarks/update.py --data ../shared/data/ml-100k --seeds 3 --threads 1 \\
        --systems static,updated,forgetting --output runs/update.json
"""

from __future__ import annotations

import copy
import itertools
import statistics
import tempfile
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import common
import yaml
from update_gain import Answers, gain_interval

if TYPE_CHECKING:
    import fitting
    import numpy as np

    from polyrec import PolyRecForRecommendation, PolyRecProcessor
    from polyrec.data.sequences import SequenceDataset
    from polyrec.training.settings import UpdateSettings

SYSTEMS = ("static", "updated", "retrained", "forgetting", "choose")
SHOWN = ("improvement", "between/improvement", "like/auc", "rating/rmse")
METERED = SYSTEMS[:3]  # those whose answers to the steps are compared
METRICS = ("like/auc", "like/logloss", "love/auc", "love/logloss", "rating/rmse", "rating/mae")
METRICS += ("next_item/ndcg@10", "next_item/recall@10", "improvement")
MODES = ("", "between/")  # prequentially, and between updates


class Protocol:
    """The log, its parts and steps, and the first training of each seed."""

    def __init__(self, args: Namespace, config: Mapping[str, Any]) -> None:
        import fitting  # here, because the number of threads must be set before torch is imported

        self.config, self.split = config, {"by": "time", "fractions": (0.8, 0.1, 0.1)}
        self.processor, self.data = fitting.load(args.data, config, args.threads, **self.split)
        self.log, self.statistics = self.data.valid.log, self.data.valid.statistics
        self.train, self.valid, self.test = (self._events(part) for part in self.data)
        everything = self.train | self.valid | self.test  # an update or a training asks a part of these questions
        self.questions = self.processor.training_set(self.log, everything, self.statistics, **config["split"])

    def _events(self, part: Any) -> np.ndarray:
        import numpy as np

        found = np.zeros(len(part.log), dtype=bool)
        found[part.candidates.event] = True
        return found

    def about(self, rows: np.ndarray) -> SequenceDataset:
        """Training questions about some events, bool [R]."""
        asked = self.questions.candidates
        kept = rows[asked.event]
        chosen = type(asked)(asked.event[kept], asked.position[kept], asked.statistic[kept])
        return self.questions.with_candidates(chosen, self.questions.statistics)

    def between(self, begin: float, end: float) -> np.ndarray:
        """Events from one share of the log to another in the order of time, bool [R]."""
        import numpy as np

        order = np.argsort(self.log.order)
        found = np.zeros(len(self.log), dtype=bool)
        found[order[round(begin * len(order)) : round(end * len(order))]] = True
        return found

    def processor_of(self, rows: np.ndarray) -> PolyRecProcessor:
        """One that has counted some events only, bool [R]."""
        import numpy as np

        found = copy.copy(self.processor)
        found.item_counts = np.bincount(self.log.item[rows], minlength=found.num_items)
        return found

    def steps(self, part: np.ndarray, number: int) -> list[np.ndarray]:
        """Events of a part in steps of time, bool [R] each."""
        import numpy as np

        found = []
        events = np.flatnonzero(part)
        for own in np.array_split(events[np.argsort(self.log.order[events])], number):
            found.append(np.zeros(len(self.log), dtype=bool))
            found[-1][own] = True
        return found

    def first_model(self, seed: int) -> fitting.Fit:
        """Trained on the first 80%, chosen on the validation part."""
        import fitting

        return fitting.fit(self.processor, self.data, self.config, seed)

    def ask(
        self, model: PolyRecForRecommendation, rows: np.ndarray, begin: np.ndarray | None = None
    ) -> tuple[dict[str, float], Answers]:
        """Metrics on some events, and the answers themselves.

        Args:
            begin: events from whose first on nothing is known, bool [R]; None: prequentially.
        """
        from polyrec.evaluation import evaluator

        dataset = self.processor.evaluation_set(self.log, rows, self.statistics)
        if begin is not None:
            dataset = self.processor.without_updates(dataset, float(self.log.time[begin].min()))
        answers = evaluator.predict(model, dataset)
        found = evaluator.evaluate(model, dataset, answers)
        named = common.rename(found, list(model.heads))
        metrics = {k: v for k, v in named.items() if k in METRICS} | {"improvement": found["mean_improvement"]}
        return metrics, Answers.of(model, dataset, answers)


class Updated:
    """A copy of a model that learns step after step.

    Args:
        trained: bool [R], what the model has learnt.
    """

    def __init__(self, protocol: Protocol, model: PolyRecForRecommendation, trained: np.ndarray) -> None:
        self.protocol, self.model = protocol, copy.deepcopy(model)
        self.processor = protocol.processor_of(trained)
        self.trained = trained

    def train_update(self, new: np.ndarray, settings: UpdateSettings) -> dict[str, float]:
        """One update; what it cost."""
        from polyrec.training.update import Parts, UpdateData, replays, train_update

        protocol = self.protocol
        draws = replays(protocol.about(self.trained | new), new, settings)
        data = UpdateData(draws, {}, Parts(self.trained, new))
        cost = train_update(self.model, self.processor, data, settings, protocol.config["training"] | {"use_cpu": True})
        self.trained = self.trained | new
        return cost


def run(args: Namespace, config: Mapping[str, Any], plan: Mapping[str, Any], report: common.Report) -> None:
    """Every seed's first training, and the systems asked for on top of it."""
    from polyrec.training.settings import UpdateSettings

    protocol = Protocol(args, config)
    if "choose" in args.systems:
        report.content["choice"] = choose(protocol, plan, range(args.seeds))
        report.write()
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in args.systems if name in METERED}
    answers: dict[str, list[list[Answers]]] = {f"{mode}{name}": [] for mode in MODES for name in found}
    for seed in range(args.seeds if set(args.systems) != {"choose"} else 0):
        first = protocol.first_model(seed)
        settings = UpdateSettings(**plan["update"], seed=seed)
        for name in found:
            one, own = one_system(name, protocol, first, settings, plan["steps"], seed)
            found[name].append(one)
            for mode in MODES:
                answers[f"{mode}{name}"].append(own[mode])
            report.add(name, common.summarise(found[name]))
        if "forgetting" in args.systems:
            lost = forgotten(protocol, first.model, settings, plan["steps"])
            report.content.setdefault("forgetting", []).append(lost)
            report.write()
    compare(report, answers)


def one_system(
    name: str, protocol: Protocol, first: fitting.Fit, settings: UpdateSettings, number: int, seed: int
) -> tuple[dict[str, Any], dict[str, list[Answers]]]:
    """Scores of each step, and costs; the answers to each step in each mode."""
    asked = protocol.steps(protocol.test, number)
    known = [protocol.valid, *asked[:-1]]  # what has come to be known before each step
    updated = Updated(protocol, first.model, protocol.train)
    test: dict[str, float] = {}
    cpu: list[float] = []
    answers: dict[str, list[Answers]] = {mode: [] for mode in MODES}
    trained = protocol.train
    for step, (new, rows) in enumerate(zip(known, asked, strict=True), start=1):
        model = first.model
        if name == "updated":
            cpu.append(updated.train_update(new, settings)["cpu_seconds"])
            model = updated.model
        elif name == "retrained":
            trained = trained | new
            model, seconds = train(protocol, trained, best_epoch(protocol, first), seed)
            cpu.append(seconds)
        for mode, begin in zip(MODES, (None, protocol.valid if name == "static" else rows), strict=True):
            metrics, own = protocol.ask(model, rows, begin)
            answers[mode].append(own)
            test |= {f"step{step}/{mode}{key}": value for key, value in metrics.items()}
        shown = "  ".join(f"{m} {test[f'step{step}/{m}']:.4f}" for m in SHOWN)
        print(f"{name} seed {seed} step {step}: {shown}  {sum(cpu):.0f} cpu-s", flush=True)
    every = [f"{mode}{m}" for mode in MODES for m in METRICS]
    test |= {f"mean/{m}": statistics.fmean(test[f"step{s}/{m}"] for s in range(1, number + 1)) for m in every}
    costs = {f"step{step}/cpu_seconds": seconds for step, seconds in enumerate(cpu, start=1)}
    return {"test": test, "validation": {}, **costs, "cpu_seconds": sum(cpu)}, answers


def best_epoch(protocol: Protocol, first: fitting.Fit) -> int:
    """After how many epochs the first training validated best."""
    metric = f"eval_{protocol.config['training']['metric_for_best_model']}"
    return int(max(first.log, key=lambda row: row[metric])["epoch"])


def train(protocol: Protocol, rows: np.ndarray, epochs: int, seed: int) -> tuple[PolyRecForRecommendation, float]:
    """A fresh model trained on some events for some epochs of the schedule; cpu seconds."""
    import fitting

    from polyrec import Splits

    processor = protocol.processor_of(rows)
    data = Splits(protocol.about(rows), protocol.data.valid, protocol.data.test)  # of which only the first is read
    with tempfile.TemporaryDirectory() as folder:
        until = fitting.Until(epochs)
        trainer = fitting.new_trainer(processor, data, protocol.config, folder, seed, until)
        trainer.train()
    return trainer.model.eval(), until.clock.cpu


def forgotten(
    protocol: Protocol, model: PolyRecForRecommendation, settings: UpdateSettings, number: int
) -> list[dict[str, Any]]:
    """By task, what its main metric lost on the validation part after each update with a step of the test part."""
    from polyrec import PolyRecTrainingArguments
    from polyrec.training.forgetting import Measured, forgetting, metrics_of, predict

    held = {"valid": protocol.processor.evaluation_set(protocol.log, protocol.valid, protocol.statistics)}
    arguments = PolyRecTrainingArguments("unused", use_cpu=True)

    def measured(model: PolyRecForRecommendation) -> Measured:
        return metrics_of(model, held, predict(model, held, arguments), arguments)

    before = measured(model)
    updated = Updated(protocol, model, protocol.train)
    found = []
    for step, new in enumerate(protocol.steps(protocol.test, number), start=1):
        updated.train_update(new, settings)
        found.append(forgetting(updated.model, before, measured(updated.model)))
        shown = "  ".join(f"{task} {lost['metric']} {lost['fall']:+.2%}" for task, lost in found[-1].items())
        print(f"forgotten after step {step}: {shown}", flush=True)
    return found


def choose(protocol: Protocol, plan: Mapping[str, Any], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Settings tried in rehearsals before the test part: gains over the static model, step by step, best first."""
    from polyrec.training.settings import UpdateSettings

    grid = [dict(zip(plan["grid"], values, strict=True)) for values in itertools.product(*plan["grid"].values())]
    rows: list[dict[str, Any]] = [{**options, "gains": [], "cpu_seconds": 0.0} for options in grid]
    for seed, cut in itertools.product(seeds, plan["rehearsal"]["cuts"]):
        trained = protocol.between(0, cut)
        model, _ = train(protocol, trained, plan["rehearsal"]["epochs"], seed)
        asked = protocol.steps(protocol.between(cut + 0.1, cut + 0.2), plan["steps"])
        static = [protocol.ask(model, step)[0]["improvement"] for step in asked]
        for options, row in zip(grid, rows, strict=True):
            updated = Updated(protocol, model, trained)
            for new, step, before in zip([protocol.between(cut, cut + 0.1), *asked], asked, static, strict=False):
                row["cpu_seconds"] += updated.train_update(new, UpdateSettings(**options, seed=seed))["cpu_seconds"]
                row["gains"].append(protocol.ask(updated.model, step)[0]["improvement"] - before)
            shown = " ".join(f"{gain:+.4f}" for gain in row["gains"][-plan["steps"] :])
            print(f"{options} seed {seed} from {cut:.0%}: {shown}  {row['cpu_seconds']:.0f} cpu-s", flush=True)
    rows = [{**r, "mean_gain": statistics.fmean(r["gains"]), "won": sum(g > 0 for g in r["gains"])} for r in rows]
    return sorted(rows, key=lambda row: (-row["won"], -row["mean_gain"]))


def compare(report: common.Report, answers: Mapping[str, Sequence[Sequence[Answers]]]) -> None:
    """Gains of each step over the static model, and what an update costs of a training from scratch."""
    systems = report.content["systems"]
    if "static" in systems:
        intervals = report.content["intervals"] = {}
        for mode in MODES:
            static = list(zip(*answers[f"{mode}static"], strict=True))  # step by step, of all seeds
            for name in set(systems) & set(METERED) - {"static"}:
                own = zip(*answers[f"{mode}{name}"], strict=True)
                intervals[f"{mode}{name}"] = [gain_interval(*both) for both in zip(own, static, strict=True)]
    if {"static", "updated"} <= set(systems):
        report.content["gain"] = {
            key: _better(key, systems["updated"][key] - systems["static"][key])
            for key in systems["updated"]
            if key.startswith(("step", "mean/")) and key.partition("/")[2].removeprefix(MODES[1]) in METRICS
        }
    if {"retrained", "updated"} <= set(systems):
        shares = _shares(systems["updated"], systems["retrained"])
        report.content["ratios"]["cost of an update / retraining"] = statistics.fmean(shares)
        report.content["ratios"]["most expensive update / retraining"] = max(shares)


def _better(metric: str, change: float) -> float:
    return -change if metric.endswith(("logloss", "rmse", "mae")) else change


def _shares(updated: Mapping[str, Any], retrained: Mapping[str, Any]) -> Sequence[float]:
    return [updated[key] / retrained[key] for key in updated if key.endswith("/cpu_seconds") and key.startswith("step")]


def main() -> None:
    """Run the systems asked for and write the report."""
    args = common.arguments(__doc__, "update.yaml", SYSTEMS)
    plan = yaml.safe_load(args.config.read_text(encoding="utf-8"))
    config = common.read_config(common.HERE / plan["base"], args.epochs)
    report = common.Report(args, {**config, "plan": plan})
    run(args, config, plan, report)
    report.write()
    steps = range(1, plan["steps"] + 1)
    report.show([f"mean/{m}" for m in METRICS] + [f"step{s}/{mode}improvement" for mode in MODES for s in steps])
    for key, value in report.content.get("gain", {}).items():
        if key.endswith("improvement"):
            print(f"gain of updates over doing nothing, {key}: {value:+.4f}")
    for name, steps in report.content.get("intervals", {}).items():
        for step, found in enumerate(steps, start=1):
            print(f"{name} over static, step {step}: {found['gain']:+.4f} [{found['low']:+.4f}, {found['high']:+.4f}]")


if __name__ == "__main__":
    main()
