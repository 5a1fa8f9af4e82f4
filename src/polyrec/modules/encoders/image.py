"""Images become vectors, by any vision `AutoModel`; a stored table of them is an `embedding` of the items.

    store_images(paths, ImageConfig("facebook/dinov2-small"), "image.safetensors")
    PolyRecProcessor.fit(..., columns={"item_features": {"image": "embedding:image.safetensors"}})

Letters: M images, S patches, W width of the vectors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import Tensor, nn

from polyrec.core.backbones import BackboneConfig, resolve
from polyrec.core.cache import cache_root
from polyrec.core.ranges import AT_LEAST_ONE
from polyrec.modules.encoders.backbone import Backbone
from polyrec.modules.encoders.vector_store import VectorStore

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class ImageConfig(BackboneConfig):
    """A frozen vision model.

    Args:
        pooling: "mean" of the patches (or of a convolutional network's map), or "cls", the first token. Models of
            images and texts (CLIP, SigLIP) have vectors of whole images of their own, and use them.
        batch_size: images read at once.

    Example:
        >>> ImageConfig("some/model", pooling="men")
        Traceback (most recent call last):
            ...
        polyrec.core.settings.SettingError: pooling is 'men'; it must be 'mean' or 'cls'; did you mean 'mean'?
    """

    pooling: Literal["mean", "cls"] = "mean"
    batch_size: Annotated[int, AT_LEAST_ONE] = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tuning != "frozen":
            raise ValueError(f"images are encoded once and stored: tuning is {self.tuning!r}, but must be 'frozen'")


class ImageEncoder(nn.Module):
    r"""One vector per image: v = pool(backbone(pixels)).

    Shapes: M images (paths, bytes, arrays [height, width(, 3)] uint8, or PIL images) -> [M, W].
    """

    def __init__(self, config: ImageConfig) -> None:
        from transformers import AutoImageProcessor

        super().__init__()
        self.config = resolve(config)
        self.backbone: Backbone[ImageConfig] = Backbone(self.config)
        try:
            self.pixels = AutoImageProcessor.from_pretrained(
                config.model, revision=config.revision or "main", trust_remote_code=False
            )
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{config.model!r} has no image processor ({str(error).splitlines()[0]}): give a vision model, "
                "with its preprocessor_config.json"
            ) from error

    @property
    def key(self) -> str:
        """What its vectors depend on: the weights, how images become pixels, and the pooling."""
        self.backbone.transformer()  # so that its fingerprint is known
        pixels = hashlib.sha256(self.pixels.to_json_string().encode()).hexdigest()[:8]
        return f"{self.backbone.config.fingerprint}-{pixels}-{self.config.pooling}"

    @torch.no_grad()
    def forward(self, images: Sequence[Any], device: torch.device | None = None) -> Tensor:
        """Encode images, shapes as in the class description."""
        model = self.backbone.transformer(device)
        found = []
        for begin in range(0, len(images), self.config.batch_size):
            opened = [open_image(image) for image in images[begin : begin + self.config.batch_size]]
            pixels = self.pixels(images=opened, return_tensors="pt")["pixel_values"].to(model.device)
            if "vision_config" in self.config.architecture:
                found.append(model.get_image_features(pixel_values=pixels).pooler_output)
            else:
                found.append(_pool(model(pixel_values=pixels).last_hidden_state, self.config.pooling))
        return torch.cat(found).float().to(device or "cpu")


def _pool(hidden: Tensor, how: str) -> Tensor:
    """[M, S, W] of a transformer or [M, W, height, width] of a convolutional network -> [M, W]."""
    if hidden.dim() == 4:
        return hidden.mean((2, 3))
    return hidden[:, 0] if how == "cls" else hidden.mean(1)


def image_vectors(
    images: Sequence[Any], config: ImageConfig, folder: str | Path = ".", what: str = "images"
) -> np.ndarray:
    """Vectors of images, float32 [M, W], NaN where there is no image.

    Vectors are kept on disk (`polyrec.modules.encoders.vector_store`): an image is encoded again only if its content,
    the model's weights or the way images become pixels have changed.

    Args:
        images: a column: paths, bytes, {"bytes": ..., "path": ...} as `datasets` writes them, arrays, None = missing.
        folder: that paths are relative to.
        what: names table and column in messages.

    Raises:
        ValueError: an image that cannot be read, by its row.
    """
    encoder = ImageEncoder(config)
    held = [row for row, image in enumerate(images) if image is not None]
    if not held:
        raise ValueError(f"{what}: there is no image at all")
    contents = [_content(images[row], Path(folder), row, what) for row in held]

    def encode(positions: np.ndarray) -> np.ndarray:
        given = [_given(images[held[position]], Path(folder)) for position in positions]
        return encoder(given).numpy()

    vectors_KW = VectorStore(cache_root() / f"image-{encoder.key}.safetensors").vectors(contents, encode)
    found = np.full((len(images), vectors_KW.shape[1]), np.nan, dtype=np.float32)
    found[held] = vectors_KW
    return found


def store_images(
    images: Sequence[Any], config: ImageConfig, output: str | Path, folder: str | Path = ".", what: str = "images"
) -> np.ndarray:
    """Write [`image_vectors`] to a .safetensors file, to be declared as "embedding:<file>"; returns them."""
    found = image_vectors(images, config, folder, what)
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    save_file({"vectors": found}, output)
    return found


def open_image(image: Any) -> Image:
    """An image of three colours, whatever it is given as."""
    from PIL import Image

    if isinstance(image, bytes):
        return Image.open(BytesIO(image)).convert("RGB")
    if isinstance(image, str | Path):
        with Image.open(image) as opened:
            return opened.convert("RGB")
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    return image.convert("RGB")


def _given(image: Any, folder: Path) -> Any:
    """Paths are made whole, records of `datasets` become bytes or a path."""
    if isinstance(image, Mapping):
        image = image["bytes"] if image.get("bytes") is not None else image["path"]
    return folder / image if isinstance(image, str | Path) else image


def _content(image: Any, folder: Path, row: int, what: str) -> bytes:
    """The hash of an image's content, once it has been opened: an image that cannot be read is found before hours are
    spent on those before it."""
    given = _given(image, folder)
    try:
        if isinstance(given, Path):
            content = given.read_bytes()
            open_header(content)
        elif isinstance(given, bytes):
            content = given
            open_header(content)
        else:
            opened = open_image(given)
            content = repr(opened.size).encode() + opened.tobytes()
    except (OSError, TypeError, AttributeError, ValueError) as error:
        shown = given if isinstance(given, Path) else type(given).__name__
        raise ValueError(
            f"{what}: cannot read the image in row {row} ({shown}: {error}): repair it, or make it null where there is "
            "none"
        ) from error
    return hashlib.sha256(content).digest()


def open_header(content: bytes) -> None:
    """Refuse bytes that are no image."""
    from PIL import Image

    Image.open(BytesIO(content)).close()
