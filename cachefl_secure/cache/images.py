"""Labelled images in a folder: one sub-folder a class."""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from cachefl_secure.errors import ConfigError

_CLUTTER = frozenset({"thumbs.db", "desktop.ini"})
_DEEP_MODES = frozenset({"I", "F", "I;16", "I;16B", "I;16L", "I;16N"})


@dataclass(frozen=True, slots=True, repr=False)
class ImageList:
    """Images: ``paths`` relative to ``root``, with '/'; ``labels`` index ``classes``. A folder's are sorted."""

    root: Path
    paths: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def part(self, start: int, stop: int) -> ImageList:
        """A stretch of the list."""
        return ImageList(self.root, self.paths[start:stop], self.labels[start:stop], self.classes)

    def __repr__(self) -> str:  # names and labels of private images are private
        return f"ImageList(<{len(self)} images>)"


def image_folder(path: Path, classes: Sequence[str]) -> ImageList:
    """The images of ``path/<class>/...``; every file counts as an image, except hidden files.

    Folder names match class names whatever their case, spaces, underscores and slashes. A class without a
    folder is legal, a folder without a class is not. Files beside the class folders are not looked at.

    Raises:
        ConfigError: no such folder, an unknown class folder, files but no class folders, a link that
            leaves the folder or leads to a folder, or two folders or classes that only differ in what is ignored.
    """
    if not path.is_dir():
        raise ConfigError(str(path), "", "no such folder")
    entries = [entry for entry in sorted(path.iterdir()) if not _is_clutter(entry.name)]
    folders = [entry for entry in entries if entry.is_dir()]
    labels_by_name([folder.name for folder in folders], file=str(path), what="class folders")
    labels = labels_by_name(classes)
    if entries and not folders:
        raise ConfigError(str(path), "", "holds files but no class folders")
    unknown = [folder.name for folder in folders if plain(folder.name) not in labels]
    if unknown:
        reason = f"no class is called {quoted(unknown)}; classes are {quoted(classes)}"
        raise ConfigError(str(path), "", reason)
    found = sorted(
        (file.relative_to(path).as_posix(), labels[plain(folder.name)])
        for folder in folders
        for file in _files_below(folder, path)
    )
    return ImageList(
        path, tuple(name for name, _ in found), tuple(label for _, label in found), tuple(classes)
    )


def plain(name: str) -> str:
    # No folder can be called "F/A-18", so a slash counts as little as what may stand in its place.
    return re.sub(r"[\s_/]+", "", unicodedata.normalize("NFKC", name).casefold())


def labels_by_name(
    classes: Sequence[str], *, file: str = "plan", field: str = "", what: str = "classes"
) -> dict[str, int]:
    """Plain name -> place in the list.

    Raises:
        ConfigError: two would be taken for one; says which.
    """
    labels: dict[str, int] = {}
    for label, name in enumerate(classes):
        first = labels.setdefault(plain(name), label)
        if first != label:
            reason = (
                f"{what} {quoted([classes[first], name])} differ only in case, spaces, underscores or slashes"
            )
            raise ConfigError(file, field, f"{reason}: put them together, or give one of them another name")
    return labels


def quoted(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name[:60]) for name in names[:20])
    return f"{shown} and {len(names) - 20} more" if len(names) > 20 else shown


def _is_clutter(name: str) -> bool:
    return name.startswith(".") or name.lower() in _CLUTTER


def _files_below(folder: Path, root: Path) -> Iterator[Path]:
    if folder.is_symlink():
        raise ConfigError(str(root), folder.relative_to(root).as_posix(), "is a link to a folder")
    for entry in sorted(folder.iterdir()):
        if _is_clutter(entry.name):
            continue
        if entry.is_dir():
            yield from _files_below(entry, root)
        elif entry.is_symlink() and not entry.resolve().is_relative_to(root.resolve()):
            raise ConfigError(
                str(root), entry.relative_to(root).as_posix(), "is a link that leaves the folder"
            )
        else:
            yield entry


def open_image(path: Path) -> Image.Image:
    """The image as 8-bit RGB.

    Raises:
        ConfigError: cannot be read as an image, or has more than 8 bits a channel.
    """
    return decode_image(read_image(path), path)


def read_image(path: Path) -> bytes:
    """
    Raises:
        ConfigError: cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(str(path), "", error.strerror or "cannot be read") from None


def decode_image(raw: bytes, path: Path) -> Image.Image:
    """As ``open_image``, of a file that was read."""
    try:
        image: Image.Image = Image.open(io.BytesIO(raw))
        if image.mode in _DEEP_MODES:
            # PIL would clip to 255 and give a white image. Which window to show is the operator's choice.
            raise ConfigError(str(path), "", "more than 8 bits a channel: convert it to 8 bits first")
        if "transparency" in image.info:
            image = image.convert("RGBA")
        return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError):
        raise ConfigError(
            str(path), "", "cannot be read as an image (--skip-unreadable leaves such files out)"
        ) from None
