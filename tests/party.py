"""One party in a process of its own, running the commands that its operator runs, with a fault built in.

What a kill -9 leaves behind only a process that was killed can show. A party dies, or waits, at a named point of a
phase; the phases are those of a round, and "record" is where the record is committed, at either side.

    before    nothing of the phase was done
    during    after the first durable write of the phase; at the coordinator between two requests or two writes
    after     all is done; a silo's reply is on its disk and not in the store
    sent      the reply is in the store; at the coordinator all requests are
    torn      half of the reply is in the store, under the name that it is written by

Every reply is noted before it can leave: what was asked, and what was answered.

A deadline passes when only such silos are missing of which it is known that nothing will come: those that died or wait
at a point, or that the test names. So no test sits through a deadline, and none is too short on a busy machine.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo
from functools import partial
from hashlib import sha256
from pathlib import Path
from threading import Event

import msgspec
import numpy as np
import pytest
import torch

from cachefl_secure import durable
from cachefl_secure.cache.model import CacheModel
from cachefl_secure.crypto.hpke import TransportKey
from cachefl_secure.crypto.sign import SigningKey
from cachefl_secure.errors import TransportError
from cachefl_secure.federation import chain, letters, state_dir
from cachefl_secure.federation.silo_attempt import Trainer
from cachefl_secure.federation.silo_round import SiloService
from cachefl_secure.names import FederationId, PublicKeyHex, SiloId
from cachefl_secure.transport import mailbox, mailbox_federation, store
from cachefl_secure.transport.parcels import Sender
from cachefl_secure.updates import IntegerUpdate, PrivateUpdate
from cachefl_secure_cli.main import app
from tests.claims import REPOSITORY

RECORD = "record"
PATCH = pytest.MonkeyPatch()  # for the rest of the process
_NEW_NETWORK, _NEW_USER = 0x40000000, 0x10000000  # CLONE_NEWNET, CLONE_NEWUSER of Linux


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What goes wrong in one process. Points are written ``phase:where``."""

    die_at: str = ""
    comes_back: bool = False
    """Its coordinator waits for it: it is started again, or let go."""
    hold_at: str = ""
    gate: Path | None = None
    """Where a held process waits for a file of this name; beside it it leaves one that it has come so far."""
    clock_days: int = 0
    """How far its clock is ahead."""
    tries: int = 0
    """Looks at a request that does not verify, if fewer than usual."""
    listener: int = 0
    """A port of this machine that somebody listens at: the process says whether it can reach it."""
    own_network: bool = False
    """In a network namespace of its own, in which there is nothing."""


def part_of(silo: SiloId | str) -> float:
    """Every entry of this silo's updates, but for a little noise: a sum tells who is in it."""
    return float(2.0 ** int(silo.rpartition("-")[2])) / 32


@dataclass(frozen=True)
class Paths:
    """Where a process writes what a test wants to know of it."""

    work: Path
    hooks: Path | None = None
    """Comes first on the PYTHONPATH of what a party starts (``inside_flare``)."""

    @property
    def python_path(self) -> str:
        """PYTHONPATH of what a party starts."""
        folders = [*filter(None, [self.hooks]), REPOSITORY, REPOSITORY / "cli"]
        return os.pathsep.join(map(str, folders))

    def said(self, number: int) -> Path:
        """What the process prints."""
        return self.work / f"{number:03d}.said"

    def replies(self, silo: str) -> Path:
        """A line for every reply."""
        return self.work / f"{silo}.replies"

    def gate(self, name: str) -> Path:
        """What a held process waits for."""
        return self.work / f"{name}.gate"

    def faults(self, party: str) -> Path:
        """What goes wrong in the next job of this party (``inside_flare``)."""
        return self.work / f"{party}.faults"

    @property
    def requests(self) -> Path:
        """A line for every exchange of a coordinator at FLARE."""
        return self.work / "requests"

    @property
    def replayed(self) -> Path:
        """Lines of ``requests`` that a hostile coordinator sends again."""
        return self.work / "replayed"

    @property
    def hostile(self) -> Path:
        """What silos said to a hostile coordinator."""
        return self.work / "hostile"

    def silent(self, silo: str) -> Path:
        """There if nothing will come from this silo for now."""
        return self.work / f"{silo}.silent"


