"""The logic of the web demo, without a page."""

import pyarrow as pa
import pytest
from model_fixtures import COLUMNS, TASKS, synthetic_log

from polyrec import PolyRecForRecommendation, PolyRecProcessor
from polyrec.core.hosts import HostCheck, known_names
from polyrec.web.session import DemoSession


@pytest.fixture(scope="module")
def session():
    log = synthetic_log()
    log["interactions"]["rating"] = [None if r != r else r for r in log["interactions"]["rating"]]
    log["items"]["title"][3], log["items"]["title"][4] = "The Long Road", "Road"
    processor = PolyRecProcessor.fit(
        log["interactions"], log["items"], log["users"], tasks=TASKS, columns=COLUMNS, max_history=6
    )
    processor.split(log["interactions"])
    model = PolyRecForRecommendation(processor.model_config(hidden_size=16))
    return DemoSession(model, processor, pa.table(log["interactions"]), pa.table(log["users"]), k=5)


@pytest.mark.parametrize(
    ("host", "origin", "allowed"),
    [
        ("localhost:7860", None, True),  # a name of this machine
        ("192.168.0.7:7860", None, True),  # an address, which no name can be bound to anew
        ("[::1]:7860", None, True),
        ("evil.example:7860", None, False),
        ("", None, False),
        ("localhost:7860", "http://localhost:7860", True),
        ("localhost:7860", "http://localhost:7861", False),
    ],
)
def test_only_pages_of_this_machine_are_answered(host, origin, allowed):
    """Prevents a name that was bound to this machine (DNS rebinding), or another page, from reading the answers."""
    headers = {b"host": host.encode()} | ({} if origin is None else {b"origin": origin.encode()})
    assert HostCheck(None, known_names("127.0.0.1")).allows(headers) is allowed


def test_answers_are_those_of_recommend(session):
    """A page that shows anything but what the model says, or reasons beside other items."""
    history = [{"item_id": 3, "rating": 5.0}, {"item_id": 7, "rating": 1.0}]
    shown, snapshot = session.recommendations(history, {"age": 30.0}, {})
    found = session.model.recommend(session.processor, history, k=5, user={"age": 30.0})
    reasons = {
        r["item"]: r["reason"] for r in session.model.explain(session.processor, history, k=5, user={"age": 30.0})
    }
    names = {"next_item": "score", "like": "like", "rating": "rating"}
    assert len(shown) == 5
    for one, expected in zip(shown, found, strict=True):
        assert (one.rank, one.item, one.moved) == (expected["rank"], expected["item"], "")
        assert one.title == f"{expected['title']} [{expected['item']}]"
        assert {p.task: p.value for p in one.predictions} == {task: expected[key] for task, key in names.items()}
        assert all(p.change is None for p in one.predictions)
        assert one.reason == reasons[expected["item"]]
        assert snapshot[one.item] == (one.rank, {p.task: p.value for p in one.predictions})
    like = [next(p for p in one.predictions if p.task == "like") for one in shown]
    assert [p.share for p in like] == [p.value for p in like]  # a probability is as long as it is


def test_what_moved_is_told(session):
    """An arrow that points the wrong way, a list that looks unchanged, or an item that vanishes without a word."""
    history = [{"item_id": 3, "rating": 5.0}]
    _, before = session.recommendations(history, {}, {})
    _, *rest = before
    other = next(item for item in session.titles if item not in before)
    shifted = {item: (before[item][0] + 2, {"like": before[item][1]["like"] - 0.25}) for item in rest}
    shifted[other] = (1, {})
    shown, now = session.recommendations(history, {}, shifted)
    assert [one.moved for one in shown] == ["new", "↑ 2", "↑ 2", "↑ 2", "↑ 2"]
    changes = [{p.task: p.change for p in one.predictions} for one in shown]
    assert changes[0] == {"next_item": None, "like": None, "rating": None}
    assert changes[1] == {"next_item": None, "like": pytest.approx(0.25), "rating": None}
    assert session.gone(shifted, now) == [session.titles[other]]
    assert [one.moved for one in session.recommendations(history, {}, before)[0]] == ["="] * 5


def test_changing_an_event_changes_the_answers(session):
    """Controls that are wired to nothing."""
    history = session.added(session.added([], 3, {"rating": 5.0}), 7, {"rating": 5.0})
    _, before = session.predictions(history, {}, 10, {})
    changed = session.changed(history, 1, {"rating": 1.0})
    rows, now = session.predictions(changed, {}, 10, before)
    assert (history[1]["rating"], changed[1]["rating"]) == (5.0, 1.0)
    assert now != before
    assert [one.task for one in rows] == ["like", "rating"]
    assert [one.change for one in rows] == [now[name] - before[name] for name in now]
    assert session.removed(changed, 1) == history[:1]


def test_histories_of_people_are_their_own(session):
    """Events of another person, in another order, or later ones than the model reads."""
    for user in session.user_ids(3):
        history, log = session.history_of(user), session.interactions.to_pandas()
        own = log[log["user_id"] == user].sort_values("timestamp", kind="stable").tail(6)
        assert [e["item_id"] for e in history] == own["item_id"].tolist()
        assert [e["timestamp"] for e in history] == own["timestamp"].tolist()
        assert history[0]["surface"] == own["surface"].iloc[0]
        session.recommendations(history, session.attributes_of(user), {})
    assert set(session.attributes_of(4)) == {"age"}
    assert session.history_of("nobody") == []


def test_an_added_event_comes_after_the_history(session):
    """An event without a time among events with one, which a processor refuses."""
    history = session.added(session.history_of(5), 3, {"rating": "4"})
    assert history[-1]["timestamp"] > history[-2]["timestamp"]
    assert history[-1]["rating"] == 4.0
    session.recommendations(history, {}, {})


def test_titles_are_found_by_words(session):
    """A search that needs the exact title, or shows the longest first."""
    assert [item for _, item in session.find("ROAD")] == [4, 3]
    assert [item for _, item in session.find("long road")] == [3]
    assert session.find("7")[0][1] == 7
    assert session.find(" ") == []
    assert len(session.find("title", most=2)) == 2


def test_mistakes_of_a_visitor_are_explained(session):
    """A traceback in the place of a message."""
    with pytest.raises(ValueError, match="choose an item of the catalog"):
        session.added([], None, {})
    for position in (None, 1, -1):
        with pytest.raises(ValueError, match="choose an event"):
            session.removed([{"item_id": 3}], position)
    with pytest.raises(ValueError, match="rating is 'many'; it must be a number"):
        session.added([], 3, {"rating": "many"})


def test_a_model_without_people_or_titles(tables):
    """A demo that needs the data a model was trained on."""
    del tables["items"]["title"]
    processor = PolyRecProcessor.fit(tables["interactions"], tables["items"], tasks=TASKS[1:])
    processor.split(tables["interactions"])
    session = DemoSession(PolyRecForRecommendation(processor.model_config(hidden_size=16)), processor)
    assert session.user_ids() == []
    shown, _ = session.recommendations([], {}, {})
    assert [[p.task for p in one.predictions] for one in shown] == [["like", "rating"]] * len(shown)
    assert session.find("3")[0] == ("[3]", 3)
