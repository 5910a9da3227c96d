"""Rounds over FLARE, as a command asks for them; what happens comes back through the order's folder."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from cachefl_secure.errors import CacheflError, TransportError
from cachefl_secure.federation.coordinator_files import CoordinatorFiles
from cachefl_secure.federation.coordinator_round import RoundOutcome
from cachefl_secure.federation.ports import Progress
from cachefl_secure.federation.record import open_record, smallest_cohort
from cachefl_secure.federation.records import Records
from cachefl_secure.federation.roster_files import pending_change
from cachefl_secure.federation.rounds import ROUNDS
from cachefl_secure.federation.state_dir import StateDir, round_file
from cachefl_secure.names import SiloId
from cachefl_secure.transport.flare import kits, reports
from cachefl_secure.transport.flare.children import Child
from cachefl_secure.transport.flare.engine import require_nvflare
from cachefl_secure.transport.flare.locking import patient_lock
from cachefl_secure.transport.flare.processes import ServerProcess, Tell, server_is_running
from cachefl_secure.transport.flare.reports import Attended, Line, Order

DEFAULT_CONNECT_SECONDS = 60.0
_COMMAND_LOCK = ".flare-command.lock"
_LOOK_SECONDS = 0.1
_WAIT_FOR_END_SECONDS = 2.0
"""How long FLARE has to tell the sites that a job is over. It needs some ten more to end its own processes."""
_KEPT_ORDERS = 20


def run_flare_rounds(
    directory: Path,
    number: int,
    *,
    deadline_seconds: float,
    progress: Progress,
    tell: Tell,
    until: int | None = None,
    finished: Callable[[RoundOutcome], None] | None = None,
    give_up: bool = False,
    resume: bool = False,
    connect_seconds: float = DEFAULT_CONNECT_SECONDS,
) -> list[RoundOutcome]:
    """``number`` rounds between the coordinator of this directory and the silos that are connected, or ``until``
    a round; with ``resume`` only one that was interrupted. As ``local_federation.run_local_rounds``, but the silos are processes of their own elsewhere.

    Starts FLARE's server, unless one runs for this directory already. Silos that are not connected after
    ``connect_seconds`` take no part in any of these rounds: FLARE takes nobody into a job that has begun.

    Raises:
        MissingExtra: FLARE is not installed.
        ConfigError: the directory is not what it should be, or is in use.
        RoundAborted, CohortExhausted: a round failed; those before it stand.
        TransportError: the port is taken, or FLARE ended the job.
        LocalProtocolError: an error in the job that is not ours; FLARE's log has where.
    """
    require_nvflare()
    files = CoordinatorFiles.open(directory)
    with contextlib.ExitStack() as held:
        held.enter_context(files.state.lock(_COMMAND_LOCK))
        with patient_lock(files.state):  # the job will take it; that it cannot is better said now
            records = Records(files.state, files.plan, files.rosters())
        if until is not None:
            number = max(0, until - records.position.round)
        _retire_orders(files.state)
        server = None
        if not server_is_running(files.state):
            server = held.enter_context(ServerProcess(files.state))
        following = _Following(files, records, server, progress, tell, finished)
        order = Order(
            number=number,
            deadline_seconds=deadline_seconds,
            give_up=give_up,
            resume=resume,
            needed=smallest_cohort(files.plan, records.roster),
            connect_seconds=connect_seconds,
        )
        while True:
            _place(order, files, _silos(files, records), following)
            if following.left is None:
                break
            tell("a silo is back: the remaining rounds are another job of FLARE's")
            order = msgspec.structs.replace(order, number=following.left, give_up=False, resume=False)
    return following.outcomes


def _place(order: Order, files: CoordinatorFiles, silos: list[SiloId], following: _Following) -> None:
    """Gives the order to FLARE and follows it to its end."""
    folder = f"{kits.ORDERS}/{secrets.token_hex(16)}"
    files.state.write(f"{folder}/{reports.ORDER_FILE}", msgspec.json.encode(order))
    place = files.state.path(folder).resolve()
    submitter = Child("submit", files.state.path(kits.ADMIN), [str(place), *silos])
    try:
        following.follow(place, submitter, order.number)
    finally:
        files.state.remove(f"{folder}/{reports.ORDER_FILE}")
        submitter.stop()


def _retire_orders(state: StateDir) -> None:
    """Withdraws what a killed command left behind, and keeps the reports of the last orders only."""
    root = state.path(kits.ORDERS)
    folders = sorted(root.iterdir(), key=lambda folder: folder.stat().st_mtime) if root.is_dir() else []
    for folder in folders:
        (folder / reports.ORDER_FILE).unlink(missing_ok=True)
    for folder in folders[:-_KEPT_ORDERS]:
        shutil.rmtree(folder, ignore_errors=True)


def _silos(files: CoordinatorFiles, records: Records) -> list[SiloId]:
    """Who is in the roster, and who will be if the change that waits is approved."""
    change = pending_change(files.state, records.rosters)
    proposed = records.rosters.check_proposal(change).public_keys if change is not None else {}
    return sorted({*records.roster.public_keys, *proposed})


@dataclass(slots=True)
class _Following:
    """Turns the lines of a job back into what a command expects."""

    files: CoordinatorFiles
    records: Records
    server: ServerProcess | None
    """If this command started it."""
    progress: Progress
    tell: Tell
    finished: Callable[[RoundOutcome], None] | None
    outcomes: list[RoundOutcome] = field(default_factory=list)
    left: int | None = None
    """Rounds that the last job left to another one."""
    _failure: CacheflError | None = None
    _job_ended: bool = False
    _earlier: int = 0
    _number: int = 0

    def follow(self, folder: Path, submitter: Child, number: int) -> None:
        """Returns when a job of ``number`` rounds has ended.

        Raises:
            CacheflError: what the job or the submitter said, the job's word first.
        """
        job, submission = reports.Tail(folder / reports.JOB_FILE), reports.Tail(folder / reports.SUBMIT_FILE)
        given_up: float | None = None
        self.left, self._job_ended = None, False
        self._earlier, self._number = len(self.outcomes), number
        trouble: CacheflError | None = None
        while True:
            submitter_ended = submitter.exit_reason is not None
            self._take(job.lines())
            for line in submission.lines():
                match line:
                    case reports.Failed() | reports.Crashed():
                        trouble = reports.error_of(line)
                    case reports.Ended():
                        submitter_ended = True
                    case _:
                        self._take(iter([line]))
            if self.server is not None and (reason := self.server.exit_reason) is not None:
                trouble = trouble or TransportError("FLARE's server", f"{reason}; its log says why")
                break
            if self._job_ended and given_up is None:
                given_up = time.monotonic() + _WAIT_FOR_END_SECONDS
            if submitter_ended or (given_up is not None and time.monotonic() > given_up):
                break
            time.sleep(_LOOK_SECONDS)
        self._take(job.lines())
        if self._failure is not None:
            raise self._failure
        if not self._job_ended:
            raise trouble or TransportError("the job", "ended without a word; FLARE's log says why")

    def _take(self, lines: Iterator[Line]) -> None:
        for line in lines:
            match line:
                case reports.Progressed():
                    self._show(line)
                case reports.Told():
                    self.tell(line.text)
                case reports.Attended():
                    self._explain(line)
                case reports.Committed():
                    self._note(line)
                case reports.Failed() | reports.Crashed():
                    self._failure = reports.error_of(line)
                case reports.Regrouped():
                    self.left = line.left
                case reports.Ended():
                    self._job_ended = True

    def _show(self, line: reports.Progressed) -> None:
        """One bar over the rounds of all jobs."""
        before = 0
        if line.what == ROUNDS and self._number:
            before = self._earlier * (line.total // self._number)
        self.progress(before + line.done, before + line.total, line.what)

    def _note(self, line: reports.Committed) -> None:
        raw = self.files.state.read(round_file(line.round, "record.json"))
        record, _ = open_record(raw, self.files.plan)
        cost = self.records.cost_by(line.round)
        outcome = RoundOutcome(record, line.attendance.attendance(), line.enrolled, cost)
        self.outcomes.append(outcome)
        if self.finished is not None:
            self.finished(outcome)

    def _explain(self, line: Attended) -> None:
        """Who was missing and why, as far as the coordinator can know."""
        for silo in line.absent:
            self.tell(f"{silo}: no answer (not connected, or too slow)")
        for silo, why in sorted((line.declined | line.rejected).items()):
            self.tell(f"{silo}: {why}")
