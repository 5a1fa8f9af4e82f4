"""Vectors of the candidate item that belong to one task alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import initialization as init

from polyrec.core.configuration_polyrec import PolyRecConfig
from polyrec.modules.encoders.growth import add_rows
from polyrec.modules.encoders.item import PADDING_ITEM, UNKNOWN_ITEM


class TaskItemEmbedding(nn.Module):
    r"""A table of item embeddings for each pair task beside the shared one, h_t <- h_t + e_t[item].

    Su et al. (2024), "STEM: Unleashing the Power of Embeddings for Multi-Task Recommendation": what shares an embedding
    shares its gradient, so tasks that disagree about an item need vectors of their own. As there, a task's table is
    trained by that task alone; unlike there, a task does not read the tables of the others, and the vector is added to
    what the head reads instead of being an input of the experts. An item that has no id embedding of its own reads the
    row of the unknown item here, too (`ItemRows.id_rows_M`). The tables start small, so that tasks begin with what they
    share. All of them are one `nn.Embedding` with the tasks side by side, in the order of their names: one lookup.

    Shapes: rows [B, C] -> {task: [B, C, D]}.

    Example:
        >>> config = PolyRecConfig(num_items=5, hidden_size=4)
        >>> found = TaskItemEmbedding(config, ["like", "click"])(torch.tensor([[2, 3, 0]]))
        >>> found["click"].shape, found["click"][0, 2]  # 0 is padding
        (torch.Size([1, 3, 4]), tensor([0., 0., 0., 0.], grad_fn=...))
    """

    def __init__(self, config: PolyRecConfig, task_names: list[str]) -> None:
        super().__init__()
        self.task_names = sorted(task_names)
        self.initial_std = 0.1 * config.initializer_range
        width = len(task_names) * config.pair_width
        self.table = nn.Embedding(config.num_items, width, padding_idx=PADDING_ITEM)

    def initialise(self) -> None:
        """Start small; called after the default initialisation."""
        init.normal_(self.table.weight, mean=0.0, std=self.initial_std)
        init.zeros_(self.table.weight[PADDING_ITEM])

    @torch.no_grad()
    def extend(self, num_items: int) -> None:
        """Add rows up to `num_items`, which start as the unknown item's; those there are stay bit-equal."""
        new = num_items - self.table.num_embeddings
        add_rows(self.table, self.table.weight[UNKNOWN_ITEM].expand(new, -1))

    @torch.no_grad()
    def init_from_unknown(self, new_N: Tensor) -> None:
        """Let items (bool [N]) that read the unknown item's row until now go on from there with their own."""
        self.table.weight[new_N] = self.table.weight[UNKNOWN_ITEM].clone()

    def forward(self, rows: Tensor) -> dict[str, Tensor]:
        """Look up, shapes as in the class description."""
        return dict(zip(self.task_names, self.table(rows).chunk(len(self.task_names), dim=-1), strict=True))
