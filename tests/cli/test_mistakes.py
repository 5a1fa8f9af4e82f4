"""Mistakes in recipes and flags: one line, before any table is read, with the key, the value and what it must be."""

from __future__ import annotations

import argparse
import io
import re
import sys

import pytest
from recipe_fixtures import REFUSED

from polyrec.cli import main as cli
from polyrec.cli.flags import cutoffs
from polyrec.cli.main import main
from polyrec.runs import prepare as prepared
from polyrec.runs.recipe import load_recipe

TASKS = "[{name: like, head: binary, label: 'rating >= 4'}, {name: stars, head: regression, label: rating}]"


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A recipe whose table must not be read: it is refused before."""
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp,rating\n")
    (tmp_path / "r.yaml").write_text(f"interactions: {tmp_path}/log.csv\ntasks: {TASKS}\noutput: {tmp_path}/run\n")

    def read(*arguments):
        raise AssertionError("a table was read before the settings were checked")

    monkeypatch.setattr(prepared, "joined_table", read)
    return tmp_path / "r.yaml"


@pytest.mark.parametrize(("setting", "message"), REFUSED)
def test_settings_are_refused_before_tables_are_read(recipe, setting, message, capsys):
    """Prevents a traceback, a hang, or a refusal after an hour of training for a typing mistake."""

    assert main(["train", str(recipe), "--set", setting]) == 2
    said = capsys.readouterr().err
    assert re.search(message, said), said
    assert said.count("\n") == 1


def test_numbers_that_yaml_reads_as_text_are_numbers(recipe):
    """Prevents `learning_rate: 1e-3` from ending in a comparison of text with a number."""
    from polyrec.runs.recipe_checks import check_sections

    found = load_recipe(str(recipe), {"training": {"learning_rate": "1e-3"}, "split": {"max_delay": "1e2"}})
    check_sections(found)  # accepted; what reads them converts them


def test_files_that_are_no_recipes_are_refused(tmp_path):
    """Prevents a billion laughs from filling the memory, and keys written twice from being dropped."""
    laughs = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
    for text, message in (
        (laughs, "line 2 has an alias"),
        ("output: a\noutput: b\n", "'output' stands twice in one mapping .line 2"),
        ("output: [\n", "cannot read it as YAML"),
        ("# a\noutput: a: b\n", r"mapping values are not allowed here \(line 2, column 10\)"),
        ("[" * 5000, "too deep"),
        ("- 1\n", "must hold a mapping"),
        ("output: !!binary aGk=\n", "output is b'hi'; it must be text"),
        ("x: " + "y" * 1_000_001, "it is no recipe"),
        ("output: \x00\n", "cannot read it as YAML"),
    ):
        (tmp_path / "r.yaml").write_text(text)
        with pytest.raises(ValueError, match=message) as error:
            load_recipe(str(tmp_path / "r.yaml"), {})
        assert "\n" not in str(error.value)
    (tmp_path / "r.yaml").write_bytes("name: é".encode("latin-1"))
    with pytest.raises(ValueError, match="not UTF-8 text"):
        load_recipe(str(tmp_path / "r.yaml"), {})


def test_places_that_cannot_be_written_are_refused(recipe, tmp_path, capsys):
    """Prevents an output that is a file, or lies in one, from being found out when the model is saved."""
    for output in (recipe, recipe / "run"):
        assert main(["train", str(recipe), "--output", str(output)]) == 2
        assert re.search("a file: name a folder for the run|no permission to write", capsys.readouterr().err)
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    for command in ("recommend", "evaluate", "report"):
        assert main([command, str(tmp_path / "runs" / "dmo")]) == 2
        assert "did you mean" in (said := capsys.readouterr().err)
        assert "demo" in said


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (PermissionError(13, "Permission denied", "runs/a"), 2, "runs/a: permission denied"),
        (MemoryError(), 2, "not enough memory"),
        (UnicodeEncodeError("charmap", "x", 0, 1, "no"), 2, "charmap"),
        (TypeError("a\nb"), 1, "unexpected TypeError: a b"),
    ],
)
def test_every_error_is_one_line(monkeypatch, capsys, error, code, message):
    """Prevents tracebacks where nobody debugs; --debug shows them."""

    def fail(options):
        raise error

    monkeypatch.setattr(cli.using, "_evaluate", fail)
    assert main(["evaluate", "nowhere"]) == code
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    with pytest.raises(type(error)):
        main(["evaluate", "nowhere", "--debug"])


def test_titles_that_a_terminal_cannot_write_are_replaced(monkeypatch):
    """Prevents a Japanese title from ending a list on a terminal of Western Europe."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(cli.using, "_evaluate", lambda options: print("映画 é"))
    assert main(["evaluate", "nowhere"]) == 0
    assert out.buffer.getvalue().decode("cp1252").strip() == "?? é"


@pytest.mark.parametrize("text", ["a", "3,b", "3,0", "", "3,,5"])
def test_cutoffs_that_are_no_numbers_are_refused(text):
    """Prevents lists from being cut at 1 because a cut-off could not be read."""
    with pytest.raises(argparse.ArgumentTypeError, match="no list of cut-offs >= 1"):
        cutoffs(text)


def test_an_unknown_command(capsys):
    """Prevents a list of 18 commands from being the answer to a typing error."""
    with pytest.raises(SystemExit, match="2"):
        main(["evalute", "runs/a"])
    assert "unknown command 'evalute'; did you mean 'evaluate'? known: " in capsys.readouterr().err


def test_messages_about_many_names_are_short(recipe, capsys):
    """Prevents the suggestion from standing behind 150 arguments of a training."""
    assert main(["train", str(recipe), "--set", "training.learning_rat=1"]) == 2
    said = capsys.readouterr().err
    assert len(said) < 350
    assert " more" in said
