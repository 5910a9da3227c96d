"""Printed digits that look like the 8 x 8 scans of scikit-learn's ``load_digits``, without ever seeing one.

The data set's own description says how a scan is made: the digit is normalised to a 32 x 32 bitmap, and
each of the 8 x 8 blocks of 4 x 4 pixels becomes the number of its pixels that are on, 0..16. We do the same
to glyphs, after warping them: font -> affine and elastic warp -> stroke thickness -> bounding box -> bitmap
-> counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from torch import Tensor
from torch.nn import functional

THIN_FONTS = (
    *("DejaVuSans", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSansMono-Oblique"),
    *("DejaVuSerif", "DejaVuSerif-Italic", "STIXGeneral", "STIXGeneralItalic"),
    *("cmr10", "cmss10", "cmtt10", "cmti10"),
)
BOLD_FONTS = ("DejaVuSans-Bold", "DejaVuSerif-Bold", "STIXGeneralBol", "STIXGeneralBolIta", "cmb10")
"""Files of matplotlib's ``mpl-data/fonts/ttf`` that hold lining digits at their ASCII code points."""

LEVELS = 16
"""A scan's grey values are 0..16: pixels that are on, of 4 x 4."""

CLIP_SIZE = 32
_CANVAS = 64
_FONT_SIZE = 54
_THIN_STROKES, _BOLD_STROKES = (
    (3, 5),
    (1, 3),
)  # dilations in pixels of the canvas; more closes the loop of an 8
_BLUR_SIGMA = 1.2
_BATCH = 2000


def to_clip_image(scan: NDArray[np.generic]) -> Image.Image:
    """An 8 x 8 scan, grey 0..16, white on black, as the 32 x 32 picture that the tiny CLIP was trained on.

    Bicubic, mode ``L``. Glyphs, handwriting and the generator's training images all take this one path.

    Raises:
        ValueError: not 8 x 8, or values outside 0..16.
    """
    values = np.asarray(scan, dtype=np.float64)
    if values.shape != (8, 8) or not ((values >= 0) & (values <= LEVELS)).all():
        raise ValueError("a scan is 8 x 8 with values 0..16")
    grey = np.rint(values * (255 / LEVELS)).astype(np.uint8)
    return Image.fromarray(grey).resize((CLIP_SIZE, CLIP_SIZE), Image.Resampling.BICUBIC)


def draw_glyphs(labels: Sequence[int] | NDArray[np.integer], rng_seed: int) -> NDArray[np.uint8]:
    """One warped glyph a label, (n, 8, 8), grey 0..16. The same labels and seed give the same glyphs."""
    wanted = np.asarray(labels, dtype=np.int64)
    rng = np.random.default_rng(rng_seed)
    parts = [_draw_batch(wanted[i : i + _BATCH], rng) for i in range(0, len(wanted), _BATCH)]
    return np.concatenate([np.zeros((0, 8, 8), np.uint8), *parts])


def clip_pixels(scans: NDArray[np.generic]) -> NDArray[np.uint8]:
    """``to_clip_image`` of every scan as one array (n, 32, 32)."""
    return np.stack([np.asarray(to_clip_image(scan)) for scan in scans])


def _draw_batch(labels: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.uint8]:
    masters = _masters()
    chosen = masters[rng.integers(len(masters), size=len(labels)), labels]
    bitmap = _bitmap(_restroke(_warp(torch.from_numpy(chosen)[:, None], rng), rng), rng)
    counts = functional.avg_pool2d(bitmap, 4)[:, 0] * LEVELS
    contrast = torch.from_numpy(rng.uniform(0.8, 1.0, (len(labels), 1, 1))).float()
    return np.asarray((counts * contrast).round().to(torch.uint8).numpy())


