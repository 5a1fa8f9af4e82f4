"""Attributes, words and experts of an explained item."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from model_fixtures import TASKS, fit, synthetic_log, tiny_model

from polyrec.inference.explanation.attributes import attribute_effects, word_effects
from polyrec.inference.explanation.explained import ExplainedRequest
from polyrec.modules.encoders.item import FIRST_ITEM, UNKNOWN_ITEM


@pytest.mark.parametrize("task", ["next_item", "rating"])
def test_effects_equal_those_of_a_catalog_that_lacks_the_value(task):
    """Prevents an attribute from being taken away in another way than the model meets a missing one.

    The other items stay as they are, so the effect on a log probability is that on the score.
    """
    processor, _ = fit(statistics=False)
    model = tiny_model(processor)
    explained = ExplainedRequest(model, processor, [3, 4], np.array([12, 13]), task)
    found = attribute_effects(explained)
    which = 1 if task == "next_item" else 0  # scores, or answers
    before = explained.predictions(next(iter(explained.batches())))[which][0].detach().numpy()
    buffers = dict(model.item_encoder.catalog.named_buffers())
    for name, gone in (("genre", 0), ("tags", 0), ("price", float("nan"))):
        kept = buffers[name][12:14].clone()
        buffers[name][12:14] = gone
        other = ExplainedRequest(model, processor, [3, 4], np.array([12, 13]), task)
        after = other.predictions(next(iter(other.batches())))[which][0].detach().numpy()
        buffers[name][12:14] = kept
        np.testing.assert_allclose(found[name], before - after, atol=1e-5)
    known = model.item_encoder.known
    known[12:14] = False
    other = ExplainedRequest(model, processor, [3, 4], np.array([12, 13]), task)
    after = other.predictions(next(iter(other.batches())))[which][0].detach().numpy()
    known[12:14] = True
    np.testing.assert_allclose(found["id"], before - after, atol=1e-5)
    assert model.item_encoder.id_rows(torch.tensor([1]))[0] == UNKNOWN_ITEM


def test_a_candidate_of_the_history_keeps_its_place_there():
    """Prevents the effect of an attribute from mixing with that of an event about the same item."""
    processor, _ = fit(statistics=False)
    model = tiny_model(processor)
    row = 3 + FIRST_ITEM
    explained = ExplainedRequest(model, processor, [3], np.array([row]), "next_item")
    found = attribute_effects(explained)["genre"][0]
    with torch.no_grad():
        batch = next(iter(explained.batches()))
        state = model(**batch).states[0, 0]
        encoder = model.item_encoder
        values = {f.name: encoder.catalog.get_buffer(f.name)[[row]] for f in encoder.attributes.features}
        whole, without = (encoder.attributes(v)[0] for v in (values, values | {"genre": torch.tensor([0])}))
        expected = model.heads["next_item"].project(state) @ (whole - without)
    assert found == pytest.approx(expected.item(), abs=1e-5)


def test_gates_are_those_of_the_forward_pass():
    """Prevents gates of another item, or under another task's name."""
    processor, _ = fit(statistics=False)
    model = tiny_model(processor, experts="mmoe")
    found = model.explain(processor, [3, 4], [9, 10], task="like")
    explained = ExplainedRequest(model, processor, [3, 4], np.array([9, 10]) + FIRST_ITEM, "like")
    with torch.no_grad():
        gates = model(**next(iter(explained.batches()))).gates
    for task in ("like", "rating"):
        for c, row in enumerate(found):
            assert list(row["gates"][task]) == model.gate_sources[task]
            np.testing.assert_allclose(list(row["gates"][task].values()), gates[task][0, c], atol=1e-6)
            assert sum(row["gates"][task].values()) == pytest.approx(1)


@pytest.mark.parametrize("fusion", ["sum", "fallback"])
def test_effects_of_words_are_those_of_texts_without_them(fusion):
    """Prevents a word of one item from being taken from another, and effects of texts that the model does not read."""
    from text_fixtures import tiny_bert

    log = synthetic_log()
    log["items"]["title"] = [f"title {i} {['action', 'drama'][i % 2]}"[: 8 if i % 3 else 20] for i in range(24)]
    text = {"model": str(tiny_bert()), "template": "{title}"}
    processor, _ = fit(log, tasks=TASKS[:1], statistics=False, text=text)
    model = tiny_model(processor, text={"fusion": fusion})
    model.load_texts(processor)
    rows = np.array([3, 9, 22]) + FIRST_ITEM  # nobody has taken the last one
    explained = ExplainedRequest(model, processor, [4, 5], rows, "next_item")
    found = word_effects(explained)
    titles = [log["items"]["title"][i] for i in (3, 9, 22)]
    assert [list(own) for own in found] == [title.split() for title in titles]
    scores = explained.predictions(next(iter(explained.batches())))[1][0].detach()
    for c, title in enumerate(titles):
        for word in title.split():
            log["items"]["title"][rows[c] - FIRST_ITEM] = " ".join(w for w in title.split() if w != word)
            changed, _ = fit(log, tasks=TASKS[:1], statistics=False, text=text)
            model.load_texts(changed)
            other = ExplainedRequest(model, processor, [4, 5], rows, "next_item")
            after = other.predictions(next(iter(other.batches())))[1][0].detach()
            assert found[c][word] == pytest.approx(float(scores[c] - after[c]), abs=1e-5)
            if fusion == "fallback" and c < 2:  # the id speaks for an item that is known
                assert found[c][word] == 0
            log["items"]["title"][rows[c] - FIRST_ITEM] = title
    model.load_texts(processor)
    listed = model.explain(processor, [4, 5], [22], words=True)[0]["words"]
    assert {w["word"]: pytest.approx(w["effect"], abs=1e-5) for w in listed} == found[2]
