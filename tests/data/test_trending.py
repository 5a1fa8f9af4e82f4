"""What was trending: decayed counts, snapshots and their fit, each against sums over all events."""

import numpy as np
import pytest

from polyrec.data.trending import RecentCounts, Trending
from polyrec.data.trending_fit import fit_trending

ITEMS = 25
# Of the shortest half-life, the log is 300,000 long.
MIXTURES = {"buy": [(3.0, 4.0), (40.0, 1.0)], "click": [(1e-3, 9.0), (8.0, 20.0), (1000.0, 0.5)]}


@pytest.fixture(scope="module")
def log():
    drawn = np.random.default_rng(0)
    times = np.round(drawn.random(400) * 300 - 100, 1)  # ties, and times before 1970
    items = np.minimum(drawn.geometric(0.15, 400), ITEMS - 1)  # 1 is the unknown item
    return times, {"buy": np.where(drawn.random(400) < 0.5, items, 0), "click": items}


def counted(times, items, now, mixture):
    """Decayed counts of every item strictly before `now`, as of the latest event before it, [T, N]."""
    before = times < now
    found = np.zeros((len(mixture), ITEMS))
    for t, item in zip(times[before], items[before], strict=True):
        for own, (half_life, _) in zip(found, mixture, strict=True):
            if item >= 2:
                own[item] += 2.0 ** (-(times[before].max() - t) / half_life)
    return found


def log_popularity(*asked):
    counts = counted(*asked)
    return np.log1p(sum(a * own for own, (_, a) in zip(counts, asked[-1], strict=True)))


def dense(items, values):
    found = np.zeros(ITEMS)
    found[items] = values
    found[0] = 0
    return found


def test_questions_see_decayed_counts_strictly_before_them(log):
    """Prevents an answer that counts itself, events of its own time, of other tasks, or by another half-life."""
    times, items = log
    trending = Trending(MIXTURES, times, items, ITEMS, size=ITEMS)
    asked = np.concatenate([times, times + 0.05, [-1e9, 1e9]])
    found = trending.read(asked)
    for n in range(0, len(asked), 17):
        for task, mixture in MIXTURES.items():
            own = {name: table[found["candidate_trending"][n]] for name, table in found["trending"][task].items()}
            assert (np.diff(own["items"]) >= 0).all()  # the search in them relies on it
            expected = log_popularity(times, items[task], asked[n], mixture)
            np.testing.assert_allclose(dense(**own), expected, atol=4e-3, err_msg=f"{task} {asked[n]}")


def test_few_snapshots_are_old_and_never_of_the_future(log):
    """Prevents snapshots that end between equal times, or hold what a question asks about."""
    times, items = log
    trending = Trending(MIXTURES, times, items, ITEMS, size=ITEMS, snapshots=10)
    assert 5 <= len(trending.ends) <= 10
    found = trending.read(times)
    table = found["trending"]["click"]
    for n in range(0, len(times), 9):
        end = max(trending.ends[trending.ends < times[n]], default=-np.inf)
        own = {name: values[found["candidate_trending"][n]] for name, values in table.items()}
        expected = log_popularity(times, items["click"], np.nextafter(end, np.inf), MIXTURES["click"])
        np.testing.assert_allclose(dense(**own), expected, atol=4e-3)


def test_the_hottest_items_are_kept(log):
    """Prevents a hot item that is lost as it was not hot when it came, or as half-lives disagree."""
    times, items = log
    order, mixture = np.argsort(times, kind="stable"), MIXTURES["buy"]
    recent, seen = RecentCounts(mixture, ITEMS, size=4), np.full(len(times), np.inf)
    for part in np.array_split(order, 60):
        recent.add(times[part], items["buy"][part])
        seen[part] = times[part]
        asked = seen, items["buy"], np.nextafter(times[part[-1]], np.inf), mixture
        hot = {int(j) for own in counted(*asked) for j in np.argsort(-own)[:4]}
        popular = sorted(log_popularity(*asked)[sorted(hot)])[-4:]
        np.testing.assert_allclose(np.sort(recent.hottest().values[0]), popular, atol=4e-3)


def test_counts_do_not_depend_on_how_events_came(log):
    """Prevents an update, a reload or a request's own events from being counted otherwise than a whole log."""
    times, items = log
    order, mixture = np.argsort(times, kind="stable"), MIXTURES["click"]
    times, items = times[order], items["click"][order]
    whole = RecentCounts(mixture, ITEMS, size=6)
    whole.add(times, items)
    pieces = RecentCounts(mixture, ITEMS - 5, size=6)
    early = items[:100] < ITEMS - 5
    pieces.add(times[:100], np.where(early, items[:100], 0))
    pieces.extend(ITEMS)
    again = RecentCounts(mixture, ITEMS, pieces.counts, pieces.time, size=6)
    again.add(times[100:250], items[100:250])
    own = again.hottest(times[250:], items[250:])
    again.add(times[250:], items[250:])
    reference = RecentCounts(mixture, ITEMS, size=6)
    reference.add(times, np.where(np.arange(len(times)) < 100, np.where(items < ITEMS - 5, items, 0), items))
    np.testing.assert_allclose(again.counts, reference.counts, rtol=1e-9)
    for found in (own, again.hottest()):
        np.testing.assert_array_equal(found.items, reference.hottest().items)
        np.testing.assert_array_equal(found.values, reference.hottest().values)


def test_fit_tells_logs_with_trends_from_those_without():
    """Prevents a term that is on where it is noise, or off where all that comes is new."""
    drawn = np.random.default_rng(1)
    times = np.sort(drawn.random(2500)) * 40 * 86_400
    user, day = drawn.integers(0, 2000, 2500), (times // 86_400).astype(int)
    steady = 2 + np.minimum(drawn.geometric(0.05, 2500), 97)
    news = 2 + day * 10 + np.minimum(drawn.geometric(0.3, 2500), 10)
    found = fit_trending(user, news, times, 500)
    assert found.helps
    assert found.new_share > 0.7
    assert not fit_trending(user, steady, times, 500).helps
    assert fit_trending(user, news, times / 1e6, 500) is None  # all in some seconds: no half-life fits
    assert fit_trending(user[:50], news[:50], times[:50], 500) is None
    shuffled = drawn.permutation(2500)
    again = fit_trending(user[shuffled], news[shuffled], times[shuffled], 500)
    np.testing.assert_allclose(again.mixture, found.mixture, rtol=1e-2)
