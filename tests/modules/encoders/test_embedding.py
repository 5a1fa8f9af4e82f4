"""Vectors of other models as attributes of items, people and context, from the table to the answer."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from model_fixtures import COLUMNS, TASKS, fit, model_inputs, random_config, synthetic_log, tiny_model
from torch.nn import functional as F

from polyrec import FeatureConfig, PolyRecCollator, PolyRecForRecommendation, PolyRecProcessor
from polyrec.data.vectors import VectorFile
from polyrec.modules.encoders.features import EmbeddingEncoder, FeatureEncoder

W = 5


def vectors(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, W)).astype(np.float32)


def as_lists(values: np.ndarray, missing: int = 0) -> list:
    return [None] * missing + values[missing:].tolist()


def log_with_vectors(path=None):
    """Items 0 has no vector; vectors of items in a column, or in a file without any in memory."""
    log = synthetic_log()
    items = vectors(len(log["items"]["item_id"]))
    items[0] = np.nan
    columns = COLUMNS | {"user_features": {"taste": "embedding"}, "context": {"query": "embedding"}}
    if path is None:
        log["items"]["image"] = as_lists(items, missing=1)
        columns["item_features"] = {"genre": "categorical", "image": "embedding"}
    else:
        np.save(path, items)
        columns["item_features"] = {"genre": "categorical", "image": f"embedding:{path}"}
    log["users"]["taste"] = as_lists(vectors(len(log["users"]["user_id"]), 1), missing=2)
    log["interactions"]["query"] = as_lists(vectors(len(log["interactions"]["user_id"]), 2), missing=3)
    return log, items, columns


def test_projection_and_missing_vector():
    """Prevents a missing vector from being projected as zeros or NaN, and its gradient from reaching the projection."""
    torch.manual_seed(0)
    encoder = EmbeddingEncoder(3, 4)
    with torch.no_grad():
        encoder.missing.copy_(torch.arange(4.0))
    x = torch.tensor([[0.6, 0.8, 0.0], [float("nan")] * 3])
    found = encoder(x)
    torch.testing.assert_close(found[0], F.linear(x[0], encoder.project.weight, encoder.project.bias))
    assert found[1].tolist() == [0, 1, 2, 3]
    found.sum().backward()
    torch.testing.assert_close(encoder.project.weight.grad, x[:1].expand(4, 3))
    assert encoder.missing.grad.tolist() == [1, 1, 1, 1]


def test_a_projected_vector_starts_as_large_as_an_id_vector():
    """Prevents wide vectors from drowning id vectors in the first steps (unit length, not unit entries)."""
    feature = FeatureConfig("image", "item", "embedding", size=512)
    config = random_config(features=[feature], num_items=400, hidden_size=32, initializer_range=0.06)
    torch.manual_seed(0)
    encoder = PolyRecForRecommendation(config).item_encoder
    projected = encoder.attributes({"image": F.normalize(torch.randn(400, 512), dim=-1)})
    assert projected.std().item() == pytest.approx(encoder.id_embedding.weight.std().item(), rel=0.1)


@pytest.mark.parametrize("in_file", [False, True])
def test_vectors_reach_the_model(tmp_path, in_file):
    """Prevents an item, person or row from getting the vector of another one, and gaps from becoming zeros."""
    log, items, columns = log_with_vectors(tmp_path / "v.npy" if in_file else None)
    processor, splits = fit(log, columns=columns)
    assert isinstance(processor.items.encoded["image"], VectorFile) == in_file
    assert {(f.name, f.size) for f in processor.features if f.kind == "embedding"} == {
        ("image", W), ("taste", W), ("query", W),
    }  # fmt: skip
    model = tiny_model(processor)
    table = model.item_encoder.catalog.get_buffer("image").float().numpy()
    unit = items / np.linalg.norm(items, axis=1, keepdims=True)
    np.testing.assert_allclose(table, np.concatenate([np.full((2, W), np.nan), unit]), atol=1e-3)
    batch = PolyRecCollator()([splits.train[i] for i in range(8)])
    data = splits.train
    users = data.spans(np.arange(8)).user
    given = {p: v for p, v in zip(log["users"]["user_id"], log["users"]["taste"], strict=True)}
    for row, user in enumerate(data.log.user_ids.take(users).to_pylist()):
        vector = np.full(W, np.nan) if given[user] is None else np.asarray(given[user])
        expected = vector / np.linalg.norm(vector)
        np.testing.assert_allclose(batch["user_features"]["taste"][row], expected, atol=1e-6)
    rows = batch["candidate_rows"]
    asked = data.log.row[data.candidates.event[rows[rows >= 0]]]
    query = np.array([[np.nan] * W if v is None else v for v in log["interactions"]["query"]])[asked]
    np.testing.assert_allclose(
        batch["candidate_features"]["query"][rows >= 0], query / np.linalg.norm(query, axis=1, keepdims=True), atol=1e-6
    )
    assert batch["candidate_features"]["query"][rows < 0].isnan().all()


@pytest.mark.parametrize("in_file", [False, True])
def test_every_vector_matters_and_every_parameter_learns(tmp_path, in_file):
    """Prevents a projection from being built and never read."""
    log, _, columns = log_with_vectors(tmp_path / "v.npy" if in_file else None)
    processor, splits = fit(log, columns=columns)
    model = tiny_model(processor)
    batch = model_inputs(PolyRecCollator()([splits.train[i] for i in range(8)]))
    output = model(**batch)
    assert torch.isfinite(output.loss)
    output.loss.backward()
    learnt = {n: p.grad for n, p in model.named_parameters() if ".embeddings." in n}
    assert len(learnt) == 3 * 4  # items, people, context of the pair and of past events; weight, bias, missing
    assert all(g.abs().sum() > 0 for n, g in learnt.items())
    for place, name in (("user_features", "taste"), ("candidate_features", "query"), ("event_features", "query")):
        changed = batch | {place: batch[place] | {name: -batch[place][name]}}
        assert not torch.equal(model(**changed).logits["like"], output.logits["like"]), place


@pytest.mark.parametrize("in_file", [False, True])
def test_new_items_bring_their_vectors(tmp_path, in_file):
    """Prevents a catalog with vectors in a file from being one for ever, and new vectors from going to old items."""
    log, _, columns = log_with_vectors(tmp_path / "v.npy" if in_file else None)
    processor, splits = fit(log, columns=columns)
    model = tiny_model(processor)
    batch = model_inputs(PolyRecCollator()([splits.valid[i] for i in range(4)]))
    before, old = model(**batch).logits, processor.num_items
    held = model.item_encoder.catalog.get_buffer("image").clone()
    added = vectors(3, 7)
    first = pa.table({"item_id": [900, 901], "title": ["a", "b"], "genre": ["drama"] * 2, "price": [0.0] * 2,
                      "tags": [["tag1"]] * 2, "image": added[:2].tolist()})  # fmt: skip
    with pytest.raises(ValueError, match="no column 'image'"):
        processor.extend(first.drop_columns(["image"]))
    with pytest.raises(ValueError, match="holds 2 numbers"):
        processor.extend(first.set_column(5, "image", pa.array([[1.0, 2.0]] * 2)))
    assert processor.num_items == old
    for step in (first, first.slice(1).set_column(0, "item_id", [[902]]).set_column(5, "image", pa.nulls(1))):
        processor.extend(step.select([*step.column_names][::-1]))
        model.extend(processor)
        model.save_pretrained(tmp_path / "run")
        processor.save_pretrained(tmp_path / "run")
        model = PolyRecForRecommendation.from_pretrained(tmp_path / "run")
        processor = PolyRecProcessor.from_pretrained(tmp_path / "run")
        after = model(**batch).logits
        assert all(torch.equal(after[task], before[task]) for task in before)
    assert processor.num_items == old + 3
    table = model.item_encoder.catalog.get_buffer("image")
    assert torch.equal(table[:old].nan_to_num(7.0), held.nan_to_num(7.0))
    unit = added[:2] / np.linalg.norm(added[:2], axis=1, keepdims=True)
    np.testing.assert_allclose(table[old:].float(), np.concatenate([unit, np.full((1, W), np.nan)]), atol=1e-3)


def test_a_saved_model_and_processor_need_no_file(tmp_path):
    """Prevents a model from answering differently, or its processor from failing, where the vectors' file is gone."""
    log, items, columns = log_with_vectors(tmp_path / "v.npy")
    processor, splits = fit(log, columns=columns)
    model = tiny_model(processor)
    batch = model_inputs(PolyRecCollator()([splits.valid[i] for i in range(4)]))
    expected = model(**batch).logits
    model.save_pretrained(tmp_path / "run")
    processor.save_pretrained(tmp_path / "run")
    (tmp_path / "v.npy").unlink()
    (tmp_path / "run").rename(tmp_path / "moved")
    loaded = PolyRecForRecommendation.from_pretrained(tmp_path / "moved")
    assert loaded.item_encoder.catalog.get_buffer("image").dtype == torch.float16
    found = loaded(**batch).logits
    for task, logits in expected.items():
        assert torch.equal(found[task], logits), task
    again = PolyRecProcessor.from_pretrained(tmp_path / "moved")
    index = np.arange(len(items) + 2)
    np.testing.assert_allclose(again.items.encoded["image"][index], processor.items.encoded["image"][index], atol=1e-3)
    request = {"user": {"taste": [1.0] * W}, "context": {"query": [0.5] * W}}
    one, other = (m.recommend(p, [3, 4], k=3, **request) for m, p in ((model, processor), (loaded, again)))
    assert [row["item"] for row in one] == [row["item"] for row in other]
    assert [row["like"] for row in one] == pytest.approx([row["like"] for row in other], abs=1e-5)
    assert again.model_config().features == processor.model_config().features
    again.save_pretrained(tmp_path / "moved")  # over the file that it reads
    PolyRecProcessor.from_pretrained(tmp_path / "moved").items.encoded["image"].check()


