"""Who shares masks and secrets with whom: everybody, or, in large cohorts, near neighbours on a random ring.

The ring: silos in an order that nobody chose, each joined to the k / 2 next ones on either side (a circulant
or Harary graph, randomly labelled; Bell et al. 2020). All numbers are found in exact integers, so every party
finds the same ones. With A colluders, D dropouts and w = k / 2, for sigma = 40, eta = 30, g = 64:

    secrecy       (n - A) Pr[Hypergeometric(n - 1, A, k) >= t]         <= 2^-(sigma + 1 + g)
    connection    n Pr[Hypergeometric(n, A, w) >= m]                   <= 2^-(sigma + 1 + g)
    correctness   n Pr[Hypergeometric(n - 1, n - 1 - D, k) < t]        <= 2^-eta
                  n Pr[Hypergeometric(n, n - D, w) < m]                <= 2^-eta

Secrecy, with the certificate: the only shares of the other kind are the colluders', and among the k holders of a
secret there are fewer than t of them. Connection: every w silos in a row hold fewer than m colluders, and
silos answer only a survivor set of which every w in a row hold at least m. Then every w in a row hold an
honest survivor, so each honest survivor is joined to the next one, all the way round: their sum does not come apart
into smaller sums, whichever silos the coordinator says have dropped out. The published bound (``by_chance``) is
about half the degree, but holds only for dropouts that were not chosen by somebody who knows the ring.

The order is that of hashes under the manifest digest. It is fixed by roster, round, attempt, cohort and previous
record; the coordinator, and colluders by the keys they enrol, have some say in these and can try many
before they show one, at one hash and more a try. g = 64 bits pay for 2^64 tries, after which the chance that the
best of them fails is 2^-sigma, for one round; each doubling of the tries costs one bit.

The colluders must be fixed before the order can be known, that is before the manifest: all of the above counts
orders with the colluders given. Whoever corrupts silos after seeing the ring needs the t around one silo. And t is
no larger than A colluders make necessary: beyond A protection fades early (``parameters.explain`` says where).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import comb, perm
from typing import Self

from cachefl_secure.names import Digest, SiloId, digest_of

COMPLETE_UP_TO = 128
"""Largest cohort in which everybody is everybody's neighbour in any case."""
SECURITY_BITS = 40
CORRECTNESS_BITS = 30
GRINDING_BITS = 64


@dataclass(frozen=True, slots=True)
class Ring:
    """The numbers of a ring. ``ring_of`` finds safe ones; a test may make smaller ones."""

    degree: int
    """k: neighbours of a silo, half of them on either side."""
    threshold: int
    """t: shares that recover a secret, of those that a silo and its k neighbours hold."""
    window_survivors: int
    """m: fewest survivors among any k / 2 silos in a row."""
    dropouts: int
    """D: if no more drop out, by chance, the round fails with probability 2^-30 at most."""

    def __post_init__(self) -> None:
        if self.degree < 2 or self.degree % 2 or not 1 < self.threshold <= self.degree:
            raise ValueError(f"threshold {self.threshold} does not suit {self.degree} neighbours")
        if not 1 <= self.window_survivors <= self.degree // 2:
            raise ValueError(f"{self.window_survivors} survivors do not fit into {self.degree // 2} silos")


