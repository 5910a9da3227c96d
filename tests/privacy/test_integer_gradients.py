"""Integer gradients: never longer than the unit, summed exactly, right on average."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cachefl_secure.lattice import Lattice, sum_bound
from cachefl_secure.privacy.integer_gradients import (
    IntegerFactors,
    IntegerSum,
    coins_from,
    integer_factors,
    records_at_once,
)
from cachefl_secure.privacy.noise import RandomStreams

CPU = torch.device("cpu")


def factors_of(
    a: Tensor, f: Tensor, lattice: Lattice, clip_norm: float = 0.1, key: bytes = b"k"
) -> IntegerFactors:
    coins = coins_from(RandomStreams.repeatable(key).rounding)
    return integer_factors(a.clone(), f, clip_norm, lattice, coins)


def whole(tensor: Tensor) -> list[list[int]]:
    """As Python integers, which never round."""
    assert torch.equal(tensor, tensor.round())
    return [[int(x) for x in row] for row in tensor.tolist()]


def exact_norms_squared(factors: IntegerFactors) -> list[int]:
    return [
        sum(x * x for x in u) * sum(x * x for x in v)
        for u, v in zip(whole(factors.u), whole(factors.v), strict=True)
    ]


shapes = st.tuples(st.integers(1, 5), st.integers(1, 300), st.integers(1, 90))


@st.composite
def gradients(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Rows of any length, flat, peaked or mixed, and the hostile ones: huge, tiny, zero, a single entry."""
    b, keys, dim = draw(shapes)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    a, f = torch.randn(b, keys, generator=generator), torch.randn(b, dim, generator=generator)
    kind = draw(st.sampled_from(["normal", "flat", "peaked", "one entry", "just above whole"]))
    if kind == "flat":
        a, f = torch.ones_like(a), torch.ones_like(f)
    elif kind == "peaked":
        a, f = a**9, f**9
    elif kind == "one entry":
        a, f = torch.zeros_like(a), torch.zeros_like(f)
        a[:, 0], f[:, 0] = 1.0, -1.0
    elif kind == "just above whole":
        a = torch.full_like(a, 1.0 + 1e-6)
    scale_a = 10.0 ** draw(st.integers(-37, 37))
    scale_f = 10.0 ** draw(st.integers(-3, 3))
    return a * scale_a, f * scale_f


@pytest.mark.claim("C7")
@given(
    gradients(),
    st.integers(1, 10),
    st.integers(1, 7),
    st.sampled_from([1e-3, 0.1, 1e4]),
    st.binary(max_size=4),
)
def test_no_integer_gradient_is_longer_than_the_unit(
    rows: tuple[Tensor, Tensor], gradient_bits: int, feature_bits: int, clip_norm: float, key: bytes
) -> None:
    """The sensitivity of every sum, in whole numbers: no rounding, no coin and no input gets around it."""
    lattice = Lattice(feature_bits, gradient_bits)
    factors = factors_of(*rows, lattice, clip_norm, key)
    assert all(square <= lattice.unit**2 for square in exact_norms_squared(factors))


@pytest.mark.claim("C7")
@pytest.mark.parametrize("coin", [0, 1, 2**15, 2**16 - 1])
def test_coins_that_all_say_the_same_lengthen_nothing(coin: int) -> None:
    lattice, generator = Lattice(7, 8), torch.Generator().manual_seed(1)
    a, f = torch.randn(6, 1600, generator=generator), torch.randn(6, 512, generator=generator)
    same = integer_factors(a.clone(), f, 0.1, lattice, lambda count: np.full(count, coin, np.uint16))
    assert all(square <= lattice.unit**2 for square in exact_norms_squared(same))
    assert float(same.u.abs().max()) > 0


@pytest.mark.claim("C7")
@pytest.mark.parametrize(("keys", "dim"), [(40, 64), (1600, 512), (16_000, 1024)])
def test_hardly_anything_is_lost_to_rounding(keys: int, dim: int) -> None:
    lattice, generator = Lattice.of(keys, dim), torch.Generator().manual_seed(2)
    a, f = torch.randn(64, keys, generator=generator) ** 3, torch.randn(64, dim, generator=generator)
    lengths = factors_of(a, f, lattice).norms_squared().sqrt() / lattice.unit
    assert float(lengths.max()) <= 1.0
    assert float(lengths.min()) > 0.97


def test_a_sum_has_no_bias() -> None:
    """The mean over many roundings is the clipped gradient, but for what makes it fit: less than 2 % of its length."""
    lattice, generator = Lattice(7, 7), torch.Generator().manual_seed(3)
    a, f = torch.randn(1, 30, generator=generator), torch.nn.functional.one_hot(torch.tensor([2]), 5).float()
    drawn = torch.stack([factors_of(a, f, lattice, key=str(i).encode()).u[0] for i in range(4000)]).double()
    expected = 2.0**7 * a[0].double() / a.double().norm()
    mean, spread = drawn.mean(0), drawn.std(0).clamp(min=0.05) / 4000**0.5
    shrunk = float((mean @ expected) / (expected @ expected))
    assert 0.98 < shrunk <= 1.0
    assert float(((mean - shrunk * expected) / spread).abs().max()) < 4.5


