"""Processes that end when this one does, however it ends.

A child holds the reading end of a pipe as its standard input. When the writing end is closed, by ``stop`` or
because the system closed the files of a process that was killed, the child ends itself and its own children
(``running``). No signal has to arrive for that, and nothing depends on the platform.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from cachefl_secure import durable

OUTPUT = "output.txt"
"""What a child prints, in its folder."""

TEMPORARY = "tmp"
"""Its temporary files, in the same folder; emptied when it starts."""

_MODULE = "cachefl_secure.transport.flare.running"
_GRACE_SECONDS, _KILL_SECONDS = 12.0, 5.0
_KEPT_BYTES = 1 << 20


class Child:
    """One process of ``running``, started on construction.

    Raises (on construction):
        OSError: it cannot be started.
    """

    def __init__(self, part: str, folder: Path, arguments: Sequence[str] = ()) -> None:
        self._folder = folder
        folder = folder.resolve()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        output = folder / OUTPUT
        if output.exists() and output.stat().st_size > _KEPT_BYTES:
            output.replace(output.with_suffix(".old.txt"))
        with durable.opened(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND) as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", _MODULE, part, str(folder), *arguments],
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=file,
                env=_environment(folder),
                cwd=folder,  # FLARE searches the working directory, to any depth, for more configuration
                start_new_session=True,  # Ctrl-C reaches the parent only, which ends the child in its order
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_reason(self) -> str | None:
        """How it ended; None while it runs."""
        code = self._process.poll()
        if code is None:
            return None
        if code < 0:
            return f"ended by {signal.Signals(-code).name}"
        return f"ended with exit code {code}"

    def wait(self, seconds: float) -> bool:
        """Whether it has ended within that time."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def stop(self) -> None:
        """Ends it and all that it started. Returns when they are gone."""
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        if not self.wait(_GRACE_SECONDS):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self.wait(_KILL_SECONDS)


def _environment(folder: Path) -> dict[str, str]:
    temporary = folder / TEMPORARY
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(mode=0o700)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("NVFL", "FL_"))}
    return (
        kept
        | {
            "NVFLARE_SECURE_LOGGING": "true",  # tracebacks without values
            "PYTHONSAFEPATH": "1",  # FLARE works in a folder that others write into: nothing is imported from there
            "PYTHONUNBUFFERED": "1",
            "TMPDIR": str(temporary),  # FLARE leaves copies of jobs there
            "MALLOC_ARENA_MAX": "4",
        }
    )
