"""Teachers on the candidates of an evaluation: any teacher is measured as a model is.

Letters: B users, C candidates, R rows that are ranked, K items of a list, N items of the catalog.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from polyrec.data.candidates import left_out
from polyrec.data.sequences import SequenceDataset
from polyrec.data.window_loader import window_loader
from polyrec.distillation.teacher import Teacher
from polyrec.evaluation.evaluator import Predictions
from polyrec.evaluation.scored import Ranking, join_rankings, rank_scores, rows_at_once
from polyrec.modules.encoders.item import FIRST_ITEM


@torch.no_grad()
def teacher_predictions(
    teacher: Teacher,
    heads: Mapping[str, nn.Module],
    dataset: SequenceDataset,
    num_items: int,
    batch_size: int = 64,
    k: int = 10,
    exclude_seen: bool | None = None,
    progress: bool = False,
) -> Predictions:
    """Score every candidate with a prepared teacher, as `polyrec.evaluation.evaluator.predict` does with a model.

    An item that its list lacks stands behind all that are in it: ask for lists of the whole catalog where that fits
    (`teacher.listing`). Pairs without an output get the mean of the outputs there are, which is what a constant would
    say; a task that gets no output at all is left out.

    Args:
        heads: of the student, which say what canonical logits mean.
        num_items: rows of the item table.
        k: length of ranked lists.
        exclude_seen: what the lists leave out, see `polyrec.data.candidates.left_out`.
    """
    dataset = dataset.fixed()
    pair_tasks = [name for name in teacher.pair_tasks if name in heads]
    list_tasks = [name for name in teacher.list_tasks if name in heads]
    values = {name: np.full(dataset.num_candidates, np.nan, dtype=np.float32) for name in pair_tasks}
    details: dict[str, np.ndarray] = {}
    parts: dict[str, list[Ranking]] = {name: [] for name in list_tasks}
    loader = window_loader(dataset, np.arange(len(dataset)), batch_size)
    for batch in tqdm(loader, desc="Scoring with the teacher", disable=None if progress else True, leave=False):
        outputs, rows = teacher.score(batch), batch["candidate_rows"].flatten()
        real = rows >= 0
        at = rows[real].numpy()
        for name in pair_tasks:
            said, more = heads[name].read_canonical(outputs["teacher_logits"][name])
            values[name][at] = said.flatten()[real].numpy()
            if more is not None:
                details.setdefault(name, np.full((dataset.num_candidates, more.shape[-1]), np.nan, dtype=np.float32))
                details[name][at] = more.flatten(0, 1)[real].numpy()
        for name in list_tasks:
            positive = (real & (batch["labels"][name].flatten() > 0)).nonzero().squeeze(-1)
            items_AK = outputs["teacher_items"][name].flatten(0, 1)
            scores_AK = outputs["teacher_scores"][name].flatten(0, 1)[:, :-1]
            what = left_out(heads[name].task, exclude_seen)
            for chunk in positive.split(rows_at_once(num_items)):
                dense_RN = _dense(items_AK[chunk], scores_AK[chunk], num_items)
                parts[name].append(rank_scores(dense_RN, dataset, rows[chunk].numpy(), what, k))
    rankings = {name: join_rankings(found, k) for name, found in parts.items()}
    scored = [name for name, found in values.items() if not np.isnan(found).all()]
    return Predictions(
        {name: _filled(values[name]) for name in scored},
        rankings,
        {name: _filled(details[name]) for name in scored if name in details},
    )


def _dense(items_RK: Tensor, scores_RK: Tensor, num_items: int) -> Tensor:
    """Lists as scores of the catalog, [R, N - 2]; -inf for what is not listed."""
    dense = torch.full((len(items_RK), num_items), float("-inf"))
    dense.scatter_(1, items_RK, torch.nan_to_num(scores_RK.float(), nan=float("-inf"), neginf=float("-inf")))
    return dense[:, FIRST_ITEM:]


def _filled(values: Any) -> np.ndarray:
    """NaN rows with the mean of the others."""
    missing = np.isnan(values) if values.ndim == 1 else np.isnan(values).any(-1)
    if missing.any():
        values[missing] = values[~missing].mean(0)
    return values
