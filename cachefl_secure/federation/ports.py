"""What a transport offers: opaque bytes to and from peers. Confidentiality never rests on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from threading import Event
from typing import Protocol

from cachefl_secure.names import SiloId

Handler = Callable[[str, bytes], bytes]
"""A silo's answer to (phase, request)."""


class CoordinatorChannel(Protocol):
    """The coordinator's end."""

    def exchange(
        self, phase: str, requests: Mapping[SiloId, bytes], deadline_seconds: float
    ) -> dict[SiloId, bytes]:
        """Sends each silo its request and returns the answers that came in time; absent = no answer."""
        ...


class SiloChannel(Protocol):
    """A silo's end."""

    def serve(self, handler: Handler, *, stop: Event) -> None:
        """Answers requests one at a time until ``stop`` is set."""
        ...


class Progress(Protocol):
    """Where work of more than two seconds reports to; the command line draws a bar."""

    def __call__(self, done: int, total: int, what: str) -> None: ...


def silent(done: int, total: int, what: str) -> None:
    """A ``Progress`` that shows nothing."""
