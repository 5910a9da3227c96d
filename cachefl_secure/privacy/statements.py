"""The only two privacy sentences that may be printed: always both, always with against whom they hold.

Their epsilon is the *cap*: what holds whenever the rounds end, also if that was decided after seeing results. What was
spent so far is less, and is told beside them as a reading of the meter (decision 0025).

Epsilon is rounded up. The guarantee is computational: the noise is an AES-256-CTR stream, masks are AES-128's.
"""

from __future__ import annotations

import math

from cachefl_secure.names import SiloId
from cachefl_secure.wording import counted

IN_PLACE_OF_CAPS = "These hold in place of the caps if the number of rounds did not depend on results."
"""What may be said of what was spent so far."""
_WHENEVER = ", whenever its rounds end"


def local_statement(silo: SiloId, epsilon: float, delta: float, *, insecure_rounds: int = 0) -> str:
    """What holds without assuming a secure sum."""
    if (nothing := _nothing(silo, epsilon, insecure_rounds)) is not None:
        return nothing
    return (
        "Against the coordinator and all other institutions together, without assuming secure aggregation, "
        f"every record of silo {silo} has ({rounded_up(epsilon)}, {delta!r})-DP{_WHENEVER}."
    )


def aggregate_statement(
    silo: SiloId,
    epsilon: float,
    delta: float,
    *,
    colluders: int,
    survivors: int | None,
    insecure_rounds: int = 0,
) -> str:
    """What holds while the secure sum does. For mechanism ``local`` epsilon is the local one.

    Rounds under several plans need the fewest of their ``colluders``; ``survivors`` is then None.
    """
    if (nothing := _nothing(silo, epsilon, insecure_rounds)) is not None:
        return nothing
    least = "as many survivors as its plan guarantees" if survivors is None else f">= {survivors} survivors"
    some = (
        "1 institution colludes with the coordinator or leaves out its noise"
        if colluders == 1
        else f"{colluders} institutions collude with the coordinator or leave out their noise"
    )
    return (
        f"If at most {some}, and the secure sum is unbroken ({least} in every completed round), "
        f"every record of silo {silo} has ({rounded_up(epsilon)}, {delta!r})-DP{_WHENEVER}."
    )


def meter(spent_local: float, spent_aggregate: float) -> str:
    """What the two sentences do not say: how far it has come."""
    return (
        f"Spent so far: local {rounded_up(spent_local)}, aggregate {rounded_up(spent_aggregate)}. "
        f"{IN_PLACE_OF_CAPS}"
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
            f"Silo {silo} drew noise from a repeatable test stream in {counted(insecure_rounds, 'round')}: "
            "no differential privacy is claimed."
        )
    if math.isinf(epsilon):
        return (
            f"Silo {silo} released updates without noise, has spent more than can be accounted for, or has no cap: "
            "no differential privacy is claimed."
        )
    return None
