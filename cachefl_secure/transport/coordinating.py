"""The coordinator's rounds over any channel: what all transports have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cachefl_secure.federation.chain import Chain
from cachefl_secure.federation.coordinator_files import CoordinatorFiles
from cachefl_secure.federation.coordinator_round import CoordinatorService, RoundOutcome
from cachefl_secure.federation.last_heard import note_attendance
from cachefl_secure.federation.ports import CoordinatorChannel, Progress
from cachefl_secure.federation.rounds import run_rounds, warn_beyond_the_plan
from cachefl_secure.federation.synchronising import Attendance

Tell = Callable[[str], None]
"""A sentence to the operator of this machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """Which rounds are asked for, and how patiently."""

    number: int = 1
    """0: none, but silos are brought up to date, and proposals and approvals carried."""
    until: int | None = None
    """Run until this round is done, instead of ``number`` of them."""
    resume: bool = False
    """Only the round that was interrupted, if there is one."""
    give_up: bool = False
    """A round that was left between certificate and record is given up first."""
    deadline_seconds: float
    """For one answer of a silo."""
    gather_seconds: float | None = None
    """For silos to appear before a round; None: as long as for an answer."""


def run_over(
    channel: CoordinatorChannel,
    files: CoordinatorFiles,
    chain: Chain,
    rounds: Rounds,
    progress: Progress,
    tell: Tell,
    explain: Callable[[Attendance], None],
    finished: Callable[[RoundOutcome], None],
) -> list[RoundOutcome]:
    """The rounds, each handed to ``finished`` as it ends, so that those before a failure are not lost.

    ``explain`` is told who was missing. The caller holds the lock of the directory.

    Raises:
        ConfigError: a file of the directory is damaged.
        RoundAborted, CohortExhausted: a round failed; those before it stand.
    """
    outcomes: list[RoundOutcome] = []

    def note(outcome: RoundOutcome) -> None:
        outcomes.append(outcome)
        finished(outcome)

    def heard(attendance: Attendance) -> None:
        members = chain.roster.public_keys
        note_attendance(files.state, members, attendance)
        if not number:
            up_to_date = set(members) - attendance.absent - set(attendance.declined | attendance.rejected)
            tell(f"{len(up_to_date)} of {len(members)} silos are up to date")
        explain(attendance)

    service = CoordinatorService(
        files.state,
        chain,
        channel,
        deadline_seconds=rounds.deadline_seconds,
        gather_seconds=rounds.gather_seconds,
    )
    if rounds.give_up and (given_up := service.give_up_round()) is not None:
        tell(f"round {given_up} is given up; what it cost stays charged")
    number = rounds.number if rounds.until is None else max(0, rounds.until - chain.position.round)
    if rounds.resume:
        number = 1 if service.was_interrupted else 0
        tell(f"round {service.next_round()} goes on" if number else "no round was interrupted")
    if number:
        warn_beyond_the_plan(chain, number, tell)
    run_rounds(service, number, progress, heard, note)
    return outcomes
