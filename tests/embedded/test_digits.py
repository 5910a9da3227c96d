from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from cachefl_secure.embedded import CLASSES
from cachefl_secure.embedded.digits import (
    MINIMUM_RECORDS,
    draw_partition,
    load_scans,
    read_partition,
    silo_folders,
    write_image_folders,
    write_partition,
)
from cachefl_secure.errors import ConfigError

LABELS = load_scans()[1]


@pytest.mark.parametrize("rng_seed", range(5))
def test_every_record_lies_in_exactly_one_place(rng_seed: int) -> None:
    partition = draw_partition(LABELS, rng_seed)
    everywhere = [index for place in partition.places().values() for index in place]
    assert sorted(everywhere) == list(range(len(LABELS)))
    assert list(partition.silos) == ["silo-1", "silo-2", "silo-3", "silo-4", "silo-5"]


def test_the_held_out_fifth_is_stratified() -> None:
    partition = draw_partition(LABELS, 0)
    of_class = np.bincount(LABELS[list(partition.held_out)], minlength=10)
    assert np.abs(of_class - np.bincount(LABELS) / 5).max() <= 0.5


def test_silos_differ_in_their_labels_as_a_low_concentration_makes_them() -> None:
    uneven, even = draw_partition(LABELS, 0), draw_partition(LABELS, 0, concentration=1000.0)
    largest = [_largest_class_share(partition.silos.values()) for partition in (uneven, even)]
    assert largest[0] > 0.25
    assert largest[1] < 0.15


def _largest_class_share(silos: object) -> float:
    assert hasattr(silos, "__iter__")
    counts = [np.bincount(LABELS[list(silo)], minlength=10) for silo in silos]
    return float(np.mean([count.max() / count.sum() for count in counts]))


def test_a_draw_that_leaves_a_silo_short_is_drawn_again() -> None:
    partitions = [draw_partition(LABELS, seed, concentration=0.01) for seed in range(20)]
    assert any(partition.redraws > 0 for partition in partitions)
    assert min(len(silo) for p in partitions for silo in p.silos.values()) >= MINIMUM_RECORDS


def test_the_partition_depends_on_the_seed_alone() -> None:
    assert draw_partition(LABELS, 3) == draw_partition(LABELS, 3)
    assert draw_partition(LABELS, 3) != draw_partition(LABELS, 4)


def test_too_few_records_are_refused() -> None:
    with pytest.raises(ValueError, match="too few"):
        draw_partition(LABELS[:100], 0)


def test_a_partition_survives_its_file(tmp_path: Path) -> None:
    partition = draw_partition(LABELS, 1)
    write_partition(partition, tmp_path / "p.json")
    assert read_partition(tmp_path / "p.json") == partition


@pytest.mark.parametrize("raw", [b"", b"{}", b'{"rng_seed": "x"}', b"\xff"])
def test_what_is_no_partition_is_refused(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "p.json").write_bytes(raw)
    with pytest.raises(ConfigError):
        read_partition(tmp_path / "p.json")


def test_image_folders_have_the_same_bytes_each_time(tmp_path: Path) -> None:
    partition = write_image_folders(tmp_path / "a", 0)
    write_image_folders(tmp_path / "b", 0)
    first = _tree(tmp_path / "a")
    assert first == _tree(tmp_path / "b")
    write_image_folders(tmp_path / "a", 0)
    assert first == _tree(tmp_path / "a")
    assert len(first) == len(LABELS) + 1
    for silo, folder in silo_folders(tmp_path / "a").items():
        assert len(list(folder.glob("*/*.png"))) == len(partition.silos[silo])
        assert {sub.name for sub in folder.iterdir()} <= set(CLASSES)


def test_another_partition_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    write_image_folders(tmp_path, 0)
    with pytest.raises(ConfigError, match="another partition"):
        write_image_folders(tmp_path, 1)


def _tree(root: Path) -> dict[str, str]:
    files = [file for file in root.rglob("*") if file.is_file()]
    return {f.relative_to(root).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
