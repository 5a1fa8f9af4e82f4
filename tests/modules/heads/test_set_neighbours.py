"""Item-to-item evidence of sets: all visible events count alike, and sums of one window are running sums."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from polyrec.core.linear_loss import DenseBias, linear_loss
from polyrec.data.neighbours import RIDGE, SET_KINDS, Neighbours, neighbours
from polyrec.evaluation.baselines.recommenders import EASE
from polyrec.modules.encoders.request_context import RequestContext
from polyrec.modules.encoders.visible_events import VisibleEvents
from polyrec.modules.heads.terms.seen import Seen
from polyrec.modules.heads.terms.set_neighbours import SetNeighbours

N, K, FOLDS = 12, 5, 2


def log_of(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    user = np.repeat(np.arange(30), 6)
    return user, random.integers(2, N, len(user))


@pytest.fixture(scope="module")
def term():
    found = SetNeighbours(K, N, hidden_size=4, task="t")
    user, item = log_of()
    tables = [neighbours(user[user % 3 != n], item[user % 3 != n], N, K, ordered=False) for n in (3, 0, 1)]
    found.load(tables[0], tables[1:])
    found.tables = tables  # for the tests
    return found


def dense(table: Neighbours) -> np.ndarray:
    """float [N, T, N] of a table of neighbours."""
    found = np.zeros((N, len(SET_KINDS), N))
    for item in range(N):
        for place, other in enumerate(table.items[item]):
            if other:
                found[item, :, other] = table.values[item, :, place]
    return found


def moment_of(term, seed: int = 1) -> tuple[RequestContext, np.ndarray]:
    """Two windows whose questions see more and more, in any order of questions, and one of nobody known."""
    random = np.random.default_rng(seed)
    lengths = np.array([6, 6, 4])
    items = np.where(np.arange(6) < lengths[:, None], random.integers(1, N, (3, 6)), 0)  # 1: unknown
    window = np.append(np.repeat(np.arange(3), 5), [0, 0])
    position = np.concatenate([np.sort(random.integers(0, length + 1, 5)) for length in lengths])
    position = np.append(position, position[[2, 0]])  # of one window, and fewer and fewer
    fold = np.append(np.array([1, 2, 0])[window[:-2]], [0, 1])
    seen = VisibleEvents(*map(torch.from_numpy, (items, position, window)), {})
    rows = np.where(np.arange(6) < position[:, None], items[window], 0)
    return RequestContext(history=seen, fold=torch.from_numpy(fold)), rows


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("ids", [range(2, N), range(N), (3, 4, 9)])
def test_sums_are_those_of_all_events(term, training, ids):
    """Prevents a running sum that goes on over two users, folds or refusals, and columns of other items."""
    term.train(training)
    context, history = moment_of(term)
    refused_BL = torch.rand(3, 6, generator=torch.Generator().manual_seed(0)) < 0.2
    refused = refused_BL[context.history.windows]
    context = context._replace(history=context.history._replace(refused={"t": refused_BL}))
    tables = [dense(table) for table in term.tables]
    expected = np.zeros((len(history), len(SET_KINDS), N))
    for m, seen in enumerate(history):
        for item, no in zip(seen, refused[m], strict=True):
            if item and not no:
                expected[m] += tables[int(context.fold[m]) if training else 0][item]
    expected = np.log1p(np.maximum(expected, 0))
    found = term.biases(context, torch.tensor(list(ids)))
    np.testing.assert_allclose(found.values.numpy(), expected[:, :, list(ids)], rtol=1e-5, atol=1e-5)
    weights = torch.rand(len(history), len(SET_KINDS), generator=torch.Generator().manual_seed(1))
    asked = torch.tensor(list(ids)).expand(len(history), -1)
    of_items = term.of_items(weights, context, asked)
    np.testing.assert_allclose(
        of_items.numpy(), np.einsum("MTN,MT->MN", expected, weights.numpy())[:, list(ids)], rtol=1e-4, atol=1e-4
    )


def test_linear_weights_are_those_of_ease():
    """Prevents evidence of sets without the model that ranks best in them, and roots of its negative weights."""
    user, item = log_of()
    table = dense(neighbours(user, item, N, N, ordered=False))[2:, 2, 2:]
    expected = EASE(RIDGE).fit(user, item - 2, N - 2).weights_NN
    assert (expected < 0).any()
    np.testing.assert_allclose(table, expected / expected.max(axis=1).mean(), rtol=2e-3, atol=2e-3)


def test_the_order_of_events_changes_no_evidence_of_sets():
    """Prevents windows of a drawn order from being counted as if it were one."""
    user, item = log_of()
    order = np.lexsort((np.random.default_rng(2).random(len(user)), user))
    one, two = (neighbours(user, i, N, K, ordered=False) for i in (item, item[order]))
    np.testing.assert_array_equal(one.items, two.items)
    np.testing.assert_allclose(one.values, two.values, rtol=2e-3)


def test_gradients_of_dense_numbers_are_those_of_autograd():
    """Prevents weights of evidence from learning something else than the loss says."""
    g = torch.Generator().manual_seed(0)
    query, items, bias, groups = (
        torch.rand(s, generator=g, dtype=torch.float64) for s in ((5, 4), (7, 4), (7,), (5, 4))
    )
    values = torch.rand(5, 3, 7, generator=g, dtype=torch.float64)
    groups.requires_grad_()

    def squares(rows, logits, wants_gradient):
        total = logits.square().sum()
        logits.mul_(2)
        return total

    linear_loss(query, items, bias, squares, groups, lambda rows: [DenseBias(values[rows], first=1)]).backward()
    own, groups.grad = groups.grad.clone(), None
    logits = query @ items.T + bias + torch.einsum("MTN,MT->MN", values, groups[:, 1:])
    logits.square().sum().backward()
    torch.testing.assert_close(own, groups.grad)


def test_what_a_question_sees_is_no_negative_of_it():
    """Prevents training from unlearning that what goes together is taken together, and a lost target."""
    context = RequestContext(history=VisibleEvents.of_requests(torch.tensor([[3, 5, 0], [4, 0, 0], [0, 0, 0]])))
    ids, targets = torch.arange(2, 7), torch.tensor([3, 2, 0])  # items 5, 4 and 2
    logits = Seen().training_biases(context, ids, targets).add(torch.zeros(3, 5), torch.zeros(3, 0))
    assert (logits < -100).tolist() == [[False, True, False, False, False], [False] * 5, [False] * 5]
    assert not Seen().biases(context, ids).add(torch.zeros(3, 5), torch.zeros(3, 0)).any()


def test_logs_too_large_for_an_inverse_keep_neighbours(monkeypatch):
    """Prevents that a large log has no neighbours at all, since nothing linear says which to keep."""
    monkeypatch.setattr("polyrec.data.neighbours.DENSE", 1)
    user, item = log_of()
    table = neighbours(user, item, N, K, ordered=False)
    taken = np.zeros((user.max() + 1, N))
    taken[user, item] = 1
    together = taken.T @ taken * ~np.eye(N, dtype=bool)
    for row, kept in enumerate(table.items.tolist()):
        kept = [other for other in kept if other]
        assert len(kept) == (0 if row < 2 else min(K, np.count_nonzero(together[row, 2:])))
        assert together[row, kept].all()


def test_cosines_stand_in_for_linear_weights_of_large_logs():
    """Prevents a start without evidence where no inverse can be had."""
    term = SetNeighbours(K, N, hidden_size=4)
    term.initialise()
    user, item = log_of()
    table = neighbours(user, item, N, K, ordered=False)
    table.values[:, SET_KINDS.index("linear")] = 0
    before = term.prior.weight.flatten().tolist()
    term.load(table)
    after = term.prior.weight.flatten().tolist()
    assert after[1] == pytest.approx(before[1] + before[2])
    term.load(table)
    assert term.prior.weight.flatten().tolist() == after
