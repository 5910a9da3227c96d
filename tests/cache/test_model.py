"""The cache model against a slow version with loops, against autograd, and its file format."""

from __future__ import annotations

import contextlib
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save as safetensors_save
from torch import Tensor
from torch.nn import functional

from cachefl_secure.cache.model import (
    CacheModel,
    _sums_by_class,
    _sums_in_one_order,
    add_update,
    affinity,
    affinity_gradient,
    cache_digest,
    cache_from_bytes,
    cache_logits,
    cache_to_bytes,
    load_cache,
    logits,
    save_cache,
    with_keys,
)
from cachefl_secure.cache.origin import CacheOrigin
from cachefl_secure.errors import ConfigError


def unit_rows(generator: torch.Generator, *shape: int) -> Tensor:
    return functional.normalize(torch.randn(*shape, generator=generator), dim=-1)


def random_model(rng_seed: int, classes: int, per_class: int, dim: int, *, without: int = 0) -> CacheModel:
    """The first ``without`` classes have no key. Keys are not of unit norm, as after training."""
    generator = torch.Generator().manual_seed(rng_seed)
    labels = torch.arange(without, classes).repeat_interleave(per_class)
    labels = labels[torch.randperm(len(labels), generator=generator)]
    cache_keys = unit_rows(generator, len(labels), dim) * (
        0.5 + torch.rand(len(labels), 1, generator=generator)
    )
    return CacheModel(cache_keys, labels, unit_rows(generator, classes, dim), 3.25, 5.5, 30.0)


def records(rng_seed: int, count: int, classes: int, dim: int) -> tuple[Tensor, Tensor]:
    """Features in float64, so that comparisons are about the formula."""
    generator = torch.Generator().manual_seed(rng_seed)
    return (
        unit_rows(generator, count, dim).double(),
        torch.randint(0, classes, (count,), generator=generator),
    )


def slow_logits(model: CacheModel, feature: Tensor) -> list[float]:
    """The formula, one number at a time."""
    scores = []
    for c in range(model.number_of_classes):
        score = model.logit_scale * sum(
            float(w) * float(x) for w, x in zip(model.text_classifier[c], feature, strict=True)
        )
        for j in range(model.number_of_keys):
            if int(model.key_labels[j]) == c:
                cosine = sum(float(k) * float(x) for k, x in zip(model.cache_keys[j], feature, strict=True))
                score += model.alpha * math.exp(-model.beta * (1 - cosine))
        scores.append(score)
    return scores


def slow_gradient_row(model: CacheModel, feature: Tensor, label: int) -> list[float]:
    """a_j = alpha beta A_j (p_c - y_c), one number at a time."""
    scores = slow_logits(model, feature)
    top = max(scores)
    total = sum(math.exp(score - top) for score in scores)
    row = []
    for j in range(model.number_of_keys):
        cosine = sum(float(k) * float(x) for k, x in zip(model.cache_keys[j], feature, strict=True))
        c = int(model.key_labels[j])
        error = math.exp(scores[c] - top) / total - (c == label)
        row.append(model.alpha * model.beta * math.exp(-model.beta * (1 - cosine)) * error)
    return row


def autograd_gradients(model: CacheModel, features: Tensor, labels: Tensor) -> Tensor:
    """(b, NK, C): each record's gradient, through the differentiable functions."""
    gradients = []
    for feature, label in zip(features, labels, strict=True):
        trained = model.cache_keys.double().requires_grad_()
        scores = model.logit_scale * feature[None] @ model.text_classifier.double().T
        scores = scores + model.alpha * cache_logits(
            feature[None], trained, model.cache_values.double(), model.beta
        )
        functional.cross_entropy(scores, label[None]).backward()  # type: ignore[no-untyped-call]
        assert trained.grad is not None
        gradients.append(trained.grad)
    return torch.stack(gradients)


SHAPES = st.tuples(st.integers(2, 6), st.integers(1, 3), st.integers(1, 7), st.integers(0, 1))


@given(shape=SHAPES, rng_seed=st.integers(0, 2**20))
@settings(max_examples=25, deadline=None)
def test_logits_are_the_formula(shape: tuple[int, int, int, int], rng_seed: int) -> None:
    classes, per_class, dim, without = shape
    model = random_model(rng_seed, classes, per_class, dim, without=without)
    features, _ = records(rng_seed + 1, 3, classes, dim)
    slow = torch.tensor([slow_logits(model, feature) for feature in features], dtype=torch.float64)
    torch.testing.assert_close(logits(model, features), slow, rtol=1e-10, atol=1e-10)


