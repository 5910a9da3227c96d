"""A silo in one attempt of a round: train once, mask, sign, reveal, each on disk before it is said.

What is on disk, in the order of writing, and what a restart concludes from the last one that it finds:

    attempt         this attempt was entered           drops out of it; a later one may be entered
    session         a reply of this attempt exists     sends that reply again, the same bytes, and goes on
    ledger: spend   the round is charged               trains under that charge: nothing had left
    update.sealed   the noised update                  sends this one in every attempt, uncharged
    sent, ledger: sent   it may have left              never trains for this charge again; sends it under
                                                   the roster named in ``sent`` only
    session         the masked input may have left     makes it again; it leaves if it comes out the same
    certified       a statement may have left          signs no other one in this attempt
    released        shares may have left (on a ring:   enters no other attempt of this round
                    a statement)

``session`` is destroyed when the round's record is accepted or a later attempt is entered; ``attempt``,
``sent``, ``certified`` and ``released`` stay.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cachefl_secure.cache.features import FeatureSet
from cachefl_secure.cache.model import CacheModel
from cachefl_secure.errors import LocalProtocolError
from cachefl_secure.federation.certified import note_certified
from cachefl_secure.federation.chain import Chain
from cachefl_secure.federation.record import Participation
from cachefl_secure.federation.sealed_update import has_update, open_update, seal_update
from cachefl_secure.federation.session_file import (
    discard_journals,
    enter_attempt,
    open_journal,
    save_journal,
)
from cachefl_secure.federation.silo_files import SiloFiles
from cachefl_secure.federation.state_dir import StateDir, round_file, utc_now
from cachefl_secure.names import Digest
from cachefl_secure.plan import plan_digest
from cachefl_secure.privacy.descent import Descent, descent_of
from cachefl_secure.privacy.entries import Randomness
from cachefl_secure.privacy.ledger import Ledger, Spend
from cachefl_secure.privacy.mechanism import GridMechanism, Mechanism, StatisticsMechanism, mechanism_of
from cachefl_secure.protocol.messages import Manifest, manifest_digest, roster_digest
from cachefl_secure.protocol.parameters import RoundParameters
from cachefl_secure.protocol.silo import SiloSession
from cachefl_secure.protocol.silo_secrets import SiloSecrets
from cachefl_secure.updates import NoisedSums, NoisedUpdate

_SENT, _RELEASED = "sent", "released"


def may_enter(state: StateDir, manifest: Manifest) -> bool:
    """Whether this round's update may still enter a survivor set, under this manifest's roster.

    Thresholds are counted over the roster (``RoundParameters``), so one update stays with one roster.
    """
    sent = round_file(manifest.round, _SENT)
    if state.has(round_file(manifest.round, _RELEASED)):
        return False
    return not state.has(sent) or state.read(sent) == manifest.roster_digest.encode()


class UpdateSpent(Exception):
    """An update of this charge may have left and its file is gone: another would be a second release."""


@dataclass(frozen=True, slots=True)
class Trainer:
    """What turns a silo's records into its noised update, or noised sums. Opacus, unless a test says otherwise."""

    check: Callable[[CacheModel, Mechanism, Descent, str], None]
    """Raises if the device cannot train such a model. Called before the charge."""
    train: Callable[[CacheModel, FeatureSet, Mechanism, Descent, str], NoisedUpdate]
    randomness: Randomness = "os"
    """Stands in the ledger. With repeatable streams of a test a silo takes part in no federation."""


def _check(model: CacheModel, mechanism: Mechanism, descent: Descent, device: str) -> None:
    if isinstance(mechanism, StatisticsMechanism):
        return  # sums of features need no device
    if isinstance(mechanism, GridMechanism):
        from cachefl_secure.privacy.grid import check_grid

        check_grid(model, descent.pairs, mechanism)
        return
    from cachefl_secure.privacy import device_trial  # seconds to import, and a resumed silo may not train

    device_trial.check_device(device)
    device_trial.check_sums_exact(model, mechanism, device, descent)
    device_trial.check_rows_alike(model, mechanism, device, descent)


def _train(
    model: CacheModel, records: FeatureSet, mechanism: Mechanism, descent: Descent, device: str
) -> NoisedUpdate:
    if isinstance(mechanism, StatisticsMechanism):
        from cachefl_secure.privacy.statistics import release_statistics

        vectors = release_statistics(records, model.number_of_classes, mechanism)
        return NoisedSums(np.concatenate(list(vectors.values())))
    if isinstance(mechanism, GridMechanism):
        from cachefl_secure.privacy.grid import release_grid

        return NoisedSums(release_grid(model, records, descent.pairs, mechanism))
    from cachefl_secure.privacy.training import train_privately

    return train_privately(model, records, mechanism, descent=descent, device=device)


OPACUS = Trainer(_check, _train)


