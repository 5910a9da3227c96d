"""Stock diffusers pipelines as generators of labelled pictures.

Any pipeline serves that takes a ``prompt`` (text to image) or ``class_labels`` (class-conditional), and a folder
with a class-conditional UNet and a scheduler. Weights are safetensors, code that comes with a model is never run,
and components may only come from ``diffusers`` and ``transformers``.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch

from cachefl_secure.cache.class_conditional import open_class_conditional
from cachefl_secure.cache.pipeline_files import (
    BARE,
    INDEX,
    card_of,
    files_digest,
    licence_of,
    name_of,
    pipeline_class,
    pipeline_folder,
    revision_of,
)
from cachefl_secure.errors import ConfigError, MissingExtra
from cachefl_secure.names import Digest

EXTRA = "text-to-image"

_TINY_PIXELS, _TINY_TOGETHER = 64, 8


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Generator:
    """A loaded pipeline. Built by ``load_generator``."""

    name: str
    licence: str
    """As its card or licence file says; "unknown" if neither does."""
    revision: str
    """The hub's commit; empty for a folder of the operator's."""
    weights_digest: Digest
    """Over names and bytes of the files that the pipeline is made of."""
    scheduler: str
    dtype: str
    takes: Literal["prompt", "class_labels"]
    class_labels: Mapping[str, int]
    """The pipeline's own numbers of its classes, if it has any."""
    together: int
    """Pictures that one call draws. Not a choice: in another batch the same picture may come out one grey level off."""
    _pipeline: Any

    def __repr__(self) -> str:
        return f"Generator({self.name!r}, weights {self.weights_digest[:16]})"


def load_generator(
    source: str | Path,
    *,
    revision: str | None = None,
    device: str = "cpu",
    offload: bool = False,
    offline: bool = False,
) -> Generator:
    """The pipeline in a local folder, or of a model id on the hub at a ``revision``.

    In single precision on a CPU; on a GPU in bf16 or, where it has none, fp16. With ``offload`` only the component
    at work is on the GPU. With ``offline`` no hub is asked.

    Raises:
        ConfigError: nothing there, weights other than safetensors, foreign code, a pipeline that takes
            neither prompts nor class labels, or a device that does not exist here.
        MissingExtra: it needs packages that are optional.
    """
    folder = pipeline_folder(str(source), revision=revision, offline=offline)
    dtype = _dtype(device)
    try:
        with _quiet():
            pipeline = _open(folder, dtype, device, offload)
    except (ConfigError, MissingExtra):
        raise
    except Exception as error:  # whatever diffusers, safetensors or torch make of files that do not fit
        reason = f"cannot be loaded: {type(error).__name__}: {str(error)[:300]}"
        raise ConfigError(str(source), "", reason) from None
    card = card_of(folder)
    return Generator(
        name=name_of(str(source), folder, card),
        licence=licence_of(folder, card),
        revision=revision_of(folder),
        weights_digest=files_digest(folder),
        scheduler=type(pipeline.scheduler).__name__,
        dtype=str(dtype).removeprefix("torch."),
        takes=_takes(str(source), pipeline),
        class_labels=dict(getattr(pipeline, "labels", {}) or {}),
        together=_TINY_TOGETHER if _width(pipeline) <= _TINY_PIXELS else 1,
        _pipeline=pipeline,
    )


def default_steps(generator: Generator) -> int:
    return int(_default(generator, "num_inference_steps") or 50)


def default_guidance(generator: Generator) -> float | None:
    value = _default(generator, "guidance_scale")
    return None if value is None else float(value)


def _default(generator: Generator, name: str) -> Any:
    parameter = inspect.signature(generator._pipeline.__call__).parameters.get(name)
    return None if parameter is None or parameter.default is parameter.empty else parameter.default


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


def _dtype(device: str) -> torch.dtype:
    if not device.startswith("cuda") or not torch.cuda.is_available():
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def _open(folder: Path, dtype: torch.dtype, device: str, offload: bool) -> Any:
    if offload and not device.startswith("cuda"):
        raise ConfigError("--offload", "", "moves components to a GPU and back; there is none in use")
    if (folder / BARE).is_file() and not (folder / INDEX).is_file():
        return open_class_conditional(folder, dtype, device)
    pipeline = _open_stock(folder, dtype)
    pipeline.set_progress_bar_config(disable=True)
    if not offload:
        return pipeline.to(device)
    if find_spec("accelerate") is None:
        raise MissingExtra(EXTRA, "--offload moves components with 'accelerate'")
    pipeline.enable_model_cpu_offload(device=device)
    return pipeline


def _open_stock(folder: Path, dtype: torch.dtype) -> Any:
    import diffusers

    stated = pipeline_class(folder)
    if find_spec("transformers") is None and "transformers" in (folder / INDEX).read_text("utf-8"):
        raise MissingExtra(EXTRA, "this pipeline reads its prompts with 'transformers'")
    options = {
        "use_safetensors": True,
        "local_files_only": True,
        "low_cpu_mem_usage": find_spec("accelerate") is not None,
        "dtype": dtype,
    }
    kind = getattr(diffusers, stated, None)
    if kind is None or "class_labels" not in inspect.signature(kind.__call__).parameters:
        try:
            # What was saved as image to image, say, draws from text alone as well.
            return diffusers.AutoPipelineForText2Image.from_pretrained(folder, **options)
        except ValueError as error:
            if "AutoPipeline" not in str(error):  # it has no entry for this class, but it may take prompts
                raise
    return diffusers.DiffusionPipeline.from_pretrained(folder, **options)


def _takes(source: str, pipeline: Any) -> Literal["prompt", "class_labels"]:
    parameters = inspect.signature(pipeline.__call__).parameters
    if "class_labels" in parameters:
        return "class_labels"
    if "prompt" in parameters:
        return "prompt"
    raise ConfigError(source, "", f"{type(pipeline).__name__} takes neither a prompt nor class labels")


def _width(pipeline: Any) -> float:
    """Of its pictures in pixels, infinite if it does not say."""
    network = getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
    config = getattr(network, "config", None)
    size = config.get("sample_size") if isinstance(config, Mapping) else None
    scale = getattr(pipeline, "vae_scale_factor", None)
    if scale is None and (vae := getattr(pipeline, "vae", None)) is not None:
        scale = 2 ** (len(vae.config.block_out_channels) - 1)
    return size * (scale or 1) if isinstance(size, int) else float("inf")


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars and no remarks of the libraries while they load; what goes wrong is raised all the same.

    Importing diffusers' table of pipelines alone warns of what some pipeline nobody asked for will have to change.
    """
    from diffusers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()
