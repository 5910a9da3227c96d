"""alpha_norm = "mean": one alpha for every K."""

from __future__ import annotations

import msgspec
import pytest
import torch
from torch.nn import functional

from cachefl_secure.cache.model import CacheModel, logits
from cachefl_secure.plan import CachePlan

SECTION = CachePlan(images_per_class=1, alpha=7.0, beta=3.0, logit_scale=20.0, initial_digest="0" * 64)


def scores(section: CachePlan, features: torch.Tensor) -> torch.Tensor:
    """With every key of one cache standing there K times."""
    generator, copies = torch.Generator().manual_seed(0), section.images_per_class
    rows = functional.normalize(torch.randn(10, 8, generator=generator), dim=1)
    keys, labels = rows[:5].repeat_interleave(copies, 0), torch.arange(5).repeat_interleave(copies)
    model = CacheModel(keys, labels, rows[5:], section.model_alpha, section.beta, section.logit_scale)
    return logits(model, features)


@pytest.mark.parametrize("images", [1, 3, 16])
def test_with_the_mean_more_keys_that_say_the_same_change_nothing(images: int) -> None:
    features = functional.normalize(torch.randn(6, 8, generator=torch.Generator().manual_seed(1)), dim=1)
    one = scores(SECTION, features.double())
    mean = msgspec.structs.replace(SECTION, images_per_class=images, alpha_norm="mean")
    torch.testing.assert_close(scores(mean, features.double()), one, rtol=1e-12, atol=1e-12)
    summed = msgspec.structs.replace(SECTION, images_per_class=images)
    assert torch.allclose(scores(summed, features.double()), one) == (images == 1)
