"""C10: what an owner, an insider or a bad disk may do to a ledger, and which step notices."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cachefl_secure.crypto.sign import SigningKey
from cachefl_secure.errors import LedgerCorrupt, LedgerError, LedgerRolledBack
from cachefl_secure.names import Digest
from cachefl_secure.privacy import entries
from cachefl_secure.privacy.accounting import epsilon_spent
from cachefl_secure.privacy.entries import exact
from cachefl_secure.privacy.ledger import Ledger, verify_ledger
from cachefl_secure.privacy.mechanism import mechanism_fields, mechanism_from_fields
from tests.privacy.examples import DELTA, SIGNING_KEY, TRANSCRIPT, UPDATE, local, new_ledger, spend

pytestmark = pytest.mark.claim("C10")

OTHER_KEY = SigningKey(bytes(32))
Lines = list[bytes]


def written(path: Path) -> Lines:
    """Entry 0 enrol, then spend and sent of rounds 1 to 4: nine lines."""
    with new_ledger(path) as ledger:
        for number in range(1, 5):
            spend(ledger, number)
            ledger.note_sent(number, 1, UPDATE, TRANSCRIPT)
    return path.read_bytes().splitlines(keepends=True)


def edited(line: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    """The body changed in place, hash and signature as they were."""
    value = json.loads(line)
    change(value["body"])
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def sealed(line: bytes, change: Callable[[dict[str, Any]], None], key: SigningKey = SIGNING_KEY) -> bytes:
    """The body changed, hashed and signed again, as the owner of the key can."""
    body = json.loads(line)["body"]
    change(body)
    return entries.seal(msgspec.convert(body, entries.AnyBody), key)[0]


def rebuilt(lines: Lines, change: Callable[[dict[str, Any]], None], key: SigningKey = SIGNING_KEY) -> Lines:
    """A whole other history by the owner: every entry changed, renumbered, chained and signed again."""
    previous, result = entries.GENESIS, []
    for sequence, line in enumerate(lines):
        body = json.loads(line)["body"]
        change(body)
        body |= {"sequence": sequence, "previous": previous, "public_key": key.public_key}
        new, previous = entries.seal(msgspec.convert(body, entries.AnyBody), key)
        result.append(new)
    return result


def quieter(body: dict[str, Any]) -> None:
    body["mechanism"]["noise_multiplier"] = "80.0"


def more_noise_everywhere(lines: Lines) -> Lines:
    """Every round with ten times the noise it had, epsilons computed anew."""
    rounds = 0

    def change(body: dict[str, Any]) -> None:
        nonlocal rounds
        if body["kind"] == "spend":
            mechanism = local(noise_multiplier=80.0)
            body["mechanism"] = mechanism_fields(mechanism)
            body["epsilon_before"] = exact(epsilon_spent([(mechanism, rounds)], DELTA))
            rounds += 1
            body["epsilon_after"] = exact(epsilon_spent([(mechanism, rounds)], DELTA))

    return rebuilt(lines, change)


def set_to(name: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda body: body.__setitem__(name, value)


def nothing(body: dict[str, Any]) -> None:
    """Leaves the body as it is."""


def at(position: int, change: Callable[[bytes], bytes]) -> Callable[[Lines], Lines]:
    return lambda lines: [*lines[:position], change(lines[position]), *lines[position + 1 :]]


CASES: dict[str, tuple[Callable[[Lines], Lines], int]] = {
    "noise edited in place": (at(3, lambda line: edited(line, quieter)), 5),
    "epsilon edited in place": (at(3, lambda line: edited(line, set_to("epsilon_after", "0.1"))), 5),
    "edited and signed again by the owner": (at(3, lambda line: sealed(line, set_to("attempt", 2))), 4),
    "last spend's noise edited and signed again": (at(7, lambda line: sealed(line, quieter)), 9),
    "last spend's cap below its epsilon": (at(7, lambda line: sealed(line, set_to("cap", "0.1"))), 9),
    "last spend's delta grown": (at(7, lambda line: sealed(line, set_to("delta", "0.01"))), 9),
    "number in another spelling": (at(7, lambda line: sealed(line, set_to("delta", "1e-5"))), 9),
    "NaN as a cap": (at(7, lambda line: sealed(line, set_to("cap", "nan"))), 9),
    "round spent twice": (at(7, lambda line: sealed(line, set_to("round", 3))), 7),
    "sent without a spend": (at(8, lambda line: sealed(line, set_to("round", 9))), 7),
    "mechanism of an unknown kind": (
        at(7, lambda line: sealed(line, lambda body: body["mechanism"].update(kind="free"))),
        8,
    ),
    "entry deleted": (lambda ls: ls[:3] + ls[4:], 3),
    "first entry deleted": (lambda ls: ls[1:], 3),
    "entries swapped": (lambda ls: [*ls[:3], ls[4], ls[3], *ls[5:]], 3),
    "entry duplicated": (lambda ls: ls[:4] + ls[3:], 3),
    "spend deleted and the rest chained again": (lambda ls: rebuilt(ls[:3] + ls[4:], nothing), 7),
    "all signed by another key": (lambda ls: rebuilt(ls, nothing, OTHER_KEY), 6),
    "signature of another key under our name": (
        at(3, lambda line: entries.seal(msgspec.json.decode(line, type=entries.Line).body, OTHER_KEY)[0]),
        6,
    ),
    "signature bit flipped": (
        at(3, lambda line: line[:-4] + (b"0" if line[-4:-3] != b"0" else b"1") + line[-3:]),
        6,
    ),
    "white space": (at(3, lambda line: json.dumps(json.loads(line)).encode() + b"\n"), 2),
    "order of fields": (
        at(
            3,
            lambda line: line.replace(b',"version":1}', b"}").replace(b'{"body":{', b'{"body":{"version":1,'),
        ),
        2,
    ),
    "field twice": (at(3, lambda line: line.replace(b'"attempt":1', b'"attempt":1,"attempt":1')), 2),
    "unknown field": (at(3, lambda line: edited(line, set_to("note", "x"))), 2),
    "unknown kind": (at(3, lambda line: edited(line, set_to("kind", "refund"))), 2),
    "newer version": (at(3, lambda line: edited(line, set_to("version", 2))), 2),
    "float as a number": (at(3, lambda line: edited(line, set_to("delta", 1e-5))), 2),
    "empty line": (lambda ls: [*ls[:3], b"\n", *ls[3:]], 2),
    "carriage returns": (lambda ls: [line.replace(b"\n", b"\r\n") for line in ls], 2),
    "no newline at the end": (lambda ls: [*ls[:-1], ls[-1][:-1]], 1),
    "empty file": (lambda _: [], 1),
}


@pytest.mark.parametrize("name", CASES)
def test_tampering_is_named_by_its_step(name: str, tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    change, step = CASES[name]
    tampered = b"".join(change(written(path)))
    assert tampered != path.read_bytes()
    path.write_bytes(tampered)
    with pytest.raises(LedgerCorrupt) as caught:
        verify_ledger(path, SIGNING_KEY.public_key)
    assert caught.value.reason.startswith(f"step {step}:"), caught.value


@pytest.mark.parametrize("name", [name for name, (_, step) in CASES.items() if step > 1])
def test_a_tampered_ledger_does_not_open_and_is_left_as_it_is(name: str, tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    tampered = b"".join(CASES[name][0](written(path)))
    path.write_bytes(tampered)
    with pytest.raises(LedgerCorrupt):
        Ledger.open(path, SIGNING_KEY)
    assert path.read_bytes() == tampered


def test_every_changed_byte_is_detected(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    raw = b"".join(written(path)[:4])
    head = Digest(json.loads(raw.splitlines()[-1])["hash"])
    for position in range(len(raw)):
        flipped = raw[position] ^ (1 << position % 7)
        path.write_bytes(raw[:position] + bytes([flipped]) + raw[position + 1 :])
        with pytest.raises(LedgerError):
            verify_ledger(path, SIGNING_KEY.public_key, anchors=[(3, head)])


def test_a_rollback_to_any_earlier_entry_is_detected_with_a_witnessed_head(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    lines = written(path)
    head = Digest(json.loads(lines[-1])["hash"])
    for kept in range(1, len(lines)):
        path.write_bytes(b"".join(lines[:kept]))
        verify_ledger(path, SIGNING_KEY.public_key)  # the file alone cannot show it
        for anchor in ((len(lines) - 1, head), (None, head)):
            with pytest.raises(LedgerRolledBack):
                verify_ledger(path, SIGNING_KEY.public_key, anchors=[anchor])
        with pytest.raises(LedgerRolledBack):
            Ledger.open(path, SIGNING_KEY, anchors=[(None, head)])


def test_a_history_rebuilt_by_its_owner_is_detected_with_a_witnessed_head(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    lines = written(path)
    heads = [Digest(json.loads(line)["hash"]) for line in lines]
    path.write_bytes(b"".join(more_noise_everywhere(lines)))
    rewritten = verify_ledger(path, SIGNING_KEY.public_key)  # consistent, and a lie
    assert rewritten.epsilon < 0.2
    for sequence in range(1, len(heads)):
        with pytest.raises(LedgerRolledBack):
            verify_ledger(path, SIGNING_KEY.public_key, anchors=[(sequence, heads[sequence])])
    with pytest.raises(LedgerRolledBack):
        verify_ledger(path, SIGNING_KEY.public_key, anchors=[(None, heads[-1])])


def test_a_head_at_the_wrong_place_is_not_an_anchor(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    heads = [Digest(json.loads(line)["hash"]) for line in written(path)]
    verify_ledger(path, SIGNING_KEY.public_key, anchors=list(enumerate(heads)))
    with pytest.raises(LedgerRolledBack):
        verify_ledger(path, SIGNING_KEY.public_key, anchors=[(2, heads[3])])


def test_a_second_update_for_a_charged_round_is_detected(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    lines = written(path)
    again = json.loads(lines[-1])["body"] | {"attempt": 2, "update": "0" * 64, "sequence": 9}
    again["previous"] = json.loads(lines[-1])["hash"]
    line, _ = entries.seal(msgspec.convert(again, entries.AnyBody), SIGNING_KEY)
    path.write_bytes(b"".join([*lines, line]))
    with pytest.raises(LedgerCorrupt, match="step 7: round 4 has another update"):
        verify_ledger(path, SIGNING_KEY.public_key)


def test_sampling_changed_midway_is_detected_in_a_rebuilt_history(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    lines = written(path)
    done: list[Any] = []

    def change(body: dict[str, Any]) -> None:
        if body["kind"] == "spend":
            body["mechanism"]["sampling_rate"] = "0.5" if body["round"] == 2 else "1.0"
            body["epsilon_before"] = exact(epsilon_spent(done, DELTA))
            done.append((mechanism_from_fields(body["mechanism"]), 1))
            body["epsilon_after"] = exact(epsilon_spent(done, DELTA))

    path.write_bytes(b"".join(rebuilt(lines, change)))
    with pytest.raises(LedgerCorrupt, match="step 8"):
        verify_ledger(path, SIGNING_KEY.public_key)
