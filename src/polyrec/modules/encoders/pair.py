"""(state, candidate) pairs: what the pair tasks read."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import initialization as init

from polyrec.core.configuration_multitask import MultiTaskConfig
from polyrec.core.configuration_polyrec import PolyRecConfig
from polyrec.modules.encoders.features import FeatureEncoder
from polyrec.modules.encoders.history import CandidateAttention
from polyrec.modules.encoders.shared import PackedPairs


class PairEncoder(nn.Module):
    r"""One vector per (state, candidate): h = dropout(gelu(W [s; c; s * c; a; q; q * c] + features)).

    s is the user's state, c the candidate's item embedding, a its attention over the visible events, q what was typed
    (with `config.queries`; 0 where nobody searched), and features the encoded context and running statistics of the
    candidate.

    Shapes: states [B, C, D], candidates [B, C, D], inputs [B, L + 1, D], positions [B, C] -> [1, M, P] for the M pairs
    that are no padding, P the pair width.
    """

    def __init__(self, config: PolyRecConfig) -> None:
        super().__init__()
        self.attention = CandidateAttention(config) if config.candidate_attention_heads else None
        parts = (4 if self.attention is not None else 3) + 2 * config.queries
        self.evidence = 0 if self.attention is None else self.attention.heads * self.attention.targets
        features = [f for f in config.feature_configs if f.source == "candidate"]
        self.features = FeatureEncoder(config, features, config.pair_width)
        self.mix = nn.Linear(parts * config.hidden_size, config.pair_width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        state_BCD: Tensor,
        candidate_BCD: Tensor,
        inputs_BLD: Tensor,
        positions_BC: Tensor,
        pairs: PackedPairs,
        candidate_features: dict[str, Tensor],
        residuals_BLT: Tensor | None = None,
        query_BCD: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Encode pairs; also returns the attention's evidence [1, M, E] (None without attention).

        Args:
            candidate_features: {name: [1, M(, K)]}, packed already.
        """
        state_1MD, candidate_1MD = pairs.pack(state_BCD), pairs.pack(candidate_BCD)
        parts, evidence_1ME = [state_1MD, candidate_1MD, state_1MD * candidate_1MD], None
        if self.attention is not None:
            attended_BCD, evidence_BCE = self.attention(candidate_BCD, inputs_BLD, positions_BC, residuals_BLT)
            parts.append(pairs.pack(attended_BCD))
            evidence_1ME = pairs.pack(evidence_BCE)
        if query_BCD is not None:
            query_1MD = pairs.pack(query_BCD)
            parts += [query_1MD, query_1MD * candidate_1MD]
        mixed_1MP = self.mix(torch.cat(parts, dim=-1))
        encoded_1MP = self.features(candidate_features)
        if encoded_1MP is not None:
            mixed_1MP = mixed_1MP + encoded_1MP
        return self.dropout(nn.functional.gelu(mixed_1MP)), evidence_1ME


class LinearSkip(nn.Module):
    r"""A linear path from what is nearly a prediction to the logits of each pair task, z += w_task . x.

    x are the candidate's numbers (running statistics) and the evidence of the candidate attention. Running baselines
    are nearly right by themselves; the skip lets a tower learn only what they miss (the "wide" part of Cheng et al.,
    2016). Missing numbers count as 0, the middle of the normal scale.

    Args:
        widths: {task: K numbers that its head gives per pair, None = one number without an axis}.
        evidence: E.

    Shapes: {name: [B, C] or [B, C, F]}, evidence [B, C, E] -> {task: [B, C] or [B, C, K]}; empty if there is nothing to
    read.
    """

    def __init__(self, config: MultiTaskConfig, widths: Mapping[str, int | None], evidence: int) -> None:
        super().__init__()
        self.features = [
            f for f in config.feature_configs if f.source == "candidate" and f.kind in ("numeric", "vector")
        ]
        size = sum(f.size for f in self.features) + evidence
        self.widths = dict(widths)
        self.linear = nn.ModuleDict(
            {name: nn.Linear(size, width or 1, bias=False) for name, width in widths.items()} if size else {}
        )

    def initialise(self) -> None:
        """Start at 0: random outputs of the skip mislead the towers, which learn first (measured)."""
        for linear in self.linear.values():
            init.zeros_(linear.weight)

    def forward(self, values: dict[str, Tensor], evidence_BCE: Tensor | None) -> dict[str, Tensor]:
        """Contribution to the logits, shapes as in the class description."""
        if not self.linear:
            return {}
        columns = [values[f.name].unsqueeze(-1) if f.kind == "numeric" else values[f.name] for f in self.features]
        columns = [torch.nan_to_num(c) for c in columns] + ([] if evidence_BCE is None else [evidence_BCE])
        weight = next(iter(self.linear.values())).weight  # in a model of half precision, numbers are in single
        joined = torch.cat(columns, dim=-1).to(weight.dtype)
        found = {name: linear(joined) for name, linear in self.linear.items()}
        return {name: x.squeeze(-1) if self.widths[name] is None else x for name, x in found.items()}
