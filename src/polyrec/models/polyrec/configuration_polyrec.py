"""`PolyRecConfig`, registered for `AutoConfig`. The class lies in core/, because the parts of models read it."""

from __future__ import annotations

from transformers import AutoConfig

from polyrec.core.configuration_polyrec import PolyRecConfig

__all__ = ["PolyRecConfig"]

AutoConfig.register("polyrec", PolyRecConfig, exist_ok=True)
