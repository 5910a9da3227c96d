"""A party's directory: atomic writes, permissions, one process at a time."""

from __future__ import annotations

import contextlib
import errno
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from cachefl_secure import durable
from cachefl_secure.crypto.hpke import TransportKey
from cachefl_secure.crypto.seal import AtRestKey
from cachefl_secure.crypto.secret import Secret
from cachefl_secure.crypto.sign import SigningKey
from cachefl_secure.errors import ConfigError

ROSTER_FILE = "roster.bin"
"""The first signed roster: at the coordinator the one it signed, at a silo the one it pinned.

Those that followed it are in ``rosters/``; see ``roster_files``.
"""

_SIGNING_KEY = "keys/signing.key"
_NEXT_SIGNING_KEY = "keys/next-signing.key"
_STORAGE_KEY = "keys/storage.key"
_TRANSPORT_KEY = "keys/transport.key"
_UNFINISHED = ".unfinished"

_CANNOT_SYNC_FOLDERS = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EBADF})
"""There ``write`` fails too, so nobody acts on what it reads; an auditor may. Not EROFS: so ext4 and btrfs say, after an
error that stopped them, that what is seen is not on the disk."""


def utc_now() -> str:
    """For people who read the files. No decision rests on a clock."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def round_file(round_number: int, name: str) -> str:
    """Where a party keeps what belongs to one round."""
    return f"rounds/{round_number:04d}/{name}"


def round_numbers(state: StateDir) -> list[int]:
    """Rounds that this party keeps anything of, in order. Other folders are not looked at.

    Raises:
        ConfigError: the folder cannot be read.
    """
    try:
        state.sync_names("rounds")
        folders = durable.names(state.path("rounds"))
    except OSError as error:
        raise ConfigError(str(state.path("rounds")), "", error.strerror or "cannot be read") from None
    return sorted(int(folder) for folder in folders if re.fullmatch(r"[0-9]{4,7}", folder))


@dataclass(frozen=True, slots=True)
class StateDir:
    """A directory that belongs to one party (mode 0700). Paths given to the methods are relative to it.

    ``has``, ``read`` and ``round_numbers`` sync the names in a folder before the first look at it: a process before this
    one may have given a file its name and been killed. Else a reply could go out that rests on it, and after a loss of
    power another one. What a command *beside* this process writes, its reader writes again (``ready_approval``).
    """

    root: Path
    _synced: set[str] = field(default_factory=set, init=False, repr=False, compare=False)
    """Folders whose names are safe, as far as this object knows."""

    @classmethod
    def create(cls, root: Path, identity: SigningKey | None = None) -> StateDir:
        """A directory with identity and storage keys, marked unfinished until ``finish``.

        A directory that an interrupted command left unfinished is taken up again with its keys. ``identity`` is
        an institution's key that it has already; None makes a new one.

        Raises:
            ConfigError: occupied, or cannot be created.
        """
        state = cls.begin(root)
        if identity is not None:
            state.write(_SIGNING_KEY, identity.reveal(), private=True)
        for name, key in ((_SIGNING_KEY, SigningKey), (_STORAGE_KEY, AtRestKey)):
            if not state.has(name):
                state.write(name, key.generate().reveal(), private=True)
        return state

    @classmethod
    def begin(cls, root: Path) -> StateDir:
        """A directory without keys yet, marked unfinished. One that was left so is taken up again.

        Raises:
            ConfigError: occupied, or cannot be created.
        """
        cls.refuse_occupied(root)
        try:
            root.mkdir(parents=True, exist_ok=True)
            root.chmod(0o700)
        except OSError as error:
            raise ConfigError(str(root), "", error.strerror or "cannot be created") from None
        state = cls(root)
        state.write(_UNFINISHED, b"")
        return state

    def finish(self) -> None:
        """Everything that the directory needs is in it, durably: nothing marks it unfinished after a loss of power."""
        self.remove(_UNFINISHED)
        try:
            durable.sync_folder(self.root)
        except OSError as error:
            raise ConfigError(str(self.root), "", f"not written: {error.strerror}") from None

    @staticmethod
    def refuse_occupied(root: Path) -> None:
        """
        Raises:
            ConfigError: the path exists, is not an empty directory, and was not left by an interrupted command.
        """
        if root.is_symlink() or (root.exists() and not root.is_dir()):
            raise ConfigError(str(root), "", "exists already and is not a directory")
        if root.is_dir() and any(root.iterdir()) and not (root / _UNFINISHED).is_file():
            raise ConfigError(str(root), "", "exists already and is not empty")

    @staticmethod
    def discard_unfinished(root: Path, *, keep: str = "") -> None:
        """Removes what an interrupted command left, but for the folder ``keep``; touches nothing else."""
        if not (root / _UNFINISHED).is_file():
            return
        if not (keep and (root / keep).is_dir()):
            shutil.rmtree(root)
            return
        for entry in root.iterdir():
            if entry.name in {keep, _UNFINISHED}:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def remove_folder(self, relative: str) -> None:
        """With all that is in it, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.path(relative))

    @property
    def is_finished(self) -> bool:
        return not self.has(_UNFINISHED)

    def path(self, relative: str) -> Path:
        return self.root / relative

    def sync_names(self, folder: str) -> None:
        """Makes the names in this folder safe: once for this object, and again after a write that failed.

        Raises:
            OSError: they may not be safe.
        """
        path = f"{self.root}/{folder}" if folder else str(self.root)
        if path in self._synced:
            return
        try:
            durable.sync_folder(path)
        except (FileNotFoundError, NotADirectoryError):
            return  # there are none
        except OSError as error:
            if error.errno not in _CANNOT_SYNC_FOLDERS:
                raise
        self._synced.add(path)

    def has(self, relative: str) -> bool:
        """Whether there is such a file. "No" is an answer that rules rest on, so only a certain one counts.

        Raises:
            ConfigError: it could not be looked at.
        """
        try:
            self.sync_names(relative.rpartition("/")[0])
            return durable.is_file(f"{self.root}/{relative}")
        except OSError as error:
            raise ConfigError(str(self.path(relative)), "", error.strerror or "cannot be looked at") from None

    def read(self, relative: str) -> bytes:
        """The whole file.

        Raises:
            ConfigError: absent or unreadable.
        """
        try:
            self.sync_names(relative.rpartition("/")[0])
            return durable.read(f"{self.root}/{relative}")
        except OSError as error:
            raise ConfigError(str(self.path(relative)), "", error.strerror or "cannot be read") from None

    def write(self, relative: str, content: bytes, *, private: bool = False) -> None:
        """Old content or new content after a crash, never a mixture; durable when this returns.

        Raises:
            ConfigError: disk full, read-only or forbidden; the old content stands.
        """
        target = self.path(relative)
        try:
            durable.make_folders(target.parent, self.root)
            durable.replace_file(target, content, 0o600 if private else 0o644)
        except OSError as error:
            self._synced.clear()  # whichever folder it was
            raise ConfigError(str(target), "", f"not written: {error.strerror}") from None

    def write_once(self, relative: str, content: bytes) -> None:
        """As ``write``, for what is decided for ever.

        Raises:
            ConfigError: it is there already, or was not written.
        """
        if self.has(relative):
            raise ConfigError(str(self.path(relative)), "", "is there already, and is never replaced")
        self.write(relative, content)

    def remove(self, relative: str) -> None:
        """Deletes the file if it is there. After a loss of power it may be there again, and no rule may rest on that it is
        not. Flash storage may keep old blocks (limit N6).

        Raises:
            ConfigError: read-only, forbidden, or the disk is failing.
        """
        try:
            durable.remove(f"{self.root}/{relative}")
        except OSError as error:
            raise ConfigError(str(self.path(relative)), "", f"not removed: {error.strerror}") from None

    def signing_key(self) -> SigningKey:
        return SigningKey(self._read_key(_SIGNING_KEY))

    def next_signing_key(self) -> SigningKey | None:
        """The key that this silo asked to have instead of its present one, if it did."""
        return SigningKey(self._read_key(_NEXT_SIGNING_KEY)) if self.has(_NEXT_SIGNING_KEY) else None

    def make_next_signing_key(self) -> SigningKey:
        """The same one until it is taken. Durable when this returns."""
        made = self.next_signing_key()
        # One that was taken may be left: a crash came before it was removed.
        if made is None or made.public_key == self.signing_key().public_key:
            made = SigningKey.generate()
        # Also one that is there: the last sync may have failed, and a roster will name it.
        self.write(_NEXT_SIGNING_KEY, made.reveal(), private=True)
        return made

    def take_next_signing_key(self) -> None:
        """The next key is the present one from now on; the old one is gone, but for old blocks (limit N6)."""
        self.write(_SIGNING_KEY, self._read_key(_NEXT_SIGNING_KEY), private=True)
        self.remove(_NEXT_SIGNING_KEY)

    def transport_key(self) -> TransportKey:
        """Made when it is first asked for: only some transports need it."""
        if not self.has(_TRANSPORT_KEY):
            self.write(_TRANSPORT_KEY, TransportKey.generate().reveal(), private=True)
        return TransportKey(self._read_key(_TRANSPORT_KEY))

    def storage_key(self) -> AtRestKey:
        return AtRestKey(self._read_key(_STORAGE_KEY))

    def _read_key(self, relative: str) -> bytes:
        path = self.path(relative)
        content = self.read(relative)
        try:
            mode = durable.mode_of(path)
        except OSError as error:
            raise ConfigError(str(path), "", error.strerror or "cannot be looked at") from None
        if mode & 0o077:
            raise ConfigError(str(path), "", "readable by others; run `chmod 600` on it")
        if len(content) != Secret.length_bytes:
            raise ConfigError(str(path), "", f"{len(content)} bytes, a key has {Secret.length_bytes}")
        return content

    @contextlib.contextmanager
    def lock(self, name: str = ".lock") -> Iterator[None]:
        """Held while a command works on the directory; the system drops it when the process dies.

        Another ``name`` is another lock, for a command that touches only what the others leave alone.

        Raises:
            ConfigError: another process holds it.
        """
        guard = FileLock(self.path(name), timeout=0, mode=0o600)
        try:
            guard.acquire()
        except Timeout:
            raise ConfigError(str(self.root), "", "another cachefl-secure process works here") from None
        try:
            yield
        finally:
            guard.release()
