"""A silo's privacy budget, recomputed from its verified ledger. Runs without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from cachefl_secure.federation.silo_files import SiloFiles, TooLow
from cachefl_secure.names import SiloId
from cachefl_secure.plan import plan_digest
from cachefl_secure.privacy.accounting import Cost, charged, rounds_within
from cachefl_secure.privacy.mechanism import View

_PROJECTION_ROUNDS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """A silo's privacy budget, in both views."""

    silo: SiloId
    rounds_charged: int
    """Of all federations that share the ledger."""
    federations: int
    """Plans under which rounds were charged."""
    spent: Cost
    delta: Cost
    """What either epsilon may be claimed at; see ``LedgerReport.delta_of``."""
    caps: Cost
    rounds_left: int
    """Rounds of the plan's mechanism that still fit under both caps; none after a plan's one release."""
    projected: Cost
    """After ten more rounds, or after as many as still fit."""
    rounds_projected: int
    insecure_rounds: int
    """Charged with noise out of a test's repeatable streams: nothing is claimed then."""
    statements: tuple[str, str, str]
    """The two sentences that may be said, local first, and what was spent so far."""


@dataclass(frozen=True, slots=True)
class Room:
    """What the caps leave to a plan of which no round was charged yet, beside all that the ledger holds already."""

    planned: int
    fitting: int
    """Planned rounds within the caps, if nothing else is charged in between."""
    too_low: tuple[TooLow, ...]
    """What would have to be raised for all of them; empty if all fit."""


def room_for_plan(files: SiloFiles) -> Room:
    """Of a silo that has just joined, with a ledger that other federations were charged to.

    Raises:
        LedgerError: the ledger does not verify.
    """
    report, terms, planned = files.verified_ledger(), files.terms, files.plan.privacy.rounds
    earlier = [(spend.mechanism, 1) for spend in report.spends]
    delta, order = min(report.delta, terms.delta), report.rdp_order or terms.rdp_order
    needed = charged([*earlier, (terms.mechanism, planned)], delta, order)
    too_low = files.caps_below(needed)
    if not too_low:
        return Room(planned, planned, ())
    fitting = rounds_within(terms.mechanism, delta, terms.caps, earlier=earlier, rdp_order=order)
    return Room(planned, min(fitting, planned), too_low)


def silo_budget(root: Path) -> Budget:
    """Recomputed from the verified ledger, not read from it.

    Raises:
        LedgerError: the ledger does not verify.
    """
    files = SiloFiles.open(root)
    report, terms = files.verified_ledger(), files.terms
    earlier = [(spend.mechanism, 1) for spend in report.spends]
    delta, order = min(report.delta, terms.delta), report.rdp_order or terms.rdp_order
    left = 0
    released = files.plan.is_one_release and any(
        s.plan_digest == plan_digest(files.plan) for s in report.spends
    )
    if not (math.isinf(terms.caps.local) or released):
        left = rounds_within(terms.mechanism, delta, terms.caps, earlier=earlier, rdp_order=order)
    ahead = min(_PROJECTION_ROUNDS, left)
    projected = charged([*earlier, (terms.mechanism, ahead)], delta, order) if ahead else report.spent
    alone, together = (report.delta_of(view) if earlier else terms.delta for view in View)
    return Budget(
        silo=files.silo,
        rounds_charged=len(earlier),
        federations=len(report.plans),
        spent=report.spent,
        delta=Cost(alone, together),
        caps=terms.caps,
        rounds_left=left,
        projected=projected.at_least(report.spent),
        rounds_projected=ahead,
        insecure_rounds=report.insecure_rounds,
        statements=report.statements(files.silo, terms),
    )
