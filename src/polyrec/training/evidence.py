"""What stands beside the networks of tasks: what training may read of it, and which validation rows weigh it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback

from polyrec.data.sequences import SequenceDataset
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor
from polyrec.modules.heads.terms._cross_fitted import CrossFittedNeighbours
from polyrec.training.callbacks import own_parameters

logger = logging.getLogger(__name__)


class EvidenceCheck(TrainerCallback):
    """Warns of a training whose examples may find their own labels in their evidence."""

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **unused: Any) -> None:
        """Look at the model as it is going to be trained."""
        terms = [term for term in model.modules() if isinstance(term, CrossFittedNeighbours)]
        for term in terms:
            if term.is_new or term.is_cross_fitted or not any(p.requires_grad for p in term.parameters()):
                continue
            logger.warning(
                "task %r: nothing says which of the training rows its `neighbours` have counted, so training may "
                "come to trust evidence that contains its own labels: train with a processor that has just split the "
                "log that the model was first trained on, or freeze the term, "
                "model.heads[%r].neighbours.requires_grad_(False)",
                term.task,
                term.task,
            )


def weighed_by_validation(model: PolyRecForRecommendation, processor: PolyRecProcessor) -> dict[str, str]:
    """{task that learns: "linear terms" or "trees"}, what training leaves to validation rows.

    A task does not learn if its own parameters are frozen and so are those that it shares with others.
    """
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    own = {task: trained.intersection(own_parameters(model, task)) for task in model.heads}
    grown = [] if processor.pair_trees is None else processor.pair_trees.tasks
    found = {}
    for task, head in model.heads.items():
        if not own[task] and not trained.difference(*own.values()):
            continue
        if head.reads == "state" and not all(term.is_new for term in head.weighed.values()):
            found[task] = "linear terms"
        elif task in grown and head.trees is not None:
            found[task] = "trees"
    return found


def judging_set(given: Any, metric: str | None, weighed: Mapping[str, str]) -> SequenceDataset | None:
    """The evaluation set whose rows weigh; None, with a warning: there are no such rows.

    Args:
        given: of a trainer: a set, {name: set} or None.
        metric: `metric_for_best_model`.
        weighed: see `weighed_by_validation`.
    """
    chosen = given
    if isinstance(given, dict) and given:
        named = [name for name in given if (metric or "").removeprefix("eval_").startswith(f"{name}_")]
        first = max(named, key=len) if named else next(iter(given))
        chosen = given[first]
        if not named and len(given) > 1:
            logger.warning(
                "evaluation set %r, the first of %d, weighs %s: metric_for_best_model='%s_mean_improvement' would name "
                "another",
                *(first, len(given), _shown(weighed), list(given)[-1]),
            )
    if isinstance(chosen, SequenceDataset) and chosen.num_candidates:
        return chosen
    logger.warning(
        "no validation rows weigh %s: they say what they said before training, in a new model nothing. Pass "
        "eval_dataset, or set trainer.eval_dataset and call trainer.weigh_by_validation()",
        _shown(weighed),
    )
    return None


def _shown(weighed: Mapping[str, str]) -> str:
    return ", ".join(f"the {what} of {task!r}" for task, what in weighed.items())
