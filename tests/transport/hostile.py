"""Stores that nobody should trust: an ``ObjectStore`` that loses, delays, cuts, swaps and brings back, as seeded.

``mischief`` is the chance of one at each call. What a call does is drawn from ``random.Random(seed)``, so that a
test that fails fails again.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

from cachefl_secure.errors import TransportError
from cachefl_secure.transport.store import ObjectStore

_UNIQUE = itertools.count()


def memory_url() -> str:
    """A place of its own in this process's memory."""
    return f"memory://test-{next(_UNIQUE)}/store"


@dataclass
class Seen:
    """Everything that ever entered the store or was asked of it."""

    puts: list[tuple[str, bytes]] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)


class WatchedStore(ObjectStore):
    """Keeps what is put and removed."""

    __setattr__ = object.__setattr__  # the genuine one is frozen

    def __init__(self, url: str, seen: Seen | None = None) -> None:
        genuine = ObjectStore.open(url)
        super().__init__(*(getattr(genuine, name) for name in ObjectStore.__slots__))
        self.seen = seen if seen is not None else Seen()

    def put(self, name: str, *pieces: bytes | memoryview) -> None:
        self.seen.puts.append((name, b"".join(pieces)))
        super().put(name, *pieces)

    def remove(self, name: str) -> None:
        self.seen.removed.append(name)
        super().remove(name)

    def everything(self) -> dict[str, bytes]:
        """What lies in the store now."""
        found: dict[str, bytes] = {}
        waiting = [""]
        while waiting:
            folder = waiting.pop()
            for name in ObjectStore.names(self, folder):
                path = f"{folder}/{name}".lstrip("/")
                found[path] = ObjectStore.get(self, path, limit_bytes=1 << 30) or b""
            waiting += [f"{folder}/{name}".lstrip("/") for name in ObjectStore.folders(self, folder)]
        return found


class HostileStore(WatchedStore):
    """As the module says. Contact cards are left alone if ``spare_cards``: without them nobody starts."""

    def __init__(self, url: str, seed: int, *, mischief: float, spare_cards: bool = True) -> None:
        super().__init__(url)
        self._random, self._mischief, self._spare = random.Random(seed), mischief, spare_cards
        self._past: dict[str, bytes] = {}
        self._later: list[tuple[int, str, bytes]] = []
        self._calls, self._puts = 0, 0

    def calm(self) -> None:
        """From here on it is an honest store, with what is in it."""
        self._mischief = 0.0

    def put(self, name: str, *pieces: bytes | memoryview) -> None:
        content = b"".join(pieces)
        self._happen(name)
        self._past[name] = content
        self._puts += 1
        kind = self._kind(name, "lose", "raise", "raise after", "delay", "cut", "cut")
        if self._mischief and not self._spared(name) and self._puts % 3 == 0:
            kind = "lose"
        if kind == "raise":
            raise TransportError(self.url, "refused")
        if kind in ("lose", "delay"):
            self.seen.puts.append((name, content))
        if kind == "delay":
            self._later.append((self._calls + self._random.randrange(1, 20), name, content))
        if kind == "cut":
            self._later.append((self._calls + self._random.randrange(1, 20), name, content))
            super().put(name, content[: self._random.randrange(len(content))])
            self.seen.puts[-1] = (name, content)
        if kind in ("", "raise after"):
            super().put(name, content)
        if kind == "raise after":
            raise TransportError(self.url, "timed out")

    def get(self, name: str, *, limit_bytes: int) -> bytes | None:
        self._happen(name)
        content = super().get(name, limit_bytes=limit_bytes)
        match self._kind(name, "none", "another", "past", "cut"):
            case "none":
                return None
            case "another":
                return self._random.choice([content, *self._past.values()])
            case "past":
                return self._past.get(name, content)
            case "cut" if content:
                return content[: self._random.randrange(len(content))]
        return content

    def has(self, name: str) -> bool:
        self._happen(name)
        kind = self._kind(name, "yes", "no")
        return kind == "yes" or (kind != "no" and super().has(name))

    def names(self, folder: str, *, drafts: bool = False) -> list[str]:
        self._happen(folder)
        found = super().names(folder, drafts=drafts)
        match self._kind(folder, "none", "some", "stale", "twice", "turned"):
            case "none":
                return []
            case "some":
                return [name for name in found if self._random.random() < 0.5]
            case "stale":
                past = [name.rpartition("/") for name in self._past]
                return [*found, *(name for at, _, name in past if at == folder)]
            case "twice":
                return [*found, *found]
            case "turned":
                self._random.shuffle(found)
        return found

    def folders(self, folder: str) -> list[str]:
        self._happen(folder)
        return super().folders(folder)

    def remove(self, name: str) -> None:
        if self._kind(name, "keep", "bring back") == "bring back" and name in self._past:
            self._later.append((self._calls + self._random.randrange(1, 40), name, self._past[name]))
        elif self._kind(name, "keep") == "":
            super().remove(name)

    def _spared(self, name: str) -> bool:
        return self._spare and "/contacts" in name

    def _kind(self, name: str, *kinds: str) -> str:
        if self._spared(name) or self._random.random() >= self._mischief:
            return ""
        return self._random.choice(kinds)

    def _happen(self, name: str) -> None:
        """What was put off happens; and at times the store is away."""
        self._calls += 1
        due = [late for late in self._later if late[0] <= self._calls]
        self._later = [late for late in self._later if late[0] > self._calls]
        for _, late, content in due:
            ObjectStore.put(self, late, content)
        if self._kind(name, "away", "", "") == "away":
            raise TransportError(self.url, "is away")


class Clock:
    """In place of ``time`` in the mailbox: while the coordinator waits, everybody else has a turn."""

    def __init__(self, everybody: Callable[[], None]) -> None:
        self._now, self.everybody = 0.0, everybody

    def monotonic(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        self._now += max(seconds, 0.001)
        self.everybody()

    def as_module(self) -> SimpleNamespace:
        return SimpleNamespace(monotonic=self.monotonic, sleep=self.sleep)
