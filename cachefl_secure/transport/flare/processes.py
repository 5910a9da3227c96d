"""FLARE's server at the coordinator and FLARE's client at a silo, as supervised children."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from cachefl_secure.errors import ConfigError, TransportError
from cachefl_secure.federation.silo_files import SiloFiles
from cachefl_secure.federation.state_dir import StateDir
from cachefl_secure.transport.flare import kits, reports
from cachefl_secure.transport.flare.children import OUTPUT, Child
from cachefl_secure.transport.flare.engine import FlareEngine, require_nvflare
from cachefl_secure.transport.flare.enrolling import engine_of, refresh_coordinator, refresh_site
from cachefl_secure.transport.flare.reaching import Reached

Tell = Callable[[str], None]
"""A sentence to the operator of this machine."""

_SERVER = "FLARE's server"
_READY_SECONDS, _LOOK_SECONDS = 60.0, 0.2
_FIRST_PAUSE, _LONGEST_PAUSE = 2.0, 60.0
_STEADY_SECONDS = 120.0
"""A site that ran this long before it died is restarted at once."""

_RUN, _KEPT_RUNS = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z"), 10

_SERVER_LOCK, _SITE_LOCK = ".flare-server.lock", ".flare-site.lock"


class ServerProcess:
    """FLARE's server of a coordinator's directory, while the context lasts.

    Raises (on entering):
        MissingExtra: FLARE is not installed.
        ConfigError: no engine was founded here, a certificate has ended, or another process runs this server.
        TransportError: the port is taken, or the server ended before it was ready.
    """

    def __init__(self, state: StateDir) -> None:
        self._state = state
        self._held = contextlib.ExitStack()
        self._child: Child | None = None

    def __enter__(self) -> Self:
        require_nvflare()
        with contextlib.ExitStack() as held:
            held.enter_context(self._state.lock(_SERVER_LOCK))
            refresh_coordinator(self._state)
            engine, folder = engine_of(self._state), self._state.path(kits.SERVER)
            check_port_free(engine)
            # Jobs that a killed server left would be run again. What came of them stands in the orders' folders.
            for left in (folder / "jobs", folder / "snapshots", *_run_folders(folder)):
                shutil.rmtree(left, ignore_errors=True)
            self._child = Child("server", folder)
            held.callback(self._child.stop)
            _wait_until_ready(self._child, engine, folder)
            self._held = held.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    @property
    def exit_reason(self) -> str | None:
        """How it ended before it was told to; None while it runs."""
        return self._child.exit_reason if self._child is not None else "not started"


def server_is_running(state: StateDir) -> bool:
    """Whether another process of this machine runs the directory's server."""
    try:
        with state.lock(_SERVER_LOCK):
            return False
    except ConfigError:
        return True


class SiteProcess:
    """FLARE's client of a silo's directory. It connects outwards only, and waits for jobs.

    As a context manager it runs in the background; ``run`` is for a command that does nothing else. What its
    operator has to know is told: when it ends and is started again, and what the silo declined and why.

    Raises (on entering):
        MissingExtra: FLARE is not installed.
        ConfigError: not a silo's directory, its certificate has ended, or another process serves it.
        TransportError: the coordinator's package was not installed yet.
    """

    def __init__(self, directory: Path, *, tell: Tell) -> None:
        self._files = SiloFiles.open(directory)
        self._folder = self._files.state.path(kits.SITE)
        self._tell = tell
        self._stop = threading.Event()
        self._held = contextlib.ExitStack()
        self._child: Child | None = None

    @property
    def pid(self) -> int | None:
        """Of the process that runs now."""
        return self._child.pid if self._child is not None else None

    def __enter__(self) -> Self:
        require_nvflare()
        with contextlib.ExitStack() as held:
            held.enter_context(self._files.state.lock(_SITE_LOCK))
            refresh_site(self._files.state)
            for old in _run_folders(self._folder)[:-_KEPT_RUNS]:
                shutil.rmtree(old, ignore_errors=True)
            said = reports.Tail(self._folder / kits.SITE_REPORTS)
            list(said.lines())  # of earlier runs
            self._engine = engine_of(self._files.state)
            self._start()
            supervisor = threading.Thread(target=self._supervise, args=(said,), name="site", daemon=True)
            supervisor.start()
            held.callback(supervisor.join)
            held.callback(self._stop.set)  # the last in is the first out
            self._held = held.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    def _start(self) -> None:
        self._started = time.monotonic()
        self._child = Child("site", self._folder, [self._files.silo])

    def _supervise(self, said: reports.Tail) -> None:
        pause, reached = _FIRST_PAUSE, Reached(self._engine, self._folder, self._tell)
        while not self._stop.wait(_LOOK_SECONDS):
            self._pass_on(said)
            reached.look()
            child = self._child
            if child is None or (reason := child.exit_reason) is None:
                continue
            child.stop()
            pause = _FIRST_PAUSE if time.monotonic() - self._started > _STEADY_SECONDS else pause
            self._tell(f"the connection {reason}; again in {pause:.0f} s (see {self._folder / OUTPUT})")
            if self._stop.wait(pause):
                break
            pause = min(2 * pause, _LONGEST_PAUSE)
            self._start()
        if self._child is not None:
            self._child.stop()
        self._pass_on(said)

    def _pass_on(self, said: reports.Tail) -> None:
        try:
            for line in said.lines():
                if isinstance(line, reports.Told):
                    self._tell(line.text)
        except TransportError as error:
            self._tell(str(error))


def _run_folders(folder: Path) -> list[Path]:
    """What FLARE keeps of single jobs, with a log in each, the oldest first."""
    runs = [path for path in folder.iterdir() if _RUN.match(path.name)] if folder.is_dir() else []
    return sorted(runs, key=lambda path: path.stat().st_mtime)


def check_port_free(engine: FlareEngine) -> None:
    """
    Raises:
        TransportError: another program has the port, or this user may not use it. FLARE itself would wait for
            it, or share it, without a word.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # not those that are only closing
        try:
            probe.bind((engine.listens_on, engine.port))
            probe.listen()
        except OSError as error:
            reason = f"port {engine.port} of this machine cannot be used: {error.strerror}"
            raise TransportError(_SERVER, reason) from None


def _wait_until_ready(child: Child, engine: FlareEngine, folder: Path) -> None:
    until = time.monotonic() + _READY_SECONDS
    while True:
        if (reason := child.exit_reason) is not None:
            raise TransportError(_SERVER, f"{reason} before it was ready; see {folder / OUTPUT}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", engine.port), timeout=1.0):
            return
        if time.monotonic() > until:
            raise TransportError(
                _SERVER, f"was not ready after {_READY_SECONDS:.0f} s; see {folder / OUTPUT}"
            )
        time.sleep(_LOOK_SECONDS)
