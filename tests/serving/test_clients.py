"""Clients that nobody here wrote: Gorse's own, and requests that schemathesis makes of the server's description."""

import asyncio
import threading

import pytest
from abort_requests import abort_requests
from fuzz_server import fuzz_server
from gorse import AsyncGorse, Gorse, GorseException
from serving_fixtures import live, saved_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return saved_run(tmp_path_factory.mktemp("run"))


@pytest.mark.parametrize("front", [False, True], ids=["one", "two"])
def test_gorse_client(run, tmp_path, front):
    """Prevents users of Gorse from having to change their client: items, feedback, lists, hiding and deleting work, and
    what a user has seen does not come back (Gorse 49, 592, 802, 833)."""
    with live(run[0], tmp_path, front=front) as client:
        gorse = Gorse(str(client.base_url), "")
        fresh = {
            "ItemId": "700",
            "IsHidden": False,
            "Labels": {"genre": "drama"},
            "Categories": [],
            "Comment": "A new film",
        }
        assert gorse.insert_item(fresh)["RowAffected"] == 1
        assert gorse.insert_item(fresh)["RowAffected"] == 1  # as Gorse, known items are no mistake
        found = gorse.get_item("700")
        assert (found["Comment"], found["IsHidden"], found["Labels"]["genre"]) == ("A new film", False, "drama")
        assert gorse.insert_user({"UserId": "bob", "Labels": {"age": 30.0}})["RowAffected"] == 1
        assert gorse.get_user("bob")["Labels"] == {"age": 30.0}
        when = "2024-05-01T12:00:00Z"
        assert gorse.insert_feedback("rating", "bob", "3", when, 5.0)["RowAffected"] == 1
        more = [
            {"FeedbackType": "rating", "UserId": "bob", "ItemId": n, "Timestamp": when, "Value": 4.0} for n in "4567"
        ]
        assert gorse.insert_feedbacks(more)["RowAffected"] == 4
        assert gorse.insert_feedbacks(more)["RowAffected"] == 0
        listed = gorse.list_feedbacks("rating", "bob")
        assert sorted(one["ItemId"] for one in listed) == list("34567")
        assert {one["Value"] for one in listed} == {5.0, 4.0}
        recommended = [score.id for score in gorse.get_recommend("bob", n=10)]
        assert len(recommended) == 10
        assert not {*recommended} & {*"34567"}
        assert [score.id for score in gorse.get_recommend("bob", n=5, offset=5)] == recommended[5:]
        gorse.update_item(recommended[0], is_hidden=True)
        assert recommended[0] not in [score.id for score in gorse.get_recommend("bob", n=10)]
        assert gorse.get_item(recommended[0])["IsHidden"]
        gorse.delete_item(recommended[1])
        assert not {*recommended[:2]} & {score.id for score in gorse.get_recommend("bob", n=20)}
        session = [{"FeedbackType": "rating", "UserId": "x", "ItemId": "3", "Timestamp": when, "Value": 5.0}]
        assert len(gorse.session_recommend(session, 4)) == 4
        assert len(gorse.get_neighbors("3", 3)) == 3
        assert gorse.delete_user("bob")["RowAffected"] == 1
        assert gorse.list_feedbacks("rating", "bob") == []
        with pytest.raises(GorseException, match="no such user"):
            gorse.get_user("bob")
        assert len(asyncio.run(AsyncGorse(str(client.base_url), "").get_recommend("bob", n=3))) == 3


def pages(method, size):
    """All pages of a list of Gorse."""
    found, cursor = [], ""
    while True:
        some, cursor = method(size, cursor)
        assert len(some) <= size
        found += some
        if not cursor:
            return found


