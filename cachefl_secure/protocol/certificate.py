"""The certificate over a survivor set: what silos sign before any share is revealed, and when it is enough.

A silo signs one statement per attempt. A certificate is at least q = floor((N + f) / 2) + 1 signatures over
one statement, N silos in the roster. Two certificates share at least 2 q - N > f signers, hence an honest one, who signed once: at
most one statement of an attempt is ever certified (after Bonawitz et al. 2017, consistency check).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cachefl_secure.errors import SurvivorSetRejected
from cachefl_secure.names import COORDINATOR, Digest, SiloId, digest_of
from cachefl_secure.protocol import wire
from cachefl_secure.protocol.attempt import Attempt, body_digest
from cachefl_secure.protocol.messages import Certificate, Statement


@dataclass(frozen=True, slots=True)
class Certified:
    """A certificate together with what it is over: with the manifest, all that an auditor needs."""

    key_list: Digest
    sharers: tuple[SiloId, ...]
    """U2, sorted."""
    uploads: Mapping[SiloId, Digest]
    """U3, each with the digest of its masked input."""
    certificate: Certificate


def statement_of(
    manifest: Digest, key_list: Digest, sharers: Iterable[SiloId], uploads: Mapping[SiloId, Digest]
) -> Statement:
    """What a silo that was shown this signs: (manifest, U1 with keys, U2, U3 with masked inputs)."""
    pairs = (part.encode() for silo in sorted(uploads) for part in (silo, uploads[silo]))
    return Statement(
        manifest_digest=manifest,
        key_list_digest=key_list,
        share_set_digest=digest_of(
            "cachefl-secure/share-set/1", *(silo.encode() for silo in sorted(sharers))
        ),
        survivor_set_digest=digest_of("cachefl-secure/survivor-set/1", *pairs),
    )


def statement_digest(statement: Statement) -> Digest:
    """The name of a statement; a signature of it covers this."""
    return body_digest(wire.encode(statement))


def check_certificate(
    attempt: Attempt,
    statement: Digest,
    survivors: Iterable[SiloId],
    certificate: Certificate,
    *,
    own: SiloId | None = None,
) -> None:
    """That at least a quorum, all of them survivors, signed this statement. ``own`` signed it for certain.

    Distinct by construction: a ``Certificate`` is strictly sorted.

    Raises:
        SurvivorSetRejected: fewer than a quorum, or a signer that is no survivor.
        BadSignature: a signature is of another statement, attempt or silo. One is enough to refuse.
    """
    signers = [signature.silo for signature in certificate.signatures]
    if not set(signers) <= set(survivors):
        raise SurvivorSetRejected(COORDINATOR, "certificate names a signer that is no survivor")
    if len(signers) < attempt.parameters.quorum:
        reason = f"certificate of {len(signers)} silos, quorum {attempt.parameters.quorum}"
        raise SurvivorSetRejected(COORDINATOR, reason)
    for signed in certificate.signatures:
        if signed.silo == own:
            continue
        attempt.verify_digest(Statement, signed.silo, statement, signed.signature, view=statement)
