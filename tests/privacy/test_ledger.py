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
from cachefl_secure.names import Digest, SiloId
from cachefl_secure.privacy.accounting import Cost, cost_of, epsilon_rdp, rounds_within
from cachefl_secure.privacy.commitment import CommitmentSalt, data_commitment
from cachefl_secure.privacy.ledger import Ledger, verify_ledger
from cachefl_secure.privacy.mechanism import View
from cachefl_secure.privacy.statements import rounded_up
from tests.privacy.examples import (
    CACHE,
    DATA,
    DELTA,
    PLAN,
    SIGNING_KEY,
    TRANSCRIPT,
    UPDATE,
    distributed,
    grid,
    local,
    new_ledger,
    spend,
    statistics,
    terms,
    without_noise,
)

CLINIC = SiloId("clinic")
INFINITE = Cost(math.inf, math.inf)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


def reopened(path: Path) -> Ledger:
    return Ledger.open(path, SIGNING_KEY)


def test_a_round_from_reserve_to_receipt_verifies(path: Path) -> None:
    with new_ledger(path) as ledger:
        ledger.note_plan(terms())
        charged = spend(ledger, 1, timestamp="2026-01-01T00:00:00Z")
        ledger.note_sent(PLAN, 1, 1, UPDATE, TRANSCRIPT)
        ledger.note_abort(PLAN, 1, 1, "too few silos")
        ledger.note_sent(PLAN, 1, 2, UPDATE, TRANSCRIPT)
        ledger.note_receipt(PLAN, 1, TRANSCRIPT)
        head, spent = ledger.head, ledger.spent
        assert ledger.sequence == 6
    report = verify_ledger(path, SIGNING_KEY.public_key, anchors=[(6, head), (None, head)])
    assert (report.silo, report.entries, report.head, report.delta) == ("clinic", 7, head, DELTA)
    assert report.spent == spent == charged.after == cost_of([(local(), 1)], DELTA)
    assert report.second == report.second_opinions[0]
    assert report.second.local > report.spent.local
    assert report.spends[0].update_digest == UPDATE
    assert (set(report.plans), set(report.data_commitments)) == ({PLAN}, {DATA})


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
        assert spend(ledger, 2).before == first.after


@pytest.mark.claim("C9")
def test_a_round_has_one_update_for_ever(path: Path) -> None:
    with new_ledger(path) as ledger:
        spend(ledger, 1)
        ledger.note_sent(PLAN, 1, 1, UPDATE, TRANSCRIPT)
    with reopened(path) as ledger:
        known = ledger.spend_of(PLAN, 1)
        assert known is not None
        assert known.update_digest == UPDATE
        before = path.read_bytes()
        with pytest.raises(LocalProtocolError, match="another update"):
            ledger.note_sent(PLAN, 1, 2, Digest("1" * 64), TRANSCRIPT)
        assert path.read_bytes() == before
        ledger.note_sent(PLAN, 1, 2, UPDATE, TRANSCRIPT)


