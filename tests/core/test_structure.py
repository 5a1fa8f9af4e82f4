"""Files and functions that stay small enough to be read."""

from __future__ import annotations

import ast
from pathlib import Path

import polyrec
from polyrec.models.polyrec import modeling_polyrec

SOURCE = Path(polyrec.__file__).parent


def test_files_stay_under_400_lines():
    """Prevents a file from gathering ideas until nobody finds them."""
    lines = {path.relative_to(SOURCE).as_posix(): path.read_text().count("\n") for path in SOURCE.rglob("*.py")}
    assert {name: count for name, count in lines.items() if count >= 400} == {}


def test_forward_stays_readable():
    """Prevents the model's `forward` from growing losses, distillation and options again."""
    tree = ast.parse(Path(modeling_polyrec.__file__).read_text())
    (model,) = (c for c in tree.body if isinstance(c, ast.ClassDef) and c.name == "PolyRecForRecommendation")
    (forward,) = (f for f in model.body if isinstance(f, ast.FunctionDef) and f.name == "forward")
    docstring = forward.body[0]
    code = forward.end_lineno - forward.lineno + 1 - (docstring.end_lineno - docstring.lineno + 1)
    assert code <= 60
    named = [*forward.args.args, *forward.args.kwonlyargs]
    assert [own.arg for own in named] == ["self", "batch", "step", "items", "inputs_embeds", "read"]
