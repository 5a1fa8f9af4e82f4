"""`scripts/benchmarks/balance.py`: what its tables say is what was measured."""

from __future__ import annotations

import json
from argparse import Namespace

import balance
import balance_report
import common
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from balance_grid import REFERENCE, Cell, cross_grid, full_grid
from hypothesis import given, settings
from hypothesis import strategies as st

from polyrec import PolyRecConfig
from polyrec.core.registry import EXPERTS, WEIGHTINGS
from polyrec.modules.weighting.aggregation import METHODS

FULL = full_grid(list(METHODS))


# ---------------------------------------------------------------- grid
def test_grids_hold_every_part():
    """Prevents a part that was added later, or a method of aggregation, from being left out of the tables."""
    plain = set(WEIGHTINGS.names()) - {"aggregation"}
    expected = {(e, w) for e in EXPERTS.names() for w in plain | {f"aggregation:{m}" for m in METHODS}}
    assert {(c.experts, c.weighting) for c in FULL} == expected
    cross = cross_grid(list(METHODS), ["ple+uncertainty"])
    assert {c.experts for c in cross if c.weighting == "fixed"} == {e for e, _ in expected}
    assert {c.weighting for c in cross if c.experts == "shared_bottom"} == {w for _, w in expected}
    for grid in (FULL, cross):
        assert len(set(grid)) == len(grid)
        assert grid[0] == REFERENCE


@pytest.mark.parametrize("cell", FULL, ids=lambda cell: cell.name)
def test_cell_is_the_model_it_is_named_after(cell):
    """Prevents a column of the table from being measured with another part, or with options of another part."""
    assert Cell.parse(cell.name) == cell
    tasks = [{"name": "like", "head": "binary"}]
    base = {"tasks": tasks, "expert_options": {"expansion": 0.5}, "hidden_size": 8}
    config = PolyRecConfig(**cell.model(base))
    assert (config.experts, config.weighting) == (cell.experts, cell.kind)
    assert config.weighting_options.get("method", "") == cell.weighting.partition(":")[2]
    assert config.expert_options == (base["expert_options"] if cell.experts == "shared_bottom" else {})
    assert base["expert_options"] == {"expansion": 0.5}


def test_unknown_part_is_refused():
    """Prevents a misspelt cell of balance.yaml from failing after hours."""
    with pytest.raises(ValueError, match="did you mean 'uncertainty'"):
        cross_grid([], ["ple+uncertanty"])


# ------------------------------------------------------------ step time
def test_a_machine_that_slows_down_changes_no_ratio():
    """Prevents the load of the machine from being read as the cost of a method."""
    rng = np.random.default_rng(0)
    truth = {"shared_bottom+fixed": 1.0, "ple+fixed": 1.15, "mmoe+fixed": 1.08, "shared_bottom+gradnorm": 1.4}
    rounds = []
    for drift in np.linspace(1, 3, 40):
        rounds.append({name: 0.1 * value * drift * rng.lognormal(0, 0.02) for name, value in truth.items()})
        rounds[-1]["ple+fixed"] *= 5 if rng.random() < 0.1 else 1  # somebody else had the core
    ratios, errors = balance_report.relative(rounds)
    for name, value in truth.items():
        assert abs(ratios[name] - value) < 0.03, name
        assert errors[name] < 0.02, name


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=6), st.integers(0, 5))
def test_rounds_count_alike(levels, seed):
    """Prevents a slow round from weighing more than a fast one."""
    rng = np.random.default_rng(seed)
    rounds = [{"shared_bottom+fixed": rng.random() + 1, "ple+fixed": rng.random() + 1} for _ in levels]
    slow = [{k: v * level for k, v in found.items()} for found, level in zip(rounds, levels, strict=True)]
    expected, _ = balance_report.relative(rounds)
    assert balance_report.relative(slow)[0] == pytest.approx(expected)


