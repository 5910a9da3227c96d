"""CacheFL by the product's own code: what rounds do to the cache, without the masks, which cancel exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from cachefl_secure.cache.features import FeatureSet
from cachefl_secure.cache.initial import initial_cache
from cachefl_secure.cache.model import CacheModel, add_update, logits
from cachefl_secure.federation.calibration import MechanismName, PrivacyChoices, Sizes, recalibrated
from cachefl_secure.plan import CachePlan, EncoderPlan, FederationPlan, SecureSumPlan
from cachefl_secure.privacy.mechanism import step_mechanism
from cachefl_secure.privacy.noise import RandomStreams
from cachefl_secure.privacy.training import change_of_keys, train_privately
from cachefl_secure.privacy_plan import PrivacyPlan
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
    steps_per_round: int = 1
    sampling_rate: float = 1.0
    clip_norm: float = 0.1
    learning_rate: float = 8.0


OPTIONS = (
    Steps(),
    Steps(steps_per_round=20, sampling_rate=0.1, learning_rate=4.0),
    Steps(steps_per_round=20, sampling_rate=0.1, learning_rate=2.0, alpha=30.0),
)
"""Options of ``init``, tried on validation records: many short local steps on a tenth of the records, and alpha."""
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
    model = start(cell.task, steps.alpha, steps.beta)
    return _outcome(cell, model, section(cell, "none", math.inf, steps))


def private(cell: Cell, mechanism: MechanismName, epsilon: float) -> Outcome:
    """The product's defaults, calibrated for an epsilon after all rounds: aggregate with distributed, local with local."""
    return _outcome(cell, start(cell.task), section(cell, mechanism, epsilon, Steps()))


def alone(cell: Cell) -> Outcome:
    """Local only: every silo trains the public cache on its own records, and shares nothing."""
    steps = OPTIONS[LOCAL_ONLY]
    model = start(cell.task, steps.alpha, steps.beta)
    privacy = section(cell, "none", math.inf, steps)
    trained = [train_together(model, [records], privacy, cell.seed) for records in cell.silos if len(records)]
    return Outcome(tuple(map(_scores, trained)), Traffic(down=start_bytes(model)))


def section(cell: Cell, mechanism: MechanismName, epsilon: float, steps: Steps) -> PrivacyPlan:
    """The privacy section that ``init`` would write for these choices. Its local epsilon is not capped."""
    draft = PrivacyChoices(
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
    ).draft()
    if mechanism == "none":
        return draft
    task = cell.task
    sizes = Sizes(
        number_of_keys=len(task.classes) * task.keys_per_class,
        feature_dim=task.feature_dim,
        cohort_size=len(cell.silos),
        honest_survivors=SECURE_SUM.honest_survivors,
    )
    return recalibrated(draft, epsilon, sizes)


def train_together(
    model: CacheModel, silos: Sequence[FeatureSet], privacy: PrivacyPlan, seed: int
) -> CacheModel:
    """The cache after all rounds: the mean of the silos' updates is added, as in a round. Noise repeats with the seed."""
    mechanism = step_mechanism(
        privacy,
        number_of_keys=model.number_of_keys,
        feature_dim=model.feature_dim,
        honest_survivors=SECURE_SUM.honest_survivors,
    )
    for number in range(privacy.rounds):
        updates = [
            change_of_keys(
                train_privately(model, records, mechanism, _streams(seed, number, silo)), mechanism
            )
            for silo, records in enumerate(silos)
        ]
        model = add_update(model, np.mean(updates, axis=0))
    return model


def _streams(*label: int) -> RandomStreams:
    return RandomStreams.repeatable(" ".join(map(str, label)).encode())


def _outcome(cell: Cell, model: CacheModel, privacy: PrivacyPlan) -> Outcome:
    traffic = traffic_of(cell, model, privacy)
    return Outcome((_scores(train_together(model, cell.silos, privacy, cell.seed)),), traffic)


def _scores(model: CacheModel) -> Scores:
    return partial(logits, model)


def traffic_of(cell: Cell, model: CacheModel, privacy: PrivacyPlan) -> Traffic:
    """Packed masked updates up, sums down, by the round's own parameters; keys and certificates are left out."""
    parameters = RoundParameters.derive(_plan(cell, privacy), len(cell.silos), len(cell.silos))
    up, down = parameters.input_bytes + parameters.counter_bytes, parameters.sum_bytes
    return Traffic(privacy.rounds * up, start_bytes(model) + privacy.rounds * down)


def _plan(cell: Cell, privacy: PrivacyPlan) -> FederationPlan:
    """A plan of these sizes; digests and key are blank, since nobody signs it."""
    task, blank = cell.task, "0" * 64
    return FederationPlan(
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
            alpha=ALPHA,
            beta=BETA,
            logit_scale=task.logit_scale,
            initial_digest=blank,
        ),
        privacy=privacy,
        secure_sum=SECURE_SUM,
    )
