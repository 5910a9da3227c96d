"""Images of each class from a diffusers pipeline, with a manifest that says where every one comes from.

Any stock pipeline serves that takes a ``prompt`` (text to image) or ``class_labels`` (class-conditional).
Weights are safetensors, code that comes with a model is never run, and components may only come from
``diffusers`` and ``transformers``.

An image depends on (rng seed, generator, class, index) alone: each has its own CPU random stream, so batch
size and order of work change nothing but the last bits of a floating-point sum. A killed run goes on where
it was.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
from PIL import Image

from cachefl_secure.errors import ConfigError
from cachefl_secure.names import Digest, digest_of

MANIFEST = "manifest.jsonl"
DEFAULT_STEPS = 25
_INDEX = "model_index.json"
_CARD = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)

Score = Callable[[Sequence[Image.Image], Sequence[int]], Sequence[float]]
"""Images and their labels to one number each, higher is better: for instance CLIP's zero-shot margin."""

Progress = Callable[[int, int], None]
"""Images made, images wanted."""


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Generator:
    """A loaded diffusers pipeline. Built by ``load_generator``."""

    name: str
    licence: str
    """As its card or licence file says; "unknown" if neither does."""
    weights_digest: Digest
    """Over names and bytes of every file of the pipeline except cards and licences."""
    scheduler: str
    takes: Literal["prompt", "class_labels"]
    class_labels: Mapping[str, int]
    """The pipeline's own numbers of its classes, if it has any."""
    _pipeline: Any

    def __repr__(self) -> str:
        return f"Generator({self.name!r}, weights {self.weights_digest[:16]})"


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


def load_generator(source: str | Path, *, device: str = "cpu") -> Generator:
    """The pipeline in a local folder, or of a model id on the hub.

    ``HF_HUB_OFFLINE=1`` keeps the hub client to its cache.

    Raises:
        ConfigError: nothing there, weights other than safetensors, foreign code, a pipeline that takes
        neither
            prompts nor class labels, or a device that does not exist here.
    """
    from diffusers import DiffusionPipeline

    folder = Path(source) if Path(source).is_dir() else _fetch(str(source))
    _check_components(folder)
    try:
        with _quiet():
            pipeline = DiffusionPipeline.from_pretrained(
                folder,
                use_safetensors=True,
                local_files_only=True,
                low_cpu_mem_usage=False,  # else it needs one more package
                dtype=torch.float32,
            ).to(device)
    except Exception as error:  # whatever diffusers, safetensors or torch make of files that do not fit
        reason = f"cannot be loaded: {type(error).__name__}: {str(error)[:300]}"
        raise ConfigError(str(source), "", reason) from None
    pipeline.set_progress_bar_config(disable=True)
    text = (folder / "README.md").read_text("utf-8", "replace") if (folder / "README.md").is_file() else ""
    return Generator(
        name=_name(str(source), folder, text),
        licence=_licence(folder, text),
        weights_digest=_digest(folder),
        scheduler=type(pipeline.scheduler).__name__,
        takes=_takes(str(source), pipeline),
        class_labels=dict(getattr(pipeline, "labels", {}) or {}),
        _pipeline=pipeline,
    )


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
    labels = _generator_labels(generator, classes)
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


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars and no remarks of diffusers while it loads; what goes wrong is raised all the same."""
    from diffusers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()


def _fetch(source: str) -> Path:
    """The hub's copy of a model id: pipeline, card and licence."""
    from diffusers import DiffusionPipeline
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(source, allow_patterns=["README.md", "LICENSE*"])
        return Path(DiffusionPipeline.download(source, use_safetensors=True))
    except Exception as error:  # the hub client raises what its HTTP library of the day raises
        reason = (
            f"no such folder, and no model id that can be fetched ({type(error).__name__}); bring the"
            f" pipeline's folder ({_INDEX} and safetensors weights, as save_pretrained writes it) and name that"
        )
        raise ConfigError(source[:200], "", reason) from None


