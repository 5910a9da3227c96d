"""Extraction goes on after a kill, takes nothing that is stale or torn, and repeats augmented views exactly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cachefl_secure.cache import features as extraction
from cachefl_secure.cache.augmentation import RATIO, SCALE, augmented, crop_box
from cachefl_secure.cache.features import (
    Extraction,
    FeatureSet,
    FeatureViews,
    extract,
    extract_features,
    features_digest,
    image_folder,
)
from cachefl_secure.cache.images import ImageList
from cachefl_secure.errors import ConfigError
from cachefl_secure.names import Digest

CLASSES = ("cat", "dog")
ONES, TWOS = Digest("11" * 32), Digest("22" * 32)
SIDE = 8


@dataclass
class CountingEncoder:
    """All pixels, normalised: shows every crop and flip. Counts what it was given, filling included."""

    weights_digest: Digest = ONES
    preprocessing_digest: Digest = TWOS
    precision: str = "float32"
    image_size: tuple[int, int] = (SIDE, SIDE)
    feature_dim: int = SIDE * SIDE * 3
    calls: list[int] = field(default_factory=list)

    def encode_images(self, images: Iterable[Image.Image]) -> Tensor:
        pixels = [np.asarray(image.resize((SIDE, SIDE)), dtype=np.float32).ravel() + 1 for image in images]
        self.calls.append(len(pixels))
        return torch.nn.functional.normalize(torch.tensor(np.stack(pixels)), dim=1)


def paint(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven images."""
    root = tmp_path / "images"
    for number in range(7):
        paint(root / CLASSES[number % 2] / f"{number}.png", number)
    return root


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "SHARD", 3)


def run(
    folder: Path, shards: Path | None, encoder: CountingEncoder | None = None, *, views: int = 1
) -> tuple[Extraction, int]:
    """What came out, and how many batches of one image it took."""
    counting = encoder or CountingEncoder()
    found = extract(image_folder(folder, CLASSES), counting, shards=shards, views=views, batch_size=1)
    return found, len(counting.calls)


def test_a_second_run_encodes_nothing_and_gives_the_same(folder: Path, tmp_path: Path) -> None:
    first, encoded = run(folder, tmp_path / "shards")
    again, nothing = run(folder, tmp_path / "shards")
    assert (encoded, nothing) == (7, 0)
    assert torch.equal(first.view(0).features, again.view(0).features)
    assert (first.digest, first.file_digests) == (again.digest, again.file_digests)
    assert torch.equal(first.view(0).features, run(folder, None)[0].view(0).features)
    assert first.digest == features_digest(image_folder(folder, CLASSES), CountingEncoder())


def test_shards_are_the_owners_only(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "shards")
    files = sorted((tmp_path / "shards").iterdir())
    assert [file.name for file in files] == ["000000.safetensors", "000001.safetensors", "000002.safetensors"]
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in files)
    assert (tmp_path / "shards").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "change",
    [
        {"weights_digest": Digest("33" * 32)},
        {"preprocessing_digest": Digest("33" * 32)},
        {"precision": "float16"},
    ],
    ids=["weights", "preprocessing", "precision"],
)
def test_another_encoder_encodes_all_again(folder: Path, tmp_path: Path, change: dict[str, str]) -> None:
    first, _ = run(folder, tmp_path / "shards")
    other, encoded = run(folder, tmp_path / "shards", replace(CountingEncoder(), calls=[], **change))  # type: ignore[arg-type]
    assert encoded == 7
    assert other.digest != first.digest


def test_other_views_encode_all_again(folder: Path, tmp_path: Path) -> None:
    first, _ = run(folder, tmp_path / "shards")
    other, encoded = run(folder, tmp_path / "shards", views=2)
    assert encoded == 14
    assert other.digest != first.digest


def test_one_changed_file_encodes_its_shard_again(folder: Path, tmp_path: Path) -> None:
    first, _ = run(folder, tmp_path / "shards")
    before = first.view(0).features
    paint(folder / "cat" / "6.png", 99)  # cat/0 cat/2 cat/4 | cat/6 dog/1 dog/3 | dog/5
    other, encoded = run(folder, tmp_path / "shards")
    assert encoded == 3
    assert other.digest != first.digest
    different = (other.view(0).features != before).any(dim=1)
    assert different.tolist() == [False, False, False, True, False, False, False]
    with pytest.raises(ConfigError, match="made of something else"):
        first.view(0)


def test_a_changed_name_or_label_encodes_its_shard_again(folder: Path, tmp_path: Path) -> None:
    first, _ = run(folder, tmp_path / "shards")
    (folder / "cat" / "6.png").rename(folder / "cat" / "7.png")
    renamed, encoded = run(folder, tmp_path / "shards")
    assert encoded == 3
    images = image_folder(folder, CLASSES)
    counting = CountingEncoder()
    labels = (*images.labels[:-1], 0)
    relabelled = extract(
        ImageList(images.root, images.paths, labels, images.classes),
        counting,
        shards=tmp_path / "shards",
        batch_size=1,
    )
    assert len(counting.calls) == 1
    assert len({first.digest, renamed.digest, relabelled.digest}) == 3


