from __future__ import annotations

import numpy as np
import pytest

from cachefl_secure.embedded.glyphs import clip_pixels, draw_glyphs, to_clip_image

TEN = np.arange(10)


def test_the_same_seed_draws_the_same_glyphs_and_another_seed_others() -> None:
    once, again, other = draw_glyphs(TEN, 4), draw_glyphs(TEN, 4), draw_glyphs(TEN, 5)
    assert np.array_equal(once, again)
    assert not np.array_equal(once, other)


def test_a_glyph_is_a_scan_of_white_strokes_on_black() -> None:
    glyphs = draw_glyphs(np.repeat(TEN, 20), 6)
    assert glyphs.shape == (200, 8, 8)
    assert glyphs.dtype == np.uint8
    assert glyphs.max() <= 16
    inked = (glyphs > 8).mean(axis=(1, 2))
    assert inked.min() > 0.05
    assert inked.max() < 0.8
    # The glyph fills the height or the width, as a normalised scan does.
    rows, columns = (glyphs > 0).any(2).sum(1), (glyphs > 0).any(1).sum(1)
    assert np.maximum(rows, columns).min() >= 6


def test_glyphs_of_one_class_are_more_alike_than_of_two() -> None:
    labels = np.repeat(TEN, 60)
    flat = draw_glyphs(labels, 7).reshape(600, 64).astype(float)
    means = flat.reshape(10, 60, 64).mean(1)
    nearest = ((flat[:, None] - means[None]) ** 2).sum(2).argmin(1)
    assert (nearest == labels).mean() > 0.6


def test_no_labels_give_no_glyphs() -> None:
    assert draw_glyphs([], 0).shape == (0, 8, 8)


def test_a_clip_image_is_the_scan_enlarged() -> None:
    scan = np.zeros((8, 8))
    scan[2:6, 2:6] = 16
    image = to_clip_image(scan)
    assert (image.size, image.mode) == ((32, 32), "L")
    pixels = clip_pixels(scan[None])[0]
    assert pixels[16, 16] == 255
    assert pixels[2, 2] == 0


@pytest.mark.parametrize("scan", [np.zeros((7, 8)), np.full((8, 8), 17), np.full((8, 8), np.nan)])
def test_what_is_no_scan_is_refused(scan: np.ndarray) -> None:
    with pytest.raises(ValueError, match="8 x 8"):
        to_clip_image(scan)
