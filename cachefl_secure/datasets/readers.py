"""The data sets of ``table``, read from their published folders. Nothing is downloaded or changed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated

import msgspec
from msgspec import Meta

from cachefl_secure.cache.images import ImageList
from cachefl_secure.datasets.table import DataSet, Layout
from cachefl_secure.errors import ConfigError

MAX_SPLIT_BYTES = 128 * 1024 * 1024

Row = tuple[str, Annotated[int, Meta(ge=0, le=100_000)], Annotated[str, Meta(min_length=1, max_length=200)]]
"""(path, label, class name), as in a split file."""


class SplitFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """CoOp's ``split_zhou_*.json``."""

    train: list[Row]
    val: list[Row]
    test: list[Row]


@dataclass(frozen=True, slots=True)
class Split:
    """A data set as its authors or CoOp split it. The three lists share ``classes``, in the order of labels."""

    data_set: DataSet
    train: ImageList
    val: ImageList
    """Empty where none is published (ImageNet)."""
    test: ImageList
    listed_test_images: int
    """Those that the files name, whether or not they lie here."""
    missing: int
    """Images that the files name and that do not lie here, in all three lists."""

    @property
    def classes(self) -> tuple[str, ...]:
        return self.test.classes

    @property
    def has_published_size(self) -> bool:
        """False: another version of the data set, or only a part of it; its accuracy compares with no paper's."""
        published = self.data_set.classes, self.data_set.test_images
        return not self.missing and (len(self.classes), self.listed_test_images) == published


def read_data_set(data_set: DataSet, root: Path, *, skip_missing: bool = False) -> Split:
    """Train, val and test. ``root`` holds the data set's folder, or is that folder.

    With ``skip_missing`` images that are named but absent are left out and counted.

    Raises:
        ConfigError: a file or folder is absent, where it is expected; a file of another form; absent images.
    """
    folder = _folder(data_set, root)
    readers = {
        Layout.split_file: _read_split_file,
        Layout.folders: _read_folders,
        Layout.variants: _read_variants,
    }
    classes, rows = readers[data_set.layout](data_set, folder)
    images = folder / data_set.images
    present = [[row for row in part if os.path.isfile(images / row[0])] for part in rows]
    missing = sum(map(len, rows)) - sum(map(len, present))
    if missing and not skip_missing:
        first = next(row[0] for part in rows for row in part if not os.path.isfile(images / row[0]))
        raise ConfigError(
            str(images),
            first,
            f"absent, and {missing - 1} more images; --skip-missing leaves them out; {_layout(data_set)}",
        )
    train, val, test = (_image_list(images, part, classes) for part in present)
    return Split(data_set, train, val, test, listed_test_images=len(rows[2]), missing=missing)


def read_classes(data_set: DataSet, root: Path) -> tuple[str, ...]:
    """Class names in the order of their labels. ``root`` as in ``read_data_set``; no image is looked for.

    Raises:
        ConfigError: the file or folder that names them is absent or of another form.
    """
    folder = _folder(data_set, root)
    match data_set.layout:
        case Layout.split_file:
            return read_split_file(folder / data_set.split, data_set)[0]
        case Layout.folders:
            return _named_folders(data_set, folder)[1]
        case Layout.variants:
            return _renamed(data_set, _variants(data_set, folder))


def read_split_file(file: Path, data_set: DataSet) -> tuple[tuple[str, ...], tuple[list[Row], ...]]:
    """Class names by label, after the table's renames, and the rows of train, val and test.

    Raises:
        ConfigError: not of CoOp's form, a path that leaves the image folder, an image that stands twice, a
            label without a name or with two.
    """
    try:
        split = msgspec.json.decode(_read(file, data_set), type=SplitFile)
    except msgspec.ValidationError as error:
        reason, _, place = str(error).partition(" - at `$")
        raise ConfigError(str(file), place.strip("`."), reason) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(str(file), "", f"no split file: {error}") from None
    rows = (split.train, split.val, split.test)
    _check_rows(file, rows)
    return _names(file, rows, data_set.renames), rows


def _read_split_file(data_set: DataSet, folder: Path) -> tuple[tuple[str, ...], tuple[list[Row], ...]]:
    return read_split_file(folder / data_set.split, data_set)


def _read_variants(data_set: DataSet, folder: Path) -> tuple[tuple[str, ...], tuple[list[Row], ...]]:
    """FGVC: ``variants.txt`` is the order of classes; a line of the others is "0034309 A300B4"."""
    names = _variants(data_set, folder)
    labels = {name: label for label, name in enumerate(names)}
    rows: list[list[Row]] = []
    for part in ("train", "val", "test"):
        file = folder / f"images_variant_{part}.txt"
        pairs = [line.partition(" ")[::2] for line in _lines(file, data_set)]
        unknown = next((name for _, name in pairs if name not in labels), None)
        if unknown is not None:
            raise ConfigError(str(file), unknown[:60], "is no variant of variants.txt")
        rows.append([(f"{image}.jpg", labels[name], name) for image, name in pairs])
    _check_rows(folder, rows)
    return _renamed(data_set, names), tuple(rows)


def _variants(data_set: DataSet, folder: Path) -> list[str]:
    names = _lines(folder / "variants.txt", data_set)
    if len(set(names)) != len(names):
        raise ConfigError(str(folder / "variants.txt"), "", "a variant stands twice")
    return names


