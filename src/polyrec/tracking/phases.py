"""Where time and memory of a piece of work go, phase by phase."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

_STATUS = Path("/proc/self/status")  # of Linux
_EVERY = 0.01  # seconds between two looks at memory and at what runs


@dataclass
class Usage:
    """What a phase took.

    Args:
        calls: how often it was begun.
        wall_seconds, cpu_seconds: of this process, all threads; without those of phases inside it.
        peak_bytes: most memory of own pages while it ran, see [`own_bytes`].
        within: {group: seconds of it spent in modules of the group}, from looks at what runs.
    """

    calls: int = 0
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_bytes: int = 0
    within: dict[str, float] | None = None


class Phases:
    """Measures phases, which may lie in each other; time counts for the innermost one.

    Args:
        groups: {group: parts of names of polyrec's modules}, whose share of each phase is counted. A look belongs to
            the first group of which a module is among those that run.

    Example:
        >>> with Phases() as phases:
        ...     with phases("read"):
        ...         with phases("sort"):
        ...             _ = sorted(range(1000))
        >>> [(name, found.calls) for name, found in phases.found.items()]
        [('read', 1), ('sort', 1)]
    """

    def __init__(self, groups: Mapping[str, tuple[str, ...]] | None = None) -> None:
        self.found: dict[str, Usage] = {}
        self.groups = dict(groups or {})
        self._open: list[str] = []
        self._since = (0.0, 0.0)
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch, args=(threading.get_ident(),), daemon=True)

    def __enter__(self) -> Phases:
        self._watcher.start()
        return self

    def __exit__(self, *unused: object) -> None:
        self._stop.set()
        self._watcher.join()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count what is done inside for a phase."""
        self.begin(name)
        try:
            yield
        finally:
            self.end()

    def begin(self, name: str) -> None:
        """A phase begins; `end` ends it."""
        self._account()
        self._open.append(name)
        self.found.setdefault(name, Usage()).calls += 1
        self._look_at_memory()

    def end(self) -> None:
        """The phase that began last ends."""
        self._account()
        self._look_at_memory()
        self._open.pop()

    def _account(self) -> None:
        now = time.perf_counter(), time.process_time()
        if self._open:
            usage = self.found[self._open[-1]]
            usage.wall_seconds += now[0] - self._since[0]
            usage.cpu_seconds += now[1] - self._since[1]
        self._since = now

    def _look_at_memory(self) -> None:
        if self._open:
            usage = self.found[self._open[-1]]
            usage.peak_bytes = max(usage.peak_bytes, own_bytes())

    def _watch(self, thread: int) -> None:
        """Look at the memory and at the modules that run, again and again."""
        before = time.perf_counter()
        while not self._stop.wait(_EVERY):
            name, now = self._open[-1:], time.perf_counter()
            if name:
                usage = self.found[name[0]]
                usage.peak_bytes = max(usage.peak_bytes, own_bytes())
                group = self._group(sys._current_frames().get(thread)) if self.groups else None
                if group is not None:
                    usage.within = usage.within or {}
                    usage.within[group] = usage.within.get(group, 0.0) + now - before
            before = now

    def _group(self, frame: FrameType | None) -> str | None:
        modules = set[str]()
        while frame is not None:
            modules.add(frame.f_globals.get("__name__", ""))
            frame = frame.f_back
        own = [module for module in modules if module.startswith("polyrec.")]
        for group, parts in self.groups.items():
            if any(part in module for module in own for part in parts):
                return group
        return None


def own_bytes() -> int:
    """Memory of this process's own pages now, those of mapped files left out; 0 where the system does not tell."""
    lines = _STATUS.read_text().splitlines() if _STATUS.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:")), 0)
