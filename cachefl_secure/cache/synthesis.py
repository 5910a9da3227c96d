"""Pictures of each class from a diffusers pipeline, with a manifest that says where every one comes from.

A picture depends on (rng seed, generator, class, prompt, index) alone: each has its own CPU random stream, and which
pictures one call draws together is fixed by class and index. So neither the order of work, nor a kill and a fresh
start, nor other classes or more candidates change a bit of it on the same machine and versions.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from cachefl_secure.cache.generator import (
    Generator,
    default_guidance,
    default_steps,
    generator_labels,
    slug,
)
from cachefl_secure.cache.manifest import (
    BLANK,
    DRAWN,
    MANIFEST,
    SyntheticImage,
    line_bytes,
    manifest_bytes,
    read_manifest,
    write_whole,
)
from cachefl_secure.cache.prompts import Prompts
from cachefl_secure.names import Digest, digest_of

_MADE_BY_A_MODEL = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"

Progress = Callable[[int, int], None]
"""Pictures made, pictures wanted."""


def draw_images(
    generator: Generator,
    classes: Sequence[str],
    prompts: Prompts,
    candidates_per_class: int,
    rng_seed: int,
    folder: Path,
    *,
    steps: int | None = None,
    guidance: float | None = None,
    progress: Progress | None = None,
) -> list[SyntheticImage]:
    """``candidates_per_class`` PNG files of every class and their manifest lines, by class and index.

    ``steps`` and ``guidance`` None are the pipeline's own defaults. A class-conditional generator takes no
    ``prompts``. Pictures that are on disk with the digest of an equal manifest line are not drawn again.

    Raises:
        ConfigError: the generator does not know a class.
        ValueError: numbers that make no sense together.
    """
    if candidates_per_class < 1 or len(prompts) != len(classes):
        raise ValueError(
            f"{candidates_per_class} candidates, {len(prompts)} prompts for {len(classes)} classes"
        )
    labels = generator_labels(generator, classes)
    recipe = _recipe(generator, steps, guidance)
    together = generator.together
    blocks = [
        [
            _wanted(recipe, generator, label, name, prompts[label], index, rng_seed)
            for index in range(start, start + together)
        ]
        for label, name in enumerate(classes)
        for start in range(0, candidates_per_class, together)
    ]
    wanted = [image for block in blocks for image in block if image.index < candidates_per_class]
    drawn = _drawn_before(folder, wanted)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / MANIFEST, manifest_bytes(drawn.values()))
    for block in blocks:
        missing = {image.file for image in block if image.index < candidates_per_class} - set(drawn)
        if progress is not None:
            progress(len(drawn), len(wanted))
        if missing:
            # The whole block, although a part may be there: neighbours decide the last bits of a sum.
            drawn |= {image.file: image for image in _draw(generator, block, labels, missing, folder)}
    if progress is not None:
        progress(len(wanted), len(wanted))
    return [drawn[image.file] for image in wanted]


def _recipe(generator: Generator, steps: int | None, guidance: float | None) -> dict[str, Any]:
    """What all lines of a run share."""
    import diffusers

    return {
        "generator": generator.name,
        "licence": generator.licence,
        "revision": generator.revision,
        "generator_digest": generator.weights_digest,
        "pipeline": type(generator._pipeline).__name__,
        "scheduler": generator.scheduler,
        "steps": default_steps(generator) if steps is None else steps,
        "guidance": default_guidance(generator) if guidance is None else guidance,
        "dtype": generator.dtype,
        "versions": {"diffusers": diffusers.__version__, "torch": str(torch.__version__)},
        "ai_generated": True,
    }


def _wanted(
    recipe: dict[str, Any],
    generator: Generator,
    label: int,
    name: str,
    sentences: Sequence[str],
    index: int,
    rng_seed: int,
) -> SyntheticImage:
    """The manifest line as far as it is known before drawing."""
    prompt = sentences[index % len(sentences)] if generator.takes == "prompt" else ""
    return SyntheticImage(
        file=f"{label}-{slug(name)}/{index:04d}.png",
        label=label,
        class_name=name,
        index=index,
        prompt=prompt,
        seed=_seed(rng_seed, generator.weights_digest, name, prompt, index),
        **recipe,
    )


def _seed(rng_seed: int, generator_digest: Digest, name: str, prompt: str, index: int) -> int:
    """31 bits: torch's CPU generator keeps 32 of a seed, and JSON readers keep 53 of a number.

    Two of 32,000 pictures share a seed with probability 0.2; they differ in class or prompt all the same.
    """
    parts = (str(rng_seed), generator_digest, name, prompt, str(index))
    return int(digest_of("cachefl-secure/synthesis/2", *(part.encode() for part in parts))[:8], 16) >> 1


def _drawn_before(folder: Path, wanted: Sequence[SyntheticImage]) -> dict[str, SyntheticImage]:
    """Lines of an earlier run that agree with what is wanted and whose file still has the digest."""
    due = {image.file: image for image in wanted}
    found = {}
    for line in read_manifest(folder):
        plain = _undecided(line)
        expected = due.get(line.file)
        if expected != msgspec.structs.replace(plain, sha256="", size=None, decision=DRAWN):
            continue
        file = folder / line.file
        if file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == line.sha256:
            found[line.file] = plain
    return found


def _undecided(line: SyntheticImage) -> SyntheticImage:
    decision = BLANK if line.decision == BLANK else DRAWN
    return msgspec.structs.replace(line, score=None, cosine=None, rank=None, decision=decision)


def _draw(
    generator: Generator,
    block: Sequence[SyntheticImage],
    labels: Sequence[int],
    missing: set[str],
    folder: Path,
) -> Iterator[SyntheticImage]:
    """One call of the pipeline; each picture is on disk before its line is."""
    inputs = [image.prompt if generator.takes == "prompt" else labels[image.label] for image in block]
    options: dict[str, Any] = {generator.takes: inputs, "num_inference_steps": block[0].steps}
    if block[0].guidance is not None:
        options["guidance_scale"] = block[0].guidance
    streams = [torch.Generator("cpu").manual_seed(image.seed or 0) for image in block]
    pictures = generator._pipeline(**options, generator=streams, output_type="pil").images
    with (folder / MANIFEST).open("ab") as manifest:
        for image, picture in zip(block, pictures, strict=True):
            if image.file not in missing:
                continue
            raw = _png(picture, image)
            write_whole(folder / image.file, raw)
            line = msgspec.structs.replace(
                image,
                sha256=hashlib.sha256(raw).hexdigest(),
                size=picture.size,
                decision=BLANK if is_blank(picture) else DRAWN,
            )
            manifest.write(line_bytes(line))
            manifest.flush()
            yield line


def is_blank(picture: Image.Image) -> bool:
    """One grey all over: what a safety filter leaves of a picture."""
    low, high = picture.convert("L").getextrema()
    return bool(low == high)


def _png(picture: Image.Image, image: SyntheticImage) -> bytes:
    """With the mark that law and libraries ask for: a model made this."""
    marks = PngInfo()
    marks.add_itxt("Comment", f"AI generated by {image.generator}")
    marks.add_itxt("DigitalSourceType", _MADE_BY_A_MODEL)
    stream = io.BytesIO()
    picture.save(stream, format="PNG", pnginfo=marks)
    return stream.getvalue()
