"""What a job tells the command that asked for it: lines in an append-only file, of a closed set of kinds.

The job runs in a process of FLARE's server, the command in one of its own; both work on the coordinator's
directory. Log text is for people and decides nothing.

    engine/nvflare/orders/<order>/order.json     what was asked for
    engine/nvflare/orders/<order>/job.jsonl      what the controller says
    engine/nvflare/orders/<order>/submit.jsonl   what the submitter says
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from cachefl_secure import durable, errors
from cachefl_secure.errors import (
    CacheflError,
    ConfigError,
    LocalProtocolError,
    SharesRejected,
    TransportError,
)
from cachefl_secure.federation.synchronising import Attendance
from cachefl_secure.names import SiloId

ORDER_FILE, JOB_FILE, SUBMIT_FILE = "order.json", "job.jsonl", "submit.jsonl"
_MAX_LINE_BYTES = 1 << 20
_ORDER = re.compile(r"[0-9a-f]{32}\Z")

_Seconds = Annotated[float, Meta(gt=0.0)]
_Count = Annotated[int, Meta(ge=0)]


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one job is to do."""

    number: _Count
    deadline_seconds: _Seconds
    give_up: bool = False
    resume: bool = False
    needed: _Count
    """The smallest cohort."""
    connect_seconds: _Seconds
    """How long the submitter waits for silos that are not connected yet."""


class _Line(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind", tag=str.lower
):
    pass


class Progressed(_Line, frozen=True):
    """As ``ports.Progress``."""

    done: _Count
    total: _Count
    what: str


class Told(_Line, frozen=True):
    """A sentence to the operator."""

    text: str


class Attended(_Line, frozen=True):
    """Who did not take part in a round; see ``Attendance``."""

    absent: tuple[str, ...] = ()
    declined: dict[str, str] = {}
    rejected: dict[str, str] = {}
    exhausted: tuple[str, ...] = ()

    @classmethod
    def of(cls, attendance: Attendance) -> Attended:
        return cls(
            absent=tuple(sorted(attendance.absent)),
            declined={str(silo): why for silo, why in attendance.declined.items()},
            rejected={str(silo): why for silo, why in attendance.rejected.items()},
            exhausted=tuple(sorted(attendance.exhausted)),
        )

    def attendance(self) -> Attendance:
        return Attendance(
            absent=set(map(SiloId, self.absent)),
            declined={SiloId(silo): why for silo, why in self.declined.items()},
            rejected={SiloId(silo): why for silo, why in self.rejected.items()},
            exhausted=set(map(SiloId, self.exhausted)),
        )


class Committed(_Line, frozen=True):
    """A round whose record is on disk."""

    round: Annotated[int, Meta(ge=1)]
    attendance: Attended
    enrolled: _Count


class Failed(_Line, frozen=True):
    """An error of ours, by its class and its fields."""

    error: str
    fields: tuple[str | int | float | tuple[str, ...], ...]


class Crashed(_Line, frozen=True):
    """Any other error, by its type only: its text might hold anything. The log has where it came from."""

    error: str


class Connected(_Line, frozen=True):
    """Which silos the server sees, said when it changes."""

    silos: tuple[str, ...]


class Regrouped(_Line, frozen=True):
    """The job ends before its last round, so that a silo which came back can take part in the others."""

    left: _Count


class Submitted(_Line, frozen=True):
    """FLARE's name of the job, for people who read its log."""

    job: str


class Ended(_Line, frozen=True):
    """The last line: nothing follows."""


Line = Progressed | Told | Attended | Committed | Failed | Crashed | Connected | Regrouped | Submitted | Ended

_KINDS: dict[str, type[CacheflError]] = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, CacheflError)
}


def failed(error: BaseException) -> Failed | Crashed:
    """The error as a line."""
    kind = type(error).__name__
    if isinstance(error, CacheflError) and _KINDS.get(kind) is type(error):
        # What its class was called with, so that it can be called with it again.
        fields = (error.suspects,) if isinstance(error, SharesRejected) else error.args
        return Failed(error=kind, fields=tuple(fields))
    return Crashed(error=kind)


def error_of(line: Failed | Crashed) -> CacheflError:
    """The error of which ``failed`` made the line; for one that is not ours, what we can say about it."""
    kind = _KINDS.get(line.error)
    if isinstance(line, Failed) and kind is not None:
        try:
            return kind(*line.fields)
        except TypeError:
            return LocalProtocolError(line.error, *line.fields)
    return LocalProtocolError(
        f"{line.error} in a process of FLARE's; its folder below engine/nvflare has where"
    )


def check_order_name(order: str) -> str:
    """
    Raises:
        ConfigError: not the name of an order: a job must not lead the controller to another folder.
    """
    if not _ORDER.match(order):
        raise ConfigError("the job's configuration", "order", "is not 32 hex digits")
    return order


def write_line(path: Path, line: Line) -> None:
    """Appends the line; another process may read at any time."""
    with durable.opened(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT) as file:
        durable.write_all(file, msgspec.json.encode(line) + b"\n")


M = TypeVar("M", bound=msgspec.Struct)


@dataclass(slots=True)
class Tail:
    """Reads what was appended since the last look. A line that is not yet complete is left for the next."""

    path: Path
    _read: int = field(default=0)

    def lines(self) -> Iterator[Line]:
        """
        Raises:
            TransportError: a line of an unknown kind: another version of cachefl-secure writes this file.
        """
        try:
            with self.path.open("rb") as file:
                file.seek(self._read)
                content = file.read()
        except FileNotFoundError:
            return
        complete, newline, _ = content.rpartition(b"\n")
        self._read += len(complete) + len(newline)
        for raw in complete.split(b"\n") if newline else ():
            try:
                if len(raw) > _MAX_LINE_BYTES:
                    raise ValueError("too long")
                yield msgspec.json.decode(raw, type=Line)
            except (msgspec.DecodeError, ValueError):
                reason = f"{self.path.name} has a line that this version does not know"
                raise TransportError("the job", reason) from None
