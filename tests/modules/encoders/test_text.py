"""Texts become vectors, and items have them."""

import numpy as np
import pytest
import torch
from model_fixtures import arguments, fit, tiny_model
from text_fixtures import text_processor, tiny_bert
from transformers import AutoModel, AutoTokenizer

from polyrec import PolyRecTrainer
from polyrec.core.backbones import TextConfig, resolve
from polyrec.data.texts import TokenTable, load_tokenizer, tokenize
from polyrec.modules.encoders.request_context import LATEST, RequestContext
from polyrec.modules.encoders.text import TextEncoder, pool
from polyrec.modules.encoders.vector_store import VectorStore

TEXTS = ["title 1 action", "drama", "title 2 comedy 3 4 5 6", "", "action drama 7"]


def encoder_of(**options):
    config = resolve(TextConfig(str(tiny_bert()), **options))
    return TextEncoder(config).eval(), tokenize(load_tokenizer(config), TEXTS, config)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last", "max"])
@pytest.mark.parametrize("chunk_tokens", [4, 10_000])
def test_chunks_and_padding_change_nothing(pooling, chunk_tokens):
    """Prevents padding, sorting or chunks from leaking into vectors: each text is read alone by the plain model."""
    encoder, tokens = encoder_of(pooling=pooling, normalize=False, chunk_tokens=chunk_tokens, tuning="full")
    tokenizer, model = AutoTokenizer.from_pretrained(tiny_bert()), AutoModel.from_pretrained(tiny_bert()).eval()
    with torch.no_grad():
        found = encoder(tokens)
        for text, vector in zip(TEXTS, found, strict=True):
            if not text:
                assert not vector.any()
                continue
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
            expected = {"mean": hidden.mean(0), "cls": hidden[0], "last": hidden[-1], "max": hidden.amax(0)}[pooling]
            torch.testing.assert_close(vector, expected, atol=1e-5, rtol=1e-4)


def test_reading_chunks_again_gives_the_gradient_of_one_chunk():
    """Prevents the memory bound from costing gradients (GradCache's promise)."""
    gradients = []
    for chunk_tokens in (8, 10_000):
        encoder, tokens = encoder_of(chunk_tokens=chunk_tokens, tuning="full")
        (encoder(tokens) * torch.arange(32.0)).sum().backward()
        gradients.append({n: p.grad for n, p in encoder.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-4, rtol=1e-3)


def test_last_token_is_the_last_real_one():
    """Prevents decoders from being pooled at the padding."""
    hidden = torch.arange(12.0).view(2, 3, 2)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    assert pool(hidden, mask, "last").tolist() == [[2.0, 3.0], [10.0, 11.0]]


@pytest.mark.parametrize("live_items", [0, 3])
@pytest.mark.parametrize("catalog_negatives", [True, False])
def test_training_moves_the_texts_and_evaluation_reads_all_anew(live_items, catalog_negatives, tmp_path):
    """Prevents stale vectors from answering after training."""
    processor, data = fit(text={"model": str(tiny_bert()), "template": "{title} {genre}"})
    options = {"tuning": "full", "live_items": live_items, "catalog_negatives": catalog_negatives}
    model = tiny_model(processor, text=options)
    settings = arguments(tmp_path, max_steps=3, per_device_train_batch_size=8, backbone_learning_rate=1e-3)
    trainer = PolyRecTrainer(
        model, settings, data.train, processing_class=processor
    )  # nothing is ranked before its end
    text = model.item_encoder.text
    before = text.encoder.eval()(text.tokens).detach()
    trainer.train()
    assert not text.fresh
    assert np.isfinite(trainer.evaluate(data.valid)["eval_next_item_ndcg@10"])
    assert text.fresh
    with torch.no_grad():
        now = text.encoder.eval()(text.tokens)
    torch.testing.assert_close(text.vectors, now)
    assert (now - before).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("tuning", "catalog", "made"), [("full", True, True), ("full", False, False), ("frozen", False, True)]
)
def test_the_table_is_made_where_training_reads_it(tuning, catalog, made):
    """Prevents a softmax over the catalog from beginning with texts of zeros, and one in batches from waiting for it."""
    processor, _ = fit(text={"model": str(tiny_bert()), "template": "{title}"})
    model = tiny_model(processor, text={"tuning": tuning, "catalog_negatives": catalog})
    model.load_texts(processor)
    assert model.item_encoder.text.vectors[2:].any().item() is made


