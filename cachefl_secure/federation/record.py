"""Round records: what the coordinator claims about a round, signed, and how anybody checks it.

A record names the cache before and after, the survivors, the sum that was applied, the transcript and
the ledger head of every survivor. Records form a chain: each names the digest of the one before.
Verification (the numbers stand in the code):

 (1) the coordinator's signature over the record's bytes as received
 (2) federation, plan and roster are the pinned ones: a roster that this party followed, of no earlier epoch
     than the record before (see ``records``)
 (3) the chain: the previous record is the last one held, and the round number grew; of a plan of one release
     there is one record
 (4) the cohort is within the roster; the survivors are within the cohort, and no fewer than the threshold
 (5) the sum delivered is the sum named, has the agreed size, and lies within the agreed bound
 (6) the cache after the round is the cache before plus the mean update, recomputed here
 (7) if this party signed a survivor set in this attempt: same manifest and survivor set, the ledger head
     that it sent, and, from its disk also after a restart, the very statement
 (8) the certificate: at least a quorum of the survivors signed a statement over this manifest, the key list
     and share set that the record names, and exactly these survivors
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from cachefl_secure.crypto.sign import SigningKey, verify
from cachefl_secure.errors import BadSignature, ConfigError, PeerError, RecordRejected
from cachefl_secure.fields import Hex64
from cachefl_secure.names import COORDINATOR, Digest, SiloId, digest_of
from cachefl_secure.plan import FederationPlan, plan_digest
from cachefl_secure.protocol.attempt import Attempt
from cachefl_secure.protocol.certificate import Certified, check_certificate, statement_digest, statement_of
from cachefl_secure.protocol.messages import (
    Certificate,
    Manifest,
    Roster,
    RoundNumber,
    StatementSignature,
    roster_digest,
)
from cachefl_secure.protocol.parameters import RoundParameters

_PURPOSE = "cachefl-secure/record/1"
_DIGEST_LABEL = "cachefl-secure/record-digest/1"
MAX_RECORD_BYTES = 1 << 20

Hex128 = Annotated[str, Meta(pattern=r"^[0-9a-f]{128}\Z")]


class RecordedCertificate(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``protocol.certificate.Certified`` as JSON that people can read."""

    key_list_digest: Hex64
    share_set: tuple[str, ...]
    """Silos that dealt shares (U2)."""
    uploads: dict[str, Hex64]
    """Each survivor's masked input, by its digest."""
    signatures: dict[str, Hex128]


class RoundRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The outcome of one round. Everything in it is public."""

    version: Literal[1] = 1
    federation_id: str
    plan_digest: Hex64
    roster_digest: Hex64
    round: RoundNumber
    attempt: RoundNumber
    manifest_digest: Hex64
    cohort: tuple[str, ...]
    survivors: tuple[str, ...]
    previous_record: Hex64
    transcript_digest: Hex64
    certificate: RecordedCertificate
    aggregate_digest: Hex64
    saturated: Annotated[int, Meta(ge=0)]
    """Entries that silos clamped before encoding, summed inside the secure sum."""
    cache_before: Hex64
    cache_after: Hex64
    ledger_heads: dict[str, Hex64]
    """Head of each survivor's ledger after it charged this round: the anchor that an auditor holds."""


class SignedRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The record's canonical JSON, as text, and the signature over exactly those bytes."""

    record: str
    signature: Hex128


@dataclass(frozen=True, slots=True)
class Participation:
    """What a silo itself saw of a round, to be compared with the record."""

    silo: SiloId
    round: int
    attempt: int
    manifest_digest: Digest
    survivors: tuple[SiloId, ...]
    ledger_head: Digest


@dataclass(frozen=True, slots=True)
class Position:
    """Where a party's chain of records stands."""

    round: int
    record_digest: Digest
    cache_digest: Digest


def genesis(plan: FederationPlan) -> Position:
    """The position before round 1: the plan stands for the record, the initial cache for the cache."""
    first = digest_of("cachefl-secure/genesis/1", plan_digest(plan).encode())
    return Position(round=0, record_digest=first, cache_digest=Digest(plan.cache.initial_digest))


def sign_record(record: RoundRecord, key: SigningKey) -> bytes:
    """The record as a line of JSON text that ``open_record`` accepts."""
    body = msgspec.json.encode(record, order="sorted")
    signed = SignedRecord(body.decode(), key.sign(_PURPOSE, body).hex())
    return msgspec.json.encode(signed) + b"\n"


def open_record(raw: bytes, plan: FederationPlan) -> tuple[RoundRecord, Digest]:
    """Step (1): the record and its digest.

    Raises:
        RecordRejected: not a record of this version, or not signed by the plan's coordinator.
    """
    if len(raw) > MAX_RECORD_BYTES:
        raise RecordRejected(1, f"{len(raw)} bytes")
    try:
        signed = msgspec.json.decode(raw, type=SignedRecord)
        body = signed.record.encode()
        verify(plan.coordinator_key, _PURPOSE, body, bytes.fromhex(signed.signature), peer=COORDINATOR)
        record = msgspec.json.decode(body, type=RoundRecord)
    except BadSignature:
        raise RecordRejected(1, "not signed by the coordinator of the plan") from None
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeError) as error:
        raise RecordRejected(1, f"not a round record: {error}") from None
    return record, digest_of(_DIGEST_LABEL, body)


