"""A silo's images as features: encode once, keep the result beside a digest of what it came from.

Features of private images are private: they never leave the silo and appear in no message.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from cachefl_secure.cache.images import ImageList as ImageList
from cachefl_secure.cache.images import image_folder as image_folder
from cachefl_secure.cache.images import open_image
from cachefl_secure.cache.tensor_file import Schema, tensors_from_bytes, tensors_to_bytes
from cachefl_secure.errors import ConfigError
from cachefl_secure.names import Digest, digest_of

_KIND = "features/1"
_SCHEMA: Schema = {"features": ("F32", 2), "labels": ("I64", 1)}
BATCH = 8  # images at a time; on a CPU twice as fast as 64, on a GPU ask for hundreds
_UNIT_TOLERANCE = 1e-3  # features kept in fp16 are off by up to 6e-4

Progress = Callable[[int, int], None]
"""Called with (images done, images in all)."""


class ImageEncoder(Protocol):
    """What ``encoder.Encoder`` offers, as far as features need it."""

    @property
    def feature_dim(self) -> int: ...
    @property
    def weights_digest(self) -> Digest: ...
    @property
    def preprocessing_digest(self) -> Digest: ...
    def encode_images(self, images: Sequence[Image.Image]) -> Tensor: ...


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class FeatureSet:
    """``features`` (n, C) float32 with rows of unit norm, ``labels`` (n,) int64, >= 0. n = 0 is legal.

    Raises:
        ValueError: another shape or dtype, a row that is not finite or not of unit norm.
    """

    features: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        features, labels = self.features, self.labels
        if features.dtype != torch.float32 or labels.dtype != torch.int64:
            raise ValueError("features must be float32, labels int64")
        if features.ndim != 2 or labels.shape != features.shape[:1]:
            raise ValueError("expected features (n, C) and labels (n,)")
        # "not all within" instead of "any outside", so that NaN is refused as well.
        if not bool(((features.norm(dim=1) - 1).abs() <= _UNIT_TOLERANCE).all()):
            raise ValueError("every feature must have unit norm")
        if bool((labels < 0).any()):
            raise ValueError("a label is negative")

    def __len__(self) -> int:
        return self.labels.shape[0]

    def __repr__(self) -> str:  # never print a feature, nor which classes a silo has
        return f"FeatureSet(<{len(self)} records, {self.features.shape[1]}-d>)"


def extract_features(
    images: ImageList, encoder: ImageEncoder, *, batch_size: int = BATCH, progress: Progress | None = None
) -> FeatureSet:
    """Encode every image.

    Raises:
        ConfigError: an image cannot be read, or has more than 8 bits a channel.
    """
    return _extract(images, encoder, batch_size, progress, None)


def extract_readable_features(
    images: ImageList, encoder: ImageEncoder, *, batch_size: int = BATCH, progress: Progress | None = None
) -> tuple[FeatureSet, tuple[str, ...]]:
    """As ``extract_features`` without the images that cannot be read; their relative paths come second."""
    skipped: list[str] = []
    return _extract(images, encoder, batch_size, progress, skipped), tuple(skipped)


def _extract(
    images: ImageList,
    encoder: ImageEncoder,
    batch_size: int,
    progress: Progress | None,
    skipped: list[str] | None,
) -> FeatureSet:
    rows: list[Tensor] = [torch.empty(0, encoder.feature_dim)]
    labels: list[int] = []
    for start in range(0, len(images), batch_size):
        batch: list[Image.Image] = []
        for name, label in zip(
            images.paths[start:][:batch_size], images.labels[start:][:batch_size], strict=True
        ):
            try:
                batch.append(open_image(images.root / name))
                labels.append(label)
            except ConfigError:
                if skipped is None:
                    raise
                skipped.append(name)
        if batch:
            # Always as many: in another shape the same image may come out with other last bits, and no image's
            # feature should depend on how many others there are.
            filling = [batch[-1]] * (batch_size - len(batch))
            rows.append(encoder.encode_images(batch + filling)[: len(batch)])
        if progress is not None:
            progress(min(start + batch_size, len(images)), len(images))
    return FeatureSet(torch.cat(rows), torch.tensor(labels, dtype=torch.int64))


def features_digest(images: ImageList, encoder: ImageEncoder) -> Digest:
    """Names what features are made of: encoder, preprocessing, classes; path, label and content of each file.

    Features kept under another digest are stale: extract them again.

    Raises:
        ConfigError: a file cannot be read.
    """
    return digest_of(
        "cachefl-secure/features/1",
        encoder.weights_digest.encode(),
        encoder.preprocessing_digest.encode(),
        digest_of("classes", *(name.encode() for name in images.classes)).encode(),
        *(
            digest_of("image", os.fsencode(name), str(label).encode(), _sha256(images.root / name)).encode()
            for name, label in zip(images.paths, images.labels, strict=True)
        ),
    )


def _sha256(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise ConfigError(str(path), "", error.strerror or "cannot be read") from None


def features_to_bytes(features: FeatureSet, digest: Digest) -> bytes:
    """A safetensors file of the features and the digest of what they were made of. Private."""
    return tensors_to_bytes(
        _KIND, {"features": features.features, "labels": features.labels}, {"digest": digest}
    )


def save_features(path: Path, features: FeatureSet, digest: Digest) -> None:
    """Writes the file in place, readable by the owner only."""
    raw = features_to_bytes(features, digest)
    path.touch(mode=0o600)
    path.chmod(0o600)
    path.write_bytes(raw)


def load_features(path: Path) -> tuple[FeatureSet, Digest]:
    """Features and the digest they were saved under; compare it with ``features_digest`` before use.

    Raises:
        ConfigError: the file cannot be read, or is anything but what ``save_features`` writes.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(str(path), "", error.strerror or "cannot be read") from None
    fields_expected = frozenset({"digest"})
    tensors, fields = tensors_from_bytes(
        raw, kind=_KIND, schema=_SCHEMA, fields=fields_expected, file=str(path)
    )
    if not re.fullmatch(r"[0-9a-f]{64}", fields["digest"]):
        raise ConfigError(str(path), "digest", "not 64 hex digits")
    try:
        return FeatureSet(**tensors), Digest(fields["digest"])
    except ValueError as error:
        raise ConfigError(str(path), "", str(error)) from None
