"""Classical recommenders as teachers: fitted on training rows alone, asked strictly before, against plain loops."""

import itertools

import numpy as np
import pytest
import torch
from model_fixtures import fit, synthetic_log
from teacher_fixtures import batch_of, probabilities, world

from polyrec.data.columns import FIRST
from polyrec.data.histories import visible_history
from polyrec.data.splits import LeakageError
from polyrec.distillation.classical import RECOMMENDERS, CatalogTeacher
from polyrec.distillation.ensemble import EnsembleTeacher
from polyrec.distillation.stored import StoredTeacher, write_outputs
from polyrec.evaluation import ranking
from polyrec.evaluation.baselines.recommenders import EASE, Popularity
from polyrec.evaluation.scored import rank_rows


@pytest.fixture(scope="module")
def case():
    """A processor and the split of its log by time."""
    _, processor, parts = world(users=60, max_history=4)
    return processor, parts


def histories(dataset, rows):
    """Items before each candidate, by a loop over the log."""
    log, found = dataset.log, []
    for row in rows:
        event = dataset.candidates.event[row]
        earlier = (log.user == log.user[event]) & (log.time < log.time[event])
        found.append([i for i in log.item[earlier].tolist() if i >= FIRST])
    return found


def test_histories_are_strictly_before_and_longer_than_windows(case):
    """Prevents an event of the same second, or the event asked about, from being read; and a cut at the window."""
    _, parts = case
    rows = np.arange(parts.test.num_candidates)[::3]
    offsets, items = visible_history(parts.test, rows).ragged()
    expected = histories(parts.test, rows)
    assert [items[a:b].tolist() for a, b in itertools.pairwise(offsets)] == expected
    assert max(map(len, expected)) > parts.test.max_history


@pytest.mark.parametrize("last", [3, None])
def test_ease_equals_a_dense_loop(case, last):
    """Prevents a fit on other rows than the training rows, and answers from another history."""
    processor, parts = case
    teacher = CatalogTeacher("ease", parts.train, processor, options={"ridge": 5.0, "last": last}, scale=2.0)
    log, number = parts.train.log, processor.num_items - FIRST
    x = np.zeros((len(log.user_ids), number))
    for event in parts.train.candidates.event:
        x[log.user[event], log.item[event] - FIRST] = 1
    inverse = np.linalg.inv(x.T @ x + 5.0 * np.eye(number))
    b = -inverse / np.diag(inverse)
    np.fill_diagonal(b, 0)
    rows = np.arange(0, parts.test.num_candidates, 2)
    found = teacher.logits(parts.test, rows)
    for own, seen in zip(found, histories(parts.test, rows), strict=True):
        taken = np.zeros(number)
        taken[[i - FIRST for i in (seen if last is None else seen[-last:])]] = 1
        np.testing.assert_allclose(own[FIRST:], 2.0 * taken @ b, atol=1e-4)
    assert np.isneginf(found[:, :FIRST]).all()


def test_item_knn_equals_a_dense_loop(case):
    """Prevents neighbours by another cosine, or events of one's whole history from voting."""
    processor, parts = case
    options = {"weighting": "cosine", "neighbours": 4, "last": 2}
    teacher = CatalogTeacher("item_knn", parts.train, processor, options=options, scale=1.0)
    log, number = parts.train.log, processor.num_items - FIRST
    x = np.zeros((len(log.user_ids), number))
    for event in parts.train.candidates.event:
        x[log.user[event], log.item[event] - FIRST] += 1
    length = np.linalg.norm(x, axis=0)
    similar = (x.T @ x) / np.maximum(np.outer(length, length), 1e-12)
    np.fill_diagonal(similar, 0)
    rows = np.arange(0, parts.test.num_candidates, 5)
    for own, seen in zip(teacher.logits(parts.test, rows), histories(parts.test, rows), strict=True):
        expected = np.zeros(number)
        for item in seen[-2:]:
            best = np.sort(similar[item - FIRST])[-4]
            expected += np.where(similar[item - FIRST] > best - 1e-9, similar[item - FIRST], 0)
        ambiguous = expected - own[FIRST:]  # at a tie for the last place either may stand
        assert (np.abs(ambiguous) < 1e-4).mean() > 0.9


