"""Few images of each class, drawn from a seed: k to learn from and at most four to choose settings by."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from cachefl_secure.cache.images import ImageList
from cachefl_secure.datasets.readers import Split
from cachefl_secure.datasets.schemes import members_by_class
from cachefl_secure.errors import ConfigError

MAX_VALIDATION_SHOTS = 4  # CoOp's, so that choosing settings costs no more labels than a few


def few_shot(split: Split, shots: int, rng_seed: int) -> tuple[ImageList, ImageList]:
    """``shots`` training images of every class and min(``shots``, 4) validation images; fewer where a class has fewer.

    Validation images come from the published val list or, where there is none, from the training images
    that were not drawn. Test images are never looked at. The same seed draws the same training images
    whatever becomes of validation.

    Raises:
        ConfigError: less than one shot.
    """
    if shots < 1:
        raise ConfigError("--shots", "", f"{shots}: at least 1")
    drawn = _sample(split.train, shots, rng_seed, 0)
    pool = split.val if len(split.val) else select(split.train, set(range(len(split.train))) - drawn)
    validation = _sample(pool, min(shots, MAX_VALIDATION_SHOTS), rng_seed, 1)
    return select(split.train, drawn), select(pool, validation)


def select(images: ImageList, indices: Iterable[int]) -> ImageList:
    """The images at these indices, in the order of the list."""
    chosen = sorted(indices)
    return ImageList(
        images.root,
        tuple(images.paths[index] for index in chosen),
        tuple(images.labels[index] for index in chosen),
        images.classes,
    )


def _sample(images: ImageList, of_each: int, rng_seed: int, stream: int) -> set[int]:
    """Indices of ``of_each`` images of every class, or of all where there are fewer."""
    rng = np.random.Generator(np.random.PCG64((rng_seed, 2, stream)))
    labels = np.asarray(images.labels, np.int64)
    of_class = members_by_class(labels, np.arange(len(labels), dtype=np.int64))
    return {int(index) for _, members in of_class for index in rng.permutation(members)[:of_each]}
