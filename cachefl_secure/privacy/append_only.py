"""A file of lines that only grows and survives crashes: the ledger's, without knowing what a line means."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from cachefl_secure import durable
from cachefl_secure.errors import ConfigError, LedgerCorrupt


def locked(path: Path) -> FileLock:
    """The file's lock, acquired. The system drops it when the process dies; network file systems may not.

    Raises:
        ConfigError: another process, or another object of this one, holds it.
    """
    # Not per thread: a silo may be opened in one thread and closed in another.
    lock = FileLock(f"{path}.lock", timeout=0, mode=0o600, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise ConfigError(str(path), "", "another process has this ledger open") from None
    except OSError as error:
        raise ConfigError(str(path), "", error.strerror or "cannot be locked") from None
    return lock


def write_new(path: Path, line: bytes) -> None:
    """Creates the file with its first line, mode 0600: complete and durable, or not there. Hold the lock.

    Raises:
        ConfigError: it exists already, or cannot be written.
    """
    if path.exists() or path.is_symlink():
        raise ConfigError(str(path), "", "exists already")
    try:
        durable.replace_file(path, line, 0o600)
    except OSError as error:
        raise ConfigError(str(path), "", f"not written: {error.strerror}") from None


def append(path: Path, line: bytes, *, size: int) -> None:
    """Adds a line, durably. ``size`` is what the file must measure before: nobody else may have touched it.

    Raises:
        ConfigError: not durable. What is on disk now is unknown: stop, and read the file again.
        LedgerCorrupt: another size.
    """
    try:
        durable.append(path, line, size=size)
    except ValueError:
        raise LedgerCorrupt(str(path), line_count(path), "the file was changed while it was open") from None
    except OSError as error:
        raise ConfigError(str(path), "", f"not written: {error.strerror}") from None


def read(path: Path) -> bytes:
    """The whole file.

    Raises:
        ConfigError: absent or unreadable.
    """
    try:
        return durable.read(path)
    except OSError as error:
        raise ConfigError(str(path), "", error.strerror or "cannot be read") from None


def repaired(raw: bytes, is_unfinished: Callable[[bytes], bool]) -> tuple[bytes, str | None]:
    """The lines with what a crash left of the last append undone or completed, and what was done to it.

    A last line that is whole and only lacks its newline is kept: dropping it might drop a charge. The
    first line is written atomically, so it is never cut. Nothing else is changed.
    """
    start = raw[:-1].rfind(b"\n") + 1
    last, number = raw[start:], raw.count(b"\n", 0, start)
    if is_unfinished(last.rstrip(b"\n")):
        if number == 0:
            return raw, None
        return raw[:start], f"entry {number} was not finished: {len(last)} bytes removed"
    if not last.endswith(b"\n"):
        return raw + b"\n", f"entry {number} lacked its newline: completed, it counts"
    return raw, None


def replace_tail(path: Path, after: bytes) -> None:
    """Makes a repair durable, and everything that was read: it must not be lost after it was relied upon.

    Raises:
        ConfigError: not durable.
    """
    # The last line too where nothing was repaired: the sync of its append may have failed, and the sync of a file
    # that was not written to since may say that all is well.
    start = after[:-1].rfind(b"\n") + 1
    try:
        durable.rewrite(path, after[start:], start=start)
    except OSError as error:
        raise ConfigError(str(path), "", f"not written: {error.strerror}") from None


def line_count(path: Path) -> int:
    return read(path).count(b"\n")
