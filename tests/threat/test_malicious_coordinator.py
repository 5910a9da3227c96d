"""A malicious coordinator lies differently to each silo and pools everything with up to f of them.

C4 says that it gets at most one survivor set of an attempt answered. Here it holds its genuine key and the
genuine keys of the silos that collude with it, plays real rounds with real silos, and tries; each attempt
fails with a named error, and nothing is revealed.

Not shown here: that one answered set per attempt is all that secrecy needs against such a coordinator (N16).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import product

import msgspec
import pytest

from cachefl_secure.crypto.sign import SigningKey
from cachefl_secure.errors import (
    BadSignature,
    MalformedMessage,
    PeerError,
    RoundAborted,
    SurvivorSetRejected,
    UnexpectedMessage,
)
from cachefl_secure.names import COORDINATOR, Digest, SiloId
from cachefl_secure.protocol import wire
from cachefl_secure.protocol.attempt import body_digest
from cachefl_secure.protocol.messages import (
    Certificate,
    Header,
    MaskedInput,
    Phase,
    ShareDelivery,
    Signed,
    Statement,
    StatementSignature,
    SurvivorSet,
    UnmaskShares,
)
from tests.protocol.rounds import (
    LEDGER_HEAD,
    federation,
    fixed,
    lost,
    parameters_for,
    random_updates,
    run_round,
)
from tests.protocol.table import Table, body_of, signed

pytestmark = pytest.mark.claim("C4")


def at_the_masked_inputs(n: int = 6) -> Table:
    """All masked inputs have arrived; no survivor set was proposed to anybody."""
    table = Table(n)
    table.to_survivor_set()
    return table


def signature_of(data: bytes) -> StatementSignature:
    envelope = signed(data)
    return StatementSignature(envelope.sender, envelope.signature)


def certificate(table: Table, signatures: Iterable[StatementSignature], to: SiloId | None = None) -> bytes:
    return table.say(Certificate(tuple(sorted(signatures, key=lambda s: s.silo))), to=to)


def certified_views(table: Table, colluders: Iterable[SiloId], shown: dict[SiloId, bytes]) -> list[bytes]:
    """The proposals that end up answered by some honest silo, when colluders sign all of them.

    ``shown`` says which proposal each honest silo gets. Certificates are offered to every honest silo.
    """
    proposals = sorted(set(shown.values()))
    by_proposal: dict[bytes, list[StatementSignature]] = {}
    for proposal in proposals:
        replies = [
            table.sessions[s].on_survivor_set(proposal) for s, seen in shown.items() if seen == proposal
        ]
        statement = body_of(replies[0], Statement)
        replies += [table.say(statement, silo) for silo in colluders]
        survivors = body_of(proposal, SurvivorSet).survivors
        by_proposal[proposal] = [signature_of(r) for r in replies if signed(r).sender in survivors]
    answered = set()
    for silo, (proposal, signatures) in product(shown, by_proposal.items()):
        try:
            table.sessions[silo].on_certificate(certificate(table, signatures, silo))
        except (SurvivorSetRejected, BadSignature, UnexpectedMessage):
            continue
        assert shown[silo] == proposal
        answered.add(proposal)
    return sorted(answered)


def split(table: Table, colluders: tuple[SiloId, ...], first_view: Iterable[SiloId]) -> list[bytes]:
    """Two views, with and without a victim that only the silos of the first are told about."""
    victim = table.fed.silos[-1]
    everybody = table.proposal(table.fed.silos)
    without = table.proposal(s for s in table.fed.silos if s != victim)
    honest = [s for s in table.fed.silos if s not in colluders]
    # The victim itself refuses a set that omits it, so it always gets the first.
    shown = {s: everybody if s in (victim, *first_view) else without for s in honest}
    return certified_views(table, colluders, shown)


def every_split(honest: list[SiloId]) -> list[list[SiloId]]:
    picks = product((False, True), repeat=len(honest))
    return [[s for s, first in zip(honest, pick, strict=True) if first] for pick in picks]


@pytest.mark.parametrize("n", [5, 6])
def test_however_it_splits_the_silos_at_most_one_survivor_set_is_answered(n: int) -> None:
    """All ways to show n silos, one of them a colluder, two sets that differ by a victim."""
    outcomes = []
    for first_view in every_split(list(at_the_masked_inputs(n).fed.silos[1 : n - 1])):
        table = at_the_masked_inputs(n)
        outcomes.append(len(split(table, table.fed.silos[:1], first_view)))
    assert max(outcomes) == 1
    assert n == 6 or 0 in outcomes  # five silos may be split so that neither set has a quorum


def test_with_more_colluders_than_planned_a_split_does_succeed() -> None:
    """The control: N3 is real, and the test above can fail."""
    outcomes = []
    for first_view in every_split(list(at_the_masked_inputs().fed.silos[2:5])):
        table = at_the_masked_inputs()
        outcomes.append(len(split(table, table.fed.silos[:2], first_view)))
    assert max(outcomes) == 2


def test_a_colluder_that_sends_two_inputs_does_not_get_both_certified() -> None:
    """Same names in both views, another masked input of the colluder: the statements differ."""
    for first_view in every_split(list(at_the_masked_inputs().fed.silos[1:])):
        table = at_the_masked_inputs()
        colluder, *honest = table.fed.silos
        one = table.proposal(table.fed.silos)
        table.inputs[colluder] = table.say(MaskedInput(bytes(34), bytes(8), LEDGER_HEAD), colluder)
        other = table.proposal(table.fed.silos)
        assert one != other
        shown = {silo: one if silo in first_view else other for silo in honest}
        assert len(certified_views(table, (colluder,), shown)) <= 1


def test_silos_that_saw_different_share_sets_sign_nothing_about_each_other() -> None:
    """A masked input is signed under the share set that its silo saw: for silos that saw another it is no header."""
    table = Table(6)
    table.to_delivery()
    a, b, gone = table.fed.silos[1], table.fed.silos[2], table.fed.silos[5]
    whole = body_of(table.deliveries[b], ShareDelivery)
    smaller = table.say(ShareDelivery(whole.sharers[:5], whole.sealed[:-1]), to=b)
    table.inputs = {
        silo: table.sessions[silo].on_share_delivery(
            smaller if silo == b else table.deliveries[silo], table.updates[silo], LEDGER_HEAD
        )
        for silo in table.fed.silos
        if silo != gone
    }
    proposal = table.proposal(table.fed.silos[:5])
    with pytest.raises(BadSignature) as raised:
        table.sessions[a].on_survivor_set(proposal)
    assert raised.value.peer == b
    with pytest.raises(BadSignature) as raised:  # not even the coordinator's own message fits both
        table.sessions[b].on_survivor_set(proposal)
    assert raised.value.peer == COORDINATOR


# --- headers --------------------------------------------------------------------------------------


def _header(table: Table, silo: SiloId, envelope: Signed) -> bytes:
    """The true proposal with another header for one silo."""
    honest = body_of(table.proposal(table.fed.silos), SurvivorSet)
    forged = Header(silo, body_digest(envelope.body), envelope.signature)
    return table.say(SurvivorSet(tuple(forged if h.silo == silo else h for h in honest.headers)))


def _by_the_coordinator(table: Table, silo: SiloId) -> Signed:
    body = MaskedInput(bytes(34), bytes(8), LEDGER_HEAD)
    return table.attempt.sign(body, silo, table.fed.identities[COORDINATOR])


def _of_another_attempt(table: Table, silo: SiloId) -> Signed:
    later = run_round(table.fed.with_manifest(attempt=2), table.updates)
    return signed(later.seen[Phase.MASKED_INPUT][silo])


def _of_another_phase(table: Table, silo: SiloId) -> Signed:
    return signed(table.sessions[silo].advertise())


def _of_another_silo(table: Table, silo: SiloId) -> Signed:
    return signed(table.inputs[next(s for s in table.others if s != silo)])


def _with_another_body(table: Table, silo: SiloId) -> Signed:
    return msgspec.structs.replace(signed(table.inputs[silo]), body=b"another")


@pytest.mark.parametrize(
    "forge",
    [_by_the_coordinator, _of_another_attempt, _of_another_phase, _of_another_silo, _with_another_body],
)
def test_a_survivor_without_its_own_header_of_this_attempt_is_refused(
    forge: Callable[[Table, SiloId], Signed],
) -> None:
    table = at_the_masked_inputs()
    victim = table.others[2]
    with pytest.raises(BadSignature) as raised:
        table.session.on_survivor_set(_header(table, victim, forge(table, victim)))
    assert raised.value.peer == victim
    assert table.session.statement is None
    assert table.session.on_survivor_set(table.sets[table.me])  # nothing was signed, so the true one may come


def test_a_silo_knows_its_own_masked_input() -> None:
    """Even where its genuine key signed another one: a copy of the silo's machine, say."""
    table = at_the_masked_inputs()
    twin = table.attempt.sign(MaskedInput(bytes(34), bytes(8), LEDGER_HEAD), table.me, _key(table, table.me))
    with pytest.raises(SurvivorSetRejected, match="changes this silo's masked input"):
        table.session.on_survivor_set(_header(table, table.me, twin))


