"""What every registered expert layer must do."""

from __future__ import annotations

import pytest
import torch
from model_fixtures import random_batch, random_config

from polyrec import PolyRecForRecommendation
from polyrec.core.registry import EXPERTS
from polyrec.models.training_pass import LossStep
from polyrec.modules.experts.base import ExpertLayer

KINDS = EXPERTS.names()
NAMES = ["like", "click", "rating"]
TASKS = [{"name": name, "head": "regression" if name == "rating" else "binary"} for name in NAMES]
# Every layer with its default options, and built-in ones with those that change shapes or parameters, too.
VARIANTS = [(kind, {}) for kind in KINDS] + [
    ("shared_bottom", {"members": 3}),
    ("shared_bottom", {"num_layers": 2, "expansion": 3}),
    ("shared_bottom", {"num_layers": 2, "members": 2}),
    ("mmoe", {"num_experts": 3, "expansion": 2}),
    ("cgc", {"task_experts": 2, "shared_experts": 3}),
    ("ple", {"num_layers": 1}),
    ("ple", {"num_layers": 3, "task_experts": 2, "shared_experts": 2}),
    ("cross_stitch", {"num_layers": 1, "self_weight": 1}),
    ("mtan", {"num_layers": 3, "bottleneck": 2}),
    ("lml", {"rank": 2, "members": 3}),
]
GATED = [kind for kind in KINDS if "load_balancing" in EXPERTS.get(kind).default_options]
variants = pytest.mark.parametrize(("kind", "options"), VARIANTS, ids=str)


def model_of(kind, options, tasks=TASKS, seed=0):
    torch.manual_seed(seed)
    config = random_config(tasks=tasks, experts=kind, expert_options=options)
    return PolyRecForRecommendation(config).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_it_documents_itself(kind):
    """Prevents an expert layer without formula, shapes or example."""
    cls = EXPERTS.get(kind)
    assert issubclass(cls, ExpertLayer)
    assert ">>> " in cls.__doc__
    assert "Shapes:" in cls.__doc__
    assert "h = " in cls.__doc__


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_option_is_refused_with_the_nearest_name(kind):
    """Prevents a misspelt option from being ignored."""
    option = next(iter(EXPERTS.get(kind).default_options))
    with pytest.raises(ValueError, match=f"unknown option '{option}x' of expert layer '{kind}'.*mean '{option}'"):
        model_of(kind, {f"{option}x": 1})


@pytest.mark.parametrize("kind", KINDS)
def test_impossible_option_is_refused_at_construction(kind):
    """Prevents a layer without experts, or a fraction of one, from being built or from failing in a matrix product."""
    for option, default in EXPERTS.get(kind).default_options.items():
        if isinstance(default, int):
            for value in (0, 1.5, True, "2"):
                with pytest.raises(ValueError, match=f"option '{option}' of expert layer '{kind}' is .* whole number"):
                    model_of(kind, {option: value})
    if "expansion" in EXPERTS.get(kind).default_options:
        with pytest.raises(ValueError, match=f"'expansion' of expert layer '{kind}' is 0.01, which leaves no hidden"):
            model_of(kind, {"expansion": 0.01})


@variants
def test_shapes(kind, options):
    """Prevents a task without an answer, or with one of another shape than (members and) width."""
    experts = model_of(kind, options).experts
    found = experts(torch.randn(2, 3, 8)).hidden
    assert set(found) == set(NAMES)
    for hidden in found.values():
        assert hidden.shape in ((2, 3, 8), (2, 3, options.get("members", 1), 8))


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
@variants
def test_gradient_reaches_every_parameter_and_stays_finite(kind, options, autocast):
    """Prevents an expert or gate that never learns (or stops DDP), and overflow in mixed precision."""
    model, batch = model_of(kind, options), random_batch(NAMES)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss = model(**batch).loss
    loss.backward()
    for name, p in model.experts.named_parameters():
        assert torch.isfinite(p.grad).all(), name
        of_each = p.grad.flatten(1) if p.dim() == 3 else p.grad.flatten().unsqueeze(0)  # stacked experts: every one
        assert (of_each.count_nonzero(-1) > 0).all(), name


