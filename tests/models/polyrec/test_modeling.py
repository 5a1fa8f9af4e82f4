"""The model as a whole: outputs, losses, reload, precision, other backbones."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_fixtures import PAIR_TASKS, TASKS, clone, fit, model_inputs, random_config, synthetic_log, tiny_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, GPT2Config, Qwen2Config

from polyrec import PolyRecCollator, PolyRecForRecommendation, PolyRecModel
from polyrec.core.manifest import write_manifest
from polyrec.models.training_pass import LossStep
from polyrec.modules.encoders.history import gather_states
from polyrec.modules.encoders.shared import PackedPairs


@pytest.fixture(scope="module")
def world():
    processor, splits = fit()
    batch = model_inputs(PolyRecCollator()([splits.train[i] for i in range(12)]))
    return processor, splits, batch


def gradients(model, batch):
    """{parameter: gradient} of the model's loss."""
    model.zero_grad()
    model(**batch).loss.backward()
    return {name: p.grad for name, p in model.named_parameters()}


# ------------------------------------------------------------------ outputs
def test_loss_is_the_weighted_sum_of_means(world):
    """Prevents a task's weight, or its count of known labels, from being lost on the way to the objective."""
    processor, _, batch = world
    model = tiny_model(processor)
    output = model(**batch)
    weights = {t.name: t.weight for t in model.config.task_configs}
    expected = sum(weights[n] * output.losses[n] / output.counts[n] for n in weights)
    torch.testing.assert_close(output.loss, expected)
    assert set(output.losses) == set(output.counts) == set(output.logits) == set(weights)
    assert output.counts["rating"] == (~torch.isnan(batch["labels"]["rating"])).sum() > 0
    assert output.counts["next_item"] == (batch["candidate_ids"] > 0).sum()
    assert all(v.shape == batch["candidate_ids"].shape for v in output.logits.values())
    assert output.states.shape == (*batch["candidate_ids"].shape, 8)


def test_training_does_not_score_what_no_loss_reads(world):
    """Prevents every step from looking up evidence of candidates, which costs as much as the loss and changes none."""
    processor, _, batch = world
    model = tiny_model(processor)
    expected = model(**batch)
    output = model.train()(**batch)
    assert set(expected.logits) - set(output.logits) == {"next_item"}
    assert output.losses["next_item"] > 0
    asked = model(**{k: v for k, v in batch.items() if k != "labels"})  # as the docs say
    assert asked.logits["next_item"].shape == batch["candidate_ids"].shape


def test_no_labels_no_loss_and_no_candidates_is_refused(world):
    """Prevents a forgotten input from giving an answer about nothing."""
    processor, _, batch = world
    model = tiny_model(processor)
    output = model(**{k: v for k, v in batch.items() if k != "labels"})
    assert output.loss is None
    assert output.losses is None
    with pytest.raises(ValueError, match="pass candidate_ids and candidate_positions"):
        model(item_ids=batch["item_ids"])


def test_denominators_replace_the_counts(world):
    """Prevents the trainer's counts of the whole accumulation window from being ignored."""
    processor, _, batch = world
    model = tiny_model(processor)
    own = model(**batch)
    given = model(**batch, step=LossStep({n: 2 * c for n, c in own.counts.items()}))
    torch.testing.assert_close(given.loss, own.loss / 2)


@settings(max_examples=10, deadline=None)
@given(st.sampled_from([1e-3, 0.1, 10.0, 1e3]))
def test_scale_of_all_weights_cancels(world, scale):
    """Prevents small sample weights (sum below 1) from being divided by 1 instead of by their sum."""
    processor, _, batch = world
    model = tiny_model(processor)
    weight = {t: torch.full(batch["candidate_ids"].shape, scale) for t in model.heads}
    torch.testing.assert_close(model(**batch, sample_weight=weight).loss, model(**batch).loss)


@pytest.mark.parametrize("absent", ["nan", "key"])
@pytest.mark.parametrize("task", [t["name"] for t in TASKS])
def test_task_without_labels_adds_nothing(world, task, absent):
    """Prevents a batch without labels of a task from raising, giving NaN, or leaving parameters without gradient (DDP)."""
    processor, _, batch = world
    model, batch = tiny_model(processor), clone(batch)
    if absent == "nan":
        batch["labels"][task].fill_(float("nan"))
    else:
        del batch["labels"][task]
    output = model(**batch)
    others = [t for t in model.config.task_configs if t.name != task]
    assert output.losses[task] == 0
    assert output.counts[task] == 0
    expected = sum(t.weight * output.losses[t.name] / output.counts[t.name] for t in others)
    torch.testing.assert_close(output.loss, expected)
    found = gradients(model, batch)
    assert all(g is not None and torch.isfinite(g).all() for g in found.values())
    assert all(g.count_nonzero() == 0 for name, g in found.items() if name.startswith(f"heads.{task}."))


