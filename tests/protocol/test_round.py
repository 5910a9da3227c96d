"""Whole rounds: the sum is exact, whoever drops out, and below the threshold there is none."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TypeVar

import numpy as np
import pytest

from cachefl_secure.crypto.sign import SigningKey
from cachefl_secure.errors import BadSignature, LocalProtocolError, PeerError, RoundAborted, UnexpectedMessage
from cachefl_secure.names import Digest, SiloId
from cachefl_secure.protocol import wire
from cachefl_secure.protocol.attempt import open_manifest
from cachefl_secure.protocol.masking import KeySchedule, Masks, mask, sum_masked, unmask
from cachefl_secure.protocol.messages import (
    Body,
    KeyList,
    MaskedInput,
    Phase,
    Signed,
    manifest_digest,
)
from cachefl_secure.protocol.silo_secrets import SiloSecrets
from cachefl_secure.protocol.vectors import EncodedUpdate
from tests.protocol import reference
from tests.protocol.rounds import (
    LEDGER_HEAD,
    Federation,
    exact_sum,
    federation,
    fixed,
    integers,
    lost,
    masked_words,
    parameters_for,
    random_updates,
    run_round,
)

B = TypeVar("B", bound=Body)

WIDE = 1_000_000  # a bound that needs uint32


@pytest.mark.claim("C2")
@pytest.mark.parametrize("bound", [100, WIDE])
@pytest.mark.parametrize(("n", "colluders"), [(3, 0), (3, 1), (5, 1), (8, 2)])
@pytest.mark.parametrize("dimension", [1, 127, 70_001])
def test_with_all_silos_the_aggregate_is_the_integer_sum(
    n: int, colluders: int, dimension: int, bound: int
) -> None:
    fed = federation(parameters_for(n, dimension=dimension, colluders=colluders, bound=bound))
    assert fed.parameters.word.itemsize == (2 if bound == 100 else 4)
    updates = random_updates(fed)
    finished = run_round(fed, updates)
    assert integers(finished.total) == exact_sum(updates, fed.silos)
    assert finished.coordinator.survivors == fed.silos
    assert finished.coordinator.ledger_heads == dict.fromkeys(fed.silos, LEDGER_HEAD)
    assert finished.coordinator.rejected == {}


@pytest.mark.claim("C2")
@pytest.mark.parametrize("bound", [100, WIDE])
@pytest.mark.parametrize(("n", "colluders"), [(4, 0), (5, 1), (6, 1)])
@pytest.mark.parametrize(
    "phase", [Phase.ADVERTISE, Phase.KEY_LIST, Phase.SHARE, Phase.SHARE_DELIVERY, Phase.MASKED_INPUT]
)
def test_any_one_silo_may_drop_out_before_its_input_arrives(
    phase: Phase, n: int, colluders: int, bound: int
) -> None:
    fed = federation(parameters_for(n, dimension=33, colluders=colluders, bound=bound))
    updates = random_updates(fed)
    for gone in fed.silos:
        finished = run_round(fed, updates, lost(phase, gone))
        rest = tuple(silo for silo in fed.silos if silo != gone)
        assert finished.coordinator.survivors == rest
        assert integers(finished.total) == exact_sum(updates, rest)


@pytest.mark.claim("C2")
@pytest.mark.parametrize("phase", [Phase.SURVIVOR_SET, Phase.CERTIFY, Phase.CERTIFICATE, Phase.UNMASK])
@pytest.mark.parametrize(("n", "colluders"), [(3, 0), (5, 1)])
def test_a_silo_that_leaves_after_its_input_arrived_stays_in_the_sum(
    n: int, colluders: int, phase: Phase
) -> None:
    fed = federation(parameters_for(n, dimension=33, colluders=colluders))
    updates = random_updates(fed)
    for gone in fed.silos:
        finished = run_round(fed, updates, lost(phase, gone))
        assert integers(finished.total) == exact_sum(updates, fed.silos)


@pytest.mark.claim("C2")
def test_silos_may_drop_out_in_several_phases_of_one_round() -> None:
    fed = federation(parameters_for(8, dimension=65))
    assert fed.parameters.threshold == 5
    a, b, c = fed.silos[0], fed.silos[3], fed.silos[7]
    updates = random_updates(fed)
    faults = [lost(Phase.SHARE, a), lost(Phase.MASKED_INPUT, b), lost(Phase.UNMASK, c)]

    def fault(phase: Phase, silo: SiloId, message: bytes) -> bytes | None:
        return None if any(f(phase, silo, message) is None for f in faults) else message

    finished = run_round(fed, updates, fault)
    survivors = tuple(silo for silo in fed.silos if silo not in (a, b))
    assert integers(finished.total) == exact_sum(updates, survivors)


DROPS = [Phase.ADVERTISE, Phase.SHARE, Phase.MASKED_INPUT, Phase.CERTIFY, Phase.CERTIFICATE, Phase.UNMASK]


@pytest.mark.claim("C2")
@pytest.mark.parametrize("n", [5, pytest.param(7, marks=pytest.mark.slow)])
def test_every_set_of_silos_may_drop_out_at_every_phase_down_to_the_minimum_and_none_below(n: int) -> None:
    fed = federation(parameters_for(n, dimension=5))
    updates, parameters = random_updates(fed), fed.parameters
    for phase in DROPS:
        for count in range(n + 1):
            for gone in itertools.combinations(fed.silos, count):
                if n - count < parameters.minimum_survivors:
                    with pytest.raises(RoundAborted) as raised:
                        run_round(fed, updates, lost(phase, *gone))
                    assert (raised.value.present, raised.value.threshold) == (n - count, n // 2 + 1)
                    continue
                finished = run_round(fed, updates, lost(phase, *gone))
                early = phase in (Phase.ADVERTISE, Phase.SHARE, Phase.MASKED_INPUT)
                rest = tuple(silo for silo in fed.silos if not (early and silo in gone))
                assert finished.coordinator.survivors == rest
                assert integers(finished.total) == exact_sum(updates, rest)


@pytest.mark.claim("C2")
@pytest.mark.parametrize(
    "phase", [Phase.ADVERTISE, Phase.SHARE, Phase.MASKED_INPUT, Phase.CERTIFY, Phase.UNMASK]
)
def test_below_the_threshold_the_round_aborts(phase: Phase) -> None:
    fed = federation(parameters_for(5, dimension=9, colluders=1))
    coordinator = fed.coordinator()
    with pytest.raises(RoundAborted) as raised:
        run_round(fed, random_updates(fed), lost(phase, *fed.silos[:2]), coordinator=coordinator)
    assert (raised.value.present, raised.value.threshold) == (3, 4)
    with pytest.raises(LocalProtocolError):
        coordinator.on_unmask_shares({})  # an aborted attempt stays aborted
    with pytest.raises(LocalProtocolError):
        _ = coordinator.transcript_digest


def test_two_silos_are_never_enough_for_a_sum() -> None:
    """t = 2 with three silos and no colluder, but from a sum of two each learns the other's update."""
    fed = federation(parameters_for(3, dimension=9))
    assert fed.parameters.threshold == 2
    with pytest.raises(RoundAborted):
        run_round(fed, random_updates(fed), lost(Phase.MASKED_INPUT, fed.silos[1]))


