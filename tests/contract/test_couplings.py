"""What every registered coupling must do."""

from __future__ import annotations

import pytest
import torch
from coupling_fixtures import NAN, chain, chain_batch, model_of

from polyrec import PolyRecForRecommendation, TaskConfig
from polyrec.core.registry import COUPLINGS
from polyrec.modules.coupling.base import Coupling

KINDS = COUPLINGS.names()
NAMES = ["click", "cart", "buy"]
LOGGED = {"propensity": "logged"}  # reads the sample weight as something else than a weight
# Every coupling with its default options, and built-in ones with those that change formulas or parameters, too.
VARIANTS = [(kind, {}) for kind in KINDS] + [
    ("esmm", {"detach_parent": True}),
    ("escm2", {"method": "dr"}),
    ("escm2", LOGGED),
    ("escm2", {"method": "dr", **LOGGED}),
    ("escm2", {"method": "dr", "clip": 0.5, "detach_parent": True}),
]
kinds = pytest.mark.parametrize("kind", KINDS)
variants = pytest.mark.parametrize(("kind", "options"), VARIANTS, ids=str)


def model(kind, options, seed=0, **overrides):
    return model_of(chain(kind, NAMES, **options), seed, **overrides)


# ------------------------------------------------------------------ construction
@kinds
def test_it_documents_itself(kind):
    """Prevents a coupling of which nobody knows the formula, when to use it, or which labels it wants."""
    cls = COUPLINGS.get(kind)
    assert issubclass(cls, Coupling)
    for part in ("L = ", "Use it ", "Labels: ", "Options: ", "Shapes: ", ">>> "):
        assert part in cls.__doc__.replace("Options:\n", "Options: "), part


@kinds
def test_unknown_option_is_refused_with_the_nearest_name(kind):
    """Prevents a misspelt option from being ignored."""
    for option in COUPLINGS.get(kind).default_options:
        with pytest.raises(
            ValueError, match=f"unknown option '{option}x' of coupling '{kind}' of task 'cart'.*mean '{option}'"
        ):
            model(kind, {f"{option}x": 1})


def test_unknown_coupling_is_refused_with_the_list_and_the_nearest_name():
    """Prevents a misspelt coupling from being found out only when a model is built."""
    with pytest.raises(ValueError, match="unknown coupling 'esm'; did you mean 'esmm'. known: aitm, escm2, esmm, mon"):
        TaskConfig("buy", "binary", parent="click", coupling="esm")


@pytest.mark.parametrize(("head", "other"), [("regression", "click"), ("retrieval", "click"), ("regression", "cart")])
@kinds
def test_heads_that_are_not_probabilities_are_refused(kind, head, other):
    """Prevents the product, or the order, of a probability and a rating."""
    tasks = chain(kind, ["click", "cart"])
    next(t for t in tasks if t["name"] == other)["head"] = head
    with pytest.raises(
        ValueError, match=f"coupling '{kind}' cannot couple .*'{other}'.*head is '{head}': it needs 'binary'"
    ):
        model_of(tasks)


@kinds
def test_unknown_parents_circles_and_halves_are_refused(kind):
    """Prevents a coupling that is silently left out, or an endless chain."""
    tasks = chain(kind, NAMES)
    with pytest.raises(ValueError, match="task 'cart' has the unknown parent 'click'; known: cart, buy"):
        model_of(tasks[1:])
    with pytest.raises(ValueError, match="run in a circle \\(click -> buy -> cart -> click\\)"):
        model_of([{**tasks[0], "parent": "buy", "coupling": kind}, *tasks[1:]])
    with pytest.raises(ValueError, match="give both or neither"):
        TaskConfig("buy", "binary", coupling=kind)
    with pytest.raises(ValueError, match="give both or neither"):
        TaskConfig("buy", "binary", parent="click")


# ------------------------------------------------------------------ answers
@pytest.mark.parametrize("members", [1, 3])
@variants
def test_shapes(kind, options, members):
    """Prevents a coupling that broadcasts members against candidates, or adds an axis."""
    found, batch = model(kind, options, expert_options={"members": members}), chain_batch(NAMES)
    output = found(**batch)
    coupling, shape = found.couplings["buy"], (5, 4, members)[: 2 if members == 1 else 3]
    assert coupling.hidden(torch.randn(*shape, 8), torch.randn(*shape, 8)).shape == (*shape, 8)
    assert coupling.logits(torch.randn(shape), torch.randn(shape)).shape == shape
    for task in NAMES:
        assert output.logits[task].shape == (5, 4)
        assert output.losses[task].shape == output.counts[task].shape == ()
        assert output.losses[task].dtype == torch.float32
        assert output.counts[task] > 0


@variants
def test_candidates_do_not_see_each_other(kind, options):
    """Prevents an attention over the candidates of a batch in the place of one over tasks."""
    found, batch = model(kind, options), chain_batch(NAMES)
    part = {k: batch[k][:, 2:3] for k in ("candidate_ids", "candidate_positions")}
    whole = found(**batch).logits
    for task, logits in found(**batch | part | {"labels": None}).logits.items():
        torch.testing.assert_close(logits, whole[task][:, 2:3])


@pytest.mark.parametrize("reordered", [NAMES[::-1], ["cart", "buy", "click"]], ids=str)
@variants
def test_order_of_tasks_does_not_matter(kind, options, reordered):
    """Prevents a child from being answered before its parent, or coupled by position."""
    tasks = {t["name"]: t for t in chain(kind, NAMES, **options)}
    one, other = model(kind, options), model_of([tasks[n] for n in reordered], seed=1)
    other.load_state_dict(one.state_dict())
    batch = chain_batch(NAMES)
    a, b = one(**batch), other(**batch)
    torch.testing.assert_close(a.loss, b.loss)
    for task in NAMES:
        torch.testing.assert_close(a.logits[task], b.logits[task])
        torch.testing.assert_close(a.losses[task], b.losses[task])