def test_all_labels_missing(world):
    """Prevents a batch without any label from giving a NaN loss, which would destroy the weights."""
    processor, _, batch = world
    model, batch = tiny_model(processor), clone(batch)
    for values in batch["labels"].values():
        values.fill_(float("nan"))
    assert model(**batch).loss == 0
    assert all(g is not None and g.count_nonzero() == 0 for g in gradients(model, batch).values())


def test_gradient_reaches_every_parameter(world):
    """Prevents a parameter that never learns, and that makes DDP wait for ever."""
    processor, _, batch = world
    model = tiny_model(processor, expert_options={"members": 2})
    model.item_encoder.known[5] = False  # so that the vector of the unknown item is read, too
    for name, gradient in gradients(model, batch).items():
        assert gradient is not None, name
        assert gradient.count_nonzero() > 0, name


@pytest.mark.parametrize("tasks", [TASKS[:1], PAIR_TASKS[:1], PAIR_TASKS])
def test_any_subset_of_tasks(world, tasks):
    """Prevents models without a retrieval task, or without pair tasks, from failing or carrying unused parameters."""
    processor, _, batch = world
    model = tiny_model(processor, tasks=tasks)
    assert list(model(**batch).logits) == [t["name"] for t in tasks]
    assert all(g is not None for g in gradients(model, batch).values())


def test_order_of_tasks_does_not_matter(world):
    """Prevents weights from being tied to the position of a task instead of its name."""
    processor, _, batch = world
    one = tiny_model(processor, seed=1)
    other = tiny_model(processor, seed=2, tasks=one.config.tasks[::-1])
    other.load_state_dict(one.state_dict())
    a, b = one(**batch), other(**batch)
    torch.testing.assert_close(a.loss, b.loss)
    for task in one.heads:
        assert torch.equal(a.losses[task], b.losses[task])
        assert torch.equal(a.logits[task], b.logits[task])


