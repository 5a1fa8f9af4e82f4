"""Baselines that a domain would name first, beside those of every report (`polyrec.evaluation.baselines`).

* `tf-idf`: cosine of words. For searches.
* `habit`: predictions of the recipe's own table "baselines", one per row of the interactions (see recipe_tables.py).

They are evaluated on the same test examples, and added to metrics.json as further systems of their tasks.
"""

from __future__ import annotations

import copy
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp

from polyrec.core.registry import HEADS
from polyrec.core.schema import parse_tasks
from polyrec.data.candidates import left_out
from polyrec.data.sequences import SequenceDataset
from polyrec.data.splitter import Splits
from polyrec.evaluation import evaluator, ranking
from polyrec.evaluation.scored import rank_rows, ranked_rows
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor
from polyrec.modules.encoders.item import FIRST_ITEM
from polyrec.modules.heads.base import TaskHead
from polyrec.runs.prepare import prepare, read_run
from polyrec.runs.recipe import Recipe
from polyrec.runs.transaction import put_file

Scorer = Callable[[np.ndarray], np.ndarray]  # candidates of the data set [R] -> scores of the catalog [R, N]


def add_baselines(run: Path, answers: Path | None) -> None:
    """Measure what applies to the run's tasks and write it into its metrics.json.

    Args:
        answers: the table "baselines", if the recipe has one.
    """
    recipe = read_run(run)
    report = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    searches = [task.name for task in parse_tasks(recipe.tasks) if task.head == "search"]
    table = None if answers is None else pd.read_parquet(answers)
    if table is None and not searches:
        return
    light = copy.deepcopy(recipe)  # the same examples; nothing here reads statistics or texts by a model
    light.processor["statistics"] = False
    processor, parts = prepare(light)
    for task in searches:
        scorer = tf_idf(recipe, processor, parts, task)
        report[task]["tf-idf"] = rank(parts.test, task, processor.num_items - FIRST_ITEM, scorer, recipe)
    for task in [] if table is None else table.columns:
        head = next(t["head"] for t in recipe.tasks if t["name"] == task)
        report[task]["habit"] = answer(parts.test, task, HEADS.get(head), table[task].to_numpy())
    put_file(run / "metrics.json", json.dumps(report, indent=2) + "\n")


def tf_idf(recipe: Recipe, processor: PolyRecProcessor, parts: Splits, task: str) -> Scorer:
    """Cosine of the query's words and the title's, each weighing tf log(N / df) (Salton and Buckley, 1988)."""
    test = parts.test
    titles = [title or "" for title in processor.items.table["title"].to_pylist()]
    asked = pd.read_parquet(recipe.interactions)[recipe.columns["query"]]
    seen = Counter(word for title in titles for word in set(_words(title)))
    number = {word: n for n, word in enumerate(seen)}
    rarity = np.log(len(titles) / np.array(list(seen.values())))

    def vectors(texts: list[str]) -> sp.csr_array:
        pairs = [(row, number[word]) for row, text in enumerate(texts) for word in _words(text) if word in number]
        at = np.array(pairs, dtype=np.int64).reshape(-1, 2)
        found = sp.csr_array((rarity[at[:, 1]], (at[:, 0], at[:, 1])), shape=(len(texts), len(number)))
        length = np.sqrt(found.multiply(found).sum(axis=1))
        return sp.diags_array(1 / np.maximum(length, 1e-12)) @ found

    catalog = vectors(titles).T.tocsr()

    def score(rows: np.ndarray) -> np.ndarray:
        texts = asked.iloc[test.log.row[test.candidates.event[rows]]].fillna("").tolist()
        return (vectors(texts) @ catalog).toarray().astype(np.float32)

    return score


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def rank(test: SequenceDataset, task: str, number: int, score: Scorer, recipe: Recipe) -> dict[str, float]:
    """Metrics of lists of a catalog of `number` items, as `polyrec.evaluation.report` has them."""
    k, own = recipe.training.get("rank_k", 10), next(t for t in parse_tasks(recipe.tasks) if t.name == task)
    what = left_out(own, recipe.training.get("exclude_seen"))
    found = rank_rows(score, test, ranked_rows(test, task), k, what)
    per_list = ranking.single_target_metrics(found.greater, found.ties, ks=[k])
    metrics = {f"{m}@{k}": float(per_list[f"{m}@{k}"].mean()) for m in ("ndcg", "recall", "mrr")}
    return metrics | {f"coverage@{k}": ranking.coverage(found.top_ids, number)}


def answer(test: SequenceDataset, task: str, head: type[TaskHead], values: np.ndarray) -> dict[str, float]:
    """Metrics of pairs; `values` has one prediction for each row of the interactions."""
    labels = test.labels()[:, test.task_names.index(task)]
    own = values[test.log.row[test.candidates.event]]
    return evaluator.pair_metrics(head.metrics, labels, own, test.user_codes(), task)[0]
