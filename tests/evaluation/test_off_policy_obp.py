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
from off_policy_fixtures import OBP_FIGURES, as_logged_rows, asked_by_obp, small_log

from polyrec.evaluation.off_policy import epsilon_greedy_policy, policy_value, softmax_policy

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
    items = int(action.max()) + 1
    score = rng.normal(size=(len(log), items))
    chance = softmax_policy(score, 0.5) if policy == "softmax" else epsilon_greedy_policy(score, 0.2)
    model = rng.uniform(0, 0.02, size=(len(log), items))
    drawn = {"reward": reward, "action": action, "propensity": propensity, "chance": chance, "model": model}
    for name, estimator in theirs(estimators).items():
        expected = estimator.estimate_policy_value(**asked_by_obp(drawn))
        assert policy_value(as_logged_rows(drawn), name, n=1).value == pytest.approx(expected, abs=1e-9), name


def test_recorded_figures(estimators):
    """Figures that stand in for obp elsewhere and were not obp's would check nothing."""
    asked = asked_by_obp(small_log())
    found = {name: estimator.estimate_policy_value(**asked) for name, estimator in theirs(estimators).items()}
    assert found == pytest.approx(OBP_FIGURES, abs=1e-12)


def theirs(estimators):
    return {
        "ips": estimators.InverseProbabilityWeighting(),
        "snips": estimators.SelfNormalizedInverseProbabilityWeighting(),
        "dm": estimators.DirectMethod(),
        "dr": estimators.DoublyRobust(),
        "sndr": estimators.SelfNormalizedDoublyRobust(),
    }