def test_scores_of_the_catalog_equal_scores_of_candidates(world):
    """Prevents ranking and per-candidate scores of a retrieval task from drifting apart."""
    processor, _, batch = world
    model = tiny_model(processor)
    model.heads["next_item"].bias.weight.data.normal_()
    output = model(**batch)
    states, count = output.states.flatten(0, 1), batch["candidate_ids"].numel()
    scores = model.score_items(states, "next_item", context=model.request_context(**batch).rows(torch.arange(count)))
    scores = scores.view(*batch["candidate_ids"].shape, -1)
    assert scores[..., :2].eq(float("-inf")).all()
    real = batch["candidate_ids"] >= 2
    picked = scores.gather(-1, batch["candidate_ids"].unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(picked[real], output.logits["next_item"][real])
    with pytest.raises(ValueError, match="retrieval tasks: \\['next_item'\\]"):
        model.score_items(output.states[0], "like")


def test_gather_states_equals_indexing():
    """Prevents the flat look-up of states from mixing people."""
    states, positions = torch.randn(3, 5, 2), torch.tensor([[0, 4], [2, 2], [1, 3]])
    expected = torch.stack([states[b, positions[b]] for b in range(3)])
    assert torch.equal(gather_states(states, positions), expected)


def test_members_are_averaged_by_hand(world):
    """Prevents an ensemble from training on the loss of its mean answer, which would couple its members."""
    processor, _, batch = world
    model = tiny_model(processor, expert_options={"members": 3})
    seen, skipped = {}, {}
    model.experts.register_forward_hook(lambda module, args, out: seen.update(out.hidden))
    model.skip.register_forward_hook(lambda module, args, out: skipped.update(out))
    output = model(**batch)
    pairs = PackedPairs(batch["candidate_ids"])
    for task in model.pair_tasks:
        labels = pairs.pack(batch["labels"][task])
        known = ~torch.isnan(labels)
        head, losses, logits = model.heads[task], [], []
        for member in range(3):
            logits.append(head(seen[task][:, :, member]) + skipped[task])
            losses.append(head.loss(logits[-1], labels)[0])
        assert not torch.allclose(logits[0][known], logits[1][known])
        torch.testing.assert_close(output.losses[task], torch.stack(losses).mean())
        torch.testing.assert_close(output.logits[task], pairs.unpack(torch.stack(logits).mean(0)))
        assert output.counts[task] == known.sum()


# ------------------------------------------------------------------ precision, checkpointing, backbones
def test_bf16_autocast_is_finite_and_near_fp32(world):
    """Prevents a loss or a mask from overflowing in mixed precision."""
    processor, _, batch = world
    model = tiny_model(processor)
    expected = model(**batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(**batch)
    found.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    for task in model.heads:
        torch.testing.assert_close(found.losses[task], expected.losses[task], rtol=0.05, atol=0.1)


def test_gradient_checkpointing_gives_the_same_gradients(world):
    """Prevents a recomputed forward pass from differing, or checkpointing from silently doing nothing."""
    processor, _, batch = world
    plain = tiny_model(processor).train()
    expected = gradients(plain, batch)
    model = tiny_model(processor).train()
    model.activation_checkpointing_enable()
    assert model.is_activation_checkpointing
    calls = []
    model.model.history_encoder.backbone.layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))
    found = gradients(model, batch)
    assert len(calls) == 2  # once forward, once recomputed
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(
    "history_config",
    [
        Qwen2Config(vocab_size=1, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1),
        GPT2Config(
            vocab_size=1, n_embd=8, n_layer=1, n_head=2, n_positions=16, attn_pdrop=0, resid_pdrop=0, embd_pdrop=0
        ),
    ],
    ids=["qwen2", "gpt2"],
)
def test_other_causal_backbones(world, history_config, tmp_path):
    """Prevents the history encoder from depending on Llama: any causal backbone learns, is causal, and reloads."""
    processor, _, batch = world
    model = tiny_model(processor, history_config=history_config)
    missing = [name for name, g in gradients(model, batch).items() if g is None]
    assert missing == []
    changed = clone(batch)
    changed["item_ids"][:, -1] = 3
    early = batch["candidate_positions"] < batch["item_ids"].shape[1]
    for task, logits in model(**batch).logits.items():
        torch.testing.assert_close(model(**changed).logits[task][early], logits[early])
    model.save_pretrained(tmp_path)
    loaded = PolyRecForRecommendation.from_pretrained(tmp_path)
    assert torch.equal(loaded(**batch).loss, model(**batch).loss)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_implementations_agree(world, implementation, tmp_path):
    """Prevents transformers from refusing an attention that the backbone could use, or one from not being causal."""
    processor, _, batch = world
    model = tiny_model(processor)
    model.save_pretrained(tmp_path)
    loaded = PolyRecForRecommendation.from_pretrained(tmp_path, attn_implementation=implementation)
    assert loaded.model.history_encoder.backbone.config._attn_implementation == implementation
    torch.testing.assert_close(loaded(**batch).loss, model(**batch).loss, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------ on disk
LOGITS_PROGRAM = """
import json, sys, torch, polyrec
torch.set_num_threads(1)
folder = sys.argv[1]
model = polyrec.PolyRecForRecommendation.from_pretrained(folder)
batch = torch.load(f"{folder}/batch.pt", weights_only=True)
with torch.no_grad():
    logits = model(**batch).logits
print(json.dumps({task: [x.hex() for x in values.flatten().tolist()] for task, values in logits.items()}))
"""


def test_reload_gives_identical_logits_here_and_in_another_process(world, tmp_path):
    """Prevents any weight, buffer or option that matters from being missing in what is saved."""
    processor, _, batch = world
    model = tiny_model(processor, expert_options={"members": 2})
    model.model.item_encoder.counts[3] += 1
    model.save_pretrained(tmp_path)
    assert not [p for p in tmp_path.iterdir() if p.suffix not in (".json", ".safetensors")]
    with torch.no_grad():
        expected = model(**batch).logits
        loaded = PolyRecForRecommendation.from_pretrained(tmp_path)
        assert loaded.hub_commit is None  # a folder's name is none
        assert not loaded.training
        for task, logits in loaded(**batch).logits.items():
            assert torch.equal(logits, expected[task])
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0, equal_nan=True)
    torch.save({k: v for k, v in batch.items() if k != "labels"}, tmp_path / "batch.pt")
    done = subprocess.run(
        [sys.executable, "-c", LOGITS_PROGRAM, str(tmp_path)], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    printed = json.loads(done.stdout.splitlines()[-1])
    assert printed == {task: [x.hex() for x in values.flatten().tolist()] for task, values in expected.items()}


def test_auto_classes_after_import(world, tmp_path):
    """Prevents AutoConfig and AutoModel from not knowing polyrec, or AutoModel from reading untrained states."""
    processor, _, batch = world
    model = tiny_model(processor)
    model.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).task_names == ["next_item", "like", "rating"]
    base = AutoModel.from_pretrained(tmp_path)
    assert type(base) is PolyRecModel
    inputs = {k: batch[k] for k in ("item_ids", "event_features", "user_features")}
    states = base(**inputs).last_hidden_state
    assert torch.equal(gather_states(states, batch["candidate_positions"]), model(**batch).states)


def drop_from_file(folder: Path, part: str) -> None:
    """Remove all tensors whose name contains `part` from a saved model."""
    path = folder / "model.safetensors"
    tensors = {name: value for name, value in load_file(path).items() if part not in name}
    save_file(tensors, path, metadata={"format": "pt"})
    write_manifest(folder)


