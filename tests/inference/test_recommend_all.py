"""Every user's list in files: the same as one by one, and a job that was stopped loses and doubles nothing."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from model_fixtures import fit, synthetic_log, tiny_model

from polyrec import Recommender
from polyrec.inference import recommender as module
from polyrec.inference.part_files import JOB_FILE, PartFiles


@pytest.fixture(scope="module")
def recommender():
    processor, _ = fit()
    processor.resume(synthetic_log()["interactions"])
    return Recommender(tiny_model(processor), processor, batch_size=3)


@pytest.fixture(scope="module")
def users():
    return np.unique(synthetic_log()["interactions"]["user_id"]).tolist()


def read(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("part-*"))}


def test_the_files_hold_what_each_user_would_get(recommender, users, tmp_path):
    """Prevents a user from being left out, listed twice, or given another user's list."""
    folder = recommender.recommend_all(users, tmp_path / "recs", k=4, users_per_file=15, progress=False)
    assert len(read(folder)) == -(-len(users) // 15)
    found = pd.concat(pd.read_parquet(path) for path in folder.glob("part-*"))
    assert sorted(found.user_id.unique()) == sorted(users)
    for user, own in found.groupby("user_id"):
        alone = recommender.recommend(user_id=user, k=4)
        assert own["rank"].tolist() == [row["rank"] for row in alone]
        assert own["item_id"].tolist() == [row["item"] for row in alone]
        for name in ("score", "like", "rating"):
            np.testing.assert_allclose(own[name], [row[name] for row in alone], rtol=1e-4, atol=1e-5)


def test_a_job_that_was_stopped_goes_on(recommender, users, tmp_path, monkeypatch):
    """Prevents a job from beginning anew after a kill, or from keeping half a file."""
    whole = read(recommender.recommend_all(users, tmp_path / "whole", k=4, users_per_file=15, progress=False))
    write, written = PartFiles.write, []

    def stop_at_second(self, part, table):
        if len(written) == 1:
            (self.folder / f".part-{part:05d}.parquet.half").write_bytes(b"PAR1")
            raise KeyboardInterrupt
        written.append(part)
        write(self, part, table)

    monkeypatch.setattr(PartFiles, "write", stop_at_second)
    with pytest.raises(KeyboardInterrupt):
        recommender.recommend_all(users, tmp_path / "stopped", k=4, users_per_file=15, progress=False)
    monkeypatch.setattr(PartFiles, "write", lambda self, part, table: (written.append(part), write(self, part, table)))
    folder = recommender.recommend_all(users, tmp_path / "stopped", k=4, users_per_file=15, progress=False)
    assert read(folder) == whole
    assert sorted(written) == list(range(len(whole)))  # none was made twice
    calls = []
    monkeypatch.setattr(Recommender, "rank", lambda *given, **options: calls.append(given))
    recommender.recommend_all(users, tmp_path / "stopped", k=4, users_per_file=15, progress=False)
    assert not calls


def test_the_files_of_another_job_are_never_mixed_in(recommender, users, tmp_path):
    """Prevents lists of two models, of two lengths or of other users from lying in one folder."""
    folder = recommender.recommend_all(users, tmp_path / "recs", k=4, users_per_file=15, progress=False)
    before = read(folder)
    with pytest.raises(ValueError, match=r"another job \(arguments differ\): choose another folder, or overwrite it"):
        recommender.recommend_all(users, folder, k=5, users_per_file=15, progress=False)
    with pytest.raises(ValueError, match=r"another job \(parts, users differ\)"):
        recommender.recommend_all(users[:2], folder, k=4, users_per_file=15, progress=False)
    other = tiny_model(recommender.processor)
    next(other.heads["like"].parameters()).data += 0.1
    with pytest.raises(ValueError, match=r"another job \(model differ\)"):
        Recommender(other, recommender.processor).recommend_all(users, folder, k=4, users_per_file=15, progress=False)
    assert read(folder) == before
    recommender.recommend_all(users[:2], folder, k=4, users_per_file=15, overwrite=True, progress=False)
    assert list(read(folder)) == ["part-00000.parquet"]
    (folder / JOB_FILE).unlink()
    with pytest.raises(ValueError, match=r"part-00000.parquet is there, but no job.json says what of"):
        recommender.recommend_all(users[:2], folder, k=4, users_per_file=15, progress=False)


def test_processes_share_the_work(recommender, users, tmp_path, monkeypatch):
    """Prevents processes of one launch from writing a user twice, or leaving one out."""
    whole = read(recommender.recommend_all(users, tmp_path / "one", k=4, users_per_file=15, progress=False))
    for rank in (0, 1):
        state = SimpleNamespace(process_index=rank, num_processes=2, is_main_process=rank == 0)
        monkeypatch.setattr(module, "PartialState", lambda state=state: state)
        folder = recommender.recommend_all(users, tmp_path / "two", k=4, users_per_file=15, progress=False)
        assert len(read(folder)) == [-(-len(whole) // 2), len(whole)][rank]
    assert read(folder) == whole
