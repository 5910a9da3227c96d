"""A federation of a few silos with random unit features instead of images: everything else is real.

For tests of what comes after encoding. The path from images is tested with the embedded CLIP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from cachefl_secure.cache.features import FeatureSet
from cachefl_secure.cache.model import CacheModel, cache_digest, cache_to_bytes
from cachefl_secure.cache.origin import CacheOrigin
from cachefl_secure.federation.calibration import PrivacyChoices, Sizes
from cachefl_secure.federation.clip_source import ClipSource
from cachefl_secure.federation.coordinator_files import INVITE_FILE, CoordinatorFiles
from cachefl_secure.federation.enrolment import write_invite
from cachefl_secure.federation.grid_choices import GridChoices
from cachefl_secure.federation.joining import Features, JoinChoices, Joined, establish_silo
from cachefl_secure.federation.one_release import StatisticsChoices
from cachefl_secure.federation.state_dir import StateDir
from cachefl_secure.names import Digest, SiloId
from cachefl_secure.plan import CachePlan, EncoderPlan, FederationPlan, SecureSumPlan, Trained
from cachefl_secure.privacy_plan import GridPlan, PrivacyPlan, StatisticsPlan
from cachefl_secure.protocol.parameters import RoundParameters
from cachefl_secure.protocol.vectors import EncodedUpdate, Unmasked
from cachefl_secure.server_plan import FEDAVG, ServerPlan
from cachefl_secure.transport.engines import check_engine, prepare_coordinator

CLASSES, KEYS_A_CLASS, FEATURE_DIM = 4, 2, 16


@dataclass(frozen=True)
class SmallFederation:
    """Directories of a coordinator and of silos that were admitted."""

    coordinator: Path
    silos: dict[SiloId, Path]

    @property
    def plan(self) -> FederationPlan:
        return CoordinatorFiles.open(self.coordinator).plan


def random_features(number: int, seed: int) -> FeatureSet:
    generator = torch.Generator().manual_seed(seed)
    features = functional.normalize(torch.randn(number, FEATURE_DIM, generator=generator), dim=1)
    return FeatureSet(features, torch.randint(0, CLASSES, (number,), generator=generator))


def random_cache(seed: int = 0) -> CacheModel:
    generator = torch.Generator().manual_seed(seed)
    rows = functional.normalize(
        torch.randn(CLASSES * (KEYS_A_CLASS + 1), FEATURE_DIM, generator=generator), dim=1
    )
    labels = torch.arange(CLASSES).repeat_interleave(KEYS_A_CLASS)
    origin = CacheOrigin("features", "random numbers", "apache-2.0", "ab" * 32)
    return CacheModel(rows[CLASSES:], labels, rows[:CLASSES], 10.0, 5.0, 10.0, origin)


def found(
    root: Path,
    *,
    records: Sequence[int] = (12, 20, 9, 15, 11),
    privacy: PrivacyPlan | None = None,
    colluders: int = 1,
    epsilon_cap: float | None = None,
    engine: str = "",
    trained: Trained = "keys",
    server: ServerPlan = FEDAVG,
) -> SmallFederation:
    """A coordinator and one silo for each number of records, all admitted, no round yet."""
    coordinator = found_coordinator(
        root / "coordinator",
        privacy=privacy,
        colluders=colluders,
        engine=engine,
        trained=trained,
        server=server,
    )
    silos: dict[SiloId, Path] = {}
    for index, number in enumerate(records, 1):
        silo = SiloId(f"silo-{index}")
        silos[silo] = join_with_random_features(
            root / silo, coordinator, silo, number, seed=index, epsilon_cap=epsilon_cap
        )
    files = CoordinatorFiles.open(coordinator)
    files.admit(files.candidates([path / "join-request.toml" for path in silos.values()]))
    return SmallFederation(coordinator, silos)


def found_coordinator(
    root: Path,
    *,
    privacy: PrivacyPlan | None = None,
    colluders: int = 1,
    engine: str = "",
    trained: Trained = "keys",
    server: ServerPlan = FEDAVG,
    alpha_beta: tuple[float, float] = (10.0, 5.0),
) -> Path:
    state, model = StateDir.create(root), random_cache()
    model = replace(model, alpha=alpha_beta[0], beta=alpha_beta[1])
    plan = FederationPlan(
        federation_id="0123456789abcdef0123456789abcdef",
        name="small",
        coordinator_public_key=state.signing_key().public_key,
        classes=tuple(f"class {number}" for number in range(CLASSES)),
        encoder=EncoderPlan(
            model="local-dir",
            weights_digest="0" * 64,
            preprocessing_digest="1" * 64,
            feature_dim=FEATURE_DIM,
            templates=("a {}",),
        ),
        cache=CachePlan(
            images_per_class=KEYS_A_CLASS,
            alpha=model.alpha,
            beta=model.beta,
            logit_scale=model.logit_scale,
            trained=trained,
            initial_digest=cache_digest(model),
        ),
        privacy=privacy or small_privacy(trained=trained),
        secure_sum=SecureSumPlan(colluders=colluders),
        server=server,
    )
    state.write("models/0000.safetensors", cache_to_bytes(model))
    state.write(INVITE_FILE, write_invite(plan, state.signing_key(), engine=engine))
    state.finish()
    if engine and not engine.startswith("nvflare"):
        check_engine(engine, founding=True)
        prepare_coordinator(root)
    return root


def small_privacy(choices: PrivacyChoices | None = None, trained: Trained = "keys") -> PrivacyPlan:
    """Calibrated for this federation: ``local`` at epsilon 8 unless chosen otherwise."""
    rows = CLASSES * (KEYS_A_CLASS if trained == "keys" else 1)
    sizes = Sizes(trained_rows=rows, feature_dim=FEATURE_DIM, cohort_size=5, honest_survivors=2)
    return (choices or PrivacyChoices(mechanism="local", rounds=4, expected_records=15)).plan(sizes)


def one_release(choices: StatisticsChoices | None = None) -> StatisticsPlan:
    """The same for a release of statistics, at an aggregate epsilon of 2 unless chosen otherwise."""
    return (choices or StatisticsChoices(expected_records=15)).plan(
        number_of_classes=CLASSES, feature_dim=FEATURE_DIM, honest_survivors=2
    )


def over_grid(choices: GridChoices | None = None) -> GridPlan:
    """The same for a grid over alpha and beta, at an aggregate epsilon of 1 unless chosen otherwise."""
    return (choices or GridChoices(expected_records=20)).plan(honest_survivors=2)


def join_with_random_features(
    root: Path, coordinator: Path, silo: SiloId, number: int, *, seed: int, epsilon_cap: float | None = None
) -> Path:
    """The silo's directory; see ``joined_with_random_features``."""
    joined_with_random_features(root, coordinator, silo, number, seed=seed, epsilon_cap=epsilon_cap)
    return root


def joined_with_random_features(
    root: Path,
    coordinator: Path,
    silo: SiloId,
    number: int,
    *,
    seed: int,
    epsilon_cap: float | None = None,
    ledger: Path | None = None,
) -> Joined:
    """The same ``seed`` and ``number`` are the same records."""
    records = random_features(number, seed)
    digests = tuple(Digest(f"{seed:02x}{index:062x}") for index in range(number))
    choices = JoinChoices(
        name=silo,
        images=root,
        clip=ClipSource("local-dir", "", root),
        epsilon_cap=epsilon_cap,
        epsilon_cap_aggregate=epsilon_cap,
        ledger=ledger,
        not_private=True,
    )
    invite = (coordinator / INVITE_FILE).read_bytes()
    return establish_silo(root, invite, silo, Features(records, Digest("f" * 64), digests), choices)


def all_entries(update: Unmasked, parameters: RoundParameters) -> EncodedUpdate:
    """What a silo is about to mask, read at once."""
    words, counters = np.empty(parameters.dimension, parameters.word), update.counters.copy()
    counters[0] += update.entries_from(0)(words)
    return EncodedUpdate(words, counters, update.others)
