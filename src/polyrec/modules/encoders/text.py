"""Texts become vectors, by any `AutoModel`.

Letters: M texts, S tokens, W width of the text vectors.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from polyrec.core.backbones import TextConfig
from polyrec.core.progress import progress
from polyrec.data.texts import TokenTable
from polyrec.modules.encoders.backbone import Backbone


class TextEncoder(nn.Module):
    r"""One vector per text: v = pool(backbone(tokens)), scaled to length 1 if the configuration says so.

    Texts of similar length go through the backbone together, in chunks of `chunk_tokens`. If there are several chunks
    and a gradient is wanted, each is read again in the backward pass, so that the memory is that of one chunk.

    Shapes: M texts -> [M, W]; a text without tokens gives zeros.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.backbone: Backbone[TextConfig] = Backbone(config)
        self.pooling, self.normalize = config.pooling, config.normalize
        self.chunk_tokens = config.chunk_tokens

    @property
    def width(self) -> int:
        """W."""
        return self.backbone.width

    @property
    def tuned(self) -> bool:
        """Whether anything of the backbone is trained."""
        return self.backbone.config.tuning != "frozen"

    def forward(self, texts: TokenTable, rows: np.ndarray | None = None, device: torch.device | None = None) -> Tensor:
        """Encode some texts (default: all), in the order of `rows`."""
        rows = np.arange(len(texts)) if rows is None else rows
        lengths = texts.lengths[rows]
        order = np.argsort(-lengths, kind="stable")
        chunks = list(self._chunks(lengths[order]))
        trains = self.tuned and torch.is_grad_enabled()
        found = []
        for begin, end in progress(chunks, "Texts", unit="chunk") if len(chunks) > 1 else chunks:
            tokens_MS, real_MS = texts.padded(rows[order[begin:end]])
            inputs = torch.from_numpy(tokens_MS).to(device), torch.from_numpy(real_MS).to(device)
            if trains and len(chunks) > 1:
                found.append(checkpoint(self._encode, *inputs, use_reentrant=False))
            else:
                found.append(self._encode(*inputs))
        vectors_MW = torch.cat(found) if found else torch.zeros(0, self.width, device=device)
        back = torch.from_numpy(np.argsort(order, kind="stable")).to(vectors_MW.device)
        return vectors_MW.index_select(0, back)

    def _chunks(self, lengths: np.ndarray) -> Iterator[tuple[int, int]]:
        """Where chunks begin and end, of texts sorted by length, the longest first."""
        begin = 0
        while begin < len(lengths):
            end = begin + max(self.chunk_tokens // max(int(lengths[begin]), 1), 1)
            yield begin, min(end, len(lengths))
            begin = end

    def _encode(self, tokens_MS: Tensor, real_MS: Tensor) -> Tensor:
        """Pooled vectors of one chunk, [M, S] -> [M, W]."""
        model = self.backbone.transformer(tokens_MS.device)
        empty_M = ~real_MS.any(dim=1)
        mask_MS = real_MS.clone()
        mask_MS[:, 0] |= empty_M  # attention over nothing would be NaN
        device = model.device  # that of a device_map may be another one
        read = model(input_ids=tokens_MS.to(device), attention_mask=mask_MS.long().to(device)).last_hidden_state
        hidden_MSW = read.to(tokens_MS.device).float()
        vectors_MW = pool(hidden_MSW, mask_MS, self.pooling)
        if self.normalize:
            vectors_MW = F.normalize(vectors_MW, dim=-1)
        return vectors_MW.masked_fill(empty_M.unsqueeze(-1), 0)


def pool(hidden_MSW: Tensor, mask_MS: Tensor, how: str | None) -> Tensor:
    """One vector per text of its tokens' vectors, [M, S, W] -> [M, W]; padding (on the right) does not count."""
    mask_MS1 = mask_MS.unsqueeze(-1)
    if how == "cls":
        return hidden_MSW[:, 0]
    if how == "last":
        last_M = mask_MS.sum(1) - 1
        return hidden_MSW[torch.arange(len(hidden_MSW), device=hidden_MSW.device), last_M]
    if how == "max":
        return hidden_MSW.masked_fill(~mask_MS1, float("-inf")).amax(1)
    return (hidden_MSW * mask_MS1).sum(1) / mask_MS1.sum(1)
