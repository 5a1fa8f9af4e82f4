"""Are explanations faithful, complete and fast? Leave-one-out and integrated gradients against simple orders.

For each person drawn, one answer of the model is explained: the best recommendation (protocol A) or the click on what
was shown (protocol D), given the events that the model reads. Events are taken away, or given to an empty history, in
the order of an explanation (those that speak for the answer first), latest first, or at random. Areas under these
curves (in units of the answer: log probability, log odds) are compared with paired bootstrap intervals over people:
`deletion` is better the lower, `insertion` the higher, and `..._gain_over_recency` is positive where the explanation is
better.

`seconds_for_list` is the time of `model.explain` for as many recommendations as `listed` says, median over people, with
--threads; `..._cpu` is cpu time of all threads, which other processes of a machine do not change.

    python scripts/benchmarks/explain.py --data ../shared/data/ml-100k --run runs/next_item --threads 2 \\
        --output runs/explain.json
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import common
import yaml

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from polyrec import PolyRecForRecommendation, PolyRecProcessor

SECTIONS = ("ml-100k", "kuairand_late")
EXPLAINED = ("leave_one_out", "successive_leave_one_out", "integrated_gradients")
BASELINES = ("recency", "random")


class Asked(NamedTuple):
    """A person's history and what they are asked about."""

    history: pa.Table
    item: Any
    context: dict[str, Any]
    time: float


