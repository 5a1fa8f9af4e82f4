"""Figures of matplotlib, without a display."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> Figure:
    """A figure that needs no display and no state of pyplot."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    without_formulas(figure).savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def without_formulas(figure: Figure) -> Figure:
    """The same figure; names between two dollar signs are written as they are, not read as formulas."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_parse_math(False)
    return figure
