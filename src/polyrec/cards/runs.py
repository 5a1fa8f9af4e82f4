"""`polyrec card`: a model card of a run, from the run's own files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polyrec.cards import CARD_NAME, About, unsupported_figures, write_card
from polyrec.cards.card import CURVES_NAME
from polyrec.core.schema import from_dict
from polyrec.core.swap import recover
from polyrec.runs.transaction import changed_run
from polyrec.tracking.run_files import RunFiles


def card_run(run: str, output: str | None = None, given: Mapping[str, Any] | None = None) -> Path:
    """Write the card of a run folder, README.md in it by default, and check that its figures are the run's.

    Args:
        given: entries of `About` that replace those of the recipe's `card` section.
    """
    files = RunFiles.read(recover(run))
    about = from_dict(About, {**files.recipe.get("card", {}), **(given or {})})
    path = Path(output) if output else files.folder / CARD_NAME
    if path.parent.resolve() == files.folder.resolve():
        with changed_run(files.folder, [path.name, CURVES_NAME, f"{path.stem}_{CURVES_NAME}"]) as draft:
            write_card(files, draft / path.name, about)
    else:
        write_card(files, path, about)
    wrong = unsupported_figures(path.read_text(encoding="utf-8"), [*files.sources, vars(about)])
    print(f"written to {path}")
    if wrong:
        print(f"of your own words, no file of the run says: {', '.join(wrong)}")
    return path
