"""The registry: built-in parts by file name, parts of one's own by decorator."""

from __future__ import annotations

import subprocess
import sys

import pytest

from polyrec.core.registry import COUPLINGS, EXPERTS, HEADS, WEIGHTINGS, Registry, checked_options, nearest


def register(registry: Registry, name: str, module: str = "mine") -> type:
    """Register a new class as if it came from `module`."""
    return registry.register(name)(type("Part", (), {"__module__": module}))


@pytest.fixture
def registry() -> Registry:
    """A registry over the heads' folder that does not touch the heads."""
    return Registry("head", "polyrec.modules.heads")


@pytest.mark.parametrize("registry", [HEADS, EXPERTS, COUPLINGS, WEIGHTINGS])
def test_every_file_of_a_folder_registers_its_name(registry):
    """Prevents a part from existing as a file that nobody can name."""
    assert registry.names()
    for name in registry.names():
        assert registry.get(name).__module__ == f"{registry.package}.{name}"


def test_a_part_of_ones_own_is_found(registry):
    """Prevents a decorated class from being known but not built, or built but not listed."""
    mine = register(registry, "mine")
    assert registry.get("mine") is mine
    assert registry.check("mine") == "mine"
    assert registry.names() == sorted([*HEADS.names(), "mine"])


def test_unknown_names_list_the_known_and_the_nearest(registry):
    """Prevents a misspelt part from ending in an import error, and the base class from passing for a part."""
    for find in (registry.check, registry.get):
        with pytest.raises(ValueError, match="unknown head 'binry'; did you mean 'binary'. known: binary,"):
            find("binry")
    with pytest.raises(ValueError, match="unknown head 'base'"):
        registry.get("base")


def test_a_name_belongs_to_one_class(registry):
    """Prevents one plug-in from replacing another of the same class name in silence."""
    register(registry, "mine", "first")
    register(registry, "mine", "first")  # a module that is imported twice registers twice
    with pytest.raises(ValueError, match=r"head 'mine' is already registered by first\.Part"):
        register(registry, "mine", "second")


def test_built_in_names_are_taken_before_their_file_is_imported(registry):
    """Prevents a plug-in from replacing a built-in head only because it was imported first."""
    with pytest.raises(
        ValueError, match=r"head 'binary' is built in \(polyrec.modules.heads.binary\): choose another name"
    ):
        register(registry, "binary")
    assert register(registry, "binary", "polyrec.modules.heads.binary") is registry.get("binary")


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ({"reads": "pair", "metrics": ("mae",), "output_kind": "number"}, None),
        ({"metrics": ("mae",)}, "head 'mine' .Mine.: reads is None; it must be 'pair'"),
        ({"reads": "pairs"}, "reads is 'pairs'; it must be"),
        (
            {"reads": "pair", "output_kind": "numbr"},
            "unknown output_kind 'numbr'; did you mean 'number'. known: bernoulli,",
        ),
        ({"reads": "pair", "metrics": ("rsme",)}, "unknown metric 'rsme'; did you mean 'rmse'. known: auc, gauc,"),
        ({"reads": "pair", "metrics": ("class_logloss",)}, "the first metric, 'class_logloss', must be one of auc"),
        ({"reads": "state", "metrics": ("auc",)}, "unknown metric 'auc'; known: ndcg, recall"),
    ],
)
def test_a_head_is_checked_when_it_is_registered(declared, words):
    """Prevents a head from failing after its training, when it is evaluated, or never, as a metric that is left out."""
    from polyrec.modules.heads.base import TaskHead

    heads, head = Registry("head", "polyrec.modules.heads", "TaskHead"), type("Mine", (TaskHead,), declared)
    if words is None:
        assert heads.register("mine")(head) is heads.get("mine")
        return
    with pytest.raises(ValueError, match=words):
        heads.register("mine")(head)
    assert "mine" not in heads.names()


@pytest.mark.parametrize("registry", [HEADS, EXPERTS, COUPLINGS, WEIGHTINGS])
def test_a_part_is_of_its_kind(registry):
    """Prevents any class from passing for a head until the first batch."""
    with pytest.raises(ValueError, match=f"{registry.kind} 'mine': .* must be a subclass of {registry.package}.base."):
        register(registry, "mine")


def test_checking_a_name_imports_no_torch():
    """Prevents the command line's --help and recipe checks from taking seconds."""
    code = "import sys; sys.argv = ['polyrec']; from polyrec.core.registry import HEADS; HEADS.check('binary'); print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


def test_options_are_filled_in_and_checked():
    """Prevents a misspelt option from being ignored, and a default from being shared and changed."""
    defaults = {"members": 1, "depth": 2}
    options = checked_options({"members": 4}, defaults, "expert layer 'x'")
    assert options == {"members": 4, "depth": 2}
    options["depth"] = 9
    assert defaults == {"members": 1, "depth": 2}
    with pytest.raises(
        ValueError, match="unknown option 'dept' of expert layer 'x'; did you mean 'depth'. known: depth, m"
    ):
        checked_options({"dept": 1}, defaults, "expert layer 'x'")


def test_far_names_get_no_suggestion():
    """Prevents a hint that sends the reader in the wrong direction."""
    assert nearest("zzz", ["binary"]) == "known: binary"
    assert nearest("zzz", []) == "known: none"
