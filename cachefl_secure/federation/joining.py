"""join: check the invite, encode the private images once, make an identity, write the join request.

Everything that can fail is tried before the silo's directory exists, so a failed join leaves nothing
behind and is simply run again.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta

from cachefl_secure.crypto.sign import fingerprint
from cachefl_secure.errors import ConfigError
from cachefl_secure.federation.clip_source import ClipSource, open_encoder
from cachefl_secure.federation.enrolment import read_invite, write_join_request
from cachefl_secure.federation.ports import Progress, silent
from cachefl_secure.federation.records import Records
from cachefl_secure.federation.roster_change import RosterHistory
from cachefl_secure.federation.roster_files import read_history
from cachefl_secure.federation.state_dir import ROSTER_FILE, StateDir, utc_now
from cachefl_secure.names import Digest, PublicKeyHex, SiloId, parse_silo_id
from cachefl_secure.plan import FederationPlan, Hex64, encode_toml, plan_digest, read_toml
from cachefl_secure.privacy.commitment import CommitmentSalt, data_commitment
from cachefl_secure.privacy.ledger import Anchor, Ledger, LedgerReport, verify_ledger
from cachefl_secure.privacy.mechanism import mechanism_of
from cachefl_secure.protocol.messages import Roster, roster_digest

if TYPE_CHECKING:
    from cachefl_secure.cache.features import FeatureSet

CONFIG_FILE, INVITE_FILE, REQUEST_FILE = "silo.toml", "invite.toml", "join-request.toml"
LEDGER_FILE, FEATURES_FILE, SALT_FILE = "ledger/ledger.jsonl", "features.safetensors", "keys/commitment.salt"


class SiloConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """silo.toml: what is this silo's own business. Never sent."""

    silo: str
    features_digest: Hex64
    """What the features were extracted from: encoder, preprocessing and files."""
    clip: str
    """Where this silo has the encoder's weights, as given to ``--clip``."""
    epsilon_cap: Annotated[float, Meta(ge=0.0)]
    """This silo refuses a round that would take its epsilon beyond this. Infinite with ``none``."""
    data_commitment: Hex64
    """Names the records in the ledger; made at join, with the salt in keys/."""
    training_device: Literal["cpu", "cuda"] = "cpu"


