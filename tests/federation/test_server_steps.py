"""The server's optimizers against slow versions, and whole rounds in which every party recomputes them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from cachefl_secure.cache.model import cache_digest
from cachefl_secure.federation.calibration import NOISE_ON_A_KEY, PrivacyChoices, Sizes, adam_rate
from cachefl_secure.federation.inspection import open_chain
from cachefl_secure.federation.server_steps import Moments, server_step
from cachefl_secure.server_plan import FEDAVG, AdamServer, MomentumServer, ServerPlan
from tests.driven import run
from tests.small_federation import found, small_privacy

SERVERS: tuple[ServerPlan, ...] = (FEDAVG, MomentumServer(momentum=0.7, rate=0.4), AdamServer(rate=0.05))


def slow_changes(section: ServerPlan, means: list[list[float]]) -> list[list[float]]:
    """One number at a time, as the papers write it."""
    changes = [[0.0] * len(means[0]) for _ in means]
    for entry in range(len(means[0])):
        m, v = 0.0, getattr(section, "epsilon", 0.0) ** 2
        for number, mean in enumerate(means):
            match section:
                case MomentumServer():
                    m = section.momentum * m + mean[entry]
                    changes[number][entry] = section.rate * m
                case AdamServer():
                    m = section.beta1 * m + (1 - section.beta1) * mean[entry]
                    v = section.beta2 * v + (1 - section.beta2) * mean[entry] ** 2
                    changes[number][entry] = section.rate * m / (math.sqrt(v) + section.epsilon)
                case _:
                    changes[number][entry] = mean[entry]
    return changes


@pytest.mark.parametrize("section", SERVERS, ids=lambda s: type(s).__name__)
def test_every_optimizer_is_its_paper_s_number_by_number(section: ServerPlan) -> None:
    means = np.random.default_rng(0).normal(size=(6, 40)) * 10.0 ** np.arange(-4, 2)[:, None]
    moments: Moments = ()
    for mean, expected in zip(means, slow_changes(section, means.tolist()), strict=True):
        before = mean.copy()
        change, moments = server_step(section, moments, mean)
        assert np.allclose(change, expected, rtol=1e-13, atol=0)
        assert np.array_equal(mean, before)


@pytest.mark.claim("C20")
@pytest.mark.parametrize("section", SERVERS[1:], ids=lambda s: type(s).__name__)
def test_all_parties_recompute_the_same_steps_also_after_a_restart(
    tmp_path: Path, section: ServerPlan
) -> None:
    privacy = small_privacy(PrivacyChoices(rounds=4, expected_records=15))
    federation = found(tmp_path, privacy=privacy, server=section)
    run(federation, 2)
    run(federation, 1)  # every party starts anew: what the optimizer remembers must come back from the sums
    chains = [open_chain(path) for path in (federation.coordinator, *federation.silos.values())]
    assert {chain.position.round for chain in chains} == {3}
    assert len({cache_digest(chain.model()) for chain in chains}) == 1
    *_, (_, last) = chains[0].models()
    assert cache_digest(last) == chains[0].position.cache_digest
    means = []
    for held in chains[0].verified:
        means.append((chains[0]._opened(held.record).values / len(held.record.survivors)).tolist())
    expected = np.sum(slow_changes(section, means), axis=0)
    moved = (last.cache_keys.double() - chains[0].initial_model().cache_keys.double()).numpy().reshape(-1)
    assert np.abs(moved - expected).max() < 1e-6
    assert np.abs(moved - np.sum(means, axis=0)).max() > 1e-3  # and it is no plain mean


def test_step_lengths_and_rates_keep_the_noise_of_all_rounds_in_its_bounds() -> None:
    """By drawing it: nothing but noise for twenty rounds, through the optimizer."""
    rng, size = np.random.default_rng(3), {"trained_rows": 40, "feature_dim": 64}
    for section in (*SERVERS[:2], AdamServer(rate=adam_rate(20, 64), epsilon=1e-9)):
        sizes = Sizes(**size, cohort_size=5, honest_survivors=4, server=section)
        privacy = PrivacyChoices(epsilon=1.0).plan(sizes)
        total, moments = np.zeros(64 * 300), Moments()
        for _ in range(20):
            noise = rng.normal(size=(5, total.size)).mean(axis=0)
            scale = privacy.step_length * privacy.noise_multiplier * privacy.clip_norm
            change, moments = server_step(section, moments, scale * noise)
            total += change
        norm = float(np.linalg.norm(total.reshape(300, 64), axis=1).mean())
        assert 0.6 * NOISE_ON_A_KEY < norm < 1.2 * NOISE_ON_A_KEY
