"""A silo's images as features: encoded once, shard by shard, beside a digest of what they came from.

    files of a shard -> SHA-256 and pixels -> V views of each -> batches of one size -> (V, n, C) unit rows
                                                                                      -> a file of the shard

A run that was killed goes on: a shard on disk is taken if its digest is that of the encoder, the precision, the
views and of path, label and content of its files; a torn, stale or absent one is encoded (again). Only one batch of
images is in memory at a time, and with a folder for the shards only one shard of features.

Features of private images are private: they never leave the silo and appear in no message.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from cachefl_secure.cache.augmentation import augmented
from cachefl_secure.cache.feature_set import FeatureSet as FeatureSet
from cachefl_secure.cache.feature_set import FeatureViews as FeatureViews
from cachefl_secure.cache.images import ImageList as ImageList
from cachefl_secure.cache.images import decode_image, read_image
from cachefl_secure.cache.images import image_folder as image_folder
from cachefl_secure.cache.saved_features import Shard, load_shard, save_shard
from cachefl_secure.cache.saved_features import features_to_bytes as features_to_bytes
from cachefl_secure.cache.saved_features import load_features as load_features
from cachefl_secure.cache.saved_features import save_features as save_features
from cachefl_secure.errors import ConfigError
from cachefl_secure.names import Digest, digest_of

BATCH = 8  # images at a time; on a CPU twice as fast as 64, on a GPU ask for hundreds
SHARD = 1024  # images; what a kill may cost, and 2 MB of features a view at C = 512

_GPU_BATCH = 256

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
    @property
    def precision(self) -> str: ...
    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width that the preprocessing ends in."""
        ...

    def encode_images(self, images: Iterable[Image.Image]) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class _SavedShard:
    path: Path
    digest: Digest

    def read(self) -> Shard:
        shard, digest = load_shard(self.path)
        if digest != self.digest:
            raise ConfigError(str(self.path), "digest", "made of something else by now")
        return shard


@dataclass(frozen=True, slots=True, repr=False)
class Extraction:
    """What came of a list of images. With a folder for shards the features stay there until they are asked for."""

    labels: Tensor
    """(n,) int64."""
    digest: Digest
    """As ``features_digest`` of the images that were not skipped."""
    file_digests: tuple[Digest, ...]
    """SHA-256 of the n files."""
    skipped: tuple[str, ...]
    """Relative paths of images that could not be read."""
    number_of_views: int
    _feature_dim: int
    _shards: tuple[Shard | _SavedShard, ...]

    def __len__(self) -> int:
        return self.labels.shape[0]

    def __repr__(self) -> str:
        return f"Extraction(<{len(self)} records, {self.number_of_views} views>)"

    def view(self, index: int) -> FeatureSet:
        """All records in view ``index`` modulo the number of views: n x C x 4 bytes.

        Raises:
            ConfigError: a shard was damaged or made anew meanwhile.
        """
        rows, done = torch.empty(len(self), self._feature_dim), 0
        for each in self._shards:
            part = each.read().features.view(index).features
            rows[done : done + len(part)] = part
            done += len(part)
        return FeatureSet(rows, self.labels)


def extract(
    images: ImageList,
    encoder: ImageEncoder,
    *,
    views: int = 1,
    skip_unreadable: bool = False,
    shards: Path | None = None,
    batch_size: int = BATCH,
    progress: Progress | None = None,
) -> Extraction:
    """Encode every image in ``views`` views. ``shards`` is a folder of this list's own, made when needed.

    Raises:
        ConfigError: an image cannot be read or has more than 8 bits a channel, and is not to be skipped.
    """
    work = _Work(encoder, views, skip_unreadable, batch_size)
    taken: list[Shard | _SavedShard] = []
    labels: list[int] = []
    entries: list[_Entry] = []
    skipped: list[str] = []
    for start in range(0, len(images), SHARD):
        part = images.part(start, start + SHARD)
        path = None if shards is None else shards / f"{start // SHARD:06d}.safetensors"
        told = _told(progress, start, len(images))
        shard, found = work.saved(part, path) or work.encode(part, path, told)
        if progress is not None:
            progress(start + len(part), len(images))
        taken.append(shard if path is None else _SavedShard(path, work.digest(part, found)))
        skipped += shard.skipped
        entries += [entry for entry in found if entry.path not in set(shard.skipped)]
        labels += shard.features.labels.tolist()
    return Extraction(
        labels=torch.tensor(labels, dtype=torch.int64),
        digest=_digest(encoder, images.classes, views, entries),
        file_digests=tuple(entry.content for entry in entries),
        skipped=tuple(skipped),
        number_of_views=views,
        _feature_dim=encoder.feature_dim,
        _shards=tuple(taken),
    )


def extract_features(
    images: ImageList, encoder: ImageEncoder, *, batch_size: int = BATCH, progress: Progress | None = None
) -> FeatureSet:
    """Encode every image, once, in memory.

    Raises:
        ConfigError: an image cannot be read, or has more than 8 bits a channel.
    """
    return extract(images, encoder, batch_size=batch_size, progress=progress).view(0)


def batch_size_on(device: torch.device) -> int:
    """Images at a time that keep the device busy."""
    return BATCH if device.type == "cpu" else _GPU_BATCH


