"""Images become vectors: the same as the model's own, stored, and read again only if something has changed."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from model_fixtures import fit, synthetic_log, tiny_model
from PIL import Image
from safetensors.numpy import load_file
from transformers import (
    AutoImageProcessor,
    CLIPConfig,
    CLIPModel,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from polyrec.cli.main import main
from polyrec.modules.encoders.image import ImageConfig, ImageEncoder, image_vectors, store_images


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYREC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def vit(tmp_path):
    """A folder with a random ViT of width 16."""
    return make_vit(tmp_path / "vit")


def make_vit(folder, seed=0, size=16):
    torch.manual_seed(seed)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=size, patch_size=8
    )
    ViTModel(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": size, "width": size}).save_pretrained(folder)
    return folder


@pytest.fixture
def pictures(tmp_path):
    """Paths of four images of different sizes and colours."""
    random = np.random.default_rng(0)
    paths = []
    for i, (shape, mode) in enumerate(
        [((20, 30, 3), "RGB"), ((9, 9), "L"), ((16, 16, 4), "RGBA"), ((5, 40, 3), "RGB")]
    ):
        path = tmp_path / f"{i}.png"
        Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8), mode).save(path)
        paths.append(path)
    return paths


def reference(folder, paths, pool):
    model, pixels = ViTModel.from_pretrained(folder).eval(), AutoImageProcessor.from_pretrained(folder)
    images = [Image.open(path).convert("RGB") for path in paths]
    with torch.no_grad():
        return pool(model(**pixels(images=images, return_tensors="pt")).last_hidden_state).numpy()


@pytest.mark.parametrize(("pooling", "pool"), [("mean", lambda h: h.mean(1)), ("cls", lambda h: h[:, 0])])
def test_vectors_are_those_of_the_model(vit, pictures, pooling, pool):
    """Prevents images from being sorted, resized or normalised in another way than the model was trained with."""
    config = ImageConfig(str(vit), pooling=pooling, batch_size=3)
    found = image_vectors(pictures, config)
    np.testing.assert_allclose(found, reference(vit, pictures, pool), rtol=1e-4, atol=1e-5)


def test_convolutional_networks_are_pooled_over_their_map(tmp_path, pictures):
    """Prevents a map [channels, height, width] from being read as tokens."""
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ResNetModel(config).save_pretrained(tmp_path / "net")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "net")
    assert image_vectors(pictures, ImageConfig(str(tmp_path / "net"))).shape == (4, 16)


def test_models_of_images_and_texts_give_the_vectors_of_their_common_space(tmp_path, pictures):
    """Prevents CLIP's patches from being averaged, which lie in another space than its texts."""
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision, text = {**small, "image_size": 16, "patch_size": 8}, {**small, "vocab_size": 20}
    CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=8)).save_pretrained(tmp_path / "clip")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "clip")
    found = image_vectors(pictures, ImageConfig(str(tmp_path / "clip")))
    model, pixels = (
        CLIPModel.from_pretrained(tmp_path / "clip").eval(),
        AutoImageProcessor.from_pretrained(tmp_path / "clip"),
    )
    images = [Image.open(path).convert("RGB") for path in pictures]
    with torch.no_grad():
        pooled = model.vision_model(**pixels(images=images, return_tensors="pt")).pooler_output
        expected = model.visual_projection(pooled).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_an_image_is_the_same_however_it_is_given(vit, pictures):
    """Prevents rows of `datasets`, bytes, arrays and paths from being told apart."""
    path = pictures[0]
    content = path.read_bytes()
    given = [
        str(path),
        path,
        path.name,
        content,
        {"bytes": content, "path": None},
        {"bytes": None, "path": path.name},
        np.asarray(Image.open(path)),
        Image.open(path),
    ]
    found = image_vectors([*given, None], ImageConfig(str(vit)), folder=path.parent)
    for row in found[1:-1]:
        np.testing.assert_allclose(row, found[0], rtol=1e-5, atol=1e-6)
    assert np.isnan(found[-1]).all()


