"""`polyrec explain`: why items are recommended, in sentences or as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from polyrec.cli.flags import json_line
from polyrec.cli.recommend import item_name, read_history, read_items, read_user, warnings_told
from polyrec.core.escapes import printable, printable_lines
from polyrec.inference.explanation.explain import explain
from polyrec.inference.explanation.neighbours import neighbours, plot_items
from polyrec.inference.explanation.reasons import as_text
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor


def explain_run(
    run: str, history: str, user: list[str], item: str | None, as_json: bool, **options: Any
) -> list[dict[str, Any]]:
    """Print why items are recommended to one user.

    Args:
        item: ids to explain; None: what is recommended.
        options: of `model.explain`.
    """
    processor = PolyRecProcessor.from_pretrained(run)
    model = PolyRecForRecommendation.from_pretrained(run)
    if options["words"] and processor.text is not None:
        model.load_texts(processor)
    items = None if item is None else read_items(item, processor, "--item")
    events, attributes = read_history(history, processor), read_user(user, processor)
    with warnings_told():
        found = explain(model, processor, events, items, user=attributes, **options)
    told = [json_line(row) if as_json else format_reason(row) for row in found]
    print(printable_lines("\n".join(told)) if told else "nothing left to explain")
    return found


def explain_items(run: str, item: str | None, plot: str | None, k: int, as_json: bool) -> list[dict[str, Any]]:
    """Print the neighbours of an item, or draw the space of all items (and both, if both are asked for).

    Args:
        item: its id.
        plot: file to write.
    """
    processor = PolyRecProcessor.from_pretrained(run)
    model = PolyRecForRecommendation.from_pretrained(run)
    near = [] if item is None else read_items(item, processor, "--neighbours")
    if plot is not None:
        print(f"written to {plot_items(model, processor, plot, near)}")
    found = [row for one in near for row in neighbours(model, processor, one, k)]
    for row in found:
        text = f"{row['similarity']:>8.3f}  {item_name(row)} ({row['events']} events)"
        print(printable(json_line(row) if as_json else text))
    return found


def format_reason(row: Mapping[str, Any]) -> str:
    """One item: its reason, then what each event, attribute, word and expert did."""
    lines = [f"{row['rank']:>3}  {item_name(row)}  {row['task']} {row['score']:.3f}", f"     {row['reason']}"]
    lines += [
        f"{e['effect']:>+12.3f}  {e['verb']} {item_name(e)} ({e['without']:.3f} without it)" for e in row["events"]
    ]
    lines += [
        f"{a['effect']:>+12.3f}  {a['name']}" + (f" = {as_text(a['value'])}" if a["value"] else "")
        for a in row["attributes"]
    ]
    lines += _words(row["words"])
    if row["terms"]:
        lines.append("     score of " + ", ".join(f"{name} {part:+.3f}" for name, part in row["terms"].items()))
    lines += [
        f"     {task} uses {', '.join(f'{source} {share:.2f}' for source, share in gates.items())}"
        for task, gates in row["gates"].items()
    ]
    return "\n".join(lines)


def _words(words: Sequence[Mapping[str, Any]], most: int = 5) -> list[str]:
    return [f"{w['effect']:>+12.3f}  the word “{w['word']}”" for w in words[:most]]
