"""The field's words stand everywhere: who knows recommender systems must not translate a language of our own.

Read are comments, docstrings, messages, help texts and pages, and names in code; not keys and examples.
"""

from __future__ import annotations

import argparse
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
from docs_fixtures import DOCS, ROOT

from polyrec.cli.main import build_parser

# What to say -> what not to say.
WORDS = {
    "user, users": r"people(?:'s)?|persons?(?:'s)?",
    "item, candidate, positive, consumed, interacted with": r"(?:items?|it|one) (?:was|were|is|are|been) taken|"
    r"(?:has|have|had) taken|users? took|was not taken|taken items?",
    "impression, event, timestamp, context": r"moments?|being told|(?:is|are|was|were|be) told|told",
    "memorise": r"by heart",
    "trained on, learned": r"learnt|(?:has|have|had) (?:already )?learned",
    "split, training set, validation set, test set": r"(?:training|validation|valid|test) parts?|parts? of a split",
    "history, window, prefix": r"what was seen before",
    "score, predict, rank": r"answer(?:s|ed|ing)?|ask(?:s|ed|ing)?",
    "embedding, id embedding, embedding table": r"vectors? of (?:an |the )?(?:ids?|items?)|(?:id|item) vectors?",
    "layer, module": r"floors?|rooms?",
    "int8, low-rank": r"(?:whole )?numbers of 8 bits|weights of 8 bits",
    "teacher outputs, soft targets": r"beliefs?|believed",
    "examples, example builder": r"questions?",
    "cold-start item, unseen item": r"(?:never|ever) met|met in training",
}
# Standard uses. Each is as narrow as it can be: a wide one hides what the test is for.
ALLOWED = (
    r"\bask(?:s|ed)? for\b",  # a configuration asks for memory: it requests it
    r"\basks? (?:you )?(?:in a|on the) terminal|no terminal to ask in|ask its owner",  # a prompt, a person
    r"floor\(|Adam's moments",  # of mathematics
    r"next question of a user|Travel Stack Exchange",  # items of that data set are questions
    r"len\(asked\)",
)
# Names in code, split at "_" and capitals.
NAMES = {
    "user, users": {"person", "persons", "people"},
    "positive, interacted, consumed": {"taken", "took"},
    "candidate, requested, wanted": {"ask", "asks", "asked"},
    "given, known, shown": {"tell", "tells", "told"},
    "trained": {"learnt", "learns"},
    "time, timestamp": {"moment", "moments"},
    "score, prediction, output": {"answer", "answers", "answered", "answering"},
    "example, request, query": {"question", "questions"},
    "layer, module": {"floor", "floors"},
}
ALLOWED_NAMES = {
    **{
        path: {"person": "names of saved weights"}
        for path in ("modules/encoders/history", "modules/heads/search", "models/cross_encoder/modeling_cross_encoder")
    },
}
FUNCTIONS = {"floor", "tell"}  # of numpy, torch and open files, where they are called as attributes
PACKAGES = (
    *("core", "data", "hub", "inference", "evaluation", "tracking", "training", "runs", "cli", "web", "reporting"),
    *("cards", "serving"),
    *("modules", "models", "distillation"),
)
DATA = ("column_words.py",)  # lists of words that columns of other languages and habits are named by

_CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)
_NAMES = re.compile(r'^ *(?:>>>|\.\.\.) .*$|"\w+"|^ +[\w*]+(?:, [\w*]+)*: ', re.MULTILINE)  # examples, keys, arguments
_VALUES = re.compile(r"\{[^{}\n]*\}")  # of f-strings
_TEXTS = {tokenize.STRING, *([tokenize.FSTRING_MIDDLE] if sys.version_info >= (3, 12) else [])}
_ALLOWED = re.compile("|".join(ALLOWED))


def blank(pattern: re.Pattern, text: str) -> str:
    """The text without what a pattern finds, every line where it was."""
    return pattern.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)