def test_only_what_has_changed_is_encoded_again(vit, pictures, monkeypatch, tmp_path):
    """Prevents a catalog from being encoded again each night, and a changed image or model from keeping old vectors."""
    encoded = []
    plain = ImageEncoder.forward

    def counted(self, images, device=None):
        encoded.append(len(images))
        return plain(self, images, device)

    monkeypatch.setattr(ImageEncoder, "forward", counted)
    config = ImageConfig(str(vit))
    first = image_vectors([pictures[0], pictures[1], pictures[0]], config)
    again = image_vectors([pictures[1], pictures[0], None], config)
    assert encoded == [2]
    np.testing.assert_array_equal(again[:2], first[[1, 0]])
    Image.open(pictures[2]).save(pictures[0])  # another image under the old name
    changed = image_vectors(pictures[:2], config)
    assert encoded == [2, 1]
    assert not np.allclose(changed[0], first[0])
    make_vit(vit, seed=1)  # other weights in the old folder
    other = image_vectors(pictures[:2], config)
    assert encoded == [2, 1, 2]
    assert not np.allclose(other, changed)
    ViTImageProcessor(size={"height": 16, "width": 16}, do_normalize=False).save_pretrained(vit)
    image_vectors(pictures[:2], config)
    assert encoded == [2, 1, 2, 2]


@pytest.mark.parametrize("bad", ["missing.png", b"no image", 5, {"bytes": None, "path": "missing.png"}])
def test_an_unreadable_image_is_named(vit, pictures, bad):
    """Prevents one broken file from ending a long run without saying which it was."""
    with pytest.raises(
        ValueError, match="items: column 'image': cannot read the image in row 1 .*: repair it, or make"
    ):
        image_vectors([pictures[0], bad], ImageConfig(str(vit)), what="items: column 'image'")


def test_what_cannot_work_is_refused(tmp_path, vit):
    """Prevents a text model from being asked for images, and a tuned one from being frozen in silence."""
    with pytest.raises(ValueError, match="tuning is 'full', but must be 'frozen'"):
        ImageConfig("some/model", tuning="full")
    with pytest.raises(ValueError, match="batch_size is 0; it must be a whole number >= 1"):
        ImageConfig("some/model", batch_size=0)
    with pytest.raises(ValueError, match="images: there is no image at all"):
        image_vectors([None], ImageConfig(str(vit)))
    ViTModel(ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)).save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match="has no image processor .*preprocessor_config.json"):
        ImageEncoder(ImageConfig(str(tmp_path / "bare")))


def test_the_stored_table_feeds_the_model(vit, pictures, tmp_path):
    """Prevents stored vectors from being a file that no model can read."""
    log = synthetic_log()
    images = [pictures[i % 4] if i % 5 else None for i in range(len(log["items"]["item_id"]))]
    found = store_images(images, ImageConfig(str(vit)), tmp_path / "image.safetensors")
    processor, _ = fit(log, columns={"item_features": {"image": f"embedding:{tmp_path / 'image.safetensors'}"}})
    table = tiny_model(processor).item_encoder.catalog.get_buffer("image").float().numpy()
    np.testing.assert_allclose(table[2:], found / np.linalg.norm(found, axis=1, keepdims=True), atol=1e-3)
    assert np.isnan(table[:3]).all()  # padding, the unknown item and the first item have none


def test_the_command(vit, pictures, tmp_path, capsys):
    """Prevents the documented command from failing."""
    pd.DataFrame({"item_id": [1, 2], "image": [pictures[0].name, None]}).to_parquet(tmp_path / "items.parquet")
    command = ["encode-images", str(tmp_path / "items.parquet"), "--column", "image", "--model", str(vit)]
    output = tmp_path / "out" / "image.safetensors"
    assert main([*command, "--folder", str(tmp_path), "--output", str(output)]) == 0
    assert "2 rows of 16 numbers; declare them as 'embedding:" in capsys.readouterr().out
    assert np.isnan(load_file(output)["vectors"][1]).all()
    command[3] = "imgae"
    assert main([*command, "--output", str(output)]) == 2
    assert "did you mean 'image'" in capsys.readouterr().err
