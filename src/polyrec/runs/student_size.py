"""The largest student that fits a budget of parameters or of milliseconds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch

from polyrec.data.sequences import SequenceDataset
from polyrec.distillation.live import LiveTeacher
from polyrec.distillation.throughput import latency, one_example_each
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor
from polyrec.runs.recipe import Recipe
from polyrec.runs.train import build_config

_LARGEST = 4096  # width at which the search stops


def sized(recipe: Recipe, width: int) -> Recipe:
    """The recipe with another `hidden_size`."""
    return replace(recipe, model={**recipe.model, "hidden_size": width})


def parameters_of(recipe: Recipe, processor: PolyRecProcessor) -> int:
    """Parameters of a recipe's model, counted without any memory for them."""
    with torch.device("meta"):
        return PolyRecForRecommendation(build_config(recipe, processor)).num_parameters()


def width_for_parameters(recipe: Recipe, processor: PolyRecProcessor, most: int) -> int:
    """The largest `hidden_size` whose model has at most so many parameters."""
    found = _largest(recipe, processor, lambda width: parameters_of(sized(recipe, width), processor) <= most)
    if found is None:
        smallest = parameters_of(sized(recipe, _smallest(recipe, processor)), processor)
        raise ValueError(
            f"no student has {most:,} parameters or fewer: the smallest has {smallest:,}. Raise --target-parameters, "
            "give id embeddings a low rank (--set model.item_embedding_rank=8), or remove modules (experts, "
            "task_item_embeddings)"
        )
    return found


def width_for_latency(
    recipe: Recipe, processor: PolyRecProcessor, dataset: SequenceDataset, milliseconds: float
) -> int:
    """The largest `hidden_size` whose model serves one user within so many milliseconds on this machine.

    A request scores one item with all pair tasks and the best items of each list, for the longest histories.
    """
    lists = [t.name for t in processor.tasks if t.ranks_catalog]
    longest = max(one_example_each(dataset, lists, 64, 1), key=lambda batch: batch["item_ids"].shape[1])

    def measured(width: int) -> float:
        model = PolyRecForRecommendation(build_config(sized(recipe, width), processor)).eval()
        return latency(LiveTeacher(model, processor, trust=True), longest)

    found = _largest(recipe, processor, lambda width: measured(width) <= milliseconds)
    if found is None:
        least = measured(_smallest(recipe, processor))
        raise ValueError(
            f"no student serves one user within {milliseconds:g} ms here: the smallest takes {least:.2f} ms. Raise "
            "--target-latency, or take parts away (num_hidden_layers, experts, max_history)"
        )
    return found


def _largest(recipe: Recipe, processor: PolyRecProcessor, fits: Callable[[int], bool]) -> int | None:
    """The largest width that fits, by doubling and halving; None = not even the smallest does."""
    step = _step(recipe)
    low = _smallest(recipe, processor) // step
    if not fits(low * step):
        return None
    high = 2 * low
    while high * step <= _LARGEST and fits(high * step):
        low, high = high, 2 * high
    high = min(high, _LARGEST // step + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * step) else (low, middle)
    return low * step


def _smallest(recipe: Recipe, processor: PolyRecProcessor) -> int:
    """The smallest width that holds what has to fit into it."""
    step, wrong = _step(recipe), ValueError()
    for width in range(step, _LARGEST + 1, step):
        try:
            parameters_of(sized(recipe, width), processor)
        except ValueError as error:
            wrong = error
        else:
            return width
    raise wrong


def _step(recipe: Recipe) -> int:
    """What widths are multiples of: attention heads of even width, and those of candidates."""
    if "history_config" in recipe.model:
        raise ValueError("model.history_config fixes the width of the student: leave it out, or leave out the target")
    heads, of_candidates = (int(recipe.model.get(f"{name}_attention_heads", 4)) for name in ("num", "candidate"))
    return math.lcm(2 * heads, max(of_candidates, 1))
