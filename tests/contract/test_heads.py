"""What every registered head must do, and the arithmetic of each built-in one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import sklearn.metrics
import torch
from head_fixtures import NAN, config_of, head_of, with_queries
from hypothesis import given, settings
from hypothesis import strategies as st
from model_fixtures import random_batch, random_config
from torch.nn import functional as F

from polyrec import PolyRecForRecommendation
from polyrec.core.registry import HEADS
from polyrec.evaluation.evaluator import DETAIL_METRICS, PAIR_METRICS
from polyrec.modules.encoders.item import FIRST_ITEM, ItemRows
from polyrec.modules.heads.base import DETAIL_METRIC_NAMES, PAIR_METRIC_NAMES, TaskHead

KINDS = [pytest.param(name, id=name) for name in HEADS.names()]


def model_of(kind: str, members: int = 1, **options) -> PolyRecForRecommendation:
    """A model whose only task is of this kind."""
    torch.manual_seed(0)
    return PolyRecForRecommendation(config_of(kind, members, **options)).eval()


def batch_of(**options):
    """A batch with labels 0, 1 and unknown, and the context that heads may read."""
    batch = random_batch(["task"], **options)
    features = {}
    for read, ids in (("event_features", "item_ids"), ("candidate_features", "candidate_ids")):
        length = torch.linspace(-2, 2, batch[ids].numel()).view_as(batch[ids]).clone()
        length[0, 0] = NAN
        features[read] = {"length": length}
    return with_queries(batch) | features


# ------------------------------------------------------------------ the contract
@pytest.mark.parametrize("kind", KINDS)
def test_it_documents_itself(kind):
    """Prevents a head without formula or example, and one whose metrics nobody computes."""
    cls = HEADS.get(kind)
    assert issubclass(cls, TaskHead)
    assert cls.reads in ("pair", "state")
    assert cls.metrics
    assert ">>> " in cls.__doc__
    assert "Shapes:" in cls.__doc__
    assert "L = " in cls.__doc__


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_option_is_refused_with_the_nearest_name(kind):
    """Prevents a misspelt option from being ignored."""
    option = next(iter(HEADS.get(kind).default_options))
    with pytest.raises(ValueError, match=f"unknown option '{option}x' of task 'task'.*did you mean '{option}'"):
        model_of(kind, **{f"{option}x": 1})


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_shapes_gradients_and_finiteness(kind, autocast, members):
    """Prevents wrong shapes, parameters without gradient, and overflow in mixed precision; with ensembles, too."""
    model, batch = model_of(kind, members), batch_of()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        output = model(**batch)
    head = model.heads["task"]
    asked = batch["candidate_ids"].shape
    assert output.logits["task"].shape == (asked if head.logit_width is None else (*asked, head.logit_width))
    assert head.predict(output.logits["task"]).shape == asked
    assert head.predict(output.logits["task"]).dtype == torch.float32
    assert torch.isfinite(head.predict(output.logits["task"])).all()
    details = head.details(output.logits["task"])
    assert (None if details is None else details.shape) == (head.detail_width and (*asked, head.detail_width))
    assert output.losses["task"].shape == output.counts["task"].shape == ()
    assert output.losses["task"].dtype == torch.float32
    output.loss.backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert torch.isfinite(p.grad).all(), name
    assert all(p.grad.count_nonzero() for p in head.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_extreme_logits_stay_finite(kind):
    """Prevents one diverging answer from making the whole batch NaN."""
    head = model_of(kind).heads["task"]
    if head.reads == "state":
        return
    own = torch.tensor([-1e4, -100.0, 0.0, 100.0, 1e4])
    own = own if head.own_width is None else torch.stack([own, *[-own] * (head.own_width - 1)], dim=-1)
    own = own.unsqueeze(0).requires_grad_()
    for label in (0.0, 1.0):
        logits = head.finish(own, {"length": torch.tensor([[-9.0, 9.0, 0.0, NAN, 1.0]])})
        total, _ = head.loss(logits, torch.full((1, 5), label))
        total.backward()
        assert torch.isfinite(total)
        assert torch.isfinite(own.grad).all()
        assert torch.isfinite(head.predict(logits)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_it_survives_a_file(kind, tmp_path):
    """Prevents buffers and start values that are built on the meta device from loading as garbage."""
    model, batch = model_of(kind), batch_of()
    model.save_pretrained(tmp_path)
    loaded = PolyRecForRecommendation.from_pretrained(tmp_path)
    head = loaded.heads["task"]
    expected = model(**batch)
    assert torch.equal(loaded(**batch).loss, expected.loss)
    assert torch.equal(head.predict(loaded(**batch).logits["task"]), head.predict(expected.logits["task"]))


@pytest.mark.parametrize("kind", KINDS)
def test_the_main_metric_is_one_of_single_numbers(kind):
    """Prevents a metric that nobody computes, and a main metric that baselines and intervals cannot have."""
    cls = HEADS.get(kind)
    if cls.reads == "pair":
        assert (tuple(PAIR_METRICS), tuple(DETAIL_METRICS)) == (PAIR_METRIC_NAMES, DETAIL_METRIC_NAMES)
        assert (cls.details is not TaskHead.details) == bool(set(cls.metrics) & set(DETAIL_METRICS))


@pytest.mark.parametrize("kind", KINDS)
def test_no_known_label_gives_zero_and_a_zero_gradient(kind):
    """Prevents NaN, an error, or an absent gradient (which stops DDP) where a batch has no label of a task."""
    model, batch = model_of(kind), batch_of()
    batch["labels"]["task"].fill_(NAN)
    output = model(**batch)
    assert output.losses["task"] == output.counts["task"] == output.loss == 0
    output.loss.backward()
    assert all(p.grad is not None and p.grad.count_nonzero() == 0 for p in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_counts_add_up_over_parts_of_a_batch(kind):
    """Prevents a head from averaging inside: sums and counts of parts must give those of the whole (the reduction)."""
    model, batch = model_of(kind), batch_of(users=6)
    whole = model(**batch)
    parts = [model(**_rows(batch, rows)) for rows in (slice(0, 1), slice(1, 4), slice(4, 6))]
    torch.testing.assert_close(sum(p.losses["task"] for p in parts), whole.losses["task"])
    assert sum(p.counts["task"] for p in parts) == whole.counts["task"] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_weight_counts_like_repetition_and_nan_weight_of_unknown_label_is_nothing(kind):
    """Prevents a weight that scales the loss but not the count, and padded weights (NaN) from poisoning the sum."""
    model, batch = model_of(kind), batch_of(users=4)
    output = model(**batch)
    known = model.heads["task"].known(batch["labels"]["task"], batch["candidate_ids"])
    weighted = model(**batch, sample_weight={"task": torch.where(known, 3.0, NAN)})
    torch.testing.assert_close(weighted.losses["task"], 3 * output.losses["task"])
    torch.testing.assert_close(weighted.counts["task"], 3 * output.counts["task"])
    zero = model(**batch, sample_weight={"task": torch.zeros_like(batch["labels"]["task"])})
    assert zero.losses["task"] == zero.counts["task"] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_count_is_what_known_says(kind):
    """Prevents the trainer's denominators, which come from `known`, from differing from what the loss summed."""
    model, batch = model_of(kind), batch_of()
    batch["candidate_ids"][0, :2] = torch.tensor([0, 1])  # padding and the unknown item
    batch["labels"]["task"][0, 0] = NAN
    known = model.heads["task"].known(batch["labels"]["task"], batch["candidate_ids"])
    assert known.dtype == torch.bool
    assert model(**batch).counts["task"] == known.sum()