@dataclass(frozen=True, slots=True)
class SiloFiles:
    """A silo's directory, opened and checked."""

    state: StateDir
    plan: FederationPlan
    config: SiloConfig

    @classmethod
    def open(cls, root: Path) -> SiloFiles:
        """
        Raises:
            ConfigError: not a silo's directory, or a file in it does not parse.
        """
        if not (root / CONFIG_FILE).is_file():
            raise ConfigError(str(root), "", "no silo's directory; join makes one")
        if not StateDir(root).is_finished:
            raise ConfigError(str(root), "", "join was interrupted; run it again with the same directory")
        config = read_toml(root / CONFIG_FILE, SiloConfig)
        parse_silo_id(config.silo, file=str(root / CONFIG_FILE))
        return cls(StateDir(root), read_invite(root / INVITE_FILE), config)

    @property
    def silo(self) -> SiloId:
        return SiloId(self.config.silo)

    def records(self) -> FeatureSet:
        """The features that ``join`` extracted.

        Raises:
            ConfigError: the file is damaged, or does not fit the plan.
        """
        from cachefl_secure.cache.features import load_features

        path = self.state.path(FEATURES_FILE)
        records, digest = load_features(path)
        if digest != self.config.features_digest:
            raise ConfigError(str(path), "digest", "not the features that join extracted")
        if len(records) and records.features.shape[1] != self.plan.encoder.feature_dim:
            raise ConfigError(str(path), "features", "another feature dimension than the plan's")
        return records

    def rounds(self) -> Records | None:
        """The records this silo holds, verified; None before it was admitted."""
        if not self.state.has(ROSTER_FILE):
            return None
        return Records(self.state, self.plan, self._rosters())

    def witnessed_heads(self) -> tuple[Anchor, ...]:
        """Heads of this silo's ledger that the coordinator signed into records: none may be missing."""
        rounds = self.rounds()
        return () if rounds is None else tuple((None, head) for head in rounds.ledger_heads_of(self.silo))

    def ledger(self) -> Ledger:
        """The ledger, open for appending, under the key that the roster names for this silo.

        A change of the key that a crash cut off is completed first.

        Raises:
            LedgerError: it does not verify, or lacks a head that a record names: it was rolled back.
            ConfigError: the roster names a key that this silo has not got.
        """
        path, (earlier, following) = self.state.path(LEDGER_FILE), self._other_keys()
        ledger = Ledger.open(
            path,
            self.state.signing_key(),
            anchors=self.witnessed_heads(),
            earlier_keys=earlier,
            next_key=following,
        )
        if following is not None:
            try:
                self.take_next_key(ledger, self._rosters().current)
            except BaseException:
                ledger.close()
                raise
        return ledger

    def take_next_key(self, ledger: Ledger, roster: Roster) -> None:
        """Goes over to the key that the roster names: the ledger first, by an entry under the old key.

        Raises:
            ConfigError: this silo has not got that key.
        """
        key, named = self.state.next_signing_key(), roster.public_keys.get(self.silo)
        if key is None or key.public_key != named:
            raise ConfigError(str(self.state.root), "keys", "the roster names another key for this silo")
        ledger.rotate_key(key, roster_digest(roster), timestamp=utc_now())
        self.state.take_next_signing_key()

    def _other_keys(self) -> tuple[list[PublicKeyHex], PublicKeyHex | None]:
        """The keys that this silo had before its present one, and the one that the roster names instead of it."""
        own = self.state.signing_key().public_key
        keys = self._rosters().keys_of(self.silo) if self.state.has(ROSTER_FILE) else []
        if own not in keys:
            return [], None
        at = keys.index(own)
        return keys[:at], keys[at + 1] if keys[at + 1 :] else None

    def _rosters(self) -> RosterHistory:
        return read_history(self.state, self.plan)

    def verified_ledger(self, witnessed: Collection[Digest] = ()) -> LedgerReport:
        """The ledger, verified in all the steps of ``privacy.verification``.

        ``witnessed`` are heads that others hold, besides those in this silo's own records.
        """
        anchors = (*self.witnessed_heads(), *((None, head) for head in witnessed))
        key, (earlier, following) = self.state.signing_key().public_key, self._other_keys()
        path = self.state.path(LEDGER_FILE)
        return verify_ledger(path, key, anchors=anchors, earlier_keys=earlier, next_key=following)


@dataclass(frozen=True, slots=True)
class Joined:
    """What join tells its operator."""

    silo: SiloId
    records: int
    classes_present: int
    skipped: tuple[str, ...]
    plan: FederationPlan
    epsilon_cap: float
    fingerprint: str
    coordinator_fingerprint: str
    request: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinChoices:
    """What the operator chose."""

    name: str
    images: Path
    clip: ClipSource
    expect: str | None = None
    epsilon_cap: float | None = None
    not_private: bool = False
    skip_unreadable: bool = False
    device: str = "cpu"


def join_federation(invite: Path, root: Path, choices: JoinChoices, progress: Progress = silent) -> Joined:
    """A new silo's directory with its features, keys, ledger and join request.

    Raises:
        ConfigError: a bad invite, name, image folder, encoder or directory.
    """
    from cachefl_secure.cache.features import (
        extract_features,
        extract_readable_features,
        features_digest,
        image_folder,
    )

    silo = parse_silo_id(choices.name)
    StateDir.refuse_occupied(root)
    plan = read_invite(invite, expect=choices.expect)
    _check_cap(plan, choices)
    images = image_folder(choices.images, plan.classes)
    if not len(images):
        raise ConfigError(str(choices.images), "", "holds no images")
    encoder = open_encoder(plan.encoder, choices.clip, device=choices.device)

    def show(done: int, total: int) -> None:
        progress(done, total, f"{silo}: encode")

    skipped: tuple[str, ...] = ()
    if choices.skip_unreadable:
        records, skipped = extract_readable_features(images, encoder, progress=show)
        images = images.without(skipped)
    else:
        records = extract_features(images, encoder, progress=show)
    check_delta(plan, len(records))
    file_digests = [hashlib.sha256((images.root / path).read_bytes()).hexdigest() for path in images.paths]
    digest = features_digest(images, encoder)
    features = Features(records, digest, tuple(map(Digest, file_digests)), skipped)
    return establish_silo(root, invite.read_bytes(), silo, features, choices)


