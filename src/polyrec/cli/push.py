"""`polyrec push`: a run in, one commit on the Hub out, after a look at what leaves."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from polyrec.hub.errors import Refused
from polyrec.hub.push import push_folder
from polyrec.hub.scan import Scan, scan
from polyrec.inference.check import check_loads


def push_run(
    run: str,
    repo_id: str,
    *,
    include_users: bool = False,
    allow_columns: Sequence[str] = (),
    dry_run: bool = False,
    **options: Any,
) -> Scan:
    """Print what leaves and what stays, and push it.

    Args:
        run: folder of a trained run; users' rows are in it if its processor was saved with them.
        repo_id: user/name.
        dry_run: send nothing.
        options: see [`~polyrec.hub.push.push_folder`].

    Returns:
        what was looked at.
    """
    found = scan(run, include_users, allow_columns)
    print(found)
    found.check()
    if dry_run:
        print("nothing was sent (--dry-run)")
        return found
    if not (Path(run) / "README.md").exists():
        print(f"the card will say the least; `polyrec card {run}` writes one with figures")
    check_loads(Path(run))
    options["load"] = False  # it has been
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="It seems that you are about to commit a data file")
        try:
            done = push_folder(run, repo_id, include_users=include_users, allow_columns=allow_columns, **options)
        except Refused as error:
            raise ValueError(str(error)) from error
    print(f"pushed to {done.pr_url or done.commit_url}")
    return found
