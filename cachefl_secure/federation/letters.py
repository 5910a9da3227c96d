"""What coordinator and silo say to each other around the messages of CF-SecAgg/1.

Every ``Reply`` of a silo is an answer, or says that it will not take part and why, out of a closed set
that reveals nothing beyond what its ledger heads and its absence reveal anyway.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from cachefl_secure.errors import ConfigError
from cachefl_secure.federation.roster_change import Approval, RosterChange
from cachefl_secure.fields import Hex64
from cachefl_secure.names import SiloId
from cachefl_secure.protocol.messages import Message

HELLO, SYNC, MANIFEST, SHARE, MASKED_INPUT, CERTIFICATE, UNMASK = (
    "hello",
    "sync",
    "manifest",
    "share",
    "masked-input",
    "certificate",
    "unmask",
)

MAX_LETTER_BYTES = 1 << 31

RECEIPTS_FILE = "receipts.json"

Reason = Literal[
    "budget-exhausted",
    "plan-differs",
    "roster-differs",
    "cache-differs",
    "stale-round",
    "update-already-released",
    "cohort-refused",
    "protocol-error",
    "record-rejected",
    "ledger-rolled-back",
    "not-enrolled",
    "removed",
    "roster-not-countersigned",
    "paused",
    "left",
    "storage-failed",
    "internal-error",
]


class Standing(Message, frozen=True):
    """Silo to coordinator: what I hold."""

    has_roster: bool
    is_countersigned: bool
    has_cache: bool
    round: Annotated[int, Meta(ge=0)]
    record_digest: Hex64
    has_budget: bool
    """Whether the silo's caps allow it another round."""
    charged_round: Annotated[int, Meta(ge=0)]
    """The last round that it has charged, finished or not; it may take part in that one again."""
    epoch: Annotated[int, Meta(ge=0)] = 0
    """Of the roster that it holds; 0 before the first."""
    approval: Approval | None = None
    """Of the change to the next epoch, if this silo's operator confirmed one."""


class Countersignature(Message, frozen=True):
    """A silo's signature over the digest of the roster that it pinned; see ``countersigning``."""

    silo: SiloId
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]


class SyncedRound(Message, frozen=True):
    """A round that a silo has not recorded yet: the signed record and the sum it names."""

    record: bytes
    aggregate: bytes


class Sync(Message, frozen=True):
    """Coordinator to silo: what you lack. Empty fields where the silo lacks nothing."""

    roster: bytes
    initial_cache: bytes
    rounds: tuple[SyncedRound, ...]
    countersignatures: tuple[Countersignature, ...] = ()
    """Of all members of the last roster, once the coordinator has them."""
    changes: tuple[RosterChange, ...] = ()
    """To the epochs after the silo's own, in order."""
    proposal: RosterChange | None = None
    """A change that waits for approvals, for the silo's operator to look at."""


class Receipt(Message, frozen=True):
    """Silo to coordinator, signed: up to which round I hold the records, under which roster, and my ledger's head."""

    silo: str
    round: Annotated[int, Meta(ge=0)]
    record_digest: Hex64
    roster_digest: Hex64
    ledger_head: Hex64
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]
    countersignature: Countersignature | None = None
    """Of the roster, until this silo holds everybody's."""


class Hello(Message, frozen=True):
    """Coordinator to silo: where do you stand? With the last receipt of its that we hold.

    The silo verifies its own signature on it: a bare head would be anybody's word that its ledger is too short.
    """

    plan_digest: Hex64
    receipt: Receipt | None = None


class Reply(Message, frozen=True):
    """What a silo returns in every phase: an answer, or why there is none."""

    answer: bytes
    declined: Reason | None = None


RECEIPT_PURPOSE = "cachefl-secure/receipt/1"


def receipt_bytes(receipt: Receipt) -> bytes:
    """What a receipt's signature covers."""
    fields = (receipt.silo, receipt.round, receipt.record_digest, receipt.roster_digest, receipt.ledger_head)
    return msgspec.json.encode(fields)


class _KeptReceipt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A receipt as the coordinator keeps it: JSON that people can read."""

    silo: str
    round: Annotated[int, Meta(ge=0)]
    record_digest: Hex64
    roster_digest: Hex64
    ledger_head: Hex64
    signature: Annotated[str, Meta(pattern=r"^[0-9a-f]{128}\Z")]


Receipts = Mapping[SiloId, Sequence[Receipt]]
"""Every receipt of each silo, oldest first: none is forgotten, for each may be the head that shows a rollback."""


def write_receipts(receipts: Receipts) -> bytes:
    """The file's content."""
    kept = {
        silo: [
            _KeptReceipt(r.silo, r.round, r.record_digest, r.roster_digest, r.ledger_head, r.signature.hex())
            for r in each
        ]
        for silo, each in sorted(receipts.items())
    }
    return msgspec.json.format(msgspec.json.encode(kept), indent=1) + b"\n"


def read_receipts(raw: bytes, *, file: str) -> dict[SiloId, list[Receipt]]:
    """Inverse of ``write_receipts``. Signatures are the caller's to verify.

    Raises:
        ConfigError: not what ``write_receipts`` writes.
    """
    try:
        kept = msgspec.json.decode(raw, type=dict[str, list[_KeptReceipt]])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(file, RECEIPTS_FILE, str(error)) from None
    return {
        SiloId(silo): [
            Receipt(
                k.silo, k.round, k.record_digest, k.roster_digest, k.ledger_head, bytes.fromhex(k.signature)
            )
            for k in each
        ]
        for silo, each in kept.items()
    }
