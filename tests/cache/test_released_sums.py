"""Sums in a cache file: exact, in its digest only when they are there, and nothing else is accepted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from cachefl_secure.cache.closed_form import HeadKind
from cachefl_secure.cache.features import FeatureSet
from cachefl_secure.cache.model import (
    CacheModel,
    affinity_gradient,
    cache_digest,
    cache_from_bytes,
    cache_to_bytes,
    head_of,
    logits,
    with_sums,
)
from cachefl_secure.cache.released_sums import ReleasedSums
from cachefl_secure.errors import ConfigError
from tests.privacy.examples import cache_of, records_of

N, C = 5, 16


def sums_of(**changes: object) -> ReleasedSums:
    generator = np.random.default_rng(3)
    usual: dict[str, object] = {
        "class_sums": torch.from_numpy(generator.integers(-(2**60), 2**60, (N, C))),
        "gram": torch.from_numpy(generator.integers(-(2**40), 2**40, C * (C + 1) // 2)),
        "unit": 1 << 18,
        "noise_std": 0.1 + 0.2,
        "head": HeadKind.GDA,
        "regulariser": 0.1,
        "gamma": 1.5,
    }
    return ReleasedSums(**(usual | changes))  # type: ignore[arg-type]


def learned(records: FeatureSet, **changes: object) -> CacheModel:
    rows = np.rint(records.features.double().numpy() * 512).astype(np.int64)
    class_sums = np.zeros((N, C), np.int64)
    np.add.at(class_sums, records.labels.numpy(), rows * 512)
    gram = (rows.T @ rows)[np.triu_indices(C)]
    given = {"class_sums": torch.from_numpy(class_sums), "gram": torch.from_numpy(gram), "noise_std": 0.0}
    return with_sums(cache_of(), sums_of(**(given | changes)))


def test_a_file_gives_back_every_integer_and_scalar() -> None:
    model = with_sums(cache_of(), sums_of())
    again = cache_from_bytes(cache_to_bytes(model))
    assert again.sums is not None
    assert model.sums is not None
    assert torch.equal(again.sums.class_sums, model.sums.class_sums)
    assert torch.equal(again.sums.gram, model.sums.gram)
    assert again.sums.fields == model.sums.fields
    assert cache_digest(again) == cache_digest(model)


def test_a_cache_without_sums_has_the_file_and_digest_it_always_had() -> None:
    plain = cache_of()
    with_some = with_sums(plain, sums_of())
    assert cache_digest(plain) == cache_digest(replace(with_some, sums=None))
    assert cache_to_bytes(plain) == cache_to_bytes(replace(with_some, sums=None))
    assert cache_digest(plain) != cache_digest(with_some)


@pytest.mark.parametrize(
    "change",
    [
        {"unit": 1 << 17},
        {"noise_std": 0.3},
        {"head": HeadKind.RIDGE},
        {"regulariser": 0.2},
        {"gamma": 1.25},
    ],
)
def test_the_digest_covers_each_number(change: dict[str, object]) -> None:
    model = cache_of()
    assert cache_digest(with_sums(model, sums_of(**change))) != cache_digest(with_sums(model, sums_of()))


@pytest.mark.parametrize("name", ["class_sums", "gram"])
def test_the_digest_covers_the_last_bit_of_every_sum(name: str) -> None:
    digests = set()
    for place in range(sums_of().tensors[name].numel()):
        changed = sums_of().tensors[name].clone()
        changed.view(-1)[place] += 1
        digests.add(cache_digest(with_sums(cache_of(), sums_of(**{name: changed}))))
    assert len(digests) == sums_of().tensors[name].numel()
    assert cache_digest(with_sums(cache_of(), sums_of())) not in digests


def test_sums_become_features_again() -> None:
    sums = sums_of()
    statistics = sums.statistics
    assert np.array_equal(statistics.class_sums, sums.class_sums.numpy() / 2**18)
    at = 0
    for i in range(C):
        for j in range(i, C):
            assert statistics.gram[i, j] == statistics.gram[j, i] == int(sums.gram[at]) / 2**18
            at += 1


Change = Callable[[], ReleasedSums]
BAD: dict[str, Change] = {
    "another dtype": lambda: sums_of(gram=sums_of().gram.double()),
    "a triangle too short": lambda: sums_of(gram=sums_of().gram[1:]),
    "no unit": lambda: sums_of(unit=0),
    "negative noise": lambda: sums_of(noise_std=-1.0),
    "no number": lambda: sums_of(gamma=float("nan")),
    "no regulariser": lambda: sums_of(regulariser=0.0),
}


@pytest.mark.parametrize("name", BAD)
def test_sums_that_are_none_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"must|expected|disagree"):
        BAD[name]()


def test_sums_of_other_classes_than_the_models_are_refused() -> None:
    with pytest.raises(ValueError, match="disagree"):
        with_sums(cache_of(classes=4), sums_of())


@pytest.mark.parametrize(
    ("old", "new"),
    [(b'"head":"gda"', b'"head":"gdb"'), (b'"unit":"262144"', b'"unit":"062144"'), (b'"gamma"', b'"gemma"')],
)
def test_a_file_that_this_program_did_not_write_is_refused(old: bytes, new: bytes) -> None:
    raw = cache_to_bytes(with_sums(cache_of(), sums_of()))
    there, instead = (text.replace(b'"', b'\\"') for text in (old, new))
    assert there in raw
    with pytest.raises(ConfigError):
        cache_from_bytes(raw.replace(there, instead))


def test_the_gradient_of_a_model_with_sums_is_that_of_its_logits() -> None:
    records = records_of(7)
    model = learned(records_of(200))
    given = model.cache_keys.double().requires_grad_()
    features = records.features.double()
    head = head_of(model)
    affinities = torch.exp(-model.beta * (1 - features @ given.T))
    scores = (
        model.logit_scale * features @ model.text_classifier.double().T
        + model.alpha * affinities @ model.cache_values.double()
        + 1.5 * (features @ head.weight.double().T + head.bias.double())
    )
    assert torch.allclose(logits(model, features), scores, atol=1e-6)
    loss = torch.nn.functional.cross_entropy(scores, records.labels, reduction="sum")
    (expected,) = torch.autograd.grad(loss, given)
    ours = affinity_gradient(model, features, records.labels).T @ features
    assert torch.allclose(ours, expected, atol=1e-6)
