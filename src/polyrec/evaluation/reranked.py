"""Scores of a cross-encoder: of every candidate of a data set, and to rerank a first stage's lists.

Letters: B users, C candidates, K items of a list, R ranked candidates.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm.auto import tqdm

from polyrec.core.registry import nearest
from polyrec.data.sequences import SequenceDataset
from polyrec.evaluation.evaluator import PairPredictions, Predictions
from polyrec.evaluation.scored import Ranking
from polyrec.inference.reranking import scored
from polyrec.models.cross_encoder.collator import collate
from polyrec.models.cross_encoder.modeling_cross_encoder import PolyRecCrossEncoder
from polyrec.models.cross_encoder.processing_cross_encoder import PolyRecCrossEncoderProcessor
from polyrec.models.cross_encoder.sampling import FIRST_ITEM, only

logger = logging.getLogger(__name__)


@torch.no_grad()
def predict(
    model: PolyRecCrossEncoder,
    processor: PolyRecCrossEncoderProcessor,
    dataset: SequenceDataset,
    first_stage: Mapping[str, Ranking] | None = None,
    batch_size: int = 16,
    k: int = 10,
    blend: float = 0.0,
    shard: tuple[int, int] = (0, 1),
    progress: bool = False,
) -> Predictions:
    """Score every candidate with the pair tasks, and rerank a first stage's lists.

    Args:
        first_stage: {retrieval task: lists of another model about the same data set}, as its own `predict` (with a
            larger k) gives them. Retrieval tasks without one have no predictions.
        k, blend: of [`rerank_lists`].
        shard: (rank, ranks): this process reads every ranks-th window. Values of other windows stay NaN.
    """
    dataset = dataset.fixed()
    order = np.argsort(dataset.lengths, kind="stable")[shard[0] :: shard[1]]
    pairs = PairPredictions(model.heads, model.pair_tasks, dataset.num_candidates)
    if model.pair_tasks:
        for rows, output in _scored(model, processor, Subset(dataset, order.tolist()), batch_size, progress):
            pairs.add(rows, output.logits)
    rankings = {}
    for name, lists in (first_stage or {}).items():
        mine = np.isin(_window_of(dataset)[lists.rows], order)
        own = lists.of(mine)
        rankings[name] = rerank_lists(model, processor, dataset, name, own, batch_size, k, blend, progress)
    return Predictions(pairs.values, rankings, pairs.details)


@torch.no_grad()
def rerank_lists(
    model: PolyRecCrossEncoder,
    processor: PolyRecCrossEncoderProcessor,
    dataset: SequenceDataset,
    task: str,
    lists: Ranking,
    batch_size: int = 16,
    k: int = 10,
    blend: float = 0.0,
    progress: bool = False,
) -> Ranking:
    r"""The lists of a first stage in the cross-encoder's order; what stood behind a list stays there.

    Args:
        task: a retrieval task.
        lists: about candidates of the data set.
        k: length of the new lists.
        blend: how much the first stage's order counts, z_j - blend \log(rank of j); 0 = not at all.
    """
    if task not in model.state_tasks:
        raise ValueError(f"task {task!r} ranks no items; {nearest(task, model.state_tasks)}")
    dataset = dataset.fixed()
    scores_RK = score_lists(model, processor, dataset, task, lists, batch_size, progress)
    return reordered(dataset, lists, scores_RK, k, blend)


def reordered(dataset: SequenceDataset, lists: Ranking, scores_RK: np.ndarray, k: int, blend: float = 0.0) -> Ranking:
    """Lists in the order of scores [R, K], see [`rerank_lists`]."""
    listed_RK = lists.top_ids >= 0
    prior_K = -blend * np.log1p(np.arange(lists.top_ids.shape[1]))
    scores_RK = np.where(listed_RK, scores_RK + prior_K, -np.inf)
    target_R1 = dataset.log.item[dataset.candidates.event[lists.rows]][:, None] - FIRST_ITEM
    hit_RK = (lists.top_ids == target_R1) & listed_RK  # a target that is not in the catalog is not the place of no item
    found_R = hit_RK.any(axis=1)
    own_R1 = np.where(hit_RK, scores_RK, -np.inf).max(axis=1, keepdims=True)
    # Behind the list nothing moves: who was not in it stays behind all that was.
    greater_R = np.where(found_R, (scores_RK > own_R1).sum(1), np.maximum(lists.greater, listed_RK.sum(1)))
    ties_R = np.where(found_R, (scores_RK == own_R1).sum(1) - 1, lists.ties)
    order_RK = np.argsort(-scores_RK, axis=1, kind="stable")[:, :k]
    return Ranking(lists.rows, greater_R, ties_R, np.take_along_axis(lists.top_ids, order_RK, axis=1), lists.excluded)


@torch.no_grad()
def score_lists(
    model: PolyRecCrossEncoder,
    processor: PolyRecCrossEncoderProcessor,
    dataset: SequenceDataset,
    task: str,
    lists: Ranking,
    batch_size: int = 16,
    progress: bool = False,
) -> np.ndarray:
    """Logits of the items of lists, float32 [R, K], -inf where a list has no item."""
    if lists.rows.max(initial=-1) >= dataset.num_candidates:
        raise ValueError(
            f"the lists are about candidate {lists.rows.max()} but the data set has {dataset.num_candidates}: make "
            "them of this data set"
        )
    windows = _Lists(dataset, lists)
    scores = np.full(lists.top_ids.shape, -np.inf, dtype=np.float32)
    for rows, output in _scored(model, processor, windows, batch_size, progress):
        assert output.list_logits is not None
        real = rows.flatten() >= 0
        at = windows.list_of[rows.flatten()[real].numpy()]
        scores[at] = output.list_logits[task].flatten(0, 1).float().cpu()[real].numpy()
    return scores


def hard_negatives(dataset: SequenceDataset, lists: Ranking) -> np.ndarray:
    """What a first stage would show instead of each candidate, int64 [candidates of the data set, K]; 0 = none.

    Args:
        lists: of the first stage about this data set (`predict(first_stage, dataset, k=...)`).
    """
    found = np.zeros((dataset.num_candidates, lists.top_ids.shape[1]), dtype=np.int64)
    found[lists.rows] = np.where(lists.top_ids >= 0, lists.top_ids + FIRST_ITEM, 0)
    return found


class _Lists(Dataset):
    """The windows of a data set that hold candidates with a list, those candidates alone.

    Args:
        lists: about them.
    """

    def __init__(self, dataset: SequenceDataset, lists: Ranking) -> None:
        self.dataset, self.lists = dataset, lists
        self.list_of = np.full(dataset.num_candidates, -1)
        self.list_of[lists.rows] = np.arange(len(lists.rows))
        self.windows = np.unique(_window_of(dataset)[lists.rows])

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        window = self.dataset[int(self.windows[index])]
        found = only(window, np.flatnonzero(self.list_of[window["candidate_rows"]] >= 0))
        top = self.lists.top_ids[self.list_of[found["candidate_rows"]]]
        return found | {"list_items": np.where(top >= 0, top + FIRST_ITEM, 0)}


def _window_of(dataset: SequenceDataset) -> np.ndarray:
    """The window of each candidate, int64 [C]."""
    spans = dataset.spans(np.arange(len(dataset)))
    return np.repeat(np.arange(len(dataset)), spans.last_candidate - spans.first_candidate)


def _scored(
    model: PolyRecCrossEncoder,
    processor: PolyRecCrossEncoderProcessor,
    windows: Dataset,
    batch_size: int,
    progress: bool,
) -> Any:
    """Rows of candidates [B, C] (-1 = padding) and predictions of each batch."""
    loader = DataLoader(
        windows,
        batch_size=batch_size,
        collate_fn=collate,
        generator=torch.Generator(),  # a loader draws a seed, which must not come out of the training's random state
    )
    written, cut = 0, 0
    with model.eval_mode() as model:
        for batch in tqdm(loader, desc="Cross-encoder", disable=None if progress else True, leave=False):
            prompts = processor.write(batch)
            written, cut = written + len(prompts.shown), cut + prompts.cut
            batch = processor.with_prompts(batch, prompts)
            yield batch["candidate_rows"], scored(model, batch)
    if cut:
        logger.info("%d of %d prompts tell the newest events only", cut, written)
