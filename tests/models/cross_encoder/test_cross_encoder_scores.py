"""`polyrec score` with a cross-encoder."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from cross_encoder_fixtures import fit_prompts, tiny_cross_encoder
from model_fixtures import TASKS, fit, tiny_model

from polyrec.distillation.cross_encoder_teacher import CrossEncoderTeacher
from polyrec.distillation.live import LiveTeacher
from polyrec.runs.distill_settings import ScoreSettings
from polyrec.runs.score import build_teacher


def test_a_folder_of_a_cross_encoder_is_a_teacher(tmp_path):
    """A cross-encoder that is loaded as another model, or one whose lists nobody makes."""
    processor, splits = fit_prompts()
    plain, _ = fit()
    cross, first = tmp_path / "cross", tmp_path / "first"
    for folder, model, own in ((cross, tiny_cross_encoder(processor), processor), (first, tiny_model(plain), plain)):
        model.save_pretrained(folder)
        own.save_pretrained(folder)
    recipe = SimpleNamespace(model={}, tasks=TASKS)

    def built(names: str):
        return build_teacher(names, recipe, processor, splits, ScoreSettings(skip_overlap_check=True, top_k=4))

    alone, chain = built(str(cross)), built(f"{cross}@{first}")
    assert isinstance(alone, CrossEncoderTeacher)
    assert alone.list_tasks == ()
    assert isinstance(chain.first_stage, LiveTeacher)
    assert chain.list_tasks == ("next_item",)
    assert chain.top_k("next_item") == 4
    assert isinstance(built(f"{cross}@popularity"), CrossEncoderTeacher)
    with pytest.raises(ValueError, match="is no cross-encoder"):
        built(f"{first}@{cross}")