@variants
def test_two_children_of_one_parent(kind, options):
    """Prevents children from changing the parent that their siblings read."""
    tasks = chain(kind, ["click", "cart"], **options)
    both = model_of([*tasks, {**tasks[1], "name": "buy"}])
    alone, batch = model_of(tasks, seed=1), chain_batch(NAMES)
    for name, p in alone.named_parameters():
        p.data = both.get_parameter(name).data
    for task in ("click", "cart"):
        torch.testing.assert_close(both(**batch).losses[task], alone(**batch).losses[task])


@variants
def test_it_is_saved_and_reloads(kind, options, tmp_path):
    """Prevents parameters of a coupling from being lost, or options from leaving the configuration."""
    found, batch = model(kind, options), chain_batch(NAMES)
    found.save_pretrained(tmp_path)
    loaded = PolyRecForRecommendation.from_pretrained(tmp_path)
    assert loaded.couplings["buy"].options == found.couplings["buy"].options
    assert torch.equal(loaded(**batch).loss, found(**batch).loss)


# ------------------------------------------------------------------ learning
@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
@variants
def test_gradient_reaches_every_parameter_and_stays_finite(kind, options, autocast, members):
    """Prevents a part that never learns (or stops DDP), and overflow in mixed precision."""
    found, batch = model(kind, options, expert_options={"members": members}), chain_batch(NAMES)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss = found(**batch).loss
    loss.backward()
    for name, p in found.named_parameters():
        assert torch.isfinite(p.grad).all(), name
    for name, p in [*found.couplings.named_parameters(), *found.heads.named_parameters()]:
        assert p.grad.count_nonzero() > 0, name


@pytest.mark.parametrize("how", ["nan", "absent"])
@pytest.mark.parametrize("without", [["buy"], ["click"], ["cart", "click"], NAMES], ids=str)
@variants
def test_missing_labels_of_some_tasks(kind, options, without, how):
    """Prevents NaN, an error, or an absent gradient (which stops DDP) where a batch has no labels of a task."""
    found, batch = model(kind, options), chain_batch(NAMES)
    for task in without:
        batch["labels"][task].fill_(NAN)
    if how == "absent":
        batch["labels"] = {k: v for k, v in batch["labels"].items() if k not in without}
    output = found(**batch)
    assert torch.isfinite(output.loss)
    output.loss.backward()
    for name, p in found.named_parameters():
        assert p.grad is not None, name
        assert torch.isfinite(p.grad).all(), name
    for task in without:
        assert output.losses[task] == output.counts[task] == 0
        coupled = found.couplings[task].parameters() if task in found.couplings else []
        if without == NAMES or task == "buy":  # else the children of a task train it
            assert all(p.grad.count_nonzero() == 0 for p in coupled)


@variants
def test_losses_and_counts_add_up_over_parts_of_a_batch(kind, options):
    """Prevents a mean inside a coupling: sums and counts of parts must give those of the whole (the reduction)."""
    found, batch = model(kind, options), chain_batch(NAMES, users=6)
    whole = found(**batch)
    parts = [found(**chain_batch(NAMES, users=6, keep=rows)) for rows in (slice(0, 1), slice(1, 4), slice(4, 6))]
    for task in NAMES:
        torch.testing.assert_close(sum(p.losses[task] for p in parts), whole.losses[task])
        torch.testing.assert_close(sum(p.counts[task] for p in parts), whole.counts[task])


@variants
def test_count_is_the_weight_of_known_labels(kind, options):
    """Prevents the trainer's denominators, which know nothing of couplings, from differing from what was summed."""
    found, batch = model(kind, options), chain_batch(NAMES)
    counts = found(**batch).counts
    for task in NAMES[1:]:
        known = ~torch.isnan(batch["labels"][task])
        torch.testing.assert_close(counts[task], batch["sample_weight"][task][known].sum())


@pytest.mark.parametrize(("kind", "options"), [v for v in VARIANTS if LOGGED.items() - v[1].items()], ids=str)
def test_weight_counts_like_repetition_and_nan_weight_of_unknown_label_is_nothing(kind, options):
    """Prevents a weight that scales one of two terms only, and padded weights (NaN) from poisoning the sum."""
    found, batch = model(kind, options), chain_batch(NAMES)
    del batch["sample_weight"]
    plain = found(**batch)
    weights = {t: torch.where(torch.isnan(v), NAN, 3.0) for t, v in batch["labels"].items()}
    weighted = found(**batch, sample_weight=weights)
    for task in NAMES:
        torch.testing.assert_close(weighted.losses[task], 3 * plain.losses[task])
        torch.testing.assert_close(weighted.counts[task], 3 * plain.counts[task])


@variants
def test_members_train_on_their_own_losses(kind, options):
    """Prevents the loss of the mean answer, which would couple the members of an ensemble: equal members = one."""
    one, several = model(kind, options), model(kind, options, seed=1, expert_options={"members": 3})
    for name, p in several.named_parameters():
        p.data = torch.ones_like(p) if "scale" in name else one.get_parameter(name).data
    batch = chain_batch(NAMES)
    for task in NAMES:
        torch.testing.assert_close(several(**batch).losses[task], one(**batch).losses[task])
