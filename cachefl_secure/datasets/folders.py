"""A partition as folders that ``join --data`` and ``evaluate --data`` take: one folder a silo, one sub-folder a class."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from cachefl_secure.cache.images import ImageList
from cachefl_secure.datasets.partition import Partition, write_partition
from cachefl_secure.errors import ConfigError

PARTITION_FILE = "partition.json"
CLASSES_FILE = "classes.txt"


def write_folders(out: Path, partition: Partition, places: Mapping[str, ImageList]) -> int:
    """``out/silo-1/<class>/...`` and so on, ``out/partition.json``, and ``out/classes.txt`` for ``init``.

    Images are hard links where the file system can, else copies: links of the other kind would leave the
    folder, which ``join`` refuses. An interrupted call is made again. Returns the number of images.

    Raises:
        ConfigError: the folder holds something else or another partition, or a class that no folder can be
            called after.
    """
    marker = out / PARTITION_FILE
    if out.exists() and not marker.exists() and any(out.iterdir()):
        raise ConfigError(str(out), "", "holds other files; choose an empty or a new folder")
    write_partition(partition, marker)
    classes = next(iter(places.values())).classes
    (out / CLASSES_FILE).write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")
    for place in places:
        (out / place).mkdir(exist_ok=True)  # also a silo without records has its folder
    pairs = [pair for place, images in places.items() for pair in _pairs(images, out / place)]
    if len({target for _, target in pairs}) != len(pairs):
        raise ConfigError(str(out), "", "two images of a class would have the same name")
    for source, target in pairs:
        _link(source, target)
    return len(pairs)


def class_folder(name: str) -> str:
    """What the folder of a class is called: as the class, but "F/A-18" is in ``F_A-18``.

    Raises:
        ConfigError: a name whose folder would be hidden.
    """
    folder = name.replace("/", "_")
    if folder.startswith("."):
        raise ConfigError("classes", name, "no folder can be called so: it would be hidden")
    return folder


def _pairs(images: ImageList, place: Path) -> Iterator[tuple[Path, Path]]:
    """Each image with where it goes; where two of a class have the same name, under its whole path."""
    named = Counter(
        (label, PurePosixPath(path).name) for path, label in zip(images.paths, images.labels, strict=True)
    )
    for path, label in zip(images.paths, images.labels, strict=True):
        short = PurePosixPath(path).name
        name = short if named[label, short] == 1 else path.replace("/", "__")
        yield images.root / path, place / class_folder(images.classes[label]) / name


def _link(source: Path, target: Path) -> None:
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    real = source.resolve()  # a hard link to a link would be a link again
    try:
        os.link(real, target)
    except OSError:  # another disk, or a file system or user without hard links
        draft = target.with_name(
            f".{target.name}.draft"
        )  # hidden: no image, should this be the last that is done
        shutil.copyfile(real, draft)
        draft.replace(target)
