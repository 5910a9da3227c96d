"""What a silo and the coordinator refuse: every rule at the top of ``protocol.silo``, broken on purpose.

The coordinator of these tests is honest about its signature and nothing else: it holds the real key.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from cachefl_secure.crypto.sign import SigningKey
from cachefl_secure.errors import (
    BadSignature,
    LocalProtocolError,
    MalformedMessage,
    PeerError,
    SharesRejected,
    SurvivorSetRejected,
    UnexpectedMessage,
)
from cachefl_secure.names import COORDINATOR, SiloId
from cachefl_secure.protocol import wire
from cachefl_secure.protocol.coordinator import CoordinatorSession
from cachefl_secure.protocol.messages import (
    Advertisement,
    Certificate,
    KeyList,
    MaskedInput,
    Phase,
    RevealedShare,
    SealedShare,
    SealedShares,
    ShareDelivery,
    Signed,
    UnmaskShares,
)
from cachefl_secure.protocol.vectors import EncodedUpdate
from tests.protocol.rounds import (
    LEDGER_HEAD,
    exact_sum,
    federation,
    fixed,
    integers,
    masked_words,
    parameters_for,
    random_updates,
    run_round,
)
from tests.protocol.table import Table, body_of, signed

# --- order and repetition -------------------------------------------------------------------------


@pytest.mark.claim("C6")
def test_messages_out_of_order_are_refused_and_change_nothing() -> None:
    table, ahead = Table(), Table()
    certificate, survivor_set = ahead.to_certificate(), ahead.sets[ahead.me]
    key_list, delivery = ahead.lists[ahead.me], ahead.deliveries[ahead.me]
    session = table.session
    steps: list[Callable[[], bytes]] = [
        lambda: session.on_key_list(key_list),
        lambda: session.on_share_delivery(delivery, table.update, LEDGER_HEAD),
        lambda: session.on_survivor_set(survivor_set),
        lambda: session.on_certificate(certificate),
    ]
    legal = [lambda: session.advertise(), *steps]
    for at in range(5):
        for step in steps[at:]:
            with pytest.raises(UnexpectedMessage):
                step()
        legal[at]()


@pytest.mark.claim("C6")
def test_a_repeated_message_gets_the_saved_reply_byte_for_byte() -> None:
    table = Table()
    certificate, survivor_set = table.to_certificate(), table.sets[table.me]
    session, key_list, delivery = table.session, table.lists[table.me], table.deliveries[table.me]
    other_update = table.updates[table.others[0]]
    first = session.on_certificate(certificate)
    assert session.advertise() == session.advertise()
    assert session.on_key_list(key_list) == session.on_key_list(key_list)
    replies = [session.on_share_delivery(delivery, u, LEDGER_HEAD) for u in (table.update, other_update)]
    assert replies[0] == replies[1]  # no second vector under the same masks, whatever the caller hands in
    assert session.on_survivor_set(survivor_set) == table.statements[table.me]
    assert session.on_certificate(certificate) == first


@pytest.mark.claim("C6")
def test_a_second_different_message_of_an_answered_phase_is_refused() -> None:
    table = Table()
    certificate = body_of(table.to_certificate(), Certificate)
    session = table.session
    session.on_certificate(table.certificates[table.me])
    key_list = body_of(table.lists[table.me], KeyList)
    smaller = table.say(KeyList(key_list.advertisements[:4]))
    with pytest.raises(UnexpectedMessage, match="different key-list"):
        session.on_key_list(smaller)
    delivery = body_of(table.deliveries[table.me], ShareDelivery)
    fewer = table.say(ShareDelivery(delivery.sharers[:4], delivery.sealed[:3]))
    with pytest.raises(UnexpectedMessage, match="different share-delivery"):
        session.on_share_delivery(fewer, table.update, LEDGER_HEAD)
    with pytest.raises(SurvivorSetRejected, match="different survivor-set"):
        session.on_survivor_set(table.proposal(table.fed.silos[:4]))
    with pytest.raises(UnexpectedMessage, match="different certificate"):
        session.on_certificate(table.say(Certificate(certificate.signatures[:3])))


@pytest.mark.claim("C1")
def test_one_session_never_reveals_both_kinds_of_share_of_a_silo() -> None:
    """The attack on Flower's SecAgg+: first as a survivor, then as dropped. Also within one message."""
    table = Table()
    certificate = table.to_certificate()
    victim = table.fed.silos[4]
    answer = table.session.on_certificate(certificate)
    with pytest.raises(SurvivorSetRejected):
        table.session.on_survivor_set(table.proposal(s for s in table.fed.silos if s != victim))
    revealed = body_of(answer, UnmaskShares)
    assert victim in {share.silo for share in revealed.self_mask}
    assert revealed.mask_key == ()


