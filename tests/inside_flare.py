"""What happens inside the processes that FLARE starts for a job, with the faults of ``party`` built in.

FLARE starts one at the server and one at every site, by itself, so nothing can be handed to them: the parties of a
test run with a folder of ``hook`` on their PYTHONPATH, in which Python's own ``sitecustomize`` calls ``begin``.
Nothing of the package knows of it.

A server whose machine is another's is one, too: with a file of old requests (``Paths.replayed``) the coordinator's
job sends all of them again, before each message of its round, and every message of its round twice.
"""

from __future__ import annotations

import json
import queue
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import torch

from cachefl_secure.errors import LocalProtocolError
from cachefl_secure.federation import letters
from cachefl_secure.federation.silo_round import SiloService
from cachefl_secure.names import SiloId
from cachefl_secure.transport.serving import Watch
from tests.party import (
    PATCH,
    Clock,
    Faults,
    Paths,
    Points,
    fixed_updates,
    trainer_of,
    watch_answers,
    watch_records,
)

COORDINATOR = "coordinator"
LARGE, LARGE_BYTES = "large", 64 << 20
"""A phase of its own: the answer is the request turned round."""
_SITE_JOB, _SERVER_JOB = "worker_process", "runner_process"
_TRAINERS = {"recognisable": trainer_of, "fixed": fixed_updates}
_BEFORE_THE_ROUND = (letters.HELLO, letters.SYNC)

_HOOK = """
import sys
if any(word.endswith(({site!r}, {server!r})) for word in sys.orig_argv):
    from tests import inside_flare
    inside_flare.begin(sys.orig_argv, {work!r}, {trainer!r})
"""


def hook(folder: Path, work: Path, trainer: str) -> Path:
    """A folder for PYTHONPATH, for parties whose ``Paths`` are of ``work``."""
    folder.mkdir()
    text = _HOOK.format(site=_SITE_JOB, server=_SERVER_JOB, work=str(work), trainer=trainer)
    (folder / "sitecustomize.py").write_text(text)
    return folder


def place_faults(paths: Paths, party: str, faults: Faults) -> None:
    """For the next job of this party."""
    gate = str(faults.gate) if faults.gate else None
    paths.faults(party).write_text(json.dumps(asdict(faults) | {"gate": gate}))


def begin(words: Sequence[str], work: str, trainer: str) -> None:
    """In a process with this command line, before anything of FLARE is there."""
    torch.set_num_threads(1)
    paths = Paths(Path(work))
    if any(word.endswith(_SERVER_JOB) for word in words):
        _watch_coordinator(_Points(paths, COORDINATOR), paths)
    else:
        silo = words[words.index("-c") + 1]
        _watch_silo(_Points(paths, silo, paths.silent(silo)), paths.replies(silo), silo, trainer)


class _Points(Points):
    """A process dies by its faults once: FLARE's next one, for the next job, is sound."""

    def __init__(self, paths: Paths, party: str, silent: Path | None = None) -> None:
        self._file = paths.faults(party)
        super().__init__(_faults(self._file), silent)

    def die(self) -> None:
        self._file.unlink()
        super().die()


def _faults(file: Path) -> Faults:
    if not file.exists():
        return Faults()
    found: dict[str, Any] = json.loads(file.read_text())
    return Faults(**found | {"gate": Path(found["gate"]) if found["gate"] else None})


def _watch_silo(points: _Points, replies: Path, silo: str, trainer: str) -> None:
    from cachefl_secure.transport.flare import executor

    watch_answers(points, replies)
    PATCH.setattr(executor, "SiloService", partial(SiloService, trainer=_TRAINERS[trainer](SiloId(silo))))
    handle = Watch.handle

    def handling(self: Watch, phase: str, content: bytes) -> bytes:
        return content[::-1] if phase == LARGE else handle(self, phase, content)

    PATCH.setattr(Watch, "handle", handling)


