"""One silo, no noise, no mask: the federation is centralised Tip-Adapter-F.

Compared are the cache keys after all rounds and the probabilities they give, with an independent Tip-Adapter-F: its published
forward pass written out, gradients by autograd in float64, all records in one batch. Tip-Adapter-F is published with AdamW;
the product's silos take plain gradient steps, so both take these here. A clip norm that no gradient reaches leaves
gradients as they are, which is shown too: the same federation that clips ends elsewhere.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from cachefl_secure.cache.evaluate import predict
from cachefl_secure.cache.features import FeatureSet
from cachefl_secure.cache.model import CacheModel
from cachefl_secure.federation.comparison import train_together
from cachefl_secure.plan import CachePlan, EncoderPlan, FederationPlan, SecureSumPlan
from cachefl_secure.privacy_plan import NoPrivacyPlan

CLASSES, KEYS_A_CLASS, DIM, RECORDS = 6, 3, 24, 90
NO_CLIP = 1e6
STEP = 0.05
"""What the mean gradient is multiplied by."""


def unit_rows(generator: torch.Generator, rows: int) -> Tensor:
    return functional.normalize(torch.randn(rows, DIM, generator=generator), dim=1)


def task() -> tuple[CacheModel, FeatureSet]:
    generator = torch.Generator().manual_seed(11)
    labels = torch.arange(CLASSES).repeat_interleave(KEYS_A_CLASS)
    keys = unit_rows(generator, len(labels))
    model = CacheModel(keys, labels, unit_rows(generator, CLASSES), 5.0, 2.0, 20.0)
    drawn = torch.randint(0, CLASSES, (RECORDS,), generator=generator)
    near = keys[drawn * KEYS_A_CLASS] + 0.6 * unit_rows(generator, RECORDS)
    return model, FeatureSet(functional.normalize(near, dim=1), drawn)


def plan(rounds: int, steps: int, clip_norm: float = NO_CLIP) -> FederationPlan:
    """``learning_rate`` is the length of a step of gradients at the clip norm, hence the product."""
    blank = "0" * 64
    return FederationPlan(
        federation_id=blank[:32],
        name="one",
        coordinator_public_key=blank,
        classes=tuple(f"class {number}" for number in range(CLASSES)),
        encoder=EncoderPlan(
            model="local-dir",
            weights_digest=blank,
            preprocessing_digest=blank,
            feature_dim=DIM,
            templates=("{}",),
        ),
        cache=CachePlan(
            images_per_class=KEYS_A_CLASS, alpha=5.0, beta=2.0, logit_scale=20.0, initial_digest=blank
        ),
        privacy=NoPrivacyPlan(
            clip_norm=clip_norm,
            sampling_rate=1.0,
            expected_records=RECORDS,
            learning_rate=STEP * clip_norm,
            rounds=rounds,
            delta=1e-5,
            steps_per_round=steps,
        ),
        secure_sum=SecureSumPlan(),
    )


def tip_adapter_f(model: CacheModel, records: FeatureSet, steps: int) -> tuple[Tensor, Tensor]:
    """Keys (NK, C) and probabilities (n, N) after gradient descent on the mean cross-entropy."""
    keys = model.cache_keys.double().requires_grad_()
    features, text = records.features.double(), model.text_classifier.double()
    values = functional.one_hot(model.key_labels, CLASSES).double()

    def scores() -> Tensor:
        affinity = features @ keys.T
        cached = ((-1) * (model.beta - model.beta * affinity)).exp() @ values
        return model.logit_scale * features @ text.T + model.alpha * cached

    for _ in range(steps):
        (gradient,) = torch.autograd.grad(functional.cross_entropy(scores(), records.labels), keys)
        keys = (keys - STEP * gradient).detach().requires_grad_()
    return keys.detach(), torch.softmax(scores(), dim=1).detach()


def test_a_federation_of_one_silo_without_noise_is_tip_adapter_f() -> None:
    model, records = task()
    for rounds, steps in ((20, 1), (4, 5)):
        *_, trained = train_together(model, [records], plan(rounds, steps))
        keys, probabilities = tip_adapter_f(model, records, rounds * steps)
        torch.testing.assert_close(trained.cache_keys.double(), keys, rtol=0, atol=1e-5)
        torch.testing.assert_close(
            predict(trained, records.features).double(), probabilities, rtol=0, atol=1e-5
        )
        assert float((keys - model.cache_keys).norm(dim=1).max()) > 0.1, "the keys have to move"


def test_clipping_is_the_difference_that_it_should_be() -> None:
    model, records = task()
    *_, clipped = train_together(model, [records], plan(20, 1, clip_norm=0.1))
    keys, _ = tip_adapter_f(model, records, 20)
    assert float((clipped.cache_keys - keys).abs().max()) > 1e-2


def test_silos_of_any_mixture_take_the_same_step_as_all_records_in_one_place() -> None:
    model, records = task()
    order = records.labels.argsort()
    cut = [
        FeatureSet(records.features[part], records.labels[part])
        for part in (order[:50], order[50:80], order[80:])
    ]
    section = plan(20, 1)
    *_, apart = train_together(model, cut, section)
    # A round adds the mean of the silos' updates, each divided by the same expected number of records.
    keys, _ = tip_adapter_f(model, records, 0)
    values = keys.clone()
    for _ in range(20):
        moved = CacheModel(
            values.float(),
            model.key_labels,
            model.text_classifier,
            model.alpha,
            model.beta,
            model.logit_scale,
        )
        one_step, _ = tip_adapter_f(moved, records, 1)
        values = values + (one_step - moved.cache_keys.double()) / len(cut)
    torch.testing.assert_close(apart.cache_keys.double(), values, rtol=0, atol=1e-5)