def hits(text: str, first: int = 1) -> Iterator[tuple[int, str, str]]:
    """(line, word, what to say) of every word of ours in a text."""
    text = blank(_ALLOWED, blank(_CODE, text))
    for instead, pattern in WORDS.items():
        for found in re.finditer(rf"\b(?:{pattern})\b", text, re.IGNORECASE):
            yield first + text[: found.start()].count("\n"), found[0], instead


def names_of(path: Path) -> Iterator[tuple[int, str]]:
    """(line, name) of every name in a module's code, but for functions of other libraries."""
    before = ""
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        if token.type == tokenize.NAME and not (before == "." and token.string in FUNCTIONS):
            yield token.start[0], token.string
        before = token.string


def words_in(name: str) -> set[str]:
    """The words of a name, in lower case."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


def prose_of(path: Path) -> Iterator[tuple[int, str]]:
    """(first line, text) of the comments, docstrings and messages of a module."""
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
        elif token.type in _TEXTS and " " in token.string.strip("\"' "):
            yield token.start[0], blank(_VALUES, blank(_NAMES, token.string))


def said(name: str, texts: Iterator[tuple[int, str]]) -> list[str]:
    """What a failure shows."""
    return [f"{name}:{line}: {word!r}, say {instead}" for n, text in texts for line, word, instead in hits(text, n)]


@pytest.mark.parametrize("package", PACKAGES)
def test_sources(package):
    """A message or docstring in words of our own has to be guessed at by everybody else."""
    found = []
    for path in sorted((ROOT / "src/polyrec" / package).rglob("*.py")):
        if path.name not in DATA:
            found += said(path.relative_to(ROOT).as_posix(), prose_of(path))
    assert not found, "\n".join(found)


# Being rewritten elsewhere, so that their names come later: cli, runs and serving.
@pytest.mark.parametrize("package", [name for name in PACKAGES if name not in ("cli", "runs", "serving")])
def test_names_in_code(package):
    """Names that only their author understands; what messages and pages call otherwise cannot be searched for."""
    found = []
    for path in sorted((ROOT / "src/polyrec" / package).rglob("*.py")):
        name = path.relative_to(ROOT / "src/polyrec").with_suffix("").as_posix()
        for line, identifier in names_of(path):
            words = words_in(identifier) - set(ALLOWED_NAMES.get(name, ()))
            found += [f"{name}:{line}: {identifier!r}, say {to}" for to, ours in NAMES.items() if words & ours]
    assert not found, "\n".join(found)


def test_exceptions_for_names_are_needed():
    """An exception that nothing needs any more hides the next name."""
    for name, allowed in ALLOWED_NAMES.items():
        used = {w for _, found in names_of(ROOT / "src/polyrec" / f"{name}.py") for w in words_in(found)}
        assert set(allowed) <= used, name
    assert words_in("_asked_with") | words_in("ListTaken_UN") == {"asked", "with", "list", "taken", "un"}


@pytest.mark.parametrize("page", [*sorted(DOCS.rglob("*.md")), ROOT / "README.md"], ids=lambda p: p.name)
def test_pages(page):
    """The first page that a new user reads decides whether there is a second."""
    found = said(page.relative_to(ROOT).as_posix(), iter([(1, page.read_text(encoding="utf-8"))]))
    assert not found, "\n".join(found)


def test_help():
    """Help is put together of parts, some of which are no text in any one file."""
    (commands,) = (a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    helps = {name: parser.format_help() for name, parser in commands.choices.items()}
    found = [line for name, text in helps.items() for line in said(f"polyrec {name} --help", iter([(1, text)]))]
    assert not found, "\n".join(found)


def test_the_list_finds_what_it_is_for():
    """A pattern that finds nothing holds nothing; an exception that is too wide hides everything."""
    ours = "Items that nobody has taken are asked about: the answers to all questions of a person, learnt by heart."
    assert {word for _, word, _ in hits(ours)} == {
        *("has taken", "asked", "answers", "questions", "person", "learnt", "by heart"),
    }
    standard = "It asks for 2 GB; `asked` is a name. ```python\nanswer = person\n``` floor(x) of a user's events"
    assert not list(hits(standard))