@pytest.mark.parametrize("bound", [100, WIDE])
def test_the_masked_input_is_that_of_the_slow_reference(bound: int) -> None:
    fed = federation(parameters_for(4, dimension=37, bound=bound))
    updates = random_updates(fed)
    finished = run_round(fed, updates, lost(Phase.SHARE, fed.silos[2]))
    context = _reference_context(fed, finished.seen[Phase.KEY_LIST][fed.silos[0]])
    sharers = [silo for silo in fed.silos if silo != fed.silos[2]]
    public: dict[str, bytes] = {
        silo: reference.public_of(fed.secrets(silo).mask_key.reveal()) for silo in sharers
    }
    for silo in sharers:
        masked = _body(finished.seen[Phase.MASKED_INPUT][silo], MaskedInput)
        words = reference.unpack(masked.words, fed.parameters.dimension, fed.parameters.vector_bits)
        counters = np.frombuffer(masked.counters, "<u8").tolist()
        assert words + counters == reference.masked_input(
            integers(updates[silo]),
            silo=silo,
            mask_key=fed.secrets(silo).mask_key.reveal(),
            self_mask=fed.secrets(silo).self_mask_seed.reveal(),
            mask_public_keys=public,
            context=context,
            word_bytes=fed.parameters.word.itemsize,
            bits=fed.parameters.vector_bits,
            counters=1,
        )


@pytest.mark.claim("C3")
def test_the_next_attempt_has_other_masks_even_with_the_same_update_and_the_same_secrets() -> None:
    """Secrets are fresh in every attempt; were they not, the manifest still changes every mask."""
    first = federation(parameters_for(3, dimension=4096, bound=WIDE))
    second = first.with_manifest(attempt=2)
    zeros = _zeros(first)
    seen = []
    for fed in (first, second):
        silos = {silo: fed.silo(silo, first.secrets(silo)) for silo in fed.silos}
        coordinator = fed.coordinator()
        key_lists = coordinator.on_advertisements({silo: silos[silo].advertise() for silo in silos})
        deliveries = coordinator.on_sealed_shares({s: silos[s].on_key_list(key_lists[s]) for s in silos})
        seen.append({s: silos[s].on_share_delivery(deliveries[s], zeros, LEDGER_HEAD) for s in silos})
    for silo in first.silos:
        masks = [masked_words(_body(messages[silo], MaskedInput), first.parameters) for messages in seen]
        assert np.count_nonzero(masks[0] == masks[1]) <= 2  # 4096 / 2^vector_bits expected by chance


