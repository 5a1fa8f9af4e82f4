"""Files that appear whole, and a manifest in which no changed byte passes."""

import contextlib
import errno
import hashlib
import json
import os
import stat

import pytest

from polyrec.core import files as core_files
from polyrec.core.files import readable_by_umask, replacing, write_atomically
from polyrec.core.manifest import (
    MANIFEST_NAME,
    READ_FILES,
    check_manifest,
    fits,
    read_manifest,
    refresh_manifest,
    write_manifest,
)
from polyrec.hub.files import KINDS, NEVER, USERS_FILES

CONTENT = {
    "config.json": b'{"hidden_size": 8}',
    "model.safetensors": bytes(range(256)) * 4,
    "statistics/item/state-0.parquet": b"PAR1....PAR1",
    "README.md": b"# a card",
}


@pytest.fixture
def folder(tmp_path):
    for name, content in CONTENT.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    write_manifest(tmp_path, {"recipe": "a1", "data": {"interactions": "b2"}}, CONTENT)
    return tmp_path


def test_a_manifest_holds_what_sha256sum_says(folder):
    """Digests that only polyrec can compute could not be checked by anybody else."""
    written = json.loads((folder / MANIFEST_NAME).read_text())
    assert {n: e["sha256"] for n, e in written["files"].items()} == {
        n: hashlib.sha256(c).hexdigest() for n, c in CONTENT.items()
    }
    assert {n: e["bytes"] for n, e in written["files"].items()} == {n: len(c) for n, c in CONTENT.items()}
    assert written["format_version"] == 1  # which versions before this one read
    assert check_manifest(folder).facts == {"recipe": "a1", "data": {"interactions": "b2"}}


def test_no_flipped_byte_passes_in_any_file_and_in_the_manifest(folder):
    """129 of 1,436 corruptions changed answers without a word."""
    held = read_manifest(folder)
    passed = []
    for name in [*CONTENT, MANIFEST_NAME]:
        content = (folder / name).read_bytes()
        for place in range(0, len(content), 3):
            flipped = bytes([content[place] ^ (1 << place % 8)])
            (folder / name).write_bytes(content[:place] + flipped + content[place + 1 :])
            with contextlib.suppress(ValueError):
                assert check_manifest(folder) == held
                passed.append((name, content[place : place + 1] + flipped))
        (folder / name).write_bytes(content)
    # People edit their cards; between the entries of a manifest, one blank is as good as another.
    assert {name for name, _ in passed} <= {"README.md", MANIFEST_NAME}
    assert all(not both.strip() for name, both in passed if name == MANIFEST_NAME)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "config.json is missing"),
        (lambda f: (f / "config.json").write_bytes(b"{}"), "has 2 bytes, not 18"),
        (lambda f: (f / "config.json").write_bytes(b'{"hidden_size": 9}'), "SHA-256 differs"),
        (lambda f: (f / "users.parquet").write_bytes(b""), "users.parquet was not saved with it"),
        (lambda f: (f / MANIFEST_NAME).write_text('{"format_version": 1, "files'), "cannot be trusted"),
        (lambda f: (f / MANIFEST_NAME).write_text('{"format_version": 2}'), "format 2, this version reads 1: update"),
        (lambda f: (f / MANIFEST_NAME).write_text(""), "cannot be trusted"),
        (lambda f: (f / MANIFEST_NAME).write_text("[" * 100_000), "cannot be trusted"),
        (lambda f: ((f / "config.json").rename(f / "c"), (f / "config.json").symlink_to("c")), "symbolic link"),
        (lambda f: ((f / "config.json").unlink(), os.mkfifo(f / "config.json")), "no regular file"),
    ],
)
def test_what_differs_is_named_in_one_line(folder, change, message):
    change(folder)
    with pytest.raises(ValueError, match=message) as error:
        check_manifest(folder)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)


def test_files_of_users_and_folders_without_a_manifest_load(folder):
    (folder / "notes.txt").write_text("mine")
    (folder / "recommendations.parquet").write_bytes(b"mine")
    assert check_manifest(folder)
    (folder / MANIFEST_NAME).unlink()
    assert check_manifest(folder) is None


def test_paths_that_lead_out_are_refused_when_written_and_read(folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    (outside / "secret").write_text("x")
    with pytest.raises(ValueError, match="no path inside"):
        write_manifest(folder, files=[f"../{outside.name}/secret"])
    os.symlink(outside / "secret", folder / "vocab.txt")
    with pytest.raises(ValueError, match="symbolic link"):
        write_manifest(folder)


def test_links_into_a_cache_are_followed_where_that_is_allowed(folder, tmp_path_factory):
    """The cache of the Hub keeps every file as a link to a blob."""
    cache = tmp_path_factory.mktemp("cache")
    for name in [*CONTENT, MANIFEST_NAME]:
        (cache / name).parent.mkdir(parents=True, exist_ok=True)
        (cache / name).symlink_to(folder / name)
    assert check_manifest(cache, links=True)
    (folder / "config.json").write_bytes(b'{"hidden_size": 9}')
    with pytest.raises(ValueError, match="config.json"):
        check_manifest(cache, links=True)
    assert check_manifest(cache, ["model.safetensors"], links=True)


def test_saving_one_part_anew_keeps_the_entries_of_the_other(folder):
    """`processor.save_pretrained` over a run must not leave its own new files refused."""
    (folder / "config.json").write_bytes(b"{}")
    (folder / "model.safetensors").unlink()
    (folder / "model-00001-of-00001.safetensors").write_bytes(b"sharded")
    refresh_manifest(folder, KINDS["model"])
    held = check_manifest(folder)
    assert held.facts["recipe"] == "a1"
    assert set(held.files) == {*CONTENT, "model-00001-of-00001.safetensors"} - {"model.safetensors"}


def test_every_file_that_polyrec_reads_by_name_is_known_to_the_manifest():
    """An optional file that is put beside a run would be read though nothing vouches for it."""
    # No model reads graphs, whose folder has a manifest of its own.
    patterns = [p for kind, own in KINDS.items() if kind not in ("card", "graphs") for p in own]
    patterns += [*USERS_FILES, *NEVER]
    assert [p for p in patterns if not fits(p.replace("*", "x"), READ_FILES)] == []


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "metrics.json"
    write_atomically(path, "old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("replace", "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(core_files.os, name, full)
            with pytest.raises(OSError, match="No space"):
                write_atomically(path, "new")
        assert path.read_text() == "old"
        assert os.listdir(tmp_path) == ["metrics.json"]


def test_files_have_the_mode_of_the_umask(tmp_path):
    """Runs of mode 0600 were 'not found' for every other user of the machine."""
    mask = os.umask(0o027)
    try:
        write_atomically(tmp_path / "a.json", "{}")
        with replacing(tmp_path / "b.safetensors") as draft:
            draft.touch(mode=0o600)
        (tmp_path / "c").mkdir()
        (tmp_path / "c" / "private").touch(mode=0o600)
        readable_by_umask(tmp_path / "c")
    finally:
        os.umask(mask)
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a.json", "b.safetensors", "c/private")}
    assert modes == {0o640}
