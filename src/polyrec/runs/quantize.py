"""`polyrec quantize`: a run in, the same run with int8 weights and what that changed out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.runs.smaller import write_smaller


def quantize_run(run: str, output: str | None = None) -> dict[str, Any]:
    """Write a run with int8 weights.

    Args:
        run: folder of a trained run; its recipe says where the data lie by which both are measured.
        output: folder of the result; None: `<run>-int8`.

    Returns:
        the report, see `polyrec.runs.smaller.write_smaller`, which is also written as quantize.json and quantize.md.
    """

    def change(model: PolyRecForRecommendation) -> list[str]:
        model.quantize()
        return []

    place = Path(output or f"{run.rstrip('/')}-int8")
    return write_smaller(run, place, "quantize", "Int8 weights", change)