@pytest.mark.claim("C9")
@pytest.mark.parametrize(
    "change",
    [
        {"cache_digest": Digest("1" * 64)},
        {"data_commitment": Digest("2" * 64)},
        {"mechanism": local(clip_norm=9.0)},
        {"randomness": "insecure-test"},
    ],
    ids=["cache", "records", "mechanism", "randomness"],
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
        assert second.after.local > second.before.local == first.after.local
        assert ledger.spend_of(PLAN, 1) == first


def test_nothing_is_noted_of_a_round_that_was_not_reserved(path: Path) -> None:
    with new_ledger(path) as ledger:
        with pytest.raises(LocalProtocolError, match="not reserved"):
            ledger.note_sent(PLAN, 1, 1, UPDATE, TRANSCRIPT)
        with pytest.raises(LocalProtocolError, match="not reserved"):
            ledger.note_receipt(PLAN, 1, TRANSCRIPT)
        with pytest.raises(LocalProtocolError, match="not reserved"):
            ledger.note_abort(PLAN, 1, 1, "why")


@pytest.mark.claim("C11")
def test_a_mechanism_without_noise_needs_an_infinite_cap_and_ends_all_finite_ones(path: Path) -> None:
    with new_ledger(path) as ledger:
        spend(ledger, 1)
        with pytest.raises(BudgetExhausted):
            spend(ledger, 2, without_noise(local()), cap=1e9)
        assert spend(ledger, 2, without_noise(local()), cap=math.inf).after == INFINITE
        with pytest.raises(BudgetExhausted):
            spend(ledger, 3, cap=1e9)
    assert reopened(path).spent == INFINITE
    assert verify_ledger(path, SIGNING_KEY.public_key).spent == INFINITE


@pytest.mark.claim("C11")
def test_a_larger_delta_does_not_make_epsilon_smaller(path: Path) -> None:
    with new_ledger(path) as ledger:
        for number, delta in enumerate((1e-5, 1e-3, 1e-7, 0.5), 1):
            before = ledger.spent
            charged = spend(ledger, number, delta=delta)
            assert charged.after.local > before.local
        assert [s.delta for s in ledger.spends] == [1e-5, 1e-5, 1e-7, 1e-7]
    assert verify_ledger(path, SIGNING_KEY.public_key).delta == 1e-7


@pytest.mark.claim("C8")
@pytest.mark.claim("C10")
def test_both_epsilons_both_caps_and_what_they_rest_on_are_in_the_report(path: Path) -> None:
    with new_ledger(path) as ledger:
        for number in (1, 2):
            spend(ledger, number, distributed(), caps=Cost(4.5, 2.0))
    report = verify_ledger(path, SIGNING_KEY.public_key)
    last = report.spends[-1]
    assert last.after == report.spent == cost_of([(distributed(), 2)], DELTA)
    assert last.before == report.spends[0].after == cost_of([(distributed(), 1)], DELTA)
    assert last.after.aggregate < last.after.local
    assert (last.caps, last.survivors, last.colluders) == (Cost(4.5, 2.0), 5, 1)
    assert report.second.local > report.spent.local
    assert report.second.aggregate > report.spent.aggregate
    assert (report.rdp_order, report.delta_of(View.LOCAL)) == (10, DELTA)


@pytest.mark.claim("C11")
@pytest.mark.parametrize(
    ("caps", "view"),
    [(Cost(2.0, 1e6), "local"), (Cost(1e6, 0.8), "aggregate"), (Cost(2.0, 0.8), "aggregate")],
    ids=str,
)
def test_whichever_cap_is_reached_first_ends_it_and_is_named(path: Path, caps: Cost, view: str) -> None:
    most = rounds_within(distributed(), DELTA, caps)
    with new_ledger(path) as ledger:
        for number in range(1, most + 1):
            assert spend(ledger, number, distributed(), caps=caps).after.within(caps)
        with pytest.raises(BudgetExhausted, match=f"{view} epsilon") as refusal:
            spend(ledger, most + 1, distributed(), caps=caps)
        assert refusal.value.view == view
        assert refusal.value.cap == caps.of(View(view))
        assert refusal.value.spent == ledger.spent.of(View(view)) <= refusal.value.cap < refusal.value.asked
    assert 0 < most < 20


@pytest.mark.parametrize("made", [distributed, statistics, grid])
def test_no_plan_counts_on_more_shares_of_noise_than_survivors_less_colluders(made: Any) -> None:
    assert terms(made(honest_survivors=3), survivors=5, colluders=2).colluders == 2
    with pytest.raises(ValueError, match="other shares"):
        terms(made(honest_survivors=4), survivors=5, colluders=2)


def test_terms_need_a_survivor_who_does_not_collude_and_an_order() -> None:
    with pytest.raises(ValueError, match="other shares"):
        terms(colluders=5, survivors=5)
    with pytest.raises(ValueError, match="order"):
        terms(rdp_order=0)
    assert terms(without_noise(local()), rdp_order=0).rdp_order == 0


@pytest.mark.claim("C11")
def test_noise_of_few_integer_steps_is_refused_and_says_why(path: Path) -> None:
    coarse = local(noise_multiplier=1.0, feature_bits=1, gradient_bits=1)
    with new_ledger(path) as ledger, pytest.raises(UnaccountedMechanism, match="too few integer steps"):
        spend(ledger, 1, coarse, cap=math.inf)


# --- rounds of other settings


@pytest.mark.claim("C11")
def test_full_batch_noise_may_change_midway_and_pld_still_decides(path: Path) -> None:
    with new_ledger(path) as ledger:
        spend(ledger, 1)
        spend(ledger, 2, local(noise_multiplier=20.0))
        spend(ledger, 3, statistics(noise_multiplier=30.0))
    report = verify_ledger(path, SIGNING_KEY.public_key)
    rounds = [(spend.mechanism, 1) for spend in report.spends]
    assert report.spent == cost_of(rounds, DELTA)
    assert report.delta_of(View.LOCAL) == DELTA


SAMPLED = local(sampling_rate=0.25, noise_multiplier=4.0)


@pytest.mark.claim("C11")
def test_another_sampled_setting_changes_to_the_renyi_filter_of_the_first_plan(path: Path) -> None:
    with new_ledger(path) as ledger:
        ledger.note_plan(terms(SAMPLED, rdp_order=12))
        for number in range(1, 6):
            spend(ledger, number, SAMPLED, rdp_order=12)
        assert ledger.spent == cost_of([(SAMPLED, 5)], DELTA)
        other = Digest("b" * 64)
        ledger.note_plan(terms(plan_digest=other, rdp_order=3))
        mixed = spend(ledger, 1, plan_digest=other, rdp_order=3)
        assert mixed.before == cost_of([(SAMPLED, 5)], DELTA)
        rounds = [(SAMPLED, 5), (local(), 1)]
        assert mixed.after.local == epsilon_rdp(rounds, DELTA, View.LOCAL, 12)
        assert mixed.after.local > cost_of(rounds, DELTA).local
        spend(ledger, 6, SAMPLED, rdp_order=12)
    report = verify_ledger(path, SIGNING_KEY.public_key)
    assert report.rdp_order == 12
    assert report.second == cost_of([(SAMPLED, 6), (local(), 1)], DELTA)  # PLD, the other accountant now
    assert report.second.local < report.spent.local
    # Whether to mix may have been decided after seeing results: what would have happened without counts too.
    assert report.delta_of(View.LOCAL) == report.delta_of(View.AGGREGATE) == 2 * DELTA


@pytest.mark.claim("C11")
def test_a_ledger_filled_by_pld_takes_no_round_that_its_renyi_filter_refuses(path: Path) -> None:
    """48 rounds fit the filter of order 10, 57 the plan: after 50 of them nothing of another setting fits."""
    with new_ledger(path) as ledger:
        for number in range(1, 51):
            spend(ledger, number, SAMPLED)
        before = path.read_bytes()
        with pytest.raises(BudgetExhausted):
            spend(ledger, 51, local(sampling_rate=0.001, noise_multiplier=50.0))
        assert path.read_bytes() == before
        spend(ledger, 51, SAMPLED)
    verify_ledger(path, SIGNING_KEY.public_key)


@pytest.mark.claim("C11")
def test_a_silo_of_the_reference_plan_stops_after_57_rounds(path: Path) -> None:
    with new_ledger(path) as ledger:
        for number in range(1, 58):
            spend(ledger, number, SAMPLED)
        with pytest.raises(BudgetExhausted) as refusal:
            spend(ledger, 58, SAMPLED)
        assert refusal.value.spent == pytest.approx(1.9868, abs=1e-4)
        assert refusal.value.asked == pytest.approx(2.0053, abs=1e-4)


# --- randomness of tests


@pytest.mark.claim("C7")
def test_repeatable_noise_is_in_the_ledger_for_ever_and_nothing_is_claimed(path: Path) -> None:
    with new_ledger(path) as ledger:
        spend(ledger, 1)
        assert verify_ledger(path, SIGNING_KEY.public_key).insecure_rounds == 0
        assert spend(ledger, 2, randomness="insecure-test").randomness == "insecure-test"
        spend(ledger, 3)
    report = verify_ledger(path, SIGNING_KEY.public_key)
    assert report.insecure_rounds == 1
    assert [spend.randomness for spend in report.spends] == ["os", "insecure-test", "os"]
    for statement in report.statements(CLINIC, terms())[:2]:
        assert "no differential privacy is claimed" in statement


@pytest.mark.claim("C8")
def test_a_ledger_states_what_its_weakest_plan_allows(path: Path) -> None:
    other = Digest("b" * 64)
    with new_ledger(path) as ledger:
        spend(ledger, 1, distributed(), caps=Cost(9.0, 9.0))
        spend(ledger, 1, distributed(), plan_digest=other, survivors=7, colluders=3, caps=Cost(9.0, 9.0))
    report = verify_ledger(path, SIGNING_KEY.public_key)
    alone, together, so_far = report.statements(CLINIC, terms(distributed()))
    assert "(9.000, 1e-05)-DP, whenever its rounds end" in alone
    assert "at most 1 institution colludes" in together
    assert "as many survivors as its plan guarantees" in together
    assert "(9.000, 1e-05)-DP, whenever its rounds end" in together
    spent = report.spent
    assert spent.local < 9.0
    assert f"local {rounded_up(spent.local)}, aggregate {rounded_up(spent.aggregate)}" in so_far


def test_a_ledger_without_spends_states_the_delta_of_the_terms(path: Path) -> None:
    new_ledger(path).close()
    report, present = verify_ledger(path, SIGNING_KEY.public_key), terms()
    alone, together, so_far = report.statements(CLINIC, present)
    assert f"({rounded_up(present.caps.local)}, 1e-05)-DP" in alone
    assert f"({rounded_up(present.caps.aggregate)}, 1e-05)-DP" in together
    assert "local 0.000, aggregate 0.000" in so_far


@pytest.mark.claim("C11")
def test_reopening_keeps_epsilon_head_and_spends(path: Path) -> None:
    for number in range(1, 6):
        with new_ledger(path) if number == 1 else reopened(path) as ledger:
            kept = ledger.spent, ledger.head, ledger.spends
            assert len(kept[2]) == number - 1
            spend(ledger, number)
            assert ledger.spent.local > kept[0].local
            kept = ledger.spent, ledger.head, ledger.spends
        with reopened(path) as ledger:
            assert (ledger.spent, ledger.head, ledger.spends) == kept
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
        assert spend(ledger, 2).after.local > ledger.spends[0].after.local
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
                ledger.note_abort(PLAN, 1, 1, reason)
        with pytest.raises(LocalProtocolError, match="refused to write"):
            spend(ledger, 2, cache_digest=Digest("short"))
        assert path.read_bytes() == before
        ledger.note_abort(PLAN, 1, 1, "fine")


@pytest.mark.claim("C10")
def test_a_hundred_rounds_verify_in_seconds_without_torch(path: Path) -> None:
    """``tests/bench/ledger.py`` measures a thousand."""
    sampled = distributed(sampling_rate=0.1, noise_multiplier=3.0)
    with new_ledger(path) as ledger:
        for number in range(1, 101):
            spend(ledger, number, sampled, caps=Cost(9.0, 9.0))
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
    assert spends == "100"
    assert float(seconds) < 60.0  # under two in practice; thirty times that would be a fault


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
