"""Rounds on a sparse graph: exact, bound to neighbours, and refused where somebody would be cut off."""

from __future__ import annotations

import itertools
from dataclasses import replace

import msgspec
import pytest

from cachefl_secure.errors import BadSignature, PeerError, RoundAborted, SurvivorSetRejected
from cachefl_secure.names import COORDINATOR, SiloId
from cachefl_secure.protocol import wire
from cachefl_secure.protocol.graph import Ring
from cachefl_secure.protocol.messages import (
    KeyList,
    Phase,
    SealedShares,
    ShareDelivery,
    SurvivorSet,
    UnmaskShares,
)
from cachefl_secure.protocol.parameters import RoundParameters
from tests.protocol.rounds import (
    LEDGER_HEAD,
    Federation,
    a_plan,
    exact_sum,
    federation,
    integers,
    lost,
    on_a_ring,
    parameters_for,
    random_updates,
    run_round,
)
from tests.protocol.table import body_of
from tests.simulation.primitives import remember_primitives


def small() -> Federation:
    """Twelve silos, six neighbours each, shares of four recover a secret, two survivors in any three in a row."""
    return federation(on_a_ring(parameters_for(12, dimension=9, colluders=1), 6, 4, 2))


@pytest.mark.claim("C2")
@pytest.mark.parametrize(
    "phase", [Phase.ADVERTISE, Phase.SHARE, Phase.MASKED_INPUT, Phase.CERTIFY, Phase.CERTIFICATE]
)
def test_the_sum_is_exact_whichever_silo_drops_out(phase: Phase) -> None:
    fed = small()
    updates = random_updates(fed)
    early = phase in (Phase.ADVERTISE, Phase.SHARE, Phase.MASKED_INPUT)
    for gone in fed.silos:
        finished = run_round(fed, updates, lost(phase, gone))
        rest = tuple(silo for silo in fed.silos if not (early and silo == gone))
        assert integers(finished.total) == exact_sum(updates, rest)


@pytest.mark.claim("C2")
@pytest.mark.claim("C4")
def test_of_all_pairs_that_may_drop_out_those_that_thin_the_ring_end_the_round_and_the_others_do_not() -> (
    None
):
    fed = small()
    updates, graph = random_updates(fed), fed.coordinator()._attempt.graph
    outcomes = {True: 0, False: 0}
    for pair in itertools.combinations(fed.silos, 2):
        rest = tuple(silo for silo in fed.silos if silo not in pair)
        thick = graph.thinnest(rest) >= 2
        outcomes[thick] += 1
        if thick:
            total = run_round(fed, updates, lost(Phase.MASKED_INPUT, *pair)).total
            assert integers(total) == exact_sum(updates, rest)
        else:
            with pytest.raises(RoundAborted) as raised:
                run_round(fed, updates, lost(Phase.MASKED_INPUT, *pair))
            assert (raised.value.present, raised.value.threshold) == (1, 2)
    assert outcomes == {True: 42, False: 24}  # 12 places for a pair at distance 1, 12 at distance 2


@pytest.mark.claim("C1")
def test_shares_are_dealt_delivered_and_revealed_among_neighbours_only() -> None:
    fed = small()
    graph = fed.coordinator()._attempt.graph
    finished = run_round(fed, random_updates(fed), lost(Phase.MASKED_INPUT, fed.silos[3]))
    for silo in fed.silos:
        others = [other for other in graph.holders(silo) if other != silo]
        assert len(others) == 6
        dealt = body_of(finished.seen[Phase.SHARE][silo], SealedShares)
        assert [sealed.silo for sealed in dealt.sealed] == others
        delivered = body_of(finished.seen[Phase.SHARE_DELIVERY][silo], ShareDelivery)
        assert [sealed.silo for sealed in delivered.sealed] == others
        assert delivered.sharers == fed.silos
        if silo != fed.silos[3]:
            revealed = body_of(finished.seen[Phase.UNMASK][silo], UnmaskShares)
            assert {share.silo for share in (*revealed.self_mask, *revealed.mask_key)} == {silo, *others}


