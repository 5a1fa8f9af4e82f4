r"""Which past events explain a score, by gradients: integrated gradients on the embedded events.

    IG_i = sum_d (x_id - x'_id) integral_0^1 df(x' + a (x - x')) / dx_id da

for the input x_i of event i as the history's backbone reads it and its baseline x'_i (Sundararajan, Taly and Yan, 2017,
"Axiomatic Attribution for Deep Networks"). Baselines: "mean", the mean of the user's events, which says what each
event has that others have not; "unknown", an unknown item without feedback. (On ml-100k the first agrees better with
leave-one-out.) Where candidates attend to what events said (residuals), those are inputs, too, with the baseline 0. The
attributions of all events add up to f(x) - f(x') (completeness).

Unlike leave-one-out this is not what would have happened: events stay in their places and in the running statistics.
It tells of events that replace each other (the loss of one of two alike is small, the loss of both is not).

Letters: E visible events, C items, D width, T residuals, S rows of a batch of captum.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from polyrec.core.extras import check_extra
from polyrec.core.modules import in_double
from polyrec.core.registry import nearest
from polyrec.core.schema import RESIDUALS
from polyrec.inference.explanation.explained import ExplainedRequest
from polyrec.modules.encoders.item import UNKNOWN_ITEM

BASELINES = ("mean", "unknown")
_ROWS = 256  # points of paths that are read at once
_CANDIDATES = (
    "candidate_ids", "candidate_positions", "candidate_times", "candidate_query", "query_items",
    "candidate_trending",
)  # fmt: skip


class GradientEffects(NamedTuple):
    """Attributions of events.

    Args:
        events: int64 [E], which events of the history the model reads.
        effects: float64 [E, C].
        total: float64 [C], f(x) - f(x'), to which they should add up.
        steps: points of each path that were enough.
    """

    events: np.ndarray
    effects: np.ndarray
    total: np.ndarray
    steps: int

    @property
    def gap(self) -> np.ndarray:
        """How far each item's attributions are from complete, as a share of what they should add up to, [C]."""
        return np.abs(self.effects.sum(axis=0) - self.total) / np.maximum(np.abs(self.total), 1e-12)


def integrated_gradients(
    explained: ExplainedRequest,
    baseline: str = "mean",
    tolerance: float = 0.01,
    steps: int = 32,
    most_steps: int = 1024,
) -> GradientEffects:
    """Attributions of every visible event to every candidate item, by captum.

    Args:
        baseline: "mean" or "unknown", see the module.
        tolerance: the gap to completeness that is allowed; steps are doubled until it is met.
        steps: points of a path at first (Gauss-Legendre).
        most_steps: where doubling ends; the result says how large its gap is.
    """
    if baseline not in BASELINES:
        raise ValueError(f"unknown baseline {baseline!r}; {nearest(baseline, list(BASELINES))}")
    check_extra("captum", "explain", "integrated gradients")
    from captum.attr import IntegratedGradients

    model, events = explained.model, explained.visible
    if not len(events):
        nothing = np.zeros((0, len(explained.rows)))
        return GradientEffects(events, nothing, nothing.sum(axis=0), 0)
    batch = next(iter(explained.batches()))
    with torch.no_grad():
        inputs, baselines = _ends(explained, batch, baseline)
    candidate_C = torch.arange(len(explained.rows), device=model.device)

    def score(embedded: Tensor, residuals: Tensor, candidate_S: Tensor) -> Tensor:
        rows = _rows_of(batch, candidate_S, residuals)
        start = inputs[0][:1, :1].expand(len(embedded), -1, -1)
        found = explained.scores(rows, inputs_embeds=torch.cat([start, embedded[:, 1:]], dim=1))[:, 0]
        # Not every task reads residuals; captum differentiates by all.
        return in_double(found + 0.0 * residuals.sum(dim=(1, 2)))

    embedded, residuals, no_events, no_residuals = (x.expand(len(candidate_C), -1, -1) for x in (*inputs, *baselines))
    with torch.no_grad():
        total_C = score(embedded, residuals, candidate_C) - score(no_events, no_residuals, candidate_C)
        total = total_C.cpu().numpy()
    while True:
        parts = IntegratedGradients(score).attribute(
            (embedded, residuals),
            (no_events, no_residuals),
            additional_forward_args=(candidate_C,),
            n_steps=steps,
            method="gausslegendre",
            internal_batch_size=max(_ROWS, len(candidate_C)),
        )
        per_event_CE = parts[0].sum(-1)[:, 1:] + parts[1].sum(-1)
        found = GradientEffects(events, per_event_CE.T.cpu().double().numpy(), total, steps)
        if steps * 2 > most_steps or (found.gap <= tolerance).all():
            return found
        steps *= 2


def _ends(
    explained: ExplainedRequest, batch: Mapping[str, Any], baseline: str
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Where the path ends and where it begins: embedded start and events [1, E + 1, D], residuals [1, E, T]."""
    features = batch["event_features"]
    shape = batch["item_ids"].shape
    residuals = torch.nan_to_num(features[RESIDUALS]) if RESIDUALS in features else torch.zeros(*shape, 1)
    inputs, residuals = explained.inputs(batch), residuals.to(batch["item_ids"].device)
    if baseline == "mean":
        nothing = inputs[:, 1:].mean(dim=1, keepdim=True).expand_as(inputs)
    else:
        nothing = _unknown(explained, batch)
    return (inputs, residuals), (nothing, torch.zeros_like(residuals))


def _unknown(explained: ExplainedRequest, batch: Mapping[str, Any]) -> Tensor:
    """Events that nobody knows anything about, embedded [1, E + 1, D]."""
    encoder, processor = explained.model.model.history_encoder, explained.processor
    columns = {**processor.event_encoders["candidate"], **processor.event_encoders["event"]}
    unknown = {
        name: torch.from_numpy(columns[name].missing(values.shape[1])).to(values).unsqueeze(0)
        if name in columns
        else torch.full_like(values, float("nan"))
        for name, values in batch["event_features"].items()
    }
    nobody = torch.full_like(batch["item_ids"], UNKNOWN_ITEM)
    return encoder.embed(explained.items, nobody, unknown, batch["user_features"])


def _rows_of(batch: Mapping[str, Any], candidate_S: Tensor, residuals_SET: Tensor) -> dict[str, Any]:
    """A batch of one user and C items as S rows of one item each."""

    def of_user(x: Tensor) -> Tensor:
        return x.expand(len(candidate_S), *x.shape[1:])

    def of_item(x: Tensor) -> Tensor:
        return x[0].index_select(0, candidate_S).unsqueeze(1)

    found = {**batch, **{name: of_item(batch[name]) for name in _CANDIDATES if name in batch}}
    found["item_ids"] = of_user(batch["item_ids"])
    for name in ("event_features", "user_features"):
        found[name] = {key: of_user(values) for key, values in batch[name].items()}
    found["candidate_features"] = {key: of_item(values) for key, values in batch["candidate_features"].items()}
    if RESIDUALS in found["event_features"]:
        found["event_features"][RESIDUALS] = residuals_SET
    return found
