"""Where labelled images or features come from, told by what the path is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cachefl_secure.cache.image_table import CSV, PARQUET, image_table
from cachefl_secure.cache.images import ImageList, image_folder
from cachefl_secure.errors import ConfigError


def image_list(path: Path, classes: Sequence[str]) -> ImageList:
    """The images of a folder with one sub-folder a class, or of a ``.csv`` or ``.parquet`` table.

    A feature file is neither: see ``feature_file.is_feature_file``.

    Raises:
        ConfigError: none of these, or as ``image_folder`` and ``image_table`` do.
        MissingExtra: a Parquet file, and pyarrow is not installed.
    """
    if path.is_dir():
        return image_folder(path, classes)
    if path.suffix.lower() in {CSV, PARQUET}:
        return image_table(path, classes)
    if not path.exists():
        raise ConfigError(str(path), "", "no such folder or file")
    raise ConfigError(str(path), "", "neither a folder nor .csv, .parquet, .npz or .safetensors")
