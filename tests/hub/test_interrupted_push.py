"""A push that is cut at any of its requests, and repeated, ends in the same state; nobody ever sees a half of it."""

from __future__ import annotations

import os
import signal

import pytest
from hub_server import HubServer, Refusal
from model_fixtures import fit, tiny_model

PUSH = """
from polyrec.hub.push import push_folder
push_folder({folder!r}, "ann/shop", load=False)
"""
DONE = ["initial commit", "Upload polyrec model"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two states of one run: one file of weights, then several."""
    processor, _ = fit(statistics=False)  # fewer files, so fewer requests to cut
    first, second = (tmp_path_factory.mktemp(name) for name in ("first", "second"))
    tiny_model(processor).save_pretrained(first)
    tiny_model(processor, seed=1).save_pretrained(second, max_shard_size="4KB")
    for folder in (first, second):
        processor.save_pretrained(folder)
    return first, second


def at_request(hub: HubServer, number: int, fault) -> None:
    """Do something once, at the given request from now on."""
    first, done = len(hub.log), []

    def once(n: int, method: str, path: str):
        if n - first != number or done:
            return None
        done.append(path)
        return fault() if callable(fault) else fault

    hub.fault = once


@pytest.mark.parametrize("how", ["killed", "lost", "unanswered"])
def test_a_push_cut_at_any_request_is_completed_by_the_next(hub, client, tmp_path, folders, how):
    """Prevents models without their catalog on the Hub, and repeated pushes that add commits or never end."""
    push = PUSH.format(folder=str(folders[0]))
    assert client(push)[0] == 0
    requests, complete, large = len(hub.log), hub.repos["ann/shop"].files(), dict(hub.large)
    assert hub.repos["ann/shop"].history() == DONE
    assert requests > 8
    cut = 0
    for number in range(requests):
        hub.reset()

        def kill():
            os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
            return "lost"

        at_request(hub, number, kill if how == "killed" else how)
        status, printed = client(push)
        cut += status != 0
        if status == 1:  # it says what to do, instead of a traceback of sockets alone
            assert "push again" in printed, printed
        if "ann/shop" in hub.repos:
            repo = hub.repos["ann/shop"]
            assert repo.history() in (DONE[:1], DONE), f"request {number}"
            assert repo.files() == complete or set(repo.files()) == {".gitattributes"}, f"request {number}"
        sent = set(hub.large)
        first = len(hub.log)
        assert client(push)[0] == 0, f"request {number}"
        assert hub.repos["ann/shop"].files() == complete, f"request {number}"
        assert hub.repos["ann/shop"].history() == DONE, f"request {number}"
        again = {line.split("/")[-1] for line in hub.log[first:] if line.startswith("PUT")}
        assert not again & sent, "what was uploaded is sent once more"
        assert set(hub.large) == set(large)
    # A kill always stops a push; of the others the client mends those that it may safely repeat.
    assert cut == requests if how == "killed" else 0 < cut < requests


def test_others_see_the_old_model_until_they_see_the_new_one(hub, client, tmp_path, folders):
    """Prevents new weights beside an old catalog, and shards of two trainings in one repository."""
    assert client(PUSH.format(folder=str(folders[0])))[0] == 0
    old = hub.repos["ann/shop"].branches["main"]
    assert client(PUSH.format(folder=str(folders[1])))[0] == 0
    new = hub.repos["ann/shop"].files()
    assert "model.safetensors" in old[-1].tree
    assert "model.safetensors" not in new
    assert "model.safetensors.index.json" in new
    hub.reset()
    assert client(PUSH.format(folder=str(folders[0])))[0] == 0
    first = len(hub.log)
    hub.fault = lambda n, method, path: Refusal(403, message="no") if "/commit/" in path else None
    status, printed = client(PUSH.format(folder=str(folders[1])))
    assert status == 1
    assert "may not write" in printed
    assert {p: e.content for p, e in old[-1].tree.items()} == hub.repos["ann/shop"].files()
    assert len(hub.log) > first
    hub.fault = lambda *_: None
    assert client(PUSH.format(folder=str(folders[1])))[0] == 0
    assert hub.repos["ann/shop"].files() == new


def test_files_that_are_not_ours_stay_and_ours_that_are_old_go(hub, succeed, folders):
    """Prevents a push that deletes somebody's pictures, or leaves hashes of people there that transformers pushed."""
    hub.put("ann/shop", {"photo.png": b"p", "README.md": b"# By hand\n", "statistics/old/state-000.parquet": b"o"})
    repo = hub.put("ann/shop", hub.repos["ann/shop"].files() | {"training_rows.safetensors": b"t"})
    succeed(PUSH.format(folder=str(folders[0])))
    files = repo.files()
    assert files["photo.png"] == b"p"
    assert files["README.md"] == b"# By hand\n"
    assert "training_rows.safetensors" not in files
    assert "statistics/old/state-000.parquet" not in files


def test_a_push_meets_another_one(hub, client, folders):
    """Prevents two pushes at a time from mixing their files."""
    hub.put("ann/shop", {"photo.png": b"p"})

    def other_comes_first(n, method, path):
        if "/commit/" in path:
            hub.fault = lambda *_: None
            hub.put("ann/shop", {"photo.png": b"q"})

    hub.fault = other_comes_first
    status, printed = client(PUSH.format(folder=str(folders[0])))
    assert status == 1
    assert "push again" in printed
    assert hub.repos["ann/shop"].files() == {"photo.png": b"q"}


def test_a_commit_is_proposed_to_others(hub, client, folders):
    """Prevents a proposal from changing what it proposes to change, or from failing for want of the right to write."""
    hub.put("ann/shop", {"photo.png": b"p"})
    proposal = PUSH.format(folder=str(folders[0])).replace('"ann/shop"', '"ann/shop", create_pr=True')
    status, printed = client(proposal, token="token-of-bob")
    assert status == 0, printed
    assert hub.repos["ann/shop"].files() == {"photo.png": b"p"}
    assert "model.safetensors" in hub.repos["ann/shop"].files("refs/pr/1")


def test_a_branch_is_made_for_a_revision(hub, client, folders):
    """Prevents an experiment from replacing the model that others load."""
    hub.put("ann/shop", {"photo.png": b"p"})
    status, printed = client(PUSH.format(folder=str(folders[0])).replace('"ann/shop"', '"ann/shop", revision="try"'))
    assert status == 0, printed
    assert hub.repos["ann/shop"].files() == {"photo.png": b"p"}
    assert "model.safetensors" in hub.repos["ann/shop"].files("try")
