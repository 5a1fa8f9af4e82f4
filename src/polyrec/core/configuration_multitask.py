"""What the configurations of all polyrec models share: tasks, features, experts and weighting, and strictness."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from polyrec.core.backbones import HistoryBackboneConfig, TextConfig, resolve
from polyrec.core.distillation_config import DistillationConfig
from polyrec.core.older_files import saved_files
from polyrec.core.ranges import AT_LEAST_ONE, BELOW_ONE, POSITIVE, Range
from polyrec.core.registry import EXPERTS, WEIGHTINGS, nearest
from polyrec.core.schema import FeatureConfig, TaskConfig, from_dict, parse_tasks
from polyrec.core.settings import reads_arguments

FORMAT_VERSION = 2  # 1: other names of some keys, see `polyrec.core.older_files`

# What transformers itself writes into config.json or passes to the constructor beside the declared fields.
_TRANSFORMERS_KEYS = frozenset(
    {
        *("_name_or_path", "name_or_path", "model_type", "auto_map", "_commit_hash", "torch_dtype", "num_labels"),
        *("attn_implementation", "_attn_implementation", "_attn_implementation_internal"),
        *("use_cache", "tie_word_embeddings", "is_decoder", "per_layer_config", "output_attentions"),
    }
)


# What is beyond is a typing error: no such layer can be held in memory.
RANGES: Mapping[str, Range] = {
    "num_items": Range(2, 2**31 - 1),
    "hidden_size": Range(1, 65_536),
    "numeric_bins": Range(1, 10_000),
    "dropout": BELOW_ONE,
    "initializer_range": POSITIVE,
    "format_version": AT_LEAST_ONE,
    "task_adapters": AT_LEAST_ONE,
}


@reads_arguments(RANGES)
@strict
class MultiTaskConfig(PreTrainedConfig):
    """Base of the configurations of polyrec models: what heads, experts, couplings and weightings read.

    Unknown keys are refused at construction; a file of a newer format loads with a warning for each of them.

    Args:
        tasks: list of [`TaskConfig`] (or dicts): the heads. Tasks are known by name everywhere.
        features: list of [`FeatureConfig`] (or dicts): the inputs beside the item ids.
        num_items: rows of the item table: 0 = padding, 1 = unknown item, 2.. = the catalog.
        hidden_size: width of what the tasks share.
        text: a text encoder, see [`TextConfig`].
        experts, expert_options: the layer shared by pair tasks, by registered name, with its keyword arguments.
        weighting, weighting_options: how task losses become one objective.
        distillation: from a teacher, beside the labels, see [`DistillationConfig`]; it acts in training
            with a teacher alone, e.g. {"tasks": {"like": {"alpha": 0.5, "temperature": 2}}}.
        task_adapters: {task: rank} of tasks that take a low-rank step of their own before their head, see
            [`~polyrec.modules.encoders.task_adapters.TaskAdapter`]; `polyrec finetune` adds them.
        dropout: on what the tasks share.
        numeric_bins: pieces of the piecewise-linear encoding of numeric features (Gorishniy et al., 2022); 1 = plain
            linear.
        initializer_range: standard deviation of the initial weights.
        format_version: of the file; newer files load with a warning for each key that is not known here.
    """

    tasks: list | None = None
    features: list | None = None
    num_items: int = 2
    hidden_size: int = 64
    text: TextConfig | None = None
    experts: str = "shared_bottom"
    expert_options: dict | None = None
    weighting: str = "fixed"
    weighting_options: dict | None = None
    distillation: dict | DistillationConfig | None = None
    task_adapters: dict[str, int] | None = None
    dropout: float = 0.2
    numeric_bins: int = 8
    initializer_range: float = 0.06
    format_version: int = FORMAT_VERSION

    def __post_init__(self, **kwargs: Any) -> None:
        own = [f.name for f in fields(self)]
        for key in kwargs:
            if key not in _TRANSFORMERS_KEYS:
                raise ValueError(f"unknown key {key!r} in {type(self).__name__}; {nearest(key, own)}")
        self.tasks = [asdict(t) for t in parse_tasks(self.tasks)] if self.tasks else []
        self.features = [asdict(f) for f in self._parse_features()]
        self.expert_options = dict(self.expert_options or {})
        self.weighting_options = dict(self.weighting_options or {})
        if self.distillation is not None:
            self.distillation = DistillationConfig.parse(self.distillation, self.task_names)
        self.task_adapters = dict(self.task_adapters or {})
        if self.text is not None:
            self.text = resolve(self.text)
        self._check()
        super().__post_init__(**kwargs)

    def _parse_features(self) -> list[FeatureConfig]:
        parsed = [f if isinstance(f, FeatureConfig) else from_dict(FeatureConfig, f) for f in self.features or []]
        names = [(f.source, f.name) for f in parsed]
        for source, name in names:
            if names.count((source, name)) > 1:
                raise ValueError(
                    f"feature {name!r} of source {source!r} is listed twice: names must be unique per source"
                )
        return parsed

    def _check(self) -> None:
        """Refuse values that make no sense; subclasses add theirs."""
        EXPERTS.check(self.experts)
        WEIGHTINGS.check(self.weighting)
        for name in self.task_adapters or {}:
            if name not in self.task_names:
                raise ValueError(f"task_adapters: unknown task {name!r}; {nearest(name, self.task_names)}")

    @property
    def pair_width(self) -> int:
        """Width of pair vectors, experts and pair heads."""
        return self.hidden_size

    @property
    def student_of(self) -> DistillationConfig | None:
        """The distillation plan, which is no dict any more once the configuration is made."""
        assert not isinstance(self.distillation, dict)
        return self.distillation

    @property
    def task_configs(self) -> list[TaskConfig]:
        """The tasks as [`TaskConfig`] objects."""
        with saved_files():  # names were checked when the configuration was made
            return [TaskConfig(**t) for t in self.tasks or []]

    @property
    def feature_configs(self) -> list[FeatureConfig]:
        """The features as [`FeatureConfig`] objects."""
        return [FeatureConfig(**f) for f in self.features or []]

    @property
    def task_names(self) -> list[str]:
        """Names of the tasks, in the order given."""
        return [t["name"] for t in self.tasks or []]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, those of nested configurations included."""
        nested = (TextConfig, HistoryBackboneConfig, DistillationConfig)
        return {name: asdict(v) if isinstance(v, nested) else v for name, v in super().to_dict().items()}

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Rebuild from the values of config.json. A file of a newer format keeps what is known here, with a warning."""
        version = config_dict.get("format_version", FORMAT_VERSION)
        if isinstance(version, int) and version > FORMAT_VERSION:
            known = {f.name for f in fields(cls)} | _TRANSFORMERS_KEYS | {"transformers_version"}
            dropped = sorted(set(config_dict) - known)
            warnings.warn(
                f"config.json has format {version}, newer than {FORMAT_VERSION}; ignored keys: {dropped or 'none'}. "
                "Update polyrec if the model misbehaves.",
                stacklevel=2,
            )
            config_dict = {k: v for k, v in config_dict.items() if k in known} | {"format_version": FORMAT_VERSION}
        with saved_files():
            return super().from_dict(config_dict, **kwargs)
