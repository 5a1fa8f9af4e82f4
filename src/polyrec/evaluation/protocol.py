"""What a ranking evaluation lets lists hold, and which of its targets no list can hold: said beside every figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polyrec.data.candidates import POLICIES
from polyrec.data.sequences import SequenceDataset
from polyrec.evaluation import evaluator, ranking
from polyrec.evaluation.scored import Ranking
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.modules.encoders.item import FIRST_ITEM

EVALUATION = "_evaluation"  # where metrics.json holds them


def evaluation_facts(
    model: PolyRecForRecommendation,
    dataset: SequenceDataset,
    predictions: evaluator.Predictions,
    exclude_seen: bool | None = None,
) -> dict[str, dict[str, Any]]:
    """Of each retrieval task: the candidates of its lists, its rows, and the targets among them that are sure misses.

    Returns:
        {task: {"candidates": in words, "rows": targets ranked, "repeated": those that the user's history holds, which
        lists leave out, "unknown": those that are not in the catalog, "not_available": others of score -inf, e.g. not
        released yet}}; the last three count as misses in every metric.
    """
    return {
        task: {
            "candidates": POLICIES[evaluator.lists_leave_out(model, task, exclude_seen)],
            "rows": len(found.rows),
            **_sure_misses(dataset, found),
        }
        for task, found in predictions.rankings.items()
    }


def _sure_misses(dataset: SequenceDataset, found: Ranking) -> dict[str, int]:
    unknown = dataset.log.item[dataset.candidates.event[found.rows]] < FIRST_ITEM
    impossible = found.greater >= ranking.NEVER_LISTED
    return {
        "repeated": int(found.excluded.sum()),
        "unknown": int(unknown.sum()),
        "not_available": int((impossible & ~unknown & ~found.excluded).sum()),
    }


def format_facts(facts: Mapping[str, Mapping[str, Any]]) -> str:
    """One line per task for users to read."""
    lines = []
    for task, found in facts.items():
        misses = [
            f"{found[name]} {said}"
            for name, said in (
                ("repeated", "taken before and so left out"),
                ("unknown", "not in the catalog"),
                ("not_available", "not available yet"),
            )
            if found[name]
        ]
        counted = f"; counted as misses: {', '.join(misses)}" if misses else ""
        lines.append(f"{task}: {found['rows']} targets ranked among {found['candidates']}{counted}")
    return "\n".join(lines)
