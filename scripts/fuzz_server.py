"""Requests that schemathesis makes of the description of a server, those that it forbids included: no response is 5xx.

    python scripts/fuzz_server.py RUN [--examples 200]

Prints how many requests had which status, and exits with 1 if the server failed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode

_IMPOSSIBLE = ("Unsatisfiable", "SkipTest", "Skipped")
_LEFT_OUT = {("POST", "/admin/model")}  # it loads any folder


def fuzz_server(url: str, examples: int, seeded: bool = True, malformed: bool = False) -> Counter[tuple[str, str, int]]:
    """How many requests of each operation had which status.

    Args:
        examples: of each operation.
        seeded: the same ones at each call.
        malformed: such as the description forbids.

    Raises:
        AssertionError: a response was 5xx; it holds the request.
    """
    found: Counter[tuple[str, str, int]] = Counter()
    mode = GenerationMode.NEGATIVE if malformed else GenerationMode.POSITIVE
    for result in schemathesis.openapi.from_url(f"{url}/openapi.json").get_all_operations():
        operation = result.ok()
        if (operation.method.upper(), operation.path) in _LEFT_OUT:
            continue

        @settings(
            max_examples=examples,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
            derandomize=seeded,
            database=None,
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def call(case: Any) -> None:
            response = case.call(timeout=30)
            assert response.status_code < 500, (case.method, case.path, case.query, case.body, response.text)
            found[case.method, case.path, response.status_code] += 1

        try:
            call()
        except BaseException as error:
            # Of some operations no wrong request can be made, such as "/ready".
            if not malformed or type(error).__name__ not in _IMPOSSIBLE:
                raise
    return found


def main() -> int:
    from benchmarks.serving import server

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--examples", type=int, default=200, help="of each operation (default: 200)")
    options = parser.parse_args()
    found: Counter[tuple[str, str, int]] = Counter()
    with tempfile.TemporaryDirectory() as folder, server(options.run, Path(folder)) as (port, _, _):
        for malformed in (False, True):
            found += fuzz_server(f"http://127.0.0.1:{port}", options.examples, malformed=malformed)
    statuses = Counter[int]()
    for (_, _, status), number in found.items():
        statuses[status] += number
    print(json.dumps({"requests": found.total(), "statuses": dict(sorted(statuses.items()))}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
