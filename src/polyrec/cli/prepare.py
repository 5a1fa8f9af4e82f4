"""The data of a recipe, which every command but `recommend` begins with."""

from __future__ import annotations

from polyrec.cli.recipe import Recipe
from polyrec.processing_polyrec import PolyRecProcessor, Splits


def prepare(recipe: Recipe) -> tuple[PolyRecProcessor, Splits]:
    """The processor and the split of a recipe."""
    processor = PolyRecProcessor.fit(
        recipe.interactions, recipe.items, recipe.users, tasks=recipe.tasks, columns=recipe.columns, **recipe.processor
    )
    return processor, processor.split(recipe.interactions, past=recipe.past, **recipe.split)
