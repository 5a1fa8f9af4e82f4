"""Does polyrec work on this GPU, and how fast? One call of a few minutes, with torch and polyrec's own dependencies.

    python scripts/benchmarks/gpu.py --output runs/gpu.json

Trains the demo's model and one of about 10 million parameters in fp32, tf32 and bf16, compares losses, gradients and
answers with the CPU's, evaluates, recommends, saves, resumes, and measures speed and peak memory; then the demo's model
with every term of its scores ("terms") and one of a log without times ("sets"); then the losses of catalogs of up to a
million items, and attention, kernel by kernel. Each part that fails is named, with its error, and the others go on.
Exit code 1 if one did. `--device cpu --quick` does the same in seconds without a GPU (its test:
tests/benchmarks/test_gpu.py).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else products of matrices differ from run to run

import numpy as np
import torch
from gpu_kernels import CATALOGS, attention, catalog_losses

from polyrec import (
    PolyRecCollator,
    PolyRecForRecommendation,
    PolyRecProcessor,
    PolyRecTrainer,
    PolyRecTrainingArguments,
)
from polyrec.data.batch import Batch
from polyrec.evaluation import evaluator
from polyrec.training.progress import TrainingLines

TASKS = [
    {"name": "next_item", "head": "retrieval"},
    {"name": "like", "head": "binary", "label": "rating >= 4"},
    {"name": "rating", "head": "regression"},
]
COLUMNS = {"item_features": {"year": "numeric", "genres": "multi"}}
# What data would have to ask for: scores that add what is popular now, taken again, of an age; logs without times.
TERMS = {"trending": [[86400.0, 50.0]], "repeats": True, "item_age": "first_event"}
VARIANTS: dict[str, dict[str, Any]] = {
    "terms": {"tasks": [TASKS[0] | {"options": TERMS}, *TASKS[1:]], "columns": COLUMNS},
    "sets": {"tasks": TASKS, "columns": COLUMNS | {"time": None}},
}
# Of the demo (scripts/demo.yaml), and one whose matrices fill a GPU: 10 million parameters with 30,000 items.
DEMO = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2}
LARGE = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4, "num_hidden_layers": 3}
MODELS = {"demo": DEMO, "10M": LARGE, "terms": DEMO, "sets": DEMO}
TINY = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
PRECISIONS = ("fp32", "tf32", "bf16")
# Largest error against the CPU in fp32, relative: of each loss, of the norm of gradients, to the largest answer.
TOLERANCES = {
    "fp32": {"loss": 1e-4, "gradient": 1e-3, "prediction": 1e-4},
    "tf32": {"loss": 5e-3, "gradient": 3e-2, "prediction": 5e-3},
    "bf16": {"loss": 3e-2, "gradient": 1e-1, "prediction": 3e-2},
}


@dataclass
class Size:
    """How much is done.

    Args:
        users, items, batch: of the log that is made up, and windows per step; the demo's is as large as its real one.
        large: the same three of the model of 10 million parameters.
        events: per person.
        steps, warm_up: optimizer steps that are timed, and those before them.
        max_history: events per window.
        models: {name: options of its config}.
    """

    users: int
    items: int
    batch: int
    large: tuple[int, int, int]
    events: int
    steps: int
    warm_up: int
    max_history: int
    models: dict[str, dict[str, Any]]

    def of(self, name: str) -> tuple[int, int, int]:
        """People, items and windows per step of a model."""
        return self.large if name == "10M" else (self.users, self.items, self.batch)


FULL = Size(671, 9066, 16, (1500, 30_000, 64), 150, 60, 10, 64, MODELS)
QUICK = Size(24, 30, 8, (0, 0, 0), 12, 3, 1, 8, {"demo": TINY, "terms": TINY, "sets": TINY})


def made_up_log(users: int, items: int, events: int, seed: int = 0) -> dict[str, dict[str, Any]]:
    """A log with popular items, people who like a genre, and ratings, as MovieLens has them."""
    random = np.random.default_rng(seed)
    chance = 1 / np.arange(1, items + 1) ** 0.8
    user = np.repeat(np.arange(users), events)
    item = random.choice(items, len(user), p=chance / chance.sum())
    liked = (item % 7 == user % 7) | (random.random(len(user)) < 0.3)
    interactions = {
        "user_id": user,
        "item_id": item,
        "timestamp": 1e9 + 3600.0 * np.tile(np.arange(events), users) + user,
        "rating": np.where(liked, random.integers(4, 6, len(user)), random.integers(1, 4, len(user))).astype(float),
    }
    genres = [[f"genre {n % 7}", f"genre {n % 3}"] for n in range(items)]
    year = 1950 + random.integers(0, 70, items).astype(float)
    return {"interactions": interactions, "items": {"item_id": np.arange(items), "year": year, "genres": genres}}


# ------------------------------------------------------------------ the device
class Device:
    """A device, its clock and its memory."""

    def __init__(self, name: str) -> None:
        self.device = torch.device(name)
        self.is_cuda = self.device.type == "cuda"

    def wait(self) -> None:
        """Until all that was started is done."""
        if self.is_cuda:
            torch.cuda.synchronize()
        elif self.device.type == "mps":
            torch.mps.synchronize()

    def peak_gb(self, reset: bool = False) -> float | None:
        """Most memory that was allocated, 10^9 bytes; None where nobody counts it."""
        if not self.is_cuda:
            return None
        if reset:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated() / 1e9

    @contextmanager
    def precision(self, kind: str) -> Iterator[None]:
        """Inside, products of matrices are of this precision."""
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if kind == "tf32" else "highest")
        auto = torch.autocast(self.device.type, torch.bfloat16) if kind == "bf16" else nullcontext()
        try:
            with auto:
                yield
        finally:
            torch.set_float32_matmul_precision(before)

    def about(self) -> dict[str, Any]:
        """What it is."""
        found = {"device": str(self.device), "torch": torch.__version__, "python": platform.python_version()}
        if self.is_cuda:
            own = torch.cuda.get_device_properties(self.device)
            found |= {"gpu": own.name, "memory_gb": round(own.total_memory / 1e9, 1), "cuda": torch.version.cuda}
            found["compute_capability"] = f"{own.major}.{own.minor}"
        return found


def only_gpu(name: str) -> str:
    """Let torch see one GPU alone, as the Trainer would take all of them; to be called before torch looks for any."""
    index = int(name.partition(":")[2] or 0)
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    chosen = seen.split(",")[index] if seen and index < len(seen.split(",")) else str(index)
    os.environ["CUDA_VISIBLE_DEVICES"] = chosen
    return "cuda"


def no_gpu() -> str:
    """Why there is no GPU, and what helps."""
    if torch.version.cuda is None and torch.version.hip is None:
        why = f"this torch ({torch.__version__}) was built without CUDA: install one from https://pytorch.org that was"
    else:
        why = "torch finds none: look at `nvidia-smi`, at CUDA_VISIBLE_DEVICES, and whether the container was given one"
    return f"no GPU: {why}. Without one: --device cpu --quick"


# ------------------------------------------------------------------ parts
class Checks:
    """Parts that are tried one after the other; one that fails is written down."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def part(self, name: str, do: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """Try a part: what it returns are figures, "ok" says whether they are good."""
        start = time.perf_counter()
        try:
            # Logs of training go to stderr, so that stdout is the table.
            with redirect_stdout(sys.stderr):
                found = {"ok": True, **do()}
        except Exception as error:
            own = [f for f in traceback.extract_tb(error.__traceback__) if "polyrec" in f.filename]
            where = f" at {Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""
            found = {"ok": False, "error": f"{type(error).__name__}: {str(error).splitlines()[0]}{where}"}
        self.rows.append({"part": name, **found, "seconds": round(time.perf_counter() - start, 1)})
        return found if found["ok"] else None

    @property
    def failed(self) -> list[str]:
        return [row["part"] for row in self.rows if not row["ok"]]

    def table(self) -> str:
        """One line per part."""
        lines = [f"{'part':<34}{'':<8}{'seconds':>8}  figures"]
        for row in self.rows:
            kept = {k: v for k, v in row.items() if k not in ("part", "ok", "seconds", "error")}
            figures = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in kept.items())
            lines.append(
                f"{row['part']:<34}{'ok' if row['ok'] else 'FAILED':<8}{row['seconds']:>8}  {row.get('error', figures)}"
            )
        return "\n".join(lines)


class World:
    """A log, its processor and a model on the CPU."""

    def __init__(self, name: str, size: Size) -> None:
        self.name, self.size = name, size
        users, items, self.windows = size.of(name)
        tables = made_up_log(users, items, size.events)
        variant = VARIANTS.get(name, {"tasks": TASKS, "columns": COLUMNS})
        if variant["columns"].get("time", "") is None:
            del tables["interactions"]["timestamp"]
        self.processor = PolyRecProcessor.fit(**tables, **variant, max_history=size.max_history)
        self.splits = self.processor.split(tables["interactions"])
        torch.manual_seed(0)
        # Without dropout, so that devices can be compared; its cost is small.
        options = {"dropout": 0.0, "item_id_dropout": 0.0, **size.models[name]}
        self.model = PolyRecForRecommendation(self.processor.model_config(**options))
        counts = torch.from_numpy(self.processor.item_counts).float()
        self.model.load_catalog(self.processor.items.encoded, counts)
        self.parameters = sum(p.numel() for p in self.model.parameters())

    def copy(self, device: torch.device) -> PolyRecForRecommendation:
        """The model as it starts, on a device."""
        model = PolyRecForRecommendation(self.model.config)
        model.load_state_dict(self.model.state_dict())
        return model.to(device)

    def batch(self, windows: int) -> dict[str, Any]:
        """Some training windows."""
        chosen = [self.splits.train[n] for n in range(min(windows, len(self.splits.train)))]
        return {name: values for name, values in PolyRecCollator()(chosen).items() if name != "candidate_rows"}

    def arguments(self, folder: str, on: Device, **options: Any) -> PolyRecTrainingArguments:
        """Of a training on the device, quiet."""
        return PolyRecTrainingArguments(
            output_dir=folder,
            use_cpu=on.device.type == "cpu",
            disable_tqdm=True,
            per_device_train_batch_size=self.windows,
            seed=0,
            **{"save_strategy": "no", "logging_strategy": "no", **options},
        )

    def trainer(self, folder: str, on: Device, **options: Any) -> PolyRecTrainer:
        """One that starts with the model as it is."""
        trainer = PolyRecTrainer(
            self.copy(torch.device("cpu")),
            self.arguments(folder, on, **options),
            self.splits.train,
            self.splits.valid,
            processing_class=self.processor,
        )
        trainer.remove_callback(TrainingLines)
        return trainer


@contextmanager
def cpu_draws() -> Iterator[None]:
    """Inside, negatives are those that the CPU draws from seed 0; devices have generators of their own."""
    draw = torch.multinomial

    def drawn(weight: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
        return draw(weight.cpu(), *rest, **named).to(weight.device)

    torch.manual_seed(0)
    torch.multinomial = drawn
    try:
        yield
    finally:
        torch.multinomial = draw


def learnt(world: World, device: torch.device, around: Any) -> tuple[dict[str, float], torch.Tensor, torch.Tensor]:
    """Losses and all gradients of one batch, and answers to it in evaluation mode, on a device."""
    model, batch = world.copy(device), Batch.of(world.batch(8)).to(device)
    with around, cpu_draws():
        output = model(**batch)
    output.loss.backward()
    gradient = torch.cat([p.grad.flatten().float().cpu() for p in model.parameters() if p.grad is not None])
    with torch.no_grad(), model.eval_mode() as asked, around:
        logits = asked(**batch).logits
    answers = torch.cat([model.heads[n].predict(logits[n]).flatten().float().cpu() for n in ("like", "rating")])
    return {name: loss.item() for name, loss in output.losses.items()}, gradient, answers


def equality(world: World, on: Device, kind: str) -> dict[str, Any]:
    """How far losses, gradients and answers are from the CPU's in fp32."""
    losses, gradient, answers = learnt(world, torch.device("cpu"), nullcontext())
    with on.precision(kind):
        own_losses, own_gradient, own_answers = learnt(world, on.device, nullcontext())
    found = {
        "loss": max(abs(own_losses[name] - value) / max(abs(value), 1e-9) for name, value in losses.items()),
        "gradient": ((own_gradient - gradient).norm() / gradient.norm()).item(),
        "prediction": ((own_answers - answers).abs().max() / answers.abs().max()).item(),
    }
    if too_far := {name: value for name, value in found.items() if not value <= TOLERANCES[kind][name]}:
        raise ArithmeticError(f"differs from the CPU by {too_far}; allowed: {TOLERANCES[kind]}")
    return found


