"""Staying fresh on protocol B: short updates with new events against doing nothing and against training anew.

All events in time order: the first 80% train, the next 10% validate, the rest is cut into steps of time. A model that
was trained on the first 80% learns each step once it is over (`update`: those events and a replay of older ones) and
answers the next step prequentially: everything strictly before a row is visible, to all systems alike. The first
update learns the validation part, the last step is only asked.

* `static`: never updated;
* `updated`: updated after each step;
* `retrained`: trained from scratch after each step on all events so far, as often as the first training validated best.

`mean/` is the mean over steps of each metric; `gain` what the updated model has over the static one, step by step, in
`mean_improvement` (mean over tasks of 1 - loss / loss of a constant, and NDCG@10). `--systems choose` tries settings of
the update on the validation part, cut into steps in the same way, and reads nothing of the test part.

    python scripts/benchmarks/update.py --data ../shared/data/ml-100k --seeds 1 --threads 1 \\
        --systems static,updated,retrained --output runs/update.json
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

if TYPE_CHECKING:
    import fitting
    import numpy as np

    from polyrec import PolyRecForRecommendation
    from polyrec.data.sequences import SequenceDataset
    from polyrec.training.update import UpdateSettings

SYSTEMS = ("static", "updated", "retrained", "choose")
METRICS = ("like/auc", "like/logloss", "love/auc", "love/logloss", "rating/rmse", "rating/mae")
METRICS += ("next_item/ndcg@10", "next_item/recall@10", "improvement")


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

    def score(self, model: PolyRecForRecommendation, rows: np.ndarray) -> dict[str, float]:
        """Metrics on some events, prequentially."""
        from polyrec.evaluation import evaluator

        dataset = self.processor.evaluation_set(self.log, rows, self.statistics)
        found = evaluator.evaluate(model, dataset, evaluator.predict(model, dataset))
        named = common.rename(found, list(model.heads))
        return {k: v for k, v in named.items() if k in METRICS} | {"improvement": found["mean_improvement"]}


class Updated:
    """A copy of a model that learns step after step.

    Args:
        learnt: bool [R], what the model has learnt.
    """

    def __init__(self, protocol: Protocol, model: PolyRecForRecommendation, learnt: np.ndarray) -> None:
        self.protocol, self.model = protocol, copy.deepcopy(model)
        self.processor = copy.copy(protocol.processor)  # counts of items are its own
        self.learnt = learnt

    def learn(self, new: np.ndarray, settings: UpdateSettings) -> dict[str, float]:
        """One update; what it cost."""
        from polyrec.data.replay import with_replay
        from polyrec.training.update import Parts, UpdateData, learn

        protocol = self.protocol
        questions = with_replay(protocol.about(self.learnt | new), new, settings.replay, settings.seed)
        data = UpdateData(questions, {}, Parts(self.learnt, new))
        cost = learn(self.model, self.processor, data, settings, protocol.config["training"] | {"use_cpu": True})
        self.learnt = self.learnt | new
        return cost


def run(args: Namespace, config: Mapping[str, Any], plan: Mapping[str, Any], report: common.Report) -> None:
    """Every seed's first training, and the systems asked for on top of it."""
    from polyrec.training.update import UpdateSettings

    protocol = Protocol(args, config)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in args.systems}
    for seed in range(args.seeds):
        first = protocol.first_model(seed)
        if "choose" in found:
            report.content["choice"] = choose(protocol, first.model, plan)
            report.write()
        settings = UpdateSettings(**plan["update"], seed=seed)
        for name in args.systems:
            if name != "choose":
                found[name].append(one_system(name, protocol, first, settings, plan["steps"], seed))
                report.add(name, common.summarise(found[name]))
    compare(report)


