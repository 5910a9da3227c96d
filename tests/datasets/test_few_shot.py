from __future__ import annotations

import tarfile
from collections import Counter
from pathlib import Path

import pytest

from cachefl_secure.cache.images import ImageList, open_image
from cachefl_secure.datasets.few_shot import few_shot, select
from cachefl_secure.datasets.readers import Split, read_data_set
from cachefl_secure.datasets.table import DATA_SETS
from cachefl_secure.errors import ConfigError
from tests.datasets.layouts import lay_out


def _images(part: str, of_each: tuple[int, ...]) -> ImageList:
    paths = [
        (f"{part}/{label}/{i:03d}", label) for label, number in enumerate(of_each) for i in range(number)
    ]
    return ImageList(Path("root"), tuple(p for p, _ in paths), tuple(label for _, label in paths), ("a", "b"))


def _split(train: tuple[int, int] = (40, 3), val: tuple[int, int] = (20, 2)) -> Split:
    parts = _images("train", train), _images("val", val), _images("test", (5, 5))
    return Split(DATA_SETS["dtd"], *parts, 10, 0)


@pytest.mark.parametrize(
    ("shots", "drawn", "validation"), [(1, (1, 1), (1, 1)), (4, (4, 3), (4, 2)), (16, (16, 3), (4, 2))]
)
def test_shots_and_validation_are_of_every_class_as_far_as_it_goes(
    shots: int, drawn: tuple[int, int], validation: tuple[int, int]
) -> None:
    train, val = few_shot(_split(), shots, 0)
    assert tuple(Counter(train.labels)[label] for label in (0, 1)) == drawn
    assert tuple(Counter(val.labels)[label] for label in (0, 1)) == validation
    assert all(path.startswith("train/") for path in train.paths)
    assert all(path.startswith("val/") for path in val.paths)
    assert all(f"/{label}/" in path for path, label in zip(train.paths, train.labels, strict=True))


def test_without_a_val_list_validation_is_other_training_images_and_never_test() -> None:
    train, val = few_shot(_split(train=(40, 17), val=(0, 0)), 16, 3)
    assert Counter(val.labels) == {0: 4, 1: 1}
    assert all(path.startswith("train/") for path in val.paths)
    assert not set(train.paths) & set(val.paths)


def test_the_draw_depends_on_its_seed_alone() -> None:
    assert few_shot(_split(), 4, 1)[0].paths == few_shot(_split(), 4, 1)[0].paths
    assert few_shot(_split(), 4, 1)[0].paths != few_shot(_split(), 4, 2)[0].paths
    assert few_shot(_split(), 4, 1)[0].paths == few_shot(_split(val=(0, 0)), 4, 1)[0].paths


def test_every_image_of_a_class_is_drawn_equally_often() -> None:
    drawn = Counter(
        path for seed in range(400) for path in few_shot(_split(), 4, seed)[0].paths if "/0/" in path
    )
    assert len(drawn) == 40
    assert all(15 < times < 70 for times in drawn.values())  # 40 expected, deviation 6


def test_selected_images_keep_their_order_and_labels() -> None:
    assert select(_images("x", (2, 2)), {3, 0}).paths == ("x/0/000", "x/1/001")


def test_no_shots_are_refused() -> None:
    with pytest.raises(ConfigError):
        few_shot(_split(), 0, 0)


def test_imagenet_has_validation_of_its_own_training_images(tmp_path: Path) -> None:
    lay_out(DATA_SETS["imagenet"], tmp_path, of_each=6)
    train, val = few_shot(read_data_set(DATA_SETS["imagenet"], tmp_path), 4, 0)
    assert Counter(train.labels) == {0: 4, 1: 4, 2: 4}
    assert Counter(val.labels) == {0: 2, 1: 2, 2: 2}
    assert all(path.startswith("train/") for path in val.paths)


def test_real_photos_of_caltech_are_read_by_their_split(tmp_path: Path, data_root: Path) -> None:
    """The archive holds at most 30 / 5 / 20 of each class, 2,621 / 500 / 1,649 in all."""
    data_set = DATA_SETS["caltech101"]
    archive, file = data_root / "caltech101_small.tar", data_root / "coop_splits" / data_set.split
    if not (archive.is_file() and file.is_file()):
        pytest.skip(f"absent: {archive} or {file}")
    folder = tmp_path / data_set.folder
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path, filter="data")
    folder.mkdir()
    (tmp_path / "caltech101").rename(folder / data_set.images)
    (folder / data_set.split).write_bytes(file.read_bytes())
    split = read_data_set(data_set, tmp_path, skip_missing=True)
    assert (len(split.train), len(split.val), len(split.test)) == (2621, 500, 1649)
    assert split.missing == 4128 + 1649 + 2465 - 2621 - 500 - 1649
    assert (len(split.classes), split.listed_test_images) == (100, 2465)
    assert not split.has_published_size
    assert open_image(split.test.root / split.test.paths[0]).size[0] > 32
    train, val = few_shot(split, 16, 1)
    assert len(train) == 1600 - sum(max(0, 16 - n) for n in Counter(split.train.labels).values())
    assert Counter(val.labels) == dict.fromkeys(range(100), 4)
