"""A disk that fails where the seed says: every durable write of a party is a place to die or to be refused.

The two write patterns stay the real code on real files; this stands between them and the party:

    replace (StateDir)      nothing written · a torn draft left behind · done, but nobody told
    append (ledger)         nothing written · a prefix of the line · all of it, unsynced · done, but nobody told
    either                  no space, or an error when syncing: the party is told, and must not go on

What was appended and not synced is lost, in part or whole, when its party dies.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cachefl_secure.federation import state_dir
from cachefl_secure.privacy import append_only

IN_PLACE = False
"""For a mutant: files are overwritten instead of replaced, so that a death tears them."""


class Killed(BaseException):
    """The end of a process. Not an ``Exception``, so nothing in production handles it."""


@dataclass
class SimDisk:
    """All parties' files below ``root``; which party writes is the first folder of a path."""

    root: Path
    rng: random.Random
    death: float = 0.0
    """Probability that a write kills its party."""
    refusal: float = 0.0
    """Probability that a write is refused."""
    synced: dict[int, int] = field(default_factory=dict)
    """Inode -> bytes of an appended file that survive its party's death."""
    kill_at: tuple[str, int] | None = None
    """(party, number of the write or send): for enumeration instead of chance."""
    moments: dict[str, int] = field(default_factory=dict)

    def party(self, path: Path) -> str:
        return path.relative_to(self.root).parts[0]

    def moment(self, party: str) -> bool:
        """Whether the party dies here, by enumeration."""
        self.moments[party] = self.moments.get(party, 0) + 1
        return self.kill_at == (party, self.moments[party])

    def fate(self, path: Path) -> str:
        """``refuse``, ``die-before``, ``die-torn``, ``die-after``, or ``live``."""
        party = self.party(path)
        if self.moment(party):
            return "die-before"
        if self.moment(party):
            return "die-after"
        chance = self.rng.random()
        if chance < self.refusal:
            return "refuse"
        if chance < self.refusal + self.death:
            return self.rng.choice(("die-before", "die-torn", "die-after"))
        return "live"

    def adopt(self, path: Path) -> None:
        """A file that is safe on disk as it is."""
        status = path.stat()
        self.synced[status.st_ino] = status.st_size

    def on_death(self, party: str) -> None:
        """Unsynced tails go, wholly or in part."""
        for path in (self.root / party).glob("ledger/*.jsonl"):
            status = path.stat()
            kept = self.synced.get(status.st_ino, 0)
            if status.st_size > kept:
                os.truncate(path, kept + self.rng.randrange(status.st_size - kept + 1))

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Puts the disk under both write patterns of this process until ``patch`` is undone."""
        replace, write_all, with_file = (
            state_dir._write_durably,
            append_only._write_all,
            append_only._with_file,
        )
        opened: list[Path] = []

        def replace_or_fail(target: Path, content: bytes, mode: int) -> None:
            match self.fate(target):
                case "refuse":
                    raise OSError(errno.ENOSPC, "No space left on device")
                case "die-before":
                    raise Killed
                case "die-torn":
                    draft = target if IN_PLACE else target.with_name(f".{target.name}.torn")
                    draft.unlink(missing_ok=True)
                    draft.write_bytes(content[: self.rng.randrange(len(content) + 1)])
                    raise Killed
                case "die-after":
                    replace(target, content, mode)
                    raise Killed
                case _:
                    replace(target, content, mode)

        def remember_path(path: Path, flags: int, work: Callable[[int], None]) -> None:
            opened.append(path)
            try:
                with_file(path, flags, work)
            finally:
                opened.pop()

        def append_or_fail(file: int, content: bytes) -> None:
            match self.fate(opened[-1]):
                case "refuse":
                    if self.rng.random() < 0.5:  # written, but syncing failed: nobody knows
                        os.write(file, content)
                    raise OSError(errno.EIO, "Input/output error")
                case "die-before":
                    raise Killed
                case "die-torn":
                    os.write(file, content[: self.rng.randrange(len(content) + 1)])
                    raise Killed
                case "die-after":
                    write_all(file, content)
                    raise Killed
                case _:
                    write_all(file, content)

        def sync(file: int) -> None:
            status = os.fstat(file)
            self.synced[status.st_ino] = status.st_size

        patch.setattr(state_dir, "_write_durably", replace_or_fail)
        patch.setattr(append_only, "_with_file", remember_path)
        patch.setattr(append_only, "_write_all", append_or_fail)
        patch.setattr(append_only, "sync", sync)
        patch.setattr(state_dir, "sync", lambda file: None)
