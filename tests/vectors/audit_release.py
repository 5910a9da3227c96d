"""One release verified a second time, without the package: its cost, its sums, and what becomes of a cache by them.

Layout of the sum of a cohort of n silos: the update, one word of two bytes that is of no use; a counter; then the vectors,
in words that hold n times the largest entry.

``statistics``    N C class sums and the C (C + 1) / 2 numbers of the Gram matrix's upper triangle, in steps of 2^-18: a cache
                  keeps both
``grid``          a count for each pair of alpha and beta, in which a record is worth isqrt(2^32 / pairs): a cache takes the
                  pair with the largest, of equals the first

Written from decisions 0024, 0036 and 0037 and the formats' description.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tests.vectors.refusing import require

UNIT = 2**18
"""Of statistics."""
_UNITS, _STEPS = {"statistics": UNIT, "grid": 2**16}, {"statistics": 2, "grid": 1}
ONE_RELEASE = tuple(_UNITS)
"""Mechanisms of one round."""
_UPDATE_LARGEST, _UPDATE_BYTES, _COUNTER_BYTES = 2, 2, 8
_FOR_GAUSSIANS = 0.999  # of delta; the rest pays for tails


@dataclass(frozen=True)
class Vector:
    """One of a release."""

    entries: int
    largest: int
    """Of one silo's entries, noise included."""
    word_bytes: int