@lru_cache(maxsize=64)
def ring_of(n: int, colluders: int, dropouts: int) -> Ring | None:
    """The smallest safe degree, and the largest threshold for it; None where only the complete graph is safe."""
    bits = SECURITY_BITS + 1 + GRINDING_BITS
    for k in range(2, n - 1, 2):
        t = thresholds(n, colluders, dropouts, k, security_bits=bits, correctness_bits=CORRECTNESS_BITS)
        least = fewest(n, colluders, k // 2, times=n, bits=bits)
        most = most_left(n, n - dropouts, k // 2, times=n, bits=CORRECTNESS_BITS)
        if t and t[-1] > 1 and max(least, 1) <= most:
            return Ring(k, t[-1], most, dropouts)
    return None


def by_chance(
    n: int,
    colluders: int,
    dropouts: int,
    *,
    security_bits: int,
    correctness_bits: int,
    certificate: bool = True,
    population: int | None = None,
) -> tuple[int, range] | None:
    """Degree and possible thresholds as published, for dropouts that nobody chose (Bell et al. 2020, section 3.4).

    Without ``certificate`` the coordinator may show each neighbour another survivor set, and 2 t > k + colluders
    in the neighbourhood has to stop it. Google's federated-compute draws neighbours from ``population`` = n.
    """
    for k in range(2, n - 1, 2):
        if not _stays_connected(n, k, colluders + dropouts, security_bits):
            continue
        found = thresholds(
            n,
            colluders,
            dropouts,
            k,
            security_bits=security_bits,
            correctness_bits=correctness_bits,
            certificate=certificate,
            population=population,
        )
        if found:
            return k, found
    return None


def thresholds(
    n: int,
    colluders: int,
    dropouts: int,
    degree: int,
    *,
    security_bits: int,
    correctness_bits: int,
    certificate: bool = True,
    population: int | None = None,
) -> range:
    """Every t that is secret and correct for this degree; empty if there is none."""
    drawn_from = n - 1 if population is None else population
    honest = n - colluders if population is None else n
    least = fewest(drawn_from, colluders, degree, times=honest, bits=security_bits)
    if not certificate:
        least = (degree + least - 1) // 2 + 1
    most = most_left(drawn_from, drawn_from - dropouts, degree, times=n, bits=correctness_bits)
    return range(max(least, 1), most + 1)


def fewest(population: int, marked: int, drawn: int, *, times: int, bits: int) -> int:
    """Smallest t with ``times`` Pr[X >= t] <= 2^-bits, X marked ones among ``drawn`` without replacement."""
    whole, tail, unmarked = comb(population, drawn), 0, population - marked
    x, least = min(marked, drawn), max(0, drawn - unmarked)
    ways = comb(marked, x) * comb(unmarked, drawn - x)
    while x >= least:
        tail += ways
        if times * tail << bits > whole:
            return x + 1
        ways = ways * x * (unmarked - drawn + x) // ((marked - x + 1) * (drawn - x + 1))
        x -= 1
    return 0


def most_left(population: int, marked: int, drawn: int, *, times: int, bits: int) -> int:
    """Largest t with ``times`` Pr[X < t] <= 2^-bits."""
    whole, tail, unmarked = comb(population, drawn), 0, population - marked
    x, most = max(0, drawn - unmarked), min(marked, drawn)
    ways = comb(marked, x) * comb(unmarked, drawn - x)
    while x < most:
        tail += ways
        if times * tail << bits > whole:
            break
        ways = ways * (marked - x) * (drawn - x) // ((x + 1) * (unmarked - drawn + x + 1))
        x += 1
    return x


def _stays_connected(n: int, k: int, bad: int, bits: int) -> bool:
    """Two gaps of k / 2 on the ring, bad ones at random: n (n - k - 1) / 2 C(n - k, bad - k) / C(n, bad) < 2^-bits."""
    return k > bad or n * (n - k - 1) * perm(bad, k) << bits < 2 * perm(n, k)


@dataclass(frozen=True, slots=True)
class Graph:
    """The cohort's graph in one attempt."""

    ring: tuple[SiloId, ...]
    """In order of the ring; sorted if everybody is joined to everybody."""
    reach: int | None
    """k / 2; None if everybody is joined to everybody."""
    _seats: dict[SiloId, int]

    @classmethod
    def of(cls, manifest: Digest, cohort: Sequence[SiloId], ring: Ring | None) -> Self:
        """The same for every party that holds the manifest."""
        if ring is None:
            order, reach = sorted(cohort), None
        else:
            seed, reach = manifest.encode(), ring.degree // 2
            order = sorted(cohort, key=lambda silo: digest_of("cachefl-secure/ring/1", seed, silo.encode()))
        return cls(tuple(order), reach, {silo: seat for seat, silo in enumerate(order)})

    def holders(self, silo: SiloId) -> list[SiloId]:
        """The silo and its neighbours, sorted: who hold shares of its secrets and whose secrets it holds shares of."""
        if self.reach is None:
            return list(self.ring)
        seat, size = self._seats[silo], len(self.ring)
        return sorted(self.ring[at % size] for at in range(seat - self.reach, seat + self.reach + 1))

    def thinnest(self, present: Collection[SiloId]) -> int:
        """Fewest of those ``present`` among ``reach`` in a row; all of them in the complete graph."""
        if self.reach is None:
            return len(present)
        among = set(present)
        here = [silo in among for silo in self.ring]
        least = count = sum(here[: self.reach])
        for leaving, entering in zip(here, here[self.reach :] + here[: self.reach], strict=True):
            count += entering - leaving
            least = min(least, count)
        return least
