"""The text of items: a table of vectors, of which a tuned backbone encodes some anew in each batch.

Letters: N items, M some of them, W width of text vectors, D width of items.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyrec.core.backbones import TextConfig
from polyrec.core.cache import cache_root
from polyrec.core.configuration_polyrec import PolyRecConfig
from polyrec.core.modules import eval_view, in_double
from polyrec.data.texts import TokenTable
from polyrec.modules.encoders.text import TextEncoder
from polyrec.modules.encoders.vector_store import VectorStore

_RIDGE = 30.0  # of the regression from texts of length 1 to places (10 and 100 place unseen items about as well)
_START_SAMPLE = 4096  # texts that tell the principal directions
CATALOG_NEGATIVES = 20_000  # up to this many items, training scores the whole catalog


class ItemText(nn.Module):
    """Text embeddings of items, projected to the width of item embeddings.

    `vectors` [N, W] is the table: what a frozen backbone says once (and keeps on disk, see [`VectorStore`]), or what a
    tuned one said when it last read the item. In training a tuned backbone reads the items of the batch with gradient
    and puts what it said into the table; before evaluation and saving, the whole table is made anew. A saved model has
    the table, so that it works without reading texts.
    """

    vectors: Tensor

    def __init__(self, config: PolyRecConfig) -> None:
        super().__init__()
        text = config.text
        assert text is not None
        self.encoder = TextEncoder(text)
        self.fallback = text.fusion == "fallback" and config.item_ids
        self.live_items, self.refresh_every = text.live_items, text.refresh_every
        self.catalog_negatives = text.catalog_negatives
        self.register_buffer("vectors", torch.zeros(config.num_items, self.encoder.width))
        self.project = nn.Linear(self.encoder.width, config.hidden_size, bias=False)
        self.tokens: TokenTable | None = None  # of all N rows; a loaded model has none until the processor gives them
        self._table = {"fresh": True}  # a dict, which views in evaluation mode share
        self._steps = 0

    @property
    def fresh(self) -> bool:
        """Whether the table is what the backbone would say now."""
        return self._table["fresh"]

    @fresh.setter
    def fresh(self, value: bool) -> None:
        self._table["fresh"] = value

    @property
    def scores_catalog(self) -> bool:
        """Whether training scores all items, also those whose vector a tuned backbone has not made anew for a while."""
        if self.catalog_negatives is None:
            return len(self.vectors) <= CATALOG_NEGATIVES
        return self.catalog_negatives

    @property
    def live(self) -> bool:
        """Whether a batch's items are encoded anew: in training of a tuned backbone."""
        return self.training and self.encoder.tuned

    def load(self, tokens: TokenTable) -> None:
        """Take the texts of all rows, padding and the unknown item (without text) first, and make the table."""
        if len(tokens) != len(self.vectors):
            raise ValueError(
                f"texts of {len(tokens)} rows for a model with {len(self.vectors)}: build it from this processor"
            )
        self.tokens = tokens
        self.fresh = False
        if self.scores_catalog or not self.encoder.tuned:
            self.refresh()

    @torch.no_grad()
    def start(self, length: float) -> None:
        """Let the projection start as the principal directions of the items' texts, so that distances stay.

        Without centring: what all texts have in common is part of their cosines.

        Args:
            length: of a projected vector, if that of the text is 1 and all of it is kept.
        """
        assert self.tokens is not None
        held = np.flatnonzero(self.tokens.lengths)
        sample = np.random.default_rng(0).choice(held, min(len(held), _START_SAMPLE), replace=False)
        vectors_MW = self.vectors[torch.from_numpy(sample)] if self.fresh else self._said(sample)
        directions = torch.linalg.svd(in_double(vectors_MW), full_matrices=False).Vh[: self.project.out_features]
        self.project.weight.zero_()  # a width of items beyond that of texts stays empty
        self.project.weight[: len(directions)] = length * directions.to(self.project.weight)

    @torch.no_grad()
    def start_at(self, target_ND: Tensor, weight_N: Tensor) -> Tensor:
        """Let the projection start as the ridge regression from texts to given places, [N, D]; returns what it says.

        Args:
            weight_N: events of each item, whose square root says how much its place counts; 0 = its place is not known.
        """
        assert self.tokens is not None
        if not self.fresh:
            self.refresh()
        weight_N1 = weight_N.sqrt().unsqueeze(1)
        gram_WW = (weight_N1 * self.vectors).T @ self.vectors
        gram_WW.diagonal().add_(_RIDGE)
        self.project.weight.copy_(torch.linalg.solve(gram_WW, self.vectors.T @ (weight_N1 * target_ND)).T)
        return self.project(self.vectors)

    @torch.no_grad()
    def extend(self, tokens: TokenTable) -> None:
        """Add vectors of the texts that `tokens` has beyond the rows there are; these stay bit-equal if fresh."""
        before = len(self.vectors)
        self.vectors = F.pad(self.vectors, (0, 0, 0, len(tokens) - before))
        self.tokens = tokens
        if not self.fresh:
            self.refresh()
            return
        self.vectors[before:] = self._said(np.arange(before, len(tokens))).to(self.vectors)

    @torch.no_grad()
    def read(self, tokens: TokenTable) -> Tensor:
        """Vectors of some texts, in evaluation mode, [M, W]."""
        return eval_view(self.encoder)(tokens, None, self.vectors.device).to(self.vectors)

    @torch.no_grad()
    def refresh(self) -> None:
        """Encode all items anew."""
        if self.tokens is None:
            raise ValueError(
                "the texts of the items are needed and a saved model does not have them: call "
                "model.load_texts(processor) first (the trainer does)"
            )
        self.vectors.copy_(self._said(None) if self.encoder.tuned else self._frozen())
        self.fresh = True

    def forward(self, rows_M: Tensor, live_M: Tensor | None = None) -> Tensor:
        """Projected text vectors of rows of the item table, [M] -> [M, D].

        Args:
            live_M: positions in `rows_M` of the items to encode anew; None: all come from the table.
        """
        if live_M is None:
            if not self.training and not self.fresh:
                self.refresh()
            return self.project(self.vectors[rows_M])
        self.fresh = False
        live_rows = rows_M[live_M]
        live_MW = self._encode(live_rows.cpu().numpy()).to(self.vectors.dtype)
        vectors_MW = live_MW if len(live_M) == len(rows_M) else self.vectors[rows_M].index_copy(0, live_M, live_MW)
        self._store(live_rows, live_MW.detach())
        return self.project(vectors_MW)

    @torch.no_grad()
    def _store(self, rows_M: Tensor, vectors_MW: Tensor) -> None:
        """Put what the backbone said into the table, on all ranks what each of them read; the last rank's word counts.

        DDP could only give all ranks the whole table of the first one, in every step.
        """
        for rows, vectors in of_all_ranks(rows_M, vectors_MW):
            self.vectors[rows] = vectors

    def live_rows(self, own_M: Tensor) -> Tensor:
        """Which of a batch's items are encoded anew, ascending; some of them by chance if there are too many."""
        if self.refresh_every:
            self._steps += 1
            if self._steps % self.refresh_every == 0:
                self.refresh()
        if not self.live_items or len(own_M) <= self.live_items:
            return own_M
        drawn = torch.randperm(len(own_M), device=own_M.device)[: self.live_items]
        return own_M[drawn.sort().values]

    def _encode(self, rows: np.ndarray | None, encoder: TextEncoder | None = None) -> Tensor:
        if self.tokens is None:
            raise ValueError("the model has no texts of its items: call model.load_texts(processor) before training")
        return (encoder or self.encoder)(self.tokens, rows, self.vectors.device)

    @torch.no_grad()
    def _said(self, rows: np.ndarray | None) -> Tensor:
        """Text vectors in evaluation mode, without dropout."""
        return self._encode(rows, eval_view(self.encoder))

    @torch.no_grad()
    def _frozen(self) -> Tensor:
        """The whole table of a frozen backbone, from disk as far as it has been made before."""
        assert self.tokens is not None
        tokens, backbone = self.tokens, self.encoder.backbone
        backbone.transformer()  # so that its fingerprint is known
        config: TextConfig = backbone.config
        name = f"text-{config.fingerprint}-{config.pooling}-{config.normalize}.safetensors"

        def encode(rows: np.ndarray) -> np.ndarray:
            return self.encoder(tokens, rows, self.vectors.device).cpu().numpy()

        found = VectorStore(cache_root() / name).vectors(tokens.contents(), encode)
        return torch.from_numpy(found).to(self.vectors.device)


def of_all_ranks(rows_M: Tensor, vectors_MW: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of a table and their vectors as each rank has them, rank by rank; every rank must call it at once.

    Args:
        rows_M: int64 [M], M may differ from rank to rank.
    """
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    ranks = torch.distributed.get_world_size() if several else 1
    if ranks == 1:
        yield rows_M, vectors_MW
        return
    sizes = [torch.zeros(1, dtype=torch.int64, device=rows_M.device) for _ in range(ranks)]
    torch.distributed.all_gather(sizes, torch.tensor([len(rows_M)], device=rows_M.device))
    counts = [int(size) for size in sizes]
    missing = max(counts) - len(rows_M)
    rows, vectors = F.pad(rows_M, (0, missing)), F.pad(vectors_MW, (0, 0, 0, missing))
    all_rows, all_vectors = ([torch.empty_like(x) for _ in range(ranks)] for x in (rows, vectors))
    torch.distributed.all_gather(all_rows, rows.contiguous())
    torch.distributed.all_gather(all_vectors, vectors.contiguous())
    for count, own_rows, own_vectors in zip(counts, all_rows, all_vectors, strict=True):
        yield own_rows[:count], own_vectors[:count]
