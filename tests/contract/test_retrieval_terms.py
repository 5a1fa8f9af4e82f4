"""What every registered retrieval term must do."""

from __future__ import annotations

import pytest
import torch
from head_fixtures import head_of

from polyrec.core.registry import RETRIEVAL_TERMS
from polyrec.modules.encoders.item import ItemRows
from polyrec.modules.encoders.request_context import LATEST, RequestContext, Trending
from polyrec.modules.encoders.visible_events import VisibleEvents
from polyrec.modules.heads.terms.base import RetrievalTerm, registered_terms

TERMS = [pytest.param(name, cls, id=name) for name, cls in registered_terms().items()]
ITEMS, REQUESTS = 12, 6
# What turns a term on, where the option's type does not say it.
ON = {
    "age": {"item_age": "first_event"},
    "set_neighbours": {"neighbours": 4, "of_sets": True},
    "trending": {"trending": [[3600.0, 9.0]]},
    "recent": {"trending": [[3600.0, 9.0]], "trending_start": 0.0, "recent": True},
}


def on(name: str, cls: type[RetrievalTerm]) -> dict:
    return ON.get(name) or {cls.option: {bool: True, int: 4}[type(cls.default_options[cls.option])]}


def requests() -> RequestContext:
    """The context of some requests, with all that any term reads."""
    random = torch.Generator().manual_seed(0)

    def integers(low, high, *shape):
        return torch.randint(low, high, shape, generator=random)

    items = torch.tensor([[0, 0, 0], [0, 3, 7], [2, 5, 9]], dtype=torch.int32)
    values = torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 2.0], [0.5, 2.0, 1.0]])
    return RequestContext(
        times=integers(0, 10**9, REQUESTS),
        history=VisibleEvents.of_requests(integers(2, ITEMS, REQUESTS, 5)),
        latest={"task": integers(0, ITEMS, REQUESTS, 5 * LATEST)},
        trending={"task": Trending(integers(0, 3, REQUESTS), items, values)},
    )


def speaking(name: str, cls: type[RetrievalTerm]):
    """A head with the term alone, in evaluation mode, all of whose numbers are drawn at random."""
    head = head_of("retrieval", **on(name, cls)).eval()
    term = head.every_term[cls.option]
    random = torch.Generator().manual_seed(1)
    for tensor in (*term.parameters(), *term.buffers()):
        if tensor.dtype.is_floating_point:
            tensor.data.copy_(torch.rand(tensor.shape, generator=random))
        elif len(tensor) == ITEMS and tensor.dim() == 2:  # neighbours, ascending
            tensor.copy_(torch.sort(torch.rand(ITEMS, ITEMS - 2, generator=random).argsort(1)[:, :4] + 2).values)
        elif len(tensor) == ITEMS:
            tensor.copy_(torch.randint(0, 10**9, tensor.shape, generator=random))
    return head, term


@pytest.mark.parametrize(("name", "cls"), TERMS)
def test_it_says_what_it_is(name, cls):
    """Prevents a term without a docstring, or one whose options another term gives another default."""
    assert cls is RETRIEVAL_TERMS.get(name)
    assert len(cls.__doc__) > 100
    assert cls.option in cls.default_options
    assert set(cls.found_options) <= set(cls.default_options)
    known = head_of("retrieval").known_options()
    assert all(known[option] == default for option, default in cls.default_options.items())


@pytest.mark.parametrize(("name", "cls"), TERMS)
def test_it_is_off_by_default_and_on_by_its_option(name, cls):
    """Prevents a term that no option turns on, or all heads have."""
    assert not head_of("retrieval").every_term
    head = head_of("retrieval", **on(name, cls))
    assert isinstance(head.every_term[cls.option], cls)
    assert getattr(head, cls.key or name) is head.every_term[cls.option]


@pytest.mark.parametrize(("name", "cls"), TERMS)
def test_catalog_sample_and_pairs_agree(name, cls):
    """Prevents lists that disagree with losses, re-ranking and explanations."""
    head, term = speaking(name, cls)
    states, items, context = torch.randn(REQUESTS, 8), ItemRows(torch.randn(ITEMS, 8)), requests()
    assert term.speaks
    with torch.no_grad():
        every = head(states, items, context)
        ids = torch.stack([torch.randperm(ITEMS - 2)[:6] + 2 for _ in range(REQUESTS)])
        sample = torch.tensor([7, 3, 3, 11, 2])
        query = head.project(states)
        plain = query @ items.vectors_MD.T + head.all_biases(items)[1]
        torch.testing.assert_close(head.of_pairs(states, query, ids, items, context), every.gather(1, ids))
        torch.testing.assert_close(head.of_sample(states, query, sample, items, context), every[:, sample])
        one = head.pair_logits(states, items.lookup(ids[:, 0]), ids[:, :1].squeeze(1), items, context)
        torch.testing.assert_close(one, every.gather(1, ids[:, :1]).squeeze(1))
    changes = not torch.allclose(every[:, 2:], plain[:, 2:])
    assert changes == (term.size > 0)  # a term without groups says only what is no candidate of training


@pytest.mark.parametrize(("name", "cls"), TERMS)
def test_the_form_of_exported_graphs_agrees(name, cls):
    """Prevents an exported catalog graph that ranks unlike the model, also by what is as slow as `of_items`."""
    head, term = speaking(name, cls)
    states, items, context = torch.randn(REQUESTS, 8), ItemRows(torch.randn(ITEMS, 8)), requests()
    history = torch.tensor([[5, 5, 9, 5, 2], *[[2, 3, 4, 3, 11]] * (REQUESTS - 1)])
    if name == "repeats":  # the padding item's row of a table is drawn, too, here
        history[1, 3:], history[2] = 0, 0
    context = context._replace(history=VisibleEvents.of_requests(history))
    plain = head.project(states) @ items.vectors_MD.T + head.all_biases(items)[1]
    with torch.no_grad():
        every = head(states, items, context)
        found = plain + term.of_catalog(term.logits(states), context, ITEMS)
        torch.testing.assert_close(found, every)
        if getattr(term, "source", None) != "release":  # items of a request's own count as there
            by_items = RetrievalTerm.of_catalog(term, term.logits(states), context, ITEMS)
            torch.testing.assert_close((plain + by_items)[:, 2:], every[:, 2:])


@pytest.mark.parametrize(("name", "cls"), TERMS)
def test_it_grows_with_the_catalog(name, cls):
    """Prevents new items from changing the scores of those that were there."""
    head, _ = speaking(name, cls)
    states, context, vectors = torch.randn(REQUESTS, 8), requests(), torch.randn(ITEMS + 3, 8)
    with torch.no_grad():
        before = head(states, ItemRows(vectors[:ITEMS]), context)
        head.extend(ITEMS + 3, torch.ones(ITEMS, dtype=torch.bool))
        if cls.option == "item_age":  # `load_times` follows
            head.age.load(torch.cat([head.age.released, torch.full((3,), 10**9)]))
        after = head(states, ItemRows(vectors), context)
    assert torch.equal(after[:, :ITEMS], before)
    assert torch.isfinite(after[:, 2:]).all()
