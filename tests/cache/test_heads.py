"""What is trained: the residual's gradient against autograd, and how an update of it moves the keys."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cachefl_secure.cache.heads import moved, rank_one_gradient, row_of_key, trained_rows
from cachefl_secure.cache.model import CacheModel, cache_digest, row_blocks, with_keys
from cachefl_secure.plan import Trained

BOTH: tuple[Trained, ...] = ("keys", "class_residual")


def unit_rows(generator: torch.Generator, *shape: int) -> Tensor:
    return functional.normalize(torch.randn(*shape, generator=generator), dim=-1)


def model_of(seed: int, *, shuffled: bool, without: int = 0) -> CacheModel:
    """Six classes of three keys; the first ``without`` have none."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(without, 6).repeat_interleave(3)
    if shuffled:
        labels = labels[torch.randperm(len(labels), generator=generator)]
    return CacheModel(
        unit_rows(generator, len(labels), 11), labels, unit_rows(generator, 6, 11), 3.5, 5.5, 20.0
    )


def gradient_by_autograd(model: CacheModel, feature: Tensor, label: Tensor, trained: Trained) -> Tensor:
    """(rows, C) of one record, by the published formula with one-hot values; float64."""
    rows = torch.zeros(
        trained_rows(model, trained), model.feature_dim, dtype=torch.float64, requires_grad=True
    )
    change = rows if trained == "keys" else rows[model.key_labels]
    affinity = torch.exp(-model.beta * (1 - feature @ (model.cache_keys.double() + change).T))
    text = model.logit_scale * feature @ model.text_classifier.double().T
    scores = text + model.alpha * affinity @ model.cache_values.double()
    (gradient,) = torch.autograd.grad(functional.cross_entropy(scores[None], label[None]), rows)
    return gradient


@pytest.mark.parametrize("trained", BOTH)
@pytest.mark.parametrize(("shuffled", "without"), [(False, 0), (True, 0), (True, 2), (False, 1)])
def test_the_gradient_is_rank_one_and_that_of_autograd(
    trained: Trained, shuffled: bool, without: int
) -> None:
    for seed in range(5):
        model, generator = (
            model_of(seed, shuffled=shuffled, without=without),
            torch.Generator().manual_seed(99 + seed),
        )
        features, labels = (
            unit_rows(generator, 8, 11).double(),
            torch.randint(0, 6, (8,), generator=generator),
        )
        a = rank_one_gradient(model, features, labels, trained)
        assert a.shape == (8, trained_rows(model, trained))
        assert float(a.abs().max()) > 0.1
        for one, feature, label in zip(a, features, labels, strict=True):
            expected = gradient_by_autograd(model, feature, label, trained)
            assert float((torch.outer(one, feature) - expected).abs().max()) < 1e-10


def test_a_residuals_gradient_is_the_sum_of_those_of_its_keys_at_other_keys_too() -> None:
    model, generator = model_of(3, shuffled=True), torch.Generator().manual_seed(5)
    elsewhere = model.cache_keys + 0.1 * torch.randn(18, 11, generator=generator)
    features, labels = unit_rows(generator, 7, 11).double(), torch.randint(0, 6, (7,), generator=generator)
    by_key = rank_one_gradient(model, features, labels, "keys", elsewhere.__getitem__)
    summed = torch.stack([by_key[:, model.key_labels == c].sum(1) for c in range(6)], 1)
    residual = rank_one_gradient(model, features, labels, "class_residual", elsewhere.__getitem__)
    torch.testing.assert_close(residual, summed, rtol=1e-12, atol=1e-12)
    there = with_keys(model, elsewhere)
    assert torch.equal(residual, rank_one_gradient(there, features, labels, "class_residual"))


@pytest.mark.parametrize("trained", BOTH)
def test_keys_that_come_a_few_at_a_time_give_the_gradient_of_all_together(trained: Trained) -> None:
    generator = torch.Generator().manual_seed(6)
    labels = torch.arange(130).repeat_interleave(8)  # 1,040 keys of 256 numbers: three blocks
    model = CacheModel(
        unit_rows(generator, 1040, 256),
        labels,
        unit_rows(generator, 130, 256),
        alpha=3.0,
        beta=5.5,
        logit_scale=10.0,
    )
    asked: list[slice] = []

    def some(rows: slice) -> Tensor:
        asked.append(rows)
        return model.cache_keys[rows]

    features, wanted = unit_rows(generator, 9, 256), torch.arange(9)
    whole = rank_one_gradient(model, features, wanted, trained)
    torch.testing.assert_close(
        rank_one_gradient(model, features, wanted, trained, some), whole, rtol=1e-4, atol=1e-7
    )
    assert [(rows.start, rows.stop) for rows in asked] == [(0, 512), (512, 1024), (1024, 1040)]


@pytest.mark.parametrize(
    ("keys", "width", "ends"), [(3000, 100, [1280, 2560, 3000]), (5, 200_000, [1, 2, 3, 4, 5]), (64, 8, [64])]
)
def test_blocks_of_rows_are_whole_lanes_where_there_are_so_many(
    keys: int, width: int, ends: list[int]
) -> None:
    blocks = row_blocks(torch.empty(keys, width))
    assert [block.stop for block in blocks] == ends
    assert [block.start for block in blocks] == [0, *ends[:-1]]


def test_a_residual_moves_all_keys_of_its_class_and_is_rounded_once() -> None:
    model = model_of(4, shuffled=True)
    update = np.random.default_rng(1).normal(size=66) * 1e-3
    after = moved(model, update, "class_residual")
    for row, label in enumerate(model.key_labels.tolist()):
        expected = (model.cache_keys[row].double().numpy() + update[11 * label : 11 * (label + 1)]).astype(
            np.float32
        )
        assert np.array_equal(after.cache_keys[row].numpy(), expected)
    assert row_of_key(model, "class_residual") is model.key_labels
    assert cache_digest(replace(after, cache_keys=model.cache_keys)) == cache_digest(model)


def test_with_one_key_a_class_both_are_the_same() -> None:
    generator = torch.Generator().manual_seed(6)
    model = CacheModel(
        unit_rows(generator, 4, 9), torch.arange(4), unit_rows(generator, 4, 9), 3.0, 5.0, 20.0
    )
    features, labels = unit_rows(generator, 5, 9), torch.tensor([0, 1, 2, 3, 0])
    update = np.random.default_rng(2).normal(size=36)
    assert torch.equal(*(rank_one_gradient(model, features, labels, each) for each in BOTH))
    assert cache_digest(moved(model, update, "keys")) == cache_digest(moved(model, update, "class_residual"))


@pytest.mark.parametrize(("trained", "entries"), [("keys", 66), ("class_residual", 198)])
def test_an_update_of_what_is_not_trained_is_refused(trained: Trained, entries: int) -> None:
    with pytest.raises(ValueError, match="entries"):
        moved(model_of(0, shuffled=False), np.zeros(entries), trained)