@variants
def test_no_label_gives_a_zero_gradient_everywhere(kind, options):
    """Prevents an absent gradient, which stops DDP, where a batch has no label at all."""
    model, batch = model_of(kind, options), random_batch(NAMES)
    for values in batch["labels"].values():
        values.fill_(float("nan"))
    loss = model(**batch).loss
    loss.backward()
    assert loss == 0
    assert all(p.grad is not None and p.grad.count_nonzero() == 0 for p in model.experts.parameters())


@variants
def test_order_of_tasks_does_not_matter(kind, options):
    """Prevents experts, gates or towers from belonging to a position instead of a name."""
    one, other = model_of(kind, options), model_of(kind, options, TASKS[::-1], seed=1)
    other.load_state_dict(one.state_dict())
    batch = random_batch(NAMES)
    a, b = one(**batch), other(**batch)
    torch.testing.assert_close(a.loss, b.loss)
    for task in NAMES:
        torch.testing.assert_close(a.losses[task], b.losses[task])


@variants
def test_one_task_only(kind, options):
    """Prevents a layer from needing several tasks."""
    output = model_of(kind, options, TASKS[:1])(**random_batch(NAMES[:1]))
    assert torch.isfinite(output.loss)


@variants
def test_candidates_do_not_see_each_other(kind, options):
    """Prevents a norm or gate over the candidates of a batch, which would leak between them."""
    experts = model_of(kind, options).experts
    pair = torch.randn(3, 4, 8)
    whole, part = experts(pair).hidden, experts(pair[1:2, 2:3]).hidden
    for task in NAMES:
        torch.testing.assert_close(whole[task][1:2, 2:3], part[task])


@variants
def test_two_fresh_layers_differ_and_dropout_acts_in_training_only(kind, options):
    """Prevents parameters that `initialise` or the default initialisation left at a constant or at garbage."""
    one, other = model_of(kind, options, seed=1).experts, model_of(kind, options, seed=2).experts
    pair = torch.randn(2, 3, 8)
    assert not torch.allclose(one(pair).hidden["like"], other(pair).hidden["like"])
    assert torch.equal(one(pair).hidden["like"], one(pair).hidden["like"])
    assert all(torch.isfinite(p).all() and p.abs().max() < 10 for p in one.parameters())


@variants
def test_layer_that_the_file_lacks_starts_as_a_fresh_one(kind, options, tmp_path):
    """Prevents weights built on the meta device from loading as whatever the memory held.

    A checkpoint of another layer is loaded: nothing of this one is in it.
    """
    model_of("shared_bottom", {"num_layers": 3, "members": 5}).save_pretrained(tmp_path)
    config = model_of(kind, options).config
    loaded = PolyRecForRecommendation.from_pretrained(tmp_path, config=config, ignore_mismatched_sizes=True)
    for name, p in loaded.experts.named_parameters():
        assert torch.isfinite(p).all(), name
        assert p.abs().max() < 5, name  # random ones have a standard deviation of 0.2
        assert "bias" in name or p.count_nonzero() > 0.9 * p.numel() or kind == "cross_stitch", name


@variants
def test_saved_layer_answers_the_same(kind, options, tmp_path):
    """Prevents a parameter from being left out of the file."""
    model, batch = model_of(kind, options), random_batch(NAMES)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(PolyRecForRecommendation.from_pretrained(tmp_path)(**batch).loss, model(**batch).loss)


