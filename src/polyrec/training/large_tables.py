"""A Trainer whose steps cost no more in a catalog of a million items than in one of a hundred thousand."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from transformers import TrainerCallback

from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.modules.encoders.item import WHOLE_TABLE
from polyrec.modules.heads.retrieval import RetrievalHead
from polyrec.training.rowwise import RowwiseAdamW, clip_rows, momentum_fades
from polyrec.training.saving import SavesAverages


def item_tables(model: nn.Module) -> list[nn.Embedding]:
    """The trained tables with a row per item, which are read by lookups alone; none of a small catalog, whose rows are
    all read in each step."""
    if not isinstance(model, PolyRecForRecommendation) or model.config.num_items <= WHOLE_TABLE:
        return []
    found = [model.item_encoder.id_embedding]
    found += [head.bias for head in model.heads.values() if isinstance(head, RetrievalHead)]
    if model.pair_tasks and model.task_items is not None:
        found.append(model.task_items.table)
    return [table for table in found if table is not None and table.weight.requires_grad]


class UpdatesRows(SavesAverages):
    """A Trainer that updates, of the item tables of large catalogs, the rows that a step has read.

    See [`RowwiseAdamW`]. Whatever reads whole tables (saving, evaluation, the best weights) finds all rows up to date.
    """

    optimizer_cls_and_kwargs: tuple[Any, dict[str, Any]] | None
    _rowwise: RowwiseAdamW | None = None

    def _why_not_by_rows(self) -> str | None:
        """What keeps tables from being updated by rows; None: nothing."""
        args = self.args
        if args.optim not in ("adamw_torch", "adamw_torch_fused"):
            return f"optim={str(args.optim)!r} is not AdamW"
        if not momentum_fades((args.adam_beta1, args.adam_beta2)):
            return f"with adam_beta1={args.adam_beta1} and adam_beta2={args.adam_beta2} momentum fades too slowly"
        if args.ema_decay:
            return "ema_decay averages all rows in every step"
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return "FSDP and DeepSpeed have optimizers of their own"
        if args.torch_compile:
            return "compiled models read tables in their own way"
        if args.world_size > 1 and args.device.type != "cpu":
            return "several GPUs add up dense gradients alone"
        return None

    def _tables(self, model: nn.Module) -> list[nn.Embedding]:
        """The tables that are updated by rows."""
        wanted = self.args.rowwise_tables
        found = [] if wanted is False else item_tables(model)
        reason = self._why_not_by_rows() if found else None
        if reason is not None and wanted:
            raise ValueError(f"rowwise_tables=True, but {reason}: leave one of both out")
        return [] if reason is not None else found

    def optimizer_class(self, model: nn.Module) -> tuple[Any, dict[str, Any]]:
        """The class of the optimizer, and its options."""
        kind, options = self.get_optimizer_cls_and_kwargs(self.args, model)
        return (RowwiseAdamW if self._tables(model) else kind), options

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer of transformers, or [`RowwiseAdamW`]."""
        model = self.model if model is None else model
        given = self.optimizer_cls_and_kwargs
        tables = self._tables(model) if given is None else []
        self.optimizer_cls_and_kwargs = self.optimizer_class(model) if tables else given
        optimizer = super().create_optimizer(model)
        self.optimizer_cls_and_kwargs = given
        bare = optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer
        self._rowwise = bare if isinstance(bare, RowwiseAdamW) else None
        if self._rowwise is not None:
            self._rowwise.watch(tables)
        return optimizer

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, and leave the tables as they were found."""
        try:
            return super().train(*args, **kwargs)
        finally:
            if self._rowwise is not None:
                self._rowwise.release()

    def settle_rows(self) -> None:
        """Bring all rows of the item tables up to date."""
        if self._rowwise is not None:
            self._rowwise.settle()

    def _averaged(self) -> AbstractContextManager[None]:
        """Inside, the model has the weights to be evaluated and saved."""
        self.settle_rows()
        return super()._averaged()

    def _load_best_model(self) -> None:
        self.settle_rows()  # what rows wait for is not of the best weights
        super()._load_best_model()

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        if self._rowwise is None:
            return super()._clip_grad_norm(model)
        self.accelerator.unscale_gradients()
        return clip_rows(model.parameters(), self.args.max_grad_norm)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        if grad_norm is None and self._rowwise is not None:
            grad_norm = clip_rows(model.parameters(), float("inf"))
        return super()._get_grad_norm(model, grad_norm)


class RowsAtEpochEnd(TrainerCallback):
    """Brings rows up to date for callbacks after it, which may keep what an epoch has trained."""

    def __init__(self, trainer: UpdatesRows) -> None:
        self.trainer = trainer

    def on_epoch_end(self, *given: Any, **unused: Any) -> None:
        """Bring them up to date."""
        self.trainer.settle_rows()
