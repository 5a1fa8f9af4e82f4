"""Heads of a user's own on the command line: `import:` of a recipe and --import."""

import subprocess
import sys

import pytest
import yaml
from run_fixtures import trained_run

from polyrec import Recommender
from polyrec.cli.main import main
from polyrec.core.own_parts import import_parts
from polyrec.core.registry import HEADS

TASKS = [{"name": "next_item", "head": "retrieval"}, {"name": "rating", "head": "doubled"}]
HEAD = '''"""A head outside of the package."""

from polyrec.core.registry import HEADS
from polyrec.modules.heads.regression import RegressionHead


@HEADS.register("doubled")
class DoubledHead(RegressionHead):
    """Twice a regression."""

    def predict(self, logits):
        return 2 * super().predict(logits)
'''


def forget():
    """As in a new process."""
    HEADS._classes.pop("doubled", None)
    for name in ("doubled", "nu_doubled"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose recipe imports a file."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "nu_doubled.py").write_text(HEAD)
    yield trained_run(folder, tasks=TASKS, slices=[], **{"import": [str(folder / "nu_doubled.py")]})
    forget()


@pytest.fixture(autouse=True)
def fresh(run):
    forget()


def test_a_recipe_names_what_to_import(run):
    """Prevents a head of one's own from being trained in Python alone, and a run that does not say what it needs."""
    assert yaml.safe_load((run / "recipe.yaml").read_text())["import"] == [str(run.parent / "nu_doubled.py")]
    assert not list(run.glob("*.py"))


def test_a_run_imports_nothing_by_itself(run, capsys):
    """Prevents a downloaded run from naming code that runs here, and a traceback where one line says what is missing."""
    for command in (["recommend", str(run), "--history", "3"], ["evaluate", str(run)]):
        assert main(command) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "unknown head 'doubled'; known: binary, " in said
        assert (
            "if it is your own, import the module that registers it first (recipe key `import:`, or --import)" in said
        )
        assert f"this run was trained with --import {run.parent / 'nu_doubled.py'}" in said
        assert "nu_doubled" not in sys.modules


def test_import_by_file_and_by_name(run, capsys, monkeypatch):
    """Prevents --import from finding installed modules alone."""
    assert main(["recommend", str(run), "--history", "3", "--import", str(run.parent / "nu_doubled.py")]) == 0
    forget()
    monkeypatch.chdir(run.parent)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    assert main(["recommend", str(run), "--history", "3", "--import", "nu_doubled"]) == 0
    assert "rating" in capsys.readouterr().out


def test_a_new_process_gets_one_line(run):
    """Prevents a wrapped exception of transformers from hiding what to import."""
    code = f"from polyrec import Recommender; Recommender.from_pretrained({str(run)!r})"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr.strip().split("\n")
    assert "unknown head 'doubled'" in said[-1]
    assert "or --import)" in said[-1]
    assert sum("Error" in line or "Exception" in line for line in said) <= 1, "\n".join(said)
    import_parts([str(run.parent / "nu_doubled.py")])
    assert "rating" in Recommender.from_pretrained(run).recommend([3], k=1)[0]


def test_what_cannot_be_imported(tmp_path):
    """Prevents a misspelt module from passing in silence, and code that fails from looking like a fault of polyrec."""
    (tmp_path / "broken.py").write_text("1 / 0")
    (tmp_path / "json.py").write_text("")
    for name, words in {
        "nu_no_such": "import: no module 'nu_no_such' in the current folder",
        f"{tmp_path}/none.py": "import: no such file",
        f"{tmp_path}/broken.py": r"broken.py cannot be imported \(ZeroDivisionError",
        f"{tmp_path}/json.py": "has the name of another module, 'json': rename the file",
    }.items():
        with pytest.raises(ValueError, match=words):
            import_parts([name])
    assert "broken" not in sys.modules
