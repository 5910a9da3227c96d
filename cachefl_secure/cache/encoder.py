"""A frozen CLIP, loaded through open_clip: images and texts to features of unit norm.

Where weights may come from, and what is never done:

- ``local_dir`` holds ``open_clip_config.json`` and safetensors weights. No hub is asked.
- ``hf-hub:...`` fetches the same files from the hub, then goes on as with ``local_dir``. Models whose text tower
  is itself a reference into the hub are refused.
- an open_clip architecture with ``pretrained``: a path to safetensors weights, or a tag that open_clip knows
  (open_clip fetches it; if that is a pickle, torch reads it with ``weights_only``).

A file named by the operator is never unpickled, code that comes with a model is never run, and a model
without weights (open_clip only warns) is an error.

Equal batches give equal bits on one CPU; other batch sizes or machines differ in the last bits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from cachefl_secure.errors import ConfigError
from cachefl_secure.names import Digest, digest_of

CONFIG_NAME = "open_clip_config.json"
# open_clip prefers these two names to every pickle that may lie beside them.
WEIGHT_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")
_HUB = "hf-hub:"
_HUB_FILES = [
    CONFIG_NAME,
    *WEIGHT_NAMES,
    "*token*.json",
    "vocab.*",
    "merges.txt",
    "spiece.model",
    "config.json",
]
_TEXT_BATCH = 256


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
    _model: Any
    _preprocess: Callable[[Image.Image], Tensor]
    _tokenize: Callable[[list[str]], Tensor]

    def __repr__(self) -> str:
        return f"Encoder({self.feature_dim}-d, weights {self.weights_digest[:16]}, {self.device})"

    def encode_images(self, images: Sequence[Image.Image]) -> Tensor:
        """(n, C) float32 rows of unit norm on the CPU."""
        if not images:
            return torch.empty(0, self.feature_dim)
        pixels = torch.stack([self._preprocess(image.convert("RGB")) for image in images])
        return self._encode(self._model.encode_image, pixels)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """(n, C) float32 rows of unit norm on the CPU. Texts beyond the context length are cut."""
        rows = [torch.empty(0, self.feature_dim)]
        for start in range(0, len(texts), _TEXT_BATCH):
            tokens = self._tokenize(list(texts[start : start + _TEXT_BATCH]))
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
    model: str, pretrained: str = "", *, local_dir: Path | None = None, device: str = "cpu"
) -> Encoder:
    """The CLIP of a plan's ``encoder.model``; the caller compares ``weights_digest`` with the plan's.

    With ``local_dir`` that folder is loaded whatever the model is called, so that a silo without internet
    can bring the files of ``hf-hub:...`` itself; ``embedded`` and ``local-dir`` need it.

    Raises:
        ConfigError: files are missing or cannot be fetched, weights are not safetensors, do not fit the
            configuration or are not finite, or the device does not exist here.
    """
    target = _device(device)
    if local_dir is None and model in {"embedded", "local-dir"}:
        raise ConfigError("encoder", "local_dir", f"{model!r} needs the folder that holds the model")
    if local_dir is None and model.startswith(_HUB):
        local_dir = _fetch(model)
    if local_dir is not None:
        name, pretrained = f"local-dir:{local_dir}", ""
        _check_folder(local_dir)
    else:
        name = model
        _check_architecture(model, pretrained)
    return _load(name, pretrained, target)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ConfigError("encoder", "device", f"{name[:40]!r} is not available here") from None
    return device


def _fetch(model: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model.removeprefix(_HUB), allow_patterns=_HUB_FILES))
    except Exception as error:  # the hub client raises what its HTTP library of the day raises
        reason = (
            f"{model!r} cannot be fetched ({type(error).__name__}); bring its {CONFIG_NAME} and"
            f" {WEIGHT_NAMES[0]} in a folder and name that as local_dir"
        )
        raise ConfigError("encoder", "model", reason) from None


def _check_folder(folder: Path) -> None:
    """Weights are safetensors, and nothing in the configuration makes open_clip ask a hub."""
    if not any((folder / name).is_file() for name in WEIGHT_NAMES):
        raise ConfigError(str(folder / WEIGHT_NAMES[0]), "", "missing: the weights of the encoder")
    text, vision = _tower(folder, "text_cfg"), _tower(folder, "vision_cfg")
    if "hf_model_name" in text:
        raise ConfigError(str(folder / CONFIG_NAME), "text_cfg.hf_model_name", "would be fetched from a hub")
    if ":" in str(vision.get("timm_model_name", "")):
        raise ConfigError(
            str(folder / CONFIG_NAME), "vision_cfg.timm_model_name", "would be fetched from a hub"
        )


def _tower(folder: Path, name: str) -> Mapping[str, object]:
    path = folder / CONFIG_NAME
    try:
        config = json.loads(path.read_bytes())["model_cfg"][name]
    except OSError as error:
        raise ConfigError(str(path), "", error.strerror or "cannot be read") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ConfigError(str(path), f"model_cfg.{name}", "missing, or the file is not JSON") from None
    if not isinstance(config, dict):
        raise ConfigError(str(path), f"model_cfg.{name}", "is no table")
    return config


def _check_architecture(model: str, pretrained: str) -> None:
    import open_clip

    if model not in open_clip.list_models():
        raise ConfigError("encoder", "model", f"{model[:100]!r} is no architecture of open_clip")
    if pretrained in open_clip.list_pretrained_tags_by_model(model):
        return
    if not pretrained:
        raise ConfigError("encoder", "pretrained", f"{model!r} without weights would be random")
    if Path(pretrained).suffix != ".safetensors":
        raise ConfigError("encoder", "pretrained", "neither a tag of open_clip nor a .safetensors file")
    if not Path(pretrained).is_file():
        raise ConfigError(pretrained, "", "missing: the weights of the encoder")


def _load(name: str, pretrained: str, device: torch.device) -> Encoder:
    import open_clip

    try:
        # Requires weights and loads them strictly: none missing, none left over.
        model, preprocess = open_clip.create_model_from_pretrained(name, pretrained or None, device=device)
        config = open_clip.get_model_config(name)
        # A tokenizer of the hub's library may bring code; ours may not.
        no_code = {"trust_remote_code": False} if "hf_tokenizer_name" in config["text_cfg"] else {}
        tokenize = open_clip.get_tokenizer(name, **no_code)
    except Exception as error:  # whatever open_clip, timm or safetensors make of files that do not fit
        detail = " ".join(str(error).split())[:300]
        reason = f"cannot be loaded: {type(error).__name__}: {detail}"
        raise ConfigError("encoder", "model", reason) from None
    model.eval().requires_grad_(False)
    return Encoder(
        feature_dim=int(config["embed_dim"]),
        logit_scale=float(model.logit_scale.exp()),
        weights_digest=_weights_digest(model.state_dict()),
        preprocessing_digest=_settings_digest(model.visual.preprocess_cfg, config),
        device=device,
        _model=model,
        _preprocess=preprocess,
        _tokenize=tokenize,
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
