"""Pictures from a generator: the same bits whatever the order of work, and a manifest that says where they come from."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cachefl_secure.cache.generator import Generator, default_guidance, default_steps, load_generator
from cachefl_secure.cache.manifest import BLANK, MANIFEST, SyntheticImage, read_manifest
from cachefl_secure.cache.prompts import template_prompts
from cachefl_secure.cache.synthesis import draw_images
from cachefl_secure.embedded import CLASSES, GENERATOR_DIR
from cachefl_secure.errors import ConfigError
from cachefl_secure.names import Digest
from tests.claims import REPOSITORY

THREE = ("two", "zero", "seven")
STEPS = 4


@pytest.fixture(scope="module")
def generator() -> Generator:
    return load_generator(GENERATOR_DIR)


def _draw(
    generator: Generator,
    out_dir: Path,
    candidates: int = 2,
    classes: tuple[str, ...] = THREE,
    rng_seed: int = 11,
    **options: Any,
) -> list[SyntheticImage]:
    prompts = template_prompts(classes, ["the digit {}"])
    return draw_images(
        generator, classes, prompts, candidates, rng_seed, out_dir, **{"steps": STEPS, **options}
    )


def _digests(images: list[SyntheticImage]) -> dict[str, str]:
    return {image.file: image.sha256 for image in images}


def test_the_generator_says_what_it_is(generator: Generator) -> None:
    assert generator.name == "The tiny digit generator of cachefl-secure"
    assert (generator.licence, generator.revision, generator.dtype) == ("apache-2.0", "", "float32")
    assert generator.takes == "class_labels"
    assert generator.scheduler == "DDIMScheduler"
    assert [generator.class_labels[name] for name in CLASSES] == list(range(10))
    assert (default_steps(generator), default_guidance(generator)) == (50, 4.0)  # DiTPipeline's own


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
    assert (line["pipeline"], line["dtype"], line["guidance"]) == ("DiTPipeline", "float32", 4.0)
    assert line["versions"]["torch"] == torch.__version__
    assert (line["class_name"], line["size"], line["ai_generated"]) == ("two", [32, 32], True)
    assert str(GENERATOR_DIR.parent) not in (tmp_path / MANIFEST).read_text()
    assert len({image.seed for image in images}) == len({image.sha256 for image in images}) == 6


def test_every_picture_carries_the_mark_of_its_making(generator: Generator, tmp_path: Path) -> None:
    first = _draw(generator, tmp_path, 1, ("two",))[0]
    with Image.open(tmp_path / first.file) as picture:
        assert "AI generated" in picture.info["Comment"]
        assert picture.info["DigitalSourceType"].endswith("trainedAlgorithmicMedia")


def test_in_another_batch_a_picture_may_be_one_level_off_which_is_why_batches_are_not_chosen(
    generator: Generator, tmp_path: Path
) -> None:
    together = _draw(generator, tmp_path / "eight", 3)
    alone = _draw(replace(generator, together=1), tmp_path / "one", 3)
    assert generator.together == 8
    assert [image.seed for image in together] == [image.seed for image in alone]
    for image in together:
        pixels = [np.asarray(Image.open(tmp_path / run / image.file)).astype(int) for run in ("eight", "one")]
        assert np.abs(pixels[0] - pixels[1]).max() <= 1  # of 255: the order of floating-point sums


def test_a_picture_depends_neither_on_other_classes_nor_on_how_many_are_drawn(
    generator: Generator, tmp_path: Path
) -> None:
    among_three = _digests(_draw(generator, tmp_path / "three", 5))
    alone = _digests(_draw(generator, tmp_path / "one", 10, ("two",)))
    assert alone.items() >= {(file, sha) for file, sha in among_three.items() if file.startswith("0-two")}


def test_another_rng_seed_draws_other_images(generator: Generator, tmp_path: Path) -> None:
    first, second = _draw(generator, tmp_path / "a"), _draw(generator, tmp_path / "b", rng_seed=12)
    assert not {image.sha256 for image in first} & {image.sha256 for image in second}


def test_a_run_cut_in_its_files_goes_on_where_it_was_with_the_same_bits(
    generator: Generator, tmp_path: Path
) -> None:
    whole = _draw(generator, tmp_path)
    lines = (tmp_path / MANIFEST).read_bytes().splitlines(keepends=True)
    (tmp_path / MANIFEST).write_bytes(b"".join(lines[:3]) + lines[3][:20])
    (tmp_path / whole[1].file).write_bytes(b"damaged")
    kept = {image.file: (tmp_path / image.file).stat().st_mtime_ns for image in whole}
    made: list[int] = []
    again = _draw(generator, tmp_path, progress=lambda done, wanted: made.append(done))
    assert (made[0], made[-1]) == (2, 6)
    assert again == whole == sorted(read_manifest(tmp_path), key=lambda image: image.file)
    untouched = {file for file, time in kept.items() if (tmp_path / file).stat().st_mtime_ns == time}
    assert untouched == {whole[0].file, whole[2].file}


_PROGRAM = """
import sys
from pathlib import Path
import torch
from cachefl_secure.cache.generator import load_generator
from cachefl_secure.cache.synthesis import draw_images
threads, source, folder, candidates, steps, *classes = sys.argv[1:]
torch.set_num_threads(int(threads))  # the order of sums depends on it
prompts = [("",)] * len(classes)
draw_images(load_generator(source), classes, prompts, int(candidates), 11, Path(folder), steps=int(steps))
"""


def _process(source: Path, folder: Path, candidates: int, steps: int, classes: tuple[str, ...]) -> Any:
    command = [
        sys.executable,
        "-c",
        _PROGRAM,
        str(torch.get_num_threads()),
        str(source),
        str(folder),
        str(candidates),
        str(steps),
        *classes,
    ]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(REPOSITORY)})


def _killed_and_resumed(
    source: Path, folder: Path, candidates: int, steps: int, classes: tuple[str, ...]
) -> int:
    """Pictures that were there when SIGKILL struck."""
    process = _process(source, folder, candidates, steps, classes)
    until = time.monotonic() + 120
    while len(read_manifest(folder)) < 3 and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was to be killed at work"
    done = len(read_manifest(folder))
    assert _process(source, folder, candidates, steps, classes).wait() == 0
    return done


def test_a_drawing_process_killed_and_started_again_leaves_the_same_pictures(
    generator: Generator, tmp_path: Path
) -> None:
    done = _killed_and_resumed(GENERATOR_DIR, tmp_path / "killed", 9, 10, THREE)
    assert 3 <= done < 27
    whole, resumed = _draw(generator, tmp_path / "whole", 9, steps=10), read_manifest(tmp_path / "killed")
    assert len(whole) == 27
    assert _digests(whole) == _digests(resumed)
    for image in whole:
        assert (tmp_path / "whole" / image.file).read_bytes() == (
            tmp_path / "killed" / image.file
        ).read_bytes()


@pytest.mark.slow
def test_a_class_conditional_unet_without_a_pipeline_draws_and_survives_a_kill(
    data_root: Path, tmp_path: Path
) -> None:
    source = data_root / "ddpm_mednist32"
    if not source.is_dir():
        pytest.skip(f"absent: {source}")
    generator = load_generator(source)
    classes = ("Hand", "CXR")
    assert (generator.takes, generator.scheduler, generator.together) == ("class_labels", "DDIMScheduler", 8)
    assert (default_steps(generator), default_guidance(generator)) == (30, 2.5)
    done = _killed_and_resumed(source, tmp_path / "killed", 8, 10, classes)
    assert 3 <= done < 16
    whole = _draw(generator, tmp_path / "whole", 8, classes, steps=10)
    assert len(whole) == 16
    assert _digests(whole) == _digests(read_manifest(tmp_path / "killed"))
    means = {
        name: np.mean(
            [
                np.asarray(Image.open(tmp_path / "whole" / i.file)).mean()
                for i in whole
                if i.class_name == name
            ]
        )
        for name in classes
    }
    assert means["CXR"] > means["Hand"] + 30  # a chest fills the picture, a hand lies on black


def test_a_run_with_other_settings_draws_again(generator: Generator, tmp_path: Path) -> None:
    first = _draw(generator, tmp_path)
    second = _draw(generator, tmp_path, guidance=1.5)
    assert {image.guidance for image in second} == {1.5}
    assert [image.sha256 for image in first] != [image.sha256 for image in second]


def test_a_class_that_the_generator_does_not_know_is_refused(generator: Generator, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not know 'hippopotamus'"):
        _draw(generator, tmp_path, classes=("zero", "hippopotamus"))


def test_numbers_that_make_no_sense_are_refused(generator: Generator, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="0 candidates"):
        _draw(generator, tmp_path, 0)
    with pytest.raises(ValueError, match="1 prompts for 3 classes"):
        draw_images(generator, THREE, (("a",),), 1, 0, tmp_path)


class Painter:
    """In a pipeline's place: a picture of one grey for each random stream, or a blank one."""

    def __init__(self, blank_at: int = -1) -> None:
        self.prompts: list[str] = []
        self.guidance: list[float | None] = []
        self._blank_at = blank_at

    def __call__(
        self,
        prompt: list[str],
        num_inference_steps: int = 3,
        guidance_scale: float | None = None,
        *,
        generator: list[torch.Generator],
        output_type: str,
    ) -> Any:
        self.prompts += prompt
        self.guidance.append(guidance_scale)
        pictures: list[Image.Image] = []
        for stream in generator:
            noise = torch.randint(0, 255, (4, 4), generator=stream, dtype=torch.uint8).numpy()
            at = len(self.prompts) - len(prompt) + len(pictures)
            pictures.append(Image.fromarray(noise * 0 if at == self._blank_at else noise))
        return type("Output", (), {"images": pictures})()


