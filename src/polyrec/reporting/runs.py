"""`polyrec report`: one HTML page about one or several runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from polyrec.core.swap import recover
from polyrec.reporting.examples import Example
from polyrec.reporting.report import report_page, run_names
from polyrec.runs.transaction import put_file
from polyrec.tracking.run_files import RunFiles

PAGE_NAME = "report.html"


def report_runs(runs: Sequence[str], output: str | None = None, num_users: int = 3) -> Path:
    """Write the page, into the folder of the first run by default.

    Args:
        num_users: example users of each run; their events are read from its recipe's table and go onto the page without
            ids.
    """
    files = [RunFiles.read(recover(run)) for run in runs]
    examples: dict[str, Sequence[Example]] = {}
    if num_users:
        from polyrec.reporting.choose_examples import example_users  # the one part that needs the models

        examples = {name: example_users(run.folder, num_users) for name, run in run_names(files).items()}
    path = Path(output) if output else files[0].folder / PAGE_NAME
    put_file(path, report_page(files, examples))
    print(f"written to {path} ({path.stat().st_size / 1e6:.2f} MB)")
    return path
