"""CF-SecAgg/1 written down a second time, slowly: every byte of a round, from names, seeds and integers.

MessagePack by hand, Shamir with Python integers, masks one AES block at a time (``tests.protocol.reference``).
Shares no code with the package; of other libraries only AES, AES-GCM and Ed25519 are used.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.protocol import reference as slow

PRIME = 2**31 - 1
LIMBS = 9
COORDINATOR = "coordinator"
PROTOCOL = "CF-SecAgg/1"


def msgpack(value: object) -> bytes:
    """The shortest encoding, as MessagePack's specification recommends, of what the messages are made of."""
    match value:
        case int() if 0 <= value < 128:
            return bytes([value])
        case int() if value < 1 << 8:
            return b"\xcc" + value.to_bytes(1, "big")
        case int() if value < 1 << 16:
            return b"\xcd" + value.to_bytes(2, "big")
        case int():
            return b"\xce" + value.to_bytes(4, "big")
        case str():
            raw = value.encode()
            return (bytes([0xA0 | len(raw)]) if len(raw) < 32 else b"\xd9" + bytes([len(raw)])) + raw
        case bytes():
            size = len(value)
            head = b"\xc4" + size.to_bytes(1, "big") if size < 1 << 8 else b"\xc5" + size.to_bytes(2, "big")
            return head + value
        case list():
            size = len(value)
            head = bytes([0x90 | size]) if size < 16 else b"\xdc" + size.to_bytes(2, "big")
            return head + b"".join(msgpack(item) for item in value)
    raise TypeError(type(value))


def named(label: str, *parts: str | bytes) -> str:
    """A digest as the protocol names things by it: hexadecimal."""
    return slow.digest(label, *(part.encode() if isinstance(part, str) else part for part in parts)).hex()


def public_key(seed: bytes) -> str:
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw().hex()


def keystream(seed: bytes, size: int) -> bytes:
    return bytes(slow.expand(seed, size, 1, 0))


def limbs_of(secret: bytes) -> list[int]:
    number = int.from_bytes(secret, "little")
    return [number >> 30 * i & (1 << 30) - 1 for i in range(LIMBS)]


def deal(secrets: list[bytes], threshold: int, places: list[int], seed: bytes) -> dict[int, bytes]:
    """Place -> its shares of all secrets, one after another, 36 bytes each."""
    limbs = [limb for secret in secrets for limb in limbs_of(secret)]
    need, drawn, at = (threshold - 1) * len(limbs), list[int](), 0
    while len(drawn) < need:  # 31 bits each, all ones left out
        stream = keystream(seed, 4 * (need + 8))
        words = [int.from_bytes(stream[i : i + 4], "little") & PRIME for i in range(at, len(stream), 4)]
        drawn = [word for word in words if word < PRIME][:need]
    rows = [limbs] + [drawn[i * len(limbs) : (i + 1) * len(limbs)] for i in range(threshold - 1)]
    shares = {}
    for place in places:
        values = [
            sum(row[i] * place**power for power, row in enumerate(rows)) % PRIME for i in range(len(limbs))
        ]
        shares[place] = b"".join(value.to_bytes(4, "little") for value in values)
    return shares


