"""A split of records over silos: drawn from a seed, kept in a file, checked against the records it speaks of."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import UNSET, Meta, UnsetType
from numpy.typing import NDArray

from cachefl_secure import durable
from cachefl_secure.datasets.schemes import (
    MAX_SILOS,
    Integers,
    Kind,
    Scheme,
    deal,
    members_by_class,
    parse_scheme,
)
from cachefl_secure.errors import ConfigError
from cachefl_secure.fields import ClassName, Hex64, Strict
from cachefl_secure.names import Digest, SiloId, digest_of, parse_silo_id

MAX_RECORDS = 20_000_000
MAX_SEED = 2**63 - 1
_MAX_FILE_BYTES = 256 * 1024 * 1024

Index = Annotated[int, Meta(ge=0, lt=MAX_RECORDS)]


class Partition(Strict, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which record lies where: in one silo, or held out. Constructing one checks that each lies in one place.

    The file decides, not the seed: numpy keeps the bits of PCG64 from version to version, but not what it
    makes of them.
    """

    version: Literal[1] = 1
    scheme: Annotated[str, Meta(max_length=100)]
    """As ``parse_scheme`` reads it."""
    rng_seed: Annotated[int, Meta(ge=0, le=MAX_SEED)]
    records: Annotated[int, Meta(ge=1, lt=MAX_RECORDS)]
    records_digest: Hex64
    """``digest_of_records`` of the list that the indices count in."""
    silos: Annotated[dict[str, tuple[Index, ...]], Meta(min_length=1, max_length=MAX_SILOS)]
    """Ascending indices of each silo's records."""
    held_out: tuple[Index, ...] = ()
    """Records that no silo holds, for measuring."""
    classes: Annotated[tuple[ClassName, ...], Meta(max_length=100_000)] | UnsetType = UNSET
    """Names of the labels, for ``init``. Files of earlier versions have none."""
    data_set: Annotated[str, Meta(max_length=100)] | UnsetType = UNSET
    """Name in the table of data sets, if it is one of them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            parse_scheme(self.scheme)
            for name in self.silos:
                parse_silo_id(name, file="silos")
        except ConfigError as error:
            raise ValueError(str(error)) from None
        if not _each_once((*self.silos.values(), self.held_out), self.records):
            raise ValueError(f"the {self.records} records do not lie in one place each, in ascending order")

    @property
    def digest(self) -> Digest:
        """Names the split: two parties with the same one hold the same records. What classes are called is not in it."""
        split = msgspec.structs.replace(self, classes=UNSET, data_set=UNSET)
        return digest_of("cachefl-secure/partition/1", msgspec.json.encode(split, order="sorted"))

    def counts(self, labels: Integers, number_of_classes: int) -> NDArray[np.int64]:
        """(silos, classes): records of each class in each silo."""
        rows = [np.bincount(labels[list(held)], minlength=number_of_classes) for held in self.silos.values()]
        return np.asarray(rows, np.int64)


def digest_of_records(names: Sequence[str], labels: Integers) -> Digest:
    """Digest of names and labels in their order; it changes with either and with the order."""
    if len(names) != len(labels):
        raise ValueError(f"{len(names)} names, {len(labels)} labels")
    raw = np.ascontiguousarray(labels, "<i8").tobytes()
    return digest_of("cachefl-secure/records/1", raw, *(name.encode() for name in names))


def draw_partition(
    labels: Integers,
    scheme: Scheme | str,
    silos: int,
    rng_seed: int,
    *,
    names: Sequence[str] | None = None,
    held_out_share: float = 0.0,
) -> Partition:
    """Every record to ``silo-1`` ... ``silo-M`` by the scheme, after a stratified share is held out.

    Which records are held out depends on the seed and the share alone, so schemes can be compared on them.
    Without ``names`` records are called after their index, from "0".

    Raises:
        ConfigError: an impossible scheme, ``by-column`` (see ``partition_by_site``), or more silos than records.
    """
    labels, wanted = _checked(labels), parse_scheme(scheme) if isinstance(scheme, str) else scheme
    if wanted.kind is Kind.by_column:
        raise ConfigError("--scheme", "", "by-column needs the site of each record")
    held_out = _stratified(labels, held_out_share, _generator(rng_seed, 0))
    rest = np.setdiff1d(np.arange(len(labels), dtype=np.int64), held_out)
    if not 1 <= silos <= min(MAX_SILOS, len(rest)):
        raise ConfigError("--silos", "", f"{silos} silos for {len(rest)} records: 1 to {MAX_SILOS} can be")
    shards = [rest[shard] for shard in deal(labels[rest], wanted, silos, _generator(rng_seed, 1))]
    named = {SiloId(f"silo-{number}"): shard for number, shard in enumerate(shards, 1)}
    return _partition(wanted, rng_seed, labels, names, named, held_out)


def partition_by_site(
    labels: Integers,
    sites: Sequence[str],
    rng_seed: int = 0,
    *,
    names: Sequence[str] | None = None,
    held_out_share: float = 0.0,
) -> Partition:
    """Every record to the silo of its own site; silos are called after their sites, "Ward 3" being ``ward-3``.

    The seed only chooses what is held out.

    Raises:
        ConfigError: a site that gives no silo name, or two that give the same.
    """
    labels = _checked(labels)
    if len(sites) != len(labels):
        raise ValueError(f"{len(sites)} sites, {len(labels)} labels")
    held_out = _stratified(labels, held_out_share, _generator(rng_seed, 0))
    places: dict[str, list[int]] = {site: [] for site in sorted(set(sites))}
    for index in np.setdiff1d(np.arange(len(labels)), held_out):
        places[sites[index]].append(int(index))
    named = dict(zip(_silo_names(places), places.values(), strict=True))
    return _partition(Scheme(Kind.by_column), rng_seed, labels, names, named, held_out)


def check_records(
    partition: Partition, names: Sequence[str], labels: Integers, *, file: str = "partition"
) -> None:
    """That the partition speaks of exactly these records.

    Raises:
        ConfigError: another number of records, other names or labels, or another order.
    """
    if len(names) != partition.records:
        raise ConfigError(file, "records", f"{partition.records}, but there are {len(names)} here")
    if digest_of_records(names, labels) != partition.records_digest:
        raise ConfigError(file, "records_digest", "made for records with other names, labels or order")


def write_partition(partition: Partition, file: Path) -> None:
    """As JSON, the same bytes for the same partition. One that lies there without names gets them.

    Raises:
        ConfigError: another partition lies there, or the file cannot be written.
    """
    if file.exists() and read_partition(file).digest != partition.digest:
        raise ConfigError(str(file), "", "another partition lies here; choose another name")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        durable.replace_file(file, msgspec.json.encode(partition) + b"\n", 0o644)
    except OSError as error:
        raise ConfigError(str(file), "", error.strerror or "cannot be written") from None


def read_partition(file: Path) -> Partition:
    """What ``write_partition`` wrote.

    Raises:
        ConfigError: absent, too large, not JSON, or a field is missing, unknown or wrong.
    """
    try:
        with file.open("rb") as stream:
            raw = stream.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(str(file), "", error.strerror or "cannot be read") from None
    if len(raw) > _MAX_FILE_BYTES:
        raise ConfigError(str(file), "", f"more than the {_MAX_FILE_BYTES} bytes allowed")
    try:
        return msgspec.json.decode(raw, type=Partition)
    except msgspec.ValidationError as error:
        reason, _, place = str(error).partition(" - at `$")
        raise ConfigError(str(file), place.strip("`."), reason) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(str(file), "", f"no partition: {error}") from None


def _partition(
    scheme: Scheme,
    rng_seed: int,
    labels: Integers,
    names: Sequence[str] | None,
    silos: dict[SiloId, NDArray[np.int64]] | dict[SiloId, list[int]],
    held_out: NDArray[np.int64],
) -> Partition:
    called = [str(index) for index in range(len(labels))] if names is None else names
    return Partition(
        scheme=str(scheme),
        rng_seed=rng_seed,
        records=len(labels),
        records_digest=digest_of_records(called, labels),
        silos={str(name): tuple(int(index) for index in held) for name, held in silos.items()},
        held_out=tuple(int(index) for index in held_out),
    )


def _checked(labels: Integers) -> Integers:
    if labels.ndim != 1 or not len(labels) or labels.dtype.kind not in "iu":
        raise ValueError(f"labels must be (n,) integers, n > 0, and are {labels.dtype} {labels.shape}")
    return labels


def _generator(rng_seed: int, stream: int) -> np.random.Generator:
    if not 0 <= rng_seed <= MAX_SEED:
        raise ConfigError("--seed", "", f"{rng_seed} is not from 0 to {MAX_SEED}")
    return np.random.Generator(np.random.PCG64((rng_seed, stream)))


def _stratified(labels: Integers, share: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """``share`` of every class, rounded, as ascending indices."""
    if not 0 <= share < 1:
        raise ConfigError("--held-out", "", f"{share} is no share of the records in [0, 1)")
    chosen = [np.zeros(0, np.int64)]
    for _, members in members_by_class(labels, np.arange(len(labels), dtype=np.int64)):
        chosen.append(rng.permutation(members)[: round(len(members) * share)])
    return np.sort(np.concatenate(chosen))


def _silo_names(sites: Iterable[str]) -> list[SiloId]:
    found: dict[SiloId, str] = {}
    for site in sites:
        name = parse_silo_id(_ascii(site), file=f"site {site[:60]!r}")
        if name in found:
            raise ConfigError("site", "", f"{site!r} and {found[name]!r} give the same silo name {name!r}")
        found[name] = site
    return list(found)


def _ascii(site: str) -> str:
    """Lower case, accents dropped, everything but letters and digits a hyphen; other alphabets stay, to be refused."""
    letters = "".join(
        letter
        for letter in unicodedata.normalize("NFKD", site.casefold())
        if not unicodedata.combining(letter)
    )
    return re.sub(r"[\W_]+", "-", letters).strip("-")


def _each_once(places: Iterable[tuple[int, ...]], records: int) -> bool:
    held = [np.asarray(place, np.int64) for place in places]
    if any(np.any(np.diff(place) <= 0) for place in held):
        return False
    return bool(np.array_equal(np.sort(np.concatenate(held)), np.arange(records)))