def test_error_of_a_median_is_what_repeating_shows():
    """Prevents a difference that is chance from being printed as certain."""
    rng = np.random.default_rng(1)
    samples = rng.normal(1, 0.1, (4000, 25))
    stated = np.mean([balance_report._median_error(values.tolist()) for values in samples])
    assert stated == pytest.approx(np.median(samples, axis=1).std(), rel=0.15)


# --------------------------------------------------------------- memory
@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 1000), min_size=1, max_size=20), st.integers(0, 10_000), st.randoms())
def test_peak_is_that_of_a_running_sum(sizes, before, random):
    """Prevents what was allocated before a step, or an unsorted trace, from changing its peak."""
    from balance_cost import transient_peak

    total, peak, held, events = before, 0, [], []
    for time, size in enumerate(sizes):
        if held and random.random() < 0.5:
            freed = held.pop()
            total -= freed
            events.append({"name": "[memory]", "ts": time, "args": {"Bytes": -freed, "Total Allocated": total}})
        held.append(size)
        total += size
        peak = max(peak, total - before)
        events.append({"name": "[memory]", "ts": time + 0.5, "args": {"Bytes": size, "Total Allocated": total}})
    random.shuffle(events)
    assert transient_peak([*events, {"name": "aten::mm", "ts": 0}]) == peak


# --------------------------------------------------------------- tables
def entry(improvement, auc, seeds=1):
    runs = [
        {"test": {"mean_improvement": improvement, "like/auc": auc}, "validation": {"mean_improvement": improvement}}
        for _ in range(seeds)
    ]
    for run in runs:
        run["validation"] |= {"like/auc": auc}
    return common.summarise(runs)


def test_tables_put_values_where_they_belong():
    """Prevents ratios of one cell from standing beside the name of another."""
    cost = {"step": {c.name: 1 + i / 100 for i, c in enumerate(FULL)}}
    lines = balance_report.grid_table(cost["step"])
    experts = [name.strip() for name in lines[0].split("|")[2:-1]]
    for line in lines[2:]:
        weighting, *shown = (part.strip() for part in line.split("|")[1:-1])
        for layer, value in zip(experts, shown, strict=True):
            assert float(value) == pytest.approx(cost["step"][f"{layer}+{weighting}"], abs=0.005)
    table = balance_report.quality_table(
        {"ple+fixed": entry(0.1, 0.7), "shared_bottom+fixed": entry(0.2, 0.8, 3)}, {"step": {"ple+fixed": 1.25}}
    )
    assert table[0] == "| | mean improvement, validation | test | like auc, test | step time | peak memory |"
    assert table[2] == "| shared_bottom+fixed | 0.2000 | 0.2000 (.0000) | 0.8000 | - | - |"
    assert table[3] == "| ple+fixed | 0.1000 | 0.1000 | 0.7000 | 1.25 | - |"


def test_targets_are_judged_by_their_worst_cell():
    """Prevents a bound on "any aggregation" from being met by the cheapest one."""
    step = {"shared_bottom+fixed": 1.0, "ple+uncertainty": 1.19, "shared_bottom+aggregation:mgda": 1.1}
    step |= {"shared_bottom+aggregation:upgrad": 1.6, "ple+aggregation:upgrad": 9.0, "shared_bottom+gradnorm": 8.0}
    lines = balance_report.targets({"step": step, "memory": step})
    assert lines[0] == "ple+uncertainty, step time: 1.19x, at most 1.2x: kept"
    assert lines[1].endswith("1.60x (shared_bottom+aggregation:upgrad), at most 1.5x: MISSED")


def test_heat_map_is_drawn_with_cells_missing(tmp_path):
    """Prevents a grid of which only a cross was run from ending without a picture."""
    pytest.importorskip("matplotlib")
    panels = {"step": {"shared_bottom+fixed": 1.0, "ple+uncertainty": 1.2}, "quality": {"shared_bottom+fixed": 0.2}}
    assert balance_report.heat_map(tmp_path / "map.png", panels)
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


