"""The only two privacy sentences that may be printed: always both, always with against whom they hold.

Epsilon is rounded up. The guarantee is computational: noise and masks are AES-256-CTR streams.
"""

from __future__ import annotations

import math

from cachefl_secure.names import SiloId


def local_statement(silo: SiloId, epsilon: float, delta: float, *, insecure_rounds: int = 0) -> str:
    """What holds without assuming a secure sum."""
    if (nothing := _nothing(silo, epsilon, insecure_rounds)) is not None:
        return nothing
    return (
        "Against the coordinator and all other institutions together, without assuming secure aggregation, "
        f"every record of silo {silo} has ({rounded_up(epsilon)}, {delta!r})-DP."
    )


def aggregate_statement(
    silo: SiloId, epsilon: float, delta: float, *, colluders: int, survivors: int, insecure_rounds: int = 0
) -> str:
    """What holds while the secure sum does. For mechanism ``local`` epsilon is the local one.

    Rounds under several plans need the fewest of their ``colluders`` and the most of their ``survivors``.
    """
    if (nothing := _nothing(silo, epsilon, insecure_rounds)) is not None:
        return nothing
    return (
        f"If at most {colluders} institutions collude with the coordinator and the secure sum is unbroken "
        f"(>= {survivors} survivors in every completed round), "
        f"every record of silo {silo} has ({rounded_up(epsilon)}, {delta!r})-DP."
    )


def rounded_up(epsilon: float, decimals: int = 3) -> str:
    """How an epsilon is written for people: never smaller than it is."""
    if math.isinf(epsilon):
        return "infinity"
    scale = 10**decimals
    return f"{math.ceil(epsilon * scale) / scale:.{decimals}f}"


def _nothing(silo: SiloId, epsilon: float, insecure_rounds: int) -> str | None:
    """The sentence where nothing may be claimed."""
    if insecure_rounds:
        return (
            f"Silo {silo} drew noise from a repeatable test stream in {insecure_rounds} rounds: "
            "no differential privacy is claimed."
        )
    if math.isinf(epsilon):
        return f"Silo {silo} released updates without noise: no differential privacy is claimed."
    return None
