"""Items: an id vector plus encoded attributes, with a path for items nobody has met."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyrec.configuration_polyrec import PolyRecConfig
from polyrec.encoders.features import FeatureEncoder, module_name

PADDING_ITEM, UNKNOWN_ITEM, FIRST_ITEM = 0, 1, 2
# Up to this many items the whole table is encoded once per step, which costs less than finding the unique ones.
WHOLE_TABLE = 65_536


@dataclass
class ItemRows:
    """Vectors of some rows of the item table, to be looked up by item id.

    Args:
        vectors_MD: one vector per row.
        rows_M: which items they are, ascending; None = all.
        id_rows_M: the row of an id table that each of them reads: its own, or that of the unknown item.
    """

    vectors_MD: Tensor
    rows_M: Tensor | None = None
    id_rows_M: Tensor | None = None

    def lookup(self, ids: Tensor) -> Tensor:
        """Vectors of item ids, [...] -> [..., D]."""
        return F.embedding(self._index(ids), self.vectors_MD)

    def id_rows(self, ids: Tensor) -> Tensor:
        """The rows of an id table that item ids read, [...] -> [...]."""
        assert self.id_rows_M is not None, "items were encoded without saying which rows of the id table they read"
        return self.id_rows_M[self._index(ids)]

    def _index(self, ids: Tensor) -> Tensor:
        return ids if self.rows_M is None else torch.searchsorted(self.rows_M, ids)


class ItemEncoder(nn.Module):
    """Item vector = id vector + encoded attributes.

    The attributes of all items are buffers (saved with the weights), so a loaded model needs no table to recommend.
    An item without training events has no id vector of its own: it uses that of the unknown item, which is trained by
    dropping ids at random (`config.item_id_dropout`), so its attributes carry it (DropoutNet, Volkovs et al., 2017).
    """

    known: Tensor
    counts: Tensor

    def __init__(self, config: PolyRecConfig) -> None:
        super().__init__()
        self.num_items, self.id_dropout = config.num_items, config.item_id_dropout
        features = [f for f in config.feature_configs if f.source == "item"]
        self.id_embedding = nn.Embedding(config.num_items, config.hidden_size, padding_idx=PADDING_ITEM)
        self.trains_ids = not config.freeze_item_ids
        self.freeze()
        self.attributes = FeatureEncoder(config, features)
        self.register_buffer("known", torch.zeros(config.num_items, dtype=torch.bool))
        self.register_buffer("counts", torch.zeros(config.num_items))
        self.catalog = nn.Module()  # a namespace for buffers: item_encoder.catalog.<feature>
        for f in self.attributes.features:
            shape = (config.num_items,) if f.kind in ("categorical", "numeric") else (config.num_items, f.width)
            dtype = torch.float32 if f.kind in ("numeric", "vector") else torch.int64
            self.catalog.register_buffer(module_name(f.name), torch.zeros(shape, dtype=dtype))

    def freeze(self) -> None:
        """Exempt id vectors from training if the configuration says so."""
        self.id_embedding.requires_grad_(self.trains_ids)

    @torch.no_grad()
    def load_catalog(self, attributes: dict[str, Tensor], counts: Tensor, id_vectors: Tensor | None = None) -> None:
        """Fill the attribute buffers.

        Args:
            attributes: {feature: [N] or [N, K]} with rows 0 (padding) and 1 (unknown item) included.
            counts: [N], training events of each item; an item with none uses the unknown-item vector.
            id_vectors: [N, D], where id vectors start; rows of zeros stay as they are. None: all stay as they are.
        """
        for name, values in {**attributes, "training counts": counts}.items():
            if len(values) != self.num_items:
                raise ValueError(
                    f"item attribute {name!r} has {len(values)} rows but the model has num_items={self.num_items}: "
                    "build the model from this processor (processor.model_config())"
                )
        for f in self.attributes.features:
            self.catalog.get_buffer(module_name(f.name)).copy_(attributes[f.name])
        self.counts.copy_(counts)
        self.known.copy_(counts > 0)
        if id_vectors is not None:
            placed = id_vectors.any(dim=1)
            self.id_embedding.weight[placed] = id_vectors[placed].to(self.id_embedding.weight)

    def rows(self, *ids: Tensor) -> ItemRows:
        """Encode the whole table if it is small, else each item that `ids` mention, once."""
        whole = self.num_items <= WHOLE_TABLE
        if whole:
            rows_M = torch.arange(self.num_items, device=self.known.device)
        else:
            rows_M = torch.cat([i.flatten() for i in ids]).unique()
        id_rows_M = self.id_rows(rows_M)
        return ItemRows(self.encode(rows_M, id_rows_M), None if whole else rows_M, id_rows_M)

    def id_rows(self, rows_M: Tensor) -> Tensor:
        """The row of an id table that each item reads; in training, some read the unknown item's by chance."""
        own_id_M = self.known[rows_M]
        if self.training and self.id_dropout:
            own_id_M = own_id_M & (torch.rand(len(rows_M), device=rows_M.device) >= self.id_dropout)
        own_id_M = own_id_M | (rows_M == PADDING_ITEM)
        return torch.where(own_id_M, rows_M, UNKNOWN_ITEM)

    def encode(self, rows_M: Tensor, id_rows_M: Tensor | None = None) -> Tensor:
        """Vectors of rows of the item table, [M] -> [M, D]; `id_rows_M` if it has been drawn already."""
        vectors_MD = self.id_embedding(self.id_rows(rows_M) if id_rows_M is None else id_rows_M)
        attributes = {f.name: self.catalog.get_buffer(module_name(f.name))[rows_M] for f in self.attributes.features}
        encoded_MD = self.attributes(attributes)
        if encoded_MD is not None:
            vectors_MD = vectors_MD + encoded_MD * (rows_M != PADDING_ITEM).unsqueeze(-1)
        return vectors_MD
