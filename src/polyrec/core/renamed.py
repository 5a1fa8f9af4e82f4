"""Methods of parts under the names they had in an earlier version, which work, and warn, for one more release."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, ClassVar


def renamed_method(old: str, new: str) -> Callable[..., Any]:
    """A method `old` that calls the method `new`.

    Example:
        >>> class Part:
        ...     refuse = renamed_method("refuse", "option_error")
        ...     def option_error(self, option):
        ...         return f"bad {option}"
        >>> with warnings.catch_warnings(record=True) as found:
        ...     warnings.simplefilter("always")
        ...     Part().refuse("size"), str(found[0].message)
        ('bad size', 'refuse is now option_error; the old name will be removed')
    """

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        warnings.warn(f"{old} is now {new}; the old name will be removed", DeprecationWarning, stacklevel=2)
        return getattr(self, new)(*args, **kwargs)

    return method


class RenamedHooks:
    """Base of classes whose subclasses override methods that have another name today.

    A subclass that overrides one by its old name is used as if it had the new one.
    """

    renamed_hooks: ClassVar[Mapping[str, str]] = {}  # {old name: new name}

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for old, new in cls.renamed_hooks.items():
            if old in vars(cls):
                message = f"{cls.__name__}.{old} is now {new}; the old name will be removed"
                warnings.warn(message, DeprecationWarning, stacklevel=2)
                setattr(cls, new, vars(cls)[old])
