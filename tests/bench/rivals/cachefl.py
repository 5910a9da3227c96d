"""CacheFL by the product's own code: what rounds do to the cache, without the masks, which cancel exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import msgspec
import numpy as np

from cachefl_secure.cache.features import FeatureSet
from cachefl_secure.cache.heads import moved
from cachefl_secure.cache.initial import initial_cache
from cachefl_secure.cache.model import CacheModel, logits
from cachefl_secure.federation.calibration import MechanismName, PrivacyChoices, Sizes, recalibrated
from cachefl_secure.plan import CachePlan, EncoderPlan, FederationPlan, SecureSumPlan, Trained
from cachefl_secure.privacy.descent import descent_of
from cachefl_secure.privacy.mechanism import ReleaseMechanism, mechanism_of
from cachefl_secure.privacy.noise import RandomStreams
from cachefl_secure.privacy.training import change_of_keys, train_privately
from cachefl_secure.protocol.parameters import RoundParameters
from tests.bench.rivals.method import Choices, Outcome, Scores, Traffic
from tests.bench.rivals.task import Cell, Task

ALPHA, BETA, ROUNDS = 10.0, 3.0, 20
"""The product's defaults."""
DELTA = 1e-5
SECURE_SUM = SecureSumPlan(minimum_cohort=5, minimum_survivors=5, colluders=1)
"""As in the demo: five silos of which all stay and one may collude, so four shares of noise in every sum."""


@dataclass(frozen=True)
class Steps:
    """What an operator may choose of a plan without noise; these are the product's defaults."""

    alpha: float = ALPHA
    beta: float = BETA
    rounds: int = ROUNDS
    """More bytes, and no drift: see ``OPTIONS``."""
    steps_per_round: int = 1
    sampling_rate: float = 1.0
    clip_norm: float = 0.1
    learning_rate: float = 8.0


OPTIONS = (
    Steps(),
    Steps(steps_per_round=10, sampling_rate=0.1, learning_rate=6.0),
    Steps(steps_per_round=10, sampling_rate=0.1, learning_rate=3.0, alpha=30.0),
    Steps(rounds=100),
)
"""Options of ``init``, tried on validation records: ten local steps on a tenth of the records each, alpha, and five times
as many rounds of one step. One step a round is the same for every partition; several drift apart."""
LOCAL_ONLY = 1
"""The option of a silo alone, whatever validation says of the others."""
CHOICES: Choices = tuple({"option": number} for number in range(len(OPTIONS)))


def start(task: Task, alpha: float = ALPHA, beta: float = BETA) -> CacheModel:
    """The public cache of round 0."""
    return initial_cache(
        task.public,
        task.text_classifier,
        images_per_class=task.keys_per_class,
        alpha=alpha,
        beta=beta,
        logit_scale=task.logit_scale,
    )


def start_bytes(model: CacheModel) -> int:
    """float32 cache keys and text classifier: what a silo gets before round 1."""
    return 4 * (model.cache_keys.numel() + model.text_classifier.numel())


def without_noise(cell: Cell, option: float = 0) -> Outcome:
    """NOT PRIVATE. One of ``OPTIONS``."""
    steps = OPTIONS[int(option)]
    return _outcome(cell, plan_of(cell, "none", math.inf, steps), steps)


def private(cell: Cell, mechanism: MechanismName, epsilon: float, trained: Trained = "keys") -> Outcome:
    """The product's defaults, calibrated for an epsilon after all rounds: aggregate with distributed, local with local."""
    return _outcome(cell, plan_of(cell, mechanism, epsilon, Steps(), trained), Steps())


def alone(cell: Cell) -> Outcome:
    """Local only: every silo trains the public cache on its own records, and shares nothing."""
    steps = OPTIONS[LOCAL_ONLY]
    model = start(cell.task, steps.alpha, steps.beta)
    plan = plan_of(cell, "none", math.inf, steps)
    models = [train_together(model, [records], plan, cell.seed) for records in cell.silos if len(records)]
    return Outcome(tuple(map(_scores, models)), Traffic(down=start_bytes(model)))


def train_together(
    initial: CacheModel, silos: Sequence[FeatureSet], plan: FederationPlan, seed: int
) -> CacheModel:
    """``federation.comparison.train_together`` to the end, with noise that repeats with the seed."""
    mechanism, descent = mechanism_of(plan), descent_of(plan, lambda: initial)
    if isinstance(mechanism, ReleaseMechanism):
        raise ValueError("a plan of one release trains nothing")
    model = initial
    for number in range(plan.privacy.rounds):
        updates = [
            train_privately(model, records, mechanism, _streams(seed, number, silo), descent=descent)
            for silo, records in enumerate(silos)
        ]
        mean = np.mean([change_of_keys(update, mechanism) for update in updates], axis=0)
        model = moved(model, mean, plan.cache.trained)
    return model


def _streams(*label: int) -> RandomStreams:
    return RandomStreams.repeatable(" ".join(map(str, label)).encode())


def _outcome(cell: Cell, plan: FederationPlan, steps: Steps) -> Outcome:
    model = start(cell.task, steps.alpha, steps.beta)
    trained = train_together(model, cell.silos, plan, cell.seed)
    return Outcome((_scores(trained),), traffic_of(plan, start_bytes(model), len(cell.silos)))


def _scores(model: CacheModel) -> Scores:
    return partial(logits, model)


def traffic_of(plan: FederationPlan, start_of: int, silos: int) -> Traffic:
    """Packed masked updates up, sums down, by the round's own parameters; keys and certificates are left out."""
    parameters, rounds = RoundParameters.derive(plan, silos, silos), plan.privacy.rounds
    up = parameters.input_bytes + parameters.counter_bytes
    return Traffic(rounds * up, start_of + rounds * parameters.sum_bytes)


def plan_of(
    cell: Cell, mechanism: MechanismName, epsilon: float, steps: Steps, trained: Trained = "keys"
) -> FederationPlan:
    """The plan that ``init`` would write for these choices, its local epsilon not capped.

    Digests and key are blank, since nobody signs it.
    """
    task, blank = cell.task, "0" * 64
    draft = _choices(cell, mechanism, epsilon, steps).draft()
    plan = FederationPlan(
        federation_id=blank[:32],
        name="bench",
        coordinator_public_key=blank,
        classes=task.classes,
        encoder=EncoderPlan(
            model="local-dir",
            weights_digest=blank,
            preprocessing_digest=blank,
            feature_dim=task.feature_dim,
            templates=("{}",),
        ),
        cache=CachePlan(
            images_per_class=task.keys_per_class,
            alpha=steps.alpha,
            beta=steps.beta,
            logit_scale=task.logit_scale,
            trained=trained,
            initial_digest=blank,
        ),
        privacy=draft,
        secure_sum=SECURE_SUM,
    )
    if mechanism == "none":
        return plan
    calibrated = recalibrated(draft, epsilon, Sizes.of(plan, len(cell.silos)))
    return msgspec.structs.replace(plan, privacy=calibrated)


def _choices(cell: Cell, mechanism: MechanismName, epsilon: float, steps: Steps) -> PrivacyChoices:
    return PrivacyChoices(
        mechanism=mechanism,
        epsilon=None if math.isinf(epsilon) else epsilon,
        epsilon_local=1e4,
        delta=DELTA,
        rounds=steps.rounds,
        sampling_rate=steps.sampling_rate,
        steps_per_round=steps.steps_per_round,
        clip_norm=steps.clip_norm,
        expected_records=cell.expected_records,
        learning_rate=steps.learning_rate if mechanism == "none" else None,
    )
