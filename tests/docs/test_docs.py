"""The documentation builds without warnings, and each of its code blocks runs."""

import importlib
import importlib.util
import inspect
import pkgutil
import re
import shutil
import subprocess
import sys

import pytest
from docs_fixtures import DOCS, ROOT, blocks, run_page

import polyrec
from polyrec.core import registry

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


def build(folder):
    """The build of `make docs` over a copy of the pages and the sources."""
    for module in ("zensical", "mkdocstrings"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed: pip install 'polyrec[docs]'")
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.fixture
def copied(tmp_path):
    """What a build reads."""
    for name in ("docs", "src"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    (tmp_path / "scripts").mkdir()
    for name in ("mkdocs.yml", "scripts/docs_docstrings.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_builds_without_warnings(copied):
    """A link to nothing, or a docstring that cannot be rendered, is noticed by readers only."""
    built = build(copied)
    assert built.returncode == 0, built.stdout + built.stderr
    assert (copied / "build" / "docs" / "index.html").exists()


def test_planted_warnings_fail_the_build(copied):
    """A check that cannot fail: `--quiet` once hid the warnings that `--strict` counts."""
    plants = [
        ("docs/tasks.md", "# ", "# [a page](nothing.md) "),
        ("docs/experts.md", "# ", "# [a part of one](data.md#nothing-is-called-so) "),
        ("src/polyrec/modules/weighting/fixed.py", 'r"""', 'r"""See [it][polyrec.nothing]. '),
    ]
    for file, old, new in plants:
        text = (copied / file).read_text(encoding="utf-8")
        assert old in text
        (copied / file).write_text(text.replace(old, new, 1), encoding="utf-8")
    built = build(copied)
    assert built.returncode != 0
    assert f"{len(plants)} issues found" in built.stdout + built.stderr


def described(docstring):
    """Names that the Args section of a docstring describes."""
    section = re.search(r"^( *)Args:\n((?:\1 .*\n|\n)+)", (docstring or "") + "\n", re.MULTILINE)
    if section is None:
        return set()
    entries = re.findall(rf"^{section[1]}    ([*\w]+(?:, [*\w]+)*):", section[2], re.MULTILINE)
    return {name.strip("* ") for entry in entries for name in entry.split(",")}


def public_callables():
    """Public functions, classes and methods of all modules, with the names of their parameters."""
    for module in pkgutil.walk_packages(polyrec.__path__, "polyrec."):
        if "__main__" in module.name:
            continue
        for name, found in vars(importlib.import_module(module.name)).items():
            if name.startswith("_") or getattr(found, "__module__", None) != module.name:
                continue
            if inspect.isfunction(found):
                yield found.__qualname__, found.__doc__, {*inspect.signature(found).parameters}
            elif inspect.isclass(found):
                fields = {field for cls in found.__mro__ for field in vars(cls).get("__annotations__", {})}
                for way in ("__init__", "_sanitize_parameters"):  # the second is how transformers' pipelines are called
                    if inspect.isfunction(getattr(found, way, None)):
                        fields |= {*inspect.signature(getattr(found, way)).parameters}
                yield name, found.__doc__, fields
                for key, method in vars(found).items():
                    method = getattr(method, "__func__", method)
                    if inspect.isfunction(method) and not key.startswith("_"):
                        yield f"{name}.{key}", method.__doc__, {*inspect.signature(method).parameters}


def test_documented_parameters_exist():
    """A parameter that was renamed keeps its old name in the docstring, and a reader gives an unknown argument."""
    wrong = {name: extra for name, doc, known in public_callables() if (extra := described(doc) - known)}
    assert wrong == {}


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