def run(arguments: list[str], paths: Paths, number: int, faults: Faults) -> None:
    """A command of the command line, to its end."""
    if paths.hooks is not None:
        os.environ["PYTHONPATH"] = paths.python_path
    said = paths.said(number)
    with said.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    # In the background of a shell, and under nohup, these are ignored, and that is inherited.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if faults.own_network:
        without_network()
    if faults.listener:
        print("the network answers" if _answers(faults.listener) else "there is no network", flush=True)
    if faults.clock_days:
        _set_clock(timedelta(days=faults.clock_days))
    if arguments[0] == "round":
        _watch_coordinator(Points(faults), paths)
    if arguments[0] == "join":
        silo = Path(arguments[-1]).name
        PATCH.setattr(mailbox, "_TRIES", faults.tries or mailbox._TRIES)
        _watch_silo(Points(faults, paths.silent(silo)), paths.replies(silo), trainer_of(silo))
    app(arguments)


class Points:
    """Where this process is, and what happens to it there."""

    def __init__(self, faults: Faults, silent: Path | None = None) -> None:
        self._faults, self._silent, self.phase = faults, silent, ""

    def is_here(self, where: str) -> bool:
        return bool(self.phase) and self._faults.die_at == f"{self.phase}:{where}"

    def reach(self, where: str) -> None:
        if self.is_here(where):
            self.die()
        gate = self._faults.gate
        if gate is None or not self.phase or self._faults.hold_at != f"{self.phase}:{where}" or gate.exists():
            return
        if self._silent is not None and not self._faults.comes_back:
            self._silent.touch()
        gate.with_suffix(".reached").touch()
        while not gate.exists():
            time.sleep(0.02)
        if self._silent is not None:
            self._silent.unlink(missing_ok=True)

    def die(self) -> None:
        """As a power cut would end it: nothing is flushed, closed or tidied up."""
        if self._silent is not None and not self._faults.comes_back:
            self._silent.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def trainer_of(silo: str) -> Trainer:
    """Another update each time, as with real noise, and always recognisable as this silo's."""

    def train(model: CacheModel, *_: object) -> PrivateUpdate:
        noise = np.random.default_rng().normal(scale=0.02, size=model.cache_keys.numel())
        return PrivateUpdate(part_of(silo) + noise)

    return Trainer(lambda *_: None, train)


def fixed_updates(silo: SiloId) -> Trainer:
    """The same integers at every run, another vector for every silo: what a generator with a seed stands for."""
    generator = np.random.default_rng(int(silo.rpartition("-")[2]))

    def train(*_: object) -> IntegerUpdate:
        return IntegerUpdate(generator.integers(-1000, 1000, 128).astype(np.int32))

    return Trainer(lambda *_: None, train)


def watch_answers(points: Points, replies: Path) -> None:
    """Notes every reply of this process's silo, and reaches the points around it."""
    answer = SiloService.handle

    def watched(self: SiloService, phase: str, content: bytes) -> bytes:
        has_record = phase == letters.SYNC and msgspec.msgpack.decode(content, type=letters.Sync).rounds
        points.phase = RECORD if has_record else phase
        points.reach("before")
        reply = answer(self, phase, content)
        note = {"phase": phase, "asked": sha256(content).hexdigest(), "reply": sha256(reply).hexdigest()}
        declined = msgspec.msgpack.decode(reply, type=letters.Reply).declined
        with replies.open("a") as file:
            file.write(json.dumps(note | {"declined": declined}) + "\n")
        points.reach("after")
        return reply

    PATCH.setattr(SiloService, "handle", watched)
    watch_writes(points)


