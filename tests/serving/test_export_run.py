"""`polyrec export` and what of it `polyrec push` shares."""

from __future__ import annotations

import json

import pytest
from run_fixtures import trained_run

from polyrec.cli.main import main
from polyrec.core.manifest import check_manifest, read_manifest
from polyrec.core.rules import Rules
from polyrec.hub.scan import scan
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor
from polyrec.serving.calls import Recommend, Recommended, Score, User
from polyrec.serving.engine import Engine
from polyrec.serving.export_graphs import write_export
from polyrec.serving.graph_scorer import graph_scorer
from polyrec.serving.loading import load_state
from polyrec.serving.pending import PendingEvents
from polyrec.serving.records import Kind, Record
from polyrec.serving.store import SQLiteStore


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
    assert graph_scorer(run, PolyRecForRecommendation.from_pretrained(run)) is None
    manifest.write_text(text)


def test_a_server_scores_by_the_graphs_of_its_run(run, tmp_path):
    """Prevents a server with graphs that lists or predicts something else than the model, for new items and for
    histories that it has read before, too."""
    state = load_state(run, SQLiteStore(tmp_path), tmp_path)
    engines = [Engine(state, PendingEvents(), "m", scorer) for scorer in (None, graph_scorer(run, state.model))]
    assert engines[1].recommender._scorer is not None
    ids = state.processor.items.ids.to_pylist()
    histories = [[], ids[:1], ["nothing"], ids[3:9], ids[:12], ids[3:9]]
    calls = [Recommend(User(history=own), k=4) for own in histories]
    calls += [Recommend(User(history=own), k=4, rules=Rules.of({"score": "0.3*next_item + like"})) for own in histories]
    calls += [Score(User(history=own), ids[-3:]) for own in histories]
    for step in range(3):
        one, other = (engine.respond(calls) for engine in engines)
        for ours, theirs in zip(one, other, strict=True):
            ours, theirs = (found.rows if isinstance(found, Recommended) else found for found in (ours, theirs))
            assert [row["item"] for row in ours] == [row["item"] for row in theirs]
            for first, second in zip(ours, theirs, strict=True):
                first, second = first | first.get("predictions", {}), second | second.get("predictions", {})
                for name in ("score", "like", "rating", "next_item"):
                    assert second.get(name) == pytest.approx(first.get(name), abs=1e-5)
        if step == 1:  # once more with one item more
            new = {"item_id": 9_999, "attributes": {"genre": "b", "year": 2001}}
            state.control(Record(Kind.ITEM, json.dumps(new), seq=1), changes=True)
            assert state.format.item_row(9_999) is not None
            calls += [Score(User(history=own), [9_999]) for own in histories]


def test_what_cannot_be_exported_is_refused(run, capsys):
    """Prevents a traceback, or a file, in the place of the reason."""
    processor = PolyRecProcessor.from_pretrained(run)
    with pytest.raises(ValueError, match="unknown format 'onx'"):
        write_export(None, processor, run / "x", "onx")
    with pytest.raises(ValueError, match="a object cannot be exported"):
        write_export(object(), processor, run / "x")
    assert not (run / "x").exists()
    assert main(["export", str(run / "nothing")]) == 2
