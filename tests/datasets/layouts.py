"""Small copies of the published layouts, made by the tests."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from cachefl_secure.datasets.table import DataSet, Layout

FOLDERS = ("n01440764", "n04008634", "n03773504")


def touch(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"")


def picture(file: Path, shade: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), shade).save(file)


def lay_out(data_set: DataSet, root: Path, *, of_each: int = 8) -> Path:
    """Two or three classes of the data set under ``root``; returns its folder. Images are empty files."""
    folder = root / data_set.folder
    maker = {Layout.split_file: _split_file, Layout.folders: _folders, Layout.variants: _variants}
    maker[data_set.layout](data_set, folder, of_each)
    return folder


def _split_file(data_set: DataSet, folder: Path, of_each: int) -> None:
    raw = [next(iter(data_set.renames), "zebra"), "b_two", "aardvark"]
    split: dict[str, list[tuple[str, int, str]]] = {"train": [], "val": [], "test": []}
    for label, name in enumerate(raw):
        for number in range(of_each):
            part = ("train", "train", "val", "test")[number % 4]
            path = f"{name}/image_{number:04d}.jpg"
            split[part].append((path, label, name))
            touch(folder / data_set.images / path)
    (folder / data_set.split).write_text(json.dumps(split))


def _folders(data_set: DataSet, folder: Path, of_each: int) -> None:
    for identity in FOLDERS:
        for part in ("train", "val"):
            for number in range(of_each):
                touch(folder / data_set.images / part / identity / f"{part}_{number}.JPEG")
    names = "n01440764 tench\nn03773504 missile\nn04008634 missile\nn09999999 never seen\n"
    (folder / "classnames.txt").write_text(names)


def _variants(data_set: DataSet, folder: Path, of_each: int) -> None:
    folder.mkdir(parents=True)
    variants = ("707-320", "F/A-18", "Cessna 172")
    (folder / "variants.txt").write_text("\n".join(variants) + "\n")
    serial = 0
    for part in ("train", "val", "test"):
        lines = []
        for variant in variants:
            for _ in range(of_each):
                lines.append(f"{serial:07d} {variant}")
                touch(folder / data_set.images / f"{serial:07d}.jpg")
                serial += 1
        (folder / f"images_variant_{part}.txt").write_text("\n".join(lines) + "\n")
