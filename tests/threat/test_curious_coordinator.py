"""A curious coordinator keeps to the protocol, keeps every byte for ever, and pools it with up to f silos.

C1 says that it learns one sum and no more. The proof is a witness: from a real round, and for *any* other
updates of the honest survivors with the same sum (and any other update of a dropped silo), this file
builds masks with which the other updates make the very same bytes. Nothing the coordinator holds then
tells the two apart.

Exact (compared byte for byte, no statistics):
  - given its masks as ring vectors, a masked input is a one-time pad: for other updates with the same sum
    the pairwise masks between honest survivors shift by fixed vectors, and a shift of uniform vectors is
    uniform, so both stories are equally likely;
  - headers, statements and certificate are functions of the masked inputs and of who took part: the same
    bytes give the same bytes;
  - every other message of the round does not depend on the updates at all, except for the ledger head
    that travels with a masked input: a constant here, see below;
  - of the secrets that would take these masks off, the coordinator and its colluders hold at most f < t
    shares, and f shares are explained by any secret (the witness of ``tests/crypto/test_shamir.py``).

Computational (assumed, not tested): that masks are uniform to whoever lacks their seed, and seeds to whoever
lacks a private key: AES-128-CTR is a pseudo-random generator, HKDF over X25519 gives pseudo-random seeds,
AES-256-GCM hides the shares in transit, SHA-256 of 32 uniform bytes hides them in a commitment. In the
product a ledger head also covers digests of the silo's update and data; they hide them because a secret
of 28 or 32 bytes goes into each (rounding seed, commitment salt).

Scope: one attempt of one round, with one colluder of six. Two attempts share no mask and no key
(C3), but are not played jointly here. What the service around the protocol says (that a silo declines
and why, what it lacks, timing) is outside; none of it is a function of an update.

The slow reference of ``tests/protocol/reference.py`` computes all masks here; it shares no code with the package.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np
import pytest

from cachefl_secure.names import COORDINATOR, Digest, SiloId
from cachefl_secure.protocol import wire
from cachefl_secure.protocol.attempt import Attempt, body_digest
from cachefl_secure.protocol.certificate import statement_digest, statement_of
from cachefl_secure.protocol.masking import KeySchedule
from cachefl_secure.protocol.messages import (
    Body,
    Certificate,
    Header,
    KeyList,
    MaskedInput,
    Phase,
    Signed,
    StatementSignature,
    SurvivorSet,
    UnmaskShares,
)
from cachefl_secure.protocol.vectors import EncodedUpdate
from tests.protocol import reference
from tests.protocol.rounds import (
    LEDGER_HEAD,
    Federation,
    Round,
    exact_sum,
    federation,
    integers,
    masked_words,
    parameters_for,
    random_updates,
    run_round,
)

B = TypeVar("B", bound=Body)
Vector = list[int]
"""Words, then counters, as integers."""

WIDE = 1_000_000  # a bound that needs uint32


@dataclass(frozen=True)
class Case:
    """Six silos. The last but one drops out with its input already made, the first pools with the coordinator."""

    fed: Federation
    updates: dict[SiloId, EncodedUpdate]
    finished: Round
    late: bytes
    """The dropped silo's masked input: lost on the way in the round, found by the coordinator afterwards."""
    colluder: SiloId
    dropped: SiloId

    @property
    def honest_survivors(self) -> list[SiloId]:
        return [s for s in self.fed.silos if s not in (self.colluder, self.dropped)]

    @property
    def context(self) -> bytes:
        manifest = envelope(self.fed.coordinator().manifest_message()).body
        key_list = envelope(self.finished.seen[Phase.KEY_LIST][self.colluder]).body
        return reference.digest("cachefl-secure/manifest/1", manifest) + reference.digest(
            "cachefl-secure/key-list/1", key_list
        )

    @property
    def view(self) -> Digest:
        """What the silos had received when they sent their masked inputs."""
        key_list = reference.digest(
            "cachefl-secure/key-list/1", envelope(self.finished.seen[Phase.KEY_LIST][self.colluder]).body
        )
        named = (key_list.hex().encode(), *(silo.encode() for silo in self.fed.silos))
        return Digest(reference.digest("cachefl-secure/view/1", *named).hex())

    @property
    def moduli(self) -> Vector:
        parameters = self.fed.parameters
        return [2**parameters.vector_bits] * parameters.dimension + [2**64] * parameters.counters