def _renamed(data_set: DataSet, names: Iterable[str]) -> tuple[str, ...]:
    return tuple(data_set.renames.get(name, name) for name in names)


def _read_folders(data_set: DataSet, folder: Path) -> tuple[tuple[str, ...], tuple[list[Row], ...]]:
    """ImageNet: a folder a class, in alphabetic order; a line of ``classnames.txt`` is "n01440764 tench".

    Its published val images are the test set, as everywhere: their labels are the only ones published.
    """
    train, test = (folder / data_set.images / part for part in ("train", "val"))
    ids, names = _named_folders(data_set, folder)
    rows = [_rows_of_folders(part, ids, names) for part in (train, test)]
    return names, (rows[0], [], rows[1])


def _named_folders(data_set: DataSet, folder: Path) -> tuple[list[str], tuple[str, ...]]:
    """Names of the class folders, and of the classes."""
    file = folder / "classnames.txt"
    called = dict(line.partition(" ")[::2] for line in _lines(file, data_set))
    train, test = (folder / data_set.images / part for part in ("train", "val"))
    ids = _subfolders(train, data_set)
    if ids != _subfolders(test, data_set):
        raise ConfigError(str(test), "", "holds other class folders than train")
    unnamed = [identity for identity in ids if not called.get(identity)]
    if unnamed:
        raise ConfigError(str(file), unnamed[0], "has no name, but a folder")
    names = tuple(data_set.renames.get(identity, called[identity]) for identity in ids)
    _check_apart(file, names)
    return ids, names


def _rows_of_folders(part: Path, ids: Sequence[str], names: Sequence[str]) -> list[Row]:
    return [
        (f"{part.name}/{identity}/{entry.name}", label, names[label])
        for label, identity in enumerate(ids)
        for entry in os.scandir(part / identity)
        if not entry.name.startswith(".")
    ]


def _folder(data_set: DataSet, root: Path) -> Path:
    if (root / data_set.folder).is_dir():
        return root / data_set.folder
    anchors = [name for name in (data_set.split, "classnames.txt", "variants.txt") if name]
    if any((root / name).is_file() for name in anchors):  # the folder itself, under whatever name
        return root
    raise ConfigError(str(root / data_set.folder), "", f"no such folder; {_layout(data_set)}")


def _layout(data_set: DataSet) -> str:
    return f"{data_set.title} is published as {data_set.published_layout}"


def _read(file: Path, data_set: DataSet) -> bytes:
    try:
        with file.open("rb") as stream:
            raw = stream.read(MAX_SPLIT_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(str(file), "", f"absent; {_layout(data_set)}") from None
    except OSError as error:
        raise ConfigError(str(file), "", error.strerror or "cannot be read") from None
    if len(raw) > MAX_SPLIT_BYTES:
        raise ConfigError(str(file), "", f"more than the {MAX_SPLIT_BYTES} bytes allowed")
    return raw


def _lines(file: Path, data_set: DataSet) -> list[str]:
    try:
        lines = _read(file, data_set).decode("utf-8").splitlines()
    except UnicodeDecodeError:
        raise ConfigError(str(file), "", "is not UTF-8 text") from None
    return [line.strip() for line in lines if line.strip()]


def _subfolders(folder: Path, data_set: DataSet) -> list[str]:
    if not folder.is_dir():
        raise ConfigError(str(folder), "", f"no such folder; {_layout(data_set)}")
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != ".")


def _check_rows(file: Path, rows: Iterable[Sequence[Row]]) -> None:
    """No image leaves the folder or stands twice: a test image among the training ones would be a leak."""
    seen: set[str] = set()
    for path, _, _ in (row for part in rows for row in part):
        pure = PurePosixPath(path)
        if pure.is_absolute() or ".." in pure.parts or "\\" in path or "\0" in path or not pure.parts:
            raise ConfigError(str(file), path[:60], "leaves the image folder")
        if str(pure) in seen:
            raise ConfigError(str(file), path[:60], "stands twice")
        seen.add(str(pure))


def _names(file: Path, rows: Iterable[Sequence[Row]], renames: Mapping[str, str]) -> tuple[str, ...]:
    found: dict[int, str] = {}
    for _, label, name in (row for part in rows for row in part):
        if found.setdefault(label, name) != name:
            raise ConfigError(str(file), f"label {label}", f"is both {found[label]!r} and {name!r}")
    if not found or sorted(found) != list(range(len(found))):
        raise ConfigError(str(file), "", f"labels do not count from 0 to {max(found, default=0)}")
    names = tuple(renames.get(found[label], found[label]) for label in range(len(found)))
    _check_apart(file, names)
    return names


def _check_apart(file: Path, names: Sequence[str]) -> None:
    twice = next((name for index, name in enumerate(names) if name in names[:index]), None)
    if twice is not None:
        raise ConfigError(str(file), twice, "is the name of two classes")


def _image_list(images: Path, rows: Iterable[Row], classes: tuple[str, ...]) -> ImageList:
    found = sorted((str(PurePosixPath(path)), label) for path, label, _ in rows)
    return ImageList(images, tuple(path for path, _ in found), tuple(label for _, label in found), classes)
