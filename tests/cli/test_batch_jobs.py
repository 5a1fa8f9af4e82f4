"""Commands that write files about all users and items of a run."""

import signal

import numpy as np
import pandas as pd
import pytest
from run_fixtures import trained_run

from polyrec import PolyRecForRecommendation, PolyRecProcessor
from polyrec.cli.main import main


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained_run(tmp_path_factory.mktemp("batch"))


def read(folder):
    return pd.concat(pd.read_parquet(path) for path in sorted(folder.glob("part-*")))


def test_recommend_all_stands_at_the_end_of_the_log(run, tmp_path, capsys):
    """Prevents lists that know training events alone, or that of users without their attributes."""
    assert main(["recommend-all", str(run), "-o", str(tmp_path / "recs"), "-k", "3"]) == 0
    found = read(tmp_path / "recs")
    assert "40 users" in capsys.readouterr().out
    assert len(found) == 40 * 3
    processor, model = PolyRecProcessor.from_pretrained(run), PolyRecForRecommendation.from_pretrained(run)
    processor.extend(users=str(run.parent / "users.parquet"))
    processor.resume(str(run.parent / "interactions.parquet"))
    for user, own in found.groupby("user_id"):
        alone = model.recommend(processor, user_id=user, k=3)
        assert own.item_id.tolist() == [row["item"] for row in alone]
        np.testing.assert_allclose(own.like, [row["like"] for row in alone], rtol=1e-4, atol=1e-5)


def test_some_users_of_a_longer_log(run, tmp_path):
    """Prevents later events, or the choice of users, from being ignored."""
    events = pd.read_parquet(run.parent / "interactions.parquet")
    later = pd.DataFrame(
        {"user_id": 3, "item_id": np.arange(18), "timestamp": events.timestamp.max() + 1 + np.arange(18)}
    )
    pd.concat([events, later]).to_parquet(tmp_path / "events.parquet")
    pd.DataFrame({"user_id": [3, 7, 3]}).to_parquet(tmp_path / "some.parquet")
    given = ["--events", str(tmp_path / "events.parquet"), "--users", str(tmp_path / "some.parquet")]
    assert main(["recommend-all", str(run), "-o", str(tmp_path / "recs"), "-k", "9", "--exclude-seen", *given]) == 0
    found = read(tmp_path / "recs")
    assert sorted(found.user_id.unique()) == [3, 7]
    assert set(found[found.user_id == 3].item_id).isdisjoint(range(18))
    assert set(found[found.user_id == 7].item_id) & set(range(18))


def test_mistakes_name_the_fix(run, tmp_path, capsys):
    """Prevents a traceback, or a job that begins anew in the folder of another."""
    assert main(["recommend-all", str(run), "-o", str(tmp_path / "recs"), "-k", "3"]) == 0
    assert main(["recommend-all", str(run), "-o", str(tmp_path / "recs"), "-k", "4"]) == 2
    assert "another job (arguments differ): choose another folder, or overwrite it" in capsys.readouterr().err
    assert main(["recommend-all", str(run), "-o", str(tmp_path / "recs"), "-k", "4", "--overwrite"]) == 0
    pd.DataFrame({"uid": [3]}).to_csv(tmp_path / "some.csv")
    assert main(["recommend-all", str(run), "-o", str(tmp_path / "x"), "--users", str(tmp_path / "some.csv")]) == 2
    assert "has no column 'user_id' of user ids; its columns are" in capsys.readouterr().err
    assert main(["embeddings", str(run)]) == 2
    assert "nothing to write: give --items FILE, --users FILE, or both" in capsys.readouterr().err


def test_embeddings_and_similar_items_are_files(run, tmp_path):
    """Prevents the commands from writing other tables than the functions give."""
    files = {name: str(tmp_path / f"{name}.parquet") for name in ("items", "users", "similar")}
    assert main(["embeddings", str(run), "--items", files["items"], "--users", files["users"]]) == 0
    assert main(["similar-items", str(run), "-o", files["similar"], "-k", "2"]) == 0
    items, users, similar = (pd.read_parquet(path) for path in files.values())
    assert (len(items), len(users), len(similar)) == (24, 40, 48)
    assert len(items.embedding[0]) == len(users.embedding[0]) == 9


@pytest.mark.slow
def test_a_ray_cluster_writes_the_same_files(run, tmp_path):
    """Prevents processes of a cluster from losing or doubling users, from predicting something else, and Ray from
    keeping the signals of the process that has begun it."""
    pytest.importorskip("ray")
    before = signal.getsignal(signal.SIGTERM)
    how = ["-k", "3", "--users-per-file", "15"]
    assert main(["recommend-all", str(run), "-o", str(tmp_path / "one"), *how]) == 0
    assert main(["recommend-all", str(run), "-o", str(tmp_path / "ray"), "--ray", "--workers", "2", *how]) == 0
    one, ray = ({path.name: path.read_bytes() for path in (tmp_path / n).glob("part-*")} for n in ("one", "ray"))
    assert len(one) == 3
    assert ray == one
    assert signal.getsignal(signal.SIGTERM) == before
