"""The cache model of Tip-Adapter (Zhang et al. 2022), whose cache keys CacheFL (Yi et al. 2025) trains.

    logits = logit_scale * W f + alpha * L^T A,    A = exp(-beta * (1 - F f))

and, with the sums of a release, + gamma * (G f + b) of the linear head (``closed_form``) that is solved from them.

N classes, NK cache keys, C feature dimension; F (NK, C) cache keys, L (NK, N) one-hot cache values,
W (N, C) text classifier, f (C,) a feature of unit norm. The loss is cross-entropy; only F is trained,
and its rows are not normalised again.

The gradient of one record with respect to F is rank one, ``g = a f^T``: see ``affinity_gradient``.
So its norm is ``||a|| * ||f||``, and clipping needs no per-record gradients.

Functions of a model compute in the dtype and on the device of the features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from cachefl_secure.cache.closed_form import LinearHead, as_loud_as, class_prototypes, fused, solve_head
from cachefl_secure.cache.lanes import LANES, inner_products, whole_lanes
from cachefl_secure.cache.origin import ORIGIN_FIELDS, UNSTATED, CacheOrigin
from cachefl_secure.cache.released_sums import SUMS_FIELDS, SUMS_SCHEMA, ReleasedSums, sums_of_file
from cachefl_secure.cache.tensor_file import Schema, exact_float, tensors_from_bytes, tensors_to_bytes
from cachefl_secure.errors import ConfigError
from cachefl_secure.names import Digest, digest_of

_KIND = "cache/1"
_SCHEMA: Schema = {"cache_keys": ("F32", 2), "key_labels": ("I64", 1), "text_classifier": ("F32", 2)}
_SCALARS = ("alpha", "beta", "logit_scale")


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class CacheModel:
    """All that classifies a feature. Public; tensors are copied on entry and must not be written to.

    ``cache_keys`` (NK, C) float32, ``key_labels`` (NK,) int64 in [0, N), ``text_classifier`` (N, C)
    float32. A class without a key is legal: its cache logit is 0. ``alpha`` = 0 is zero-shot.

    Raises:
        ValueError: shapes or dtypes disagree, a label is out of range, or a number is not finite.
    """

    cache_keys: Tensor
    key_labels: Tensor
    text_classifier: Tensor
    alpha: float
    beta: float
    logit_scale: float
    origin: CacheOrigin = UNSTATED
    """What the keys of round 0 were made from. Every later model of the chain keeps it."""
    sums: ReleasedSums | None = None
    """Of a release of statistics, whose head then adds to the logits. The head itself is in no file and no digest."""

    def __post_init__(self) -> None:
        for name in _SCHEMA:
            object.__setattr__(self, name, getattr(self, name).detach().clone().contiguous())
        _check_scalars(self)
        _check_tensors(self)

    def __repr__(self) -> str:
        return (
            f"CacheModel({self.number_of_keys} keys, {self.number_of_classes} classes, {self.feature_dim}-d)"
        )

    @property
    def number_of_keys(self) -> int:
        """NK."""
        return self.cache_keys.shape[0]

    @property
    def number_of_classes(self) -> int:
        """N: rows of the text classifier, with or without cache keys."""
        return self.text_classifier.shape[0]

    @property
    def feature_dim(self) -> int:
        """C."""
        return self.cache_keys.shape[1]

    @property
    def cache_values(self) -> Tensor:
        """L (NK, N) float32, one-hot."""
        return functional.one_hot(self.key_labels, self.number_of_classes).float()


def _check_scalars(model: CacheModel) -> None:
    for name in _SCALARS:
        value = getattr(model, name)
        if not math.isfinite(value) or value < 0 or (value == 0 and name != "alpha"):
            raise ValueError(f"{name} must be finite and positive")


def _check_tensors(model: CacheModel) -> None:
    cache_keys, labels, text = model.cache_keys, model.key_labels, model.text_classifier
    if (cache_keys.dtype, labels.dtype, text.dtype) != (torch.float32, torch.int64, torch.float32):
        raise ValueError("cache_keys and text_classifier must be float32, key_labels int64")
    if (cache_keys.ndim, labels.ndim, text.ndim) != (2, 1, 2) or 0 in (*cache_keys.shape, *text.shape):
        raise ValueError("expected cache_keys (NK, C), key_labels (NK,) and text_classifier (N, C)")
    if cache_keys.shape != (labels.shape[0], text.shape[1]):
        raise ValueError("cache_keys, key_labels and text_classifier disagree on NK or C")
    if int(labels.min()) < 0 or int(labels.max()) >= text.shape[0]:
        raise ValueError("a key label is not in [0, N)")
    if not (torch.isfinite(cache_keys).all() and torch.isfinite(text).all()):
        raise ValueError("cache_keys and text_classifier must be finite")
    if model.sums is not None and model.sums.class_sums.shape != text.shape:
        raise ValueError("text_classifier and class_sums disagree on N or C")


def has_unit_rows(model: CacheModel) -> bool:
    """Whether cache keys and text classifier have rows of unit norm, as an encoder's features do, to 1 in 1,000.

    Rows of norm 10^6 would turn the last bit of a product into a whole decision.
    """
    rows = torch.cat([model.cache_keys, model.text_classifier]).double().norm(dim=1)
    return bool(((rows - 1).abs() < 1e-3).all())


def affinity(features: Tensor, cache_keys: Tensor) -> Tensor:
    """(b, NK): inner products of features (b, C) with cache keys; cosines while the keys have unit norm."""
    return inner_products(features, cache_keys)


def cache_logits(features: Tensor, cache_keys: Tensor, cache_values: Tensor, beta: float) -> Tensor:
    """exp(-beta * (1 - affinity)) @ cache_values, (b, N), before alpha. Differentiable in the cache keys."""
    return torch.exp(-beta * (1 - affinity(features, cache_keys))) @ cache_values


def logits(model: CacheModel, features: Tensor) -> Tensor:
    """(b, N) for features (b, C) of unit norm."""
    return _activations_and_logits(model, features)[2]


KeyRows = Callable[[slice], Tensor]
"""Some rows (n, C) of cache keys that stand nowhere in memory together."""

_BLOCK_ENTRIES = 1 << 17


def row_blocks(matrix: Tensor) -> list[slice]:
    """Rows that are made or read a few at a time: half a MiB of float32, a multiple of 64 rows where there are so many."""
    rows = max(1, _BLOCK_ENTRIES // matrix.shape[1])
    rows = rows // LANES * LANES or rows
    return [slice(start, min(start + rows, len(matrix))) for start in range(0, len(matrix), rows)]


def affinity_gradient(
    model: CacheModel, features: Tensor, labels: Tensor, key_rows: KeyRows | None = None
) -> Tensor:
    """The ``a`` (b, NK) of each record's gradient ``a f^T`` of cross-entropy with respect to the cache keys.

    a_j = alpha * beta * A_j * (p_c - y_c) with c the class of key j, p the softmax of the logits, y one-hot.
    The gradient of a batch's summed loss is ``a.T @ features``; the norm of one record's is ||a|| * ||f||.
    ``key_rows`` stand in for the model's keys: gradients along a way need no model, nor all keys, at every step of it.
    """
    activations, _, scores = _activations_and_logits(model, features, key_rows)
    errors = _errors(model, scores, labels)
    if (images := _images_per_class(model)) is not None:
        activations.view(len(features), model.number_of_classes, images).mul_(errors.unsqueeze(2))
        return activations
    return activations.mul_(errors[:, model.key_labels.to(features.device)])


def residual_gradient(
    model: CacheModel, features: Tensor, labels: Tensor, key_rows: KeyRows | None = None
) -> Tensor:
    """The ``a`` (b, N) of each record's gradient ``a f^T`` with respect to a residual R (N, C), see ``add_residual``.

    a_c is the sum of ``affinity_gradient`` over the keys of class c: R_c moves them all, so it is rank one still.
    """
    _, by_class, scores = _activations_and_logits(model, features, key_rows)
    return _errors(model, scores, labels).mul_(by_class)


def _errors(model: CacheModel, scores: Tensor, labels: Tensor) -> Tensor:
    """alpha * beta * (p - y), (b, N)."""
    errors = torch.softmax(scores, dim=1)
    errors[torch.arange(len(labels), device=labels.device), labels] -= 1
    return errors.mul_(model.alpha * model.beta)


def _activations_and_logits(
    model: CacheModel, features: Tensor, key_rows: KeyRows | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """A (b, NK), its sums by class (b, N), and the logits (b, N)."""
    activations = _activations(model, features, key_rows or model.cache_keys.__getitem__)
    text_logits = inner_products(features, model.text_classifier.to(features)).mul_(model.logit_scale)
    by_class = _sums_by_class(model, activations)
    scores = text_logits.add_(by_class, alpha=model.alpha)
    if model.sums is not None:
        scores = fused(scores, head_of(model), features, model.sums.gamma)
    return activations, by_class, scores


def _sums_by_class(model: CacheModel, activations: Tensor) -> Tensor:
    """(b, N): the product with cache values."""
    if (images := _images_per_class(model)) is not None:
        return activations.view(len(activations), model.number_of_classes, images).sum(dim=2)
    if activations.device.type == "cpu":  # 14 times faster than that product at N = 1000, K = 16
        zeros = activations.new_zeros(len(activations), model.number_of_classes)
        return zeros.index_add_(1, model.key_labels, activations)
    return _sums_in_one_order(model, activations)


def _sums_in_one_order(model: CacheModel, activations: Tensor) -> Tensor:
    """As a product: on a GPU ``index_add_`` adds in any order, and a record had other last bits from call to call."""
    labels = model.key_labels.to(activations.device)
    values = activations.new_zeros(model.number_of_classes, model.number_of_keys)
    values[labels, torch.arange(len(labels), device=labels.device)] = 1.0
    return inner_products(activations, values)


def _activations(model: CacheModel, features: Tensor, key_rows: KeyRows) -> Tensor:
    """(b, NK): exp(-beta (1 - affinity)), in two passes over as many numbers. Padded as ``inner_products`` are."""
    offset, padded = features.new_tensor(-model.beta), whole_lanes(features)
    activations = features.new_empty(len(features), model.number_of_keys)
    for rows in row_blocks(model.cache_keys):
        keys, block = whole_lanes(key_rows(rows).to(features)), activations[:, rows]
        if more := -len(keys) % LANES:
            keys = functional.pad(keys, (0, 0, 0, more))
            block.copy_(torch.addmm(offset, padded, keys.T, alpha=model.beta)[:, : block.shape[1]])
        else:
            torch.addmm(offset, padded, keys.T, alpha=model.beta, out=block)
    return activations.exp_()


@lru_cache(maxsize=4)
def head_of(model: CacheModel) -> LinearHead:
    """The head of a model with sums, as loud as text and cache are on the cache keys, which are public.

    Solved once for each model object; last bits are this machine's.
    """
    keys = functional.normalize(model.cache_keys, dim=1)
    return as_loud_as(solved_head(model), logits(replace(model, sums=None), keys), keys)


def solved_head(model: CacheModel) -> LinearHead:
    """The head as it is solved from the model's sums.

    Raises:
        ValueError: a model without sums.
    """
    if model.sums is None:
        raise ValueError("no sums to solve a head from")
    return solve_head(
        model.sums.head,
        model.sums.statistics,
        regulariser=model.sums.regulariser,
        prototypes=class_prototypes(model.cache_keys, model.key_labels, model.text_classifier),
    )


def _images_per_class(model: CacheModel) -> int | None:
    """K, if the keys stand class by class and are as many for each, as ``initial_cache`` makes them."""
    images, rest = divmod(model.number_of_keys, model.number_of_classes)
    ordered = torch.arange(model.number_of_classes).repeat_interleave(images)
    return images if not rest and torch.equal(model.key_labels.cpu(), ordered) else None


def with_keys(model: CacheModel, new_keys: Tensor) -> CacheModel:
    """The same model with other cache keys (NK, C) float32."""
    if new_keys.shape != model.cache_keys.shape:
        raise ValueError(
            f"cache keys of shape {tuple(new_keys.shape)}, expected {tuple(model.cache_keys.shape)}"
        )
    return replace(model, cache_keys=new_keys)


def with_sums(model: CacheModel, sums: ReleasedSums) -> CacheModel:
    """The same model with the sums of a release, in place of any it had."""
    return replace(model, sums=sums)


def add_update(model: CacheModel, update: NDArray[np.float64] | Tensor) -> CacheModel:
    """The model with cache keys F + update, for an update of NK * C numbers.

    Added in float64 and rounded once, so every party gets the same bits.

    Raises:
        ValueError: another number of entries, or a result that is not finite in float32.
    """
    change = torch.as_tensor(update, dtype=torch.float64).cpu()
    if change.numel() != model.cache_keys.numel():
        raise ValueError(f"an update of {change.numel()} entries, expected {model.cache_keys.numel()}")
    total = model.cache_keys.cpu().double() + change.reshape(model.cache_keys.shape)
    return with_keys(model, total.float())


def add_residual(model: CacheModel, update: NDArray[np.float64] | Tensor) -> CacheModel:
    """The model with the row of its class added to every cache key, for an update of N * C numbers. As ``add_update``."""
    change = torch.as_tensor(update, dtype=torch.float64).cpu()
    if change.numel() != model.text_classifier.numel():
        raise ValueError(f"an update of {change.numel()} entries, expected {model.text_classifier.numel()}")
    return add_update(model, change.reshape(model.text_classifier.shape)[model.key_labels.cpu()])


def cache_digest(model: CacheModel) -> Digest:
    """Names the model by its numbers, bit for bit, and its origin, whatever the file it came from looks like."""
    shape = (model.number_of_keys, model.number_of_classes, model.feature_dim)
    return digest_of(
        "cachefl-secure/cache/1",
        *(size.to_bytes(8, "big") for size in shape),
        *(np.array(getattr(model, name), dtype=">f8").tobytes() for name in _SCALARS),
        model.cache_keys.cpu().numpy().astype("<f4").tobytes(),
        model.key_labels.cpu().numpy().astype("<i8").tobytes(),
        model.text_classifier.cpu().numpy().astype("<f4").tobytes(),
        *(text.encode() for text in model.origin.texts),
        *(() if model.sums is None else model.sums.pieces),
    )


def cache_to_bytes(model: CacheModel) -> bytes:
    """A safetensors file; scalars (exact) and origin are in its metadata. Equal models give equal bytes."""
    tensors = {name: getattr(model, name) for name in _SCHEMA}
    fields = {name: repr(float(getattr(model, name))) for name in _SCALARS}
    fields |= dict(zip(ORIGIN_FIELDS, model.origin.texts, strict=True))
    if model.sums is not None:
        tensors, fields = {**tensors, **model.sums.tensors}, {**fields, **model.sums.fields}
    return tensors_to_bytes(_KIND, tensors, fields)


def cache_from_bytes(raw: bytes, *, file: str = "cache") -> CacheModel:
    """The model of a file's bytes. ``file`` is for the error.

    Raises:
        ConfigError: anything but what ``cache_to_bytes`` writes of a valid model.
    """
    tensors, fields = tensors_from_bytes(
        raw,
        kind=_KIND,
        schema=_SCHEMA,
        fields=frozenset((*_SCALARS, *ORIGIN_FIELDS)),
        file=file,
        optional=(SUMS_SCHEMA, SUMS_FIELDS),
    )
    scalars = {name: exact_float(fields[name], name, file) for name in _SCALARS}
    try:
        return CacheModel(
            cache_keys=tensors["cache_keys"],
            key_labels=tensors["key_labels"],
            text_classifier=tensors["text_classifier"],
            **scalars,
            origin=CacheOrigin(*(fields[name] for name in ORIGIN_FIELDS)),
            sums=sums_of_file(tensors, fields, file) if "class_sums" in tensors else None,
        )
    except ValueError as error:
        raise ConfigError(file, "", str(error)) from None


def save_cache(model: CacheModel, path: Path) -> None:
    """Write the file in place. Round state wants an atomic write: use ``cache_to_bytes`` there."""
    path.write_bytes(cache_to_bytes(model))


def load_cache(path: Path) -> CacheModel:
    """As ``cache_from_bytes``, from a path.

    Raises:
        ConfigError: also when the file cannot be read.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(str(path), "", error.strerror or "cannot be read") from None
    return cache_from_bytes(raw, file=str(path))
