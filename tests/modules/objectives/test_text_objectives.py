"""Objectives of item texts: which texts and tokens count, and the head for masked tokens."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch
from model_fixtures import random_config
from objective_fixtures import objective_batch, objective_model
from test_contrastive import naive_info_nce
from text_fixtures import text_processor, tiny_bert
from torch import nn
from torch.nn import functional as F
from transformers import BertForMaskedLM

from polyrec import PolyRecForRecommendation
from polyrec.core.backbones import TextConfig, resolve
from polyrec.modules.objectives.masked_language import TokenHead


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


# -------------------------------------------------------------------- alignment
def test_alignment_is_the_plain_formula():
    """Prevents ids from being compared with the texts of their neighbours in the table, or items without text or
    without an id vector from counting."""
    model, batch = objective_model("item_text_alignment", temperature=0.5), objective_batch()
    encoder = model.item_encoder
    encoder.known[4] = False
    ids = sorted({i for i in batch["item_ids"].flatten().tolist() if i >= 2 and i != 4 and i != 11})
    found = model(**batch).objectives["item_text_alignment"].item()
    one = encoder.id_embedding.weight[ids].detach().numpy()
    two = encoder.text.project(encoder.text.vectors[ids]).detach().numpy()
    assert found == pytest.approx(naive_info_nce(one, two, 0.5, ids) / len(ids), rel=1e-4)
    assert model.objectives["item_text_alignment"].count(encoder, batch["item_ids"]) == len(ids)


def test_alignment_teaches_ids_and_the_projection():
    """Prevents one of the two sides from standing still."""
    model = objective_model("item_text_alignment")
    model(**objective_batch()).objectives["item_text_alignment"].backward()
    assert model.item_encoder.id_embedding.weight.grad.abs().sum() > 0
    assert model.item_encoder.text.project.weight.grad.abs().sum() > 0


def test_objectives_say_what_they_need():
    """Prevents an objective from comparing nothing, and a frozen backbone from being read for nothing."""
    text = asdict(text_processor(12).text)
    for objectives, options, message in (
        ({"item_text_alignment": {}}, {}, "needs item_ids=True and a text encoder"),
        ({"item_text_alignment": {}}, {"text": text, "item_ids": False}, "needs item_ids=True and a text encoder"),
        ({"masked_language": {}}, {}, "needs a text encoder that is tuned"),
        ({"masked_language": {}}, {"text": text}, "needs a text encoder that is tuned"),
    ):
        with pytest.raises(ValueError, match=message):
            PolyRecForRecommendation(random_config(objectives=objectives, **options))
    model = objective_model("masked_language")
    model.item_encoder.text.tokens = None
    with pytest.raises(ValueError, match="no texts of its items: call model.load_texts"):
        model.objectives["masked_language"].count(model.item_encoder, torch.tensor([[3]]))


def test_a_decoder_is_refused():
    """Prevents masks from being read as an unknown word by a model that never saw one."""
    processor = text_processor(12)
    model = objective_model("masked_language")
    kept, processor.tokenizer.mask_token = processor.tokenizer.mask_token, None
    try:
        with pytest.raises(ValueError, match="has no mask token; it needs an encoder that was trained with masks"):
            model.load_texts(processor)
    finally:
        processor.tokenizer.mask_token = kept


# -------------------------------------------------------------- masked language
def test_the_head_of_a_checkpoint_is_read():
    """Prevents a head that was trained for weeks from starting at random, or with its parts mixed up."""
    folder = tiny_bert(head=True)
    reference = BertForMaskedLM.from_pretrained(folder).eval()
    tokens = torch.randint(5, 60, (2, 7))
    hidden = reference.bert(tokens).last_hidden_state
    head = TokenHead(resolve(TextConfig(str(folder), tuning="full")))
    assert head.was_read
    found = head(hidden, reference.get_input_embeddings().weight)
    torch.testing.assert_close(found, reference(tokens).logits)
    assert not TokenHead(resolve(TextConfig(str(tiny_bert()), tuning="full"))).was_read


def test_a_head_that_was_read_survives_the_model_around_it():
    """Prevents transformers from drawing the head anew when the model is built."""
    processor = text_processor(12, head=True)
    text = {**asdict(processor.text), "tuning": "full"}
    model = PolyRecForRecommendation(random_config(objectives={"masked_language": {}}, text=text))
    reference = BertForMaskedLM.from_pretrained(tiny_bert(head=True)).cls.predictions
    head = model.objectives["masked_language"].head
    assert torch.equal(head.dense.weight, reference.transform.dense.weight)
    assert torch.equal(head.norm.bias, reference.transform.LayerNorm.bias)
    assert torch.equal(head.bias, reference.bias)


def test_the_loss_is_that_of_the_reference(monkeypatch):
    """Prevents special tokens and padding from being masked, and the mask itself from being the target."""
    processor = text_processor(12, head=True)
    text = {**asdict(processor.text), "tuning": "full"}
    objectives = {"masked_language": {"share": 1.0}}
    model = PolyRecForRecommendation(random_config(objectives=objectives, text=text))
    model.load_catalog({}, torch.ones(12))
    model.load_texts(processor)
    without_dropout(model).train()
    objective = model.objectives["masked_language"]
    monkeypatch.setattr(objective, "_shown", lambda token, masked, size: token.masked_fill(masked, 4))
    batch = objective_batch()
    found = model(**batch).objectives["masked_language"]
    reference = BertForMaskedLM.from_pretrained(tiny_bert(head=True)).eval()
    total, count = 0.0, 0
    titles = processor.items.table["title"].to_pylist()
    for item in sorted({i for i in batch["item_ids"].flatten().tolist() if i >= 2}):
        if titles[item - 2] is None:
            continue
        words = processor.tokenizer(titles[item - 2])["input_ids"][1:-1]
        logits = reference(torch.tensor([[2, *[4] * len(words), 3]])).logits[0, 1:-1]
        total += F.cross_entropy(logits, torch.tensor(words), reduction="sum")
        count += len(words)
    assert objective.count(model.item_encoder, batch["item_ids"]) == count
    torch.testing.assert_close(found, total / count, rtol=1e-4, atol=1e-4)


def test_some_texts_of_a_large_batch_are_read_and_count_as_expected():
    """Prevents a limit on texts from making the loss smaller with the size of the batch."""
    model = without_dropout(objective_model("masked_language", share=1.0, items=2)).requires_grad_(False)
    batch = objective_batch()
    head = model.objectives["masked_language"].head
    head.norm.weight.zero_()
    head.norm.bias.zero_()  # all tokens are equally likely then
    torch.manual_seed(0)
    found = [model(**batch).objectives["masked_language"].item() for _ in range(80)]
    assert sum(found) / 80 == pytest.approx(torch.log(torch.tensor(float(len(head.bias)))).item(), rel=0.05)


def test_of_the_chosen_tokens_most_are_masked_and_others_stay():
    """Prevents tokens that were not chosen from being changed, and the three cases from having other shares."""
    objective = objective_model("masked_language").objectives["masked_language"]
    torch.manual_seed(0)
    tokens = torch.randint(5, 60, (50, 200))
    chosen = torch.rand(tokens.shape) < 0.5
    shown = objective._shown(tokens, chosen, 60)
    assert torch.equal(shown[~chosen], tokens[~chosen])
    assert (shown[chosen] == 4).float().mean().item() == pytest.approx(0.8 + 0.1 / 60, abs=0.02)
    assert (shown[chosen] == tokens[chosen]).float().mean().item() == pytest.approx(0.1 + 0.1 / 60, abs=0.02)


@pytest.mark.parametrize("tuning", ["lora", "top:1"])
def test_partly_tuned_backbones_learn(tuning):
    """Prevents the objective from failing, or from changing frozen weights, where a part of the backbone is tuned."""
    processor = text_processor(12)
    text = {**asdict(processor.text), "tuning": tuning}
    model = PolyRecForRecommendation(random_config(objectives={"masked_language": {"share": 1.0}}, text=text))
    model.load_catalog({}, torch.ones(12))
    model.load_texts(processor)
    model.train()(**objective_batch()).objectives["masked_language"].backward()
    learnt = {n for n, p in model.named_parameters() if "backbone" in n and p.grad is not None and p.grad.abs().sum()}
    assert learnt
    assert all("lora_" in n if tuning == "lora" else ".layer.1." in n for n in learnt)
