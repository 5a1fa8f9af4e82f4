"""One small registry for the parts a user may add: heads, their retrieval terms, experts ...

A part is ONE file in the part's folder, named like the part, holding one decorated class:

    # src/polyrec/modules/heads/binary.py
    @HEADS.register("binary")
    class BinaryHead(TaskHead): ...

Built-in names are read from the folder's file names, so a name can be checked (and misspellings explained) without
importing torch; the file is imported when the part is first built. A part of your own is registered by its decorator.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeVar

from polyrec.core.settings import nearest, read_like

T = TypeVar("T", bound=type)


class UnknownPart(ValueError):
    """A name that no part is registered by."""


def checked_options(given: Mapping[str, Any], defaults: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Options of a part with the defaults filled in; one that the part does not know, or of another type, is refused.

    Example:
        >>> checked_options({"membrs": 4}, {"members": 1}, "expert layer 'shared_bottom'")
        Traceback (most recent call last):
            ...
        ValueError: unknown option 'membrs' of expert layer 'shared_bottom'; did you mean 'members'? known: members
    """
    for key in given:
        if key not in defaults:
            raise ValueError(f"unknown option {key!r} of {what}; {nearest(key, sorted(defaults))}")
    read = {key: read_like(defaults[key], value, f"option {key!r} of {what}") for key, value in given.items()}
    return {**defaults, **read}


class Part:
    """What classes have that are registered by name."""

    @classmethod
    def check_part(cls) -> None:
        """Refuse a class that declares what nothing reads; called when it is registered."""


class Registry:
    """Names to classes for one kind of part.

    Args:
        kind: what an entry is, for messages ("head").
        package: the package whose modules are the built-in entries ("polyrec.modules.heads").
        base: class of the package's file `base`, a [`Part`], that every entry is a subclass of. None: any class.

    Example:
        >>> "binary" in HEADS.names()
        True
        >>> HEADS.check("binry")
        Traceback (most recent call last):
            ...
        polyrec.core.registry.UnknownPart: unknown head 'binry'; did you mean 'binary'? known: binary, ...
    """

    def __init__(self, kind: str, package: str, base: str | None = None) -> None:
        self.kind = kind
        self.package = package
        self.base = base
        self._classes: dict[str, type] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Class decorator that enters a class under `name`; a name already taken by another class is refused."""

        def enter(cls: T) -> T:
            held, home = self._classes.get(name), f"{self.package}.{name}"
            place = (cls.__module__, cls.__qualname__)
            if held is not None and (held.__module__, held.__qualname__) != place:
                raise ValueError(f"{self.kind} {name!r} is already registered by {held.__module__}.{held.__qualname__}")
            if cls.__module__ != home and name in self._built_in():
                raise ValueError(
                    f"{self.kind} {name!r} is built in ({home}): choose another name for {'.'.join(place)}"
                )
            self._check_class(name, cls)
            self._classes[name] = cls
            return cls

        return enter

    def _check_class(self, name: str, cls: type) -> None:
        """Refuse a class that would fail only when a model is built or evaluated with it."""
        if self.base is None:
            return
        base: type[Part] = getattr(importlib.import_module(f"{self.package}.base"), self.base)
        if not (isinstance(cls, type) and issubclass(cls, base)):
            raise ValueError(f"{self.kind} {name!r}: {cls!r} must be a subclass of {base.__module__}.{self.base}")
        try:
            cls.check_part()
        except ValueError as error:
            raise ValueError(f"{self.kind} {name!r} ({cls.__qualname__}): {error}") from error

    def names(self) -> list[str]:
        """All known names, sorted."""
        return sorted(self._built_in() | set(self._classes))

    def _built_in(self) -> frozenset[str]:
        return _files_of(self.package)

    def check(self, name: str) -> str:
        """Return `name` if it is known, else raise a ValueError that lists the known names and the nearest one."""
        if name not in self._classes and name not in (known := self.names()):
            raise UnknownPart(
                f"unknown {self.kind} {name!r}; {nearest(name, known)}; if it is your own, import the module that "
                "registers it first (recipe key `import:`, or --import)"
            )
        return name

    def get(self, name: str) -> Any:
        """Return the class registered as `name`, importing its file if needed."""
        self.check(name)
        if name not in self._classes:
            importlib.import_module(f"{self.package}.{name}")
        return self._classes[name]


@cache
def _files_of(package: str) -> frozenset[str]:
    """Names of the parts that are files of a package."""
    spec = importlib.util.find_spec(package)
    folder = spec.submodule_search_locations if spec is not None else None
    names = {m.name for m in pkgutil.iter_modules(folder) if not m.ispkg} if folder is not None else set()
    # "_...": what several parts are made of
    return frozenset(name for name in names - {"base"} if not name.startswith("_"))


HEADS = Registry("head", "polyrec.modules.heads", "TaskHead")
EXPERTS = Registry("expert layer", "polyrec.modules.experts", "ExpertLayer")
COUPLINGS = Registry("coupling", "polyrec.modules.coupling", "Coupling")
WEIGHTINGS = Registry("loss weighting", "polyrec.modules.weighting", "LossWeighting")
OBJECTIVES = Registry("objective", "polyrec.modules.objectives", "Objective")
RETRIEVAL_TERMS = Registry("retrieval term", "polyrec.modules.heads.terms")
SOFT_LOSSES = Registry("kind of output", "polyrec.distillation.soft_losses")
