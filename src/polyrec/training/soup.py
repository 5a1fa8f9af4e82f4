"""The mean of several short trainings, which is better than most of them."""

from __future__ import annotations

import torch

from polyrec.core.modules import exact


class Soup:
    r"""The mean of the weights that several trainings of one model end with, all of which begin at the same ones.

    w = 1/K sum_k w_k, a uniform soup (Wortsman et al., 2022, "Model Soups: Averaging Weights of Multiple Fine-Tuned
    Models Improves Accuracy without Increasing Inference Time"). The mean of weights predicts like the mean of
    models, as long as the trainings are short and share where they begin. It is held in single precision at least.

    Shapes: {name: weights of any shape}.

    Args:
        model: to be trained; what is frozen now is left alone.

    Example:
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> soup = Soup(model)
        >>> for end in (1.0, 3.0):
        ...     soup.begin()
        ...     _ = model.weight.data.fill_(end)
        ...     soup.add()
        >>> soup.serve()
        >>> model.weight.item()
        2.0
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.first: dict[str, torch.Tensor] = {}
        self.mean: dict[str, torch.Tensor] = {}
        self.members = 0

    @torch.no_grad()
    def begin(self) -> None:
        """Back to the first weights, which are those of the first call."""
        if not self.first:
            self.first = {name: p.detach().clone() for name, p in self.weights.items()}
        for name, parameter in self.weights.items():
            parameter.copy_(self.first[name])

    @torch.no_grad()
    def add(self) -> None:
        """Stir in the weights as they are."""
        self.members += 1
        for name, parameter in self.weights.items():
            self.mean.setdefault(name, torch.zeros_like(exact(parameter))).lerp_(exact(parameter), 1 / self.members)

    @torch.no_grad()
    def serve(self) -> None:
        """Put the mean into the model."""
        for name, parameter in self.weights.items():
            parameter.copy_(self.mean[name])