def _check_components(folder: Path) -> None:
    """Refuse components of other libraries, which diffusers would import by name."""
    import diffusers.pipelines

    file = folder / _INDEX
    try:
        index = json.loads(file.read_bytes())
    except OSError as error:
        raise ConfigError(str(file), "", error.strerror or "cannot be read") from None
    except (ValueError, RecursionError):
        raise ConfigError(str(file), "", "is not JSON") from None
    if not isinstance(index, dict) or not isinstance(index.get("_class_name"), str):
        raise ConfigError(str(file), "_class_name", "must be the name of a pipeline of diffusers")
    for name, part in index.items():
        library = part[0] if isinstance(part, list) and len(part) == 2 and not name.startswith("_") else None
        known = library in {None, "diffusers", "transformers"} or library in dir(diffusers.pipelines)
        if not known:
            raise ConfigError(
                str(file), name, f"comes from {str(library)[:60]!r}; only diffusers, transformers"
            )


def _takes(source: str, pipeline: Any) -> Literal["prompt", "class_labels"]:
    parameters = inspect.signature(pipeline.__call__).parameters
    if "class_labels" in parameters:
        return "class_labels"
    if "prompt" in parameters:
        return "prompt"
    raise ConfigError(source, "", f"{type(pipeline).__name__} takes neither a prompt nor class labels")


def _name(source: str, folder: Path, card: str) -> str:
    """The model id, else the card's first heading, else the folder's name: never a path of this machine."""
    if not Path(source).is_dir():
        return source
    heading = re.search(r"^# +(.+)$", card, re.MULTILINE)
    return heading.group(1).strip() if heading else folder.resolve().name


def _licence(folder: Path, card: str) -> str:
    """The card's ``license:`` line, else the first line of a licence file, else "unknown"."""
    front = _CARD.match(card)
    stated = re.search(r"^license: *(\S.*)$", front.group(1), re.MULTILINE) if front else None
    if stated:
        return stated.group(1).strip().strip("\"'")
    for file in sorted(folder.glob("LICEN[SC]E*")):
        lines = [line.strip() for line in file.read_text("utf-8", "replace").splitlines() if line.strip()]
        if lines:
            return lines[0][:200]
    return "unknown"


def _digest(folder: Path) -> Digest:
    parts = []
    for file in sorted(folder.rglob("*")):
        place = file.relative_to(folder)
        hidden = any(part.startswith((".", "README", "LICENSE", "LICENCE")) for part in place.parts)
        if file.is_file() and not hidden:
            with file.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").digest()
            parts += [place.as_posix().encode(), content]
    return digest_of("cachefl-secure/generator/1", *parts)


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
            file=f"{label}-{_slug(name)}/{index:04d}.png",
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
            guidance=_guidance(generator) if guidance is None else guidance,
            size=(0, 0),
        )
        for label, name in enumerate(classes)
        for index in range(candidates)
    ]


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60] or "class"


def _seed(rng_seed: int, generator_digest: Digest, name: str, index: int) -> int:
    """31 bits: torch's CPU generator keeps 32 of a seed, and JSON readers keep 53 of a number."""
    parts = (str(rng_seed), generator_digest, name, str(index))
    return int(digest_of("cachefl-secure/synthesis/1", *(part.encode() for part in parts))[:8], 16) >> 1


def _guidance(generator: Generator) -> float | None:
    parameter = inspect.signature(generator._pipeline.__call__).parameters.get("guidance_scale")
    return None if parameter is None else float(parameter.default)


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


def _generator_labels(generator: Generator, classes: Sequence[str]) -> list[int]:
    """The generator's number of each class: by name if it knows names, else its place."""
    if generator.takes == "prompt" or not generator.class_labels:
        return list(range(len(classes)))
    known = {_slug(name): label for name, label in generator.class_labels.items()}
    for name in classes:
        if _slug(name) not in known:
            raise ConfigError(generator.name, "classes", f"the generator does not know {name[:60]!r}")
    return [known[_slug(name)] for name in classes]


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
