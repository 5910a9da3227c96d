"""The second implementation follows a roster through its epochs, and finds changes that nobody agreed to."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from cachefl_secure.federation.confirming import ask_for_new_key
from cachefl_secure.federation.coordinator_files import CoordinatorFiles
from cachefl_secure.federation.record import open_record, sign_record
from cachefl_secure.federation.roster_change import (
    RosterChange,
    change_from_bytes,
    change_to_bytes,
)
from cachefl_secure.federation.silo_files import SiloFiles
from cachefl_secure.names import SiloId
from cachefl_secure.protocol.messages import Member, roster_digest
from tests.changing import (
    chain_of,
    confirm,
    forged_change,
    key_of,
    member,
    newcomer,
    propose,
    rosters_of,
    run,
    with_silo,
    without_silo,
)
from tests.small_federation import SmallFederation, found
from tests.vectors.audit import audit
from tests.vectors.refusing import Refused

FOUR = ("silo-1", "silo-2", "silo-3", "silo-4")


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> SmallFederation:
    """Round 1; a sixth silo comes; round 2; the third has a new key and the fifth goes; round 3."""
    federation = found(tmp_path_factory.mktemp("audit"), records=(12, 20, 9, 15, 11))
    run(federation)
    sixth = newcomer(federation, "silo-6")
    propose(federation, [sixth])
    confirm(federation, FOUR)
    federation = with_silo(federation, sixth)
    run(federation)
    asked, _ = ask_for_new_key(SiloFiles.open(federation.silos[SiloId("silo-3")]))
    propose(federation, [asked], remove=["silo-5"])
    confirm(federation, FOUR)
    run(federation)
    return without_silo(federation, "silo-5")


@pytest.fixture
def published(played: SmallFederation, tmp_path: Path) -> Path:
    """What the coordinator shows to an auditor."""
    names = ["invite.toml", "roster.bin", "countersignatures.bin", "models/0000.safetensors"]
    names += [str(path.relative_to(played.coordinator)) for path in played.coordinator.glob("rosters/*")]
    for number in ("0001", "0002", "0003"):
        names += [f"rounds/{number}/{name}" for name in ("record.json", "aggregate.bin")]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(played.coordinator / name, tmp_path / name)
    assert len(names) == 4 + 2 * 2 + 3 * 2
    return tmp_path


@pytest.mark.claim("C16", "C20")
def test_every_cache_is_recomputed_under_the_rosters_of_three_epochs(
    played: SmallFederation, published: Path
) -> None:
    chain = chain_of(played)
    first = chain.plan.cache.initial_digest
    assert audit(published) == [first, *(held.record.cache_after for held in chain.verified)]
    assert len({held.record.roster_digest for held in chain.verified}) == 3


def _fewer_approvals(change: RosterChange) -> RosterChange:
    return msgspec.structs.replace(change, approvals=change.approvals[1:])


def _one_twice(change: RosterChange) -> RosterChange:
    return msgspec.structs.replace(change, approvals=(change.approvals[1], *change.approvals[1:]))


def _no_voucher(change: RosterChange) -> RosterChange:
    return msgspec.structs.replace(change, vouchers=())


def _swapped_voucher(change: RosterChange) -> RosterChange:
    voucher = change.vouchers[0]
    turned = msgspec.structs.replace(voucher, by_old_key=voucher.by_new_key, by_new_key=voucher.by_old_key)
    return msgspec.structs.replace(change, vouchers=(turned,))


@pytest.mark.claim("C16", "C20")
@pytest.mark.parametrize(
    ("epoch", "lie"), [(2, _fewer_approvals), (3, _one_twice), (3, _no_voucher), (3, _swapped_voucher)]
)
def test_a_change_without_its_approvals_or_vouchers_is_found(
    published: Path, epoch: int, lie: Callable[[RosterChange], RosterChange]
) -> None:
    path = published / f"rosters/{epoch:04d}.bin"
    path.write_bytes(change_to_bytes(lie(change_from_bytes(path.read_bytes()))))
    with pytest.raises((Refused, KeyError)):
        audit(published)


@pytest.mark.claim("C16", "C20")
def test_a_fourth_roster_that_breaks_a_rule_is_found_also_with_all_approvals(
    played: SmallFederation, published: Path
) -> None:
    rosters = rosters_of(played.coordinator)
    old = rosters.rosters[0].public_keys[SiloId("silo-3")]
    kept = list(rosters.current.members)
    cases = {
        "a name returns": [*kept, member("silo-5")],
        "a key returns": [*kept, Member(SiloId("guest"), old)],
        "too few stay": [*kept[:3], member("a"), member("b")],
        "": [*kept, member("guest")],
    }
    for what, members in cases.items():
        change = forged_change(played, rosters, members, played.silos)
        (published / "rosters/0004.bin").write_bytes(change_to_bytes(change))
        if what:
            with pytest.raises(Refused, match=what):
                audit(published)
        else:
            audit(published)


@pytest.mark.claim("C16", "C20")
def test_a_record_under_a_roster_that_was_over_or_never_begun_is_found(
    played: SmallFederation, published: Path
) -> None:
    path, chain = published / "rounds/0003/record.json", chain_of(played)
    genuine = path.read_bytes()
    record, _ = open_record(genuine, chain.plan)
    for roster in chain.rosters.rosters[:2]:
        lie = msgspec.structs.replace(record, roster_digest=roster_digest(roster))
        path.write_bytes(sign_record(lie, CoordinatorFiles.open(played.coordinator).state.signing_key()))
        with pytest.raises(Refused):
            audit(published)
    path.write_bytes(genuine)
    (published / "rosters/0003.countersignatures.bin").unlink()
    with pytest.raises(Refused, match="never begun"):
        audit(published)


def test_the_third_silo_has_another_key_than_it_began_with(played: SmallFederation) -> None:
    third = SiloId("silo-3")
    keys = rosters_of(played.coordinator).keys_of(third)
    assert len(keys) == 2
    assert key_of(played.silos[third]).public_key == keys[1]
