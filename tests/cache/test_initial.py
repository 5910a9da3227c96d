"""The first cache: exactly K keys a class, in class order."""

from __future__ import annotations

import pytest
import torch

from cachefl_secure.cache.features import FeatureSet
from cachefl_secure.cache.initial import initial_cache
from cachefl_secure.errors import ConfigError


def synthetic(labels: list[int]) -> FeatureSet:
    generator = torch.Generator().manual_seed(1)
    features = torch.nn.functional.normalize(torch.randn(len(labels), 5, generator=generator), dim=1)
    return FeatureSet(features, torch.tensor(labels))


def test_keys_stand_in_class_order_k_for_each_class() -> None:
    images = synthetic([2, 0, 1, 0, 2, 1, 2, 0])
    model = initial_cache(images, torch.eye(3, 5), images_per_class=2, alpha=1.0, beta=2.0, logit_scale=50.0)
    assert model.key_labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert torch.equal(model.cache_keys, images.features[[1, 3, 2, 5, 0, 4]])
    assert (model.alpha, model.beta, model.logit_scale) == (1.0, 2.0, 50.0)


@pytest.mark.parametrize("per_class", [0, 3])
def test_a_class_with_too_few_images_is_refused(per_class: int) -> None:
    images = synthetic([0, 0, 0, 1, 1, 2, 2, 2])
    with pytest.raises(ConfigError, match=r"class 1 has 2|at least 1"):
        initial_cache(images, torch.eye(3, 5), images_per_class=per_class, alpha=1.0, beta=1.0)


def test_a_class_without_any_image_is_refused() -> None:
    with pytest.raises(ConfigError, match="class 2 has 0"):
        initial_cache(synthetic([0, 1]), torch.eye(3, 5), images_per_class=1, alpha=1.0, beta=1.0)
