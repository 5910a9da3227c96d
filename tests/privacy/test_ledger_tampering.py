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
from cachefl_secure.privacy.accounting import Cost, charged, cost_of
from cachefl_secure.privacy.entries import exact
from cachefl_secure.privacy.ledger import Ledger, verify_ledger
from cachefl_secure.privacy.mechanism import mechanism_fields, mechanism_from_fields
from tests.privacy.examples import (
    DELTA,
    PLAN,
    SIGNING_KEY,
    TRANSCRIPT,
    UPDATE,
    distributed,
    local,
    new_ledger,
    spend,
    terms,
)

pytestmark = pytest.mark.claim("C10")

OTHER_KEY = SigningKey(bytes(32))
Lines = list[bytes]


CAPS = Cost(4.0, 2.0)


def written(path: Path) -> Lines:
    """Entry 0 enrol, then spend and sent of rounds 1 to 4: nine lines."""
    with new_ledger(path) as ledger:
        for number in range(1, 5):
            spend(ledger, number, distributed(), caps=CAPS)
            ledger.note_sent(PLAN, number, 1, UPDATE, TRANSCRIPT)
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
    body["mechanism"]["noise_multiplier"] = "44.606"


def recharged(lines: Lines, change: Callable[[dict[str, Any]], None]) -> Lines:
    """A whole other history: every spend changed, and its epsilons computed anew as an honest ledger would."""
    done: list[tuple[Any, int]] = []

    def anew(body: dict[str, Any]) -> None:
        if body["kind"] != "spend":
            return
        change(body)
        before = charged(done, DELTA, 10)
        done.append((mechanism_from_fields(body["mechanism"]), 1))
        after = charged(done, DELTA, 10)
        body |= {"local_before": exact(before.local), "local_after": exact(after.local)}
        body |= {"aggregate_before": exact(before.aggregate), "aggregate_after": exact(after.aggregate)}

    return rebuilt(lines, anew)


def with_shares(honest: int, **fields: int) -> Callable[[dict[str, Any]], None]:
    """The mechanism counts on another number of honest survivors, and the entry on other survivors or colluders."""

    def change(body: dict[str, Any]) -> None:
        body["mechanism"]["honest_survivors"] = str(honest)
        body |= fields

    return change


def views_swapped(body: dict[str, Any]) -> None:
    for when in ("before", "after"):
        local, aggregate = f"local_{when}", f"aggregate_{when}"
        body[local], body[aggregate] = body[aggregate], body[local]


