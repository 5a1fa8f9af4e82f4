"""Peers of the search benchmark: BM25, a text encoder as it is, and the same fine-tuned by sentence-transformers.

They read titles and nothing else. What comes next for a person they answer by the latest titles that the person turned
to: BM25 by all their words, encoders by the mean of their vectors.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from search_data import Lists, TravelSearch

SEARCH_KS, NEXT_KS = (10, 100), (10,)
Scorer = Callable[[Lists], Callable[[np.ndarray], np.ndarray]]


def measure(data: TravelSearch, part: str, search: Scorer, next_item: Scorer | None = None) -> dict[str, float]:
    """Metrics of one system on one part; next item under "next_item/"."""
    lists = data.search(part)
    found = data.evaluate(lists, search(lists), SEARCH_KS)
    if next_item is not None:
        lists = data.next_items(part)
        found |= {f"next_item/{k}": v for k, v in data.evaluate(lists, next_item(lists), NEXT_KS).items()}
    return found


def newest(data: TravelSearch) -> dict[str, Any]:
    """Whatever was asked last: what next items are about."""

    def scorer(lists: Lists) -> Callable[[np.ndarray], np.ndarray]:
        age = np.argsort(np.argsort(data.asked, kind="stable"), kind="stable").astype(np.float32)
        return lambda rows: np.broadcast_to(age, (len(rows), len(data)))

    return _run(data, scorer, scorer, train_cpu_seconds=0.0, parameters=0)


def bm25(data: TravelSearch, config: Mapping[str, Any]) -> dict[str, Any]:
    """Okapi BM25 over titles (`bm25s`, its default parameters), English stop words removed, words stemmed."""
    import bm25s
    import Stemmer

    stemmer = Stemmer.Stemmer("english")

    def tokens(texts: list[str], **more: Any) -> Any:
        return bm25s.tokenize(texts, stopwords="en", stemmer=stemmer, show_progress=False, **more)

    clock = time.process_time()
    index = bm25s.BM25(**config)
    index.index(tokens(data.titles), show_progress=False)
    cost = time.process_time() - clock

    def scorer(texts: list[str]) -> Callable[[np.ndarray], np.ndarray]:
        words, nothing = tokens(texts, return_ids=False), np.zeros(len(data), dtype=np.float32)
        return lambda rows: np.stack([index.get_scores(words[row]) if words[row] else nothing for row in rows])

    def search(lists: Lists) -> Callable[[np.ndarray], np.ndarray]:
        return scorer([data.titles[item] for item in lists.query])

    def next_item(lists: Lists) -> Callable[[np.ndarray], np.ndarray]:
        items, offsets = lists.history
        spans = itertools.pairwise(offsets)
        return scorer([" ".join(data.titles[item] for item in items[a:b]) for a, b in spans])

    return _run(data, search, next_item, train_cpu_seconds=cost, parameters=0)


def vector_scorers(vectors: np.ndarray) -> tuple[Scorer, Scorer]:
    """How vectors of titles, [N, W], answer a query and what comes next."""

    def search(lists: Lists) -> Callable[[np.ndarray], np.ndarray]:
        return lambda rows: vectors[lists.query[rows]] @ vectors.T

    def next_item(lists: Lists) -> Callable[[np.ndarray], np.ndarray]:
        items, offsets = lists.history
        sums = np.concatenate([np.zeros((1, vectors.shape[1])), np.cumsum(vectors[items], axis=0)])
        return lambda rows: (sums[offsets[rows + 1]] - sums[offsets[rows]]).astype(np.float32) @ vectors.T

    return search, next_item


def zero_shot(data: TravelSearch, model: str) -> dict[str, Any]:
    """The encoder as it is."""
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(model, device="cpu")
    parameters = sum(p.numel() for p in encoder.parameters())
    return _run(data, *vector_scorers(_encode(encoder, data)), train_cpu_seconds=0.0, parameters=parameters)


def fine_tuned(data: TravelSearch, model: str, config: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Fine-tuned as the documentation of sentence-transformers does it for (query, relevant text) pairs.

    `MultipleNegativesRankingLoss`, no text twice in a batch, the best epoch by validation NDCG@10.
    """
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
    from sentence_transformers import SentenceTransformerTrainingArguments as Arguments
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from sentence_transformers.sentence_transformer.training_args import BatchSamplers
    from transformers import TrainerCallback, set_seed

    set_seed(seed)
    encoder = SentenceTransformer(model, device="cpu")
    links = data.links[data.links.part == 0]
    pairs = Dataset.from_dict(
        {
            "query": [data.titles[item] for item in links.item],
            "relevant": [data.titles[item] for item in links.related],
        }
    )
    best: dict[str, Any] = {"ndcg@10": -1.0}
    spent = [0.0, 0.0]

    class Choose(TrainerCallback):
        """Stops the clock after each epoch and keeps the vectors that validate best."""

        def on_epoch_begin(self, *unused: Any, **more: Any) -> None:
            self.began = time.process_time(), time.perf_counter()

        def on_epoch_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            spent[0] += time.process_time() - self.began[0]
            spent[1] += time.perf_counter() - self.began[1]
            print(f"sentence-transformers seed {seed} epoch {state.epoch:.0f} took {spent[0]:.0f} cpu-s", flush=True)
            vectors = _encode(encoder, data)
            found = measure(data, "valid", *vector_scorers(vectors))
            print(
                f"sentence-transformers seed {seed} epoch {state.epoch:.0f} ndcg@10 {found['ndcg@10']:.4f}", flush=True
            )
            if found["ndcg@10"] > best["ndcg@10"]:
                best.update(found, vectors=vectors, epoch=state.epoch)

    with tempfile.TemporaryDirectory() as folder:
        arguments = Arguments(
            output_dir=folder,
            seed=seed,
            use_cpu=True,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            batch_sampler=BatchSamplers.NO_DUPLICATES,
            **config,
        )
        loss = MultipleNegativesRankingLoss(encoder)
        SentenceTransformerTrainer(encoder, arguments, train_dataset=pairs, loss=loss, callbacks=[Choose()]).train()
    epochs = config["num_train_epochs"]
    return _run(
        data,
        *vector_scorers(best["vectors"]),
        train_cpu_seconds=spent[0],
        train_wall_seconds=spent[1],
        parameters=sum(p.numel() for p in encoder.parameters()),
        pairs_per_cpu_second=epochs * len(pairs) / spent[0],
        best_epoch=best["epoch"],
    )


def _encode(encoder: Any, data: TravelSearch) -> np.ndarray:
    """Vectors of all titles, [N, W]."""
    training = encoder.training
    vectors = encoder.encode(data.titles, batch_size=64, normalize_embeddings=True, show_progress_bar=False)
    encoder.train(training)
    return vectors.astype(np.float32)


def _run(data: TravelSearch, search: Scorer, next_item: Scorer, **costs: Any) -> dict[str, Any]:
    return {
        "test": measure(data, "test", search, next_item),
        "validation": measure(data, "valid", search, next_item),
        **costs,
    }
