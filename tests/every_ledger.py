"""Remembers what every ledger of a test run was charged for, so that a third accountant can check all of them.

``conftest`` installs it; ``tests/privacy/test_every_ledger.py`` runs last and checks, and with workers (``pytest -n``)
``conftest`` does once all have ended. Ledgers of other subprocesses are not seen.
"""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context

from cachefl_secure.names import Digest
from cachefl_secure.privacy.accountants import GRID, Runs, pld_epsilon, rdp_epsilon
from cachefl_secure.privacy.accounting import runs_of
from cachefl_secure.privacy.entries import AnyBody, SpendEntry
from cachefl_secure.privacy.mechanism import View
from cachefl_secure.privacy.verification import History

MOST_SECONDS = 90.0
LARGEST_EPSILON = 60.0
"""Beyond it PRV runs out of numbers, or of memory; nobody would use such a plan."""

Charged = tuple[Runs, float]
"""(steps of a ledger as one view has them, delta)"""

SEEN: Counter[Charged] = Counter()
"""The last state of every ledger that was open or verified, by how many there were."""


@dataclass
class Opinions:
    """What came of comparing."""

    agreeing: int = 0
    beyond_range: list[Charged] = field(default_factory=list)
    left_out: int = 0
    """For want of time."""
    contradictions: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.agreeing} histories of ledgers agree by PLD, PRV and RDP; {len(self.beyond_range)} are beyond "
            f"PRV's range, {self.left_out} were left out for want of time"
        )


FOUND: list[Opinions] = []


def watch_ledgers() -> None:
    """From now on every ``History`` notes in ``SEEN`` what it was charged for last."""
    accept = History.accept

    def watched(self: History, body: AnyBody, digest: Digest) -> None:
        accept(self, body, digest)
        if isinstance(body, SpendEntry):
            SEEN.subtract(getattr(self, "charged", ()))
            self.charged = [(runs_of(self.rounds(), view), self.delta) for view in View]  # type: ignore[attr-defined]
            SEEN.update(self.charged)  # type: ignore[attr-defined]

    History.accept = watched  # type: ignore[method-assign]


def all_histories(seen: Counter[Charged]) -> list[Charged]:
    """Every history that some ledger has, once."""
    return sorted(charged for charged, ledgers in seen.items() if ledgers > 0 and charged[0])


def compare_in_processes(seen: Counter[Charged], processes: int = 2) -> Opinions:
    """As ``compare``, of all histories, by several processes."""
    together, histories = Opinions(), all_histories(seen)
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for part in pool.map(compare, [histories[i::processes] for i in range(processes)]):
            together.agreeing += part.agreeing
            together.beyond_range += part.beyond_range
            together.left_out += part.left_out
            together.contradictions += part.contradictions
    return together


def compare(histories: list[Charged]) -> Opinions:
    """0 <= PRV - PLD <= 0.02 and RDP >= PLD, all at one delta, for as many as there is time for."""
    from cachefl_secure.privacy.prv import MOST_ABOVE_PLD, epsilon_of_runs

    opinions, start = Opinions(), time.monotonic()
    for runs, delta in histories:
        pld = pld_epsilon(runs, delta)
        if rdp_epsilon(runs, delta) < pld - GRID:
            opinions.contradictions.append(f"RDP below PLD {pld}: {runs} at {delta}")
        if time.monotonic() - start > MOST_SECONDS:
            opinions.left_out += 1
            continue
        try:
            if pld > LARGEST_EPSILON:
                raise ValueError("too large")
            prv = epsilon_of_runs(runs, delta)
        except (ValueError, RuntimeError, MemoryError):
            opinions.beyond_range.append((runs, delta))
            continue
        if 0.0 <= prv - pld <= MOST_ABOVE_PLD:
            opinions.agreeing += 1
        else:
            opinions.contradictions.append(f"PRV {prv}, PLD {pld}: {runs} at {delta}")
    return opinions
