"""Progress bars of transformers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.utils import are_progress_bars_disabled
from transformers.utils import logging


@contextmanager
def without_bars(when: bool = False) -> Iterator[None]:
    """Inside, transformers draws no bars if `when` is true, or if bars of the Hub's libraries are turned off.

    transformers reads `disable_progress_bars` of huggingface_hub only when it is imported, and `disable_tqdm` not at
    all where it writes weights.
    """
    if not (when or are_progress_bars_disabled()):
        yield
        return
    before = logging.set_tqdm_hook(lambda _, args, kwargs: logging.EmptyTqdm(*args, **kwargs))
    try:
        yield
    finally:
        logging.set_tqdm_hook(before)
