"""The page of the web demo, driven through gradio's own client over HTTP."""

import httpx
import pytest

gradio_client = pytest.importorskip("gradio_client", reason="pip install 'polyrec[web]'")
pytest.importorskip("gradio", reason="pip install 'polyrec[web]'")

from polyrec.cli.main import main  # noqa: E402
from polyrec.web.guard import guarded  # noqa: E402
from polyrec.web.page import THEME, build_page  # noqa: E402
from polyrec.web.serve import open_session  # noqa: E402

EVENTS, RECOMMENDED, ANSWERED = 0, 1, 2  # what every change of the history brings back


@pytest.fixture
def run(recipe_file):
    """A trained run folder."""
    assert main(["train", str(recipe_file), "--set", "training.num_train_epochs=1"]) == 0
    return recipe_file.parent / "run"


@pytest.fixture
def page(run):
    """The page of a run, and its address."""
    built = build_page(open_session(str(run), k=5, users=True))
    _, address, _ = built.launch(prevent_thread_lock=True, quiet=True, share=False, theme=THEME, **guarded("127.0.0.1"))
    yield address
    built.close()


def test_a_visit(page):
    """Controls that are wired to the wrong function, and states that visitors share."""
    visitor, other = (gradio_client.Client(page, verbose=False) for _ in range(2))
    cold = visitor.predict(None, api_name="/somebody_new")[1:]
    assert cold[EVENTS]["choices"] == []
    assert len(cold[RECOMMENDED]["data"]) == 5

    found = visitor.predict("title 7", api_name="/find")
    assert found["choices"][0] == ["title 7 [7]", 7]
    assert found["value"] == 7
    visitor.predict(7, api_name="/ask")
    first = visitor.predict(7, 5.0, api_name="/add_event")
    assert first[EVENTS]["choices"] == [["1. title 7 [7] (rating 5.0)", 0]]
    assert all(row[1] for row in first[RECOMMENDED]["data"])  # what moved beside the list of somebody new

    changed = visitor.predict(7, 0, 1.0, api_name="/change_event")
    assert changed[EVENTS]["choices"] == [["1. title 7 [7] (rating 1.0)", 0]]
    ((task, value, moved),) = changed[ANSWERED]["data"]
    assert task == "rating"
    assert float(moved) == pytest.approx(value - first[ANSWERED]["data"][0][1], abs=2e-4)
    assert float(moved) != 0

    other.predict("title 7", api_name="/find")
    assert other.predict(7, 2.0, api_name="/add_event")[EVENTS]["choices"] == [["1. title 7 [7] (rating 2.0)", 0]]
    removed = visitor.predict(7, 0, api_name="/remove_event")
    assert removed[EVENTS]["choices"] == []
    assert [row[2:] for row in removed[RECOMMENDED]["data"]] == [row[2:] for row in cold[RECOMMENDED]["data"]]


def test_people_and_mistakes(page):
    """A person without their events, and a mistake that ends in a traceback."""
    visitor = gradio_client.Client(page, verbose=False)
    loaded = visitor.predict(3, None, api_name="/load_user")
    assert len(loaded[EVENTS]["choices"]) == 8  # max_history of the recipe
    with pytest.raises(gradio_client.exceptions.AppError, match="choose an event of the history"):
        visitor.predict(None, None, api_name="/remove_event")
    for odd in (None, [3], {"path": "/etc/passwd"}):
        with pytest.raises(gradio_client.exceptions.AppError, match="choose an item of the catalog|list of choices"):
            visitor.predict(odd, 5.0, api_name="/add_event")
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
