"""YAML as recipes are written: plain values, no key twice, nothing that grows when it is read."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from typing import Any

from polyrec.core.settings import SettingError, shown

_LARGEST = 1_000_000  # characters of a recipe
_DEEPEST = 100  # lists and mappings inside of each other


def read_yaml(text: str, what: str) -> Any:
    """Read YAML as values of JSON's types; dates become ISO text.

    Args:
        what: the file or flag, for messages.

    Raises:
        ValueError: it is no YAML, a key stands twice in one mapping, or it has aliases, which can blow up a file of a
            hundred bytes to gigabytes.

    Example:
        >>> read_yaml("{by: time, cuts: [2024-01-01, 2024-02-01]}", "--set split")
        {'by': 'time', 'cuts': ['2024-01-01', '2024-02-01']}
        >>> read_yaml("{lr: 1, lr: 2}", "--set training")
        Traceback (most recent call last):
            ...
        ValueError: --set training: the key 'lr' stands twice in one mapping (line 1): leave one of them out
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise ValueError(f"line {self.peek_event().start_mark.line + 1} has an alias (*name): write it out")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen = set()
            for key_node, _ in node.value:
                key = self.construct_object(key_node, deep=True)
                if not isinstance(key, str | int | float | bool | None | datetime.date):
                    raise ValueError(f"a key is {shown(key)} (line {key_node.start_mark.line + 1}): keys must be text")
                if key in seen:
                    line = key_node.start_mark.line + 1
                    raise ValueError(
                        f"the key {key!r} stands twice in one mapping (line {line}): leave one of them out"
                    )
                seen.add(key)
            return super().construct_mapping(node, deep)

    if len(text) > _LARGEST:
        raise ValueError(f"{what} has {len(text):,} characters, more than {_LARGEST:,}: it is no recipe")
    try:
        return plain(yaml.load(text, Loader))
    except SettingError as error:
        raise ValueError(f"{what}: {str(error).strip()}") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        mark = getattr(error, "problem_mark", None)  # of some of PyYAML's errors alone
        where = "" if mark is None else f" (line {mark.line + 1}, column {mark.column + 1})"
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        said = f"cannot read it as YAML: {problem}{where}" if isinstance(error, yaml.YAMLError) else problem
        raise ValueError(f"{what}: {said}") from error
    except RecursionError:
        raise ValueError(f"{what}: lists and mappings lie too deep in each other") from None


def plain(value: Any, name: str = "", depth: int = 0) -> Any:
    """Values of JSON's types of what YAML reads; what has no such type, and what is no finite number, is refused."""
    if depth > _DEEPEST:
        raise SettingError(name, "lies too deep in lists and mappings")
    if isinstance(value, float) and not math.isfinite(value):
        raise SettingError(name, f"is {value}; it must be a finite number")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, datetime.date):
        return value.isoformat()
    if isinstance(value, list | tuple):
        return [plain(entry, f"{name}[{n}]", depth + 1) for n, entry in enumerate(value)]
    if isinstance(value, Mapping):
        return {key: plain(entry, f"{name}.{key}".lstrip("."), depth + 1) for key, entry in value.items()}
    raise SettingError(name, f"is {shown(value)}; it must be text, a number, a list or a mapping")