@pytest.mark.parametrize("damage", ["truncated", "empty", "zeroed", "other"])
def test_a_damaged_shard_is_encoded_again(folder: Path, tmp_path: Path, damage: str) -> None:
    first, _ = run(folder, tmp_path / "shards")
    shard = tmp_path / "shards" / "000001.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(
        {
            "truncated": whole[:-7],
            "empty": b"",
            "zeroed": whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2),
            "other": (tmp_path / "shards" / "000000.safetensors").read_bytes(),
        }[damage]
    )
    again, encoded = run(folder, tmp_path / "shards")
    assert encoded == 3
    assert torch.equal(first.view(0).features, again.view(0).features)


def test_what_was_skipped_is_told_after_a_restart_too_and_never_taken_silently(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "cat" / "2.png").write_bytes(b"no image")
    found = extract(
        image_folder(folder, CLASSES), CountingEncoder(), skip_unreadable=True, shards=tmp_path / "s"
    )
    assert (found.skipped, len(found), len(found.file_digests)) == (("cat/2.png",), 6, 6)
    counting = CountingEncoder()
    again = extract(image_folder(folder, CLASSES), counting, skip_unreadable=True, shards=tmp_path / "s")
    assert (again.skipped, counting.calls) == (("cat/2.png",), [])
    with pytest.raises(ConfigError, match=r"2\.png: cannot be read as an image"):
        extract(image_folder(folder, CLASSES), CountingEncoder(), shards=tmp_path / "s")
    (folder / "cat" / "2.png").unlink()
    assert again.digest == features_digest(image_folder(folder, CLASSES), CountingEncoder())


def test_a_file_that_is_gone_is_skipped_like_one_that_is_no_image(folder: Path, tmp_path: Path) -> None:
    images = image_folder(folder, CLASSES)
    (folder / "dog" / "3.png").unlink()
    for _ in range(2):
        found = extract(images, CountingEncoder(), skip_unreadable=True, shards=tmp_path / "s")
        assert (found.skipped, len(found)) == (("dog/3.png",), 6)


_KILLED = """
import sys, time
from pathlib import Path
from cachefl_secure.cache import features
from tests.cache.test_extraction import CLASSES, CountingEncoder

class Slow(CountingEncoder):
    def encode_images(self, images):
        rows = super().encode_images(images)
        if len(self.calls) == 5:
            print("middle", flush=True)
            time.sleep(60)
        return rows

features.SHARD = 3
folder, shards = map(Path, sys.argv[1:])
features.extract(features.image_folder(folder, CLASSES), Slow(), shards=shards, batch_size=1)
"""


def test_a_process_killed_in_the_middle_of_the_second_shard_encodes_only_the_rest_again(
    folder: Path, tmp_path: Path
) -> None:
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": f"{root}:{root / 'cli'}"}
    words = [sys.executable, "-c", _KILLED, str(folder), str(tmp_path / "shards")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment, cwd=root) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "middle\n"  # five images: the first shard, and two of the second
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert [file.name for file in (tmp_path / "shards").iterdir()] == ["000000.safetensors"]
    found, encoded = run(folder, tmp_path / "shards")
    assert encoded == 4
    assert torch.equal(found.view(0).features, run(folder, None)[0].view(0).features)


def test_views_are_the_same_whatever_the_batch_the_restart_and_the_other_images(
    folder: Path, tmp_path: Path
) -> None:
    images = image_folder(folder, CLASSES)
    expected = extract(images, CountingEncoder(), views=4, batch_size=1)
    for batch_size in (2, 5, 64):
        other = extract(images, CountingEncoder(), views=4, batch_size=batch_size)
        for view in range(4):
            assert torch.equal(other.view(view).features, expected.view(view).features)
    extract(images.part(0, 4), CountingEncoder(), views=4, shards=tmp_path / "s", batch_size=3)
    resumed = extract(images, CountingEncoder(), views=4, shards=tmp_path / "s", batch_size=3)
    alone = extract(images.part(5, 6), CountingEncoder(), views=4)
    for view in range(4):
        assert torch.equal(resumed.view(view).features, expected.view(view).features)
        assert torch.equal(alone.view(view).features[0], expected.view(view).features[5])
    assert torch.equal(expected.view(4).features, expected.view(0).features)


def test_view_0_is_the_plain_image_and_the_others_are_each_their_own(folder: Path) -> None:
    images = image_folder(folder, CLASSES)
    found = extract(images, CountingEncoder(), views=4)
    assert torch.equal(found.view(0).features, extract_features(images, CountingEncoder()).features)
    rows = [found.view(view).features for view in range(4)]
    assert all(not torch.equal(rows[i], rows[j]) for i in range(4) for j in range(i))
    assert all(torch.equal(found.view(view).labels, found.labels) for view in range(4))


def test_a_feature_that_overflowed_is_told_with_the_precision(folder: Path) -> None:
    class Overflowing(CountingEncoder):
        def encode_images(self, images: Iterable[Image.Image]) -> Tensor:
            return super().encode_images(images) * float("nan")

    with pytest.raises(ConfigError, match="encoder: float16: every feature must have unit norm"):
        extract(image_folder(folder, CLASSES), Overflowing(precision="float16"))