def test_short_gradients_keep_their_length() -> None:
    """Clipping shortens only what is longer than the clip norm."""
    lattice, generator = Lattice(7, 10), torch.Generator().manual_seed(4)
    a, f = torch.randn(8, 50, generator=generator), torch.randn(8, 16, generator=generator)
    a *= (0.05 / (a.norm(dim=1) * f.norm(dim=1))).unsqueeze(1)  # half the clip norm
    factors = factors_of(a, f, lattice)
    exact = torch.einsum("bi,bj->bij", a, f).flatten(1) * (lattice.unit / 0.1)
    rounded = torch.einsum("bi,bj->bij", factors.u, factors.v).flatten(1)
    assert float(((rounded - exact).norm(dim=1) / exact.norm(dim=1)).max()) < 0.05


@pytest.mark.claim("C7")
@pytest.mark.parametrize("lattice", [Lattice(7, 7), Lattice(7, 10), Lattice(9, 8)])
def test_the_most_records_at_once_still_add_up_exactly(lattice: Lattice) -> None:
    """All aligned and as long as they may be: the largest partial sums there are."""
    records = records_at_once(lattice)
    u, v = (
        torch.full((records, 3), 2.0**lattice.gradient_bits),
        torch.full((records, 2), 2.0**lattice.feature_bits),
    )
    u[::3] -= 1
    v[1::2] -= 1
    total = IntegerSum((3, 2), lattice, records, CPU)
    total.add(IntegerFactors(u, v))
    expected = sum(int(x) * int(y) for x, y in zip(u[:, 0].tolist(), v[:, 0].tolist(), strict=True))
    assert expected > 0.98 * records * lattice.unit
    assert total.clamped(2**30).tolist() == [[expected] * 2] * 3


@pytest.mark.claim("C7")
@given(st.integers(1, 90), st.integers(0, 2**31))
def test_the_sum_is_the_sum_in_whole_numbers_in_any_order(records: int, seed: int) -> None:
    lattice, generator = Lattice(7, 8), torch.Generator().manual_seed(seed)
    a, f = torch.randn(records, 12, generator=generator), torch.randn(records, 9, generator=generator)
    factors = factors_of(a, f, lattice)
    u, v = (np.array(whole(x), dtype=object) for x in (factors.u, factors.v))
    total = IntegerSum((12, 9), lattice, records, CPU)
    order = torch.randperm(records, generator=generator)
    for part in torch.split(order, 7):
        total.add(IntegerFactors(factors.u[part], factors.v[part]))
    assert total.clamped(2**30).tolist() == (u.T @ v).tolist()


def test_more_records_than_32_bits_hold_are_summed_and_clamped() -> None:
    lattice = Lattice(7, 10)
    total = IntegerSum((1, 1), lattice, 1 << 20, CPU)
    full = IntegerFactors(torch.full((128, 1), 2.0**10), torch.full((128, 1), 2.0**7))
    for _ in range(200):
        total.add(full)  # 200 * 2^24 > 2^31
    assert total.clamped(2**30).tolist() == [[2**30]]


@pytest.mark.claim("C7")
@given(
    st.lists(st.integers(-1000, 1000), min_size=4, max_size=4),
    st.lists(st.integers(-50, 50), min_size=4, max_size=4),
)
def test_clamping_moves_no_two_sums_apart(sum_of_n: list[int], record: list[int]) -> None:
    def clamped(entries: list[int]) -> Tensor:
        total = IntegerSum((2, 2), Lattice(7, 7), 1, CPU)
        total.add(IntegerFactors(torch.eye(2), torch.tensor(entries).float().view(2, 2)))
        return total.clamped(300)

    apart = clamped([x + y for x, y in zip(sum_of_n, record, strict=True)]) - clamped(sum_of_n)
    assert int((apart.long() ** 2).sum()) <= sum(x * x for x in record)


def test_a_record_is_rounded_alike_whatever_the_others_are() -> None:
    lattice, generator = Lattice(7, 8), torch.Generator().manual_seed(5)
    a, f = torch.randn(9, 20, generator=generator), torch.randn(9, 8, generator=generator)
    whole_batch = factors_of(a, f, lattice)
    others = a.clone()
    others[:8] = 0.0
    alone = factors_of(others, f, lattice)
    assert torch.equal(alone.u[8], whole_batch.u[8])
    assert torch.equal(alone.v, whole_batch.v)
    assert not alone.u[:8].any()


@pytest.mark.claim("C7")
@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_numbers_that_are_none_become_nothing(broken: float) -> None:
    a, f = torch.ones(3, 4), torch.ones(3, 2)
    a[1] = broken
    factors = factors_of(a, f, Lattice(7, 7))
    assert not factors.u[1].any()
    assert factors.u[0].any()


def test_gradients_without_length_are_nothing() -> None:
    zeros = factors_of(torch.zeros(3, 4), torch.zeros(3, 2), Lattice(7, 7))
    assert not zeros.u.any()
    assert not zeros.v.any()


@pytest.mark.parametrize("bits", [(0, 7), (7, 0), (9, 9), (17, 1)])
def test_a_lattice_that_float32_does_not_hold_is_refused(bits: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="a lattice of"):
        Lattice(*bits)


@given(st.integers(1, 10**6), st.integers(1, 10**5))
def test_every_plan_has_a_lattice(keys: int, dim: int) -> None:
    lattice = Lattice.of(keys, dim)
    assert 14 <= lattice.bits <= 17
    assert records_at_once(lattice) >= 128


def test_the_bound_of_a_sum_is_what_the_declared_records_can_reach_or_far_beyond_the_noise() -> None:
    lattice = Lattice(7, 7)
    assert sum_bound(lattice, 1.0, 100, 5.0) == 100 * lattice.unit
    assert sum_bound(lattice, 0.25, 101, 5.0) == 26 * lattice.unit
    assert sum_bound(lattice, 1.0, 10**6, 0.5) == 64 * lattice.unit
