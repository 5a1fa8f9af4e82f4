"""What packages above offer to those below, which do not import them.

`model.recommend(...)` is a convenience: `polyrec.inference` recommends WITH a model, so a model cannot import it. A
function is offered when its file is imported, and `import polyrec` imports polyrec.inference as a whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

_F = TypeVar("_F", bound=Callable[..., Any])
_OFFERED: dict[str, Callable[..., Any]] = {}


def offer(function: _F) -> _F:
    """Decorator: enter a function under its name.

    Example:
        >>> @offer
        ... def double(x):
        ...     return 2 * x
        >>> offered("double")(3)
        6
    """
    _OFFERED[function.__name__] = function
    return function


def offered(name: str) -> Callable[..., Any]:
    """The function of that name.

    Example:
        >>> offered("reccomend")
        Traceback (most recent call last):
            ...
        RuntimeError: nothing has offered 'reccomend' yet: import polyrec.inference first
    """
    if name not in _OFFERED:
        raise RuntimeError(f"nothing has offered {name!r} yet: import polyrec.inference first")
    return _OFFERED[name]
