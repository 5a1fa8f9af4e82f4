"""`pipeline("recommendation")` and `polyrec push`."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from model_fixtures import fit, synthetic_log, tiny_model

from polyrec.cli.main import main

USE = """
import json, polyrec
from transformers import pipeline
recommender = pipeline("recommendation", model="ann/shop"{more})
print("FOUND " + json.dumps(recommender({{"history": [3, 4], "user": {{"age": 30}}}}, k=3)))
why = recommender({{"history": [3, 4], "user": {{"age": 30}}}}, k=3, reasons=True)
print("FOUND " + json.dumps(recommender([{{"history": [3]}}, {{}}], k=2, rank_by="like")))
print("REASON " + why[0]["reason"], {{event["item"] for event in why[0]["events"]}} <= {{3, 4}})
"""


@pytest.fixture
def run(tmp_path):
    """A run folder with what a training leaves behind."""
    processor, _ = fit()
    folder = tmp_path / "run"
    tiny_model(processor).save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "checkpoint-1").mkdir()
    for name in ("checkpoint-1/optimizer.pt", "training_args.bin", "recipe.yaml", "predictions.parquet", ".env"):
        (folder / name).write_bytes(b"secret")
    return folder, processor


def test_the_pipeline_answers_as_the_model_does(hub, succeed, run):
    """Prevents a pipeline that loads another commit's catalog, or loses what is known of the person."""
    folder, processor = run
    succeed('from polyrec.hub.push import push_folder\npush_folder("run", "ann/shop")')
    old = hub.repos["ann/shop"].find("main").sha
    model = tiny_model(processor)
    expected = model.recommend(processor, [3, 4], k=3, user={"age": 30})
    printed = succeed(USE.format(more=""))
    lines = [line for line in printed.splitlines() if line.startswith("FOUND ")]
    told = next(line for line in printed.splitlines() if line.startswith("REASON "))
    assert "ecause" in told
    assert told.endswith("True")
    assert _same(json.loads(lines[0][6:]), expected)
    several = json.loads(lines[1][6:])
    assert [len(rows) for rows in several] == [2, 2]
    assert _same(several[1], model.recommend(processor, None, k=2, task="like"))
    tiny_model(processor, seed=1).save_pretrained(folder)
    succeed('from polyrec.hub.push import push_folder\npush_folder("run", "ann/shop")')
    again = [line for line in succeed(USE.format(more=f", revision={old!r}")).splitlines() if line.startswith("FOUND ")]
    assert again == lines


def test_the_pipeline_says_what_a_person_is(hub, fail, succeed, run):
    """Prevents a list of items from being taken for several people."""
    succeed('from polyrec.hub.push import push_folder\npush_folder("run", "ann/shop")')
    assert "did you mean 'history'" in fail(USE.format(more="").replace('"history": [3, 4]', '"histori": [3, 4]'))
    wrong = USE.format(more="").replace('{"history": [3, 4], "user": {"age": 30}}', "[3, 4]")
    assert "a user is a dict" in fail(wrong)


def _same(found, expected):
    assert len(found) == len(expected)
    for row, other in zip(found, expected, strict=True):
        for name, value in other.items():
            assert row[name] == (pytest.approx(value, rel=1e-5) if isinstance(value, float) else value), name
    return True


PUSH = "import sys\nfrom polyrec.cli.main import main\nsys.exit(main({arguments!r}))"


def push(*arguments: str) -> str:
    return PUSH.format(arguments=["push", "run", "ann/shop", *arguments])


def test_what_leaves_is_listed_and_the_rest_stays(hub, succeed, run):
    """Prevents data, optimizer states, pickles and hashes of people's rows from leaving with a model."""
    printed = succeed(push("--dry-run"))
    assert not hub.log
    assert "nothing was sent" in printed
    assert "columns: item_id (int64), title (string)" in printed
    assert "surface (2 categories)" in printed  # it has no table, but its categories leave
    for name in ("checkpoint-1/ (1 files)", "training_rows.safetensors", "recipe.yaml", ".env"):
        assert name in printed.split("stay here")[1]
    printed = succeed(push("--private", "--tag", "shop"))
    assert "pushed to" in printed
    repo = hub.repos["ann/shop"]
    assert repo.private
    assert {n for n in repo.files() if "/" not in n} == {
        ".gitattributes", "README.md", "config.json", "items.parquet", "manifest.json", "model.safetensors",
        "processor_config.json",
    }  # fmt: skip
    assert not [path for path, content in repo.files().items() if b"secret" in content]


