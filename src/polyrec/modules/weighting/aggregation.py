"""Weights of the tasks' Gramian: gradients that conflict at the shared representation are made to agree."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from polyrec.core.configuration_polyrec import PolyRecConfig
from polyrec.core.registry import WEIGHTINGS, nearest
from polyrec.modules.weighting._solvers import bargain, conflict_averse, min_norm
from polyrec.modules.weighting.base import DrawingWeighting, StepContext

# Method -> modules beside numpy and scipy that it is made of.
METHODS: dict[str, tuple[str, ...]] = {
    "aligned_mtl": ("torchjd",),
    "cagrad": (),
    "dualproj": ("torchjd", "qpsolvers", "quadprog"),
    "imtl_g": ("torchjd",),
    "mgda": (),
    "nash": (),
    "pcgrad": ("torchjd",),
    "upgrad": ("torchjd", "qpsolvers", "quadprog"),
}


@WEIGHTINGS.register("aggregation")
class AggregationWeighting(DrawingWeighting):
    r"""L = sum_i w_i L_i with w made of the Gramian G_ij = <grad L_i, grad L_j> at the shared representation.

    Everything these methods do to gradients of tasks is to add them up with weights that depend on G alone (Quinton and
    Rey, 2024, "Jacobian Descent For Multi-Objective Optimization"), so one backward pass of L serves all parameters;
    before it, only what lies above the shared representation is passed once per task. Methods:

    * `upgrad` (same paper): each gradient is projected on the cone of directions that harm no task; the mean of these.
    * `dualproj`: the mean gradient is projected on that cone.
    * `pcgrad` (Yu et al., 2020, "Gradient Surgery for Multi-Task Learning"): each gradient loses what conflicts with
      the OTHERS, in random order. The order is the same on all ranks and repeats itself when a run is resumed.
    * `cagrad` (Liu et al., 2021, "Conflict-Averse Gradient Descent"): near the mean, best for the task worst off;
      option `c` in [0, 1) says how far from the mean.
    * `mgda` (Sener and Koltun, 2018, "Multi-Task Learning as Multi-Objective Optimization"): the shortest gradient.
    * `nash` (Navon et al., 2022, "Multi-Task Learning as a Bargaining Game"): G w = 1 / w.
    * `imtl_g` (Liu et al., 2021, "Towards Impartial Multi-task Learning"): equal projections on all gradients.
    * `aligned_mtl` (Senushkin et al., 2023, "Independent Component Alignment"): gradients made orthogonal and equal.

    `pcgrad`, `imtl_g`, `aligned_mtl`, `upgrad`, `dualproj` are TorchJD's (pip install 'polyrec[aggregation]'); the
    others need nothing, as TorchJD's general solvers take 7 to 20 ms for them. Training alone needs the packages.

    G is divided by its trace, because solvers take small numbers for zeros and gradients of means are small. Tasks
    without a gradient (no labels, frozen) are left out and get weight 1: the shortest gradient would always be theirs.
    A weight that a formula makes negative is cut at 0, for the task's own tower would climb its loss. With gradient
    accumulation, each batch is balanced by itself. Without G (evaluation) all weights are 1.

    Options: `method`, `c` (of cagrad), `seed` (of pcgrad).

    Shapes: losses are scalars, weights [T], Gramian [T, T].

    Example:
        >>> from polyrec import PolyRecConfig
        >>> tasks = [{"name": "like", "head": "binary"}, {"name": "rating", "head": "regression"}]
        >>> config = PolyRecConfig(tasks=tasks, weighting="aggregation", weighting_options={"method": "mgda"})
        >>> weighting = AggregationWeighting(config)
        >>> weighting.weights(StepContext(gramian=torch.tensor([[4.0, 0.0], [0.0, 1.0]])))
        tensor([0.2000, 0.8000])
    """

    needs_gradients = True
    default_options: ClassVar[dict[str, Any]] = {"method": "upgrad", "c": 0.4, "seed": 0}

    def __init__(self, config: PolyRecConfig) -> None:
        super().__init__(config)
        self.method = self.options["method"]
        if self.method not in METHODS:
            raise ValueError(
                f"unknown method {self.method!r} of {self.kind!r}; {nearest(str(self.method), list(METHODS))}"
            )
        if not 0 <= self.options["c"] < 1:
            raise self.option_error("c", "it must be in [0, 1)")

    def weights(self, context: StepContext) -> Tensor:
        """The weights of this batch."""
        weight_T = torch.ones_like(self.scale)
        if context.gramian is None:
            return weight_T
        gramian_TT = context.gramian.detach().cpu().double()
        self._require_finite(gramian_TT.diagonal(), "gradient")
        self._require_finite(gramian_TT.sum(0), "inner product of gradients")
        at = (gramian_TT.diagonal() > 0).nonzero().squeeze(-1)
        if len(at) > 1:
            part_AA = gramian_TT[at][:, at]
            found_T = torch.ones_like(gramian_TT[0])
            found_T[at] = self._solve(part_AA / part_AA.trace())
            self._require_finite(found_T, "weight")
            weight_T = found_T.to(weight_T)
        return weight_T

    def _solve(self, gramian_AA: Tensor) -> Tensor:
        if self.method == "mgda":
            return torch.from_numpy(min_norm(gramian_AA.numpy()))
        if self.method == "nash":
            return torch.from_numpy(bargain(gramian_AA.numpy()))
        if self.method == "cagrad":
            return torch.from_numpy(conflict_averse(gramian_AA.numpy(), self.options["c"]))
        with torch.random.fork_rng(devices=[]):  # pcgrad takes its order from torch's own random state
            torch.default_generator.set_state(self.generator().get_state())
            found_A = torchjd_weighting(self.method)(gramian_AA).clamp(min=0)
        # The formula sums to 1. After a cut, what is left is made to do so again.
        return found_A / found_A.sum() if self.method == "imtl_g" and found_A.sum() > 0 else found_A

    def _require_finite(self, value_T: Tensor, what: str) -> None:
        broken = [name for name, ok in zip(self.task_names, value_T.isfinite().tolist(), strict=True) if not ok]
        if broken:
            raise FloatingPointError(
                f"the {what} of {', '.join(map(repr, broken))} is not finite (method {self.method!r}): look for NaN in "
                "features and labels, or lower the learning rate"
            )


def torchjd_weighting(method: str) -> Callable[[Tensor], Tensor]:
    """TorchJD's weighting of a Gramian, imported when it is first needed."""
    missing = [module for module in METHODS[method] if importlib.util.find_spec(module) is None]
    if missing:
        raise ImportError(
            f"aggregation method {method!r} needs {', '.join(missing)}: pip install 'polyrec[aggregation]', or choose "
            f"one of {', '.join(name for name, modules in METHODS.items() if not modules)}"
        )
    from torchjd import aggregation

    classes: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
        "aligned_mtl": aggregation.AlignedMTLWeighting,
        "dualproj": aggregation.DualProjWeighting,
        "imtl_g": aggregation.IMTLGWeighting,
        "pcgrad": aggregation.PCGradWeighting,
        "upgrad": aggregation.UPGradWeighting,
    }
    return classes[method]()
