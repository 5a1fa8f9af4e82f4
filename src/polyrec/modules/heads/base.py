"""The contract of a head: it knows all about its kind of task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from polyrec.core.configuration_polyrec import PolyRecConfig
from polyrec.core.modules import KeepsPrecision
from polyrec.core.registry import SOFT_LOSSES, Part, checked_options, nearest
from polyrec.core.renamed import RenamedHooks, renamed_method
from polyrec.core.schema import TaskConfig
from polyrec.modules.encoders.task_adapters import TaskAdapter
from polyrec.modules.heads._trees import TreeBlend

# Metrics that heads may name: of one number per pair, of several (`details`), and of lists, as in "ndcg@10".
PAIR_METRIC_NAMES = (
    *("auc", "gauc", "logloss", "calibration_error", "rmse", "mae", "accuracy", "quadratic_kappa", "xauc"),
    "poisson_deviance",
)
DETAIL_METRIC_NAMES = ("class_logloss", "interval_coverage")
LIST_METRIC_NAMES = ("ndcg", "recall", "mrr", "coverage", "novelty")

Summary = Mapping[str, Any]  # of a task's training labels, see `PolyRecProcessor.label_summary`


class TaskHead(RenamedHooks, KeepsPrecision, Part):
    """Base of all heads.

    A *pair* head reads a hidden vector per (state, candidate); a *state* head reads the state alone and scores the
    whole catalog.

    Subclasses declare `reads`, `default_options` (every option with its default; others are refused) and `metrics`
    (names of `PAIR_METRIC_NAMES` or `DETAIL_METRIC_NAMES`, the main one first, which must be a pair metric), and
    implement `forward`, `loss` and `predict`.

    A head whose output takes K numbers sets `logit_width` = K: its logits end in an axis K, those of other heads do
    not. Members of an ensemble come before it. A head with `details` sets their number, `detail_width`. The way of an
    output:

        forward(hidden) -> own [B, C(, M)(, K)]   + linear skip   -> finish -> coupling -> logits
        loss(logits, labels), predict(logits), details(logits)

    What the output IS says `output_kind`: "bernoulli" (log odds), "categorical" (log-weights of K classes), "ordinal"
    (K - 1 conditional log odds), "number", "quantiles" (K of them), "rank" (a number by its rank), "rate" (its
    logarithm) or "catalog" (scores of all items). `canonical_logits` turns logits into units that do not depend on a
    head's options, and `in_loss_units` these into the ones in which the loss of labels compares them. By these three
    others know how to compare outputs (`polyrec.distillation.soft_losses`).
    """

    renamed_hooks: ClassVar[dict[str, str]] = {
        "starting_options": "options_from_labels",
        "exchanged": "canonical_logits",
        "exchange_width": "canonical_width",
        "read_exchanged": "read_canonical",
        "reads_person": "reads_user",
        "question": "query_state",
    }
    reads: ClassVar[Literal["pair", "state"]]
    output_kind: ClassVar[str | None] = None  # None: nobody can teach it
    metrics: ClassVar[tuple[str, ...]] = ()
    default_options: ClassVar[dict[str, Any]] = {}
    logit_width: int | None = None
    detail_width: int | None = None
    excludes: ClassVar[Literal["history", "own item"]] = "history"  # of lists, see `polyrec.data.candidates`

    def __init__(self, task: TaskConfig, config: PolyRecConfig) -> None:
        super().__init__()
        self.task = task
        what = f"task {task.name!r} (head {task.head!r})"
        self.options = checked_options(task.options, self.known_options(), what)
        most = self.options.get("trees", 0)
        if most < 0:
            raise self.option_error("trees", "it must be >= 0")
        self.trees = TreeBlend(most) if most else None
        self.width = config.pair_width if self.reads == "pair" else config.hidden_size
        rank = (config.task_adapters or {}).get(task.name)
        self.adapter = None if rank is None else TaskAdapter(self.width, rank)

    @classmethod
    def known_options(cls) -> dict[str, Any]:
        """Every option with its default."""
        return dict(cls.default_options)

    @classmethod
    def check_part(cls) -> None:
        """Refuse a head that reads what no model has, or whose metrics nobody measures."""
        reads = getattr(cls, "reads", None)  # declared without a default, so that no head forgets it
        if reads not in ("pair", "state"):
            raise ValueError(f"reads is {reads!r}; it must be 'pair' (a user and a candidate) or 'state' (a user)")
        if cls.output_kind is not None and cls.output_kind not in (kinds := SOFT_LOSSES.names()):
            raise ValueError(f"unknown output_kind {cls.output_kind!r}; {nearest(cls.output_kind, kinds)}")
        known = (*PAIR_METRIC_NAMES, *DETAIL_METRIC_NAMES) if reads == "pair" else LIST_METRIC_NAMES
        for metric in cls.metrics:
            if metric.partition("@")[0] not in known:
                raise ValueError(f"unknown metric {metric!r}; {nearest(metric, known)}")
        if reads == "pair" and cls.metrics and cls.metrics[0] not in PAIR_METRIC_NAMES:
            raise ValueError(f"the first metric, {cls.metrics[0]!r}, must be one of {', '.join(PAIR_METRIC_NAMES)}")

    @classmethod
    def options_from_labels(cls, task: TaskConfig, summary: Summary) -> dict[str, Any]:
        """Options that fit the training labels (base rate, spread); the task's own options override them."""
        return {}

    def initialise(self) -> None:
        """Set parameters that should not start at random; called after the default initialisation."""

    def add_adapter(self, rank: int) -> None:
        """Give the task a new adapter, which changes nothing yet, in place of one that it may have."""
        like = next(self.parameters())
        self.adapter = TaskAdapter(self.width, rank).to(like.device, like.dtype)
        self.adapter.initialise()

    def adapted(self, hidden: Tensor) -> Tensor:
        """What the head reads of what the tasks share, [..., D] -> [..., D]."""
        return hidden if self.adapter is None else self.adapter(hidden)

    def extend(self, num_items: int, known_N: Tensor) -> None:
        """Add what the head holds per item for items up to `num_items`; what it holds already stays bit-equal.

        Args:
            known_N: which of the items before had training events, bool [N].
        """

    def load_times(self, processor: Any) -> None:
        """Take when items appeared (`processor.item_times`), if the head reads it."""

    def load_neighbours(self, processor: Any) -> None:
        """Take what goes with what (`processor.item_neighbours`), if the head reads it."""

    @property
    def logit_of_mean(self) -> float:
        """What trees of the task add to: the logit of the labels' mean."""
        return 0.0

    @property
    def own_width(self) -> int | None:
        """Numbers per pair that `forward` gives, if `finish` changes that; None = one, without an axis."""
        return self.logit_width

    def finish(self, own: Tensor, candidate_features: Mapping[str, Tensor]) -> Tensor:
        """Make logits of what `forward` and the linear skip say, knowing the candidate's features {name: [B, C]}."""
        return own

    def mean_over_members(self, logits: Tensor) -> Tensor:
        """Logits [B, C(, M)(, K)] -> [B, C(, K)]."""
        return logits.mean(2) if logits.dim() == (3 if self.logit_width is None else 4) else logits

    def known(self, labels: Tensor, candidate_ids: Tensor) -> Tensor:
        """Which candidates count in the loss, bool [B, C]."""
        return ~torch.isnan(labels)

    def loss(self, logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return (sum of losses, number or weight of known labels), both scalars; NaN labels count as nothing."""
        raise NotImplementedError

    def predict(self, logits: Tensor) -> Tensor:
        """Turn logits into the ONE number per pair that a user of the model reads: a probability, or one in the
        label's unit."""
        raise NotImplementedError

    @property
    def canonical_width(self) -> int | None:
        """Numbers per pair of canonical logits; None = one, without an axis."""
        return self.logit_width

    def canonical_logits(self, logits: Tensor) -> Tensor:
        """Logits [B, C(, M)(, K)] in the units of teachers' outputs, by kind of head, in single precision.

        Binary: log odds; multiclass: K log-weights; ordinal: K - 1 conditional log odds; count: log rate; numbers: in
        the label's unit.
        """
        raise NotImplementedError

    def in_loss_units(self, canonical: Tensor) -> Tensor:
        """Canonical logits as the loss of labels compares them; of numbers that is what `forward` gives."""
        return canonical

    def read_canonical(self, canonical: Tensor) -> tuple[Tensor, Tensor | None]:
        """What `predict` and `details` would give of canonical logits."""
        return self.predict(canonical), self.details(canonical)

    def details(self, logits: Tensor) -> Tensor | None:
        """What metrics read beside the prediction, [..., K] (probabilities of classes, quantiles); None = nothing."""
        return None

    def option_error(self, option: str, rule: str) -> ValueError:
        """The error that an option breaks a rule ("it must be > 0")."""
        return ValueError(f"option {option!r} of task {self.task.name!r} is {self.options[option]!r}; {rule}")

    refuse = renamed_method("refuse", "option_error")


def trees_option(summary: Summary) -> dict[str, Any]:
    """The option `trees` of heads that can have them, where the training rows allow trees."""
    return {"trees": summary["trees"]} if "trees" in summary else {}


class NumberHead(TaskHead):
    """Base of heads that predict a number in the label's unit from logits in units of the label's spread.

    Losses of tasks with different units can then be added.
    """

    reads = "pair"
    default_options: ClassVar[dict[str, Any]] = {"mean": 0.0, "std": 1.0, "minimum": None, "maximum": None}

    def __init__(self, task: TaskConfig, config: PolyRecConfig) -> None:
        super().__init__(task, config)
        if not self.options["std"] > 0:
            raise self.option_error("std", "it must be > 0")

    @classmethod
    def options_from_labels(cls, task: TaskConfig, summary: Summary) -> dict[str, Any]:
        """Mean, spread and range of the training labels."""
        return {name: summary[name] for name in NumberHead.default_options}

    def in_spread(self, values: Tensor) -> Tensor:
        """Numbers in the label's unit as numbers in units of its spread; what is unknown stays so."""
        return (values - self.options["mean"]) / self.options["std"]

    def standardised(self, labels: Tensor) -> Tensor:
        """Labels in units of their spread; unknown ones become 0."""
        return torch.nan_to_num(self.in_spread(labels)).float()

    def canonical_logits(self, logits: Tensor) -> Tensor:
        """In the label's unit, and not clipped: a limit is of predictions."""
        return self.options["mean"] + self.options["std"] * logits.float()

    def in_loss_units(self, canonical: Tensor) -> Tensor:
        """In units of the label's spread."""
        return self.in_spread(canonical)

    def read_canonical(self, canonical: Tensor) -> tuple[Tensor, Tensor | None]:
        """Numbers within the label's limits."""
        return super().read_canonical(self.in_spread(canonical))

    def in_unit(self, logits: Tensor) -> Tensor:
        """Standardised numbers in the label's unit, within [minimum, maximum]."""
        value = self.canonical_logits(logits)
        if self.options["minimum"] is None and self.options["maximum"] is None:
            return value
        return torch.clamp(value, self.options["minimum"], self.options["maximum"])