@dataclass(frozen=True, slots=True)
class SiloAttempt:
    """The attempt that a silo is in."""

    files: SiloFiles
    ledger: Ledger
    chain: Chain
    parameters: RoundParameters
    session: SiloSession
    trainer: Trainer

    @classmethod
    def enter(
        cls,
        manifest: Manifest,
        parameters: RoundParameters,
        chain: Chain,
        files: SiloFiles,
        ledger: Ledger,
        trainer: Trainer,
    ) -> SiloAttempt:
        """A new attempt with fresh secrets. That it was entered is on disk when this returns."""
        enter_attempt(files.state, manifest.round, manifest.attempt)
        session = SiloSession(
            manifest=manifest,
            silo=files.silo,
            identity=files.state.signing_key(),
            roster=chain.roster,
            coordinator_key=files.plan.coordinator_key,
            parameters=parameters,
            secrets=SiloSecrets.generate(),
            save=lambda journal: save_journal(files.state, journal),
        )
        return cls(files, ledger, chain, parameters, session, trainer)

    @classmethod
    def resume(cls, chain: Chain, files: SiloFiles, ledger: Ledger, trainer: Trainer) -> SiloAttempt | None:
        """The attempt that a killed process was in, if it still follows the last record and the last roster held.

        Raises:
            ConfigError: its journal is damaged.
            LocalProtocolError: its journal does not replay.
            PeerError: its manifest is none of this silo's.
        """
        journal = open_journal(files.state, plan_digest(files.plan))
        if journal is None or journal.manifest.round <= chain.position.round:
            return None
        here = roster_digest(chain.roster), chain.position.record_digest, chain.position.cache_digest
        followed = (
            journal.manifest.roster_digest,
            journal.manifest.previous_record,
            journal.manifest.cache_digest,
        )
        if followed != here:
            # A record or a roster came out after this attempt had begun: what was sent in it does not follow that.
            discard_journals(files.state, journal.manifest.round)
            return None
        parameters = RoundParameters.derive(
            files.plan, len(journal.manifest.cohort), len(chain.roster.members)
        )
        session = SiloSession.resume(
            journal,
            silo=files.silo,
            identity=files.state.signing_key(),
            roster=chain.roster,
            coordinator_key=files.plan.coordinator_key,
            parameters=parameters,
            save=lambda journal: save_journal(files.state, journal),
        )
        attempt = cls(files, ledger, chain, parameters, session, trainer)
        attempt._complete()
        return attempt

    @property
    def manifest(self) -> Manifest:
        return self.session.manifest

    @property
    def participation(self) -> Participation | None:
        """What this silo saw of the round, once it has signed a survivor set."""
        if self.session.ledger_head is None or self.session.survivors is None:
            return None
        return Participation(
            silo=self.files.silo,
            round=self.manifest.round,
            attempt=self.manifest.attempt,
            manifest_digest=manifest_digest(self.manifest),
            survivors=self.session.survivors,
            ledger_head=self.session.ledger_head,
        )

    def on_share_delivery(self, content: bytes) -> bytes:
        if (saved := self.session.check_share_delivery(content)) is not None:
            return saved
        manifest, state = self.manifest, self.files.state
        if has_update(state, manifest.round):
            self._reserve()  # charged already, but only for this cache, these records and this mechanism
        else:
            self._train()
        sealed = open_update(state, manifest.round, manifest.plan_digest)
        encoding = sealed.encoding(self.parameters)
        head = self.ledger.head
        if self.session.ledger_head is None:
            # Twice on disk that it leaves, in two files: if one is lost or repaired, the other forbids a second update.
            state.write(round_file(manifest.round, _SENT), manifest.roster_digest.encode())
            transcript = manifest_digest(manifest)
            self.ledger.note_sent(
                manifest.plan_digest,
                manifest.round,
                manifest.attempt,
                sealed.digest,
                transcript,
                timestamp=utc_now(),
            )
        return self.session.on_share_delivery(content, encoding, head)

    def on_survivor_set(self, content: bytes) -> bytes:
        reply = self.session.on_survivor_set(content)
        self._note_statement()
        if self.parameters.ring is not None:
            # On a ring few silos answer for one: only that signers do not sign twice keeps a second sum away.
            self._note_release()
        return reply

    def on_certificate(self, content: bytes) -> bytes:
        reply = self.session.on_certificate(content)
        self._note_release()
        return reply

    def abandon(self, reason: str) -> None:
        """Another attempt or round begins: a masked input that was sent and left no record stays charged."""
        if self.session.ledger_head is not None:
            self.ledger.note_abort(
                self.manifest.plan_digest,
                self.manifest.round,
                self.manifest.attempt,
                reason,
                timestamp=utc_now(),
            )

    def _complete(self) -> None:
        """Notes that belong to replies in the journal, which a crash may have cut off."""
        if self.session.statement is not None:
            self._note_statement()
        if self.session.is_finished or (
            self.session.statement is not None and self.parameters.ring is not None
        ):
            self._note_release()

    def _note_statement(self) -> None:
        if self.session.statement is None:
            raise LocalProtocolError("signed, but no statement")
        note_certified(self.files.state, self.manifest.round, self.manifest.attempt, self.session.statement)

    def _note_release(self) -> None:
        self.files.state.write(round_file(self.manifest.round, _RELEASED), b"")

    def _train(self) -> None:
        """Charge, durably; then train; then seal. What can fail without training is tried before the charge."""
        plan, config, manifest = self.files.plan, self.files.config, self.manifest
        mechanism, model = mechanism_of(plan), self.chain.model()
        descent = descent_of(plan, self.chain.initial_model)
        records = self.files.records_of_round(manifest.round)
        self.trainer.check(model, mechanism, descent, config.training_device)
        spend = self._reserve()
        if spend.update_digest is not None or self.files.state.has(round_file(manifest.round, _SENT)):
            raise UpdateSpent
        update = self.trainer.train(model, records, mechanism, descent, config.training_device)
        seal_update(self.files.state, manifest.round, update, manifest.plan_digest)

    def _reserve(self) -> Spend:
        """The round's charge. A second attempt costs nothing.

        Raises:
            PeerError: the round was charged for another cache, other records or another mechanism.
        """
        manifest, config = self.manifest, self.files.config
        return self.ledger.reserve(
            self.files.terms,
            round=manifest.round,
            attempt=manifest.attempt,
            cache_digest=manifest.cache_digest,
            data_commitment=Digest(config.data_commitment),
            randomness=self.trainer.randomness,
            timestamp=utc_now(),
        )
