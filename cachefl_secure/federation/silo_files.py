"""A silo's own files: what it joined, its records, its terms, and the ledger that they are charged to."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta

from cachefl_secure.errors import BudgetExhausted, ConfigError
from cachefl_secure.federation.enrolment import read_invite
from cachefl_secure.federation.records import Records
from cachefl_secure.federation.roster_change import RosterHistory
from cachefl_secure.federation.roster_files import read_history, settle_rosters
from cachefl_secure.federation.shared_ledger import sharing_directories
from cachefl_secure.federation.state_dir import ROSTER_FILE, StateDir, utc_now
from cachefl_secure.fields import Hex64
from cachefl_secure.names import Digest, PublicKeyHex, SiloId, digest_of, parse_silo_id
from cachefl_secure.plan import FederationPlan, read_toml
from cachefl_secure.privacy.accounting import Cost
from cachefl_secure.privacy.ledger import Anchor, Ledger, LedgerReport, verify_ledger
from cachefl_secure.privacy.mechanism import View
from cachefl_secure.privacy.terms import Terms, terms_of
from cachefl_secure.protocol.messages import Roster, roster_digest

if TYPE_CHECKING:
    from cachefl_secure.cache.features import FeatureSet, FeatureViews

CONFIG_FILE, INVITE_FILE, REQUEST_FILE = "silo.toml", "invite.toml", "join-request.toml"
EXTRACTION_FOLDER = "extraction"
"""Shards of features while join works; gone when it is done."""
LEDGER_FILE, FEATURES_FILE, SALT_FILE = "ledger/ledger.jsonl", "features.safetensors", "keys/commitment.salt"


_Cap = Annotated[float, Meta(ge=0.0)]


def view_file(view: int) -> str:
    """Where a silo keeps its records in one view; the first is the one without augmentation."""
    return f"views/{view:04d}.safetensors" if view else FEATURES_FILE


def view_digest(features: Digest, view: int) -> Digest:
    """What the file of a view is saved under."""
    return (
        digest_of("cachefl-secure/feature-view/1", features.encode(), str(view).encode())
        if view
        else features
    )


class SiloConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """silo.toml: what is this silo's own business. Never sent."""

    silo: str
    features_digest: Hex64
    """What the features were extracted from: encoder, preprocessing and files."""
    clip: str
    """Where this silo has the encoder's weights, as given to ``--clip``. Empty: its features were made elsewhere."""
    epsilon_cap_local: _Cap
    """This silo refuses a round that would take its local epsilon beyond this. Infinite with ``none``."""
    epsilon_cap_aggregate: _Cap
    """The same for the epsilon that holds while the secure sum does."""
    data_commitment: Hex64
    """Names the records in the ledger; made at join, with the salt in keys/."""
    ledger: str = ""
    """Directory of the silo whose ledger, key and caps this one shares; empty: its own."""
    views: Annotated[int, Meta(ge=1, le=1000)] = 1
    """In how many augmented views the records are there: round r trains on view (r - 1) modulo this."""
    training_device: Literal["cpu", "cuda"] = "cpu"
    data: str = ""
    """Where the records were read, as an absolute path. Empty: a directory of an earlier version, which did not say."""
    engine: str = ""
    """Where this silo reaches what carries messages: the invite's URL, or this machine's own path to the same place."""


