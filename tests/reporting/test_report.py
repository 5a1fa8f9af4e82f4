"""The page about runs needs nothing beside itself and says what the runs say."""

import copy
import re
from dataclasses import replace
from html.parser import HTMLParser

import pandas as pd
import pytest
from run_fixtures import trained_run

from polyrec.cards import unsupported_figures
from polyrec.cli.main import main
from polyrec.reporting import Example, report_page
from polyrec.reporting.choose_examples import example_users
from polyrec.tracking.run_files import RunFiles

_ALONE = {"meta", "link", "img", "br", "hr"}


class Page(HTMLParser):
    """What a browser would ask for, what is left open, and the text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.asked, self.text, self.images = [], [], "", 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.asked += [v for n, v in attributes if n in ("src", "href", "srcset", "data", "action")]
        self.images += tag == "img"
        if tag not in _ALONE:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += "" if self.open[-1:] == ["style"] else f"{data} "


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return trained_run(tmp_path_factory.mktemp("report"), "first")


@pytest.fixture(scope="module")
def run(folder):
    return RunFiles.read(folder)


def test_the_command_writes_one_page_that_asks_for_nothing(folder, run):
    """Prevents a page that is empty without network, half closed, or too large to send."""
    assert main(["report", str(folder)]) == 0
    text = (folder / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    assert all(place.startswith("data:") for place in page.asked)
    assert not re.search(r"@import|url\(|<script|https?://", text)
    assert 'name="viewport"' in text
    data = run.facts["_data"]  # what was found in the tables is shown, too
    assert f"{data['rows']:,} of {data['users']:,} users and {data['items']:,} items" in page.text
    assert all(text in page.text for text in data["warnings"])
    assert f"{data['split']['test']['rows']:,}" in page.text
    assert len(text.encode()) < 3e6
    assert page.images >= 3 * len(run.tasks)  # curves and groups of each, calibration of two, weights
    for told in ("calibration", "where it errs", "Gates", "Example 1", "Because you"):
        assert told in page.text


def test_every_figure_is_in_the_runs_files(run):
    """Prevents a page from telling figures that no run has measured."""
    assert unsupported_figures(Page(report_page([run])).text, run.sources) == []


def test_runs_stand_side_by_side(run, tmp_path):
    """Prevents figures of one run from standing under another's name, and other data from passing as the same."""
    metrics = {task: dict(systems) for task, systems in run.metrics.items()}
    metrics["rating"]["polyrec"] = {**metrics["rating"]["polyrec"], "rmse": 0.12345}
    training = {**run.training, "data": {**run.training["data"], "fingerprints": {"data": "other", "processor": "x"}}}
    other = replace(run, folder=tmp_path / "second", metrics=metrics, training=training)
    text = report_page([run, other])
    assert re.search(r"<td>second</td><td>(<b>)?0\.1235", text)
    assert re.search(rf"<td>first</td><td>{run.metrics['rating']['polyrec']['rmse']:.4f}", text)
    assert "cannot be compared" in text
    same = report_page([run, run])
    assert "cannot be compared" not in same
    assert "first (2)" in same


def test_examples_hide_the_last_event_and_the_persons_name(folder, run):
    """Prevents the answer from being shown to the model, and people's ids from getting onto a page."""
    users = example_users(folder, 3)
    events = pd.read_parquet(folder.parent / "interactions.parquet").sort_values("timestamp", kind="stable")
    histories = {tuple(f"title {i}" for i in own.item_id) for _, own in events.groupby("user_id")}
    for example in users:
        assert (*example.history, example.then) in histories
        assert len(example.rows) == 5
        assert all(row["reason"] for row in example.rows)
        assert not {row["title"] for row in example.rows} & set(example.history)
    assert "user_id" not in report_page([run], {"first": users})


def test_titles_cannot_write_into_the_page(run):
    """Prevents a title of somebody's catalog from becoming a script on the page."""
    evil = "<script>alert(1)</script>"
    row = {"rank": 1, "item": 1, "title": evil, "score": 0.5, "reason": f"Because you liked “{evil}”."}
    text = report_page([run], {"first": [Example(1, [evil], evil, [row])]})
    assert "<script" not in text


def test_names_with_dollar_signs_are_drawn(run):
    """Prevents a genre such as $\\foo{$ from being read as a formula, which ends the report."""
    metrics = copy.deepcopy(run.metrics)
    groups = metrics["rating"]["polyrec"]["slices"]["genre"]
    groups["$\\foo{$ \x1b[2J"] = groups.pop("drama")
    assert "\x1b" not in report_page([replace(run, metrics=metrics)])


def test_a_run_without_history_of_training_is_shown(run):
    """Prevents old runs, or runs without groups, from having no page."""
    metrics = {
        task: {s: {k: v for k, v in m.items() if isinstance(v, float)} for s, m in systems.items()}
        for task, systems in run.metrics.items()
    }
    assert "Task" in report_page([replace(run, training={}, metrics=metrics)])