def play(bound: int, rng_seed: int = 0) -> Case:
    fed = federation(parameters_for(6, dimension=41, colluders=1, bound=bound))
    colluder, dropped, late = fed.silos[0], fed.silos[4], []

    def fault(phase: Phase, silo: SiloId, message: bytes) -> bytes | None:
        if (phase, silo) != (Phase.MASKED_INPUT, dropped):
            return message
        late.append(message)
        return None

    updates = random_updates(fed, rng_seed)
    finished = run_round(fed, updates, fault)
    assert dropped not in finished.coordinator.survivors
    assert len(finished.coordinator.survivors) == 5
    return Case(fed, updates, finished, late[0], colluder, dropped)


@pytest.fixture(params=[100, WIDE], ids=["uint16", "uint32"])
def case(request: pytest.FixtureRequest) -> Case:
    return play(request.param)


# --- the masks of the real round, by the slow reference -------------------------------------------


def pair_masks(case: Case) -> dict[tuple[SiloId, SiloId], Vector]:
    """The pairwise masks of the round, by sorted pair, over all silos that shared."""
    masks = {}
    public = {s: reference.public_of(case.fed.secrets(s).mask_key.reveal()) for s in case.fed.silos}
    for i, low in enumerate(case.fed.silos):
        for high in case.fed.silos[i + 1 :]:
            private = case.fed.secrets(low).mask_key.reveal()
            seed = reference.pairwise_seed(case.context, low, private, high, public[high])
            masks[low, high] = expand(case, seed)
    return masks


def self_masks(case: Case) -> dict[SiloId, Vector]:
    return {
        silo: expand(
            case,
            reference.self_mask_seed(case.context, silo, case.fed.secrets(silo).self_mask_seed.reveal()),
        )
        for silo in case.fed.silos
    }


def expand(case: Case, seed: bytes) -> Vector:
    parameters = case.fed.parameters
    return reference.expand(seed, parameters.dimension, parameters.word.itemsize, parameters.counters)


def message_of(
    case: Case,
    silo: SiloId,
    update: Vector,
    own: Vector,
    pairs: Mapping[tuple[SiloId, SiloId], Vector],
) -> bytes:
    """The masked input that ``silo`` would send with this update under these masks, down to the signature."""
    total = [u + m for u, m in zip(update, own, strict=True)]
    for (low, high), mask in pairs.items():
        if silo in (low, high):
            sign = 1 if silo == low else -1
            total = [t + sign * m for t, m in zip(total, mask, strict=True)]
    masked = [value % modulus for value, modulus in zip(total, case.moduli, strict=True)]
    dimension = case.fed.parameters.dimension
    body = MaskedInput(
        reference.pack(masked[:dimension], case.fed.parameters.vector_bits),
        b"".join(value.to_bytes(8, "little") for value in masked[dimension:]),
        LEDGER_HEAD,
    )
    attempt = Attempt.begin(case.fed.manifest, case.fed.roster, case.fed.coordinator_key, case.fed.parameters)
    return wire.encode(attempt.sign(body, silo, case.fed.identities[silo], case.view))


# --- the witness ----------------------------------------------------------------------------------


