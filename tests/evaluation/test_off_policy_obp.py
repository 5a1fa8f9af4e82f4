"""Off-policy estimates against `obp` itself on the Open Bandit Dataset that comes with it; skipped without `obp`.

`obp` (0.4.1, the latest that comes as a wheel) is not a dependency: it wants old packages. Run this with its unpacked
wheel on PYTHONPATH:

    pip download --no-deps --only-binary=:all: -d wheel obp==0.4.1 && unzip -q wheel/obp-*.whl -d wheel
    PYTHONPATH=wheel python -m pytest tests/evaluation/test_off_policy_obp.py
"""

import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from polyrec.evaluation.off_policy import LoggedRows, epsilon_greedy_policy, policy_value, softmax_policy

FOUND = importlib.util.find_spec("obp")
pytestmark = pytest.mark.skipif(FOUND is None, reason="obp is not installed")


@pytest.fixture(scope="module")
def estimators():
    """`obp.ope.estimators`, without the rest of obp, whose imports fail on new packages."""
    root = Path(next(iter(FOUND.submodule_search_locations)))
    for name, folder in (("obp", root), ("obp.ope", root / "ope")):
        package = types.ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package
    yield importlib.import_module("obp.ope.estimators")
    for name in [name for name in sys.modules if name == "obp" or name.startswith("obp.")]:
        del sys.modules[name]


@pytest.fixture(scope="module", params=["random", "bts"])
def log(request):
    """Choices of one logging policy in the campaign "men": 34 items, 69 or 46 clicks in 10,000 choices."""
    root = Path(next(iter(FOUND.submodule_search_locations)))
    return pd.read_csv(root / "dataset" / "obd" / request.param / "men" / "men.csv", index_col=0)


@pytest.mark.parametrize("policy", ["softmax", "greedy"])
def test_same_values(estimators, log, policy):
    """Another meaning of normalisation or of the model's part would shift all policies alike, unseen."""
    rng = np.random.default_rng(0)
    action, reward, propensity = (log[name].to_numpy() for name in ("item_id", "click", "propensity_score"))
    rows, items = np.arange(len(log)), int(action.max()) + 1
    score = rng.normal(size=(len(log), items))
    chance = softmax_policy(score, 0.5) if policy == "softmax" else epsilon_greedy_policy(score, 0.2)
    model = rng.uniform(0, 0.02, size=(len(log), items))
    logged = LoggedRows(reward, propensity, chance[rows, action], model[rows, action], (chance * model).sum(1))
    given = {
        "reward": reward,
        "action": action,
        "pscore": propensity,
        "action_dist": chance[:, :, None],
        "estimated_rewards_by_reg_model": model[:, :, None],
        "position": np.zeros(len(log), dtype=int),
    }
    theirs = {
        "ips": estimators.InverseProbabilityWeighting(),
        "snips": estimators.SelfNormalizedInverseProbabilityWeighting(),
        "dm": estimators.DirectMethod(),
        "dr": estimators.DoublyRobust(),
        "sndr": estimators.SelfNormalizedDoublyRobust(),
    }
    for name, estimator in theirs.items():
        expected = estimator.estimate_policy_value(**given)
        assert policy_value(logged, name, n=1).value == pytest.approx(expected, abs=1e-9), name