@given(shape=SHAPES, rng_seed=st.integers(0, 2**20))
@settings(max_examples=25, deadline=None)
def test_the_affinity_gradient_is_the_formula_and_autograds(
    shape: tuple[int, int, int, int], rng_seed: int
) -> None:
    classes, per_class, dim, without = shape
    model = random_model(rng_seed, classes, per_class, dim, without=without)
    features, labels = records(rng_seed + 1, 3, classes, dim)
    closed = affinity_gradient(model, features, labels)
    slow = torch.tensor(
        [slow_gradient_row(model, f, int(y)) for f, y in zip(features, labels, strict=True)],
        dtype=torch.float64,
    )
    torch.testing.assert_close(closed, slow, rtol=1e-10, atol=1e-10)
    rank_one = torch.einsum("bj,bc->bjc", closed, features)
    torch.testing.assert_close(rank_one, autograd_gradients(model, features, labels), rtol=1e-10, atol=1e-10)


def test_the_norm_of_a_records_gradient_is_a_product_of_two_norms() -> None:
    model = random_model(3, 7, 4, 16)
    features, labels = records(4, 32, 7, 16)
    norms = autograd_gradients(model, features, labels).flatten(1).norm(dim=1)
    product = affinity_gradient(model, features, labels).norm(dim=1) * features.norm(dim=1)
    torch.testing.assert_close(norms, product, rtol=1e-10, atol=1e-12)
    assert float(norms.min()) > 0


def test_a_class_without_cache_keys_keeps_its_text_logit() -> None:
    model = random_model(5, 4, 2, 8, without=1)
    features, _ = records(6, 5, 4, 8)
    text = model.logit_scale * features @ model.text_classifier.double().T
    scores = logits(model, features)
    torch.testing.assert_close(
        scores[:, 0], text[:, 0], rtol=1e-14, atol=0
    )  # in whole lanes, hence other last bits
    assert bool((scores[:, 1:] > text[:, 1:]).all())
    assert model.cache_values.shape == (6, 4)


def test_logits_follow_the_published_form_with_one_hot_cache_values() -> None:
    model = random_model(7, 5, 3, 8)
    features, _ = records(8, 6, 5, 8)
    by_product = model.logit_scale * features @ model.text_classifier.double().T + model.alpha * cache_logits(
        features, model.cache_keys.double(), model.cache_values.double(), model.beta
    )
    torch.testing.assert_close(logits(model, features), by_product, rtol=1e-12, atol=1e-12)
    assert affinity(features.float(), model.cache_keys).shape == (6, 15)


@pytest.mark.parametrize("without", [0, 2])
def test_scores_by_class_are_the_same_whichever_way_they_are_summed(without: int) -> None:
    """The product that a GPU takes in the place of ``index_add_``, on the processor."""
    model = random_model(5, 7, 3, 16, without=without)
    shuffled = torch.randperm(model.number_of_keys, generator=torch.Generator().manual_seed(1))
    model = replace(model, key_labels=model.key_labels[shuffled])
    activations = torch.rand(9, model.number_of_keys, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(_sums_in_one_order(model, activations), _sums_by_class(model, activations))
    torch.testing.assert_close(_sums_by_class(model, activations), activations @ model.cache_values)


def test_the_model_owns_its_tensors() -> None:
    cache_keys = torch.eye(3)
    model = CacheModel(cache_keys, torch.arange(3), torch.eye(3), 1.0, 1.0, 100.0)
    before = cache_digest(model)
    cache_keys[0, 0] = 5.0
    assert cache_digest(model) == before


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("alpha", math.nan),
        ("alpha", -1.0),
        ("beta", 0.0),
        ("logit_scale", math.inf),
        ("cache_keys", torch.full((3, 3), math.nan)),
        ("cache_keys", torch.eye(3, dtype=torch.float64)),
        ("cache_keys", torch.eye(4)),
        ("cache_keys", torch.empty(0, 3)),
        ("key_labels", torch.tensor([0, 1, 3])),
        ("key_labels", torch.tensor([0, 1, -1])),
        ("key_labels", torch.tensor([0, 1, 2], dtype=torch.int32)),
        ("text_classifier", torch.ones(3, 4)),
        ("text_classifier", torch.full((3, 3), math.inf)),
    ],
)
def test_an_invalid_model_cannot_be_built(field: str, value: object) -> None:
    model = CacheModel(torch.eye(3), torch.arange(3), torch.eye(3), 1.0, 1.0, 100.0)
    with pytest.raises(ValueError):  # noqa: PT011
        replace(model, **{field: value})  # type: ignore[arg-type]


