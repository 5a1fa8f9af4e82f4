"""What both benchmarks share and needs no torch: arguments, the protocol's file, environment, JSON and a table.

Torch reads the number of threads when it is imported, so `arguments` must run before anything imports it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
TABLES = ("interactions", "items", "users")
CONFIG_KEYS = {"columns", "processor", "split", "tasks", "model", "training"}
OPTIONAL_KEYS = {"early_stopping_patience"}
PACKAGES = ("polyrec", "torch", "transformers", "accelerate", "numpy", "pyarrow")
BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # /proc/cpuinfo of x86 and of Arm
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def arguments(
    description: str, config: str, systems: Sequence[str], model: bool | None = False, other: bool = False
) -> argparse.Namespace:
    """Read the command line, fix the number of threads and check what can be checked before hours are spent.

    Args:
        config: name of the protocol's own file, the default of --config.
        systems: known systems.
        model: whether the protocol needs a pretrained text encoder (--model); None: some of its systems do.
        other: whether it needs a second data set (--other).
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with interactions, items and users .parquet")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds 0 .. N - 1 (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, metavar="T", help="(default: %(default)s)")
    parser.add_argument(
        "--systems", default="polyrec", help=f"comma-separated, of {', '.join(systems)} (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="JSON to write, after each system")
    parser.add_argument("--config", type=Path, default=HERE / config, help="hyper-parameters (default: %(default)s)")
    parser.add_argument("--epochs", type=int, help="instead of the file's, for a quick look")
    parser.add_argument(
        "--peer-minutes",
        type=float,
        help="stop peers after so long, one seed: for their speed only (default: as in PEERS.md)",
    )
    parser.add_argument(
        "--speed-seconds",
        type=float,
        default=20.0,
        help="of training to measure speed, 0 = none (default: %(default)s)",
    )
    if other:
        parser.add_argument("--other", type=Path, required=True, help="folder of a second data set")
    if model is not False:
        parser.add_argument("--model", required=bool(model), help="a text encoder: its folder, or its name on the Hub")
    found = parser.parse_args()
    found.systems = list(dict.fromkeys(found.systems.split(",")))
    if unknown := set(found.systems) - set(systems):
        parser.error(f"unknown system {sorted(unknown)[0]!r}; known: {', '.join(systems)}")
    if found.seeds < 1 or found.threads < 1:
        parser.error("--seeds and --threads must be at least 1")
    if missing := [f"{name}.parquet" for name in TABLES if not (found.data / f"{name}.parquet").is_file()]:
        parser.error(f"{found.data} has no {missing[0]}")
    for name in THREAD_VARIABLES:
        os.environ[name] = str(found.threads)
    found.output.parent.mkdir(parents=True, exist_ok=True)
    return found


def read_config(path: Path, epochs: int | None = None, more: Sequence[str] = ()) -> dict[str, Any]:
    """The protocol's file, a recipe without paths; unknown or missing parts are refused.

    Args:
        more: parts of this protocol alone.
    """
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    if wrong := (set(found) - OPTIONAL_KEYS) ^ (CONFIG_KEYS | set(more)):
        raise ValueError(f"{path}: unknown or missing {sorted(wrong)}; the parts are {sorted(CONFIG_KEYS)}")
    if epochs is not None:
        found["training"]["num_train_epochs"] = epochs
    return found


def rename(found: Mapping[str, float], tasks: Sequence[str], bare: str | None = None) -> dict[str, float]:
    """Metrics of the evaluator under the names of the report: "seen/like_auc" -> "seen/like/auc".

    Args:
        tasks: names of the tasks; metrics of none of them are left out.
        bare: a task whose metrics carry no prefix ("next_item_ndcg@10" -> "ndcg@10").
    """
    result = {}
    for key, value in found.items():
        group, _, name = key.rpartition("/")
        for task in tasks:
            if name.startswith(f"{task}_"):
                metric = name.removeprefix(f"{task}_")
                result["/".join(part for part in (group, "" if task == bare else task, metric) if part)] = value
    return result


def summarise(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One system's entry: means over seeds of its test metrics and costs, their spread, validation, and each seed.

    Args:
        runs: one per seed: `test` and `validation` {metric: value}, further numbers beside them (None = not reached).
    """
    entry = _means([run["test"] for run in runs])
    entry["std"] = {key: statistics.stdev(run["test"][key] for run in runs) if len(runs) > 1 else 0.0 for key in entry}
    entry["validation"] = _means([run["validation"] for run in runs])
    entry |= _means([{k: v for k, v in run.items() if k not in ("test", "validation", "log")} for run in runs])
    return entry | {"seeds": list(runs)}


def _means(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    columns = {key: [run[key] for run in runs] for key in runs[0]}
    # A seed that did not get there has no number, and then the mean would flatter.
    return {key: None if None in values else _mean(values) for key, values in columns.items()}


def _mean(values: Sequence[float]) -> float:
    return values[0] if len(set(values)) == 1 else statistics.fmean(values)


def one_relevant(better: Sequence[int], k: int = 10, ties: Sequence[int] | None = None) -> dict[str, float]:
    """Recall and NDCG of lists with one relevant item each.

    Args:
        better: how many items stand above it.
        ties: how many stand level with it, which chance puts in order. None: none does.
    """
    import numpy as np

    from polyrec.evaluation.ranking import single_target_metrics  # needs torch, see above

    level = np.zeros(len(better), dtype=np.int64) if ties is None else np.asarray(ties)
    found = single_target_metrics(np.asarray(better), level, ks=[k])
    return {f"{name}@{k}": float(found[f"{name}@{k}"].mean()) for name in ("recall", "ndcg")}


def environment(threads: int) -> dict[str, Any]:
    """Where the figures were measured."""
    model, flags = cpu()
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": threads,
        "bf16_supported": bool(flags & BF16_FLAGS),  # else bf16 is emulated, and slow
        "load": os.getloadavg()[0],
        "versions": {"python": platform.python_version(), **{p: _version(p) for p in PACKAGES}},
        "commit": commit(),
    }


def cpu() -> tuple[str, set[str]]:
    """Name and instruction sets of the processor."""
    model, flags = platform.processor() or platform.machine(), set()
    info = Path("/proc/cpuinfo")
    for line in info.read_text(encoding="utf-8").splitlines() if info.exists() else ():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            model = value.strip()
        elif name.strip() in ("flags", "Features"):
            flags = set(value.split())
    return model, flags


def commit() -> str | None:
    """The commit measured, with "+changes" where the tree differs from it; None outside a checkout."""
    git = ["git", "--no-optional-locks", "-C", str(HERE)]
    try:
        name = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        status = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{name}+changes" if status.strip() else name


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


class Report:
    """What is written to --output, again after each system, so that a long run leaves what it has."""

    def __init__(self, args: argparse.Namespace, config: Mapping[str, Any]) -> None:
        self.path = args.output
        self.content: dict[str, Any] = {
            "systems": {},
            "ratios": {},
            "environment": environment(args.threads),
            "config": dict(config),
        }

    def add(self, name: str, entry: Mapping[str, Any] | None) -> None:
        """Add a system; None = it could not run, which was warned of."""
        if entry is not None:
            self.content["systems"][name] = dict(entry)
            self.write()

    def ratio(self, name: str, speed: str, peer: str) -> None:
        """Add the ratio of polyrec's `speed` to a peer's, where both were measured, by wall and by cpu time."""
        for suffix in ("", "_cpu"):
            ours = self.content["systems"].get("polyrec", {}).get(f"{speed}{suffix}")
            theirs = self.content["systems"].get(peer, {}).get(f"examples_per_second{suffix}")
            if ours and theirs:
                self.content["ratios"][f"{name}{suffix}"] = ours / theirs

    def write(self) -> None:
        """Write the file; it is replaced whole."""
        self.content["environment"]["load_at_end"] = os.getloadavg()[0]
        draft = self.path.with_suffix(".tmp")
        draft.write_text(json.dumps(_plain(self.content), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        draft.replace(self.path)

    def show(self, metrics: Sequence[str]) -> None:
        """Print metrics by systems, the test's mean with its spread over seeds and the validation's in brackets."""
        systems = self.content["systems"]
        metrics = [m for m in metrics if any(entry.get(m) is not None for entry in systems.values())]
        width = max([len(m) for m in metrics], default=0) + 2
        print("\n" + " " * width + "".join(f"{name:>33}" for name in systems))
        for metric in metrics:
            print(f"{metric:{width}}" + "".join(f"{_cell(entry, metric):>33}" for entry in systems.values()))
        for name, value in self.content["ratios"].items():
            print(f"speed over {name}: {value:.2f} x")
        print(f"written to {self.path}")


def _cell(entry: Mapping[str, Any], metric: str) -> str:
    value = entry.get(metric)
    if value is None:
        return "-"
    if metric not in entry["std"]:
        return f"{value:,.1f}" if abs(value) < 1000 else f"{value:,.0f}"
    validation = entry["validation"].get(metric)
    return f"{value:.4f} ±{entry['std'][metric]:.4f}" + ("" if validation is None else f" (valid {validation:.4f})")


def _plain(value: Any) -> Any:
    """Values for strict JSON: paths become text, NaN becomes null."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | None) else str(value)


def warn(message: str) -> None:
    """A warning that points at no line of code."""
    warnings.warn_explicit(message, UserWarning, "benchmark", 1)
