"""Each expert layer against its formula, written once more as plain loops over tasks and experts."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_fixtures import arguments, fit, random_config, synthetic_log, tiny_model
from scipy.stats import variation
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from polyrec import PolyRecForRecommendation, PolyRecTrainer
from polyrec.modules.experts._batched import BatchedLinear
from polyrec.modules.experts._gates import load_imbalance, mixture

NAMES = ["buy", "click", "like"]  # sorted: parts are kept in this order
WIDTH = 8


def layer_of(kind, tasks=tuple(NAMES), **options):
    """A layer in double precision whose parameters are all random, norms and biases included."""
    torch.manual_seed(0)
    tasks = [{"name": name, "head": "binary"} for name in tasks]
    config = random_config(tasks=tasks, hidden_size=WIDTH, experts=kind, expert_options=options)
    layer = PolyRecForRecommendation(config).experts.double().eval()
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(0.4 * torch.randn_like(p))
    return layer


def pairs(seed=0):
    return torch.randn(2, 3, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def normed(norm, x):
    centred = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    return centred * norm.weight + norm.bias


def gelu(x):
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def network(mlp, n, x):
    """Network number n of a BatchedMLP."""
    return gelu(x @ mlp.up.weight[n] + mlp.up.bias[n]) @ mlp.down.weight[n] + mlp.down.bias[n]


def block(shared, x):
    """What a shared block adds to x."""
    inner = gelu(normed(shared.norm, x) @ shared.up.weight.T + shared.up.bias)
    return inner @ shared.down.weight.T + shared.down.bias


def softmax(logits):
    return logits.exp() / logits.exp().sum(-1, keepdim=True)


def assert_answers(found, expected):
    assert set(found) == set(expected)
    for task, values in expected.items():
        torch.testing.assert_close(found[task], values, msg=lambda m, task=task: f"{task}: {m}")


# ------------------------------------------------------------------ formulas
def test_mmoe_equals_its_formula():
    """Prevents a gate that reads another task's row or weighs another expert than it says (a wrong reshape)."""
    layer, x = layer_of("mmoe", num_experts=4, expansion=2), pairs()
    hidden, gates = {}, {}
    read = normed(layer.norm, x)
    for t, task in enumerate(NAMES):
        rows = slice(4 * t, 4 * (t + 1))
        gates[task] = softmax(read @ layer.gate.weight[rows].T + layer.gate.bias[rows])
        hidden[task] = x.clone()
        for e in range(4):
            hidden[task] += gates[task][..., e : e + 1] * network(layer.experts, e, read)
    assert layer.experts.up.weight.shape == (4, WIDTH, 2 * WIDTH)
    assert layer.gate_names == {task: ["expert 1", "expert 2", "expert 3", "expert 4"] for task in NAMES}
    output = layer(x)
    assert_answers(output.hidden, hidden)
    assert_answers(output.gates, gates)


@pytest.mark.parametrize(("kind", "levels"), [("cgc", 1), ("ple", 1), ("ple", 3)])
@pytest.mark.parametrize(("own", "shared"), [(1, 1), (2, 3)])
def test_cgc_and_ple_equal_their_formula(kind, levels, own, shared):
    """Prevents a task from reading another one's experts, and levels that read the wrong states."""
    options = {"num_layers": levels} if kind == "ple" else {}
    layer, x = layer_of(kind, task_experts=own, shared_experts=shared, **options), pairs()
    assert len(layer.levels) == levels
    names = {(1, 1): ["own 1", "shared 1"], (2, 3): ["own 1", "own 2", "shared 1", "shared 2", "shared 3"]}
    assert layer.gate_names == {task: names[own, shared] for task in NAMES}
    states, common = dict.fromkeys(NAMES, x), x
    for number, level in enumerate(layer.levels):
        answers = {
            ("shared", e): network(level.experts, 3 * own + e, normed(level.norm, common)) for e in range(shared)
        }
        for t, task in enumerate(NAMES):
            for e in range(own):
                answers[task, e] = network(level.experts, own * t + e, normed(level.norm, states[task]))
        gates, following = {}, {}
        for t, task in enumerate(NAMES):
            gates[task] = softmax(normed(level.norm, states[task]) @ level.gates.weight[t] + level.gates.bias[t])
            sources = [(task, e) for e in range(own)] + [("shared", e) for e in range(shared)]
            following[task] = states[task] + sum(
                gates[task][..., i : i + 1] * answers[s] for i, s in enumerate(sources)
            )
        assert (level.shared_gate is None) == (number == levels - 1)
        if level.shared_gate is not None:
            logits = normed(level.norm, common) @ level.shared_gate.weight.T + level.shared_gate.bias
            sources = [(task, e) for task in NAMES for e in range(own)] + [("shared", e) for e in range(shared)]
            mixed = sum(softmax(logits)[..., i : i + 1] * answers[s] for i, s in enumerate(sources))
            common = common + mixed
        states = following
    output = layer(x)
    assert_answers(output.hidden, states)
    assert_answers(output.gates, gates)


