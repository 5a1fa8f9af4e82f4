"""What may not leave a folder: secrets, links, files that nobody saved, and models that do not load."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from model_fixtures import TASKS, arguments, fit, tiny_model
from safetensors.torch import load_file, save_file

from polyrec import PolyRecTrainer
from polyrec.core.manifest import check_manifest, excerpt, read_manifest, write_manifest
from polyrec.hub.push import push_folder
from polyrec.hub.scan import scan
from polyrec.inference.check import check_loads
from polyrec.runs.recipe import Recipe, load_recipe
from polyrec.runs.train import build_trainer
from polyrec.tracking.training_file import write_training
from polyrec.training.arguments import for_going_on

HF = "hf_" + "aB3d" * 8 + "xY"
AWS = "AKIAIOSFODNN7EXAMPLE"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder that may leave, and the trainer that wrote it."""
    folder = tmp_path_factory.mktemp("run")
    processor, splits = fit()
    args = arguments(folder, hub_token=HF, run_name="here")
    trainer = PolyRecTrainer(tiny_model(processor), args, splits.train, processing_class=processor)
    trainer.save_model()
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "run"))


def change(name: str, old: str, new: str) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return changed


def table(rows: dict | None = None, **notes: str) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        held = pq.read_table(folder / "items.parquet")
        for name, value in (rows or {}).items():
            held = held.append_column(name, pa.array([None] * 3 + [value] * (len(held) - 3)))
        pq.write_table(held.replace_schema_metadata(notes), folder / "items.parquet")

    return changed


def tensors(**metadata: str) -> Callable[[Path], None]:
    return lambda folder: save_file(
        load_file(folder / "model.safetensors"), folder / "model.safetensors", {"format": "pt", **metadata}
    )


