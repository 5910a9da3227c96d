"""Objects in a place that all parties reach: a shared folder, or any store that fsspec knows.

    dir:///shared/fed     a folder: on one machine, on a network file system, on a stick that is carried about
    s3:// gs:// az:// sftp:// memory:// ...    through fsspec and the package that it names for the scheme

An object is written once, whole, and never changed. Nothing is expected of the store: it may lose, delay, repeat or
cut objects, and show them to anybody; readers check what they read (see ``parcels``) and look again.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cachefl_secure.errors import ConfigError, MissingExtra, PlaceUnusable, TransportError
from cachefl_secure.transport.folder import SharedFolder

FOLDER_SCHEME = "dir"


@dataclass(frozen=True, slots=True)
class _Kind:
    extra: str
    """The optional part of the installation that it needs; empty: none."""
    writes_whole: bool
    """An object appears whole or not at all. Elsewhere it is written under another name first."""


# Those that fsspec reaches and that were looked at. Others read only, or take any text for a path of this machine.
_KINDS = {
    FOLDER_SCHEME: _Kind("", False),
    "memory": _Kind("", True),
    "s3": _Kind("s3", True),
    "gs": _Kind("gcs", True),
    "gcs": _Kind("gcs", True),
    "az": _Kind("azure", True),
    "abfs": _Kind("azure", True),
    "sftp": _Kind("sftp", False),
    "ssh": _Kind("sftp", False),
}
DRAFT = ".part-"
"""How the names of objects begin that are still being written."""


@dataclass(frozen=True, slots=True, eq=False)
class ObjectStore:
    """Named objects below one URL. Names are relative, with ``/`` between their parts.

    Raises, from every method: TransportError if the store cannot be reached or refuses. Its own words are left out:
    they may hold keys.
    """

    url: str
    _folder: SharedFolder | None
    _files: Any
    """fsspec's; None for a folder."""
    _root: str
    _writes_whole: bool

    @classmethod
    def open(cls, url: str, *, where: str = "--engine") -> ObjectStore:
        """Connects to nothing yet. ``where`` the URL stands, for the error.

        Raises:
            ConfigError: no URL of a store, or a relative folder.
            MissingExtra: the scheme needs a package that is not installed.
        """
        scheme = check_url(url, where=where)
        if scheme == FOLDER_SCHEME:
            root = url.removeprefix(f"{FOLDER_SCHEME}://").rstrip("/")
            return cls(url, SharedFolder(root), None, root, False)
        import fsspec

        try:
            # What others write must be seen: nothing may be remembered between two looks.
            files, root = fsspec.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
        except ImportError:
            raise MissingExtra(_KINDS[scheme].extra) from None
        except Exception as error:
            raise ConfigError(where, url, f"cannot be opened ({type(error).__name__})") from None
        return cls(url, None, files, root.rstrip("/"), _KINDS[scheme].writes_whole)

    def make(self) -> None:
        """The folder, when a federation is founded there. Nobody makes it later: where it is missing, it is not mounted."""
        if self._folder is not None:
            try:
                self._folder.make()
            except OSError as error:
                raise TransportError(self.url, error.strerror or "cannot be made") from None

    def try_out(self) -> None:
        """Writes a small object, finds and reads it, and takes it away, before anything rests on this place.

        Raises:
            PlaceUnusable: one of these cannot be done. Only the last may fail: then sealed messages lie here for longer.
        """
        name = uuid.uuid4().hex
        try:
            self.put(f"trial/{name}", name.encode())
            shown = name in self.names("trial")
            shown = self.get(f"trial/{name}", limit_bytes=len(name)) == name.encode() and shown
        except TransportError as error:
            raise PlaceUnusable(error.peer, f"cannot be written and read ({error.reason})") from None
        finally:
            self.remove(f"trial/{name}")
            self.remove_folder("trial")
        if not shown:
            raise PlaceUnusable(self.url, "takes what is written and does not show it")

    def put(self, name: str, *pieces: bytes | memoryview) -> None:
        """The pieces one after the other as one object; whole or not at all, as far as the store allows."""
        with self._reaching():
            if self._writes_whole:
                self._files.pipe_file(self._path(name), b"".join(pieces))
                return
            folder = name.rpartition("/")[0]
            draft = f"{folder}/{DRAFT}{uuid.uuid4().hex}"
            try:
                self._write(draft, pieces)
                if self._folder is not None:
                    self._folder.rename(draft, name)
                else:
                    self._files.mv(self._path(draft), self._path(name))
            except BaseException:
                self.remove(draft)
                raise

    def _write(self, draft: str, pieces: Sequence[bytes | memoryview]) -> None:
        if self._folder is not None:
            self._folder.create(draft, pieces)
            return
        self._files.makedirs(self._path(draft).rpartition("/")[0], exist_ok=True)
        self._files.pipe_file(self._path(draft), b"".join(pieces))

    def get(self, name: str, *, limit_bytes: int) -> bytes | None:
        """The object's content; None if there is none, or if it is longer than ``limit_bytes``."""
        with self._reaching():
            if self._folder is not None:
                return self._folder.read(name, limit_bytes)
            try:
                content = self._read(self._path(name), limit_bytes + 1)
            except FileNotFoundError:
                return None
        return content if len(content) <= limit_bytes else None

    def _read(self, path: str, most_bytes: int) -> bytes:
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
            if self._folder is not None:
                return self._folder.has(name)
            try:
                self._files.info(self._path(name))
            except FileNotFoundError:
                return False
            return True

    def names(self, folder: str, *, drafts: bool = False) -> list[str]:
        """Names of the objects directly in the folder, sorted, without it; none if there is no such folder.

        ``drafts``: and of what somebody is writing, or was when he was killed.
        """
        with self._reaching():
            names = (
                self._folder.names(folder)[0] if self._folder is not None else self._listed(folder, "file")
            )
        return [name for name in names if drafts or not name.startswith(DRAFT)]

    def folders(self, folder: str) -> list[str]:
        """As ``names``, of the folders directly in it."""
        with self._reaching():
            if self._folder is not None:
                return self._folder.names(folder)[1]
            return self._listed(folder, "directory")

    def _listed(self, folder: str, kind: str) -> list[str]:
        try:
            self._files.invalidate_cache()
            found = self._files.ls(self._path(folder), detail=True)
        except FileNotFoundError:
            return []
        parts = (str(each["name"]).rstrip("/").rpartition("/")[2] for each in found if each["type"] == kind)
        return sorted(part for part in parts if part)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    @property
    def is_near(self) -> bool:
        """Whether a look costs next to nothing."""
        return self._folder is not None or self.url.startswith("memory:")

    def remove(self, name: str) -> None:
        """Best effort: a store that lets nothing be deleted keeps sealed bytes for longer, that is all."""
        with contextlib.suppress(Exception):
            if self._folder is not None:
                self._folder.remove(name)
            else:
                self._files.rm_file(self._path(name))

    def remove_folder(self, folder: str) -> None:
        """If it is empty; best effort. Object stores have none to remove."""
        if self._folder is not None:
            with contextlib.suppress(OSError):
                self._folder.remove_folder(folder)

    @contextlib.contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            if self._folder is not None:
                os.stat(self._root)  # else a share that is not mounted looks empty
            yield
        except OSError as error:
            raise TransportError(self.url, error.strerror or type(error).__name__) from None
        except Exception as error:  # each store has errors of its own
            raise TransportError(self.url, type(error).__name__) from None


def check_url(url: str, *, where: str = "--engine") -> str:
    """The scheme of a store's URL; ``where`` it stands, for the error.

    Raises:
        ConfigError: not a URL of a store, or one with a password, which would be shown and kept.
    """
    # Taken apart here and not by ``urlsplit``: what that one repairs (spaces, case, one slash) fsspec takes for the
    # name of a folder, wherever the process happens to run.
    scheme, marked, place = url.partition("://")
    user = place.partition("/")[0].rpartition("@")[0]
    if marked and ":" in user:
        reason = (
            "holds a password or key: give it by fsspec's FSSPEC_ variables or the store's own configuration"
        )
        raise ConfigError(where, f"{scheme}://...", reason)
    if scheme == FOLDER_SCHEME and marked:
        if not place.startswith("/") or not place.strip("/"):
            reason = "a folder is given by its whole path: dir:///shared/federation"
            raise ConfigError(where, url, reason)
        return scheme
    if not marked or not place.strip("/") or scheme not in _KINDS:
        reason = "not a place for messages: dir:///FOLDER, s3://BUCKET/PATH, gs://, az:// or sftp://"
        raise ConfigError(where, url, reason)
    return scheme
