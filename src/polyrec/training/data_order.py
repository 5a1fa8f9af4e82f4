"""The order in which a training reads its windows: of seed and epoch alone, on every rank alike."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from transformers import TrainerCallback, TrainerState
from transformers.trainer_pt_utils import LengthGroupedSampler

from polyrec.data.sampling import ORDER, stream
from polyrec.data.sequences import WindowDataset


class OrderedByLength(LengthGroupedSampler):
    """An order that depends on seed and epoch alone, so that ranks agree and a resumed run goes on."""

    def __init__(self, window: int, dataset: WindowDataset) -> None:
        super().__init__(window, lengths=dataset.lengths)
        self.dataset = dataset

    def __iter__(self) -> Iterator[int]:
        self.lengths = self.dataset.lengths  # of this epoch's windows
        self.generator = _order(self.dataset)
        return super().__iter__()


class RandomOrder(torch.utils.data.Sampler):
    """The same without regard to lengths. (accelerate would draw torch's own sampler by seed + epoch.)"""

    def __init__(self, dataset: WindowDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(len(self.dataset), generator=_order(self.dataset)).tolist())


def _order(dataset: WindowDataset) -> torch.Generator:
    return torch.Generator().manual_seed(stream(dataset.seed, dataset.epoch, ORDER))


def data_seed(args: Any) -> int:
    """The seed of all that is drawn of the data: order, ties, views, negatives, augmentation."""
    return args.seed if args.data_seed is None else args.data_seed


class EpochCallback(TrainerCallback):
    """Tells the training data seed and epoch; accelerate's data loader tells the epoch only for some samplers."""

    def on_epoch_begin(
        self, args: Any, state: TrainerState, control: Any, train_dataloader: Any = None, **unused: Any
    ) -> None:
        """Set them."""
        if train_dataloader is not None and isinstance(train_dataloader.dataset, WindowDataset):
            train_dataloader.dataset.set_seed(data_seed(args))
            train_dataloader.dataset.set_epoch(int(state.epoch or 0))
