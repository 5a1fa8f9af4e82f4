"""A user's events, read once by a causal transformer, and what a candidate sees of them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import AutoModel
from transformers import initialization as init

from polyrec.core.backbones import BackboneConfig
from polyrec.core.configuration_polyrec import PolyRecConfig
from polyrec.core.schema import RESIDUALS, STATISTICS
from polyrec.modules.encoders.backbone import Backbone
from polyrec.modules.encoders.features import FeatureEncoder
from polyrec.modules.encoders.item import ItemRows

_MASKS = 1 << 23  # (candidate, event) pairs that are attended at once


class HistoryEncoder(nn.Module):
    """Any causal backbone of transformers over [start, event 1, ..., event L], fed through `inputs_embeds`.

    Without layers (`num_hidden_layers=0`) a state is the mean of the inputs up to it.

    The start input is made of the user's attributes, so state 0 stands for a user without events.

    Letters: B users, L events, D width.
    """

    def __init__(self, config: PolyRecConfig) -> None:
        super().__init__()
        features = config.feature_configs
        # Of the running statistics an event keeps the residuals alone: all of them slowed training and overfitted.
        past = [f for f in features if f.source in ("event", "candidate") and f.name != STATISTICS]
        self.events = FeatureEncoder(config, past)
        self.person = FeatureEncoder(config, [f for f in features if f.source == "user"])
        self.start = nn.Parameter(torch.empty(config.hidden_size))
        self.norm = nn.LayerNorm(config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.backbone: nn.Module | None = None
        pretrained = config.history_backbone
        if pretrained is not None:
            self.backbone = PretrainedHistory(pretrained, config.hidden_size)
        elif config.num_hidden_layers > 0:
            self.backbone = AutoModel.from_config(config.history_config)
            # The backbone's own token table is never read; kept, it would be a parameter without gradient.
            self.backbone.set_input_embeddings(nn.Identity())

    def forward(
        self, items: ItemRows, item_ids: Tensor, event_features: dict[str, Tensor], user_features: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Read histories.

        Args:
            items: embeddings of the items.
            item_ids: [B, L], 0 = padding on the right, which no real position ever attends to.

        Returns:
            inputs [B, L + 1, D] and states [B, L + 1, D]; index p has seen the first p events.
        """
        inputs_BLD = self.embed(items, item_ids, event_features, user_features)
        return inputs_BLD, self.read(inputs_BLD)

    def embed(
        self, items: ItemRows, item_ids: Tensor, event_features: dict[str, Tensor], user_features: dict[str, Tensor]
    ) -> Tensor:
        """The start and the events as the backbone reads them, [B, L + 1, D]."""
        event_BLD = items.lookup(item_ids)
        encoded_BLD = self.events(event_features)
        if encoded_BLD is not None:
            event_BLD = event_BLD + encoded_BLD
        start_BD = self.start.expand(item_ids.shape[0], -1)
        user_BD = self.person(user_features)
        if user_BD is not None:
            start_BD = start_BD + user_BD
        return self.dropout(self.norm(torch.cat([start_BD.unsqueeze(1), event_BLD], dim=1)))

    def read(self, inputs_BLD: Tensor) -> Tensor:
        """States of embedded histories, [B, L + 1, D]."""
        if self.backbone is None:
            count_L1 = torch.arange(1, inputs_BLD.shape[1] + 1, device=inputs_BLD.device).unsqueeze(1)
            return inputs_BLD.cumsum(1) / count_L1
        if isinstance(self.backbone, PretrainedHistory):
            return self.backbone(inputs_BLD)
        return self.backbone(inputs_embeds=inputs_BLD, use_cache=False).last_hidden_state


def gather_states(states_BLD: Tensor, positions_BC: Tensor) -> Tensor:
    """The state at each position, [B, L + 1, D] and [B, C] -> [B, C, D]."""
    batch, length, width = states_BLD.shape
    rows_B1 = torch.arange(batch, device=positions_BC.device).unsqueeze(1) * length
    # index_select on the flat rows: on CPU its backward is far faster than that of fancy indexing.
    flat = states_BLD.reshape(-1, width).index_select(0, (rows_B1 + positions_BC).flatten())
    return flat.view(batch, -1, width)


