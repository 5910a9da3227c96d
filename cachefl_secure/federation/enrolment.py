"""Who is in: invites, join requests, and the roster that every silo pins and countersigns.

init  ->  invite.toml         the plan, signed by the coordinator; its fingerprint is read out by phone
join  ->  join-request.toml   a silo's public key, signed with it, bound to the plan
admit ->  roster.bin          all members, signed by the coordinator; fingerprints compared by people

How a roster changes afterwards stands in ``roster_change``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from cachefl_secure.crypto.sign import SigningKey, fingerprint, verify
from cachefl_secure.crypto.spoken import check_heard
from cachefl_secure.errors import BadSignature, ConfigError, PeerError
from cachefl_secure.federation.state_dir import ROSTER_FILE, StateDir
from cachefl_secure.fields import Hex64
from cachefl_secure.names import COORDINATOR, Digest, PublicKeyHex, SiloId, parse_silo_id
from cachefl_secure.plan import FederationPlan, encode_toml, plan_digest, read_toml
from cachefl_secure.protocol.messages import Member, Message, Roster
from cachefl_secure.wording import counted

_INVITE_PURPOSE = "cachefl-secure/invite/1"
_REQUEST_PURPOSE = "cachefl-secure/join-request/1"
_NEW_KEY_PURPOSE = "cachefl-secure/new-key/1"
_ROSTER_PURPOSE = "cachefl-secure/roster/1"

MAX_ROSTER_BYTES = 1 << 19  # 1,024 silos with names of 63 letters take 230 KB

SignatureHex = Annotated[str, Meta(pattern=r"^[0-9a-f]{128}\Z")]


class Invite(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The plan with the coordinator's signature over its digest, and over the engine if one is named."""

    signature: SignatureHex
    plan: FederationPlan
    engine: str = ""
    """URL of what carries messages (``transport.engines``); empty: all parties are on one machine.

    Not part of the plan: nothing secret rests on it, and one silo may reach the same place by another path.
    """


class JoinRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A silo asks to be admitted: its name and key, signed with that key, for this plan only.

    A member that asks for a new key signs the new one with the old one as well.
    """

    silo: str
    public_key: Hex64
    plan_digest: Hex64
    signature: SignatureHex
    signature_by_old_key: SignatureHex | None = None


class Voucher(Message, frozen=True):
    """A member's old key vouches for its new key, and the new one signs too."""

    silo: SiloId
    by_old_key: Annotated[bytes, Meta(min_length=64, max_length=64)]
    by_new_key: Annotated[bytes, Meta(min_length=64, max_length=64)]


@dataclass(frozen=True, slots=True)
class Applicant:
    """Who asks to be in the roster; with a voucher, who is in it and asks for a new key."""

    member: Member
    voucher: Voucher | None = None