def test_every_method_of_the_gorse_client(run, tmp_path):
    """Prevents a method of the client from failing, or from doing nothing in silence: what is listed, changed and deleted
    is what was sent, page by page, also after a restart."""
    when = "2024-05-01T12:00:00Z"
    sent = [(user, item) for user in ("ann", "bob", "cid") for item in "3456"]
    feedback = [{"FeedbackType": "rating", "UserId": u, "ItemId": i, "Timestamp": when, "Value": 4.0} for u, i in sent]
    with live(run[0], tmp_path) as client:
        gorse = Gorse(str(client.base_url), "")
        tested = {name for name in dir(Gorse) if not name.startswith("_")}
        assert tested == {name for name in dir(AsyncGorse) if not name.startswith("_")}
        assert gorse.insert_users([{"UserId": "ann", "Labels": {"age": 31.0}}, {"UserId": "zoe"}])["RowAffected"] == 2
        assert gorse.insert_feedbacks(feedback)["RowAffected"] == 12
        listed = pages(gorse.get_feedbacks, 5)
        assert [(one["UserId"], one["ItemId"]) for one in listed] == sent
        assert {(one["FeedbackType"], one["Value"]) for one in listed} == {("rating", 4.0)}
        users = pages(gorse.get_users, 3)
        assert [one["UserId"] for one in users] == ["ann", "bob", "cid", "zoe"]
        assert users[0]["Labels"] == {"age": 31.0}
        items = pages(gorse.get_items, 7)
        assert [one["ItemId"] for one in items] == [str(n) for n in range(24)]
        assert items[3] == gorse.get_item("3")
        assert [one["ItemId"] for one in gorse.search_items("TITLE 1", 3)] == ["1", "10", "11"]
        # An item is changed, and deleted: it stays in the catalog, hidden.
        gorse.update_item("3", labels={"genre": "drama"}, comment="Another title", categories=["no column"])
        assert (gorse.get_item("3")["Comment"], gorse.get_item("3")["Labels"]["genre"]) == ("Another title", "drama")
        assert gorse.update_item("3")["RowAffected"] == 0
        gorse.insert_item({"ItemId": "4", "Labels": {"genre": "comedy"}, "IsHidden": False, "Comment": ""})
        assert gorse.get_item("4")["Labels"]["genre"] == "comedy"
        assert gorse.get_item("4")["Comment"] == "title 4"
        # Feedback that is deleted is nowhere, and comes back when it is sent again.
        assert "3" not in [score.id for score in gorse.get_recommend("bob", n=30)]
        assert gorse.delete_feedback("bob", "3")["RowAffected"] == 1
        assert gorse.delete_feedback("bob", "3")["RowAffected"] == 0
        assert "3" in [score.id for score in gorse.get_recommend("bob", n=30)]
        assert sorted(one["ItemId"] for one in gorse.list_feedbacks("rating", "bob")) == list("456")
        assert len(pages(gorse.get_feedbacks, 5)) == 11
        client.service.flush(client.service.writer.known, 10.0)  # so that what comes now, of the same second, is late
        assert gorse.insert_feedback("rating", "bob", "3", when, 2.0)["RowAffected"] == 1
        assert "3" not in [score.id for score in gorse.get_recommend("bob", n=30)]
        client.service.flush(client.service.writer.known, 10.0)
        assert gorse.delete_feedback("bob", "4")["RowAffected"] == 1  # one that was counted
        assert "4" in [score.id for score in gorse.get_recommend("bob", n=30)]
        gorse.delete_user("cid")
        # What this server does not have is said.
        for call, word in (
            (lambda: gorse.get_recommend("bob", category="films"), "categories"),
            (lambda: gorse.get_recommend("bob", write_back_type="read", write_back_delay="10m"), "write-back-type"),
            (lambda: gorse.update_item("900", labels={"genre": "drama"}), "no such item"),
            (lambda: gorse.get_feedbacks(0), "n"),
            (lambda: gorse.get_items(5, "first"), "cursor"),
        ):
            with pytest.raises(GorseException) as refused:
                call()
            assert 400 <= refused.value.status_code < 500
            assert word in refused.value.message
        waiting = AsyncGorse(str(client.base_url), "")
        assert len(asyncio.run(waiting.get_users(9))[0]) == 3
        assert asyncio.run(waiting.delete_feedback("bob", "5"))["RowAffected"] == 1
    with live(run[0], tmp_path) as client:
        gorse = Gorse(str(client.base_url), "")
        assert [(one["UserId"], one["ItemId"]) for one in pages(gorse.get_feedbacks, 4)] == [
            *[("ann", n) for n in "3456"],
            ("bob", "6"),
            ("bob", "3"),
        ]
        found = [score.id for score in gorse.get_recommend("bob", n=30)]
        assert {"4", "5"} <= {*found}
        assert not {"3", "6"} & {*found}


@pytest.fixture(scope="module", params=[False, True], ids=["one", "two"])
def served(run, tmp_path_factory, request):
    with live(run[0], tmp_path_factory.mktemp("state"), front=request.param) as client:
        yield client


@pytest.mark.parametrize("malformed", [False, True])
def test_schemathesis(served, malformed):
    """Prevents a request that the description allows, or one just outside of it, from becoming an error of the server."""
    seen = fuzz_server(str(served.base_url), examples=1 if malformed else 3, malformed=malformed)
    assert {path for _, path, _ in seen} >= {"/recommend", "/events", "/items/{item}", "/api/feedback"}
    assert any(status == 200 for _, path, status in seen if path == "/recommend") or malformed


def test_clients_that_go_away(served):
    """Prevents requests whose clients have gone from staying in the queue, from keeping threads or connections, or from
    failing those of others (Ray 41057, LitServe 452, BentoML 3710); the script of that name has 10,000 of them."""
    port, service, bodies = served.base_url.port, served.service, [b'{"history": [3, 4], "k": 5}', b'{"history": []}']
    threads = threading.active_count()
    found = asyncio.run(abort_requests(port, "/recommend", bodies, 200))
    assert found["aborted"] > 100
    assert set(found) == {"aborted", "200"}
    assert asyncio.run(abort_requests(port, "/recommend", bodies, 40, share=0.0)) == {"200": 40}
    assert len(service.batcher) == 0
    assert threading.active_count() <= threads + 4  # of the pool that waits
