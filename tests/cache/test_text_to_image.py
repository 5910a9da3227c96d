"""A Stable Diffusion pipeline by architecture, tiny and with random weights, through the code that loads the real ones."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cachefl_secure.cache.generator import (
    Generator,
    default_guidance,
    default_steps,
    load_generator,
)
from cachefl_secure.cache.manifest import SyntheticImage, read_manifest
from cachefl_secure.cache.synthesis import draw_images
from cachefl_secure.errors import ConfigError, MissingExtra

needs_transformers = pytest.mark.skipif(
    find_spec("transformers") is None, reason="the extra [text-to-image] is not installed"
)
PROMPTS = (("a photo of a dog.", "a wet dog"), ("a photo of a cat.",))
CLASSES = ("dog", "cat")


def _write_tokenizer(folder: Path) -> None:
    """Letters and word-ends as a byte-pair vocabulary without merges."""
    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({word: place for place, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")


def write_tiny_pipeline(folder: Path) -> None:
    """32 x 32 pictures from 16 x 16 latents; 77 tokens."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    _write_tokenizer(folder.parent / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(folder.parent / "tokenizer", model_max_length=77)
    text: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
        ),
        text_encoder=CLIPTextModel(CLIPTextConfig(**text)),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(8, 8),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=16,
            attention_head_dim=2,
            norm_num_groups=4,
        ),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Tiny\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("text-to-image") / "pipeline"
    write_tiny_pipeline(place)
    return place


def _draw(generator: Generator, out_dir: Path) -> list[SyntheticImage]:
    return draw_images(generator, CLASSES, PROMPTS, 3, 7, out_dir, steps=2)


@needs_transformers
def test_a_text_to_image_pipeline_draws_what_it_is_asked_for(folder: Path, tmp_path: Path) -> None:
    generator = load_generator(folder)
    assert (generator.takes, generator.name, generator.licence) == ("prompt", "Tiny", "mit")
    assert (default_steps(generator), default_guidance(generator), generator.together) == (50, 7.5, 8)
    images = _draw(generator, tmp_path)
    assert [image.prompt for image in images[:3]] == ["a photo of a dog.", "a wet dog", "a photo of a dog."]
    assert {(image.pipeline, image.scheduler, image.size) for image in images} == {
        ("StableDiffusionPipeline", "DDIMScheduler", (32, 32))
    }
    pixels = [np.asarray(Image.open(tmp_path / image.file)) for image in images]
    assert len({raw.tobytes() for raw in pixels}) == 6
    # The prompt reaches the picture: the same noise under another sentence is another picture.
    plain = [torch.Generator().manual_seed(1) for _ in range(2)]
    drawn = generator._pipeline(prompt=["a dog", "a cat"], num_inference_steps=2, generator=plain).images
    assert np.abs(np.asarray(drawn[0]).astype(int) - np.asarray(drawn[1])).max() > 0


@needs_transformers
def test_its_pictures_are_the_same_bits_when_part_of_them_is_drawn_again(
    folder: Path, tmp_path: Path
) -> None:
    generator = load_generator(folder)
    whole = _draw(generator, tmp_path)
    (tmp_path / whole[1].file).unlink()
    (tmp_path / whole[5].file).write_bytes(b"damaged")
    assert _draw(load_generator(folder), tmp_path) == whole
    assert {line.sha256 for line in read_manifest(tmp_path)} == {image.sha256 for image in whole}


@needs_transformers
def test_what_was_saved_for_changing_pictures_draws_from_text_as_well(folder: Path, tmp_path: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    copy = tmp_path / "copy"
    copy.mkdir()
    for part in folder.iterdir():
        (copy / part.name).symlink_to(part)
    (copy / "model_index.json").unlink()
    index["_class_name"] = "StableDiffusionImg2ImgPipeline"
    (copy / "model_index.json").write_text(json.dumps(index))
    assert type(load_generator(copy)._pipeline).__name__ == "StableDiffusionPipeline"


@needs_transformers
def test_weights_of_a_text_encoder_that_are_a_pickle_are_never_read(folder: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    weights = copy / "text_encoder" / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_generator(copy)


def test_without_transformers_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = {"_class_name": "StableDiffusionPipeline", "tokenizer": ["transformers", "CLIPTokenizer"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    monkeypatch.setattr("cachefl_secure.cache.generator.find_spec", lambda name: None)
    with pytest.raises(MissingExtra) as caught:
        load_generator(tmp_path)
    assert caught.value.extra == "text-to-image"
