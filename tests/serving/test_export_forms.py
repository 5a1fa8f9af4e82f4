"""Expert layers, searches, int8 and torch in graphs."""

from __future__ import annotations

import pytest
from export_fixtures import FEATURES, ITEMS, Traced, check, every_pair_task, model_of, with_search

from polyrec.core.registry import EXPERTS
from polyrec.serving.export_graphs import Exported, load_export


@pytest.mark.parametrize("experts", EXPERTS.names())
def test_every_expert_layer(experts):
    """Prevents an expert layer whose graph differs."""
    tasks = [{"name": "click", "head": "binary"}, {"name": "like", "head": "binary"}]
    model = model_of(tasks, experts=experts, num_hidden_layers=0, features=FEATURES[-1:])
    check(Traced(model), model, [(1, 0, 1), (7, 5, 9)])


def test_members_of_an_ensemble():
    """Prevents means over members that the graphs do not take."""
    model = model_of(every_pair_task()[:3], expert_options={"members": 3}, num_hidden_layers=0)
    check(Traced(model), model, [(3, 4, 5)])


def test_int8_graphs_say_what_the_int8_model_says(tmp_path):
    """Prevents int8 weights that a graph holds as single precision, or rounds in another way."""
    model = model_of([{"name": "like", "head": "binary"}], hidden_size=64, features=FEATURES[-1:])
    model.quantize()
    Exported(model, [*range(ITEMS - 2)]).write(tmp_path / "int8", "onnx")
    check(load_export(tmp_path / "int8"), model, [(1, 0, 1), (3, 64, 50)])
    parts = [model.model.history_encoder, model.pair_encoder, model.experts]
    numbers = sum(b.numel() for part in parts for n, b in part.named_buffers() if n.endswith("numbers"))
    assert sum(file.stat().st_size for file in (tmp_path / "int8").glob("*.onnx")) < 2 * numbers  # of 4, if single


def test_searches():
    """Prevents a search whose queries a graph reads in another way; some are empty."""
    searches = [{"name": "find", "head": "search"}, {"name": "mine", "head": "search", "options": {"personal": True}}]
    model = model_of([*searches, {"name": "like", "head": "binary"}], num_hidden_layers=0, **with_search())
    check(Traced(model), model, [(1, 1, 1), (5, 9, 4)])


def test_the_torch_format(tmp_path):
    """Prevents a .pt2 file that cannot be read again."""
    model = model_of([{"name": "next", "head": "retrieval"}, *every_pair_task()[:1]], features=FEATURES[-1:])
    Exported(model, [*range(ITEMS - 2)]).write(tmp_path / "torch", "torch")
    assert sorted(p.name for p in (tmp_path / "torch").glob("*.pt2")) == ["catalog.pt2", "pairs.pt2", "states.pt2"]
    check(load_export(tmp_path / "torch"), model, [(1, 0, 1), (3, 7, 5)])