def test_half_precision_vectors_survive_bfloat16_autocast():
    """Prevents a dtype error where the buffer's half precision meets autocast, and NaN where a vector is missing."""
    encoder = FeatureEncoder(random_config(), [FeatureConfig("image", "item", "embedding", size=3)])
    for module in encoder.embeddings.values():
        module.initialise()
    x = torch.tensor([[0.6, 0.8, 0.0], [float("nan")] * 3], dtype=torch.float16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = encoder({"image": x})
    assert torch.isfinite(found.detach()).all()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"item_features": {"image": "embedding:none.npy"}}, "items: embedding 'image': no such file: none.npy"),
        ({"item_features": {"title": "embedding:x.npy"}}, "the items table has a column of that name: rename"),
        ({"item_features": {"image": "embedding:"}}, "kind 'embedding:' of column 'image'"),
        ({"user_features": {"age": "embedding:x.npy"}}, "only item_features may name a file of vectors"),
        ({"context": {"surface": "embedding"}}, "column 'surface' has type string but is declared 'embedding'"),
        (
            {"item_features": {"image": "embeding"}},
            "unknown kind 'embeding' of column 'image'.*did you mean 'embedding'",
        ),
    ],
)
def test_bad_declarations_are_named(columns, message):
    """Prevents a misspelt path or kind from leaving the vectors out."""
    with pytest.raises(ValueError, match=message):
        fit(synthetic_log(), columns=columns)


def test_vectors_are_no_key_of_statistics():
    """Prevents statistics from counting by the bits of a vector."""
    log, _, columns = log_with_vectors()
    processor, _ = fit(log, columns=columns)
    assert not any("image" in name or "taste" in name for name in processor.statistics.names)
    with pytest.raises(ValueError, match=r"query"):
        fit(log, columns=columns, statistics={"context": [["context.query"]]})


def test_a_vector_of_another_width_is_refused_at_serving_time():
    """Prevents vectors of another encoder from being cut or padded in silence."""
    log, _, columns = log_with_vectors()
    processor, _ = fit(log, TASKS, columns=columns)
    with pytest.raises(ValueError, match="user attribute 'taste' holds 2 numbers in row 0, not 5"):
        processor.request([1], np.array([2]), user={"taste": [1.0, 2.0]})
