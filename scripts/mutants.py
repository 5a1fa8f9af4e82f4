"""Do the tests notice a wrong line? Changes one comparison, operator or number at a time and runs the tests of it.

    pytest -n 2 --dist loadfile --cov --cov-context=test --junitxml=.coverage.xml   # once: who runs what, how long
    python scripts/mutants.py --mutants 200

A mutant that no test fails on is printed with its line: a check that is missing, or a change that changes nothing.
"""

from __future__ import annotations

import argparse
import ast
import compileall
import importlib
import multiprocessing
import os
import random
import re
import shutil
import sys
import tempfile
import xml.etree.ElementTree
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from coverage import CoverageData
from forked import limits, outcomes

os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "polyrec"
SECONDS, MEMORY = 300, 1 << 40  # a mutant that loops for ever counts as noticed
IMPORTED = ("torch", "transformers", "datasets", "accelerate", "pandas", "pyarrow.parquet", "hypothesis", "peft")
_COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_OPERATORS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}


@dataclass(frozen=True)
class Mutant:
    """One changed place.

    Args:
        path: of the file, below src.
        line: where it begins, from 1.
        start, end: offsets of the replaced expression in the file's bytes.
        text: what stands there instead.
        scopes: first and last lines of the place, of the functions and classes around it from the inside, of the file.
    """

    path: Path
    line: int
    start: int
    end: int
    text: str
    scopes: tuple[tuple[int, int], ...]


def main() -> int:
    """Run the campaign; 1 if fewer than 95% of the mutants are noticed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mutants", type=int, default=200, help="how many (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="which ones (default: 0)")
    parser.add_argument("--jobs", type=int, default=2, help="processes at once (default: 2)")
    parser.add_argument(
        "--budget", type=float, default=60, help="seconds of tests per mutant, the shortest first (default: 60)"
    )
    parser.add_argument("--only", default="", help="files whose path contains this text")
    options = parser.parse_args()
    covered = CoverageData(str(ROOT / ".coverage"))
    covered.read()
    seconds = durations(ROOT / ".coverage.xml")
    files = [path for path in sorted(SOURCE.rglob("*.py")) if options.only in str(path)]
    places = [mutant for path in files for mutant in mutants_of(path)]
    sample = random.Random(options.seed).sample(places, min(options.mutants, len(places)))
    plan = [(mutant, tests_of(covered, seconds, mutant, options.budget)) for mutant in sample]
    compileall.compile_dir(SOURCE, quiet=1)
    for name in IMPORTED:  # once, not for every mutant
        importlib.import_module(name)
    with multiprocessing.get_context("fork").Pool(options.jobs) as pool:
        parts = pool.map(try_all, [plan[first :: options.jobs] for first in range(options.jobs)], chunksize=1)
    survivors = sum(parts)
    print(f"{len(plan) - survivors} of {len(plan)} mutants noticed ({1 - survivors / max(len(plan), 1):.1%})")
    return int(survivors > 0.05 * len(plan))


def try_all(plan: list[tuple[Mutant, list[str]]]) -> int:
    """Print the mutants that no test notices; how many they are."""
    survivors = 0
    outcome = outcomes(plan, noticed, 2 * SECONDS, recycle=1)
    for number, ((mutant, tests), seen) in enumerate(zip(plan, outcome, strict=True), 1):
        where = f"{mutant.path}:{mutant.line}"
        print(f"{number} of {len(plan)}, {survivors} survived before: {where}", file=sys.stderr, flush=True)
        if seen is False:  # None: the process died, which no run of the tests would overlook
            survivors += 1
            old = (SOURCE.parent / mutant.path).read_text(encoding="utf-8").splitlines()[mutant.line - 1].strip()
            print(f"survives {len(tests)} tests: {where}: {old}    ->    {mutant.text}", flush=True)
    return survivors


def mutants_of(path: Path) -> Iterator[Mutant]:
    """Every change of a file that the campaign may draw, one per place."""
    source = path.read_bytes()
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    tree = ast.parse(source)
    annotations = {
        id(n)
        for f in ast.walk(tree)
        for a in ("annotation", "returns")
        for n in ast.walk(getattr(f, a, None) or ast.Pass())
    }
    blocks = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    for node in ast.walk(tree):
        changed = None if id(node) in annotations else _changed(node)
        if changed is not None:
            begin = starts[node.lineno - 1] + node.col_offset
            end = starts[node.end_lineno - 1] + node.end_col_offset
            around = [(b.lineno, b.end_lineno) for b in blocks if b.lineno <= node.lineno <= b.end_lineno]
            around.sort(key=lambda lines: lines[1] - lines[0])
            scopes = ((node.lineno, node.lineno), *around, (1, len(starts)))
            yield Mutant(path.relative_to(SOURCE.parent), node.lineno, begin, end, f"({ast.unparse(changed)})", scopes)


def _changed(node: ast.AST) -> ast.expr | None:
    """The node with one thing wrong, or None."""
    match node:
        case ast.Compare(left, [op, *ops], comparators) if type(op) in _COMPARISONS:
            return ast.Compare(left, [_COMPARISONS[type(op)](), *ops], comparators)
        case ast.BinOp(left, op, right) if type(op) in _OPERATORS and not isinstance(
            left, ast.Constant | ast.JoinedStr
        ):
            return ast.BinOp(left, _OPERATORS[type(op)](), right)
        case ast.BoolOp(op, values):
            return ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), values)
        case ast.UnaryOp(ast.Not(), operand):
            return operand
        case ast.Constant(bool() as value):
            return ast.Constant(not value)
        case ast.Constant(int() | float() as value):
            return ast.Constant(value + 1)
    return None


def durations(path: Path) -> dict[str, float]:
    """Seconds of each test of a report in JUnit's format, by `file.class.name`."""
    cases = xml.etree.ElementTree.parse(path).iter("testcase")
    return {f"{case.get('classname')}.{case.get('name')}": float(case.get("time", 0)) for case in cases}


