"""A folder is swapped as a whole, whatever operation is the last one; one writer at a time; users' files stay."""

import errno
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from kill_runs import Injector

from polyrec.core import lock, swap
from polyrec.core.lock import Locked, locked
from polyrec.core.manifest import check_manifest, write_manifest
from polyrec.core.swap import beside, publish, recover, unfinished
from polyrec.runs import transaction
from polyrec.runs.transaction import changed_run, new_run, place_of, put_file

OLD = {"config.json": "old", "metrics.json": "old", "statistics/log/statistics.json": "old", "report.json": "old"}
NEW = {"config.json": "new", "model.safetensors": "new", "metrics.json": "new"}
MINE = {"notes.txt": "mine", "logs/out.txt": "mine", ".git/HEAD": "mine"}


class Killed(BaseException):
    pass


class Raising(Injector):
    def die(self):
        raise Killed


@pytest.fixture(autouse=True)
def loadable(monkeypatch):
    """These folders hold no real model."""
    monkeypatch.setattr(transaction, "check_model", lambda folder: None)


def write(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


def read(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_text()
        for p in folder.rglob("*")
        if p.is_file() and p.name != "manifest.json"
    }


def old_run(place):
    write(place, OLD)
    write_manifest(place, {}, OLD)
    write(place, MINE)
    write(place, {"checkpoint-3/config.json": "old"})


@pytest.mark.parametrize("how", ["kill", "fail"])
@pytest.mark.parametrize("exchanges", [True, False])
def test_every_last_operation_leaves_the_old_run_or_the_new_one(tmp_path, monkeypatch, how, exchanges):
    """Killed in its last operations, 6 of 28 updates left a run that could not be loaded, 2 half of each."""
    if not exchanges:
        monkeypatch.setattr(swap, "exchange", lambda first, second: False)
    for at in itertools.count(1, 2 if exchanges and how == "kill" else 5):  # scripts/kill_runs.py tries them all
        place = tmp_path / str(at) / "run"
        old_run(place)
        injector = Raising(place.parent, at, how)
        with monkeypatch.context() as patch:
            injector.install(patch.setattr, libraries=False)
            try:
                with new_run(place) as draft:
                    write(draft, NEW)
                ended = True
            except (Killed, OSError):
                ended = False
        exists = place.exists()
        assert exists or not exchanges  # where the system can exchange folders, readers always find one
        recover(place)
        found = read(place)
        check_manifest(place)
        stripped = {n: c for n, c in found.items() if not n.startswith("checkpoint")}
        assert stripped in ({**OLD, **MINE}, {**NEW, **MINE}), (at, how)
        assert not unfinished(place)
        with new_run(place) as draft:
            write(draft, NEW)
        assert read(place) == {**NEW, **MINE}
        assert sorted(os.listdir(place.parent)) == ["run"]  # nothing is left beside it
        if ended and injector.count < at:
            assert at > 20
            return


def test_users_files_stay_and_stale_ones_of_polyrec_go(tmp_path):
    """Prevents notes from being deleted, and a card or metrics of the old model from describing the new one."""
    place = tmp_path / "run"
    write(place, {**OLD, "README.md": "written by polyrec"})
    write_manifest(place, {}, [*OLD, "README.md"])
    mine = {**MINE, "config.json.orig": "mine", "statistics/log/notes.txt": "mine"}  # the new run has no such folder
    write(place, mine)
    os.symlink("notes.txt", place / "link")
    with new_run(place) as draft:
        write(draft, NEW)
    assert read(place) == {**NEW, **mine, "link": "mine"}
    write(place, {"README.md": "edited by hand"})  # and not in the manifest
    with new_run(place) as draft:
        write(draft, NEW)
    assert (place / "README.md").read_text() == "edited by hand"


def test_a_run_may_lie_in_folders_that_are_not_there_yet(tmp_path):
    """Prevents a training from ending, after hours, with a folder that cannot be made."""
    with new_run(tmp_path / "of" / "today" / "run") as draft:
        write(draft, NEW)
    assert read(tmp_path / "of" / "today" / "run") == NEW


def test_one_file_more_keeps_what_vouches_for_the_others(tmp_path):
    """Prevents `polyrec card` from blessing a damaged model, and metrics.json from being unlisted."""
    place = tmp_path / "run"
    old_run(place)
    write(place, {"metrics.json": "OLD"})  # damage of the same size
    put_file(place / "valid.json", "{}")
    with pytest.raises(ValueError, match="metrics.json is not the file"):
        check_manifest(place)
    put_file(place / "metrics.json", "new")
    assert check_manifest(place).files.keys() >= {"valid.json", "metrics.json"}
    assert read(place).items() >= {**MINE, "checkpoint-3/config.json": "old"}.items()


def test_copies_on_a_file_system_without_links_are_not_taken_for_changes(tmp_path, monkeypatch):
    """Prevents damage from being blessed, and users' files from being listed, where files cannot be shared."""

    def refused(*_, **__):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refused)
    test_one_file_more_keeps_what_vouches_for_the_others(tmp_path)
    assert not {*MINE} & check_manifest(tmp_path / "run").files.keys()