@pytest.mark.claim("C3")
def test_generated_secrets_never_repeat() -> None:
    drawn = [SiloSecrets.generate() for _ in range(50)]
    values = {
        secret.reveal()
        for s in drawn
        for secret in (s.mask_key, s.channel_key, s.self_mask_seed, s.share_seed)
    }
    assert len(values) == 200


@pytest.mark.claim("C3")
def test_every_mask_of_a_round_is_another_keystream() -> None:
    fed = federation(parameters_for(5, dimension=1))
    key_list = _key_list(fed)
    schedule = KeySchedule.of(manifest_digest(fed.manifest), key_list)
    seeds = {schedule.self_mask(silo, fed.secrets(silo).self_mask_seed).reveal() for silo in fed.silos}
    for i, silo in enumerate(fed.silos):
        for peer in fed.silos[i + 1 :]:
            ours, theirs = fed.secrets(silo).mask_key, fed.secrets(peer).mask_key
            seed = schedule.pairwise_mask(silo, ours, peer, theirs.public_key)
            assert seed == schedule.pairwise_mask(peer, theirs, silo, ours.public_key)
            seeds.add(seed.reveal())
    assert len(seeds) == 5 + 10


@pytest.mark.claim("C5")
@pytest.mark.parametrize("changed", ["cache_digest", "plan_digest", "roster_digest", "previous_record"])
def test_masks_of_silos_with_different_manifests_do_not_cancel(changed: str) -> None:
    """One silo of five was told something else. Signatures already refuse it; here the masks do, alone."""
    fed = federation(parameters_for(5, dimension=5000))
    other = fed.with_manifest(**{changed: Digest("99" * 32)})
    updates, key_list = random_updates(fed), _key_list(fed)
    odd = fed.silos[2]
    masked, self_masks = [], Masks()
    for silo in fed.silos:
        schedule = KeySchedule.of(manifest_digest((other if silo == odd else fed).manifest), key_list)
        secrets = fed.secrets(silo)
        masks = Masks(added=[schedule.self_mask(silo, secrets.self_mask_seed)])
        self_masks.added.extend(masks.added)
        for peer in fed.silos:
            if peer != silo:
                public_key = fed.secrets(peer).mask_key.public_key
                masks.pairwise(silo, peer, schedule.pairwise_mask(silo, secrets.mask_key, peer, public_key))
        masked.append(mask(updates[silo], masks, fed.parameters))
    total = unmask(sum_masked(masked, fed.parameters), self_masks, fed.parameters)
    right = np.array(exact_sum(updates, fed.silos)[:-1])
    without = np.array(exact_sum(updates, tuple(s for s in fed.silos if s != odd))[:-1])
    got = np.array(integers(total)[:-1])
    assert np.count_nonzero(got == right) < 10  # 5000 / 2^16 by chance
    assert np.count_nonzero(got == without) < 10
    # Eight masks are left over, so what came out is uniform: correlation with the true sum is noise.
    assert abs(np.corrcoef(got, right)[0, 1]) < 0.08


@pytest.mark.claim("C5")
def test_a_silo_with_another_cache_refuses_the_others() -> None:
    fed = federation(parameters_for(4, dimension=5))
    other = fed.with_manifest(cache_digest=Digest("99" * 32))
    odd = fed.silos[1]
    coordinator = fed.coordinator()
    answers = {silo: (other if silo == odd else fed).silo(silo).advertise() for silo in fed.silos}
    key_lists = coordinator.on_advertisements(answers)
    assert sorted(coordinator.rejected) == [odd]
    assert odd not in key_lists
    session = other.silo(odd)
    session.advertise()
    with pytest.raises(BadSignature):
        session.on_key_list(key_lists[fed.silos[0]])


def test_the_manifest_opens_under_the_coordinators_key_only() -> None:
    fed = federation(parameters_for(3, dimension=5))
    message = fed.coordinator().manifest_message()
    assert open_manifest(message, fed.coordinator_key) == fed.manifest
    with pytest.raises(PeerError):
        open_manifest(message, SigningKey(fixed("somebody else")).public_key)


