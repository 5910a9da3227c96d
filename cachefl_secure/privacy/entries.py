"""The ledger's line format: canonical JSON, hash-chained, signed. Bytes in, bytes out; no files.

    {"body": {...}, "hash": H(body), "sig": Ed25519(H(body))}

``body`` always holds version, kind, sequence, previous hash, public key, code version and an
informational time; the rest depends on the kind, one class each. Kinds and fields are closed sets: an
entry that this version does not know is refused, because it might have cost something. Canonical means
sorted fields, no white space, and every float as its ``repr`` string, so that any language hashes the same.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from cachefl_secure.crypto.sign import SigningKey, verify
from cachefl_secure.errors import BadSignature
from cachefl_secure.fields import Count, Hex64
from cachefl_secure.names import Digest, PublicKeyHex, digest_of

GENESIS = Digest("0" * 64)
"""The previous hash of entry 0."""

MAX_LINE_BYTES = 1 << 14

_HASH_LABEL = "cachefl-secure/ledger-entry/1"
_SIGNING_PURPOSE = "ledger-entry"

Number = Annotated[str, Meta(min_length=1, max_length=32, pattern=r"^[0-9a-z.+-]+\Z")]
"""A float as ``repr`` writes it, ``inf`` included."""

Text = Annotated[str, Meta(max_length=200, pattern=r"^[ -~]*\Z")]
Round = Annotated[int, Meta(ge=0, le=2**32)]

Randomness = Literal["os", "insecure-test"]
"""Where noise and sampling came from: keys of the operating system, or streams that a test repeats."""


class Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind"):
    """What every entry says, whatever its kind."""

    version: Literal[1] = 1
    sequence: Annotated[int, Meta(ge=0, le=2**53)]
    previous: Hex64
    public_key: Hex64
    code: Text
    time: Text
    """As the silo's clock had it, or empty. No decision rests on it."""


class Enrol(Body, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="enrol"):
    """Entry 0, and only entry 0: whose ledger this is."""

    silo: Text
    federation: Text


class _Agreed(Body, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Terms of a plan: see ``terms.Terms``."""

    plan: Hex64
    mechanism: dict[str, str]
    delta: Number
    survivors: Count
    colluders: Annotated[int, Meta(ge=0, le=1_000_000)]
    rdp_order: Annotated[int, Meta(ge=0, le=1024)]
    """The one in force in this ledger, whatever the plan says."""
    local_cap: Number
    aggregate_cap: Number


class Plan(_Agreed, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="plan"):
    """The silo agreed to this plan, under these caps."""


class SpendEntry(_Agreed, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="spend"):
    """A round is charged. Written before training; there is no entry that takes it back."""

    round: Round
    attempt: Round
    cache: Hex64
    data: Hex64
    adjacency: Literal["add-or-remove-one-record"] = "add-or-remove-one-record"
    local_before: Number
    local_after: Number
    aggregate_before: Number
    aggregate_after: Number
    accountant: Text
    randomness: Randomness


class Sent(Body, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="sent"):
    """The round's one update is about to leave, masked for this attempt."""

    plan: Hex64
    round: Round
    attempt: Round
    update: Hex64
    transcript: Hex64


class Receipt(Body, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="receipt"):
    """The coordinator's signed record of the round was verified."""

    plan: Hex64
    round: Round
    record: Hex64


class Abort(Body, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="abort"):
    """An attempt ended without a record. What it spent stays spent."""

    plan: Hex64
    round: Round
    attempt: Round
    reason: Text


class RotateKey(Body, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="rotate_key"):
    """The last entry under the old key: all that follow are under ``new_key``, which that roster names."""

    new_key: Hex64
    roster: Hex64


AnyBody = Enrol | Plan | SpendEntry | Sent | Receipt | Abort | RotateKey


class Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of the file."""

    body: AnyBody
    hash: Hex64
    sig: Annotated[str, Meta(pattern=r"^[0-9a-f]{128}\Z")]


class EntryRejected(Exception):
    """A line fails a numbered step of ``verification``. The caller adds file and position."""

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(f"step {step}: {reason}")


def seal(body: AnyBody, signing_key: SigningKey) -> tuple[bytes, Digest]:
    """The line with its newline, and its hash: the head of the ledger once it is written."""
    digest = _hash(body)
    signature = signing_key.sign(_SIGNING_PURPOSE, bytes.fromhex(digest))
    return _canonical(Line(body, digest, signature.hex())) + b"\n", digest


def open_line(raw: bytes, sequence: int, previous: Digest, public_key: PublicKeyHex) -> Line:
    """Steps (2) to (6) for one line without its newline.

    Raises:
        EntryRejected: names the step.
    """
    # (2) a known entry, and the only way to write it
    if len(raw) > MAX_LINE_BYTES:
        raise EntryRejected(2, f"{len(raw)} bytes, more than an entry can have")
    try:
        line = msgspec.json.decode(raw, type=Line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise EntryRejected(2, "not an entry of a known kind") from None
    if _canonical(line) != raw:
        raise EntryRejected(2, "not in canonical form")
    # (3) position
    if line.body.sequence != sequence or isinstance(line.body, Enrol) != (sequence == 0):
        raise EntryRejected(3, f"{_kind(line)} with sequence {line.body.sequence} in place {sequence}")
    # (4) chain of hashes
    if line.body.previous != previous:
        raise EntryRejected(4, "does not follow from the entry before")
    # (5) hash
    if line.hash != _hash(line.body):
        raise EntryRejected(5, "hash differs from the content")
    # (6) signature, under the key that is this ledger's at this place
    if line.body.public_key != public_key:
        raise EntryRejected(6, "written under another key")
    try:
        verify(public_key, _SIGNING_PURPOSE, bytes.fromhex(line.hash), bytes.fromhex(line.sig), peer="ledger")
    except BadSignature:
        raise EntryRejected(6, "signature does not verify") from None
    return line


def is_unfinished(raw: bytes) -> bool:
    """Whether a last line is what a crash leaves of an append: not JSON at all.

    A torn write is a prefix or has holes, never a well-formed entry with other content; that is tampering.
    """
    try:
        msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return True
    return False


def exact(value: float) -> str:
    """The float as the ledger writes it."""
    return repr(float(value))


def number(text: str) -> float:
    """Inverse of ``exact``.

    Raises:
        ValueError: NaN, or another spelling of the number than ``exact`` gives.
    """
    value = float(text)
    if math.isnan(value) or exact(value) != text:
        raise ValueError(f"{text!r} is not an exact number")
    return value


def _canonical(value: AnyBody | Line) -> bytes:
    return msgspec.json.encode(value, order="sorted")


def _hash(body: AnyBody) -> Digest:
    return digest_of(_HASH_LABEL, _canonical(body))


def _kind(line: Line) -> str:
    return type(line.body).__name__.lower()