@dataclass(frozen=True, slots=True)
class TooLow:
    """A cap that would have to be higher: in which file, under which name, and how high at least."""

    file: Path
    field: str
    needed: float


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

    def records(self, view: int = 0) -> FeatureSet:
        """The features that ``join`` extracted, in one view: its number is taken modulo how many there are.

        Raises:
            ConfigError: the file is damaged, or does not fit the plan.
        """
        from cachefl_secure.cache.features import load_features

        view %= self.config.views
        path = self.state.path(view_file(view))
        records, digest = load_features(path)
        if digest != view_digest(Digest(self.config.features_digest), view):
            raise ConfigError(str(path), "digest", "not the features that join extracted")
        if len(records) and records.features.shape[1] != self.plan.encoder.feature_dim:
            raise ConfigError(str(path), "features", "another feature dimension than the plan's")
        return records

    def records_of_round(self, round_number: int) -> FeatureSet:
        """What this silo trains on in a round, counted from 1: every record once, in the view whose turn it is.

        The turn is a function of the public round number, so it tells nothing and costs nothing (``FeatureViews``).
        """
        return self.records(round_number - 1)

    def views(self) -> FeatureViews:
        """All views at once: V x n x C x 4 bytes. A round needs only ``records_of_round``."""
        from torch import stack

        from cachefl_secure.cache.features import FeatureViews

        sets = [self.records(view) for view in range(self.config.views)]
        return FeatureViews(stack([each.features for each in sets]), sets[0].labels)

    def rounds(self) -> Records | None:
        """The records this silo holds, verified; None before it was admitted."""
        if not self.state.has(ROSTER_FILE):
            return None
        return Records(self.state, self.plan, self._rosters())

    @property
    def caps(self) -> Cost:
        """Of both epsilons. With a shared ledger the owner's caps bind as well: they are for the sum of all."""
        own = Cost(self.config.epsilon_cap_local, self.config.epsilon_cap_aggregate)
        return own.at_most(self.ledger_owner().caps) if self.config.ledger else own

    def caps_below(self, needed: Cost) -> tuple[TooLow, ...]:
        """The caps that bind this silo and allow less than that, those of the ledger's owner first."""
        fields = (View.LOCAL, "epsilon_cap_local"), (View.AGGREGATE, "epsilon_cap_aggregate")
        sources = [self.ledger_owner(), self] if self.config.ledger else [self]
        return tuple(
            TooLow(files.state.path(CONFIG_FILE), field, needed.of(view))
            for files in sources
            for view, field in fields
            if not needed.of(view) <= getattr(files.config, field)
        )

    def caps_files(self, shortage: BudgetExhausted) -> tuple[str, ...]:
        """The files that hold the cap which forbids another round."""
        needed = Cost(*(shortage.asked if view.value == shortage.view else 0.0 for view in View))
        return tuple(str(cap.file) for cap in self.caps_below(needed))

    @property
    def terms(self) -> Terms:
        """What a round of this federation is charged under."""
        return terms_of(self.plan, self.caps)

    def ledger_owner(self) -> SiloFiles:
        """The silo that the ledger was made for: this one, unless it shares another's.

        Raises:
            ConfigError: the directory named in silo.toml is gone, or is another institution's.
        """
        if not self.config.ledger:
            return self
        owner = SiloFiles.open(Path(self.config.ledger))
        if owner.state.signing_key().public_key != self.state.signing_key().public_key:
            reason = f"{owner.state.root} has another key: a ledger is shared under one key only"
            raise ConfigError(str(self.state.path(CONFIG_FILE)), "ledger", reason)
        return owner

    @property
    def ledger_path(self) -> Path:
        return self.ledger_owner().state.path(LEDGER_FILE)

    def ledger_sharers(self) -> tuple[SiloFiles, ...]:
        """All silos of this institution that write into the same ledger, the owner first."""
        owner = self.ledger_owner()
        return (owner, *(SiloFiles.open(root) for root in sharing_directories(owner.state)))

    def witnessed_heads(self) -> tuple[Anchor, ...]:
        """Heads of this silo's ledger that a coordinator signed into records: none may be missing."""
        return tuple((None, head) for files in self.ledger_sharers() for head in files.recorded_heads())

    def recorded_heads(self) -> tuple[Digest, ...]:
        """The heads in this federation's records."""
        rounds = self.rounds()
        return () if rounds is None else rounds.ledger_heads_of(self.silo)

    def ledger(self) -> Ledger:
        """The ledger, open for appending, under the key that the roster names for this silo.

        A change of the key that a crash cut off is completed first, once the roster that names it is on the disk.

        Raises:
            LedgerError: it does not verify, or lacks a head that a record names: it was rolled back.
            ConfigError: the roster names a key that this silo has not got.
        """
        if self.state.has(ROSTER_FILE):
            settle_rosters(self.state, self._rosters())
        path, (earlier, following) = self.ledger_path, self._other_keys()
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
        """The keys that the ledger had before its present one, and the one that the roster names instead of it."""
        own, owner = self.state.signing_key().public_key, self.ledger_owner()
        keys = owner._rosters().keys_of(owner.silo) if owner.state.has(ROSTER_FILE) else []
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
        path = self.ledger_path
        return verify_ledger(path, key, anchors=anchors, earlier_keys=earlier, next_key=following)
