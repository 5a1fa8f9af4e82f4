"""Item vectors that belong to one task alone."""

from __future__ import annotations

import pytest
import torch
from model_fixtures import random_batch, random_config
from safetensors.torch import load_file, save_file

from polyrec import PolyRecForRecommendation
from polyrec.core.manifest import write_manifest
from polyrec.modules.encoders.item import PADDING_ITEM, UNKNOWN_ITEM

NAMES = ["click", "like"]
ITEMS = 12


def model_of(names=tuple(NAMES), own=True, seed=0, **overrides):
    """A model whose items 5 and 7 were never met in training."""
    torch.manual_seed(seed)
    tasks = [{"name": name, "head": "binary"} for name in names]
    model = PolyRecForRecommendation(random_config(tasks=tasks, task_item_embeddings=own, **overrides))
    counts = torch.ones(ITEMS)
    counts[[PADDING_ITEM, UNKNOWN_ITEM, 5, 7]] = 0
    model.load_catalog({}, counts)
    return model.eval()


def loud(model):
    """Tables large enough to be seen in the answers."""
    with torch.no_grad():
        model.task_items.table.weight.normal_()[PADDING_ITEM] = 0
    return model


@pytest.mark.parametrize("options", [{}, {"expert_options": {"members": 3}}, {"experts": "ple"}], ids=str)
def test_adds_the_tasks_own_vector_to_what_its_head_reads(options):
    """Prevents a task from reading another one's table, the row of a never met item, or a vector that nobody reads."""
    model, plain = loud(model_of(**options)), model_of(own=False, **options)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("task_items")})
    batch = random_batch(NAMES)
    batch["candidate_ids"][0] = torch.tensor([5, 7, 3, 0])
    rows = batch["candidate_ids"].clone()
    rows[(rows == 5) | (rows == 7)] = UNKNOWN_ITEM
    table = model.task_items.table.weight
    for t, task in enumerate(NAMES):
        added = table[rows][..., 8 * t : 8 * (t + 1)] @ model.heads[task].output.weight[0]
        torch.testing.assert_close(model(**batch).logits[task], plain(**batch).logits[task] + added)


def test_only_its_own_task_trains_a_table():
    """Prevents the gradients of tasks that disagree about an item from meeting in one vector, the point of STEM."""
    model = model_of()
    for t, task in enumerate(NAMES):
        model.zero_grad()
        output = model(**random_batch(NAMES))
        output.losses[task].backward()
        gradient = model.task_items.table.weight.grad.view(ITEMS, 2, 8)
        assert gradient[:, t].any()
        assert not gradient[:, 1 - t].any()
        assert not gradient[[PADDING_ITEM, 5, 7]].any()


def test_an_item_loses_its_shared_and_its_own_vectors_together():
    """Prevents an item that plays the unknown one in training from being known by the tasks' tables."""
    model = model_of(item_id_dropout=0.5).train()
    model.item_encoder.known[2:] = True
    items = model.item_encoder.rows(torch.arange(ITEMS))
    unknown = items.vectors_MD[UNKNOWN_ITEM]
    rows = items.id_rows(torch.arange(ITEMS))
    dropped = (items.vectors_MD == unknown).all(-1)
    assert 2 < dropped.sum() < ITEMS - 1
    assert torch.equal(rows, torch.where(dropped, UNKNOWN_ITEM, torch.arange(ITEMS)))


def test_large_catalog_reads_the_same_rows(monkeypatch):
    """Prevents rows from being counted among the items of the batch instead of those of the catalog."""
    model, batch = loud(model_of()), random_batch(NAMES)
    expected = model(**batch).logits
    monkeypatch.setattr("polyrec.modules.encoders.item.WHOLE_TABLE", ITEMS - 1)
    torch.testing.assert_close(model(**batch).logits, expected)


def test_order_of_tasks_does_not_matter():
    """Prevents a table from belonging to a position instead of a name."""
    one, other = loud(model_of()), model_of(NAMES[::-1], seed=1)
    other.load_state_dict(one.state_dict())
    batch = random_batch(NAMES)
    torch.testing.assert_close(one(**batch).losses, other(**batch).losses)


def test_tables_start_small_and_survive_the_way_to_disk(tmp_path):
    """Prevents noise of the size of the shared vectors at the start, and a table that the file lacks from being garbage."""
    model = model_of()
    model.save_pretrained(tmp_path)
    loaded = PolyRecForRecommendation.from_pretrained(tmp_path)
    assert torch.equal(loaded.task_items.table.weight, model.task_items.table.weight)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["task_items.table.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    write_manifest(tmp_path)
    for fresh in (model, PolyRecForRecommendation.from_pretrained(tmp_path)):
        table = fresh.task_items.table.weight
        assert table[PADDING_ITEM].count_nonzero() == 0
        torch.testing.assert_close(table[1:].std(), torch.tensor(0.02), rtol=0.3, atol=0)  # initializer_range is 0.2


def test_a_model_without_pair_tasks_has_no_tables():
    """Prevents parameters without gradient, which stop DDP."""
    tasks = [{"name": "next_item", "head": "retrieval"}]
    model = PolyRecForRecommendation(random_config(tasks=tasks, task_item_embeddings=True))
    assert not [name for name, _ in model.named_parameters() if "task_items" in name]
