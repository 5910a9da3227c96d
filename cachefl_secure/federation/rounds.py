"""The loop over rounds, for any transport: bring silos up to date, run a round, tell who was missing."""

from __future__ import annotations

from collections.abc import Callable

from cachefl_secure.errors import RoundAborted
from cachefl_secure.federation.coordinator_round import Attendance, CoordinatorService, RoundOutcome
from cachefl_secure.federation.ports import Progress

Tell = Callable[[Attendance], None]
"""Told after every round, also after one that was aborted, and after the last records were delivered."""


def run_rounds(
    service: CoordinatorService, number: int, progress: Progress, tell: Tell
) -> list[RoundOutcome]:
    """``number`` rounds, one after another; the last record is delivered as well.

    Raises:
        RoundAborted: a round failed; those before it stand.
    """
    outcomes: list[RoundOutcome] = []
    for index in range(number):
        attendance = Attendance()
        try:
            ready = service.synchronise(attendance)
            outcomes.append(service.run_round(ready, attendance, _share_of(progress, index, number)))
        except RoundAborted:
            tell(attendance)
            raise
        tell(attendance)
    attendance = Attendance()
    service.synchronise(attendance)
    tell(attendance)
    return outcomes


def _share_of(progress: Progress, index: int, number: int) -> Progress:
    """One bar over all rounds."""

    def show(done: int, total: int, what: str) -> None:
        progress(index * total + done, number * total, "rounds")

    return show
