"""The text of items: a table of vectors, of which a tuned backbone encodes some anew in each batch.

Letters: N items, M some of them, W width of text vectors, D width of items.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyrec.backbones import TextConfig
from polyrec.configuration_polyrec import PolyRecConfig
from polyrec.data.texts import TokenTable
from polyrec.encoders.text import TextEncoder
from polyrec.encoders.vector_store import VectorStore, store_folder

CATALOG_NEGATIVES = 20_000  # up to this many items, training scores the whole catalog


class ItemText(nn.Module):
    """Text vectors of items, projected to the width of item vectors.

    `vectors` [N, W] is the table: what a frozen backbone says once (and keeps on disk, see [`VectorStore`]), or what a
    tuned one said when it last read the item. In training a tuned backbone reads the items of the batch with gradient
    and puts what it said into the table; before evaluation and saving, the whole table is made anew. A saved model has
    the table, so that it answers without reading texts.
    """

    vectors: Tensor

    def __init__(self, config: PolyRecConfig) -> None:
        super().__init__()
        text = config.text_encoder
        assert text is not None
        self.encoder = TextEncoder(text)
        self.live_items, self.refresh_every = text.live_items, text.refresh_every
        catalog = text.catalog_negatives
        self.scores_catalog = config.num_items <= CATALOG_NEGATIVES if catalog is None else catalog
        self.register_buffer("vectors", torch.zeros(config.num_items, self.encoder.width))
        self.project = nn.Linear(self.encoder.width, config.hidden_size, bias=False)
        self.tokens: TokenTable | None = None  # of all N rows; a loaded model has none until the processor gives them
        self.fresh = True  # whether the table is what the backbone would say now
        self._steps = 0

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

    def resize(self, rows: int) -> None:
        """Make place for `rows` items; new ones have no vector until `load` gives their texts."""
        self.vectors = F.pad(self.vectors, (0, 0, 0, rows - len(self.vectors)))
        self.tokens = None

    @torch.no_grad()
    def refresh(self) -> None:
        """Encode all items anew."""
        if self.tokens is None:
            raise ValueError(
                "the texts of the items are needed and a saved model does not have them: call "
                "model.load_texts(processor) first (the trainer does)"
            )
        training = self.encoder.training
        self.encoder.eval()
        self.vectors.copy_(self._frozen() if not self.encoder.tuned else self._encode(None))
        self.encoder.train(training)
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
        live_MW = self._encode(live_rows.cpu().numpy())
        if len(live_M) == len(rows_M):
            vectors_MW = live_MW
        else:
            vectors_MW = self.vectors[rows_M].index_copy(0, live_M, live_MW.to(self.vectors.dtype))
        self.vectors[live_rows] = live_MW.detach().to(self.vectors.dtype)
        return self.project(vectors_MW)

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

    def _encode(self, rows: np.ndarray | None) -> Tensor:
        if self.tokens is None:
            raise ValueError("the model has no texts of its items: call model.load_texts(processor) before training")
        return self.encoder(self.tokens, rows, self.vectors.device)

    def _frozen(self) -> Tensor:
        """The whole table of a frozen backbone, from disk as far as it has been made before."""
        assert self.tokens is not None
        tokens, backbone = self.tokens, self.encoder.backbone
        backbone.transformer()  # so that its fingerprint is known
        config: TextConfig = backbone.config
        name = f"text-{config.fingerprint}-{config.pooling}-{config.normalize}.safetensors"
        contents = [tokens.flat[a:b].tobytes() for a, b in zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True)]

        def encode(rows: np.ndarray) -> np.ndarray:
            return self.encoder(tokens, rows, self.vectors.device).cpu().numpy()

        found = VectorStore(store_folder() / name).vectors(contents, encode)
        return torch.from_numpy(found).to(self.vectors.device)
