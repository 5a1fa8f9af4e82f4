"""Items: an id embedding plus encoded attributes, with a path for cold-start items."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyrec.core.configuration_polyrec import PolyRecConfig
from polyrec.core.modules import KeepsPrecision, eval_view
from polyrec.data.texts import TokenTable
from polyrec.data.vectors import VectorFile
from polyrec.modules.encoders.content import content_key
from polyrec.modules.encoders.features import FeatureEncoder, module_name
from polyrec.modules.encoders.growth import add_rows, in_blocks, predict_rows
from polyrec.modules.encoders.item_table import item_table
from polyrec.modules.encoders.item_text import ItemText

PADDING_ITEM, UNKNOWN_ITEM, FIRST_ITEM = 0, 1, 2
# Up to this many items the whole table is encoded once per step, which costs less than finding the unique ones.
WHOLE_TABLE = 65_536
_PRIOR_EVENTS = 5.0  # of an item: as many are needed to place it as much by co-occurrence as by its text


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
        """Embeddings of item ids, [...] -> [..., D]."""
        return F.embedding(self._index(ids), self.vectors_MD)

    def id_rows(self, ids: Tensor) -> Tensor:
        """The rows of an id table that item ids read, [...] -> [...]."""
        assert self.id_rows_M is not None, "items were encoded without saying which rows of the id table they read"
        return self.id_rows_M[self._index(ids)]

    def _index(self, ids: Tensor) -> Tensor:
        return ids if self.rows_M is None else torch.searchsorted(self.rows_M, ids)


class ItemEncoder(KeepsPrecision):
    """Item embedding = id embedding + encoded attributes.

    The attributes of all items are buffers (saved with the weights), so a loaded model needs no table to recommend.
    Vectors of other models (kind "embedding") are held with half precision, 2 N W bytes.
    An item without training events has no id embedding of its own: it uses that of the unknown item, which is trained
    by dropping ids at random (`config.item_id_dropout`), so its attributes carry it (DropoutNet, Volkovs et al., 2017).
    Where texts stand in for ids (fusion "fallback"), `extend` gives new items id embeddings predicted from their texts.

    `known` says which items read an id embedding of their own, `counts` how often each was taken in training.
    """

    known: Tensor
    counts: Tensor

    def __init__(self, config: PolyRecConfig) -> None:
        super().__init__()
        self.num_items, self.id_dropout = config.num_items, config.item_id_dropout
        features = [f for f in config.feature_configs if f.source == "item"]
        self.id_embedding = (
            item_table(
                config.num_items, config.hidden_size, config.item_embedding_rank, config.initializer_range, PADDING_ITEM
            )
            if config.item_ids
            else None
        )
        self.trains_ids = not config.freeze_item_ids
        self.freeze()
        self.text = None if config.text is None else ItemText(config)
        self.attributes = FeatureEncoder(config, features)
        self.register_buffer("known", torch.zeros(config.num_items, dtype=torch.bool))
        self.register_buffer("counts", torch.zeros(config.num_items, dtype=torch.float32))
        # See `table`; in a dict, which views in evaluation mode (`eval_view`) share.
        self._kept: dict[str, tuple[tuple[object, ...], ItemRows]] = {}
        self.catalog = KeepsPrecision()  # a namespace for buffers: item_encoder.catalog.<feature>
        for f in self.attributes.features:
            wide = {"multi": f.width, "vector": f.size, "embedding": f.size}
            shape = (config.num_items, wide[f.kind]) if f.kind in wide else (config.num_items,)
            dtypes = {"numeric": torch.float32, "vector": torch.float32, "embedding": torch.float16}
            dtype = dtypes.get(f.kind, torch.int64)
            self.catalog.register_buffer(module_name(f.name), torch.zeros(shape, dtype=dtype))

    def freeze(self) -> None:
        """Exempt id embeddings from training if the configuration says so."""
        if self.id_embedding is not None:
            self.id_embedding.requires_grad_(self.trains_ids)

    @torch.no_grad()
    def load_catalog(
        self,
        attributes: Mapping[str, Tensor | np.ndarray | VectorFile],
        counts: Tensor,
        id_vectors: Tensor | None = None,
    ) -> Tensor:
        """Fill the attribute buffers.

        An item that had no events until now and has some in `counts` gets an id embedding of its own, which starts
        where the item was: at that of the unknown item. (An encoder without any catalog so far keeps its random
        start.) Once it has one, it keeps it.

        Args:
            attributes: {feature: [N] or [N, K]} with rows 0 (padding) and 1 (unknown item) included; vectors that lie
                in a file are read in pieces.
            counts: [N], training events of each item; an item with none uses the unknown-item embedding.
            id_vectors: [N, D], where id embeddings start; rows of zeros stay as they are. None: all stay as they are.

        Returns:
            bool [N], items that were unknown before and are known now.
        """
        for name, values in {**attributes, "training counts": counts}.items():
            if len(values) != self.num_items:
                raise ValueError(
                    f"item attribute {name!r} has {len(values)} rows but the model has num_items={self.num_items}: "
                    "build the model from this processor (processor.model_config())"
                )
        self._fill(attributes, 0)
        interacted_N = counts.to(self.known.device) > 0
        new_N = interacted_N & ~self.known & self.known.any()
        self.counts.copy_(counts)
        self.known |= interacted_N  # what `extend` has put somewhere stays there
        if self.id_embedding is not None:
            self.id_embedding.weight[new_N] = self.id_embedding.weight[UNKNOWN_ITEM].clone()
            if id_vectors is not None:
                self.id_embedding.set_rows(id_vectors.any(dim=1), id_vectors)
        return new_N

    @torch.no_grad()
    def extend(
        self,
        attributes: Mapping[str, Tensor | np.ndarray | VectorFile],
        num_items: int,
        texts: TokenTable | None = None,
    ) -> Tensor:
        """Add rows up to `num_items` for items that `attributes` [num_items] has beyond ours, which stay bit-equal.

        A new item is what its attributes and its text say of it, beside the id embedding of the unknown item, from
        which its own starts to learn once it has events. Where the text stands in for the id (fusion "fallback"), the
        item gets at once the id embedding that its text predicts: by regression from the texts of items with events to
        their id embeddings, which are trained longer and better than the projection of texts.

        Args:
            texts: of all `num_items` rows, if items are read as text.

        Returns:
            bool [num_items], items that have got an id embedding so.

        Raises:
            ValueError: the attributes of the items there are differ: they are those of another catalog.
        """
        first = self.num_items
        for f in self.attributes.features:
            held, values = self.catalog.get_buffer(module_name(f.name)), attributes[f.name]
            given = values if isinstance(values, VectorFile) else torch.as_tensor(values[:first]).to(held)
            if isinstance(given, Tensor) and not torch.allclose(given, held, rtol=0, atol=0, equal_nan=True):
                raise ValueError(
                    f"attribute {f.name!r} of the model's {first - FIRST_ITEM} items is not that of the processor's "
                    "first ones: extend the processor that was saved with the model"
                )
        new = num_items - first
        self.known = F.pad(self.known, (0, new))
        self.counts = F.pad(self.counts, (0, new))
        for f in self.attributes.features:
            name = module_name(f.name)
            held = self.catalog.get_buffer(name)
            self.catalog.register_buffer(name, torch.cat([held, held.new_zeros(new, *held.shape[1:])]))
        self._fill(attributes, first)
        if self.id_embedding is not None:
            add_rows(self.id_embedding, self.id_embedding.weight[UNKNOWN_ITEM].expand(new, -1))
        if self.text is not None and texts is not None:
            self.text.extend(texts)
        self.num_items = num_items
        put_N = torch.zeros_like(self.known)
        if self.text is not None and self.text.fallback:
            put_N[first:] = self.text.vectors[first:].any(dim=1) & (self.counts > 0).any()
            self.place(put_N)
        return put_N

    @torch.no_grad()
    def place(self, new_N: Tensor) -> None:
        """Give items, bool [N], the id embeddings that their texts predict."""
        assert self.text is not None
        assert self.id_embedding is not None
        table = self.id_embedding.weight
        table[new_N] = predict_rows(self.text.vectors, table, self.counts > 0, new_N)
        self.known |= new_N

    @torch.no_grad()
    def prepared_change(
        self, rows_K: Tensor, attributes: Mapping[str, np.ndarray], texts_KW: Tensor | None = None
    ) -> Callable[[], None]:
        """What other attributes of some items have to compute, beside readers; the call of the result puts them in.

        The encoded table (see [`table`]) is made ready, too: of all its rows only these are encoded anew.

        Args:
            rows_K: int64 [K], ascending.
            attributes: {feature: [K] or [K, V]}, of those that change.
            texts_KW: their text vectors, where texts change.
        """
        changed = eval_view(self)
        catalog, text = changed.catalog, changed.text
        catalog._buffers = dict(catalog._buffers)
        for name, values in attributes.items():
            held = self.catalog.get_buffer(module_name(name))
            catalog.register_buffer(module_name(name), held.index_copy(0, rows_K, torch.as_tensor(values).to(held)))
        if text is not None and texts_KW is not None:
            text._buffers = dict(text._buffers)
            text.vectors = text.vectors.index_copy(0, rows_K, texts_KW)
        kept, table = self._kept.get("table"), None
        if kept is not None and kept[0] == self._content():
            vectors_ND = kept[1].vectors_MD.index_copy(0, rows_K, changed.encode(rows_K))
            table = changed._content(), ItemRows(vectors_ND, id_rows_M=kept[1].id_rows_M)

        def apply() -> None:
            for name, buffer in catalog.named_buffers(recurse=False):
                self.catalog.register_buffer(name, buffer)
            if self.text is not None and text is not None and texts_KW is not None:
                self.text.vectors, self.text.tokens = text.vectors, None  # whoever needs its texts gives them anew
            if table is not None:
                self._kept["table"] = table

        return apply

    def _fill(self, attributes: Mapping[str, Tensor | np.ndarray | VectorFile], first: int) -> None:
        """Put attributes into the buffers, rows from `first` on."""
        for f in self.attributes.features:
            buffer, values = self.catalog.get_buffer(module_name(f.name)), attributes[f.name]
            if isinstance(values, VectorFile):
                for rows, piece in values.chunks(first):
                    buffer[rows] = torch.from_numpy(piece).to(buffer)
            else:
                buffer[first:] = torch.as_tensor(values[first:]).to(buffer)

    @torch.no_grad()
    def start_from_text(self, config: PolyRecConfig) -> None:
        """Let items start where their texts put them, if the configuration says so (`TextConfig.start`)."""
        if self.text is None or config.text is None or config.text.start == "random":
            return
        if config.text.start == "collaborative":
            if self.id_embedding is None or not config.item_cooccurrence:
                raise ValueError('text start "collaborative" needs item_ids and item_cooccurrence > 0')
            current = self.id_embedding.whole() * self.known.unsqueeze(1)
            predicted = self.text.start_at(current, self.counts)
            if self.text.fallback:  # ids say all of the known items
                self.id_embedding.weight[UNKNOWN_ITEM] = 0
                return
            trust = (self.counts / (self.counts + _PRIOR_EVENTS)).unsqueeze(1)
            # Without events the unknown item's vector is read; where its text puts an item is its place then.
            self.id_embedding.set_rows(torch.ones_like(self.known), trust * (current - predicted))
            return
        self.text.start(config.initializer_range * config.hidden_size**0.5)
        if self.id_embedding is not None and not config.item_cooccurrence:
            nn.init.zeros_(self.id_embedding.weight)

    @property
    def negatives_of_batch(self) -> bool:
        """Whether training may score the items of the batch only, because no others have a text vector."""
        return self.text is not None and self.text.live and not self.text.scores_catalog

    def rows(self, *ids: Tensor, negatives: Iterable[Tensor] = ()) -> ItemRows:
        """Encode the whole table if it is small, else each item that is mentioned, once.

        Args:
            ids: items of histories and candidates; a text backbone in training encodes them anew.
            negatives: sampled negatives, whose text comes from the stored table.
        """
        whole = self.num_items <= WHOLE_TABLE and not self.negatives_of_batch
        live = self.text is not None and self.text.live
        own_M = None if whole and not live else torch.cat([i.flatten() for i in ids]).unique()
        if whole:
            rows_M = torch.arange(self.num_items, device=self.known.device)
        else:
            assert own_M is not None
            rows_M = torch.cat([own_M, *(i.flatten() for i in negatives)]).unique()
        live_M = None
        if self.text is not None and live:
            assert own_M is not None
            live_M = torch.searchsorted(rows_M, self.text.live_rows(own_M[own_M >= FIRST_ITEM]))
        id_rows_M = self.id_rows(rows_M)
        return ItemRows(self.encode(rows_M, id_rows_M, live_M), None if whole else rows_M, id_rows_M)

    def table(self) -> ItemRows:
        """All items, their texts from the stored table: encoded once, they serve many batches of one model.

        Without gradients, in full precision and outside of training the table is kept, and given again as long as no
        weight and no attribute has changed, however it was changed; do not write into it.
        """
        if self.training or torch.is_grad_enabled() or torch.is_autocast_enabled(self.known.device.type):
            return self._encoded_table()
        if self.text is not None and not self.text.fresh:
            self.text.refresh()
        key, kept = self._content(), self._kept.get("table")
        if kept is None or kept[0] != key:
            kept = self._kept["table"] = key, self._encoded_table()
        return kept[1]

    def _content(self) -> tuple[object, ...]:
        """A key of all that the encoded table is made of."""
        named = [*self.named_parameters(), *self.named_buffers()]
        return content_key(tensor for name, tensor in named if not name.startswith("text.encoder."))

    def _encoded_table(self) -> ItemRows:
        rows_N = torch.arange(self.num_items, device=self.known.device)
        id_rows_N = self.id_rows(rows_N)
        return ItemRows(self.encode(rows_N, id_rows_N), id_rows_M=id_rows_N)

    def train(self, mode: bool = True) -> Self:
        """Switch between training and evaluation; training lets go of the encoded table."""
        if mode:
            self._kept.clear()
        return super().train(mode)

    def id_rows(self, rows_M: Tensor) -> Tensor:
        """The row of an id table that each item reads; in training, some read the unknown item's by chance."""
        own_id_M = self.known[rows_M]
        if self.training and self.id_dropout:
            own_id_M = own_id_M & (torch.rand(len(rows_M), device=rows_M.device) >= self.id_dropout)
        own_id_M = own_id_M | (rows_M == PADDING_ITEM)
        return torch.where(own_id_M, rows_M, UNKNOWN_ITEM)

    def encode(self, rows_M: Tensor, id_rows_M: Tensor | None = None, live_M: Tensor | None = None) -> Tensor:
        """Vectors of rows of the item table, [M] -> [M, D].

        Args:
            id_rows_M: rows of the id table, if they have been drawn already.
            live_M: positions of the items whose text is encoded anew.
        """
        if not self.training and live_M is None:
            id_rows_M = self.id_rows(rows_M) if id_rows_M is None else id_rows_M
            both_M2 = torch.stack([rows_M, id_rows_M], dim=1)
            return in_blocks(lambda block_M2: self._encode(block_M2[:, 0], block_M2[:, 1]), both_M2)
        return self._encode(rows_M, id_rows_M, live_M)

    def _encode(self, rows_M: Tensor, id_rows_M: Tensor | None = None, live_M: Tensor | None = None) -> Tensor:
        vectors_MD = torch.zeros((), device=rows_M.device)
        if self.id_embedding is not None:
            id_rows_M = self.id_rows(rows_M) if id_rows_M is None else id_rows_M
            vectors_MD = self.id_embedding(id_rows_M)
        if self.text is not None:
            text_MD = self.text(rows_M, live_M)
            if self.text.fallback and id_rows_M is not None:
                text_MD = text_MD * (id_rows_M == UNKNOWN_ITEM).unsqueeze(-1)
            vectors_MD = vectors_MD + text_MD
        attributes = {f.name: self.catalog.get_buffer(module_name(f.name))[rows_M] for f in self.attributes.features}
        encoded_MD = self.attributes(attributes)
        if encoded_MD is not None:
            vectors_MD = vectors_MD + encoded_MD * (rows_M != PADDING_ITEM).unsqueeze(-1)
        return vectors_MD
