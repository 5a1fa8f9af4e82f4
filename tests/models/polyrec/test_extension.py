"""New items and people: rows are added, and nothing that is known changes."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from head_fixtures import config_of, head_of
from hypothesis import given, settings
from hypothesis import strategies as st
from model_fixtures import arguments, fit, model_inputs, random_config, synthetic_log, tiny_model
from text_fixtures import tiny_bert

from polyrec import PolyRecForRecommendation, PolyRecProcessor, PolyRecTrainer
from polyrec.core.registry import EXPERTS, HEADS
from polyrec.data.collator import PolyRecCollator
from polyrec.models.batches import as_batch
from polyrec.models.polyrec.extension import windows_of
from polyrec.modules.encoders import item_text
from polyrec.modules.encoders.growth import BLOCK, add_rows, in_blocks, predict_rows
from polyrec.modules.encoders.item import UNKNOWN_ITEM, ItemRows
from polyrec.modules.heads.retrieval import RetrievalHead

NEW = {
    "item_id": [900, 901, 902],
    "title": ["new comedy", "new drama", "new of a genre nobody knows"],
    "genre": ["comedy", "drama", "western"],
    "tags": [["comedy", "tag1"], [], ["drama"]],
    "price": [0.5, None, 0.1],
}


def same(one, two):
    """Bit-equal, missing numbers of the catalog (NaN) included."""
    return torch.equal(torch.nan_to_num(one, 7.0), torch.nan_to_num(two, 7.0))


def answers(model, dataset):
    """Logits of all tasks about a data set's windows, and the scores of the whole catalog."""
    batch = PolyRecCollator()([dataset[i] for i in range(6)])
    with torch.no_grad():
        inputs = {k: v for k, v in model_inputs(batch).items() if k != "labels"}
        output = model(**inputs)
        states = output.states.flatten(0, 1)
        context = model.request_context(**inputs).rows(torch.arange(len(states)))
        scores = {task: model.score_items(states, task, context=context) for task in model.state_tasks}
    return output.logits, scores


@pytest.mark.parametrize(
    "options",
    [{}, {"task_item_embeddings": True}, {"experts": "ple"}, {"item_ids": False}, {"hidden_size": 40}],
    ids=str,
)
def test_old_answers_are_bit_equal(options):
    """Prevents new items from moving what is said about old ones, in the last bit, too."""
    processor, data = fit()
    model = tiny_model(processor, **options)
    before = answers(model, data.test)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    old = processor.num_items
    processor.extend(NEW)
    model.extend(processor)
    after = answers(model, data.test)
    assert all(torch.equal(before[0][task], after[0][task]) for task in before[0])
    for task, scores in after[1].items():
        assert scores.shape[1] == old + 3
        assert torch.equal(scores[:, :old], before[1][task])
        assert torch.isfinite(scores[:, old:]).all()
    for name, value in model.state_dict().items():  # each tensor is as it was, or has rows added at its end
        assert same(value[: len(state[name])] if value.dim() else value, state[name]), name


@pytest.mark.parametrize("tuning", ["frozen", "lora", "full"])
def test_texts_of_new_items_join_those_of_old_ones(tuning, tmp_path):
    """Prevents new items from having no text, and old texts from being read again, which moves their last bits."""
    processor, data = fit(text={"model": str(tiny_bert()), "template": "{title} {genre}"})
    model = tiny_model(processor, text={"tuning": tuning})
    model.load_texts(processor)
    before = answers(model, data.test)
    model.save_pretrained(tmp_path)
    processor.extend(NEW)
    for extended in (model, PolyRecForRecommendation.from_pretrained(tmp_path).eval()):
        old = extended.config.num_items
        extended.extend(processor)
        after = answers(extended, data.test)
        assert all(torch.equal(before[0][task], after[0][task]) for task in before[0])
        assert torch.equal(after[1]["next_item"][:, :old], before[1]["next_item"])
        text = extended.item_encoder.text
        expected = text.encoder(processor.item_tokens())
        torch.testing.assert_close(text.vectors[old:], expected[old:])
        assert expected[old:].any(dim=1).all()


