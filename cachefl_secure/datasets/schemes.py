"""The laws by which records are dealt out to silos, each a function of labels and of one generator.

A law deals out every record exactly once and never draws again: a silo may end up with few records or none.
Drawing until every silo has ten records, as published code does, is another law than the one it is named after.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cachefl_secure.errors import ConfigError

MAX_SILOS = 1024

Integers = NDArray[np.integer]
Shards = list[NDArray[np.int64]]
"""The records of each silo, as sorted indices."""


class Kind(enum.StrEnum):
    """Which law."""

    iid = "iid"
    dirichlet = "dirichlet"
    pathological = "pathological"
    quantity = "quantity"
    by_column = "by-column"


_MEANING = {
    Kind.dirichlet: "A, the concentration, a number in (0, 1e6], as in 'dirichlet:0.3'",
    Kind.pathological: "C, the classes of a silo, a whole number from 1, as in 'pathological:2'",
    Kind.quantity: "A, the concentration, a number in (0, 1e6], as in 'quantity:0.5'",
}


@dataclass(frozen=True, slots=True)
class Scheme:
    """A law with its parameter; ``str`` gives the text that ``parse_scheme`` reads."""

    kind: Kind
    parameter: float | None = None

    def __str__(self) -> str:
        # repr, not :g: the text stands in the partition file and must give back the same number.
        return self.kind if self.parameter is None else f"{self.kind}:{self.parameter!r}".removesuffix(".0")


def parse_scheme(text: str, *, file: str = "--scheme") -> Scheme:
    """``iid``, ``dirichlet:A``, ``pathological:C``, ``quantity:A`` or ``by-column``.

    Raises:
        ConfigError: another word, a parameter too many, too few or out of range.
    """
    word, _, parameter = text.partition(":")
    if word not in set(Kind):
        raise ConfigError(file, "", f"{text[:80]!r} is none of {', '.join(Kind)}")
    kind = Kind(word)
    if kind not in _MEANING:
        if parameter or text != word:
            raise ConfigError(file, "", f"{word!r} takes no parameter")
        return Scheme(kind)
    try:
        value = float(parameter)
    except ValueError:
        value = math.nan
    whole = kind is not Kind.pathological or value.is_integer()
    if not (0 < value <= 1e6 and whole):
        raise ConfigError(file, "", f"{word!r} needs {_MEANING[kind]}")
    return Scheme(kind, value)


def deal(labels: Integers, scheme: Scheme, silos: int, rng: np.random.Generator) -> Shards:
    """All records over ``silos`` by a scheme other than ``by-column``. Labels are (n,).

    Raises:
        ConfigError: a pathological scheme with more classes than its silos can hold.
    """
    records = np.arange(len(labels), dtype=np.int64)
    parameter = scheme.parameter or 0.0
    laws: dict[Kind, Callable[[], Shards]] = {
        Kind.iid: lambda: evenly(records, silos, rng),
        Kind.dirichlet: lambda: dirichlet_by_class(labels, records, silos, parameter, rng),
        Kind.pathological: lambda: classes_by_silo(labels, records, silos, int(parameter), rng),
        Kind.quantity: lambda: unequal_sizes(records, silos, parameter, rng),
    }
    return laws[scheme.kind]()


def evenly(records: NDArray[np.int64], silos: int, rng: np.random.Generator) -> Shards:
    """At random, sizes that differ by one at most."""
    return [np.sort(shard) for shard in np.array_split(rng.permutation(records), silos)]


def unequal_sizes(
    records: NDArray[np.int64], silos: int, concentration: float, rng: np.random.Generator
) -> Shards:
    """At random, the silos' shares of all records being Dirichlet(``concentration``); labels are as in the whole."""
    return [np.sort(shard) for shard in _cut(records, silos, concentration, rng)]


def dirichlet_by_class(
    labels: Integers,
    records: NDArray[np.int64],
    silos: int,
    concentration: float,
    rng: np.random.Generator,
) -> Shards:
    """The silos' shares of each class are Dirichlet(``concentration``), each class drawn apart.

    Yurochkin et al. (2019) and Hsu et al. (2019), the partition over labels that most studies use; but theirs
    is often drawn again until no silo is small. Only the cut positions are rounded.
    """
    shards: list[Shards] = [[] for _ in range(silos)]
    for _, members in members_by_class(labels, records):
        parts = _cut(members, silos, concentration, rng)
        for shard, part in zip(shards, parts, strict=True):
            shard.append(part)
    return [np.sort(np.concatenate(shard)) if shard else _NOTHING.copy() for shard in shards]


def classes_by_silo(
    labels: Integers,
    records: NDArray[np.int64],
    silos: int,
    classes_per_silo: int,
    rng: np.random.Generator,
) -> Shards:
    """Each silo holds ``classes_per_silo`` classes; a class with several holders is cut evenly among them.

    Holders of a class differ by one in number at most, so silos share no class wherever
    ``silos * classes_per_silo`` is no more than the number of classes. McMahan et al. (2017) cut the sorted
    records into shards of one size instead, which gives many silos a class more than stated.

    Raises:
        ConfigError: the silos cannot hold all classes, or there are fewer classes than each must hold.
    """
    present = members_by_class(labels, records)
    if not classes_per_silo <= len(present) <= silos * classes_per_silo:
        raise ConfigError(
            "--scheme",
            "",
            f"{silos} silos of {classes_per_silo} classes cannot hold {len(present)} classes: "
            f"take from {-(-len(present) // silos)} to {len(present)} classes a silo",
        )
    holders = _holders(len(present), silos, classes_per_silo, rng)
    shards: list[Shards] = [[] for _ in range(silos)]
    for (_, members), silos_of_class in zip(present, holders, strict=True):
        parts = np.array_split(rng.permutation(members), len(silos_of_class))
        for silo, part in zip(rng.permutation(silos_of_class), parts, strict=True):
            shards[silo].append(part)
    return [np.sort(np.concatenate(shard)) for shard in shards]


def members_by_class(labels: Integers, records: NDArray[np.int64]) -> list[tuple[int, NDArray[np.int64]]]:
    """Each label that occurs, ascending, with its records in their order. ``labels`` are of all records."""
    # One sort, and not one comparison a class: ImageNet has 1.28 million labels of 1,000 classes.
    order = np.argsort(labels[records], kind="stable")
    found, starts = np.unique(labels[records][order], return_index=True)
    return [
        (int(label), part) for label, part in zip(found, np.split(records[order], starts[1:]), strict=True)
    ]


_NOTHING: NDArray[np.int64] = np.zeros(0, np.int64)


def _holders(classes: int, silos: int, classes_per_silo: int, rng: np.random.Generator) -> list[list[int]]:
    """The silos of each class. Each silo takes those classes that most seats are left of, ties at random.

    Seats left never differ by more than one between classes, so no silo must take a class twice.
    """
    seats = np.full(classes, silos * classes_per_silo // classes)
    seats[rng.permutation(classes)[: silos * classes_per_silo % classes]] += 1
    holders: list[list[int]] = [[] for _ in range(classes)]
    for silo in range(silos):
        order = np.lexsort((rng.random(classes), -seats))
        for label in order[:classes_per_silo]:
            seats[label] -= 1
            holders[label].append(silo)
    return holders


def _cut(records: NDArray[np.int64], silos: int, concentration: float, rng: np.random.Generator) -> Shards:
    # The order of draws is part of the demo's published split: first the permutation, then the shares.
    members = rng.permutation(records)
    shares = rng.dirichlet([concentration] * silos)
    return np.split(members, np.rint(np.cumsum(shares)[:-1] * len(members)).astype(int))
