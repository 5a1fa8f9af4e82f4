"""Flip bytes in the files of trained runs, and see whether anybody notices.

    python scripts/flip_bytes.py --trials 2000

Each trial spoils one file of a run (a flipped bit, a cut, a block of zeros, the same file of another run, nothing at
all in its place), loads it in a forked child, and compares recommendations, predictions, metrics and what cards read
with those of the run as it was. A trial that ends in other answers, a dead process, a hang or a full memory is a fault;
so is a traceback that is not polyrec's own message. Files are drawn with equal chances, so small ones are hit as often.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # children are forked; threads of the parent would not be in them

import numpy as np
from forked import Hang, limits, outcomes

KINDS = ("flip", "flip", "flip", "flip", "truncate", "zeros", "swap", "delete")
SECONDS, MEMORY = 60, 8 << 30  # a trial may take
FAULTS = ("SILENT", "abort", "hang", "memory", "traceback")
# No answer and no figure is read from them.
IGNORED = ("README.md", "LICENSE", "training_args.json", "*.png", "report.html", "emissions.csv")

Answers = Callable[[Path], bytes]


@dataclass(frozen=True)
class Trial:
    """One change of one file.

    Args:
        path: relative to the run.
        kind: of KINDS.
        seed: of where and what.
    """

    path: str
    kind: str
    seed: int


def draw(run: Path, trials: int, seed: int = 0) -> list[Trial]:
    """Trials over all files of a run but those that nobody reads answers from."""
    files = sorted(p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file())
    files = [f for f in files if not any(Path(f).match(pattern) for pattern in IGNORED)]
    dice = random.Random(seed)
    return [Trial(files[n % len(files)], dice.choice(KINDS), dice.randrange(1 << 30)) for n in range(trials)]


def spoil(run: Path, other: Path, trial: Trial) -> bool:
    """Change the file; False if it is what it was."""
    path, dice = run / trial.path, random.Random(trial.seed)
    raw = path.read_bytes()
    changed = bytearray(raw)
    if trial.kind == "delete":
        path.unlink()
        return True
    if trial.kind == "swap" and (other / trial.path).exists():
        changed = bytearray((other / trial.path).read_bytes())
    elif trial.kind == "truncate":
        del changed[dice.randrange(len(raw) or 1) :]
    elif trial.kind == "zeros":
        at = dice.randrange(len(raw) or 1)
        changed[at : at + 64] = bytes(len(changed[at : at + 64]))
    elif raw:
        changed[dice.randrange(len(raw))] ^= 1 << dice.randrange(8)
    path.write_bytes(changed)
    return bytes(changed) != raw


def campaign(run: Path, other: Path, answers: Answers, trials: Sequence[Trial]) -> list[tuple[Trial, str, str]]:
    """(trial, outcome, message) of each; the run is afterwards as it was.

    Args:
        other: run of other data, from which files are swapped in.
        answers: of a run folder, as bytes.
    """
    whole = hashlib.sha256(answers(run)).hexdigest()
    found: list[tuple[Trial, str, str]] = []
    for outcome in outcomes(trials, lambda trial: _attempt(run, other, answers, trial, whole), 2 * SECONDS):
        trial = trials[len(found)]
        if outcome is None:
            _restore(run, trial)
        found.append((trial, *(outcome or ("abort", "the process died or hung"))))
    return found


def _keep(run: Path, trial: Trial) -> Path:
    return run.with_name(f"{run.name}-kept") / Path(trial.path).name


def _restore(run: Path, trial: Trial) -> None:
    kept = _keep(run, trial)
    if kept.exists():
        shutil.copy2(kept, run / trial.path)
        kept.unlink()


def _attempt(run: Path, other: Path, answers: Answers, trial: Trial, whole: str) -> tuple[str, str]:
    kept = _keep(run, trial)
    kept.parent.mkdir(exist_ok=True)
    shutil.copy2(run / trial.path, kept)
    try:
        if not spoil(run, other, trial):
            return "same file", ""
        with warnings.catch_warnings(), limits(SECONDS, MEMORY), open(os.devnull, "w") as nothing:
            warnings.simplefilter("ignore")
            with contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(nothing):
                same = hashlib.sha256(answers(run)).hexdigest() == whole
        return ("same answer" if same else "SILENT"), ""
    except Hang:
        return "hang", f"more than {SECONDS} s"
    except MemoryError as error:
        return "memory", str(error)
    except Exception as error:  # everything is an outcome
        message = f"{type(error).__name__}: {error}"
        return ("refused" if isinstance(error, ValueError) else "traceback"), message
    finally:
        _restore(run, trial)


# ------------------------------------------------------------------- runs
def make_run(folder: Path, seed: int, vectors: bool) -> Path:
    """Train a tiny run by the command line, on data of a seed.

    Args:
        vectors: items have an embedding that lies in a file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    import yaml

    from polyrec.cli.main import main

    folder.mkdir(parents=True)
    dice = np.random.default_rng(seed)
    users, items, events = 30, 20, 8
    user = np.repeat(np.arange(users), events)
    item = (dice.integers(0, items, users)[user] + np.tile(np.arange(events), users)) % items
    log = {
        "user_id": user,
        "item_id": item,
        "timestamp": 1e9 + 5000.0 * np.tile(np.arange(events), users) + 11 * user,
        "rating": dice.integers(1, 6, len(user)).astype(float),
    }
    pq.write_table(pa.table(log), folder / "log.parquet")
    about = {"item_id": np.arange(items), "title": [f"title {n}" for n in range(items)]}
    about |= {"genre": [f"g{n % 3}" for n in range(items)], "price": dice.random(items)}
    pq.write_table(pa.table(about), folder / "items.parquet")
    columns: dict[str, object] = {}
    if vectors:
        np.save(folder / "vectors.npy", dice.normal(size=(items, 4)).astype(np.float32))
        columns["item_features"] = {
            "genre": "categorical",
            "price": "numeric",
            "look": f"embedding:{folder / 'vectors.npy'}",
        }
    recipe = {
        "interactions": str(folder / "log.parquet"),
        "items": str(folder / "items.parquet"),
        "columns": columns,
        "tasks": [
            {"name": "next_item", "head": "retrieval"},
            {"name": "like", "head": "binary", "label": "rating >= 4"},
        ],
        "processor": {"max_history": 6},
        "model": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
        "training": {"num_train_epochs": 1, "use_cpu": True, "disable_tqdm": True, "seed": seed},
        "output": str(folder / "run"),
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    if main(["train", str(folder / "recipe.yaml")]) != 0:
        raise SystemExit("the run was not trained")
    for checkpoint in (folder / "run").glob("checkpoint-*"):
        shutil.rmtree(checkpoint)  # see tests of resuming
    return folder / "run"


def answers_of(run: Path) -> bytes:
    """Recommendations, predictions and metrics of a run, and what its recipe and its figures say."""
    import pyarrow.parquet as pq

    from polyrec.runs.prepare import read_run
    from polyrec.tracking.run_files import RunFiles

    events = pq.read_table(run.parent / "log.parquet")
    found = served(run, events)
    files = RunFiles.read(run)
    found += json.dumps([read_run(run).to_dict(), files.metrics, files.config, files.training], sort_keys=True).encode()
    return found


def served(run: Path, events: object) -> bytes:
    """What a model and its processor answer: to requests, from their saved state, and about a log.

    Args:
        events: an interactions table with user_id, item_id, timestamp and rating.
    """
    from polyrec import PolyRecForRecommendation, PolyRecProcessor
    from polyrec.evaluation import evaluator

    processor = PolyRecProcessor.from_pretrained(run)
    model = PolyRecForRecommendation.from_pretrained(run).eval()
    histories = ([{"item_id": 3, "rating": 5.0}, {"item_id": 4, "rating": 1.0}], [7, 8, 9], None)
    found = [model.recommend(processor, history, k=20) for history in histories]
    rows = None if processor.training_rows is None else processor.training_rows.arrays()
    log, statistics = processor.resume(events)
    dataset = processor.evaluation_set(log, log.order >= 0, statistics)
    predictions = evaluator.predict(model, dataset, 64, 10, True)
    metrics = evaluator.evaluate(model, dataset, predictions, 10)
    parts = [json.dumps([found, metrics], default=str).encode()]
    parts += [np.ascontiguousarray(values).tobytes() for _, values in sorted(predictions.values.items())]
    parts += [np.ascontiguousarray(values).tobytes() for _, values in sorted((rows or {}).items())]
    return b"".join(parts)


def table(found: Sequence[tuple[Trial, str, str]]) -> str:
    """Outcomes by file."""
    outcomes = ("refused", "same answer", "same file", *FAULTS)
    counts: dict[str, Counter] = {}
    for trial, outcome, _ in found:
        counts.setdefault(trial.path, Counter())[outcome] += 1
    lines = [f"{'':<40}" + "".join(f"{name:>12}" for name in outcomes)]
    for path, count in sorted(counts.items()):
        lines.append(f"{path:<40}" + "".join(f"{count[name] or '':>12}" for name in outcomes))
    total = sum(counts.values(), Counter())
    return "\n".join([*lines, f"{'all':<40}" + "".join(f"{total[name]:>12}" for name in outcomes)])


def main() -> int:
    """Run the campaign; 1 if any trial is a fault."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trials", type=int, default=2000, help="changes over all runs (default: 2000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--no-manifest", action="store_true", help="as runs of earlier versions: other answers are no fault then"
    )
    options = parser.parse_args()
    begin = time.perf_counter()
    found = []
    with tempfile.TemporaryDirectory() as place:
        for number, vectors in enumerate((False, True)):
            folder = Path(place) / f"vectors-{vectors}"
            _in_child(lambda folder=folder, vectors=vectors: make_run(folder / "one", 0, vectors))
            _in_child(lambda folder=folder, vectors=vectors: make_run(folder / "two", 1, vectors))
            run = folder / "one" / "run"
            if options.no_manifest:
                (run / "manifest.json").unlink()
            trials = draw(run, options.trials // 2, options.seed + number)
            found += campaign(run, folder / "two" / "run", answers_of, trials)
    print(table(found))
    allowed = ("SILENT",) if options.no_manifest else ()
    faults = [entry for entry in found if entry[1] in FAULTS and entry[1] not in allowed]
    for trial, outcome, message in faults[:40]:
        print(f"{outcome}: {trial}: {message[:300]}")
    print(f"{len(found)} trials, {len(faults)} faults, {time.perf_counter() - begin:.0f} s")
    return 1 if faults else 0


def _in_child(work: Callable[[], object]) -> None:
    """Train in a fork: threads of a training would not be in the forks that come later."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0:
        raise SystemExit("a run was not trained")


if __name__ == "__main__":
    import polyrec.training.trainer  # noqa: F401  (once, not in each child)

    sys.exit(main())
