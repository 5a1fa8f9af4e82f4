"""What polyrec models share: outputs, initialisation, saving and loading.

Letters: B users, L events, C candidates, N items, D width.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import CommitInfo
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from polyrec.core.bars import without_bars
from polyrec.core.configuration_polyrec import PolyRecConfig
from polyrec.core.modules import eval_view
from polyrec.core.registry import nearest
from polyrec.hub.fetch import fetch, hub_options
from polyrec.hub.files import MODEL_FILES, MODEL_RECORDED
from polyrec.hub.push import push
from polyrec.hub.safety import check_made, check_model, check_weights, named_as, record_saved
from polyrec.modules.coupling.base import Coupling
from polyrec.modules.encoders.adapters import load_adapter, save_adapter
from polyrec.modules.encoders.backbone import Backbone, backbones
from polyrec.modules.encoders.features import EmbeddingEncoder, NumericEncoder
from polyrec.modules.encoders.history import HistoryEncoder, PretrainedHistory
from polyrec.modules.encoders.item import ItemEncoder
from polyrec.modules.encoders.item_table import LowRankItemTable
from polyrec.modules.encoders.item_text import ItemText
from polyrec.modules.encoders.pair import LinearSkip
from polyrec.modules.encoders.task_adapters import TaskAdapter
from polyrec.modules.encoders.task_items import TaskItemEmbedding
from polyrec.modules.encoders.text import TextEncoder
from polyrec.modules.experts._batched import BatchedLinear
from polyrec.modules.experts.base import ExpertLayer
from polyrec.modules.heads._trees import TreeBlend
from polyrec.modules.heads.base import TaskHead
from polyrec.modules.objectives.base import Objective
from polyrec.modules.weighting.base import LossWeighting


@dataclass
class PolyRecModelOutput(ModelOutput):
    """States of users.

    Args:
        last_hidden_state: [B, L + 1, D]; index p has seen the first p events, index 0 none.
        inputs: [B, L + 1, D], the encoded start and events before the backbone.
    """

    last_hidden_state: Tensor | None = None
    inputs: Tensor | None = None


@dataclass
class PolyRecOutput(ModelOutput):
    """Outputs of all tasks.

    Args:
        loss: scalar, the weighted objective; None without labels.
        losses: {task: scalar}, SUM of the task's losses over its known labels.
        counts: {task: scalar}, number (or weight) of known labels.
        logits: {task: [B, C(, K)]}, see the heads; a retrieval task's are the scores of the candidates. In training
            mode there are none (no such key) of a retrieval task that has labels, whose loss does not read them: call
            the model without labels.
        states: [B, C, D], the state each candidate was scored from.
        queries: [B, C, D], what was typed before it was found; None if the model reads no queries.
        gates: {pair task: [B, C, E]}, what the experts' gates took of each source (`model.experts.gate_names`).
        weights: {task: scalar}, what the loss weighting multiplied each (lambda-weighted) loss by.
        gramian: [T, T], inner products of the tasks' gradients at the shared representation, sorted by name; given in
            training if the weighting needs it.
        soft: {soft name: scalar}, means of soft losses, see `polyrec.distillation.student`; with a teacher only.
        objectives: {objective: scalar}, sums of losses divided like those of tasks, without weight; in training only.
    """

    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    counts: dict[str, Tensor] | None = None
    logits: dict[str, Tensor] | None = None
    states: Tensor | None = None
    queries: Tensor | None = None
    gates: dict[str, Tensor] | None = None
    weights: dict[str, Tensor] | None = None
    gramian: Tensor | None = None
    soft: dict[str, Tensor] | None = None
    objectives: dict[str, Tensor] | None = None


class PolyRecPreTrainedModel(PreTrainedModel):
    """What polyrec models share: configuration, initialisation, loading."""

    config_class = PolyRecConfig
    base_model_prefix = "model"
    # What compared a student's states with its teacher's, in its training.
    _keys_to_ignore_on_load_unexpected = [r"^soft_losses\."]
    hub_commit: str | None = None  # of the repository that the model was loaded from
    supports_gradient_checkpointing = True
    # The history backbone decides; without these flags transformers refuses an implementation that it could use.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a model; see [`~transformers.PreTrainedModel.from_pretrained`].

        Files are looked at before they are read, see `polyrec.hub.safety`: no pickles, no code of the repository, no
        links out of the folder, no configuration that asks for memory which the weights do not fill.

        Raises:
            ValueError: a file is missing or not one that polyrec writes, with its name and the fix.
            OSError: the Hub refused, with what mends it.
        """
        options, name = hub_options(kwargs), pretrained_model_name_or_path
        local = None if name is None else fetch(name, MODEL_FILES, **options)
        if local is not None:
            cls._check_files(local / kwargs.get("subfolder", ""), kwargs)
        kwargs["use_safetensors"] = True
        with without_bars(when=True):  # these weights are read fast; a large base has a bar of its own
            loaded = super().from_pretrained(local, *args, **kwargs)
        model = loaded[0] if kwargs.get("output_loading_info") else loaded
        if local is not None and local != Path(name):
            model.name_or_path = model.config.name_or_path = str(name)
            model.hub_commit = local.name
        for module in model.modules():  # transformers makes every parameter that it loads a trainable one
            if isinstance(module, ItemEncoder):
                module.freeze()
            elif isinstance(module, Backbone):
                module.restore()
        model.freeze_unread()
        return loaded

    @classmethod
    def _check_files(cls, folder: Path, kwargs: Mapping[str, Any]) -> None:
        """Refuse files that do not fit each other, on the skeleton of a model, which takes no memory."""
        held = check_model(folder)
        config = kwargs.get("config")
        if kwargs.get("ignore_mismatched_sizes"):
            return
        try:
            if not isinstance(config, PreTrainedConfig):
                config = cls.config_class.from_pretrained(folder)
            with torch.device("meta"):
                skeleton = cls(config)
        except (TypeError, AttributeError, KeyError, AssertionError, StrictDataclassError) as error:
            raise ValueError(f"config.json describes no {cls.__name__} ({error}): the file is damaged") from error
        from_base = {f"{name}.{key}" for name, backbone in backbones(skeleton) for key in backbone.base_keys()}
        stored = skeleton.state_dict()
        tensors = {name: tuple(tensor.shape) for name, tensor in stored.items() if name not in from_base}
        held = named_as(tensors, held, cls.base_model_prefix)
        check_weights(held, tensors, [name for name, _ in skeleton.named_parameters()])
        made = {name: buffer.nbytes for name, buffer in skeleton.named_buffers() if name not in stored}
        check_made(made, sum(tensor.nbytes for tensor in stored.values()))

    def push_to_hub(self, repo_id: str, *, processor: Any = None, **options: Any) -> CommitInfo:
        """Share the model in one commit, with its processor if that is given; arguments are those of transformers.

        `polyrec push RUN user/name` shares a run with its card.

        Args:
            repo_id: user/name.
            processor: the [`PolyRecProcessor`] that belongs to the model.
            options: see [`~polyrec.hub.push.push`] and [`~polyrec.hub.push.push_folder`].
        """
        return push(repo_id, self, *([] if processor is None else [processor]), **options)

    def freeze_unread(self) -> None:
        """Exempt from training what nothing reads; a model may override it."""

    def save_pretrained(self, save_directory: Any, *args: Any, state_dict: Any = None, **kwargs: Any) -> None:
        """Save configuration and weights; pretrained ones that stayed as they were are left to their base.

        The folder's manifest.json gets their digests, which `from_pretrained` checks. See
        [`~transformers.PreTrainedModel.save_pretrained`] and [`BackboneConfig`].
        """
        if kwargs.pop("push_to_hub", False):
            raise ValueError("save_pretrained does not push: call model.push_to_hub(repo_id, processor=processor)")
        state = dict(self.state_dict() if state_dict is None else state_dict)
        for name, module in self.named_modules():
            if isinstance(module, ItemText) and not module.fresh:
                module.refresh()
                state[f"{name}.vectors"] = module.vectors
            elif isinstance(module, Backbone):
                for key in module.base_keys():
                    state.pop(f"{name}.{key}", None)
        self._record_backbones()
        with without_bars():
            super().save_pretrained(save_directory, *args, state_dict=state, **kwargs)
        if kwargs.get("is_main_process", args[0] if args else True):
            record_saved(save_directory, MODEL_RECORDED)

    def merge_and_save(self, save_directory: Any, **kwargs: Any) -> None:
        """Fold LoRA adapters into the backbones and save a model that needs no other files; it is tuned fully then."""
        for _, backbone in backbones(self):
            backbone.merge()
        self.save_pretrained(save_directory, **kwargs)

    def set_adapter(self, name: str) -> None:
        """Use, and train, another LoRA adapter of every backbone that has one of this name."""
        found = [b for _, b in backbones(self) if name in b.config.adapters and b.model is not None]
        if not found:
            raise ValueError(f"no backbone has an adapter {name!r}: name them in the configuration (adapters=[...])")
        for backbone in found:
            backbone.set_adapter(name)
        for module in self.modules():
            if isinstance(module, ItemText):
                module.fresh = False

    def save_adapter(self, folder: Any, name: str = "default", backbone: str | None = None) -> None:
        """Write a LoRA adapter of a backbone alone, in PEFT's format: adapter_config.json, adapter_model.safetensors.

        Args:
            folder: made if need be.
            name: of the adapter.
            backbone: "text" or "history"; None: the one that has adapters.
        """
        save_adapter(self._adapted(backbone), folder, name)

    def load_adapter(self, folder: Any, name: str = "default", backbone: str | None = None) -> None:
        """Take over an adapter that [`save_adapter`] or PEFT wrote; arguments as there. A new name adds an adapter, and
        [`set_adapter`] makes it the active one."""
        load_adapter(self._adapted(backbone), folder, name)
        self._record_backbones()
        for module in self.modules():
            if isinstance(module, ItemText):
                module.fresh = False

    def _adapted(self, which: str | None) -> Backbone[Any]:
        """The backbone with LoRA adapters."""
        if which not in (None, "text", "history"):
            raise ValueError(f"unknown backbone {which!r}; {nearest(str(which), ['text', 'history'])}")
        found: dict[str, Backbone[Any]] = {}
        for module in self.modules():
            if isinstance(module, TextEncoder | PretrainedHistory) and module.backbone.config.tuning == "lora":
                found["text" if isinstance(module, TextEncoder) else "history"] = module.backbone
        if which is not None:
            found = {name: backbone for name, backbone in found.items() if name == which}
        if len(found) != 1:
            raise ValueError(
                f"{len(found)} backbones have LoRA adapters ({', '.join(found) or 'none'}): "
                + ("say which, backbone='text' or 'history'" if found else "configure one with tuning='lora'")
            )
        return next(iter(found.values()))

    @contextmanager
    def eval_mode(self) -> Iterator[Self]:
        """Gives the model in evaluation mode, beside this one, which keeps its mode; see `eval_view`.

        So threads may use one model at once, also while it is trained:

            with model.eval_mode() as model:
                output = model(**batch)
        """
        yield eval_view(self)

    def _record_backbones(self) -> None:
        """Put what backbones know of themselves now (fingerprints, merged adapters) into the configuration."""
        for module in self.modules():
            if isinstance(module, TextEncoder):
                self.config.text = module.backbone.config
            elif isinstance(module, PretrainedHistory):
                self.config.history_backbone = module.backbone.config

    def _ignore_base_weights(self) -> None:
        """Tell transformers which weights a checkpoint rightly lacks."""
        for name, module in backbones(self):
            if module.config.tuning == "lora":
                self._keys_to_ignore_on_load_missing |= {rf"{re.escape(name)}\.model\.(?!.*lora_)"}

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        # In models from outside transformers, modules without parameters of their own (heads, expert layers) would be
        # skipped and never `initialise`. That protects code which writes weights directly; `_init_weights` does not.
        super()._initialize_weights(module, is_custom_code=False)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, nn.Linear | BatchedLinear):
            init.normal_(module.weight, mean=0.0, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, mean=0.0, std=std)
            if module.padding_idx is not None:
                init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, NumericEncoder):
            module.reset_edges()
        elif isinstance(module, HistoryEncoder):
            init.normal_(module.start, mean=0.0, std=std)
        elif isinstance(module, ItemEncoder):
            for buffer in (module.known, module.counts, *module.catalog.buffers()):
                init.zeros_(buffer)
        elif isinstance(module, ItemText):
            init.zeros_(module.vectors)
        else:
            super()._init_weights(module)
        with_start = (
            TaskHead
            | ExpertLayer
            | TaskItemEmbedding
            | EmbeddingEncoder
            | LinearSkip
            | Coupling
            | LossWeighting
            | Objective
            | PretrainedHistory
            | TaskAdapter
            | LowRankItemTable
            | TreeBlend
        )
        if isinstance(module, with_start):
            module.initialise()
