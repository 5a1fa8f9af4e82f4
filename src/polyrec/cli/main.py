"""The command line. Only what a command needs is imported, so `--help` is quick."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from collections.abc import Sequence

from polyrec.cli import commands_batch as batch
from polyrec.cli import commands_distilling as distilling
from polyrec.cli import commands_exporting as exporting
from polyrec.cli import commands_serving as serving
from polyrec.cli import commands_training as training
from polyrec.cli import commands_using as using
from polyrec.cli.flags import add_import, check_run_folders, recorded_imports
from polyrec.cli.renamed import with_new_names
from polyrec.core.escapes import printable
from polyrec.core.own_parts import import_parts
from polyrec.core.progress import showing_bars
from polyrec.core.registry import UnknownPart
from polyrec.core.secrets import hide_secrets
from polyrec.core.settings import nearest
from polyrec.core.signals import Interrupted, handled, interrupt

_COMMANDS = (
    training.add_init,
    training.add_schema,
    training.add_prepare,
    training.add_train,
    training.add_profile,
    training.add_compare,
    training.add_tune,
    distilling.add_distill,
    training.add_finetune,
    training.add_update,
    using.add_evaluate,
    using.add_recommend,
    batch.add_recommend_all,
    batch.add_similar_items,
    batch.add_embeddings,
    using.add_explain,
    using.add_demo,
    serving.add_serve,
    serving.add_serve_key,
    serving.add_export_events,
    serving.add_retrain,
    distilling.add_score,
    distilling.add_factorize,
    distilling.add_quantize,
    using.add_card,
    using.add_report,
    using.add_push,
    exporting.add_export,
    using.add_encode_images,
)
_WITHOUT_MODEL = ("init", "schema", "encode-images", "serve-key")
MISTAKE, UNEXPECTED, BROKEN_PIPE = 2, 1, 141  # exit codes; shells have 128 + the signal


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    return _parser()[0]


def _parser() -> tuple[argparse.ArgumentParser, list[str]]:
    """The command line, and the names of its commands."""
    parser = argparse.ArgumentParser(prog="polyrec", description="One multi-task recommender model from an event log.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in _COMMANDS:
        add(commands)
    for name, command in commands.choices.items():
        if name not in _WITHOUT_MODEL:
            add_import(command)
        command.add_argument("--debug", action="store_true", help="show where an error comes from (or POLYREC_DEBUG=1)")
    return parser, list(commands.choices)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; errors are one line, a traceback is shown with --debug alone."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a title that a terminal cannot write is no reason to stop
    if not sys.stderr.isatty():  # read when transformers is imported, which commands do later
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    options = _parsed(with_new_names(sys.argv[1:] if arguments is None else arguments))
    try:
        with handled(interrupt):
            check_run_folders(options)
            import_parts(getattr(options, "imports", ()))
            with showing_bars():
                code = options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # Who read the output (`| head`) has gone; without this, Python complains once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except (Exception, KeyboardInterrupt) as error:
        if options.debug or os.environ.get("POLYREC_DEBUG", "") not in ("", "0"):
            raise
        code, message = told(error)
        if isinstance(error, UnknownPart):
            message += recorded_imports(options)
        print(f"polyrec {options.command}: {message}", file=sys.stderr)
        return code
    return code or 0


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The options; an unknown command is refused with the nearest one."""
    parser, known = _parser()
    if arguments and not arguments[0].startswith("-") and arguments[0] not in known:
        parser.error(f"unknown command {arguments[0]!r}; {nearest(arguments[0], known)}")
    return parser.parse_args(arguments)


def told(error: BaseException) -> tuple[int, str]:
    """The exit code and the one line that say what went wrong.

    Example:
        >>> told(ValueError("two\\nlines")), told(PermissionError(13, "Permission denied", "runs/a"))
        ((2, 'two lines'), (2, 'runs/a: permission denied'))
        >>> told(KeyError("x"))
        (1, "unexpected KeyError: 'x' (a fault of polyrec or of a library; --debug shows where)")
    """
    text = printable(" ".join(hide_secrets(str(error)).split()))
    if isinstance(error, KeyboardInterrupt):
        number = error.number if isinstance(error, Interrupted) else signal.SIGINT
        return 128 + number, text or "interrupted"
    if isinstance(error, MemoryError):
        return MISTAKE, f"not enough memory{f' ({text})' * bool(text)}: a smaller batch, model or table needs less"
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return MISTAKE, f"{error.filename}: {error.strerror.lower()}"
    if isinstance(error, ValueError | OSError):
        return MISTAKE, text or type(error).__name__
    kind = f"unexpected {type(error).__name__}"
    return UNEXPECTED, f"{kind}: {text} (a fault of polyrec or of a library; --debug shows where)"
