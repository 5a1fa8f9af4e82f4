"""Search on Travel Stack Exchange: one multi-task model of the event log against search engines of titles.

A query is the title of a question that was linked to others, at the time of the link; what it was linked to should be
found among the questions that existed then. Data, split, what is left out and why: `search_data.py`, whose evaluator
judges all systems.

* `newest`: by age alone. * `bm25`: words of the titles. * `zero_shot`: the text encoder as it is.
* `sentence_transformers`: the encoder fine-tuned on the training links by sentence-transformers
  (`MultipleNegativesRankingLoss`).
* `polyrec`: one model of the event log (search, next item, favourite, accepted answer) on the same encoder.
* `polyrec_search`: the same with the search alone.

Everything is chosen by validation NDCG@10; the test part is read once per seed.

    python scripts/benchmarks/search.py --data ../shared/data/travel_se --model .models/all-MiniLM-L6-v2 --seeds 1 \\
        --threads 1 --systems bm25,zero_shot,sentence_transformers,polyrec_search,polyrec --output runs/search.json
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import common

if TYPE_CHECKING:
    from search_data import TravelSearch

SYSTEMS = ("newest", "bm25", "zero_shot", "sentence_transformers", "polyrec_search", "polyrec")
OWN_PARTS = ("bm25", "sentence_transformers", "text", "expansion")
METRICS = ("ndcg@10", "recall@10", "recall@100", "next_item/ndcg@10", "next_item/recall@10")
EXPANDED = ("expanded/ndcg@10", "expanded/recall@10", "expanded/recall@100")
COSTS = ("train_cpu_seconds", "train_wall_seconds", "parameters", "trained_parameters", "best_epoch")


def polyrec(args: Namespace, data: TravelSearch, config: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """Train and test with every seed."""
    import search_polyrec

    tasks = ["search"] if name == "polyrec_search" else [task["name"] for task in config["tasks"]]
    if len(tasks) == 1:  # nothing goes on without it: the best of all epochs is kept
        config = {**config, "training": {k: v for k, v in config["training"].items() if k != "task_epochs"}}
    processor, splits = search_polyrec.load(data, args.model, config, tasks, args.threads)
    return [search_polyrec.run(data, processor, splits, config, seed, name) for seed in range(args.seeds)]


def peer(args: Namespace, data: TravelSearch, config: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """One run of a peer without chance, or one per seed."""
    import search_peers
    import torch

    torch.set_num_threads(args.threads)
    if name == "newest":
        return [search_peers.newest(data)]
    if name == "bm25":
        return [search_peers.bm25(data, config["bm25"])]
    if name == "zero_shot":
        return [search_peers.zero_shot(data, args.model)]
    training = config["sentence_transformers"]
    if args.epochs is not None:
        training = {**training, "num_train_epochs": args.epochs}
    return [search_peers.fine_tuned(data, args.model, training, seed) for seed in range(args.seeds)]


def main() -> None:
    """Run the systems asked for and write the report."""
    args = common.arguments(__doc__, "search.yaml", SYSTEMS, model=True)
    config = common.read_config(args.config, args.epochs, more=OWN_PARTS)
    from search_data import TravelSearch  # after `arguments`, which says how many threads there are

    data = TravelSearch(args.data)
    report = common.Report(args, config)
    for name in args.systems:
        measured = polyrec if name.startswith("polyrec") else peer
        report.add(name, common.summarise(measured(args, data, config, name)))
    report.write()
    report.show([*METRICS, *EXPANDED, *COSTS])


if __name__ == "__main__":
    main()