def _rows(batch, rows):
    """Some people of a batch."""
    shared = ("query_tokens", "query_mask")  # one row per query, whoever asks it
    return {k: _rows(v, rows) if isinstance(v, dict) else v if k in shared else v[rows] for k, v in batch.items()}


# ------------------------------------------------------------------ binary
BINARY = head_of("binary")
LOGITS = st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=20)


@settings(max_examples=50, deadline=None)
@given(LOGITS, st.integers(0, 2**32 - 1))
def test_binary_loss_equals_sklearn(values, seed):
    """Prevents a sign, a reduction or a clipping mistake in the logistic loss; unknown labels change nothing."""
    random = np.random.default_rng(seed)
    labels, weight = random.integers(0, 2, len(values)), random.random(len(values)) + 0.1
    logits = torch.tensor([[*values, 5.0]], dtype=torch.float64).float()
    total, count = BINARY.loss(logits, torch.tensor([[*labels, NAN]]).float(), torch.tensor([[*weight, 7.0]]).float())
    p = 1 / (1 + np.exp(-np.asarray(values, dtype=np.float64)))
    expected = sklearn.metrics.log_loss(labels, np.stack([1 - p, p], 1), sample_weight=weight, labels=[0, 1])
    np.testing.assert_allclose(count.item(), weight.sum(), rtol=1e-5)
    np.testing.assert_allclose(total.item() / count.item(), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(BINARY.predict(logits)[0, :-1], p, rtol=1e-4, atol=1e-7)


def test_binary_loss_of_sure_mistakes_stays_finite():
    """Prevents log(0): the loss of a wrong answer grows linearly instead."""
    total, _ = BINARY.loss(torch.tensor([[1e4, -1e4]]), torch.tensor([[0.0, 1.0]]))
    assert total.item() == pytest.approx(2e4)


@pytest.mark.parametrize("prior", [0.0, 1.0, -1, 2])
def test_binary_prior_must_be_a_share(prior):
    """Prevents infinite log odds from being put into the bias."""
    with pytest.raises(ValueError, match="must lie between 0 and 1"):
        model_of("binary", prior=prior)


def test_binary_starts_at_the_prior():
    """Prevents the first hundred steps from being spent on the base rate."""
    assert head_of("binary", prior=0.02).output.bias.item() == pytest.approx(math.log(0.02 / 0.98))


# ------------------------------------------------------------------ regression
@settings(max_examples=50, deadline=None)
@given(st.floats(-5, 5), st.floats(0.1, 10), st.sampled_from(["squared", "huber"]), st.integers(0, 2**32 - 1))
def test_regression_loss_equals_the_naive_one_in_label_units(mean, std, loss, seed):
    """Prevents the label's scale from entering the loss twice or not at all; unknown labels change nothing."""
    random = np.random.default_rng(seed)
    head = head_of("regression", mean=mean, std=std, loss=loss)
    labels, logits = random.normal(mean, 2 * std, (2, 6)), torch.from_numpy(random.normal(size=(2, 6))).float()
    labels[0, 0] = NAN
    known = ~np.isnan(labels)
    weight = random.random((2, 6)) + 0.5
    total, count = head.loss(logits, torch.from_numpy(labels).float(), torch.from_numpy(weight).float())
    predicted = head.predict(logits).numpy()
    np.testing.assert_allclose(predicted, mean + std * logits.numpy(), rtol=1e-4, atol=1e-4)
    errors = (labels - predicted) / std
    squared = errors**2
    expected = squared if loss == "squared" else np.where(np.abs(errors) < 1, squared, 2 * np.abs(errors) - 1)
    np.testing.assert_allclose(count, weight[known].sum(), rtol=1e-5)
    np.testing.assert_allclose(total, (expected * weight)[known].sum(), rtol=1e-3, atol=1e-4)
    if loss == "squared":
        mse = sklearn.metrics.mean_squared_error(labels[known], predicted[known], sample_weight=weight[known])
        np.testing.assert_allclose(total / count * std**2, mse, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ({}, [-17.0, 3.0, 23.0]),
        ({"minimum": 1.0}, [1.0, 3.0, 23.0]),
        ({"maximum": 5.0}, [-17.0, 3.0, 5.0]),
        ({"minimum": 1.0, "maximum": 5.0}, [1.0, 3.0, 5.0]),
    ],
)
def test_regression_predictions_are_clipped(bounds, expected):
    """Prevents a predicted rating of 7 stars, and a missing bound from raising."""
    head = head_of("regression", mean=3.0, std=2.0, **bounds)
    assert head.predict(torch.tensor([-10.0, 0.0, 10.0])).tolist() == expected


