"""What a catalog of a million items costs: time and memory of training, evaluation, recommending, extending, distilling
and searching, each in a process of its own, on a log that is made up.

    python scripts/benchmarks/million_items.py --items 100000 1000000 --output runs/million_items.json

Items are taken by Zipf's law. Memory is the largest anonymous memory (RssAnon) of the process, sampled every 5 ms, less
what it held when the phase began; only Linux counts it.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, TrainerCallback

from polyrec import (
    PolyRecForRecommendation,
    PolyRecProcessor,
    PolyRecTrainer,
    PolyRecTrainingArguments,
    Recommender,
)
from polyrec.evaluation import evaluator

TASKS = [{"name": "next_item", "head": "retrieval"}, {"name": "like", "head": "binary", "label": "liked"}]
MODEL = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_hidden_layers": 1}
EVENTS_OF_A_USER = 20
WARM_UP = 5
WORDS = 1000


# ------------------------------------------------------------------ the log
def made_up_log(items: int, events: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Users of about 20 events each, who take items by Zipf's law; the catalog's ids are 0..items - 1."""
    random = np.random.default_rng(seed)
    user = np.sort(random.integers(0, events // EVENTS_OF_A_USER, events))
    chances = 1 / np.arange(1, items + 1) ** 1.05
    item = np.searchsorted(np.cumsum(chances) / chances.sum(), random.random(events))
    shuffled = random.permutation(items)  # popular items lie anywhere in the table
    return {
        "user_id": user,
        "item_id": shuffled[np.minimum(item, items - 1)],
        "timestamp": 1e9 + random.random(events) * 1e7,
        "liked": (random.random(events) < 0.3).astype(float),
    }


def catalog(first: int, stop: int) -> dict[str, Any]:
    """Ids, prices and titles of some items."""
    number = np.arange(first, stop)
    titles = [f"w{n % WORDS} w{n // 7 % WORDS} w{n // 49 % WORDS}" for n in number.tolist()]
    return {"item_id": number, "price": np.sqrt(number + 1.0), "title": titles}


def tiny_bert(folder: Path) -> Path:
    """A text encoder without knowledge, of width 32."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    names = [*special, *(f"w{n}" for n in range(WORDS))]
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(names), max_position_embeddings=32, **sizes)).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokens = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **tokens).save_pretrained(folder)
    return folder


# ------------------------------------------------------------------ measuring
class Watch:
    """Wall and cpu seconds, and the most anonymous memory above that of the beginning."""

    def __enter__(self) -> Watch:
        gc.collect()
        self.begin = self.peak = _anonymous_memory()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return self

    def _look(self) -> None:
        while not self._stop.wait(0.005):
            self.peak = max(self.peak, _anonymous_memory())

    def __exit__(self, *error: Any) -> None:
        self.wall, self.cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        self.peak = max(self.peak, _anonymous_memory())
        self.left = _anonymous_memory()
        self._stop.set()
        self._thread.join()

    def figures(self, name: str = "") -> dict[str, float]:
        """{figure: seconds or 10^9 bytes}."""
        own = {
            "seconds": self.wall,
            "cpu_seconds": self.cpu,
            "peak_gb": (self.peak - self.begin) / 1e9,
            "left_gb": (self.left - self.begin) / 1e9,
        }
        return {f"{name}{key}": round(value, 3) for key, value in own.items()}


def _anonymous_memory() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return 1024 * int(line.split()[1])
    return 0


class StepTimes(TrainerCallback):
    """Wall and cpu seconds of each optimizer step, the next batch included."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []

    def on_step_end(self, *given: Any, **unused: Any) -> None:
        self.ends.append((time.perf_counter(), time.process_time()))

    @property
    def figures(self) -> dict[str, float]:
        """Medians after the first ones, in milliseconds."""
        wall, cpu = 1e3 * np.median(np.diff(self.ends[WARM_UP:], axis=0), axis=0)
        return {"step_ms": round(wall, 1), "step_cpu_ms": round(cpu, 1)}


def matrix_product_seconds(rows: int, items: int, width: int) -> float:
    """Cpu seconds of the scores of so many rows if nothing else is done with them: the machine's limit."""
    query, table = torch.randn(256, width), torch.randn(min(items, 20_000), width)
    found = torch.empty(len(query), len(table))
    torch.mm(query, table.T, out=found)
    begin, times = time.process_time(), 20
    for _ in range(times):
        torch.mm(query, table.T, out=found)
    return (time.process_time() - begin) / times * (rows / len(query)) * (items / len(table))


# ------------------------------------------------------------------ phases
class World:
    """What phases share: files in a folder."""

    def __init__(self, folder: Path, items: int, events: int, quick: bool) -> None:
        self.folder, self.items, self.events, self.quick = folder, items, events, quick

    @property
    def pair(self) -> tuple[PolyRecProcessor, Any]:
        """The processor and its splits."""
        with (self.folder / "prepared").open("rb") as file:  # of this run of the script
            return pickle.load(file)

    def steps(self, number: int) -> int:
        """Of a training whose first ones are not counted."""
        return WARM_UP + (3 if self.quick else number)

    def model(self) -> PolyRecForRecommendation:
        """That of the phase "train"."""
        return PolyRecForRecommendation.from_pretrained(self.folder / "model")

    def trainer(self, model: PolyRecForRecommendation, pair: Any, steps: int, **more: Any) -> PolyRecTrainer:
        """Of a few steps."""
        arguments = PolyRecTrainingArguments(
            str(self.folder / "trainer"),
            max_steps=steps,
            save_strategy="no",
            keep_best=False,
            logging_steps=steps,
            per_device_train_batch_size=32,
            disable_tqdm=True,
            weight_decay=0.01,
        )
        return PolyRecTrainer(model, arguments, pair[1].train, processing_class=pair[0], **more)


def prepare(world: World) -> dict[str, Any]:
    """Fit and split."""
    log, items = made_up_log(world.items, world.events), catalog(0, world.items)
    columns = {"item_features": {"price": "numeric"}}
    with Watch() as watch:
        processor = PolyRecProcessor.fit(
            log, items, tasks=TASKS, columns=columns, max_history=32, statistics=False, verbose=False
        )
        splits = processor.split(log)
    with (world.folder / "prepared").open("wb") as file:
        pickle.dump((processor, splits), file, protocol=5)
    return watch.figures()


def build(world: World) -> dict[str, Any]:
    """Make a model and give it what the processor knows of the items."""
    pair = world.pair
    with Watch() as made:
        model = PolyRecForRecommendation(pair[0].model_config(**MODEL))
    with Watch() as loaded:
        world.trainer(model, pair, 1)
    return {**made.figures("model_"), **loaded.figures("catalog_"), "options": str(model.heads["next_item"].options)}


def train(world: World) -> dict[str, Any]:
    """Some steps; memory beyond that of the untrained model, whose table it may hold three times: as it is, and two
    states."""
    pair, times = world.pair, StepTimes()
    with Watch() as made:
        model = PolyRecForRecommendation(pair[0].model_config(**MODEL))
    trainer = world.trainer(model, pair, world.steps(40), callbacks=[times])
    table = model.item_encoder.id_embedding.weight
    with Watch() as watch:
        trainer.train()
    trainer.save_model(str(world.folder / "model"))
    table_gb = 3 * table.numel() * table.element_size() / 1e9
    held = (watch.peak - made.begin) / 1e9
    facts = {**times.figures, "table_and_states_gb": round(table_gb, 3)}
    return {**watch.figures(), **facts, "peak_with_model_gb": round(held, 3), "ratio": round(held / table_gb, 2)}


def evaluate(world: World) -> dict[str, Any]:
    """Rank all items for up to 10,000 rows."""
    processor, splits = world.pair
    model, wanted = world.model(), 500 if world.quick else 10_000
    log, rows = splits.test.log, np.zeros(len(splits.test.log), dtype=bool)
    first = splits.test.candidates.event[np.unique(log.user[splits.test.candidates.event], return_index=True)[1]]
    rows[first[:wanted]] = True  # one of each user
    data = processor.evaluation_set(log, rows, None, splits.test.source)
    limit = matrix_product_seconds(data.num_candidates, processor.num_items, model.config.hidden_size)
    with Watch() as table, torch.no_grad():
        model.eval().item_encoder.table()
    with Watch() as watch, torch.no_grad():
        found = evaluator.predict(model, data)
    ranked = len(found.rankings["next_item"].rows)
    limit *= ranked / data.num_candidates
    share = {"rows": ranked, "product_seconds": round(limit, 2), "share_of_product": round(limit / watch.cpu, 3)}
    return {**table.figures("table_"), **watch.figures(), **share}


def recommend(world: World) -> dict[str, Any]:
    """`recommend_all` for 2,000 users, and one request."""
    processor, _ = world.pair
    recommender = Recommender(world.model(), processor)
    known = np.unique(made_up_log(world.items, world.events)["user_id"]).tolist()
    users = known[: 50 if world.quick else 2_000]
    with Watch() as first:
        recommender.recommend([5, 6], k=10)
    with Watch() as one:
        recommender.recommend([5, 6], k=10)
    with Watch() as watch:
        recommender.recommend_all(users, world.folder / "lists", progress=False, overwrite=True)
    return {**first.figures("first_"), **one.figures("one_"), **watch.figures(), "users": len(users)}


def extend(world: World) -> dict[str, Any]:
    """Add one item in a hundred."""
    processor, _ = world.pair
    model, more = world.model(), catalog(world.items, world.items + world.items // 100)
    with Watch() as watch:
        processor.extend(more)
        model.extend(processor)
    return watch.figures()


def distill(world: World) -> dict[str, Any]:
    """Some steps of a student of half the width."""
    from polyrec.distillation.live import LiveTeacher

    pair, times = world.pair, StepTimes()
    teacher = LiveTeacher(world.model(), pair[0])
    config = pair[0].model_config(**MODEL | {"hidden_size": 32}, distillation={"tasks": {"next_item": {}, "like": {}}})
    student = PolyRecForRecommendation(config)
    trainer = world.trainer(student, pair, world.steps(10), callbacks=[times], teacher=teacher)
    with Watch() as watch:
        trainer.train()
    return {**watch.figures(), **times.figures}


def search(world: World) -> dict[str, Any]:
    """Read all titles, train some steps, and search."""
    os.environ["POLYREC_CACHE"] = str(world.folder / "cache")
    log = made_up_log(world.items, min(world.events, 100_000))
    log["query"] = [f"w{n % WORDS}" for n in log["item_id"].tolist()]
    tasks = [{"name": "search", "head": "search"}]
    processor = PolyRecProcessor.fit(
        log,
        catalog(0, world.items),
        tasks=tasks,
        columns={"query": "query"},
        max_history=32,
        statistics=False,
        text={"model": str(tiny_bert(world.folder / "bert")), "template": "{title}", "max_length": 8},
        verbose=False,
    )
    splits, times = processor.split(log), StepTimes()
    model = PolyRecForRecommendation(processor.model_config(**MODEL, text={"tuning": "frozen"}))
    with Watch() as texts:
        trainer = world.trainer(model, (processor, splits), world.steps(20), callbacks=[times])
    with Watch() as watch:
        trainer.train()
    with Watch() as first:
        model.search(processor, "w3 w4", k=10)
    with Watch() as one:
        model.search(processor, "w3 w4", k=10)
    parts = {"texts_": texts, "": watch, "first_search_": first, "search_": one}
    figures = {k: v for name, own in parts.items() for k, v in own.figures(name).items()}
    return {**figures, **times.figures}


PHASES: dict[str, Callable[[World], dict[str, Any]]] = {
    own.__name__: own for own in (prepare, build, train, evaluate, recommend, extend, distill, search)
}


# ------------------------------------------------------------------ the whole
def main(arguments: Sequence[str] | None = None) -> int:
    """Run each phase in a process of its own and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--phases", nargs="+", default=list(PHASES), choices=list(PHASES), metavar="PHASE")
    parser.add_argument("--quick", action="store_true", help="few steps and users: does it work")
    parser.add_argument("--folder", type=Path, help="of files between phases, which are kept (default: none are)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSON to write")
    parser.add_argument("--phase", help=argparse.SUPPRESS)  # of a process of one phase
    options = parser.parse_args(arguments)
    if options.phase is not None:
        world = World(options.folder, options.items[0], options.events, options.quick)
        torch.manual_seed(0)
        print(json.dumps(PHASES[options.phase](world)))
        return 0
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for items in options.items:
            folder = (options.folder or Path(temporary)) / str(items)
            folder.mkdir(parents=True, exist_ok=True)
            found[str(items)] = {name: _phase(name, items, folder, options) for name in options.phases}
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return int(any("error" in own for phases in found.values() for own in phases.values()))


def _phase(name: str, items: int, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Figures of a phase; its error if it fails."""
    given = ["--items", str(items), "--events", str(options.events), "--folder", str(folder), "--phase", name]
    command = [sys.executable, __file__, *given, *(["--quick"] if options.quick else [])]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        figures = {"error": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]}
    else:
        figures = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"{items:>9,} {name:<10} " + ", ".join(f"{k} {v}" for k, v in figures.items()), flush=True)
    return figures


if __name__ == "__main__":
    raise SystemExit(main())
