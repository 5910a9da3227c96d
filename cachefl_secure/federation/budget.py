"""A silo's privacy budget, recomputed from its verified ledger. Runs without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from cachefl_secure.federation.joining import SiloFiles
from cachefl_secure.names import SiloId
from cachefl_secure.privacy.accounting import Rounds, epsilon_spent, local_statement, rounds_within
from cachefl_secure.privacy.mechanism import Mechanism, mechanism_of

_PROJECTION_ROUNDS = 10


@dataclass(frozen=True, slots=True)
class Budget:
    """A silo's privacy budget. Epsilons are local: they hold without assuming a secure sum."""

    silo: SiloId
    rounds_charged: int
    epsilon: float
    delta: float
    cap: float
    rounds_left: int
    """Rounds of the plan's mechanism that still fit under the cap."""
    epsilon_projected: float
    """After ten more rounds, or after as many as still fit."""
    rounds_projected: int
    statement: str


def silo_budget(root: Path) -> Budget:
    """Recomputed from the verified ledger, not read from it.

    Raises:
        LedgerError: the ledger does not verify.
    """
    files = SiloFiles.open(root)
    report = files.verified_ledger()
    privacy, cap = files.plan.privacy, files.config.epsilon_cap
    mechanism, delta = mechanism_of(privacy), min(report.delta, privacy.delta)
    charged = [(spend.mechanism, 1) for spend in report.spends]
    left = 0 if math.isinf(cap) else _rounds_left(charged, mechanism, delta, cap)
    ahead = min(_PROJECTION_ROUNDS, left)
    return Budget(
        silo=files.silo,
        rounds_charged=len(charged),
        epsilon=report.epsilon,
        delta=delta,
        cap=cap,
        rounds_left=left,
        epsilon_projected=epsilon_spent([*charged, (mechanism, ahead)], delta) if ahead else report.epsilon,
        rounds_projected=ahead,
        statement=local_statement(files.silo, report.epsilon, delta),
    )


def _rounds_left(charged: Rounds, mechanism: Mechanism, delta: float, cap: float) -> int:
    """The most further rounds whose total stays at or below the cap."""
    fitting, beyond = 0, rounds_within(mechanism, delta, cap) + 1
    while beyond - fitting > 1:
        middle = (fitting + beyond) // 2
        fits = epsilon_spent([*charged, (mechanism, middle)], delta) <= cap
        fitting, beyond = (middle, beyond) if fits else (fitting, middle)
    return fitting
