"""The server over HTTP: what is acknowledged is known, what is malformed or not allowed is refused, and nothing breaks."""

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from prometheus_client.parser import text_string_to_metric_families
from serving_fixtures import assert_same_state, event_of, live, saved_run

from polyrec import PolyRecProcessor, Recommender
from polyrec.serving import guards
from polyrec.serving.app import AppOptions
from polyrec.serving.keys import Keys, new_key
from polyrec.serving.records import Kind, Record


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return saved_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module", params=[False, True], ids=["one", "two"])
def front(request):
    """Whether HTTP has a process of its own."""
    return request.param


@pytest.fixture(scope="module")
def client(run, tmp_path_factory, front):
    with live(run[0], tmp_path_factory.mktemp("state"), front=front) as client:
        yield client


def recommended(client, **request):
    response = client.post("/recommend", json=request)
    assert response.status_code == 200, response.text
    return response.json()["items"]


def test_answers_are_those_of_the_recommender(client, run):
    """Prevents the server from ranking or predicting otherwise than Python does."""
    asked = {"history": [3, 4, 5], "user": {"age": 30.0}, "k": 4}
    expected = Recommender.from_pretrained(run[0]).recommend([3, 4, 5], 4, user={"age": 30.0})
    found = recommended(client, **asked)
    assert [row["item"] for row in found] == [row["item"] for row in expected]
    for row, known in zip(found, expected, strict=True):
        assert row["title"] == known["title"]
        np.testing.assert_allclose(row["score"], known["score"], rtol=1e-5)
        np.testing.assert_allclose(row["predictions"]["like"], known["like"], rtol=1e-5)
    scored = client.post(
        "/score", json={"history": [3, 4, 5], "user": {"age": 30.0}, "items": [found[0]["item"]]}
    ).json()
    np.testing.assert_allclose(scored["items"][0]["predictions"]["like"], found[0]["predictions"]["like"], rtol=1e-5)
    mixed = client.post("/score", json={"history": [3], "items": ["3", 4]})  # numbers and texts in one list
    assert [row["item"] for row in mixed.json()["items"]] == [3, 4]
    assert client.post("/similar", json={"item_id": 3, "k": 2}).json()["items"][0]["similarity"] <= 1.0
    explained = client.post("/explain", json={"history": [3, 4], "k": 1}).json()["items"]
    assert explained[0]["reason"]


def test_rules_hold_over_http(client, run):
    """Prevents rules of a request from being dropped, cut after ranking, or mixed up in a batch of requests."""
    recommender, rules = Recommender.from_pretrained(run[0]), {"where": "genre == 'b'", "pins": {"2": 4}, "at_most": {}}
    requests = [
        {"history": [3, 4, 5], "k": 4, "rules": rules},
        {"history": [3, 4, 5], "k": 4},
        {"history": [3, 4, 5], "k": 2, "rules": {"at_most": {"genre": 1}}},
        {"history": [3, 4, 5], "k": 4, "rules": {"at_most": {"genre": 1}}},
        {"history": [3, 4, 5], "k": 3, "rules": {"explore": {"temperature": 1.0, "seed": 3}}},
        {"history": [3, 4, 5, 5], "k": 24, "rules": {"seen": {"impressions": 2}}},
    ]
    with ThreadPoolExecutor(len(requests)) as pool:
        found = list(pool.map(lambda request: client.post("/recommend", json=request).json(), requests))
    for request, response in zip(requests, found, strict=True):
        expected = recommender.recommend(request["history"], request["k"], rules=request.get("rules"))
        assert [row["item"] for row in response["items"]] == [row["item"] for row in expected]
        drawn = [row["propensity"] for row in response["items"] if row["propensity"] is not None]
        np.testing.assert_allclose(drawn, [row["propensity"] for row in expected if "propensity" in row], rtol=1e-4)
    assert {3, 4} == {3, 4, 5} & {row["item"] for row in found[5]["items"]}  # shown once each, 5 twice
    assert any("leave" in text for text in found[3]["unmet"])  # three genres cannot fill a list of four
    for rules, word in (
        ({"where": "gender == 1"}, "gender"),
        ({"at_most": {"genre": -1}}, "at_most"),
        ({"top": 1}, "top"),
    ):
        refused = client.post("/recommend", json={"history": [3], "rules": rules})
        assert refused.status_code == 422, refused.text
        assert word in refused.json()["detail"][0]["field"] + refused.json()["detail"][0]["message"]


