"""A pretrained transformer as a part of the model: built, tuned as configured, saved without what its base holds
already."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

from polyrec.core.backbones import BackboneConfig
from polyrec.core.bars import without_bars

C = TypeVar("C", bound=BackboneConfig)


class Backbone(nn.Module, Generic[C]):
    """An `AutoModel` of which a part is trained, see [`BackboneConfig`].

    Built normally it holds the pretrained weights. Built by `from_pretrained` of the model around it, it is an empty
    structure (torch's "meta" device): trained weights come from the checkpoint, and `restore` adds the base that the
    checkpoint leaves out.

    A frozen one is no submodule at all: optimizer, checkpoints and `parameters()` do not see it, and it is read from
    its files when it is first needed, which a model with stored vectors never does.

    Args:
        token_table: keep the embeddings of tokens; without, it is fed through `inputs_embeds`.
    """

    def __init__(self, config: C, token_table: bool = True) -> None:
        super().__init__()
        self.token_table = token_table
        self._config = [config]  # in a list, which views in evaluation mode share: it learns the base's fingerprint
        self._frozen: list[PreTrainedModel] = []  # in a list, so that it is not a submodule
        self.model: PreTrainedModel | None = None
        if config.tuning == "frozen":
            return
        if torch.get_default_device().type == "meta":
            empty = AutoModel.from_config(
                AutoConfig.for_model(**config.architecture), dtype=self._dtype, attn_implementation=config.attention
            )
            self.model = self._without_tokens(_without_pooler(empty))
            self._tune()
        else:
            self.model = self._pretrained()
            self._tune()
            for module in self.model.modules():
                module._is_hf_initialized = True  # or transformers would draw them anew

    @property
    def config(self) -> C:
        """How it is made and tuned."""
        return self._config[0]

    @config.setter
    def config(self, value: C) -> None:
        self._config[0] = value

    @property
    def _dtype(self) -> torch.dtype:
        return getattr(torch, self.config.dtype)

    @property
    def width(self) -> int:
        """Of its vectors."""
        return AutoConfig.for_model(**self.config.architecture).get_text_config().hidden_size

    @property
    def layers(self) -> nn.ModuleList:
        """Its transformer layers, lowest first."""
        model = self.transformer()
        count = model.config.get_text_config().num_hidden_layers
        for module in model.modules():
            if isinstance(module, nn.ModuleList) and len(module) == count:
                return module
        raise ValueError(f"{self.config.model!r} has no list of {count} layers: use tuning 'full', 'lora' or 'frozen'")

    def depths(self) -> Iterator[tuple[int, nn.Parameter]]:
        """Parameters with their layer counted from the top: 0 for the top one and what is above it, embeddings last."""
        layers = self.layers
        depth = {id(p): len(layers) - 1 - n for n, layer in enumerate(layers) for p in layer.parameters()}
        below = True  # parameters are listed from the input to the output
        for parameter in self.transformer().parameters():
            below = below and id(parameter) not in depth
            yield depth.get(id(parameter), len(layers) if below else 0), parameter

    def transformer(self, device: torch.device | None = None) -> PreTrainedModel:
        """The transformer itself; a frozen one is loaded at the first call."""
        if self.model is not None:
            return self.model
        if not self._frozen:
            with torch.device("cpu"):
                self._frozen.append(self._pretrained().requires_grad_(False).eval())
        stays = device is None or self.config.device_map is not None or self.config.quantization_config is not None
        return self._frozen[0] if stays else self._frozen[0].to(device)

    def set_adapter(self, name: str) -> None:
        """Use (and train) another LoRA adapter."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        if name not in self.config.adapters or self.model is None:
            raise ValueError(f"no adapter {name!r} in {self.config.model!r}; it has {list(self.config.adapters)}")
        for module in self.model.modules():
            if isinstance(module, BaseTunerLayer):
                module.set_adapter(name)

    def add_adapter(self, name: str) -> None:
        """One more LoRA adapter, which starts as no change; [`set_adapter`] makes it the active one."""
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.tuners_utils import BaseTunerLayer

        assert self.model is not None
        layers = [module for module in self.model.modules() if isinstance(module, BaseTunerLayer)]
        active = {layer: layer.active_adapters for layer in layers}
        inject_adapter_in_model(LoraConfig(**self.config.lora_options), self.model, name)
        for layer, names in active.items():  # PEFT makes the new one the active one
            layer.set_adapter(names)
        self._widen_adapters()
        if name not in self.config.adapters:
            self.config = replace(self.config, adapters=(*self.config.adapters, name))

    def _widen_adapters(self) -> None:
        """Trained parameters have single precision, whatever the base has."""
        assert self.model is not None
        for key, parameter in self.model.named_parameters():
            if "lora_" in key:
                parameter.data = parameter.data.float()

    def base_keys(self) -> Iterator[str]:
        """Names, as in `state_dict()`, of what a checkpoint leaves out because the base has it."""
        if self.config.tuning == "lora":
            yield from (f"model.{name}" for name in self._of_the_model() if "lora_" not in name)

    @torch.no_grad()
    def restore(self) -> None:
        """After `from_pretrained` of the model around it: read the base, and learn again only what is tuned."""
        if self.model is None:
            return
        if self.config.quantization_config is not None:  # quantized layers are other modules: adapt those anew
            adapters = {name: value for name, value in self._of_the_model().items() if "lora_" in name}
            self.model = self._pretrained()
            self._tune()
            self.model.load_state_dict(adapters, strict=False)
        elif self.config.tuning == "lora":
            base = self._pretrained().state_dict()
            for name, value in self._of_the_model().items():
                if "lora_" not in name:
                    value.copy_(base[name.replace(".base_layer", "")])
        self._mark_trainable()

    def merge(self) -> C:
        """Fold the active adapter into the weights; returns the configuration of what remains, which is saved whole."""
        if self.config.quantization_config is not None:
            raise ValueError("a quantized base cannot be merged: load the model without quantization_config first")
        if self.model is None:
            self.model = self.transformer()
        if self.config.tuning == "lora":
            from peft.tuners.lora import LoraLayer

            for parent in list(self.model.modules()):
                for name, child in list(parent.named_children()):
                    if isinstance(child, LoraLayer):
                        child.merge()
                        setattr(parent, name, child.get_base_layer())
        self.config = replace(self.config, tuning="full", lora={}, adapters=("default",), fingerprint=None)
        self._mark_trainable()
        return self.config

    def _pretrained(self) -> PreTrainedModel:
        config = self.config
        options = {"attn_implementation": config.attention, "device_map": config.device_map}
        try:
            with without_bars():
                model = AutoModel.from_pretrained(
                    config.model,
                    revision=config.revision or "main",
                    config=AutoConfig.for_model(**config.architecture),
                    dtype=self._dtype,
                    quantization_config=copy.deepcopy(config.quantization_config),  # transformers takes entries from it
                    trust_remote_code=False,  # else transformers asks on the terminal whether to run it
                    use_safetensors=True,
                    **options,
                )
        except OSError as error:
            raise ValueError(
                f"cannot read the weights of the backbone {config.model!r} ({str(error).splitlines()[0]}): give a name "
                "on the Hub or a folder with model.safetensors. A model whose backbone is frozen or tuned by LoRA "
                "needs it wherever it is loaded; `merge_and_save` makes one that does not."
            ) from error
        except ImportError as error:
            raise ValueError(
                f"quantization_config or device_map of the backbone {config.model!r}: {str(error).splitlines()[0]}"
            ) from error
        model = _without_pooler(model)
        if config.leaves_base_out:
            found = fingerprint(model)
            if config.fingerprint not in (None, found):
                raise ValueError(
                    f"the backbone {config.model!r} is another one now than when this model was saved: give the old "
                    f"weights back (fingerprint {config.fingerprint}, now {found})"
                )
            self.config = replace(config, fingerprint=found)
        return self._without_tokens(model)

    def _without_tokens(self, model: PreTrainedModel) -> PreTrainedModel:
        if not self.token_table:
            model.set_input_embeddings(nn.Identity())
        return model

    def _tune(self) -> None:
        assert self.model is not None
        if self.config.tuning == "lora":
            if importlib.util.find_spec("peft") is None:
                raise ValueError("tuning 'lora' needs peft: pip install 'polyrec[lora]', or choose another tuning")
            for name in self.config.adapters:
                self.add_adapter(name)
            self.set_adapter(self.config.adapters[0])
        self._mark_trainable()

    def _mark_trainable(self) -> None:
        assert self.model is not None
        tuning, top = self.config.tuning, self.config.top_layers
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(tuning == "full" or (tuning == "lora" and "lora_" in name))
        if tuning == "lora":
            self.set_adapter(self.config.adapters[0])
        if top is not None:
            if top > len(self.layers):
                raise ValueError(f"tuning {tuning!r}: {self.config.model!r} has {len(self.layers)} layers")
            for depth, parameter in self.depths():
                parameter.requires_grad_(depth < top)

    def _of_the_model(self) -> dict[str, Tensor]:
        assert self.model is not None
        return self.model.state_dict(keep_vars=False)


def _without_pooler(model: PreTrainedModel) -> PreTrainedModel:
    """BERT-like models end in a layer for next-sentence prediction, which nothing here reads.

    (That of convolutional networks is a mere mean, without weights, and they do not work without.)
    """
    pooler = dict(model.named_children()).get("pooler")
    if pooler is not None and any(True for _ in pooler.parameters()):
        model.pooler = None
    return model


def fingerprint(model: nn.Module) -> str:
    """Of a model's weights: the first 16 digits of the SHA-256 of their bytes; quantized ones have no plain bytes."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if type(value) is not Tensor:
            continue
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def backbones(model: nn.Module) -> Iterator[tuple[str, Backbone[Any]]]:
    """All backbones of a model with their names."""
    for name, module in model.named_modules():
        if isinstance(module, Backbone):
            yield name, module
