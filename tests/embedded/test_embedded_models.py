"""The shipped weights do what their cards say. Nothing here trains."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import open_clip
import pytest
from PIL import Image

from cachefl_secure.cache.encoder import Encoder, load_encoder, text_classifier
from cachefl_secure.cache.generator import load_generator
from cachefl_secure.cache.prompts import PAPER, template_prompts
from cachefl_secure.cache.synthesis import draw_images
from cachefl_secure.embedded import CLASSES, CLIP_DIR, GENERATOR_DIR, GENERATOR_STEPS, TEMPLATES
from cachefl_secure.embedded.digits import load_scans
from cachefl_secure.embedded.glyphs import draw_glyphs, to_clip_image

PACKAGE_LIMIT_BYTES = 12_000_000


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder("embedded", local_dir=CLIP_DIR)


def _read(encoder: Encoder, images: list[Image.Image]) -> np.ndarray:
    classifier = text_classifier(encoder, CLASSES, TEMPLATES)
    return (encoder.encode_images(images) @ classifier.T).argmax(1).numpy()


def test_the_clip_reads_fresh_glyphs(encoder: Encoder) -> None:
    labels = np.arange(500) % 10
    images = [to_clip_image(glyph) for glyph in draw_glyphs(labels, 987_654)]
    assert (_read(encoder, images) == labels).mean() >= 0.95


def test_the_clip_reads_handwriting_that_it_has_never_seen_better_than_half_the_time(
    encoder: Encoder,
) -> None:
    scans, labels = load_scans()
    accuracy = (_read(encoder, [to_clip_image(scan) for scan in scans]) == labels).mean()
    assert 0.5 <= accuracy <= 0.9  # above, there would be nothing left for a federation to learn


def test_the_clip_reads_each_template_alike(encoder: Encoder) -> None:
    labels = np.arange(300) % 10
    images = encoder.encode_images([to_clip_image(glyph) for glyph in draw_glyphs(labels, 987_655)])
    for template in TEMPLATES:
        logits = images @ text_classifier(encoder, CLASSES, [template]).T
        assert (logits.argmax(1).numpy() == labels).mean() >= 0.9, template


def test_plain_open_clip_loads_the_folder_with_its_weights() -> None:
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{CLIP_DIR}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{CLIP_DIR}")
    model.eval()
    assert {str(p.dtype) for p in model.parameters()} == {"torch.float32"}
    image = preprocess(to_clip_image(draw_glyphs([7], 1)[0]).convert("RGB"))
    texts = model.encode_text(tokenizer([TEMPLATES[0].format(name) for name in CLASSES]), normalize=True)
    logits = model.encode_image(image[None], normalize=True) @ texts.T
    assert int(logits.argmax()) == 7


def test_the_generator_draws_what_it_is_asked_for(encoder: Encoder, tmp_path: Path) -> None:
    prompts = template_prompts(CLASSES, [PAPER])
    generator = load_generator(GENERATOR_DIR)
    drawn = draw_images(generator, CLASSES, prompts, 5, 2024, tmp_path, steps=GENERATOR_STEPS)
    images = [Image.open(tmp_path / image.file).copy() for image in drawn]
    labels = np.array([image.label for image in drawn])
    assert (_read(encoder, images) == labels).mean() >= 0.9
    assert {image.size for image in images} == {(32, 32)}
    # Five images of a class are five images, not one.
    pixels = np.stack([np.asarray(image, float) for image in images]).reshape(10, 5, -1)
    assert pixels.std(1).mean() > 5


def test_all_that_is_shipped_is_small_and_readable_by_all() -> None:
    files = [file for root in (CLIP_DIR, GENERATOR_DIR) for file in root.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < PACKAGE_LIMIT_BYTES
    assert {file.suffix for file in files} == {".json", ".md", ".safetensors"}
    assert all(file.stat().st_mode & 0o444 == 0o444 for file in files)