@variants
def test_gates_are_named_and_sum_to_one(kind, options):
    """Prevents a report that attributes to one expert what another one said, and gates of padding or of other tasks."""
    model, batch = model_of(kind, options), random_batch(NAMES)
    names, gates = model.experts.gate_names, model(**batch).gates
    assert set(names) == set(gates) == (set(NAMES) if kind in GATED else set())
    for task, gates_BCE in gates.items():
        assert gates_BCE.shape == (*batch["candidate_ids"].shape, len(names[task]))
        assert len(set(names[task])) == len(names[task])
        assert (gates_BCE >= 0).all()
        torch.testing.assert_close(gates_BCE.sum(-1), torch.ones_like(gates_BCE[..., 0]))


@pytest.mark.parametrize("kind", GATED)
def test_load_balancing_reads_real_pairs_only_and_enters_the_objective(kind):
    """Prevents padding from counting as use of an expert, and an option that is accepted and never used."""
    plain, balanced = model_of(kind, {}), model_of(kind, {"load_balancing": 0.5})
    balanced.load_state_dict(plain.state_dict())
    pair = torch.randn(2, 4, 8)
    real = torch.tensor([[True, True, True, False], [True, False, False, False]])
    assert plain.experts(pair, real).penalty is None
    penalty = balanced.experts(pair, real).penalty
    assert penalty > 0
    padded = torch.where(real.unsqueeze(-1), pair, 100 * torch.randn_like(pair))
    torch.testing.assert_close(balanced.experts(padded, real).penalty, penalty)
    torch.testing.assert_close(balanced.experts(pair[real].unsqueeze(0)).penalty, penalty)
    assert balanced.experts(pair, torch.zeros_like(real)).penalty == 0
    batch = random_batch(NAMES)
    whole, quarter, without = balanced(**batch), balanced(**batch, step=LossStep(share=0.25)), plain(**batch)
    torch.testing.assert_close(whole.loss - without.loss, 4 * (quarter.loss - without.loss))
    assert whole.loss > without.loss


@pytest.mark.parametrize("kind", GATED)
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_load_balancing_must_be_a_finite_coefficient(kind, value):
    """Prevents a penalty that rewards leaving experts out, or turns every loss into NaN."""
    with pytest.raises(ValueError, match=f"'load_balancing' of expert layer '{kind}' is .* number( >= 0)?"):
        model_of(kind, {"load_balancing": value})


# ------------------------------------------------------------------ shared_bottom
def test_shared_bottom_equals_its_formula():
    """Prevents a block without residual connection, norm or non-linearity."""
    experts = model_of("shared_bottom", {"expansion": 3}).experts
    block, x = experts.blocks[0], torch.randn(2, 3, 8)
    centred = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    inner = torch.nn.functional.gelu(centred @ block.up.weight.T + block.up.bias)
    assert inner.shape[-1] == 24
    expected = x + inner @ block.down.weight.T + block.down.bias
    torch.testing.assert_close(experts(x).hidden["like"], expected)


def test_members_share_matrices_and_start_with_different_signs():
    """Prevents members that start equal (and so stay one network), and M-fold parameters."""
    model, single = model_of("shared_bottom", {"members": 8}), model_of("shared_bottom", {})
    scales = [p for n, p in model.experts.named_parameters() if "scale" in n]
    assert len(scales) == 3
    for scale in scales:
        assert set(scale.unique().tolist()) == {-1.0, 1.0}
        assert len(scale.unique(dim=0)) == 8
    extra = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in single.parameters())
    assert extra == sum(s.numel() for s in scales)


def test_one_member_is_independent_of_the_others():
    """Prevents members from mixing: the answer of one depends on its own scales only."""
    experts = model_of("shared_bottom", {"members": 3}).experts
    pair = torch.randn(2, 3, 8)
    before = experts(pair).hidden["like"]
    with torch.no_grad():
        experts.scale[1] *= 2
        experts.blocks[0].scale_out[1] *= 3
    after = experts(pair).hidden["like"]
    assert torch.equal(before[:, :, [0, 2]], after[:, :, [0, 2]])
    assert not torch.allclose(before[:, :, 1], after[:, :, 1])
