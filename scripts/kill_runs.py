"""Kill, or fail, every command at each of its file operations, and look at what is left.

    python scripts/kill_runs.py [--only train update] [--every 1] [--how kill fail]

For each command and each k, a forked process runs the command and dies (or gets "no space left on device") at its k-th
open for writing, write by a library, rename, unlink, mkdir, rmdir, link or fsync. A file that a library writes is cut
in half then. Afterwards

* the folder must be, bit for bit, the old one or the new one, notes of the user included (else it is `lost` or
  `mixed`);
* the same command, run again, must succeed (else it is `stuck`) and end in what an uninterrupted one writes (else it
  `differs`).

Prints a table and exits with 1 if any of these counts is not 0. Files that hold durations or a random salt are left out
of the comparison; they are those that two uninterrupted runs of a command write differently, and must be among `TIMED`.
"""

from __future__ import annotations

import argparse
import builtins
import errno
import gc
import hashlib
import io
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pandas as pd
import pyarrow.parquet as pq
import torch
import yaml

KILLED, CRASHED = 137, 99
TIMED = {
    "manifest.json", "training.json", "training_args.json", "update.json", "finetune.json", "quantize.json",
    "quantize.md", "distill.json", "distill.md", "comparison.json", "comparison.md", "run.json",
    "training_rows.safetensors",  # hashes with a random salt
    "stored_events.parquet",  # likewise
}  # fmt: skip
_RENAMES = ("rename", "replace", "unlink", "remove", "rmdir", "mkdir", "link", "symlink")


