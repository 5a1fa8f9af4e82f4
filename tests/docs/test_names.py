"""Commands, flags and dotted names in the documentation exist."""

import argparse
import importlib
import re

import pytest
from docs_fixtures import DOCS, ROOT

from polyrec.cli.main import build_parser

PAGES = sorted(
    [
        *DOCS.rglob("*.md"),
        *ROOT.glob("model_cards/*.md"),
        *ROOT.glob("scripts/**/*.md"),
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
    ]
)
# Of other programs that pages call.
OTHER_FLAGS = {"--break-system-packages", "--help", "--no-cov"}


def commands():
    """{command: its flags} of `polyrec`."""
    (subparsers,) = (a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return {n: {f for a in p._actions for f in a.option_strings} for n, p in subparsers.choices.items()}


def code_of(text):
    """Spans and lines of code of a page; a line that ends in a backslash goes on."""
    fences = re.findall(r"^```[^\n]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [line for fence in fences for line in re.sub(r"\\\n", " ", fence).splitlines()]
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))
    return [*lines, *spans]


def unknown_commands(text, known):
    """What a page says of `polyrec` on a command line that is not so."""
    every = set().union(*known.values()) | OTHER_FLAGS
    for code in code_of(text):
        line = code.split("#")[0]
        if called := re.match(
            r"\s*(?:\$ )?(?:accelerate launch (?:-\S+ \S+ )*|CUDA\S+ )?-?m? ?polyrec ([a-z][\w-]*)", line
        ):
            if called[1] not in known:
                yield f"polyrec {called[1]}"
                continue
            flags, line = known[called[1]], line[called.end() :]  # of a launcher before it: its own
        elif re.fullmatch(r"(?:--[a-z][\w-]*(?:[ =/,]\S*)*\s*)+", line):
            flags = every
        else:
            continue
        yield from (
            f"{flag} in {code!r}"
            for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", line)
            if flag not in flags | OTHER_FLAGS
        )


def exists(name):
    """Whether a dotted name can be imported, or is an attribute of what can."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ImportError:
            continue
        for part in parts[end:]:
            fields = getattr(found, "__annotations__", {})
            if not hasattr(found, part):
                return part in fields and part == parts[-1]
            found = getattr(found, part)
        return True
    return False


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_names_exist(page):
    """A command, flag or module that was renamed keeps its old name on a page, and a reader's first try fails."""
    text = page.read_text(encoding="utf-8")
    names = {
        n.rstrip(".") for code in code_of(text) for n in re.findall(r"(?<![\w./-])polyrec(?:\.\w+)+(?!\w*[/:-])", code)
    }
    names = {n for n in names if not n.endswith((".yaml", ".git", ".json", ".parquet", ".whl"))}
    assert sorted(n for n in names if not exists(n)) == []
    assert sorted(unknown_commands(text, commands())) == []


def test_wrong_names_are_found():
    """A check that cannot fail."""
    page = "```\npolyrec trian x\npolyrec train x --lr 1\n```\nSet `--no-such 3` or `polyrec demo RUN --userz`."
    found = list(unknown_commands(page, commands()))
    assert [f.split(" in ")[0] for f in found] == ["polyrec trian", "--lr", "--no-such", "--userz"]
    assert exists("polyrec.Recommender.recommend") or exists("polyrec.inference.recommender.Recommender.recommend")
    assert not exists("polyrec.heads.binary")


def test_classes_of_pages_for_contributors_exist():
    """A class that was renamed keeps its old name where somebody looks for the one to extend."""
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    defined = set(re.findall(r"\w+", sources))
    for page in (ROOT / "CONTRIBUTING.md", DOCS / "overview.md", DOCS / "extending.md"):
        spans = re.findall(r"`([A-Z]\w+[A-Z]\w+)(?:\([^`]*)?`", page.read_text(encoding="utf-8"))
        assert spans
        assert set(spans) - defined == set(), page.name
