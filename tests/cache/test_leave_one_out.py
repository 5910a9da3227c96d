"""Alpha and beta by leave-one-out against a slow version that really builds every smaller cache."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from cachefl_secure.cache import leave_one_out
from cachefl_secure.cache.evaluate import evaluate
from cachefl_secure.cache.features import FeatureSet
from cachefl_secure.cache.leave_one_out import ALPHAS, BETAS, choose_alpha_beta
from cachefl_secure.cache.model import CacheModel, logits
from cachefl_secure.errors import ConfigError


def noisy_model(seed: int, *, text_noise: float, key_noise: float, images: int = 4) -> CacheModel:
    """Eight classes around directions of their own; how far text and keys are off decides who is to be trusted."""
    generator = torch.Generator().manual_seed(seed)
    means = functional.normalize(torch.randn(8, 12, generator=generator), dim=1)
    labels = torch.arange(8).repeat_interleave(images)
    keys = means[labels] + key_noise * torch.randn(len(labels), 12, generator=generator)
    text = means + text_noise * torch.randn(8, 12, generator=generator)
    return CacheModel(
        functional.normalize(keys, dim=1), labels, functional.normalize(text, dim=1), 1.0, 1.0, 5.0
    )


def slow_score(model: CacheModel, alpha: float, beta: float) -> tuple[int, float]:
    """(errors, mean loss) of every key under the cache without it."""
    errors, loss = 0, 0.0
    for row in range(model.number_of_keys):
        others = torch.arange(model.number_of_keys) != row
        smaller = replace(
            model,
            cache_keys=model.cache_keys[others],
            key_labels=model.key_labels[others],
            alpha=alpha,
            beta=beta,
        )
        scores = logits(smaller, model.cache_keys[row : row + 1].double())
        wanted = model.key_labels[row : row + 1]
        errors += int(scores.argmax(dim=1) != wanted)
        loss += float(functional.cross_entropy(scores, wanted))
    return errors, loss / model.number_of_keys


@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_best_of_the_grid_by_caches_that_really_lack_the_key(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leave_one_out, "_CHUNK_ENTRIES", 5 * 32)  # several chunks, the last one short
    model = noisy_model(seed, text_noise=0.5, key_noise=0.4)
    scores = {(alpha, beta): slow_score(model, alpha, beta) for alpha in ALPHAS[::3] for beta in BETAS[::3]}
    monkeypatch.setattr(leave_one_out, "ALPHAS", ALPHAS[::3])
    monkeypatch.setattr(leave_one_out, "BETAS", BETAS[::3])
    chosen = choose_alpha_beta(model)
    best = min(scores.values())
    found = scores[chosen.alpha, chosen.beta]
    assert found[0] == best[0]
    assert found[1] == pytest.approx(best[1], abs=1e-8)
    assert chosen.accuracy == 1 - best[0] / 32
    assert max(errors for errors, _ in scores.values()) > best[0]  # the grid makes a difference


def test_a_key_is_not_classified_by_itself() -> None:
    """Labels at random: with its own entry every key would find its label, and a large alpha look perfect."""
    generator = torch.Generator().manual_seed(7)
    rows = functional.normalize(torch.randn(72, 32, generator=generator), dim=1)
    model = CacheModel(rows[8:], torch.arange(8).repeat_interleave(8), rows[:8], 100.0, 20.0, 1.0)
    seen = FeatureSet(model.cache_keys, model.key_labels)
    assert evaluate(model, seen).top1 == 1.0
    assert choose_alpha_beta(model).accuracy < 0.5


def test_a_bad_text_classifier_gets_less_weight_than_a_good_one() -> None:
    chosen = {
        noise: choose_alpha_beta(noisy_model(1, text_noise=noise, key_noise=0.3)) for noise in (0.0, 3.0)
    }
    assert chosen[3.0].alpha > chosen[0.0].alpha


def test_an_alpha_that_will_be_divided_is_chosen_before_the_division() -> None:
    model = noisy_model(2, text_noise=0.7, key_noise=0.4, images=10)
    summed, meaned = leave_one_out._grid(model, 1), leave_one_out._grid(model, 10)
    ten, hundred = ALPHAS.index(10.0), ALPHAS.index(100.0)
    for one, other in zip(summed, meaned, strict=True):
        assert torch.equal(one[ten], other[hundred])
        assert not torch.equal(one[ten], other[ten])


def test_the_grid_reaches_from_a_tenth_to_a_hundred() -> None:
    assert (ALPHAS[0], ALPHAS[-1]) == (0.1, 100.0)
    assert (BETAS[0], BETAS[-1]) == (0.5, 20.0)
    assert list(ALPHAS) == sorted(set(ALPHAS))


def test_one_key_a_class_leaves_nothing_to_choose_by() -> None:
    with pytest.raises(ConfigError, match="two synthetic images"):
        choose_alpha_beta(noisy_model(0, text_noise=0.5, key_noise=0.4, images=1))
