"""How a child process ends: when its parent does, with all that it started, after its last words."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable

import psutil

_TERM_SECONDS = 4.0

last_words: list[Callable[[], object]] = []
"""Called, each for a few seconds at most, before the process ends because its parent did."""


def end_with_parent() -> None:
    """From now on this process ends when its standard input does."""
    threading.Thread(target=_watch, name="parent", daemon=True).start()


def _watch() -> None:
    while os.read(0, 4096):
        pass
    for word in last_words:
        with contextlib.suppress(Exception):  # the parent is gone: there is nobody to tell
            word()
    _end_all()


def _end_all() -> None:
    """Ends this process and its descendants: asks, waits, kills."""
    descendants = psutil.Process().children(recursive=True)
    for process in descendants:
        _signal(process, signal.SIGTERM)
    _, alive = psutil.wait_procs(descendants, timeout=_TERM_SECONDS)
    for process in {*alive, *psutil.Process().children(recursive=True)}:
        _signal(process, signal.SIGKILL)
    os._exit(0)


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)