def set_to(name: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda body: body.__setitem__(name, value)


def nothing(body: dict[str, Any]) -> None:
    """Leaves the body as it is."""


def at(position: int, change: Callable[[bytes], bytes]) -> Callable[[Lines], Lines]:
    return lambda lines: [*lines[:position], change(lines[position]), *lines[position + 1 :]]


CASES: dict[str, tuple[Callable[[Lines], Lines], int]] = {
    "noise edited in place": (at(3, lambda line: edited(line, quieter)), 5),
    "epsilon edited in place": (at(3, lambda line: edited(line, set_to("local_after", "0.1"))), 5),
    "cap raised in place": (at(3, lambda line: edited(line, set_to("local_cap", "9.0"))), 5),
    "records replaced in place": (at(3, lambda line: edited(line, set_to("data", "0" * 64))), 5),
    "unknown source of randomness": (at(3, lambda line: edited(line, set_to("randomness", "dice"))), 2),
    "edited and signed again by the owner": (at(3, lambda line: sealed(line, set_to("attempt", 2))), 4),
    "last spend's noise edited and signed again": (at(7, lambda line: sealed(line, quieter)), 9),
    "last spend's local cap below its epsilon": (
        at(7, lambda line: sealed(line, set_to("local_cap", "0.1"))),
        9,
    ),
    "last spend's aggregate cap below its epsilon": (
        at(7, lambda line: sealed(line, set_to("aggregate_cap", "0.1"))),
        9,
    ),
    "last spend's views swapped": (at(7, lambda line: sealed(line, views_swapped)), 9),
    "last spend's aggregate epsilon lowered": (
        at(7, lambda line: sealed(line, set_to("aggregate_after", "0.5"))),
        9,
    ),
    "last spend's honest survivors lowered": (at(7, lambda line: sealed(line, with_shares(3))), 8),
    "honest survivors lowered with the survivors": (
        at(7, lambda line: sealed(line, with_shares(3, survivors=4))),
        9,
    ),
    "more honest survivors claimed": (at(7, lambda line: sealed(line, with_shares(5))), 8),
    "colluders denied": (at(7, lambda line: sealed(line, set_to("colluders", 0))), 8),
    "last spend's order of the Renyi filter changed": (
        at(7, lambda line: sealed(line, set_to("rdp_order", 9))),
        8,
    ),
    "last spend's delta grown": (at(7, lambda line: sealed(line, set_to("delta", "0.01"))), 9),
    "number in another spelling": (at(7, lambda line: sealed(line, set_to("delta", "1e-5"))), 9),
    "NaN as a cap": (at(7, lambda line: sealed(line, set_to("local_cap", "nan"))), 9),
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
    more_noise = set_to("mechanism", mechanism_fields(distributed(noise_multiplier=80.0)))
    path.write_bytes(b"".join(recharged(lines, more_noise)))
    rewritten = verify_ledger(path, SIGNING_KEY.public_key)  # consistent, and a lie
    assert rewritten.spent.local < 0.2
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


HISTORIES: dict[str, tuple[Callable[[dict[str, Any]], None], bool]] = {
    "as it was": (nothing, True),
    "ten times the noise": (
        set_to("mechanism", mechanism_fields(distributed(noise_multiplier=44.606))),
        True,
    ),
    "one institution more counted on": (with_shares(5, survivors=6), True),
    "no colluders assumed": (with_shares(5, colluders=0), True),
    "higher caps": (set_to("local_cap", "1000000.0"), True),
    "secure noise instead of test noise": (set_to("randomness", "os"), True),
    "other records": (set_to("data", "0" * 64), True),
    "a tenth of the noise": (
        set_to("mechanism", mechanism_fields(distributed(noise_multiplier=0.44606))),
        False,
    ),
    "local cap below what was spent": (set_to("local_cap", "0.5"), False),
    "shares that the survivors do not have": (with_shares(9), False),
}


@pytest.mark.parametrize("name", HISTORIES)
def test_a_history_rebuilt_with_other_terms_is_caught_by_its_steps_or_by_a_witnessed_head(
    name: str, tmp_path: Path
) -> None:
    """What is consistent in itself only a head that others hold can refute: the owner has the key."""
    path = tmp_path / "ledger.jsonl"
    with new_ledger(path) as ledger:
        for number in (1, 2, 3):
            spend(ledger, number, distributed(), caps=CAPS, randomness="insecure-test")
        head = ledger.head
    change, consistent = HISTORIES[name]
    path.write_bytes(b"".join(recharged(path.read_bytes().splitlines(keepends=True), change)))
    if consistent:
        verify_ledger(path, SIGNING_KEY.public_key)
    if name == "as it was":
        verify_ledger(path, SIGNING_KEY.public_key, anchors=[(None, head)])
    else:
        with pytest.raises(LedgerRolledBack if consistent else LedgerCorrupt):
            verify_ledger(path, SIGNING_KEY.public_key, anchors=[(None, head)])


def test_settings_mixed_under_pld_are_detected_in_a_rebuilt_history(tmp_path: Path) -> None:
    """An owner who writes the smaller epsilon of PLD where the Renyi filter decides."""
    path = tmp_path / "ledger.jsonl"
    with new_ledger(path) as ledger:
        spend(ledger, 1, local(sampling_rate=0.25))
        spend(ledger, 2, local())
    lines = path.read_bytes().splitlines(keepends=True)
    smaller = exact(cost_of([(local(sampling_rate=0.25), 1), (local(), 1)], DELTA).local)
    path.write_bytes(
        b"".join(
            [
                *lines[:-1],
                sealed(lines[-1], lambda body: body.update(local_after=smaller, aggregate_after=smaller)),
            ]
        )
    )
    with pytest.raises(LedgerCorrupt, match="step 9: epsilon is not what the accountant gives"):
        verify_ledger(path, SIGNING_KEY.public_key)


def test_a_plan_with_another_order_of_the_filter_is_detected(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with new_ledger(path) as ledger:
        ledger.note_plan(terms())
        ledger.note_plan(terms(rdp_order=64))  # which the ledger does not take over
    lines = path.read_bytes().splitlines(keepends=True)
    assert json.loads(lines[-1])["body"]["rdp_order"] == 10
    path.write_bytes(b"".join([*lines[:-1], sealed(lines[-1], set_to("rdp_order", 64))]))
    with pytest.raises(LedgerCorrupt, match="step 8"):
        verify_ledger(path, SIGNING_KEY.public_key)