# --- corruption -----------------------------------------------------------------------------------


@pytest.mark.claim("C6")
@pytest.mark.parametrize(
    "phase", [Phase.KEY_LIST, Phase.SHARE_DELIVERY, Phase.SURVIVOR_SET, Phase.CERTIFICATE]
)
def test_a_flipped_bit_on_the_way_to_a_silo_is_refused_and_the_true_message_still_answered(
    phase: Phase,
) -> None:
    table = Table()
    step: Callable[[bytes], bytes]
    if phase is Phase.KEY_LIST:
        message = table.to_key_list()
        step = table.session.on_key_list
    elif phase is Phase.SHARE_DELIVERY:
        message = table.to_delivery()
        step = lambda data: table.session.on_share_delivery(data, table.update, LEDGER_HEAD)  # noqa: E731
    elif phase is Phase.SURVIVOR_SET:
        message = table.to_survivor_set()
        step = table.session.on_survivor_set
    else:
        message = table.to_certificate()
        step = table.session.on_certificate
    for position in _positions(len(message)):
        with pytest.raises(PeerError):
            step(_flip(message, position))
    assert signed(step(message)).sender == table.me


@pytest.mark.claim("C6")
@pytest.mark.parametrize(
    "phase", [Phase.ADVERTISE, Phase.SHARE, Phase.MASKED_INPUT, Phase.CERTIFY, Phase.UNMASK]
)
def test_a_flipped_bit_on_the_way_to_the_coordinator_drops_that_silo_and_keeps_the_sum_exact(
    phase: Phase,
) -> None:
    fed = federation(parameters_for(5, dimension=17, colluders=1))
    updates, victim = random_updates(fed), fed.silos[3]
    size = len(run_round(fed, updates).seen[phase][victim])
    for position in _positions(size, count=12):

        def fault(at: Phase, silo: SiloId, message: bytes, position: int = position) -> bytes:
            return _flip(message, position) if (at, silo) == (phase, victim) else message

        finished = run_round(fed, updates, fault)
        assert set(finished.coordinator.rejected) == {victim}
        survivors = (
            fed.silos
            if phase in (Phase.CERTIFY, Phase.UNMASK)
            else tuple(s for s in fed.silos if s != victim)
        )
        assert integers(finished.total) == exact_sum(updates, survivors)


@pytest.mark.claim("C6")
def test_messages_of_another_silo_phase_attempt_or_federation_are_refused() -> None:
    table = Table()
    a, b = table.others[:2]
    later = table.fed.with_manifest(attempt=2)
    stranger = replace(table.fed, identities={**table.fed.identities, b: SigningKey(fixed("stranger"))})
    honest = {silo: session.advertise() for silo, session in table.sessions.items()}
    swapped = {**honest, a: honest[b]}
    coordinator = table.fed.coordinator()
    coordinator.on_advertisements(swapped)
    assert isinstance(coordinator.rejected[a], UnexpectedMessage)
    coordinator = table.fed.coordinator()
    coordinator.on_advertisements({**honest, a: later.silo(a).advertise()})
    assert isinstance(coordinator.rejected[a], BadSignature)
    coordinator = table.fed.coordinator()
    advertisement = body_of(honest[b], Advertisement)
    forged = table.say(advertisement, b, stranger.identities[b])
    coordinator.on_advertisements({**honest, b: forged, SiloId("outsider"): honest[a]})
    assert isinstance(coordinator.rejected[b], BadSignature)
    assert isinstance(coordinator.rejected[SiloId("outsider")], UnexpectedMessage)
    with pytest.raises(PeerError):
        table.session.on_key_list(honest[a])


