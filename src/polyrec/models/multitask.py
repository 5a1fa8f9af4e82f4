"""From vectors of pairs to logits: what models share, wherever the vectors come from.

Letters: B users, C candidates, M pairs, P width of pairs, T tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from polyrec.core.configuration_multitask import MultiTaskConfig
from polyrec.core.reduction import per_member
from polyrec.core.registry import COUPLINGS, EXPERTS, WEIGHTINGS
from polyrec.core.schema import parents_first
from polyrec.models.multitask_loss import MultiTaskLoss
from polyrec.models.pretrained import PolyRecPreTrainedModel
from polyrec.models.teaching import FurtherLosses
from polyrec.models.training_pass import PairOutput
from polyrec.modules.encoders.features import module_name
from polyrec.modules.encoders.pair import LinearSkip
from polyrec.modules.heads._trees import read_inputs, tree_inputs
from polyrec.modules.heads.base import TaskHead


class MultiTaskModel(PolyRecPreTrainedModel):
    """Base of models with tasks: heads, experts, couplings and the loss weighting, and how they meet.

    A subclass makes vectors of pairs and calls `score_pairs`. With labels, its `forward` calls ONE `MultiTaskLoss`.
    """

    # The Trainer must not scale the loss by itself: the reduction is ours, see `LossStep`.
    accepts_loss_kwargs = False
    loss_class: type[MultiTaskLoss] = MultiTaskLoss
    objectives: nn.ModuleDict
    soft_losses: FurtherLosses | None  # what a trainer has attached, see `polyrec.distillation.student`

    def build_encoders(self, config: Any) -> int:
        """Make what turns inputs into pair vectors; returns how many numbers beside them the linear skip reads."""
        return 0

    def build_tasks(self, config: MultiTaskConfig, heads: Mapping[str, TaskHead]) -> None:
        """Make what the tasks need.

        Args:
            heads: {task: head}, in the order of the configuration.
        """
        if not config.tasks:
            raise ValueError(
                'the configuration has no tasks: pass e.g. tasks=[TaskConfig("next_item", head="retrieval")]'
            )
        for name in config.task_names:
            if module_name(name) != name:
                raise ValueError(f"task name {name!r} is taken by torch in every module: choose another one")
        self.heads = nn.ModuleDict(dict(heads))
        self.pair_tasks = [name for name, head in self.heads.items() if head.reads == "pair"]
        self.state_tasks = [name for name, head in self.heads.items() if head.reads == "state"]
        self.tree_inputs = tree_inputs(config.feature_configs)
        grown = [name for name in self.pair_tasks if self.heads[name].trees is not None]
        if grown and not self.tree_inputs:
            raise ValueError(
                f"option 'trees' of task {grown[0]!r} needs running statistics or context: fit the processor with "
                "statistics=True, or set it to 0"
            )
        evidence = self.build_encoders(config)
        if self.pair_tasks:
            self.experts = EXPERTS.get(config.experts)(config, self.pair_tasks)
            self.skip = LinearSkip(config, {n: self.heads[n].own_width for n in self.pair_tasks}, evidence)
        tasks = {t.name: t for t in config.task_configs}
        self.parents = {t.name: t.parent for t in tasks.values() if t.parent is not None}
        self.couplings = nn.ModuleDict(
            {n: COUPLINGS.get(str(tasks[n].coupling))(tasks[n], tasks[p], config) for n, p in self.parents.items()}
        )
        self.scoring_order = [t.name for t in parents_first(config.task_configs) if t.name in self.pair_tasks]
        self.weighting = WEIGHTINGS.get(config.weighting)(config)
        self.register_module("soft_losses", None)  # here among the modules, if a trainer attaches any

    @property
    def gate_sources(self) -> dict[str, list[str]]:
        """What the gates of its experts weigh, {pair task: names of sources}; empty without gates."""
        return self.experts.gate_names if self.pair_tasks else {}

    def own_parts(self, task: str) -> list[nn.Module]:
        """The modules that serve one task alone: its head, its linear skip and its coupling with its parent."""
        keyed = [self.heads, self.couplings, *([self.skip.linear] if self.pair_tasks else [])]
        return [parts[task] for parts in keyed if task in parts]

    def loss_of(self, labels: Mapping[str, Tensor] | None, teacher: Mapping[str, Any]) -> MultiTaskLoss | None:
        """What `forward` calls with the labels of a batch, a view of the modules that losses read; None: no labels.

        Args:
            teacher: outputs of a teacher in the batch.
        """
        if teacher and self.soft_losses is None:
            raise ValueError(
                "the batch has outputs of a teacher, but nothing says how to distil from them: let PolyRecTrainer "
                "train the model, or call polyrec.distillation.student.attach_soft_losses(model)"
            )
        if labels is None:
            return None
        objectives = dict(self.objectives.items()) if self.training else {}
        return self.loss_class(self.heads, self.couplings, self.parents, self.weighting, self.soft_losses, objectives)

    def score_pairs(
        self,
        pair_1MP: Tensor,
        real_1M: Tensor,
        candidate_features: dict[str, Tensor],
        evidence_1ME: Tensor | None = None,
        own_1MD: Mapping[str, Tensor] | None = None,
    ) -> PairOutput:
        """Logits [1, M] of the pair tasks about M pairs, parents before their children.

        Args:
            real_1M: bool, which candidates are no padding.
            candidate_features: {name: [1, M(, K)]}.
            own_1MD: {task: what is added to its hidden vectors}.
        """
        found = PairOutput(self.experts(pair_1MP, real_1M))
        if own_1MD is not None:
            found.experts.hidden = {n: h + per_member(own_1MD[n], h) for n, h in found.experts.hidden.items()}
        skipped = self.skip(candidate_features, evidence_1ME)
        trees_1M = self._trees(candidate_features)
        for name in self.scoring_order:
            hidden, parent = found.experts.hidden[name], self.parents.get(name)
            if parent is not None:
                hidden = self.couplings[name].hidden(hidden, found.experts.hidden[parent])
            found.experts.hidden[name] = hidden  # a grandchild reads what its parent read
            own = self.heads[name](self.heads[name].adapted(hidden))
            if name in skipped:
                own = own + per_member(skipped[name], own)
            if name in trees_1M:
                own = torch.lerp(own.float(), per_member(trees_1M[name], own), self.heads[name].trees.weight)
            own = self.heads[name].finish(own, candidate_features)
            found.own_logits[name] = found.logits[name] = own
            if parent is not None:
                found.logits[name] = self.couplings[name].logits(own, found.logits[parent])
        return found

    def _trees(self, candidate_features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{pair task: the logits of its trees, [1, M]} of the tasks whose trees have a say."""
        trees = {name: self.heads[name].trees for name in self.pair_tasks}
        speaking = {name: own for name, own in trees.items() if own is not None and own.speaks}
        if not speaking:
            return {}
        known_MF = read_inputs(candidate_features, self.tree_inputs)
        return {name: (self.heads[name].logit_of_mean + own(known_MF)).unsqueeze(0) for name, own in speaking.items()}