def test_the_transcript_digest_depends_on_what_was_said() -> None:
    fed = federation(parameters_for(5, dimension=5))
    updates = random_updates(fed)
    digest = run_round(fed, updates).coordinator.transcript_digest
    assert digest == run_round(fed, updates).coordinator.transcript_digest
    others = {
        run_round(fed, random_updates(fed, 1)).coordinator.transcript_digest,
        run_round(fed, updates, lost(Phase.UNMASK, fed.silos[0])).coordinator.transcript_digest,
        run_round(fed.with_manifest(attempt=2), updates).coordinator.transcript_digest,
    }
    assert len(others | {digest}) == 4


@pytest.mark.parametrize("changed", ["plan_digest", "roster_digest"])
def test_a_session_refuses_a_manifest_of_another_plan_or_roster(changed: str) -> None:
    fed = federation(parameters_for(3, dimension=5)).with_manifest(**{changed: Digest("99" * 32)})
    with pytest.raises(PeerError, match="another plan or roster"):
        fed.silo(fed.silos[0])
    with pytest.raises(PeerError, match="another plan or roster"):
        fed.coordinator()


def test_a_session_refuses_a_cohort_without_itself_or_outside_the_roster() -> None:
    fed = federation(parameters_for(3, dimension=5))
    wider = federation(parameters_for(4, dimension=5))
    with pytest.raises(PeerError, match="omits this silo"):
        replace(wider, parameters=fed.parameters).with_manifest(cohort=wider.silos[:3]).silo(wider.silos[3])
    with pytest.raises(PeerError, match="outside the roster"):
        fed.with_manifest(cohort=(*fed.silos[:2], SiloId("stranger"))).silo(fed.silos[0])


def test_a_session_refuses_parameters_or_an_identity_that_are_not_its_own() -> None:
    fed = federation(parameters_for(3, dimension=5))
    with pytest.raises(LocalProtocolError):
        replace(fed, parameters=parameters_for(5, dimension=5)).silo(fed.silos[0])
    with pytest.raises(LocalProtocolError):
        replace(fed, identities={**fed.identities, fed.silos[0]: SigningKey(fixed("new"))}).silo(fed.silos[0])


def test_the_coordinator_refuses_to_go_out_of_order() -> None:
    fed = federation(parameters_for(3, dimension=5))
    coordinator = fed.coordinator()
    steps = (coordinator.on_sealed_shares, coordinator.on_masked_inputs, coordinator.on_statements)
    for step in (*steps, coordinator.on_unmask_shares):
        with pytest.raises(LocalProtocolError):
            step({})
    coordinator.on_advertisements({silo: fed.silo(silo).advertise() for silo in fed.silos})
    with pytest.raises(LocalProtocolError):
        coordinator.on_advertisements({})


@pytest.mark.claim("C6")
def test_a_late_answer_of_a_dropped_silo_does_not_come_in() -> None:
    fed = federation(parameters_for(5, dimension=5, colluders=1))
    updates = random_updates(fed)
    coordinator, gone = fed.coordinator(), fed.silos[4]
    silos = {silo: fed.silo(silo) for silo in fed.silos}
    key_lists = coordinator.on_advertisements({s: silos[s].advertise() for s in silos})
    deliveries = coordinator.on_sealed_shares({s: silos[s].on_key_list(key_lists[s]) for s in silos})
    inputs = {s: silos[s].on_share_delivery(deliveries[s], updates[s], LEDGER_HEAD) for s in silos}
    late = inputs.pop(gone)
    sets = coordinator.on_masked_inputs(inputs)
    with pytest.raises(LocalProtocolError):
        coordinator.on_masked_inputs({gone: late})
    certificates = coordinator.on_statements({s: silos[s].on_survivor_set(sets[s]) for s in sets})
    revealed = {s: silos[s].on_certificate(certificates[s]) for s in certificates}
    total = coordinator.on_unmask_shares({**revealed, gone: late})
    assert isinstance(coordinator.rejected[gone], UnexpectedMessage)
    assert integers(total) == exact_sum(updates, fed.silos[:4])


def _zeros(fed: Federation) -> EncodedUpdate:
    return EncodedUpdate(np.zeros(fed.parameters.dimension, fed.parameters.word), np.zeros(1, np.uint64))


def _key_list(fed: Federation) -> KeyList:
    return KeyList(tuple(_signed(fed.silo(silo).advertise()) for silo in fed.silos))


def _signed(data: bytes) -> Signed:
    return wire.decode(data, Signed, limit_bytes=1 << 30, peer="test")


def _body(data: bytes, kind: type[B]) -> B:
    return wire.decode(_signed(data).body, kind, limit_bytes=1 << 30, peer="test")


def _reference_context(fed: Federation, key_list: bytes) -> bytes:
    manifest = _signed(fed.coordinator().manifest_message()).body
    return reference.digest("cachefl-secure/manifest/1", manifest) + reference.digest(
        "cachefl-secure/key-list/1", _signed(key_list).body
    )