@pytest.mark.parametrize(
    "part",
    ["heads", "experts", "skip", "history_encoder.start", "edges", "item_encoder", "history_encoder", "weighting", ""],
)
def test_missing_keys_are_initialised_and_not_garbage(world, tmp_path, part):
    """Prevents parameters and buffers that are not in the file from keeping whatever the memory held (trap 4)."""
    processor, _, batch = world
    model = tiny_model(processor, expert_options={"members": 2})
    model.save_pretrained(tmp_path)
    drop_from_file(tmp_path, part)
    torch.full((1 << 20,), float("nan"))  # garbage that freshly allocated memory could then hold
    loaded = PolyRecForRecommendation.from_pretrained(tmp_path)
    fresh = PolyRecForRecommendation(model.config)
    for name, value in loaded.state_dict().items():
        if part not in name:
            torch.testing.assert_close(value, model.state_dict()[name], rtol=0, atol=0, equal_nan=True)
            continue
        assert torch.isfinite(value).all(), name
        assert value.float().abs().max() < 10 * max(fresh.state_dict()[name].float().abs().max(), 1.0) + 40, name
    assert torch.isfinite(loaded(**batch).loss)
    if part == "edges":
        assert torch.equal(loaded.state_dict()["pair_encoder.features.numbers.edges"], fresh_edges(fresh))


def fresh_edges(model):
    return model.state_dict()["pair_encoder.features.numbers.edges"]


def test_head_starts_at_the_base_rate(world):
    """Prevents the prior from being overwritten by the default initialisation, which costs hundreds of steps."""
    processor, _, _ = world
    model = tiny_model(processor)
    prior = processor.label_summary["like"]["mean"]
    torch.testing.assert_close(model.heads["like"].output.bias.sigmoid().item(), prior, rtol=1e-5, atol=0)


def test_same_seed_same_model_other_seed_other_model(world):
    """Prevents initialisation from depending on anything but the seed."""
    processor, _, _ = world
    a, b, c = tiny_model(processor, seed=1), tiny_model(processor, seed=1), tiny_model(processor, seed=2)
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.item_encoder.id_embedding.weight, c.item_encoder.id_embedding.weight)


def test_column_names_that_python_or_torch_use_themselves():
    """Prevents an item column such as "type" or "items", or one with a dot, from breaking the model's construction."""
    log = synthetic_log(users=12)
    names = {"type": "genre", "items": "price", "tag.list": "tags"}
    log["items"] = {"item_id": log["items"]["item_id"]} | {new: log["items"][old] for new, old in names.items()}
    log["users"] = {"user_id": log["users"]["user_id"], "keys": log["users"]["age"]}
    log["interactions"]["pop"] = log["interactions"].pop("surface")
    columns = {
        "context": {"pop": "categorical"},
        "item_features": {"type": "categorical", "items": "numeric", "tag.list": "multi"},
    }
    processor, splits = fit(log, columns=columns)
    model = tiny_model(processor)
    batch = model_inputs(PolyRecCollator()([splits.train[i] for i in range(4)]))
    assert torch.isfinite(model(**batch).loss)


@pytest.mark.parametrize("name", ["items", "type", "update", "train", "training"])
def test_task_name_that_torch_uses_itself_is_refused(name):
    """Prevents torch's bare KeyError "attribute 'items' already exists", which does not say what to do."""
    with pytest.raises(ValueError, match=f"the task name '{name}' is taken .*choose another one"):
        PolyRecForRecommendation(random_config(tasks=[{"name": name, "head": "binary"}]))


def test_catalog_of_another_processor_is_refused(world):
    """Prevents a model from silently reading the attributes of other items."""
    processor, _, _ = world
    model = PolyRecForRecommendation(random_config(num_items=9))
    with pytest.raises(ValueError, match="model has num_items=9"):
        model.load_catalog({}, torch.from_numpy(processor.item_counts).float())


def test_training_mode_uses_dropout_and_evaluation_does_not(world):
    """Prevents dropout from being off in training, or on in evaluation."""
    processor, _, batch = world
    model = tiny_model(processor, dropout=0.5, item_id_dropout=0.5)
    assert torch.equal(model(**batch).loss, model(**batch).loss)
    model.train()
    assert not torch.equal(model(**batch).loss, model(**batch).loss)


def test_copies_are_independent(world):
    """Prevents a copied model (a teacher, a best checkpoint) from sharing tensors with the original."""
    processor, _, batch = world
    model = tiny_model(processor)
    twin = copy.deepcopy(model)
    before = twin(**batch).loss
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    assert torch.equal(twin(**batch).loss, before)
    assert np.isfinite(before.item())
