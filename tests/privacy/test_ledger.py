from __future__ import annotations

import hashlib
import math
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cachefl_secure.crypto.sign import SigningKey
from cachefl_secure.errors import (
    BudgetExhausted,
    ConfigError,
    LedgerCorrupt,
    LocalProtocolError,
    PeerError,
    UnaccountedMechanism,
)
from cachefl_secure.names import Digest
from cachefl_secure.privacy.accounting import epsilon_spent
from cachefl_secure.privacy.commitment import CommitmentSalt, data_commitment
from cachefl_secure.privacy.ledger import Ledger, verify_ledger
from tests.privacy.examples import (
    CACHE,
    DELTA,
    PLAN,
    SIGNING_KEY,
    TRANSCRIPT,
    UPDATE,
    local,
    new_ledger,
    spend,
    without_noise,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


def reopened(path: Path) -> Ledger:
    return Ledger.open(path, SIGNING_KEY)


def test_a_round_from_reserve_to_receipt_verifies(path: Path) -> None:
    with new_ledger(path) as ledger:
        ledger.note_plan(PLAN, local(), delta=DELTA, cap=2.0)
        charged = spend(ledger, 1, timestamp="2026-01-01T00:00:00Z")
        ledger.note_sent(1, 1, UPDATE, TRANSCRIPT)
        ledger.note_abort(1, 1, "too few silos")
        ledger.note_sent(1, 2, UPDATE, TRANSCRIPT)
        ledger.note_receipt(1, TRANSCRIPT)
        head, spent = ledger.head, ledger.epsilon_spent
        assert ledger.sequence == 6
    report = verify_ledger(path, SIGNING_KEY.public_key, anchors=[(6, head), (None, head)])
    assert (report.silo, report.entries, report.head, report.delta) == ("clinic", 7, head, DELTA)
    assert report.epsilon == spent == charged.epsilon_after == epsilon_spent([(local(), 1)], DELTA)
    assert report.epsilon_rdp == report.epsilons_rdp[0] > report.epsilon
    assert report.spends[0].update_digest == UPDATE


class WatchedDisk:
    """Notes which calls reach the disk, and lets them through."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self._write, self._fsync = os.write, os.fsync
        monkeypatch.setattr(os, "write", self.write)
        monkeypatch.setattr(os, "fsync", self.fsync)

    def write(self, file: int, content: bytes) -> int:
        self.calls.append("write")
        return self._write(file, content)

    def fsync(self, file: int) -> None:
        self.calls.append("fsync directory" if stat.S_ISDIR(os.fstat(file).st_mode) else "fsync")
        self._fsync(file)


@pytest.mark.claim("C9")
def test_the_charge_is_on_disk_before_reserve_returns(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with new_ledger(path) as ledger:
        disk = WatchedDisk(monkeypatch)
        spend(ledger, 1)
        assert disk.calls == ["write", "fsync"]
        other_reader = verify_ledger(path, SIGNING_KEY.public_key)
    assert [s.round for s in other_reader.spends] == [1]


@pytest.mark.claim("C9")
def test_a_new_ledger_is_durable_with_its_name(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = WatchedDisk(monkeypatch)
    new_ledger(path).close()
    assert disk.calls == ["write", "fsync", "fsync directory"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.claim("C9")
@pytest.mark.claim("C11")
def test_a_retry_of_the_same_round_is_not_charged_again(path: Path) -> None:
    with new_ledger(path) as ledger:
        first = spend(ledger, 1)
        before = path.read_bytes()
        assert spend(ledger, 1, attempt=2) == first
        assert path.read_bytes() == before
        assert spend(ledger, 2).epsilon_before == first.epsilon_after


@pytest.mark.claim("C9")
def test_a_round_has_one_update_for_ever(path: Path) -> None:
    with new_ledger(path) as ledger:
        spend(ledger, 1)
        ledger.note_sent(1, 1, UPDATE, TRANSCRIPT)
    with reopened(path) as ledger:
        known = ledger.spend_of(PLAN, 1)
        assert known is not None
        assert known.update_digest == UPDATE
        before = path.read_bytes()
        with pytest.raises(LocalProtocolError, match="another update"):
            ledger.note_sent(1, 2, Digest("1" * 64), TRANSCRIPT)
        assert path.read_bytes() == before
        ledger.note_sent(1, 2, UPDATE, TRANSCRIPT)


@pytest.mark.claim("C9")
@pytest.mark.parametrize(
    "change",
    [
        {"cache_digest": Digest("1" * 64)},
        {"data_commitment": Digest("2" * 64)},
        {"mechanism": local(clip_norm=9.0)},
    ],
    ids=["cache", "records", "mechanism"],
)
def test_a_charged_round_cannot_be_used_for_something_else(path: Path, change: dict[str, Any]) -> None:
    with new_ledger(path) as ledger:
        spend(ledger, 1)
        with pytest.raises(PeerError):
            spend(ledger, 1, attempt=2, **change)


def test_the_same_round_of_another_plan_is_charged(path: Path) -> None:
    with new_ledger(path) as ledger:
        first = spend(ledger, 1)
        second = spend(ledger, 1, plan_digest=Digest("b" * 64))
        assert second.epsilon_after > second.epsilon_before == first.epsilon_after
        assert ledger.spend_of(PLAN, 1) == first


def test_nothing_is_noted_of_a_round_that_was_not_reserved(path: Path) -> None:
    with new_ledger(path) as ledger:
        with pytest.raises(LocalProtocolError, match="not reserved"):
            ledger.note_sent(1, 1, UPDATE, TRANSCRIPT)
        with pytest.raises(LocalProtocolError, match="not reserved"):
            ledger.note_receipt(1, TRANSCRIPT)
        with pytest.raises(LocalProtocolError, match="not reserved"):
            ledger.note_abort(1, 1, "why")


@pytest.mark.claim("C11")
def test_a_mechanism_without_noise_needs_an_infinite_cap_and_ends_all_finite_ones(path: Path) -> None:
    with new_ledger(path) as ledger:
        spend(ledger, 1)
        with pytest.raises(BudgetExhausted):
            spend(ledger, 2, without_noise(local()), cap=1e9)
        assert spend(ledger, 2, without_noise(local()), cap=math.inf).epsilon_after == math.inf
        with pytest.raises(BudgetExhausted):
            spend(ledger, 3, cap=1e9)
    assert reopened(path).epsilon_spent == math.inf
    assert verify_ledger(path, SIGNING_KEY.public_key).epsilon == math.inf


@pytest.mark.claim("C11")
def test_a_larger_delta_does_not_make_epsilon_smaller(path: Path) -> None:
    with new_ledger(path) as ledger:
        for number, delta in enumerate((1e-5, 1e-3, 1e-7, 0.5), 1):
            before = ledger.epsilon_spent
            charged = spend(ledger, number, delta=delta)
            assert charged.epsilon_after > before
        assert [s.delta for s in ledger.spends] == [1e-5, 1e-5, 1e-7, 1e-7]
    assert verify_ledger(path, SIGNING_KEY.public_key).delta == 1e-7


def test_sampled_noise_does_not_change_midway_and_full_batch_noise_may(path: Path) -> None:
    with new_ledger(path) as ledger:
        spend(ledger, 1)
        spend(ledger, 2, local(noise_multiplier=20.0))
        with pytest.raises(UnaccountedMechanism):
            spend(ledger, 3, local(sampling_rate=0.5))
        assert len(ledger.spends) == 2
    verify_ledger(path, SIGNING_KEY.public_key)


@pytest.mark.claim("C11")
def test_reopening_keeps_epsilon_head_and_spends(path: Path) -> None:
    for number in range(1, 6):
        with new_ledger(path) if number == 1 else reopened(path) as ledger:
            kept = ledger.epsilon_spent, ledger.head, ledger.spends
            assert len(kept[2]) == number - 1
            spend(ledger, number)
            assert ledger.epsilon_spent > kept[0]
            kept = ledger.epsilon_spent, ledger.head, ledger.spends
        with reopened(path) as ledger:
            assert (ledger.epsilon_spent, ledger.head, ledger.spends) == kept
            assert ledger.recovered is None


def test_a_closed_ledger_writes_nothing(path: Path) -> None:
    ledger = new_ledger(path)
    ledger.close()
    before = path.read_bytes()
    with pytest.raises(LocalProtocolError, match="closed"):
        spend(ledger, 1)
    assert path.read_bytes() == before


def test_creating_over_a_ledger_is_refused(path: Path) -> None:
    with new_ledger(path) as ledger:
        spend(ledger, 1)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="exists already"):
        new_ledger(path)
    assert path.read_bytes() == before
    reopened(path).close()  # and the failed attempt holds no lock


def test_a_link_is_not_followed(path: Path, tmp_path: Path) -> None:
    new_ledger(tmp_path / "elsewhere").close()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError):
        reopened(path)


def test_another_silos_key_does_not_open_the_ledger(path: Path) -> None:
    new_ledger(path).close()
    with pytest.raises(LedgerCorrupt, match="another key"):
        Ledger.open(path, SigningKey(bytes(32)))


OPEN_AND_WAIT = """
import sys, time
from pathlib import Path
from cachefl_secure.crypto.sign import SigningKey
from cachefl_secure.privacy.ledger import Ledger
ledger = Ledger.open(Path(sys.argv[1]), SigningKey(bytes(range(32))))
print("open", flush=True)
time.sleep(60)
"""


def test_one_process_at_a_time_and_a_killed_one_leaves_no_lock(path: Path) -> None:
    with new_ledger(path):
        with pytest.raises(ConfigError, match="another process"):
            reopened(path)
        second = subprocess.run(
            [sys.executable, "-c", OPEN_AND_WAIT, str(path)], capture_output=True, text=True, check=False
        )
        assert second.returncode != 0
        assert "another process" in second.stderr
    with subprocess.Popen(
        [sys.executable, "-c", OPEN_AND_WAIT, str(path)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(ConfigError, match="another process"):
            reopened(path)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    reopened(path).close()


def test_a_file_that_changed_while_open_is_not_written_to(path: Path) -> None:
    with new_ledger(path) as ledger:
        spend(ledger, 1)
        backup = path.read_bytes().splitlines(keepends=True)[0]
        path.write_bytes(backup)  # an old copy put back under a running silo
        with pytest.raises(LedgerCorrupt, match="changed while it was open"):
            spend(ledger, 2)
        assert path.read_bytes() == backup
        with pytest.raises(LocalProtocolError):
            spend(ledger, 3)


@pytest.mark.claim("C9")
@pytest.mark.parametrize("failing", ["write", "half a write", "fsync"])
def test_a_full_disk_stops_the_round_before_training(
    path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    ledger = new_ledger(path)
    spend(ledger, 1)
    write = os.write

    def full(fd: int, data: bytes = b"") -> int:
        if failing == "half a write" and len(data) > 300:
            return write(fd, data[:300])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync" if failing == "fsync" else "write", full)
        with pytest.raises(ConfigError, match="No space left"):
            spend(ledger, 2)
    with pytest.raises(LocalProtocolError, match="open it again"):
        spend(ledger, 2)
    ledger.close()
    with reopened(path) as ledger:
        assert len(ledger.spends) == (2 if failing == "fsync" else 1)  # never less than was confirmed
        assert (ledger.recovered is not None) == (failing == "half a write")
        assert spend(ledger, 2).epsilon_after > ledger.spends[0].epsilon_after
    verify_ledger(path, SIGNING_KEY.public_key)


@pytest.mark.claim("C9")
def test_short_writes_are_finished(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    with new_ledger(path) as ledger:
        monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:100]))
        spend(ledger, 1)
    assert len(verify_ledger(path, SIGNING_KEY.public_key).spends) == 1


def test_an_unreadable_ledger_is_the_operators_fault(path: Path) -> None:
    with pytest.raises(ConfigError):
        reopened(path)
    with pytest.raises(ConfigError):
        verify_ledger(path, SIGNING_KEY.public_key)


def test_an_entry_that_would_not_verify_is_never_written(path: Path) -> None:
    with new_ledger(path) as ledger:
        spend(ledger, 1)
        before = path.read_bytes()
        for reason in ("a\nb", "x" * 201, "\u00e9"):
            with pytest.raises(LocalProtocolError, match="refused to write"):
                ledger.note_abort(1, 1, reason)
        with pytest.raises(LocalProtocolError, match="refused to write"):
            spend(ledger, 2, cache_digest=Digest("short"))
        assert path.read_bytes() == before
        ledger.note_abort(1, 1, "fine")


@pytest.mark.claim("C10")
def test_twenty_rounds_verify_without_torch(path: Path) -> None:
    sampled = local(sampling_rate=0.25, noise_multiplier=4.0)
    with new_ledger(path) as ledger:
        for number in range(1, 21):
            spend(ledger, number, sampled)
            ledger.note_sent(number, 1, UPDATE, TRANSCRIPT)
            ledger.note_receipt(number, TRANSCRIPT)
    code = (
        "import sys, time; import dp_accounting; from dp_accounting import pld, rdp; from pathlib import Path\n"
        "from cachefl_secure.privacy.verification import verify_ledger\n"
        "start = time.process_time()\n"
        "print(len(verify_ledger(Path(sys.argv[1]), sys.argv[2]).spends), time.process_time() - start)\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), SIGNING_KEY.public_key],
        capture_output=True,
        text=True,
        check=True,
    )
    spends, seconds = done.stdout.split()
    assert spends == "20"
    assert float(seconds) < 60.0  # half a second in practice; a hundred times that would be a fault


def test_a_data_commitment_binds_the_records_and_hides_them() -> None:
    salt = CommitmentSalt(bytes(32))
    records = [Digest(hashlib.sha256(bytes([i])).hexdigest()) for i in range(5)]
    commitment = data_commitment(records, salt)
    assert data_commitment(reversed(records), salt) == commitment
    others = [
        data_commitment(records[:-1], salt),
        data_commitment([*records, records[-1]], salt),
        data_commitment([*records[:-1], CACHE], salt),
        data_commitment(records, CommitmentSalt(bytes(31) + b"\1")),
        data_commitment([], salt),
    ]
    assert len({commitment, *others}) == 6