@pytest.fixture
def fallback():
    """A model whose texts stand in for ids, its data, and new items of which the last one has no text."""
    processor, data = fit(text={"model": str(tiny_bert()), "template": "{title}"})
    model = tiny_model(processor, text={"fusion": "fallback"}, hidden_size=40)
    model.load_texts(processor)
    with torch.no_grad():
        model.item_encoder.id_embedding.weight.normal_(std=0.3)
        model.heads["next_item"].bias.weight.normal_(std=0.3)
    return processor, data, model, NEW | {"title": ["title 3 drama", "title 11 comedy", None]}


def test_new_items_stand_where_their_texts_put_ids(fallback, tmp_path):
    """Prevents new items from being put by the projection of texts, which training fits to old items, or anywhere else.

    The reference is numpy's least squares with rows for the penalty. Nothing said of old items may change.
    """
    processor, data, model, new = fallback
    encoder, before, old = model.item_encoder, answers(model, data.test), processor.num_items
    for _ in range(2):  # a second extension learns from the same items
        processor.extend(new)
        model.extend(processor)
        new = {**new, "item_id": [910, 911, 912]}
    after = answers(model, data.test)
    assert all(torch.equal(before[0][task], after[0][task]) for task in before[0])
    assert torch.equal(after[1]["next_item"][:, :old], before[1]["next_item"])
    assert encoder.known[old:].tolist() == [True, True, False] * 2
    assert not encoder.counts[old:].any()
    texts = encoder.text.vectors.double().numpy()
    ids = encoder.id_embedding.weight.detach().double().numpy()
    taken = np.flatnonzero(encoder.counts)
    texts = texts / np.sqrt(np.mean(np.sum(texts[taken] ** 2, axis=1)))
    mean, middle = texts[taken].mean(0), ids[taken].mean(0)
    stacked = np.concatenate([texts[taken] - mean, np.eye(texts.shape[1])])
    expected = np.linalg.lstsq(stacked, np.concatenate([ids[taken] - middle, np.zeros((32, 40))]), rcond=None)[0]
    for row in (old, old + 1, old + 3, old + 4):
        np.testing.assert_allclose(ids[row], middle + (texts[row] - mean) @ expected, atol=1e-5)
    np.testing.assert_array_equal(ids[old + 2], ids[UNKNOWN_ITEM])
    PolyRecTrainer(model, arguments(tmp_path), data.train, processing_class=processor)
    assert encoder.known[old:].tolist() == [True, True, False] * 2  # a training begins there
    again = answers(model.eval(), data.test)
    assert all(torch.equal(one[task], two[task]) for one, two in zip(after, again, strict=True) for task in one)


def test_new_items_get_their_share(fallback):
    """Prevents new items, which lie near the mean of all, from never standing in a list, and from filling all lists."""
    processor, _, model, new = fallback
    old = processor.num_items
    processor.extend(new)
    model.extend(processor)
    counts = model.item_encoder.counts.double().numpy()
    rows = np.flatnonzero(counts)
    random = np.random.default_rng(1)
    drawn = random.choice(rows, (1000, 10), p=counts[rows] / counts.sum())
    windows = windows_of(processor, drawn)
    ids = processor.items.ids.take(pa.array(drawn[7] - 2)).to_pylist()
    alone = as_batch([processor.request(ids, np.array([2]))], model)
    for feature, values in as_batch(windows[7:8], model).event_features.items():
        torch.testing.assert_close(values, alone.event_features[feature], rtol=1e-5, atol=1e-6, equal_nan=True)
    with torch.no_grad():
        asked = as_batch(windows, model)
        context = model.request_context(**asked).at((slice(None), 0))
        scores = model.score_items(model(**asked).states[:, 0], "next_item", context=context).double()
    predicted, interacted = (scores[:, n].exp().mean(1).log().mean().item() for n in (slice(old, old + 2), rows))
    assert predicted == pytest.approx(interacted, abs=0.1)  # other users were drawn for the level


