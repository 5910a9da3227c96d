"""A federation in one process for tests: fixed identities and secrets, and a round with hooks for faults."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import numpy as np

from cachefl_secure.crypto.sign import SigningKey
from cachefl_secure.errors import PeerError
from cachefl_secure.names import Digest, FederationId, PublicKeyHex, SiloId
from cachefl_secure.plan import CachePlan, EncoderPlan, FederationPlan, SecureSumPlan
from cachefl_secure.privacy_plan import DistributedPlan, LocalPlan, NoPrivacyPlan, PrivacyPlan
from cachefl_secure.protocol.coordinator import CoordinatorSession
from cachefl_secure.protocol.graph import Ring
from cachefl_secure.protocol.messages import Manifest, MaskedInput, Member, Phase, Roster, roster_digest
from cachefl_secure.protocol.packing import unpack
from cachefl_secure.protocol.parameters import RoundParameters
from cachefl_secure.protocol.silo import SiloSession
from cachefl_secure.protocol.silo_secrets import (
    ChannelPrivateKey,
    MaskPrivateKey,
    SelfMaskSeed,
    ShareSeed,
    SiloSecrets,
)
from cachefl_secure.protocol.vectors import AggregateSum, EncodedUpdate, Words

LEDGER_HEAD = Digest("1e" * 32)


def fixed(text: str, length: int = 32) -> bytes:
    """Up to 32 bytes that only this text gives. A seed of a stream takes 28."""
    return hashlib.sha256(text.encode()).digest()[:length]


def fixed_secrets(tag: str) -> SiloSecrets:
    return SiloSecrets(
        MaskPrivateKey(fixed(f"{tag} mask key")),
        ChannelPrivateKey(fixed(f"{tag} channel key")),
        SelfMaskSeed(fixed(f"{tag} self mask")),
        ShareSeed(fixed(f"{tag} shares")),
    )


def a_plan(
    *,
    colluders: int = 0,
    minimum_cohort: int = 3,
    minimum_survivors: int = 3,
    privacy: PrivacyPlan | None = None,
) -> FederationPlan:
    return FederationPlan(
        federation_id="0f" * 16,
        name="test",
        coordinator_public_key=SigningKey(fixed("coordinator")).public_key,
        classes=("a", "b", "c"),
        encoder=EncoderPlan(
            model="embedded",
            weights_digest="00" * 32,
            preprocessing_digest="00" * 32,
            feature_dim=7,
            templates=("a {}.",),
        ),
        cache=CachePlan(
            images_per_class=2, alpha=16.0, beta=5.5, logit_scale=100.0, initial_digest="00" * 32
        ),
        privacy=privacy or privacy_plan(),
        secure_sum=SecureSumPlan(
            minimum_cohort=minimum_cohort, minimum_survivors=minimum_survivors, colluders=colluders
        ),
    )


def privacy_plan(
    *, noise_multiplier: float = 4.0, learning_rate: float = 1.0, records: int = 500
) -> PrivacyPlan:
    """The section of mechanism ``local``; of ``none`` without noise."""
    steps: dict[str, Any] = {
        "clip_norm": 0.1,
        "sampling_rate": 1.0,
        "steps_per_round": 1,
        "expected_records": records,
        "learning_rate": learning_rate,
        "rounds": 10,
        "delta": 1e-5,
    }
    if noise_multiplier == 0:
        return NoPrivacyPlan(**steps)
    return LocalPlan(**steps, noise_multiplier=noise_multiplier, epsilon_local=2.0, rdp_order=8)


def distributed_plan(
    *, noise_multiplier: float = 4.0, learning_rate: float = 1.0, records: int = 500
) -> DistributedPlan:
    return DistributedPlan(
        clip_norm=0.1,
        sampling_rate=1.0,
        expected_records=records,
        learning_rate=learning_rate,
        rounds=10,
        delta=1e-5,
        noise_multiplier=noise_multiplier,
        epsilon_local=4.0,
        epsilon_aggregate=2.0,
        rdp_order=8,
    )


def parameters_for(n: int, *, dimension: int, colluders: int = 0, bound: int = 100) -> RoundParameters:
    """Parameters with grid step 1 and integers up to ``bound`` + 1."""
    threshold = (n + colluders) // 2 + 1
    return RoundParameters(
        cohort_size=n,
        roster_size=n,
        colluders=colluders,
        threshold=threshold,
        minimum_survivors=max(threshold, 3, colluders + 2),
        dimension=dimension,
        clamp=float(bound),
        grid_step=1.0,
        vector_bits=(2 * n * (bound + 1)).bit_length(),
    )


@dataclass(frozen=True)
class Federation:
    """n silos, a roster, a manifest."""

    silos: tuple[SiloId, ...]
    identities: Mapping[str, SigningKey]
    roster: Roster
    manifest: Manifest
    parameters: RoundParameters

    @property
    def coordinator_key(self) -> PublicKeyHex:
        return self.identities["coordinator"].public_key

    def coordinator(self) -> CoordinatorSession:
        return CoordinatorSession(self.manifest, self.identities["coordinator"], self.roster, self.parameters)

    def silo(self, silo: SiloId, secrets: SiloSecrets | None = None) -> SiloSession:
        return SiloSession(
            self.manifest,
            silo,
            self.identities[silo],
            self.roster,
            self.coordinator_key,
            self.parameters,
            secrets or self.secrets(silo),
        )

    def secrets(self, silo: SiloId) -> SiloSecrets:
        return fixed_secrets(f"{silo} attempt {self.manifest.attempt}")

    def with_manifest(self, **changes: object) -> Federation:
        return replace(self, manifest=msgspec.structs.replace(self.manifest, **changes))


def federation(parameters: RoundParameters) -> Federation:
    silos = tuple(
        SiloId(f"silo-{i:0{max(3, len(str(parameters.cohort_size)))}d}")
        for i in range(1, parameters.cohort_size + 1)
    )
    identities = {name: SigningKey(fixed(name)) for name in (*silos, "coordinator")}
    roster = Roster(
        FederationId("0f" * 16),
        Digest("ab" * 32),
        1,
        tuple(Member(silo, identities[silo].public_key) for silo in silos),
    )
    manifest = Manifest(
        plan_digest=roster.plan_digest,
        roster_digest=roster_digest(roster),
        round=7,
        attempt=1,
        cohort=silos,
        cache_digest=Digest("cd" * 32),
        previous_record=Digest("ef" * 32),
    )
    return Federation(silos, identities, roster, manifest, parameters)


def random_updates(fed: Federation, rng_seed: int = 0) -> dict[SiloId, EncodedUpdate]:
    """Updates over the whole legal range, both ends included."""
    rng, parameters = np.random.default_rng(rng_seed), fed.parameters
    updates = {}
    for silo in fed.silos:
        integers = rng.integers(-parameters.entry_bound, parameters.entry_bound + 1, parameters.dimension)
        integers[0] = parameters.entry_bound  # all silos at the same end: the largest sum there is
        integers[-1] = -parameters.entry_bound
        counters = rng.integers(0, 2**64, parameters.counters, dtype=np.uint64)
        updates[silo] = EncodedUpdate(integers.astype(parameters.word), counters)
    return updates


Fault = Callable[[Phase, SiloId, bytes], bytes | None]
"""What becomes of a message on its way between the coordinator and a silo; None is lost."""


def no_fault(phase: Phase, silo: SiloId, message: bytes) -> bytes | None:
    return message


def lost(phase: Phase, *silos: SiloId) -> Fault:
    """These silos' messages are lost from ``phase`` on."""
    order = list(Phase)

    def fault(at: Phase, silo: SiloId, message: bytes) -> bytes | None:
        return None if silo in silos and order.index(at) >= order.index(phase) else message

    return fault


