"""Every task's prediction for items of users' requests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from polyrec.data.open_requests import OpenRequests
from polyrec.inference.scorer import Scorer
from polyrec.models.batches import as_batch
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.modules.encoders.item import FIRST_ITEM

_BYTES = 1 << 27  # about what the candidates that are scored at a time take
_FEW = 1024  # candidates that fit in any case
_USERS = 64  # whose windows are read at a time


class _Piece(NamedTuple):
    """Some candidates of one request."""

    request: int
    rows: np.ndarray


def predictions(
    model: PolyRecForRecommendation,
    requests: OpenRequests,
    rows: Sequence[np.ndarray],
    scorer: Scorer,
    read: Any = None,
) -> list[dict[str, np.ndarray]]:
    """{task: float32 [C]} of each request's candidates; empty where there are none.

    Args:
        requests: of `processor.open_requests`.
        rows: of each request, int64 [C], rows of the item table.
        scorer: of the model.
        read: what it read of the histories of all these requests, if it did.
    """
    found: list[dict[str, list[np.ndarray]]] = [{} for _ in rows]
    few = sum(len(own) for own in rows) <= _FEW
    most = _FEW if few else max(_BYTES // _pair_bytes(model), 1)
    for group in _groups(rows, most):
        which = [piece.request for piece in group]
        windows = requests.windows([piece.rows for piece in group], which)
        known = read if which == list(range(len(rows))) else None
        for name, values in scorer.pairs(as_batch(windows, model), known).items():
            for (number, own), scored in zip(group, values, strict=True):
                found[number].setdefault(name, []).append(scored[: len(own)])
    return [{name: np.concatenate(parts) for name, parts in own.items()} for own in found]


def pair_scores(
    model: PolyRecForRecommendation,
    scorer: Scorer,
    task: str,
    opened: OpenRequests,
    allowed: Sequence[np.ndarray | None],
) -> np.ndarray:
    """Scores of all rows of the item table by a pair task, [B, N]; -inf where they are no candidates.

    Args:
        allowed: candidates of each request, bool [N]; None: all.
    """
    number = model.config.num_items
    rows = [np.arange(FIRST_ITEM, number) if own is None else np.flatnonzero(own) for own in allowed]
    scores_BN = np.full((len(rows), number), -np.inf, dtype=np.float32)
    found = predictions(model, opened, rows, scorer)
    for scores_N, own, scored in zip(scores_BN, rows, found, strict=True):
        if len(own):
            scores_N[own] = scored[task]
    return scores_BN


def _groups(rows: Sequence[np.ndarray], most: int) -> Iterator[list[_Piece]]:
    """Pieces of at most `most` candidates, as many at a time as hold no more when padded to the longest."""
    group: list[_Piece] = []
    for number, own in enumerate(rows):
        for begin in range(0, len(own), most):
            piece = _Piece(number, own[begin : begin + most])
            longest = max(len(piece.rows), *(len(other.rows) for other in group), 0)
            if group and (longest * (len(group) + 1) > most or len(group) == _USERS):
                yield group
                group = []
            group.append(piece)
    if group:
        yield group


def _pair_bytes(model: PolyRecForRecommendation) -> int:
    """About what one candidate takes on its way through the model: attention over events, numbers, hidden vectors."""
    config = model.config
    numbers = sum(f.size for f in config.feature_configs if f.source == "candidate" and f.kind in ("numeric", "vector"))
    attention = config.candidate_attention_heads * (config.max_history + 1)
    return 4 * (2 * attention + 3 * numbers * (config.numeric_bins + 1) + 12 * (config.hidden_size + config.pair_width))
