"""join: check the invite, encode the private images once, make an identity, write the join request.

Everything that can fail is tried before the silo has keys. A join that fails or is killed while it encodes leaves
the shards of features that it finished, under a mark that says unfinished, and is simply run again: it goes on
with the first image of the shard that it was in. Nothing is ever downloaded: the encoder is here, or the error
says which files to bring.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from cachefl_secure.crypto.sign import fingerprint
from cachefl_secure.errors import ConfigError
from cachefl_secure.federation.budget import Room, room_for_plan
from cachefl_secure.federation.clip_source import ClipSource, open_encoder
from cachefl_secure.federation.enrolment import open_invite, read_invite, write_join_request
from cachefl_secure.federation.ports import Progress, silent
from cachefl_secure.federation.shared_ledger import add_sharing_directory
from cachefl_secure.federation.silo_files import (
    CONFIG_FILE,
    EXTRACTION_FOLDER,
    INVITE_FILE,
    LEDGER_FILE,
    REQUEST_FILE,
    SALT_FILE,
    SiloConfig,
    SiloFiles,
    view_digest,
    view_file,
)
from cachefl_secure.federation.state_dir import StateDir, utc_now
from cachefl_secure.names import Digest, PublicKeyHex, SiloId, parse_silo_id
from cachefl_secure.plan import FederationPlan, encode_toml, read_toml
from cachefl_secure.privacy.accounting import Cost
from cachefl_secure.privacy.commitment import CommitmentSalt, data_commitment
from cachefl_secure.privacy.ledger import Ledger
from cachefl_secure.privacy.terms import planned_cost_of
from cachefl_secure.wording import counted

if TYPE_CHECKING:
    from cachefl_secure.cache.features import FeatureSet


@dataclass(frozen=True, slots=True)
class Joined:
    """What join tells its operator."""

    silo: SiloId
    records: int
    classes_present: int
    skipped: tuple[str, ...]
    plan: FederationPlan
    caps: Cost
    fingerprint: str
    coordinator_fingerprint: str
    request: Path
    copies: int
    """Records that are byte for byte another one again: what they say is protected once for each (limit N7)."""
    has_other_records: bool
    """The shared ledger has names of other records only. What both cost is added up all the same."""
    room: Room | None
    """What a shared ledger leaves to the plan; None with a ledger of this silo's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinChoices:
    """What the operator chose."""

    name: str
    images: Path
    """A folder of images, a table of them, or a feature file."""
    clip: ClipSource | None
    """None with a feature file, which needs no encoder."""
    expect: str | None = None
    epsilon_cap: float | None = None
    """For the local epsilon; None: what the plan's rounds cost, or with a shared ledger its owner's."""
    epsilon_cap_aggregate: float | None = None
    ledger: Path | None = None
    """A silo of the same institution over the same records: its ledger, key and caps are shared."""
    not_private: bool = False
    skip_unreadable: bool = False
    views: int = 1
    """V: the image itself and V - 1 augmented views of it. Rounds take turns over them."""
    device: str = "cpu"
    precision: str = "auto"
    engine: str | None = None
    """This machine's own path to what carries messages; None: as the invite says."""


def join_federation(invite: Path, root: Path, choices: JoinChoices, progress: Progress = silent) -> Joined:
    """A new silo's directory with its features, keys, ledger and join request.

    Raises:
        ConfigError: a bad invite, name, source of records, encoder or directory.
        MissingExtra: a Parquet table, and pyarrow is not installed.
    """
    from cachefl_secure.cache.sources import is_feature_file

    silo = parse_silo_id(choices.name)
    StateDir.refuse_occupied(root)
    plan = read_invite(invite, expect=choices.expect)
    _check_caps(plan, choices)
    owner = _owner(choices)
    if owner is not None:
        owner.ledger().close()  # verifies it, and that nobody has it open
        if owner.verified_ledger().insecure_rounds:
            reason = "holds rounds with noise of a test's repeatable streams: nothing can be claimed of it any more"
            raise ConfigError(str(owner.ledger_path), "randomness", reason)
    if is_feature_file(choices.images):
        features = _brought(plan, choices)
    else:
        features = _extracted(root, silo, plan, choices, progress)
    check_delta(plan, len(features.records))
    return establish_silo(root, invite.read_bytes(), silo, features, choices)