def smallest_cohort(plan: FederationPlan, roster: Roster) -> int:
    """More than half of the roster and its colluders: two disjoint cohorts can then never both be legal.

    Raises:
        ConfigError: the roster itself is too small for the plan.
    """
    whole = RoundParameters.derive(plan, len(roster.members), len(roster.members))
    return max(whole.threshold, plan.secure_sum.minimum_cohort)


def check_record(
    record: RoundRecord, plan: FederationPlan, roster: Roster, position: Position, seen: Participation | None
) -> RoundParameters:
    """Steps (2), (3), (4), (7) and (8). Steps (5) and (6) need the sum and the cache: see ``chain``.

    Raises:
        RecordRejected: names the step.
    """
    # (2) the pinned agreement
    _require(record.federation_id == plan.federation_id, 2, "another federation")
    _require(record.plan_digest == plan_digest(plan), 2, "another plan")
    _require(record.roster_digest == roster_digest(roster), 2, "another roster")
    # (3) the chain
    _require(record.previous_record == position.record_digest, 3, "does not follow the last record held")
    _require(record.round > position.round, 3, f"round {record.round} after round {position.round}")
    _require(record.cache_before == position.cache_digest, 3, "starts from another cache")
    _require(position.round == 0 or not plan.is_one_release, 3, "a second release")
    # (4) who took part
    members = {member.silo for member in roster.members}
    _require(list(record.cohort) == sorted(set(record.cohort)), 4, "the cohort is not strictly sorted")
    _require(set(record.cohort) <= members, 4, "the cohort names a silo outside the roster")
    _require(len(record.cohort) >= smallest_cohort(plan, roster), 4, "the cohort is too small")
    _require(
        len(set(record.survivors)) == len(record.survivors), 4, "a silo stands twice among the survivors"
    )
    _require(set(record.survivors) <= set(record.cohort), 4, "a survivor outside the cohort")
    _require(set(record.ledger_heads) == set(record.survivors), 4, "ledger heads and survivors differ")
    try:
        parameters = RoundParameters.derive(plan, len(record.cohort), len(roster.members))
    except ConfigError as error:
        raise RecordRejected(4, f"a cohort of {len(record.cohort)}: {error.reason}") from None
    _require(len(record.survivors) >= parameters.minimum_survivors, 4, "fewer survivors than the threshold")
    # (7) what this party saw itself
    if seen is not None and (seen.round, seen.attempt) == (record.round, record.attempt):
        _require(record.manifest_digest == seen.manifest_digest, 7, "another manifest than this silo saw")
        _require(set(record.survivors) == set(seen.survivors), 7, "another survivor set than this silo saw")
        _require(
            record.ledger_heads.get(seen.silo) == seen.ledger_head, 7, "another ledger head of this silo"
        )
    _check_certificate(record, plan, roster, parameters)  # (8)
    return parameters


def recorded(certified: Certified) -> RecordedCertificate:
    return RecordedCertificate(
        key_list_digest=certified.key_list,
        share_set=tuple(certified.sharers),
        uploads={str(silo): digest for silo, digest in certified.uploads.items()},
        signatures={str(s.silo): s.signature.hex() for s in certified.certificate.signatures},
    )


def certified_statement(record: RoundRecord) -> Digest:
    """Digest of the statement that the record says was certified."""
    named = record.certificate
    uploads = {SiloId(silo): Digest(digest) for silo, digest in named.uploads.items()}
    sharers = map(SiloId, named.share_set)
    return statement_digest(
        statement_of(Digest(record.manifest_digest), Digest(named.key_list_digest), sharers, uploads)
    )


def _check_certificate(
    record: RoundRecord, plan: FederationPlan, roster: Roster, parameters: RoundParameters
) -> None:
    """Step (8)."""
    manifest = Manifest(
        plan_digest=Digest(record.plan_digest),
        roster_digest=Digest(record.roster_digest),
        round=record.round,
        attempt=record.attempt,
        cohort=tuple(map(SiloId, record.cohort)),
        cache_digest=Digest(record.cache_before),
        previous_record=Digest(record.previous_record),
    )
    named = record.certificate
    _require(set(named.uploads) == set(record.survivors), 8, "certified uploads and survivors differ")
    _require(set(record.survivors) <= set(named.share_set) <= set(record.cohort), 8, "no legal share set")
    _require(set(named.signatures) <= set(record.survivors), 8, "a signer that is no survivor")
    attempt = Attempt.begin(manifest, roster, plan.coordinator_key, parameters)
    _require(attempt.digest == record.manifest_digest, 8, "not the manifest that the record implies")
    signatures = (
        StatementSignature(SiloId(silo), bytes.fromhex(signature))
        for silo, signature in sorted(named.signatures.items())
    )
    try:
        check_certificate(
            attempt,
            certified_statement(record),
            map(SiloId, record.survivors),
            Certificate(tuple(signatures)),
        )
    except PeerError as error:
        raise RecordRejected(8, str(error)) from None


def _require(holds: bool, step: int, reason: str) -> None:
    if not holds:
        raise RecordRejected(step, reason)
