"""Folders of images, features and their digest, with a tiny exact encoder in place of a CLIP."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from cachefl_secure.cache.features import (
    FeatureSet,
    extract,
    extract_features,
    features_digest,
    image_folder,
    load_features,
    save_features,
)
from cachefl_secure.errors import ConfigError
from cachefl_secure.names import Digest

ONES, TWOS, THREES = Digest("11" * 32), Digest("22" * 32), Digest("33" * 32)
CLASSES = ("cat", "Sea Horse", "fire_truck")


@dataclass(frozen=True)
class ColourEncoder:
    """The colour of the first pixel plus one, normalised: a real encoder that a test can predict."""

    feature_dim: int = 3
    weights_digest: Digest = ONES
    preprocessing_digest: Digest = TWOS
    precision: str = "float32"
    image_size: tuple[int, int] = (4, 4)

    def encode_images(self, images: Iterable[Image.Image]) -> Tensor:
        colours = torch.tensor([image.getpixel((0, 0)) for image in images], dtype=torch.float32)
        return torch.nn.functional.normalize(colours + 1, dim=1)


def paint(path: Path, colour: tuple[int, int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), colour).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    paint(root / "Cat" / "b.png", (200, 0, 0))
    paint(root / "Cat" / "patient 2" / "a.png", (0, 200, 0))
    paint(root / "sea_horse" / "a.png", (0, 0, 200))
    (root / "README.txt").write_text("where these came from")
    (root / "Cat" / ".DS_Store").write_bytes(b"clutter")
    (root / "Cat" / "Thumbs.db").write_bytes(b"clutter")
    return root


def test_folders_match_class_names_whatever_their_case_spaces_and_underscores(folder: Path) -> None:
    images = image_folder(folder, CLASSES)
    assert images.paths == ("Cat/b.png", "Cat/patient 2/a.png", "sea_horse/a.png")
    assert images.labels == (0, 0, 1)  # fire_truck has no folder: legal
    assert images.classes == CLASSES


def test_unknown_folders_are_named_beside_the_classes_that_exist(folder: Path) -> None:
    (folder / "dog").mkdir()
    (folder / "wolf").mkdir()
    with pytest.raises(ConfigError) as caught:
        image_folder(folder, CLASSES)
    assert "'dog', 'wolf'" in str(caught.value)
    assert "'cat', 'Sea Horse', 'fire_truck'" in str(caught.value)


def test_classes_that_folders_cannot_tell_apart_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="differ only"):
        image_folder(folder, ("sea horse", "Sea_Horse"))


def test_folders_that_would_be_merged_are_both_named(tmp_path: Path) -> None:
    for name in ("fire truck", "fire_truck"):  # not in case, for file systems that see none
        (tmp_path / name).mkdir()
        paint(tmp_path / name / "1.png", (1, 2, 3))
    with pytest.raises(ConfigError, match="class folders 'fire truck', 'fire_truck' differ only") as refused:
        image_folder(tmp_path, CLASSES)
    assert refused.value.file == str(tmp_path)


def test_a_folder_without_class_folders_is_refused_and_an_empty_one_is_not(tmp_path: Path) -> None:
    assert len(image_folder(tmp_path, CLASSES)) == 0
    paint(tmp_path / "loose.png", (1, 2, 3))
    with pytest.raises(ConfigError, match="no class folders"):
        image_folder(tmp_path, CLASSES)
    with pytest.raises(ConfigError, match="no such folder"):
        image_folder(tmp_path / "absent", CLASSES)


def test_a_link_that_leaves_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    paint(tmp_path / "outside.png", (9, 9, 9))
    (folder / "Cat" / "inside.png").symlink_to(folder / "Cat" / "b.png")
    assert "Cat/inside.png" in image_folder(folder, CLASSES).paths
    (folder / "Cat" / "outside.png").symlink_to(tmp_path / "outside.png")
    with pytest.raises(ConfigError, match=r"Cat/outside\.png: is a link that leaves"):
        image_folder(folder, CLASSES)


@pytest.mark.parametrize("place", ["Cat/loop", "fire_truck"])
def test_a_link_to_a_folder_is_refused(folder: Path, place: str) -> None:
    (folder / place).symlink_to(folder / "Cat", target_is_directory=True)
    with pytest.raises(ConfigError, match="link to a folder"):
        image_folder(folder, CLASSES)


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_features_stand_in_the_order_of_the_paths(folder: Path, batch_size: int) -> None:
    seen: list[tuple[int, int]] = []
    features = extract_features(
        image_folder(folder, CLASSES),
        ColourEncoder(),
        batch_size=batch_size,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert features.features.argmax(dim=1).tolist() == [0, 1, 2]
    assert features.labels.tolist() == [0, 0, 1]
    assert seen[-1] == (3, 3)


def test_no_images_give_an_empty_feature_set(tmp_path: Path) -> None:
    features = extract_features(image_folder(tmp_path, CLASSES), ColourEncoder())
    assert len(features) == 0
    assert features.features.shape == (0, 3)


def test_an_unreadable_image_is_named(folder: Path) -> None:
    (folder / "Cat" / "c.png").write_bytes(b"no image")
    with pytest.raises(ConfigError, match=r"c\.png: cannot be read as an image"):
        extract_features(image_folder(folder, CLASSES), ColourEncoder())


def test_a_truncated_image_is_named(folder: Path) -> None:
    whole = (folder / "Cat" / "b.png").read_bytes()
    (folder / "Cat" / "b.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match=r"b\.png: cannot be read as an image"):
        extract_features(image_folder(folder, CLASSES), ColourEncoder())


def test_unreadable_images_are_skipped_only_when_asked_and_then_listed(folder: Path) -> None:
    (folder / "Cat" / "a.png").write_bytes(b"")
    (folder / "sea_horse" / "a.png").write_bytes(b"x")
    found = extract(image_folder(folder, CLASSES), ColourEncoder(), skip_unreadable=True, batch_size=1)
    assert found.skipped == ("Cat/a.png", "sea_horse/a.png")
    assert found.labels.tolist() == [0, 0]


def test_a_16_bit_radiograph_is_refused_instead_of_read_as_white(folder: Path) -> None:
    Image.new("I;16", (4, 4), 30_000).save(folder / "Cat" / "xray.png")
    with pytest.raises(ConfigError, match=r"xray\.png: more than 8 bits"):
        extract_features(image_folder(folder, CLASSES), ColourEncoder())


def test_grey_and_palette_images_become_rgb(folder: Path) -> None:
    Image.new("L", (4, 4), 90).save(folder / "Cat" / "a.png")
    Image.new("P", (4, 4), 0).save(folder / "Cat" / "p.png", transparency=b"\x00")
    features = extract_features(image_folder(folder, CLASSES), ColourEncoder())
    grey = torch.full((3,), 3**-0.5)
    torch.testing.assert_close(features.features[0], grey)
    torch.testing.assert_close(features.features[2], grey)


def test_the_digest_changes_with_one_pixel_a_name_a_label_and_the_encoder(folder: Path) -> None:
    def digest(classes: Sequence[str] = CLASSES, encoder: ColourEncoder | None = None) -> Digest:
        return features_digest(image_folder(folder, classes), encoder or ColourEncoder())

    seen = [digest()]
    assert digest() == seen[0]
    seen.append(digest(encoder=ColourEncoder(weights_digest=THREES)))
    seen.append(digest(encoder=ColourEncoder(preprocessing_digest=THREES)))
    seen.append(digest(("Sea Horse", "cat", "fire_truck")))
    image = Image.open(folder / "Cat" / "b.png")
    image.putpixel((3, 3), (201, 0, 0))
    image.save(folder / "Cat" / "b.png")
    seen.append(digest())
    (folder / "Cat" / "b.png").rename(folder / "Cat" / "c.png")
    seen.append(digest())
    (folder / "Cat" / "c.png").unlink()
    seen.append(digest())
    assert len(set(seen)) == len(seen)


def test_features_come_back_with_their_digest_in_a_file_of_the_owner(folder: Path, tmp_path: Path) -> None:
    images = image_folder(folder, CLASSES)
    features, digest = extract_features(images, ColourEncoder()), features_digest(images, ColourEncoder())
    path = tmp_path / "features.safetensors"
    save_features(path, features, digest)
    loaded, kept = load_features(path)
    assert kept == digest
    assert torch.equal(loaded.features, features.features)
    assert torch.equal(loaded.labels, features.labels)
    assert path.stat().st_mode & 0o777 == 0o600


def _write(path: Path, features: Tensor, labels: Tensor, digest: str = "44" * 32, **extra: Tensor) -> None:
    note = json.dumps({"kind": "features/1", "digest": digest})
    save_file({"features": features, "labels": labels, **extra}, path, metadata={"cachefl-secure": note})


@pytest.mark.claim("C13")
def test_a_bad_features_file_is_a_config_error(tmp_path: Path) -> None:
    path, good, labels = tmp_path / "f", torch.eye(3), torch.arange(3)
    _write(path, good, labels)
    assert len(load_features(path)[0]) == 3
    for features, other_labels, digest in [
        (torch.full((3, 3), math.nan), labels, "44" * 32),
        (good * 2, labels, "44" * 32),
        (good.double(), labels, "44" * 32),
        (good, torch.arange(2), "44" * 32),
        (good, -labels, "44" * 32),
        (good, labels, "44" * 31),
        (good, labels, "XX" * 32),
    ]:
        _write(path, features, other_labels, digest)
        with pytest.raises(ConfigError):
            load_features(path)
    _write(path, good, labels, extra=torch.zeros(1))
    with pytest.raises(ConfigError, match="extra"):
        load_features(path)
    path.write_bytes(b"\x80\x04.")
    with pytest.raises(ConfigError, match="not safetensors"):
        load_features(path)


@pytest.mark.claim("C15")
def test_no_feature_no_label_and_no_file_name_is_printed(folder: Path) -> None:
    assert repr(image_folder(folder, CLASSES)) == "ImageList(<3 images>)"
    features = FeatureSet(torch.eye(3)[:2], torch.tensor([1, 2]))
    assert repr(features) == "FeatureSet(<2 records, 3-d>)"


def test_features_that_are_not_of_unit_norm_are_refused() -> None:
    good = FeatureSet(torch.eye(3), torch.arange(3))
    for broken in (torch.eye(3) * 1.01, torch.zeros(3, 3), torch.full((3, 3), math.nan)):
        with pytest.raises(ValueError, match="unit norm"):
            replace(good, features=broken)
