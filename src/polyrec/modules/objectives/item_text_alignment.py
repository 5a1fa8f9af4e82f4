"""The id embedding of an item lies where its text does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from polyrec.core.configuration_polyrec import PolyRecConfig
from polyrec.core.registry import OBJECTIVES
from polyrec.modules.encoders.item import ItemEncoder
from polyrec.modules.objectives.base import Objective, Reading, described_items, symmetric_info_nce


@OBJECTIVES.register("item_text_alignment")
class ItemTextAlignment(Objective):
    r"""L = -1/2 \sum_i [log softmax_j(cos(e_i, t_j) / \tau)_i + log softmax_j(cos(t_i, e_j) / \tau)_i] over items i, j.

    e_i is the id embedding of an item of the batch's histories, t_i its text vector as it is projected to the width of
    items. What users do with items then also teaches where texts lie, and a cold-start item, which has its
    text alone, stands among those that are taken alike (CLCRec, Wei et al., 2021, "Contrastive Learning for Cold-Start
    Recommendation").

    Text vectors come from the model's table: the objective teaches id embeddings and the projection of texts. (A tuned
    backbone reads the batch's items for the tasks just before, so the table is of this step, but without gradient.)
    In-batch negatives depend on the cut into batches: an accumulation window divides by its whole count, but an item is
    contrasted with those of its own batch alone, and counts in each batch that has it.

    Measured on protocol A (ml-100k, 2 seeds) with frozen MiniLM texts of "{title}. {genres}": with weight .1 validation
    NDCG@10 .1256 against .1283 without: no gain there, where items are known and start from their co-occurrence. What
    it brings to items nobody has met has not been measured.

    Options: `weight`; `temperature` \tau.

    Shapes: M items that have an id embedding and a text, [M, D] twice -> scalar.

    Example:
        >>> import torch
        >>> from polyrec.modules.objectives.base import symmetric_info_nce
        >>> ids, texts = torch.eye(3), torch.eye(3)
        >>> loss = symmetric_info_nce(ids, texts, temperature=0.1)
        >>> bool(loss < symmetric_info_nce(ids, texts.flip(0), temperature=0.1))
        True
    """

    default_options: ClassVar[dict[str, Any]] = {"weight": 0.1, "temperature": 0.1}

    def __init__(self, name: str, options: Mapping[str, Any], config: PolyRecConfig) -> None:
        super().__init__(name, options, config)
        self.check_range("temperature", 0, float("inf"))
        if config.text is None or not config.item_ids:
            raise ValueError(
                f"objective {name!r} compares id embeddings with texts: it needs item_ids=True and a text encoder "
                "(PolyRecProcessor.fit(..., text={'model': ...}))"
            )

    def count(self, item_encoder: ItemEncoder, item_ids: Tensor) -> Tensor:
        """Items that are compared."""
        rows_M = described_items(item_encoder, item_ids)
        return item_encoder.counts.new_tensor(float(item_encoder.known[rows_M].sum()))

    def forward(self, reading: Reading) -> Tensor:
        """Compare ids and texts."""
        item_encoder = reading.item_encoder
        text, table = item_encoder.text, item_encoder.id_embedding
        assert text is not None
        assert table is not None  # the constructor sees to both
        rows_M = described_items(item_encoder, reading.item_ids)
        rows_M = rows_M[item_encoder.known[rows_M]]
        id_MD, text_MD = table(rows_M), text.project(text.vectors[rows_M].to(text.project.weight.dtype))
        if not len(rows_M):
            return 0.0 * (id_MD.sum() + text_MD.sum())
        return symmetric_info_nce(id_MD, text_MD, self.options["temperature"])
