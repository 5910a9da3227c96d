"""Files of features: all records in one view, or some records in all views with what extraction found of them.

Each carries the digest of what its features were made of. Private: 0600, and never sent.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from cachefl_secure import durable
from cachefl_secure.cache.feature_set import FeatureSet, FeatureViews
from cachefl_secure.cache.tensor_file import Schema, tensors_from_bytes, tensors_to_bytes
from cachefl_secure.errors import ConfigError
from cachefl_secure.names import Digest

_KIND, _SHARD = "features/1", "feature-shard/1"
_SCHEMA: Schema = {"features": ("F32", 2), "labels": ("I64", 1)}
_SHARD_SCHEMA: Schema = {"views": ("F32", 3), "labels": ("I64", 1)}


@dataclass(frozen=True, slots=True)
class Shard:
    """What was extracted from one stretch of the list of images. ``skipped`` could not be read."""

    features: FeatureViews
    skipped: tuple[str, ...]

    def read(self) -> Shard:
        """Itself: one in memory stands where one on disk may stand."""
        return self


def features_to_bytes(features: FeatureSet, digest: Digest) -> bytes:
    """A safetensors file of the features and the digest of what they were made of. Private."""
    return tensors_to_bytes(
        _KIND, {"features": features.features, "labels": features.labels}, {"digest": digest}
    )


def save_features(path: Path, features: FeatureSet, digest: Digest) -> None:
    """Writes the file in place, readable by the owner only."""
    durable.replace_file(path, features_to_bytes(features, digest), 0o600)


def load_features(path: Path) -> tuple[FeatureSet, Digest]:
    """Features and the digest they were saved under; compare it with ``features_digest`` before use.

    Raises:
        ConfigError: the file cannot be read, or is anything but what ``save_features`` writes.
    """
    tensors, fields = _load(path, _KIND, _SCHEMA, frozenset({"digest"}))
    try:
        return FeatureSet(**tensors), Digest(fields["digest"])
    except ValueError as error:
        raise ConfigError(str(path), "", str(error)) from None


def save_shard(path: Path, shard: Shard, digest: Digest) -> None:
    """Durable when this returns; its folder is made if it is not there."""
    tensors = {"views": shard.features.views, "labels": shard.features.labels}
    raw = tensors_to_bytes(_SHARD, tensors, {"digest": digest, "skipped": json.dumps(shard.skipped)})
    path.parent.mkdir(mode=0o700, exist_ok=True)
    durable.replace_file(path, raw, 0o600)


def load_shard(path: Path) -> tuple[Shard, Digest]:
    """
    Raises:
        ConfigError: absent, torn, or anything but what ``save_shard`` writes.
    """
    tensors, fields = _load(path, _SHARD, _SHARD_SCHEMA, frozenset({"digest", "skipped"}))
    try:
        skipped = json.loads(fields["skipped"])
        if not isinstance(skipped, list) or not all(isinstance(name, str) for name in skipped):
            raise ValueError("skipped: no list of names")
        return Shard(FeatureViews(**tensors), tuple(skipped)), Digest(fields["digest"])
    except (ValueError, RecursionError) as error:
        raise ConfigError(str(path), "", str(error)) from None


def _load(
    path: Path, kind: str, schema: Schema, fields: frozenset[str]
) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(str(path), "", error.strerror or "cannot be read") from None
    tensors, found = tensors_from_bytes(raw, kind=kind, schema=schema, fields=fields, file=str(path))
    if not re.fullmatch(r"[0-9a-f]{64}", found["digest"]):
        raise ConfigError(str(path), "digest", "not 64 hex digits")
    return tensors, found