@lru_cache(maxsize=1)
def _masters() -> NDArray[np.float32]:
    """Every font in two thicknesses: (2 * fonts, 10, 64, 64), 0..1."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    fonts = [(name, _THIN_STROKES) for name in THIN_FONTS] + [(name, _BOLD_STROKES) for name in BOLD_FONTS]
    rows = []
    for name, strokes in fonts:
        font = ImageFont.truetype(str(folder / f"{name}.ttf"), _FONT_SIZE)
        upright = [_draw_centred(str(digit), font) for digit in range(10)]
        for width in strokes:
            rows.append([np.asarray(image.filter(ImageFilter.MaxFilter(width))) for image in upright])
    return np.asarray(rows, dtype=np.float32) / np.float32(255)


def _draw_centred(text: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    image = Image.new("L", (_CANVAS, _CANVAS))
    left, top, right, bottom = font.getbbox(text)
    place = ((_CANVAS - left - right) / 2, (_CANVAS - top - bottom) / 2)
    ImageDraw.Draw(image).text(place, text, fill=255, font=font)
    return image


def _warp(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Rotation up to 15 degrees, slant, width, and a smooth random wobble as of a hand."""
    n = len(images)
    angle, slant = rng.uniform(-0.26, 0.26, n), rng.uniform(-0.35, 0.35, n)
    wide, tall = rng.uniform(0.75, 1.4, n), rng.uniform(0.9, 1.1, n)
    cos, sin, zero = np.cos(angle), np.sin(angle), np.zeros(n)
    rows = [[cos * wide, (slant * cos - sin) * tall, zero], [sin * wide, (slant * sin + cos) * tall, zero]]
    theta = torch.from_numpy(np.asarray(rows).transpose(2, 0, 1).copy()).float()
    grid = functional.affine_grid(theta, [n, 1, _CANVAS, _CANVAS], align_corners=False)
    coarse = torch.from_numpy(rng.normal(0.0, 0.055, (n, 2, 5, 5))).float()
    wobble = functional.interpolate(coarse, (_CANVAS, _CANVAS), mode="bicubic", align_corners=True)
    return functional.grid_sample(images, grid + wobble.permute(0, 2, 3, 1), align_corners=False)


def _restroke(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Blur, then cut at a random level: a low level thickens the strokes, a high one thins them."""
    offsets = torch.arange(-3, 4).float()
    kernel = torch.exp(-0.5 * (offsets / _BLUR_SIGMA) ** 2)
    kernel = kernel / kernel.sum()
    blurred = functional.conv2d(images, kernel.view(1, 1, 7, 1), padding=(3, 0))
    blurred = functional.conv2d(blurred, kernel.view(1, 1, 1, 7), padding=(0, 3))
    level = torch.from_numpy(rng.uniform(0.3, 0.5, (len(images), 1, 1, 1))).float()
    return (blurred - level * blurred.amax((2, 3), keepdim=True)).mul(20).sigmoid()


def _bitmap(images: Tensor, rng: np.random.Generator) -> Tensor:
    """The glyph's bounding box, scaled to nearly fill 32 x 32 with its aspect kept, as 0 or 1."""
    theta = []
    for image in images[:, 0].numpy() > 0.5:
        top, bottom = _extent(image.any(1))
        left, right = _extent(image.any(0))
        height, width = bottom - top, right - left
        half = max(height, width) / _CANVAS * rng.uniform(1.0, 1.12)
        slack = 0.05 * rng.uniform(-1, 1, 2)
        theta.append(
            [
                [half, 0.0, (left + right) / _CANVAS - 1 + slack[0]],
                [0.0, half, (top + bottom) / _CANVAS - 1 + slack[1] * half],
            ]
        )
    grid = functional.affine_grid(torch.tensor(theta).float(), [len(images), 1, 32, 32], align_corners=False)
    return (functional.grid_sample(images, grid, align_corners=False) > 0.5).float()


def _extent(occupied: NDArray[np.bool_]) -> tuple[int, int]:
    """First and one past the last occupied place."""
    places = np.flatnonzero(occupied)
    return (int(places[0]), int(places[-1]) + 1) if len(places) else (0, len(occupied))