def _key(table: Table, silo: str) -> SigningKey:
    return table.fed.identities[silo]


# --- proposals ------------------------------------------------------------------------------------


def test_a_second_different_proposal_is_refused_for_ever() -> None:
    table = at_the_masked_inputs()
    victim = table.fed.silos[-1]
    smaller = table.proposal(s for s in table.fed.silos if s != victim)
    first = table.session.on_survivor_set(table.sets[table.me])
    statement = table.session.statement
    for _ in range(3):
        with pytest.raises(SurvivorSetRejected, match="second, different"):
            table.session.on_survivor_set(smaller)
    assert table.session.on_survivor_set(table.sets[table.me]) == first
    statements = {s: table.sessions[s].on_survivor_set(table.sets[s]) for s in table.fed.silos}
    table.session.on_certificate(certificate(table, map(signature_of, statements.values())))
    with pytest.raises(SurvivorSetRejected, match="second, different"):
        table.session.on_survivor_set(smaller)
    assert table.session.statement == statement


# --- certificates ---------------------------------------------------------------------------------


def signed_by_all(table: Table) -> list[StatementSignature]:
    statements = {s: table.sessions[s].on_survivor_set(table.sets[s]) for s in table.fed.silos}
    return [signature_of(data) for data in statements.values()]


def test_one_signature_short_of_a_quorum_opens_nothing_and_a_quorum_does() -> None:
    table = at_the_masked_inputs()
    signatures, quorum = signed_by_all(table), table.fed.parameters.quorum
    assert quorum == 4
    for few in range(quorum):
        with pytest.raises(SurvivorSetRejected, match=f"certificate of {few} silos, quorum 4"):
            table.session.on_certificate(certificate(table, signatures[:few]))
    assert body_of(table.session.on_certificate(certificate(table, signatures[:quorum])), UnmaskShares)


