"""`polyrec recommend`: a history in, readable recommendations out."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from polyrec.cli.flags import json_line
from polyrec.core.escapes import printable, printable_lines
from polyrec.core.names import ROW_KEYS
from polyrec.core.rules import Rules
from polyrec.data.tables import is_table
from polyrec.inference.recommender import Recommender
from polyrec.inference.rules.selection import RuleWarning
from polyrec.inference.unknown_ids import UnknownIdWarning
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor
from polyrec.runs.whole_log import keeps_events, see_log


def recommend(
    run: str,
    history: str,
    user: list[str],
    k: int,
    as_json: bool,
    user_id: str | None = None,
    rules: Callable[[Callable[[str, str], list[Any]]], Rules | None] = lambda read: None,
) -> list[dict[str, Any]]:
    """Print recommendations for one user.

    Args:
        rules: gives the rules of the list by what reads item ids, see `read_rules`.
    """
    processor = PolyRecProcessor.from_pretrained(run)
    model = PolyRecForRecommendation.from_pretrained(run)
    if user_id is not None and keeps_events(processor):
        see_log(run, processor)  # where it is not here, the user's events end with the training rows
        model.load_times(processor)
    events, attributes = read_history(history, processor), read_user(user, processor)
    with warnings_told():
        found = Recommender(model, processor).recommend(
            events, k, user=attributes, user_id=user_id, rules=rules(lambda ids, flag: read_items(ids, processor, flag))
        )
    as_text = "\n".join(json_line(row) for row in found) if as_json else format_recommendations(found)
    print(printable_lines(as_text))
    return found


@contextmanager
def warnings_told() -> Iterator[None]:
    """Warnings about unknown ids and unmet rules are lines on stderr, without a line of code beside them."""
    with warnings.catch_warnings():
        for told in (UnknownIdWarning, RuleWarning):
            warnings.simplefilter("always", told)
        shown = warnings.showwarning

        def show(message: Any, category: type[Warning], *rest: Any, **more: Any) -> None:
            if issubclass(category, UnknownIdWarning | RuleWarning):
                print(printable(str(message)), file=sys.stderr)
            else:
                shown(message, category, *rest, **more)

        warnings.showwarning = show
        yield


def read_history(text: str, processor: PolyRecProcessor) -> Any:
    """Events as a command line gives them: ids separated by commas, or a file."""
    return text if is_table(text) else read_items(text, processor, "--history")


def read_items(text: str, processor: PolyRecProcessor, flag: str) -> list[Any]:
    """Item ids, separated by commas, of the catalog's type."""
    found: list[Any] = [i.strip() for i in text.split(",") if i.strip()]
    if pa.types.is_integer(processor.items.ids.type):
        for item in found:
            if not item.removeprefix("-").isdecimal() or str(int(item)) != item:  # 007 is not the item 7
                raise ValueError(f"the item ids of this model are integers; cannot read {flag} {item!r}")
        return [int(item) for item in found]
    return found


def read_user(given: list[str], processor: PolyRecProcessor) -> dict[str, Any]:
    """Attributes of a user as a command line gives them, COLUMN=VALUE."""
    attributes: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"cannot read --user {text!r}: write COLUMN=VALUE")
        encoder = processor.users.encoders.get(name)
        attributes[name] = _number(value, name) if encoder is not None and encoder.kind == "numeric" else value
    return attributes


def _number(text: str, name: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"--user {name}={text}: {name} is a number for this model") from None


def format_recommendations(found: list[dict[str, Any]]) -> str:
    """A table: rank, title, score and every task's prediction."""
    if not found:
        return "nothing left to recommend"
    tasks = [name for name in found[0] if name not in ROW_KEYS]
    widths = {task: max(12, len(task) + 2) for task in tasks}
    lines = [f"{'#':>3}  {'item':<44}{'score':>8}" + "".join(f"{t:>{width}}" for t, width in widths.items())]
    for row in found:
        title = item_name(row) + (" (new)" if row["cold_item"] else "")
        figures = "".join(f"{row[task]:>{width}.3f}" for task, width in widths.items())
        lines.append(f"{row['rank']:>3}  {title[:43]:<44}{row['score']:>8.3f}{figures}")
    if found[0]["cold_start"]:
        lines.append("(nothing of the history is known: these follow the user's attributes and overall trends)")
    return "\n".join(lines)


def item_name(row: Mapping[str, Any]) -> str:
    """An item in one line: its title and its id, or the id alone."""
    return printable(f"{row['title']} [{row['item']}]" if row.get("title") else str(row["item"]))
