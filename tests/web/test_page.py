"""The page of the web demo, driven through gradio's own client over HTTP."""

import re

import httpx
import pytest

gradio_client = pytest.importorskip("gradio_client", reason="pip install 'polyrec[web]'")
pytest.importorskip("gradio", reason="pip install 'polyrec[web]'")

from polyrec.cli.main import main  # noqa: E402
from polyrec.web.page import build_page, launch_options  # noqa: E402
from polyrec.web.serve import open_session  # noqa: E402

# What every change of the history brings back.
EMPTY, EVENTS, RECOMMENDED, PREDICTED = range(4)


@pytest.fixture
def run(recipe_file):
    """A trained run folder."""
    assert main(["train", str(recipe_file), "--set", "training.num_train_epochs=1"]) == 0
    return recipe_file.parent / "run"


@pytest.fixture
def page(run):
    """The page of a run, and its address."""
    built = build_page(open_session(str(run), k=5, users=True))
    _, address, _ = built.launch(prevent_thread_lock=True, **launch_options("127.0.0.1"))
    yield address
    built.close()


def shown(html):
    """[(what is said of the move, the text of the card)] of the list, and the note above it."""
    cards = re.findall(r"<li .*?</li>", html, re.DOTALL)
    moved = [re.search(r"polyrec-moved \w+'>([^<]*)<", card) for card in cards]
    texts = [
        re.sub(r"\s+", " ", re.sub("<[^>]*>", " ", card.replace(m[0] if m else "", "")))
        for card, m in zip(cards, moved, strict=True)
    ]
    note = re.search(r"role='status'>([^<]*)<", html)
    return [(m[1] if m else "", text) for m, text in zip(moved, texts, strict=True)], note and note[1]


def predicted(html):
    """{task: (prediction, change)} beside the bars of one item."""
    rows = re.findall(r"<dt>(\w+)</dt>.*?<dd>([-.\d]+)</dd><dd>(.*?)</dd>", html)
    return {task: (float(value), re.sub("<[^>]*>", "", change)) for task, value, change in rows}


def test_a_visit(page):
    """Controls that are wired to the wrong function, and states that visitors share."""
    visitor, other = (gradio_client.Client(page, verbose=False) for _ in range(2))
    cold = visitor.predict(None, api_name="/new_user")[1:]
    assert cold[EVENTS]["choices"] == []
    assert ("no events yet" in cold[EMPTY], cold[EVENTS]["visible"]) == (True, False)
    first_list, note = shown(cold[RECOMMENDED])
    assert len(first_list) == 5
    assert note is None

    found = visitor.predict("title 7", api_name="/find")
    assert found["choices"][0] == ["title 7 [7]", 7]
    assert found["value"] == 7
    visitor.predict(7, api_name="/score_item")
    first = visitor.predict(7, 5.0, api_name="/add_event")
    assert first[EVENTS]["choices"] == [["1. title 7 [7] (rating 5.0)", 0]]
    assert (first[EMPTY], first[EVENTS]["visible"]) == ("", True)
    assert shown(first[RECOMMENDED])[1]  # what changed beside the list of a new user

    changed = visitor.predict(7, 0, 1.0, api_name="/change_event")
    assert changed[EVENTS]["choices"] == [["1. title 7 [7] (rating 1.0)", 0]]
    ((value, moved),) = predicted(changed[PREDICTED]).values()
    assert float(moved) == pytest.approx(value - predicted(first[PREDICTED])["rating"][0], abs=2e-3)
    assert float(moved) != 0

    other.predict("title 7", api_name="/find")
    assert other.predict(7, 2.0, api_name="/add_event")[EVENTS]["choices"] == [["1. title 7 [7] (rating 2.0)", 0]]
    removed = visitor.predict(7, 0, api_name="/remove_event")
    assert removed[EVENTS]["choices"] == []
    again = [re.sub(r" [-+][.\d]+", "", text) for _, text in shown(removed[RECOMMENDED])[0]]  # without changes
    assert [" ".join(text.split()) for text in again] == [" ".join(text.split()) for _, text in first_list]


def test_users_and_mistakes(page):
    """A user without their events, a search that finds nothing without a word, and a mistake that ends in a traceback."""
    visitor = gradio_client.Client(page, verbose=False)
    loaded = visitor.predict(3, None, api_name="/load_user")
    assert len(loaded[EVENTS]["choices"]) == 8  # max_history of the recipe
    mistakes = [
        ("/remove_event", (None, None), "choose an event of the history"),
        ("/find", ("<b>no such</b>",), "no title has all the words of “&lt;b&gt;no such"),
        ("/find", (" ",), "no title has"),
        ("/load_user", ("nobody", None), "the log has no events of user nobody"),
        *(("/add_event", (odd, 5.0), "choose an item of the catalog|list of choices") for odd in (None, [3], {"a": 1})),
    ]
    for name, given, message in mistakes:
        with pytest.raises(gradio_client.exceptions.AppError, match=message):
            visitor.predict(*given, api_name=name)
    for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}):
        assert httpx.get(f"{page}config", headers=headers).status_code == 403
    assert httpx.get(f"{page}config").status_code == 200


def test_without_the_data(run, recipe_file, capsys):
    """A demo that stops because the tables of its training are not there, or that tells everybody who is in them."""
    listed = open_session(str(run), users=True).user_ids()
    shown = {users: str(build_page(open_session(str(run), users=users)).get_config_file()) for users in (True, False)}
    assert len(listed) > 5
    assert str((str(listed[0]), listed[0])) in shown[True]
    assert not [p for p in listed if str((str(p), p)) in shown[False]]
    assert open_session(str(run)).history_of(listed[0]) == []
    (recipe_file.parent / "interactions.parquet").unlink()
    session = open_session(str(run), users=True)
    assert session.user_ids() == []
    assert "no users to choose from" in capsys.readouterr().out


def test_the_extra_is_named(monkeypatch, capsys, tmp_path):
    """A traceback for whoever has not installed gradio."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["demo", str(tmp_path)]) == 2
    assert "pip install 'polyrec[web]'" in capsys.readouterr().err
