"""Pretrained transformers inside the model: which one, how it is tuned, and how it reads text. Needs no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from polyrec.core.ranges import AT_LEAST_ONE, NOT_NEGATIVE, Range
from polyrec.core.registry import nearest
from polyrec.core.settings import conform

Pooling = Literal["mean", "cls", "last", "max"]
TUNINGS = ("frozen", "top:N", "lora", "full")
_LORA = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": "all-linear"}
_SPREAD = ("auto", "balanced", "balanced_low_0", "sequential")  # device maps that may take several devices
_DECODERS = ("CausalLM", "LMHeadModel")  # architectures whose last token has read all others


@dataclass(frozen=True)
class BackboneConfig:
    """A pretrained transformer, by its name on the Hub or its folder.

    Args:
        model: name or folder of an `AutoModel`.
        revision: branch, tag or commit on the Hub.
        tuning: what is trained: "frozen" (nothing), "top:N" (its last N layers), "lora" (low-rank adapters, Hu et
            al., 2022) or "full".
        lora: arguments of `peft.LoraConfig` for "lora"; default: rank 8 in every linear layer.
        adapters: names of the LoRA adapters; the first is active until `set_adapter` chooses another, e.g. one for each
            language of the items.
        attention: how attention is computed, as `attn_implementation` of transformers has it: "eager", "sdpa",
            "flash_attention_2" ...; default: what transformers chooses.
        dtype: of weights that stay as they are (tuning "frozen" or "lora"): "float32", "bfloat16" or "float16". What is
            learned is in float32.
        device_map: where its pretrained weights are put when they are loaded, as in `from_pretrained` of transformers:
            "cpu", "auto", {"": 0} ... A frozen one stays there, also on several devices; a tuned one moves with the
            model around it and takes one device.
        quantization_config: how weights that stay as they are (tuning "frozen" or "lora") are quantized when they are
            loaded: a configuration of transformers, e.g. `BitsAndBytesConfig(load_in_4bit=True)`, or its values with
            "quant_method". Loading a saved model quantizes its base again.
        architecture: its config.json, filled when it is first read, so that a saved model can be built without it.
        fingerprint: of the weights that are not saved with the model because `model` has them ("frozen", "lora");
            filled when they are first read, and checked whenever they are read again.

    Example:
        >>> BackboneConfig("some/model", tuning="lorra")
        Traceback (most recent call last):
            ...
        ValueError: unknown tuning 'lorra'; did you mean 'lora'? known: frozen, top:N, lora, full
    """

    model: str
    revision: str | None = None
    tuning: str = "frozen"
    lora: dict[str, Any] = field(default_factory=dict)
    adapters: tuple[str, ...] = ("default",)
    attention: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device_map: str | dict[str, str | int] | None = None
    quantization_config: Any = None  # a configuration of transformers becomes its values
    architecture: dict[str, Any] = field(default_factory=dict)
    fingerprint: str | None = None

    def __post_init__(self) -> None:
        conform(self)
        given = self.quantization_config
        if given is not None:
            object.__setattr__(
                self, "quantization_config", dict(given if isinstance(given, Mapping) else given.to_dict())
            )
        if not self.model or not isinstance(self.model, str):
            raise ValueError(f"a backbone's model is {self.model!r}: give a name on the Hub or a folder")
        if self.tuning not in TUNINGS and not re.fullmatch(r"top:[1-9]\d*", self.tuning):
            raise ValueError(f"unknown tuning {self.tuning!r}; {nearest(self.tuning, list(TUNINGS))}")
        if not self.leaves_base_out and (self.dtype != "float32" or self.quantization_config is not None):
            which = "quantization_config" if self.dtype == "float32" else f"dtype {self.dtype!r}"
            raise ValueError(
                f"{which} is for weights that stay as they are: choose tuning='frozen' or 'lora', or train with "
                "bf16=True of the training arguments"
            )
        devices = set(self.device_map.values()) if isinstance(self.device_map, dict) else {self.device_map}
        if self.tuning != "frozen" and (len(devices) > 1 or not devices.isdisjoint(_SPREAD)):
            raise ValueError(
                f"device_map {self.device_map!r} puts a tuned backbone on several devices, but it moves with the model "
                "around it: name one device, or choose tuning='frozen'"
            )
        if self.tuning == "top:N":
            raise ValueError("tuning 'top:N': write the number of layers to learn, e.g. 'top:2'")
        object.__setattr__(self, "adapters", tuple(self.adapters))
        if not self.adapters or len(set(self.adapters)) < len(self.adapters):
            raise ValueError(f"adapters must be different names, at least one, not {list(self.adapters)}")
        if self.tuning != "lora" and (self.lora or len(self.adapters) > 1):
            raise ValueError(f"lora and adapters say how tuning='lora' is done, but tuning is {self.tuning!r}")

    @property
    def lora_options(self) -> dict[str, Any]:
        """Arguments of `peft.LoraConfig`, defaults filled in."""
        return {**_LORA, **self.lora}

    @property
    def top_layers(self) -> int | None:
        """N of "top:N"."""
        return int(self.tuning.removeprefix("top:")) if self.tuning.startswith("top:") else None

    @property
    def leaves_base_out(self) -> bool:
        """Whether the pretrained weights stay as they are and are not saved again."""
        return self.tuning in ("frozen", "lora")


@dataclass(frozen=True)
class TextConfig(BackboneConfig):
    """A text encoder of items and queries.

    Pooling, normalisation, longest text and prompts come from the files that sentence-transformers writes beside a
    model, if it has them; what is given here wins.

    Args:
        template: what an item's text is, of columns of the items table: "{title}. {genres}". Lists are joined by
            commas, missing values are empty, and an item whose columns are all empty has no text.
        max_length: tokens of a text that are read, the special ones included; longer texts are cut, and counted.
        pooling: "mean" of the tokens, "cls" (the first), "last" (decoders) or "max".
        normalize: scale vectors to length 1.
        prompt, query_prompt: what is put before an item's text and before a query.
        chunk_tokens: tokens (with padding) that go through the backbone at once. A batch with more takes several
            chunks, which keep nothing for the backward pass and are read again there (as GradCache does, Gao et al.,
            2021), so that memory does not grow with the batch or the catalog, for a third more time.
        live_items: items of a training batch that are encoded anew, with gradient, if the backbone is tuned; others are
            taken from the stored table. 0 = all items of the batch.
        catalog_negatives: training scores the whole catalog, whose vectors are those of the last time an item was
            encoded; False: only the items of the batch. Default: up to 20,000 items.
        refresh_every: optimizer steps after which the stored table is encoded anew in training; 0 = before evaluation
            and saving only.
        fusion: how an item's text meets its id embedding: "sum", or "fallback": the text speaks for items whose id is
            not known, or dropped in training (`item_id_dropout`), and others are what their ids say. Where users'
            events say nearly all, the sum is noise to the known items. Items that `extend` adds get the ids that their
            texts tell.
        start: where the projection to the width of items starts: "random", or "principal", the principal directions of
            the items' texts with id embeddings of 0: an item then starts where its text puts it, near items of like
            texts (search wants that); or "collaborative", the ridge regression from texts to where co-occurrence puts
            items (`item_cooccurrence`), with id embeddings as what is left of that, less for rare items: an item that
            nobody has interacted with starts near items with similar texts.
    """

    template: str = "{title}"
    max_length: Annotated[int, Range(3)] | None = None
    pooling: Pooling | None = None
    normalize: bool | None = None
    prompt: str | None = None
    query_prompt: str | None = None
    chunk_tokens: Annotated[int, AT_LEAST_ONE] = 8192
    live_items: Annotated[int, NOT_NEGATIVE] = 0
    catalog_negatives: bool | None = None
    refresh_every: Annotated[int, NOT_NEGATIVE] = 0
    fusion: Literal["sum", "fallback"] = "sum"
    start: Literal["random", "principal", "collaborative"] = "random"


@dataclass(frozen=True)
class HistoryBackboneConfig(BackboneConfig):
    """A pretrained transformer that reads histories."""

    tuning: str = "lora"


_AnyBackbone = TypeVar("_AnyBackbone", bound=BackboneConfig)


def resolve(config: _AnyBackbone) -> _AnyBackbone:
    """Fill in what the model's own files say.

    Raises:
        ValueError: there are no such files, or they ask for a layer that is not built here.
    """
    if not config.architecture:
        config = replace(config, architecture=_read_architecture(config))
    if not isinstance(config, TextConfig):
        return config
    said = _sentence_transformers(config) if None in (config.pooling, config.normalize, config.max_length) else {}
    decoder = any(name.endswith(_DECODERS) for name in config.architecture.get("architectures") or [])
    defaults = {
        "pooling": "last" if decoder else "mean",
        "normalize": True,
        "max_length": 128,
        "prompt": "",
        "query_prompt": "",
    }
    found = {**defaults, **said}
    return replace(config, **{name: value for name, value in found.items() if getattr(config, name) is None})


def _read_architecture(config: BackboneConfig) -> dict[str, Any]:
    from transformers import AutoConfig

    try:
        found = AutoConfig.from_pretrained(
            config.model,
            revision=config.revision or "main",
            trust_remote_code=False,  # else transformers asks on the terminal whether to run it
        ).to_dict()
    except (OSError, ValueError) as error:
        raise ValueError(
            f"cannot read the backbone {config.model!r} ({str(error).splitlines()[0]}): give a name on the Hub, or "
            "a folder with config.json and model.safetensors"
        ) from error
    return {key: value for key, value in found.items() if key not in ("_name_or_path", "transformers_version")}


def _sentence_transformers(config: TextConfig) -> dict[str, Any]:
    """Pooling, normalisation, longest text and prompts as the model's sentence-transformers files say, if any."""
    modules = _read(config, "modules.json")
    if modules is None:
        return {}
    found: dict[str, Any] = {"normalize": False}
    for module in modules:
        kind = module["type"].rsplit(".", 1)[-1]
        if kind == "Pooling":
            found["pooling"] = _pooling(_read(config, f"{module['path']}/config.json") or {}, config.model)
        elif kind == "Normalize":
            found["normalize"] = True
        elif kind != "Transformer" and config.pooling is None:
            raise ValueError(
                f"{config.model!r} has a sentence-transformers layer {kind!r} that polyrec does not build: give "
                "pooling= to go without it, or choose another model"
            )
    length = (_read(config, "sentence_bert_config.json") or {}).get("max_seq_length")
    if length is not None:
        found["max_length"] = min(int(length), 128)
    prompts = (_read(config, "config_sentence_transformers.json") or {}).get("prompts") or {}
    found["query_prompt"] = prompts.get("query") or ""
    found["prompt"] = prompts.get("document") or prompts.get("passage") or ""
    return found


def _pooling(said: Mapping[str, Any], model: str) -> str:
    names = {"cls_token": "cls", "mean_tokens": "mean", "max_tokens": "max", "lasttoken": "last"}
    chosen = [ours for theirs, ours in names.items() if said.get(f"pooling_mode_{theirs}")]
    mode = said.get("pooling_mode")
    if isinstance(mode, str):
        chosen = [names.get(mode, mode)]
    if len(chosen) != 1 or chosen[0] not in get_args(Pooling):
        raise ValueError(f"{model!r} pools by {chosen or said}: give pooling= as one of {', '.join(get_args(Pooling))}")
    return chosen[0]


def _read(config: BackboneConfig, name: str) -> Any:
    """A JSON file of the model, None if it has none."""
    from transformers.utils import cached_file

    path = cached_file(
        config.model,
        name,
        revision=config.revision or "main",
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    return None if path is None else json.loads(Path(path).read_text(encoding="utf-8"))
