"""Options that had another name until 0.1: the old spelling works for one more release, with a warning, and no help."""

from __future__ import annotations

import sys
from collections.abc import Sequence

_OF_RECIPES = {"--past": "--prior-history"}  # of every command that reads a recipe
RENAMED = {
    "compare": _OF_RECIPES,
    "distill": {
        **_OF_RECIPES,
        "--logits": "--teacher-outputs",
        "--no-alone": "--no-baseline",
        "--start": "--init-from",
        "--trust-teacher": "--skip-overlap-check",
    },
    "evaluate": {"--part": "--split"},
    "explain": {"--picture": "--plot", "--words": "--token-attribution"},
    "report": {"--people": "--num-users"},
    "score": {**_OF_RECIPES, "--part": "--split", "--trust-teacher": "--skip-overlap-check"},
    "train": _OF_RECIPES,
    "tune": _OF_RECIPES,
    "update": {"--max-drop": "--max-regression"},
}


def with_new_names(arguments: Sequence[str]) -> list[str]:
    """The arguments of a command with the options' new names; says on stderr which ones to write from now on.

    Example:
        >>> with_new_names(["evaluate", "runs/a", "--split", "valid"])
        ['evaluate', 'runs/a', '--split', 'valid']
        >>> with_new_names(["evaluate", "runs/a", "--part=valid"])
        ['evaluate', 'runs/a', '--split=valid']
    """
    command = arguments[0] if arguments else ""
    renamed = RENAMED.get(command, {})
    found = []
    for argument in arguments:
        old, equals, value = argument.partition("=")
        if old in renamed:
            new = renamed[old]
            print(f"polyrec {command}: {old} is now {new}; the old name will be removed", file=sys.stderr)
            argument = f"{new}{equals}{value}"
        found.append(argument)
    return found
