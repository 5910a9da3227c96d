"""Features that were made elsewhere: ``features`` (n, C) and ``labels`` (n,) in a ``.npz`` or ``.safetensors`` file, or
as a pair of ``.npy`` files (``sources.numpy_pair``).

A silo's records, or public candidates for cache keys. Whoever made them answers for the encoder: there are no images
here to make them again from. No pickle is read. Rows must have unit norm already; they are not normalised here,
because rows that are not would be the features of something else (logits, another layer), and nobody would be told.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from numpy.typing import NDArray
from torch import Tensor

from cachefl_secure.cache.feature_set import UNIT_TOLERANCE, FeatureSet
from cachefl_secure.cache.sources import NPZ, SAFETENSORS, numpy_pair
from cachefl_secure.errors import ConfigError
from cachefl_secure.names import Digest, digest_of

_FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
_INTEGERS = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
_NUMBERED = "whole numbers from 0 in the order of the invite's classes"


@dataclass(frozen=True, slots=True)
class BroughtFeatures:
    """Records of a feature file, with what names them."""

    records: FeatureSet
    digest: Digest
    """Over the file, or over both."""
    record_digests: tuple[Digest, ...]
    """One for each row, over its float32 values: what an image file's SHA-256 is elsewhere."""


def read_feature_file(path: Path, *, number_of_classes: int, feature_dim: int) -> BroughtFeatures:
    """``path`` is a file, or the folder of a NumPy pair.

    Raises:
        ConfigError: unreadable, another shape or dimension, a label that is no class, or rows that are not finite
            or not of unit norm.
    """
    readers = {NPZ: _npz, SAFETENSORS: _safetensors}
    read = readers.get(path.suffix.lower())
    digests = [_sha256(file) for file in ((path,) if read is not None else numpy_pair(path))]
    tensors = _pair(path) if read is None else read(path)
    features, labels = tensors["features"], tensors["labels"]
    if features.dtype not in _FLOATS or features.ndim != 2:
        raise ConfigError(str(path), "features", f"{_what(features)}; expected floating point (n, C)")
    if features.shape[1] != feature_dim:
        raise ConfigError(str(path), "features", f"{features.shape[1]}-d, but the encoder is {feature_dim}-d")
    if labels.dtype not in _INTEGERS or labels.shape != features.shape[:1]:
        raise ConfigError(
            str(path), "labels", f"{_what(labels)}; expected {len(features)} integers, {_NUMBERED}"
        )
    features, labels = features.float().contiguous(), labels.long()
    if bool(((labels < 0) | (labels >= number_of_classes)).any()):
        raise ConfigError(
            str(path),
            "labels",
            f"a label is no class number below {number_of_classes}; labels are {_NUMBERED}",
        )
    _check_norms(path, features)
    return BroughtFeatures(
        FeatureSet(features, labels),
        digest_of("cachefl-secure/feature-file/1", *digests),
        tuple(Digest(hashlib.sha256(row.data).hexdigest()) for row in features.numpy()),
    )


def _sha256(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise ConfigError(str(path), "", error.strerror or "cannot be read") from None


def _check_norms(path: Path, features: Tensor) -> None:
    if not bool(torch.isfinite(features).all()):
        raise ConfigError(str(path), "features", "holds a value that is not finite")
    wrong = int(((features.norm(dim=1) - 1).abs() > UNIT_TOLERANCE).sum())
    if wrong:
        reason = (
            f"{wrong} of {len(features)} rows have not unit norm; if they are the image features of the"
            " encoder, save features / norm(features) instead"
        )
        raise ConfigError(str(path), "features", reason)


def _what(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def _npz(path: Path) -> Mapping[str, Tensor]:
    name, tensors = "features", {}
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            for name in ("features", "labels"):
                if name not in archive:
                    raise ConfigError(str(path), name, "missing from the archive")
                tensors[name] = _numbers(archive[name])
    except (OSError, ValueError, TypeError, EOFError, AttributeError, KeyError, zipfile.BadZipFile) as error:
        # What NumPy only reads by unpickling: text that pandas made, as a rule.
        if name == "labels" and (isinstance(error, _NotNumbers) or "allow_pickle" in str(error)):
            raise ConfigError(str(path), name, f"not plain numbers; labels are {_NUMBERED}") from None
        raise ConfigError(str(path), "", "no .npz archive of plain numbers") from None
    return tensors


class _NotNumbers(TypeError):
    """An array of text, say."""


def _numbers(array: NDArray[Any]) -> Tensor:
    if array.dtype.kind not in "biuf":
        raise _NotNumbers
    return torch.from_numpy(array)


def _pair(path: Path) -> Mapping[str, Tensor]:
    features, labels = numpy_pair(path)
    return {"features": _npy(features), "labels": _npy(labels, labels=True)}


def _npy(path: Path, *, labels: bool = False) -> Tensor:
    """Mapped, not read whole, and copied as float32 if it is any of three float types: never twice in memory."""
    try:
        # Of this format alone: np.load would take an archive or, where allowed, a pickle under the same name.
        mapped = np.lib.format.open_memmap(path, mode="r")
        single = mapped.dtype.kind == "f" and mapped.dtype.itemsize <= 8
        return _numbers(np.array(mapped, dtype=np.float32 if single else mapped.dtype.newbyteorder("=")))
    except (OSError, ValueError, TypeError, EOFError):
        hint = f"; labels are {_NUMBERED}" if labels else ""
        raise ConfigError(str(path), "", f"no .npy array of plain numbers{hint}") from None


def _safetensors(path: Path) -> Mapping[str, Tensor]:
    try:
        with safetensors.safe_open(path, "pt") as file:
            missing = [name for name in ("features", "labels") if name not in file.keys()]  # noqa: SIM118
            if missing:
                raise ConfigError(str(path), missing[0], "missing from the file")
            return {name: file.get_tensor(name) for name in ("features", "labels")}
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise ConfigError(str(path), "", f"not safetensors: {str(error)[:100]}") from None