def shifted(
    case: Case, pairs: Mapping[tuple[SiloId, SiloId], Vector], others: Mapping[SiloId, Vector]
) -> dict[tuple[SiloId, SiloId], Vector]:
    """Pairwise masks that explain ``others`` in place of the honest survivors' true updates.

    Only masks between neighbours on the path of honest survivors move: each passes on what the silos
    before it have to make up for. At the path's end nothing is left to make up for, if the sums agree.
    """
    explained, carried = dict(pairs), [0] * len(case.moduli)
    for silo, following in pairwise(case.honest_survivors):
        gap = zip(integers(case.updates[silo]), others[silo], strict=True)
        carried = [c + true - other for c, (true, other) in zip(carried, gap, strict=True)]
        # ``silo`` sorts first, so it adds the mask and ``following`` subtracts it.
        explained[silo, following] = [
            (mask + c) % modulus
            for mask, c, modulus in zip(pairs[silo, following], carried, case.moduli, strict=True)
        ]
    return explained


def other_updates_with_the_same_sum(case: Case, rng_seed: int) -> dict[SiloId, Vector]:
    """Legal updates, unrelated to the true ones but for their sum: the true ones, dealt out again coordinate
    by coordinate. The counters are uniform but for the last silo's.
    """
    rng, silos = np.random.default_rng(rng_seed), case.honest_survivors
    dimension = case.fed.parameters.dimension
    columns = list(zip(*(integers(case.updates[silo])[:dimension] for silo in silos), strict=True))
    dealt = [rng.permutation(column).tolist() for column in columns]
    counters = [int(c) for c in rng.integers(0, 2**64, len(silos) - 1, dtype=np.uint64)]
    counters.append((sum(integers(case.updates[silo])[dimension] for silo in silos) - sum(counters)) % 2**64)
    return {silo: [row[i] for row in dealt] + [counters[i]] for i, silo in enumerate(silos)}


def test_the_reference_makes_the_bytes_of_the_real_round(case: Case) -> None:
    """So the masks below are those of the round, and a witness for them is a witness for the round."""
    pairs, own = pair_masks(case), self_masks(case)
    for silo, message in case.finished.seen[Phase.MASKED_INPUT].items():
        assert message == message_of(case, silo, integers(case.updates[silo]), own[silo], pairs)
    assert case.late == message_of(
        case, case.dropped, integers(case.updates[case.dropped]), own[case.dropped], pairs
    )


@pytest.mark.claim("C1")
@pytest.mark.parametrize("rng_seed", range(5))
def test_other_updates_with_the_same_sum_explain_the_identical_masked_inputs(
    case: Case, rng_seed: int
) -> None:
    pairs, own = pair_masks(case), self_masks(case)
    others = other_updates_with_the_same_sum(case, rng_seed)
    assert all(others[silo] != integers(case.updates[silo]) for silo in others)
    explained = shifted(case, pairs, others)
    unknown = {(a, b) for a, b in pairs if {a, b} <= set(case.honest_survivors)}
    assert {
        pair for pair in pairs if explained[pair] != pairs[pair]
    } <= unknown  # what it knows stays as it is
    for silo in case.honest_survivors:
        rebuilt = message_of(case, silo, others[silo], own[silo], explained)
        assert rebuilt == case.finished.seen[Phase.MASKED_INPUT][silo]


@pytest.mark.claim("C1")
def test_one_silo_may_have_sent_anything_legal_if_another_makes_up_for_it(case: Case) -> None:
    """The strongest form: the first honest survivor's update replaced by zeros, the difference put on the last."""
    pairs, own, silos = pair_masks(case), self_masks(case), case.honest_survivors
    others = {silo: integers(case.updates[silo]) for silo in silos}
    others[silos[-1]] = [a + b for a, b in zip(others[silos[-1]], others[silos[0]], strict=True)]
    others[silos[0]] = [0] * len(case.moduli)
    explained = shifted(case, pairs, others)
    for silo in silos:
        rebuilt = message_of(case, silo, others[silo], own[silo], explained)
        assert rebuilt == case.finished.seen[Phase.MASKED_INPUT][silo]


