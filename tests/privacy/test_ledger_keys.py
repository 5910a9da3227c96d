"""A ledger goes over to another key: its history stays one chain, and nobody else's key gets in."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from cachefl_secure.crypto.sign import SigningKey
from cachefl_secure.errors import LedgerCorrupt, LocalProtocolError
from cachefl_secure.names import Digest, PublicKeyHex
from cachefl_secure.privacy import entries
from cachefl_secure.privacy.accounting import NOTHING
from cachefl_secure.privacy.ledger import Ledger, verify_ledger
from tests.privacy.examples import SIGNING_KEY, new_ledger, spend

NEW, STRANGER = SigningKey(bytes(range(32, 64))), SigningKey(bytes(range(64, 96)))
ROSTER = Digest("d" * 64)
OLD_PUBLIC = SIGNING_KEY.public_key


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


def rotated(path: Path) -> list[Digest]:
    """A charge under each key; the heads after every step."""
    with new_ledger(path) as ledger:
        spend(ledger, 1)
        heads = [ledger.head]
        ledger.rotate_key(NEW, ROSTER)
        heads.append(ledger.head)
        spend(ledger, 2)
        return [*heads, ledger.head]


@pytest.mark.claim("C10", "C16")
def test_charges_before_and_after_a_new_key_stand_in_one_chain(path: Path) -> None:
    heads = rotated(path)
    anchors = [(None, head) for head in heads]
    report = verify_ledger(path, NEW.public_key, anchors=anchors, earlier_keys=[OLD_PUBLIC])
    assert [each.round for each in report.spends] == [1, 2]
    assert report.spends[1].before == report.spends[0].after != NOTHING
    with Ledger.open(path, NEW, earlier_keys=[OLD_PUBLIC]) as ledger:
        spend(ledger, 3)
        ledger.rotate_key(STRANGER, ROSTER)
    again = verify_ledger(path, STRANGER.public_key, earlier_keys=[OLD_PUBLIC, NEW.public_key])
    assert len(again.spends) == 3


@pytest.mark.claim("C10", "C16")
@pytest.mark.parametrize(
    ("key", "earlier"),
    [
        (NEW, []),
        (SIGNING_KEY, []),
        (SIGNING_KEY, [NEW.public_key]),
        (NEW, [STRANGER.public_key]),
        (NEW, [STRANGER.public_key, OLD_PUBLIC]),
        (NEW, [OLD_PUBLIC, STRANGER.public_key]),
        (STRANGER, [OLD_PUBLIC, NEW.public_key]),
    ],
)
def test_other_keys_or_another_order_than_the_rosters_name_are_refused(
    path: Path, key: SigningKey, earlier: list[str]
) -> None:
    rotated(path)
    with pytest.raises(LedgerCorrupt, match="step 6"):
        verify_ledger(path, key.public_key, earlier_keys=list(map(PublicKeyHex, earlier)))


@pytest.mark.claim("C10", "C16")
def test_an_entry_under_the_old_key_after_the_change_or_the_new_one_before_it_is_refused(path: Path) -> None:
    rotated(path)
    lines = path.read_bytes().splitlines(keepends=True)
    at = next(number for number, line in enumerate(lines) if b'"kind":"rotate_key"' in line)
    for number, key in ((at + 1, SIGNING_KEY), (at - 1, NEW), (at, NEW)):
        opened = msgspec.json.decode(lines[number], type=entries.Line)
        body = msgspec.structs.replace(opened.body, public_key=key.public_key)
        line, _ = entries.seal(body, key)
        path.write_bytes(b"".join([*lines[:number], line, *lines[number + 1 :]]))
        with pytest.raises(LedgerCorrupt) as refused:
            verify_ledger(path, NEW.public_key, earlier_keys=[OLD_PUBLIC])
        assert (refused.value.entry, "step 6" in refused.value.reason) == (number, True)


@pytest.mark.claim("C16", "C17")
def test_a_change_that_a_crash_cut_off_is_completed_once(path: Path) -> None:
    with new_ledger(path) as ledger:
        spend(ledger, 1)
        before = ledger.sequence
    for _ in range(2):  # before its entry was written, and after
        with Ledger.open(path, SIGNING_KEY, next_key=NEW.public_key) as ledger:
            ledger.rotate_key(NEW, ROSTER)
            assert ledger.sequence == before + 1
    verify_ledger(path, OLD_PUBLIC, next_key=NEW.public_key)
    with pytest.raises(LedgerCorrupt, match="step 6"):
        verify_ledger(path, OLD_PUBLIC)


@pytest.mark.claim("C16")
def test_a_ledger_that_ends_under_the_next_key_takes_no_entry_under_the_old_one(path: Path) -> None:
    with new_ledger(path) as ledger:
        ledger.rotate_key(NEW, ROSTER)
    with (
        Ledger.open(path, SIGNING_KEY, next_key=NEW.public_key) as ledger,
        pytest.raises(LocalProtocolError, match="step 6"),
    ):
        spend(ledger, 1)