@pytest.mark.parametrize("bias_rate", [1.0, 4.0])
def test_level_makes_softmax_shares_equal(bias_rate):
    """Prevents a rate of biases, or their number, from entering the level."""
    torch.manual_seed(0)
    config = random_config(tasks=[{"name": "next", "head": "retrieval", "options": {"bias_rate": bias_rate}}])
    head, rows = RetrievalHead(config.task_configs[0], config), config.num_items
    head.bias.weight.data.normal_()
    items, states = ItemRows(torch.randn(rows, config.hidden_size)), torch.randn(50, config.hidden_size)
    taken, new = torch.zeros(2, rows, dtype=torch.bool)
    taken[3:8], new[-2:] = True, True
    before = head.bias.weight.clone()
    head.calibrate_new_items(states, items, taken, new)
    logits = head(states, items)
    means = [np.mean([row[n].exp().mean().log().item() for row in logits]) for n in (taken, new)]
    assert means[0] == pytest.approx(means[1], abs=1e-5)
    assert torch.equal(head.bias.weight[~new], before[~new])


@settings(max_examples=30, deadline=None)
@given(known=st.integers(1, 6), new=st.integers(0, 3), width=st.integers(1, 5), seed=st.integers(0, 99))
def test_told_values_do_not_depend_on_the_scale_or_place_of_inputs(known, new, width, seed):
    """Prevents longer vectors, or what all texts have in common, from changing what is told."""
    torch.manual_seed(seed)
    inputs, values = torch.randn(known + new, width), torch.randn(known + new, 2)
    is_new = torch.arange(known + new) >= known
    found = predict_rows(inputs, values, ~is_new, is_new)
    torch.testing.assert_close(predict_rows(100 * inputs, values, ~is_new, is_new), found)
    torch.testing.assert_close(
        predict_rows(inputs, 3 * values + 7, ~is_new, is_new), 3 * found + 7, atol=1e-4, rtol=1e-4
    )
    assert found.shape == (new, 2)
    same = predict_rows(inputs[:1].expand(known + new, -1), values, ~is_new, is_new)  # texts that say nothing
    torch.testing.assert_close(same, values[:known].mean(0).expand(new, 2))


def test_a_catalog_that_outgrows_the_whole_softmax_is_told_apart_in_batches(tmp_path, monkeypatch):
    """Prevents a grown catalog from training on stale vectors of all items, unlike the same model after loading."""
    processor, data = fit(text={"model": str(tiny_bert()), "template": "{title} {genre}"})
    model = tiny_model(processor, text={"tuning": "full"})
    model.load_texts(processor)
    monkeypatch.setattr(item_text, "CATALOG_NEGATIVES", processor.num_items)
    assert model.item_encoder.text.scores_catalog
    processor.extend(NEW)
    model.extend(processor)
    model.save_pretrained(tmp_path)
    loaded = PolyRecForRecommendation.from_pretrained(tmp_path)
    loaded.load_texts(processor)
    for grown in (model, loaded):
        assert not grown.item_encoder.text.scores_catalog
        grown.train()
        assert grown.item_encoder.negatives_of_batch
        loss = grown(**model_inputs(PolyRecCollator()([data.train[i] for i in range(4)]))).loss
        assert torch.isfinite(loss)
        loss.backward()


@pytest.mark.parametrize("experts", EXPERTS.names())
@pytest.mark.parametrize("per_task", [False, True])
def test_every_part_grows_to_the_shape_of_a_new_model(experts, per_task):
    """Prevents a part with one row per item from being forgotten: the saved model could not be loaded."""
    processor, _ = fit()
    model = tiny_model(processor, experts=experts, task_item_embeddings=per_task)
    processor.extend(NEW)
    model.extend(processor)
    fresh = PolyRecForRecommendation(model.config)
    assert model.config.num_items == model.model.config.num_items == processor.num_items
    assert {n: v.shape for n, v in model.state_dict().items()} == {n: v.shape for n, v in fresh.state_dict().items()}