def rounded(values: list[float], clamp: float, grid_step: float, seed: bytes) -> tuple[list[int], int]:
    """An update as integers, and how many entries were clamped: coins of 16 bits are the seed's stream, in order."""
    coins, integers, clamped = keystream(seed, 2 * len(values)), list[int](), 0
    for i, value in enumerate(values):
        kept = min(max(value, -clamp), clamp)
        clamped += kept != value
        fixed_point = int(kept * (65536.0 / grid_step))  # cut towards 0
        integers.append((fixed_point + int.from_bytes(coins[2 * i : 2 * i + 2], "little")) // 65536)
    return integers, clamped


@dataclass
class Silo:
    """What is given of one silo, and what follows."""

    name: str
    identity: bytes
    mask_key: bytes
    channel_key: bytes
    self_mask: bytes
    share_seed: bytes
    values: list[int]
    """Integers of the update, then the counters."""
    held: dict[str, bytes] = field(default_factory=dict)


@dataclass
class RoundReference:
    """One attempt: ``messages[phase][silo]`` are the envelopes to or from that silo."""

    silos: list[Silo]
    coordinator: bytes
    threshold: int
    dropped: str | None
    """Its masked input does not arrive."""
    bits: int
    counters: int
    ledger_head: str
    number: int = 7
    attempt: int = 1
    messages: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def identity(self, sender: str) -> bytes:
        return self.coordinator if sender == COORDINATOR else self.silo(sender).identity

    def silo(self, name: str) -> Silo:
        return next(silo for silo in self.silos if silo.name == name)

    @property
    def names(self) -> list[str]:
        return [silo.name for silo in self.silos]

    @property
    def survivors(self) -> list[str]:
        return [name for name in self.names if name != self.dropped]

    def manifest(self) -> list[object]:
        plan = "ab" * 32
        roster = _map(
            federation_id="0f" * 16,
            plan_digest=plan,
            epoch=1,
            members=[_map(silo=silo.name, public_key=public_key(silo.identity)) for silo in self.silos],
        )
        return [
            "Manifest",
            plan,
            named("cachefl-secure/roster/1", roster),
            self.number,
            self.attempt,
            list(self.names),
            "cd" * 32,
            "ef" * 32,
        ]

    @cached_property
    def digest(self) -> str:
        return named("cachefl-secure/manifest/1", msgpack(self.manifest()))

    def signature(
        self, phase: str, sender: str, body: bytes, view: str, *, digest: str | None = None
    ) -> bytes:
        body_digest = named("cachefl-secure/body/1", body)
        over = named(
            "cachefl-secure/statement/1",
            self.digest if digest is None else digest,
            phase,
            sender,
            body_digest,
            view,
        )
        label = f"cachefl-secure/{PROTOCOL}/{phase}"
        message = named("cachefl-secure/signature/1", label, bytes.fromhex(over))
        return Ed25519PrivateKey.from_private_bytes(self.identity(sender)).sign(bytes.fromhex(message))

    def envelope(
        self, phase: str, sender: str, body: object, view: str, *, digest: str | None = None
    ) -> bytes:
        raw = body if isinstance(body, bytes) else msgpack(body)
        return msgpack(
            ["Signed", sender, phase, raw, self.signature(phase, sender, raw, view, digest=digest)]
        )

    # --- what silos have received

    @cached_property
    def adverts(self) -> list[list[Any]]:
        """The advertisements as they stand in a key list."""
        bodies = {silo.name: msgpack(self.advertisement(silo)) for silo in self.silos}
        return [
            ["Signed", name, "advertise", body, self.signature("advertise", name, body, "")]
            for name, body in bodies.items()
        ]

    @cached_property
    def key_list_body(self) -> list[object]:
        return ["KeyList", self.adverts]

    def advertisement(self, silo: Silo) -> list[object]:
        return ["Advertisement", slow.public_of(silo.mask_key), slow.public_of(silo.channel_key)]

    @cached_property
    def key_list(self) -> str:
        return named("cachefl-secure/key-list/1", msgpack(self.key_list_body))

    @cached_property
    def context(self) -> bytes:
        return bytes.fromhex(self.digest) + bytes.fromhex(self.key_list)

    @cached_property
    def share_view(self) -> str:
        return named("cachefl-secure/view/1", self.key_list, *self.names)

    def derive(self, purpose: str, length: int, secret: bytes, *parties: str) -> bytes:
        label = f"cachefl-secure/{PROTOCOL}/{purpose}"
        return slow.hkdf(secret, self.context, slow.info(label, *parties), length)

    # --- the round

    def play(self) -> list[int]:
        """Fills ``messages`` and returns the sum over the survivors: signed integers, then counters."""
        places = {name: place for place, name in enumerate(self.names, 1)}
        sealed: dict[str, dict[str, bytes]] = {}
        commitments = {}
        for silo in self.silos:
            rows = deal(
                [silo.self_mask, silo.mask_key],
                self.threshold,
                list(places.values()),
                self.derive("share-coefficients-stream", 28, silo.share_seed, silo.name),
            )
            commitments[silo.name] = named(
                "cachefl-secure/self-mask-commitment/1", self.context, silo.name, silo.self_mask
            )
            sealed[silo.name] = {}
            for holder in self.silos:
                pair = rows[places[holder.name]]
                holder.held[silo.name] = pair
                if holder is not silo:
                    shared = slow.x25519(silo.channel_key, slow.public_of(holder.channel_key))
                    key = self.derive("share-channel", 32, shared, silo.name, holder.name)
                    sealed[silo.name][holder.name] = AESGCM(key).encrypt(bytes(12), pair, self.context)
        at = self.messages
        raw = msgpack(self.manifest())
        at["manifest"] = dict.fromkeys(self.names, self.envelope("manifest", COORDINATOR, raw, "", digest=""))
        for silo in self.silos:
            name = silo.name
            self._note("advertise", name, self.envelope("advertise", name, self.advertisement(silo), ""))
            self._note("key-list", name, self.envelope("key-list", COORDINATOR, self.key_list_body, ""))
            shares = [[other, sealed[name][other]] for other in self.names if other != name]
            body: list[object] = ["SealedShares", commitments[name], shares]
            self._note("share", name, self.envelope("share", name, body, self.key_list))
            got = [[other, sealed[other][name]] for other in self.names if other != name]
            body = ["ShareDelivery", list(self.names), got]
            self._note(
                "share-delivery", name, self.envelope("share-delivery", COORDINATOR, body, self.key_list)
            )
        self._inputs()
        self._certify()
        total = [
            sum(self.silo(name).values[i] for name in self.survivors)
            for i in range(len(self.silos[0].values))
        ]
        split = len(total) - self.counters
        return total[:split] + [value % 2**64 for value in total[split:]]

    def _inputs(self) -> None:
        keys = {silo.name: slow.public_of(silo.mask_key) for silo in self.silos}
        for silo in self.silos:
            masked = slow.masked_input(
                silo.values,
                silo=silo.name,
                mask_key=silo.mask_key,
                self_mask=silo.self_mask,
                mask_public_keys=keys,
                context=self.context,
                word_bytes=2 if self.bits <= 16 else 4,
                bits=self.bits,
                counters=self.counters,
            )
            split = len(masked) - self.counters
            packed = slow.pack(masked[:split], self.bits)
            tail = b"".join(value.to_bytes(8, "little") for value in masked[split:])
            body = ["MaskedInput", packed, tail, self.ledger_head]
            envelope = self.envelope("masked-input", silo.name, body, self.share_view)
            self._note("masked-input", silo.name, envelope)

    def body_of(self, phase: str, name: str) -> bytes:
        """The body that stands in an envelope: after head, tag, sender and phase, before the signature of 66 bytes."""
        sender = name if phase in ("advertise", "share", "masked-input", "certify", "unmask") else COORDINATOR
        before = b"\x95" + msgpack("Signed") + msgpack(sender) + msgpack(phase)
        inner = self.messages[phase][name][len(before) : -66]
        return inner[2:] if inner[0] == 0xC4 else inner[3:]

    def headers(self) -> list[object]:
        return [
            [
                name,
                named("cachefl-secure/body/1", self.body_of("masked-input", name)),
                self.messages["masked-input"][name][-64:],
            ]
            for name in self.survivors
        ]

    def statement(self) -> list[object]:
        headers = self.headers()
        pairs = [part for header in headers for part in header[:2]]  # type: ignore[index]
        return [
            "Statement",
            self.digest,
            self.key_list,
            named("cachefl-secure/share-set/1", *self.names),
            named("cachefl-secure/survivor-set/1", *pairs),
        ]

    @property
    def certified(self) -> str:
        return named("cachefl-secure/body/1", msgpack(self.statement()))

    def _certify(self) -> None:
        proposal, statement = ["SurvivorSet", self.headers()], self.statement()
        signatures = []
        for name in self.survivors:
            self._note(
                "survivor-set", name, self.envelope("survivor-set", COORDINATOR, proposal, self.share_view)
            )
            self._note("certify", name, self.envelope("certify", name, statement, self.certified))
            signatures.append([name, self.messages["certify"][name][-64:]])
        certificate = ["Certificate", signatures[: self.threshold]]
        for name in self.survivors:
            self._note(
                "certificate", name, self.envelope("certificate", COORDINATOR, certificate, self.certified)
            )
            held = self.silo(name).held
            body = [
                "UnmaskShares",
                [[other, held[other][:36]] for other in self.survivors],
                [[other, held[other][36:]] for other in self.names if other == self.dropped],
            ]
            self._note("unmask", name, self.envelope("unmask", name, body, self.certified))

    def _note(self, phase: str, name: str, message: bytes) -> None:
        self.messages.setdefault(phase, {})[name] = message


def _map(**fields: object) -> bytes:
    """A MessagePack map in the order of its fields; values may be maps that are made already."""
    content = b"".join(msgpack(name) + _value(value) for name, value in fields.items())
    return bytes([0x80 | len(fields)]) + content


def _value(value: object) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, list):
        return bytes([0x90 | len(value)]) + b"".join(_value(item) for item in value)
    return msgpack(value)


def fixed(text: str, length: int = 32) -> bytes:
    """Up to 32 bytes that only this text gives. A seed of a stream takes 28."""
    return hashlib.sha256(text.encode()).digest()[:length]
