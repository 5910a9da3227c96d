"""Where the records of a partition come from: a data set of the table, a folder of images, or a CSV file."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray

from cachefl_secure.cache.images import ImageList, image_folder, labels_by_name
from cachefl_secure.datasets.few_shot import few_shot, select
from cachefl_secure.datasets.partition import Partition, check_records, draw_partition, partition_by_site
from cachefl_secure.datasets.readers import read_data_set
from cachefl_secure.datasets.schemes import Kind, Scheme
from cachefl_secure.datasets.table import DataSet
from cachefl_secure.errors import ConfigError
from cachefl_secure.wording import counted

HELD_OUT, VALIDATION = "held-out", "validation"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Records to be dealt out, and those that already have a place."""

    name: str
    records: ImageList
    sites: tuple[str, ...] | None = None
    """The site of each record, where it is known."""
    held_out: ImageList | None = None
    """Published test images; None: a share of the records is held out."""
    validation: ImageList | None = None
    missing: int = 0
    """Images that the files name and that do not lie here."""
    data_set: DataSet | None = None
    has_published_size: bool = True
    """False: accuracy on it compares with no paper's."""

    @property
    def labels(self) -> NDArray[np.int64]:
        return np.asarray(self.records.labels, np.int64)

    def draw(self, scheme: Scheme, silos: int, rng_seed: int, held_out_share: float) -> Partition:
        """A partition of the records, with their classes' names. A data set with test images of its own holds out
        no share.

        Raises:
            ConfigError: as ``draw_partition`` and ``partition_by_site``, or no records or sites.
        """
        if not len(self.records):
            raise ConfigError(str(self.records.root), "", "holds no images")
        share = held_out_share if self.held_out is None else 0.0
        if scheme.kind is not Kind.by_column:
            drawn = draw_partition(
                self.labels, scheme, silos, rng_seed, names=self.records.paths, held_out_share=share
            )
        elif self.sites is None:
            raise ConfigError("--scheme", "", "by-column needs --csv with a column of sites")
        else:
            drawn = partition_by_site(
                self.labels, self.sites, rng_seed, names=self.records.paths, held_out_share=share
            )
        name = UNSET if self.data_set is None else self.data_set.name
        return msgspec.structs.replace(drawn, classes=self.records.classes, data_set=name)

    def places(self, partition: Partition) -> dict[str, ImageList]:
        """The images of each silo, of ``held-out`` and, where there are any, of ``validation``.

        Raises:
            ConfigError: a partition of other records, or a silo with one of the two reserved names.
        """
        check_records(partition, self.records.paths, self.labels)
        places = {name: select(self.records, held) for name, held in partition.silos.items()}
        if taken := {HELD_OUT, VALIDATION} & set(places):
            raise ConfigError("site", "", f"{min(taken)!r} is the name of another folder")
        published = self.held_out
        places[HELD_OUT] = select(self.records, partition.held_out) if published is None else published
        if self.validation is not None and len(self.validation):
            places[VALIDATION] = self.validation
        return places


def data_set_source(
    data_set: DataSet, root: Path, *, shots: int = 0, rng_seed: int = 0, skip_missing: bool = False
) -> Source:
    """Training images to be dealt out, all or ``shots`` of each class; test images are held out.

    Raises:
        ConfigError: as ``read_data_set`` and ``few_shot``.
    """
    split = read_data_set(data_set, root, skip_missing=skip_missing)
    train, val = few_shot(split, shots, rng_seed) if shots else (split.train, split.val)
    return Source(
        name=data_set.title,
        records=train,
        held_out=split.test,
        validation=val,
        missing=split.missing,
        data_set=data_set,
        has_published_size=split.has_published_size,
    )


def folder_source(path: Path) -> Source:
    """A folder with one sub-folder a class; its classes are those folders' names in alphabetic order.

    Raises:
        ConfigError: as ``image_folder``.
    """
    if not path.is_dir():
        raise ConfigError(str(path), "", "no such folder")
    classes = sorted(entry.name for entry in path.iterdir() if entry.is_dir() and entry.name[0] != ".")
    return Source(name=path.name, records=image_folder(path, classes))


@dataclass(frozen=True, slots=True)
class Columns:
    """What the columns of a CSV file are called."""

    path: str = "path"
    label: str = "label"
    site: str = "site"


def csv_source(
    file: Path, columns: Columns, *, root: Path | None = None, skip_missing: bool = False
) -> Source:
    """A line a record; paths are relative to ``root``, else to the file's folder, or absolute and below it. A column
    of sites may lack.

    Classes are the labels in alphabetic order.

    Raises:
        ConfigError: no such file or column, an empty cell, a path that leaves the folder or stands twice,
            absent images, or two labels that would be taken for one class.
    """
    folder = file.parent if root is None else root
    listed = list(_rows(file, columns, folder))
    rows = sorted(row[:3] for row in listed)
    paths = [path for path, _, _ in rows]
    twice = next((path for path, after in pairwise(paths) if path == after), None)
    if twice is not None:
        raise ConfigError(str(file), twice[:60], "stands twice")
    absent = {path: line for path, _, _, line in listed if not os.path.isfile(folder / path)}
    if absent and not skip_missing:
        path, line = next(iter(absent.items()))
        more = "" if len(absent) == 1 else f", nor are those of {counted(len(absent) - 1, 'more line')}"
        reason = f"{path[:200]!r} is absent in {folder}{more}; --skip-missing leaves them out"
        raise ConfigError(str(file), f"line {line}", reason)
    present = [row for row in rows if row[0] not in absent]
    classes = sorted({label for _, label, _ in rows})
    labels_by_name(classes, file=str(file), field=columns.label, what="labels")
    labels = {label: index for index, label in enumerate(classes)}
    records = ImageList(
        folder, tuple(row[0] for row in present), tuple(labels[row[1]] for row in present), tuple(classes)
    )
    sites = tuple(row[2] for row in present)
    return Source(name=file.stem, records=records, sites=sites if all(sites) else None, missing=len(absent))


def _below(folder: Path, path: str, file: Path, line: int) -> str:
    """The path, relative to the folder."""
    relative, top = Path(path), folder.absolute()
    if relative.is_absolute() and relative.is_relative_to(top):
        relative = relative.relative_to(top)
        path = relative.as_posix()
    if relative.is_absolute() or ".." in relative.parts:
        reason = f"{path[:200]!r} leaves {folder}; give a folder that holds all images by --root, or paths relative to it"
        raise ConfigError(str(file), f"line {line}", reason)
    return path


def _rows(file: Path, columns: Columns, folder: Path) -> Iterable[tuple[str, str, str, int]]:
    """(path, label, site) of every record, and the number of its line in the file; the site is empty where there is no such column."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            present = reader.fieldnames or ()
            for needed in (columns.path, columns.label):
                if needed not in present:
                    raise ConfigError(str(file), needed, f"no such column; there are {', '.join(present)}")
            wanted = [name for name in (columns.path, columns.label, columns.site) if name in present]
            for line in reader:
                cells = [(line[name] or "").strip() for name in wanted]
                if not all(cells):
                    raise ConfigError(str(file), f"line {reader.line_num}", "an empty cell")
                path = _below(folder, cells[0], file, reader.line_num)
                yield path, cells[1], cells[2] if len(cells) == 3 else "", reader.line_num
    except OSError as error:
        raise ConfigError(str(file), "", error.strerror or "cannot be read") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise ConfigError(str(file), "", f"no CSV file: {error}") from None
