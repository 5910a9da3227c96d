"""Every change of a party's directory, in the steps between which a crash may fall, and every look at it.

Two ways to write survive every crash state that was enumerated, of nine tried: a new file that is synced and
takes the old one's name (``replace_file``), and a checksummed line that is appended and synced (``append``).
A disk that answers before it has written is trust assumption T4.

``tests/simulation`` puts a disk of its own in the place of ``os`` here, which loses, tears and refuses what a
real one may. So modules that keep a party's state use no other way to its files.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path

AnyPath = Path | str

_FULL_SYNC: int | None = getattr(fcntl, "F_FULLFSYNC", None)


def sync(file: int) -> None:
    """What was written to the file (or directory) is on the disk, not only on its way.

    On macOS ``fsync`` leaves data in the drive's own cache; F_FULLFSYNC empties that too (fsync(2) there).

    Raises:
        OSError: nobody knows what is on disk. Do not sync again: a second call may report success falsely,
            unless the bytes were written again in between. Of a folder a second call is believed: a file system with
            a journal stops after such an error, one without may lie (assumption T4).
    """
    if _FULL_SYNC is None:
        os.fsync(file)
    else:
        fcntl.fcntl(file, _FULL_SYNC)


def read(path: AnyPath) -> bytes:
    """The whole file."""
    with opened(path, os.O_RDONLY) as file:
        content = os.read(file, max(1, os.fstat(file).st_size))
        while part := os.read(file, 1 << 20):
            content += part
        return content


def is_file(path: AnyPath) -> bool:
    """
    Raises:
        OSError: nobody knows. A look that fails is not "no": that nothing was sent or revealed may rest on it.
    """
    return stat.S_ISREG(_kind(path))


def is_folder(path: AnyPath) -> bool:
    """As ``is_file``."""
    return stat.S_ISDIR(_kind(path))


def mode_of(path: AnyPath) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def names(folder: AnyPath) -> list[str]:
    """What the folder holds, sorted; nothing if there is no such folder."""
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []


def replace_file(path: AnyPath, content: bytes, mode: int) -> None:
    """Old content or new content after a crash, never a mixture; the new one when this returns.

    Only one process at a time may do this to one path: its draft has one name, and one that a crash left
    there is taken away.

    Raises:
        OSError: the old content stands, or after a failed last sync either.
    """
    folder, slash, name = str(path).rpartition("/")
    folder = folder or slash or "."  # a bare name lies in the working directory, not in the root
    draft = f"{folder}/.{name}.new"
    remove(draft)
    try:
        with opened(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as file:  # 0600
            write_all(file, content)
            os.fchmod(file, mode)
            sync(file)
        os.replace(draft, path)
    except BaseException:
        with contextlib.suppress(OSError):
            remove(draft)
        raise
    sync_folder(folder)  # else the new name itself may be lost


def append(path: AnyPath, content: bytes, *, size: int) -> None:
    """Adds to a file of ``size`` bytes: after a crash some prefix is there, all of it when this returns.

    Raises:
        ValueError: the file has another size; nothing was written.
        OSError: nobody knows how much is there.
    """
    with opened(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW) as file:
        if os.fstat(file).st_size != size:
            raise ValueError("another size")
        write_all(file, content)
        sync(file)


def rewrite(path: AnyPath, content: bytes, *, start: int) -> None:
    """Cuts the file or makes it longer so that ``content`` is what it holds from ``start`` on.

    Bytes that are there already are written again: after a failed sync nothing less brings them to the disk. A
    crash meanwhile leaves them as they are, since they are the same bytes in the same place.
    """
    with opened(path, os.O_WRONLY | os.O_NOFOLLOW) as file:
        os.ftruncate(file, min(os.fstat(file).st_size, start + len(content)))
        os.lseek(file, start, os.SEEK_SET)
        write_all(file, content)
        sync(file)


def make_folders(folder: Path, below: Path, mode: int = 0o700) -> None:
    """The folder, and those between it and ``below``, which is there, durably.

    One that is there already may have been made by a call whose sync failed, or by a process that was killed before
    it: nothing is put into a folder whose own name may be lost.
    """
    if folder == below:
        return
    if not is_folder(folder):
        make_folders(folder.parent, below, mode)
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, mode)
    sync_folder(folder.parent)


def remove(path: AnyPath) -> None:
    """Deletes the file if it is there. After a crash it may be there again."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def sync_folder(folder: AnyPath) -> None:
    with opened(folder, os.O_RDONLY) as file:
        sync(file)


@contextlib.contextmanager
def opened(path: AnyPath, flags: int) -> Iterator[int]:
    """A descriptor; a file that this creates has mode 0600."""
    file = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        yield file
    finally:
        os.close(file)


def write_all(file: int, content: bytes) -> None:
    while content:
        content = content[os.write(file, content) :]


def _kind(path: AnyPath) -> int:
    try:
        return os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0
