"""A disk in memory that stands in for ``os`` in ``durable``: every step of a write is a place to die or to fail.

It knows what a process sees and what is safe, for contents and for names. The two differ until a sync:

    a process is killed      what it sees stays; so it may go on from what is not safe yet
    the power goes           of what is not safe, contents are torn or full of zeros, names are old or new
    a write is refused       part of it may be there
    a sync fails             what it was for is not safe, and no later sync makes it so unless it is written again; of a
                             folder a later sync does (assumption T4)
    a look fails             whether a file is there, what a folder or a file holds: there is no answer

A new kind of fault is a branch in ``step``, ``look``, ``fsync`` or ``lose_power``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from cachefl_secure import durable

ROOT = "/simulated"


class Killed(BaseException):
    """The end of a process. Not an ``Exception``, so nothing in production handles it."""


@dataclass(slots=True, eq=False)
class File:
    """A file, whatever its name."""

    content: bytes = b""
    """As processes see it."""
    safe: bytes = b""
    """As it is after a loss of power at the worst moment."""
    mode: int = 0o600
    lost: tuple[int, int] | None = None
    """Bytes whose sync failed: the system takes them for written (Rebello et al. 2020, fsync failures)."""
    untouched: int = 0
    """Bytes from the start that no cut, and no write of another byte, has reached since they were safe."""


@dataclass(slots=True)
class Handle:
    path: str
    file: File | None
    """None: a folder."""
    position: int = 0
    appends: bool = False


@dataclass
class SimDisk:
    """All parties' files. Which party acts is the first folder of a path."""

    rng: random.Random
    death: float = 0.0
    """Probability that a step kills its party."""
    refusal: float = 0.0
    """Probability that a step fails."""
    blindness: float = 0.0
    """Probability that a look at what is there fails."""
    is_observer_reading: bool = False
    """The simulation reads, not a party: no look fails, and a sync changes nothing."""
    kill_at: tuple[str, int] | None = None
    """(party, number of the step or send): for enumeration instead of chance."""
    moments: dict[str, int] = field(default_factory=dict)
    seen: dict[str, File] = field(default_factory=dict)
    safe_names: dict[str, File] = field(default_factory=dict)
    folders: set[str] = field(default_factory=lambda: {ROOT})
    safe_folders: set[str] = field(default_factory=lambda: {ROOT})
    handles: dict[int, Handle] = field(default_factory=dict)
    written: list[tuple[str, bytes]] = field(default_factory=list)
    """Everything that was ever written, also to files that are gone."""
    unsynced: dict[str, set[str]] = field(default_factory=dict)
    """Folder -> paths in it that were made, renamed or removed since its last sync."""
    dying: set[str] = field(default_factory=set)
    """Parties whose process was killed and whose Python code is still being left: nothing it does counts."""

    @classmethod
    def holding(cls, files: Mapping[str, tuple[bytes, int]], rng: random.Random) -> SimDisk:
        """These files, path below the root -> (content, mode), all safe."""
        disk = cls(rng)
        for name, (content, mode) in files.items():
            path = f"{ROOT}/{name}"
            disk.seen[path] = File(content, content, mode, untouched=len(content))
            while (path := _above(path)) not in disk.folders:
                disk.folders.add(path)
        disk.safe_names, disk.safe_folders = dict(disk.seen), set(disk.folders)
        return disk

    # --- what the simulation does to it

    def moment(self, party: str) -> bool:
        """Whether the party dies here, by enumeration."""
        self.moments[party] = self.moments.get(party, 0) + 1
        return self.kill_at == (party, self.moments[party])

    def on_death(self, party: str) -> None:
        """Its process is gone, and in half of the cases the power of its machine."""
        self.handles.clear()
        self.dying.discard(party)
        if self.rng.random() < 0.5:
            self.lose_power(party)

    def lose_power(self, party: str) -> None:
        home, toss = f"{ROOT}/{party}/", self.rng.random
        for path in [p for p in {**self.seen, **self.safe_names} if p.startswith(home)]:
            seen, safe = self.seen.get(path), self.safe_names.get(path)
            left = seen if seen is safe or toss() < 0.5 else safe
            if left is None:
                self.seen.pop(path, None)
            else:
                self.seen[path] = left
        for folder in sorted(f for f in self.folders - self.safe_folders if f.startswith(home)):
            if toss() < 0.5:
                self.folders.discard(folder)
        for path in [p for p in self.seen if p.startswith(home)]:
            if _above(path) not in self.folders:
                del self.seen[path]
                continue
            file = self.seen[path]
            if file.content != file.safe or file.untouched < len(file.safe):
                file.content = self._torn(file)
            file.safe, file.lost, file.untouched = file.content, None, len(file.content)
        self.safe_folders = {f for f in self.safe_folders if not f.startswith(home)} | {
            f for f in self.folders if f.startswith(home)
        }
        self.unsynced = {f: paths for f, paths in self.unsynced.items() if not f.startswith(home[:-1])}
        self.safe_names = {p: f for p, f in self.safe_names.items() if not p.startswith(home)} | {
            p: f for p, f in self.seen.items() if p.startswith(home)
        }

    def _torn(self, file: File) -> bytes:
        safe, content = file.safe, file.content
        if not content.startswith(safe) or file.untouched < len(safe):
            # Not shorter than what was safe and is the same still, in the same place.
            cut = content[: self.rng.randint(file.untouched, len(content))]
            return self.rng.choice((safe, content, cut))
        kept = content[: self.rng.randint(len(safe), len(content))]
        hole = self.rng.randint(len(safe), len(kept))
        # Blocks that never arrived read as zeros, once the longer size did.
        return kept if self.rng.random() < 0.7 else kept[:hole] + bytes(len(kept) - hole)

    def safe_content(self, path: Path | str) -> bytes:
        """What is left of the file at the worst moment."""
        file = self.safe_names.get(str(path))
        return b"" if file is None else file.safe

    @contextlib.contextmanager
    def undisturbed(self) -> Iterator[None]:
        """For the simulation's own looks."""
        before, self.is_observer_reading = self.is_observer_reading, True
        try:
            yield
        finally:
            self.is_observer_reading = before

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """In the place of ``os``, for all parties of this process, until ``patch`` is undone."""
        patch.setattr(durable, "os", self._as_os())
        patch.setattr(durable, "_FULL_SYNC", None)

    # --- what ``durable`` asks of it

    def _as_os(self) -> SimpleNamespace:
        calls: tuple[str, ...] = (
            "open",
            "read",
            "write",
            "close",
            "fsync",
            "fchmod",
            "fstat",
            "ftruncate",
            "lseek",
        )
        calls += ("replace", "unlink", "mkdir", "listdir", "stat")
        flags = {name: getattr(os, name) for name in dir(os) if name.startswith(("O_", "SEEK_"))}
        return SimpleNamespace(**flags, **{name: getattr(self, name) for name in calls})

    def step(self, path: str) -> None:
        """Before every change. Raises what the party meets here."""
        party = path[len(ROOT) + 1 :].split("/", 1)[0]
        if party in self.dying:
            raise Killed
        chance = self.rng.random() if self.death or self.refusal else 1.0
        if self.moment(party) or chance < self.death:
            self.dying.add(party)
            raise Killed
        if chance < self.death + self.refusal:
            raise OSError(*self.rng.choice(_REFUSALS))

    def look(self, path: str) -> None:
        """Before every answer. Changes nothing, so nobody dies here that would not die at the next step."""
        if self.blindness and not self.is_observer_reading and self.rng.random() < self.blindness:
            raise OSError(*self.rng.choice(_BLINDNESS), path)

    def open(self, path: Path | str, flags: int, mode: int = 0o600) -> int:
        path = str(path)
        if not flags & (os.O_WRONLY | os.O_RDWR):
            self.look(path)
        if path in self.folders:
            handle = Handle(path, None)
        else:
            file = self.seen.get(path)
            if file is None and not flags & os.O_CREAT:
                raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
            if file is not None and flags & os.O_EXCL:
                raise FileExistsError(errno.EEXIST, "File exists", path)
            if file is None:
                if _above(path) not in self.folders:
                    raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
                self.step(path)
                file = self.seen[path] = File(mode=mode)
                self._changed(path)
            if flags & os.O_TRUNC:
                file.content, file.untouched = b"", 0
            handle = Handle(path, file, appends=bool(flags & os.O_APPEND))
        number = 1000 + len(self.handles)
        while number in self.handles:
            number += 1
        self.handles[number] = handle
        return number

    def close(self, number: int) -> None:
        self.handles.pop(number, None)  # a dead process's were closed for it

    def read(self, number: int, size: int) -> bytes:
        handle = self.handles[number]
        assert handle.file is not None
        part = handle.file.content[handle.position : handle.position + size]
        handle.position += len(part)
        return part

    def write(self, number: int, content: bytes) -> int:
        handle = self.handles[number]
        assert handle.file is not None
        was_dying = set(self.dying)
        try:
            self.step(handle.path)
        except (Killed, OSError):
            if self.dying and was_dying == self.dying:
                raise
            self._put(handle, content[: self.rng.randrange(len(content) + 1)])
            raise
        self._put(handle, content)
        return len(content)

    def _put(self, handle: Handle, content: bytes) -> None:
        file = handle.file
        assert file is not None
        self.written.append((handle.path, content))
        start = len(file.content) if handle.appends else handle.position
        end = start + len(content)
        before = file.content
        file.content = before[:start] + content + before[end:]
        pairs = enumerate(zip(before[start:], content, strict=False), start)
        changed = next((at for at, (old, new) in pairs if old != new), file.untouched)
        file.untouched = min(file.untouched, changed)
        handle.position = end
        if file.lost is not None and start <= file.lost[0] and end >= file.lost[1]:
            file.lost = None

    def fsync(self, number: int) -> None:
        if self.is_observer_reading:
            return
        handle = self.handles[number]
        file = handle.file
        try:
            self.step(handle.path)
        except OSError:
            if file is not None:
                # What was safe and is the same still, in the same place, is on the disk already.
                file.lost = (file.untouched, len(file.content))
            raise
        if file is None:
            self._sync_names(handle.path)
        elif file.lost is None:
            file.safe, file.untouched = file.content, len(file.content)
        else:
            start, end = file.lost
            file.safe = file.content[:start] + bytes(end - start) + file.content[end:]
            file.untouched = start

    def _changed(self, path: str) -> None:
        self.unsynced.setdefault(_above(path), set()).add(path)

    def _sync_names(self, folder: str) -> None:
        for path in self.unsynced.pop(folder, ()):
            if path in self.folders:
                self.safe_folders.add(path)
            elif path in self.seen:
                self.safe_names[path] = self.seen[path]
            else:
                self.safe_names.pop(path, None)

    def fchmod(self, number: int, mode: int) -> None:
        file = self.handles[number].file
        assert file is not None
        file.mode = mode

    def fstat(self, number: int) -> SimpleNamespace:
        file = self.handles[number].file
        assert file is not None
        return SimpleNamespace(st_size=len(file.content), st_mode=stat.S_IFREG | file.mode)

    def ftruncate(self, number: int, size: int) -> None:
        handle = self.handles[number]
        file = handle.file
        assert file is not None
        if size == len(file.content):
            return
        self.step(handle.path)
        file.content, file.untouched = file.content[:size], min(file.untouched, size)
        if file.lost is not None:
            file.lost = (file.lost[0], size) if file.lost[0] < size else None

    def lseek(self, number: int, position: int, how: int) -> None:
        assert how == os.SEEK_SET
        self.handles[number].position = position

    def replace(self, source: Path | str, target: Path | str) -> None:
        self.step(str(target))
        self.seen[str(target)] = self.seen.pop(str(source))
        self._changed(str(source))
        self._changed(str(target))

    def unlink(self, path: Path | str) -> None:
        if str(path) not in self.seen:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))
        self.step(str(path))
        del self.seen[str(path)]
        self._changed(str(path))

    def mkdir(self, path: Path | str, mode: int = 0o700) -> None:
        self.step(str(path))
        self.folders.add(str(path))
        self._changed(str(path))

    def listdir(self, folder: Path | str) -> list[str]:
        inside = f"{folder}/"
        self.look(str(folder))
        if str(folder) not in self.folders:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(folder))
        paths = (*self.seen, *self.folders)
        return [p[len(inside) :] for p in paths if p.startswith(inside) and "/" not in p[len(inside) :]]

    def stat(self, path: Path | str) -> SimpleNamespace:
        self.look(str(path))
        if str(path) in self.folders:
            return SimpleNamespace(st_mode=stat.S_IFDIR | 0o700)
        file = self.seen.get(str(path))
        if file is None:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))
        return SimpleNamespace(st_mode=stat.S_IFREG | file.mode, st_size=len(file.content))


_REFUSALS = ((errno.ENOSPC, "No space left on device"), (errno.EIO, "Input/output error"))
_BLINDNESS = tuple((number, os.strerror(number)) for number in (errno.EIO, errno.ESTALE, errno.EACCES))


def _above(path: str) -> str:
    return path.rpartition("/")[0]
