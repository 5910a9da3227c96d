"""Parcels, contact cards and join requests written down a second time, and what is wrong with each bad one.

HPKE takes a new ephemeral key for every parcel; here it is fixed, so the package opens these parcels and makes others.
Shares no code with the package.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from tests.crypto.slow_hpke import slow_seal
from tests.vectors.reference import COORDINATOR, fixed, msgpack, named, public_key

FEDERATION, ELSEWHERE = "0f" * 16, "f0" * 16
SILO, OTHER = "north", "south"
PLAN = "5a" * 32
PARCEL, CARD = "cachefl-secure/parcel/1", "cachefl-secure/contact-card/1"
REQUEST, NEW_KEY = "cachefl-secure/join-request/1", "cachefl-secure/new-key/1"

IDENTITIES = {party: fixed(f"{party} identity") for party in (COORDINATOR, SILO, OTHER)}
TRANSPORT_KEYS = {party: fixed(f"{party} transport key") for party in (COORDINATOR, SILO, OTHER)}


def signed(seed: bytes, purpose: str, message: bytes) -> bytes:
    digest = bytes.fromhex(named("cachefl-secure/signature/1", purpose, message))
    return Ed25519PrivateKey.from_private_bytes(seed).sign(digest)


def transport_key(party: str) -> bytes:
    return X25519PrivateKey.from_private_bytes(TRANSPORT_KEYS[party]).public_key().public_bytes_raw()


def as_json(*values: str) -> bytes:
    return json.dumps(values, separators=(",", ":")).encode()


def label(**changes: Any) -> list[Any]:
    fields = {"federation_id": FEDERATION, "sender": COORDINATOR, "recipient": SILO, "number": 7}
    return ["Label", *(fields | {"phase": "hello", "answers": ""} | changes).values()]


def parcel(
    written: list[Any],
    content: bytes,
    *,
    purpose: str = PARCEL,
    signer: str | None = None,
    to: str | None = None,
    bound: list[Any] | None = None,
) -> tuple[bytes, bytes]:
    """The parcel, and what its signature covers. ``bound``: another label is sealed in than stands on it."""
    sender, recipient = written[2], written[3]
    ephemeral, info = fixed(f"{written} ephemeral"), msgpack(bound or written)
    sealed = slow_seal(ephemeral, transport_key(to or recipient), content, info)
    covered = msgpack(written) + hashlib.sha256(sealed).digest()
    signature = signed(IDENTITIES[signer or sender], purpose, covered)
    return msgpack(["Parcel", written, sealed, signature]), covered


def parcels() -> dict[str, Any]:
    """A request and the answer that names it, an empty one, and one of several hundred bytes."""
    _, covered = parcel(label(), b"a request")
    names_it = named("cachefl-secure/parcel-digest/1", covered)
    answer = label(sender=SILO, recipient=COORDINATOR, answers=names_it)
    cases = [(label(), b"a request"), (answer, b"its answer"), (label(number=2**31, phase="sync"), b"")]
    cases += [(label(recipient=OTHER, phase="masked-input"), bytes(range(256)) * 3)]
    return {
        "source": "RFC 9180 by hand, see tests/vectors/mail.py",
        "identities": {party: public_key(seed) for party, seed in IDENTITIES.items()},
        "transport_keys": {party: seed.hex() for party, seed in TRANSPORT_KEYS.items()},
        "cases": [
            {
                "label": written,
                "content": content.hex(),
                "parcel": parcel(written, content)[0].hex(),
                "digest": named("cachefl-secure/parcel-digest/1", parcel(written, content)[1]),
            }
            for written, content in cases
        ],
    }


def bad_parcels() -> list[dict[str, str]]:
    """To ``SILO`` from the coordinator, each with one thing wrong."""
    good, _ = parcel(label(), b"a request")
    signature, sealed_at = good[-64:], good.index(b"\xc4\x39") + 2
    malformed = {
        "cut": good[:-1],
        "nothing": b"",
        "a_byte_more": good + b"\0",
        "a_short_signature": good[:-66] + b"\xc4\x3f" + good[-63:],
        "a_long_form_of_a_length": good.replace(b"\xc4\x39", b"\xc5\x00\x39"),
        "a_list_in_its_place": msgpack(["Parcel", label(), b"", [signature]]),
        "a_field_more": msgpack(["Parcel", label(), b"", signature, 1]),
        "another_kind": msgpack(["ContactCard", FEDERATION, SILO, transport_key(SILO), signature]),
        "number_zero": parcel(label(number=0), b"")[0],
        "a_phase_in_capitals": parcel(label(phase="HELLO"), b"")[0],
        "a_phase_that_leads_away": parcel(label(phase="../x"), b"")[0],
        "an_answer_to_no_digest": parcel(label(answers="7"), b"")[0],
        "a_federation_of_no_digits": parcel(label(federation_id="federation"), b"")[0],
    }
    elsewhere = {
        "of_another_federation": parcel(label(federation_id=ELSEWHERE), b"")[0],
        "to_another_silo": parcel(label(recipient=OTHER), b"")[0],
        "from_another_silo": parcel(label(sender=OTHER), b"")[0],
        "its_own_answer": parcel(label(sender=SILO, recipient=COORDINATOR), b"")[0],
    }
    forged = {
        "another_number": good.replace(b"\x07\xa5hello", b"\x08\xa5hello"),
        "a_changed_seal": good[:sealed_at] + bytes([good[sealed_at] ^ 1]) + good[sealed_at + 1 :],
        "a_changed_signature": good[:-1] + bytes([good[-1] ^ 1]),
        "signed_by_another": parcel(label(), b"a request", signer=OTHER)[0],
        "signed_for_another_purpose": parcel(label(), b"a request", purpose=CARD)[0],
    }
    unopened = {
        "sealed_to_another": parcel(label(), b"a request", to=OTHER)[0],
        "sealed_under_another_label": parcel(label(), b"a request", bound=label(number=8))[0],
    }
    return (
        _cases(malformed, "MalformedMessage")
        + _cases(elsewhere, "UnexpectedMessage")
        + _cases(forged, "BadSignature")
        + _cases(unopened, "PeerError")
    )


def card(
    *, federation: str = FEDERATION, party: str = SILO, key: bytes | None = None, **signing: str
) -> bytes:
    own = transport_key(party) if key is None else key
    covered = as_json(federation, party, own.hex())
    signature = signed(IDENTITIES[signing.get("signer", party)], signing.get("purpose", CARD), covered)
    return msgpack(["ContactCard", federation, party, own, signature])


def cards() -> dict[str, Any]:
    return {
        "identities": {party: seed.hex() for party, seed in IDENTITIES.items()},
        "transport_keys": {party: seed.hex() for party, seed in TRANSPORT_KEYS.items()},
        "cards": {party: card(party=party).hex() for party in IDENTITIES},
    }


def bad_cards() -> list[dict[str, str]]:
    """Found where those of ``SILO`` lie."""
    good = card()
    malformed = {
        "cut": good[:-1],
        "nothing": b"",
        "a_byte_more": good + b"\0",
        "too_long": msgpack(["ContactCard", FEDERATION, SILO, bytes(1100), good[-64:]]),
        "a_short_key": card(key=transport_key(SILO)[:31]),
        "a_long_key": card(key=transport_key(SILO) + b"\0"),
        "a_key_as_text": msgpack(["ContactCard", FEDERATION, SILO, transport_key(SILO).hex(), good[-64:]]),
        "a_field_less": msgpack(["ContactCard", FEDERATION, SILO, transport_key(SILO)]),
        "a_parcel": parcel(label(), b"a request")[0],
    }
    elsewhere = {
        "of_another_federation": card(federation=ELSEWHERE),
        "of_another_party": card(party=OTHER),
    }
    forged = {
        "another_key": good.replace(transport_key(SILO), transport_key(OTHER)),
        "signed_by_another": card(signer=OTHER),
        "signed_for_another_purpose": card(purpose=PARCEL),
    }
    return (
        _cases(malformed, "MalformedMessage")
        + _cases(elsewhere, "UnexpectedMessage")
        + _cases(forged, "BadSignature")
    )


def request(silo: str = SILO, plan: str = PLAN, *, old: bool = False, **other: str) -> str:
    """TOML, a line a field."""
    seed = IDENTITIES[silo] if silo in IDENTITIES else IDENTITIES[SILO]
    body = as_json(silo, public_key(seed), plan)
    fields = {
        "silo": silo,
        "public_key": public_key(seed),
        "plan_digest": plan,
        "signature": signed(seed, other.pop("purpose", REQUEST), body).hex(),
    }
    if old:
        fields["signature_by_old_key"] = signed(IDENTITIES[OTHER], NEW_KEY, body).hex()
    return "".join(f'{name} = "{value}"\n' for name, value in (fields | other).items())


def requests() -> dict[str, Any]:
    return {
        "plan_digest": PLAN,
        "silo": SILO,
        "key": IDENTITIES[SILO].hex(),
        "old_key": IDENTITIES[OTHER].hex(),
        "join": request(),
        "rotate": request(old=True),
    }


def bad_requests() -> list[dict[str, str]]:
    """``expect`` is the field that the error names."""
    lines = request().splitlines(keepends=True)
    wrong = {
        "nothing": ("", ""),
        "no_toml": ("\x00", ""),
        "a_field_less": ("".join(lines[:3]), ""),
        "a_field_more": (request(epsilon="8"), ""),
        "a_field_twice": (request() + lines[0], ""),
        "a_key_in_capitals": (request(public_key=public_key(IDENTITIES[SILO]).upper()), "public_key"),
        "a_short_signature": (request(signature="00" * 63), "signature"),
        "a_short_signature_by_the_old_key": (request(signature_by_old_key="00"), "signature_by_old_key"),
        "a_name_that_leads_away": (request("../north"), ""),
        "the_coordinators_name": (request(COORDINATOR), ""),
        "another_plan": (request(plan="a5" * 32), "plan_digest"),
        "another_name": (request().replace(f'"{SILO}"', f'"{OTHER}"'), "signature"),
        "another_key": (request(public_key=public_key(IDENTITIES[OTHER])), "signature"),
        "signed_for_another_purpose": (request(purpose=NEW_KEY), "signature"),
    }
    return [{"name": name, "request": text, "expect": field} for name, (text, field) in wrong.items()]


def _cases(wrong: dict[str, bytes], expect: str) -> list[dict[str, str]]:
    return [{"name": name, "message": raw.hex(), "expect": expect} for name, raw in wrong.items()]


def everything() -> dict[str, dict[str, Any]]:
    """File name, without .json, -> content."""
    return {
        "parcels": parcels(),
        "parcels_bad_read": {"recipient": SILO, "cases": bad_parcels()},
        "contact_cards": cards(),
        "contact_cards_bad_read": {"party": SILO, "cases": bad_cards()},
        "join_requests": requests(),
        "join_requests_bad_read": {"plan_digest": PLAN, "cases": bad_requests()},
    }