def _watch_silo(points: Points, replies: Path, trainer: Trainer) -> None:
    put, write = store.ObjectStore.put, store.ObjectStore._write

    def putting(self: store.ObjectStore, name: str, *pieces: bytes | memoryview) -> None:
        put(self, name, *pieces)
        if "/from/" in name:
            points.reach("sent")

    def writing(self: store.ObjectStore, draft: str, pieces: Sequence[bytes | memoryview]) -> None:
        if points.is_here("torn") and "/from/" in draft:
            content = b"".join(pieces)
            write(self, draft, [content[: len(content) // 2]])
            points.die()
        write(self, draft, pieces)

    watch_answers(points, replies)
    PATCH.setattr(store.ObjectStore, "put", putting)
    PATCH.setattr(store.ObjectStore, "_write", writing)
    PATCH.setattr(mailbox_federation, "SiloService", partial(SiloService, trainer=trainer))


def _watch_coordinator(points: Points, paths: Paths) -> None:
    exchange, put = mailbox.CoordinatorMailbox.exchange, store.ObjectStore.put
    clock, asked = Clock(), set[SiloId]()
    collect = mailbox.CoordinatorMailbox._collect

    def exchanging(
        self: mailbox.CoordinatorMailbox,
        phase: str,
        requests: Mapping[SiloId, bytes],
        deadline_seconds: float,
    ) -> dict[SiloId, bytes]:
        nonlocal asked
        points.phase, asked = phase, set(requests)
        points.reach("before")
        answers = exchange(self, phase, requests, deadline_seconds)
        points.reach("after")
        points.phase = ""
        return answers

    def putting(self: store.ObjectStore, name: str, *pieces: bytes | memoryview) -> None:
        put(self, name, *pieces)
        points.reach("during")

    def collecting(self: mailbox.CoordinatorMailbox, exchange: mailbox._Exchange) -> list[TransportError]:
        points.reach("sent")
        troubles = collect(self, exchange)
        missing = asked - set(exchange.answers)
        if missing and all(paths.silent(silo).exists() for silo in missing):
            clock.ahead_seconds += 1e6
        return troubles

    PATCH.setattr(mailbox.CoordinatorMailbox, "exchange", exchanging)
    PATCH.setattr(mailbox, "time", clock)
    PATCH.setattr(mailbox.CoordinatorMailbox, "_collect", collecting)
    PATCH.setattr(store.ObjectStore, "put", putting)
    watch_records(points)


def watch_records(points: Points) -> None:
    """Reaches the points around a coordinator's record."""
    extend = chain.Chain.extend

    def extending(self: chain.Chain, raw: bytes, aggregate: bytes, seen: None) -> object:
        points.phase = RECORD
        points.reach("before")
        record = extend(self, raw, aggregate, seen)
        points.reach("after")
        points.phase = ""
        return record

    PATCH.setattr(chain.Chain, "extend", extending)
    watch_writes(points, only=RECORD)


def echo(url: str, silo: SiloId, secrets: tuple[bytes, bytes], coordinator_key: PublicKeyHex) -> None:
    """A silo's end of a mailbox that sends back, turned round, whatever it gets. Secrets: signing, transport key."""
    federation, (signing_key, transport_key) = FederationId(Path(url).parts[-1]), secrets
    sender = Sender(federation, silo, SigningKey(signing_key), TransportKey(transport_key))

    def turned(phase: str, content: bytes) -> bytes:
        return content[::-1]

    limit = letters.MAX_LETTER_BYTES
    opened = store.ObjectStore.open(url)
    mailbox.SiloMailbox(opened, lambda: sender, coordinator_key, limit_bytes=limit).serve(
        turned, stop=Event()
    )


class Clock:
    """For deadlines."""

    def __init__(self) -> None:
        self.ahead_seconds = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead_seconds

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


def watch_writes(points: Points, only: str = "") -> None:
    """Reaches "during" after every durable write; with ``only`` in that phase."""
    replace, append = durable.replace_file, durable.append

    def reach() -> None:
        if only in ("", points.phase):
            points.reach("during")

    def replacing(path: durable.AnyPath, content: bytes, mode: int) -> None:
        replace(path, content, mode)
        reach()

    def appending(path: durable.AnyPath, content: bytes, *, size: int) -> None:
        append(path, content, size=size)
        reach()

    PATCH.setattr(durable, "replace_file", replacing)
    PATCH.setattr(durable, "append", appending)


def _set_clock(ahead: timedelta) -> None:
    genuine: Callable[[], float] = time.time

    class Shifted(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + ahead

    PATCH.setattr(time, "time", lambda: genuine() + ahead.total_seconds())
    PATCH.setattr(state_dir, "datetime", Shifted)


def without_network() -> None:
    """This process's network is its own from now on: a loopback that is down, and nothing else.

    Raises:
        OSError: the system has no such thing, or does not allow it.
    """
    unshare = getattr(ctypes.CDLL(None, use_errno=True), "unshare", None)
    if unshare is None:
        raise OSError("no network namespaces on this system")
    if unshare(_NEW_NETWORK) and unshare(_NEW_USER | _NEW_NETWORK):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _answers(port: int) -> bool:
    """Whether somebody on this machine's loopback can be reached."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5.0).close()
    except OSError:
        return False
    return True