def speed(world: World, on: Device, kind: str, compiled: bool) -> dict[str, Any]:
    """Positions (events and candidates) per second of optimizer steps, and peak memory."""
    size, batch = world.size, Batch.of(world.batch(world.windows)).to(on.device)
    model = world.copy(on.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    called = torch.compile(model) if compiled else model
    positions = int((batch["item_ids"] > 0).sum() + (batch["candidate_ids"] > 0).sum())
    on.peak_gb(reset=True)
    first = last = float("nan")
    for n in range(size.warm_up + size.steps):
        if n == size.warm_up:
            on.wait()
            start = time.perf_counter()
        with on.precision(kind):
            loss = called(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if n == 0:
            first = loss.item()
    on.wait()
    seconds, last = time.perf_counter() - start, loss.item()
    found = {"positions_per_second": positions * size.steps / seconds, "first_loss": first, "last_loss": last}
    if (peak := on.peak_gb()) is not None:
        found["peak_gb"] = peak
    if not last < first:
        raise ArithmeticError(f"{size.steps} steps on one batch did not lower the loss: {first:.4g} to {last:.4g}")
    return found


def trained(world: World, on: Device, folder: str) -> dict[str, Any]:
    """The Trainer with pinned batches, mixed precision and an average of weights; then its evaluation."""
    steps = max(world.size.steps // 3, 2)
    bf16 = on.is_cuda and torch.cuda.is_bf16_supported()
    trainer = world.trainer(folder, on, max_steps=steps, bf16=bf16, ema_decay=0.9, dataloader_num_workers=0)
    trainer.train()
    start = time.perf_counter()
    metrics = trainer.evaluate()
    on.wait()
    found = {"eval_seconds": time.perf_counter() - start, "like_auc": metrics["eval_like_auc"]}
    return found | {"ndcg@10": metrics["eval_next_item_ndcg@10"], "bf16": bf16}


def evaluated(world: World, on: Device) -> dict[str, Any]:
    """Whether an evaluation on the device gives the CPU's metrics."""
    both = []
    for device in (torch.device("cpu"), on.device):
        model = world.copy(device).eval()
        found = evaluator.evaluate(model, world.splits.valid, evaluator.predict(model, world.splits.valid))
        both.append({name: value for name, value in found.items() if np.isfinite(value)})
    worst = max(both[0], key=lambda name: abs(both[0][name] - both[1][name]))
    gap = abs(both[0][worst] - both[1][worst])
    if gap > 5e-3:
        raise ArithmeticError(f"{worst} is {both[1][worst]:.4g} on the device and {both[0][worst]:.4g} on the CPU")
    return {"largest_gap": float(gap)}


def recommended(world: World, on: Device) -> dict[str, Any]:
    """Whether a loaded model recommends on the device what it does on the CPU, also in bfloat16; and how fast.

    Two items whose scores are nearer than rounding may change places, so scores are compared.
    """
    history, found = list(range(1, 6)), {}
    here = world.copy(torch.device("cpu")).recommend(world.processor, history, k=10)
    with tempfile.TemporaryDirectory() as folder:
        world.model.save_pretrained(folder)
        for dtype, allowed in ((torch.float32, 1e-3), (torch.bfloat16, 0.1)):
            model = PolyRecForRecommendation.from_pretrained(folder, dtype=dtype).to(on.device)
            there = model.recommend(world.processor, history, k=10)
            on.wait()
            start = time.perf_counter()
            model.recommend(world.processor, history, k=10)
            found[f"ms_{str(dtype).removeprefix('torch.')}"] = 1e3 * (time.perf_counter() - start)
            gap = max(abs(a["score"] - b["score"]) for a, b in zip(here, there, strict=True))
            if gap > allowed:
                raise ArithmeticError(f"scores in {dtype} differ from the CPU's by {gap:.3g}; allowed: {allowed}")
            model.explain(world.processor, history, k=1)
    return found


def resumed(world: World, on: Device, folder: str) -> dict[str, Any]:
    """Whether a training that was interrupted ends as one that was not."""
    steps = 4
    options = {"max_steps": steps, "save_strategy": "steps", "save_steps": steps // 2, "ema_decay": 0.5}
    whole = world.trainer(f"{folder}/whole", on, **options)
    whole.train()
    again = world.trainer(f"{folder}/again", on, **options)
    again.train(resume_from_checkpoint=f"{folder}/whole/checkpoint-{steps // 2}")
    pairs = zip(whole.model.parameters(), again.model.parameters(), strict=True)
    gap = max((a - b).abs().max().item() for a, b in pairs)
    if gap > 1e-4:  # sums of embedding gradients on GPUs have no fixed order
        raise ArithmeticError(f"weights of the resumed training differ by {gap:.3g}")
    return {"largest_gap": gap}


# ------------------------------------------------------------------ all of it
def check(on: Device, size: Size, compiled: bool) -> Checks:
    """All parts, for each model and precision."""
    checks = Checks()
    precisions = [p for p in PRECISIONS if on.is_cuda or p != "tf32"]  # CPUs have no tf32
    for name in size.models:
        made: list[World] = []

        def prepare(name: str = name, made: list[World] = made) -> dict[str, Any]:
            made.append(World(name, size))
            return {"parameters": made[0].parameters, "items": made[0].processor.num_items}

        if checks.part(f"{name}: data and model", prepare) is None:
            continue
        (world,) = made
        for kind in precisions:
            checks.part(f"{name}: equal to CPU, {kind}", lambda k=kind, w=world: equality(w, on, k))
            if name in VARIANTS:
                continue
            checks.part(f"{name}: training, {kind}", lambda k=kind, w=world: speed(w, on, k, False))
            if compiled:
                checks.part(f"{name}: compiled, {kind}", lambda k=kind, w=world: speed(w, on, k, True))
        with tempfile.TemporaryDirectory() as folder:
            checks.part(f"{name}: Trainer", lambda w=world, f=folder: trained(w, on, f"{f}/trainer"))
            if name != "10M":
                checks.part(f"{name}: evaluation", lambda w=world: evaluated(w, on))
                checks.part(f"{name}: recommend", lambda w=world: recommended(w, on))
                checks.part(f"{name}: resume", lambda w=world, f=folder: resumed(w, on, f))
    quick = size is QUICK
    for kind in (p for p in precisions if p != "tf32"):
        checks.part(f"attention, {kind}", lambda k=kind: attention(on, k, quick))
        for items in CATALOGS[:1] if quick else CATALOGS:
            checks.part(f"losses of {items:,} items, {kind}", lambda k=kind, n=items: catalog_losses(on, n, k, quick))
    return checks


def main(arguments: list[str] | None = None) -> int:
    """Run all parts and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, mps or cpu (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a tiny model and log: does it work, not how fast")
    parser.add_argument("--compile", action="store_true", help="time torch.compile, too (takes minutes more)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSON to write")
    options = parser.parse_args(arguments)
    name = only_gpu(options.device) if options.device.startswith("cuda") else options.device
    if name == "cuda" and not torch.cuda.is_available():
        print(no_gpu(), file=sys.stderr)
        return 2
    on = Device(name)
    start = time.perf_counter()
    checks = check(on, QUICK if options.quick else FULL, options.compile)
    report = {
        **on.about(),
        "quick": options.quick,
        "seconds": round(time.perf_counter() - start, 1),
        "failed": checks.failed,
        "tolerances": TOLERANCES,
        "parts": checks.rows,
    }
    print(", ".join(f"{name} {value}" for name, value in on.about().items()))
    print(checks.table())
    print(f"{len(checks.rows) - len(checks.failed)} of {len(checks.rows)} parts ok in {report['seconds']} s")
    for name in checks.failed:
        print(f"failed: {name}")
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 1 if checks.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
