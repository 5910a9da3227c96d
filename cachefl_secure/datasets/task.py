"""What a federation is to classify: of a data set in the table, or of the file that ``partition`` wrote."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from msgspec import UNSET

from cachefl_secure.datasets.partition import Partition, read_partition
from cachefl_secure.datasets.readers import read_classes
from cachefl_secure.datasets.table import DataSet, find_data_set
from cachefl_secure.errors import ConfigError

PARTITION = ".json"
"""How the name of a partition's file ends; no data set is called so."""


@dataclass(frozen=True, slots=True)
class Task:
    """Classes in the order of their labels, and what the table knows of them."""

    classes: tuple[str, ...]
    """Empty where nobody asked."""
    data_set: DataSet | None
    """None: a partition of the operator's own images."""


def find_task(text: str, root: Path | None, *, wants_classes: bool = True) -> Task:
    """``text`` is a data set's name or title, whose classes are read from its files below ``root``; or a ``.json`` file
    of ``partition``, which names its classes itself. No image is looked for and no training record is read.

    Raises:
        ConfigError: no such name or file, the data set's files are not there, or a partition of an earlier
            version, which has no names.
    """
    if text.lower().endswith(PARTITION):
        return _of_partition(Path(text), read_partition(Path(text)), wants_classes=wants_classes)
    try:
        data_set = find_data_set(text)
    except ConfigError:
        if not Path(text).exists():
            raise
        reason = "give the .json file that partition wrote, or a data set's name with --root"
        raise ConfigError("--dataset", text[:200], reason) from None
    if not wants_classes:
        return Task((), data_set)
    if root is None:
        reason = (
            f"{data_set.title}'s class names are read from its own files: give the folder that holds "
            f"{data_set.folder}/, or a file that partition wrote as --dataset"
        )
        raise ConfigError("--root", "", reason)
    return Task(read_classes(data_set, root), data_set)


def _of_partition(file: Path, partition: Partition, *, wants_classes: bool) -> Task:
    name, classes = partition.data_set, partition.classes
    if classes is UNSET and wants_classes:
        reason = "names no classes, as files of earlier versions; run partition again or give --classes"
        raise ConfigError(str(file), "classes", reason)
    data_set = None if name is UNSET else find_data_set(name, file=str(file))
    return Task(() if classes is UNSET else classes, data_set)
