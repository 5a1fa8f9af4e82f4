"""Learning rates: pretrained layers are moved gently, heads and id tables are not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState

from polyrec.modules.encoders.backbone import Backbone, backbones
from polyrec.modules.weighting.base import LossWeighting

BACKBONE_RATES = {"full": 5e-5, "lora": 5e-4}  # what sentence-transformers and PEFT users take; "top:N" as "full"


@contextmanager
def frozen(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Inside, these parameters are not trained; afterwards those are that were."""
    found = [p for p in parameters if p.requires_grad]
    for parameter in found:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in found:
            parameter.requires_grad_(True)


def decayed_parameters(model: nn.Module, embeddings: bool) -> list[str]:
    """Names of the parameters that decay: matrices, but not biases, norms, start vectors and weights of losses.

    Args:
        embeddings: whether embedding tables decay.
    """
    # By kind of module, not by name as transformers does: a task "bias" or "unbiased" would never decay.
    spared = {id(p) for module in model.modules() if isinstance(module, LossWeighting) for p in module.parameters()}
    for path, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            is_bias = path.endswith(".bias") and module.embedding_dim == 1  # of each item
            if is_bias or not embeddings:
                spared.add(id(module.weight))
    return [
        name for name, p in model.named_parameters() if name.endswith(".weight") and p.dim() > 1 and id(p) not in spared
    ]


def parameter_groups(
    model: nn.Module,
    decays: set[str],
    learning_rate: float,
    weight_decay: float,
    backbone_rate: float | None = None,
    layer_decay: float = 1.0,
    embedding_rate: float | None = None,
) -> list[dict[str, Any]]:
    r"""Groups for an optimizer, one for each learning rate with and without weight decay.

    A pretrained layer d below the top learns with `backbone_rate` * `layer_decay` ** d, its embeddings as if they were
    one layer below all (Howard and Ruder, 2018, "Universal Language Model Fine-tuning"; Sun et al., 2019, "How to
    Fine-Tune BERT"). Tables of items, users and other codes learn with `embedding_rate`, the rest with
    `learning_rate`.

    Args:
        decays: names of parameters that decay.
        backbone_rate: None: 5e-5, or 5e-4 for LoRA.
        embedding_rate: None: `learning_rate`.
    """
    rates: dict[int, float] = {}
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            rates |= {id(p): embedding_rate or learning_rate for p in module.parameters()}
    for _, backbone in backbones(model):
        rates |= _backbone_rates(backbone, backbone_rate, layer_decay)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = rates.get(id(parameter), learning_rate), name in decays
            groups.setdefault(key, []).append(parameter)
    return [
        {"params": found, "lr": rate, "weight_decay": weight_decay if decay else 0.0}
        for (rate, decay), found in groups.items()
    ]


def _backbone_rates(backbone: Backbone[Any], rate: float | None, layer_decay: float) -> dict[int, float]:
    if backbone.model is None:
        return {}
    tuning = backbone.config.tuning
    rate = BACKBONE_RATES["lora" if tuning == "lora" else "full"] if rate is None else rate
    if layer_decay == 1.0:
        return {id(p): rate for p in backbone.parameters()}
    return {id(p): rate * layer_decay**depth for depth, p in backbone.depths()}


class GradualUnfreezing(TrainerCallback):
    """Learns the heads alone at first, then one pretrained layer more every `epochs` epochs, from the top.

    (Howard and Ruder, 2018, "Universal Language Model Fine-tuning for Text Classification".) Embeddings come last.
    The optimizer knows all parameters from the start; frozen ones have no gradient, so that it leaves them alone.

    Args:
        epochs: between two layers.

    Example:
        >>> callback = GradualUnfreezing(epochs=1)
    """

    def __init__(self, epochs: int = 1) -> None:
        if epochs < 1:
            raise ValueError(f"epochs of GradualUnfreezing is {epochs}; it must be >= 1")
        self.epochs = epochs
        self._trained: list[torch.nn.Parameter] = []

    def on_train_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, model: Any = None, **unused: Any
    ) -> None:
        """Remember what is tuned at all."""
        self._trained = [p for _, b in backbones(model) for p in b.parameters() if p.requires_grad]

    def on_epoch_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, model: Any = None, **unused: Any
    ) -> None:
        """Unfreeze what is due."""
        tuned = {id(p) for p in self._trained}
        open_layers = int(state.epoch or 0) // self.epochs
        for _, backbone in backbones(model):
            if backbone.model is None:
                continue
            for depth, parameter in backbone.depths():
                if id(parameter) in tuned:
                    parameter.requires_grad_(depth < open_layers)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **unused: Any) -> None:
        """Leave everything as it was tuned."""
        for parameter in self._trained:
            parameter.requires_grad_(True)
