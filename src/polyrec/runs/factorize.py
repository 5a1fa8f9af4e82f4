"""`polyrec factorize`: a run in, the same run with id embeddings of low rank and what that changed out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.runs.smaller import write_smaller
from polyrec.training.shrink import factorise_items


def factorize_run(run: str, rank: int, output: str | None = None) -> dict[str, Any]:
    """Write a run whose id embeddings are products of two small matrices.

    Args:
        run: folder of a trained run; its recipe says where the data lie by which both are measured.
        rank: R of `polyrec.training.shrink.factorise_items`.
        output: folder of the result; None: `<run>-rank<rank>`.

    Returns:
        the report, see `polyrec.runs.smaller.write_smaller`, which is also written as factorize.json and factorize.md.
    """

    def change(model: PolyRecForRecommendation) -> list[str]:
        kept = factorise_items(model, rank)
        return [
            f"Id embeddings of rank {rank} instead of {model.config.hidden_size}: they hold {kept:.1%} of the squared "
            "length that the vectors had. The model can be trained further (`polyrec finetune`, `update`)."
        ]

    place = Path(output or f"{run.rstrip('/')}-rank{rank}")
    return write_smaller(run, place, "factorize", f"Id embeddings of rank {rank}", change)
