"""ESMM whose conditional is also trained directly, as if every row had been clicked."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from polyrec.core.configuration_polyrec import PolyRecConfig
from polyrec.core.reduction import known_weight, masked_sum, over_members, per_member
from polyrec.core.registry import COUPLINGS, nearest
from polyrec.core.schema import TaskConfig
from polyrec.modules.coupling.base import CoupledTask
from polyrec.modules.coupling.esmm import ESMM

_CHOICES = {"method": ["dr", "ips"], "propensity": ["logged", "predicted"]}


@COUPLINGS.register("escm2")
class ESCM2(ESMM):
    r"""Entire space counterfactual multi-task model (Wang et al., 2022).

    "ESCM2: Entire Space Counterfactual Multi-Task Model for Post-Click Conversion Rate Estimation". The output is that
    of [`ESMM`]; to its loss of the joint event comes a loss of the conditional r_hat = P(child | parent) by itself,

        L = L_CTCVR + c L_CVR.

    What the child would have been is seen only where the parent happened (o = 1, with probability o_hat, the
    propensity). With delta_i the logistic loss of r_hat_i and the child's label r_i, and sums over ALL rows:

        method "ips":  L_CVR = sum_i w_i o_i delta_i / o_hat_i
        method "dr":   L_CVR = sum_i w_i [delta_hat_i + o_i (delta_i - delta_hat_i) / o_hat_i]      (error)
                             + sum_i w_i o_i (delta_i - delta_hat_i)^2 / o_hat_i                    (imputation)

    Both are unbiased for sum_i w_i delta_i, the loss if everybody had clicked, when the propensities are right; "dr"
    also when the imputed errors delta_hat are. The propensity is a constant in the gradient.

    The paper's tower outputs the number delta_hat. It then does not depend on r_hat, and the gradient of "dr" at the
    conditional is that of "ips". Here the tower outputs the child's probability r_tilde, and delta_hat is the logistic
    loss of r_hat and r_tilde, as in doubly robust joint learning (Wang et al., 2019, "Doubly Robust Joint Learning for
    Recommendation on Data Missing Not at Random"), so the gradient is doubly robust as well. As there, the error term
    does not train the tower, and the imputation term does not train r_hat.

    Use it to rank by what happens after the click, or where `esmm` gives conditionals that are too high. "ips" is the
    simpler one; "dr" has the smaller variance where clicks are rare and the tower can learn. Targets of "dr" leave
    [0, 1] by up to 1 / `clip`, so do not choose `clip` too small for it.

    Labels: of the joint event on all rows, 0 where the parent is 0, NaN where unknown. The parent's labels are read,
    too: rows where they are unknown take part in L_CTCVR only.

    Options:
        method: "ips" or "dr".
        counterfactual_weight: c.
        clip: lower bound of the propensities, so that no row weighs more than 1 / clip. A bound far above the usual
            rate of the parent turns the weights into a constant.
        propensity: "predicted", the parent's output (mean of an ensemble); or "logged", 1 / the child's sample weight,
            for logs whose policy is known (`columns.propensity` of the processor gives such weights). They must be
            positive and finite where the child's label is known; give a propensity of 1 to rows that were not clicked.
            They weigh L_CVR alone, and the count by which the task's loss is divided.
        detach_parent: as in [`ESMM`].

    Shapes: logits [B, C] or [B, C, M] of child and parent -> the same, in float32 at least.

    Example:
        >>> from polyrec import PolyRecConfig
        >>> tasks = [{"name": "click", "head": "binary"},
        ...          {"name": "buy", "head": "binary", "parent": "click", "coupling": "escm2",
        ...           "coupling_options": {"method": "dr"}}]
        >>> config = PolyRecConfig(tasks=tasks, hidden_size=4)
        >>> click, buy = config.task_configs
        >>> ESCM2(buy, click, config).imputation
        Linear(in_features=4, out_features=1, bias=True)
    """

    default_options: ClassVar[dict[str, Any]] = {
        **ESMM.default_options,
        "method": "ips",
        "counterfactual_weight": 1.0,
        "clip": 0.05,
        "propensity": "predicted",
    }

    def __init__(self, task: TaskConfig, parent: TaskConfig, config: PolyRecConfig) -> None:
        super().__init__(task, parent, config)
        for option, known in _CHOICES.items():
            if (value := self.options[option]) not in known:
                raise ValueError(f"unknown {option} {value!r} of {self.what}; {nearest(str(value), known)}")
        if not 0 < (clip := self.options["clip"]) <= 1:
            raise ValueError(f"option 'clip' of {self.what} is {clip}; it must lie in (0, 1]")
        weight = self.options["counterfactual_weight"]
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(
                f"option 'counterfactual_weight' of {self.what} is {weight}; it must be a finite number >= 0"
            )
        self.imputation = nn.Linear(config.pair_width, 1) if self.options["method"] == "dr" else None

    def initialise(self) -> None:
        """Impute the conditional's base rate first."""
        if self.imputation is not None:
            init.constant_(self.imputation.bias, math.log(self.start / (1 - self.start)))

    def loss(self, found: CoupledTask) -> tuple[Tensor, Tensor]:
        """The loss of the joint event and that of the conditional, both sums over all rows with a known child."""
        known_BC = ~torch.isnan(found.labels)
        if self.options["propensity"] == "logged":
            inverse_BC, weight_BC = self._logged(known_BC, found.weight), None
        else:
            propensity_BC = found.head.predict(found.head.mean_over_members(found.parent_logits.detach()))
            inverse_BC, weight_BC = 1 / propensity_BC, found.weight
        # o / o_hat, the weight of the rows whose outcome was seen
        clicked_BC = known_BC & (found.parent_labels == 1)
        ratio_BC = torch.where(clicked_BC, inverse_BC.clamp(max=1 / self.options["clip"]), 0.0)
        total, _ = found.head.loss(found.logits, found.labels, weight_BC)
        if self.imputation is None:
            counterfactual = self._ips(found, ratio_BC, weight_BC)
        else:
            counterfactual = self._dr(self.imputation, found, ratio_BC, weight_BC)
        total = total + self.options["counterfactual_weight"] * counterfactual
        return total, known_weight(known_BC, found.weight).sum()

    def _ips(self, found: CoupledTask, ratio_BC: Tensor, weight_BC: Tensor | None) -> Tensor:
        weight_BC = known_weight(ratio_BC > 0, weight_BC) * ratio_BC
        return found.head.loss(self.conditional(found.own_logits), found.labels, weight_BC)[0]

    def _dr(self, tower: nn.Linear, found: CoupledTask, ratio_BC: Tensor, weight_BC: Tensor | None) -> Tensor:
        logits = self.conditional(found.own_logits)
        imputed = torch.sigmoid(tower(found.hidden).squeeze(-1).float())
        labels = per_member(torch.nan_to_num(found.labels).float(), logits)
        ratio = per_member(ratio_BC, logits)
        # The logistic loss is linear in the label, so the error term is its value at a doubly robust label, and
        # delta - delta_hat = -logit (r - r_tilde).
        fixed = imputed.detach()
        error = F.binary_cross_entropy_with_logits(logits, fixed + ratio * (labels - fixed), reduction="none")
        imputation = ratio * (logits.detach() * (labels - imputed)).square()
        seen_BC = ~(torch.isnan(found.labels) | torch.isnan(found.parent_labels))
        return masked_sum(over_members(error + imputation, found.labels), seen_BC, weight_BC)[0]

    def _logged(self, known_BC: Tensor, weight_BC: Tensor | None) -> Tensor:
        """Inverse propensities from the log; checked, because a zero or missing one would silently rule the loss."""
        if weight_BC is None:
            if known_BC.any():
                raise ValueError(
                    f"{self.what} reads its propensities from the log, but the batch has no sample_weight"
                    f"[{self.task.name!r}]: give 1 / propensity, or set option 'propensity' to 'predicted'"
                )
            return torch.ones_like(known_BC, dtype=torch.float32)
        weight_BC = weight_BC.float()
        bad_BC = known_BC & ~(torch.isfinite(weight_BC) & (weight_BC > 0))
        if bad_BC.any():
            raise ValueError(
                f"sample_weight[{self.task.name!r}] is {weight_BC[bad_BC][0].item()} in {int(bad_BC.sum())} of "
                f"{int(known_BC.sum())} rows with a known label, but {self.what} reads inverse propensities from it: "
                "they must be positive and finite (inf = a propensity of 0, nan = a missing one). Remove the labels of "
                "rows that the policy could not have produced, and give 1 to rows that were not clicked"
            )
        return weight_BC