def test_popularity_is_a_distribution(case):
    """Prevents counts from being taken for logits."""
    processor, parts = case
    teacher = CatalogTeacher("popularity", parts.train, processor, scale=1.0, top_k=1000)
    counts = np.bincount(parts.train.log.item[parts.train.candidates.event], minlength=processor.num_items)
    expected = np.where(np.arange(len(counts)) >= FIRST, counts + 1, 0)
    items, scores = teacher.lists("next_item", parts.test, np.array([0]))
    listed = probabilities(items, scores, processor.num_items, 1.0)[0]
    np.testing.assert_allclose(np.nan_to_num(listed), expected / expected.sum(), rtol=1e-5)


def test_scales_are_the_likeliest(case):
    """Prevents logits that are far too flat or too sharp: the same optimum as by trying."""
    processor, parts = case
    teacher = CatalogTeacher("ease", parts.train, processor, options={"ridge": 5.0}, scale=1.0)
    found = teacher._likeliest_scale(parts.train, parts.train.candidates.event, seed=0)
    rows = np.arange(parts.train.num_candidates)
    scores = torch.from_numpy(teacher.logits(parts.train, rows))
    target = torch.from_numpy(parts.train.log.item[parts.train.candidates.event])
    tried = found * np.geomspace(0.5, 2, 41)
    losses = [torch.nn.functional.cross_entropy(a * scores, target).item() for a in tried]
    assert tried[np.argmin(losses)] == pytest.approx(found, rel=0.06)
    fitted = CatalogTeacher("ease", parts.train, processor, options={"ridge": 5.0}).scale
    assert fitted < found  # people whom the fit has not seen need a smaller one


@pytest.mark.parametrize("name", sorted(RECOMMENDERS))
def test_every_recommender_teaches(case, name):
    """Prevents one of them from missing what a teacher must say, or from listing what padding stands for."""
    if name in ("als", "bpr"):
        pytest.importorskip("implicit")
    processor, parts = case
    teacher = CatalogTeacher(name, parts.train, processor, top_k=5, temperature=2.0)
    again = CatalogTeacher(name, parts.train, processor, top_k=5, temperature=2.0)
    assert teacher.revision == again.revision
    teacher.prepare(parts.train, processor)
    batch = batch_of(parts.train)
    found = teacher.score(batch)
    items, scores = found["teacher_items"]["next_item"], found["teacher_scores"]["next_item"]
    at = ~torch.isnan(scores[..., -1])
    assert (at == ((batch["labels"]["next_item"] > 0) & (batch["candidate_ids"] > 1))).all()
    assert ((items[at] >= FIRST) & (items[at] < processor.num_items)).all()
    total = torch.logsumexp(torch.cat([scores[at][:, :-1] / 2.0, scores[at][:, -1:]], 1), 1)
    rows = batch["candidate_rows"][at].numpy()
    expected = torch.logsumexp(torch.from_numpy(teacher.logits(parts.train, rows)) / 2.0, 1)
    torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-4)


def test_later_events_change_nothing():
    """Prevents a fit or an answer that has read validation or test rows."""
    tables = synthetic_log(users=40)
    processor, parts = fit(tables)
    changed = {**tables["interactions"], "item_id": tables["interactions"]["item_id"].copy()}
    held = parts.test.log.row[np.concatenate([parts.valid.candidates.event, parts.test.candidates.event])]
    changed["item_id"][held] = (changed["item_id"][held] + 5) % 22
    other = processor.split(changed)
    teachers = [CatalogTeacher("ease", p.train, processor, options={"ridge": 5.0}) for p in (parts, other)]
    assert teachers[0].scale == teachers[1].scale
    rows = np.arange(parts.train.num_candidates)
    np.testing.assert_array_equal(*(t.logits(p.train, rows) for t, p in zip(teachers, (parts, other), strict=True)))


def test_seen_items_are_listed_unless_asked(case):
    """Prevents repeat consumption from being forbidden, and a wish for new items from being ignored."""
    processor, parts = case
    rows = np.flatnonzero(parts.test.candidates.position > 0)[:20]
    _, seen = visible_history(parts.test, rows).ragged()
    plain = CatalogTeacher("popularity", parts.train, processor, scale=1.0).logits(parts.test, rows)
    without = CatalogTeacher("popularity", parts.train, processor, scale=1.0, exclude_seen=True).logits(
        parts.test, rows
    )
    index = np.repeat(np.arange(len(rows)), parts.test.candidates.position[rows])
    assert np.isfinite(plain[index, seen]).all()
    assert np.isneginf(without[index, seen]).all()
    assert (np.isneginf(without).sum() - np.isneginf(plain).sum()) == len(set(zip(index, seen, strict=True)))


