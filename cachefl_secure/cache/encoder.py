"""A frozen CLIP, loaded through open_clip: images and texts to features of unit norm.

Where weights may come from:

- ``local_dir`` holds ``open_clip_config.json`` and safetensors weights. No hub is asked.
- ``hf-hub:...`` takes the same files from the hub, then goes on as with ``local_dir``.
- an open_clip architecture with ``pretrained``: a path to safetensors weights, or a tag that open_clip knows. Of a
  tag open_clip knows a repository of the hub, a preprocessing and an activation; the safetensors are taken from that
  repository. ``weights`` stands in for them: a file that was brought, under the tag's preprocessing and activation.

What is never done, and how: no pickle is read, because only files called ``.safetensors`` are ever handed to
open_clip, which opens those with the safetensors library (open_clip itself would fall back to ``.bin`` with
``weights_only``; a tag without safetensors is refused here instead). No TorchScript is run: open_clip 3.3 has no
such path left for files, and ``jit`` stays off. No code that comes with a model is run. A model without weights
(open_clip only warns) is an error, and so is a tower that is itself a reference into the hub.

With ``offline`` no network is asked: what the hub's cache on this machine lacks is named in the error. The tokenizer
is only looked for when a text is encoded, so a silo, which encodes images, needs none.

Equal batches give equal bits on one CPU; other batch sizes, machines or precisions differ in the last bits.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from cachefl_secure.cache.encoder_files import (
    CONFIG_NAME as CONFIG_NAME,
)
from cachefl_secure.cache.encoder_files import (
    WEIGHT_NAMES as WEIGHT_NAMES,
)
from cachefl_secure.cache.encoder_files import (
    check_architecture,
    check_folder,
    hub_folder,
    tag_weights,
    tokenizer_of,
)
from cachefl_secure.cache.offline import without_hub
from cachefl_secure.errors import ConfigError
from cachefl_secure.names import Digest, digest_of

_HUB = "hf-hub:"
_TEXT_BATCH = 256

Precision = Literal["float32", "bfloat16", "float16"]
PRECISIONS: Mapping[str, torch.dtype] = {"bfloat16": torch.bfloat16, "float16": torch.float16}
"""Those of autocast; float32 is without."""


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Encoder:
    """A CLIP in evaluation mode. Built by ``load_encoder``."""

    feature_dim: int
    """C."""
    logit_scale: float
    """exp of the trained log scale; 100 for OpenAI's CLIP."""
    weights_digest: Digest
    """Over names, dtypes, shapes and bytes of all parameters and buffers, whatever file they came from."""
    preprocessing_digest: Digest
    """Over what else decides features: image preprocessing and open_clip's model configuration."""
    device: torch.device
    precision: Precision
    """Of the image tower. Texts are always encoded in float32: they are few, and decide every class."""
    image_size: tuple[int, int]
    """Height and width in pixels that the preprocessing ends in."""
    _model: Any
    _preprocess: Callable[[Image.Image], Tensor]
    _tokenize: Callable[[], Callable[[list[str]], Tensor]]

    def __repr__(self) -> str:
        return f"Encoder({self.feature_dim}-d, weights {self.weights_digest[:16]}, {self.device}, {self.precision})"

    def encode_images(self, images: Iterable[Image.Image]) -> Tensor:
        """(n, C) float32 rows of unit norm on the CPU. Holds one image in full size at a time if ``images`` does."""
        pixels = [self._preprocess(image.convert("RGB")) for image in images]
        if not pixels:
            return torch.empty(0, self.feature_dim)
        half = PRECISIONS.get(self.precision)
        with contextlib.nullcontext() if half is None else torch.autocast(self.device.type, dtype=half):
            return self._encode(self._model.encode_image, torch.stack(pixels))

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """(n, C) float32 rows of unit norm on the CPU. Texts beyond the context length are cut.

        Raises:
            ConfigError: the model's own tokenizer is not here.
            MissingExtra: it needs a library that is not installed.
        """
        rows = [torch.empty(0, self.feature_dim)]
        for start in range(0, len(texts), _TEXT_BATCH):
            tokens = self._tokenize()(list(texts[start : start + _TEXT_BATCH]))
            rows.append(self._encode(self._model.encode_text, tokens))
        return torch.cat(rows)

    def _encode(self, tower: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
        with torch.no_grad():
            return functional.normalize(tower(batch.to(self.device)).float(), dim=1).cpu()


def text_classifier(encoder: Encoder, classes: Sequence[str], templates: Sequence[str]) -> Tensor:
    """W (N, C): per class the normalised mean over templates of unit text features; "_" reads as a space."""
    prompts = [template.replace("{}", name.replace("_", " ")) for name in classes for template in templates]
    features = encoder.encode_text(prompts).reshape(len(classes), len(templates), encoder.feature_dim)
    return functional.normalize(features.mean(dim=1), dim=1)


def load_encoder(
    model: str,
    pretrained: str = "",
    *,
    local_dir: Path | None = None,
    weights: Path | None = None,
    device: str = "cpu",
    precision: str = "float32",
    offline: bool = False,
) -> Encoder:
    """The CLIP of a plan's ``encoder.model``; the caller compares ``weights_digest`` with the plan's.

    With ``local_dir`` that folder is loaded whatever the model is called, so that a silo without internet
    can bring the files of ``hf-hub:...`` itself; ``embedded`` and ``local-dir`` need it. ``weights`` is a
    safetensors file that stands in for what ``pretrained`` names. ``precision``: see ``precision_on``.

    Raises:
        ConfigError: files are missing or cannot be fetched, weights are not safetensors, do not fit the
            configuration or are not finite, or the device does not exist here.
    """
    target = _device(device)
    chosen = precision_on(target, precision)
    if local_dir is None and model in {"embedded", "local-dir"}:
        raise ConfigError("encoder", "local_dir", f"{model!r} needs the folder that holds the model")
    if local_dir is None and model.startswith(_HUB):
        local_dir = hub_folder(model.removeprefix(_HUB), offline=offline)
    if local_dir is not None:
        check_folder(local_dir)
        return _load(f"local-dir:{local_dir}", "", {}, target, chosen, offline)
    tag = check_architecture(model, pretrained, weights)
    if weights is None:
        weights = Path(pretrained) if tag is None else tag_weights(model, pretrained, tag, offline=offline)
    return _load(model, str(weights), {} if tag is None else _as_tagged(tag), target, chosen, offline)


def precision_on(device: torch.device, name: str) -> Precision:
    """``auto`` is float16 on a CUDA device that computes it fast (capability 7.0 on), else float32.

    float16 rather than bfloat16, because unit features want its three more bits and CLIP was trained in it.

    Raises:
        ConfigError: no such precision, or half of one on a processor: slower there, and other features for nothing.
    """
    if name == "auto":
        fast = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (7, 0)
        return "float16" if fast else "float32"
    if name not in {"float32", *PRECISIONS}:
        raise ConfigError("--precision", "", f"{name[:20]!r} is none of auto, float32, bfloat16, float16")
    if name in PRECISIONS and device.type == "cpu":
        raise ConfigError("--precision", "", f"{name} is for a GPU; the processor computes float32")
    return cast(Precision, name)


def _as_tagged(tag: Mapping[str, Any]) -> dict[str, Any]:
    """What a tag says of its weights: how images were prepared, and the activation.

    open_clip only warns when ``ViT-B-32`` meets weights of OpenAI, which were trained with QuickGELU, and then
    computes other features.
    """
    return {
        "force_quick_gelu": bool(tag.get("quick_gelu", False)),
        "image_mean": tag.get("mean"),
        "image_std": tag.get("std"),
        "image_interpolation": tag.get("interpolation"),
        "image_resize_mode": tag.get("resize_mode"),
    }


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ConfigError("encoder", "device", f"{name[:40]!r} is not available here") from None
    return device


def _load(
    name: str,
    weights: str,
    as_tagged: dict[str, Any],
    device: torch.device,
    precision: Precision,
    offline: bool,
) -> Encoder:
    import open_clip

    try:
        # Requires weights and loads them strictly: none missing, none left over.
        with without_hub():  # all files are here by now
            model, preprocess = open_clip.create_model_from_pretrained(
                name, weights or None, device=device, **as_tagged
            )
            config = open_clip.get_model_config(name)
    except Exception as error:  # whatever open_clip, timm or safetensors make of files that do not fit
        detail = " ".join(str(error).split())[:300]
        reason = f"cannot be loaded: {type(error).__name__}: {detail}"
        raise ConfigError("encoder", "model", reason) from None
    if as_tagged.get("force_quick_gelu"):
        config["quick_gelu"] = True
    model.eval().requires_grad_(False)
    size = model.visual.preprocess_cfg["size"]
    return Encoder(
        feature_dim=int(config["embed_dim"]),
        logit_scale=float(model.logit_scale.exp()),
        weights_digest=_weights_digest(model.state_dict()),
        preprocessing_digest=_settings_digest(model.visual.preprocess_cfg, config),
        device=device,
        precision=precision,
        image_size=(size, size) if isinstance(size, int) else tuple(size),
        _model=model,
        _preprocess=preprocess,
        _tokenize=functools.cache(lambda: tokenizer_of(name, config, offline=offline)),
    )


def _weights_digest(state: Mapping[str, Tensor]) -> Digest:
    """Also refuses weights that are not finite: safetensors takes NaN."""
    parts = []
    for name, tensor in sorted(state.items()):
        if not bool(torch.isfinite(tensor).all()):
            raise ConfigError("encoder", "model", f"the weights {name!r} are not finite")
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        head = f"{name}|{str(tensor.dtype).removeprefix('torch.')}|{tuple(tensor.shape)}"
        parts.append(head.encode() + hashlib.sha256(raw.data).digest())
    return digest_of("cachefl-secure/encoder-weights/1", *parts)


def _settings_digest(preprocessing: object, config: object) -> Digest:
    text = json.dumps([preprocessing, config], sort_keys=True, default=str)
    return digest_of("cachefl-secure/encoder-settings/1", text.encode())
