"""Runs the code blocks of a page of the documentation, in order, as a reader would."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyrec.cli.main import main

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
_FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<code>.*?)^(?P=indent)```\s*$", re.MULTILINE | re.DOTALL)
_TITLE = re.compile(r'title="([^"]+)"')


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Args:
        language: after the fence; "" = none.
        title: the file that it is, if any.
        line: of its first line of code, from 1.
    """

    language: str
    title: str | None
    code: str
    line: int


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page."""
    text = page.read_text(encoding="utf-8")
    for found in _FENCE.finditer(text):
        title = _TITLE.search(found["info"])
        code = re.sub(rf"^{found['indent']}", "", found["code"], flags=re.MULTILINE)
        line = text.count("\n", 0, found.start("code")) + 1
        yield Block(found["info"].partition(" ")[0].strip(), title and title[1], code, line)


def run_page(page: Path) -> None:
    """Run the blocks of a page in the working directory, Python in one namespace; the first that fails is named.

    A block of any language with a title is the file of that name.
    """
    namespace: dict[str, Any] = {"__name__": "docs"}
    for block in blocks(page):
        place = f"{page.name}, line {block.line}"
        if block.title is not None:
            Path(block.title).parent.mkdir(parents=True, exist_ok=True)
            Path(block.title).write_text(block.code, encoding="utf-8")
        elif block.language == "python":
            # Empty lines in front, so that a traceback names the line of the page.
            exec(compile("\n" * (block.line - 1) + block.code, str(page), "exec"), namespace)
        elif block.language == "shell":
            for command in block.code.replace("\\\n", " ").splitlines():
                run_command(command, place)
        elif block.language not in ("", "text"):
            raise AssertionError(f"{place}: a block of {block.language!r} without a title, which nothing tries")


def run_command(command: str, place: str) -> None:
    """Run `polyrec ...` in this process; of other commands see that what they name is there."""
    words = shlex.split(command, comments=True)
    if not words:
        return
    match words:
        case ["polyrec", *arguments]:
            assert main(arguments) == 0, f"{place}: {command}"
        case ["pip", "install", what]:
            project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
            found = re.fullmatch(r"\.(?:\[([a-z,-]+)\])?", what)
            assert found, f"{place}: {command}"
            assert {*(found[1] or "dev").split(",")} <= {*project["optional-dependencies"]}, f"{place}: {command}"
        case ["make", target, *_]:
            makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
            assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), f"{place}: no such target: {command}"
        case ["accelerate", "launch", "--config_file", config, script, _recipe]:
            missing = [path for path in (config, script) if not (ROOT / path).exists()]
            assert not missing, f"{place}: {command}"
        case _:
            raise AssertionError(f"{place}: nothing here can try the command {command!r}")
