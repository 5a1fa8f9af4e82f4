"""New items without training: what a model says of items that `extend` adds to its catalog.

A tenth of the items (`tenth` of the file, drawn with seed 0) is taken out of the catalog and out of all tables. polyrec
learns protocol A of the rest with frozen texts (`next_item.py`, system `polyrec_text`), is saved and loaded, and then
`extend` adds those items, of which it knows attributes and texts alone. Asked is what people took who took one of them:

* `end`: their last two events of the whole log, the test and validation events of protocol A, where that is a new item,
* `anywhere`: 3,000 events of the whole log, for steadier figures,

each `among` the new items, and in the `whole` catalog. `old` are the metrics of protocol A on the old items' test
events, before new ones compete and with them (`old+new`). Old items' logits must be bit-equal before and after.

Rivals know of new items what polyrec knows: `popularity` gives them their count, which is 0, so that chance orders
them, `genre-popularity` the mean count of the old items of each of their genres, `zero-shot` their texts (the encoder
as it is, cosine to the latest five titles as one text), `zero-shot-mean` as well (cosine to the mean of the latest five
vectors). `hindsight` counts all events, also those that are still to come.

    python scripts/benchmarks/new_items.py --data ../shared/data/ml-100k --model .models/all-MiniLM-L6-v2 --seeds 3 \\
        --threads 2 --systems polyrec,popularity,genre-popularity,zero-shot,zero-shot-mean,hindsight \\
        --output runs/new_items.json
"""

from __future__ import annotations

import tempfile
from argparse import Namespace
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import common
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import text_data
from text_systems import Score, sentence_transformers

SYSTEMS = ("polyrec", "popularity", "genre-popularity", "zero-shot", "zero-shot-mean", "hindsight")
ASKED = ("end", "anywhere")
METRICS = (
    *(f"{part}/{place}/{name}@10" for part in ASKED for place in ("among", "whole") for name in ("recall", "ndcg")),
    *(f"{part}/like/auc" for part in ASKED),
    *(f"{part}/{name}@10" for part in ("old", "old+new") for name in ("recall", "ndcg")),
    "new_in_lists",
)
COSTS = ("bit_equal", "questions_end", "questions_anywhere", "train_cpu_seconds", "extend_seconds")


class NewItems(text_data.TextData):
    """The log whose cold items are new: see the head of this file."""

    @cached_property
    def _asked(self) -> dict[str, np.ndarray]:
        """Rows of the log that took a new item, after at least one event."""
        place = np.arange(len(self.item))
        events_left = np.searchsorted(self.user, self.user, side="right") - place
        end = np.flatnonzero(self.is_cold & (place > self.begin) & (events_left <= 2))
        return {"end": end, "anywhere": super().questions()["cold"].row}

    def questions(self) -> dict[str, text_data.Questions]:
        """{"end/among": ..., "end/whole": ..., "anywhere/...": ...}."""
        return {
            f"{part}/{place}": text_data.Questions(rows, self.item[rows], shelf)
            for part, rows in self._asked.items()
            for place, shelf in (("among", self.cold), ("whole", None))
        }

    def answers(self, scorer: Callable[[str], Score]) -> dict[str, float]:
        """All measures of a system that scores all items."""
        found, questions = {}, self.questions()
        for part in ASKED:
            score = scorer(f"{part}/whole")
            for place in (f"{part}/among", f"{part}/whole"):
                found |= {f"{place}/{name}": v for name, v in self.evaluate(questions[place], score).items()}
        return found

    @property
    def old_items(self) -> pa.Table:
        """The catalog without new items."""
        return self.items.take(pa.array(np.setdiff1d(np.arange(len(self.texts)), self.cold)))

    @property
    def new_items(self) -> pa.Table:
        """What `extend` is given."""
        return self.items.take(pa.array(self.cold))