def test_the_hub_s_refusals_are_one_line_of_the_command(hub, client, run):
    """Prevents tracebacks for people who only have the wrong token."""
    status, printed = client(push(), token="token-of-bob")
    assert status == 2
    assert "may not write to 'ann/shop'" in printed
    assert "Traceback" not in printed


def test_columns_that_reach_people_are_refused(tmp_path, capsys):
    """Prevents addresses and phone numbers of sellers or writers from being published with a catalog."""
    log = synthetic_log()
    count = len(log["items"]["item_id"])
    log["items"] |= {
        "contact": ["nobody"] * (count - 1) + ["write to jo.doe@example.org"],
        "line": ["+49 30 1234567"] + [None] * (count - 1),
        "seller_phone": [0] * count,
        "isbn": ["978-0-13-110362-7"] * count,
        "day": ["2024-05-01 12:30:00"] * count,
        "ean": ["4006381333931"] * count,
    }
    processor, _ = fit(log)
    tiny_model(processor).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert main(["push", str(tmp_path), "ann/shop"]) == 2
    said = capsys.readouterr().err
    assert "column 'contact' holds e-mail addresses, first in row 23" in said
    assert "column 'line' holds phone numbers, first in row 0" in said
    assert "column 'seller_phone' is named" in said
    for innocent in ("isbn", "day", "ean", "title"):
        assert f"'{innocent}'" not in said
    allowed = [x for name in ("contact", "line", "seller_phone") for x in ("--allow-column", name)]
    assert main(["push", str(tmp_path), "ann/shop", "--dry-run", *allowed]) == 0


def test_vocabularies_of_people_are_looked_at(tmp_path, capsys):
    """Prevents e-mail addresses that are no row of a table, but categories which an encoder has learnt."""
    log = synthetic_log()
    log["users"]["login"] = [f"p{u % 7}@example.org" for u in range(40)]
    processor, _ = fit(
        log, columns={"item_features": {"genre": "categorical"}, "user_features": {"login": "categorical"}}
    )
    tiny_model(processor).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert main(["push", str(tmp_path), "ann/shop", "--dry-run"]) == 2
    assert "user column 'login' knows e-mail addresses" in capsys.readouterr().err


def test_people_leave_only_when_asked_for_by_name(hub, succeed, run):
    """Prevents attributes of users on the Hub, and rows that stay there after they were taken back."""
    folder, processor = run
    succeed(push("--include-users"))
    assert "users.parquet" not in hub.repos["ann/shop"].files()  # the run does not hold them
    processor.save_pretrained(folder, include_users=True)
    assert "users.parquet" in succeed(push("--dry-run")).split("stay here")[1]
    printed = succeed(push("--include-users"))
    assert "rows about users leave" in printed
    assert "users.parquet: user_id, age" in printed
    rows = pq.read_table(pa.BufferReader(hub.repos["ann/shop"].files()["users.parquet"]))
    assert rows.num_rows == 40
    found = succeed(
        'from polyrec import PolyRecProcessor\nprint(len(PolyRecProcessor.from_pretrained("ann/shop").users.ids))'
    )
    assert found.split()[-1] == "40"
    succeed(push())
    assert "users.parquet" not in hub.repos["ann/shop"].files()


def test_the_command_line_reads_the_hub(hub, succeed, run):
    """Prevents a README that promises what only folders can do."""
    succeed(push())
    arguments = ["recommend", "ann/shop", "--history", "3,4", "-k", "2"]
    assert "title" in succeed(PUSH.format(arguments=arguments))


def test_a_card_keeps_what_it_says(hub, succeed, run):
    """Prevents figures of a card from being lost when the Hub's tags are added to it."""
    folder, _ = run
    card = "---\nlicense: mit\ntags:\n- films\nmodel-index:\n- name: x\n  results: []\n---\n# Films\n\n---\nText\n"
    (folder / "README.md").write_text(card)
    succeed(push("--tag", "mine"))
    pushed = hub.repos["ann/shop"].files()["README.md"].decode()
    assert pushed.endswith("---\n# Films\n\n---\nText\n")
    about = yaml.safe_load(pushed.split("---\n")[1])
    assert about["license"] == "mit"
    assert about["model-index"] == [{"name": "x", "results": []}]
    assert about["tags"] == ["films", "polyrec", "recommendation", "mine"]
    assert about["library_name"] == "polyrec"