@pytest.mark.parametrize("layers", [1, 3])
def test_cross_stitch_equals_its_formula(layers):
    """Prevents mixing by the transposed matrix, i.e. giving where a task should take."""
    layer, x = layer_of("cross_stitch", num_layers=layers), pairs()
    states = dict.fromkeys(NAMES, x)
    for part in layer.layers:
        own = [
            states[task] + network(part.networks, t, normed(part.norm, states[task])) for t, task in enumerate(NAMES)
        ]
        states = {task: sum(part.stitch[t, u] * own[u] for u in range(3)) for t, task in enumerate(NAMES)}
    assert_answers(layer(x).hidden, states)


@pytest.mark.parametrize("layers", [1, 3])
def test_mtan_equals_its_formula(layers):
    """Prevents masks that read another task's features or the shared state of another depth."""
    layer, x = layer_of("mtan", num_layers=layers, bottleneck=5), pairs()
    shared, states = x, dict.fromkeys(NAMES, x)
    for j in range(layers):
        found = block(layer.blocks[j], shared)
        for t, task in enumerate(NAMES):
            read = normed(layer.norms[j], states[task])
            if j:
                read = torch.cat([normed(layer.norms[j], shared), read], dim=-1)
            states[task] = states[task] + found / (1 + torch.exp(-network(layer.masks[j], t, read)))
        shared = shared + found
    assert_answers(layer(x).hidden, states)


def test_lml_equals_its_formula():
    """Prevents the linear part of one task from being another one's, or from bending."""
    layer, x = layer_of("lml", rank=2, num_layers=2), pairs()
    shared = x + block(layer.blocks[0], x)
    shared = shared + block(layer.blocks[1], shared)
    linear = {task: x @ layer.reduce.weight[t] @ layer.expand.weight[t] for t, task in enumerate(NAMES)}
    assert all(np.linalg.matrix_rank((layer.reduce.weight[t] @ layer.expand.weight[t]).detach()) == 2 for t in range(3))
    assert_answers(layer(x).hidden, {task: shared + part for task, part in linear.items()})


def test_members_of_lml_share_the_linear_parts():
    """Prevents the linear part from being spread over the wrong axis of an ensemble."""
    layer, x = layer_of("lml", rank=2, members=4), pairs()
    plain = layer_of("shared_bottom", members=4)
    plain.load_state_dict({k: v for k, v in layer.state_dict().items() if not k.startswith(("reduce", "expand"))})
    for t, task in enumerate(NAMES):
        added = layer(x).hidden[task] - plain(x).hidden[task]
        for m in range(4):
            torch.testing.assert_close(added[:, :, m], x @ layer.reduce.weight[t] @ layer.expand.weight[t])


# ------------------------------------------------------------------ who learns from whom
def gradients(layer, task):
    layer.zero_grad()
    layer(pairs()).hidden[task].square().sum().backward()
    return {name: p.grad for name, p in layer.named_parameters()}


def test_no_other_task_trains_the_own_experts_of_a_task():
    """Prevents CGC from being MMoE under another name: own experts are what protects a task from the others."""
    layer = layer_of("cgc", task_experts=2, shared_experts=2)
    of_buy = gradients(layer, "buy")["levels.0.experts.up.weight"]
    trained = of_buy.flatten(1).any(1).tolist()
    assert trained == [True, True, False, False, False, False, True, True]  # buy, click, like, shared
    of_mmoe = gradients(layer_of("mmoe"), "buy")["experts.up.weight"]
    assert of_mmoe.flatten(1).any(1).all()


