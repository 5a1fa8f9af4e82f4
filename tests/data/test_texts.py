"""Templates, tokens, and texts as people write them."""

import logging
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_fixtures import tiny_bert
from transformers import AutoTokenizer

from polyrec import PolyRecProcessor
from polyrec.core.backbones import TextConfig, resolve
from polyrec.data.texts import TokenTable, load_tokenizer, render, tokenize

CONFIG = resolve(TextConfig(str(tiny_bert()), max_length=8))
TOKENIZER = load_tokenizer(CONFIG)


@given(st.lists(st.text(max_size=30), max_size=6))
@settings(max_examples=60, deadline=None)
def test_any_text_is_read_as_the_tokenizer_reads_it(texts):
    """Prevents emoji, right-to-left text, newlines or control characters from shifting rows or raising."""
    table = tokenize(TOKENIZER, texts, CONFIG)
    assert len(table) == len(texts)
    for n, text in enumerate(texts):
        own = table.flat[table.offsets[n] : table.offsets[n + 1]].tolist()
        clean = " ".join(text.split())
        expected = TOKENIZER(clean, truncation=True, max_length=8)["input_ids"] if clean else []
        assert own == expected


@given(st.lists(st.lists(st.integers(1, 99), max_size=5), min_size=1, max_size=6), st.data())
@settings(max_examples=50, deadline=None)
def test_padded_rows_are_the_lists(rows, data):
    """Prevents an off-by-one in the ragged table from giving an item its neighbour's text."""
    table = TokenTable.of(rows)
    chosen = np.array(data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=5)), dtype=np.int64)
    tokens, real = table.padded(chosen)
    assert [t[r].tolist() for t, r in zip(tokens, real, strict=True)] == [rows[n] for n in chosen]


def test_long_texts_are_cut_and_counted(caplog):
    """Prevents a text of a megabyte from stopping everything, and cuts that nobody hears of."""
    with caplog.at_level(logging.WARNING, logger="polyrec"):
        table = tokenize(TOKENIZER, ["title " * 200_000, "title", None, ""], CONFIG, what="item texts")
    assert table.lengths.tolist() == [8, 3, 0, 0]
    assert "1 of 2 item texts are longer than max_length=8 tokens" in caplog.text
    assert table.flat[7] == TOKENIZER.sep_token_id


def test_cuts_at_the_tokenizers_own_length_are_counted_too(caplog):
    """Prevents texts from being cut without a word where no max_length is set."""
    tokenizer = load_tokenizer(CONFIG)
    tokenizer.model_max_length = 6
    with caplog.at_level(logging.WARNING, logger="polyrec"):
        table = tokenize(tokenizer, ["title " * 7, "title"], replace(CONFIG, max_length=None))
    assert table.lengths.tolist() == [6, 3]
    assert "1 of 2 texts are longer than max_length=6 tokens" in caplog.text


@pytest.mark.parametrize(
    ("revision", "folder", "read"), [("abc", None, "abc"), (None, None, "main"), ("abc", "x", None)]
)
def test_a_tokenizer_is_of_the_backbones_revision(monkeypatch, revision, folder, read):
    """Prevents the tokenizer of another commit, whose ids are other words, from being loaded beside a model."""
    asked = []

    def loading(where, **options):
        asked.append((where, options["revision"]))
        return TOKENIZER

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", loading)
    load_tokenizer(replace(CONFIG, revision=revision), folder)
    assert asked == [(folder or CONFIG.model, read)]


def test_values_of_all_kinds_are_written_out():
    """Prevents 1995.0, None or nan from being read as words."""
    table = pa.table(
        {"title": ["Heat", "  A\n b", None], "year": [1995.0, None, None], "tags": [["a", None, "b"], [], None]}
    )
    assert render(table, "{title} ({year}) {tags}") == ["Heat (1995) a, , b", "A b () ", ""]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{titel}", "did you mean 'title'"),
        ("no column", "names no column"),
        ("{title", "cannot read the text template"),
    ],
)
def test_bad_templates_are_refused_at_fit(template, message):
    """Prevents hours of training on texts that are all the same."""
    with pytest.raises(ValueError, match=message):
        PolyRecProcessor.fit(
            {"user_id": [1, 1], "item_id": [0, 1], "timestamp": [1, 2]},
            {"item_id": [0, 1], "title": ["a", "b"]},
            tasks=[{"name": "next_item", "head": "retrieval"}],
            text={"model": str(tiny_bert()), "template": template},
        )


def test_a_tokenizer_that_does_not_fit_is_refused(tmp_path):
    """Prevents tokens beyond the backbone's table, which would be an index error deep inside, or garbage on a GPU."""
    TOKENIZER.save_pretrained(tmp_path)
    small = resolve(TextConfig(str(tiny_bert())))
    small.architecture["vocab_size"] = 10
    with pytest.raises(ValueError, match="use the tokenizer the model was trained with"):
        load_tokenizer(small, str(tmp_path))
    with pytest.raises(ValueError, match="has no tokenizer"):
        load_tokenizer(CONFIG, str(tmp_path / "nothing"))


def test_many_texts_are_read_in_pieces(monkeypatch, caplog):
    """Prevents texts at the edge of a piece from being lost, and cuts from being counted by piece."""
    texts = [None if n % 5 == 0 else "title 3 " * (1 + n % 4) for n in range(23)]
    with caplog.at_level(logging.WARNING):
        whole = tokenize(TOKENIZER, texts, CONFIG)
        monkeypatch.setattr("polyrec.data.texts._AT_ONCE", 4)
        pieces = tokenize(TOKENIZER, texts, CONFIG)
    np.testing.assert_array_equal(whole.flat, pieces.flat)
    np.testing.assert_array_equal(whole.offsets, pieces.offsets)
    first, second = (record.getMessage() for record in caplog.records)
    assert first == second
    assert len(tokenize(TOKENIZER, [], CONFIG)) == 0