def test_extended_model_and_processor_survive_saving(tmp_path):
    """Prevents an extended model from being one only until the process ends."""
    processor, data = fit()
    model = tiny_model(processor, task_item_embeddings=True)
    processor.save_pretrained(tmp_path / "first")
    model.save_pretrained(tmp_path / "first")
    before = answers(model, data.test)
    for folder, new in (("first", NEW), ("second", {**NEW, "item_id": [910, 911, 912]})):
        processor = PolyRecProcessor.from_pretrained(tmp_path / folder)
        model = PolyRecForRecommendation.from_pretrained(tmp_path / folder).eval()
        processor.extend(new)
        model.extend(processor)
        processor.save_pretrained(tmp_path / "second")
        model.save_pretrained(tmp_path / "second")
        again = PolyRecForRecommendation.from_pretrained(tmp_path / "second").eval()
        loaded = PolyRecProcessor.from_pretrained(tmp_path / "second")
        for one, two in zip(answers(model, data.test), answers(again, data.test), strict=True):
            assert all(torch.equal(one[task], two[task]) for task in one)
        old = before[1]["next_item"].shape[1]
        assert torch.equal(answers(again, data.test)[1]["next_item"][:, :old], before[1]["next_item"])
        assert loaded.items.ids.equals(processor.items.ids)
        assert all(np.array_equal(v, processor.items.encoded[n], equal_nan=v.dtype.kind == "f")
                   for n, v in loaded.items.encoded.items())  # fmt: skip
    assert loaded.num_items == old + 6


def test_new_items_are_recommended_by_their_attributes():
    """Prevents new items from never, or always, standing first: they rank as an old item without events would."""
    processor, _ = fit()
    model = tiny_model(processor)
    old = processor.num_items
    twin = {name: values[22:23] for name, values in synthetic_log()["items"].items()} | {"item_id": [900]}
    assert processor.item_counts[24] == 0  # item 22 never occurs: its twin is judged by the same attributes
    processor.extend(twin)
    model.extend(processor)
    found = {row["item"]: row for row in model.recommend(processor, [3, 4], k=old, exclude_seen=False)}
    assert found[900]["cold_item"]
    assert found[22]["cold_item"]
    assert found[900]["like"] == pytest.approx(found[22]["like"], abs=1e-6)
    bias = model.heads["next_item"].bias.weight[:, 0]
    difference = (bias[old] - bias[24]).item()
    assert found[900]["score"] - found[22]["score"] == pytest.approx(difference, abs=1e-5)
    known = model.item_encoder.known[:old]
    assert bias[old].item() == pytest.approx(bias[:old][known].mean().item(), abs=1e-6)


def test_new_people_need_nothing():
    """Prevents somebody who came after the training from being an error; their attributes help if they are given."""
    processor, _ = fit()
    model = tiny_model(processor)
    unknown = model.recommend(processor, [3, 4], k=3)
    assert unknown == model.recommend(processor, [3, 4], k=3, user={"age": None})
    log = {"user_id": [1000], "item_id": [3], "timestamp": [2e6], "rating": [4.0], "surface": ["home"]}
    assert np.isnan(processor.encode_events(log).user_features["age"]).all()
    processor.extend(users={"user_id": [1000], "age": [25.0]})
    assert np.isfinite(processor.encode_events(log).user_features["age"]).all()


def test_statistics_of_new_items_come_from_their_attributes():
    """Prevents a new item from being counted as the unknown one, or its genre from being unknown."""
    processor, _ = fit()
    statistics = processor.statistics.log
    before = {name: state.to_table() for name, state in statistics._states.items()}
    processor.extend(NEW)
    assert all(state.to_table().equals(before[name]) for name, state in statistics._states.items())
    comedy = next(i for i, g in enumerate(synthetic_log()["items"]["genre"]) if g == "comedy")
    rows = processor.items.rows(pa.array([900, comedy]))
    window = processor.request([3, 4], rows)
    by_genre = [i for i, n in enumerate(processor.statistics.names) if n.startswith("item.genre-")]
    values = window["candidate_features"]["statistics"]
    assert np.isfinite(values[0, by_genre]).all()
    np.testing.assert_array_equal(values[0, by_genre], values[1, by_genre])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"item_id": [3, 900, 901]}, "item_id 3 in row 0 is known already"),
        ({"item_id": [900, 900, 901]}, "900 occurs in rows 0 and 1"),
        ({"genre": None}, "no column 'genre'"),
        ({"title": None}, "no column 'title'"),
        ({"price": ["dear", "cheap", "free"]}, "'price' has type string but was double"),
        ({"item_id": [900, None, 901]}, "no value in row 1"),
    ],
)
def test_wrong_tables_are_refused_and_change_nothing(change, message):
    """Prevents an item from being two rows of the catalog, and a half-extended catalog."""
    processor, _ = fit()
    ids, encoded = processor.items.ids, dict(processor.items.encoded)
    table = {name: values for name, values in (NEW | change).items() if values is not None}
    with pytest.raises(ValueError, match=message):
        processor.extend(table)
    assert processor.items.ids is ids
    assert all(processor.items.encoded[name] is values for name, values in encoded.items())