def test_an_update_is_added_in_float64_and_rounded_once() -> None:
    model = random_model(9, 3, 2, 4)
    update = np.random.default_rng(1).normal(size=24) * 1e-3
    expected = (model.cache_keys.double().numpy() + update.reshape(6, 4)).astype(np.float32)
    assert np.array_equal(add_update(model, update).cache_keys.numpy(), expected)
    assert torch.equal(add_update(model, torch.from_numpy(update)).cache_keys, torch.from_numpy(expected))


@pytest.mark.parametrize("update", [np.zeros(23), np.full(24, np.nan), np.full(24, 1e300)])
def test_an_update_that_does_not_fit_is_refused(update: np.ndarray[tuple[int], np.dtype[np.float64]]) -> None:
    with pytest.raises(ValueError, match=r"entries|finite"):
        add_update(random_model(9, 3, 2, 4), update)


def test_keys_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        with_keys(random_model(9, 3, 2, 4), torch.zeros(6, 5))


def test_every_number_of_the_model_is_in_its_digest() -> None:
    model = random_model(10, 3, 2, 4)
    moved = model.cache_keys.clone()
    moved[5, 3] = torch.nextafter(moved[5, 3], torch.tensor(9.0))
    others = [
        with_keys(model, moved),
        replace(model, key_labels=model.key_labels.flip(0)),
        replace(model, text_classifier=model.text_classifier.flip(0)),
        replace(model, alpha=math.nextafter(model.alpha, 9.0)),
        replace(model, beta=math.nextafter(model.beta, 9.0)),
        replace(model, logit_scale=math.nextafter(model.logit_scale, 99.0)),
    ]
    assert len({cache_digest(model), *map(cache_digest, others)}) == 7


def test_every_word_of_the_origin_is_in_the_digest_and_every_later_model_keeps_it(tmp_path: Path) -> None:
    origin = CacheOrigin("diffusers", "a model", "apache-2.0", "ab" * 32)
    model = replace(random_model(10, 3, 2, 4), origin=origin)
    others = [
        replace(origin, kind="folder"),
        replace(origin, name="a modelapache-2.0", licence=""),
        replace(origin, licence="mit"),
        replace(origin, manifest_digest="cd" * 32),
        CacheOrigin(),
    ]
    digests = {cache_digest(replace(model, origin=other)) for other in (origin, *others)}
    assert len(digests) == 6
    later = add_update(model, torch.ones(24))
    save_cache(later, tmp_path / "later.safetensors")
    assert load_cache(tmp_path / "later.safetensors").origin == origin


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "oracle"},
        {"kind": "unstated"},
        {"name": "a\x1b[2J"},
        {"licence": "x" * 201},
        {"manifest_digest": ""},
        {"manifest_digest": "AB" * 32},
        {"manifest_digest": "ab" * 32 + "\n"},
    ],
)
def test_an_origin_that_says_nothing_or_too_much_is_refused(changes: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="origin: "):
        replace(CacheOrigin("diffusers", "a model", "apache-2.0", "ab" * 32), **changes)


def test_a_file_gives_the_same_model_and_the_same_bytes(tmp_path: Path) -> None:
    model = replace(random_model(11, 4, 2, 6), alpha=0.1 + 0.2, beta=1e-7)
    save_cache(model, tmp_path / "cache.safetensors")
    loaded = load_cache(tmp_path / "cache.safetensors")
    assert cache_digest(loaded) == cache_digest(model)
    assert (loaded.alpha, loaded.beta, loaded.logit_scale) == (0.1 + 0.2, 1e-7, 30.0)
    assert cache_to_bytes(loaded) == (tmp_path / "cache.safetensors").read_bytes()


UNSTATED = {
    "origin_kind": "unstated",
    "origin_name": "",
    "origin_licence": "unknown",
    "origin_manifest_digest": "",
}


def _file(tensors: dict[str, Tensor] | None = None, drop: str = "", **fields: object) -> bytes:
    """A cache file in which the given tensors and metadata fields replace the good ones."""
    model = random_model(12, 3, 2, 4)
    all_tensors = {
        "cache_keys": model.cache_keys,
        "key_labels": model.key_labels,
        "text_classifier": model.text_classifier,
        **(tensors or {}),
    }
    all_tensors.pop(drop, None)
    scalars = {"alpha": "3.25", "beta": "5.5", "logit_scale": "30.0"}
    note = {"kind": "cache/1", **scalars, **UNSTATED, **fields}
    note = {key: value for key, value in note.items() if value is not None}
    return safetensors_save(all_tensors, metadata={"cachefl-secure": json.dumps(note)})