def painted(pipeline: Painter, together: int = 1) -> Generator:
    digest = Digest("ab" * 32)
    return Generator("a painter", "mit", "", digest, "none", "float32", "prompt", {}, together, pipeline)


def test_sentences_are_taken_in_turn_and_enter_the_seed(tmp_path: Path) -> None:
    pipeline = Painter()
    prompts = (("a red {}", "a wet dog"), ("the cat",))
    images = draw_images(painted(pipeline), ("dog", "cat"), prompts, 3, 5, tmp_path)
    assert (
        [image.prompt for image in images]
        == pipeline.prompts
        == ["a red {}", "a wet dog", "a red {}", *["the cat"] * 3]
    )
    assert {image.steps for image in images} == {3}
    assert pipeline.guidance == [None] * 6
    other = draw_images(
        painted(Painter()), ("dog", "cat"), (("a red {}", "a dog"), ("the cat",)), 3, 5, tmp_path / "b"
    )
    changed = [a.sha256 != b.sha256 for a, b in zip(images, other, strict=True)]
    assert changed == [False, True, False, False, False, False]


def test_a_blank_picture_is_marked_when_it_is_drawn_and_stays_so(tmp_path: Path) -> None:
    images = draw_images(painted(Painter(blank_at=1)), ("dog",), (("a dog",),), 3, 5, tmp_path)
    assert [image.decision for image in images] == ["drawn", BLANK, "drawn"]
    again = Painter()
    assert draw_images(painted(again), ("dog",), (("a dog",),), 3, 5, tmp_path) == images
    assert again.prompts == []