@pytest.mark.claim("C4")
def test_a_silo_refuses_lists_that_thin_the_ring() -> None:
    """A coordinator that knows the ring says that two neighbours in a row have dropped out."""
    fed = small()
    coordinator, updates = fed.coordinator(), random_updates(fed)
    attempt, silos = coordinator._attempt, {silo: fed.silo(silo) for silo in fed.silos}
    graph = attempt.graph
    me, gone = graph.ring[0], set(graph.ring[4:6])
    kept = tuple(silo for silo in fed.silos if silo not in gone)

    def say(body: KeyList | ShareDelivery | SurvivorSet) -> bytes:
        seen = silos[me]._state.view
        return wire.encode(attempt.sign(body, COORDINATOR, fed.identities[COORDINATOR], seen))

    lists = coordinator.on_advertisements({s: x.advertise() for s, x in silos.items()})
    key_list = body_of(lists[me], KeyList)
    with pytest.raises(PeerError, match="leaves 1 silos in a row on the ring, not 2"):
        silos[me].on_key_list(
            say(KeyList(tuple(signed for signed in key_list.advertisements if signed.sender in kept)))
        )
    deliveries = coordinator.on_sealed_shares({s: x.on_key_list(lists[s]) for s, x in silos.items()})
    delivery = body_of(deliveries[me], ShareDelivery)
    thin = ShareDelivery(kept, tuple(sealed for sealed in delivery.sealed if sealed.silo in kept))
    with pytest.raises(PeerError, match="in a row"):
        silos[me].on_share_delivery(say(thin), updates[me], LEDGER_HEAD)
    sets = coordinator.on_masked_inputs(
        {s: x.on_share_delivery(deliveries[s], updates[s], LEDGER_HEAD) for s, x in silos.items()}
    )
    proposal = body_of(sets[me], SurvivorSet)
    with pytest.raises(SurvivorSetRejected, match="in a row"):
        silos[me].on_survivor_set(say(SurvivorSet(tuple(h for h in proposal.headers if h.silo in kept))))


def test_a_forged_key_of_a_neighbour_is_refused_and_another_silos_has_no_use() -> None:
    fed = small()
    coordinator = fed.coordinator()
    silos = {silo: fed.silo(silo) for silo in fed.silos}
    lists = coordinator.on_advertisements({s: x.advertise() for s, x in silos.items()})
    me = fed.silos[0]
    key_list = body_of(lists[me], KeyList)
    neighbours = set(coordinator._attempt.graph.holders(me)) - {me}
    refused = set()
    for other in fed.silos[1:]:
        forged = tuple(
            msgspec.structs.replace(signed, signature=bytes(64)) if signed.sender == other else signed
            for signed in key_list.advertisements
        )
        message = wire.encode(
            coordinator._attempt.sign(KeyList(forged), COORDINATOR, fed.identities[COORDINATOR])
        )
        session = fed.silo(me)
        session.advertise()
        try:
            session.on_key_list(message)
        except BadSignature:
            refused.add(other)
    assert refused == neighbours


@pytest.mark.slow
@pytest.mark.claim("C2")
def test_a_thousand_silos_with_a_tenth_of_dropouts_get_the_exact_sum_of_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    remember_primitives(monkeypatch)  # one process plays all: a signature is verified once, not 900 times
    plan = a_plan(colluders=100)
    derived = RoundParameters.derive(plan, 1000, 1000)
    assert derived.ring == Ring(160, 116, 50, 100)
    fed = federation(replace(derived, dimension=33))
    updates = random_updates(fed)
    graph = fed.coordinator()._attempt.graph
    gone = fed.silos[5:1000:10]
    rest = tuple(silo for silo in fed.silos if silo not in gone)
    assert graph.thinnest(rest) >= 50
    late = fed.silos[7:1000:40]  # their inputs arrive, and nothing after that

    def fault(phase: Phase, silo: SiloId, message: bytes) -> bytes | None:
        dropped = lost(Phase.MASKED_INPUT, *gone)(phase, silo, message)
        return dropped and lost(Phase.CERTIFICATE, *late)(phase, silo, dropped)

    finished = run_round(fed, updates, fault)
    assert finished.coordinator.survivors == rest
    assert integers(finished.total) == exact_sum(updates, rest)
    silo = rest[0]
    sizes = {phase: len(messages[silo]) for phase, messages in finished.seen.items()}
    assert sum(sizes.values()) - sizes[Phase.MASKED_INPUT] < 500_000