def test_an_acknowledged_event_is_known(run, front, tmp_path):
    """Prevents an acknowledged event from being missing or out of order (Metarank 1620, Feast 5163): one sparse event,
    then a batch in reverse, and the request with `after` equals one that Python makes after `update`."""
    folder, later = run
    sparse = {"user_id": "new", "item_id": 3, "timestamp": float(later.timestamp.max() + 5)}
    with live(folder, tmp_path, front=front, watermark=0.3) as client:
        first = client.post("/events", json={"events": [sparse]}).json()
        rows = [event_of(row, f"e{row.Index}") for row in later[::-1].itertuples()]
        told = client.post("/events", json={"events": rows}).json()
        assert told["duplicates"] == 0
        assert told["sequences"] == sorted(told["sequences"])
        own = {"k": 5, "time": float(later.timestamp.max() + 20)}
        new = recommended(client, user_id="new", after=first["seq"], **own)
        # Those that came in reverse are all earlier than the sparse one: they count when that has not been counted yet.
        user = int(later.user_id.iloc[-1])
        known = recommended(client, user_id=user, after=told["seq"], **own)
        client.service.flush(told["seq"], 10.0)
        assert client.service.state.figures.late == 0
        expected = PolyRecProcessor.from_pretrained(folder)
        table = pd.concat([later.astype({"user_id": str}), pd.DataFrame([sparse])], ignore_index=True)
        expected.update(table)
        assert_same_state(client.service.state.processor, expected)
        recommender = Recommender(client.service.state.model, expected)
        assert client.service.engine.latest_of("new") == sparse["timestamp"]
        after = recommended(client, user_id=user, **own)
        assert [row["item"] for row in after] == [
            row["item"] for row in recommender.recommend(user_id=user, k=5, time=own["time"])
        ]
        assert [row["item"] for row in known] == [row["item"] for row in after]
        assert [row["item"] for row in new] == [
            row["item"] for row in recommender.recommend(user_id="new", k=5, time=own["time"])
        ]


def test_a_time_as_text_is_that_time(run, tmp_path):
    """Prevents a request at a time in ISO text from being refused, or from seeing what came after it."""
    folder, later = run
    begin = float(later.timestamp.max())
    events = [{"user_id": 3, "item_id": 4 + n, "timestamp": begin + 10 * n} for n in (1, 2)]
    with live(folder, tmp_path, watermark=60.0) as client:
        client.post("/events", json={"events": events}).raise_for_status()
        text = pd.Timestamp(begin + 15, unit="s").isoformat()
        lists = [recommended(client, user_id=3, k=5, time=when) for when in (text, begin + 15, begin + 25)]
        assert lists[0] == lists[1] != lists[2]


def test_events_that_are_sent_again_count_once(run, tmp_path):
    """Prevents a client that tries again after a lost response from counting its events twice, also in one request."""
    folder, later = run
    rows = [event_of(row, f"e{row.Index}") for row in later[:20].itertuples()]
    with live(folder, tmp_path) as client:
        first = client.post("/events", json={"events": [*rows, *rows[:3]]}).json()
        again = client.post("/events", json={"events": rows}).json()
        assert (first["duplicates"], again["duplicates"]) == (3, 20)
        assert again["sequences"] == first["sequences"][:20]
        assert client.service.flush(first["seq"], 10.0)
        expected = PolyRecProcessor.from_pretrained(folder)
        expected.update(later[:20])
        assert_same_state(client.service.state.processor, expected)


