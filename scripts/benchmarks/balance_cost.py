"""What a training step costs, by cells of `balance.py`: cpu time, and memory of tensors at its peak."""

from __future__ import annotations

import gc
import json
import random
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import fitting
import torch
from balance_grid import Cell
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from polyrec import PolyRecProcessor, Splits

WARM_UP = 2  # steps: the optimizer's state, imports of solvers, and a loss of the step before to balance by


class Step:
    """One training step of a cell, again and again on the same batch, through `PolyRecTrainer` itself.

    Args:
        processor, data, config: as for `fitting.fit`.
        folder: for files of the trainer, which writes none.
        cell: which parts.
    """

    def __init__(
        self, processor: PolyRecProcessor, data: Splits, config: Mapping[str, Any], folder: str, cell: Cell
    ) -> None:
        config = {**config, "model": cell.model(config["model"])}
        self.trainer = fitting.new_trainer(processor, data, config, folder, 0)
        self.optimizer = self.trainer.create_optimizer()

    def __call__(self, batch: dict[str, Any]) -> None:
        """Forward, backward, optimizer, and what the loss weighting learns of a step."""
        batches, counts = self.trainer.get_batch_samples(iter([batch]), 1, self.trainer.args.device)
        self.trainer.training_step(self.trainer.model, batches[0], counts)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def median_batch(self) -> dict[str, Any]:
        """Of the batches of an epoch, sorted by the number of candidates, the one in the middle."""
        batches = sorted(self.trainer.get_train_dataloader(), key=lambda batch: batch["candidate_ids"].numel())
        return batches[len(batches) // 2]

    @property
    def kept_bytes(self) -> int:
        """Memory of what stays between steps: parameters, buffers and the optimizer's state."""
        model, state = self.trainer.model, self.optimizer.state
        kept: Iterable[Tensor] = [*model.parameters(), *model.buffers()]
        of_optimizer = (value for values in state.values() for value in values.values() if isinstance(value, Tensor))
        return sum(tensor.numel() * tensor.element_size() for tensor in (*kept, *of_optimizer))

    def peak_bytes(self, batch: dict[str, Any]) -> int:
        """The most memory that tensors take at one time of a step; the batch itself is not counted.

        Counted by torch's own allocator, byte by byte, so that it repeats exactly. The resident size of the process
        has Python and torch in it and what malloc keeps for later, beside which cells hardly differ.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the profiler, on cpu-only builds
            with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
                self(batch)
        with tempfile.TemporaryDirectory() as folder:
            trace = Path(folder) / "trace.json"
            found.export_chrome_trace(str(trace))
            events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
        return self.kept_bytes + transient_peak(events)


def transient_peak(events: Iterable[Mapping[str, Any]]) -> int:
    """The most bytes that were allocated at one time beyond those before the first event, of a profiler's trace.

    Example:
        >>> def event(time, size, total):
        ...     return {"name": "[memory]", "ts": time, "args": {"Bytes": size, "Total Allocated": total}}
        >>> transient_peak([event(2, 50, 180), event(1, 30, 130), event(3, -30, 150), {"name": "aten::mm"}])
        80
    """
    found = sorted((e for e in events if e["name"] == "[memory]"), key=lambda e: e["ts"])
    if not found:
        return 0
    before = found[0]["args"]["Total Allocated"] - found[0]["args"]["Bytes"]
    return max(e["args"]["Total Allocated"] for e in found) - before


def rounds(steps: Mapping[Cell, Step], batch: dict[str, Any], begin: int, end: int) -> Iterator[dict[str, float]]:
    """Cpu seconds of one step of every cell, {name: seconds}, for rounds `begin` .. `end` - 1.

    Every round measures all cells, in an order of its own, so that a machine that grows slower, or a neighbour that
    comes and goes, meets all alike.
    """
    for step in steps.values():
        for _ in range(WARM_UP):
            step(batch)
    gc.collect()
    gc.freeze()  # else a collection walks through all models, in the middle of somebody's step
    try:
        for number in range(begin, end):
            order = list(steps)
            random.Random(number).shuffle(order)
            found = {}
            for cell in order:
                started = time.process_time()
                steps[cell](batch)
                found[cell.name] = time.process_time() - started
            yield {cell.name: found[cell.name] for cell in steps}
    finally:
        gc.unfreeze()


def about(batch: Mapping[str, Any], processor: PolyRecProcessor) -> dict[str, Any]:
    """What the batch is, for the report."""
    windows, candidates = batch["candidate_ids"].shape
    return {
        "windows": windows,
        "events": batch["item_ids"].shape[1],
        "candidates": candidates,
        "real_candidates": int((batch["candidate_ids"] > 0).sum()),
        "tasks": [task.name for task in processor.tasks],
        "threads": torch.get_num_threads(),
    }
