"""The model: equal to its parts, blind to padding, exact in reduction, whole on disk."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cross_encoder_fixtures import fit_prompts, prompted, tiny_cross_encoder, tiny_llama
from model_fixtures import PAIR_TASKS, TASKS, synthetic_log
from text_fixtures import tiny_bert
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel

from polyrec import PolyRecCrossEncoder, PolyRecCrossEncoderConfig, PolyRecCrossEncoderProcessor, PolyRecProcessor
from polyrec.models.cross_encoder.collator import collate
from polyrec.models.cross_encoder.sampling import CandidateSample, only
from polyrec.models.training_pass import LossStep

CHAIN = [*TASKS, {"name": "buy", "head": "binary", "label": "rating >= 5", "parent": "like", "coupling": "esmm"}]


@pytest.mark.parametrize("backbone", [tiny_bert, tiny_llama])
def test_each_answer_is_that_of_its_prompt_alone(backbone):
    """An answer that depends on what else is in the batch: padding, sorting by length, other chunks."""
    processor, splits = fit_prompts(backbone=backbone())
    model = tiny_cross_encoder(processor)
    data = CandidateSample(splits.train, processor.num_items, ["next_item"], candidates_per_window=3, negatives=2)
    windows = [data[i] for i in range(5)]
    small = tiny_cross_encoder(processor, text={"tuning": "full", "chunk_tokens": 50})
    small.load_state_dict(model.state_dict())
    with torch.no_grad():
        inputs = processor.with_prompts(collate(windows))
        rows = inputs.pop("candidate_rows")
        together, chunked = model(**inputs), small(**inputs)
        for b, window in enumerate(windows):
            alone = processor.with_prompts(collate([window]))
            alone.pop("candidate_rows")
            found = model(**alone)
            count = len(window["candidate_ids"])
            for name in model.heads:
                assert (rows[b] >= 0).sum() == count
                torch.testing.assert_close(together.logits[name][b, :count], found.logits[name][0], atol=1e-5, rtol=0)
                torch.testing.assert_close(together.logits[name], chunked.logits[name], atol=1e-5, rtol=0)
            lists = together.list_logits["next_item"][b, :count]
            torch.testing.assert_close(lists, found.list_logits["next_item"][0], atol=1e-5, rtol=0)
            assert torch.equal(lists == float("-inf"), torch.from_numpy(window["list_items"] == 0))


def test_logits_follow_the_formula():
    """Features that never reach the pair, or a skip that reads another candidate's."""
    processor, splits = fit_prompts(tasks=PAIR_TASKS[:1])
    model = tiny_cross_encoder(processor)
    window = splits.valid[0]
    batch = processor.with_prompts(collate([window]))
    with torch.no_grad():
        backbone = model.encoder.backbone.transformer()
        tokens = processor.write(collate([window])).tokens
        expected = []
        for n in range(len(tokens)):
            ids = torch.from_numpy(tokens.flat[tokens.offsets[n] : tokens.offsets[n + 1]].astype(np.int64))[None]
            vector = F.normalize(backbone(input_ids=ids).last_hidden_state.mean(1), dim=-1)
            features = {k: v[:, n : n + 1] for k, v in batch["candidate_features"].items()}
            pair = model.mix(model.norm(vector))[None] + model.features(features) + model.person(batch["user_features"])
            hidden = model.experts(F.gelu(pair)).hidden["like"]
            expected.append(model.heads["like"](hidden) + model.skip(features, None)["like"])
        batch.pop("candidate_rows")
        found = model(**batch).logits["like"]
    torch.testing.assert_close(found, torch.cat(expected, dim=1), atol=1e-5, rtol=0)


def test_loss_of_lists_is_the_cross_entropy_of_a_list():
    """Empty places that count as items, a target that competes with itself."""
    processor, splits = fit_prompts()
    model = tiny_cross_encoder(processor)
    batch = prompted(processor, splits, candidates_per_window=3, negatives=5)
    with torch.no_grad():
        output = model(**batch)
    total, count = 0.0, 0
    for b, c in (batch["labels"]["next_item"] > 0).nonzero().tolist():
        if batch["candidate_ids"][b, c] < 2:
            continue
        others = output.list_logits["next_item"][b, c][batch["list_items"][b, c] > 0]
        logits = torch.cat([output.logits["next_item"][b, c][None], others])
        total += F.cross_entropy(logits[None], torch.tensor([0])).item()
        count += 1
    assert count == output.counts["next_item"]
    assert output.losses["next_item"].item() == pytest.approx(total, rel=1e-5)
    own = {name for name, _ in model.heads["next_item"].named_parameters()}
    assert own == {"inner.weight", "inner.bias", "output.weight", "popularity"}  # no constant: softmax ignores it


