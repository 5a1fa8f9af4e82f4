"""Tasks that feedback columns offer, compared with what pandas counts."""

import datetime
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

from polyrec.core.schema import parse_tasks
from polyrec.data.guess import find_columns
from polyrec.data.labels import check_learnable, labels
from polyrec.data.propose import propose_tasks
from polyrec.data.setup import setup_for

N = 400
_random = np.random.default_rng(1)
_base = {
    "user": _random.permutation(np.arange(N) % 20),
    "item": _random.integers(0, 30, N),
    "ts": np.arange(N) * 60 + 1_600_000_000,
}


def proposed(**columns):
    """{name: (head, label)} of the tasks of a log with these columns, the proposal, and the log."""
    table = pa.table(_base | columns)
    proposal = propose_tasks(find_columns(table))
    return {t["name"]: (t["head"], t.get("label")) for t, _ in proposal.tasks}, proposal, table


def mixed(*shares):
    """0, 1, 2 ... in shuffled rows, with these shares."""
    ends = np.round(np.cumsum(shares) * N).astype(int)
    return _random.permutation(np.searchsorted(ends, np.arange(N), side="right"))


def test_labels_of_all_proposals_can_be_read():
    """Prevents a recipe that training refuses, and a task whose share is another one than is printed."""
    words = np.array(["view", "add to cart", "it's gone"])[mixed(0.7, 0.2, 0.1)]
    flag = mixed(0.8, 0.2)
    seconds = _random.integers(0, 90_000, N)
    tasks, proposal, table = proposed(event=words, liked=flag, stars=mixed(0, 0.1, 0.2, 0.3, 0.4), watch_ms=seconds)
    assert tasks == {
        "next_item": ("retrieval", None),
        "add_to_cart": ("binary", "event == 'add to cart'"),
        "it_s_gone": ("binary", 'event == "it\'s gone"'),
        "stars": ("regression", "stars"),
        "like": ("binary", "stars >= 4"),
        "liked": ("binary", "liked"),
        "log_watch_ms": ("regression", "log1p(watch_ms / 1000)"),
    }
    read = labels(table, parse_tasks([task for task, _ in proposal.tasks]), "log")
    frame = table.to_pandas()
    expected = [
        (frame.event == "add to cart"),
        (frame.event == "it's gone"),
        frame.stars,
        (frame.stars >= 4),
        frame.liked,
    ]
    expected.append(np.log1p(frame.watch_ms / 1000))
    np.testing.assert_allclose(read[:, 1:], np.stack([np.asarray(e, dtype=float) for e in expected], 1), rtol=1e-6)
    assert dict((t["name"], why) for t, why in proposal.tasks)["like"].startswith(f"{(frame.stars >= 4).mean():.1%}")


@pytest.mark.parametrize(
    ("columns", "unused", "why"),
    [
        ({"weekend": mixed(0.7, 0.3)}, "weekend", "no known kind"),
        ({"rank": mixed(*[0.2] * 5) + 1}, "rank", "no known kind"),
        ({"age": (_base["user"] % 5) + 1}, "age", "an attribute of the user"),
        ({"avg_score": np.round(_base["item"] / 7, 1)}, "avg_score", "an attribute of the item"),
        ({"price": _random.uniform(1, 9, N)}, "price", "no known kind"),
        ({"id": np.arange(N)}, "id", "nearly every row"),
        ({"bought": np.arange(N) % 200 == 0}, "bought", "0.50% of rows"),
        ({"clicked": np.ones(N)}, "clicked", "one value only"),
        ({"quantity": _random.integers(-3, 9, N)}, "quantity", "negative values"),
        ({"type": np.array(["mobile", "desktop"])[mixed(0.5, 0.5)]}, "type", "no known kind"),
        ({"a >= b": mixed(0.5, 0.5)}, "a >= b", "its name cannot stand in a label"),
    ],
)
def test_what_is_no_feedback_is_no_task(columns, unused, why):
    """Prevents tasks that predict what is known beforehand, or that have nothing to learn from."""
    tasks, proposal, _ = proposed(**columns)
    assert list(tasks) == ["next_item"]
    assert why in dict(proposal.unused)[unused]


def test_exposures_are_no_next_items():
    """Prevents lists that are trained to hold what was shown, skipped or sent back."""
    assert proposed(click=mixed(0.9, 0.1))[0]["next_item"] == ("retrieval", "click")
    words = np.array(["purchase", "return", "impression"])[mixed(0.4, 0.1, 0.5)]
    assert proposed(event=words)[0] == {
        "next_item": ("retrieval", "event not in ('impression', 'return')"),
        "purchase": ("binary", "event == 'purchase'"),
        "return": ("binary", "event == 'return'"),
    }
    assert (
        proposed(event=words)[0]["next_item"][1]
        != proposed(event=np.array(["a", "b"])[mixed(0.5, 0.5)])[0]["next_item"][1]
    )


def test_yes_and_no_are_a_flag_and_many_words_no_events():
    """Prevents a task of those who said no, a task per name, and fractions as kinds of events."""
    tasks, _, _ = proposed(action=np.array(["no", "yes"])[mixed(0.7, 0.3)])
    assert tasks == {"next_item": ("retrieval", None), "action": ("binary", "action == 'yes'")}
    for odd in (np.array([f"act {n}" for n in range(21)])[mixed(*[1 / 21] * 21)], mixed(0.5, 0.3, 0.2) / 4):
        tasks, proposal, _ = proposed(activity=odd)
        assert list(tasks) == ["next_item"]
        assert "no known kind" in dict(proposal.unused)["activity"]


