"""Several levels of task-specific and shared experts."""

from __future__ import annotations

from typing import Any

from polyrec.core.registry import EXPERTS
from polyrec.modules.experts.cgc import CGC


@EXPERTS.register("ple")
class PLE(CGC):
    r"""Progressive layered extraction: levels of `cgc` between which shared knowledge has a gate of its own.

    From h_t = h_s = x on, each level adds, where f_e reads what its owner (t or s) has extracted so far,

        h = h_t + sum_e g_te f_e(norm(h_t or h_s))    over task t's own and the shared experts,
        h = h_s + sum_e g_se f_e(norm(h_t or h_s))    over all experts of all tasks (not at the last level).

    Tang et al. (2020), "Progressive Layered Extraction (PLE): A Novel Multi-Task Learning (MTL) Model for Personalized
    Recommendations". The shared experts of a level thus read what the tasks' own experts found below, which tasks never
    read from each other directly. With `uncertainty` weighting it was level with shared_bottom on KuaiRand impressions
    (one seed; four tasks that hardly compete).

    Options: `num_layers` (levels), `task_experts` (of each task and level), `shared_experts` (of each level),
    `expansion` (inner width of an expert over D; by default two levels are together as wide as the one of `cgc`),
    `load_balancing` (coefficient of the penalty on gates that leave some of their experts out, summed over levels).

    Shapes: [B, C, D] -> {task: [B, C, D]}, gates of the last level {task: [B, C, task_experts + shared_experts]}.

    Example:
        >>> import torch
        >>> from polyrec import PolyRecConfig
        >>> config = PolyRecConfig(tasks=[{"name": "like", "head": "binary"}], hidden_size=4, experts="ple")
        >>> layer = PLE(config, ["like"])
        >>> layer(torch.zeros(2, 3, 4)).hidden["like"].shape
        torch.Size([2, 3, 4])
        >>> [level.shared_gate is not None for level in layer.levels]
        [True, False]
    """

    default_options: dict[str, Any] = CGC.default_options | {"num_layers": 2, "expansion": 0.25}
