"""Stock diffusers pipelines as generators of labelled pictures.

Any pipeline serves that takes a ``prompt`` (text to image) or ``class_labels`` (class-conditional).
Weights are safetensors, code that comes with a model is never run, and components may only come from
``diffusers`` and ``transformers``.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from cachefl_secure.errors import ConfigError
from cachefl_secure.names import Digest, digest_of

_INDEX = "model_index.json"
_CARD = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)


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


def load_generator(source: str | Path, *, device: str = "cpu") -> Generator:
    """The pipeline in a local folder, or of a model id on the hub.

    ``HF_HUB_OFFLINE=1`` keeps the hub client to its cache.

    Raises:
        ConfigError: nothing there, weights other than safetensors, foreign code, a pipeline that takes
            neither prompts nor class labels, or a device that does not exist here.
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


def default_guidance(generator: Generator) -> float | None:
    parameter = inspect.signature(generator._pipeline.__call__).parameters.get("guidance_scale")
    return None if parameter is None else float(parameter.default)


def generator_labels(generator: Generator, classes: Sequence[str]) -> list[int]:
    """The generator's number of each class: by name if it knows names, else its place."""
    if generator.takes == "prompt" or not generator.class_labels:
        return list(range(len(classes)))
    known = {slug(name): label for name, label in generator.class_labels.items()}
    for name in classes:
        if slug(name) not in known:
            raise ConfigError(generator.name, "classes", f"the generator does not know {name[:60]!r}")
    return [known[slug(name)] for name in classes]


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60] or "class"


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