PLANTED = {
    "token in the card": (lambda f: (f / "README.md").write_text(f"# A\n\nkey {HF}\n"), "README.md, line 3: a Hugging"),
    "address in the card": (lambda f: (f / "README.md").write_text("ask jo@example.org"), "line 1: an e-mail address"),
    "key in the metrics": (lambda f: (f / "metrics.json").write_text(json.dumps({"a": {AWS: 1}})), "an AWS access key"),
    "escaped": (lambda f: (f / "training.json").write_text('{"a": "\\u0041' + AWS[1:] + '"}'), "an AWS access key"),
    "by its name": (lambda f: (f / "training.json").write_text('{"hub_token": "word"}'), "'hub_token' is a secret"),
    "in the configuration": (change("config.json", "{", '{"url": "ftp://me:word@host/a",'), "a password in a URL"),
    "in the processor": (change("processor_config.json", "{", f'{{"note": "{HF}",'), "a Hugging Face token"),
    "in a tokenizer": (lambda f: (f / "vocab.txt").write_text(f"a\n{HF}"), "vocab.txt, line 2"),
    "in a note of pandas": (table(pandas=f'{{"attributes": {{"by": "{HF}"}}}}'), "a note on the table holds a Hugging"),
    "in a cell": (table({"note": f"see {HF}"}), "column 'note' holds a Hugging Face token, first in row 3"),
    "in a struct": (table({"more": {"deep": [f"see {HF}"]}}), "column 'more' holds a Hugging Face token, first in row 3"),
    "in bytes": (table({"raw": HF.encode()}), "column 'raw' holds a Hugging Face token"),
    "in a column's name": (table({"jo@example.org": "x"}), "the name of a column holds an e-mail address"),
    "in the weights' notes": (tensors(by=HF), "its metadata 'by' hold a Hugging Face token"),
    "rows as a licence": (lambda f: shutil.copy(f / "training_rows.safetensors", f / "LICENSE"), "LICENSE is no text"),
    "link": (lambda f: (f / "LICENSE").symlink_to("training_rows.safetensors"), "LICENSE is a link"),
    "linked folder": (lambda f: (f / "item_vectors").symlink_to(f.parent), "item_vectors is a link"),
    "foreign statistics": (
        lambda f: shutil.copy(f / "items.parquet", f / "statistics" / "log" / "state-999.parquet"),
        "state-999.parquet is a file that statistics.json does not name",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_what_was_planted_is_found(folder, name):
    """A token in any file that leaves is public for good."""
    plant, message = PLANTED[name]
    assert scan(folder).refusals == []
    plant(folder)
    if not (folder / "item_vectors").is_symlink() and not (folder / "LICENSE").is_symlink():
        write_manifest(folder)  # whoever edits a file by hand does
    found = scan(folder)
    assert [line for line in found.refusals if message in line], found.refusals
    with pytest.raises(ValueError, match="this must not leave"):
        push_folder(folder, "ann/shop")


def test_a_manifest_leaves_without_settings(folder):
    """Facts of a run are its settings, with paths of its owner's machine, and files that stay have digests."""
    files = [*read_manifest(folder).files]
    write_manifest(folder, {"recipe": {"teacher": "/home/jo@example.org/run"}, "data": {"items": "5e1f"}}, files)
    assert scan(folder).refusals == []
    shared = excerpt(folder, [file.path for file in scan(folder).leaving])
    assert "home" not in shared
    assert json.loads(shared)["facts"] == {"data": {"items": "5e1f"}}
    assert "training_rows" not in shared
    assert "stored_events" not in shared
    for kept in ("training_rows.safetensors", "stored_events.parquet", "training_args.json"):
        (folder / kept).unlink()
    (folder / "manifest.json").write_text(shared)
    assert check_manifest(folder) is not None  # as whoever downloads it finds it


def test_a_name_for_rows_that_stay_does_not_leave(folder):
    """A hard link is no symbolic link, and brings the same bytes along."""
    os.link(folder / "training_rows.safetensors", folder / "training_curves.png")
    assert "training_curves.png is the same file as training_rows.safetensors" in " ".join(scan(folder).refusals)


def test_statistics_that_nobody_can_read_stay(folder):
    """Rows of users left in a table whose configuration is damaged, so that nothing says whose it is."""
    tables = sorted(p.relative_to(folder).as_posix() for p in folder.glob("statistics/log/*.parquet"))
    before = {file.path for file in scan(folder).leaving}
    assert before & set(tables)
    (folder / "statistics" / "log" / "statistics.json").write_text("{")
    found = scan(folder)
    assert {file.path for file in found.leaving} == before - set(tables)
    assert set(tables) <= set(found.staying)


def test_an_address_may_be_meant_to_be_public(folder):
    """A card with a contact could not be pushed at all; a token in it never may."""
    (folder / "README.md").write_text("write to jo@example.org")
    assert scan(folder, allow_columns=["README.md"]).refusals == []
    (folder / "README.md").write_text(f"write to {HF}")
    assert scan(folder, allow_columns=["README.md"]).refusals


@pytest.mark.parametrize("spoil", ["foreign", "changed", "missing"])
def test_only_what_was_saved_leaves(folder, spoil):
    """A half-written or foreign file would be published as the model's."""
    if spoil == "foreign":
        (folder / "vocab.txt").write_text("a")
    elif spoil == "changed":
        raw = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    else:
        (folder / "statistics" / "scales.json").unlink()
    with pytest.raises(ValueError, match=r"was not saved with it|SHA-256 differs|scales.json is missing"):
        push_folder(folder, "ann/shop")


def test_a_folder_is_loaded_before_it_leaves(folder):
    """What does not load here loads nowhere; without a manifest nothing else tells."""
    check_loads(folder)
    (folder / "manifest.json").unlink()
    table({"price2": 1.0})(folder)
    (folder / "statistics" / "scales.json").write_text('{"scaler": null')
    with pytest.raises(ValueError, match="scales.json"):
        check_loads(folder)


def test_trainings_inside_a_search_do_not_push(monkeypatch, tmp_path):
    """Candidates of `tune` and students of `distill` would be published under the run's name."""
    processor, splits = fit()
    given = {"push_to_hub": True, "hub_model_id": "ann/shop", "hub_token": HF, "use_cpu": True, "seed": 3}
    recipe = Recipe(tasks=TASKS, training=given, output=str(tmp_path), model={"hidden_size": 16})
    asked = []
    monkeypatch.setattr("transformers.Trainer.init_hf_repo", lambda *_, **__: asked.append("repository"))
    inner = build_trainer(recipe, processor, splits.train, splits.valid, quiet=True).args
    assert (inner.push_to_hub, inner.hub_token, asked) == (False, None, [])
    assert not {"push_to_hub", "hub_model_id", "hub_token"} & set(for_going_on(given))  # update, finetune
    assert build_trainer(recipe, processor, splits.train, splits.valid, may_push=True).args.hub_token == HF
    assert asked == ["repository"]


def test_no_file_of_a_training_holds_its_token(saved, tmp_path):
    """`--set training.hub_token=hf_...` stood in README.md, which `push` sends."""
    recipe = load_recipe(None, {"training.hub_token": HF, "interactions": f"ftp://me:{AWS}@host/a.csv"})
    assert recipe.training["hub_token"] == HF  # obeyed
    write_training(tmp_path, {"args": {"hub_token": HF}, "history": [f"key {HF}"]})
    texts = [json.dumps(recipe.to_dict()), *(p.read_text("latin-1") for p in tmp_path.iterdir())]
    texts += [p.read_text("latin-1") for p in saved.rglob("*") if p.is_file()]
    assert (saved / "training_args.json").exists()
    assert not [text for text in texts if HF in text or AWS in text]