def test_weights_multiply_the_losses_of_lists():
    """Prevents rows of half the weight from counting twice."""
    head = tiny_cross_encoder(fit_prompts()[0]).heads["next_item"]
    logits, weight = torch.tensor([[0.3, -1.0, 2.0], [1.5, 0.2, float("-inf")]]), torch.tensor([0.5, 2.0])
    total, count = head.list_loss(logits[:, 0], logits[:, 1:], weight)
    own = F.cross_entropy(logits, torch.zeros(2, dtype=torch.long), reduction="none")
    torch.testing.assert_close(total, (weight * own).sum())
    assert count == 2.5


@pytest.mark.parametrize(
    ("experts", "weighting", "backbone"),
    [("ple", "uncertainty", tiny_bert), ("mmoe", "aggregation", tiny_llama), ("shared_bottom", "fixed", tiny_bert)],
)
def test_every_parameter_has_a_gradient_also_without_labels(experts, weighting, backbone):
    """A parameter that training never moves, or that other ranks wait for where a batch has no label of a task."""
    processor, splits = fit_prompts(tasks=CHAIN, backbone=backbone())
    model = tiny_cross_encoder(processor, experts=experts, weighting=weighting).train()
    batch = prompted(processor, splits)
    for labels in (batch["labels"], {"rating": torch.full_like(batch["labels"]["rating"], float("nan"))}):
        model.zero_grad()
        output = model(**{**batch, "labels": labels})
        output.loss.backward()
        assert torch.isfinite(output.loss)
        missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert missing == []
    assert output.counts["next_item"] == 0
    assert output.losses["next_item"] == 0


def test_a_batch_without_questions_has_gradients_of_zero():
    """Ranks that wait for each other for ever, because a window asks nothing in this epoch."""
    processor, splits = fit_prompts()
    model = tiny_cross_encoder(processor).train()
    window = only(splits.train.fixed()[0], np.zeros(0, dtype=np.int64))
    batch = processor.with_prompts(collate([window, window]))
    batch.pop("candidate_rows")
    model(**batch).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


def test_halves_of_a_batch_add_up():
    """A loss that is a mean of means: with missing labels the same data would give another gradient."""
    processor, splits = fit_prompts()
    model = tiny_cross_encoder(processor)
    data = CandidateSample(splits.train, processor.num_items, ["next_item"])

    def inputs(rows) -> dict:
        batch = processor.with_prompts(collate([data[i] for i in rows]))
        batch.pop("candidate_rows")
        return batch

    whole = model(**inputs(range(6)))
    halves = [model(**inputs(r), step=LossStep(whole.counts, 0.5)) for r in (range(2), range(2, 6))]
    torch.testing.assert_close(whole.loss, halves[0].loss + halves[1].loss)
    for name in model.heads:
        torch.testing.assert_close(whole.losses[name], halves[0].losses[name] + halves[1].losses[name])


