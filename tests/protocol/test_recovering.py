"""A wrong share does not stop a round as long as enough right ones arrived, and who sent it is named."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Collection
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachefl_secure.crypto.shamir import PRIME, CoefficientSeed, split
from cachefl_secure.crypto.shamir_decoding import decode
from cachefl_secure.errors import RoundAborted, SharesRejected
from cachefl_secure.names import SiloId
from cachefl_secure.protocol.collecting import CollectingShares, CollectingUnmaskShares
from cachefl_secure.protocol.coordinator import CoordinatorSession
from cachefl_secure.protocol.messages import Body, Phase, RevealedShare, SealedShares, UnmaskShares
from cachefl_secure.protocol.recovering import Sought, recover
from tests.protocol.rounds import (
    Fault,
    Federation,
    exact_sum,
    federation,
    fixed,
    integers,
    lost,
    parameters_for,
    random_updates,
    run_round,
)
from tests.protocol.table import body_of

SECRET = fixed("secret")


def dealt(m: int, threshold: int) -> dict[int, bytes]:
    holders = list(range(1, m + 1))
    rows = split([SECRET], threshold=threshold, holders=holders, seed=CoefficientSeed(fixed("seed", 28)))
    return {x: share for x, (share,) in zip(holders, rows, strict=True)}


def garbled(share: bytes, limb: int = 0) -> bytes:
    """Another value for one limb, unrelated to those of other liars."""
    noise = int.from_bytes(hashlib.sha256(share).digest()[:3], "little") + 8
    value = (int.from_bytes(share[4 * limb : 4 * limb + 4], "little") + noise) % PRIME
    return share[: 4 * limb] + value.to_bytes(4, "little") + share[4 * limb + 4 :]


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_decoding_corrects_as_many_wrong_shares_as_half_of_those_to_spare(data: st.DataObject) -> None:
    m = data.draw(st.integers(1, 12))
    threshold = data.draw(st.integers(1, m))
    shares = dealt(m, threshold)
    liars = data.draw(st.sets(st.sampled_from(sorted(shares)), max_size=(m - threshold) // 2))
    for x in liars:
        shares[x] = garbled(shares[x], data.draw(st.integers(0, 8)))
    assert decode(shares, threshold) == (SECRET, frozenset(liars))


def test_decoding_a_hundred_shares_finds_22_liars() -> None:
    shares, liars = dealt(100, 56), frozenset(range(3, 25))
    for x in liars:
        shares[x] = garbled(shares[x])
    assert decode(shares, 56) == (SECRET, liars)


def sought(shares: dict[int, bytes]) -> Sought:
    return Sought(SiloId("a"), {SiloId(f"h{x:02d}"): s for x, s in shares.items()}, lambda v: v == SECRET)


def place(holder: SiloId) -> int:
    return int(holder[1:])


def test_every_choice_of_liars_that_leaves_a_threshold_of_right_shares_is_found() -> None:
    m, threshold = 7, 3
    for count in range(m - threshold + 1):
        for liars in itertools.combinations(range(1, m + 1), count):
            shares = {x: garbled(s) if x in liars else s for x, s in dealt(m, threshold).items()}
            found, suspects = recover([sought(shares)], threshold, place)
            assert found == [SECRET]
            # A wrong share among those that were not needed goes unnoticed: it has no effect.
            first_right = {x for x in range(1, threshold + 1) if x not in liars} == set(
                range(1, threshold + 1)
            )
            assert {place(silo) for silo in suspects} == (set() if first_right else set(liars))


def test_too_few_right_shares_end_with_the_suspects() -> None:
    shares = {x: garbled(s) if x < 4 else s for x, s in dealt(5, 3).items()}
    with pytest.raises(SharesRejected) as raised:
        recover([sought(shares)], 3, place)
    assert {"h01", "h02", "h03"} <= set(raised.value.suspects)
    with pytest.raises(RoundAborted):
        recover([sought(dict(list(shares.items())[:2]))], 3, place)


def test_a_dealer_whose_shares_agree_on_something_else_is_the_only_suspect() -> None:
    agreed = replace(sought(dealt(5, 3)), fits=lambda value: False)
    with pytest.raises(SharesRejected) as raised:
        recover([agreed], 3, place)
    assert raised.value.suspects == ("a",)


def resigned(fed: Federation, coordinator: CoordinatorSession, body: Body, silo: SiloId) -> bytes:
    """Another body under the silo's true key and the view that the coordinator expects."""
    state = coordinator._state
    assert isinstance(state, CollectingShares | CollectingUnmaskShares)
    return msgspec.msgpack.encode(coordinator._attempt.sign(body, silo, fed.identities[silo], state.view))


def lying(
    fed: Federation,
    coordinator: CoordinatorSession,
    liars: Collection[SiloId],
    kinds: Collection[str] = ("self_mask", "mask_key"),
) -> Fault:
    """Silos whose revealed shares are all wrong, well signed; the last silo drops out before its input."""
    dropped = lost(Phase.MASKED_INPUT, fed.silos[-1])

    def fault(at: Phase, silo: SiloId, message: bytes) -> bytes | None:
        if at is not Phase.UNMASK or silo not in liars:
            return dropped(at, silo, message)
        body = body_of(message, UnmaskShares)
        changes = {
            kind: tuple(RevealedShare(s.silo, garbled(s.share)) for s in getattr(body, kind))
            for kind in kinds
        }
        return resigned(fed, coordinator, msgspec.structs.replace(body, **changes), silo)

    return fault


@pytest.mark.claim("C6")
@pytest.mark.parametrize("kinds", [("self_mask",), ("mask_key",), ("self_mask", "mask_key")])
@pytest.mark.parametrize("liars", [(0,), (3,), (0, 1), (0, 2, 4)])
def test_a_round_comes_through_although_some_silos_reveal_wrong_shares(
    liars: tuple[int, ...], kinds: tuple[str, ...]
) -> None:
    fed = federation(parameters_for(9, dimension=9))  # t = 5, eight answer: three more than are needed
    updates, liar_names = random_updates(fed), {fed.silos[i] for i in liars}
    coordinator = fed.coordinator()
    finished = run_round(fed, updates, lying(fed, coordinator, liar_names, kinds), coordinator=coordinator)
    assert integers(finished.total) == exact_sum(updates, fed.silos[:-1])
    assert set(finished.coordinator.rejected) == liar_names


@pytest.mark.claim("C6")
def test_a_round_with_too_many_wrong_shares_names_all_that_may_have_lied() -> None:
    fed = federation(parameters_for(9, dimension=9))
    liars, coordinator = set(fed.silos[:4]), fed.coordinator()
    with pytest.raises(SharesRejected) as raised:
        run_round(fed, random_updates(fed), lying(fed, coordinator, liars), coordinator=coordinator)
    assert liars <= set(raised.value.suspects)


@pytest.mark.claim("C6")
def test_a_silo_that_committed_to_another_seed_is_named() -> None:
    fed = federation(parameters_for(7, dimension=9))
    dealer, coordinator = fed.silos[2], fed.coordinator()

    def fault(at: Phase, silo: SiloId, message: bytes) -> bytes | None:
        if at is not Phase.SHARE or silo != dealer:
            return message
        body = msgspec.structs.replace(body_of(message, SealedShares), self_mask_commitment="00" * 32)
        return resigned(fed, coordinator, body, silo)

    with pytest.raises(SharesRejected) as raised:
        run_round(fed, random_updates(fed), fault, coordinator=coordinator)
    assert raised.value.suspects == (dealer,)
