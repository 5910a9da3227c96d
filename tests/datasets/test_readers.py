"""Every published layout in small, and what the readers say when it is not as published."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cachefl_secure.datasets.readers import read_data_set, read_split_file
from cachefl_secure.datasets.table import DATA_SETS, Layout, find_data_set
from cachefl_secure.errors import ConfigError
from tests.datasets.layouts import lay_out

CALTECH = DATA_SETS["caltech101"]
WITH_SPLIT_FILE = [name for name, data_set in DATA_SETS.items() if data_set.layout is Layout.split_file]


@pytest.mark.parametrize("name", DATA_SETS)
def test_a_published_layout_is_read(name: str, tmp_path: Path) -> None:
    data_set = DATA_SETS[name]
    folder = lay_out(data_set, tmp_path)
    split = read_data_set(data_set, tmp_path)
    everywhere = [path for part in (split.train, split.val, split.test) for path in part.paths]
    assert len(set(everywhere)) == len(everywhere)
    assert all((folder / data_set.images / path).is_file() for path in everywhere)
    assert split.train.root == folder / data_set.images
    assert split.train.classes == split.val.classes == split.test.classes == split.classes
    assert set(split.train.labels) == set(split.test.labels) == {0, 1, 2}
    assert list(split.train.paths) == sorted(split.train.paths)
    assert split.missing == 0
    assert not split.has_published_size  # three classes of many


@pytest.mark.parametrize("name", DATA_SETS)
def test_the_data_sets_own_folder_may_be_given(name: str, tmp_path: Path) -> None:
    folder = lay_out(DATA_SETS[name], tmp_path / "a")
    moved = folder.rename(tmp_path / "elsewhere")
    assert len(read_data_set(DATA_SETS[name], moved).test) > 0


def test_classes_are_in_the_splits_order_and_renamed(tmp_path: Path) -> None:
    lay_out(CALTECH, tmp_path)
    lay_out(DATA_SETS["eurosat"], tmp_path)
    split = read_data_set(CALTECH, tmp_path)
    assert split.classes == ("airplane", "b_two", "aardvark")
    first = split.test.labels.index(0)
    assert split.test.paths[first].startswith("airplanes/")  # files keep their names
    assert read_data_set(DATA_SETS["eurosat"], tmp_path).classes[0] == "Annual Crop Land"


def test_imagenet_takes_val_as_test_and_keeps_names_apart(tmp_path: Path) -> None:
    lay_out(DATA_SETS["imagenet"], tmp_path)
    split = read_data_set(DATA_SETS["imagenet"], tmp_path)
    assert split.classes == ("tench", "missile", "projectile")  # by folder: n0144.., n0377.., n0400..
    assert len(split.val) == 0
    assert all(path.startswith("val/") for path in split.test.paths)
    assert split.test.paths[split.test.labels.index(2)].startswith("val/n04008634/")


def test_aircraft_classes_are_in_the_order_of_variants(tmp_path: Path) -> None:
    lay_out(DATA_SETS["fgvc_aircraft"], tmp_path)
    split = read_data_set(DATA_SETS["fgvc_aircraft"], tmp_path)
    assert split.classes == ("707-320", "F/A-18", "Cessna 172")
    assert split.train.labels == (0,) * 8 + (1,) * 8 + (2,) * 8


ABSENT = {
    "caltech101": ("split_zhou_Caltech101.json", "caltech-101/101_ObjectCategories/"),
    "imagenet": ("classnames.txt", "imagenet/images/train/"),
    "fgvc_aircraft": ("images_variant_val.txt", "fgvc_aircraft/variants.txt"),
}


@pytest.mark.parametrize("name", ABSENT)
def test_an_absent_file_is_named_with_where_it_belongs(name: str, tmp_path: Path) -> None:
    file, layout = ABSENT[name]
    with pytest.raises(ConfigError, match="no such folder") as found:
        read_data_set(DATA_SETS[name], tmp_path)
    assert layout in str(found.value)
    folder = lay_out(DATA_SETS[name], tmp_path)
    (folder / file).unlink()
    with pytest.raises(ConfigError, match="absent") as found:
        read_data_set(DATA_SETS[name], tmp_path)
    assert found.value.file == str(folder / file)
    assert layout in found.value.reason


def test_absent_images_are_counted_and_left_out_only_on_request(tmp_path: Path) -> None:
    folder = lay_out(CALTECH, tmp_path)
    shutil.rmtree(folder / CALTECH.images / "b_two")
    with pytest.raises(ConfigError, match=r"b_two/image_0000\.jpg: absent, and 7 more images"):
        read_data_set(CALTECH, tmp_path)
    split = read_data_set(CALTECH, tmp_path, skip_missing=True)
    assert split.missing == 8
    assert split.listed_test_images == 6
    assert len(split.test) == 4
    assert split.classes == ("airplane", "b_two", "aardvark")  # labels stay what they were


def _row(path: str, label: Any = 0, name: Any = "a") -> dict[str, Any]:
    return {"train": [["a/1.jpg", 0, "a"]], "val": [], "test": [[path, label, name]]}


BAD = {
    "a path upwards": _row("../../secret.jpg"),
    "an absolute path": _row("/etc/passwd"),
    "a backslash": _row("..\\x.jpg"),
    "a test image among the training ones": _row("a/1.jpg"),
    "the same, written otherwise": _row("a//1.jpg"),
    "two names of one label": _row("a/2.jpg", 0, "b"),
    "one name of two labels": _row("a/2.jpg", 1, "a"),
    "a label left out": _row("a/2.jpg", 2, "c"),
    "a negative label": _row("a/2.jpg", -1, "c"),
    "a label in quotes": _row("a/2.jpg", "1", "b"),
    "no name": _row("a/2.jpg", 1, ""),
    "a field too many": _row("a/2.jpg") | {"extra": []},
    "no test": {"train": [], "val": []},
    "nothing": {"train": [], "val": [], "test": []},
}


@pytest.mark.parametrize("what", BAD)
def test_a_split_file_that_is_not_of_its_form_is_refused(what: str, tmp_path: Path) -> None:
    file = tmp_path / "split.json"
    file.write_text(json.dumps(BAD[what]))
    with pytest.raises(ConfigError):
        read_split_file(file, CALTECH)


@pytest.mark.parametrize("raw", [b"", b"\xff\xfe", b"[" * 100_000, b'{"train": ['])
def test_what_is_no_json_is_refused(raw: bytes, tmp_path: Path) -> None:
    (tmp_path / "split.json").write_bytes(raw)
    with pytest.raises(ConfigError):
        read_split_file(tmp_path / "split.json", CALTECH)


def test_imagenet_with_other_folders_in_val_than_in_train_is_refused(tmp_path: Path) -> None:
    folder = lay_out(DATA_SETS["imagenet"], tmp_path)
    shutil.rmtree(folder / "images" / "val" / "n01440764")  # labels of val would count from another folder
    with pytest.raises(ConfigError, match="other class folders"):
        read_data_set(DATA_SETS["imagenet"], tmp_path)


REAL = ["caltech101", "dtd", "eurosat", "flowers102", "oxford_pets"]
REAL_ENDS = {
    "caltech101": ("face", "yin_yang"),
    "dtd": ("banded", "zigzagged"),
    "eurosat": ("Annual Crop Land", "Sea or Lake"),
    "flowers102": ("pink primrose", "blackberry lily"),
    "oxford_pets": ("abyssinian", "yorkshire_terrier"),
}


@pytest.mark.parametrize("name", REAL)
def test_a_real_split_file_has_the_tables_classes_and_test_size(name: str, data_root: Path) -> None:
    data_set = DATA_SETS[name]
    file = data_root / "coop_splits" / data_set.split
    if not file.is_file():
        pytest.skip(f"absent: {file}")
    classes, (train, val, test) = read_split_file(file, data_set)
    assert len(classes) == data_set.classes
    assert len(test) == data_set.test_images
    assert (classes[0], classes[-1]) == REAL_ENDS[name]
    slow = {label: name for path, label, name in json.loads(file.read_text())["train"]}
    assert classes == tuple(
        slow[label] for label in range(len(slow))
    )  # CoOp's files hold renamed names already
    assert {label for _, label, _ in train} == {label for _, label, _ in val} == set(range(len(classes)))


def test_the_eleven_data_sets_are_found_by_name_and_by_title() -> None:
    assert len(DATA_SETS) == 11
    assert all(find_data_set(data_set.title) is data_set for data_set in DATA_SETS.values())
    assert find_data_set("Caltech-101") is CALTECH
    with pytest.raises(ConfigError, match="imagenet, caltech101"):
        find_data_set("cifar10")


@pytest.mark.parametrize("name", DATA_SETS)
def test_what_the_table_says_can_stand_in_a_plan(name: str) -> None:
    data_set = DATA_SETS[name]
    assert all(template.count("{}") == 1 for template in data_set.templates)
    assert data_set.alpha > 0
    assert len(set(data_set.renames.values())) == len(data_set.renames)
