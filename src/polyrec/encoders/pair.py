"""(state, candidate) pairs: what the pair tasks read."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from polyrec.configuration_polyrec import PolyRecConfig
from polyrec.encoders.features import FeatureEncoder
from polyrec.encoders.history import CandidateAttention


class PairEncoder(nn.Module):
    r"""One vector per (state, candidate): h = dropout(gelu(W [s; c; s * c; a] + features)).

    s is the person's state, c the candidate's item vector, a its attention over the visible events, and features the
    encoded context and running statistics of the candidate.

    Shapes: states [B, C, D], candidates [B, C, D], inputs [B, L + 1, D], positions [B, C] -> [B, C, D].
    """

    def __init__(self, config: PolyRecConfig) -> None:
        super().__init__()
        self.attention = CandidateAttention(config) if config.candidate_attention_heads else None
        parts = 4 if self.attention is not None else 3
        self.features = FeatureEncoder(config, [f for f in config.feature_configs if f.source == "candidate"])
        self.mix = nn.Linear(parts * config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        state_BCD: Tensor,
        candidate_BCD: Tensor,
        inputs_BLD: Tensor,
        positions_BC: Tensor,
        candidate_features: dict[str, Tensor],
    ) -> Tensor:
        """Encode pairs, shapes as in the class description."""
        parts = [state_BCD, candidate_BCD, state_BCD * candidate_BCD]
        if self.attention is not None:
            parts.append(self.attention(candidate_BCD, inputs_BLD, positions_BC))
        mixed_BCD = self.mix(torch.cat(parts, dim=-1))
        encoded_BCD = self.features(candidate_features)
        if encoded_BCD is not None:
            mixed_BCD = mixed_BCD + encoded_BCD
        return self.dropout(nn.functional.gelu(mixed_BCD))


class LinearSkip(nn.Module):
    r"""A linear path from the candidate's numbers (running statistics) to the logits of each pair task, z += w_task . x.

    Running baselines are nearly the answer by themselves; the skip lets a tower learn only what they miss (the "wide"
    part of Cheng et al., 2016). Missing numbers count as 0, the middle of the normal scale.

    Shapes: {name: [B, C] or [B, C, F]} -> {task: [B, C]}; empty without numeric candidate features.
    """

    def __init__(self, config: PolyRecConfig, task_names: list[str]) -> None:
        super().__init__()
        self.features = [f for f in config.feature_configs if f.source == "candidate" and f.kind in ("numeric", "vector")]
        self.task_names = task_names
        size = sum(f.size for f in self.features)
        self.linear = nn.Linear(size, len(task_names), bias=False) if size else None

    def forward(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Contribution to the logits, shapes as in the class description."""
        if self.linear is None:
            return {}
        columns = [values[f.name].unsqueeze(-1) if f.kind == "numeric" else values[f.name] for f in self.features]
        skipped = self.linear(torch.nan_to_num(torch.cat(columns, dim=-1)))
        return dict(zip(self.task_names, skipped.unbind(-1), strict=True))
