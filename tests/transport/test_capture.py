"""What whoever holds the store can read: nothing that is not sealed, or public by design.

Every byte that enters the store in two rounds is kept and searched for everything that this test knows and the
store should not: records, labels, counts, updates, seeds, ledgers, paths, and the letters of the rounds.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cachefl_secure.crypto import hpke
from cachefl_secure.crypto.secret import Secret
from cachefl_secure.federation import letters
from cachefl_secure.federation.silo_files import LEDGER_FILE, SiloFiles
from cachefl_secure.names import COORDINATOR, SiloId
from cachefl_secure.privacy import training
from cachefl_secure.protocol import messages, wire
from cachefl_secure.transport.parcels import ContactCard, Parcel
from cachefl_secure.transport.store import ObjectStore
from tests.small_federation import SmallFederation, found, random_features
from tests.transport.at_an_engine import name_engine, run_rounds, serving
from tests.transport.hostile import memory_url

RECORDS = (10_007, 10_103, 10_211)
"""Primes of five digits: found in text and in eight bytes, and no other number of the federation."""

NUMBER_TYPES = ("<f4", ">f4", "<f8", ">f8", "<i4", ">i4", "<i8", ">i8")
LETTERS = (
    letters.Standing,
    letters.Hello,
    letters.Receipt,
    letters.Reply,
    messages.Signed,
    messages.MaskedInput,
)


@dataclass
class Captured:
    """What entered the store, and what is looked for in it: kind -> values as bytes."""

    federation: SmallFederation
    puts: list[tuple[str, bytes]] = field(default_factory=list)
    planted: dict[str, set[bytes]] = field(default_factory=dict)

    def plant(self, kind: str, *values: bytes) -> None:
        for value in values:
            assert len(value) >= 5, "found by chance"
            self.planted.setdefault(kind, set()).add(value)

    def found(self) -> dict[str, bytes]:
        """Kind -> a value of it that is in the store, in any encoding."""
        everything = b"\n".join(part for name, content in self.puts for part in (name.encode(), content))
        found: dict[str, bytes] = {}
        for kind, values in self.planted.items():
            for value in values:
                if value.isdigit():  # not by chance in the hex digits of a digest
                    if re.search(rb"(?<![0-9a-fA-F])%s(?![0-9a-fA-F])" % value, everything):
                        found[kind] = value
                elif any(form in everything for form in encodings(value)):
                    found[kind] = value
        return found


def encodings(value: bytes) -> Iterator[bytes]:
    """Raw, hex in both cases, and the part of base64 that stands whatever precedes, at its three offsets."""
    yield value
    if len(value) < 8:
        return
    yield from (value.hex().encode(), value.hex().upper().encode())
    for offset in range(3):
        whole = base64.b64encode(bytes(offset) + value)
        inner = whole[(0, 2, 3)[offset] :].rstrip(b"=")
        inner = inner[: len(inner) - ((offset + len(value)) % 3 != 0)]
        yield from (inner, inner.replace(b"+", b"-").replace(b"/", b"_"))


def numbers(values: Any, at_once: int) -> Iterator[bytes]:
    """Runs of numbers in every width and byte order, enough at once not to be found by chance."""
    for dtype in NUMBER_TYPES:
        if dtype[1] == "i" and not np.array_equal(values, np.asarray(values).astype(dtype)):
            continue
        raw, width = np.asarray(values).astype(dtype), at_once if dtype[2] == "8" else max(2, at_once)
        for start in range(0, len(raw) - width + 1, width):
            yield raw[start : start + width].tobytes()


def in_text(values: Any) -> Iterator[bytes]:
    for value in values:
        for text in (repr(float(value)), f"{float(value):.8f}", f"{float(value):.6e}"):
            yield text.lstrip("-").encode()


@pytest.fixture
def capture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Captured]]:
    """Two rounds of three silos that were admitted, with all that is secret in them."""

    def play() -> Captured:
        federation = found(tmp_path, records=RECORDS)
        captured = Captured(federation)
        name_engine(federation, memory_url())
        secrets, updates = _keep_secrets(monkeypatch), _keep_updates(monkeypatch)
        genuine = ObjectStore.put

        def put(store: ObjectStore, name: str, *pieces: bytes | memoryview) -> None:
            captured.puts.append((name, b"".join(pieces)))
            genuine(store, name, *pieces)

        monkeypatch.setattr(ObjectStore, "put", put)
        with serving(federation):
            run_rounds(federation, 2)
        _plant(captured, secrets, updates)
        return captured

    yield play
    monkeypatch.undo()


def _keep_secrets(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[bytes]]:
    """Every secret that is made, by the name of its type: seeds of masks and of noise, keys, shares, salts."""
    kept: dict[str, set[bytes]] = {}
    genuine = Secret.__init__

    def keep(secret: Secret, value: bytes) -> None:
        genuine(secret, value)
        kept.setdefault(type(secret).__name__, set()).add(bytes(value))

    monkeypatch.setattr(Secret, "__init__", keep)
    return kept


def _keep_updates(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    kept: list[Any] = []
    genuine = training.train_privately

    def keep(*arguments: Any, **options: Any) -> Any:
        update = genuine(*arguments, **options)
        kept.append(update)
        return update

    monkeypatch.setattr(training, "train_privately", keep)
    return kept


def _plant(captured: Captured, secrets: dict[str, set[bytes]], updates: list[Any]) -> None:
    for seed, number in enumerate(RECORDS, 1):
        records = random_features(number, seed)
        some = records.features[:12].numpy().reshape(-1)
        captured.plant("feature", *numbers(some, 1 if some.dtype.itemsize == 8 else 2), *in_text(some[:60]))
        captured.plant("label", *numbers(records.labels[:400].numpy(), 8))
        captured.plant("label", *(bytes(records.labels[at : at + 16].tolist()) for at in range(0, 400, 16)))
        captured.plant("count of records", str(number).encode(), *numbers([number], 1))
        captured.plant("file digest", *(f"{seed:02x}{index:062x}".encode() for index in range(0, number, 50)))
    for kind, values in secrets.items():
        captured.plant(f"secret: {kind}", *values)
    for update in updates:
        entries = np.asarray(update.values, float).reshape(-1)
        captured.plant("update", *numbers(entries, 1), *in_text(entries))
    for path in captured.federation.silos.values():
        captured.plant("path", str(path).encode())
        for line in SiloFiles.open(path).state.read(LEDGER_FILE).splitlines():
            captured.plant("ledger entry", line, line[20:60])
            captured.plant("ledger head", *(match.encode() for match in _heads(line.decode())))
    captured.plant("letter", *(kind.__name__.encode() for kind in LETTERS))


def _heads(line: str) -> list[str]:
    return re.findall(r'"(?:previous|head|digest)":"([0-9a-f]{64})"', line)


@pytest.mark.parametrize("offset", range(4))
def test_the_search_finds_a_value_in_every_encoding(tmp_path: Path, offset: int) -> None:
    value, around = b"\xfb\xef a value of sixteen", bytes(range(200, 200 + offset))
    for form in (bytes, bytes.hex, lambda raw: raw.hex().upper(), base64.b64encode, base64.urlsafe_b64encode):
        encoded = form(around + value + around)
        raw = encoded.encode() if isinstance(encoded, str) else encoded
        captured = Captured(SmallFederation(tmp_path, {}), [("a/b", raw)], {"kind": {value}})
        assert captured.found() == {"kind": value}
        captured.puts[0] = ("a/b", raw[: len(raw) // 2])
        assert captured.found() == {}


def test_nothing_in_the_store_is_legible_that_is_not_public(capture: Callable[[], Captured]) -> None:
    captured = capture()
    assert len(captured.puts) > 40
    kinds = {kind: len(values) for kind, values in captured.planted.items()}
    for kind in ("feature", "update", "label", "ledger entry", "secret: StreamKey", "secret: SelfMaskSeed"):
        assert kinds.get(kind, 0) >= 6, (kind, kinds)
    assert captured.found() == {}


def test_all_that_enters_the_store_is_a_card_a_request_or_a_parcel(capture: Callable[[], Captured]) -> None:
    """And their names show no more than parties, phases and numbers of exchanges."""
    captured = capture()
    federation_id, party = captured.federation.plan.federation_id, "(coordinator|silo-[1-3])"
    phases = "hello|sync|manifest|share|masked-input|certificate|unmask"
    allowed = {
        rf"{federation_id}/contacts/{party}/[0-9a-f]{{16}}": ContactCard,
        rf"{federation_id}/requests/[0-9a-f]{{16}}/silo-[1-3]\.[0-9a-f]{{16}}\.toml": None,
        rf"{federation_id}/to/silo-[1-3]/[0-9]{{12}}-({phases})": Parcel,
        rf"{federation_id}/from/[0-9]{{12}}/silo-[1-3]": Parcel,
    }
    for name, content in captured.puts:
        (kind,) = [kind for pattern, kind in allowed.items() if re.fullmatch(pattern, name)]
        if kind is None:
            silo = name.rpartition("/")[2].partition(".")[0]
            path = captured.federation.silos[SiloId(silo)]
            assert content == (path / "join-request.toml").read_bytes()
        else:
            message = wire.decode(content, kind, limit_bytes=1 << 24, peer="x")
            if isinstance(message, Parcel):
                assert {message.label.sender, message.label.recipient} > {COORDINATOR}
                assert len(message.sealed) >= hpke.OVERHEAD_BYTES


def test_without_sealing_the_letters_and_the_budget_flag_are_legible(
    capture: Callable[[], Captured], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the search finds what is there: what the coordinator sees. Masks and noise hide the rest all the same."""
    monkeypatch.setattr(hpke, "seal_to", lambda key, plaintext, purpose, *, peer: bytes(48) + plaintext)
    monkeypatch.setattr(hpke.TransportKey, "open", lambda key, sealed, purpose, *, peer: bytes(sealed[48:]))
    captured = capture()
    assert set(captured.found()) == {"letter", "ledger head", "secret: SelfMaskShare"}
    flags = []
    for name, content in captured.puts:
        if "/from/" in name:
            parcel = wire.decode(content, Parcel, limit_bytes=1 << 24, peer="x")
            if parcel.label.phase == letters.HELLO:
                reply = wire.decode(bytes(parcel.sealed[48:]), letters.Reply, limit_bytes=1 << 24, peer="x")
                standing = wire.decode(reply.answer, letters.Standing, limit_bytes=1 << 24, peer="x")
                flags.append((parcel.label.sender, standing.has_budget))
    assert len(flags) >= 6
    assert all(flag for _, flag in flags)