def test_ranked_as_the_report_ranks_baselines(case):
    """Prevents a classical teacher from being measured otherwise than a model."""
    processor, parts = case
    teacher = CatalogTeacher("ease", parts.train, processor, options={"ridge": 5.0})
    rows = np.arange(parts.test.num_candidates)
    ranked = rank_rows(lambda r: teacher.logits(parts.test, r)[:, FIRST:], parts.test, rows, k=5)
    for row in range(0, len(rows), 7):
        scores = teacher.logits(parts.test, rows[row : row + 1])[0]
        target = parts.test.log.item[parts.test.candidates.event[row]]
        own = histories(parts.test, [row])[0]
        others = [i for i in range(FIRST, len(scores)) if i not in own and i != target]
        assert ranked.greater[row] == sum(scores[i] > scores[target] for i in others)
    assert ranking.single_target_metrics(ranked.greater, ranked.ties, ks=[5])["ndcg@5"].mean() > 0.2


def test_its_training_rows_are_guarded_and_it_can_be_stored(case, tmp_path):
    """Prevents a baseline fitted on everything from teaching, and a classical teacher from having no files."""
    processor, parts = case
    greedy = CatalogTeacher("popularity", parts.test, processor, scale=1.0)
    with pytest.raises(LeakageError):
        greedy.prepare(parts.train, processor)
    teacher = CatalogTeacher("item_knn", parts.train, processor, top_k=4)
    both = EnsembleTeacher([teacher, CatalogTeacher("popularity", parts.train, processor, top_k=4)], top_k=6)
    both.prepare(parts.train, processor)
    write_outputs(both, parts.train, processor, tmp_path / "a", shard_rows=100)
    stored = StoredTeacher(tmp_path / "a", revision=both.revision)
    stored.prepare(parts.train, processor)
    batch = batch_of(parts.train.fixed())
    for name in ("teacher_items", "teacher_scores"):
        torch.testing.assert_close(
            stored.score(batch)[name], both.score(batch)[name], equal_nan=True, rtol=2e-3, atol=2e-3
        )


class Diverged(Popularity):
    """A recommender whose fit has failed without a word."""

    def score(self, history_offsets, history_items):
        return super().score(history_offsets, history_items) + np.nan


def test_a_recommender_without_numbers_is_refused(case):
    """Prevents a factorisation that diverged from counting as a teacher that has nothing to say about anybody."""
    processor, parts = case
    teacher = CatalogTeacher(Diverged(), parts.train, processor, scale=1.0)
    teacher.prepare(parts.train, processor)
    with pytest.raises(ValueError, match=r"outputs for task 'next_item' are NaN or infinite: .* regularization"):
        teacher.score(batch_of(parts.train.fixed()))
    with pytest.raises(ValueError, match="NaN or infinite"):
        CatalogTeacher(Diverged(), parts.train, processor)


def test_what_is_refused(case, monkeypatch):
    """Prevents unknown names, a missing task or library, and other data from failing late or not at all."""
    processor, parts = case
    with pytest.raises(ValueError, match="unknown recommender 'ese'; did you mean 'ease'. known: "):
        CatalogTeacher("ese", parts.train, processor)
    with pytest.raises(ValueError, match="'like' is none"):
        CatalogTeacher("ease", parts.train, processor, task="like")
    with pytest.raises(ValueError, match="options are those of a recommender"):
        CatalogTeacher(EASE(), parts.train, processor, options={"ridge": 3.0})
    with pytest.raises(ValueError, match="scale is -1"):
        CatalogTeacher(Popularity(), parts.train, processor, scale=-1.0)
    foreign, foreign_parts = fit({**synthetic_log(items=30), "users": synthetic_log(items=30)["users"]})
    with pytest.raises(ValueError, match="the catalog has other items"):
        CatalogTeacher("popularity", parts.train, processor).prepare(foreign_parts.train, foreign, judged=[])
    with pytest.raises(ValueError, match="call prepare"):
        CatalogTeacher("popularity", parts.train, processor).score(batch_of(parts.train))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"ALS and BPR need implicit: pip install 'polyrec\[classical\]'"):
        CatalogTeacher("als", parts.train, processor)
