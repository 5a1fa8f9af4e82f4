"""Modules of a user's own that register heads, experts and other parts: imported before a name is looked up.

A recipe names them in `import:`, a command in --import. A run folder records the names and never the code: nothing is
imported because a run that was downloaded says so.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path


def import_parts(names: Iterable[str]) -> None:
    """Import modules that register parts; a second time does nothing.

    Args:
        names: of modules ("lognormal", "mine.heads": installed, or in the current folder) or paths of .py files.

    Raises:
        ValueError: there is no such module or file, or it fails when it is imported.

    Example:
        >>> import_parts(["lognorml"])
        Traceback (most recent call last):
            ...
        ValueError: import: no module 'lognorml' in the current folder or among the installed ones
    """
    for name in names:
        try:
            _import_file(Path(name)) if name.endswith(".py") else _import_module(name)
        except ValueError as error:
            raise ValueError(f"import: {error}") from error
        except Exception as error:  # whatever the code of a user raises
            raise ValueError(f"import: {name} cannot be imported ({type(error).__name__}: {error})") from error


def _import_module(name: str) -> None:
    here = str(Path.cwd())  # the command `polyrec` does not look there by itself
    if here not in sys.path:
        sys.path.append(here)  # at the end, where it hides no module
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module is there and needs another one
        raise ValueError(f"no module {name!r} in the current folder or among the installed ones") from error


def _import_file(path: Path) -> None:
    """Import a file as the module of its name, by which other processes find its classes."""
    if not path.is_file():
        raise ValueError(f"no such file: {path}")
    held = sys.modules.get(path.stem)
    if held is not None:
        # A module that is built into Python has no file.
        if Path(getattr(held, "__file__", None) or "").resolve() != path.resolve():
            raise ValueError(f"{path} has the name of another module, {path.stem!r}: rename the file")
        return
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise
