from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cachefl_secure.cache.generator import Generator, load_generator
from cachefl_secure.cache.synthesis import MANIFEST, SyntheticImage, generate, read_manifest
from cachefl_secure.embedded import CLASSES, GENERATOR_DIR
from cachefl_secure.errors import ConfigError

THREE = ("two", "zero", "seven")
STEPS = 4


@pytest.fixture(scope="module")
def generator() -> Generator:
    return load_generator(GENERATOR_DIR)


def _draw(generator: Generator, out_dir: Path, **options: Any) -> list[SyntheticImage]:
    return generate(generator, THREE, "the digit {}", 2, 11, out_dir, **{"steps": STEPS, **options})


def _brightness(images: Sequence[Image.Image], labels: Sequence[int]) -> list[float]:
    return [float(np.asarray(image).mean()) for image in images]


def test_the_generator_says_what_it_is(generator: Generator) -> None:
    assert generator.name == "The tiny digit generator of cachefl-secure"
    assert generator.licence == "apache-2.0"
    assert generator.takes == "class_labels"
    assert generator.scheduler == "DDIMScheduler"
    assert [generator.class_labels[name] for name in CLASSES] == list(range(10))


def test_the_manifest_says_where_every_image_comes_from(generator: Generator, tmp_path: Path) -> None:
    images = _draw(generator, tmp_path)
    assert [image.file for image in images] == [
        *("0-two/0000.png", "0-two/0001.png", "1-zero/0000.png"),
        *("1-zero/0001.png", "2-seven/0000.png", "2-seven/0001.png"),
    ]
    assert images == read_manifest(tmp_path)
    line = json.loads((tmp_path / MANIFEST).read_text().splitlines()[0])
    assert line["generator_digest"] == generator.weights_digest
    assert (line["licence"], line["scheduler"], line["steps"]) == ("apache-2.0", "DDIMScheduler", STEPS)
    assert (line["class_name"], line["decision"], line["size"]) == ("two", "kept", [32, 32])
    assert str(GENERATOR_DIR.parent) not in (tmp_path / MANIFEST).read_text()
    assert len({image.seed for image in images}) == len({image.sha256 for image in images}) == 6


def test_images_do_not_depend_on_the_batch_size(generator: Generator, tmp_path: Path) -> None:
    together = _draw(generator, tmp_path / "six", batch_size=6)
    alone = _draw(generator, tmp_path / "one", batch_size=1)
    assert [image.seed for image in together] == [image.seed for image in alone]
    for image in together:
        pixels = [np.asarray(Image.open(tmp_path / run / image.file)).astype(int) for run in ("six", "one")]
        assert np.abs(pixels[0] - pixels[1]).max() <= 1  # of 255: the order of floating-point sums


def test_an_image_does_not_depend_on_the_other_classes(generator: Generator, tmp_path: Path) -> None:
    among_three = _draw(generator, tmp_path / "three")
    alone = generate(generator, ("seven",), "{}", 1, 11, tmp_path / "one", steps=STEPS)
    assert alone[0].seed == among_three[4].seed


def test_another_rng_seed_draws_other_images(generator: Generator, tmp_path: Path) -> None:
    first = _draw(generator, tmp_path / "a")
    second = generate(generator, THREE, "{}", 2, 12, tmp_path / "b", steps=STEPS)
    assert not {image.sha256 for image in first} & {image.sha256 for image in second}


def test_a_killed_run_goes_on_where_it_was(generator: Generator, tmp_path: Path) -> None:
    whole = _draw(generator, tmp_path)
    lines = (tmp_path / MANIFEST).read_bytes().splitlines(keepends=True)
    (tmp_path / MANIFEST).write_bytes(b"".join(lines[:3]) + lines[3][:20])
    (tmp_path / whole[1].file).write_bytes(b"damaged")
    kept = {image.file: (tmp_path / image.file).stat().st_mtime_ns for image in whole}
    made: list[int] = []
    again = _draw(generator, tmp_path, progress=lambda done, wanted: made.append(done))
    assert made[0] == 2
    assert made[-1] == 6
    assert [image.file for image in again] == [image.file for image in whole]
    assert read_manifest(tmp_path) == again
    untouched = {file for file, time in kept.items() if (tmp_path / file).stat().st_mtime_ns == time}
    assert untouched == {whole[0].file, whole[2].file}


def test_a_run_with_other_settings_draws_again(generator: Generator, tmp_path: Path) -> None:
    first = _draw(generator, tmp_path)
    second = _draw(generator, tmp_path, guidance=1.5)
    assert {image.guidance for image in second} == {1.5}
    assert [image.sha256 for image in first] != [image.sha256 for image in second]


