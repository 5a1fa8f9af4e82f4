"""LoRA adapters of a backbone as files of their own, in the format of PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from polyrec.data.tables import read_json
from polyrec.modules.encoders.backbone import Backbone

CONFIG_NAME, WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."  # before the names of tensors, as PEFT writes them


def save_adapter(backbone: Backbone[Any], folder: str | Path, name: str) -> None:
    """Write one adapter; `peft.PeftModel.from_pretrained(base, folder)` reads it.

    Args:
        folder: made if need be.
        name: of the adapter.
    """
    from peft import LoraConfig

    if backbone.model is None or name not in backbone.config.adapters:
        raise ValueError(f"no adapter {name!r} in {backbone.config.model!r}; it has {_names(backbone)}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    options = {**backbone.config.lora_options, "base_model_name_or_path": backbone.config.model}
    LoraConfig(**options, inference_mode=True).save_pretrained(str(folder))
    tensors = {
        _PREFIX + key.replace(f".{name}.", "."): value.detach().cpu().contiguous()
        for key, value in backbone.model.state_dict().items()
        if "lora_" in key and f".{name}." in key
    }
    save_file(tensors, folder / WEIGHTS_NAME, metadata={"format": "pt"})


@torch.no_grad()
def load_adapter(backbone: Backbone[Any], folder: str | Path, name: str) -> None:
    """Take over an adapter that [`save_adapter`] or PEFT wrote; a new name adds one beside those there are.

    Raises:
        ValueError: the adapter is of another shape or base than this backbone's, or a file is missing.
    """
    folder, config = Path(folder), backbone.config
    if backbone.model is None or config.tuning != "lora":
        raise ValueError(f"the backbone {config.model!r} is tuned by {config.tuning!r}: adapters need tuning='lora'")
    for file in (CONFIG_NAME, WEIGHTS_NAME):
        if not (folder / file).exists():
            raise ValueError(f"{folder} has no {file}: give a folder that save_adapter or PEFT wrote")
    said, own = read_json(folder / CONFIG_NAME), config.lora_options
    for option in ("r", "lora_alpha"):
        if said.get(option) != own[option]:
            raise ValueError(f"{folder}: the adapter has {option}={said.get(option)}, the model's have {own[option]}")
    stored = {key.removeprefix(_PREFIX): value for key, value in load_file(folder / WEIGHTS_NAME).items()}
    if name not in config.adapters:
        backbone.add_adapter(name)
    there = {
        key.replace(f".{name}.", "."): value
        for key, value in backbone.model.state_dict().items()
        if "lora_" in key and f".{name}." in key
    }
    here, given = ({(key, tuple(v.shape)) for key, v in tensors.items()} for tensors in (there, stored))
    if here != given:
        odd = min(key for key, _ in here ^ given)
        raise ValueError(
            f"{folder}: the adapter does not fit {config.model!r}: {odd} is missing, extra or another shape"
        )
    for key, value in there.items():
        value.copy_(stored[key])


def _names(backbone: Backbone[Any]) -> list[str]:
    return list(backbone.config.adapters) if backbone.config.tuning == "lora" else []