def test_a_missing_generator_is_told_what_to_bring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"bring the pipeline's folder \(model_index.json"):
        load_generator(str(tmp_path / "absent"))
    with pytest.raises(ConfigError, match="bring the pipeline's folder"):
        load_generator("no-such-organisation/no-such-model")


def test_offline_asks_no_hub_and_says_which_folder_to_bring(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", forbidden)
    monkeypatch.setattr("socket.getaddrinfo", forbidden)
    with pytest.raises(ConfigError, match=r"--offline asks no hub .*bring the pipeline's folder"):
        load_generator("no-such-organisation/no-such-model", revision="main", offline=True)


def test_offload_without_a_gpu_is_refused() -> None:
    with pytest.raises(ConfigError, match="there is none in use"):
        load_generator(GENERATOR_DIR, offload=True)


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


@pytest.mark.parametrize(
    ("classes", "reason"),
    [(b'["a", "a"]', "different names"), (b'{"a": 0}', "list of class names"), (b"[", "not JSON")],
)
def test_class_names_beside_a_unet_that_do_not_fit_are_refused(
    data_root: Path, tmp_path: Path, classes: bytes, reason: str
) -> None:
    source = data_root / "ddpm_mednist32"
    if not source.is_dir():
        pytest.skip(f"absent: {source}")
    shutil.copytree(source, tmp_path / "g")
    (tmp_path / "g" / "classes.json").write_bytes(classes)
    with pytest.raises(ConfigError, match=reason):
        load_generator(tmp_path / "g")


def test_name_and_licence_come_from_the_folder_and_the_digest_from_its_weights(
    generator: Generator, tmp_path: Path
) -> None:
    folder = tmp_path / "renamed"
    shutil.copytree(GENERATOR_DIR, folder)
    (folder / "README.md").unlink()
    (folder / "teaser.png").write_bytes(b"not of the pipeline")
    bare = load_generator(folder)
    assert (bare.name, bare.licence) == ("renamed", "unknown")
    assert bare.weights_digest == generator.weights_digest
    (folder / "LICENSE").write_text("\nMIT License\n")
    assert load_generator(folder).licence == "MIT License"
    (folder / "README.md").write_text("---\nlicense: other\nlicense_name: a-licence-of-its-own\n---\n")
    assert load_generator(folder).licence == "a-licence-of-its-own"
    scheduler = folder / "scheduler" / "scheduler_config.json"
    scheduler.write_text(scheduler.read_text().replace("squaredcos_cap_v2", "linear"))
    assert load_generator(folder).weights_digest != generator.weights_digest
