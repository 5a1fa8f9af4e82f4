"""Training, and what the trained model is for: reranking a first stage's lists, and teaching."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cross_encoder_fixtures import PROMPT, fit_prompts, tiny_cross_encoder
from hypothesis import given, settings
from hypothesis import strategies as st
from model_fixtures import TASKS, arguments, fit, synthetic_log, tiny_model
from text_fixtures import tiny_bert

from polyrec import CandidateSample, CrossEncoderTrainer, PolyRecCrossEncoder, PolyRecCrossEncoderProcessor
from polyrec.data.collator import PolyRecCollator
from polyrec.data.event_log import Candidates
from polyrec.distillation.cross_encoder_teacher import CrossEncoderTeacher, with_mass_of
from polyrec.distillation.live import LiveTeacher
from polyrec.evaluation import evaluator, reranked
from polyrec.evaluation.evaluator import Ranking
from polyrec.inference.unknown_ids import UnknownIdWarning
from polyrec.models.cross_encoder.collator import collate


def _first_stage():
    """A model of the same data that knows items by id and attributes; it needs no texts."""
    return tiny_model(fit()[0])


def _lists_of(dataset, k: int = 8) -> Ranking:
    return evaluator.predict(_first_stage(), dataset, k=k).rankings["next_item"]


def test_training_lowers_every_loss_and_a_checkpoint_goes_on(tmp_path):
    """Prompts, lists or labels that do not reach the loss; a sample that a resumed run draws anew."""
    processor, splits = fit_prompts()
    lists = _lists_of(splits.train.fixed())
    hard = reranked.hard_negatives(splits.train, lists)
    first = _first_stage()

    def trainer(folder, **options) -> CrossEncoderTrainer:
        torch.manual_seed(0)
        model = tiny_cross_encoder(processor, initializer_range=0.1)
        sample = CandidateSample(splits.train, processor.num_items, ["next_item"], 3, 4, hard)
        args = arguments(
            folder,
            per_device_train_batch_size=8,
            num_train_epochs=4,
            learning_rate=5e-3,
            backbone_learning_rate=1e-3,
            logging_steps=5,
            **options,
        )
        args.lr_scheduler_type = "constant"
        return CrossEncoderTrainer(model, args, sample, splits.valid, processing_class=processor, first_stage=first)

    whole = trainer(tmp_path / "whole", save_strategy="epoch")
    before = whole.evaluate()
    whole.train()
    after = whole.evaluate()
    assert after["eval_like_auc"] > before["eval_like_auc"]
    assert after["eval_rating_rmse"] < before["eval_rating_rmse"]
    log = [entry for entry in whole.state.log_history if "loss_like" in entry]
    for task in ("next_item", "like", "rating"):
        assert log[-1][f"loss_{task}"] < log[0][f"loss_{task}"]
    half = sorted((tmp_path / "whole").glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))[1]
    resumed = trainer(tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(half))
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(value, resumed.model.state_dict()[name], atol=1e-6, rtol=0)
    again = PolyRecCrossEncoder.from_pretrained(half)
    reader = PolyRecCrossEncoderProcessor.from_pretrained(half)
    assert again.rerank(reader, [3, 4], [5, 6])
    assert reader.prompt == processor.prompt


def test_a_retrieval_task_without_lists_is_not_evaluated():
    """A crash, or a metric of nothing."""
    processor, splits = fit_prompts()
    model = tiny_cross_encoder(processor)
    found = evaluator.evaluate(model, splits.valid, reranked.predict(model, processor, splits.valid))
    assert "like_auc" in found
    assert not any(name.startswith("next_item") for name in found)


def test_scores_of_lists_are_those_of_single_requests():
    """Scores that land at another candidate's list, or a list that is told another history."""
    processor, splits = fit_prompts()
    model = tiny_cross_encoder(processor)
    lists = _lists_of(splits.valid)
    lists.top_ids[0, 3:] = -1
    scores = reranked.score_lists(model, processor, splits.valid, "next_item", lists, batch_size=5)
    data, rows = splits.valid, range(0, len(lists.rows), 7)
    for n in rows:
        event = data.candidates.event[lists.rows[n]]
        position, user = data.candidates.position[lists.rows[n]], data.log.user[event]
        begin = data.log.offsets[user]
        seen = slice(max(begin, begin + position - 8), begin + position)
        for k, item in enumerate(lists.top_ids[n]):
            if item < 0:
                assert scores[n, k] == -np.inf
                continue
            history = {name: values[None, seen] for name, values in data.log.event_features.items()}
            history |= {name: values[None, seen] for name, values in data.log.candidate_features.items()}
            told = processor.prompts.build(
                data.log.item[None, seen], history, np.array([0]), np.array([seen.stop - seen.start]),
                np.array([item + 2]),
            )  # fmt: skip
            with torch.no_grad():
                found = model(
                    torch.tensor([[item + 2]]),
                    torch.from_numpy(told.tokens.flat),
                    torch.from_numpy(told.tokens.lengths),
                    {n: v[:1, :1] for n, v in _one_batch(data)["candidate_features"].items()},
                    {n: v[:1] for n, v in _one_batch(data)["user_features"].items()},
                ).logits["next_item"]
            assert found.item() == pytest.approx(scores[n, k], abs=1e-5)