def _watch_coordinator(points: _Points, paths: Paths) -> None:
    from cachefl_secure.transport.flare import controller

    channel, waiting = controller.TaskChannel, set[SiloId]()
    exchange, send = channel.exchange, channel._send
    hostile = _Hostile(paths) if paths.replayed.exists() else None

    def exchanging(
        self: controller.TaskChannel, phase: str, requests: Mapping[SiloId, bytes], deadline_seconds: float
    ) -> dict[SiloId, bytes]:
        waiting.clear()
        if hostile is not None:
            hostile.before(partial(exchange, self), phase, requests)
        _note_requests(paths, phase, requests)
        points.phase = phase
        points.reach("before")
        answers = exchange(self, phase, requests, deadline_seconds)
        points.reach("after")
        points.phase = ""
        if hostile is not None:
            hostile.after(partial(exchange, self), phase, requests, answers)
        return answers

    def sending(
        self: controller.TaskChannel,
        phase: str,
        silo: SiloId,
        content: bytes,
        deadline_seconds: float,
        answers: queue.SimpleQueue[tuple[SiloId, bytes | None]],
    ) -> object:
        waiting.add(silo)
        noting: Any = _Noting(answers, waiting)
        task = send(self, phase, silo, content, deadline_seconds, noting)
        points.reach("during")
        return task

    PATCH.setattr(channel, "exchange", exchanging)
    PATCH.setattr(channel, "_send", sending)
    PATCH.setattr(controller, "time", _Waiting(waiting, paths))
    watch_records(points)


class _Noting:
    """A queue of answers that notes who has answered."""

    def __init__(self, inner: queue.SimpleQueue[Any], waiting: set[SiloId]) -> None:
        self._inner, self._waiting = inner, waiting

    def put(self, answer: tuple[SiloId, bytes | None]) -> None:
        self._inner.put(answer)
        self._waiting.discard(answer[0])


class _Waiting(Clock):
    """Every deadline has passed as soon as only such silos are waited for of which nothing will come."""

    def __init__(self, waiting: set[SiloId], paths: Paths) -> None:
        super().__init__()
        self._silos, self._paths = waiting, paths

    def monotonic(self) -> float:
        missing = set(self._silos)
        if missing and all(self._paths.silent(silo).exists() for silo in missing):
            self.ahead_seconds += 1e6
        return super().monotonic()


# --- what was sent, and sends it again


def _note_requests(paths: Paths, phase: str, requests: Mapping[SiloId, bytes]) -> None:
    with paths.requests.open("a") as file:
        sent = {silo: b64encode(content).decode() for silo, content in requests.items()}
        file.write(json.dumps({"phase": phase, "sent": sent}) + "\n")


class _Hostile:
    """Sends what was sent in earlier rounds and attempts, and notes what the silos say to it."""

    def __init__(self, paths: Paths) -> None:
        self._old = [json.loads(line) for line in paths.replayed.read_text().splitlines()]
        self._notes = paths.hostile
        self._is_large_sent = False

    def before(self, exchange: Any, during: str, requests: Mapping[SiloId, bytes]) -> None:
        if during in _BEFORE_THE_ROUND:
            return
        self._send_large(exchange, requests)
        for old in self._old:
            phase, sent = old["phase"], {SiloId(silo): b64decode(text) for silo, text in old["sent"].items()}
            answers = exchange(phase, sent, 120.0)
            for silo in sent:
                self._note(kind="old", during=during, phase=phase, silo=silo, **_said(answers.get(silo)))

    def after(
        self, exchange: Any, phase: str, requests: Mapping[SiloId, bytes], answers: Mapping[SiloId, bytes]
    ) -> None:
        if phase in _BEFORE_THE_ROUND:
            return
        again = exchange(phase, requests, 120.0)
        for silo in requests:
            self._note(kind="twice", phase=phase, silo=silo, is_same=again.get(silo) == answers.get(silo))

    def _send_large(self, exchange: Any, requests: Mapping[SiloId, bytes]) -> None:
        if self._is_large_sent:
            return
        self._is_large_sent = True
        silo, content = min(requests), sha256(b"large").digest() * (LARGE_BYTES // 32)
        answer = exchange(LARGE, {silo: content}, 300.0).get(silo)
        self._note(kind="large", silo=silo, is_turned=answer == content[::-1])

    def _note(self, **fields: object) -> None:
        with self._notes.open("a") as file:
            file.write(json.dumps(fields) + "\n")


def _said(raw: bytes | None) -> dict[str, object]:
    if raw is None:
        raise LocalProtocolError("a silo answers everything, if only by declining")
    return {"declined": msgspec.msgpack.decode(raw, type=letters.Reply).declined}


def notes_of(paths: Paths, kind: str) -> Iterator[dict[str, Any]]:
    """What a hostile coordinator noted."""
    for line in paths.hostile.read_text().splitlines():
        if (note := json.loads(line))["kind"] == kind:
            yield note