class Injector:
    """Counts the file operations of this process below a folder, and interferes with one of them.

    Args:
        root: of the operations that count.
        at: number of the operation, from 1; 0: none.
        how: "kill": perform it, then end the process at once; "fail": raise OSError in its place.
    """

    def __init__(self, root: Path, at: int = 0, how: str = "kill") -> None:
        self.root, self.at, self.how, self.count = os.fspath(root), at, how, 0
        self._inside = False  # a library's own operations are part of its write

    def _hit(self, path: Any, perform: Callable[[], Any], cut: bool = False) -> Any:
        if self._inside or not self._counts(path):
            return perform()
        self.count += 1
        if self.count != self.at:
            if not cut:
                return perform()
            self._inside = True
            try:
                return perform()
            finally:
                self._inside = False
        if self.how == "fail":
            raise OSError(
                errno.ENOSPC, "No space left on device", os.fspath(path) if not isinstance(path, int) else None
            )
        perform()
        if cut:
            os.truncate(path, os.path.getsize(path) // 2)
        self.die()

    def die(self) -> None:
        """End the process at once, as SIGKILL does."""
        os._exit(KILLED)

    def _counts(self, path: Any) -> bool:
        if isinstance(path, int):
            return True
        text = os.fspath(path)
        return isinstance(text, str) and (text.startswith(self.root) or not os.path.isabs(text))

    def install(self, put: Callable[[Any, str, Any], None] = setattr, libraries: bool = True) -> None:
        """Take the place of the functions.

        Args:
            put: sets an attribute; `setattr` has no way back, so use it in a fork.
            libraries: also of those that write files by themselves.
        """
        from polyrec.core import swap

        for name in _RENAMES:
            put(os, name, self._wrapped(getattr(os, name), lambda *a, **k: a[0]))
        put(os, "fsync", self._wrapped(os.fsync, lambda fd: fd))
        opened = builtins.open

        def open_(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if set(mode) & set("wax+"):
                return self._hit(file, lambda: opened(file, mode, *args, **kwargs))
            return opened(file, mode, *args, **kwargs)

        put(builtins, "open", open_)
        put(io, "open", open_)
        if not libraries:
            put(swap, "exchange", self._wrapped(swap.exchange, lambda first, second: second))
            return
        put(torch, "save", self._wrapped(torch.save, lambda value, f, *a, **k: f, cut=True))
        put(pq, "write_table", self._wrapped(pq.write_table, lambda table, where, *a, **k: where, cut=True))
        import safetensors.numpy
        import safetensors.torch

        for function, path, cut in (
            (safetensors.numpy.save_file, lambda tensors, filename, *a, **k: filename, True),
            (safetensors.torch.save_file, lambda tensors, filename, *a, **k: filename, True),
            (swap.exchange, lambda first, second: second, False),
        ):
            _everywhere(function, self._wrapped(function, path, cut), put)

    def _wrapped(self, function: Callable, path: Callable, cut: bool = False) -> Callable:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            return self._hit(path(*args, **kwargs), lambda: function(*args, **kwargs), cut)

        return wrapped


def _everywhere(function: Callable, other: Callable, put: Callable[[Any, str, Any], None]) -> None:
    """Replace a function in every module that has imported it."""
    for module in [*sys.modules.values()]:
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if value is function:
                put(module, name, other)


@dataclass
class Command:
    """One that is killed.

    Args:
        name: in the table.
        template: what the folder is before: a name in the world.
        result: the folder that it writes, in a copy of the template.
        arguments: of the command line; {world} and {root} are filled in.
        done: of a second run, the word of an error that says that there is nothing left to do.
    """

    name: str
    template: str
    result: str
    arguments: list[str]
    done: str = ""


@dataclass
class Found:
    """Numbers of one row of the table."""

    operations: int = 0
    trials: int = 0
    lost: list[int] = field(default_factory=list)
    mixed: list[int] = field(default_factory=list)
    stuck: list[int] = field(default_factory=list)
    differs: list[int] = field(default_factory=list)
    traceback: list[int] = field(default_factory=list)

    @property
    def faults(self) -> int:
        return sum(map(len, (self.lost, self.mixed, self.stuck, self.differs, self.traceback)))


_TRAIN = ["train", "{world}/recipe.yaml", "--set", "training.seed=6"]
_UPDATE = ["update", "{root}/run", "--new", "{world}/new.parquet", "--max-regression", "9"]
_DISTILL = ["distill", "{world}/recipe.yaml", "--teacher", "{root}/run", "--resamples", "5", "--no-baseline"]
_COMPARE = ["compare", "{world}/recipe.yaml", "--seeds", "1", "--variants", "multi,single", "--resamples", "5"]
_SCORE = ["score", "{root}/run", "{world}/recipe.yaml", "--shard-rows", "60"]
_EVALUATE = ["evaluate", "{root}/run", "--split", "valid", "--output", "{root}/run/valid.json"]
_FINETUNE = ["finetune", "{root}/run", "--task", "rating", "--epochs", "1"]
COMMANDS = [
    Command("train over a run", "trained", "run", _TRAIN),
    Command("train --resume", "interrupted", "run", [*_TRAIN, "--resume"]),
    Command("update", "trained", "run", _UPDATE, "already trained on"),
    Command("distill", "trained", "student", _DISTILL),
    Command("compare", "nothing", "compared", [*_COMPARE, "--no-html"]),
    Command("score", "trained", "answers", _SCORE),
    Command("evaluate --output", "trained", "run", _EVALUATE),
    Command("finetune", "trained", "run", _FINETUNE, "already been fine-tuned"),
    Command("quantize", "trained", "run-int8", ["quantize", "{root}/run"]),
]


def build_world(world: Path) -> None:
    """Tables, a recipe of a tiny model, and folders as commands find them: nothing, a run, an interrupted training."""
    (world / "templates" / "nothing").mkdir(parents=True)
    rows = pd.DataFrame(
        [(u, (3 * u + 5 * n) % 12, 1e6 + 1000 * n + u, 1 + (u + n) % 5) for u in range(24) for n in range(8)],
        columns=["user_id", "item_id", "timestamp", "rating"],
    )
    rows.to_parquet(world / "interactions.parquet")
    rows.assign(timestamp=rows.timestamp + 1e6, item_id=(rows.item_id + 1) % 12).to_parquet(world / "new.parquet")
    recipe = {
        "interactions": str(world / "interactions.parquet"),
        "tasks": [{"name": "next_item", "head": "retrieval"}, {"name": "rating", "head": "regression"}],
        "processor": {"max_history": 4, "statistics": False},
        "model": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "candidate_attention_heads": 2},
        "training": {
            "num_train_epochs": 2,
            "per_device_train_batch_size": 16,
            "use_cpu": True,
            "disable_tqdm": True,
            "save_total_limit": 1,
        },
        "output": "unused",
    }
    (world / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    trained = world / "templates" / "trained"
    trained.mkdir()
    _warm(["train", str(world / "recipe.yaml"), "--output", str(trained / "run")])
    (trained / "run" / "notes.txt").write_text("mine")
    (trained / "run" / "logs").mkdir()
    (trained / "run" / "logs" / "out.txt").write_text("mine, too")
    shutil.copytree(trained / "run", trained / "student")
    interrupted = world / "templates" / "interrupted"
    shutil.copytree(trained, interrupted)
    command = ["train", str(world / "recipe.yaml"), "--set", "training.seed=6", "--output", str(interrupted / "run")]
    assert _run(command, first=_die_after_a_checkpoint)[0] == KILLED


def _die_after_a_checkpoint() -> None:
    from polyrec.training import resuming

    resuming.keep_newest = lambda *_: os._exit(KILLED)


def _warm(arguments: list[str]) -> None:
    """Run a command in this process, so that forks begin with what is imported and compiled once."""
    from polyrec.cli.main import main
    from polyrec.evaluation import bootstrap

    draws = bootstrap.draws
    bootstrap.draws = lambda users, n, seed: draws(users, 2, seed)  # intervals are not what is tested here
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        assert main(arguments) == 0
    gc.collect()
    gc.freeze()  # forks need not look through what this process holds


def _run(
    arguments: list[str], injector: Injector | None = None, first: Callable[[], None] | None = None
) -> tuple[int, str, int]:
    """Run a command in a fork, which may do something first.

    Returns:
        its exit status, what it printed and how many operations it made.
    """
    from polyrec.cli.main import main

    with tempfile.NamedTemporaryFile("r", suffix=".out") as printed, tempfile.NamedTemporaryFile("r") as counted:
        child = os.fork()
        if child == 0:
            status = CRASHED
            try:
                output = os.open(printed.name, os.O_WRONLY)
                os.dup2(output, 1)
                os.dup2(output, 2)
                sys.stdout = sys.stderr = os.fdopen(output, "w")
                if injector is not None:
                    injector.install()
                if first is not None:
                    first()
                status = main(arguments)
            except SystemExit as error:
                status = error.code if isinstance(error.code, int) else 2
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                if injector is not None:
                    os.write(os.open(counted.name, os.O_WRONLY), str(injector.count).encode())
                os._exit(status)
        _, code = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(code), printed.read(), int(counted.read() or 0)


def digests(folder: Path, leave_out: set[str] = frozenset()) -> dict[str, str] | None:
    """SHA-256 of each file of a folder, without checkpoints and what is being worked on; None: there is none."""
    from polyrec.core.swap import recover

    recover(folder)
    if not folder.exists():
        return None
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        hidden = any(part.startswith((".", "checkpoint-")) for part in name.split("/"))
        if not hidden and path.name not in leave_out:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def loads(folder: Path) -> str | None:
    """Why a run cannot be loaded; None: it can, or is none."""
    from polyrec import PolyRecForRecommendation, PolyRecProcessor
    from polyrec.core.manifest import check_manifest

    try:
        if (folder / "config.json").exists():
            check_manifest(folder)
            PolyRecForRecommendation.from_pretrained(folder)
            PolyRecProcessor.from_pretrained(folder)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


@contextmanager
def copy_of(world: Path, command: Command) -> Iterator[tuple[Path, list[str]]]:
    """A copy of the command's template, and the command line for it."""
    root = world / "trial"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(world / "templates" / command.template, root, symlinks=True)
    arguments = [text.format(world=world, root=root) for text in command.arguments]
    if "--output" not in arguments:
        arguments += ["--output", str(root / command.result)]
    yield root, arguments


def campaign(
    world: Path, command: Command, how: str, chosen: Callable[[int], Iterator[int]], say: Callable[[str], None] = print
) -> Found:
    """Interfere with a command at some of its operations.

    Args:
        how: see `Injector`.
        chosen: which operations, given how many there are.
    """
    references = []
    for _ in range(2):
        with copy_of(world, command) as (root, arguments):
            old = digests(root / command.result)
            status, printed, operations = _run(arguments, Injector(root))
            assert status == 0, printed
            references.append(digests(root / command.result))
    first, second = references
    assert first is not None
    assert second is not None
    volatile = {Path(name).name for name in {*first, *second} if first.get(name) != second.get(name)}
    assert volatile <= TIMED, f"two uninterrupted runs differ in {volatile - TIMED}"
    new = {name: digest for name, digest in first.items() if Path(name).name not in volatile}
    found = Found(operations=operations)
    for at in chosen(operations):
        found.trials += 1
        with copy_of(world, command) as (root, arguments):
            status, printed, _ = _run(arguments, Injector(root, at, how))
            left = digests(root / command.result)
            is_old = left == old
            stable = None if left is None else {n: d for n, d in left.items() if Path(n).name not in volatile}
            told = f"{command.name}, {how} at {at}"
            if status == CRASHED:
                found.traceback.append(at)
                say(f"{told}: {printed.strip().splitlines()[-1]}")
            problem = loads(root / command.result)
            if (left is None and not is_old) or problem:
                found.lost.append(at)
                say(f"{told}: lost: {problem}")
            elif not is_old and stable != new and _is_run(root / command.result):
                found.mixed.append(at)
                say(f"{told}: mixed: {_differing(stable, new)}")
            status, printed, _ = _run(arguments)
            after = digests(root / command.result, volatile)
            finished = status == 0 or (command.done and command.done in printed)
            if not finished:
                found.stuck.append(at)
                say(f"{told}: stuck: {printed.strip().splitlines()[-1:]}")
            elif after != new:
                found.differs.append(at)
                say(f"{told}: differs: {_differing(after, new)}")
    return found


def _is_run(folder: Path) -> bool:
    """Comparisons and stored outputs are filled piece by piece; what counts is that a rerun ends the same."""
    return (folder / "recipe.yaml").exists()


def _differing(one: dict[str, str] | None, other: dict[str, str] | None) -> list[str]:
    one, other = one or {}, other or {}
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))


