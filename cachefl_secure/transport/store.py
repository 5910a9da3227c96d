"""Objects in a place that all parties reach: a shared folder, or any store that fsspec knows.

    dir:///shared/fed     a folder: on one machine, on a network file system, on a stick that is carried about
    s3:// gs:// az:// sftp:// memory:// ...    through fsspec and the package that it names for the scheme

An object is written once, whole, and never changed. Nothing is expected of the store: it may lose, delay, repeat or
cut objects, and show them to anybody; readers check what they read (see ``parcels``) and look again.
"""

from __future__ import annotations

import contextlib
import os
import stat
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cachefl_secure.errors import ConfigError, MissingExtra, TransportError

FOLDER_SCHEME = "dir"
_EXTRAS = {
    "s3": "s3",
    "gs": "gcs",
    "gcs": "gcs",
    "az": "azure",
    "abfs": "azure",
    "sftp": "sftp",
    "ssh": "sftp",
}
# Where an object appears whole or not at all. Elsewhere it is written under another name first.
_WHOLE = frozenset({"memory", "s3", "s3a", "gs", "gcs", "az", "abfs", "adl"})
_DRAFT = ".part-"
_NO_WAIT = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


@dataclass(frozen=True, slots=True, eq=False)
class ObjectStore:
    """Named objects below one URL. Names are relative, with ``/`` between their parts.

    Raises, from every method: TransportError if the store cannot be reached or refuses. Its own words are left out:
    they may hold keys.
    """

    url: str
    _files: Any
    _root: str
    _is_folder: bool
    _writes_whole: bool

    @classmethod
    def open(cls, url: str) -> ObjectStore:
        """Connects to nothing yet.

        Raises:
            ConfigError: no URL, a scheme that fsspec does not know, or a relative folder.
            MissingExtra: the scheme needs a package that is not installed.
        """
        import fsspec

        scheme = check_url(url)
        target = "file" + url.removeprefix(FOLDER_SCHEME) if scheme == FOLDER_SCHEME else url
        try:
            # What others write must be seen: nothing may be remembered between two looks.
            options = {"use_listings_cache": False, "skip_instance_cache": True}
            files, root = fsspec.url_to_fs(target, **options)
        except ImportError:
            raise MissingExtra(_EXTRAS.get(scheme, scheme)) from None
        except Exception as error:
            raise ConfigError("--engine", url, f"cannot be opened ({type(error).__name__})") from None
        return cls(url, files, root.rstrip("/"), scheme == FOLDER_SCHEME, scheme in _WHOLE)

    def make(self) -> None:
        """The folder, when a federation is founded there. Nobody makes it later: where it is missing, it is not mounted."""
        if self._is_folder:
            try:
                os.makedirs(self._root, exist_ok=True)
            except OSError as error:
                raise TransportError(self.url, error.strerror or "cannot be made") from None

    def put(self, name: str, *pieces: bytes | memoryview) -> None:
        """The pieces one after the other as one object; whole or not at all, as far as the store allows."""
        target = f"{self._root}/{name}"
        with self._reaching():
            folder = target.rpartition("/")[0]
            if self._writes_whole:
                self._files.pipe_file(target, b"".join(pieces))
                return
            self._files.makedirs(folder, exist_ok=True)
            draft = f"{folder}/{_DRAFT}{uuid.uuid4().hex}"
            try:
                self._write(draft, pieces)
                self._files.mv(draft, target) if not self._is_folder else os.replace(draft, target)
            except BaseException:
                with contextlib.suppress(Exception):
                    self._files.rm_file(draft)
                raise

    def _write(self, draft: str, pieces: Sequence[bytes | memoryview]) -> None:
        if not self._is_folder:
            self._files.pipe_file(draft, b"".join(pieces))
            return
        with open(draft, "xb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())

    def get(self, name: str, *, limit_bytes: int) -> bytes | None:
        """The object's content; None if there is none, or if it is longer than ``limit_bytes``."""
        with self._reaching():
            try:
                content = self._read(f"{self._root}/{name}", limit_bytes + 1)
            except FileNotFoundError:
                return None
        return content if content is not None and len(content) <= limit_bytes else None

    def _read(self, path: str, most_bytes: int) -> bytes | None:
        if self._is_folder:
            return _read_file(path, most_bytes)
        try:
            content: bytes = self._files.cat_file(path, start=0, end=most_bytes)
        except FileNotFoundError:
            raise
        except Exception:
            if self._files.info(path).get("size") != 0:
                raise
            return b""  # a range of nothing is an error at some stores
        return content

    def has(self, name: str) -> bool:
        """Not ``exists``, which says no when it could not find out."""
        with self._reaching():
            try:
                self._files.info(f"{self._root}/{name}")
            except FileNotFoundError:
                return False
            return True

    def names(self, folder: str, *, drafts: bool = False) -> list[str]:
        """Names of the objects directly in the folder, sorted, without it; none if there is no such folder.

        ``drafts``: and of what somebody is writing, or was when he was killed.
        """
        with self._reaching():
            try:
                self._files.invalidate_cache()
                found = self._files.ls(f"{self._root}/{folder}", detail=True)
            except FileNotFoundError:
                return []
        return _last_parts(found, "file", drafts)

    def folders(self, folder: str) -> list[str]:
        """As ``names``, of the folders directly in it."""
        with self._reaching():
            try:
                self._files.invalidate_cache()
                return _last_parts(self._files.ls(f"{self._root}/{folder}", detail=True), "directory")
            except FileNotFoundError:
                return []

    @property
    def is_near(self) -> bool:
        """Whether a look costs next to nothing."""
        return self._is_folder or self.url.startswith("memory:")

    def remove(self, name: str) -> None:
        """Best effort: a store that lets nothing be deleted keeps sealed bytes for longer, that is all."""
        with contextlib.suppress(Exception):
            self._files.rm_file(f"{self._root}/{name}")

    def remove_folder(self, folder: str) -> None:
        """If it is empty; best effort. Object stores have none to remove."""
        if self._is_folder:
            with contextlib.suppress(OSError):
                os.rmdir(f"{self._root}/{folder}")

    @contextlib.contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            if self._is_folder:
                os.stat(self._root)  # else a share that is not mounted looks empty, and is written beside
            yield
        except OSError as error:
            raise TransportError(self.url, error.strerror or type(error).__name__) from None
        except Exception as error:  # each store has errors of its own
            raise TransportError(self.url, type(error).__name__) from None


def _read_file(path: str, most_bytes: int) -> bytes | None:
    """None if it is no file, or longer. A pipe that somebody left there is not waited for."""
    with open(os.open(path, os.O_RDONLY | _NO_WAIT), "rb", buffering=0) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_size >= most_bytes:
            return None
        return file.readall()


def _last_parts(found: list[dict[str, Any]], kind: str, drafts: bool = False) -> list[str]:
    parts = (str(each["name"]).rstrip("/").rpartition("/")[2] for each in found if each["type"] == kind)
    return sorted(part for part in parts if part and (drafts or not part.startswith(_DRAFT)))


def check_url(url: str) -> str:
    """The scheme of a store's URL.

    Raises:
        ConfigError: not a URL of a store.
    """
    from fsspec.registry import known_implementations

    # Taken apart here and not by ``urlsplit``: what that one repairs (spaces, case, one slash) fsspec takes for the
    # name of a folder, wherever the process happens to run.
    scheme, marked, place = url.partition("://")
    if scheme == FOLDER_SCHEME and marked:
        if not place.startswith("/") or not place.strip("/"):
            reason = "a folder is given by its whole path: dir:///shared/federation"
            raise ConfigError("--engine", url, reason)
        return scheme
    if not place.strip("/") or scheme not in known_implementations:
        reason = (
            "not a place for messages: dir:///FOLDER, s3://, gs://, az://, sftp:// or another of fsspec's"
        )
        raise ConfigError("--engine", url, reason)
    return scheme
