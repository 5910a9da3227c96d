"""Images of each class from a diffusers pipeline, with a manifest that says where every one comes from.

An image depends on (rng seed, generator, class, index) alone: each has its own CPU random stream, so batch
size and order of work change nothing but the last bits of a floating-point sum. A killed run goes on where
it was.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
from PIL import Image

from cachefl_secure.cache.generator import Generator, default_guidance, generator_labels, slug
from cachefl_secure.errors import ConfigError
from cachefl_secure.names import Digest, digest_of

MANIFEST = "manifest.jsonl"
DEFAULT_STEPS = 25

Score = Callable[[Sequence[Image.Image], Sequence[int]], Sequence[float]]
"""Images and their labels to one number each, higher is better: for instance CLIP's zero-shot margin."""

Progress = Callable[[int, int], None]
"""Images made, images wanted."""


@dataclass(frozen=True, slots=True)
class SyntheticImage:
    """One line of the manifest."""

    file: str
    """Below the output folder: ``<label>-<slug>/<nnnn>.png``."""
    label: int
    class_name: str
    index: int
    prompt: str
    """Empty for a class-conditional generator."""
    seed: int
    sha256: str
    """Of the PNG file."""
    generator: str
    licence: str
    generator_digest: str
    scheduler: str
    steps: int
    guidance: float | None
    size: tuple[int, int]
    """Width and height in pixels."""
    score: float | None = None
    decision: Literal["drawn", "kept", "rejected"] = "drawn"


def generate(
    generator: Generator,
    classes: Sequence[str],
    prompts: str | Sequence[str],
    images_per_class: int,
    rng_seed: int,
    out_dir: Path,
    *,
    candidates_per_class: int | None = None,
    score: Score | None = None,
    steps: int = DEFAULT_STEPS,
    guidance: float | None = None,
    batch_size: int = 20,
    progress: Progress | None = None,
) -> list[SyntheticImage]:
    """``images_per_class`` PNG files of every class, ordered by class and index, and ``manifest.jsonl``.

    ``prompts`` is one template with ``{}``, or a prompt for each class; class-conditional generators ignore
    it. ``guidance`` None is the pipeline's own default. With ``score``, ``candidates_per_class`` are drawn
    and the best kept; the others stay on disk, marked ``rejected`` in the manifest. Pictures that are on
    disk with the digest of an equal manifest line are not drawn again.

    Raises:
        ConfigError: the generator does not know a class, or drew a blank picture where a kept one is due.
        ValueError: numbers that make no sense together.
    """
    candidates = images_per_class if candidates_per_class is None else candidates_per_class
    if not 1 <= images_per_class <= candidates or (score is None and candidates != images_per_class):
        raise ValueError("candidates_per_class must be at least images_per_class, and more needs a score")
    wanted = _wanted(generator, classes, prompts, candidates, rng_seed, steps, guidance)
    labels = generator_labels(generator, classes)
    out_dir.mkdir(parents=True, exist_ok=True)
    drawn = _drawn_before(out_dir, wanted)
    missing = [image for image in wanted if image.file not in drawn]
    _write_manifest(out_dir, drawn.values())
    for start in range(0, len(missing), batch_size):
        if progress is not None:
            progress(len(drawn), len(wanted))
        batch = missing[start : start + batch_size]
        for image in _draw(generator, batch, labels, out_dir):
            drawn[image.file] = image
    if progress is not None:
        progress(len(wanted), len(wanted))
    decided = _decide([drawn[image.file] for image in wanted], images_per_class, score, out_dir)
    _write_manifest(out_dir, decided)
    return [image for image in decided if image.decision == "kept"]


def read_manifest(out_dir: Path) -> list[SyntheticImage]:
    """The lines of ``manifest.jsonl``, up to one cut short by a kill; none if it is absent."""
    images = []
    file = out_dir / MANIFEST
    for line in file.read_bytes().splitlines() if file.is_file() else ():
        try:
            images.append(msgspec.json.decode(line, type=SyntheticImage))
        except (msgspec.DecodeError, UnicodeDecodeError):
            break
    return images


