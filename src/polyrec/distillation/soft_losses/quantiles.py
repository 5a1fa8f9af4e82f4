"""Quantiles of a number."""

from __future__ import annotations

from polyrec.core.registry import SOFT_LOSSES
from polyrec.distillation.soft_losses.number import NumberOutput


@SOFT_LOSSES.register("quantiles")
class QuantilesOutput(NumberOutput):
    r"""K quantiles in the label's unit; losses are in units of the label's spread.

    "squared": L = sum_i w_i 1/K sum_k (s_ik - t_ik)^2. "huber" (option `delta`): squares up to a difference of delta, a
    line beyond, quantile by quantile.
    """

    losses = {name: NumberOutput.losses[name] for name in ("squared", "huber")}
