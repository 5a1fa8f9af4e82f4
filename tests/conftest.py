"""What all tests share."""

import os

import pytest

# Two test processes on two cores: one thread each. Must be set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture
def tables():
    """Fresh tables of 40 people and 24 items: attributes of every kind, ratings with gaps, ties in time."""
    from model_fixtures import synthetic_log

    return synthetic_log()


@pytest.fixture
def people_by_name(tables):
    """The same tables with people known by strings that occur nowhere else."""
    for name in ("interactions", "users"):
        tables[name]["user_id"] = [f"secret{u}" for u in tables[name]["user_id"]]
    return tables
