"""The coordinator's half of one attempt: it relays, adds, and takes off what silos let it take off.

It is trusted with availability only. In every phase it works with the silos whose answers are
acceptable; the others count as dropped, and ``rejected`` keeps the reason. Below the minimum it stops
before anything is revealed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, TypeVar

from cachefl_secure.crypto.sign import SigningKey
from cachefl_secure.errors import LocalProtocolError, PeerError, UnexpectedMessage
from cachefl_secure.names import COORDINATOR, Digest, SiloId, digest_of
from cachefl_secure.protocol import wire
from cachefl_secure.protocol.attempt import Attempt, body_digest, sign_manifest
from cachefl_secure.protocol.certificate import Certified, statement_digest, statement_of
from cachefl_secure.protocol.collecting import (
    Aborted,
    Collecting,
    CollectingAdvertisements,
    CollectingMaskedInputs,
    CollectingShares,
    CollectingStatements,
    CollectingUnmaskShares,
    Complete,
    Received,
    ReceivedInput,
    State,
)
from cachefl_secure.protocol.masking import KeySchedule
from cachefl_secure.protocol.messages import (
    Advertisement,
    Body,
    KeyList,
    Manifest,
    MaskedInput,
    Roster,
    SealedShares,
    Statement,
    UnmaskShares,
)
from cachefl_secure.protocol.parameters import RoundParameters
from cachefl_secure.protocol.unmasking import UnmaskingRound
from cachefl_secure.protocol.vectors import AggregateSum, MaskedSum

A = TypeVar("A")
B = TypeVar("B", bound=Body)
R = TypeVar("R")
T = TypeVar("T", Received[Any], ReceivedInput)


class CoordinatorSession:
    """Holds the live state of the coordinator in one attempt; bytes in, bytes out.

    Each ``on_*`` takes the answers of one phase, silo -> bytes (absent = no answer), ends the phase and
    returns what to send to whom. A later answer to an ended phase cannot come in any more.

    Raises, from each ``on_*``:
        RoundAborted: too few acceptable answers. Nothing was revealed that was not before.
        LocalProtocolError: called out of order.
    """

    rejected: dict[SiloId, PeerError]
    """Why a silo that answered counts as dropped."""
    survivors: tuple[SiloId, ...]
    """U3; empty before it is decided."""
    ledger_heads: dict[SiloId, Digest]
    """Of the survivors, as they signed them with their masked inputs."""

    def __init__(
        self, manifest: Manifest, identity: SigningKey, roster: Roster, parameters: RoundParameters
    ) -> None:
        self._identity = identity
        self._attempt = Attempt.begin(manifest, roster, identity.public_key, parameters)
        self._state: State = CollectingAdvertisements(self._attempt)
        self._transcript: list[str] = []
        self._certified: Certified | None = None
        self._asked: tuple[SiloId, ...] = ()
        self._key_list = KeyList(())
        self.rejected, self.survivors, self.ledger_heads = {}, (), {}

    @classmethod
    def resume(
        cls, saved: UnmaskingRound, identity: SigningKey, roster: Roster, parameters: RoundParameters
    ) -> CoordinatorSession:
        """The session that gave ``saved``, about to send its certificate again.

        Raises:
            PeerError, ValueError: ``saved`` is of another roster, plan or encoding.
        """
        session = cls(saved.manifest, identity, roster, parameters)
        attempt, schedule = session._attempt, KeySchedule.of(session._attempt.digest, saved.key_list)
        advertised = {
            signed.sender: attempt.verify(signed, Advertisement, sender=signed.sender)
            for signed in saved.key_list.advertisements
        }
        survivors, total = tuple(sorted(saved.uploads)), MaskedSum.from_bytes(saved.total, parameters)
        statement = statement_of(attempt.digest, schedule.key_list, saved.commitments, saved.uploads)
        session._state = CollectingUnmaskShares(
            attempt, schedule, advertised, saved.commitments, survivors, total, statement_digest(statement)
        )
        session._certified = Certified(
            schedule.key_list, tuple(sorted(saved.commitments)), saved.uploads, saved.certificate
        )
        session._asked, session._key_list, session.survivors = saved.asked, saved.key_list, survivors
        session._transcript, session.ledger_heads = list(saved.transcript), dict(saved.ledger_heads)
        return session

    def manifest_message(self) -> bytes:
        return sign_manifest(self._attempt.manifest, self._identity)

    def on_advertisements(self, answers: Mapping[SiloId, bytes]) -> dict[SiloId, bytes]:
        """Returns the key list for every silo in it (U1)."""
        match self._state:
            case CollectingAdvertisements() as state:
                arrived = self._accept(answers, Advertisement, self._attempt.manifest.cohort, state)
                key_list = self._key_list = self._advance(state.on_advertisements, arrived)
                return dict.fromkeys(sorted(arrived), self._sign(key_list, state.view))
            case state:
                raise LocalProtocolError(f"advertisements in {type(state).__name__}")

    def on_sealed_shares(self, answers: Mapping[SiloId, bytes]) -> dict[SiloId, bytes]:
        """Returns each sharer's (U2) delivery."""
        match self._state:
            case CollectingShares() as state:
                arrived = self._accept(answers, SealedShares, state.advertised, state)
                deliveries = self._advance(state.on_sealed_shares, arrived)
                return {silo: self._sign(delivery, state.view) for silo, delivery in deliveries.items()}
            case state:
                raise LocalProtocolError(f"sealed shares in {type(state).__name__}")

    def on_masked_inputs(self, answers: Mapping[SiloId, bytes]) -> dict[SiloId, bytes]:
        """Returns the survivor set, with headers, for every survivor (U3) to sign."""
        match self._state:
            case CollectingMaskedInputs() as state:
                arrived = self._each(
                    answers, MaskedInput, state.commitments, partial(self._open_input, state.view)
                )
                proposal = self._advance(state.on_masked_inputs, arrived)
                self.survivors = proposal.survivors
                self._note("survivor-set", body_digest(wire.encode(proposal)))
                self.ledger_heads = {silo: arrived[silo].masked.ledger_head for silo in self.survivors}
                return dict.fromkeys(self.survivors, self._sign(proposal, state.view))
            case state:
                raise LocalProtocolError(f"masked inputs in {type(state).__name__}")

    def on_statements(self, answers: Mapping[SiloId, bytes]) -> dict[SiloId, bytes]:
        """Returns the certificate for every silo that signed: the others must not answer it.

        Whoever calls this keeps ``unmasking`` on disk before the certificate leaves.
        """
        match self._state:
            case CollectingStatements() as state:
                arrived = self._accept(answers, Statement, state.uploads, state)
                self._certified = self._advance(state.on_statements, arrived)
                self._note("certificate", body_digest(wire.encode(self._certified.certificate)))
                self._asked = tuple(sorted(arrived))
                return self.certificates()
            case state:
                raise LocalProtocolError(f"statements in {type(state).__name__}")

    def certificates(self) -> dict[SiloId, bytes]:
        """The certificate, for every silo that signed. The same bytes each time."""
        if not isinstance(self._state, CollectingUnmaskShares):
            raise LocalProtocolError(f"certificate in {type(self._state).__name__}")
        return dict.fromkeys(self._asked, self._sign(self.certified.certificate, self._state.view))

    @property
    def unmasking(self) -> UnmaskingRound:
        """What ``resume`` goes on from. There is one between ``on_statements`` and ``on_unmask_shares``."""
        if not isinstance(self._state, CollectingUnmaskShares):
            raise LocalProtocolError(f"nothing to resume from in {type(self._state).__name__}")
        return UnmaskingRound(
            manifest=self._attempt.manifest,
            key_list=self._key_list,
            commitments=dict(self._state.commitments),
            uploads=dict(self.certified.uploads),
            certificate=self.certified.certificate,
            asked=self._asked,
            total=self._state.total.to_bytes(),
            transcript=tuple(self._transcript),
            ledger_heads=dict(self.ledger_heads),
        )

    def on_unmask_shares(self, answers: Mapping[SiloId, bytes]) -> AggregateSum:
        """Returns the sum of the survivors' encoded updates.

        A silo whose shares were wrong, without effect, is ``rejected``.

        Raises:
            SharesRejected: a secret cannot be recovered as its silo committed to it.
        """
        match self._state:
            case CollectingUnmaskShares() as state:
                arrived = self._accept(answers, UnmaskShares, state.survivors, state)
                total = self._advance(state.on_unmask_shares, arrived)
                for silo in self._suspects():
                    self.rejected[silo] = PeerError(silo, "a share of it does not fit")
                self._note("aggregate", total.digest)
                return total
            case state:
                raise LocalProtocolError(f"unmask shares in {type(state).__name__}")

    def _suspects(self) -> frozenset[SiloId]:
        return self._state.suspects if isinstance(self._state, Complete) else frozenset()

    @property
    def certified(self) -> Certified:
        """The certificate, and what it is over."""
        if self._certified is None:
            raise LocalProtocolError("nothing is certified")
        return self._certified

    @property
    def transcript_digest(self) -> Digest:
        """Digest of the manifest, every accepted message in order of phase and silo, headers, certificate and sum."""
        if not isinstance(self._state, Complete):
            raise LocalProtocolError("the transcript is not complete")
        lines = [self._attempt.digest, *self._transcript]
        return digest_of("cachefl-secure/transcript/1", *(line.encode() for line in lines))

    def _accept(
        self,
        answers: Mapping[SiloId, bytes],
        kind: type[B],
        asked: Collection[SiloId],
        state: Collecting[B],
    ) -> dict[SiloId, Received[B]]:
        view = state.view

        def opened(silo: SiloId, data: bytes) -> Received[B]:
            signed = self._attempt.decode(data, kind, sender=silo)
            body = self._attempt.verify(signed, kind, sender=silo, view=view)
            state.check(silo, body)
            return Received(signed, body, body_digest(signed.body))

        return self._each(answers, kind, asked, opened)

    def _open_input(self, view: Digest, silo: SiloId, data: bytes) -> ReceivedInput:
        return ReceivedInput(*self._attempt.open_input(data, sender=silo, view=view))

    def _each(
        self,
        answers: Mapping[SiloId, bytes],
        kind: type[Body],
        asked: Collection[SiloId],
        opened: Callable[[SiloId, bytes], T],
    ) -> dict[SiloId, T]:
        """The acceptable answers, noted in the transcript; ``rejected`` says why the others are not."""
        accepted = {}
        for silo in sorted(answers):
            try:
                if silo not in asked:
                    raise UnexpectedMessage(silo, f"{kind.phase.value} from a silo that was not asked")
                received = opened(silo, answers[silo])
            except PeerError as error:
                self.rejected[silo] = error
            else:
                accepted[silo] = received
                self._note(f"{kind.phase.value}/{silo}", received.digest)
        return accepted

    def _advance(self, step: Callable[[A], tuple[State, R]], arrived: A) -> R:
        """The next state, or ``Aborted`` if the step raises."""
        self._state = Aborted()
        self._state, result = step(arrived)
        return result

    def _sign(self, body: Body, view: Digest) -> bytes:
        """``view`` is what a silo must have received to be sent this."""
        return wire.encode(self._attempt.sign(body, COORDINATOR, self._identity, view))

    def _note(self, what: str, digest: Digest) -> None:
        self._transcript.append(f"{what}/{digest}")
