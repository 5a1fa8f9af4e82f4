"""Where polyrec keeps what it can make again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """The folder that POLYREC_CACHE names, or one in the cache of Hugging Face."""
    from huggingface_hub.constants import HF_HOME

    return Path(os.environ.get("POLYREC_CACHE") or Path(HF_HOME) / "polyrec")