def test_one_thing_said_twice_is_one_task():
    """Prevents two tasks with the same labels, which count double in every mean."""
    kind = mixed(0.6, 0.4)
    tasks, proposal, _ = proposed(event=np.array(["view", "buy"])[kind], bought=kind, not_bought=1 - kind)
    assert list(tasks) == ["next_item", "buy"]
    assert dict(proposal.unused) == dict.fromkeys(("bought", "not_bought"), "says the same as event")


def test_the_threshold_of_likes_divides_the_rows():
    """Prevents a like task of one class where nearly everything has five stars."""
    stars = np.array([1, 3, 4, 5])[mixed(0.01, 0.02, 0.57, 0.4)]
    assert proposed(rating=stars)[0]["like"] == ("binary", "rating >= 5")
    halves = np.array([0.5, 2.0, 3.5, 4.0, 5.0])[mixed(0.1, 0.2, 0.3, 0.2, 0.2)]
    assert proposed(rating=halves)[0]["like"] == ("binary", "rating >= 4")


def test_counts_and_names():
    """Prevents a Poisson loss of hundred thousands of plays, and names that metrics or other tasks have."""
    plays = _random.integers(1, 9, N)
    assert proposed(plays=plays)[0]["plays"] == ("count", "plays")
    assert proposed(plays=plays * 9_000)[0]["log_plays"] == ("regression", "log1p(plays)")
    tasks, _, _ = proposed(score=mixed(0.2, 0.3, 0.5), like=mixed(0.6, 0.4), action_type=mixed(0.6, 0.3, 0.1))
    assert tasks == {
        "next_item": ("retrieval", None),
        "action_type_1": ("binary", "action_type == 1"),
        "action_type_2": ("binary", "action_type == 2"),
        "score_task": ("regression", "score"),
        "like": ("binary", "score >= 2"),
        "like_2": ("binary", "like"),
    }


# What real files hold beside numbers and words.
ODD = {
    "infinite": lambda r: np.where(r.random(N) < 0.1, np.inf, r.random(N)),
    "codes": lambda r: [f"0{v}" for v in r.integers(100, 108, N)],
    "blanks": lambda r: ["" if v < 2 else f"w{v}" for v in r.integers(0, 8, N)],
    "yes": lambda r: pa.array(np.array(["y", "n"])[r.integers(0, 2, N)]).dictionary_encode(),
    "gaps": lambda r: [None if v < 3 else int(v) for v in r.integers(0, 9, N)],
    "large": lambda r: 1_600_000_000 + 3600 * r.integers(0, 9, N),
    "fractions": lambda r: [Decimal(int(v)) / 4 for v in r.integers(0, 12, N)],
    "quotes": lambda r: np.array(["it's", "a \"b\" 'c'", "d"])[r.integers(0, 3, N)],
    "lists": lambda r: [[1, 2]] * N,
    "nothing": lambda r: [None] * N,
    "times": lambda r: [datetime.time(int(v)) for v in r.integers(0, 23, N)],
}


@pytest.mark.parametrize("name", ["rating", "event", "action_type", "bought", "plays", "watch_ms", "x"])
@pytest.mark.parametrize("kind", ODD)
def test_every_proposal_can_be_trained(name, kind):
    """Prevents `polyrec train events.csv` from stopping at a label that it proposed itself."""
    _, proposal, table = proposed(**{name: ODD[kind](np.random.default_rng(7))})
    tasks = parse_tasks([task for task, _ in proposal.tasks])
    check_learnable(labels(table, tasks, "log"), tasks)


@pytest.mark.parametrize("items", [30, 390])
def test_lists_hold_what_was_taken_where_users_take_it_again(items):
    """Prevents a shop of groceries whose lists leave out what everybody buys; only rows that a list predicts count."""
    item = np.arange(N) % items
    bought = (np.arange(N) % 4 > 0).astype(int)
    log = pa.table(_base | {"item": item, "purchase": bought})
    first = propose_tasks(find_columns(log)).tasks[0][0]
    chosen = log.to_pandas()
    chosen = chosen[chosen["purchase"] == 1] if "label" in first else chosen
    often = chosen.duplicated(["user", "item"]).mean() > 0.05
    assert (first.get("options", {}).get("repeats", False)) == often == (items == 30)


def test_no_repeats_in_a_set():
    """Prevents an option that reads an order from standing in the recipe of a log without one."""
    log = pa.table({name: np.tile(_base[name], 2) for name in ("user", "item")})
    assert "options" not in propose_tasks(find_columns(log)).tasks[0][0]


def test_many_windows_make_larger_batches():
    """Prevents an epoch of a dozen steps on a small log, and of 100,000 tiny ones on a large one."""

    def batch(users, each):
        log = {"user": np.repeat(np.arange(users), each), "item": np.tile(np.arange(each), users)}
        found = find_columns(pa.table(log | {"ts": np.arange(users * each) + 1_600_000_000}))
        return setup_for(found).training["per_device_train_batch_size"]

    assert [batch(20, 20), batch(2_500, 4), batch(20_000, 2)] == [8, 16, 32]
    assert batch(20, 8_000) == 8  # 800 windows of 200 events
