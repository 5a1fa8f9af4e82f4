"""Do the tests notice a wrong line? Changes one comparison, operator or number at a time and runs the tests of it.

    pytest -n 2 --dist loadfile --cov --cov-context=test     # which test runs which line, once: .coverage
    python scripts/mutants.py --mutants 200

A mutant that no test fails on is printed with its line: a check that is missing, or a change that changes nothing.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from coverage import CoverageData

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "polyrec"
SECONDS = 300  # a mutant that loops for ever counts as noticed
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
    """

    path: Path
    line: int
    start: int
    end: int
    text: str


def main() -> int:
    """Run the campaign; 1 if fewer than 95% of the mutants are noticed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mutants", type=int, default=200, help="how many (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="which ones (default: 0)")
    parser.add_argument("--jobs", type=int, default=2, help="processes at once (default: 2)")
    parser.add_argument(
        "--tests", type=int, default=60, help="tests per mutant, of those that run its line (default: 60)"
    )
    parser.add_argument("--only", default="", help="files whose path contains this text")
    options = parser.parse_args()
    covered = CoverageData(str(ROOT / ".coverage"))
    covered.read()
    files = [path for path in sorted(SOURCE.rglob("*.py")) if options.only in str(path)]
    chosen = random.Random(options.seed)
    places = [mutant for path in files for mutant in mutants_of(path)]
    sample = chosen.sample(places, min(options.mutants, len(places)))

    def attempt(mutant: Mutant) -> bool:
        tests = tests_of(covered, mutant)
        chosen_tests = random.Random(options.seed).sample(tests, min(options.tests, len(tests)))
        return bool(tests) and noticed(mutant, chosen_tests)

    with ThreadPoolExecutor(options.jobs) as pool:
        outcomes = list(pool.map(attempt, sample))
    for mutant in (m for m, killed in zip(sample, outcomes, strict=True) if not killed):
        old = (SOURCE.parent / mutant.path).read_text(encoding="utf-8").splitlines()[mutant.line - 1].strip()
        print(f"survives: {mutant.path}:{mutant.line}: {old}    ->    {mutant.text}")
    print(f"{sum(outcomes)} of {len(outcomes)} mutants noticed ({sum(outcomes) / max(len(outcomes), 1):.1%})")
    return int(sum(outcomes) < 0.95 * len(outcomes))


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
    for node in ast.walk(tree):
        changed = None if id(node) in annotations else _changed(node)
        if changed is not None:
            begin = starts[node.lineno - 1] + node.col_offset
            end = starts[node.end_lineno - 1] + node.end_col_offset
            yield Mutant(path.relative_to(SOURCE.parent), node.lineno, begin, end, f"({ast.unparse(changed)})")


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


def tests_of(covered: CoverageData, mutant: Mutant) -> list[str]:
    """Names of the tests that run a mutant's line."""
    lines = covered.contexts_by_lineno(str(SOURCE.parent / mutant.path))
    found = {context.partition("|")[0] for context in lines.get(mutant.line, [])}
    return sorted(name for name in found if name.startswith("tests/"))  # doctests import the tree that is not changed


def noticed(mutant: Mutant, tests: list[str]) -> bool:
    """Whether one of the tests fails with the mutant."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(SOURCE, Path(folder) / "polyrec", ignore=shutil.ignore_patterns("__pycache__"))
        path = Path(folder) / mutant.path
        source = path.read_bytes()
        path.write_bytes(source[: mutant.start] + mutant.text.encode() + source[mutant.end :])
        environment = os.environ | {"PYTHONPATH": folder, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--no-cov", *tests]
        try:
            found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            return True
    return found.returncode != 0


if __name__ == "__main__":
    sys.exit(main())
