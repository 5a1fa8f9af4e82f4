"""Prompts: put together of tokens as if of strings, cut at events, and blind to the future."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from cross_encoder_fixtures import PROMPT, fit_prompts, tiny_llama
from hypothesis import given, settings
from hypothesis import strategies as st
from model_fixtures import synthetic_log

from polyrec.data.texts import TokenTable
from polyrec.models.cross_encoder.collator import collate
from polyrec.models.cross_encoder.prompt_config import PromptConfig
from polyrec.models.cross_encoder.prompts import Spans, joined
from polyrec.models.cross_encoder.sampling import CandidateSample


def _decoded(processor, found) -> list[list[int]]:
    flat, offsets = found.tokens.flat, found.tokens.offsets
    return [flat[a:b].tolist() for a, b in itertools.pairwise(offsets)]


def _naive(processor, log, row: int, visible: list[int], max_length: int) -> list[int]:
    """The prompt of a row of the log, by strings: events are dropped from the oldest until it fits."""
    table, interactions = log["items"], log["interactions"]

    def item(i: int) -> str:
        return f"{table['title'][i]} {table['genre'][i]}"

    def event(r: int) -> str:
        rating = interactions["rating"][r]
        return item(interactions["item_id"][r]) + ("" if np.isnan(rating) else f" rating {rating:.0f}") + " ;"

    for begin in range(len(visible) + 1):
        shown = " ".join(event(r) for r in visible[begin:])
        text = f"{item(interactions['item_id'][row])} [SEP] {shown}"
        tokens = processor.tokenizer(text)["input_ids"]
        if len(tokens) <= max_length:
            return tokens
    raise AssertionError("nothing fits")


@pytest.mark.parametrize("max_length", [12, 25, 40, 64])
def test_prompts_equal_those_made_of_strings_and_never_tell_the_future(max_length):
    """Tokens of a neighbour's history, an event too many, or one at or after the candidate's time, in a prompt."""
    log = synthetic_log(users=12, keep=0.8)
    processor, splits = fit_prompts(log, prompt={**PROMPT, "max_length": max_length})
    for data in (splits.train.fixed(), splits.valid):
        windows = [data[i] for i in range(len(data))]
        found = _decoded(processor, processor.write(collate(windows)))
        at = 0
        for window in windows:
            for candidate, position in zip(window["candidate_rows"], window["candidate_positions"], strict=True):
                event = data.candidates.event[candidate]
                times, user = log["interactions"]["timestamp"], log["interactions"]["user_id"]
                row = data.log.row[event]
                before = np.flatnonzero((user == user[row]) & (times < times[row]))
                before = before[np.argsort(times[before], kind="stable")]
                assert position <= len(before)
                expected = _naive(processor, log, row, before[len(before) - position :].tolist(), max_length)
                assert found[at] == expected
                at += 1
        assert at == len(found)


@given(st.lists(st.lists(st.lists(st.integers(1, 9), max_size=4), min_size=3, max_size=3), min_size=1, max_size=4))
@settings(max_examples=50, deadline=None)
def test_joined_texts_are_the_concatenation_of_their_parts(parts):
    """A piece that lands at another text's place, with empty pieces among them."""
    tables = [TokenTable.of(rows) for rows in parts]
    found = joined([Spans.rows(table, np.arange(3)) for table in tables])
    for n in range(3):
        expected = [token for rows in parts for token in rows[n]]
        assert found.flat[found.offsets[n] : found.offsets[n + 1]].tolist() == expected


def test_cut_prompts_are_counted():
    """Histories that are cut without anybody knowing."""
    log = synthetic_log(users=6)
    short, splits = fit_prompts(log, prompt={**PROMPT, "max_length": 18})
    long, _ = fit_prompts(log, prompt={**PROMPT, "max_length": 64})
    report, whole = short.prompt_report(splits.valid), long.prompt_report(splits.valid)
    assert report["prompts"] == whole["prompts"] == splits.valid.num_candidates
    assert report["cut"] == report["prompts"]
    assert whole["cut"] < report["cut"]
    assert report["told"] < whole["told"]
    assert report["tokens"] <= 18


def test_lists_are_told_the_history_of_their_candidate():
    """A negative that sees other events than the item it is compared to."""
    processor, splits = fit_prompts()
    data = CandidateSample(splits.train, processor.num_items, ["next_item"], candidates_per_window=3, negatives=4)
    batch = collate([data[i] for i in range(5)])
    found = _decoded(processor, processor.write(batch))
    window, place = np.nonzero(batch["candidate_ids"].numpy())
    own = {(w, p): tokens for w, p, tokens in zip(window, place, found, strict=False)}
    listed = batch["list_items"].numpy()
    for (w, p, k), tokens in zip(np.argwhere(listed > 0), found[len(own) :], strict=True):
        sep = processor.tokenizer.sep_token_id
        mine, other = own[w, p], tokens
        assert mine[mine.index(sep) :] == other[other.index(sep) :]  # the same history
        title = processor.tokenizer(f"{_title(processor, listed[w, p, k])}", add_special_tokens=False)["input_ids"]
        assert other[1 : other.index(sep)] == title


