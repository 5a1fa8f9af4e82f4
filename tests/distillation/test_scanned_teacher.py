"""Lists of a teacher of a large catalog are those of all its scores."""

import pytest
import torch
from model_fixtures import fit, synthetic_log, tiny_model

from polyrec import PolyRecCollator
from polyrec.distillation import live
from polyrec.distillation.live import LiveTeacher
from polyrec.modules.heads import _catalog_scan as catalog_scan


@pytest.mark.parametrize(("k", "temperature"), [(5, 1.0), (5, 2.5), (100, 1.0)])
def test_lists_equal_those_of_all_scores(k, temperature, monkeypatch):
    """Prevents a list without an item at the edge of a tile, and a rest that counts a listed item, or padding."""
    processor, splits = fit(synthetic_log(users=30, items=40), tasks=[{"name": "next_item", "head": "retrieval"}])
    batch = PolyRecCollator()([splits.train[i] for i in range(8)])
    monkeypatch.setattr(catalog_scan, "TILE", 16)
    monkeypatch.setattr("polyrec.distillation.scanned.ROWS", 5)
    found = []
    for large in (1 << 40, 0):
        monkeypatch.setattr(live, "LARGE", large)
        teacher = LiveTeacher(tiny_model(processor), processor, top_k=k, temperature=temperature)
        teacher.bind([splits.train], processor)
        outputs = teacher.score(batch)
        found.append((outputs["teacher_items"]["next_item"], outputs["teacher_scores"]["next_item"]))
    (items, scores), (scanned, their) = found
    width = scanned.shape[-1]
    assert not items[..., width:].any()
    assert torch.equal(items[..., :width], scanned)
    torch.testing.assert_close(scores, their, equal_nan=True, rtol=1e-5, atol=1e-5)