@dataclass
class Round:
    """A finished round: the sum, the sessions, all messages that the coordinator saw, and who refused what."""

    total: AggregateSum
    coordinator: CoordinatorSession
    silos: dict[SiloId, SiloSession]
    seen: dict[Phase, dict[SiloId, bytes]]
    refusals: dict[SiloId, PeerError] = field(default_factory=dict)


def run_round(
    fed: Federation,
    updates: Mapping[SiloId, EncodedUpdate],
    fault: Fault = no_fault,
    *,
    coordinator: CoordinatorSession | None = None,
) -> Round:
    """All phases, every message through ``fault``. A silo that refuses a message answers no more."""
    coordinator = coordinator or fed.coordinator()
    silos = {silo: fed.silo(silo) for silo in fed.silos}
    seen: dict[Phase, dict[SiloId, bytes]] = {}
    refusals: dict[SiloId, PeerError] = {}

    def ask(
        down: Phase, up: Phase, requests: Mapping[SiloId, bytes], step: Callable[[SiloId, bytes], bytes]
    ) -> dict[SiloId, bytes]:
        answers = {}
        for silo, request in requests.items():
            arrived = fault(down, silo, request)
            if arrived is None or silo in refusals:
                continue
            try:
                answer = fault(up, silo, step(silo, arrived))
            except PeerError as error:
                refusals[silo] = error
                continue
            if answer is not None:
                answers[silo] = answer
        seen[down], seen[up] = dict(requests), answers
        return answers

    manifest = coordinator.manifest_message()
    advertised = ask(
        Phase.MANIFEST,
        Phase.ADVERTISE,
        dict.fromkeys(fed.silos, manifest),
        lambda silo, _: silos[silo].advertise(),
    )
    key_lists = coordinator.on_advertisements(advertised)
    shared = ask(Phase.KEY_LIST, Phase.SHARE, key_lists, lambda silo, data: silos[silo].on_key_list(data))
    deliveries = coordinator.on_sealed_shares(shared)
    masked = ask(
        Phase.SHARE_DELIVERY,
        Phase.MASKED_INPUT,
        deliveries,
        lambda silo, data: silos[silo].on_share_delivery(data, updates[silo], LEDGER_HEAD),
    )
    survivor_sets = coordinator.on_masked_inputs(masked)
    statements = ask(
        Phase.SURVIVOR_SET,
        Phase.CERTIFY,
        survivor_sets,
        lambda silo, data: silos[silo].on_survivor_set(data),
    )
    certificates = coordinator.on_statements(statements)
    revealed = ask(
        Phase.CERTIFICATE,
        Phase.UNMASK,
        certificates,
        lambda silo, data: silos[silo].on_certificate(data),
    )
    return Round(coordinator.on_unmask_shares(revealed), coordinator, silos, seen, refusals)