def test_a_message_in_the_wrong_phase_is_refused_by_the_coordinator() -> None:
    table = Table()
    table.to_key_list()
    a = table.others[0]
    answers = {silo: x.on_key_list(table.lists[silo]) for silo, x in table.sessions.items()}
    answers[a] = table.sessions[a].advertise()
    table.coordinator.on_sealed_shares(answers)
    assert isinstance(table.coordinator.rejected[a], UnexpectedMessage)


# --- the key list ---------------------------------------------------------------------------------


@pytest.mark.claim("C6")
def test_a_silo_refuses_a_key_list_that_changes_or_omits_its_own_keys() -> None:
    table = Table()
    key_list = body_of(table.to_key_list(), KeyList)
    without = KeyList(tuple(s for s in key_list.advertisements if s.sender != table.me))
    with pytest.raises(PeerError, match="omits this silo"):
        table.session.on_key_list(table.say(without))
    other = table.fed.silo(table.me, table.fed.with_manifest(attempt=9).secrets(table.me)).advertise()
    with pytest.raises(PeerError, match="changes this silo's advertisement"):
        table.session.on_key_list(table.say(_replace_advertisement(key_list, signed(other))))


@pytest.mark.claim("C6")
def test_a_silo_refuses_keys_that_another_silo_did_not_sign() -> None:
    """The coordinator puts its own keys in the place of a peer's: everything that peer gets would be readable."""
    table = Table()
    key_list = body_of(table.to_key_list(), KeyList)
    peer = table.others[2]
    own_keys = Advertisement(table.fed.secrets(table.me).mask_key.public_key, bytes(31) + b"\x09")
    coordinator_key = table.fed.identities[COORDINATOR]
    forged = table.attempt.sign(own_keys, peer, coordinator_key)
    moved = _replace_signature(forged, signed(table.sessions[peer].advertise()).signature)
    later = signed(table.fed.with_manifest(attempt=2).silo(peer).advertise())
    for bad in (forged, moved, later):
        with pytest.raises(BadSignature) as raised:
            table.session.on_key_list(table.say(_replace_advertisement(key_list, bad)))
        assert raised.value.peer == peer


def test_a_silo_refuses_a_key_list_of_too_few_or_of_strangers() -> None:
    table = Table()
    key_list = body_of(table.to_key_list(), KeyList)
    with pytest.raises(PeerError, match="3 silos, too few"):
        table.session.on_key_list(table.say(KeyList(key_list.advertisements[:3])))
    keys = body_of(table.sessions[table.others[0]].advertise(), Advertisement)
    stranger = table.attempt.sign(keys, "zz-stranger", SigningKey(fixed("stranger")))
    with pytest.raises(PeerError, match="outside 5 known ones"):
        table.session.on_key_list(table.say(KeyList((*key_list.advertisements, stranger))))


def test_a_silo_refuses_a_peers_key_of_low_order_and_the_coordinator_drops_that_peer() -> None:
    table = Table()
    key_list = body_of(table.to_key_list(), KeyList)
    peer = table.others[2]
    for keys in (
        Advertisement(table.fed.secrets(peer).mask_key.public_key, bytes(32)),
        Advertisement(bytes(32), table.fed.secrets(peer).channel_key.public_key),
    ):
        bad = table.attempt.sign(keys, peer, table.fed.identities[peer])
        coordinator = table.fed.coordinator()
        answers = {silo: session.advertise() for silo, session in table.sessions.items()}
        lists = coordinator.on_advertisements({**answers, peer: wire.encode(bad)})
        assert set(coordinator.rejected) == {peer}
        assert peer not in lists
    bad_channel = table.attempt.sign(
        Advertisement(table.fed.secrets(peer).mask_key.public_key, bytes(32)),
        peer,
        table.fed.identities[peer],
    )
    with pytest.raises(PeerError, match="unusable"):
        table.session.on_key_list(table.say(_replace_advertisement(key_list, bad_channel)))