def test_an_error_inside_leaves_the_old_run(tmp_path):
    place = tmp_path / "run"
    old_run(place)
    for context in (new_run, changed_run):
        with pytest.raises(OSError, match="full"), context(place) as draft:
            write(draft, {"x": "y"})
            raise OSError(errno.ENOSPC, "full")
    assert read(place).items() >= OLD.items()
    assert os.listdir(tmp_path) == ["run"]


def test_a_second_writer_is_refused_and_a_dead_one_holds_nothing(tmp_path):
    """Two trainings into one folder both ended with success, and one was lost."""
    place = tmp_path / "run"
    code = (
        "import sys, time, pathlib; from polyrec.core.lock import locked\n"
        f"with locked(pathlib.Path({str(place)!r})):\n    print('held', flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    # The name "polyrec" spares the child the import of torch.
    command = [sys.executable, "-c", f"import sys; sys.argv = ['polyrec']\n{code}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(Locked, match=f"being written by process {other.pid} since 2"), new_run(place):
            pass
        other.kill()
        other.wait()
    with locked(place), pytest.raises(Locked, match=f"process {os.getpid()}"), locked(place):
        pass
    with new_run(place) as draft:
        write(draft, NEW)
    assert os.listdir(tmp_path) == ["run"]


def test_a_file_system_without_locks_is_no_other_writer(tmp_path, monkeypatch):
    """Prevents waiting for ever for somebody who is not there."""

    def without(*unused):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "lockf", without)
    with pytest.raises(OSError, match="No locks available"), locked(tmp_path / "run"):
        pass


def test_readers_are_not_blocked_by_a_writer(tmp_path):
    place = tmp_path / "run"
    old_run(place)
    with new_run(place) as draft:
        write(draft, NEW)
        assert read(recover(place)).items() >= OLD.items()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: (f / "x").write_text(""), "is a file"),
        (lambda f: os.chdir((f / "x").mkdir() or f / "x"), "is the current folder"),
        (lambda f: (f / "x").symlink_to("/proc"), "is a mount point"),
    ],
)
def test_what_cannot_be_replaced_is_refused_before_any_work(tmp_path, monkeypatch, make, message):
    monkeypatch.chdir(tmp_path)
    make(tmp_path)
    with pytest.raises(ValueError, match=message):
        place_of(tmp_path / "x")


def test_a_link_to_a_run_stays_a_link(tmp_path):
    old_run(tmp_path / "real")
    (tmp_path / "latest").symlink_to("real")
    with new_run(tmp_path / "latest") as draft:
        write(draft, NEW)
    assert (tmp_path / "latest").is_symlink()
    assert read(tmp_path / "real").items() >= NEW.items()


def test_an_interrupted_swap_is_finished_by_who_reads(tmp_path, monkeypatch):
    """Prevents a complete new run from lying beside its place for ever."""
    place = tmp_path / "run"
    old_run(place)
    draft = beside(place, "new")
    write(draft, NEW)
    write_manifest(draft, {}, NEW)
    with monkeypatch.context() as patch:
        patch.setattr(swap, "finish", lambda place: None)
        publish(draft, place)
    assert json.loads(json.dumps(read(place)))["config.json"] == "old"
    assert read(recover(str(place)))["config.json"] == "new"
    assert recover(Path("user/name")) == Path("user/name")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="renameat2 is of Linux")
def test_folders_are_exchanged_at_once(tmp_path):
    """Prevents a wrong flag, for which the slower way, without a run for a moment, would step in unnoticed."""
    assert swap._EXCHANGE == 1 << 1  # RENAME_EXCHANGE of <linux/fs.h>
    write(tmp_path, {"a/name": "a", "b/name": "b"})
    if not swap.exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("not on this file system")
    assert read(tmp_path) == {"a/name": "b", "b/name": "a"}
