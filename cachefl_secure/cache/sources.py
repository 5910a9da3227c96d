"""Where labelled images or features come from, told by what the path is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cachefl_secure.cache.image_table import CSV, PARQUET, check_present, image_table
from cachefl_secure.cache.images import ImageList, image_folder
from cachefl_secure.errors import ConfigError

NPZ, SAFETENSORS, NPY = ".npz", ".safetensors", ".npy"


def is_feature_file(path: Path) -> bool:
    """Whether ``feature_file`` reads it: by its name, or a folder with a NumPy pair."""
    return path.suffix.lower() in {NPZ, SAFETENSORS, NPY} or all(file.is_file() for file in numpy_pair(path))


def numpy_pair(path: Path) -> tuple[Path, Path]:
    """Where features and labels lie: ``path`` is a folder, or the ``.npy`` file of the features.

    Labels are called as the features, "labels" in place of "features": beside ``train_features.npy`` it is
    ``train_labels.npy``. Where the name has no "features" in it, ``labels.npy``.
    """
    features = path if path.suffix.lower() == NPY else path / f"features{NPY}"
    name = features.name.replace("features", "labels")
    return features, features.with_name(f"labels{NPY}" if name == features.name else name)


def image_list(path: Path, classes: Sequence[str], *, skip_missing: bool = False) -> ImageList:
    """The images of a folder with one sub-folder a class, or of a ``.csv`` or ``.parquet`` table.

    A feature file is neither: see ``is_feature_file``. With ``skip_missing`` a table may name files that are not
    there; whoever reads them finds out.

    Raises:
        ConfigError: none of these, or as ``image_folder`` and ``image_table`` do.
        MissingExtra: a Parquet file, and pyarrow is not installed.
    """
    if path.is_dir():
        return image_folder(path, classes)
    if path.suffix.lower() in {CSV, PARQUET}:
        images = image_table(path, classes)
        if not skip_missing:
            check_present(path, images)
        return images
    if not path.exists():
        raise ConfigError(str(path), "", "no such folder or file")
    raise ConfigError(str(path), "", "neither a folder nor .csv, .parquet, .npz, .npy or .safetensors")
