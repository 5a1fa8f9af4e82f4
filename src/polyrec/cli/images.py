"""`polyrec encode-images`: a column of image paths becomes a table of vectors."""

from __future__ import annotations

from polyrec.data.tables import column, read_table
from polyrec.modules.encoders.image import ImageConfig, store_images


def encode_images(
    items: str, name: str, model: str, revision: str | None, pooling: str, folder: str, output: str
) -> None:
    """Encode the images of an items table that have not been encoded before, and write all vectors to `output`."""
    images = column(read_table(items, "items"), name, "items", "images").to_pylist()
    config = ImageConfig(model, revision, pooling=pooling)  # type: ignore[arg-type]  # it checks
    found = store_images(images, config, output, folder, f"items: column {name!r}")
    print(f"{output}: {len(found)} rows of {found.shape[1]} numbers; declare them as 'embedding:{output}'")