def test_one_signature_counted_twice_is_no_message() -> None:
    table = at_the_masked_inputs()
    signatures = signed_by_all(table)[:3]
    fields = [["StatementSignature", s.silo, s.signature] for s in (*signatures, signatures[-1])]
    body = msgspec.msgpack.encode(["Certificate", fields])
    honest = signed(certificate(table, signatures))
    # Signed as it would be, were it a message: only the shape is wrong.
    with pytest.raises(ValueError, match="strictly sorted"):
        Certificate((*signatures, signatures[-1]))
    with pytest.raises(MalformedMessage):
        wire.decode(body, Certificate, limit_bytes=10_000, peer=COORDINATOR)
    with pytest.raises(PeerError):
        table.session.on_certificate(wire.encode(msgspec.structs.replace(honest, body=body)))
    # Under another silo's name it is not that silo's signature.
    missing = next(s for s in table.fed.silos if s not in {x.silo for x in signatures})
    moved = StatementSignature(missing, signatures[-1].signature)
    with pytest.raises(BadSignature) as raised:
        table.session.on_certificate(certificate(table, [*signatures, moved]))
    assert raised.value.peer == missing


def test_signatures_of_strangers_and_of_the_coordinator_do_not_count() -> None:
    table = at_the_masked_inputs()
    signatures = signed_by_all(table)
    statement = body_of(table.sessions[table.me].on_survivor_set(table.sets[table.me]), Statement)
    stranger = table.attempt.sign(statement, "zz-stranger", SigningKey(fixed("stranger")))
    outside = StatementSignature(SiloId("zz-stranger"), stranger.signature)
    with pytest.raises(SurvivorSetRejected, match="no survivor"):
        table.session.on_certificate(certificate(table, [*signatures[:3], outside]))
    own = table.attempt.sign(statement, signatures[3].silo, _key(table, COORDINATOR))
    with pytest.raises(BadSignature):
        table.session.on_certificate(
            certificate(table, [*signatures[:3], StatementSignature(signatures[3].silo, own.signature)])
        )