def test_regression_clipping_does_not_stop_the_gradient():
    """Prevents clipped predictions from never learning: the loss works on the logits before clipping."""
    head = head_of("regression", mean=3.0, std=1.0, minimum=1.0, maximum=5.0)
    logits = torch.tensor([[9.0]], requires_grad=True)
    head.loss(logits, torch.tensor([[3.0]]))[0].backward()
    assert logits.grad.item() == 18.0


@pytest.mark.parametrize(
    ("options", "message"), [({"std": 0.0}, "must be > 0"), ({"loss": "absolute"}, "squared, huber")]
)
def test_regression_options_are_checked(options, message):
    """Prevents a division by 0 and an unknown loss from being found in training."""
    with pytest.raises(ValueError, match=message):
        model_of("regression", **options)


# ------------------------------------------------------------------ retrieval
ITEMS = 12


def retrieval(items: int = ITEMS, width: int = 8, **options):
    """A head with biases, item vectors, states, targets and uneven training counts."""
    torch.manual_seed(1)
    tasks = [{"name": "task", "head": "retrieval", "options": options}]
    head = PolyRecForRecommendation(random_config(tasks=tasks, num_items=items, hidden_size=width)).heads["task"]
    head.bias.weight.data.normal_()
    vectors, states = torch.randn(items, width), torch.randn(9, width)
    targets = torch.tensor([2, 3, 3, 4, items - 1, 5, 0, 1, 7])
    return head, ItemRows(vectors), states, targets, torch.arange(float(items)) ** 2