def _wanted(
    generator: Generator,
    classes: Sequence[str],
    prompts: str | Sequence[str],
    candidates: int,
    rng_seed: int,
    steps: int,
    guidance: float | None,
) -> list[SyntheticImage]:
    """Every line of the manifest as far as it is known before drawing: digest empty, size (0, 0)."""
    if generator.takes == "class_labels":
        texts = [""] * len(classes)
    elif isinstance(prompts, str):
        texts = [prompts.replace("{}", name.replace("_", " ")) for name in classes]
    else:
        texts = list(prompts)
    if len(texts) != len(classes):
        raise ValueError(f"{len(texts)} prompts for {len(classes)} classes")
    return [
        SyntheticImage(
            file=f"{label}-{slug(name)}/{index:04d}.png",
            label=label,
            class_name=name,
            index=index,
            prompt=texts[label],
            seed=_seed(rng_seed, generator.weights_digest, name, index),
            sha256="",
            generator=generator.name,
            licence=generator.licence,
            generator_digest=generator.weights_digest,
            scheduler=generator.scheduler,
            steps=steps,
            guidance=default_guidance(generator) if guidance is None else guidance,
            size=(0, 0),
        )
        for label, name in enumerate(classes)
        for index in range(candidates)
    ]


def _seed(rng_seed: int, generator_digest: Digest, name: str, index: int) -> int:
    """31 bits: torch's CPU generator keeps 32 of a seed, and JSON readers keep 53 of a number."""
    parts = (str(rng_seed), generator_digest, name, str(index))
    return int(digest_of("cachefl-secure/synthesis/1", *(part.encode() for part in parts))[:8], 16) >> 1


def _drawn_before(out_dir: Path, wanted: Sequence[SyntheticImage]) -> dict[str, SyntheticImage]:
    """Lines of an earlier run that agree with what is wanted and whose file still has the digest."""
    due = {image.file: image for image in wanted}
    found = {}
    for line in read_manifest(out_dir):
        blank = replace(line, sha256="", size=(0, 0), score=None, decision="drawn")
        file = out_dir / line.file
        if due.get(line.file) != blank or not file.is_file():
            continue
        if hashlib.sha256(file.read_bytes()).hexdigest() == line.sha256:
            found[line.file] = replace(line, score=None, decision="drawn")
    return found


def _draw(
    generator: Generator, batch: Sequence[SyntheticImage], labels: Sequence[int], out_dir: Path
) -> Iterator[SyntheticImage]:
    """One call of the pipeline; each picture is on disk before its line is."""
    inputs = [image.prompt if generator.takes == "prompt" else labels[image.label] for image in batch]
    options: dict[str, Any] = {generator.takes: inputs, "num_inference_steps": batch[0].steps}
    if batch[0].guidance is not None:
        options["guidance_scale"] = batch[0].guidance
    streams = [torch.Generator("cpu").manual_seed(image.seed) for image in batch]
    pictures = generator._pipeline(**options, generator=streams, output_type="pil").images
    with (out_dir / MANIFEST).open("ab") as manifest:
        for image, picture in zip(batch, pictures, strict=True):
            raw = _png(picture)
            _write(out_dir / image.file, raw)
            line = replace(image, sha256=hashlib.sha256(raw).hexdigest(), size=picture.size)
            manifest.write(msgspec.json.encode(line) + b"\n")
            manifest.flush()
            yield line


def _decide(
    drawn: Sequence[SyntheticImage], images_per_class: int, score: Score | None, out_dir: Path
) -> list[SyntheticImage]:
    """Keep the best of each class; without a score, all. A blank picture (a safety filter's) comes last."""
    pictures = [_open(out_dir / image.file) for image in drawn]
    scores = None if score is None else list(score(pictures, [image.label for image in drawn]))
    blank = [_is_blank(picture) for picture in pictures]
    decided: list[SyntheticImage] = []
    for label in dict.fromkeys(image.label for image in drawn):
        members = [i for i, image in enumerate(drawn) if image.label == label]
        if scores is not None:
            members.sort(key=lambda i: (blank[i], -scores[i], drawn[i].index))
        kept = set(members[:images_per_class])
        if any(blank[i] for i in kept):
            raise ConfigError(
                drawn[members[0]].generator, "classes", f"blank picture of {drawn[members[0]].class_name!r}"
            )
        for i in sorted(members):
            value = None if scores is None else round(float(scores[i]), 6)
            decided.append(replace(drawn[i], score=value, decision="kept" if i in kept else "rejected"))
    return decided


def _open(file: Path) -> Image.Image:
    return Image.open(io.BytesIO(file.read_bytes())).convert("RGB")


def _is_blank(picture: Image.Image) -> bool:
    low, high = picture.convert("L").getextrema()
    return bool(low == high)


def _png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return stream.getvalue()


def _write_manifest(out_dir: Path, images: Iterable[SyntheticImage]) -> None:
    _write(out_dir / MANIFEST, b"".join(msgspec.json.encode(image) + b"\n" for image in images))


def _write(file: Path, raw: bytes) -> None:
    """Whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".partial")
    partial.write_bytes(raw)
    os.replace(partial, file)