def tests_of(covered: CoverageData, seconds: dict[str, float], mutant: Mutant, budget: float) -> list[str]:
    """Names of the tests that run a mutant's line, as many as the budget allows.

    Short ones come first, with those of its own folder or file counted as ten times shorter. Code that runs in children
    which nothing traces (the Hub's tests fork) has none by its line: then those of its folder, `tests/hub` for
    `polyrec/hub`, and of its file, `test_fetch.py` for `fetch.py`.
    """
    lines = covered.contexts_by_lineno(str(SOURCE.parent / mutant.path))
    mirrored = re.compile(
        rf"tests/{'/'.join(mutant.path.parent.parts[1:])}/|tests/(.*/)?test_{mutant.path.stem}(_.*)?\.py::"
    )
    found: set[str] = set()
    for first, last in mutant.scopes[:-1]:
        found = found or _tests(context for line in range(first, last + 1) for context in lines.get(line, []))
    if not found:  # a default is read when its module is imported, by no test
        found = {test for test in _tests(covered.measured_contexts()) if mirrored.match(test)}
        found |= _tests(context for contexts in lines.values() for context in contexts)
    chosen: list[str] = []
    spent = 0.0

    def length(test: str) -> float:
        file, _, name = test.partition("::")
        return seconds.get(f"{file.removesuffix('.py').replace('/', '.')}.{name.replace('::', '.')}", 1.0)

    for test in sorted(found, key=lambda test: length(test) / (10 if mirrored.match(test) else 1)):
        if chosen and spent + length(test) > budget:
            break
        chosen.append(test)
        spent += length(test)
    return chosen


def _tests(contexts: Iterable[str]) -> set[str]:
    """The tests among contexts such as `tests/test_x.py::test_y|run`."""
    return {name for name in (context.partition("|")[0] for context in contexts) if name.startswith("tests/")}


def noticed(case: tuple[Mutant, list[str]]) -> bool:
    """Whether one of the tests fails with the mutant; for a child of a process that has not imported polyrec."""
    mutant, tests = case
    if not tests:
        return False
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(SOURCE, Path(folder) / "polyrec")  # with the compiled files
        path = Path(folder) / mutant.path
        source = path.read_bytes()
        path.write_bytes(source[: mutant.start] + mutant.text.encode() + source[mutant.end :])
        os.environ["PYTHONPATH"] = folder
        sys.path.insert(0, folder)
        os.chdir(ROOT)
        with open(os.devnull, "w") as nothing, limits(SECONDS, MEMORY):
            os.dup2(nothing.fileno(), 1)
            os.dup2(nothing.fileno(), 2)
            return pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--no-cov", "--assert=plain", *tests]) != 0


if __name__ == "__main__":
    sys.exit(main())