# --- shares ---------------------------------------------------------------------------------------


def test_a_silo_refuses_a_share_set_that_omits_it_is_too_small_or_names_strangers() -> None:
    table = Table()
    delivery = body_of(table.to_delivery(), ShareDelivery)
    me, by_dealer = table.me, {sealed.silo: sealed for sealed in delivery.sealed}

    def deliver(sharers: tuple[SiloId, ...]) -> bytes:
        sealed = tuple(by_dealer.get(s, SealedShare(s, bytes(88))) for s in sharers if s != me)
        return table.say(ShareDelivery(sharers, sealed))

    for sharers, why in [
        (tuple(table.others), "omits this silo"),
        (table.fed.silos[:3], "too few"),
        ((*table.fed.silos, SiloId("zz-stranger")), "outside"),
    ]:
        with pytest.raises(PeerError, match=why):
            table.session.on_share_delivery(deliver(sharers), table.update, LEDGER_HEAD)
    mismatched = table.say(ShareDelivery(table.fed.silos, delivery.sealed[:-1]))
    with pytest.raises(PeerError, match="do not match"):
        table.session.on_share_delivery(mismatched, table.update, LEDGER_HEAD)


@pytest.mark.claim("C6")
def test_a_share_opens_only_for_its_dealer_holder_and_attempt() -> None:
    table = Table()
    delivery = body_of(table.to_delivery(), ShareDelivery)
    neighbour = body_of(table.deliveries[table.others[0]], ShareDelivery)
    from_third = {sealed.silo: sealed.ciphertext for sealed in neighbour.sealed}
    first, second = delivery.sealed[0], delivery.sealed[1]
    swapped = (
        SealedShare(first.silo, second.ciphertext),
        SealedShare(second.silo, first.ciphertext),
        *delivery.sealed[2:],
    )
    for_another = (
        first,
        SealedShare(second.silo, from_third[second.silo]),
        *delivery.sealed[2:],
    )
    for sealed in (swapped, for_another):
        with pytest.raises(PeerError, match="does not open"):
            table.session.on_share_delivery(
                table.say(ShareDelivery(delivery.sharers, sealed)), table.update, LEDGER_HEAD
            )


def test_a_silo_refuses_an_update_that_was_encoded_for_other_parameters() -> None:
    table = Table()
    delivery = table.to_delivery()
    for words in (np.zeros(16, "<u2"), np.zeros(17, "<u4")):
        with pytest.raises(LocalProtocolError):
            table.session.on_share_delivery(delivery, EncodedUpdate(words, np.zeros(1, "<u8")), LEDGER_HEAD)


# --- the survivor set -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("survivors", "why"),
    [
        (lambda table: tuple(table.others), "omits this silo"),
        (lambda table: table.fed.silos[:3], "too few"),
        (lambda table: (), "omits this silo"),
        (lambda table: (*table.fed.silos, SiloId("zz-stranger")), "outside"),
    ],
)
def test_a_survivor_set_that_breaks_a_rule_is_refused(
    survivors: Callable[[Table], tuple[SiloId, ...]], why: str
) -> None:
    table = Table()
    table.to_survivor_set()
    with pytest.raises(SurvivorSetRejected, match=why):
        table.session.on_survivor_set(table.proposal(survivors(table)))
    assert table.session.on_survivor_set(
        table.sets[table.me]
    )  # nothing was answered, so the true one may come


