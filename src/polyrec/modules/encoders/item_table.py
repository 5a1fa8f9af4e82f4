"""Tables of id embeddings: one row per item, whole or as a product of two small matrices.

Letters: N items, D width, R rank.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import initialization as init

from polyrec.core.modules import in_double
from polyrec.modules.encoders.growth import in_blocks


class ItemTable(nn.Embedding):
    """Id embeddings as they are, [N, D]; row 0 is padding.

    Example:
        >>> table = ItemTable(4, 2, padding_idx=0)
        >>> table.set_rows(torch.tensor([False, False, True, True]), torch.ones(4, 2))
        >>> table.whole()[2].tolist()
        [1.0, 1.0]
    """

    def whole(self) -> Tensor:
        """The vectors of all rows, [N, D]."""
        return self.weight

    @torch.no_grad()
    def set_rows(self, rows_N: Tensor, vectors_ND: Tensor) -> None:
        """Put vectors into some rows (bool [N]); the others stay."""
        self.weight[rows_N] = vectors_ND[rows_N].to(self.weight)


class LowRankItemTable(ItemTable):
    r"""Id embeddings of low rank, e_i = B a_i.

    Lan et al. (2020, "ALBERT: A Lite BERT for Self-supervised Learning of Language Representations", section 3.1):
    N D numbers become N R + R D. `weight` holds the a_i: it grows, drops and decays as any table does; B is shared.
    B starts with orthonormal columns and a_i so large that vectors are as long as those of a whole table.

    Vectors that are placed are met as well as rank R can: B spans the first R right singular vectors of the table with
    the placed vectors in it (Eckart and Young, 1936), and a_i are the coordinates of all rows in it. With R = D that is
    exact, whatever is placed.

    Args:
        rank: R, at most D.
        std: spread of the vectors' numbers as they start.

    Shapes: ids [...] -> [..., D].

    Example:
        >>> table = LowRankItemTable(1000, 64, rank=8)
        >>> table(torch.tensor([3, 0])).shape, sum(p.numel() for p in table.parameters())
        (torch.Size([2, 64]), 8512)
    """

    def __init__(
        self, num_items: int, width: int, rank: int, std: float = 0.06, padding_idx: int | None = None
    ) -> None:
        super().__init__(num_items, rank, padding_idx=padding_idx)
        self.initial_std = std
        self.up = nn.Linear(rank, width, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Look up, shapes as in the class description."""
        return self.up(super().forward(ids))

    def whole(self) -> Tensor:
        """The vectors of all rows, [N, D]."""
        return in_blocks(self.up, self.weight)

    @torch.no_grad()
    def set_rows(self, rows_N: Tensor, vectors_ND: Tensor) -> None:
        """Put vectors into some rows (bool [N]); the others stay where they are, as far as the rank allows."""
        wanted_ND = in_double(self.whole())
        wanted_ND[rows_N.to(wanted_ND.device)] = vectors_ND[rows_N].to(wanted_ND)
        _, axes_DD = torch.linalg.eigh(wanted_ND.T @ wanted_ND)  # ascending
        basis_DR = axes_DD.flip(1)[:, : self.embedding_dim]
        self.up.weight.copy_(basis_DR)
        self.weight.copy_(wanted_ND @ basis_DR)

    def initialise(self) -> None:
        """Start as the class description says; called after the default initialisation."""
        width, rank = self.up.weight.shape
        init.orthogonal_(self.up.weight)
        init.normal_(self.weight, mean=0.0, std=self.initial_std * (width / rank) ** 0.5)
        if self.padding_idx is not None:
            init.zeros_(self.weight[self.padding_idx])


def item_table(num_items: int, width: int, rank: int | None, std: float, padding_idx: int) -> ItemTable:
    """A table of id embeddings, of low rank if there is one."""
    if rank is None:
        return ItemTable(num_items, width, padding_idx=padding_idx)
    return LowRankItemTable(num_items, width, rank, std, padding_idx)
