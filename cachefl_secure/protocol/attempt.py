"""What all parties of one attempt agree on, and how they sign and open messages under it.

A signature is over (manifest digest, phase, sender, SHA-256 of the body, what the sender has received so
far), under a purpose label that names the protocol version and the phase. The body enters by its digest, so that a signature over a
large masked input can be verified by somebody who has only the digest.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from cachefl_secure.crypto import sign
from cachefl_secure.crypto.sign import SigningKey
from cachefl_secure.errors import LocalProtocolError, MalformedMessage, PeerError, UnexpectedMessage
from cachefl_secure.names import COORDINATOR, Digest, PublicKeyHex, SiloId, digest_of, hash_of
from cachefl_secure.plan import PROTOCOL
from cachefl_secure.protocol import wire
from cachefl_secure.protocol.graph import Graph
from cachefl_secure.protocol.masked_input import ArrivedInput, InputBuffer, InputLayout
from cachefl_secure.protocol.messages import (
    Body,
    Manifest,
    MaskedInput,
    Phase,
    Roster,
    Signed,
    manifest_digest,
    roster_digest,
)
from cachefl_secure.protocol.parameters import RoundParameters

_NO_MANIFEST_YET = Digest("")

NOTHING_YET = Digest("")
"""The view of who has received nothing but the manifest."""

B = TypeVar("B", bound=Body)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt of one round, as seen by a party that has checked its manifest."""

    manifest: Manifest
    digest: Digest
    parameters: RoundParameters
    public_keys: Mapping[str, PublicKeyHex]
    """Of the cohort's silos and of the coordinator: the only possible senders."""
    graph: Graph
    """Who shares masks and secrets with whom, in the whole cohort."""
    _places: Mapping[SiloId, int]

    @classmethod
    def begin(
        cls,
        manifest: Manifest,
        roster: Roster,
        coordinator_key: PublicKeyHex,
        parameters: RoundParameters,
    ) -> Attempt:
        """Checks that manifest, roster and parameters belong together.

        What only the caller can know is the caller's to check: that the cache digest is that of its own
        cache, the previous record its own last record, and (round, attempt) larger than any before.

        Raises:
            PeerError: the manifest names another plan or roster, or a silo that the roster lacks.
            LocalProtocolError: the parameters were derived for another cohort size.
        """
        if manifest.roster_digest != roster_digest(roster) or manifest.plan_digest != roster.plan_digest:
            raise PeerError(COORDINATOR, "manifest of another plan or roster")
        known = roster.public_keys
        if not set(manifest.cohort) <= set(known):
            raise PeerError(COORDINATOR, "cohort names a silo outside the roster")
        if len(manifest.cohort) != parameters.cohort_size:
            raise LocalProtocolError(
                f"parameters for {parameters.cohort_size} silos, not {len(manifest.cohort)}"
            )
        keys: dict[str, PublicKeyHex] = {silo: known[silo] for silo in manifest.cohort}
        digest = manifest_digest(manifest)
        return cls(
            manifest,
            digest,
            parameters,
            keys | {COORDINATOR: coordinator_key},
            Graph.of(digest, manifest.cohort, parameters.ring),
            {silo: place for place, silo in enumerate(manifest.cohort, 1)},
        )

    def place(self, silo: SiloId) -> int:
        """The silo's x in Shamir's scheme."""
        return self._places[silo]

    def thin(self, present: Collection[SiloId]) -> tuple[int, int] | None:
        """(how many, how many there should be), if ``present`` leaves too few silos in a row on the ring."""
        ring = self.parameters.ring
        if ring is None or (left := self.graph.thinnest(present)) >= ring.window_survivors:
            return None
        return left, ring.window_survivors

    def sign(self, body: Body, sender: str, identity: SigningKey, view: Digest = NOTHING_YET) -> Signed:
        """``view`` names what the sender has received so far: see ``share_view``."""
        return _sign(self.digest, body, sender, identity, view)

    def sign_input(
        self, masked: InputBuffer, digest: Digest, sender: str, identity: SigningKey, view: Digest
    ) -> bytes:
        """The finished message; ``digest`` is that of its body."""
        statement = _statement(self.digest, Phase.MASKED_INPUT, sender, digest, view)
        return masked.sealed(identity.sign(_purpose(Phase.MASKED_INPUT), statement))

    def open_input(self, data: bytes, *, sender: str, view: Digest) -> tuple[ArrivedInput, Digest]:
        """A masked input and the digest of its body, as ``open`` would give it, but without a copy.

        Raises:
            MalformedMessage, UnexpectedMessage, BadSignature: as ``open``; vectors of another length are malformed.
        """
        arrived = InputLayout.of(sender, self.parameters).read(data)
        if arrived is None:
            other = self.open(data, MaskedInput, sender=sender, view=view)  # says what is wrong with it
            sizes = f"{len(other.words)} and {len(other.counters)} bytes"
            raise MalformedMessage(sender, f"vectors of {sizes}, {self.parameters.input_bytes} due")
        digest = body_digest(arrived.body)
        self.verify_digest(MaskedInput, sender, digest, arrived.signature, view)
        return arrived, digest

    def decode(self, data: bytes, kind: type[Body], *, sender: str) -> Signed:
        """The envelope of a message of this kind and sender, its signature not yet verified.

        Raises:
            MalformedMessage: no envelope, or longer than this kind can be.
            UnexpectedMessage: of another phase, or from somebody else.
        """
        signed = wire.decode(data, Signed, limit_bytes=wire.limit_bytes(kind, self.parameters), peer=sender)
        _check_address(signed, kind, sender)
        return signed

    def verify(self, signed: Signed, kind: type[B], *, sender: str, view: Digest = NOTHING_YET) -> B:
        """The body, verified first and then parsed. ``view`` is what the sender must have received.

        Raises:
            UnexpectedMessage: of another phase, or from somebody else.
            BadSignature: not signed by the sender for this attempt and phase, or under another view.
            MalformedMessage: signed, but no message of this kind.
        """
        _check_address(signed, kind, sender)
        self.verify_digest(kind, sender, body_digest(signed.body), signed.signature, view)
        return wire.decode(signed.body, kind, limit_bytes=len(signed.body), peer=sender)

    def verify_digest(
        self, kind: type[Body], sender: str, body: Digest, signature: bytes, view: Digest = NOTHING_YET
    ) -> None:
        """That ``sender``, one of this attempt's, signed a message of this kind whose body has this digest.

        Raises:
            BadSignature: it did not, or for another attempt, or under another view.
        """
        statement = _statement(self.digest, kind.phase, sender, body, view)
        _verify(kind.phase, sender, statement, signature, self.public_keys[sender])

    def open(self, data: bytes, kind: type[B], *, sender: str, view: Digest = NOTHING_YET) -> B:
        """``decode``, then ``verify``."""
        return self.verify(self.decode(data, kind, sender=sender), kind, sender=sender, view=view)