def main_(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", help="first words of commands")
    parser.add_argument("--how", nargs="+", choices=["kill", "fail"], default=["kill", "fail"])
    parser.add_argument("--every", type=int, default=1, help="try each n-th operation only")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        world = Path(folder).resolve()
        build_world(world)
        print("| command | how | operations | tried | lost | mixed | stuck | differs | tracebacks | seconds |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
        faults = 0
        for command in COMMANDS:
            if options.only and not any(command.name.startswith(word) for word in options.only):
                continue
            for how in options.how:
                begin = time.time()
                said: list[str] = []
                found = campaign(world, command, how, lambda n: range(1, n + 1, options.every), said.append)
                faults += found.faults
                numbers = [len(v) for v in (found.lost, found.mixed, found.stuck, found.differs, found.traceback)]
                row = [command.name, how, found.operations, found.trials, *numbers, f"{time.time() - begin:.0f}"]
                print("| " + " | ".join(map(str, row)) + " |")
                for line in said:
                    print(f"  {line}")
                sys.stdout.flush()
    return int(faults > 0)


if __name__ == "__main__":
    from transformers.utils import logging

    import polyrec.runs.compare
    import polyrec.runs.distill
    import polyrec.runs.finetune
    import polyrec.runs.quantize
    import polyrec.runs.score
    import polyrec.runs.train
    import polyrec.runs.update  # noqa: F401

    logging.disable_progress_bar()
    sys.exit(main_())
