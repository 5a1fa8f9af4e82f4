"""Odd inputs of every kind: tables, rows with lists, recipes, requests, flags and corrupted run folders.

    python scripts/fuzz.py --cases 10000

Each case is made of its kind and number alone, so that a bad one can be run again (`--kind table --first 17 --cases
1`). An input may be accepted or refused in one line of polyrec's own; everything else is a fault and is printed: a
traceback of Python or a library (raw), an answer that differs from what the input means (silent), a process that dies
(abort), takes too long (hang) or too much memory (memory).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # children are forked; threads of the parent would not be in them

from forked import Hang, limits, outcomes
from fuzz_cases import CASES, Refused, Silent, World

SECONDS, MEMORY = 30, 1 << 30  # a case may take
FAULTS = ("raw", "silent", "abort", "hang", "memory")


def main() -> int:
    """Run the cases and print what happened to them; 1 if any is a fault."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kind", choices=list(CASES), action="append", help="kinds of input; repeat (default: all)")
    parser.add_argument("--cases", type=int, default=1000, help="number of cases over all kinds (default: 1000)")
    parser.add_argument("--first", type=int, default=0, help="number of the first case of each kind (default: 0)")
    parser.add_argument("--output", metavar="FILE", help="write the faults as JSON")
    options = parser.parse_args()
    kinds = options.kind or list(CASES)
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        world = World(Path(folder))
        plan = [(kind, options.first + n) for kind in kinds for n in range(-(-options.cases // len(kinds)))]
        found = list(run(world, plan))
        print(table(found))
        print(f"{len(found)} cases in {time.perf_counter() - begin:.0f} s")
    faults = [case for case in found if case["outcome"] in FAULTS]
    for case in faults:
        print(f"{case['outcome']}: {case['kind']} {case['number']}: {case['about'][:200]}\n    {case['message'][:300]}")
    if options.output:
        Path(options.output).write_text(json.dumps(faults, indent=1) + "\n", encoding="utf-8")
    return 1 if faults else 0


def table(found: list[dict[str, Any]]) -> str:
    """Outcomes by kind of input."""
    columns = ("accepted", "refused", *FAULTS)
    counts = {kind: Counter(c["outcome"] for c in found if c["kind"] == kind) for kind in CASES}
    lines = [f"{'':<10}" + "".join(f"{name:>10}" for name in columns)]
    lines += [
        f"{kind:<10}" + "".join(f"{count[name]:>10}" for name in columns) for kind, count in counts.items() if count
    ]
    return "\n".join(lines)


def run(world: World, plan: Sequence[tuple[str, int]]) -> Iterator[dict[str, Any]]:
    """What happened to each (kind, number) of a plan."""
    found = outcomes(plan, lambda case: attempt(world, *case), 4 * SECONDS)
    for (kind, number), outcome in zip(plan, found, strict=True):
        died = {"outcome": "abort", "about": "", "message": "the process died or hung"}
        yield outcome or {"kind": kind, "number": number} | died


def attempt(world: World, kind: str, number: int) -> dict[str, Any]:
    """Run one case in this process and say what happened."""
    case, about = CASES[kind](world, number)
    result = {"kind": kind, "number": number, "about": about, "outcome": "accepted", "message": ""}
    before = _peak(reset=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with limits(SECONDS, 4 * MEMORY):
                case()
    except Silent as error:
        result |= {"outcome": "silent", "message": str(error)}
    except Hang:
        result |= {"outcome": "hang", "message": f"more than {SECONDS} s"}
    except MemoryError as error:
        result |= {"outcome": "memory", "message": f"MemoryError: {error}"}
    except Exception as error:
        own = isinstance(error, Refused | OSError) or (
            isinstance(error, ValueError) and _is_own(error)
        )  # as main() has it
        result |= {"outcome": "refused" if own else "raw", "message": f"{type(error).__name__}: {error}"}
        if not own:
            result["message"] += f" at {_place(error)}"
    if _peak() - before > MEMORY and result["outcome"] in ("accepted", "refused"):
        result |= {"outcome": "memory", "message": f"{(_peak() - before) >> 20} MiB"}
    return result


def _is_own(error: BaseException) -> bool:
    """Whether polyrec itself raised the error: a library's ValueError is a traceback like any other."""
    return "polyrec" in _place(error).split(":")[0].split("/")


def _place(error: BaseException) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{last.filename}:{last.lineno}"


def _peak(reset: bool = False) -> int:
    """The largest memory of this process since the last reset, bytes."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


if __name__ == "__main__":
    sys.exit(main())
