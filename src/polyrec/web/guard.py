"""Which requests the page serves: see `polyrec.core.hosts`."""

from __future__ import annotations

from typing import Any

from polyrec.core.hosts import HostCheck, known_names


def guarded(host: str) -> dict[str, Any]:
    """Arguments of gradio's `launch` by which other sites are refused.

    Args:
        host: where the page listens.
    """
    from starlette.middleware import Middleware

    return {"app_kwargs": {"middleware": [Middleware(HostCheck, names=known_names(host))]}, "max_file_size": 1}
