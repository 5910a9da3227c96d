"""A command that runs until it is told to stop."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from threading import Event
from types import FrameType


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[Event]:
    """An event that Ctrl-C or SIGTERM sets: what is being answered is finished first. A second Ctrl-C interrupts it."""
    stop = Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.set()
        signal.signal(signal.SIGINT, before[signal.SIGINT])

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, on_signal)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