def test_another_processor_is_refused():
    """Prevents rows of one catalog from being joined with those of another."""
    processor, _ = fit()
    other, _ = fit(synthetic_log(items=30))
    model = tiny_model(processor)
    other.extend(NEW)
    with pytest.raises(ValueError, match="that was saved with the model"):
        model.extend(other)
    with pytest.raises(ValueError, match="has 26 rows of items but the model has 35"):
        tiny_model(other).extend(processor)


@pytest.mark.parametrize("per_task", [False, True])
def test_a_first_event_does_not_move_an_item(per_task, tmp_path):
    """Prevents an item's first events from throwing it to a vector that chance put into its row."""
    processor, data = fit()
    model = tiny_model(processor, task_item_embeddings=per_task)
    processor.extend(NEW)
    model.extend(processor)
    before = answers(model, data.test)
    processor.item_counts[-3:] = 5
    processor.item_counts[24] = 2  # in the catalog from the start, without an event so far
    PolyRecTrainer(model, arguments(tmp_path), data.train, processing_class=processor)
    assert model.item_encoder.known[-3:].all()
    for one, two in zip(before, answers(model.eval(), data.test), strict=True):
        assert all(torch.equal(one[task], two[task]) for task in one)
    assert torch.equal(model.item_encoder.id_embedding.weight[24], model.item_encoder.id_embedding.weight[UNKNOWN_ITEM])


def test_an_extended_model_resumes_training(tmp_path, interrupt):
    """Prevents an interrupted training of an extended model from going on with other weights."""

    def trained(folder, steps, resume):
        processor, data = fit()
        model = tiny_model(processor)
        processor.extend(NEW)
        model.extend(processor)
        processor.item_counts[-1] = 1
        done = interrupt(steps)
        options = {"num_train_epochs": 2, "save_strategy": "epoch", "per_device_train_batch_size": 16}
        trainer = PolyRecTrainer(model, arguments(tmp_path / folder, **options), data.train, processing_class=processor)
        trainer.train(resume_from_checkpoint=resume)
        return model.state_dict(), done

    whole, _ = trained("whole", None, None)
    with pytest.raises(KeyboardInterrupt):
        trained("parts", 4, None)
    rest, done = trained("parts", None, True)
    assert 0 < len(done) < 6
    assert all(same(whole[name], rest[name]) for name in whole)


@settings(max_examples=15, deadline=None)
@given(
    rows=st.integers(1, BLOCK + 3), more=st.integers(1, 70), width=st.integers(1, 48), asked=st.integers(1, 40)
)  # fmt: skip
def test_products_in_blocks_do_not_depend_on_further_rows(rows, more, width, asked):
    """Prevents the edge of a matrix product from showing in the last bits of what was there before."""
    torch.manual_seed(rows)
    queries, table = torch.randn(asked, width), torch.randn(rows + more, width)
    product = in_blocks(lambda block: queries @ block.T, table, dim=1)
    torch.testing.assert_close(product, queries @ table.T)
    assert torch.equal(product[:, :rows], in_blocks(lambda block: queries @ block.T, table[:rows].clone(), dim=1))


def test_added_rows_keep_what_is_trained(tmp_path):
    """Prevents frozen tables from becoming trainable when they grow."""
    table = torch.nn.Embedding(3, 2).requires_grad_(False)
    add_rows(table, torch.zeros(2, 2))
    assert not table.weight.requires_grad
    assert tuple(table.weight.shape) == (table.num_embeddings, 2) == (5, 2)


@pytest.mark.parametrize("head", HEADS.names())
def test_heads_extend_alone(head):
    """Prevents a head with numbers per item from being forgotten by `extend`."""
    grown, items = head_of(head), random_config().num_items
    grown.extend(items + 3, torch.ones(items, dtype=torch.bool))
    config = config_of(head)
    config.num_items = items + 3
    larger = HEADS.get(head)(config.task_configs[0], config)
    assert {n: v.shape for n, v in grown.state_dict().items()} == {n: v.shape for n, v in larger.state_dict().items()}
