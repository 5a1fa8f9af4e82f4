"""Attributes, context and feedback become vectors of the model's width."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from polyrec.core.configuration_multitask import MultiTaskConfig
from polyrec.core.modules import KeepsPrecision
from polyrec.core.schema import FeatureConfig

_RESERVED = frozenset(dir(nn.ModuleDict()))


def module_name(feature: str) -> str:
    """A name under which torch keeps a part: dots divide names there, and "type" or "items" are attributes already.

    Example:
        >>> module_name("genre"), module_name("type"), module_name("tag.list")
        ('genre', '%type', 'tag%2Elist')
    """
    safe = feature.replace("%", "%25").replace(".", "%2E")
    return f"%{safe}" if safe in _RESERVED else safe


class NumericEncoder(KeepsPrecision):
    r"""Piecewise-linear encoding of numbers, then one linear map (Gorishniy, Rubachev and Babenko, 2022, "On Embeddings
    for Numerical Features in Tabular Deep Learning").

    With edges e_0 < ... < e_K, a number x becomes K ramps r_k(x) = clip((x - e_{k-1}) / (e_k - e_{k-1}), 0, 1), the
    first and last of them unclipped to the outside, and a missing number becomes K zeros and a raised flag. The edges
    are quantiles of the standard normal distribution, because the processor scales numbers to it.

    Shapes: x [..., F] float with NaN = missing -> [..., D].
    """

    edges: Tensor

    def __init__(self, size: int, width: int, bins: int) -> None:
        super().__init__()
        self.size, self.bins = size, bins
        self.register_buffer("edges", torch.empty(bins + 1, dtype=torch.float32))
        self.linear = nn.Linear(size * (bins + 1), width)

    def forward(self, x_F: Tensor) -> Tensor:
        """Encode numbers, shapes as in the class description."""
        return self.linear(self.ramps(x_F).to(self.linear.weight.dtype))

    def ramps(self, x_F: Tensor) -> Tensor:
        """The encoding before the linear map, [..., F * (K + 1)]."""
        missing_F = torch.isnan(x_F)
        x_F1 = torch.nan_to_num(x_F).unsqueeze(-1)
        low_K, high_K = self.edges[:-1], self.edges[1:]
        ramps_FK = (x_F1 - low_K) / (high_K - low_K)
        if self.bins > 1:
            ramps_FK = torch.cat(
                [ramps_FK[..., :1].clamp(max=1), ramps_FK[..., 1:-1].clamp(0, 1), ramps_FK[..., -1:].clamp(min=0)],
                dim=-1,
            )
        ramps_FK = ramps_FK.masked_fill(missing_F.unsqueeze(-1), 0)
        return torch.cat([ramps_FK.flatten(-2), missing_F.to(ramps_FK.dtype)], dim=-1)

    def reset_edges(self) -> None:
        """Put the edges at quantiles of the standard normal distribution (needed after a meta-device build)."""
        probabilities = torch.linspace(0.02, 0.98, self.bins + 1)
        init.copy_(self.edges, torch.special.ndtri(probabilities))


class EmbeddingEncoder(nn.Module):
    r"""Vectors that another model made: h = W x + b, and h = m, which is trained, where there is none.

    The processor scales x to length 1 (`polyrec.data.vectors`), so that h starts as large as an id embedding.

    Shapes: x [..., W] float with NaN = missing -> [..., D].

    Example:
        >>> encoder = EmbeddingEncoder(3, 8)
        >>> encoder.initialise()
        >>> encoder(torch.tensor([[0.6, 0.8, 0.0], [float("nan")] * 3])).shape
        torch.Size([2, 8])
    """

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(size, width)
        self.missing = nn.Parameter(torch.empty(width))

    def initialise(self) -> None:
        """Start the missing vector at 0; called after the default initialisation."""
        init.zeros_(self.missing)

    def forward(self, x_W: Tensor) -> Tensor:
        """Encode vectors, shapes as in the class description."""
        missing_1 = torch.isnan(x_W[..., :1])
        known_D = self.project(torch.nan_to_num(x_W).to(self.project.weight.dtype))
        return torch.where(missing_1, self.missing.to(known_D.dtype), known_D)


class FeatureEncoder(nn.Module):
    """The sum of one vector per feature: embeddings of codes, means of several codes, encodings of numbers, projected
    vectors of other models.

    All numbers go through one encoder: its linear map is the sum of one per feature.

    Args:
        features: what to read; "text" features are skipped.
        width: of the sum; default: `config.hidden_size`.

    Shapes: {name: [...] or [..., K]} -> [..., D]. A feature that the input lacks raises a KeyError.
    """

    def __init__(self, config: MultiTaskConfig, features: list[FeatureConfig], width: int | None = None) -> None:
        super().__init__()
        width = config.hidden_size if width is None else width
        self.features = [f for f in features if f.kind != "text"]
        self.tables = nn.ModuleDict(
            {
                module_name(f.name): nn.Embedding(f.size, width, padding_idx=0)
                for f in self.features
                if f.kind in ("categorical", "multi")
            }
        )
        self.embeddings = nn.ModuleDict(
            {module_name(f.name): EmbeddingEncoder(f.size, width) for f in self.features if f.kind == "embedding"}
        )
        size = sum(f.size for f in self.features if f.kind in ("numeric", "vector"))
        self.numbers = NumericEncoder(size, width, config.numeric_bins) if size else None

    def forward(self, values: dict[str, Tensor]) -> Tensor | None:
        """Encode and add up; None if there is nothing to read."""
        encoded, numbers = [], []
        for f in self.features:
            if f.name not in values:
                raise KeyError(f"feature {f.name!r} is missing from the batch; it has {sorted(values)}")
            x = values[f.name]
            if f.kind == "categorical":
                encoded.append(self.tables[module_name(f.name)](x))
            elif f.kind == "multi":
                encoded.append(_mean_embedding(x, self.tables[module_name(f.name)]))
            elif f.kind == "embedding":
                encoded.append(self.embeddings[module_name(f.name)](x))
            else:
                numbers.append(x.unsqueeze(-1) if f.kind == "numeric" else x)
        if self.numbers is not None:
            encoded.append(self.numbers(torch.cat(numbers, dim=-1)))
        total = None
        for vector in encoded:
            total = vector if total is None else total + vector
        return total


def _mean_embedding(codes_K: Tensor, table: nn.Embedding) -> Tensor:
    """Mean vector of the codes that are not padding, [..., K] -> [..., D]; nothing known gives zeros."""
    if torch.compiler.is_compiling():  # in an exported graph a bag is a loop over its rows
        known_K = codes_K > 0
        weights_K1 = (known_K / known_K.sum(-1, keepdim=True).clamp(min=1)).unsqueeze(-1)
        return (F.embedding(codes_K, table.weight) * weights_K1).sum(-2)
    flat_MK = codes_K.reshape(-1, codes_K.shape[-1])
    mean_MD = F.embedding_bag(flat_MK, table.weight, mode="mean", padding_idx=0)
    return mean_MD.view(*codes_K.shape[:-1], -1)