def arguments() -> argparse.Namespace:
    """Read the command line and fix the number of threads, before torch is imported."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with interactions, items and users .parquet")
    parser.add_argument("--run", type=Path, required=True, help="folder of a model trained by the section's protocol")
    parser.add_argument("--section", choices=SECTIONS, help="of the settings (default: name of the data folder)")
    parser.add_argument("--users", type=int, help="instead of the file's")
    parser.add_argument("--threads", type=int, default=2, metavar="T", help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="JSON to write")
    parser.add_argument("--config", type=Path, default=common.HERE / "explain.yaml", help="(default: %(default)s)")
    found = parser.parse_args()
    found.section = found.section or found.data.name
    if found.section not in SECTIONS:
        parser.error(f"--section is one of {', '.join(SECTIONS)}")
    for name in common.THREAD_VARIABLES:
        os.environ[name] = str(found.threads)
    found.output.parent.mkdir(parents=True, exist_ok=True)
    return found


def questions(
    table: pa.Table, processor: PolyRecProcessor, settings: Mapping[str, Any], users: int, cut: float | None
) -> Iterator[Asked]:
    """One question per person drawn: about their last event (after `cut`, seconds), given what came before its time.

    Histories are cut to what the model reads, so that nothing older moves up when an event is taken away.
    """
    import numpy as np

    from polyrec.data.derived import derived_names

    columns = processor.columns
    order = np.lexsort((table[columns.order].to_numpy(), table[columns.time].to_numpy()))
    table = table.take(order)
    user, moment = table[columns.user].to_numpy(), table[columns.time].to_numpy()
    derived = derived_names(columns)
    context = [name for name in processor.event_encoders["candidate"] if name not in derived]
    read = [columns.item, columns.time, *columns.feedback, *context]
    drawn = 0
    for one in np.random.default_rng(0).permutation(np.unique(user)):
        rows = np.flatnonzero(user == one)
        last, earlier = rows[-1], rows[:-1]
        if processor.ties == "strict":
            earlier = earlier[moment[earlier] < moment[last]]
        earlier = earlier[-processor.max_history :]
        if len(earlier) < settings["min_history"] or (cut is not None and moment[last] < cut):
            continue
        asked = {name: table[name][int(last)].as_py() for name in (columns.item, *context)}
        # Where the order within a second is trusted, the last event may share its time with those before.
        now = max(float(moment[last]), float(moment[earlier[-1]]) + 1.0)
        yield Asked(table.select(read).take(earlier), asked.pop(columns.item), asked, now)
        drawn += 1
        if drawn == users:
            return


def measure(
    model: PolyRecForRecommendation, processor: PolyRecProcessor, asked: Asked, settings: Mapping[str, Any], seed: int
) -> dict[str, Any]:
    """Areas of all orders of one question, completeness, and how far the two explanations agree."""
    import numpy as np
    import pyarrow as pa
    from scipy.stats import spearmanr

    from polyrec.inference.explanation.events import leave_one_out, successive_leave_one_out
    from polyrec.inference.explanation.explained import ExplainedRequest
    from polyrec.inference.explanation.faithfulness import area, curves
    from polyrec.inference.explanation.gradients import integrated_gradients

    request = {"context": asked.context, "time": asked.time}
    item = asked.item
    if settings["item"] == "recommended":
        item = model.recommend(processor, asked.history, k=1, task=settings["task"], **request)[0]["item"]
    rows = processor.items.rows(pa.array([item]))
    explained = ExplainedRequest(model, processor, asked.history, rows, settings["task"], request)
    exact, gradients = leave_one_out(explained), integrated_gradients(explained)
    events, random = explained.visible, np.random.default_rng(seed)
    orders = {
        "leave_one_out": events[np.argsort(-exact.effects[:, 0], kind="stable")],
        "successive_leave_one_out": successive_leave_one_out(explained, settings["rounds"]),
        "integrated_gradients": events[np.argsort(-gradients.effects[:, 0], kind="stable")],
        "recency": events[::-1],
        **{f"random{n}": random.permutation(events) for n in range(settings["random_orders"])},
    }
    found = curves(explained, orders, settings["steps"])
    row: dict[str, Any] = {"events": len(events)}
    for kind in ("deletion", "insertion"):
        areas = {name: area(found[name][kind]) for name in orders}
        drawn = [areas.pop(name) for name in list(areas) if name.startswith("random")]
        row |= {f"{name}/{kind}": value for name, value in areas.items()}
        row[f"random/{kind}"] = sum(drawn) / len(drawn)
        means = {name: found[name][kind] for name in (*EXPLAINED, "recency")}
        means["random"] = np.mean([found[n][kind] for n in orders if n.startswith("random")], axis=0)
        row |= {f"curve/{name}/{kind}": curve for name, curve in means.items()}
    row["completeness_gap"] = float(gradients.gap[0])
    row["steps_of_gradients"] = gradients.steps
    row["rank_correlation"] = float(spearmanr(exact.effects[:, 0], gradients.effects[:, 0])[0])
    return row


def summarise(rows: list[dict[str, Any]], resamples: int) -> dict[str, Any]:
    """Means with intervals over people, and the paired gains over the baselines."""
    import numpy as np

    from polyrec.evaluation.bootstrap import bootstrap_mean

    users = np.arange(len(rows))

    def interval(values: np.ndarray) -> list[float]:
        found = bootstrap_mean(values, users, n=resamples)
        return [found.value, found.low, found.high]

    columns = {k: np.array([row[k] for row in rows]) for k in rows[0] if not k.startswith("curve/")}
    found: dict[str, Any] = {k: interval(v) for k, v in columns.items() if "/" in k or k == "rank_correlation"}
    for name in EXPLAINED:
        for baseline in BASELINES:
            fall = columns[f"{baseline}/deletion"] - columns[f"{name}/deletion"]
            rise = columns[f"{name}/insertion"] - columns[f"{baseline}/insertion"]
            found[f"{name}/deletion_gain_over_{baseline}"] = interval(fall)
            found[f"{name}/insertion_gain_over_{baseline}"] = interval(rise)
    curve_names = [k for k in rows[0] if k.startswith("curve/")]
    return found | {
        "people": len(rows),
        "events": float(columns["events"].mean()),
        "completeness_gap_max": float(columns["completeness_gap"].max()),
        "completeness_gap_median": float(np.median(columns["completeness_gap"])),
        "steps_of_gradients_max": int(columns["steps_of_gradients"].max()),
        "curves": {k.removeprefix("curve/"): np.mean([row[k] for row in rows], axis=0).tolist() for k in curve_names},
    }


def speed(
    model: PolyRecForRecommendation, processor: PolyRecProcessor, asked: list[Asked], settings: Mapping[str, Any]
) -> dict[str, float]:
    """Seconds to explain a long list, medians over people; the first one only warms up."""
    import statistics

    walls, cpus = [], []
    for one in asked:
        wall, cpu = time.perf_counter(), time.process_time()
        model.explain(
            processor, one.history, k=settings["listed"], task=settings["task"], context=one.context, time=one.time
        )
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return {
        "seconds_for_list": statistics.median(walls[1:]),
        "seconds_for_list_min": min(walls[1:]),
        "seconds_for_list_cpu": statistics.median(cpus[1:]),
    }


def main() -> None:
    """Measure one data set and write the report."""
    args = arguments()
    settings = yaml.safe_load(args.config.read_text(encoding="utf-8"))
    settings = {k: v for k, v in settings.items() if k not in SECTIONS} | settings[args.section]
    import pyarrow.parquet as pq
    import torch
    from transformers.utils import logging

    from polyrec import PolyRecForRecommendation, PolyRecProcessor

    torch.set_num_threads(args.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    processor = PolyRecProcessor.from_pretrained(args.run)
    model = PolyRecForRecommendation.from_pretrained(args.run).eval()
    table = pq.read_table(args.data / "interactions.parquet")
    protocol = yaml.safe_load((common.HERE / settings["protocol"]).read_text(encoding="utf-8"))
    cuts = protocol["split"].get("cuts")  # only answers about the test part are explained
    users = args.users or settings["people"]
    asked = list(questions(table, processor, settings, users, None if cuts is None else cuts[-1]))
    report = common.Report(argparse.Namespace(output=args.output, threads=args.threads), settings)
    entry = speed(model, processor, asked[:11], settings)
    rows = [measure(model, processor, one, settings, seed) for seed, one in enumerate(asked)]
    report.add(args.section, entry | summarise(rows, settings["resamples"]))
    for name, value in report.content["systems"][args.section].items():
        if name != "curves":
            print(name, value if not isinstance(value, list) else "{:.4f} [{:.4f}, {:.4f}]".format(*value))


if __name__ == "__main__":
    main()
