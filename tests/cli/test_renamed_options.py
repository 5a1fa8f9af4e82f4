"""Options that had another name: scripts of before run for one more release, and help teaches the new name alone."""

from __future__ import annotations

import argparse

import pytest

from polyrec.cli.main import build_parser
from polyrec.cli.renamed import RENAMED, with_new_names

ALL = [(command, old, new) for command, options in RENAMED.items() for old, new in options.items()]


def command_parser(command: str) -> argparse.ArgumentParser:
    (commands,) = (a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return commands.choices[command]


@pytest.mark.parametrize(("command", "old", "new"), ALL)
def test_old_spelling_is_read_as_the_new_one(command, old, new, capsys):
    """A rename that forgets one command breaks scripts that nobody here sees."""
    assert with_new_names([command, "x", old, "y", f"{old}=z"]) == [command, "x", new, "y", f"{new}=z"]
    error = capsys.readouterr().err
    assert error == f"polyrec {command}: {old} is now {new}; the old name will be removed\n" * 2
    options = {name for action in command_parser(command)._actions for name in action.option_strings}
    assert new in options, "the new name is an option of the command"
    assert old not in options
    assert old not in command_parser(command).format_help().split()


def test_only_where_it_was_an_option(capsys):
    """A folder, a value or an option of another command that has the old name is left alone, without a warning."""
    for arguments in (["evaluate", "--split", "part"], ["train", "--part", "x"], [], ["evaluate", "run", "--parts"]):
        assert with_new_names(arguments) == arguments
    assert capsys.readouterr() == ("", "")


def test_a_command_reads_it():
    """The warning is printed and then the option dropped: the value has to reach the command."""
    parsed = build_parser().parse_args(with_new_names(["evaluate", "run", "--part", "valid"]))
    assert parsed.split == "valid"
