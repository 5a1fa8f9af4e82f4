"""What computes the scores of a model: torch, or graphs that were exported from it."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from torch import nn

from polyrec.data.batch import Batch
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.modules.encoders.item import ItemRows


class Scorer(Protocol):
    """Reads histories once, and then scores the catalog and pairs.

    Letters: B users, N rows of the item table, C candidates.
    """

    def read(self, batch: Batch) -> Any:
        """What the histories of a batch say, for the other methods."""

    def catalog(self, task: str, batch: Batch, read: Any) -> np.ndarray:
        """Scores of all rows of the item table by a retrieval task, float32 [B, N], of batches with one candidate per
        user, who sees all events."""

    def pairs(self, batch: Batch, read: Any = None) -> dict[str, np.ndarray]:
        """Every task's prediction for the candidates of a batch, {task: float32 [B, C]}.

        Args:
            read: what [`read`] gave of these users; None: they are read anew.
        """


class TorchScorer:
    """[`Scorer`] by the model itself.

    Args:
        model: in evaluation mode.
        items: the encoded table.
    """

    def __init__(self, model: PolyRecForRecommendation, items: ItemRows) -> None:
        self.model, self.items = model, items

    def read(self, batch: Batch) -> Any:
        """See [`Scorer`]."""
        return self.model.read_users(batch, self.items)

    def catalog(self, task: str, batch: Batch, read: Any) -> np.ndarray:
        """See [`Scorer`]."""
        model = self.model
        states_BD, context = model.states_of(batch, read)[:, 0], model.request_context(batch).at((slice(None), 0))
        return model.score_items(states_BD, task, self.items, context=context).float().cpu().numpy()

    def pairs(self, batch: Batch, read: Any = None) -> dict[str, np.ndarray]:
        """See [`Scorer`]."""
        logits = self.model(batch, items=self.items, read=read).logits
        return {name: self.model.heads[name].predict(own).float().cpu().numpy() for name, own in logits.items()}


class Stamp:
    """The tensors of some modules, and how often each was changed in place: equal as long as no tensor is another one.

    It holds them: the address of one that is gone may be that of its successor.
    """

    def __init__(self, *modules: nn.Module) -> None:
        tensors = (tensor for module in modules for tensor in (*module.parameters(), *module.buffers()))
        self._seen = [(tensor, tensor._version) for tensor in tensors]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Stamp) or len(self._seen) != len(other._seen):
            return False
        pairs = zip(self._seen, other._seen, strict=True)
        return all(own is its and version == then for (own, version), (its, then) in pairs)

    __hash__ = None  # type: ignore[assignment]
