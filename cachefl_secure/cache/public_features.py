"""Features that others published, from a safetensors or NumPy file with ``features`` (n, C) and ``labels`` (n,)."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import safetensors
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from torch.nn import functional

from cachefl_secure.cache.features import FeatureSet
from cachefl_secure.errors import ConfigError


def read_public_features(path: Path, number_of_classes: int, feature_dim: int) -> FeatureSet:
    """Rows are brought to unit norm; labels count classes from 0.

    Raises:
        ConfigError: the file cannot be read, is neither kind, holds a pickle, or its arrays do not fit.
    """
    arrays = _arrays(path)
    if not {"features", "labels"} <= set(arrays):
        raise ConfigError(str(path), "", "must hold the arrays 'features' and 'labels'")
    features, labels = arrays["features"], arrays["labels"]
    if features.ndim != 2 or features.shape[1] != feature_dim or features.dtype.kind != "f":
        reason = f"must be floating-point numbers of shape (n, {feature_dim}), as the encoder's; got {features.shape}"
        raise ConfigError(str(path), "features", reason)
    if labels.shape != features.shape[:1] or labels.dtype.kind not in "iu":
        raise ConfigError(str(path), "labels", "must be one integer for each feature")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < number_of_classes:
        raise ConfigError(str(path), "labels", f"must count the {number_of_classes} classes from 0")
    rows = torch.from_numpy(features.astype(np.float32))
    if not bool(torch.isfinite(rows).all()) or bool((rows.norm(dim=1) < 1e-6).any()):
        raise ConfigError(str(path), "features", "must be finite and not zero")
    return FeatureSet(functional.normalize(rows, dim=1), torch.from_numpy(labels.astype(np.int64)))


def _arrays(path: Path) -> dict[str, NDArray[np.generic]]:
    if not path.is_file():
        raise ConfigError(str(path), "", "no such file")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                return {name: archive[name] for name in ("features", "labels") if name in archive}
        return dict(load_file(path))
    except OSError as error:
        raise ConfigError(str(path), "", error.strerror or "cannot be read") from None
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, safetensors.SafetensorError):
        raise ConfigError(
            str(path), "", "is neither a .npz nor a .safetensors file of plain arrays"
        ) from None
