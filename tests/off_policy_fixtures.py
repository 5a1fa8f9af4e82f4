"""A small log of choices, and what `obp` says of a policy on it; so that its figures are checked without `obp`."""

import numpy as np

from polyrec.evaluation.off_policy import LoggedRows

ROWS, ITEMS = 60, 5
# obp 0.4.1 on `small_log`, as tests/evaluation/test_off_policy_obp.py asks it wherever it is installed.
OBP_FIGURES = {
    "ips": 0.2699467039780339,
    "snips": 0.38908223860739166,
    "dm": 0.2229353511826338,
    "dr": 0.41489971001875414,
    "sndr": 0.4996193090459163,
}


def small_log() -> dict[str, np.ndarray]:
    """Without chance: reward, action and propensity [R], a policy's chances and a model of the reward [R, A]."""
    row, item = np.arange(ROWS)[:, None], np.arange(ITEMS)
    weight = 1.0 + row * (item + 2) % 7
    return {
        "reward": (np.arange(ROWS) * 7 % 5 < 2).astype(float),
        "action": np.arange(ROWS) * 3 % ITEMS,
        "propensity": 0.1 + 0.15 * (np.arange(ROWS) * 11 % 6),
        "chance": weight / weight.sum(axis=1, keepdims=True),
        "model": (row + 3 * item) % 10 / 20,
    }


def asked_by_obp(log: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A log as arguments of obp's `estimate_policy_value`."""
    return {
        "reward": log["reward"],
        "action": log["action"],
        "pscore": log["propensity"],
        "action_dist": log["chance"][:, :, None],
        "estimated_rewards_by_reg_model": log["model"][:, :, None],
        "position": np.zeros(len(log["reward"]), dtype=int),
    }


def as_logged_rows(log: dict[str, np.ndarray]) -> LoggedRows:
    """The same log as polyrec takes it."""
    rows, chance, model = np.arange(len(log["reward"])), log["chance"], log["model"]
    shown = rows, log["action"]
    return LoggedRows(log["reward"], log["propensity"], chance[shown], model[shown], (chance * model).sum(1))
