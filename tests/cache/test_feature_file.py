"""Features made elsewhere are taken as they are, or refused with what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from cachefl_secure.cache.feature_file import BroughtFeatures, read_feature_file
from cachefl_secure.cache.sources import is_feature_file
from cachefl_secure.errors import ConfigError

Save = Callable[..., Path]


def save_npz(folder: Path, **arrays: NDArray[Any]) -> Path:
    path = folder / "features.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def save_safetensors(folder: Path, **arrays: NDArray[Any]) -> Path:
    save_file(arrays, folder / "features.safetensors")
    return folder / "features.safetensors"


def save_pair(folder: Path, **arrays: NDArray[Any]) -> Path:
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return folder / "features.npy"


def save_folder(folder: Path, **arrays: NDArray[Any]) -> Path:
    return save_pair(folder, **arrays).parent


both = pytest.mark.parametrize("save", [save_npz, save_safetensors, save_pair, save_folder])


def unit_rows(number: int = 4, dimension: int = 3) -> NDArray[np.float32]:
    rows = np.random.default_rng(2).normal(size=(number, dimension))
    unit: NDArray[np.float32] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return unit


def read(path: Path) -> BroughtFeatures:
    return read_feature_file(path, number_of_classes=3, feature_dim=3)


@both
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_features_and_labels_come_as_float32_and_int64(save: Save, tmp_path: Path, dtype: type) -> None:
    rows = unit_rows()
    labels = np.array([0, 2, 1, 0], dtype=np.int32)
    path = save(tmp_path, features=rows.astype(dtype), labels=labels, other=np.zeros(2))
    assert is_feature_file(path)
    found = read(path)
    np.testing.assert_allclose(found.records.features.numpy(), rows, atol=6e-4)
    assert found.records.labels.tolist() == [0, 2, 1, 0]
    assert found.records.features.dtype == torch.float32
    assert len(set(found.record_digests)) == 4


@both
def test_the_digest_is_over_the_file_and_each_record_has_its_own(save: Save, tmp_path: Path) -> None:
    rows, labels = unit_rows(), np.array([0, 2, 1, 0])
    first = read(save(tmp_path, features=rows, labels=labels))
    other = read(save(tmp_path, features=rows, labels=labels[::-1].copy()))
    turned = read(save(tmp_path, features=rows[::-1].copy(), labels=labels))
    assert len({first.digest, other.digest, turned.digest}) == 3
    assert first.record_digests == other.record_digests == turned.record_digests[::-1]


@both
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"features": unit_rows() * 1.01}, r"4 of 4 rows have not unit norm.*norm\(features\)"),
        ({"features": np.full((4, 3), np.nan, dtype=np.float32)}, "not finite"),
        ({"features": unit_rows(dimension=5)}, "5-d, but the encoder is 3-d"),
        ({"features": unit_rows()[0]}, r"expected floating point \(n, C\)"),
        ({"features": np.ones((4, 3), dtype=np.int64)}, "expected floating point"),
        ({"labels": np.array([0, 1, 2])}, "expected 4 integers"),
        ({"labels": np.array([0.0, 1.0, 2.0, 0.0])}, "expected 4 integers"),
        ({"labels": np.array([0, 1, 2, 3])}, "no class number below 3"),
        ({"labels": np.array([0, 1, 2, -1])}, "no class number below 3"),
    ],
)
def test_what_does_not_fit_is_refused(
    save: Save, tmp_path: Path, change: dict[str, NDArray[Any]], reason: str
) -> None:
    arrays: dict[str, NDArray[Any]] = {"features": unit_rows(), "labels": np.array([0, 1, 2, 0]), **change}
    with pytest.raises(ConfigError, match=reason):
        read(save(tmp_path, **arrays))


@pytest.mark.parametrize("save", [save_npz, save_safetensors])
@pytest.mark.parametrize("missing", ["features", "labels"])
def test_a_missing_array_is_named(save: Save, tmp_path: Path, missing: str) -> None:
    arrays = {"features": unit_rows(), "labels": np.array([0, 1, 2, 0])}
    del arrays[missing]
    with pytest.raises(ConfigError, match=f"{missing}: missing"):
        read(save(tmp_path, **arrays))


NUMBERED = "whole numbers from 0 in the order of the invite's classes"


@both
def test_labels_that_are_no_class_numbers_are_told_what_they_should_be(save: Save, tmp_path: Path) -> None:
    names = np.array(["cat", "dog", "owl", "cat"])
    kinds = [np.array([0.0, 1.0, 2.0, 0.0]), np.array([1, 2, 3, 1])]
    if save is not save_safetensors:  # which holds no text
        kinds.append(names)
    if save is save_npz:
        kinds.append(names.astype(object))
    for labels in kinds:
        with pytest.raises(ConfigError, match=f"labels.*{NUMBERED}") as refused:
            read(save(tmp_path, features=unit_rows(), labels=labels))
        assert "cat" not in str(refused.value)


@pytest.mark.claim("C13")
def test_a_pickle_in_an_archive_is_refused_unread(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    objects = np.array([Bomb()] * 4, dtype=object)
    path = save_npz(tmp_path, features=unit_rows(), labels=objects)
    with pytest.raises(ConfigError, match="plain numbers"):
        read(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["f.npz", "f.safetensors"])
def test_files_that_are_something_else_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(ConfigError, match="No such file"):
        read(path)
    for raw in (b"", b"PK\x03\x04" + b"x" * 50, b"\x80\x04.", b"\x93NUMPY\x01\x00", b"\xff" * 64):
        path.write_bytes(raw)
        with pytest.raises(ConfigError, match=r"not safetensors|no \.npz archive"):
            read(path)


@pytest.mark.parametrize(
    ("features", "labels"),
    [("train_features.npy", "train_labels.npy"), ("x.npy", "labels.npy"), ("features.NPY", "labels.npy")],
)
def test_labels_lie_beside_features_under_a_like_name(tmp_path: Path, features: str, labels: str) -> None:
    name = labels if not features.endswith("NPY") else "labels.NPY"
    with (tmp_path / features).open("wb") as file:
        np.save(file, unit_rows())
    with pytest.raises(ConfigError, match=rf"{name}: No such file"):
        read(tmp_path / features)
    with (tmp_path / name).open("wb") as file:
        np.save(file, np.array([0, 2, 1, 0]))
    assert read(tmp_path / features).records.labels.tolist() == [0, 2, 1, 0]


def test_half_a_pair_makes_no_folder_of_features(tmp_path: Path) -> None:
    np.save(tmp_path / "features.npy", unit_rows())
    assert not is_feature_file(tmp_path)
    np.save(tmp_path / "labels.npy", np.zeros(4, dtype=int))
    assert is_feature_file(tmp_path)


def test_bytes_of_the_other_order_are_the_same_numbers(tmp_path: Path) -> None:
    rows, labels = unit_rows(), np.array([0, 2, 1, 0])
    native = read(save_pair(tmp_path, features=rows, labels=labels))
    swapped = read(save_pair(tmp_path, features=rows.astype(">f4"), labels=labels.astype(">i4")))
    assert swapped.record_digests == native.record_digests
    assert swapped.records.labels.tolist() == labels.tolist()


@pytest.mark.claim("C13")
@pytest.mark.parametrize("which", ["features", "labels"])
def test_a_pickle_in_a_numpy_file_is_refused_unread(tmp_path: Path, which: str) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    path = save_pair(tmp_path, features=unit_rows(), labels=np.array([0, 2, 1, 0]))
    np.save(tmp_path / f"{which}.npy", np.array([Bomb()] * 4, dtype=object), allow_pickle=True)
    with pytest.raises(ConfigError, match=rf"{which}\.npy: no \.npy array of plain numbers"):
        read(path)
    assert not (tmp_path / "ran").exists()


def test_numpy_files_that_are_something_else_are_refused(tmp_path: Path) -> None:
    path = save_pair(tmp_path, features=unit_rows(), labels=np.array([0, 2, 1, 0]))
    whole = path.read_bytes()
    cut_short = whole[:-8]
    archive = save_npz(tmp_path, features=unit_rows()).read_bytes()
    for raw in (b"", cut_short, archive, b"\x80\x04.", b"\x93NUMPY\x01\x00", b"\xff" * 64):
        path.write_bytes(raw)
        with pytest.raises(ConfigError, match=r"no \.npy array"):
            read(path)
    np.save(path, np.zeros(4, dtype=[("a", "f4")]))
    with pytest.raises(ConfigError, match=r"no \.npy array"):
        read(path)
