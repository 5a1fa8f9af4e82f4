"""The command line. Only what a command needs is imported, so `--help` is quick."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from polyrec.cli import commands_distilling as distilling
from polyrec.cli import commands_training as training
from polyrec.cli import commands_using as using
from polyrec.core.escapes import printable_lines
from polyrec.core.secrets import hide_secrets

_COMMANDS = (
    training.add_train,
    training.add_compare,
    training.add_tune,
    distilling.add_distill,
    training.add_finetune,
    training.add_update,
    using.add_evaluate,
    using.add_recommend,
    using.add_explain,
    using.add_demo,
    distilling.add_score,
    distilling.add_factorize,
    distilling.add_quantize,
    using.add_card,
    using.add_report,
    using.add_push,
    using.add_encode_images,
)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="polyrec", description="One multi-task recommender model from an event log.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in _COMMANDS:
        add(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; errors that a user can mend are one line, not a traceback."""
    options = build_parser().parse_args(arguments)
    try:
        options.run(options)
    except ValueError as error:
        print(f"polyrec {options.command}: {printable_lines(hide_secrets(str(error)))}", file=sys.stderr)
        return 2
    return 0