def test_a_silo_outside_the_survivor_set_does_not_count() -> None:
    """A silo of the cohort whose input did not arrive: it was not asked, and may be anybody's."""
    fed = federation(parameters_for(6, dimension=17, colluders=1))
    finished = run_round(fed, random_updates(fed), lost(Phase.MASKED_INPUT, fed.silos[0]))
    table = Table(6)
    silo = table.sessions[fed.silos[1]]
    silo.advertise()
    silo.on_key_list(finished.seen[Phase.KEY_LIST][fed.silos[1]])
    delivery = finished.seen[Phase.SHARE_DELIVERY][fed.silos[1]]
    silo.on_share_delivery(delivery, table.updates[fed.silos[1]], LEDGER_HEAD)
    said = silo.on_survivor_set(finished.seen[Phase.SURVIVOR_SET][fed.silos[1]])
    extra = signature_of(table.say(body_of(said, Statement), fed.silos[0]))
    genuine = [signature_of(data) for data in finished.seen[Phase.CERTIFY].values()]
    with pytest.raises(SurvivorSetRejected, match="no survivor"):
        silo.on_certificate(certificate(table, [extra, *genuine]))
    assert silo.on_certificate(certificate(table, genuine))


@pytest.mark.parametrize("changes", [{"attempt": 2}, {"round": 6}, {"cache_digest": Digest("99" * 32)}])
def test_stale_signatures_do_not_count(changes: dict[str, object]) -> None:
    table = at_the_masked_inputs()
    genuine = signed_by_all(table)
    other = run_round(table.fed.with_manifest(**changes), table.updates)
    stale = [signature_of(data) for data in other.seen[Phase.CERTIFY].values()]
    for signatures in (stale, [*genuine[:3], stale[3]]):
        with pytest.raises(BadSignature):
            table.session.on_certificate(certificate(table, signatures))
    with pytest.raises(BadSignature):
        table.session.on_certificate(other.seen[Phase.CERTIFICATE][table.me])


def test_nothing_is_revealed_without_a_certificate_or_before_this_silo_has_signed() -> None:
    table = at_the_masked_inputs()
    others = {s: table.sessions[s].on_survivor_set(table.sets[s]) for s in table.others}
    genuine = certificate(table, map(signature_of, others.values()), table.others[0])
    with pytest.raises(UnexpectedMessage, match="AwaitingSurvivorSet"):
        table.session.on_certificate(genuine)  # a quorum signed, but not this silo
    table.session.on_survivor_set(table.sets[table.me])
    for instead in (table.sets[table.me], certificate(table, []), table.lists[table.me]):
        with pytest.raises(PeerError):
            table.session.on_certificate(instead)
    assert table.session.on_certificate(genuine)


def test_a_silo_that_signed_another_set_refuses_the_certificate_of_the_others() -> None:
    table = at_the_masked_inputs()
    victim = table.fed.silos[-1]
    table.session.on_survivor_set(table.proposal(s for s in table.fed.silos if s != victim))
    others = {s: table.sessions[s].on_survivor_set(table.sets[s]) for s in table.others}
    with pytest.raises((BadSignature, SurvivorSetRejected)):
        table.session.on_certificate(certificate(table, map(signature_of, others.values())))


# --- an honest coordinator whose silos deviate ----------------------------------------------------


def test_a_silo_that_signs_something_else_drops_out_and_the_round_goes_on() -> None:
    table = at_the_masked_inputs()
    odd = table.others[0]
    statements = {s: table.sessions[s].on_survivor_set(table.sets[s]) for s in table.fed.silos}
    lie = msgspec.structs.replace(body_of(statements[odd], Statement), share_set_digest=Digest("77" * 32))
    certificates = table.coordinator.on_statements({**statements, odd: table.say(lie, odd)})
    assert isinstance(table.coordinator.rejected[odd], BadSignature)  # signed under another view
    assert odd not in certificates
    signers = [signature.silo for signature in body_of(certificates[table.me], Certificate).signatures]
    assert signers == [silo for silo in table.fed.silos if silo != odd][:4]


def test_below_a_quorum_of_signatures_the_round_ends_with_nothing_revealed() -> None:
    fed = federation(parameters_for(6, dimension=17, colluders=1))
    coordinator = fed.coordinator()
    with pytest.raises(RoundAborted) as raised:
        run_round(fed, random_updates(fed), lost(Phase.CERTIFY, *fed.silos[:3]), coordinator=coordinator)
    assert (raised.value.present, raised.value.threshold) == (3, 4)