def test_the_file_that_the_bad_ones_vary_is_good() -> None:
    assert cache_digest(cache_from_bytes(_file())) == cache_digest(random_model(12, 3, 2, 4))


def _impossible_shape() -> bytes:
    """An empty tensor whose other dimension no machine can address."""
    header = safetensors_save({"cache_keys": torch.zeros(0, 7)}, metadata={"x": "y"})[8:].decode()
    scalars = {"alpha": "1.0", "beta": "1.0", "logit_scale": "1.0"}
    note = json.dumps(json.dumps({"kind": "cache/1", **scalars, **UNSTATED}))
    others = (
        '"key_labels":{"dtype":"I64","shape":[0],"data_offsets":[0,0]},'
        '"text_classifier":{"dtype":"F32","shape":[0,1],"data_offsets":[0,0]}}'
    )
    header = header.replace("[0,7]", f"[0,{2**63}]").replace('{"x":"y"}', f'{{"cachefl-secure":{note}}}')
    raw = (header.rstrip()[:-1] + "," + others).encode()
    return len(raw).to_bytes(8, "little") + raw


BAD_FILES = {
    "impossible shape": _impossible_shape(),
    "empty": b"",
    "not safetensors": b"\x80\x04cposix\nsystem\n" * 20,
    "huge header": b"\xff" * 8 + b"{}",
    "truncated": _file()[:-1],
    "longer": _file() + b"\0",
    "nan": _file({"cache_keys": torch.full((6, 4), math.nan)}),
    "infinite text classifier": _file({"text_classifier": torch.full((3, 4), math.inf)}),
    "extra tensor": _file({"optimizer": torch.zeros(1)}),
    "missing tensor": _file(drop="key_labels"),
    "half precision": _file({"cache_keys": torch.zeros(6, 4, dtype=torch.float16)}),
    "labels as float": _file({"key_labels": torch.zeros(6)}),
    "wrong dimensions": _file({"cache_keys": torch.zeros(24)}),
    "wrong C": _file({"cache_keys": torch.zeros(6, 5)}),
    "wrong NK": _file({"cache_keys": torch.zeros(5, 4)}),
    "no keys": _file({"cache_keys": torch.zeros(0, 4), "key_labels": torch.zeros(0, dtype=torch.int64)}),
    "label out of range": _file({"key_labels": torch.full((6,), 3)}),
    "alpha nan": _file(alpha="nan"),
    "alpha negative": _file(alpha="-1.0"),
    "alpha not exact": _file(alpha="3.250"),
    "alpha a number": _file(alpha=3.25),
    "alpha no number": _file(alpha="__import__('os')"),
    "beta missing": _file(beta=None),
    "extra field": _file(gamma="1.0"),
    "no licence": _file(origin_licence=None),
    "another kind of origin": _file(origin_kind="oracle"),
    "a name that moves the cursor": _file(origin_name="\x1b[2J"),
    "another kind": _file(kind="features/1"),
    "no metadata": safetensors_save({"cache_keys": torch.zeros(6, 4)}),
    "metadata no object": safetensors_save({"a": torch.zeros(1)}, metadata={"cachefl-secure": "[1]"}),
}


@pytest.mark.claim("C13")
@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_cache_file_is_a_config_error(name: str, tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_bytes(BAD_FILES[name])
    with pytest.raises(ConfigError) as caught:
        load_cache(tmp_path / "bad.safetensors")
    assert caught.value.file.endswith("bad.safetensors")


def test_an_absent_cache_file_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_cache(tmp_path / "absent")


@given(position=st.integers(0, 10**6), value=st.integers(0, 255), cut=st.sampled_from([0, 0, 0, 1, 7, 40]))
@settings(max_examples=300, deadline=None)
@pytest.mark.claim("C14")
def test_a_damaged_cache_file_is_a_model_or_a_config_error(position: int, value: int, cut: int) -> None:
    raw = bytearray(_file())
    raw[position % len(raw)] = value
    with contextlib.suppress(ConfigError):
        model = cache_from_bytes(bytes(raw[: len(raw) - cut]))
        assert cut == 0
        assert bool(torch.isfinite(logits(model, torch.ones(1, model.feature_dim))).any())
