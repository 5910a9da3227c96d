"""The coordinator's side of one order: the rounds, over any channel, with every event said. Knows no FLARE."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path

import msgspec

from cachefl_secure import durable
from cachefl_secure.errors import ConfigError
from cachefl_secure.federation.coordinator_files import CoordinatorFiles
from cachefl_secure.federation.coordinator_round import RoundOutcome
from cachefl_secure.federation.ports import CoordinatorChannel
from cachefl_secure.federation.synchronising import Attendance
from cachefl_secure.transport.coordinating import Rounds, run_over
from cachefl_secure.transport.flare import kits, reports
from cachefl_secure.transport.flare.locking import patient_lock
from cachefl_secure.transport.flare.reports import Attended, Committed, Line, Order, Progressed, Tail

Say = Callable[[Line], None]

CRASH_FILE = "crash.txt"
"""In an order's folder: where an error that is not ours came from. Source lines, no values."""


class _Regroup(Exception):
    """A silo that missed the round is connected: the next rounds are for another job."""


def carry_out(root: Path, name: str, channel: CoordinatorChannel) -> None:
    """Does what the order of this name asks for. How it ends is said in its folder, in any case, and nowhere else.

    An order is carried out once: a job that FLARE kept from an earlier day finds none.
    """
    folder = root / kits.ORDERS / reports.check_order_name(name)

    def say(line: Line) -> None:
        reports.write_line(folder / reports.JOB_FILE, line)

    try:
        run_order(root, folder, channel, say)
    except Exception as error:
        said = reports.failed(error)
        if isinstance(said, reports.Crashed):
            trace = "".join(traceback.format_tb(error.__traceback__)) + f"{said.error}\n"
            durable.replace_file(folder / CRASH_FILE, trace.encode(), 0o600)
        say(said)
    finally:
        say(reports.Ended())


def run_order(root: Path, folder: Path, channel: CoordinatorChannel, say: Say) -> None:
    """
    Raises:
        ConfigError: there is no such order any more.
        CacheflError: as ``local_federation.run_local_rounds``.
    """
    path = folder / reports.ORDER_FILE
    try:
        order = msgspec.json.decode(path.read_bytes(), type=Order)
    except FileNotFoundError:
        raise ConfigError(str(path), "", "is over: the command that gave this order has ended") from None
    files, connected = CoordinatorFiles.open(root), _Connected(Tail(folder / reports.SUBMIT_FILE))
    left = order.number
    with patient_lock(files.state):
        chain = files.chain()
        rounds = Rounds(
            number=order.number,
            resume=order.resume,
            give_up=order.give_up,
            deadline_seconds=order.deadline_seconds,
            gather_seconds=min(order.connect_seconds, order.deadline_seconds),
        )

        def progress(done: int, total: int, what: str) -> None:
            say(Progressed(done=done, total=total, what=what))

        def finished(outcome: RoundOutcome) -> None:
            nonlocal left
            left -= 1
            attendance = Attended.of(outcome.attendance)
            say(Committed(round=outcome.record.round, attendance=attendance, enrolled=outcome.enrolled))

        def note(sentence: str) -> None:
            say(reports.Told(text=sentence))

        def tell(attendance: Attendance) -> None:
            say(Attended.of(attendance))
            if 0 < left < order.number and attendance.absent & connected.now():
                raise _Regroup

        try:
            run_over(channel, files, chain, rounds, progress, note, tell, finished)
        except _Regroup:
            say(reports.Regrouped(left=left))


class _Connected:
    """Which silos the submitter has last seen at the server."""

    def __init__(self, said: Tail) -> None:
        self._said, self._names = said, frozenset[str]()

    def now(self) -> frozenset[str]:
        for line in self._said.lines():
            if isinstance(line, reports.Connected):
                self._names = frozenset(line.silos)
        return self._names