def _one_batch(data) -> dict:
    return PolyRecCollator()([data[0]])


@given(
    st.integers(1, 4).flatmap(
        lambda rows: st.tuples(
            st.just(rows), st.lists(st.integers(0, 3), min_size=5 * rows, max_size=5 * rows), st.integers(0, 1000)
        )
    )
)
@settings(max_examples=60, deadline=None)
def test_ranks_of_reordered_lists_equal_a_loop(drawn):
    """A target outside the list that rises with it, or ties that favour it."""
    rows, levels, seed = drawn
    random = np.random.default_rng(seed)
    log_items = random.integers(0, 9, rows)
    top = np.stack([random.permutation(9)[:5] for _ in range(rows)])
    top[0, 4] = -1

    class Data:
        class log:
            item = log_items + 2

        candidates = Candidates(np.arange(rows), np.zeros(rows, dtype=np.int64))

    scores = np.array(levels, dtype=np.float32).reshape(rows, 5)
    behind = np.array([int((row >= 0).sum()) + 2 for row in top])
    lists = Ranking(np.arange(rows), behind, np.ones(rows, dtype=np.int64), top)
    found = reranked.reordered(Data, lists, scores, k=3)
    for r in range(rows):
        own = {int(i): s for i, s in zip(top[r], scores[r], strict=True) if i >= 0}
        target = int(log_items[r])
        if target in own:
            assert found.greater[r] == sum(s > own[target] for s in own.values())
            assert found.ties[r] == sum(s == own[target] for s in own.values()) - 1
        else:
            assert (found.greater[r], found.ties[r]) == (behind[r], 1)
        best = [own[int(i)] for i in found.top_ids[r] if i >= 0]
        assert best == sorted(own.values(), reverse=True)[:3]
    kept = reranked.reordered(Data, lists, np.zeros_like(scores), k=5, blend=1.0)
    assert np.array_equal(kept.top_ids, top)  # all alike: the first stage's order


