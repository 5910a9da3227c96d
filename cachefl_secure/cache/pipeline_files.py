"""The files of a diffusers pipeline: where they lie, what they may be, what they are called and under which licence."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from cachefl_secure.errors import ConfigError
from cachefl_secure.names import Digest, digest_of

INDEX = "model_index.json"
BARE = "unet/config.json"
"""What a folder has instead of an index if it holds a class-conditional UNet and a scheduler only."""

_CARD = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
_PERMISSIVE = re.compile(r"(the )?(apache|mit|bsd)\b", re.IGNORECASE)
_READ_BY_PIPELINES = {".json", ".safetensors", ".txt", ".model", ".jinja"}


def pipeline_folder(source: str, *, revision: str | None, offline: bool) -> Path:
    """A local folder as it is; else the hub's copy of a model id: pipeline, card and licence.

    Raises:
        ConfigError: neither, or ``offline`` and not in the hub client's cache.
    """
    if Path(source).is_dir():
        return Path(source)
    from diffusers import DiffusionPipeline
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(
            source, allow_patterns=["README.md", "LICENSE*"], revision=revision, local_files_only=offline
        )
        found = DiffusionPipeline.download(
            source, use_safetensors=True, revision=revision, local_files_only=offline
        )
        return Path(found)
    except Exception as error:  # the hub client raises what its HTTP library of the day raises
        tried = "is not in the local cache, and --offline asks no hub" if offline else "cannot be fetched"
        reason = (
            f"no such folder, and as a model id it {tried} ({type(error).__name__}); bring the"
            f" pipeline's folder ({INDEX} and safetensors weights, as save_pretrained writes it) and name that"
        )
        raise ConfigError(source[:200], "", reason) from None


def pipeline_class(folder: Path) -> str:
    """The name of its class in diffusers. Refuses components of other libraries, which diffusers would import by name.

    Raises:
        ConfigError: no index, or one that names anything but diffusers and transformers.
    """
    import diffusers.pipelines

    file = folder / INDEX
    index = read_json(file)
    if not isinstance(index, dict) or not isinstance(index.get("_class_name"), str):
        raise ConfigError(str(file), "_class_name", "must be the name of a pipeline of diffusers")
    for name, part in index.items():
        library = part[0] if isinstance(part, list) and len(part) == 2 and not name.startswith("_") else None
        known = library in {None, "diffusers", "transformers"} or library in dir(diffusers.pipelines)
        if not known:
            raise ConfigError(
                str(file), name, f"comes from {str(library)[:60]!r}; only diffusers, transformers"
            )
    return str(index["_class_name"])


def read_json(file: Path) -> object:
    """
    Raises:
        ConfigError: it cannot be read, or is no JSON.
    """
    try:
        content: object = json.loads(file.read_bytes())
    except OSError as error:
        raise ConfigError(str(file), "", error.strerror or "cannot be read") from None
    except (ValueError, RecursionError):
        raise ConfigError(str(file), "", "is not JSON") from None
    return content


def revision_of(folder: Path) -> str:
    """The commit of a folder in the hub client's cache; empty for any other folder."""
    resolved = folder.resolve()
    return resolved.name if resolved.parent.name == "snapshots" else ""


def card_of(folder: Path) -> str:
    card = folder / "README.md"
    return card.read_text("utf-8", "replace") if card.is_file() else ""


def name_of(source: str, folder: Path, card: str) -> str:
    """The model id, else the card's first heading, else the folder's name: never a path of this machine."""
    if not Path(source).is_dir():
        return source[:200]
    heading = re.search(r"^# +(.+)$", card, re.MULTILINE)
    return heading.group(1).strip()[:200] if heading else folder.resolve().name[:200]


def licence_of(folder: Path, card: str) -> str:
    """The card's ``license:`` line, else the first line of a licence file, else "unknown"."""
    front = _CARD.match(card)
    for field in ("license_name", "license"):  # the hub writes "license: other" beside a name of its own
        stated = re.search(rf"^{field}: *(\S.*)$", front.group(1), re.MULTILINE) if front else None
        if stated:
            return stated.group(1).strip().strip("\"'")[:200]
    for file in sorted(folder.glob("LICEN[SC]E*")):
        lines = [line.strip() for line in file.read_text("utf-8", "replace").splitlines() if line.strip()]
        if lines:
            return lines[0][:200]
    return "unknown"


def is_permissive(licence: str) -> bool:
    """Whether it is one of Apache, MIT and BSD, as cards and licence files spell them."""
    return bool(_PERMISSIVE.match(licence.strip()))


def files_digest(folder: Path) -> Digest:
    """Over names and bytes of the index and of what its components consist of.

    Cards, licences, examples and weights in other formats may come and go.
    """
    parts = []
    for file in sorted(folder.rglob("*")):
        place = file.relative_to(folder)
        hidden = any(part.startswith(".") for part in place.parts)
        component = len(place.parts) > 1 and file.suffix in _READ_BY_PIPELINES
        if not hidden and (component or place.name in {INDEX, "classes.json"}) and file.is_file():
            with file.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").digest()
            parts += [place.as_posix().encode(), content]
    return digest_of("cachefl-secure/generator/2", *parts)
