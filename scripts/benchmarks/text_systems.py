"""The systems of the text benchmark: each trains, answers all questions and says what it cost."""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from text_data import TextData

Score = Callable[[np.ndarray], np.ndarray]


def run(
    system: str, data_folder: Path, model: str, config: Mapping[str, Any], threads: int, seed: int, cpu_seconds: float
):
    """Train and measure one system in this process, which does nothing else.

    Args:
        cpu_seconds: of training that sentence-transformers may take.
    """
    import torch

    torch.set_num_threads(threads)
    data = TextData(data_folder)
    options = (data, model, config, seed)
    if system == "polyrec":
        scorer, costs = polyrec(*options)
    elif system == "polyrec-lora":
        scorer, costs = polyrec(data, model, with_lora(config), seed)
    elif system == "sentence-transformers":
        scorer, costs = sentence_transformers(*options, cpu_seconds)
    elif system == "zero-shot":
        scorer, costs = sentence_transformers(*options, 0.0)
    else:
        scorer, costs = popularity(data)
    costs["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = {}
    for part, asked in data.questions().items():
        found[part] = data.evaluate(asked, scorer(part))
    test = found["test"] | {f"cold/{name}": value for name, value in found["cold"].items()}
    return {"test": test, "validation": found["validation"], **costs}


def with_lora(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with low-rank adapters in place of full tuning."""
    rate, tuning = config["lora"]["backbone_learning_rate"], config["lora"]["tuning"]
    model = {**config["model"], "text": {**config["model"]["text"], "tuning": tuning}}
    return {**config, "model": model, "training": {**config["training"], "backbone_learning_rate": rate}}


def polyrec(
    data: TextData, model: str, config: Mapping[str, Any], seed: int
) -> tuple[Callable[[str], Score], dict[str, Any]]:
    """All histories in one model that reads each person once; the text backbone is tuned with it."""
    import fitting

    from polyrec import PolyRecProcessor
    from polyrec.data.event_log import Candidates
    from polyrec.data.sequences import SequenceDataset

    processor = PolyRecProcessor.fit(
        data.events,
        items=data.items,
        tasks=config["tasks"],
        columns=config["columns"],
        text={**config["text"], "model": model},
        **config["processor"],
    )
    splits = processor.split(data.warm_events, by="leave_one_out")
    watch, pairs = fitting.Until(config["training"]["num_train_epochs"]), 0
    clock = watch.clock

    def count(module: Any, args: Any, inputs: dict[str, Any]) -> None:
        nonlocal pairs
        pairs += int(((inputs["labels"]["next_item"] > 0) & (inputs["candidate_positions"] > 0)).sum())

    with tempfile.TemporaryDirectory() as folder:
        trainer = fitting.new_trainer(processor, splits, config, folder, seed, watch)
        hook = trainer.model.register_forward_pre_hook(count, with_kwargs=True)
        trainer.train()
        hook.remove()
    trained = trainer.model.eval()
    log = processor.encode_events(data.events)
    place, visible = np.argsort(log.row), log.visible("order")
    questions = data.questions()

    def scorer(part: str) -> Score:
        event = place[questions[part].row]
        asked = SequenceDataset(log, Candidates(event, visible[event]), ["next_item"], None, processor.max_history, 1)
        scores = fitting.catalog_scores(trained, asked, "next_item")
        return lambda index: scores(index)[:, 2:]  # without padding and the unknown item

    return scorer, {
        "pairs": pairs,
        "pairs_per_second": pairs / clock.wall,
        "pairs_per_cpu_second": pairs / clock.cpu,
        "train_cpu_seconds": clock.cpu,
        "trained_parameters": sum(p.numel() for p in trained.parameters() if p.requires_grad),
    }


def sentence_transformers(
    data: TextData, model: str, config: Mapping[str, Any], seed: int, cpu_seconds: float
) -> tuple[Callable[[str], Score], dict[str, Any]]:
    """Pairs (latest titles, next title) with in-batch negatives; 0 seconds: as it is."""
    from sentence_transformers import SentenceTransformer

    own = config["sentence_transformers"]
    encoder = SentenceTransformer(model, device="cpu")
    encoder.max_seq_length = own["max_length"]

    def history_text(items: np.ndarray) -> str:
        return "Watched: " + "; ".join(data.short[i] for i in items[::-1])

    costs: dict[str, Any] = {}
    if cpu_seconds:
        rows = np.random.default_rng(seed).permutation(data.train[data.train > data.begin[data.train]])
        texts = [(data.history(row, own["history"], trained=True), data.item[row]) for row in rows]
        texts = [(history_text(items), data.texts[target]) for items, target in texts if len(items)]
        costs = _fine_tune(encoder, texts, own, seed, cpu_seconds)
    vectors = encoder.encode(data.texts, batch_size=128, normalize_embeddings=True)
    questions = data.questions()

    def scorer(part: str) -> Score:
        asked = [history_text(data.history(row, own["history"])) for row in questions[part].row]
        found = encoder.encode(asked, batch_size=128, normalize_embeddings=True)
        return lambda index: found[index] @ vectors.T

    return scorer, costs


def _fine_tune(
    encoder: Any, texts: list[tuple[str, str]], own: Mapping[str, Any], seed: int, cpu_seconds: float
) -> dict[str, Any]:
    """A first short run measures the speed, a second one uses the time."""
    import copy

    import fitting

    size = own["batch_size"]
    first = copy.deepcopy(encoder)
    clock = fitting.Clock()
    _train(first, texts[: 4 * size], own, seed, 4, clock)
    steps = max(int(cpu_seconds / (clock.cpu / 4)), 1)
    clock = fitting.Clock()
    pairs = (texts * (steps * size // len(texts) + 1))[: steps * size]
    _train(encoder, pairs, own, seed, steps, clock)
    return {
        "pairs": len(pairs),
        "pairs_per_second": len(pairs) / clock.wall,
        "pairs_per_cpu_second": len(pairs) / clock.cpu,
        "train_cpu_seconds": clock.cpu,
        "trained_parameters": sum(p.numel() for p in encoder.parameters()),
    }


def _train(
    encoder: Any, texts: list[tuple[str, str]], own: Mapping[str, Any], seed: int, steps: int, clock: Any
) -> None:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.losses import MultipleNegativesRankingLoss

    columns = {"anchor": [a for a, _ in texts], "positive": [b for _, b in texts]}
    with tempfile.TemporaryDirectory() as folder:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=own["batch_size"],
            learning_rate=own["learning_rate"],
            warmup_steps=max(steps // 10, 1),
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            seed=seed,
        )
        trainer = SentenceTransformerTrainer(
            model=encoder,
            args=arguments,
            train_dataset=Dataset.from_dict(columns),
            loss=MultipleNegativesRankingLoss(encoder),
        )
        clock.start()
        trainer.train()
        clock.stop()


def popularity(data: TextData) -> tuple[Callable[[str], Score], dict[str, Any]]:
    """Events of each item, of the whole log: for cold items more than anyone can know."""
    start = time.process_time()
    scores = data.popularity()[None].astype(np.float32)
    return lambda part: lambda index: np.repeat(scores, len(index), axis=0), {
        "train_cpu_seconds": time.process_time() - start
    }