def test_rerank_orders_what_recommend_found():
    """Scores of other items, or of a history that is not the person's."""
    processor, _ = fit_prompts(max_history=8)
    model = tiny_cross_encoder(processor)
    plain, _ = fit()
    first = tiny_model(plain)
    history = [{"item_id": 3, "rating": 5.0}, {"item_id": 7, "rating": 2.0}]
    shown = first.recommend(plain, history, k=6)
    found = model.rerank(processor, history, shown)
    assert {f["item"] for f in found} == {s["item"] for s in shown}
    assert [f["rank"] for f in found] == list(range(1, 7))
    assert [f["score"] for f in found] == sorted((f["score"] for f in found), reverse=True)
    assert {"title", "like", "rating"} <= found[0].keys()
    alone = {i["item"]: model.rerank(processor, history, [i["item"]])[0]["score"] for i in shown}
    for f in found:
        assert f["score"] == pytest.approx(alone[f["item"]], abs=1e-5)
    other = {f["item"]: f["score"] for f in model.rerank(processor, [5], shown)}
    assert any(abs(other[i] - alone[i]) > 1e-4 for i in alone)
    by_like = model.rerank(processor, history, shown, task="like")
    assert [f["score"] for f in by_like] == sorted((f["like"] for f in found), reverse=True)
    assert model.rerank(processor, None, [5])
    with pytest.warns(UnknownIdWarning, match="1 of 1 items of the history are not in the catalog: 999"):
        assert model.rerank(processor, [999], [5])
    assert not model.rerank(processor, [5], [])
    with pytest.raises(ValueError, match=r"1 are not in the catalog: \[999\]"):
        model.rerank(processor, history, [5, 999])
    with pytest.raises(ValueError, match="did you mean 'like'"):
        model.rerank(processor, history, [5], task="likes")


def test_a_cross_encoder_takes_no_teacher(tmp_path):
    """A teacher that is accepted and never asked, or advice that this model cannot follow."""
    processor, splits = fit_prompts()
    model = tiny_cross_encoder(processor)
    teacher = CrossEncoderTeacher(model, processor)
    with pytest.raises(ValueError, match=r"is not taught: leave out `teacher`, .*\(CrossEncoderTeacher\)"):
        CrossEncoderTrainer(
            model, arguments(tmp_path), splits.train, processing_class=processor, first_stage=None, teacher=teacher
        )


