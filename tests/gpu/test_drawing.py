"""Pictures drawn on a GPU in half precision: the same bits whatever part is drawn again, and worth encoding."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cachefl_secure.cache.encoder import load_encoder, text_classifier
from cachefl_secure.cache.generator import load_generator
from cachefl_secure.cache.manifest import read_manifest
from cachefl_secure.cache.prompts import template_prompts
from cachefl_secure.cache.synthesis import draw_images
from cachefl_secure.embedded import CLASSES, CLIP_DIR, GENERATOR_DIR, GENERATOR_STEPS, TEMPLATES
from tests.cache.test_text_to_image import write_tiny_pipeline

needs_text_to_image = pytest.mark.skipif(
    find_spec("accelerate") is None or find_spec("transformers") is None,
    reason="the extra [text-to-image] is not installed",
)
SOURCES = ["class labels", pytest.param("prompts", marks=needs_text_to_image)]


@pytest.fixture(scope="module")
def text_to_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text-to-image") / "pipeline"
    write_tiny_pipeline(folder)
    return folder


def draw(folder: Path, out_dir: Path, *, offload: bool = False, steps: int = 4) -> dict[str, str]:
    """File -> digest of its pixels."""
    generator = load_generator(folder, device="cuda", offload=offload)
    assert generator.dtype == "bfloat16"
    assert hasattr(generator._pipeline, "_offload_device") is offload  # diffusers sets it when it offloads
    prompts = template_prompts(CLASSES, TEMPLATES)
    images = draw_images(generator, CLASSES, prompts, 2, 7, out_dir, steps=steps)
    assert {image.dtype for image in read_manifest(out_dir)} == {"bfloat16"}
    return {image.file: image.sha256 for image in images}


@pytest.mark.parametrize("source", SOURCES)
def test_the_same_bits_when_part_of_them_is_drawn_again(
    source: str, text_to_image: Path, tmp_path: Path
) -> None:
    folder = GENERATOR_DIR if source == "class labels" else text_to_image
    whole = draw(folder, tmp_path)
    for file in list(whole)[::3]:
        (tmp_path / file).unlink()
    assert draw(folder, tmp_path) == whole
    assert len(set(whole.values())) == len(whole)


@needs_text_to_image
@pytest.mark.parametrize("source", ["class labels", "prompts"])
def test_offloading_draws_the_same_pictures(source: str, text_to_image: Path, tmp_path: Path) -> None:
    folder = GENERATOR_DIR if source == "class labels" else text_to_image
    assert draw(folder, tmp_path / "whole") == draw(folder, tmp_path / "parts", offload=True)


def test_an_encoder_recognises_what_was_drawn(tmp_path: Path) -> None:
    files = list(draw(GENERATOR_DIR, tmp_path, steps=GENERATOR_STEPS))
    encoder = load_encoder("embedded", local_dir=CLIP_DIR, device="cuda", precision="auto")
    features = encoder.encode_images(Image.open(tmp_path / file) for file in files)
    found = (features @ text_classifier(encoder, CLASSES, TEMPLATES).T).argmax(dim=1)
    assert float((found == torch.arange(len(CLASSES)).repeat_interleave(2)).float().mean()) >= 0.8
    assert np.asarray(Image.open(tmp_path / files[0])).std() > 10