def _extracted(
    root: Path, silo: SiloId, plan: FederationPlan, choices: JoinChoices, progress: Progress
) -> Features:
    """Records encoded from images, by way of shards in the directory."""
    from cachefl_secure.cache.features import batch_size_on, extract
    from cachefl_secure.cache.sources import image_list

    images = image_list(choices.images, plan.classes, skip_missing=choices.skip_unreadable)
    if not len(images):
        raise ConfigError(str(choices.images), "", "holds no images")
    clip = ClipSource.of_plan(plan.encoder, None) if choices.clip is None else choices.clip
    encoder = open_encoder(
        plan.encoder, clip, device=choices.device, precision=choices.precision, offline=True
    )
    with _shards(root) as shards:
        found = extract(
            images,
            encoder,
            views=choices.views,
            skip_unreadable=choices.skip_unreadable,
            shards=shards,
            batch_size=batch_size_on(encoder.device),
            progress=lambda done, total: progress(done, total, f"{silo}: encode"),
        )
    if not len(found):
        raise ConfigError(str(choices.images), "", f"none of {len(images)} images can be read")
    further = (found.view(view) for view in range(1, choices.views))
    return Features(found.view(0), found.digest, found.file_digests, found.skipped, choices.views, further)


def _brought(plan: FederationPlan, choices: JoinChoices) -> Features:
    """Records that somebody else encoded."""
    from cachefl_secure.cache.feature_file import read_feature_file

    if choices.views > 1:
        raise ConfigError("--views", "", "needs images: a feature file holds one view of each record")
    brought = read_feature_file(
        choices.images, number_of_classes=len(plan.classes), feature_dim=plan.encoder.feature_dim
    )
    if not len(brought.records):
        raise ConfigError(str(choices.images), "", "holds no records")
    return Features(brought.records, brought.digest, brought.record_digests)


@contextlib.contextmanager
def _shards(root: Path) -> Iterator[Path]:
    """The folder of shards in a directory that is marked unfinished; failing before the first leaves nothing."""
    folder = StateDir.begin(root).path(EXTRACTION_FOLDER)
    try:
        yield folder
    except BaseException:
        if not folder.is_dir():
            StateDir.discard_unfinished(root)
        raise


@dataclass(frozen=True, slots=True)
class Features:
    """A silo's records as ``join`` extracted them, with what they were made of."""

    records: FeatureSet
    digest: Digest
    file_digests: tuple[Digest, ...]
    """SHA-256 of each image file, or of each row of a feature file: one a record, however many views it has."""
    skipped: tuple[str, ...] = ()
    """Files that could not be read and were left out on request."""
    number_of_views: int = 1
    further_views: Iterable[FeatureSet] = ()
    """The same records in views 1, 2, ..; taken one at a time, because each is as large as ``records``."""


def establish_silo(
    root: Path, invite: bytes, silo: SiloId, features: Features, choices: JoinChoices
) -> Joined:
    """Writes the directory of a silo whose features are extracted and whose invite was checked."""
    from cachefl_secure.cache.features import features_to_bytes

    # Of an interrupted join: nothing had been handed over. Further views may still be read from its shards.
    StateDir.discard_unfinished(root, keep=EXTRACTION_FOLDER)
    owner = _owner(choices)
    state = StateDir.create(root, None if owner is None else owner.state.signing_key())
    state.write(INVITE_FILE, invite)
    asked, key = open_invite(root / INVITE_FILE), state.signing_key()
    plan, engine = asked.plan, asked.engine if choices.engine is None else choices.engine
    for view, records in enumerate(itertools.chain([features.records], features.further_views)):
        digest = view_digest(features.digest, view)
        state.write(view_file(view), features_to_bytes(records, digest), private=True)
    commitment = _commit_to_data(state, features.file_digests, owner)
    state.write(REQUEST_FILE, write_join_request(silo, plan, key))
    config = _config(silo, plan, choices, commitment, features, owner)
    state.write(CONFIG_FILE, encode_toml(msgspec.structs.replace(config, engine=engine)))
    files = SiloFiles(state, plan, read_toml(root / CONFIG_FILE, SiloConfig))
    known = set() if owner is None else {each.config.data_commitment for each in owner.ledger_sharers()}
    _agree_to_plan(files)
    state.remove_folder(EXTRACTION_FOLDER)
    state.finish()
    return Joined(
        silo=silo,
        records=len(features.records),
        skipped=features.skipped,
        plan=plan,
        caps=files.caps,
        classes_present=len(set(features.records.labels.tolist())),
        fingerprint=fingerprint(key.public_key),
        coordinator_fingerprint=fingerprint(PublicKeyHex(plan.coordinator_public_key)),
        request=root / REQUEST_FILE,
        copies=len(features.file_digests) - len(set(features.file_digests)),
        has_other_records=owner is not None and commitment not in known,
        room=None if owner is None else room_for_plan(files),
    )


