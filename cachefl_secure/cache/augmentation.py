"""Augmented views of an image, repeatable image by image: a random resized crop and a flip, as in Tip-Adapter.

Zhang et al. (2022), Tip-Adapter, train on ``RandomResizedCrop(224, scale=(0.5, 1), interpolation=BICUBIC)`` and
``RandomHorizontalFlip(0.5)`` of torchvision. The boxes here are drawn as torchvision draws them, but from a hash
of the file's content and the view's number: no order of work, size of batch or resumption changes them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

from PIL import Image

from cachefl_secure.names import Digest

SCALE = (0.5, 1.0)
"""Share of the image's area that a crop has."""
RATIO = (3 / 4, 4 / 3)
"""Width over height of a crop, torchvision's default."""
_ATTEMPTS = 10
_DRAWS = 4 * _ATTEMPTS + 1

Box = tuple[int, int, int, int]
"""Left, upper, right, lower."""


def augmented(image: Image.Image, content: Digest, view: int, size: tuple[int, int]) -> Image.Image:
    """View ``view`` >= 1 of an image whose file has this SHA-256; ``size`` is (height, width) in pixels.

    It has the size that the encoder wants already, so that its own resizing and centre crop leave it as it is.
    """
    draws = _uniform(content, view)
    box, (height, width) = crop_box(*image.size, draws), size
    flip = next(draws) < 0.5
    cropped = image.crop(box).resize((width, height), Image.Resampling.BICUBIC)
    return cropped.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else cropped


def crop_box(width: int, height: int, draws: Iterator[float]) -> Box:
    """torchvision's ``RandomResizedCrop.get_params`` on given draws from [0, 1): four for each of ten attempts."""
    low, high = math.log(RATIO[0]), math.log(RATIO[1])
    for _ in range(_ATTEMPTS):
        share, shape, down, right = (next(draws) for _ in range(4))
        area = width * height * (SCALE[0] + share * (SCALE[1] - SCALE[0]))
        ratio = math.exp(low + shape * (high - low))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = int(down * (height - h + 1)), int(right * (width - w + 1))
            return left, top, left + w, top + h
    return _central(width, height)


def _central(width: int, height: int) -> Box:
    """The largest box of a legal ratio in the middle, for images that are long and thin."""
    ratio = width / height
    w, h = width, height
    if ratio < RATIO[0]:
        h = max(1, round(width / RATIO[0]))
    elif ratio > RATIO[1]:
        w = max(1, round(height * RATIO[1]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _uniform(content: Digest, view: int) -> Iterator[float]:
    """53 bits each."""
    seed = f"cachefl-secure/view/1|{content}|{view}".encode()
    stream = hashlib.shake_256(seed).digest(8 * _DRAWS)
    for start in range(0, len(stream), 8):
        yield (int.from_bytes(stream[start : start + 8]) >> 11) * 2.0**-53