@dataclass(frozen=True, slots=True)
class Features:
    """A silo's records as ``join`` extracted them, with what they were made of."""

    records: FeatureSet
    digest: Digest
    file_digests: tuple[Digest, ...]
    """SHA-256 of each image file."""
    skipped: tuple[str, ...] = ()
    """Files that could not be read and were left out on request."""


def establish_silo(
    root: Path, invite: bytes, silo: SiloId, features: Features, choices: JoinChoices
) -> Joined:
    """Writes the directory of a silo whose features are extracted and whose invite was checked."""
    from cachefl_secure.cache.features import features_to_bytes

    StateDir.discard_unfinished(root)  # of an interrupted join: nothing had been handed over
    state = StateDir.create(root)
    state.write(INVITE_FILE, invite)
    plan, key = read_invite(root / INVITE_FILE), state.signing_key()
    state.write(FEATURES_FILE, features_to_bytes(features.records, features.digest), private=True)
    commitment = _commit_to_data(state, features.file_digests)
    config = _config(silo, plan, choices, commitment, features.digest)
    _create_ledger(state, plan, silo, config.epsilon_cap)
    state.write(REQUEST_FILE, write_join_request(silo, plan, key))
    state.write(CONFIG_FILE, encode_toml(config))
    state.finish()
    return Joined(
        silo=silo,
        records=len(features.records),
        skipped=features.skipped,
        plan=plan,
        epsilon_cap=config.epsilon_cap,
        classes_present=len(set(features.records.labels.tolist())),
        fingerprint=fingerprint(key.public_key),
        coordinator_fingerprint=fingerprint(PublicKeyHex(plan.coordinator_public_key)),
        request=root / REQUEST_FILE,
    )


def check_delta(plan: FederationPlan, records: int) -> None:
    """With delta = 1/n a mechanism may publish one record of n outright.

    Raises:
        ConfigError: delta is not below one over this silo's number of records.
    """
    if plan.privacy.mechanism != "none" and plan.privacy.delta * records >= 1.0:
        reason = f"{plan.privacy.delta!r} is not below one over this silo's {records} records"
        raise ConfigError("invite", "plan.privacy.delta", reason)


def _check_cap(plan: FederationPlan, choices: JoinChoices) -> None:
    if plan.privacy.mechanism == "none" and not choices.not_private:
        reason = "its updates carry no noise and reveal records; confirm with --not-private"
        raise ConfigError("invite", "plan.privacy.mechanism", reason)
    if choices.epsilon_cap is not None and not choices.epsilon_cap > 0:
        raise ConfigError("--epsilon-cap", "", "must be positive")


def _config(
    silo: SiloId, plan: FederationPlan, choices: JoinChoices, commitment: Digest, features: Digest
) -> SiloConfig:
    planned = math.inf if plan.privacy.mechanism == "none" else plan.privacy.epsilon
    cap = planned if choices.epsilon_cap is None else choices.epsilon_cap
    return SiloConfig(
        data_commitment=commitment,
        silo=silo,
        features_digest=features,
        clip=choices.clip.text,
        epsilon_cap=float(cap),
        # Training needs float64, which Apple's GPU lacks; the cache is small, so the processor does.
        training_device="cuda" if choices.device == "cuda" else "cpu",
    )


def _commit_to_data(state: StateDir, file_digests: tuple[Digest, ...]) -> Digest:
    """A name for this silo's records that shows nothing about them; the salt stays here."""
    salt = CommitmentSalt.generate()
    state.write(SALT_FILE, salt.reveal(), private=True)
    return data_commitment(file_digests, salt)


def _create_ledger(state: StateDir, plan: FederationPlan, silo: SiloId, cap: float) -> None:
    path = state.path(LEDGER_FILE)
    path.parent.mkdir(mode=0o700)
    with Ledger.create(
        path, state.signing_key(), silo=silo, federation=plan.id, timestamp=utc_now()
    ) as ledger:
        mechanism = mechanism_of(plan.privacy)
        ledger.note_plan(plan_digest(plan), mechanism, delta=plan.privacy.delta, cap=cap, timestamp=utc_now())