def test_shared_experts_of_ple_read_what_other_tasks_extracted_below():
    """Prevents levels without a shared gate, in which shared knowledge never grows (LibMTL issue 88)."""
    layer, x = layer_of("ple", num_layers=2), pairs()
    before = layer(x).hidden["buy"]
    with torch.no_grad():
        layer.levels[1].experts.up.weight[1:3] += 1  # own experts of click and like, last level
    torch.testing.assert_close(layer(x).hidden["buy"], before)
    with torch.no_grad():
        layer.levels[0].experts.up.weight[1:3] += 1  # and of the level below
    assert not torch.allclose(layer(x).hidden["buy"], before)


def test_cross_stitch_starts_near_the_identity():
    """Prevents tasks from starting as one averaged network, and rows that change the scale of what they mix."""
    tasks = [{"name": name, "head": "binary"} for name in NAMES]
    model = PolyRecForRecommendation(random_config(tasks=tasks, experts="cross_stitch"))
    for part in model.experts.layers:
        torch.testing.assert_close(part.stitch.diagonal(), torch.full((3,), 0.9))
        torch.testing.assert_close(part.stitch.sum(-1), torch.ones(3))
    one = PolyRecForRecommendation(random_config(tasks=tasks[:1], experts="cross_stitch"))
    assert one.experts.layers[0].stitch.item() == 1
    with pytest.raises(
        ValueError, match=r"'self_weight' of expert layer 'cross_stitch' is 1.5; it must lie in \(0, 1\]"
    ):
        layer_of("cross_stitch", self_weight=1.5)


def test_tasks_that_are_not_stitched_together_are_separate_networks():
    """Prevents a hidden path between the tasks' networks besides the stitches."""
    layer = layer_of("cross_stitch")
    with torch.no_grad():
        for part in layer.layers:
            part.stitch.copy_(torch.eye(3))
    of_click = gradients(layer, "click")
    for name in ("layers.0.networks.up.weight", "layers.1.networks.down.bias"):
        assert of_click[name].flatten(1).any(1).tolist() == [False, True, False]


def test_mtan_with_open_masks_is_the_shared_bottom():
    """Prevents a mask that is not elementwise, or a scale that is lost on the way."""
    layer, plain = layer_of("mtan", expansion=2), layer_of("shared_bottom", num_layers=2)
    plain.load_state_dict({k: v for k, v in layer.state_dict().items() if k.startswith("blocks")})
    with torch.no_grad():
        for mask in layer.masks:
            mask.down.bias.fill_(100)
    assert_answers(layer(pairs()).hidden, plain(pairs()).hidden)


def test_one_expert_is_refused():
    """Prevents a gate over a single expert, whose softmax is the constant 1, so that it never learns."""
    with pytest.raises(ValueError, match="'num_experts' of expert layer 'mmoe' is 1.*use the expert layer"):
        layer_of("mmoe", num_experts=1)


def test_experts_start_different_from_each_other():
    """Prevents a stack of experts that start alike and so stay one expert (PaddleRec issue 721)."""
    tasks = [{"name": name, "head": "binary"} for name in NAMES]
    model = PolyRecForRecommendation(random_config(tasks=tasks, experts="mmoe"))
    for part in (model.experts.experts.up, model.experts.experts.down):
        assert len(part.weight.flatten(1).unique(dim=0)) == 4
        torch.testing.assert_close(part.weight.std(), torch.tensor(0.2), rtol=0.3, atol=0)
        assert part.bias.count_nonzero() == 0


# ------------------------------------------------------------------ building blocks
class Products(TorchDispatchMode):
    """Counts matrix products."""

    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket._qualified_op_name.split("::")[1] in (
            "mm",
            "addmm",
            "bmm",
            "baddbmm",
            "linear",
            "matmul",
        ):
            self.count["products"] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("kind", "expected", "more"),
    [
        ("mmoe", 3, {"num_experts": 9}),
        ("cgc", 3, {"task_experts": 5, "shared_experts": 4}),
        ("ple", 7, {"task_experts": 5, "shared_experts": 4}),
        ("cross_stitch", 6, {}),
        ("mtan", 8, {}),
        ("lml", 4, {}),
    ],
)
def test_number_of_matrix_products_does_not_grow_with_experts_or_tasks(kind, expected, more):
    """Prevents a loop over experts or gates, which makes a step slower with each of them."""
    for layer in (layer_of(kind), layer_of(kind, tasks=[f"task{n}" for n in range(7)], **more)):
        with torch.no_grad(), Products() as seen:
            layer(pairs())
        assert seen.count["products"] == expected