def full_logits(head, items, states):
    """Scores of the catalog by definition."""
    return head.project(states) @ items.vectors_MD[FIRST_ITEM:].T + head.bias.weight[FIRST_ITEM:, 0]


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_retrieval_loss_and_gradient_equal_torch(smoothing):
    """Prevents the fused loss from differing from cross entropy, with smoothing, weights and rows that do not count."""
    head, items, states, targets, counts = retrieval(label_smoothing=smoothing)
    weight = torch.rand(len(targets)) + 0.5
    leaves = [states.requires_grad_(), items.vectors_MD.requires_grad_(), *head.parameters()]
    total, count = head.retrieval_loss(states, targets, items, counts, None, weight)
    known = targets >= FIRST_ITEM
    losses = F.cross_entropy(
        full_logits(head, items, states)[known],
        targets[known] - FIRST_ITEM,
        reduction="none",
        label_smoothing=smoothing,
    )
    expected = (losses * weight[known]).sum()
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(count, weight[known].sum())
    found = torch.autograd.grad(total, leaves)
    for a, b in zip(found, torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_catalog_scores_leave_out_padding_and_the_unknown_item():
    """Prevents rows 0 and 1 of the item table from being recommended."""
    head, items, states, _, _ = retrieval()
    scores = head(states, items)
    assert scores[:, :FIRST_ITEM].eq(float("-inf")).all()
    torch.testing.assert_close(scores[:, FIRST_ITEM:], full_logits(head, items, states))


def naive_sampled_loss(head, items, states, targets, counts, negatives):
    """-log softmax of the target among itself and the negatives that are not it, logits minus log Q, one by one."""
    q = (counts + 1) / (counts + 1)[FIRST_ITEM:].sum()
    losses = []
    for state, target in zip(states, targets.tolist(), strict=True):
        if target < FIRST_ITEM:
            continue
        scored = [target, *(n for n in negatives.tolist() if n != target)]
        query = head.project(state)
        logits = torch.stack([query @ items.vectors_MD[j] + head.bias.weight[j, 0] - torch.log(q[j]) for j in scored])
        losses.append(-F.log_softmax(logits, dim=0)[0])
    return torch.stack(losses)


def test_sampled_loss_equals_the_naive_one():
    """Prevents accidental hits from counting against the target, and a lost or wrong log-Q correction."""
    head, items, states, targets, counts = retrieval(sampled_above=0, num_negatives=15)
    negatives = torch.tensor([3, 3, 5, 7, 11, 2, 2, 9, 4])  # with repeats and hits
    total, count = head.retrieval_loss(states, targets, items, counts, negatives)
    expected = naive_sampled_loss(head, items, states, targets, counts, negatives)
    assert count == len(expected) == 7
    torch.testing.assert_close(total, expected.sum())


def test_sampled_loss_with_every_item_once_equals_the_full_softmax():
    """Prevents the sampled loss from aiming at anything but the full softmax: with uniform Q and all items they agree."""
    head, items, states, targets, counts = retrieval(sampled_above=0)
    uniform = torch.zeros_like(counts)
    known = targets >= FIRST_ITEM
    total, _ = head.retrieval_loss(states, targets, items, uniform, torch.arange(FIRST_ITEM, ITEMS))
    expected = F.cross_entropy(full_logits(head, items, states)[known], targets[known] - FIRST_ITEM, reduction="sum")
    torch.testing.assert_close(total, expected)


def test_sampled_loss_converges_to_the_full_softmax_under_uneven_sampling():
    """Prevents popular items from being pushed down for being sampled often: log Q must undo the sampling.

    With K draws from Q, the mean of exp(logit - log Q) over the draws estimates the partition sum; the target keeps
    its own term, so we compare the estimate of the sum over the OTHER items.
    """
    head, items, states, targets, counts = retrieval(sampled_above=0, num_negatives=200_000)
    states, targets = states[:6].detach(), targets[:6]
    torch.manual_seed(0)
    with torch.no_grad():
        drawn = head.negatives(counts)
        assert drawn.min() >= FIRST_ITEM
        frequency = torch.bincount(drawn, minlength=ITEMS) / len(drawn)
        q = (counts + 1) / (counts + 1)[FIRST_ITEM:].sum()
        torch.testing.assert_close(frequency[FIRST_ITEM:], q[FIRST_ITEM:], atol=5e-3, rtol=0)
        logits = full_logits(head, items, states)
        target = logits.gather(1, (targets - FIRST_ITEM).unsqueeze(1))
        for row in range(len(targets)):
            loss, _ = head.retrieval_loss(states[row : row + 1], targets[row : row + 1], items, counts, drawn)
            # exp(loss) - 1 = sum over sampled others of exp(z_j - log q_j) / exp(z_t - log q_t)
            others = (loss.exp() - 1) * (target[row] - q[targets[row]].log()).exp() / len(drawn)
            expected = (logits[row].logsumexp(0).exp() - target[row].exp()).item()
            assert others.item() == pytest.approx(expected, rel=0.03)


def test_sampling_of_a_large_catalog_reads_few_items(monkeypatch):
    """Prevents the sampled path from failing when only the mentioned rows of the item table are encoded."""
    monkeypatch.setattr("polyrec.modules.encoders.item.WHOLE_TABLE", 4)
    torch.manual_seed(0)
    tasks = [{"name": "task", "head": "retrieval", "options": {"sampled_above": 4, "num_negatives": 5}}]
    model = PolyRecForRecommendation(random_config(tasks=tasks, num_items=500)).train()
    encoded = []
    model.item_encoder.id_embedding.register_forward_hook(lambda module, args, out: encoded.append(len(args[0])))
    model(**random_batch(["task"])).loss.backward()
    assert max(encoded) < 50
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_retrieval_smoothing_is_checked():
    """Prevents a smoothing of 1, which would ask for nothing."""
    with pytest.raises(ValueError, match=r"must be in \[0, 1\)"):
        model_of("retrieval", label_smoothing=1.0)
