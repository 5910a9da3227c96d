"""C9: every state that a crash can leave of an append, cut at every byte and torn at every block."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cachefl_secure.errors import ConfigError, LedgerCorrupt
from cachefl_secure.privacy.ledger import Ledger, verify_ledger
from tests.privacy.examples import PLAN, SIGNING_KEY, TRANSCRIPT, UPDATE, new_ledger, spend

pytestmark = pytest.mark.claim("C9")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


def two_rounds(path: Path) -> tuple[bytes, bytes]:
    """A ledger with round 1, and what the append of round 2's spend adds to it."""
    with new_ledger(path) as ledger:
        spend(ledger, 1)
        ledger.note_sent(PLAN, 1, 1, UPDATE, TRANSCRIPT)
        before = path.read_bytes()
        spend(ledger, 2)
    return before, path.read_bytes()[len(before) :]


def test_an_append_cut_at_every_byte_leaves_the_old_ledger_or_the_new_one(path: Path) -> None:
    before, line = two_rounds(path)
    for kept in range(len(line) + 1):
        path.write_bytes(before + line[:kept])
        with Ledger.open(path, SIGNING_KEY) as ledger:
            rounds = [s.round for s in ledger.spends]
            # whole but for its newline: the charge is readable, so it counts
            assert rounds == ([1, 2] if kept >= len(line) - 1 else [1])
            assert (ledger.recovered is None) == (kept in (0, len(line)))
            assert ledger.spends[0].update_digest == UPDATE
        assert path.read_bytes() == (before + line if rounds == [1, 2] else before)


@pytest.mark.parametrize("kept", [0, 1, 200, -2, -1])
def test_after_recovery_the_ledger_goes_on_and_verifies(path: Path, kept: int) -> None:
    before, line = two_rounds(path)
    path.write_bytes(before + line[:kept])
    with Ledger.open(path, SIGNING_KEY) as ledger:
        spend(ledger, 2)
        spend(ledger, 3)
        assert [s.round for s in ledger.spends] == [1, 2, 3]
    assert len(verify_ledger(path, SIGNING_KEY.public_key).spends) == 3


def test_blocks_that_never_reached_the_disk_are_recovered(path: Path) -> None:
    before, line = two_rounds(path)
    for start in range(0, len(line), 97):
        hole = line[:start] + bytes(min(97, len(line) - start)) + line[start + 97 :]
        path.write_bytes(before + hole)
        with Ledger.open(path, SIGNING_KEY) as ledger:
            assert [s.round for s in ledger.spends] == [1]
            assert ledger.recovered is not None
        assert path.read_bytes() == before


def test_the_report_says_which_entry_and_how_much(path: Path) -> None:
    before, line = two_rounds(path)
    path.write_bytes(before + line[:123])
    with Ledger.open(path, SIGNING_KEY) as ledger:
        assert ledger.recovered == "entry 3 was not finished: 123 bytes removed"


def test_damage_in_the_middle_is_not_recovered(path: Path) -> None:
    before, line = two_rounds(path)
    lines = before.splitlines(keepends=True)
    damaged = lines[0] + lines[1][:100] + lines[2] + line
    path.write_bytes(damaged)
    with pytest.raises(LedgerCorrupt) as caught:
        Ledger.open(path, SIGNING_KEY)
    assert caught.value.entry == 1
    assert path.read_bytes() == damaged


def test_a_torn_tail_after_a_damaged_middle_is_left_alone(path: Path) -> None:
    before, line = two_rounds(path)
    damaged = before.replace(b'"attempt":1', b'"attempt":2', 1) + line[:50]
    path.write_bytes(damaged)
    with pytest.raises(LedgerCorrupt):
        Ledger.open(path, SIGNING_KEY)
    assert path.read_bytes() == damaged


def test_a_changed_last_entry_is_tampering_and_not_a_crash(path: Path) -> None:
    """Else an owner could drop the last charge by flipping one bit of it."""
    before, line = two_rounds(path)
    path.write_bytes(before + line.replace(b'"attempt":1', b'"attempt":2'))
    with pytest.raises(LedgerCorrupt, match="step 5"):
        Ledger.open(path, SIGNING_KEY)


@pytest.mark.parametrize("content", [b"", b"\n", b"{", b'{"body"'])
def test_a_ledger_without_its_first_entry_is_never_taken_for_a_new_one(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(LedgerCorrupt):
        Ledger.open(path, SIGNING_KEY)
    assert path.read_bytes() == content


def test_a_crash_while_creating_leaves_no_ledger_or_a_whole_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    def crash(*_: object) -> None:
        raise OSError(5, "Input/output error")

    for call in ("write", "fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, crash)
            with pytest.raises(ConfigError, match="Input/output error"):
                new_ledger(path)
        assert not path.exists()
    new_ledger(path).close()
    Ledger.open(path, SIGNING_KEY).close()


KILLED = """
import os, signal, sys
from pathlib import Path
from cachefl_secure.privacy.ledger import Ledger
from tests.privacy.examples import SIGNING_KEY, spend
path, call, when = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
ledger, calls = Ledger.open(path, SIGNING_KEY), 0

def killing(really, halve):
    def watched(file, *content):
        global calls
        calls += 1
        if calls == call and when == "half":
            really(file, *halve(content))
        if calls == call and when == "after":
            really(file, *content)
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return really(file, *content)
    return watched

os.write = killing(os.write, lambda content: [content[0][: len(content[0]) // 2]])
os.fsync = killing(os.fsync, lambda content: content)
spend(ledger, 2)
print("returned", flush=True)
"""


@pytest.mark.parametrize(
    ("call", "when", "charged"),
    [(1, "before", False), (1, "half", False), (1, "after", True), (2, "before", True), (2, "after", True)],
)
def test_a_process_killed_at_any_write_of_a_charge_leaves_a_ledger_that_goes_on(
    path: Path, call: int, when: str, charged: bool
) -> None:
    """kill -9 between the two calls that a charge makes of the disk, in a process of its own."""
    with new_ledger(path) as ledger:
        spend(ledger, 1)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(path), str(call), when],
        capture_output=True,
        text=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert killed.stdout == ""  # reserve had not returned: nothing was trained on the charge
    with Ledger.open(path, SIGNING_KEY) as ledger:
        assert [s.round for s in ledger.spends] == ([1, 2] if charged else [1])
        assert (ledger.recovered is not None) == (when == "half")
        assert spend(ledger, 2).after.local > ledger.spends[0].after.local
    assert len(verify_ledger(path, SIGNING_KEY.public_key).spends) == 2
