"""A coordinator and its silos on this machine: every party its own directory, keys, ledger and lock."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

from cachefl_secure.errors import ConfigError, RoundAborted
from cachefl_secure.federation.coordinator_files import CoordinatorFiles
from cachefl_secure.federation.coordinator_round import (
    Attendance,
    CoordinatorService,
    RoundOutcome,
)
from cachefl_secure.federation.joining import SiloFiles
from cachefl_secure.federation.ports import Progress
from cachefl_secure.federation.silo_round import SiloService
from cachefl_secure.names import SiloId
from cachefl_secure.transport.in_process import InProcessNetwork, reasons

Tell = Callable[[str], None]
"""A sentence to the operator of this machine, who is every party's operator here."""


def run_local_rounds(
    directory: Path,
    silo_directories: Sequence[Path],
    number: int,
    *,
    deadline_seconds: float,
    progress: Progress,
    tell: Tell,
) -> list[RoundOutcome]:
    """``number`` rounds between the coordinator and the silos of these directories.

    Raises:
        ConfigError: a directory is not what it should be, or is in use.
        RoundAborted: a round failed; those before it stand.
    """
    files = CoordinatorFiles.open(directory)
    with contextlib.ExitStack() as held:
        held.enter_context(files.state.lock())
        silos = _open_silos(silo_directories, held)
        chain = files.chain()
        _check_members(silos, {str(member.silo) for member in chain.roster.members})
        network = held.enter_context(InProcessNetwork({silo: s.handle for silo, s in silos.items()}))
        service = CoordinatorService(files.state, chain, network, deadline_seconds=deadline_seconds)
        return _run(service, silos, network, number, progress, tell)


def _open_silos(directories: Sequence[Path], held: contextlib.ExitStack) -> dict[SiloId, SiloService]:
    silos: dict[SiloId, SiloService] = {}
    for directory in directories:
        files = SiloFiles.open(directory)
        if files.silo in silos:
            raise ConfigError(str(directory), "", f"silo {files.silo} is given twice")
        held.enter_context(files.state.lock())
        silos[files.silo] = SiloService(files, held.enter_context(contextlib.closing(files.ledger())))
    return silos


def _check_members(silos: dict[SiloId, SiloService], members: set[str]) -> None:
    if not silos:
        reason = "no silo to talk to: give each silo's directory with --in-process"
        raise ConfigError("--in-process", "", reason)
    strangers = sorted(set(silos) - members)
    if strangers:
        raise ConfigError("--in-process", strangers[0], "was not admitted to this federation")


def _run(
    service: CoordinatorService,
    silos: dict[SiloId, SiloService],
    network: InProcessNetwork,
    number: int,
    progress: Progress,
    tell: Tell,
) -> list[RoundOutcome]:
    outcomes: list[RoundOutcome] = []
    for index in range(number):
        attendance = Attendance()

        try:
            ready = service.synchronise(attendance)
            outcomes.append(service.run_round(ready, attendance, _share_of(progress, index, number)))
        except RoundAborted:
            _explain(attendance, silos, network, tell)
            raise
        _explain(attendance, silos, network, tell)
    service.synchronise(Attendance())  # the last record, to everybody
    return outcomes


def _share_of(progress: Progress, index: int, number: int) -> Progress:
    """One bar over all rounds."""

    def show(done: int, total: int, what: str) -> None:
        progress(index * total + done, number * total, "rounds")

    return show


def _explain(
    attendance: Attendance, silos: dict[SiloId, SiloService], network: InProcessNetwork, tell: Tell
) -> None:
    """Who was missing and why: what the coordinator knows, then what the silo's own operator may."""
    failures = reasons(network.failures)
    troubles = {silo: service.take_trouble() for silo, service in silos.items()}
    for silo in sorted(attendance.absent | set(failures)):
        why = "too slow" if silo in silos else "not running in this process"
        tell(f"{silo}: no answer ({failures.get(silo, why)})")
    for silo, why in sorted((attendance.declined | attendance.rejected).items()):
        detail = troubles.get(silo)
        tell(f"{silo}: {why}" + (f" ({detail})" if detail else ""))