class SignedRoster(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The roster's canonical JSON and the coordinator's signature over exactly those bytes."""

    roster: bytes
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]


def write_invite(plan: FederationPlan, key: SigningKey, *, engine: str = "") -> bytes:
    """The text of invite.toml."""
    signature = key.sign(_INVITE_PURPOSE, _invite_bytes(plan, engine))
    return encode_toml(Invite(signature.hex(), plan, engine))


def read_invite(path: Path, *, expect: str | None = None) -> FederationPlan:
    """The plan of ``open_invite``."""
    return open_invite(path, expect=expect).plan


def open_invite(path: Path, *, expect: str | None = None) -> Invite:
    """An invite whose signature holds.

    ``expect`` is the coordinator's fingerprint as heard from a person, in digits or words.

    Raises:
        ConfigError: unreadable, changed after signing, or another coordinator than expected.
    """
    invite = read_toml(path, Invite)
    try:
        signature, covered = bytes.fromhex(invite.signature), _invite_bytes(invite.plan, invite.engine)
        verify(invite.plan.coordinator_key, _INVITE_PURPOSE, covered, signature, peer=COORDINATOR)
    except BadSignature:
        raise ConfigError(str(path), "signature", "does not verify: the invite was changed") from None
    actual = fingerprint(invite.plan.coordinator_key)
    if expect is not None:
        where = (str(path), "plan.coordinator_public_key")
        check_heard(expect, actual, where=where, otherwise="do not join, call the coordinator")
    return invite


def write_join_request(
    silo: SiloId, plan: FederationPlan, key: SigningKey, *, old_key: SigningKey | None = None
) -> bytes:
    """The text of join-request.toml; with ``old_key``, of a member's request for a new one."""
    digest = plan_digest(plan)
    body = _request_bytes(silo, key.public_key, digest)
    by_old = None if old_key is None else old_key.sign(_NEW_KEY_PURPOSE, body).hex()
    signature = key.sign(_REQUEST_PURPOSE, body).hex()
    return encode_toml(JoinRequest(silo, key.public_key, digest, signature, by_old))


def read_join_request(path: Path, plan: FederationPlan) -> Applicant:
    """The silo behind a valid request. Whether its voucher is worth anything only the roster can say.

    Raises:
        ConfigError: unreadable, for another plan, or not signed with the key it names.
    """
    request = read_toml(path, JoinRequest)
    silo = parse_silo_id(request.silo, file=str(path))
    if request.plan_digest != plan_digest(plan):
        raise ConfigError(str(path), "plan_digest", "is for another federation or an older invite")
    body = _request_bytes(silo, request.public_key, request.plan_digest)
    signature, public_key = bytes.fromhex(request.signature), PublicKeyHex(request.public_key)
    try:
        verify(public_key, _REQUEST_PURPOSE, body, signature, peer=silo)
    except BadSignature:
        raise ConfigError(str(path), "signature", "does not verify: the request was changed") from None
    member = Member(silo=silo, public_key=public_key)
    if request.signature_by_old_key is None:
        return Applicant(member)
    return Applicant(member, Voucher(silo, bytes.fromhex(request.signature_by_old_key), signature))


def check_voucher(voucher: Voucher, old_key: PublicKeyHex, member: Member, plan: FederationPlan) -> None:
    """That the holder of ``old_key`` vouches for the member's key, and who holds that one agrees.

    Raises:
        BadSignature: one of them did not sign.
    """
    body = _request_bytes(member.silo, member.public_key, plan_digest(plan))
    verify(old_key, _NEW_KEY_PURPOSE, body, voucher.by_old_key, peer=member.silo)
    verify(member.public_key, _REQUEST_PURPOSE, body, voucher.by_new_key, peer=member.silo)


def make_roster(
    plan: FederationPlan, members: Sequence[Member], *, epoch: int = 1, previous: Digest | None = None
) -> Roster:
    """The roster of these members, sorted by name: the first, or the one that follows ``previous``.

    Raises:
        ConfigError: a name or a key stands twice, or there are fewer than the minimum cohort.
    """
    for what in ("silo", "public_key"):
        values = [getattr(member, what) for member in members]
        twice = sorted({value for value in values if values.count(value) > 1})
        if twice:
            raise ConfigError("join requests", what, f"{twice[0]} stands twice")
    least = plan.secure_sum.minimum_cohort
    if len(members) < least:
        raise ConfigError(
            "join requests", "", f"{counted(len(members), 'silo')}; this plan needs at least {least}"
        )
    ordered = tuple(sorted(members, key=lambda member: member.silo))
    return Roster(
        federation_id=plan.id,
        plan_digest=plan_digest(plan),
        epoch=epoch,
        members=ordered,
        previous=previous,
    )


def sign_roster(roster: Roster, key: SigningKey) -> bytes:
    body = msgspec.json.encode(roster, order="sorted")
    return msgspec.msgpack.encode(SignedRoster(body, key.sign(_ROSTER_PURPOSE, body)))


def open_roster(raw: bytes, plan: FederationPlan) -> Roster:
    """The roster, if the plan's coordinator signed it for this plan.

    Raises:
        PeerError: not a roster, another plan's, or a bad signature.
    """
    if len(raw) > MAX_ROSTER_BYTES:
        raise PeerError(COORDINATOR, f"a roster of {len(raw)} bytes")
    try:
        signed = msgspec.msgpack.decode(raw, type=SignedRoster)
        verify(plan.coordinator_key, _ROSTER_PURPOSE, signed.roster, signed.signature, peer=COORDINATOR)
        roster = msgspec.json.decode(signed.roster, type=Roster)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError):
        raise PeerError(COORDINATOR, "not a roster") from None
    if roster.plan_digest != plan_digest(plan):
        raise PeerError(COORDINATOR, "a roster of another plan")
    if (roster.epoch == 1) != (roster.previous is None):
        raise PeerError(COORDINATOR, "only the first roster follows none")
    return roster


def read_roster(state: StateDir, plan: FederationPlan) -> Roster:
    """The first roster that this party keeps; ``roster_files`` reads those that followed.

    Raises:
        ConfigError: the file is missing or damaged.
    """
    try:
        return open_roster(state.read(ROSTER_FILE), plan)
    except PeerError as error:
        raise ConfigError(str(state.path(ROSTER_FILE)), "", f"damaged: {error.reason}") from None


def check_own_entry(roster: Roster, silo: SiloId, own_key: PublicKeyHex) -> None:
    """That this silo is in the roster, as itself.

    Raises:
        PeerError: the silo is missing or has another key.
    """
    if roster.public_keys.get(silo) != own_key:
        raise PeerError(COORDINATOR, "the roster lacks this silo or names another key for it")


def _invite_bytes(plan: FederationPlan, engine: str) -> bytes:
    digest = plan_digest(plan)
    return msgspec.json.encode((digest, engine)) if engine else digest.encode()


def _request_bytes(silo: str, public_key: str, digest: str) -> bytes:
    return msgspec.json.encode((silo, public_key, digest))
