"""Prediction from text only: a model trained on one domain ranks another domain's items, which it has never seen.

Films (--data, ml-100k) and questions about travelling (--other, travel_se: comments, answers, edits and favourites of
people; asking is left out), each person's last event tests, the whole catalog is ranked without the person's history,
and answers that are in it do not count (the setting of UniSRec, Hou et al., 2022). In each direction:

* `own`: trained on the target's own data, also by text only: the ceiling;
* `transferred`: trained on the other data, not at all on the target's;
* `text_mean`: nothing trained, cosine to the mean text vector of the latest five items;
* `popularity`: training counts of the target.

    python scripts/benchmarks/transfer.py --data ../shared/data/ml-100k --other ../shared/data/travel_se \\
        --model .models/all-MiniLM-L6-v2 --threads 1 --output runs/transfer.json
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import common
import numpy as np

LATEST = 5
USERS = 1000  # of travel_se, with at least so many events:
EVENTS = 5


def tables(folder: Path) -> tuple[Any, Any]:
    """Interactions and items with the columns user_id, item_id, timestamp and title."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    events, items = (pq.read_table(folder / f"{name}.parquet") for name in ("interactions", "items"))
    if "event" in events.column_names:
        events = events.filter(pc.not_equal(events["event"], "ask"))
        known = pc.is_in(events["item_id"], value_set=items["item_id"].combine_chunks())
        events = events.filter(known)
        user, count = np.unique(np.asarray(events["user_id"]), return_counts=True)
        user = user[count >= EVENTS]
        drawn = np.random.default_rng(0).permutation(user)[:USERS]
        events = events.filter(pc.is_in(events["user_id"], value_set=pa.array(drawn)))
    return events.select(["user_id", "item_id", "timestamp"]), items


def evaluate(test: Any, score: Callable[[np.ndarray], np.ndarray]) -> dict[str, float]:
    """Metrics over the candidates of a test set.

    Args:
        score: scores [B, N] of candidates' positions in the test set.
    """
    log, asked = test.log, test.candidates
    ranks = []
    for begin in range(0, len(asked.event), 128):
        index = np.arange(begin, min(begin + 128, len(asked.event)))
        scores = np.array(score(index), dtype=np.float32)
        for n, k in enumerate(index):
            event = asked.event[k]
            first = log.offsets[log.user[event]]
            seen, target = log.item[first : first + asked.position[k]], log.item[event]
            if target in seen:  # people come back to a question; to find it again is no feat
                continue
            own = scores[n, target]
            scores[n, seen] = -np.inf
            ranks.append(int((scores[n, 2:] > own).sum()))
    return common.one_relevant(ranks)


def text_mean(model: Any, test: Any) -> Callable[[np.ndarray], np.ndarray]:
    """Cosine to the mean text vector of the latest items."""
    vectors = model.item_encoder.text.vectors.numpy()
    log, asked = test.log, test.candidates

    def score(index: np.ndarray) -> np.ndarray:
        first = log.offsets[log.user[asked.event[index]]]
        stop = first + asked.position[index]
        means = [
            vectors[log.item[max(a, b - LATEST) : b]].mean(0) if b > a else vectors[0]
            for a, b in zip(first, stop, strict=True)
        ]
        return np.stack(means) @ vectors.T

    return score


def main() -> None:
    """Train on each domain, answer about both."""
    args = common.arguments(__doc__, "transfer.yaml", ("polyrec",), model=True, other=True)
    config = common.read_config(args.config, args.epochs, ("text",))
    report = common.Report(args, config)
    import fitting
    import torch

    from polyrec import PolyRecProcessor
    from polyrec.inference.transfer import for_catalog

    torch.set_num_threads(args.threads)
    domains: dict[str, Any] = {}
    for name, folder in (("films", args.data), ("travel", args.other)):
        events, items = tables(folder)
        options: Mapping[str, Any] = {"tasks": config["tasks"], "columns": config["columns"], **config["processor"]}
        processor = PolyRecProcessor.fit(events, items=items, text={**config["text"], "model": args.model}, **options)
        data = processor.split(events, **config["split"])
        fitted = [fitting.fit(processor, data, config, seed) for seed in range(args.seeds)]
        domains[name] = processor, data, fitted
    for target, source in (("films", "travel"), ("travel", "films")):
        processor, data, own = domains[target]
        counts = processor.item_counts.astype(np.float32)
        runs = {
            "own": [evaluate(data.test, fitting.catalog_scores(f.model.eval(), data.test, "next_item")) for f in own],
            "transferred": [
                evaluate(
                    data.test, fitting.catalog_scores(for_catalog(f.model.eval(), processor), data.test, "next_item")
                )
                for f in domains[source][2]
            ],
            "text_mean": [evaluate(data.test, text_mean(own[0].model, data.test))],
            "popularity": [evaluate(data.test, lambda index, c=counts: np.repeat(c[None], len(index), axis=0))],
        }
        for system, found in runs.items():
            report.add(f"{target}/{system}", common.summarise([{"test": run, "validation": {}} for run in found]))
    report.write()
    report.show(["recall@10", "ndcg@10"])


if __name__ == "__main__":
    main()
