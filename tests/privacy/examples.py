"""Small caches, records, mechanisms and ledgers for the privacy tests. All seeded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import normalize

from cachefl_secure.cache.features import FeatureSet
from cachefl_secure.cache.model import CacheModel
from cachefl_secure.crypto.sign import SigningKey
from cachefl_secure.names import Digest, FederationId, SiloId
from cachefl_secure.privacy.accounting import Cost
from cachefl_secure.privacy.ledger import Ledger, Spend
from cachefl_secure.privacy.mechanism import (
    DistributedMechanism,
    GridMechanism,
    LocalMechanism,
    Mechanism,
    NoMechanism,
    StatisticsMechanism,
)
from cachefl_secure.privacy.terms import Terms

SIGNING_KEY = SigningKey(bytes(range(32)))
PLAN = Digest("a" * 64)
CACHE = Digest("c" * 64)
DATA = Digest("d" * 64)
UPDATE = Digest("e" * 64)
TRANSCRIPT = Digest("f" * 64)
DELTA = 1e-5
LATTICE = {"feature_bits": 7, "gradient_bits": 7, "dimension": 240}  # of cache_of()
RESIDUAL = {"feature_bits": 7, "gradient_bits": 7, "dimension": 80}  # one row for each of its classes


def cache_of(classes: int = 5, images: int = 3, dim: int = 16, seed: int = 0) -> CacheModel:
    generator = torch.Generator().manual_seed(seed)
    return CacheModel(
        cache_keys=normalize(torch.randn(classes * images, dim, generator=generator), dim=1),
        key_labels=torch.arange(classes).repeat_interleave(images),
        text_classifier=normalize(torch.randn(classes, dim, generator=generator), dim=1),
        alpha=16.0,
        beta=5.5,
        logit_scale=20.0,
    )


def records_of(count: int, classes: int = 5, dim: int = 16, seed: int = 1) -> FeatureSet:
    """The first ``count`` of an endless list, so that a longer set begins with a shorter one."""
    generator = torch.Generator().manual_seed(seed)
    features = normalize(torch.randn(2048, dim, generator=generator), dim=1)[:count]
    return FeatureSet(features, torch.randint(0, classes, (2048,), generator=generator)[:count])


def local(**changes: Any) -> LocalMechanism:
    """One full-batch step for an epsilon of 2 after 20 rounds, unless changed."""
    public: dict[str, Any] = {
        "sampling_rate": 1.0,
        "clip_norm": 0.1,
        "noise_multiplier": 8.9211,
        "steps": 1,
        "expected_records": 40,
        "learning_rate": 0.5,
        **LATTICE,
    }
    return LocalMechanism(**(public | changes))


def distributed(**changes: Any) -> DistributedMechanism:
    """One full-batch step for an aggregate epsilon of 2 after 20 rounds with four honest silos, unless changed."""
    public: dict[str, Any] = {
        "sampling_rate": 1.0,
        "clip_norm": 0.1,
        "noise_multiplier": 4.4606,
        "honest_survivors": 4,
        "expected_records": 40,
        "learning_rate": 0.5,
        **LATTICE,
    }
    return DistributedMechanism(**(public | changes))


def statistics(**changes: Any) -> StatisticsMechanism:
    usual: dict[str, Any] = {
        "noise_multiplier": 4.0,
        "honest_survivors": 4,
        "feature_bits": 9,
        "dimension": 16 * 21,
        "expected_records": 40,
    }
    return StatisticsMechanism(**(usual | changes))


def grid(**changes: Any) -> GridMechanism:
    usual: dict[str, Any] = {
        "noise_multiplier": 4.0,
        "honest_survivors": 4,
        "unit_bits": 16,
        "dimension": 12,
        "expected_records": 40,
    }
    return GridMechanism(**(usual | changes))


def without_noise(mechanism: LocalMechanism | DistributedMechanism) -> NoMechanism:
    return NoMechanism(
        sampling_rate=mechanism.sampling_rate,
        clip_norm=mechanism.clip_norm,
        steps=mechanism.steps,
        expected_records=mechanism.expected_records,
        learning_rate=mechanism.learning_rate,
    )


def terms(mechanism: Mechanism | None = None, **changes: Any) -> Terms:
    """One colluder among as few survivors as the mechanism allows, order 10, caps of 2 and 2, unless changed."""
    mechanism = mechanism or local()
    usual: dict[str, Any] = {
        "plan_digest": PLAN,
        "mechanism": mechanism,
        "delta": DELTA,
        "survivors": getattr(mechanism, "honest_survivors", 4) + 1,
        "colluders": 1,
        "rdp_order": 10,
        "caps": Cost(2.0, 2.0),
    }
    return Terms(**(usual | changes))


def new_ledger(path: Path) -> Ledger:
    return Ledger.create(path, SIGNING_KEY, silo=SiloId("clinic"), federation=FederationId("0" * 32))


def spend(ledger: Ledger, round_number: int, mechanism: Mechanism | None = None, **changes: Any) -> Spend:
    """Reserves a round with the usual digests and terms, unless changed; ``cap`` is for both views."""
    usual: dict[str, Any] = {"attempt": 1, "cache_digest": CACHE, "data_commitment": DATA}
    if "cap" in changes:
        changes["caps"] = Cost(*2 * (changes.pop("cap"),))
    agreed = {name: changes.pop(name) for name in Terms.__slots__ if name in changes}
    return ledger.reserve(terms(mechanism, **agreed), round=round_number, **(usual | changes))
