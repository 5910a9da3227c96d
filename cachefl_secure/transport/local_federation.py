"""A coordinator and its silos on this machine: every party its own directory, keys, ledger and lock."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

from cachefl_secure.errors import ConfigError
from cachefl_secure.federation.chain import Chain
from cachefl_secure.federation.coordinator_files import CoordinatorFiles
from cachefl_secure.federation.coordinator_round import CoordinatorService, RoundOutcome
from cachefl_secure.federation.ports import Progress
from cachefl_secure.federation.roster_files import pending_change
from cachefl_secure.federation.rounds import run_rounds, warn_beyond_the_plan
from cachefl_secure.federation.silo_files import SiloFiles
from cachefl_secure.federation.silo_round import SiloService
from cachefl_secure.federation.synchronising import Attendance
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
    until: int | None = None,
    finished: Callable[[RoundOutcome], None] | None = None,
    give_up: bool = False,
) -> list[RoundOutcome]:
    """``number`` rounds between the coordinator and the silos of these directories, or ``until`` a round.

    Each is handed to ``finished`` as it ends, so that those before a failure are not lost. With ``give_up``, a
    round that was left between certificate and record is given up first.

    Raises:
        ConfigError: a directory is not what it should be, or is in use.
        LedgerError: a silo's ledger does not verify or was rolled back.
        RoundAborted, CohortExhausted: a round failed; those before it stand.
    """
    outcomes: list[RoundOutcome] = []

    def note(outcome: RoundOutcome) -> None:
        outcomes.append(outcome)
        if finished is not None:
            finished(outcome)

    files = CoordinatorFiles.open(directory)
    with contextlib.ExitStack() as held:
        held.enter_context(files.state.lock())
        silos = _open_silos(silo_directories, held, tell)
        chain = files.chain()
        _check_members(silos, _members_and_candidates(files, chain))
        network = held.enter_context(InProcessNetwork({silo: s.handle for silo, s in silos.items()}))
        if until is not None:
            number = max(0, until - chain.position.round)
        warn_beyond_the_plan(chain, number, tell)
        service = CoordinatorService(files.state, chain, network, deadline_seconds=deadline_seconds)
        if give_up and (given_up := service.give_up_round()) is not None:
            tell(f"round {given_up} is given up; what it cost stays charged")
        run_rounds(service, number, progress, lambda who: _explain(who, silos, network, tell), note)
    return outcomes


def _open_silos(
    directories: Sequence[Path], held: contextlib.ExitStack, tell: Tell
) -> dict[SiloId, SiloService]:
    silos: dict[SiloId, SiloService] = {}
    for directory in directories:
        files = SiloFiles.open(directory)
        if files.silo in silos:
            raise ConfigError(str(directory), "", f"silo {files.silo} is given twice")
        held.enter_context(files.state.lock())
        ledger = held.enter_context(files.ledger())
        if ledger.recovered:
            tell(f"{files.silo}: ledger: {ledger.recovered}")
        silos[files.silo] = SiloService(files, ledger)
    return silos


def _members_and_candidates(files: CoordinatorFiles, chain: Chain) -> set[str]:
    """Who is in the roster, and who will be if the change that waits is approved."""
    change = pending_change(files.state, chain.rosters)
    proposed = chain.rosters.check_proposal(change).public_keys if change is not None else {}
    return {*chain.roster.public_keys, *proposed}


def _check_members(silos: dict[SiloId, SiloService], members: set[str]) -> None:
    if not silos:
        reason = "no silo to talk to: give each silo's directory with --in-process"
        raise ConfigError("--in-process", "", reason)
    strangers = sorted(set(silos) - members)
    if strangers:
        raise ConfigError(
            "--in-process",
            strangers[0],
            "is not in the roster: it was not admitted, or was removed; leave it out",
        )


def _explain(
    attendance: Attendance, silos: dict[SiloId, SiloService], network: InProcessNetwork, tell: Tell
) -> None:
    """Who was missing and why: what the coordinator knows, then what the silo's own operator may."""
    failures = reasons(network.failures)
    details = {silo: service.take_trouble() for silo, service in silos.items()}
    troubles = reasons({silo: trouble for silo, trouble in details.items() if trouble is not None})
    for silo in sorted(attendance.absent | set(failures)):
        why = "too slow" if silo in silos else "not given with --in-process"
        tell(f"{silo}: no answer ({failures.get(silo, why)})")
    for silo, why in sorted((attendance.declined | attendance.rejected).items()):
        detail = troubles.get(silo)
        tell(f"{silo}: {why}" + (f" ({detail})" if detail and detail != why else ""))
