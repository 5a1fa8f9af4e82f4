"""The documentation builds without warnings, and each of its code blocks runs."""

import importlib.util
import re
import shutil
import subprocess
import sys

import pytest
from docs_fixtures import DOCS, ROOT, blocks, run_page

import polyrec
from polyrec import registry

FIRST = DOCS / "quickstart.md"
KINDS = [kind for kind in vars(registry).values() if isinstance(kind, registry.Registry)]
PAGES = sorted(page for page in DOCS.rglob("*.md") if page != FIRST)


@pytest.fixture(autouse=True)
def registries():
    """Parts that a page registers are gone after it; built-in ones that were imported for it stay."""
    before = [set(kind._classes) | kind._built_in() for kind in KINDS]
    yield
    for kind, names in zip(KINDS, before, strict=True):
        for name in set(kind._classes) - names:
            del kind._classes[name]


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """What the quick start leaves behind: tables and trained runs."""
    folder = tmp_path_factory.mktemp("quickstart")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_page(FIRST)
    return folder


def test_quick_start(started):
    """A first page whose code fails loses every newcomer."""
    for run in ("mine", "recipe", "short"):
        assert (started / "runs" / run / "model.safetensors").exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_code_runs(page, started, tmp_path, monkeypatch):
    """Code that was true of an earlier version stays on a page. Pages go on with the files of the quick start."""
    if any(block.language in ("python", "shell") for block in blocks(page)):
        shutil.copytree(started, tmp_path / "work")
        monkeypatch.chdir(tmp_path / "work")
    run_page(page)


def test_every_page_is_in_the_menu():
    """A page that no menu leads to is never read, and mkdocs only warns of it when it is built."""
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r"[\w/-]+\.md", menu))
    assert named == {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}


def test_builds_without_warnings(tmp_path):
    """A link to nothing, or a docstring that cannot be rendered, is noticed by readers only."""
    for module in ("mkdocs", "material", "mkdocstrings"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed: pip install 'polyrec[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "site" / "index.html").exists()


def test_reference_is_complete():
    """A public name or a part that was added later is missing from the reference."""
    named = set(re.findall(r"^::: (\S+)", "".join(p.read_text() for p in (DOCS / "api").glob("*.md")), re.MULTILINE))
    public = {f"{getattr(polyrec, name).__module__}.{name}" for name in polyrec.__all__}
    parts = {cls for kind in KINDS for cls in map(kind.get, kind._built_in())}
    assert public | {f"{cls.__module__}.{cls.__qualname__}" for cls in parts} <= named


def test_tables_of_parts_are_complete():
    """A head or coupling that was added later is missing where one is chosen."""
    page = (DOCS / "tasks.md").read_text(encoding="utf-8")
    for kind in (registry.HEADS, registry.COUPLINGS):
        assert kind._built_in() <= set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