def test_a_survivor_must_have_shared() -> None:
    """U3 within U2: a silo of U1 that did not share holds no shares and no masks."""
    table = Table()
    table.to_key_list()
    gone = table.fed.silos[4]
    shares = {s: x.on_key_list(table.lists[s]) for s, x in table.sessions.items() if s != gone}
    deliveries = table.coordinator.on_sealed_shares(shares)
    table.inputs = {
        table.me: table.session.on_share_delivery(deliveries[table.me], table.update, LEDGER_HEAD)
    }
    with pytest.raises(SurvivorSetRejected, match="outside"):
        table.session.on_survivor_set(table.proposal(table.fed.silos))


def test_each_silo_gets_exactly_one_kind_of_share_revealed() -> None:
    table = Table()
    table.to_delivery()
    dropped = table.fed.silos[3]
    survivors = tuple(s for s in table.fed.silos if s != dropped)
    inputs = {
        s: table.sessions[s].on_share_delivery(table.deliveries[s], table.updates[s], LEDGER_HEAD)
        for s in survivors
    }
    sets = table.coordinator.on_masked_inputs(inputs)
    statements = {s: table.sessions[s].on_survivor_set(sets[s]) for s in survivors}
    certificate = table.coordinator.on_statements(statements)[table.me]
    answer = body_of(table.session.on_certificate(certificate), UnmaskShares)
    assert tuple(share.silo for share in answer.self_mask) == survivors
    assert [share.silo for share in answer.mask_key] == [dropped]


# --- what the coordinator checks of a well-signed answer ------------------------------------------


def test_shares_for_the_wrong_silos_drop_the_dealer() -> None:
    table = Table()
    table.to_key_list()
    answers = {silo: x.on_key_list(table.lists[silo]) for silo, x in table.sessions.items()}
    dealer = table.others[3]
    shares = body_of(answers[dealer], SealedShares)
    answers[dealer] = table.say(SealedShares(shares.self_mask_commitment, shares.sealed[1:]), dealer)
    deliveries = table.coordinator.on_sealed_shares(answers)
    assert isinstance(table.coordinator.rejected[dealer], MalformedMessage)
    assert dealer not in deliveries


@pytest.mark.parametrize("more", ["empty", -1, 1, 8])
def test_a_vector_of_another_length_drops_its_silo(more: int | str) -> None:
    table = Table()
    size = table.fed.parameters.packed_bytes + more if isinstance(more, int) else 0
    table.to_delivery()
    bad = table.others[3]
    inputs = {
        silo: x.on_share_delivery(table.deliveries[silo], table.updates[silo], LEDGER_HEAD)
        for silo, x in table.sessions.items()
    }
    inputs[bad] = table.say(MaskedInput(bytes(size), bytes(8), LEDGER_HEAD), bad)
    table.coordinator.on_masked_inputs(inputs)
    assert isinstance(table.coordinator.rejected[bad], MalformedMessage)
    assert bad not in table.coordinator.survivors


@pytest.mark.claim("C6")
def test_wrong_but_well_signed_shares_never_give_a_wrong_sum() -> None:
    """A holder lies about one share of four, and four are needed: there is no sum, and it is among the suspects."""
    coordinators: list[CoordinatorSession] = []
    for kind in ("self_mask", "mask_key"):
        table = Table()
        table.to_delivery()
        dropped, liar = table.fed.silos[4], table.fed.silos[0]
        inputs = {
            silo: x.on_share_delivery(table.deliveries[silo], table.updates[silo], LEDGER_HEAD)
            for silo, x in table.sessions.items()
            if silo != dropped
        }
        sets = table.coordinator.on_masked_inputs(inputs)
        statements = {silo: table.sessions[silo].on_survivor_set(data) for silo, data in sets.items()}
        certificates = table.coordinator.on_statements(statements)
        answers = {silo: table.sessions[silo].on_certificate(data) for silo, data in certificates.items()}
        honest = body_of(answers[liar], UnmaskShares)
        shares: tuple[RevealedShare, ...] = getattr(honest, kind)
        lie = RevealedShare(shares[0].silo, bytes(36))
        answers[liar] = table.say(
            msgspec.structs.replace(honest, **{kind: (lie, *shares[1:])}),
            liar,
        )
        with pytest.raises(SharesRejected) as raised:
            table.coordinator.on_unmask_shares(answers)
        assert liar in raised.value.suspects
        coordinators.append(table.coordinator)
    for coordinator in coordinators:
        with pytest.raises(LocalProtocolError):
            _ = coordinator.transcript_digest