def test_a_late_event_is_seen_by_its_user(run, tmp_path):
    """Prevents an event of before the latest counted one from being refused, lost, or counted for others."""
    folder, _ = run
    with live(folder, tmp_path) as client:
        early = {"user_id": "late", "item_id": 5, "timestamp": 1e6 + 3}
        seq = client.post("/events", json={"events": [early]}).json()["seq"]
        seq = client.post("/events", json={"events": [early | {"item_id": 6, "timestamp": 1e6 + 2}]}).json()["seq"]
        before = recommended(client, user_id="late", after=seq)
        assert client.service.flush(seq, 10.0)
        assert [row["item"] for row in recommended(client, user_id="late")] == [row["item"] for row in before]
        [log] = [client.service.state.processor.stored_events.of(pa.array(["late"]))]
        assert (log.item - 2).tolist() == [6, 5]
        assert client.service.state.figures.late == 2
        assert client.get("/users/late").json() == {"user": "late", "attributes": {}, "known": True, "pending": 0}


def test_a_restart_goes_on(run, tmp_path):
    """Prevents state, hidden items and attributes from being lost when a server is stopped and started."""
    folder, later = run
    with live(folder, tmp_path) as client:
        rows = [event_of(row, f"e{row.Index}") for row in later[:30].itertuples()]
        client.post("/events", json={"events": rows})
        item = recommended(client, user_id=7, k=1)[0]["item"]
        assert client.put(f"/items/{item}", json={"hidden": True}).status_code == 200
        assert client.put("/users/7", json={"attributes": {"age": 33.0}}).status_code == 200
        fresh = {"attributes": {"title": "a new one", "genre": "drama", "tags": ["drama"], "price": 0.5}}
        assert client.put("/items/900", json=fresh).status_code == 200
        before = recommended(client, user_id=7, k=24)
    with live(folder, tmp_path) as client:
        assert client.service.state.figures.counted == 30
        after = recommended(client, user_id=7, k=24)
        assert item not in {row["item"] for row in after}
        assert 900 in {row["item"] for row in after}
        assert {row["item"] for row in before} == {row["item"] for row in after}
        assert client.get("/users/7").json()["attributes"] == {"age": 33.0}
        assert client.get("/items/900").json()["attributes"]["title"] == "a new one"


# ------------------------------------------------------------------ security
REFUSED = [
    ("/recommend", {"k": 0}, "k"),
    ("/recommend", {"k": 1001}, "k"),
    ("/recommend", {"history": [3], "user_id": 1}, "history"),
    ("/recommend", {"task": "nope"}, "task"),
    ("/recommend", {"history": "3"}, "history"),
    ("/recommend", {"history": [3], "exclude": [123456]}, "exclude"),
    ("/recommend", {"history": [{"item_id": 3, "ratng": 4}]}, "history[0]"),
    ("/recommend", {"user": {"agee": 3}}, "user"),
    ("/recommend", {"hist": [3]}, "hist"),
    ("/recommend", {"user_id": 1, "after": 10**9}, "after"),
    ("/recommend", {"user_id": 1, "time": 5}, "time"),
    ("/score", {"items": []}, "items"),
    ("/score", {"items": [3, 123456]}, "items[1]"),
    ("/search", {"query": "x"}, ""),
    ("/events", {"events": []}, "events"),
    ("/events", {"events": [{"user_id": 1}]}, "events[0].item_id"),
    ("/events", {"events": [{"user_id": 1, "item_id": 2, "rating": "high"}]}, "events[0].rating"),
    ("/events", {"events": [{"user_id": 1, "item_id": 2, "rating": True, "stars": 1}]}, "events[0].stars"),
    ("/events", {"events": [{"user_id": 1, "item_id": 2}, {"user_id": " ", "item_id": 2}]}, "events[1].user_id"),
    ("/events", {"events": [{"user_id": 1, "item_id": 2, "timestamp": 4e9}]}, "events[0].timestamp"),
    ("/events", {"events": [{"user_id": 1, "item_id": 2, "timestamp": "soon"}]}, "events[0].timestamp"),
    ("/events", {"events": [{"user_id": "\ud800", "item_id": 2}]}, "events[0].user_id"),
    ("/events", {"events": [{"user_id": 1, "item_id": 2, "surface": {"a": 1}}]}, "events[0].surface"),
    ("/events", {"events": [{"user_id": 1, "item_id": 2}] * 1001}, "events"),
]