@pytest.mark.parametrize("tuning", ["full", "top:1", "lora", "frozen"])
@pytest.mark.parametrize("backbone", [tiny_bert, tiny_llama])
def test_a_saved_model_answers_the_same(tmp_path, tuning, backbone):
    """Weights, counts, prompts or a tokenizer that a folder lacks; a base that is saved twice."""
    processor, splits = fit_prompts(tasks=CHAIN, backbone=backbone())
    model = tiny_cross_encoder(processor, text={"tuning": tuning}, weighting="uncertainty")
    batch = prompted(processor, splits)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(**batch).loss.backward()
    optimizer.step()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = PolyRecCrossEncoder.from_pretrained(tmp_path)
    reader = PolyRecCrossEncoderProcessor.from_pretrained(tmp_path)
    assert reader.prompt == processor.prompt
    other = prompted(reader, splits)
    assert torch.equal(other["prompt_tokens"], batch["prompt_tokens"])
    with torch.no_grad():
        one, two = model(**batch), again(**other)
    for name in model.heads:
        assert torch.equal(one.logits[name], two.logits[name])
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {n for n, p in again.named_parameters() if p.requires_grad}
    assert AutoConfig.from_pretrained(tmp_path).to_dict() == again.config.to_dict()
    assert isinstance(AutoModel.from_pretrained(tmp_path), PolyRecCrossEncoder)
    assert isinstance(PolyRecProcessor.from_pretrained(tmp_path), PolyRecProcessor)
    size = (tmp_path / "model.safetensors").stat().st_size
    assert size < 100_000 or tuning in ("full", "top:1")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_hidden_layers": 2}, "unknown key 'num_hidden_layers'"),
        ({"hidden_sise": 2}, "did you mean 'hidden_size'"),
        ({"text": {"live_items": 4}}, "does not read 'live_items'"),
        ({"text": {"tuning": "lorra"}}, "did you mean 'lora'"),
        ({"distillation": {"tasks": {"like": {}}}}, "teaches and is not taught"),
    ],
)
def test_what_a_cross_encoder_does_not_read_is_refused(overrides, message):
    """An option that is given, kept, and does nothing."""
    processor, _ = fit_prompts()
    with pytest.raises(ValueError, match=message):
        processor.model_config(**overrides)


def test_a_configuration_needs_a_backbone_and_no_search():
    """A model that fails only when it is first asked."""
    with pytest.raises(ValueError, match="pass text="):
        PolyRecCrossEncoderConfig(tasks=PAIR_TASKS)
    with pytest.raises(ValueError, match="is a search"):
        PolyRecCrossEncoderConfig(tasks=[{"name": "find", "head": "search"}], text={"model": str(tiny_bert())})


def test_the_order_of_tasks_changes_nothing():
    """Answers that follow a task's place instead of its name."""
    processor, splits = fit_prompts(tasks=CHAIN)
    other, _ = fit_prompts(tasks=CHAIN[::-1])
    one, two = tiny_cross_encoder(processor, experts="ple"), tiny_cross_encoder(other, experts="ple")
    two.load_state_dict(one.state_dict())
    batch = prompted(processor, splits)
    with torch.no_grad():
        first, second = one(**batch), two(**batch)
    torch.testing.assert_close(first.loss, second.loss)
    for name in one.heads:
        assert torch.equal(first.logits[name], second.logits[name])


def test_samples_ask_labelled_candidates_and_draw_anew_in_each_epoch():
    """A sample that never changes, asks what has no label, or lists what somebody has taken already."""
    log = synthetic_log(users=20, events=12)
    processor, splits = fit_prompts(log, max_history=20)
    hard = np.full((splits.train.num_candidates, 3), 5)
    hard[::2] = 0  # no list
    data = CandidateSample(splits.train, processor.num_items, ["next_item"], 3, 6, hard, seed=4)
    chosen = []
    for epoch in range(3):
        data.set_epoch(epoch)
        windows = [data[i] for i in range(len(data))]
        chosen.append(np.concatenate([w["candidate_rows"] for w in windows]))
        for window in windows:
            assert len(window["candidate_ids"]) <= 3
            for target, position, listed, row in zip(
                window["candidate_ids"], window["candidate_positions"], window["list_items"], window["candidate_rows"],
                strict=True,
            ):  # fmt: skip
                assert target not in listed
                assert not set(listed[listed > 0]) & set(window["item_ids"][:position].tolist())
                if row % 2 and 5 not in (target, *window["item_ids"][:position]):
                    assert (listed[:3] == 5).all()
        again = [data[i] for i in range(len(data))]
        assert all(np.array_equal(a["list_items"], b["list_items"]) for a, b in zip(windows, again, strict=True))
    assert any(not np.array_equal(chosen[0], other) for other in chosen[1:])
    with pytest.raises(ValueError, match="make it of this data set"):
        CandidateSample(splits.train, processor.num_items, ["next_item"], hard=hard[:-1])
    least = CandidateSample(splits.train, processor.num_items, ["next_item"], 1, 1)[0]
    assert (least["candidate_ids"].shape, least["list_items"].shape) == ((1,), (1, 1))
    with pytest.raises(ValueError, match="must be >= 1, not 0 and 1"):
        CandidateSample(splits.train, processor.num_items, ["next_item"], 0, 1)
