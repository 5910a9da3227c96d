"""``manifest.jsonl``: where every candidate for a cache key comes from, and why it was kept or not."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

MANIFEST = "manifest.jsonl"

DRAWN, KEPT, BLANK = "drawn", "kept", "rejected: blank"
OUTDONE = "rejected: margin"
NO_PICTURE = "kept: text feature, for want of a picture"


def near_duplicate(file: str) -> str:
    return f"rejected: near-duplicate of {file}"


class SyntheticImage(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """One line. What a source cannot know is left out."""

    label: int
    class_name: str
    index: int
    """Among the candidates of its class."""
    file: str = ""
    """Below the folder of the pictures: ``<label>-<slug>/<nnnn>.png`` if drawn here. Empty: a feature without one."""
    sha256: str = ""
    """Of the file."""
    size: tuple[int, int] | None = None
    """Width and height in pixels."""
    prompt: str = ""
    """Empty for a class-conditional generator. Of a key without a picture: the text that the key is the feature of."""
    seed: int | None = None
    generator: str = ""
    licence: str = ""
    revision: str = ""
    """The hub's commit; empty for a folder of the operator's."""
    generator_digest: str = ""
    pipeline: str = ""
    scheduler: str = ""
    steps: int | None = None
    guidance: float | None = None
    dtype: str = ""
    versions: dict[str, str] | None = None
    ai_generated: bool = False
    score: float | None = None
    """Zero-shot margin of the claimed class over the best other."""
    cosine: float | None = None
    """Of the picture's feature and its class's text feature."""
    rank: int | None = None
    """Place of the claimed class in the zero-shot reading; 1: read as what it should show."""
    decision: str = DRAWN


def read_manifest(folder: Path) -> list[SyntheticImage]:
    """The lines of ``manifest.jsonl``, up to one cut short by a kill; none if it is absent."""
    images = []
    file = folder / MANIFEST
    for line in file.read_bytes().splitlines() if file.is_file() else ():
        try:
            images.append(msgspec.json.decode(line, type=SyntheticImage))
        except (msgspec.DecodeError, UnicodeDecodeError):
            break
    return images


def manifest_bytes(images: Iterable[SyntheticImage]) -> bytes:
    return b"".join(map(line_bytes, images))


def line_bytes(image: SyntheticImage) -> bytes:
    return msgspec.json.encode(image) + b"\n"


def write_whole(file: Path, raw: bytes) -> None:
    """Whole or not at all, also after a kill."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".partial")
    partial.write_bytes(raw)
    os.replace(partial, file)
