"""`PolyRecConfig`: everything needed to rebuild a polyrec model, strict about its keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from polyrec.core.backbones import HistoryBackboneConfig, resolve
from polyrec.core.configuration_multitask import RANGES as SHARED_RANGES
from polyrec.core.configuration_multitask import MultiTaskConfig
from polyrec.core.older_files import reads_section
from polyrec.core.ranges import BELOW_ONE, NOT_NEGATIVE, Range
from polyrec.core.registry import OBJECTIVES
from polyrec.core.settings import SettingError, reads_arguments

RANGES: Mapping[str, Range] = {
    **SHARED_RANGES,
    "pair_size": Range(1, 65_536),
    "num_hidden_layers": Range(0, 1_000),
    "num_attention_heads": Range(1, 65_536),
    "candidate_attention_heads": Range(0, 65_536),
    "intermediate_size": Range(1, 1_000_000),
    "max_history": Range(1, 1_000_000),
    "item_embedding_rank": Range(1, 65_536),
    "attention_dropout": BELOW_ONE,
    "item_id_dropout": BELOW_ONE,
    "item_cooccurrence": NOT_NEGATIVE,
}
_MOST_BYTES = 64 * 2**30  # of weights; a model that needs more is refused before anything is allocated


@reads_section("model")
@reads_arguments(RANGES)
@strict
class PolyRecConfig(MultiTaskConfig):
    r"""Configuration of [`PolyRecModel`] and [`PolyRecForRecommendation`].

    `processor.model_config(hidden_size=64, ...)` fills `tasks`, `features` and `num_items` from the data.

    Args:
        tasks: list of [`TaskConfig`] (or dicts): the heads. Tasks are known by name everywhere.
        features: list of [`FeatureConfig`] (or dicts): the inputs beside the item ids.
        num_items: rows of the item table: 0 = padding, 1 = unknown item, 2.. = the catalog.
        hidden_size: width D of items, events and states.
        pair_size: width of what pair tasks read, their experts and heads; None: `hidden_size`. Where running statistics
            say most and histories are short (impression logs), pairs want to be wider than events.
        num_hidden_layers, num_attention_heads, intermediate_size: of the default history backbone (a small
            Llama-like decoder); unused when `history_config` is given. Without layers a state is the mean of the events
            before it, which costs nearly nothing.
        max_history: events of a user that are read at once; longer histories become windows.
        history_config: any causal decoder configuration of transformers, used through `AutoModel.from_config` and fed
            with `inputs_embeds`. Its `hidden_size` must be `hidden_size`.
        history_backbone: a pretrained transformer that reads histories instead, see [`HistoryBackboneConfig`]; events
            are projected to its width and its states back. Default tuning: "lora". Bidirectional encoders are read with
            a causal mask if their architecture has one.
        text: a text encoder of items and queries, see [`TextConfig`]; `processor.model_config()` fills it if the
            processor was fitted with `text=...`.
        queries: whether candidates come with what was typed before they were found (`columns.query`); read by search
            heads and pair tasks.
        item_ids: give each item a vector (and a bias) of its own. Without, an item is what its text and attributes say,
            so that the model can score items of another catalog.
        item_embedding_rank: R of id embeddings of low rank, N R + R D parameters instead of N D, see
            [`~polyrec.modules.encoders.item_table.LowRankItemTable`]; None: whole vectors.
        experts, expert_options: the layer shared by pair tasks, by registered name, with its keyword arguments.
        weighting, weighting_options: how task losses become one objective.
        objectives: losses beside the tasks, by registered name, each with its "weight" and further options, e.g.
            {"contrastive": {"weight": 0.1}}; see `polyrec.modules.objectives`. They act in training alone.
        distillation: from a teacher, beside the labels, see [`DistillationConfig`]; it acts in training
            with a teacher alone, e.g. {"tasks": {"like": {"alpha": 0.5, "temperature": 2}}}.
        task_adapters: {task: rank} of tasks that take a low-rank step of their own before their head, see
            [`~polyrec.modules.encoders.task_adapters.TaskAdapter`]; `polyrec finetune` adds them.
        dropout: on event inputs, states and pairs.
        attention_dropout: inside the default history backbone.
        item_id_dropout: share of items whose id embedding is replaced by the unknown-item embedding in a training step,
            so that attributes alone can carry an item nobody has met (DropoutNet, Volkovs et al., 2017).
        task_item_embeddings: give every pair task a table of item embeddings of its own beside the shared one (STEM, Su
            et al., 2024), for `num_items * hidden_size` parameters per task.
        item_cooccurrence: start id embeddings where items stand by their co-occurrence in the training log
            (`polyrec.data.cooccurrence`), with this root mean square; 0 = at random.
        freeze_item_ids: leave id embeddings where they start, for logs with few events per item.
        numeric_bins: pieces of the piecewise-linear encoding of numeric features (Gorishniy et al., 2022); 1 = plain
            linear.
        candidate_attention_heads: heads of the attention of a candidate over the visible events; 0 turns it off.
        exclude_seen: whether lists, served and measured, leave out the items of the user's history; None: unless a task
            models repeated consumption (the option `repeats`). The trainer writes its own argument here.
        int8: whether matrices and tables are int8, see [`~polyrec.models.polyrec.int8`]; `polyrec
            quantize` makes such a model, for inference only.
        initializer_range: standard deviation of the initial weights.
        format_version: of the file; newer files load with a warning for each key that is not known here.

    Example:
        >>> from polyrec import PolyRecConfig, TaskConfig
        >>> config = PolyRecConfig(tasks=[TaskConfig("next_item", head="retrieval")], num_items=10, hidden_size=8)
        >>> config.task_names
        ['next_item']
        >>> PolyRecConfig(tasks=config.tasks, hiden_size=8)
        Traceback (most recent call last):
            ...
        ValueError: unknown key 'hiden_size' in PolyRecConfig; did you mean 'hidden_size'? known: ...
    """

    model_type = "polyrec"
    sub_configs_defaults = {"history_config": SubConfigSpec(config_class=AutoConfig, model_type="llama", optional=True)}

    pair_size: int | None = None
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    intermediate_size: int | None = None
    max_history: int = 200
    history_config: dict | PreTrainedConfig | None = None
    history_backbone: HistoryBackboneConfig | None = None
    queries: bool = False
    item_ids: bool = True
    item_embedding_rank: int | None = None
    objectives: dict[str, dict | None] | None = None
    attention_dropout: float = 0.0
    item_id_dropout: float = 0.1
    item_cooccurrence: float = 0.0
    freeze_item_ids: bool = False
    task_item_embeddings: bool = False
    candidate_attention_heads: int = 4
    exclude_seen: bool | None = None
    int8: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        self.objectives = {name: dict(options or {}) for name, options in (self.objectives or {}).items()}
        if self.history_backbone is not None:
            self.history_backbone = resolve(self.history_backbone)
        super().__post_init__(**kwargs)
        if self.history_config is None:
            self.history_config = self._default_history_config()
        assert isinstance(self.history_config, PreTrainedConfig)  # super() made it one
        width = self.history_config.hidden_size
        if width != self.hidden_size:
            raise ValueError(
                f"history_config.hidden_size is {width} but hidden_size is {self.hidden_size}: make them equal"
            )

    def _check_objectives(self) -> None:
        for name in self.objectives or {}:
            if OBJECTIVES.check(name) in self.task_names:
                raise ValueError(f"{name!r} is the name of an objective and of a task: rename the task")

    def _check(self) -> None:
        super()._check()
        self._check_objectives()
        if self.queries and self.text is None:
            raise ValueError("queries=True needs a text encoder: pass text={'model': ...}")
        if self.item_embedding_rank is not None and not (
            self.item_ids and 1 <= self.item_embedding_rank <= self.hidden_size
        ):
            raise ValueError(
                f"item_embedding_rank is {self.item_embedding_rank}; it is of id embeddings (item_ids) and must be in "
                f"1..hidden_size ({self.hidden_size}), or None for full rank"
            )
        for name in ("num_attention_heads", "candidate_attention_heads"):
            if (heads := getattr(self, name)) and self.hidden_size % heads:
                raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of {name} {heads}")

        self._check_size()

    def _check_size(self) -> None:
        """Refuse what no machine holds; the parts that grow with what users set are counted, others are small."""
        width, inner = self.hidden_size, self.intermediate_size or 4 * self.hidden_size
        tables = 1 + len(self.tasks or []) * self.task_item_embeddings
        floats = {
            "num_items x hidden_size": self.num_items * (self.item_embedding_rank or width) * tables * self.item_ids,
            "num_hidden_layers x hidden_size x intermediate_size": self.num_hidden_layers
            * (4 * width**2 + 3 * width * inner)
            * (self.history_config is None and self.history_backbone is None),
            "hidden_size": 8 * width**2,
            "pair_size": 4 * self.pair_width**2,
        }
        largest = max(floats, key=lambda name: floats[name])
        if (needed := 4 * sum(floats.values())) > _MOST_BYTES:
            raise SettingError(largest, f"makes a model of {needed / 2**30:,.0f} GB: it must be below 64 GB")

    def _default_history_config(self) -> PreTrainedConfig:
        return AutoConfig.for_model(
            "llama",
            vocab_size=1,  # never read: the backbone is fed through inputs_embeds
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_attention_heads,
            intermediate_size=self.intermediate_size or 4 * self.hidden_size,
            max_position_embeddings=self.max_history + 1,  # + 1: the start state
            attention_dropout=self.attention_dropout,
            initializer_range=self.initializer_range,
            pad_token_id=None,
            bos_token_id=None,
            eos_token_id=None,
            use_cache=False,
        )

    @property
    def pair_width(self) -> int:
        """Width of pair vectors, experts and pair heads."""
        return self.hidden_size if self.pair_size is None else self.pair_size