def check_delta(plan: FederationPlan, records: int) -> None:
    """With delta = 1/n a mechanism may publish one record of n outright: a tenth of that is asked for.

    Raises:
        ConfigError: delta is more than a tenth of one over this silo's number of records.
    """
    if plan.privacy.mechanism != "none" and plan.privacy.delta * records > 0.1:
        reason = f"{plan.privacy.delta!r} is more than a tenth of one over this silo's {counted(records, 'record')}"
        raise ConfigError("invite", "plan.privacy.delta", reason)


def _check_caps(plan: FederationPlan, choices: JoinChoices) -> None:
    if plan.privacy.mechanism == "none" and not choices.not_private:
        reason = "its updates carry no noise and reveal records; confirm with --not-private"
        raise ConfigError("invite", "plan.privacy.mechanism", reason)
    for option, cap in (
        ("--epsilon-cap", choices.epsilon_cap),
        ("--epsilon-cap-aggregate", choices.epsilon_cap_aggregate),
    ):
        if cap is not None and not cap > 0:
            raise ConfigError(option, "", "must be positive")


def _owner(choices: JoinChoices) -> SiloFiles | None:
    """The silo whose ledger is shared, at its first owner."""
    return None if choices.ledger is None else SiloFiles.open(choices.ledger).ledger_owner()


def _config(
    silo: SiloId,
    plan: FederationPlan,
    choices: JoinChoices,
    commitment: Digest,
    features: Features,
    owner: SiloFiles | None,
) -> SiloConfig:
    if owner is not None:
        for option, asked, bound in (
            ("--epsilon-cap", choices.epsilon_cap, owner.caps.local),
            ("--epsilon-cap-aggregate", choices.epsilon_cap_aggregate, owner.caps.aggregate),
        ):
            if asked is not None and asked > bound:
                reason = f"the shared ledger's owner refuses beyond {bound:g}: raise it in {owner.state.path(CONFIG_FILE)}"
                raise ConfigError(option, "", reason)
    # With a shared ledger the owner's caps bind in any case: this plan alone says nothing about the sum.
    planned = planned_cost_of(plan.privacy) if owner is None else Cost(math.inf, math.inf)
    local, aggregate = choices.epsilon_cap, choices.epsilon_cap_aggregate
    return SiloConfig(
        data_commitment=commitment,
        silo=silo,
        features_digest=features.digest,
        data=str(choices.images.resolve()),
        views=features.number_of_views,
        clip="" if choices.clip is None else choices.clip.text,
        epsilon_cap_local=float(planned.local if local is None else local),
        epsilon_cap_aggregate=float(planned.aggregate if aggregate is None else aggregate),
        ledger="" if owner is None else str(owner.state.root.resolve()),
        # Training needs float64, which Apple's GPU lacks; the cache is small, so the processor does.
        training_device="cuda" if choices.device == "cuda" else "cpu",
    )


def _commit_to_data(state: StateDir, file_digests: tuple[Digest, ...], owner: SiloFiles | None) -> Digest:
    """A name for this silo's records that shows nothing about them; the salt stays here.

    Under the salt of a shared ledger, so that the same records have the same name.
    """
    salt = CommitmentSalt.generate() if owner is None else CommitmentSalt(owner.state.read(SALT_FILE))
    state.write(SALT_FILE, salt.reveal(), private=True)
    return data_commitment(file_digests, salt)


def _agree_to_plan(files: SiloFiles) -> None:
    """A new ledger with the plan in it, or the plan in the one that is shared."""
    if files.config.ledger:
        add_sharing_directory(files.ledger_owner().state, files.state.root)
        with files.ledger() as shared:
            shared.note_plan(files.terms, timestamp=utc_now())
        return
    path = files.state.path(LEDGER_FILE)
    path.parent.mkdir(mode=0o700)
    with Ledger.create(
        path, files.state.signing_key(), silo=files.silo, federation=files.plan.id, timestamp=utc_now()
    ) as ledger:
        ledger.note_plan(files.terms, timestamp=utc_now())
