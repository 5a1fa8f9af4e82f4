"""`polyrec export` and what of it `polyrec push` shares."""

from __future__ import annotations

import json

import pytest
from run_fixtures import trained_run

from polyrec.cli.main import main
from polyrec.core.manifest import check_manifest, read_manifest
from polyrec.hub.scan import scan
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor
from polyrec.serving.export_graphs import write_export


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained_run(tmp_path_factory.mktemp("exported"))


def test_a_run_is_exported_compared_recorded_and_shared(run, capsys):
    """Prevents graphs nobody compared, and a push of what must stay or of graphs of other weights."""
    assert main(["export", str(run), "--windows", "40"]) == 0
    assert "next_item" in capsys.readouterr().out
    report = json.loads((run / "onnx" / "parity.json").read_text())
    assert report["met"]
    assert report["requests"] == 40
    assert set(report["heads"]) == {"next_item", "like", "rating"}
    check_manifest(run)
    assert "onnx/pairs.onnx" in read_manifest(run).files
    (run / "torch").mkdir()
    (run / "torch" / "pairs.pt2").write_bytes(b"")
    found = scan(run)
    found.check()
    leaving = {file.path for file in found.leaving if file.path.startswith(("onnx", "torch"))}
    assert leaving == {
        f"onnx/{name}"
        for name in ("states.onnx", "catalog.onnx", "pairs.onnx", "items.safetensors", "items.json", "manifest.json",
                     "parity.json", "parity.md")
    }  # fmt: skip
    assert {"torch/pairs.pt2", "onnx/runtime.py"} <= set(found.staying)  # code never leaves
    manifest = run / "onnx" / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace(json.loads(text)["source"]["model.safetensors"], "0" * 64))
    assert any("run polyrec export again" in line for line in scan(run).refusals)


def test_what_cannot_be_exported_is_refused(run, capsys):
    """Prevents a traceback, or a file, in the place of the reason."""
    processor = PolyRecProcessor.from_pretrained(run)
    with pytest.raises(ValueError, match="unknown format 'onx'"):
        write_export(None, processor, run / "x", "onx")
    with pytest.raises(ValueError, match="a object cannot be exported"):
        write_export(object(), processor, run / "x")
    assert not (run / "x").exists()
    assert main(["export", str(run / "nothing")]) == 2
