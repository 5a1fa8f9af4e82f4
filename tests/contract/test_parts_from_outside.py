"""Parts that are registered from outside of the package, one small class each, in a model that is used in full."""

from __future__ import annotations

import pytest
import torch
from model_fixtures import arguments, fit, model_inputs, synthetic_log, tiny_model
from torch import nn
from transformers import initialization as init

from polyrec import PolyRecForRecommendation, PolyRecProcessor, PolyRecTrainer
from polyrec.core import registry
from polyrec.core.linear_loss import GroupBias
from polyrec.core.reduction import masked_sum, over_members, per_member
from polyrec.data.collator import PolyRecCollator
from polyrec.distillation.choices import SoftLoss
from polyrec.distillation.live import LiveTeacher
from polyrec.distillation.losses import squared_error
from polyrec.distillation.soft_losses.base import KindOfOutput
from polyrec.modules.experts.base import ExpertLayer, ExpertOutput
from polyrec.modules.heads.base import TaskHead
from polyrec.modules.heads.terms.base import RetrievalTerm
from polyrec.modules.objectives.base import Objective
from polyrec.modules.weighting.base import LossWeighting

REGISTRIES = ("SOFT_LOSSES", "HEADS", "EXPERTS", "WEIGHTINGS", "RETRIEVAL_TERMS", "OBJECTIVES")
ALONE = {"neighbours": 0, "linear": 0, "transitions": 0, "trending": ()}  # no other term
TASKS = [
    {"name": "next_item", "head": "retrieval", "options": {"parity": 0.5, **ALONE}},
    {"name": "rating", "head": "absolute"},
]


class AbsoluteHead(TaskHead):
    """A number by its absolute error."""

    reads = "pair"
    output_kind = "plain"
    metrics = ("mae",)

    def __init__(self, task, config):
        super().__init__(task, config)
        self.output = nn.Linear(config.pair_width, 1)

    def forward(self, hidden):
        return self.output(hidden).squeeze(-1)

    def loss(self, logits, labels, weight=None):
        error = (logits.float() - per_member(torch.nan_to_num(labels).float(), logits)).abs()
        return masked_sum(over_members(error, labels), ~torch.isnan(labels), weight)

    def predict(self, logits):
        return logits.float()

    def canonical_logits(self, logits):
        return logits.float()


class PlainOutput(KindOfOutput):
    """A number, taught by squares."""

    losses = {"squares": SoftLoss()}

    @staticmethod
    def loss(head, logits, teacher, plan, weight, labels):
        return squared_error(logits, teacher, weight)


class DoubledExperts(ExpertLayer):
    """A shared layer, twice as large for each task."""

    def __init__(self, config, task_names):
        super().__init__(config, task_names)
        self.layer = nn.Linear(config.pair_width, config.pair_width)

    def forward(self, pair_BCD, real_BC=None):
        return ExpertOutput({name: 2 * self.layer(pair_BCD) for name in self.task_names})


class HalvedWeighting(LossWeighting):
    """Half of each loss."""

    def weights(self, context):
        return torch.full((len(self.task_names),), 0.5)


class ParityTerm(RetrievalTerm):
    """Even items are preferred, or odd ones."""

    option = "parity"
    default_options = {"parity": 0.0}
    size = 2

    def __init__(self, start):
        super().__init__()
        self.start, self.weight = start, nn.Parameter(torch.zeros(2))

    @classmethod
    def build(cls, head, config):
        return cls(head.options["parity"]) if head.options["parity"] else None

    def initialise(self):
        init.copy_(self.weight, torch.tensor([self.start, -self.start]))

    def logits(self, state):
        return self.weight.expand(*state.shape[:-1], 2)

    def biases(self, context, ids):
        return GroupBias((ids % 2).expand(len(context.times), -1))

    def of_items(self, of_groups, context, ids):
        return of_groups.gather(-1, ids % 2)


class SmallStates(Objective):
    """The squares of the states."""

    def count(self, item_encoder, item_ids):
        return (item_ids > 0).sum().float()

    def forward(self, reading):
        return reading.states_BLD[:, 1:][reading.item_ids > 0].square().mean(-1).sum()


@pytest.fixture(scope="module")
def parts():
    """Registered here, and in no other test."""
    kinds = [PlainOutput, AbsoluteHead, DoubledExperts, HalvedWeighting, ParityTerm, SmallStates]
    names = ["plain", "absolute", "doubled", "halved", "parity", "small_states"]
    held = {name: dict(getattr(registry, name)._classes) for name in REGISTRIES}
    for place, name, kind in zip(REGISTRIES, names, kinds, strict=True):
        getattr(registry, place).register(name)(kind)
    yield
    for place, classes in held.items():
        getattr(registry, place)._classes = classes


def test_parts_from_outside_train_distil_save_load_and_recommend(parts, tmp_path):
    """Prevents a place in the package that knows the parts it came with by name."""
    log = synthetic_log(users=16)
    processor, splits = fit(log, TASKS)
    options = {"experts": "doubled", "weighting": "halved", "objectives": {"small_states": {"weight": 0.01}}}
    plan = {"tasks": {"next_item": {"alpha": 0.5}, "rating": {"alpha": 0.5}}}
    teacher = LiveTeacher(tiny_model(processor, 1, hidden_size=16, **options), processor)
    model = tiny_model(processor, 2, distillation=plan, **options)
    settings = arguments(tmp_path / "training", learning_rate=0.01, num_train_epochs=2, logging_steps=1)
    trainer = PolyRecTrainer(model, settings, splits.train, splits.valid, processing_class=processor, teacher=teacher)
    trainer.train()

    first = next(row for row in trainer.state.log_history if "loss_small_states" in row)
    assert first["loss_rating"] > 0
    assert first["loss_rating_soft"] > 0
    assert first["weight_rating"] == pytest.approx(0.5)
    term = model.heads["next_item"].every_term["parity"]
    assert not torch.equal(term.weight, torch.tensor([0.5, -0.5]))  # it started there, and has been trained
    assert trainer.evaluate(splits.test)["eval_rating_mae"] > 0

    model.eval()
    model.save_pretrained(tmp_path / "run")
    processor.save_pretrained(tmp_path / "run")
    loaded = PolyRecForRecommendation.from_pretrained(tmp_path / "run").eval()
    again = PolyRecProcessor.from_pretrained(tmp_path / "run")
    batch = model_inputs(PolyRecCollator()([splits.test[i] for i in range(4)]))
    torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits, rtol=0, atol=0)
    batch.pop("labels")
    states, ids = model(**batch).states[:, 0], torch.arange(processor.num_items)
    context = model.request_context(**batch).at((slice(None), 0))
    whole = model.score_items(states, "next_item", context=context)
    head = model.heads["next_item"]
    network = head.project(states) @ model.item_encoder.table().vectors_MD.T + head.bias.weight.squeeze(-1)
    torch.testing.assert_close(whole[:, 2:], (network + term.weight[ids % 2])[:, 2:])
    found = loaded.recommend(again, history=[3, 4, 5], k=3)
    assert len(found) == 3
    assert all("rating" in row for row in found)