def features_digest(images: ImageList, encoder: ImageEncoder, *, views: int = 1) -> Digest:
    """Names what features are made of: encoder, precision, views, classes; path, label and content of each file.

    Features kept under another digest are stale: extract them again.

    Raises:
        ConfigError: a file cannot be read.
    """
    return _digest(encoder, images.classes, views, _entries(images))


@dataclass(frozen=True, slots=True)
class _Entry:
    path: str
    label: int
    content: Digest

    def digest(self) -> bytes:
        parts = os.fsencode(self.path), str(self.label).encode(), bytes.fromhex(self.content)
        return digest_of("image", *parts).encode()


def _entries(images: ImageList) -> list[_Entry]:
    return [
        _Entry(path, label, _sha256(images.root / path))
        for path, label in zip(images.paths, images.labels, strict=True)
    ]


def _sha256(path: Path) -> Digest:
    try:
        with path.open("rb") as file:
            return Digest(hashlib.file_digest(file, "sha256").hexdigest())
    except OSError as error:
        raise ConfigError(str(path), "", error.strerror or "cannot be read") from None


def _digest(encoder: ImageEncoder, classes: Sequence[str], views: int, entries: Iterable[_Entry]) -> Digest:
    return digest_of(
        "cachefl-secure/features/2",
        encoder.weights_digest.encode(),
        encoder.preprocessing_digest.encode(),
        encoder.precision.encode(),
        str(views).encode(),
        digest_of("classes", *(name.encode() for name in classes)).encode(),
        *(entry.digest() for entry in entries),
    )


@dataclass(frozen=True, slots=True)
class _Work:
    """How shards of one list are encoded."""

    encoder: ImageEncoder
    views: int
    skip_unreadable: bool
    batch_size: int

    def saved(self, part: ImageList, path: Path | None) -> tuple[Shard, list[_Entry]] | None:
        """The shard of an earlier run, if it is whole and made of the same."""
        if path is None or not path.is_file():
            return None
        try:
            shard, digest = load_shard(path)
            if shard.skipped and not self.skip_unreadable:
                return None
            # Files that could not be read at all have no content: then the shard is encoded again.
            entries = _entries(part)
        except ConfigError:
            return None
        return (shard, entries) if digest == self.digest(part, entries) else None

    def encode(
        self, part: ImageList, path: Path | None, progress: Progress | None
    ) -> tuple[Shard, list[_Entry]]:
        entries: list[_Entry] = []
        skipped: list[str] = []
        pixels = self._pixels(part, entries, skipped, progress)
        rows = torch.cat([torch.empty(0, self.encoder.feature_dim), *self._batches(pixels)])
        by_image = rows.reshape(-1, self.views, self.encoder.feature_dim)
        labels = [entry.label for entry in entries if entry.path not in skipped]
        try:
            features = FeatureViews(
                by_image.transpose(0, 1).contiguous(), torch.tensor(labels, dtype=torch.int64)
            )
        except ValueError as error:  # half precision overflows where a model was not trained in it
            raise ConfigError("encoder", self.encoder.precision, str(error)) from None
        shard = Shard(features, tuple(skipped))
        if path is not None:
            save_shard(path, shard, self.digest(part, entries))
        return shard, entries

    def digest(self, part: ImageList, entries: Iterable[_Entry]) -> Digest:
        return _digest(self.encoder, part.classes, self.views, entries)

    def _pixels(
        self, part: ImageList, entries: list[_Entry], skipped: list[str], progress: Progress | None
    ) -> Iterator[Image.Image]:
        """Each image in all its views, one after the other. Fills the lists on the way."""
        for done, (name, label) in enumerate(zip(part.paths, part.labels, strict=True), 1):
            path = part.root / name
            try:
                raw = read_image(path)
                entries.append(_Entry(name, label, content := Digest(hashlib.sha256(raw).hexdigest())))
                image = decode_image(raw, path)
            except ConfigError:
                if not self.skip_unreadable:
                    raise
                skipped.append(name)
                continue
            yield image
            for view in range(1, self.views):
                yield augmented(image, content, view, self.encoder.image_size)
            if progress is not None and done % self.batch_size == 0:
                progress(done, len(part))

    def _batches(self, pixels: Iterator[Image.Image]) -> Iterator[Tensor]:
        """Batches always have one size: in another shape the same image may come out with other last bits, and no
        image's feature should depend on how many others there are. The last one is filled with its last image.
        """
        while first := list(itertools.islice(pixels, 1)):
            batch = _Batch(
                itertools.chain(first, itertools.islice(pixels, self.batch_size - 1)), self.batch_size
            )
            rows = self.encoder.encode_images(batch)
            yield rows[: batch.genuine]


class _Batch:
    """Images that are decoded as they are asked for, so that not all of them are in memory in full size."""

    def __init__(self, images: Iterator[Image.Image], size: int) -> None:
        self._images, self._size, self.genuine = images, size, 0

    def __iter__(self) -> Iterator[Image.Image]:
        for image in self._images:
            self.genuine += 1
            yield image
        yield from itertools.repeat(image, self._size - self.genuine)


def _told(progress: Progress | None, start: int, total: int) -> Progress | None:
    return None if progress is None else lambda done, _: progress(start + done, total)
