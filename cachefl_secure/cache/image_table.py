"""Labelled images in a table: CSV or Parquet with the columns ``path`` and ``label``; others are not looked at.

Paths are relative to the table's folder and may lead out of it, since somebody wrote them down; a file named twice
is refused, whatever its names, because one record counted twice would have twice the say that its privacy is accounted for. Labels
are class names or numbers, the whole column one or the other: if every label is a name (whatever its case, spaces
and underscores), names; else class numbers from 0.
"""

from __future__ import annotations

import csv
import importlib.util
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cachefl_secure.cache.images import ImageList, labels_by_name, plain, quoted
from cachefl_secure.errors import ConfigError, MissingExtra
from cachefl_secure.wording import counted

COLUMNS = ("path", "label")
CSV, PARQUET = ".csv", ".parquet"
EXTRA = "parquet"


def image_table(table: Path, classes: Sequence[str]) -> ImageList:
    """The images of a table, in its order. No image is opened.

    Raises:
        ConfigError: no such table, a column is missing, a path is empty or named twice, or a label is no class.
        MissingExtra: a Parquet file, and pyarrow is not installed.
    """
    paths, labels = _parquet(table) if table.suffix.lower() == PARQUET else _csv(table)
    names = [_relative(table, path, line) for line, path in enumerate(paths, 1)]
    files = Counter(os.path.realpath(table.parent / name) for name in names)
    twice = [name for name in names if files[os.path.realpath(table.parent / name)] > 1]
    if twice:
        raise ConfigError(str(table), "path", f"named more than once: {quoted(twice)}")
    return ImageList(table.parent, tuple(names), _numbers(table, labels, classes), tuple(classes))


def check_present(table: Path, images: ImageList) -> None:
    """That the files of a table are there, before any of them is encoded.

    Raises:
        ConfigError: names the first record whose file is missing, counted from 1, and how many more are.
    """
    missing = [place for place, name in enumerate(images.paths, 1) if not (images.root / name).is_file()]
    if missing:
        more = "" if len(missing) == 1 else f", nor are those of {counted(len(missing) - 1, 'more record')}"
        name = images.paths[missing[0] - 1][:200]
        reason = f"{name!r} is not there{more} (paths are relative to the table; --skip-unreadable leaves such records out)"
        raise ConfigError(str(table), f"record {missing[0]}", reason)


def _csv(table: Path) -> tuple[list[str], list[str]]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            missing = [column for column in COLUMNS if column not in (rows.fieldnames or ())]
            if missing:
                raise ConfigError(
                    str(table), missing[0], f"no such column; the first line must name {_header()}"
                )
            found = [(row["path"] or "", row["label"] or "") for row in rows]
    except OSError as error:
        raise ConfigError(str(table), "", error.strerror or "cannot be read") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise ConfigError(str(table), "", f"not CSV in UTF-8: {error}") from None
    return [path for path, _ in found], [label for _, label in found]


def _header() -> str:
    return " and ".join(COLUMNS)


def _parquet(table: Path) -> tuple[list[str], list[str]]:
    if importlib.util.find_spec("pyarrow") is None:
        raise MissingExtra(EXTRA)
    import pyarrow
    import pyarrow.parquet

    try:
        with table.open("rb") as file:
            opened = pyarrow.parquet.ParquetFile(file)
            missing = [column for column in COLUMNS if column not in opened.schema_arrow.names]
            if missing:
                raise ConfigError(str(table), missing[0], f"no such column; it must have {_header()}")
            columns = [opened.read(columns=[column])[column] for column in COLUMNS]
    except OSError as error:
        raise ConfigError(str(table), "", error.strerror or "cannot be read as Parquet") from None
    except pyarrow.ArrowException:
        raise ConfigError(str(table), "", "cannot be read as Parquet") from None
    for name, column in zip(COLUMNS, columns, strict=True):
        types = pyarrow.types
        if types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        legal = types.is_string(column.type) or types.is_large_string(column.type)
        if column.null_count or not (legal or (name == "label" and types.is_integer(column.type))):
            raise ConfigError(
                str(table), name, f"{column.type} with {column.null_count} empty; expected text"
            )
    return [str(path) for path in columns[0].to_pylist()], [str(label) for label in columns[1].to_pylist()]


def _relative(table: Path, path: str, line: int) -> str:
    """Normalised, so that one file has one name."""
    if not path or "\0" in path:
        raise ConfigError(str(table), "path", f"empty in record {line}")
    return Path(os.path.normpath(path)).as_posix()


def _numbers(table: Path, labels: Sequence[str], classes: Sequence[str]) -> tuple[int, ...]:
    by_name = labels_by_name(classes)
    if all(plain(label) in by_name for label in labels):
        return tuple(by_name[plain(label)] for label in labels)
    by_number = {str(number): number for number in range(len(classes))}
    if all(label.strip() in by_number for label in labels):
        return tuple(by_number[label.strip()] for label in labels)
    unknown = sorted({label for label in labels if plain(label) not in by_name})
    reason = f"no class is called {quoted(unknown)}; classes are {quoted(classes)}, or numbers below {len(classes)}"
    raise ConfigError(str(table), "label", reason)