def one_system(
    name: str, protocol: Protocol, first: fitting.Fit, settings: UpdateSettings, number: int, seed: int
) -> dict[str, Any]:
    """Scores of each step, and costs."""
    asked = protocol.steps(protocol.test, number)
    known = [protocol.valid, *asked[:-1]]  # what has come to be known before each step
    updated = Updated(protocol, first.model, protocol.train)
    test: dict[str, float] = {}
    cpu: list[float] = []
    learnt = protocol.train
    for step, (new, rows) in enumerate(zip(known, asked, strict=True), start=1):
        model = first.model
        if name == "updated":
            cpu.append(updated.learn(new, settings)["cpu_seconds"])
            model = updated.model
        elif name == "retrained":
            learnt = learnt | new
            model, seconds = retrain(protocol, learnt, first, seed)
            cpu.append(seconds)
        test |= {f"step{step}/{key}": value for key, value in protocol.score(model, rows).items()}
        shown = "  ".join(f"{m} {test[f'step{step}/{m}']:.4f}" for m in ("improvement", "like/auc", "rating/rmse"))
        print(f"{name} seed {seed} step {step}: {shown}  {sum(cpu):.0f} cpu-s", flush=True)
    test |= {f"mean/{m}": statistics.fmean(test[f"step{s}/{m}"] for s in range(1, number + 1)) for m in METRICS}
    costs = {f"step{step}/cpu_seconds": seconds for step, seconds in enumerate(cpu, start=1)}
    return {"test": test, "validation": {}, **costs, "cpu_seconds": sum(cpu)}


def retrain(
    protocol: Protocol, rows: np.ndarray, first: fitting.Fit, seed: int
) -> tuple[PolyRecForRecommendation, float]:
    """A fresh model trained on some events, until the epoch that was the first one's best; cpu seconds."""
    import fitting
    import numpy as np

    from polyrec import Splits

    processor = copy.copy(protocol.processor)
    processor.item_counts = np.bincount(protocol.log.item[rows], minlength=processor.num_items)
    metric = f"eval_{protocol.config['training']['metric_for_best_model']}"
    best = max(first.log, key=lambda row: row[metric])["epoch"]
    data = Splits(protocol.about(rows), protocol.data.valid, protocol.data.test)  # of which only the first is read
    with tempfile.TemporaryDirectory() as folder:
        until = fitting.Until(int(best))
        trainer = fitting.new_trainer(processor, data, protocol.config, folder, seed, until)
        trainer.train()
    return trainer.model.eval(), until.clock.cpu


def choose(protocol: Protocol, model: PolyRecForRecommendation, plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Settings tried on the validation part: gains over the static model from step to step, best first."""
    from polyrec.training.update import UpdateSettings

    steps = protocol.steps(protocol.valid, plan["steps"])
    static = [protocol.score(model, rows)["improvement"] for rows in steps[1:]]
    rows = []
    for values in itertools.product(*plan["grid"].values()):
        options = dict(zip(plan["grid"], values, strict=True))
        updated = Updated(protocol, model, protocol.train)
        gains, cpu = [], 0.0
        for new, asked, before in zip(steps, steps[1:], static, strict=False):
            cpu += updated.learn(new, UpdateSettings(**options))["cpu_seconds"]
            gains.append(protocol.score(updated.model, asked)["improvement"] - before)
        rows.append({**options, "gains": gains, "mean_gain": statistics.fmean(gains), "cpu_seconds": cpu})
        shown = " ".join(f"{gain:+.4f}" for gain in gains)
        print(f"{options}: {shown}  mean {rows[-1]['mean_gain']:+.4f}  {cpu:.0f} cpu-s", flush=True)
    return sorted(rows, key=lambda row: -row["mean_gain"])


def compare(report: common.Report) -> None:
    """Gains of each step over the static model, and what an update costs of a training from scratch."""
    systems = report.content["systems"]
    if {"static", "updated"} <= set(systems):
        report.content["gain"] = {
            key: _better(key, systems["updated"][key] - systems["static"][key])
            for key in systems["updated"]
            if key.startswith(("step", "mean/")) and key.partition("/")[2] in METRICS
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
    report.show([f"mean/{m}" for m in METRICS] + [f"step{s}/improvement" for s in range(1, plan["steps"] + 1)])
    for key, value in report.content.get("gain", {}).items():
        if key.endswith("improvement"):
            print(f"gain of updates over doing nothing, {key}: {value:+.4f}")


if __name__ == "__main__":
    main()