def test_batches_always_have_one_size(folder: Path) -> None:
    counting = CountingEncoder()
    extract(image_folder(folder, CLASSES), counting, views=2, batch_size=4)
    assert counting.calls == [4, 4, 4, 4, 4]  # shards of 6, 6 and 2 pictures


def test_a_view_is_torchvisions_crop_of_a_legal_box() -> None:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import hflip, resized_crop

    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (90, 120, 3), dtype=np.uint8))
    flips = 0
    for number in range(200):
        content = Digest(f"{number:064x}")
        draws = list(extraction_draws(content))
        left, upper, right, lower = crop_box(120, 90, iter(draws))
        w, h = right - left, lower - upper
        assert left >= 0 <= upper
        assert right <= 120
        assert lower <= 90
        assert SCALE[0] - 0.02 <= w * h / (120 * 90) <= SCALE[1] + 0.02
        assert RATIO[0] - 0.03 <= w / h <= RATIO[1] + 0.03
        if number < 20:
            got = augmented(image, content, 1, (24, 32))
            plain = resized_crop(
                image, upper, left, h, w, [24, 32], InterpolationMode.BICUBIC, antialias=True
            )
            choices = [np.asarray(plain), np.asarray(hflip(plain))]
            distances = [np.abs(np.asarray(got).astype(int) - each).max() for each in choices]
            assert min(distances) == 0
            flips += int(distances[1] == 0)
    assert 4 <= flips <= 16


def extraction_draws(content: Digest) -> Iterable[float]:
    from cachefl_secure.cache.augmentation import _uniform

    return _uniform(content, 1)


def test_long_thin_images_get_a_central_crop() -> None:
    draws = [0.5] * 40
    assert crop_box(1000, 10, iter(draws)) == (493, 0, 506, 10)
    assert crop_box(10, 1000, iter(draws)) == (0, 493, 10, 506)
    assert crop_box(1, 1, iter(draws)) == (0, 0, 1, 1)


def test_feature_views_turn_over_and_hold_one_feature_a_record() -> None:
    views = torch.nn.functional.normalize(
        torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0)), dim=2
    )
    labels = torch.arange(5)
    found = FeatureViews(views, labels)
    assert (len(found), found.number_of_views) == (5, 3)
    for index in range(7):
        assert torch.equal(found.view(index).features, views[index % 3])
        assert len(found.view(index)) == 5
    assert repr(found) == "FeatureViews(<5 records, 3 views, 4-d>)"
    for bad in (views[:0], views[0], views * 2, views[:, :4], views.double()):
        with pytest.raises(ValueError, match=r"expected|unit norm|float32"):
            FeatureViews(bad, labels)


_MANY = """
import resource, sys
from pathlib import Path
import torch

def most_bytes():
    status = Path("/proc/self/status")
    if status.exists():  # on Linux ru_maxrss begins with what the parent had when it forked
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

from cachefl_secure.cache import features, saved_features
from cachefl_secure.cache.images import image_folder
from tests.cache.test_extraction import CountingEncoder

class Cheap(CountingEncoder):
    def encode_images(self, images):
        number = sum(1 for _ in images)
        self.calls.append(number)
        return torch.eye(1, self.feature_dim).expand(number, -1).contiguous()

root, shards, out = map(Path, sys.argv[1:])
encoder = Cheap(feature_dim=512)
before = most_bytes()
found = features.extract(image_folder(root, ("a",)), encoder, shards=shards, batch_size=256)
saved_features.save_features(out, found.view(0), found.digest)
records, digest = saved_features.load_features(out)
assert (len(records), digest) == (100_000, found.digest)
print(before, most_bytes())
"""


@pytest.mark.slow
def test_a_hundred_thousand_images_need_less_than_2_gb(tmp_path: Path) -> None:
    """From files to features in memory, on disk and back. 205 MB of features."""
    started = time.monotonic()
    (tmp_path / "images" / "a").mkdir(parents=True)
    Image.new("RGB", (1, 1)).save(tmp_path / "one.png")
    content = (tmp_path / "one.png").read_bytes()
    for number in range(100_000):
        (tmp_path / "images" / "a" / f"{number:06d}.png").write_bytes(content)
    root = Path(__file__).parents[2]
    ran = subprocess.run(
        [sys.executable, "-c", _MANY, *(str(tmp_path / name) for name in ("images", "shards", "out"))],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": f"{root}:{root / 'cli'}"},
        cwd=root,
        check=True,
    )
    before, peak = map(int, ran.stdout.split())
    print(f"{before / 1e6:.0f} MB before, {peak / 1e6:.0f} MB at most, {time.monotonic() - started:.0f} s")
    assert peak < 2e9
    assert peak - before < 5 * 205e6


def test_an_extraction_shows_no_feature() -> None:
    found = Extraction(torch.zeros(2, dtype=torch.int64), Digest("0" * 64), (), (), 1, 4, ())
    assert repr(found) == "Extraction(<2 records, 1 views>)"
    assert isinstance(FeatureSet(torch.eye(4)[:2], found.labels), FeatureSet)
