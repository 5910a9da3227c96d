"""Archives of images unpacked as ``<part>/<class>/<image>``."""

from __future__ import annotations

import json
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

PHOTOS = {"train": 16, "test": 10}
MEDICAL_IMAGES = {"train": 60, "test": 40}
"""The first of each class, by name: encoding costs 47 ms an image on an idle core."""


def unpack(data: Path, archive: str, target: Path) -> tuple[Path, tuple[str, ...]]:
    """The folder and the classes in order. What is there already is not written again."""
    classes, place_of = _caltech101(data) if archive.startswith("caltech") else _mednist()
    with tarfile.open(data / archive) as tar:
        for member in sorted((m for m in tar if m.isfile()), key=lambda m: m.name):
            place = place_of(PurePosixPath(member.name))
            content = tar.extractfile(member) if place else None
            if place is None or content is None or (target / place).is_file():
                continue
            (target / place).parent.mkdir(parents=True, exist_ok=True)
            (target / place).write_bytes(content.read())
    return target, classes


def _caltech101(data: Path) -> tuple[tuple[str, ...], Callable[[PurePosixPath], str | None]]:
    """CoOp's split; its validation photos are training here, since every method cuts a validation split of its own."""
    split = json.loads((data / "coop_splits" / "split_zhou_Caltech101.json").read_text())
    names = {label: name for _, label, name in split["test"]}
    part_of = {
        photo: (("test" if part == "test" else "train"), name)
        for part in split
        for photo, _, name in split[part]
    }

    return tuple(names[label] for label in range(len(names))), _at_most(
        PHOTOS, lambda path: part_of.get("/".join(path.parts[-2:]))
    )


def _mednist() -> tuple[tuple[str, ...], Callable[[PurePosixPath], str | None]]:
    classes = ("AbdomenCT", "BreastMRI", "CXR", "ChestCT", "Hand", "HeadCT")
    return classes, _at_most(MEDICAL_IMAGES, lambda path: (path.parts[-3], path.parts[-2]))


def _at_most(
    most: Mapping[str, int], where: Callable[[PurePosixPath], tuple[str, str] | None]
) -> Callable[[PurePosixPath], str | None]:
    """The place of an image by its part and class, or None: of no part, or enough are taken."""
    taken: Counter[tuple[str, str]] = Counter()

    def place_of(path: PurePosixPath) -> str | None:
        found = where(path)
        if found is None:
            return None
        taken[found] += 1
        return "/".join((*found, path.name)) if taken[found] <= most[found[0]] else None

    return place_of


def spoken(name: str) -> str:
    """``AbdomenCT`` as a person would say it."""
    return {"CXR": "chest x-ray", "Hand": "hand x-ray"}.get(
        name, " ".join(re.findall(r"[A-Z][a-z]+|[A-Z]+", name))
    )