def test_in_batch_softmax_knows_the_chance_of_each_item():
    """Prevents popular items, which are in every batch, from being punished as negatives of all others."""
    processor, _ = fit(text={"model": str(tiny_bert()), "template": "{title}"})
    model = tiny_model(processor, text={"tuning": "full", "catalog_negatives": False}).train()
    model.load_texts(processor)
    head, counts = model.heads["next_item"], model.item_encoder.counts
    items = model.item_encoder.rows(torch.arange(2, 10))
    states, targets = torch.randn(6, 8), torch.tensor([2, 3, 4, 5, 6, 2])
    nobody = RequestContext(latest={"next_item": torch.zeros(6, LATEST, dtype=torch.int64)})
    total, count = head.retrieval_loss(states, targets, items, counts, None, context=nobody)
    share = (counts + 1) / (counts + 1).sum()
    expected = 0.0
    for state, target in zip(head.project(states), targets, strict=True):
        logits = {
            int(row): (state @ vector) + head.bias.weight[row, 0] - torch.log(1 - (1 - share[row]) ** len(targets))
            for row, vector in zip(items.rows_M, items.vectors_MD, strict=True)
            if row >= 2
        }
        expected += torch.logsumexp(torch.stack(list(logits.values())), 0) - logits[int(target)]
    torch.testing.assert_close(total, expected, atol=1e-4, rtol=1e-4)
    assert count == 6


def test_without_item_ids_only_texts_speak():
    """Prevents an id table from hiding in a model that is meant for other catalogs."""
    processor, _ = fit(text={"model": str(tiny_bert()), "template": "{title}"})
    model = tiny_model(processor, text={}, item_ids=False)
    rows = processor.num_items
    assert not [n for n, p in model.named_parameters() if len(p) == rows and "text" not in n]


def test_fallback_texts_speak_for_unknown_items_alone():
    """Prevents the texts of known items from being added to what their events say, and unknown ones from being empty."""
    processor, _ = fit(text={"model": str(tiny_bert()), "template": "{title} {genre}"})
    model = tiny_model(processor, text={"fusion": "fallback"})
    model.load_texts(processor)
    encoder = model.item_encoder
    rows = torch.arange(2, processor.num_items)
    before = encoder.encode(rows)
    with torch.no_grad():
        encoder.text.project.weight.add_(1.0)
    moved = (encoder.encode(rows) != before).any(dim=1)
    assert torch.equal(moved, ~encoder.known[rows])
    assert moved.any()
    assert not moved.all()


def test_a_frozen_encoder_reads_only_what_is_new(tmp_path, monkeypatch):
    """Prevents a catalog from being encoded again whenever a few items change."""
    monkeypatch.setenv("POLYREC_CACHE", str(tmp_path))
    read = []
    plain = TextEncoder.forward

    def counting(self, texts, rows=None, device=None):
        read.append(len(texts) if rows is None else len(rows))
        return plain(self, texts, rows, device)

    monkeypatch.setattr(TextEncoder, "forward", counting)
    for expected, tokens in ((3, [[2, 5], [2, 6], []]), (0, [[2, 5], [2, 6], []]), (1, [[2, 7], [2, 6], [2, 5]])):
        processor = text_processor(10)
        model = tiny_model(processor, text={})
        text = model.item_encoder.text
        text.vectors = torch.zeros(3, 32)
        read.clear()
        text.load(TokenTable.of(tokens))
        assert sum(read) == expected
        assert (text.vectors != 0).any(1).tolist() == [bool(t) for t in tokens]


def test_a_store_survives_equal_and_unknown_contents(tmp_path):
    """Prevents rows from being mixed up when contents repeat."""
    store = VectorStore(tmp_path / "a" / "x.safetensors")

    def encode(rows):
        return np.array([[len(contents[r])] for r in rows], dtype=np.float32)

    for contents in ([b"a", b"bb", b"a"], [b"ccc", b"a"], [b"bb"]):
        assert store.vectors(contents, encode)[:, 0].tolist() == [len(c) for c in contents]


def test_collaborative_start_puts_unseen_items_by_their_text():
    """Prevents items that nobody has taken from starting anywhere; the reference is numpy's least squares."""
    processor, _ = fit(text={"model": str(tiny_bert()), "template": "{title} {genre}"})
    model = tiny_model(processor, text={"start": "collaborative"}, item_cooccurrence=0.5)
    text, encoder = model.item_encoder, model.item_encoder
    model.load_texts(processor)
    current = (encoder.id_embedding.weight * encoder.known.unsqueeze(1)).detach().numpy().astype(np.float64)
    encoder.start_from_text(model.config)
    root = np.sqrt(encoder.counts.numpy().astype(np.float64))
    vectors = text.text.vectors.numpy().astype(np.float64)
    stacked = np.concatenate([np.sqrt(root)[:, None] * vectors, np.sqrt(30.0) * np.eye(32)])
    target = np.concatenate([np.sqrt(root)[:, None] * current, np.zeros((32, 8))])
    expected = np.linalg.lstsq(stacked, target, rcond=None)[0].T
    np.testing.assert_allclose(text.text.project.weight.detach().numpy(), expected, atol=1e-4)
