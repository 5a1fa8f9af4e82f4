"""Numbers of a configuration that make memory or modules, far above what anybody trains."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_DEEPEST = 50
_LONGEST = 1000  # entries of a list or mapping that each become a module
# Names that configurations of transformers and options of expert layers give to what is repeated, once per module.
# Sizes need no bound of their own: what they ask for is held against the files' tensors.
_REPEATED = (
    (re.compile(r"(?:^|_)(?:layers?|depths?|blocks?|stages)$"), 1000),
    (re.compile(r"(?:^|_)(?:experts|heads|members)$"), 1 << 12),
)
_LIMITS = {
    "num_items": 2**31,  # also held against the catalog's file
    "hidden_size": 1 << 16,
    "pair_size": 1 << 16,
    "intermediate_size": 1 << 20,
    "max_history": 1 << 20,
    "max_position_embeddings": 1 << 24,
    "vocab_size": 1 << 24,
    "numeric_bins": 1 << 16,
    "width": 1 << 16,  # of a column's encoder
}
_MODULES = ("tasks", "features", "objectives")


def check_numbers(values: dict[str, Any], where: str) -> None:
    """Refuse a configuration that asks for more of something than memory holds.

    Raises:
        ValueError: with the key, its number and what is loaded at most.

    Example:
        >>> check_numbers({"expert_options": {"num_experts": 10**9}}, "config.json")
        Traceback (most recent call last):
            ...
        ValueError: config.json: num_experts is 1,000,000,000; at most 4,096 is loaded
    """
    for name, number in _numbers(values):
        limit = _limit(name)
        if limit is not None and number > limit:
            raise ValueError(f"{where}: {name} is {number:,}; at most {limit:,} is loaded")
    for name in _MODULES:
        entries = values.get(name)
        if isinstance(entries, list | dict) and len(entries) > _LONGEST:
            raise ValueError(f"{where}: {name} has {len(entries):,} entries; at most {_LONGEST:,} are loaded")


def _limit(name: str) -> int | None:
    if name in _LIMITS:
        return _LIMITS[name]
    return next((limit for pattern, limit in _REPEATED if pattern.search(name)), None)


def walk(value: Any, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Every (key, value) of nested mappings and lists."""
    if depth > _DEEPEST:
        raise ValueError(f"values are nested more than {_DEEPEST} deep: the file is not polyrec's")
    if isinstance(value, dict):
        for name, entry in value.items():
            yield name, entry
            yield from walk(entry, depth + 1)
    elif isinstance(value, list):
        for entry in value:
            if isinstance(entry, dict | list):
                yield from walk(entry, depth + 1)


def _numbers(values: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in walk(values):
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int | float) and not isinstance(number, bool):
                yield name, number
