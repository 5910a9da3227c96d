"""Where the files of an encoder lie: a folder, the hub or its cache on this machine. Safetensors only.

Nothing here opens weights. What an operator has to bring is named in the errors.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cachefl_secure.cache.offline import without_hub
from cachefl_secure.errors import ConfigError, MissingExtra

if TYPE_CHECKING:
    from torch import Tensor

CONFIG_NAME = "open_clip_config.json"
# open_clip prefers these two names to every pickle that may lie beside them.
WEIGHT_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
EXTRA = "siglip"
"""Tokenizers of the hub's library: SigLIP's and those of multilingual models."""
_HUB_FILES = [
    CONFIG_NAME,
    *WEIGHT_NAMES,
    "*token*.json",
    "vocab.*",
    "merges.txt",
    "spiece.model",
    "config.json",
]
_SAFETENSORS = ".safetensors"


def hub_folder(repository: str, *, offline: bool) -> Path:
    """A copy of the repository's configuration, safetensors and tokenizer in the hub's cache.

    Raises:
        ConfigError: it is not in the cache and cannot be fetched, or must not be.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, allow_patterns=_HUB_FILES, local_files_only=offline))
    except Exception as error:  # the hub client raises what its HTTP library of the day raises
        what = "is not on this machine and" if offline else f"cannot be fetched ({type(error).__name__});"
        asked = "nothing is downloaded here;" if offline else ""
        reason = (
            f"hf-hub:{repository[:100]} {what} {asked} bring its {CONFIG_NAME} and {WEIGHT_NAMES[0]} in a folder and"
            " name it: --clip local-dir:FOLDER"
        )
        raise ConfigError("encoder", "model", " ".join(reason.split())) from None


def tag_weights(model: str, name: str, tag: Mapping[str, Any], *, offline: bool) -> Path:
    """The safetensors file of a tag of open_clip.

    Raises:
        ConfigError: the tag has none, or it is not in the hub's cache and cannot be fetched, or must not be.
    """
    from huggingface_hub import hf_hub_download

    repository, _, file = str(tag.get("hf_hub", "")).rpartition("/")
    names = [*([str(Path(file).with_suffix(_SAFETENSORS))] if file else []), *WEIGHT_NAMES]
    kind = ""
    for each in names if repository else []:
        try:
            return Path(hf_hub_download(repository, each, local_files_only=offline))
        except Exception as error:  # as above; an absent file is one of them
            kind = type(error).__name__
    if offline:
        why = "is not on this machine and nothing is downloaded here"
    else:
        why = (
            f"cannot be fetched ({kind})"
            if repository
            else "is published as a pickle only, which is not read"
        )
    reason = (
        f"{name[:60]!r} of {model!r} {why}; bring {names[-2]} of {repository or 'its publisher'} and name it:"
        f" --clip FILE{_SAFETENSORS}"
    )
    raise ConfigError("encoder", "pretrained", reason)


def check_folder(folder: Path) -> None:
    """Weights are safetensors, and nothing in the configuration makes open_clip ask a hub.

    Raises:
        ConfigError: otherwise.
    """
    if not any((folder / name).is_file() for name in WEIGHT_NAMES):
        raise ConfigError(str(folder / WEIGHT_NAMES[0]), "", "missing: the weights of the encoder")
    _refuse_references(str(folder / CONFIG_NAME), _tower(folder, "text_cfg"), _tower(folder, "vision_cfg"))


def _refuse_references(file: str, text: Mapping[str, object], vision: Mapping[str, object]) -> None:
    if "hf_model_name" in text:
        raise ConfigError(file, "text_cfg.hf_model_name", "would be fetched from a hub")
    if ":" in str(vision.get("timm_model_name", "")):
        raise ConfigError(file, "vision_cfg.timm_model_name", "would be fetched from a hub")


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


def check_architecture(model: str, pretrained: str, weights: Path | None) -> Mapping[str, Any] | None:
    """What open_clip knows of the tag ``pretrained``; None if that is a file.

    Raises:
        ConfigError: no such architecture or tag, a tower that the hub would be asked for, no weights, or a file
            that is absent or not safetensors.
    """
    import open_clip

    if model not in open_clip.list_models():
        raise ConfigError("encoder", "model", f"{model[:100]!r} is no architecture of open_clip")
    config = open_clip.get_model_config(model)
    _refuse_references(f"architecture {model}", config["text_cfg"], config["vision_cfg"])
    tag: Mapping[str, Any] | None = None
    if pretrained in open_clip.list_pretrained_tags_by_model(model):
        tag = open_clip.get_pretrained_cfg(model, pretrained)
    file = weights if weights is not None else Path(pretrained)
    if weights is None and tag is not None:
        return tag
    if weights is None and not pretrained:
        raise ConfigError(
            "encoder",
            "pretrained",
            f"{model!r} without weights would be random; give --pretrained with a tag of open_clip or a {_SAFETENSORS} file",
        )
    if file.suffix != _SAFETENSORS:
        raise ConfigError("encoder", "pretrained", "neither a tag of open_clip nor a .safetensors file")
    if not file.is_file():
        raise ConfigError(str(file), "", "missing: the weights of the encoder")
    return tag


def tokenizer_of(name: str, config: Mapping[str, Any], *, offline: bool) -> Callable[[list[str]], Tensor]:
    """The tokenizer of an architecture or of ``local-dir:FOLDER``; CLIP's own comes with open_clip.

    Raises:
        ConfigError: the model has another, and its files are not here.
        MissingExtra: the library that reads those is not installed.
    """
    import open_clip

    hub_name = config["text_cfg"].get("hf_tokenizer_name", "")
    if not hub_name:
        tokenizer: Callable[[list[str]], Tensor] = open_clip.get_tokenizer(name)
        return tokenizer
    if importlib.util.find_spec("transformers") is None:
        raise MissingExtra(EXTRA)
    folder = name.removeprefix("local-dir:")
    local = folder != name
    try:
        # A tokenizer of the hub's library may bring code; ours may not. A folder is all there is to ask.
        with without_hub(local or offline):
            tokenizer = open_clip.get_tokenizer(
                name, trust_remote_code=False, local_files_only=local or offline
            )
    except Exception as error:  # whatever that library makes of absent files
        listed = ", ".join(TOKENIZER_FILES)
        place = f"into {folder}" if local else f"into a folder beside {CONFIG_NAME} and {WEIGHT_NAMES[0]}"
        reason = f"cannot be loaded ({type(error).__name__}); bring {listed} of {hub_name} {place}"
        if not local:
            reason += " and give --clip local-dir:FOLDER"
        raise ConfigError("encoder", "tokenizer", reason) from None
    return tokenizer