def sign_manifest(manifest: Manifest, identity: SigningKey) -> bytes:
    return wire.encode(_sign(_NO_MANIFEST_YET, manifest, COORDINATOR, identity, NOTHING_YET))


def open_manifest(data: bytes, coordinator_key: PublicKeyHex) -> Manifest:
    """The manifest, signed by the coordinator of the plan.

    Raises:
        MalformedMessage, UnexpectedMessage, BadSignature: as ``Attempt.open``.
    """
    signed = wire.decode(data, Signed, limit_bytes=wire.MANIFEST_LIMIT_BYTES, peer=COORDINATOR)
    _check_address(signed, Manifest, COORDINATOR)
    statement = _statement(
        _NO_MANIFEST_YET, Phase.MANIFEST, COORDINATOR, body_digest(signed.body), NOTHING_YET
    )
    _verify(Phase.MANIFEST, COORDINATOR, statement, signed.signature, coordinator_key)
    return wire.decode(signed.body, Manifest, limit_bytes=wire.MANIFEST_LIMIT_BYTES, peer=COORDINATOR)


def body_digest(raw: bytes | memoryview) -> Digest:
    """The name of a body, by its canonical bytes: what a signature covers."""
    return digest_of("cachefl-secure/body/1", raw)


def share_view(key_list: Digest, sharers: Iterable[SiloId]) -> Digest:
    """The view of who has received this key list and this share set (U2).

    A party's view grows with the phases: nothing beyond the manifest; the key list's digest; this; and the
    statement that is certified, which names all of it and the masked inputs.
    """
    return digest_of("cachefl-secure/view/1", key_list.encode(), *(silo.encode() for silo in sorted(sharers)))


def _sign(digest: Digest, body: Body, sender: str, identity: SigningKey, view: Digest) -> Signed:
    raw = wire.encode(body)
    statement = _statement(digest, body.phase, sender, body_digest(raw), view)
    return Signed(SiloId(sender), body.phase, raw, identity.sign(_purpose(body.phase), statement))


def _verify(phase: Phase, sender: str, statement: bytes, signature: bytes, public_key: PublicKeyHex) -> None:
    sign.verify(public_key, _purpose(phase), statement, signature, peer=sender)


def _check_address(signed: Signed, kind: type[Body], sender: str) -> None:
    if signed.sender != sender:
        raise UnexpectedMessage(sender, f"message signed as {signed.sender}")
    if signed.phase is not kind.phase:
        raise UnexpectedMessage(sender, f"message of phase {signed.phase.value}, {kind.phase.value} due")


def _purpose(phase: Phase) -> str:
    return f"cachefl-secure/{PROTOCOL}/{phase}"


def _statement(digest: Digest, phase: Phase, sender: str, body: Digest, view: Digest) -> bytes:
    parts = (digest.encode(), phase.encode(), sender.encode(), body.encode(), view.encode())
    return hash_of("cachefl-secure/statement/1", *parts)
