"""C4 across attempts: several survivor sets may be answered over one round's updates, by different silos; one sum opens.

A silo that was sent no certificate has revealed nothing and may enter the next attempt with the same update. What
stands in the way of a second sum is the threshold, which is counted over the roster (decision 0011).
"""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import msgspec
import pytest

from cachefl_secure.errors import RoundAborted
from cachefl_secure.federation import letters
from cachefl_secure.names import SiloId
from cachefl_secure.protocol.messages import Signed, UnmaskShares
from tests.driven import Driven, driven
from tests.small_federation import found


def shares_in(answer: bytes | str) -> UnmaskShares:
    assert isinstance(answer, bytes), answer
    return msgspec.msgpack.decode(msgspec.msgpack.decode(answer, type=Signed).body, type=UnmaskShares)


@pytest.mark.claim("C4")
def test_two_survivor_sets_may_be_answered_over_one_rounds_updates_by_different_silos(tmp_path: Path) -> None:
    """So this is not what C4 says. Five silos, c = 1, hence t = q = 4."""
    with driven(found(tmp_path)) as services:
        first, certificates = services.certify(services.manifest(2, 1, services.silos))
        alone = services.silos[0]
        answered = shares_in(services.ask(alone, letters.UNMASK, certificates[alone]))
        assert [share.silo for share in answered.self_mask] == services.silos
        second, certificates = services.certify(services.manifest(2, 2, services.silos[1:]))
        second.on_unmask_shares(services.exchange(letters.UNMASK, certificates))
        assert set(second.survivors) < set(first.survivors)


def opened(services: Driven, asked_first: tuple[SiloId, ...], colluder: SiloId, number: int) -> int:
    """Sums that open over one round's updates when the coordinator certifies two attempts and these are asked first.

    The colluder answers in both: its notes are taken away before the second.
    """
    sums, everybody = 0, services.silos
    for attempt in (1, 2):
        may = [silo for silo in everybody if attempt == 1 or silo not in asked_first or silo == colluder]
        if len(may) < 4:  # the smallest cohort: no honest silo enters
            assert services.propose(services.manifest(number, attempt, may)) == "cohort-refused"
            break
        session, certificates = services.certify(services.manifest(number, attempt, may))
        asked = asked_first if attempt == 1 else tuple(may)
        try:
            session.on_unmask_shares(
                services.exchange(letters.UNMASK, {silo: certificates[silo] for silo in asked})
            )
            sums += 1
        except RoundAborted:
            pass
        (services.federation.silos[colluder] / f"rounds/{number:04d}/released").unlink(missing_ok=True)
    return sums


@pytest.mark.claim("C4")
def test_however_many_are_asked_first_at_most_one_sum_opens_over_a_rounds_updates(tmp_path: Path) -> None:
    outcomes = list[int]()
    with driven(found(tmp_path, epsilon_cap=1e6)) as services:
        colluder, rest, number = services.silos[-1], services.silos[:-1], 1
        for size in range(5):
            honest = next(iter(combinations(rest, size)))
            number += 1
            outcomes.append(opened(services, (*honest, colluder), colluder, number))
    assert outcomes == [1, 1, 0, 1, 1]
