"""The loop over rounds, for any transport: bring silos up to date, run a round, tell who was missing."""

from __future__ import annotations

from collections.abc import Callable

from cachefl_secure.errors import CohortExhausted, RoundAborted
from cachefl_secure.federation.coordinator_round import CoordinatorService, RoundOutcome
from cachefl_secure.federation.ports import Progress
from cachefl_secure.federation.records import Records
from cachefl_secure.federation.synchronising import Attendance
from cachefl_secure.wording import counted

Tell = Callable[[Attendance], None]
"""Told after every round, also after one that was aborted, and after the last records were delivered."""

ROUNDS = "rounds"
"""What the bar over all rounds is called."""


def run_rounds(
    service: CoordinatorService,
    number: int,
    progress: Progress,
    tell: Tell,
    finished: Callable[[RoundOutcome], None],
) -> None:
    """``number`` rounds, one after another, each handed to ``finished``; the last record is delivered as well.

    Raises:
        RoundAborted: a round failed; those before it stand.
        CohortExhausted: it failed because too many silos have reached their caps.
    """
    for index in range(number):
        attendance = Attendance()
        try:
            ready, show = service.synchronise(attendance), _share_of(progress, index, number)
            # A round that was interrupted after its certificate counts as one of those asked for.
            outcome = service.finish_round(attendance, show) or service.run_round(ready, attendance, show)
            finished(outcome)
        except RoundAborted as aborted:
            tell(attendance)
            exhausted = sum(reason == "budget-exhausted" for reason in attendance.declined.values())
            if exhausted:
                raise CohortExhausted(exhausted, aborted.present, aborted.threshold) from None
            raise
        tell(attendance)
    attendance = Attendance()
    service.synchronise(attendance)
    tell(attendance)


def warn_beyond_the_plan(records: Records, number: int, say: Callable[[str], None]) -> None:
    """Says so if ``number`` more rounds are more than the plan's noise was calibrated for."""
    planned, last = records.plan.privacy.rounds, records.position.round
    if last + number > planned:
        say(
            f"the plan's noise is calibrated for {counted(planned, 'round')}, {last} of which are done; "
            "silos decline the rounds that pass their caps"
        )


def _share_of(progress: Progress, index: int, number: int) -> Progress:
    """One bar over all rounds."""

    def show(done: int, total: int, what: str) -> None:
        progress(index * total + done, number * total, ROUNDS)

    return show