@pytest.mark.parametrize("bias", [True, False])
def test_batched_linear_equals_one_linear_after_the_other(bias):
    """Prevents the input of one map from reaching another one."""
    torch.manual_seed(0)
    layer = BatchedLinear(3, 4, 5, bias)
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_()
    bias_of = [layer.bias[n] if bias else None for n in range(3)]
    for x in (torch.randn(6, 4), torch.randn(3, 6, 4)):
        expected = [F.linear(x if x.dim() == 2 else x[n], layer.weight[n].T, bias_of[n]) for n in range(3)]
        torch.testing.assert_close(layer(x), torch.stack(expected))


def test_mixture_equals_a_sum_of_weighted_answers():
    """Prevents weights from being spread over the wrong axis where sizes happen to agree."""
    gates, own, common = torch.rand(3, 3, 3), torch.randn(3, 3, 3, 3), torch.randn(3, 3, 3)
    torch.testing.assert_close(mixture(gates, own), torch.einsum("tpe,tepd->tpd", gates, own))
    torch.testing.assert_close(mixture(gates, common), torch.einsum("tpe,epd->tpd", gates, common))
    assert mixture(gates, common.bfloat16()).dtype == torch.bfloat16


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 4), st.integers(1, 6), st.integers(2, 5))
def test_load_imbalance_is_the_squared_variation_of_importance(seed, gates, pairs_, experts):
    """Prevents padding from counting, and a sum where the literature has a mean."""
    random = np.random.default_rng(seed)
    values = random.dirichlet(np.full(experts, 0.3), (gates, pairs_))
    real = random.random(pairs_) < 0.7
    found = load_imbalance(torch.from_numpy(values), torch.from_numpy(real)).item()
    if not real.any():
        assert found == 0
        return
    importance = values[:, real].sum(1)
    assert found == pytest.approx((variation(importance, axis=1) ** 2).mean())
    share = values[:, real].mean(1)  # the same as the loss of Switch Transformers for soft gates, less its minimum
    assert found == pytest.approx(experts * (share**2).sum(1).mean() - 1)


def test_load_balancing_balances():
    """Prevents a penalty of the wrong sign: descending it must bring an expert back that all gates left out."""
    layer = layer_of("mmoe", load_balancing=1.0)
    with torch.no_grad():
        layer.gate.bias.view(3, 4)[:, 0] -= 4
    x = pairs()
    before = layer(x).gates["like"][..., 0].mean().item()
    optimizer = torch.optim.SGD([layer.gate.weight, layer.gate.bias], lr=0.5)
    for _ in range(100):
        optimizer.zero_grad()
        layer(x).penalty.backward()
        optimizer.step()
    assert layer(x).gates["like"][..., 0].mean().item() > 2 * before
    assert layer(x).penalty < 0.01


def test_mmoe_lets_tasks_differ_where_all_experts_are_used():
    """Prevents balancing per task, under which no task could have an expert of its own."""
    layer = layer_of("mmoe", tasks=NAMES[:2], num_experts=2, load_balancing=1.0)
    with torch.no_grad():
        layer.gate.weight.zero_()
        layer.gate.bias.copy_(torch.tensor([9.0, -9.0, -9.0, 9.0]))
    assert layer(pairs()).penalty < 1e-6
    with torch.no_grad():
        layer.gate.bias.copy_(torch.tensor([9.0, -9.0, 9.0, -9.0]))
    assert layer(pairs()).penalty > 0.9


def test_matrices_of_experts_decay_and_stitches_do_not(tmp_path):
    """Prevents stacked experts from escaping weight decay, and stitches from being pulled away from the identity."""
    processor, splits = fit(synthetic_log(users=8))
    for kind in ("ple", "cross_stitch"):
        model = tiny_model(processor, experts=kind, task_item_embeddings=True)
        trainer = PolyRecTrainer(model, arguments(tmp_path), train_dataset=splits.train, processing_class=processor)
        decayed = {
            name for name in trainer.get_decay_parameter_names(model) if name.startswith(("experts", "task_items"))
        }
        assert decayed == {
            name
            for name, p in model.named_parameters()
            if name.startswith("experts") and p.dim() > 1 and name.endswith("weight")
        }
        assert len(decayed) > 2
