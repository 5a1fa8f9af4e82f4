"""Repositories made to harm are refused with a clear error, without running their code or filling the memory."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from malicious import RAN, SPOILERS
from model_fixtures import fit, tiny_model
from text_fixtures import tiny_bert

from polyrec import PolyRecForRecommendation, PolyRecProcessor
from polyrec.core.backbones import TextConfig, resolve
from polyrec.hub.safety import check_model, check_weights, named_as
from polyrec.modules.encoders.backbone import Backbone

LOAD = """
import json, pathlib, warnings
from transformers import AutoModel
from polyrec import PolyRecForRecommendation, PolyRecProcessor

def memory(name):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024

def load(kind, folder):
    if kind == "model":
        try:
            AutoModel.from_pretrained(folder)  # which reads the configuration first
        except (ValueError, OSError, RecursionError) as error:
            pass
        else:
            assert folder == "good", "AutoModel loads " + folder
    (PolyRecForRecommendation if kind == "model" else PolyRecProcessor).from_pretrained(folder)

load("model", "good"), load("processor", "good")
found = {}
for name, kind in json.loads(pathlib.Path("kinds.json").read_text()).items():
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    idle = memory("VmRSS")
    try:
        load(kind, name)
        said = None
    except ValueError as error:
        said = str(error)
    found[name] = {"said": said, "peak": memory("VmHWM") - idle}
pathlib.Path("/proc/self/clear_refs").write_text("5")
idle = memory("VmRSS")
filled = bytearray(300 << 20)
filled[:: 4096] = b"x" * len(filled[:: 4096])
del filled
found["control"] = {"peak": memory("VmHWM") - idle}
pathlib.Path("found.json").write_text(json.dumps(found))
"""


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    processor, _ = fit()
    tiny_model(processor).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def outcomes(running_hub, good, tmp_path_factory):
    """What happened to who loaded each of them, one after another."""
    place = tmp_path_factory.mktemp("repositories")
    for name, (_, _, spoil) in SPOILERS.items():
        shutil.copytree(good, place / name)
        spoil(place / name)
        (place / name / "manifest.json").unlink()  # nobody has to write one, and a stranger's says nothing
    shutil.copytree(good, place / "good")
    (place / "kinds.json").write_text(json.dumps({name: kind for name, (kind, _, _) in SPOILERS.items()}))
    clients = running_hub[1]
    clients.start(LOAD, place, place / "log", cache=str(place / "cache"), offline=False)
    assert clients.answers.readline() == "0\n", (place / "log").read_text()
    return json.loads((place / "found.json").read_text()), place


@pytest.mark.parametrize("name", SPOILERS)
def test_a_malicious_repository_is_refused(outcomes, name):
    """Prevents code of strangers from running, and files of strangers from being read or filling the memory."""
    found, place = outcomes
    said, peak = found[name]["said"], found[name]["peak"]
    assert said is not None, "it was loaded"
    assert re.search(SPOILERS[name][1], said), said
    assert found["control"]["peak"] > 250, "the measurement does not see memory"
    assert peak < 200, f"{peak:.0f} MiB"
    assert not (place / RAN).exists()
    with pytest.raises(ValueError, match=SPOILERS[name][1]):  # of this process, once a child has shown that it is safe
        (PolyRecForRecommendation if SPOILERS[name][0] == "model" else PolyRecProcessor).from_pretrained(place / name)


def test_names_and_sizes_are_refused_before_anything_is_downloaded(hub, client, good):
    """Prevents a download that fills the disk, and paths that a server makes up."""
    files = {p.relative_to(good).as_posix(): p.read_bytes() for p in good.rglob("*") if p.is_file()}
    load = 'from polyrec import PolyRecProcessor\nPolyRecProcessor.from_pretrained("ann/shop")'
    hub.put("ann/shop", files | {"statistics/../../../../escaped.parquet": b"x", "processor_config.json/../x": b"x"})
    assert client(load)[0] == 0
    assert not [line for line in hub.log if "escaped" in line or ".." in line]
    hub.put("ann/shop", files | {"processor_config.json": b"{" + b" " * (65 << 20)})
    before = len(hub.log)
    status, printed = client(load)
    assert status == 1
    assert "polyrec reads at most" in printed
    assert not [line for line in hub.log[before:] if "/resolve/" in line]


def test_a_base_runs_no_code_and_is_no_pickle(tmp_path, monkeypatch):
    """Prevents what is refused in a model from coming in by the backbone that it names, or by a question on a terminal."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    base = tmp_path / "base"
    shutil.copytree(tiny_bert(), base)
    config = json.loads((base / "config.json").read_text())
    (base / "evil.py").write_text(f"open({str(tmp_path / RAN)!r}, 'w')\nclass Model: pass\n")
    names = {name: "evil.Model" for name in ("AutoConfig", "AutoModel")}
    (base / "config.json").write_text(json.dumps(config | {"model_type": "evil", "auto_map": names}))
    with pytest.raises(ValueError, match="cannot read the backbone"):
        resolve(TextConfig(str(base)))
    (base / "config.json").write_text(json.dumps(config))
    (base / "model.safetensors").unlink()
    (base / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a folder with model\.safetensors"):
        Backbone(resolve(TextConfig(str(base)))).transformer()
    assert not (tmp_path / RAN).exists()


def test_the_base_of_a_model_is_found_in_its_file(good):
    """Prevents a large model's base from being refused as one whose weights the file does not hold."""
    held = check_model(good)
    base = [name.removeprefix("model.") for name in held if name.startswith("model.")]
    found = named_as(base, held, "model")
    assert set(found) == set(base)
    whole = named_as(list(held), held, "model")
    assert whole == held
    shapes = {name: tensor.shape for name, (_, tensor) in found.items()}
    check_weights(found, shapes, base[:1], may_lack=0)
    with pytest.raises(ValueError, match="do not hold"):
        check_weights(found, shapes | {"another": (1,)}, [], may_lack=0)