def test_answers_of_a_teacher_fit_its_students_batch():
    """Answers about other candidates, a list that gains or loses probability, items that are not the student's."""
    plain, splits = fit()
    first = LiveTeacher(tiny_model(plain), plain, top_k=5, temperature=2.0)
    processor = PolyRecCrossEncoderProcessor.of(
        plain, {"model": str(tiny_bert()), "template": "{title} {genre}"}, PROMPT
    )
    model = tiny_cross_encoder(processor)
    teacher = CrossEncoderTeacher(model, processor, first)
    teacher.prepare(splits.train, plain)
    assert (teacher.pair_tasks, teacher.list_tasks) == (("like", "rating"), ("next_item",))
    assert (teacher.top_k("next_item"), teacher.temperature("next_item")) == (5, 2.0)
    batch = PolyRecCollator()([splits.train.fixed()[i] for i in range(4)])
    found, shown = teacher.score(batch), first.score(batch)
    own = processor.with_prompts(batch)
    own = {n: v for n, v in own.items() if n not in ("candidate_rows", "labels")}
    with torch.no_grad():
        answers = model(**own)
    real = batch["candidate_ids"] > 0
    torch.testing.assert_close(found["teacher_logits"]["like"][real], answers.logits["like"][real])
    assert found["teacher_logits"]["like"][~real].isnan().all()
    items, scores = found["teacher_items"]["next_item"], found["teacher_scores"]["next_item"]
    asked = (items > 0).any(-1)
    assert torch.equal(items.sort(-1).values, shown["teacher_items"]["next_item"].sort(-1).values)
    assert torch.equal(scores[..., -1][asked], shown["teacher_scores"]["next_item"][..., -1][asked])
    one, two = scores[asked] / 2, shown["teacher_scores"]["next_item"][asked] / 2
    torch.testing.assert_close(one[:, :5].logsumexp(-1), two[:, :5].logsumexp(-1), atol=1e-5, rtol=0)
    assert (scores[asked][:, :4] >= scores[asked][:, 1:5]).all()
    assert scores[~asked].isnan().all()
    listed = collate([splits.train.fixed()[0]])
    places = asked[0].nonzero()[:, 0][:1]
    listed["list_items"] = torch.zeros((*listed["candidate_ids"].shape, 5), dtype=torch.int64)
    listed["list_items"][0, places] = items[0, places]
    inputs = {n: v for n, v in processor.with_prompts(listed).items() if n not in ("candidate_rows", "labels")}
    with torch.no_grad():
        logits = model(**inputs).list_logits["next_item"][0, places]
    torch.testing.assert_close(logits.diff(dim=-1), scores[0, places, :5].diff(dim=-1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("task", ["like", "next_item"])
def test_a_damaged_teacher_is_refused(task):
    """NaN that counts as a teacher which has nothing to say: the student would learn without it, unnoticed."""
    plain, splits = fit()
    processor = PolyRecCrossEncoderProcessor.of(
        plain, {"model": str(tiny_bert()), "template": "{title} {genre}"}, PROMPT
    )
    model = tiny_cross_encoder(processor)
    teacher = CrossEncoderTeacher(model, processor, LiveTeacher(tiny_model(plain), plain, top_k=5))
    teacher.prepare(splits.train, plain)
    with torch.no_grad():
        next(model.heads[task].parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match=f"outputs for task '{task}' are NaN or infinite"):
        teacher.score(PolyRecCollator()([splits.train.fixed()[i] for i in range(4)]))


def test_a_teacher_of_other_data_is_refused():
    """Answers about items that only share their row."""
    plain, splits = fit()
    other, _ = fit_prompts(synthetic_log(items=20))
    teacher = CrossEncoderTeacher(tiny_cross_encoder(other), other, trust=True)
    with pytest.raises(ValueError, match="its catalog is another one"):
        teacher.prepare(splits.train, plain)
    tasks = [*TASKS[:1], {"name": "like", "head": "binary", "label": "rating >= 3"}]
    other, _ = fit_prompts(tasks=tasks)
    with pytest.raises(ValueError, match="task 'like': label"):
        CrossEncoderTeacher(tiny_cross_encoder(other), other, trust=True).prepare(splits.train, plain)
    processor = PolyRecCrossEncoderProcessor.of(plain, {"model": str(tiny_bert()), "template": "{title}"}, PROMPT)
    short = LiveTeacher(tiny_model(plain, max_history=2), plain, top_k=5, trust=True)
    with pytest.raises(ValueError, match="the teacher reads at most 2"):
        CrossEncoderTeacher(tiny_cross_encoder(processor), processor, short, trust=True).prepare(splits.train, plain)


def test_lists_that_were_not_asked_for_stay_unknown():
    """NaN that becomes a number and is learnt."""
    first = torch.full((1, 2, 4), float("nan"))
    first[0, 0] = torch.tensor([2.0, 1.0, float("-inf"), 0.0])
    own = torch.tensor([[[0.0, 1.0, float("-inf")], [float("-inf")] * 3]])
    found = with_mass_of(first, own, temperature=0.5)
    assert found[0, 1].isnan().all()
    assert found[0, 0, 2] == float("-inf")
    assert found[0, 0, :2].isfinite().all()


def test_new_items_are_known_by_their_text(tmp_path):
    """Old answers that move when the catalog grows, a new item without a prompt, a folder that does not load."""
    processor, _ = fit_prompts()
    model = tiny_cross_encoder(processor)
    before = model.rerank(processor, [3, 4], [5, 6])
    new = {"item_id": [100, 101], "title": ["title comedy", None], "genre": ["comedy", "none"], "tags": [[], []]}
    processor.extend({**new, "price": [1.0, 2.0]})
    model.extend(processor)
    after = {f["item"]: f for f in model.rerank(processor, [3, 4], [5, 6, 100, 101])}
    for found in before:
        assert after[found["item"]]["score"] == pytest.approx(found["score"], abs=1e-6)
    assert after[100]["score"] != after[101]["score"]
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = PolyRecCrossEncoder.from_pretrained(tmp_path)
    reader = PolyRecCrossEncoderProcessor.from_pretrained(tmp_path)
    assert again.rerank(reader, [3, 4], [100, 101, 5])[0]["score"] > -np.inf
    with pytest.raises(ValueError, match="extend the processor that was saved"):
        again.extend(fit_prompts()[0])
