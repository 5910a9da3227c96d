"""A signature says what its sender had received: under another view it is none."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cachefl_secure.errors import BadSignature
from cachefl_secure.names import COORDINATOR, Digest, SiloId
from cachefl_secure.protocol import wire
from cachefl_secure.protocol.attempt import NOTHING_YET, share_view
from cachefl_secure.protocol.messages import (
    Body,
    Certificate,
    MaskedInput,
    SealedShares,
    ShareDelivery,
    Statement,
    SurvivorSet,
    UnmaskShares,
)
from tests.protocol.rounds import LEDGER_HEAD
from tests.protocol.table import Table, body_of

Step = Callable[[Table, bytes], bytes]


def other_views(table: Table) -> list[Digest]:
    """Views that this attempt knows or could know, besides the right one."""
    key_list = Digest("ab" * 32)
    return [NOTHING_YET, key_list, share_view(key_list, table.fed.silos), Digest("cd" * 32)]


def under(table: Table, body: Body, sender: str, view: Digest) -> bytes:
    return wire.encode(table.attempt.sign(body, sender, table.fed.identities[sender], view))


TO_A_SILO: dict[type[Body], tuple[Callable[[Table], bytes], Step]] = {
    ShareDelivery: (
        Table.to_delivery,
        lambda table, data: table.session.on_share_delivery(data, table.update, LEDGER_HEAD),
    ),
    SurvivorSet: (Table.to_survivor_set, lambda table, data: table.session.on_survivor_set(data)),
    Certificate: (Table.to_certificate, lambda table, data: table.session.on_certificate(data)),
}


@pytest.mark.claim("C5")
@pytest.mark.parametrize("kind", TO_A_SILO)
def test_a_silo_refuses_what_the_coordinator_signed_for_one_that_had_received_something_else(
    kind: type[Body],
) -> None:
    table, (play, answer) = Table(), TO_A_SILO[kind]
    genuine = play(table)
    body = body_of(genuine, kind)
    for view in other_views(table):
        with pytest.raises(BadSignature) as raised:
            answer(table, under(table, body, COORDINATOR, view))
        assert raised.value.peer == COORDINATOR
    assert answer(table, genuine)


@pytest.mark.claim("C5")
def test_the_coordinator_counts_a_silo_as_dropped_that_had_received_something_else() -> None:
    odd, views = SiloId("silo-003"), other_views(Table(6))
    kinds: tuple[type[Body], ...] = (SealedShares, MaskedInput, Statement)
    for kind, view in zip(kinds, views, strict=False):
        fresh = Table(6)
        if kind is SealedShares:
            fresh.to_key_list()
            answers = {s: x.on_key_list(fresh.lists[s]) for s, x in fresh.sessions.items()}
            step = fresh.coordinator.on_sealed_shares
        elif kind is MaskedInput:
            fresh.to_delivery()
            answers = {
                s: x.on_share_delivery(fresh.deliveries[s], fresh.updates[s], LEDGER_HEAD)
                for s, x in fresh.sessions.items()
            }
            step = fresh.coordinator.on_masked_inputs
        else:
            fresh.to_survivor_set()
            answers = {s: x.on_survivor_set(fresh.sets[s]) for s, x in fresh.sessions.items()}
            step = fresh.coordinator.on_statements
        answers[odd] = under(fresh, body_of(answers[odd], kind), odd, view)
        assert odd not in step(answers)
        assert isinstance(fresh.coordinator.rejected[odd], BadSignature)


@pytest.mark.claim("C4")
def test_shares_revealed_for_another_statement_do_not_count() -> None:
    table, odd = Table(6), SiloId("silo-003")
    table.to_certificate()
    revealed = {s: x.on_certificate(table.certificates[s]) for s, x in table.sessions.items()}
    revealed[odd] = under(table, body_of(revealed[odd], UnmaskShares), odd, Digest("cd" * 32))
    table.coordinator.on_unmask_shares(revealed)
    assert isinstance(table.coordinator.rejected[odd], BadSignature)