def vectors(plan: dict[str, Any], silos: int) -> list[Vector]:
    """As a cohort of so many silos sends them."""
    privacy, width = plan["privacy"], plan["encoder"]["feature_dim"]
    unit = _UNITS[privacy["mechanism"]]
    if privacy["mechanism"] == "grid":
        lengths = [len(pairs(plan))]
        largest = 16 * privacy["expected_records"] * math.isqrt(unit * unit // lengths[0])
    else:
        lengths = [len(plan["classes"]) * width, width * (width + 1) // 2]
        largest = privacy["expected_records"] * unit
    largest += math.ceil(18 * privacy["noise_multiplier"] * unit)
    bits = (2 * silos * largest).bit_length()
    word = 2 if bits <= 16 else 4 if bits <= 32 else 8
    return [Vector(entries, largest, word) for entries in lengths]


@dataclass(frozen=True)
class Sums:
    """What comes out of the secure sum, as integers."""

    clamped: int
    numbers: list[list[int]]
    """By vector."""

    @classmethod
    def read(cls, plan: dict[str, Any], total: bytes, silos: int, survivors: int) -> Sums:
        """
        Raises:
            Refused: of another length, or larger than the survivors can have sent.
        """
        layout, at = vectors(plan, silos), _UPDATE_BYTES + _COUNTER_BYTES
        due = at + sum(each.entries * each.word_bytes for each in layout)
        require(len(total) == due, "a sum of another size")
        update = int.from_bytes(total[:_UPDATE_BYTES], "little", signed=True)
        require(abs(update) <= survivors * _UPDATE_LARGEST, "an update beyond what survivors can have sent")
        clamped = int.from_bytes(total[_UPDATE_BYTES:at], "little")
        require(clamped == 0, "a count of clamped entries, of which a release has none")
        found = []
        for each in layout:
            ends = range(at, at + each.entries * each.word_bytes, each.word_bytes)
            numbers = [int.from_bytes(total[i : i + each.word_bytes], "little", signed=True) for i in ends]
            largest = survivors * each.largest
            require(max(map(abs, numbers)) <= largest, "sums beyond what the survivors can have sent")
            found.append(numbers)
            at += each.entries * each.word_bytes
        return cls(clamped, found)

    def pieces(self, plan: dict[str, Any], survivors: int) -> list[bytes]:
        """What a cache's digest takes of statistics: names left out, fields by name, then both vectors in eight bytes a number."""
        fields = fields_of(plan, survivors)
        return [
            b"released-sums/1",
            *(fields[name].encode() for name in sorted(fields)),
            *(b"".join(n.to_bytes(8, "little", signed=True) for n in each) for each in self.numbers),
        ]


def pairs(plan: dict[str, Any]) -> list[tuple[float, float]]:
    """(alpha, beta) in the order of a grid's counts."""
    privacy = plan["privacy"]
    return [(float(alpha), float(beta)) for alpha in privacy["alphas"] for beta in privacy["betas"]]


def chosen(plan: dict[str, Any], counts: list[int]) -> tuple[float, float]:
    """(alpha, beta) of the cache after a grid's round."""
    alpha, beta = pairs(plan)[counts.index(max(counts))]
    cache = plan["cache"]
    return alpha if cache["alpha_norm"] == "sum" else alpha / cache["images_per_class"], beta


def fields_of(plan: dict[str, Any], survivors: int) -> dict[str, str]:
    """What a cache says beside the sums: what to solve, and how much noise is in them."""
    privacy = plan["privacy"]
    floats = {name: float(privacy[name]) for name in ("regulariser", "gamma")}
    floats["noise_std"] = privacy["noise_multiplier"] * math.sqrt(survivors)
    texts = {name: repr(value) for name, value in floats.items()}
    return {"head": privacy["head"], "unit": str(UNIT), **texts}


def costs(plan: dict[str, Any]) -> tuple[float, float]:
    """(local, aggregate) epsilon of the release: Gaussian steps of sensitivity one, two of statistics, and what integers add.

    Two steps with noise s are one with s / sqrt(2). Exact for Gaussians (Balle and Wang 2018, theorem 8); in the aggregate
    the noise of the honest survivors adds up.
    """
    rules, privacy = plan["secure_sum"], plan["privacy"]
    steps, unit = _STEPS[privacy["mechanism"]], _UNITS[privacy["mechanism"]]
    least = (rules["minimum_cohort"] + rules["colluders"]) // 2 + 1
    least = max(rules["minimum_survivors"], least, rules["colluders"] + 2)
    numbers, delta = sum(each.entries for each in vectors(plan, 1)), privacy["delta"] * _FOR_GAUSSIANS
    local, aggregate = (
        _gaussian_epsilon(noise / math.sqrt(steps), delta) + _slack(noise * unit, numbers)
        for noise in (
            privacy["noise_multiplier"],
            privacy["noise_multiplier"] * math.sqrt(least - rules["colluders"]),
        )
    )
    return local, aggregate


def check_costs(plan: dict[str, Any]) -> None:
    """
    Raises:
        Refused: the plan says less than its release costs, or promises what noise of integers does not give.
    """
    _check_section(plan["privacy"])
    promised = plan["privacy"]["epsilon_local"], plan["privacy"]["epsilon_aggregate"]
    require(max(promised) <= 50.0, "an epsilon beyond what can be accounted for")
    for name, cost, most in zip(("local", "aggregate"), costs(plan), promised, strict=True):
        require(cost <= most, f"the plan says less than the {name} epsilon of its release")


def _check_section(privacy: dict[str, Any]) -> None:
    """The format's own limits, which are not of any cost."""
    is_grid = privacy["mechanism"] == "grid"
    require(0.0 < privacy["noise_multiplier"] <= (1024.0 if is_grid else 256.0), "noise out of range")
    if not is_grid:
        return
    for name in ("alphas", "betas"):
        values = [float(value) for value in privacy[name]]
        require(all(0.0 < value < math.inf for value in values), f"{name} out of range")
        require(values == sorted(set(values)), f"{name} that do not rise")
    require(2 <= len(privacy["alphas"]) * len(privacy["betas"]) <= 256, "too few or too many pairs")


def _gaussian_epsilon(noise: float, delta: float) -> float:
    """The smallest, by bisection, to ten digits."""
    low, high = 0.0, 1000.0
    while high - low > 1e-10:
        middle = (low + high) / 2
        low, high = (low, middle) if _gaussian_delta(middle, 1 / noise) <= delta else (middle, high)
    return high


def _gaussian_delta(epsilon: float, mu: float) -> float:
    def normal(x: float) -> float:
        return math.erfc(-x / math.sqrt(2)) / 2

    tail = normal(-mu / 2 - epsilon / mu)
    return normal(mu / 2 - epsilon / mu) - (math.exp(epsilon + math.log(tail)) if tail > 0 else 0.0)


def _slack(scale: float, numbers: int) -> float:
    """2 eta of decision 0024, with x = 100."""
    x = 100.0
    require(scale >= 100 and math.sqrt(numbers * x) <= scale**2, "noise too coarse to account for")
    squares = numbers + 2 * math.sqrt(numbers * x) + 2 * x
    largest = 2 * (x + math.log(2 * numbers))
    eta = (math.sqrt(numbers * x) + x) / (12 * scale**2) + (largest + 1) * squares / (500 * scale**4)
    return 2 * eta
