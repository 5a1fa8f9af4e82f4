"""The one reader of what was written: types, ranges, names; nothing is guessed and nothing is dropped."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import pytest

from polyrec.core.ranges import AT_LEAST_ONE, POSITIVE, SHARE
from polyrec.core.settings import SettingError, as_number, conform, read, read_value, section, shown


@dataclass
class Inner:
    share: Annotated[float, SHARE] = 0.5


@dataclass
class Settings:
    rate: Annotated[float, POSITIVE] = 1.0
    rows: Annotated[int, AT_LEAST_ONE] | None = None
    on: bool = False
    name: str = "x"
    unit: Literal["s", "ms"] = "s"
    names: tuple[str, ...] = ()
    shares: list[Annotated[float, SHARE]] = field(default_factory=list)
    inner: Inner | None = None
    weights: dict[str, Annotated[float, POSITIVE]] = field(default_factory=dict)
    pair: tuple[int, float] | None = None
    anything: Any = None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"rate": "1e-3"}, 0.001),  # YAML 1.1 reads it as text
        ({"rate": 2}, 2.0),
        ({"rate": np.float32(0.5)}, 0.5),
        ({"rows": np.int64(5)}, 5),
        ({"rows": "1e3"}, 1000),
        ({"rows": 3.0}, 3),
        ({"rows": None}, None),
        ({"on": np.True_}, True),
        ({"names": ["a", "b"]}, ("a", "b")),
        ({"shares": np.array([0.25, 0.5])}, [0.25, 0.5]),
        ({"inner": {"share": 1}}, Inner(1.0)),
        ({"weights": {"like": "2e0"}}, {"like": 2.0}),
        ({"pair": [1, 2]}, (1, 2.0)),
    ],
)
def test_what_is_unambiguous_is_converted(given, expected):
    """Prevents `learning_rate: 1e-3` from staying text, and numpy's numbers from being refused."""
    found = getattr(read(Settings, given), next(iter(given)))
    assert (found, type(found)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rate": "abc"}, "it.rate is 'abc'; it must be a number > 0"),
        ({"rate": 0}, "it.rate is 0; it must be a number > 0"),
        ({"rate": True}, "it.rate is True; it must be a number > 0"),
        ({"rate": float("nan")}, "it.rate is nan; it must be a number > 0, and finite"),
        ({"rate": float("inf")}, "it.rate is inf; it must be a number > 0, and finite"),
        ({"rate": "inf"}, "it.rate is 'inf'; it must be a number > 0"),
        ({"rate": None}, "it.rate is None; it must be a number > 0"),
        ({"rate": 10**400}, "it.rate is 1"),
        ({"rows": 1.5}, "it.rows is 1.5; it must be a whole number >= 1 or null"),
        ({"rows": True}, "it.rows is True; it must be a whole number >= 1 or null"),
        ({"on": "no"}, "it.on is 'no'; it must be true or false"),
        ({"on": 1}, "it.on is 1; it must be true or false"),
        ({"name": 3}, "it.name is 3; it must be text"),
        ({"unit": "mss"}, "it.unit is 'mss'; it must be 's' or 'ms'; did you mean 'ms'"),
        ({"names": "a"}, r"it.names is 'a'; it must be a list of texts, e.g. \['a'\]"),
        ({"names": {"a": 1}}, "it.names is {'a': 1}; it must be a list of texts"),
        ({"names": ["a", 1]}, r"it.names\[1\] is 1; it must be text"),
        ({"shares": [0.5, 1.5]}, r"it.shares\[1\] is 1.5; it must be a number in \[0, 1\]"),
        ({"inner": {"share": 2}}, r"it.inner.share is 2; it must be a number in \[0, 1\]"),
        ({"inner": {"shar": 1}}, "unknown key 'shar' in it.inner; did you mean 'share'. known: share"),
        ({"inner": 3}, "it.inner is 3; it must be a mapping of share or null"),
        ({"weights": {1: 1}}, "it.weights has the key 1; keys must be text"),
        ({"weights": {"like": -1}}, "it.weights.like is -1; it must be a number > 0"),
        ({"pair": [1]}, r"it.pair is \[1\]; it must be a list of 2: a whole number, a number or null"),
        ({"nmae": 3}, "unknown key 'nmae' in it; did you mean 'name'. known: "),
        ({None: 3}, "unknown key None in it"),
        ([1], r"it is \[1\]; it must be a mapping of some of rate"),
        (3, "it is 3; it must be a mapping"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(given, message):
    """Prevents a setting that is read as another one ("no" as true, true as 1) or dropped without a word."""
    with pytest.raises(ValueError, match=message) as error:
        read(Settings, given, "it")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


@dataclass(frozen=True)
class Checked:
    share: Annotated[float, SHARE] = 0.5

    def __post_init__(self) -> None:
        conform(self, where="checked")


def test_objects_made_in_python_are_checked_alike():
    """Prevents `Checked(share="5e-1")` from holding text because it came from no file."""
    assert Checked("5e-1").share == 0.5
    with pytest.raises(SettingError, match="checked.share is 'half'"):
        Checked("half")


def test_a_section_stands_in_front_of_the_name_once():
    """Prevents a message that says `rate` where the recipe says `training.rate`."""
    with pytest.raises(SettingError, match=r"^training\.rate is -1; it must be"), section("training"):
        read_value(Annotated[float, POSITIVE], -1, "rate")
    with pytest.raises(SettingError, match=r"^training\.rate is -1; it must be"), section("training"):
        read_value(Annotated[float, POSITIVE], -1, "training.rate")


def test_any_value_is_shown_in_a_short_line():
    """Prevents a message that fails itself (a number of 5,000 digits) or fills the terminal."""
    for value in (10**5000, "x" * 10_000, list(range(10_000)), {"a": [10**5000]}, object()):
        assert len(shown(value)) <= 80


def test_numbers_are_what_python_says():
    """Prevents other texts than those that YAML 1.1 fails to read as numbers from being taken for some."""
    for text in ("1e-3", "-2.5e4", ".5e2", "1.E5", "+3e0"):
        assert as_number(text) == float(text)
    for text in ("", "1", "2.5", "1,5", "1_000", "0x10", "1e", "e5", "١", "nan", "--1e1", "9" * 100):
        assert as_number(text) is None


@pytest.mark.parametrize(("where", "named"), [("columns", "columns"), ("", "Named")])
def test_what_is_missing_is_named_with_its_section(where, named):
    """Prevents a message that does not say where the missing name belongs."""

    @dataclass
    class Named:
        name: str

    with pytest.raises(SettingError, match=f"^{named}: has no 'name'|^{named} has no 'name'"):
        read(Named, {}, where)
