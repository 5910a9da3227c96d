"""One release beside rounds of training: calibrated for both epsilons, compared on the same images, recommended by figures."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import normalize

from cachefl_secure.cache.evaluate import closed_form_alone, evaluate
from cachefl_secure.cache.features import FeatureSet
from cachefl_secure.cache.model import CacheModel
from cachefl_secure.errors import ConfigError
from cachefl_secure.federation.comparison import Comparison, GridPoint, best_of
from cachefl_secure.federation.one_release import StatisticsChoices
from cachefl_secure.federation.release_comparison import (
    ReleasePoint,
    release_point,
    released_together,
    statistics_section,
    without_noise,
)
from cachefl_secure.privacy.accounting import Cost, cost_of
from cachefl_secure.privacy.mechanism import statistics_mechanism
from cachefl_secure.privacy_plan import StatisticsPlan
from cachefl_secure_cli.commands.compare import _advice
from tests.small_federation import CLASSES, FEATURE_DIM, random_cache, small_privacy

SHAPE = {"number_of_classes": 10, "feature_dim": 64}


def cost(section: StatisticsPlan, honest_survivors: int) -> Cost:
    mechanism = statistics_mechanism(section, **SHAPE, honest_survivors=honest_survivors)
    return cost_of([(mechanism, 1)], section.delta)


@pytest.mark.claim("C8")
@pytest.mark.parametrize("epsilon", [0.5, 2.0, 8.0])
@pytest.mark.parametrize("epsilon_local", [3.0, 40.0])
def test_noise_is_just_enough_for_both_epsilons(epsilon: float, epsilon_local: float) -> None:
    choices = StatisticsChoices(epsilon=epsilon, epsilon_local=epsilon_local)
    section = choices.plan(**SHAPE, honest_survivors=4)
    spent = cost(section, 4)
    assert spent.within(Cost(epsilon_local, epsilon))
    assert spent.local <= section.epsilon_local <= epsilon_local
    tight = spent.aggregate > 0.99 * epsilon or spent.local > 0.99 * epsilon_local
    assert tight


@pytest.mark.parametrize(
    ("choices", "field"),
    [
        (StatisticsChoices(epsilon=51.0), "epsilon"),
        (StatisticsChoices(epsilon=0.0), "epsilon"),
        (StatisticsChoices(expected_records=0), "expected_records"),
        (StatisticsChoices(gamma=-1.0), "gamma"),
        (StatisticsChoices(regulariser=0.0), "regulariser"),
        (StatisticsChoices(delta=0.1), "delta"),
    ],
)
def test_a_choice_out_of_range_names_its_field(choices: StatisticsChoices, field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        choices.draft()
    assert caught.value.field == field


@pytest.mark.parametrize("field", ["epsilon", "epsilon_local"])
def test_more_noise_than_there_are_integers_for_is_refused_by_the_choice_that_asks_for_it(field: str) -> None:
    choices = replace(StatisticsChoices(), **{field: 0.01})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="more noise than a plan may hold") as caught:
        choices.plan(**SHAPE, honest_survivors=1)
    assert caught.value.field == field


def silos_and_test() -> tuple[CacheModel, list[FeatureSet], FeatureSet]:
    """Records around centres of which the cache knows nothing."""

    def around(number: int, seed: int) -> FeatureSet:
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(0, CLASSES, (number,), generator=generator)
        centres = torch.eye(FEATURE_DIM)[:CLASSES] + 0.5
        noise = 0.1 * torch.randn(number, FEATURE_DIM, generator=generator)
        return FeatureSet(normalize(centres[labels] + noise, dim=1), labels)

    return random_cache(), [around(150, seed) for seed in range(4)], around(400, 99)


def test_a_release_without_noise_learns_what_the_records_say_and_one_at_a_small_epsilon_less() -> None:
    model, silos, test = silos_and_test()
    section = statistics_section(small_privacy())
    exact = without_noise(model, silos, test, section)
    assert exact.alone > 0.95
    assert math.isinf(exact.epsilon)
    noised = [release_point(model, silos, test, section, 0.2, 3).alone for _ in range(3)]
    assert sum(noised) / 3 < exact.alone - 0.05
    much = release_point(model, silos, test, section, 30.0, 3)
    assert much.alone > 0.9
    assert much.epsilon_local > 30.0


def test_the_head_alone_is_the_fused_model_with_all_weight_on_it() -> None:
    model, silos, test = silos_and_test()
    section = StatisticsChoices(epsilon=8.0, epsilon_local=40.0).plan(
        number_of_classes=CLASSES, feature_dim=FEATURE_DIM, honest_survivors=3
    )
    after = released_together(model, silos, section, 3)
    assert after.sums is not None
    loud = replace(after, sums=replace(after.sums, gamma=1e6))
    assert evaluate(loud, test).top1 == pytest.approx(closed_form_alone(after, test).top1, abs=0.01)


def comparison(trained: float, released: float, images: int) -> Comparison:
    point = GridPoint(2.0, 4.0, 1.0, trained, (0.5,))
    releases = (ReleasePoint(2.0, 4.0, released, 0.1), ReleasePoint(math.inf, math.inf, 0.5, 0.5))
    return Comparison(20, 1e-5, "aggregate", 0.5, 0.5, (0.6, 0.9), (point,), releases, images)


def test_the_closed_form_is_recommended_where_its_figures_are_ahead_and_nowhere_else() -> None:
    ahead = comparison(0.70, 0.80, 1000)
    ((epsilon, gain),) = best_of(ahead)
    assert epsilon == 2.0
    assert gain == pytest.approx(0.1)
    assert "epsilon 2" in _advice(ahead)
    assert "10.0 points" in _advice(ahead)
    assert "--mechanism statistics" in _advice(ahead)
    for behind in (comparison(0.80, 0.70, 1000), comparison(0.70, 0.77, 100)):  # worse, or by chance
        assert not best_of(behind)
        assert "--mechanism statistics" not in _advice(behind)
    exact = replace(ahead.releases[1], alone=0.99)  # rounds without noise reach 0.9
    only_exact = replace(comparison(0.80, 0.70, 1000), releases=(ahead.releases[0], exact))
    only_exact = replace(only_exact, grid=(replace(ahead.grid[0], together=0.85),))
    assert [epsilon for epsilon, _ in best_of(only_exact)] == [math.inf]
    assert "9.0 points" in _advice(only_exact)
    assert "--mechanism statistics" not in _advice(only_exact)
