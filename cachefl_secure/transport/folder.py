"""A folder that others write in too: every step below its root is opened from the one before, and no link is followed.

Somebody who may write there could put a link to a place outside in the way of a name. So nothing is reached by a path
of several parts: each folder is opened under a descriptor of its parent with O_NOFOLLOW, and files likewise.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NO_LINK = os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class SharedFolder:
    """Files below ``root``, by relative names with ``/``.

    Raises, from every method: OSError, also where the root is missing (a share that is not mounted looks empty, and
    would be written beside) or a link is in the way.
    """

    root: str

    def make(self) -> None:
        """The root. Nobody makes it later."""
        os.makedirs(self.root, exist_ok=True)

    def create(self, name: str, pieces: Sequence[bytes | memoryview]) -> None:
        """A new file, on the disk when this returns. Folders on the way are made."""
        with self._parent(name, make=True) as (at, last):
            made = os.open(last, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK, 0o666, dir_fd=at)
            with open(made, "wb", buffering=0) as file:
                for piece in pieces:
                    view = memoryview(piece)
                    while view:
                        view = view[file.write(view) :]
                os.fsync(file.fileno())

    def rename(self, name: str, following: str) -> None:
        """Within one folder; replaces what had the name."""
        with self._parent(name) as (at, last):
            os.replace(last, following.rpartition("/")[2], src_dir_fd=at, dst_dir_fd=at)

    def read(self, name: str, most_bytes: int) -> bytes | None:
        """None if there is no such file, or it is longer, or no file: a pipe that somebody left is not waited for."""
        try:
            with self._parent(name) as (at, last):
                opened = os.open(last, os.O_RDONLY | os.O_NONBLOCK | _NO_LINK, dir_fd=at)
        except FileNotFoundError:
            return None
        with open(opened, "rb", buffering=0) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode) or found.st_size > most_bytes:
                return None
            content = file.read(found.st_size) or b""
            while len(content) < found.st_size and (part := file.read(found.st_size - len(content))):
                content += part
            return content

    def has(self, name: str) -> bool:
        try:
            with self._parent(name) as (at, last):
                return stat.S_ISREG(os.stat(last, dir_fd=at, follow_symlinks=False).st_mode)
        except FileNotFoundError:
            return False

    def names(self, folder: str) -> tuple[list[str], list[str]]:
        """(files, folders) directly in it; none if there is no such folder. Links are neither."""
        try:
            with self._opened(folder.split("/")) as at, os.scandir(at) as found:
                entries = list(found)
                files = [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]
                folders = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            return [], []
        return sorted(files), sorted(folders)

    def remove(self, name: str) -> None:
        with self._parent(name) as (at, last):
            os.unlink(last, dir_fd=at)

    def remove_folder(self, name: str) -> None:
        """If it is empty."""
        with self._parent(name) as (at, last):
            os.rmdir(last, dir_fd=at)

    @contextlib.contextmanager
    def _parent(self, name: str, *, make: bool = False) -> Iterator[tuple[int, str]]:
        *folders, last = name.split("/")
        with self._opened(folders, make=make) as at:
            yield at, last

    @contextlib.contextmanager
    def _opened(self, folders: Sequence[str], *, make: bool = False) -> Iterator[int]:
        at = os.open(self.root, _FOLDER)
        try:
            for folder in folders:
                if folder in ("", ".", ".."):
                    raise FileNotFoundError(2, "no such name in a store", folder)
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(folder, dir_fd=at)
                below = os.open(folder, _FOLDER | os.O_NOFOLLOW, dir_fd=at)
                os.close(at)
                at = below
            yield at
        finally:
            os.close(at)