@pytest.mark.parametrize(("path", "body", "field"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_is_malformed_is_refused_with_its_field(client, path, body, field):
    """Prevents a mistake of a client from being guessed around, or from becoming an error of the server."""
    response = client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
    assert response.status_code == 422, response.text
    names = [problem["field"] for problem in response.json()["detail"]]
    assert any(name.startswith(field) for name in names), response.text


def test_numbers_and_texts_that_json_does_not_have_are_refused(client):
    """Prevents NaN, infinities, huge numbers and broken JSON from reaching the store or failing in the response."""
    for text in (
        '{"k": NaN}',
        '{"user": {"age": 1e999}}',
        '{"user": {"age": ' + "9" * 400 + "}}",
        "{",
        '"x"',
        "[]",
        "",
    ):
        response = client.post("/recommend", content=text, headers={"content-type": "application/json"})
        assert response.status_code == 422, (text, response.text)
    deep = "[" * 100_000
    assert client.post("/events", content=deep, headers={"content-type": "application/json"}).status_code in (400, 422)
    assert client.post("/recommend", content="{}", headers={"content-type": "text/plain"}).status_code == 422


def test_large_and_slow_bodies_are_refused(run, front, tmp_path, monkeypatch):
    """Prevents a client from filling the memory, with or without saying how much it sends, or from keeping a place for
    ever by sending a byte now and then."""
    monkeypatch.setattr("polyrec.serving.connections.HEADER_SECONDS", 0.3)
    with live(run[0], tmp_path, AppOptions(body_seconds=0.3), front=front) as client:
        large = b" " * (guards.MOST_BYTES + 1)
        assert client.post("/recommend", content=large).status_code == 413
        assert client.post("/recommend", content=iter([large[:-1], b"xx"])).status_code == 413
        host, port = client.base_url.host, client.base_url.port
        for sent, told in (
            (b"POST /recommend HTTP/1.1\r\nHost: x", b""),
            (b"POST /events HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{", b"HTTP/1.1 408"),
        ):
            with socket.create_connection((host, port), timeout=5) as slow:
                slow.sendall(sent)
                response = b""
                while part := slow.recv(4096):
                    response += part
                assert response.startswith(told)
                assert bool(response) == bool(told)
        assert client.get("/ready").status_code == 200


def test_keys_have_scopes(run, front, tmp_path, capsys):
    """Prevents a request without a key, or with one for something else, from reading, writing or administrating."""
    path = tmp_path / "keys"
    reader, teller, admin = (new_key(path, scopes) for scopes in ("read", "events", "read,events,admin"))
    assert reader not in path.read_text()
    assert path.stat().st_mode & 0o077 == 0
    with live(run[0], tmp_path, AppOptions(keys=Keys.read(path)), front=front) as client:
        event = {"events": [{"user_id": 1, "item_id": 2}]}
        asked = [("POST", "/recommend", {}, "read"), ("POST", "/events", event, "events")]
        asked += [("DELETE", "/users/1", None, "admin"), ("PUT", "/items/1", {"hidden": False}, "admin")]
        asked += [("GET", "/metrics", None, "read"), ("POST", "/admin/model", {"folder": "x"}, "admin")]
        asked += [("GET", "/api/recommend/1", None, "read"), ("DELETE", "/api/user/1", None, "admin")]
        for method, url, body, scope in asked:
            for key, allowed in ((None, None), ("guess", None), (reader, "read"), (teller, "events"), (admin, scope)):
                headers = {} if key is None else {"authorization": f"Bearer {key}"}
                status = client.request(method, url, json=body, headers=headers).status_code
                expected = 401 if allowed is None else 403 if allowed != scope else None
                assert status == expected or (expected is None and status in (200, 202)), (method, url, key, status)
        assert client.get("/health").status_code == 200
        assert client.get("/metrics", headers={"x-api-key": reader}).status_code == 200
    for line in ("abc read", "0" * 64 + " root", "x"):
        path.write_text(line)
        with pytest.raises(ValueError, match="line 1: give the SHA-256"):
            Keys.read(path)


def test_pages_of_other_sites_are_refused(client):
    """Prevents a page in a browser of this machine from asking in its user's name, by another name of the machine, too."""
    for headers in ({"host": "evil.example"}, {"origin": "https://evil.example"}):
        assert client.post("/recommend", json={}, headers=headers).status_code == 403


def test_paths_lead_nowhere(client):
    """Prevents paths and headers from reaching files, other routes or the log."""
    for path in ("/../../etc/passwd", "/users/..%2f..%2fetc", "/items/%00", "/users/%ff", "/items/" + "a" * 600, "/x"):
        assert client.get(path).status_code in (200, 400, 404, 422), path
    assert client.get("/users/%2e%2e").status_code in (200, 404)
    assert client.request("TRACE", "/recommend").status_code == 405
    assert client.get("/health", headers={"x": "a" * 20_000}).status_code == 431


def test_logs_hold_no_data_of_users(run, front, tmp_path, caplog):
    """Prevents ids and events of users from lying in log files, which nobody deletes."""
    caplog.set_level("DEBUG", logger="polyrec.serving")
    with live(run[0], tmp_path, front=front) as client:
        client.post("/events", json={"events": [{"user_id": "secret-user", "item_id": 3}]})
        client.post("/recommend", json={"user_id": "secret-user", "task": "secret-task"})
        client.get("/users/secret-user")
        client.delete("/users/secret-user")
        client.service.submit([Record(Kind.EVENT, "{", user="secret-user", time=5.0)])
        time.sleep(0.3)
    assert "secret" not in caplog.text


# ------------------------------------------------------------------ load
def test_clients_that_go_away_leave_nothing_behind(run, front, tmp_path):
    """Prevents abandoned requests from filling the queue or poisoning batches (Ray 41057, LitServe 452, BentoML 3710)."""
    with live(run[0], tmp_path, AppOptions(deadline=30.0), front=front, most_waiting=32, batch=8) as client:
        host, port = client.base_url.host, client.base_url.port
        body = b'{"history":[3,4],"k":3}'
        head = b"POST /recommend HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"

        def abandoned(number):
            with socket.create_connection((host, port), timeout=5) as going:
                going.sendall(head % len(body) + body)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(abandoned, range(200)))
        handled = [-1, 0]
        while handled[-1] != handled[-2]:  # until the server has seen them all
            time.sleep(0.5)
            families = {f.name: f for f in text_string_to_metric_families(client.get("/metrics").text)}
            samples = families["polyrec_requests"].samples
            handled.append(sum(s.value for s in samples if s.labels["route"] == "/recommend"))
        with ThreadPoolExecutor(4) as pool:
            codes = list(
                pool.map(
                    lambda n: (
                        client.post(
                            "/recommend", content=body, headers={"content-type": "application/json"}
                        ).status_code
                    ),
                    range(60),
                )
            )
        assert codes == [200] * 60
        assert len(client.service.batcher) == 0


def test_one_request_does_not_spoil_others(run, front, tmp_path):
    """Prevents a mistake of one client from being the response to all that share its batch."""
    with live(run[0], tmp_path, front=front, batch=64) as client, ThreadPoolExecutor(16) as pool:
        asked = [
            {"history": [3, 4]} if n % 4 else {"history": [3], "context": {"surface": 5}, "candidates": [999]}
            for n in range(64)
        ]
        found = list(pool.map(lambda body: client.post("/recommend", json=body), asked))
        assert [r.status_code for r in found] == [200 if n % 4 else 422 for n in range(64)]


def test_metrics_are_prometheus(client):
    """Prevents a scrape from failing, and figures from carrying ids."""
    client.get("/users/somebody")
    families = {f.name: f for f in text_string_to_metric_families(client.get("/metrics").text)}
    assert {"polyrec_requests", "polyrec_events", "polyrec_ready", "polyrec_batch_size"} <= families.keys()
    routes = {sample.labels["route"] for sample in families["polyrec_requests"].samples}
    assert "/users/{user}" in routes
    assert not any("somebody" in route for route in routes)