def _title(processor, row: int) -> str:
    items = processor.items.table
    return f"{items['title'][int(row) - 2].as_py()} {items['genre'][int(row) - 2].as_py()}"


def test_decoders_read_the_candidate_last():
    """Last-token pooling of a token that has not seen the candidate."""
    processor, splits = fit_prompts(backbone=tiny_llama())
    assert processor.text.pooling == "last"
    assert processor.prompt.layout == "{history}{sep}{candidate}"
    batch = collate([splits.train.fixed()[0]])
    found = _decoded(processor, processor.write(batch))
    for tokens, item in zip(found, batch["candidate_ids"][0].tolist(), strict=True):
        text = processor.tokenizer(_title(processor, item), add_special_tokens=False)["input_ids"]
        assert tokens[0] == processor.tokenizer.bos_token_id
        assert tokens[-len(text) :] == text


def test_numbers_are_told_by_their_value():
    """A number told as its rank, or as a neighbouring value."""
    log = synthetic_log(users=10)
    random = np.random.default_rng(0)
    log["interactions"]["seconds"] = random.integers(10, 60, len(log["interactions"]["rating"])).astype(float)
    columns = {"context": {"surface": "categorical"}, "feedback": ["rating", "seconds"]}
    processor, splits = fit_prompts(
        log, columns=columns, prompt={**PROMPT, "feedback": {"seconds": " {value}"}, "max_length": 64}
    )
    assert processor.event_encoders["event"]["seconds"].kind == "numeric"
    data = splits.train.fixed()
    phrases = processor.prompts._phrases["seconds"]
    codes = phrases.codes(data.log.event_features["seconds"])
    spans = zip(phrases.table.offsets[codes], phrases.table.offsets[codes + 1], strict=True)
    said = [processor.tokenizer.decode(phrases.table.flat[a:b]) for a, b in spans]
    values = log["interactions"]["seconds"][data.log.row]
    error = np.abs(np.array(said, dtype=float) - values)
    assert np.median(error) <= 0.5
    assert error.max() <= 2


def test_words_of_single_values():
    """Words for a value that are never said."""
    prompt = {**PROMPT, "feedback": {"rating": {"5": " action"}, "surface": " {value}"}}
    processor, _ = fit_prompts(prompt=prompt)
    words = processor.prompts._phrases["rating"].table
    vocabulary = processor.event_encoders["event"]["rating"].vocabulary
    said = {v: words.lengths[2 + i] for i, v in enumerate(vocabulary)}
    assert {float(v): n for v, n in said.items() if n} == {5.0: 1}


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({"max_lenght": 9}, "did you mean 'max_length'"),
        ({"event": "{feedback}"}, "must hold {item} once"),
        ({"layout": "{candidate}"}, "must hold {history} once"),
        ({"feedback": {"rating": "rated"}}, "say no {value}"),
        ({"feedback": {"ratings": " {value}"}}, "did you mean 'rating'"),
        ({"max_length": 65}, "reads at most 64"),
        (
            {"max_length": 8, "layout": "title action comedy drama {candidate} {history}"},
            "tokens are needed without any event",
        ),
    ],
)
def test_prompts_that_cannot_be_written_are_refused(prompt, message):
    """A typing error that makes prompts say nothing."""
    with pytest.raises(ValueError, match=message):
        processor, _ = fit_prompts(prompt={"item_tokens": 6, "max_length": 40, **prompt})
        _ = processor.prompts


def test_an_event_must_fit_between_its_words():
    """PromptConfig that accepts what no backbone can read."""
    with pytest.raises(ValueError, match=">= 8"):
        PromptConfig(max_length=4)


def test_items_without_text_unknown_items_and_hostile_texts():
    """Empty prompts, a crash, or one long text that crowds out the rest."""
    log = synthetic_log(users=8)
    titles = log["items"]["title"]
    titles[0], titles[1], titles[2] = None, "drama " * 5000, "\U0001f3ac שלום \u202ecomedy مرحبا"
    genres = log["items"]["genre"]
    genres[0] = None
    processor, splits = fit_prompts(log)
    lengths = processor.prompts._items.lengths
    assert lengths[0] == 0
    assert (lengths[1:] > 0).all()
    assert lengths.max() <= 6
    found = processor.write(collate([splits.train.fixed()[i] for i in range(8)]))
    assert (found.tokens.lengths <= 40).all()
    window = processor.request([999, 3], np.array([2, 4]))
    window.pop("history_items")
    tokens = processor.write(collate([window])).tokens
    unknown = processor.tokenizer("unknown", add_special_tokens=False)["input_ids"]
    sep = processor.tokenizer.sep_token_id
    first = tokens.flat[: tokens.lengths[0]].tolist()
    assert first[1 : 1 + len(unknown)] == unknown  # row 2 is the item without text
    assert first[first.index(sep) + 1 :][: len(unknown)] == unknown  # the item nobody knows
