"""What all tests share."""

import gc
import os
import sys

import pytest

# Two test processes on two cores: one thread each. Must be set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Two processes and their children read some 500 files of ours and 250 of tests: compiled once, not by each of them.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# A small training waits for the disk 180 times (0.7 s), which only those need whose machine may lose power.
os.fsync = lambda descriptor: None

# Files that load the same large libraries go to one process: to start the exporter to ONNX takes as long as an export.
TOGETHER = [
    ("tests/distributed/",),  # it forks processes
    ("tests/hub/",),  # it does, too
    ("tests/docs/test_docs.py", "tests/serving/test_export"),
    ("tests/web/",),
]

# What takes most of the time: trainings of whole runs, processes of their own, pages in browsers. The dearest come first,
# so that no test process is left alone with one of them at the end. `make quick` leaves them out.
SLOW = [
    "tests/distributed/",
    "tests/hub/",
    "tests/runs/test_distill.py",
    "tests/test_fuzz.py",
    "tests/benchmarks/",
    "tests/docs/",
    "tests/web/",
    "tests/reporting/",
    "tests/runs/",
    "tests/training/",
    "tests/cli/",
    "tests/models/polyrec/test_extension.py",
    "tests/models/test_devices.py",
    "tests/models/cross_encoder/test_cross_encoder.py",
    "tests/evaluation/test_reranked.py",
    "tests/distillation/test_stored_training.py",
    "tests/modules/encoders/test_backbone.py",
    "tests/inference/explanation/test_events.py",
    "tests/modules/heads/test_item_age.py",
    "tests/invariant/",
    "tests/recipes/",
    "tests/serving/test_export",
    "tests/tracking/",
    "tests/data/test_mixing.py",
    "tests/contract/test_couplings.py",
    "tests/contract/test_distillation.py",
    "tests/contract/test_experts.py",
    "tests/cards/",
    "tests/modules/coupling/test_from_a_log.py",
    "tests/data/test_cooccurrence.py",
    "tests/data/test_csv_files.py",
    "tests/data/test_statistics.py",
    "tests/modules/encoders/test_pair_size.py",
    "tests/evaluation/test_comparison.py",
    "tests/evaluation/test_evaluator.py",
    "tests/modules/objectives/test_training.py",
    "tests/models/test_half_precision.py",
    "tests/models/polyrec/test_modeling.py::test_reload_gives_identical_logits_here_and_in_another_process",
    "tests/inference/test_transfer.py",
]
QUICK = [  # of those folders
    "tests/cards/test_cards.py::test_a_changed_figure_is_found",
    "tests/cli/test_mistakes.py",
    "tests/hub/test_parquet.py",
    "tests/invariant/test_causality.py",
    "tests/reporting/test_report.py::test_titles_cannot_write_into_the_page",
    "tests/runs/test_swap.py",
    "tests/tracking/test_step_log.py::test_tensorboard_gets_it",
    "tests/training/test_arguments.py",
    "tests/training/test_optim.py",
    "tests/training/test_shrink.py",
    "tests/web/test_session.py",
]


def _place(test: str) -> int:
    """Where a file or a test stands in `SLOW`; its length: it is not slow."""
    if test.startswith(tuple(QUICK)):
        return len(SLOW)
    return next((place for place, start in enumerate(SLOW) if test.startswith(start)), len(SLOW))


def pytest_ignore_collect(collection_path, config):
    """Do not import slow files where they are left out, which takes as long as many tests."""
    if config.option.markexpr != "not slow" or collection_path.suffix != ".py":
        return None
    name = collection_path.relative_to(config.rootpath).as_posix()
    quick = any(test.startswith(name) for test in QUICK)
    return True if _place(name) < len(SLOW) and not quick else None


def pytest_collection_modifyitems(items):
    """Mark what is slow, and put it first."""
    places = {item: _place(item.nodeid) for item in items}
    for item, place in places.items():
        if place < len(SLOW):
            item.add_marker("slow")
    items.sort(key=places.__getitem__)  # stable: tests of one file stay together


def pytest_collection_finish():
    """Every training collects garbage; it need not look through all modules and tests (0.2 s) to find it."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)  # and what tests make is small


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config, log):
    """Like `--dist loadfile`, which puts files of few tests last; and some files go to one process, see `TOGETHER`."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            together = (starts for starts in TOGETHER if nodeid.startswith(starts))
            return next(together, (super()._split_scope(nodeid),))[0]

    config.option.loadscopereorder = False
    return Scheduling(config, log)


@pytest.fixture
def tables():
    """Fresh tables of 40 people and 24 items: attributes of every kind, ratings with gaps, ties in time."""
    from model_fixtures import synthetic_log

    return synthetic_log()


@pytest.fixture
def users_by_name(tables):
    """The same tables with people known by strings that occur nowhere else."""
    for name in ("interactions", "users"):
        tables[name]["user_id"] = [f"secret{u}" for u in tables[name]["user_id"]]
    return tables


@pytest.fixture
def recipe_file(tmp_path):
    """A recipe of two tasks over a small log, written beside its tables; returns its path."""
    import pandas as pd
    import yaml
    from model_fixtures import synthetic_log

    tables = synthetic_log(users=24)
    for name, table in tables.items():
        pd.DataFrame(table).to_parquet(tmp_path / f"{name}.parquet")
    recipe = {name: str(tmp_path / f"{name}.parquet") for name in tables} | {
        "tasks": [{"name": "next_item", "head": "retrieval"}, {"name": "rating", "head": "regression", "weight": 0.5}],
        "processor": {"max_history": 8},
        "model": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "candidate_attention_heads": 2},
        "training": {
            "num_train_epochs": 2,
            "per_device_train_batch_size": 8,
            "use_cpu": True,
            "disable_tqdm": True,
            "seed": 5,
        },
        "tune": {
            "startup_trials": 2,
            "space": {
                "model.hidden_size": [8, 16],
                "tasks.rating.weight": {"low": 0.1, "high": 10, "log": True},
            },
        },
        "output": str(tmp_path / "run"),
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture
def interrupt(monkeypatch):
    """A function that lets training be interrupted after so many steps, as Ctrl-C would."""
    from polyrec import PolyRecTrainer

    plain = PolyRecTrainer.training_step

    def arm(steps: int | None) -> list[int]:
        done: list[int] = []

        def step(self, *arguments, **keywords):
            if len(done) == steps:
                raise KeyboardInterrupt
            done.append(1)
            return plain(self, *arguments, **keywords)

        monkeypatch.setattr(PolyRecTrainer, "training_step", step)
        return done

    return arm


@pytest.fixture(scope="session")
def ranks():
    """Two processes whose forks are one rank each.

    Two, so that hashes of strings (the order of sets) differ between ranks, as they do for users.
    """
    from forks import Forks
    from launching import ENVIRONMENT  # of the folder whose tests run

    with Forks(os.environ | ENVIRONMENT) as first, Forks(os.environ | ENVIRONMENT) as second:
        yield [first, second]
