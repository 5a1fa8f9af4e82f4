"""What the Hub answers when it does not simply send the files."""

from __future__ import annotations

import pytest
from hub_server import Refusal
from model_fixtures import fit, tiny_model

LOAD = """
from polyrec import PolyRecForRecommendation, PolyRecProcessor
model = PolyRecForRecommendation.from_pretrained("ann/shop"{more})
processor = PolyRecProcessor.from_pretrained("ann/shop"{more})
print(sum(p.double().sum().item() for p in model.parameters()))
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """{name: content} of two trainings."""
    processor, _ = fit(statistics=False)
    found = []
    for seed in (0, 1):
        folder = tmp_path_factory.mktemp("saved")
        tiny_model(processor, seed=seed).save_pretrained(folder)
        processor.save_pretrained(folder)
        found.append({p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()})
    return found


def load(**options) -> str:
    return LOAD.format(more="".join(f", {n}={v!r}" for n, v in options.items()))


def test_revisions_are_kept_apart(hub, succeed, files):
    """Prevents a pinned revision that gives the newest weights, also from the cache and without connection."""
    old = hub.put("ann/shop", files[0]).find("main").sha
    first = succeed(load())
    hub.put("ann/shop", files[1])
    second = succeed(load())
    assert first != second
    assert succeed(load(revision=old)) == first
    assert succeed(load(revision=old), offline=True) == first
    assert succeed(load(), offline=True) == second


def test_without_connection_the_cache_answers_or_says_what_is_missing(hub, succeed, fail, files):
    """Prevents a traceback of sockets where a folder of the cache is all that is needed."""
    hub.put("ann/shop", files[0])
    printed = fail(load(), offline=True)
    assert "HF_HUB_OFFLINE" in printed
    online = succeed(load())
    requests = len(hub.log)
    assert succeed(load(), offline=True) == online
    assert succeed(load(local_files_only=True)) == online
    assert len(hub.log) == requests


@pytest.mark.parametrize(
    ("status", "code", "fix"),
    [(401, "", "hf auth login"), (403, "GatedRepo", "accept its conditions"), (404, "RepoNotFound", "spelling")],
)
def test_refusals_say_what_mends_them(hub, fail, files, status, code, fix):
    """Prevents people who stand before a gate from searching in their own code."""
    hub.put("ann/shop", files[0])
    hub.fault = lambda number, method, path: Refusal(status, code, "no")
    assert fix in fail(load())


def test_gated_and_private_repositories(hub, succeed, fail, files):
    """Prevents loading of what others may not see, and tokens that are not sent where they are needed."""
    hub.put("ann/shop", files[0], gated=True)
    assert "is gated: accept its conditions" in fail(load(), token="token-of-bob")
    hub.reset()
    hub.put("ann/shop", files[0], private=True)
    assert "There is no 'ann/shop', or it is private" in fail(load(), token="token-of-bob")
    assert succeed(load()) == succeed(load(token="token-of-ann"), token="token-of-bob", home="another")


def test_missing_revisions_and_models(hub, fail, files):
    """Prevents errors that name a URL instead of the mistake."""
    hub.put("ann/shop", files[0])
    assert "has no revision 'v9'" in fail(load(revision="v9"))
    hub.put("ann/other", {"weights.bin": b"x"})
    assert "not a polyrec model" in fail(load().replace("ann/shop", "ann/other"))


def test_a_renamed_model_is_found_and_the_new_name_told(hub, succeed, files):
    """Prevents models from vanishing when their owner renames them."""
    hub.put("ann/store", files[0])
    hub.renamed["ann/shop"] = "ann/store"
    assert "use the new name" in succeed(load())


def test_downloads_that_break_go_on_where_they_stopped(hub, succeed, files):
    """Prevents truncated weights after a lost connection."""
    hub.put("ann/shop", files[0])
    broken: list[str] = []

    def half(number, method, path):
        if method == "GET" and path.startswith("/cdn/") and len(broken) < 1:
            broken.append(path)
            return "half"

    hub.fault = half
    found = succeed(load())
    assert broken
    hub.fault = lambda *_: None
    assert found.splitlines()[-1] == succeed(load(), home="another").splitlines()[-1]


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_hub_is_asked_again(hub, succeed, files, tmp_path, status):
    """Prevents pushes that give up when the Hub asks to wait a second."""
    for name, content in files[0].items():
        (tmp_path / "saved" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "saved" / name).write_bytes(content)
    busy: list[str] = []

    def once(number, method, path):
        if "preupload" in path and not busy:
            busy.append(path)
            return Refusal(status, message="wait", Retry_After="0")

    hub.fault = once
    succeed('from polyrec.hub.push import push_folder\npush_folder("saved", "ann/shop", private=True)')
    assert busy
    assert hub.repos["ann/shop"].private
    assert "Upload polyrec model" in hub.repos["ann/shop"].history()
