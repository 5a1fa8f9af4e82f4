"""Clients that nobody here wrote: Gorse's own, and requests that schemathesis makes of the server's description."""

import asyncio

import pytest
import schemathesis
from gorse import AsyncGorse, Gorse, GorseException
from hypothesis import HealthCheck, Phase, settings
from serving_fixtures import live, saved_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return saved_run(tmp_path_factory.mktemp("run"))


def test_gorse_client(run, tmp_path):
    """Prevents users of Gorse from having to change their client: items, feedback, lists, hiding and deleting work, and
    what a user has seen does not come back (Gorse 49, 592, 802, 833)."""
    with live(run[0], tmp_path) as client:
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


@pytest.fixture(scope="module")
def served(run, tmp_path_factory):
    with live(run[0], tmp_path_factory.mktemp("state")) as client:
        yield client


def test_schemathesis(served):
    """Prevents a request that the description allows, or one just outside of it, from becoming an error of the server."""
    schema = schemathesis.openapi.from_url(f"{served.base_url}/openapi.json")
    seen = []
    for operation in schema.get_all_operations():
        case_of = operation.ok().as_strategy()

        from hypothesis import given

        @settings(
            max_examples=3,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
            derandomize=True,
        )
        @given(case=case_of)
        def call(case):
            if case.path == "/admin/model" and case.method == "POST":
                return
            response = case.call(timeout=10)
            assert response.status_code < 500, (case.method, case.path, case.body, response.text)
            case.validate_response(response, checks=[schemathesis.checks.not_a_server_error])
            seen.append((case.method, case.path, response.status_code))

        call()
    assert {path for _, path, _ in seen} >= {"/recommend", "/events", "/items/{item}", "/api/feedback"}
    assert any(status == 200 for _, path, status in seen if path == "/recommend")
