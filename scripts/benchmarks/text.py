"""Protocol C: fine-tuning a pretrained text encoder to find the next item, against sentence-transformers.

Both start from the same weights (--model), tune all layers, read nothing but the items' texts, and answer the same
questions by the same measures (`text_data.py`): next item of protocol A (`recall@10`, `ndcg@10`), and which of the
*cold* items, a tenth of the catalog that no training event has, a person took (`cold/recall@10`, among the cold items).

* sentence-transformers: pairs (the latest five titles, the next title), MultipleNegativesRankingLoss, batches of 64.
* polyrec: people's histories, of which each position is one pair; item texts are encoded once per batch.

polyrec learns the epochs of its file; sentence-transformers gets the same cpu time for training. Both run in fp32, each
in a process of its own, one after the other. `zero-shot` is the encoder as it is, `popularity` counts all events (also
those of cold items, which nobody can know). `polyrec-lora` tunes low-rank adapters instead of the whole encoder.

    python scripts/benchmarks/text.py --data ../shared/data/ml-100k --model .models/all-MiniLM-L6-v2 --threads 2 \\
        --systems polyrec,sentence-transformers,zero-shot,popularity --output runs/text.json
"""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import common

SYSTEMS = ("polyrec", "polyrec-lora", "sentence-transformers", "zero-shot", "popularity")
TRAINED = SYSTEMS[:3]
METRICS = ("recall@10", "ndcg@10", "cold/recall@10", "cold/ndcg@10")
COSTS = ("pairs", "pairs_per_second", "pairs_per_cpu_second", "train_cpu_seconds", "trained_parameters", "peak_rss_mb")


def alone(*arguments: Any) -> dict[str, Any]:
    """Run a system in a fresh process, so that its peak memory is its own."""
    import text_systems

    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(text_systems.run, *arguments).result()


def main() -> None:
    """Run the systems asked for and write the report."""
    args = common.arguments(__doc__, "text.yaml", SYSTEMS, model=True)
    config = common.read_config(args.config, args.epochs, ("text", "sentence_transformers", "lora"))
    report = common.Report(args, config)
    budget = config["sentence_transformers"].get("cpu_seconds", 0.0)
    for system in args.systems:
        runs = []
        for seed in range(args.seeds if system in TRAINED else 1):
            runs.append(alone(system, args.data, args.model, config, args.threads, seed, budget))
            print(system, seed, {k: round(v, 4) for k, v in runs[-1]["test"].items()}, flush=True)
        report.add(system, common.summarise(runs))
        if system == "polyrec":
            budget = report.content["systems"]["polyrec"]["train_cpu_seconds"]
    ours, theirs = (report.content["systems"].get(name) for name in ("polyrec", "sentence-transformers"))
    if ours and theirs:
        for name in ("pairs_per_second", "pairs_per_cpu_second"):
            report.content["ratios"][name] = ours[name] / theirs[name]
    report.write()
    report.show([*METRICS, *COSTS])


if __name__ == "__main__":
    main()