@pytest.mark.claim("C6")
@pytest.mark.parametrize("kind", ["self_mask", "mask_key"])
def test_holders_that_lie_together_are_caught_by_what_the_dealer_published(kind: str) -> None:
    """All add 8 to the first limb of a share: that recovers a well-formed secret, 8 larger than the true one."""
    table = Table()
    table.to_delivery()
    dropped = table.fed.silos[4]
    inputs = {
        silo: x.on_share_delivery(table.deliveries[silo], table.updates[silo], LEDGER_HEAD)
        for silo, x in table.sessions.items()
        if silo != dropped
    }
    sets = table.coordinator.on_masked_inputs(inputs)
    statements = {silo: table.sessions[silo].on_survivor_set(data) for silo, data in sets.items()}
    answers = {}
    for silo, data in table.coordinator.on_statements(statements).items():
        honest = body_of(table.sessions[silo].on_certificate(data), UnmaskShares)
        first, *rest = getattr(honest, kind)
        limb = (int.from_bytes(first.share[:4], "little") + 8) % (2**31 - 1)
        lie = RevealedShare(first.silo, limb.to_bytes(4, "little") + first.share[4:])
        answers[silo] = table.say(msgspec.structs.replace(honest, **{kind: (lie, *rest)}), silo)
    with pytest.raises(SharesRejected, match="no shares fit its commitment"):
        table.coordinator.on_unmask_shares(answers)


def test_shares_of_other_silos_than_asked_drop_the_holder() -> None:
    table = Table()
    table.to_certificate()
    answers = {silo: table.sessions[silo].on_certificate(data) for silo, data in table.certificates.items()}
    odd = table.others[0]
    honest = body_of(answers[odd], UnmaskShares)
    answers[odd] = table.say(UnmaskShares(honest.self_mask[1:], ()), odd)
    total = table.coordinator.on_unmask_shares(answers)
    assert isinstance(table.coordinator.rejected[odd], MalformedMessage)
    assert integers(total) == exact_sum(table.updates, table.fed.silos)


@pytest.mark.claim("C3")
def test_the_masked_input_differs_from_the_update_in_every_attempt() -> None:
    """The same sealed update goes out again under fresh masks: that is a retry, and it is free."""
    fed = federation(parameters_for(5, dimension=2000, colluders=1))
    updates = random_updates(fed)
    rounds = [run_round(f, updates) for f in (fed, fed.with_manifest(attempt=2))]
    sent = [
        [masked_words(body_of(r.seen[Phase.MASKED_INPUT][s], MaskedInput), fed.parameters) for s in fed.silos]
        for r in rounds
    ]
    for silo, (first, second) in enumerate(zip(*sent, strict=True)):
        plain = updates[fed.silos[silo]].words % 2**fed.parameters.vector_bits
        for a, b in ((first, second), (first, plain), (second, plain)):
            assert np.count_nonzero(a == b) < 20  # 2000 / 2^10 by chance
    assert integers(rounds[0].total) == integers(rounds[1].total)


def _positions(size: int, count: int = 60) -> list[int]:
    """Bit positions over the whole message, both ends included."""
    return sorted({round(i * (8 * size - 1) / (count - 1)) for i in range(count)})


def _flip(message: bytes, bit: int) -> bytes:
    return message[: bit // 8] + bytes([message[bit // 8] ^ 1 << bit % 8]) + message[bit // 8 + 1 :]


def _replace_advertisement(key_list: KeyList, by: Signed) -> KeyList:
    return KeyList(tuple(by if s.sender == by.sender else s for s in key_list.advertisements))


def _replace_signature(message: Signed, signature: bytes) -> Signed:
    return msgspec.structs.replace(message, signature=signature)
