"""Classes and first settings for init: of a data set by name, or of a partition's file; no image is looked for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cachefl_secure.datasets.partition import write_partition
from cachefl_secure.datasets.readers import read_classes, read_data_set
from cachefl_secure.datasets.schemes import parse_scheme
from cachefl_secure.datasets.sources import data_set_source
from cachefl_secure.datasets.table import DATA_SETS, Layout
from cachefl_secure.datasets.task import find_task
from cachefl_secure.errors import ConfigError
from tests.datasets.layouts import lay_out


@pytest.mark.parametrize("name", DATA_SETS)
def test_class_names_are_read_without_any_image(name: str, tmp_path: Path) -> None:
    folder = lay_out(DATA_SETS[name], tmp_path)
    expected = read_data_set(DATA_SETS[name], tmp_path).classes
    for image in folder.rglob("*"):
        if image.suffix.lower() in {".jpg", ".jpeg"}:
            image.unlink()
    assert read_classes(DATA_SETS[name], tmp_path) == expected
    found = find_task(DATA_SETS[name].title, tmp_path)
    assert (found.classes, found.data_set) == (expected, DATA_SETS[name])


@pytest.mark.parametrize("layout", Layout)
def test_a_partition_needs_nothing_beside_it(layout: Layout, tmp_path: Path) -> None:
    data_set = next(each for each in DATA_SETS.values() if each.layout is layout)
    folder = lay_out(data_set, tmp_path)
    source = data_set_source(data_set, tmp_path)
    write_partition(source.draw(parse_scheme("iid"), 2, 0, 0.0), tmp_path / "split.json")
    shutil.rmtree(folder)
    found = find_task(str(tmp_path / "split.json"), None)
    assert (found.classes, found.data_set) == (source.records.classes, data_set)


def test_a_data_set_may_lie_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(DATA_SETS["dtd"], tmp_path)  # in a folder that is called as the data set
    monkeypatch.chdir(tmp_path)
    assert find_task("dtd", Path()).data_set is DATA_SETS["dtd"]


def test_without_a_root_the_error_says_what_lies_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--root: Caltech101's class names .* holds caltech-101/"):
        find_task("caltech101", None)
    assert find_task("caltech101", None, wants_classes=False).classes == ()
    with pytest.raises(ConfigError, match=r"'mnist' is none of imagenet, .*ucf101"):
        find_task("mnist", tmp_path)
    with pytest.raises(ConfigError, match=r"give the \.json file that partition wrote"):
        find_task(str(tmp_path), None)


def test_a_partition_of_an_earlier_version_or_of_an_unknown_data_set_is_refused(tmp_path: Path) -> None:
    lay_out(DATA_SETS["dtd"], tmp_path)
    file = tmp_path / "split.json"
    write_partition(data_set_source(DATA_SETS["dtd"], tmp_path).draw(parse_scheme("iid"), 2, 0, 0.0), file)
    plain = json.loads(file.read_bytes())
    file.write_text(json.dumps(plain | {"data_set": "other"}))
    with pytest.raises(ConfigError, match=r"split\.json: 'other' is none of"):
        find_task(str(file), None)
    del plain["classes"], plain["data_set"]
    file.write_text(json.dumps(plain))
    with pytest.raises(ConfigError, match=r"classes: names no classes.*run partition again"):
        find_task(str(file), None)
    assert find_task(str(file), None, wants_classes=False).data_set is None