@pytest.mark.claim("C1")
def test_a_dropped_silos_late_input_is_explained_by_any_update_at_all(case: Case) -> None:
    """All its pairwise masks are known to the coordinator by then; its self mask is not, and pads it alone."""
    pairs, own, dropped = pair_masks(case), self_masks(case), case.dropped
    true = integers(case.updates[dropped])
    for other in (
        [0] * len(true),
        [-value for value in true],
        integers(random_updates(case.fed, 99)[dropped]),
    ):
        padding = [
            (mask + a - b) % modulus
            for mask, a, b, modulus in zip(own[dropped], true, other, case.moduli, strict=True)
        ]
        assert message_of(case, dropped, other, padding, pairs) == case.late


@pytest.mark.claim("C1")
def test_every_other_message_is_the_same_whatever_the_updates(case: Case) -> None:
    """With the same secrets and other updates, all bytes but the masked inputs agree, and so do all seeds."""
    others = random_updates(case.fed, 1)

    def fault(phase: Phase, silo: SiloId, message: bytes) -> bytes | None:
        return None if (phase, silo) == (Phase.MASKED_INPUT, case.dropped) else message

    again = run_round(case.fed, others, fault)
    assert again.seen.keys() == case.finished.seen.keys() == set(Phase)
    certifying = {Phase.MASKED_INPUT, Phase.SURVIVOR_SET, Phase.CERTIFY, Phase.CERTIFICATE}
    for phase, messages in case.finished.seen.items():
        if phase in certifying:  # functions of the masked inputs, as the next test shows
            assert all(again.seen[phase][silo] != message for silo, message in messages.items())
        elif phase is Phase.UNMASK:  # signed under what was certified; what it says is the same
            assert all(
                envelope(again.seen[phase][silo]).body == envelope(message).body
                for silo, message in messages.items()
            )
        else:
            assert again.seen[phase] == messages


@pytest.mark.claim("C1")
def test_what_is_certified_follows_from_the_masked_inputs_byte_for_byte(case: Case) -> None:
    """Whoever has the masked inputs, the key list and the names can write these messages but for the signing
    keys: they say nothing that the masked inputs do not.
    """
    seen, silos = case.finished.seen, case.fed.identities
    attempt = Attempt.begin(case.fed.manifest, case.fed.roster, case.fed.coordinator_key, case.fed.parameters)
    inputs = {silo: envelope(message) for silo, message in sorted(seen[Phase.MASKED_INPUT].items())}
    headers = (Header(silo, body_digest(sent.body), sent.signature) for silo, sent in inputs.items())
    proposal = SurvivorSet(tuple(headers))
    key_list = KeySchedule.of(attempt.digest, body_of(seen[Phase.KEY_LIST][case.colluder], KeyList)).key_list
    statement = statement_of(attempt.digest, key_list, case.fed.silos, proposal.uploads)
    named = statement_digest(statement)
    signed = {silo: attempt.sign(statement, silo, silos[silo], named) for silo in inputs}
    quorum = list(signed.items())[: case.fed.parameters.quorum]
    certificate = Certificate(tuple(StatementSignature(s, sent.signature) for s, sent in quorum))
    for silo in inputs:
        coordinator = silos[COORDINATOR]
        assert seen[Phase.SURVIVOR_SET][silo] == wire.encode(
            attempt.sign(proposal, COORDINATOR, coordinator, case.view)
        )
        assert seen[Phase.CERTIFY][silo] == wire.encode(signed[silo])
        assert seen[Phase.CERTIFICATE][silo] == wire.encode(
            attempt.sign(certificate, COORDINATOR, coordinator, named)
        )


