"""The scripts in examples/ run as they are."""

import re
import runpy

import pytest
from docs_fixtures import ROOT

SCRIPTS = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_it_runs(script, capsys):
    """Prevents an example that was true of an earlier version."""
    runpy.run_path(str(script), run_name="__main__")
    assert capsys.readouterr().out.count("\n") >= 3


def test_each_is_in_the_list():
    """Prevents an example that nobody finds, and a list of one that is gone."""
    text = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    assert sorted(script.name for script in SCRIPTS) == sorted(set(re.findall(r"\]\((\w+\.py)\)", text)))