def test_the_best_candidates_are_kept_and_the_others_stay_on_record(
    generator: Generator, tmp_path: Path
) -> None:
    kept = _draw(generator, tmp_path, candidates_per_class=5, score=_brightness)
    lines = read_manifest(tmp_path)
    assert len(kept) == 6
    assert len(lines) == 15
    for label in range(3):
        scores: dict[str, list[float]] = {"kept": [], "rejected": []}
        for line in lines:
            if line.label == label:
                assert line.score is not None
                scores[line.decision].append(line.score)
        assert min(scores["kept"]) >= max(scores["rejected"])
        assert len(scores["kept"]) == 2


def test_a_class_that_the_generator_does_not_know_is_refused(generator: Generator, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not know 'hippopotamus'"):
        generate(generator, ("zero", "hippopotamus"), "{}", 1, 0, tmp_path, steps=STEPS)


@pytest.mark.parametrize("numbers", [(0, None), (3, 2), (1, 4)])
def test_numbers_that_make_no_sense_are_refused(
    generator: Generator, tmp_path: Path, numbers: tuple[int, int | None]
) -> None:
    with pytest.raises(ValueError, match="candidates_per_class"):
        generate(generator, THREE, "{}", numbers[0], 0, tmp_path, candidates_per_class=numbers[1])


class _PromptPipeline:
    """A text-to-image face on the class-conditional pipeline: the last word of a prompt is the class."""

    def __init__(self, generator: Generator) -> None:
        self._inner, self._labels = generator._pipeline, generator.class_labels
        self.prompts: list[str] = []

    def __call__(
        self, prompt: list[str], num_inference_steps: int, generator: Any, output_type: str
    ) -> object:
        self.prompts += prompt
        labels = [self._labels[text.split()[-1]] for text in prompt]
        return self._inner(
            labels, num_inference_steps=num_inference_steps, generator=generator, output_type=output_type
        )


def test_a_text_to_image_pipeline_is_given_prompts(generator: Generator, tmp_path: Path) -> None:
    pipeline = _PromptPipeline(generator)
    by_prompt = Generator(
        "by prompt", "unknown", generator.weights_digest, "DDIMScheduler", "prompt", {}, pipeline
    )
    images = _draw(by_prompt, tmp_path, batch_size=4)
    expected = [f"the digit {name}" for name in THREE for _ in range(2)]
    assert [image.prompt for image in images] == pipeline.prompts == expected
    assert {image.guidance for image in images} == {None}
    with pytest.raises(ValueError, match="2 prompts for 3 classes"):
        generate(by_prompt, THREE, ["a", "b"], 1, 0, tmp_path)


def test_a_blank_picture_is_never_kept(generator: Generator, tmp_path: Path) -> None:
    class Blank:
        def __call__(self, class_labels: list[int], **_: object) -> object:
            pictures = [Image.new("L", (32, 32)) for _ in class_labels]
            return type("Output", (), {"images": pictures})()

    blank = Generator(
        "blank", "unknown", generator.weights_digest, "DDIMScheduler", "class_labels", {}, Blank()
    )
    with pytest.raises(ConfigError, match="blank picture"):
        _draw(blank, tmp_path)


def test_a_missing_generator_is_told_what_to_bring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"bring the pipeline's folder \(model_index.json"):
        load_generator(str(tmp_path / "absent"))
    with pytest.raises(ConfigError, match="bring the pipeline's folder"):
        load_generator("no-such-organisation/no-such-model")


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        (b"not json", "is not JSON"),
        (b"[]", "_class_name"),
        (b'{"_class_name": ["my_code", "Pipe"]}', "_class_name"),
        (b'{"_class_name": "DiTPipeline", "vae": ["os", "system"]}', "comes from 'os'"),
        (b'{"_class_name": "NoSuchPipeline"}', "cannot be loaded"),
    ],
)
def test_a_folder_that_is_no_stock_pipeline_is_refused(tmp_path: Path, index: bytes, reason: str) -> None:
    (tmp_path / "model_index.json").write_bytes(index)
    with pytest.raises(ConfigError, match=reason):
        load_generator(tmp_path)


def test_a_pickle_is_never_read(tmp_path: Path) -> None:
    folder = tmp_path / "generator"
    shutil.copytree(GENERATOR_DIR, folder)
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_generator(folder)


def test_name_and_licence_come_from_the_folder_and_the_digest_from_its_weights(
    generator: Generator, tmp_path: Path
) -> None:
    folder = tmp_path / "renamed"
    shutil.copytree(GENERATOR_DIR, folder)
    (folder / "README.md").unlink()
    bare = load_generator(folder)
    assert (bare.name, bare.licence) == ("renamed", "unknown")
    assert bare.weights_digest == generator.weights_digest
    (folder / "LICENSE").write_text("\nMIT License\n")
    assert load_generator(folder).licence == "MIT License"
    scheduler = folder / "scheduler" / "scheduler_config.json"
    scheduler.write_text(scheduler.read_text().replace("squaredcos_cap_v2", "linear"))
    assert load_generator(folder).weights_digest != generator.weights_digest
