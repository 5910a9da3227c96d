"""FedProx and synthetic replay: what they do, and that they are functions of what is charged anyway."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from cachefl_secure.cache.features import FeatureSet
from cachefl_secure.cache.heads import rank_one_gradient
from cachefl_secure.cache.model import with_keys
from cachefl_secure.plan import Trained
from cachefl_secure.privacy import optimizers
from cachefl_secure.privacy.descent import Descent
from cachefl_secure.privacy.mechanism import LocalMechanism, NoMechanism, StepMechanism
from cachefl_secure.privacy.noise import RandomStreams
from cachefl_secure.privacy.training import change_of_keys, train_privately
from cachefl_secure.privacy_plan import LocalPlan
from tests.privacy.examples import RESIDUAL, cache_of, local, records_of, without_noise
from tests.protocol.rounds import privacy_plan

START = cache_of()
REPLAYED = FeatureSet(START.cache_keys, START.key_labels)
ENTRIES: dict[Trained, dict[str, int]] = {"keys": {}, "class_residual": RESIDUAL}
PULLS = [(0.0, 0.0), (0.2, 0.0), (0.0, 0.7), (0.3, 0.5)]


def descent(trained: Trained, proximal: float, weight: float) -> Descent:
    replayed = REPLAYED if weight else None
    return Descent(trained=trained, proximal=proximal, replay_weight=weight, replayed=replayed)


def clipped_gradients(
    position: torch.Tensor, records: FeatureSet, trained: Trained, clip_norm: float
) -> torch.Tensor:
    """Sum over records, each by autograd in float64."""
    total = torch.zeros_like(position)
    for feature, label in zip(records.features.double(), records.labels, strict=True):
        moved = position.clone().requires_grad_()
        keys = START.cache_keys.double() + (moved if trained == "keys" else moved[START.key_labels])
        scores = START.logit_scale * START.text_classifier.double() @ feature
        near = torch.exp(-START.beta * (1 - keys @ feature))
        loss = cross_entropy((scores + START.alpha * START.cache_values.double().T @ near)[None], label[None])
        (gradient,) = torch.autograd.grad(loss, moved)
        total += gradient * min(1.0, clip_norm / (float(gradient.norm()) + 1e-6))
    return total


def slow_change(records: FeatureSet, mechanism: NoMechanism, how: Descent) -> NDArray[np.float64]:
    """The definition."""
    rows = 15 if how.trained == "keys" else 5
    x = torch.zeros(rows, 16, dtype=torch.float64)
    for _ in range(mechanism.steps):
        step = mechanism.step_length * clipped_gradients(x, records, how.trained, mechanism.clip_norm)
        if how.replayed is not None:
            mean = clipped_gradients(x, how.replayed, how.trained, mechanism.clip_norm) / len(how.replayed)
            step = step + how.replay_weight * mechanism.learning_rate / mechanism.clip_norm * mean
        x = (1 - how.proximal) * x - step
    return x.numpy().reshape(-1)


@pytest.mark.parametrize("trained", ["keys", "class_residual"])
@pytest.mark.parametrize(("proximal", "weight"), PULLS)
def test_the_steps_are_those_of_the_definition(trained: Trained, proximal: float, weight: float) -> None:
    mechanism = without_noise(local(**ENTRIES[trained], steps=4, learning_rate=2.0, expected_records=20))
    how = descent(trained, proximal, weight)
    got = change_of_keys(train_privately(START, records_of(20), mechanism, descent=how), mechanism)
    expected = slow_change(records_of(20), mechanism, how)
    assert np.linalg.norm(got - expected) < 1e-3 * np.linalg.norm(
        expected
    )  # float32 beside float64, four steps long
    if proximal or weight:
        plain = slow_change(records_of(20), mechanism, descent(trained, 0.0, 0.0))
        assert np.linalg.norm(expected - plain) > 0.02 * np.linalg.norm(plain)


def released_from_the_sums_alone(
    sums: list[NDArray[np.int64]], mechanism: LocalMechanism, how: Descent
) -> NDArray[np.float64]:
    """What anybody could compute who saw the noised sums, as the accounting assumes; no record comes in."""
    value = mechanism.step_length * mechanism.integer_value
    total, public = np.zeros(sums[0].shape), np.zeros(sums[0].shape)
    start = START.cache_keys
    for noised in sums:
        move = torch.from_numpy(-value * total + public)
        at = with_keys(
            START, (start.double() + (move if how.trained == "keys" else move[START.key_labels])).float()
        )
        pull = -how.proximal * move.numpy()
        if how.replayed is not None:
            a = rank_one_gradient(at, REPLAYED.features, REPLAYED.labels, how.trained).double()
            f = REPLAYED.features.double()
            factors = (mechanism.clip_norm / (a.norm(dim=1) * f.norm(dim=1) + 1e-6)).clamp(max=1.0)
            mean = ((a * factors[:, None]).T @ f / len(REPLAYED)).numpy()
            pull = pull - how.replay_weight * mechanism.learning_rate / mechanism.clip_norm * mean
        total, public = total + noised, public + pull
    return (-value * total + public).reshape(-1)


@pytest.mark.claim("C7")
@pytest.mark.parametrize("trained", ["keys", "class_residual"])
@pytest.mark.parametrize(("proximal", "weight"), PULLS)
def test_what_leaves_follows_from_the_noised_sums_and_public_numbers(
    trained: Trained, proximal: float, weight: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    sums: list[NDArray[np.int64]] = []
    genuine = optimizers.IntegerDPOptimizer.add_noise

    def recording(self: Any) -> None:
        before = 0 if self._total is None else self._total.clone().numpy().astype(np.int64)
        genuine(self)
        sums.append(self._total.numpy().astype(np.int64) - before)

    monkeypatch.setattr(optimizers.IntegerDPOptimizer, "add_noise", recording)
    mechanism = local(**ENTRIES[trained], steps=4, noise_multiplier=1.5, learning_rate=2.0)
    how = descent(trained, proximal, weight)
    released = change_of_keys(
        train_privately(START, records_of(30), mechanism, RandomStreams.repeatable(b"k"), descent=how),
        mechanism,
    )
    assert len(sums) == 4
    expected = released_from_the_sums_alone(sums, mechanism, how)
    assert np.linalg.norm(released - expected) < 1e-5 * np.linalg.norm(released)


@pytest.mark.claim("C7")
def test_the_noise_that_a_pull_takes_back_is_what_the_encoding_reckons_with() -> None:

    plan = privacy_plan(noise_multiplier=4.0, learning_rate=1.0, records=40)
    assert isinstance(plan, LocalPlan)
    section = msgspec.structs.replace(plan, steps_per_round=5, proximal=0.4)
    mechanism = local(noise_multiplier=4.0, learning_rate=1.0, steps=5)
    drawn = [
        change_of_keys(
            train_privately(START, records_of(0), mechanism, descent=descent("keys", 0.4, 0.0)), mechanism
        )
        for _ in range(30)
    ]
    assert float(np.std(drawn)) == pytest.approx(section.update_noise_std, rel=0.04)
    assert section.steps_of_noise == pytest.approx(sum(0.6 ** (2 * k) for k in range(5)))


def test_an_opacus_history_is_the_same_with_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training checks it against the mechanism itself; so it is enough that nothing is raised."""
    mechanisms: list[StepMechanism] = [local(steps=3), without_noise(local(steps=3))]
    for mechanism in mechanisms:
        train_privately(START, records_of(5), mechanism, descent=descent("keys", 0.1, 0.1))


@pytest.mark.parametrize(
    "wrong", [{"proximal": 1.0}, {"replay_weight": 0.1}, {"replayed": REPLAYED}, {"replay_weight": -1.0}]
)
def test_a_pull_without_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"proximal|replay"):
        Descent(**wrong)
