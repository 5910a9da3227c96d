"""Coordinator and silos in one process: a thread and a queue for each silo, real bytes."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from cachefl_secure.errors import CacheflError
from cachefl_secure.federation.ports import Handler
from cachefl_secure.names import SiloId

_POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class _Request:
    phase: str
    content: bytes
    answers: queue.SimpleQueue[tuple[SiloId, bytes | None]]


@dataclass(slots=True)
class _Line:
    """One silo's end of the wire."""

    silo: SiloId
    requests: queue.SimpleQueue[_Request] = field(default_factory=queue.SimpleQueue)
    failure: Exception | None = None

    def serve(self, handler: Handler, *, stop: threading.Event) -> None:
        """Answers until ``stop``. A handler that raises gives no answer, as over any network."""
        while not stop.is_set():
            try:
                request = self.requests.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                continue
            reply: bytes | None = None
            try:
                reply = handler(request.phase, request.content)
            except Exception as failure:  # anything at all: the silo's own failure, kept for its operator
                self.failure = failure
            request.answers.put((self.silo, reply))


class InProcessNetwork:
    """The coordinator's channel to handlers that run in threads of this process.

    Use as a context manager; leaving it stops every thread. ``failures`` holds what silos raised
    instead of answering: the operator of this machine may see it, a coordinator elsewhere could not.
    """

    def __init__(self, handlers: Mapping[SiloId, Handler]) -> None:
        self._stop = threading.Event()
        self._lines = {silo: _Line(silo) for silo in handlers}
        self._threads = [
            threading.Thread(
                target=line.serve, args=(handlers[silo],), kwargs={"stop": self._stop}, name=silo, daemon=True
            )
            for silo, line in self._lines.items()
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()  # until it has answered: what it works on must not be unlocked under it

    @property
    def failures(self) -> dict[SiloId, Exception]:
        """The last failure of each silo that had one, removed as it is read."""
        found = {silo: line.failure for silo, line in self._lines.items() if line.failure is not None}
        for line in self._lines.values():
            line.failure = None
        return found

    def exchange(
        self, phase: str, requests: Mapping[SiloId, bytes], deadline_seconds: float
    ) -> dict[SiloId, bytes]:
        """See ``ports.CoordinatorChannel``. A silo that does not run in this process does not answer."""
        requests = {silo: content for silo, content in requests.items() if silo in self._lines}
        # A queue of its own for each exchange, so that a late answer is never taken for another.
        answers: queue.SimpleQueue[tuple[SiloId, bytes | None]] = queue.SimpleQueue()
        for silo, content in requests.items():
            self._lines[silo].requests.put(_Request(phase, content, answers))
        return self._collect(answers, len(requests), time.monotonic() + deadline_seconds)

    def _collect(
        self, answers: queue.SimpleQueue[tuple[SiloId, bytes | None]], expected: int, until: float
    ) -> dict[SiloId, bytes]:
        received: dict[SiloId, bytes] = {}
        for _ in range(expected):
            try:
                silo, reply = answers.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if reply is not None:
                received[silo] = reply
        return received


def reasons(failures: Mapping[SiloId, Exception]) -> dict[SiloId, str]:
    """A sentence for each failure of ours; anything else by its type only (its text might hold data)."""
    return {
        silo: str(failure) if isinstance(failure, CacheflError) else type(failure).__name__
        for silo, failure in failures.items()
    }
