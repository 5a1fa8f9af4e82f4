"""Off-policy value of the ads recipe's model: had it chosen the ads of the test period, what would have been clicked?

The policy chooses among the items of the campaign by the predicted click, as the model knows it at the end of its
training set; nothing of the test period reaches it. It is evaluated on the uniformly random log of the
test period, where every item had a chance. The logging policies stand beside it: their value is the mean of their own
clicks (on policy), and for `random` also what the estimators say, which must agree.

    python scripts/recipe_policy.py runs/recipes/ads
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from polyrec import PolyRecForRecommendation, PolyRecProcessor
from polyrec.evaluation.off_policy import LoggedRows, epsilon_greedy_policy, policy_value, softmax_policy
from polyrec.inference.predictions import predictions
from polyrec.inference.scorer import TorchScorer
from polyrec.modules.encoders.item import FIRST_ITEM
from polyrec.runs.prepare import read_run
from polyrec.runs.transaction import put_file

NAME = "off_policy.json"
ESTIMATORS = ("ips", "snips", "dr", "sndr")
CLIP = 10.0  # largest weight of the clipped variants
FEW = 1000.0  # effective rows under which an interval is not to be trusted: they hold less than five clicks


def softmax(score: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Softmax of log odds in units of their spread among what may be shown, so that training does not set how bold."""
    centred = score - score.mean(1, keepdims=True, where=allowed)
    return softmax_policy(score, float(np.std(centred, where=allowed)), allowed)


POLICIES = {
    "polyrec softmax": softmax,
    "polyrec greedy 90%": lambda score, allowed: epsilon_greedy_policy(score, 0.1, allowed),
}


@torch.no_grad()
def log_odds(run: Path, contexts: pd.DataFrame, time: float) -> np.ndarray:
    """Predicted log odds of a click, float64 [contexts, catalog], at a time (seconds)."""
    processor = PolyRecProcessor.from_pretrained(run)
    model = PolyRecForRecommendation.from_pretrained(run).eval()
    catalog = np.arange(FIRST_ITEM, processor.num_items)
    with model.eval_mode() as model:
        scorer = TorchScorer(model, model.item_encoder.table())
        requests = [{"history": None, "context": row, "time": time} for row in contexts.to_dict("records")]
        scored = predictions(model, processor.open_requests(requests), [catalog] * len(requests), scorer)
    clicks = [found["click"] for found in scored]
    chance = np.clip(np.array(clicks, dtype=np.float64), 1e-9, 1 - 1e-9)
    return np.log(chance / (1 - chance))


def evaluate(run: Path, resamples: int = 2000) -> dict[str, Any]:
    """{policy: {estimator: [value, low, high], ...}} of the test period, clicks per choice."""
    recipe = read_run(run)
    log = pd.read_parquet(recipe.interactions)
    items = pd.read_parquet(str(recipe.items))
    begin = round(sum(recipe.split["fractions"][:2]) * len(log))  # as the split cuts it: the log is in order of time
    test, context = log.iloc[begin:], list(recipe.columns["context"])
    own = {name: rows.click.to_numpy(float) for name, rows in test.groupby("policy")}
    judged = test[test.policy == "random"]
    distinct = judged[context].drop_duplicates(ignore_index=True)
    odds = log_odds(run, distinct, float(test.timestamp.iloc[0]))
    number = judged[context].merge(distinct.reset_index(), on=context, how="left", validate="m:1")["index"].to_numpy()
    processor = PolyRecProcessor.from_pretrained(run)
    campaign = pd.Series(items.campaign.to_numpy(), items["item"])
    catalog = processor.items.ids.to_pylist()
    allowed = judged.campaign.to_numpy()[:, None] == campaign[catalog].to_numpy()[None]
    shown = pd.Index(catalog).get_indexer(judged["item"])
    rows, score = np.arange(len(judged)), odds[number]
    click = 1 / (1 + np.exp(-score))
    report: dict[str, Any] = {
        "rows": {name: len(values) for name, values in own.items()},
        "clicks": {name: int(values.sum()) for name, values in own.items()},
        "policies": {},
    }
    for name, values in own.items():
        ones = np.ones(len(values))
        found = policy_value(LoggedRows(values, ones, ones), "ips", n=resamples)
        report["policies"][f"{name} (its own clicks)"] = {"on_policy": [found.value, found.low, found.high]}
    policies = {"random": lambda score, allowed: allowed / allowed.sum(1, keepdims=True), **POLICIES}
    for name, policy in policies.items():
        chance = policy(score, allowed)
        logged = LoggedRows(
            judged.click, judged.propensity, chance[rows, shown], click[rows, shown], (chance * click).sum(1)
        )
        entry: dict[str, Any] = {"effective_rows": logged.effective_rows()}
        for estimator in ESTIMATORS:
            for suffix, clip in (("", np.inf), (f"_clip{CLIP:g}", CLIP)):
                found = policy_value(logged, estimator, clip, n=resamples)
                entry[estimator + suffix] = [found.value, found.low, found.high]
        report["policies"][name] = entry
    put_file(run / NAME, json.dumps(report, indent=2) + "\n")
    return report


def format_policies(report: dict[str, Any]) -> str:
    """A Markdown table: clicks per 1000 choices with 95% intervals."""
    lines = ["| policy | effective rows | estimator | clicks per 1000 choices (95% interval) |", "|---|---|---|---|"]
    for policy, entry in report["policies"].items():
        rows = entry.get("effective_rows")
        told = "" if rows is None else f"{rows:,.0f}" + " (too few)" * (rows < FEW)
        for estimator, found in entry.items():
            if estimator != "effective_rows":
                value, low, high = (1000 * x for x in found)
                lines.append(f"| {policy} | {told} | {estimator} | {value:.2f} ({low:.2f} .. {high:.2f}) |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a trained ads recipe")
    print(format_policies(evaluate(parser.parse_args().run)))


if __name__ == "__main__":
    main()
