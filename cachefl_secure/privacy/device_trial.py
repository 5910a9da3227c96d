"""Whether a device may train: tried before the charge, since a device that fails after it has cost a round.

What one more record may change of a sum is one integer gradient. So a record's own must not depend on its place in a
batch, on the others there, or on chance (C7, decision 0030). No library promises that, so it is tried.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from cachefl_secure.cache.heads import rank_one_gradient, trained_rows
from cachefl_secure.cache.model import CacheModel, KeyRows
from cachefl_secure.errors import ConfigError
from cachefl_secure.lattice import Lattice
from cachefl_secure.plan import Trained
from cachefl_secure.privacy.descent import KEYS_ALONE, Descent
from cachefl_secure.privacy.integer_gradients import IntegerFactors, IntegerSum, integer_factors, scaling
from cachefl_secure.privacy.mechanism import NoMechanism, StepMechanism
from cachefl_secure.privacy.training import chunk_records

_MOST_ROWS = 256
"""Of a sum that is tried out."""

_SHIFTS = 4
"""Places that a batch is moved by when it is tried out: addresses repeat after so many float32 in 16 bytes."""


def check_device(device: str) -> None:
    """Before the charge, because a device that is missing would be found out after it.

    Raises:
        ConfigError: no such device here, or it lacks float64 (Apple's GPU).
    """
    try:
        torch.zeros(1, dtype=torch.float64, device=device)
    except (RuntimeError, TypeError, AssertionError) as error:
        raise ConfigError("silo.toml", "training_device", f"{device}: {str(error).splitlines()[0]}") from None


def check_rows_alike(
    cache: CacheModel, mechanism: StepMechanism, device: str, descent: Descent = KEYS_ALONE
) -> None:
    """Before the charge: that a record's gradient does not depend on its place in a batch, bit for bit, in these shapes.

    If others moved by one place with one more record, and came out differently, the sum would change by more than is
    accounted for. Tried on a batch, and on the same batch once more, turned round, and one to four places further: up to
    what is summed, and on the way, where a last bit shows that rounding hides.

    Raises:
        ConfigError: they do depend on it. Train on another device.
    """
    labels = cache.key_labels.cpu().numpy().astype("<i8").tobytes()
    shape = (labels, cache.number_of_classes, cache.feature_dim)
    scalars = (cache.alpha, cache.beta, cache.logit_scale)  # a product by a power of two would be exact
    lattice = None if isinstance(mechanism, NoMechanism) else mechanism.lattice
    if not _rows_alike(
        shape, scalars, chunk_records(mechanism), device, descent.trained, lattice, mechanism.clip_norm
    ):
        reason = f"{device}: a record's gradient depends on its place in a batch here; choose another device"
        raise ConfigError("silo.toml", "training_device", reason)


@lru_cache(16)
def _rows_alike(
    shape: tuple[bytes, int, int],
    scalars: tuple[float, float, float],
    chunk: int,
    device: str,
    trained: Trained,
    lattice: Lattice | None,
    clip_norm: float,
) -> bool:
    """With the keys' own classes in their own order, which decides how scores are summed."""
    raw, classes, dim = shape
    labels = torch.from_numpy(np.frombuffer(raw, "<i8").astype(np.int64))
    keys = len(labels)
    random = torch.Generator().manual_seed(0)
    rows = normalize(torch.randn(keys + classes + chunk + _SHIFTS, dim, generator=random), dim=1)
    model = CacheModel(rows[:keys], labels, rows[keys : keys + classes], *scalars)
    key_rows: KeyRows = model.cache_keys.to(device).__getitem__  # as training has them: a few at a time
    features, wanted = rows[keys + classes :], torch.arange(chunk + _SHIFTS) % classes
    # Each record has coins of its own, wherever it stands.
    size = (chunk + _SHIFTS, trained_rows(model, trained))
    coins = torch.randint(0, 1 << 16, size, dtype=torch.int32, generator=random).numpy().astype(np.uint16)

    def numbers_of(order: Tensor) -> tuple[Tensor, ...]:
        """In memory of their own, as training has them: a view of others' would keep every row at its address."""
        some, theirs = features[order].to(device), wanted[order].to(device)
        a = rank_one_gradient(model, some, theirs, trained, key_rows)
        if lattice is None:
            return (a,)
        thrown = _GivenCoins(coins[order.numpy()])
        factors = integer_factors(a.clone(), some, clip_norm, lattice, thrown)
        return a, *scaling(a, some, clip_norm, lattice), factors.u

    in_order = torch.arange(chunk)
    expected = numbers_of(in_order)
    shifted = (torch.arange(shift, shift + chunk) for shift in range(1, _SHIFTS + 1))
    return all(
        torch.equal(found[order < chunk], before[order[order < chunk]])
        for order in (in_order, in_order.flip(0), *shifted)
        for found, before in zip(numbers_of(order), expected, strict=True)
    )


def check_sums_exact(
    cache: CacheModel, mechanism: StepMechanism, device: str, descent: Descent = KEYS_ALONE
) -> None:
    """Before the charge: that sums of the largest factors are exact, as they are not where a library rounds to bfloat16.

    Raises:
        ConfigError: they are not. Train on another device, or switch reduced precision off.
    """
    if isinstance(mechanism, NoMechanism):
        return
    lattice, chunk = mechanism.lattice, chunk_records(mechanism)
    rows = min(_MOST_ROWS, trained_rows(cache, descent.trained))
    random = torch.Generator().manual_seed(0)
    u, v = (
        torch.randint(-(1 << bits), (1 << bits) + 1, (chunk, size), generator=random).double()
        for bits, size in ((lattice.gradient_bits, rows), (lattice.feature_bits, cache.feature_dim))
    )
    total = IntegerSum((rows, cache.feature_dim), lattice, chunk, torch.device(device))
    total.add(IntegerFactors(u.float().to(device), v.float().to(device)))
    if not torch.equal(total.clamped(chunk * lattice.unit).double(), u.T @ v):
        reason = f"{device}: products of whole numbers are not exact here; switch reduced precision off or choose another device"
        raise ConfigError("silo.toml", "training_device", reason)


class _GivenCoins:
    """Coins given beforehand, in their order; in the place of ``integer_gradients.coins_from``."""

    def __init__(self, coins: NDArray[np.uint16]) -> None:
        self._left = coins.reshape(-1)

    def __call__(self, count: int) -> NDArray[np.uint16]:
        now, self._left = self._left[:count], self._left[count:]
        return now