def masked_words(masked: MaskedInput, parameters: RoundParameters) -> Words:
    """The words of a masked input, in [0, 2^vector_bits)."""
    return unpack(np.frombuffer(masked.words, np.uint8), parameters.dimension, parameters.vector_bits)


def integers(update: EncodedUpdate | AggregateSum) -> list[int]:
    """Ring words as signed Python integers, then the counters."""
    modulus = 2 ** (8 * update.words.itemsize)
    signed = [int(word) - modulus if word >= modulus // 2 else int(word) for word in update.words]
    return signed + [int(counter) for counter in update.counters]


def exact_sum(updates: Mapping[SiloId, EncodedUpdate], silos: tuple[SiloId, ...]) -> list[int]:
    """The true sum of signed integers, and of counters modulo 2^64, in plain Python."""
    rows = [integers(updates[silo]) for silo in silos]
    dimension = updates[silos[0]].words.size
    sums = [sum(column) for column in zip(*rows, strict=True)]
    return sums[:dimension] + [value % 2**64 for value in sums[dimension:]]


def on_a_ring(
    parameters: RoundParameters, degree: int, threshold: int, window_survivors: int
) -> RoundParameters:
    """The same on a ring far smaller than would be safe, so that a test can go through all cases."""
    return replace(parameters, ring=Ring(degree, threshold, window_survivors, 0))