def polyrec(data: NewItems, args: Namespace, config: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train without the new items, save, load, extend, answer."""
    import fitting
    import next_item
    from transformers.utils import logging as transformers_logging

    from polyrec import PolyRecProcessor

    transformers_logging.set_verbosity_error()
    config = next_item.with_text(config, args.model)
    processor = PolyRecProcessor.fit(
        data.warm_events,
        items=data.old_items,
        users=pq.read_table(args.data / "users.parquet"),
        tasks=config["tasks"],
        columns=config["columns"],
        **config["processor"],
    )
    splits = processor.split(data.warm_events, by="leave_one_out", **config["split"])
    fitted = fitting.fit(processor, splits, config, seed)
    with tempfile.TemporaryDirectory() as folder:
        fitted.model.save_pretrained(folder)
        processor.save_pretrained(folder)
        return extended(data, Path(folder), splits) | {"train_cpu_seconds": fitted.clock.cpu}


def extended(data: NewItems, folder: Path, splits: Any) -> dict[str, Any]:
    """Load a saved model, answer, extend it, answer again.

    Args:
        splits: of the log without new items.
    """
    import fitting
    import torch

    from polyrec import PolyRecForRecommendation, PolyRecProcessor
    from polyrec.data.event_log import Candidates
    from polyrec.data.sequences import SequenceDataset
    from polyrec.evaluation.evaluator import evaluate, predict

    model = PolyRecForRecommendation.from_pretrained(folder).eval()
    processor = PolyRecProcessor.from_pretrained(folder)
    tasks = [task.name for task in processor.tasks]

    def old_metrics(part: SequenceDataset, name: str) -> tuple[dict[str, float], Any]:
        answers = predict(model, part)
        found = common.rename(evaluate(model, part, answers), tasks, bare="next_item")
        return {f"{name}/{k}": v for k, v in found.items() if not k.endswith("gauc")}, answers

    before = said(model, splits.test)
    valid, _ = old_metrics(splits.valid, "old")
    test, _ = old_metrics(splits.test, "old")
    old, clock = model.config.num_items, fitting.Clock()
    clock.start()
    processor.extend(data.new_items)
    model.extend(processor)
    clock.stop()
    after = said(model, splits.test)
    after["catalog"] = after["catalog"][:, :old]
    equal = set(before) == set(after) and all(torch.equal(before[name], after[name]) for name in before)
    with_new, answers = old_metrics(splits.test, "old+new")
    test |= with_new | {"new_in_lists": float((answers.rankings["next_item"].top_ids >= old - 2).mean())}

    log = processor.encode_events(data.events)
    place, visible = np.argsort(log.row), log.visible(processor.ties)
    column = processor.items.rows(data.items["item_id"].combine_chunks())

    def asked(part: str) -> SequenceDataset:
        event = place[data.questions()[part].row]
        return SequenceDataset(log, Candidates(event, visible[event]), tasks, None, processor.max_history, 1)

    def scorer(part: str) -> Score:
        scores = fitting.catalog_scores(model, asked(part), "next_item")
        return lambda index: scores(index)[:, column]

    test |= data.answers(scorer)
    for part in ASKED:
        dataset = asked(f"{part}/whole")
        test[f"{part}/like/auc"] = evaluate(model, dataset, predict(model, dataset))["like_auc"]
    return {"test": test, "validation": valid, "bit_equal": float(equal), "extend_seconds": clock.wall}


def said(model: Any, dataset: Any) -> dict[str, Any]:
    """Logits of all tasks about a data set's candidates, and next-item scores of the whole catalog, batch by batch."""
    import torch

    from polyrec.data.batching import BatchReader

    reader, found = BatchReader(dataset), {}
    with torch.no_grad():
        for begin in range(0, len(dataset), 64):
            batch = reader(np.arange(begin, min(begin + 64, len(dataset))))
            batch = {k: v for k, v in batch.items() if k not in ("candidate_rows", "labels")}
            output = model(**batch)
            for name, logits in output.logits.items():
                found.setdefault(name, []).append(logits.flatten())
            found.setdefault("catalog", []).append(model.score_items(output.states.flatten(0, 1), "next_item"))
    return {name: torch.cat(parts) for name, parts in found.items()}


def genre_popularity(data: NewItems) -> np.ndarray:
    """Counts of old items; of new ones the mean count of the old ones of each of their genres, [N]."""
    counts = np.bincount(data.item[data.train], minlength=len(data.texts)).astype(np.float64)
    genres = data.items["genres"].to_pylist()
    old = np.setdiff1d(np.arange(len(data.texts)), data.cold)
    by_genre: dict[str, list[float]] = {}
    for n in old:
        for genre in genres[n]:
            by_genre.setdefault(genre, []).append(counts[n])
    means = {genre: np.mean(found) for genre, found in by_genre.items()}
    for n in data.cold:
        counts[n] = np.mean([means.get(genre, 0.0) for genre in genres[n]] or [counts[old].mean()])
    return counts


def fixed(scores_N: np.ndarray) -> Callable[[str], Score]:
    """The same scores for all questions."""
    return lambda part: lambda index: np.repeat(scores_N[None].astype(np.float32), len(index), axis=0)


def mean_of_latest(data: NewItems, model: str, config: Mapping[str, Any]) -> Callable[[str], Score]:
    """Cosine of each item to the mean vector of the latest ones."""
    from sentence_transformers import SentenceTransformer

    vectors = SentenceTransformer(model, device="cpu").encode(data.texts, batch_size=128, normalize_embeddings=True)
    latest, questions = config["sentence_transformers"]["history"], data.questions()

    def scorer(part: str) -> Score:
        rows = questions[part].row
        return lambda index: np.stack([vectors @ vectors[data.history(row, latest)].mean(0) for row in rows[index]])

    return scorer


def untrained(system: str, data: NewItems, args: Namespace, config: Mapping[str, Any]) -> dict[str, Any]:
    """A system that learns nothing."""
    if system == "zero-shot":
        scorer, _ = sentence_transformers(data, args.model, config, 0, 0.0)
    elif system == "zero-shot-mean":
        scorer = mean_of_latest(data, args.model, config)
    elif system == "genre-popularity":
        scorer = fixed(genre_popularity(data))
    elif system == "popularity":
        scorer = fixed(np.bincount(data.item[data.train], minlength=len(data.texts)))
    else:
        scorer = fixed(data.popularity())
    return {"test": data.answers(scorer), "validation": {}}


def main() -> None:
    """Run the systems asked for and write the report."""
    args = common.arguments(__doc__, "new_items.yaml", SYSTEMS, model=True)
    config = common.read_config(args.config, args.epochs, ("tenth", "sentence_transformers"))
    data = NewItems(args.data, config["tenth"])
    report = common.Report(args, config)
    sizes = {f"questions_{part}": len(data.questions()[f"{part}/whole"].row) for part in ASKED}
    print(sizes, f"{len(data.cold)} new items among {len(data.texts)}", flush=True)
    for system in args.systems:
        if system == "polyrec":
            runs = [polyrec(data, args, config, seed) for seed in range(args.seeds)]
        else:
            runs = [untrained(system, data, args, config)]
        report.add(system, common.summarise([run | sizes for run in runs]))
    report.show([*METRICS, *COSTS])


if __name__ == "__main__":
    main()