# ----------------------------------------------------------- end to end
@pytest.fixture(scope="module")
def movielens(tmp_path_factory):
    """A folder with the columns of ml-100k."""
    folder, rng = tmp_path_factory.mktemp("movielens"), np.random.default_rng(0)
    rows = 600
    interactions = {
        "user_id": rng.integers(0, 30, rows),
        "item_id": rng.integers(0, 40, rows),
        "rating": rng.integers(1, 6, rows),
        "timestamp": np.sort(rng.integers(0, 10**7, rows)),
        "file_order": np.arange(rows),
    }
    items = {
        "item_id": np.arange(40),
        "title": [f"film {i}" for i in range(40)],
        "release_year": rng.integers(1950, 1999, 40).astype(float),
        "genres": [["drama", "comedy"][: 1 + i % 2] for i in range(40)],
    }
    users = {"user_id": np.arange(30), "age": rng.integers(9, 80, 30), "gender": ["F", "M"] * 15, "occupation": "none"}
    for name, table in (("interactions", interactions), ("items", items), ("users", users)):
        pd.DataFrame(table).to_parquet(folder / f"{name}.parquet")
    return folder


def tiny(config):
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "candidate_attention_heads": 1}
    return balance.changed(config, {"model": small, "training": {"num_train_epochs": 1}})


@pytest.fixture
def run(movielens, tmp_path):
    """Starts the script's parts on a small log; returns what it has written."""

    def start(rounds=2, users=None):
        args = Namespace(
            data=movielens,
            threads=1,
            seeds=1,
            rounds=rounds,
            users=users,
            output=tmp_path / "found.json",
            config=common.HERE / "balance.yaml",
            markdown=tmp_path / "found.md",
        )
        config = balance.configurations(args)
        report = common.Report(args, config | {"reference_seeds": 2})
        balance.resume(report, users)
        cells = [REFERENCE, Cell("ple", "aggregation:mgda")]
        balance.cost(args, tiny(config["cost"]), cells, report)
        balance.quality("feedback", movielens, args, tiny(config["feedback"]), cells, report)
        report.write()
        balance.show(args, report)
        return json.loads(args.output.read_text())

    return start


def test_what_is_measured_is_kept(run, tmp_path, monkeypatch):
    """Prevents an interrupted run from beginning anew, and results of two configurations from being mixed."""
    first = run()
    assert len(first["cost"]["rounds"]) == 2
    assert first["cost"]["memory"]["shared_bottom+fixed"] == 1
    assert first["cost"]["memory"]["ple+aggregation:mgda"] > 1
    assert len(first["systems"]["feedback/shared_bottom+fixed"]["seeds"]) == 2
    assert {"mean_improvement", "like/auc", "rating/rmse"} <= set(first["systems"]["feedback/ple+aggregation:mgda"])
    assert "ple+aggregation:mgda" in (tmp_path / "found.md").read_text()
    monkeypatch.setattr(balance, "train", None)  # would fail if anything were trained again
    again = run(rounds=3)
    assert again["systems"] == first["systems"]
    assert again["cost"]["rounds"][:2] == first["cost"]["rounds"]
    assert again["cost"]["peak_bytes"] == first["cost"]["peak_bytes"]  # memory is counted, not sampled
    with pytest.raises(ValueError, match="choose another --output"):
        run(users=20)


def test_fewer_people_keep_all_their_events(movielens, tmp_path):
    """Prevents a smaller log from being one of shorter histories."""
    found = balance.with_fewer_users(movielens, 12, "user_id", tmp_path)
    whole, part = (pq.read_table(f / "interactions.parquet").to_pandas() for f in (movielens, found))
    users = part["user_id"].unique()
    assert len(users) == 12
    pd.testing.assert_frame_equal(part, whole[whole["user_id"].isin(users)].reset_index(drop=True))
    assert pq.read_table(found / "items.parquet") == pq.read_table(movielens / "items.parquet")
