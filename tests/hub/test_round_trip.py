"""Pushed by the real client over HTTP, loaded in a clean process: the answers are the same, bit by bit."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from conftest import environment
from cross_encoder_fixtures import fit_prompts, tiny_cross_encoder
from model_fixtures import COLUMNS, fit, model_inputs, synthetic_log, tiny_model
from text_fixtures import tiny_bert

from polyrec import PolyRecCollator, PolyRecProcessor
from polyrec.core.manifest import write_manifest

PUSH = """
import sys
from polyrec import {model}, {processor}
model, processor = {model}.from_pretrained("saved"), {processor}.from_pretrained("saved")
print(model.push_to_hub("ann/shop", processor=processor, tags=["shop"]).oid)
"""
# What a card tells people to write, and what it prints.
LOAD = """
from polyrec import {model}, {processor}
model = {model}.from_pretrained("ann/shop")
processor = {processor}.from_pretrained("ann/shop")
import torch
batch = torch.load("batch.pt")
logits = model.eval()(**batch).logits
torch.save(logits, "logits.pt")
"""


def _first_stage(**overrides):
    processor, splits = fit()
    return tiny_model(processor, **overrides), processor, PolyRecCollator()([splits.test[i] for i in range(4)])


def test_a_model_comes_back_as_it_was(hub, succeed, tmp_path):
    """Prevents a push that leaves out what the answers depend on, and cards that say it is another library's."""
    model, processor, batch = _first_stage()
    _check(hub, succeed, tmp_path, model, processor, batch, "PolyRecForRecommendation", "PolyRecProcessor")
    repo = hub.repos["ann/shop"]
    assert repo.history() == ["initial commit", "Upload polyrec model"]  # one commit with all of it
    card = repo.files()["README.md"].decode()
    assert "library_name: polyrec" in card
    assert "- shop" in card
    assert 'from_pretrained("ann/shop")' in card
    clean = [sys.executable, "-c", _RECOMMEND]  # as a new user would
    ran = subprocess.run(
        clean, env=environment(hub, tmp_path), cwd=tmp_path, capture_output=True, text=True, check=True
    )
    found = json.loads(ran.stdout)
    assert [row["rank"] for row in found] == [1, 2, 3]


_RECOMMEND = """
import json
from polyrec import PolyRecForRecommendation, PolyRecProcessor
model = PolyRecForRecommendation.from_pretrained("ann/shop")
processor = PolyRecProcessor.from_pretrained("ann/shop")
print(json.dumps(model.recommend(processor, history=[3, 4], k=3)))
"""


def test_a_cross_encoder_comes_back_as_it_was(hub, succeed, tmp_path):
    """Prevents prompts that are lost on the way: prompt_config.json is no file of transformers."""
    processor, splits = fit_prompts()
    model = tiny_cross_encoder(processor)
    batch = processor.with_prompts(PolyRecCollator()([splits.test[i] for i in range(4)]))
    _check(hub, succeed, tmp_path, model, processor, batch, "PolyRecCrossEncoder", "PolyRecCrossEncoderProcessor")
    assert "- cross-encoder" in hub.repos["ann/shop"].files()["README.md"].decode()


def test_adapters_come_back_on_their_base(hub, succeed, tmp_path):
    """Prevents a push of the whole base with its adapters, and adapters that are drawn anew on the other side."""
    pytest.importorskip("peft")
    base = tiny_bert()
    hub.put("ann/tiny-bert", {p.name: p.read_bytes() for p in base.iterdir()})
    log = synthetic_log()
    processor = PolyRecProcessor.fit(
        **log,
        tasks=[
            {"name": "next_item", "head": "retrieval", "options": {"neighbours": 0, "linear": 0}},  # whose tables weigh
            {"name": "like", "head": "binary", "label": "rating >= 4"},
        ],
        columns=COLUMNS,
        max_history=8,
        text={"model": str(base), "template": "{title} {genre}"},
    )
    splits = processor.split(log["interactions"])
    model = tiny_model(processor, text={"tuning": "lora"})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    model.load_texts(processor)
    batch = PolyRecCollator()([splits.test[i] for i in range(4)])
    saved = _check(hub, succeed, tmp_path, model, processor, batch, "PolyRecForRecommendation", "PolyRecProcessor")
    assert "a folder of this machine" in (tmp_path / "pushed").read_text()
    assert len(saved["model.safetensors"]) < (base / "model.safetensors").stat().st_size
    for name in ("config.json", "processor_config.json"):  # the same base by its name on the Hub
        path = tmp_path / "saved" / name
        path.write_text(path.read_text().replace(str(base), "ann/tiny-bert"))
    write_manifest(tmp_path / "saved")
    succeed(PUSH.format(model="PolyRecForRecommendation", processor="PolyRecProcessor"))
    expected = torch.load(tmp_path / "logits.pt")
    succeed(LOAD.format(model="PolyRecForRecommendation", processor="PolyRecProcessor"), home="another")
    assert all(torch.equal(expected[name], value) for name, value in torch.load(tmp_path / "logits.pt").items())


def test_a_student_comes_back_as_it_was(hub, succeed, tmp_path):
    """Prevents a student whose configuration of distillation asks for its teacher when it is loaded."""
    model, processor, batch = _first_stage(
        item_embedding_rank=4, distillation={"tasks": {"like": {"alpha": 0.5, "temperature": 2}}}
    )
    _check(hub, succeed, tmp_path, model, processor, batch, "PolyRecForRecommendation", "PolyRecProcessor")


def _check(hub, succeed, tmp_path, model, processor, batch, model_class, processor_class):
    names = {"model": model_class, "processor": processor_class}
    inputs = model_inputs(batch)
    inputs.pop("labels", None)
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "training_rows.safetensors").exists()
    torch.save(inputs, tmp_path / "batch.pt")
    printed = succeed(PUSH.format(**names))
    (tmp_path / "pushed").write_text(printed)
    sha = printed.split()[-1]
    files = hub.repos["ann/shop"].files()
    assert hub.repos["ann/shop"].find("main").sha == sha
    assert not [name for name in files if "training_rows" in name or name.endswith((".bin", ".pt", ".pkl"))]
    succeed(LOAD.format(**names))
    with torch.no_grad():
        expected = model.eval()(**inputs).logits
    found = torch.load(tmp_path / "logits.pt")
    assert set(found) == set(expected)
    for task, logits in expected.items():
        assert torch.equal(found[task], logits), task
    return files