class PretrainedHistory(nn.Module):
    r"""A pretrained language model reads a history: s = W_out model(W_in x) + x.

    Events enter as `inputs_embeds`, so the words' own table is left out. W_out starts at 0: states begin as the inputs
    and take from the language model what helps. An encoder that reads both ways (BERT) gets a causal mask if its
    architecture has one (`is_decoder`); whether states really do not see later events is tried out once, at
    construction.

    Args:
        width: D of events and states.

    Shapes: [B, L, D] -> [B, L, D].
    """

    def __init__(self, config: BackboneConfig, width: int) -> None:
        super().__init__()
        if config.tuning == "frozen":
            raise ValueError(
                "history_backbone: a frozen one would still have to pass gradients on to the events; use tuning 'lora' "
                "(the default), 'top:N' or 'full'"
            )
        if "is_decoder" in config.architecture:
            config = replace(config, architecture={**config.architecture, "is_decoder": True, "use_cache": False})
        self.backbone: Backbone[BackboneConfig] = Backbone(config, token_table=False)
        inner = self.backbone.width
        self.enter, self.leave = nn.Linear(width, inner), nn.Linear(inner, width)
        if torch.get_default_device().type != "meta":
            self._refuse_foresight()

    def forward(self, inputs_BLD: Tensor) -> Tensor:
        """Read, shapes as in the class description."""
        model = self.backbone.transformer(inputs_BLD.device)
        read = model(inputs_embeds=self.enter(inputs_BLD), use_cache=False).last_hidden_state
        return inputs_BLD + self.leave(read)

    def initialise(self) -> None:
        """Start with states that are the inputs."""
        init.zeros_(self.leave.weight)
        init.zeros_(self.leave.bias)

    @torch.no_grad()
    def _refuse_foresight(self) -> None:
        model = self.backbone.transformer()
        training = model.training
        model.eval()
        x_1LW = torch.randn(1, 4, self.backbone.width, generator=torch.Generator().manual_seed(0))
        other_1LW = torch.cat([x_1LW[:, :3], -x_1LW[:, 3:]], dim=1)
        first, second = (model(inputs_embeds=x, use_cache=False).last_hidden_state[:, :3] for x in (x_1LW, other_1LW))
        model.train(training)
        if not torch.allclose(first, second, atol=1e-4):
            raise ValueError(
                f"{self.backbone.config.model!r} reads histories in both directions and has no causal mask, so that "
                "states would see the future: choose a decoder (Llama, Qwen, GPT-2) or an encoder with `is_decoder` "
                "(BERT, RoBERTa)"
            )


class CandidateAttention(nn.Module):
    r"""Attention of each candidate over the events visible to it (in the spirit of DIN, Zhou et al., 2018).

    q = W_q [candidate], k = W_k [input_j], v = W_v [input_j]; candidate c attends to j = 0 (the start) .. position_c.
    Part of each head's value is not trained but the event's own *residuals* (labels minus running baselines, in
    standard deviations): what the head returns of it is a neighbourhood prediction, the mean of what the user's events
    said, weighted by their similarity to the candidate and shrunk by the start, whose residuals are 0 (item-item
    neighbourhood models: Koren, 2008).

    Shapes: candidates [B, C, D], inputs [B, L + 1, D], positions [B, C], residuals [B, L, T] or None
    -> attended [B, C, D] and evidence [B, C, heads * T] (T = 0 without residuals).
    """

    def __init__(self, config: PolyRecConfig) -> None:
        super().__init__()
        self.heads = config.candidate_attention_heads
        self.targets = sum(f.size for f in config.feature_configs if (f.source, f.name) == ("event", RESIDUALS))
        self.head_size = config.hidden_size // self.heads
        # Residuals are part of a head's value where they leave space for what is trained, and stand beside it
        # elsewhere.
        self.own_size = self.head_size - self.targets if self.targets < self.head_size else self.head_size
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, self.heads * self.own_size)

    def forward(
        self, candidate_BCD: Tensor, inputs_BLD: Tensor, positions_BC: Tensor, residuals_BLT: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Attend, shapes as in the class description."""
        key_BHLV, value_BHLV = self._keys_and_values(inputs_BLD, residuals_BLT)
        whole = candidate_BCD, key_BHLV, value_BHLV, positions_BC
        if torch.compiler.is_exporting():  # graphs are of any number of candidates
            return self._attend(*whole)
        number = candidate_BCD.shape[1]
        size = max(_MASKS // (len(inputs_BLD) * inputs_BLD.shape[1]), 1)
        if number <= size:
            return self._attend(*whole)
        found = []
        for begin in range(0, number, size):
            block = slice(begin, begin + size)
            read = candidate_BCD[:, block], key_BHLV, value_BHLV, positions_BC[:, block]
            # Kept for the gradient, masks [C, L] would grow with the square of a history's length.
            found.append(checkpoint(self._attend, *read, use_reentrant=False, preserve_rng_state=False))
        attended, evidence = zip(*found, strict=True)
        return torch.cat(attended, dim=1), torch.cat(evidence, dim=1)

    def _keys_and_values(self, inputs_BLD: Tensor, residuals_BLT: Tensor | None) -> tuple[Tensor, Tensor]:
        value_BHLV = self._heads(self.value(inputs_BLD))
        if self.targets:
            if residuals_BLT is None:
                raise KeyError(f"event feature {RESIDUALS!r} is missing from the batch")
            known_BLT = F.pad(torch.nan_to_num(residuals_BLT).to(value_BHLV.dtype), (0, 0, 1, 0))  # the start says 0
            value_BHLV = torch.cat([value_BHLV, known_BLT.unsqueeze(1).expand(-1, self.heads, -1, -1)], dim=-1)
        return self._heads(self.key(inputs_BLD)), value_BHLV

    def _attend(
        self, candidate_BCD: Tensor, key_BHLV: Tensor, value_BHLV: Tensor, positions_BC: Tensor
    ) -> tuple[Tensor, Tensor]:
        batch, candidates, width = candidate_BCD.shape
        index_L = torch.arange(key_BHLV.shape[2], device=positions_BC.device)
        visible_BCL = index_L <= positions_BC.unsqueeze(-1)
        attended_BHCV = F.scaled_dot_product_attention(
            self._heads(self.query(candidate_BCD)), key_BHLV, value_BHLV, attn_mask=visible_BCL.unsqueeze(1)
        )
        evidence_BCE = attended_BHCV[..., self.own_size :].transpose(1, 2).flatten(2)
        return attended_BHCV[..., : self.head_size].transpose(1, 2).reshape(batch, candidates, width), evidence_BCE

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)
