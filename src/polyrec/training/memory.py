"""Memory of the process: keep what is freed for the next step, and how much there was at most."""

from __future__ import annotations

import ctypes
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc


def keep_freed_memory() -> bool:
    """Tell glibc to keep large freed blocks instead of giving them back to the system after every step.

    A training step on CPU allocates and frees the same large tensors again and again; by default each comes fresh from
    the system and is zeroed page by page. Keeping them raised training speed by a quarter here. Elsewhere than on
    glibc nothing happens. What was freed before, by preparing data, goes back to the system first.

    Returns:
        whether the setting was accepted.
    """
    try:
        library = ctypes.CDLL(None)
        mallopt, trim = library.mallopt, library.malloc_trim
    except (OSError, AttributeError, TypeError):  # not glibc: musl, macOS, Windows
        return False
    trim(0)
    return bool(mallopt(_M_MMAP_THRESHOLD, 1 << 30) and mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1))


def forget_peak_memory() -> None:
    """Let [`peak_memory`] count from now on; only Linux can."""
    counter = Path("/proc/self/clear_refs")
    if counter.exists():
        counter.write_text("5")


def peak_memory() -> int | None:
    """Most bytes of main memory that the process has held since [`forget_peak_memory`]; None where nobody knows."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), None)
