"""Runs the peers of PEERS.md in their own environments, with the configurations that its tables report.

`PEERS_HOME` holds the environments (`install_venvs.sh rt rb ctr` makes them); `PEERS_SCRIPTS` the scripts, by default
`../../peers` beside the data (the folder `peers` next to `data`).
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common import summarise, warn

METRICS_A = ("ndcg@10", "recall@10", "mrr@10", "coverage@10")

# name -> (environment, script, arguments), as in run_protocol.sh
PROTOCOL_A: dict[str, tuple[str, str, list[str]]] = {
    "rectools": (
        "rt",
        "a_rectools.py",
        ["--model", "SASRec", "--eval-every", "3", "--cfg",
         '{"n_factors":128,"n_heads":2,"session_max_len":50,"batch_size":64,"dropout_rate":0.3,"lr":0.001}'],
    ),
    "recbole": (
        "rb",
        "a_recbole.py",
        ["--model", "SASRec", "--patience", "3", "--cfg",
         '{"train_batch_size":256,"hidden_dropout_prob":0.3,"attn_dropout_prob":0.3,"MAX_ITEM_LIST_LENGTH":20}'],
    ),
}  # fmt: skip
MINUTES = 15.0  # what run_protocol.sh allows each


def next_item(system: str, args: Namespace) -> dict[str, Any] | None:
    """A peer of protocol A, or None (with a warning) where it cannot run here."""
    environment, script, options = PROTOCOL_A[system]
    minutes = MINUTES if args.peer_minutes is None else args.peer_minutes
    seeds = range(args.seeds if args.peer_minutes is None else 1)
    options = [*options, "--max-minutes", str(minutes), "--threads", str(args.threads), "--seeds", *map(str, seeds)]
    records = _run(system, environment, script, options, args, "a.jsonl")
    if records is None:
        return None
    runs = [
        {
            "test": {name: record["test"][name] for name in METRICS_A},
            "validation": {name: record["valid"][name] for name in METRICS_A},
            "train_cpu_seconds": record["train_cpu_s"],
            "train_wall_seconds": record["train_s"],
            "parameters": record["params"],
            "epochs": record["epochs"],
            "examples_per_second": record["examples_per_s"],
            "examples_per_second_cpu": record["examples_per_s"] * record["train_s"] / record["train_cpu_s"],
        }
        for record in records
    ]
    return summarise(runs) | {"example": records[0]["example_unit"], "cut_short": records[0]["stopped"] == "limit"}


def lightgbm(args: Namespace) -> dict[str, Any] | None:
    """LightGBM on running statistics, prequential and frozen after the validation period, or None with a warning."""
    options = ["--peers", "lightgbm", "--threads", str(args.threads), "--seeds", *map(str, range(args.seeds))]
    options += ["--data", str(args.data.resolve())]
    records = _run("lightgbm", "ctr", "b_preq.py", options, args, "b.jsonl")
    if records is None:
        return None
    runs = []
    for seed in range(args.seeds):
        mode = {record["mode"]: record for record in records if record["seed"] == seed}
        merged = {
            part: _flat(mode["prequential"][part], "") | _flat(mode["frozen"][part], "frozen_valid/")
            for part in ("test", "valid")
        }
        costs = {"train_cpu_seconds": mode["prequential"]["train_cpu_s"], "train_wall_seconds": None}
        runs.append({"test": merged["test"], "validation": merged["valid"], **costs})
    return summarise(runs)


def _flat(found: Mapping[str, Any], prefix: str) -> dict[str, float]:
    return {
        f"{prefix}{group}{task}/{metric}": value
        for part, group in (("all", ""), ("seen", "seen/"))
        for task in ("like", "love", "rating")
        for metric, value in found[part][task].items()
        if metric != "gauc_people"
    }


def _run(
    system: str, environment: str, script: str, options: list[str], args: Namespace, result: str
) -> list[dict[str, Any]] | None:
    """Run a peer's script; its records, one per seed (and mode)."""
    home = os.environ.get("PEERS_HOME")
    if home is None:
        warn(f"{system} is left out: PEERS_HOME is not set (see peers/install_venvs.sh)")
        return None
    scripts = Path(os.environ.get("PEERS_SCRIPTS", args.data.resolve().parent.parent / "peers")).resolve()
    python = Path(home).resolve() / f"venv-{environment}" / "bin" / "python"
    for needed, fix in (
        (python, f"make it with install_venvs.sh {environment}"),
        (scripts / script, "name the folder in PEERS_SCRIPTS"),
    ):
        if not needed.exists():
            warn(f"{system} is left out: no {needed}; {fix}")
            return None
    own = scripts.parent / "data" / "ml-100k"
    if "--data" not in options and args.data.resolve() != own.resolve():
        warn(f"{system} is left out: its script reads {own}, not {args.data}, so the figures would not compare")
        return None
    print(f"\n{system}: {script} in {python.parent.parent}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        variables = os.environ | {"PEERS_RESULTS": folder}
        variables.pop("PYTHONPATH", None)  # the peer's environment has its own versions
        if "--data" in options:
            options = [*options, "--out", str(Path(folder) / result)]
        done = subprocess.run([str(python), str(scripts / script), *options], env=variables, cwd=folder, check=False)
        if done.returncode:
            warn(f"{system} is left out: it ended with status {done.returncode}, see its own message above")
            return None
        lines = (Path(folder) / result).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]