def test_updates_with_another_sum_are_not_explained(case: Case) -> None:
    """The control: the sum is what the coordinator does learn, and the construction notices one unit."""
    pairs, own = pair_masks(case), self_masks(case)
    others = other_updates_with_the_same_sum(case, 0)
    others[case.honest_survivors[1]][7] += 1
    explained = shifted(case, pairs, others)
    wrong = [
        silo
        for silo in case.honest_survivors
        if message_of(case, silo, others[silo], own[silo], explained)
        != case.finished.seen[Phase.MASKED_INPUT][silo]
    ]
    assert wrong == [case.honest_survivors[-1]]


# --- what the coordinator and its colluder hold ---------------------------------------------------


@pytest.mark.claim("C1")
def test_the_secrets_that_the_witness_moves_are_short_of_shares(case: Case) -> None:
    """Of a survivor's mask key, and of a dropped silo's self-mask seed, only the colluder's own share is known."""
    threshold = case.fed.parameters.threshold
    revealed: dict[tuple[str, SiloId], set[SiloId]] = {}
    for holder, message in case.finished.seen[Phase.UNMASK].items():
        answer = body_of(message, UnmaskShares)
        for kind, shares in (("self mask", answer.self_mask), ("mask key", answer.mask_key)):
            for share in shares:
                revealed.setdefault((kind, share.silo), set()).add(holder)
    for silo in case.fed.silos:
        gone = silo == case.dropped
        known, secret = ("mask key", "self mask") if gone else ("self mask", "mask key")
        assert len(revealed[known, silo]) >= threshold
        assert len(revealed.get((secret, silo), set()) | {case.colluder}) < threshold


@pytest.mark.claim("C1")
def test_shares_travel_sealed(case: Case) -> None:
    """No share, seed or private key of a silo stands in the clear in any message before the unmask phase."""
    shares = {
        share.share
        for message in case.finished.seen[Phase.UNMASK].values()
        for share in (*body_of(message, UnmaskShares).self_mask, *body_of(message, UnmaskShares).mask_key)
    }
    needles = set(shares)
    for silo in case.fed.silos:
        secrets = case.fed.secrets(silo)
        values = (secrets.mask_key, secrets.channel_key, secrets.self_mask_seed, secrets.share_seed)
        needles |= {value.reveal() for value in values}
    assert len(needles) == len(shares) + 4 * 6
    for phase, messages in case.finished.seen.items():
        for message in messages.values():
            found = {needle for needle in needles if needle in message}
            assert found <= shares
            assert not found or phase is Phase.UNMASK


@pytest.mark.claim("C1")
def test_what_the_coordinator_gets_in_the_end_is_the_sum_and_it_is_right(case: Case) -> None:
    survivors = tuple(s for s in case.fed.silos if s != case.dropped)
    assert integers(case.finished.total) == exact_sum(case.updates, survivors)


# --- a statistic, second to the witness -----------------------------------------------------------


@pytest.mark.claim("C1")
def test_masked_zeros_look_uniform_and_so_does_the_difference_of_two_silos() -> None:
    fed = federation(parameters_for(4, dimension=200_000))
    zeros = {s: EncodedUpdate(np.zeros(200_000, "<u2"), np.zeros(1, "<u8")) for s in fed.silos}
    finished = run_round(fed, zeros)
    words = [
        masked_words(body_of(message, MaskedInput), fed.parameters)
        for message in finished.seen[Phase.MASKED_INPUT].values()
    ]
    for sample in (*words, words[0] - words[1], words[0] + words[3]):
        counts = np.bincount(sample % 256, minlength=256)
        expected = sample.size / 256
        chi_square = float(((counts - expected) ** 2 / expected).sum())
        assert abs(chi_square - 255) < 5 * np.sqrt(2 * 255)


def envelope(data: bytes) -> Signed:
    return wire.decode(data, Signed, limit_bytes=1 << 30, peer="test")


def body_of(data: bytes, kind: type[B]) -> B:
    return wire.decode(envelope(data).body, kind, limit_bytes=1 << 30, peer="test")
