"""The scores of one task for some items and one user, and how they change if the history changes.

Letters: V variants, L events of the history, C candidate items, N items, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyrec.core.modules import eval_view
from polyrec.core.registry import nearest
from polyrec.data.batch import Batch
from polyrec.data.event_log import EventLog
from polyrec.models.batches import as_batch
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor
from polyrec.models.pretrained import PolyRecOutput
from polyrec.modules.encoders.item import ItemRows

_EVENTS = 16_384  # events that are read at once, so that memory does not grow with the number of variants
_VARIANTS = 1 << 16  # events of whole histories that are written out at once
_SCORES = 1 << 24  # scores of the whole catalog that are held at once
_PAIRS = 1 << 21  # (candidate item, event) pairs that are attended at once


@dataclass(eq=False)
class ExplainedRequest:
    """What is explained, encoded once.

    Effects are differences of *scores*, which are unbounded and more additive than what a user reads: log-odds of
    a probability, the log of a rate, a number in the label's unit, and of a retrieval task the log probability among
    all items. (Its scores are learned by a softmax and so known up to a number that all items of a history share:
    scores of two histories cannot be compared.) A head that gives several numbers per pair scores with its prediction.

    Args:
        history: the user's events, oldest first, as for `recommend`.
        rows: int64 [C], rows of the item table.
        task: that is explained.
        request: arguments of `processor.request`: user, context, time, query.
        encoded: the item table; None: encode it.
    """

    model: PolyRecForRecommendation
    processor: PolyRecProcessor
    history: Any
    rows: np.ndarray
    task: str
    request: Mapping[str, Any] = field(default_factory=dict)
    encoded: ItemRows | None = None

    def __post_init__(self) -> None:
        if self.task not in self.model.heads:
            raise ValueError(f"unknown task {self.task!r}; {nearest(self.task, list(self.model.heads))}")
        if self.head.reads == "state" and self.head.excludes != "history":
            raise ValueError(f"task {self.task!r} is a search: only scores without a query are explained")
        if not len(self.rows):
            raise ValueError("nothing to explain: give at least one item")
        self.model = eval_view(self.model)  # ids that training drops by chance are no explanation
        self._request_log = self.processor.request_log(self.history, self.rows, **self.request)
        self.log: EventLog = self._request_log.log
        self.items: ItemRows = self.model.item_encoder.table() if self.encoded is None else self.encoded

    @property
    def events(self) -> int:
        """L, events of the whole history."""
        return len(self.log) - len(self.rows)

    @property
    def visible(self) -> np.ndarray:
        """int64, which events of the history the model reads: the latest `max_history`."""
        return np.arange(max(self.events - self.processor.max_history, 0), self.events)

    @property
    def head(self) -> Any:
        """Of the task."""
        return self.model.heads[self.task]

    def batches(self, keep_VL: np.ndarray | None = None) -> Iterator[Batch]:
        """Inputs of the model about some variants, see `PolyRecProcessor.request_windows`, in pieces."""
        windows = self.processor.request_windows(self._request_log, keep_VL)
        longest = max(len(window["item_ids"]) for window in windows) + 1
        size = max(min(_EVENTS // longest, _PAIRS // (longest * len(self.rows))), 1)
        for first in range(0, len(windows), size):
            yield as_batch(windows[first : first + size], self.model)

    def scores(self, batch: Mapping[str, Any], items: ItemRows | None = None, **changed: Any) -> Tensor:
        """Scores for a batch of this request, [B, C].

        Args:
            items: embeddings of the candidate items, instead of the model's own; other items stay as they are.
            changed: further arguments of the model.
        """
        return self.predictions(batch, items, **changed)[0]

    def predictions(
        self, batch: Mapping[str, Any], items: ItemRows | None = None, **changed: Any
    ) -> tuple[Tensor, Tensor]:
        """Scores and predictions, [B, C] each; arguments as for `scores`."""
        items = self.items if items is None else items
        if self.head.reads == "state":
            # Nothing but the state is needed: pairs are left out, which are most of the work.
            read = {n: batch[n] for n in ("item_ids", "event_features", "user_features")}
            states_BLD = self.model.model(**read, items=items, **changed).last_hidden_state
            candidate_ids, request_context = batch["candidate_ids"], self.model.request_context(**batch)
            query_state_B1D = self._query_states(batch, states_BLD)
            query_state_BCD = query_state_B1D.expand(-1, candidate_ids.shape[1], -1)
            score_BC = self.head.pair_logits(
                query_state_BCD, items.lookup(candidate_ids), candidate_ids, items, request_context
            ).float()
            size = max(_SCORES // len(self.items.vectors_MD), 1)
            first, blocks = (
                request_context.at((slice(None), 0)),
                torch.arange(len(candidate_ids), device=candidate_ids.device).split(size),
            )
            some = ((query_state_B1D[at, 0], first.at(at)) for at in blocks)
            total_B = torch.cat([self.head(q, self.items, m).float().logsumexp(-1) for q, m in some])
            return score_BC - total_B.unsqueeze(-1), self.head.predict(score_BC)
        logits = self.forward(batch, items, **changed).logits
        assert logits is not None
        prediction = self.head.predict(logits[self.task])
        return self.head.canonical_logits(
            logits[self.task]
        ) if self.head.canonical_width is None else prediction, prediction

    def _query_states(self, batch: Mapping[str, Any], states_BLD: Tensor) -> Tensor:
        """The query states of a retrieval head, [B, 1, D]: a row has one time."""
        position_B11 = batch["candidate_positions"][:, :1].unsqueeze(-1)
        return self.head.query_state(states_BLD.gather(1, position_B11.expand(-1, -1, states_BLD.shape[-1])), None)

    @torch.no_grad()
    def parts(self) -> dict[str, np.ndarray]:
        """What each term of a retrieval task's score adds to it, {term: float64 [C]}; of other tasks nothing."""
        if self.head.reads != "state":
            return {}
        batch = next(iter(self.batches()))
        read = {n: batch[n] for n in ("item_ids", "event_features", "user_features")}
        query_state_B1D = self._query_states(batch, self.model.model(**read, items=self.items).last_hidden_state)
        candidate_ids, request_context = batch["candidate_ids"], self.model.request_context(**batch)
        query_state_BCD = query_state_B1D.expand(-1, candidate_ids.shape[1], -1)
        found = self.head.pair_parts(
            query_state_BCD, self.items.lookup(candidate_ids), candidate_ids, self.items, request_context
        )
        return {name: part[0].cpu().double().numpy() for name, part in found.items()}

    def inputs(self, batch: Mapping[str, Any]) -> Tensor:
        """The start and the events of a batch as the backbone reads them, [B, L + 1, D]."""
        read = batch["item_ids"], batch["event_features"], batch["user_features"]
        return self.model.model.history_encoder.embed(self.items, *read)

    def forward(self, batch: Mapping[str, Any], items: ItemRows | None = None, **changed: Any) -> PolyRecOutput:
        """All that the model says about a batch."""
        return self.model(**batch, items=self.items if items is None else items, **changed)

    def variants(self, keep_VL: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scores and predictions if only some events of the history had happened, float64 [V, C] each.

        Args:
            keep_VL: bool [V, L].
        """
        size = self._variants_at_once
        return self._of_variants(keep_VL[first : first + size] for first in range(0, len(keep_VL), size))

    def without_each(self, events: np.ndarray, besides: Sequence[int] = ()) -> tuple[np.ndarray, np.ndarray]:
        """The same of the history as it is and without each of some events, float64 [1 + E, C] each.

        Args:
            events: int64 [E].
            besides: events that did not happen in any of the variants.
        """

        def blocks() -> Iterator[np.ndarray]:
            gone, size = np.append(-1, events), self._variants_at_once
            for first in range(0, len(gone), size):
                own = gone[first : first + size]
                keep_VL = own[:, None] != np.arange(self.events)
                keep_VL[:, np.array(besides, dtype=np.int64)] = False
                yield keep_VL

        return self._of_variants(blocks())

    @property
    def _variants_at_once(self) -> int:
        """Variants whose whole histories are written out together."""
        return max(_VARIANTS // max(self.events, 1), 1)

    @torch.no_grad()
    def _of_variants(self, blocks: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        found = [self.predictions(batch) for keep_VL in blocks for batch in self.batches(keep_VL)]
        scores, predictions = (torch.cat(part).cpu().double().numpy() for part in zip(*found, strict=True))
        return scores, predictions
