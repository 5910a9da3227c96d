"""Real handwriting in five silos: scikit-learn's ``load_digits``, split by label, and a held-out fifth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from cachefl_secure.datasets.schemes import dirichlet_by_class
from cachefl_secure.embedded import CLASSES
from cachefl_secure.embedded.glyphs import to_clip_image
from cachefl_secure.errors import ConfigError
from cachefl_secure.names import SiloId

NUMBER_OF_SILOS = 5
CONCENTRATION = 0.3
HELD_OUT_SHARE = 0.2
MINIMUM_RECORDS = 20
HELD_OUT = "held-out"
PARTITION_FILE = "partition.json"


@dataclass(frozen=True, slots=True)
class Partition:
    """Which records of ``load_digits`` lie where. Indices are sorted; no record lies in two places."""

    rng_seed: int
    concentration: float
    redraws: int
    """Dirichlet draws thrown away because a silo got fewer than ``MINIMUM_RECORDS``."""
    silos: dict[str, tuple[int, ...]]
    held_out: tuple[int, ...]

    def places(self) -> dict[str, tuple[int, ...]]:
        """Every folder's records: ``silo-1`` ... ``silo-5``, ``held-out``."""
        return {**self.silos, HELD_OUT: self.held_out}


def load_scans() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The 1,797 scans (n, 8, 8), grey 0..16, and labels 0..9, as bundled with scikit-learn."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.asarray(bunch.images, np.float64), np.asarray(bunch.target, np.int64)


def draw_partition(
    labels: NDArray[np.integer], rng_seed: int, *, concentration: float = CONCENTRATION
) -> Partition:
    """A stratified held-out fifth, and the rest to five silos by a Dirichlet draw for each class.

    The shares of each class over the silos are Dirichlet(``concentration``) (Hsu et al. 2019), conditioned on
    every silo holding at least ``MINIMUM_RECORDS``: a draw that fails is thrown away and the next sub-seed is
    used, so silos are a little more even than an unconditioned draw.

    Raises:
        ValueError: too few records for the condition to be possible.
    """
    rng = np.random.default_rng((rng_seed, 0))
    held_out, rest = _stratified(labels, rng)
    if len(rest) < 2 * NUMBER_OF_SILOS * MINIMUM_RECORDS:
        raise ValueError(f"{len(rest)} records are too few for {NUMBER_OF_SILOS} silos")
    redraws = 0
    while True:
        rng = np.random.default_rng((rng_seed, 1, redraws))
        silos = dirichlet_by_class(labels, rest, NUMBER_OF_SILOS, concentration, rng)
        if min(map(len, silos)) >= MINIMUM_RECORDS:
            break
        redraws += 1
    named = {f"silo-{i}": tuple(int(index) for index in silo) for i, silo in enumerate(silos, 1)}
    return Partition(rng_seed, concentration, redraws, named, held_out)


def write_partition(partition: Partition, file: Path) -> None:
    """As JSON, the same bytes for the same partition."""
    file.write_bytes(msgspec.json.encode(partition, order="sorted") + b"\n")


def read_partition(file: Path) -> Partition:
    """What ``write_partition`` wrote.

    Raises:
        ConfigError: absent or not a partition.
    """
    try:
        return msgspec.json.decode(file.read_bytes(), type=Partition)
    except OSError as error:
        raise ConfigError(str(file), "", error.strerror or "cannot be read") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(str(file), "", f"no partition: {error}") from None


def write_image_folders(root: Path, rng_seed: int) -> Partition:
    """The handwriting as image folders, ``root/silo-1/<class>/0001.png`` ... ``root/held-out/...``.

    Each picture is a scan through ``to_clip_image``: 32 x 32, grey. ``root/partition.json`` says which
    record went where. The same seed writes the same bytes; a second call changes nothing.

    Raises:
        ConfigError: the folder holds another partition.
    """
    scans, labels = load_scans()
    partition = draw_partition(labels, rng_seed)
    file = root / PARTITION_FILE
    if file.exists() and read_partition(file) != partition:
        raise ConfigError(str(file), "", "another partition lies here; choose an empty folder")
    root.mkdir(parents=True, exist_ok=True)
    write_partition(partition, file)
    for place, indices in partition.places().items():
        written = dict.fromkeys(CLASSES, 0)
        for index in indices:
            name = CLASSES[labels[index]]
            written[name] += 1
            file = root / place / name / f"{written[name]:04d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            to_clip_image(scans[index]).save(file, format="PNG")
    return partition


def silo_folders(root: Path) -> dict[SiloId, Path]:
    """The folder of each silo under a root that ``write_image_folders`` filled."""
    return {SiloId(f"silo-{i}"): root / f"silo-{i}" for i in range(1, NUMBER_OF_SILOS + 1)}


def _stratified(
    labels: NDArray[np.integer], rng: np.random.Generator
) -> tuple[tuple[int, ...], NDArray[np.int64]]:
    """``HELD_OUT_SHARE`` of every class, rounded, and the remaining records."""
    held_out: list[int] = []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        held_out += [int(i) for i in members[: round(len(members) * HELD_OUT_SHARE)]]
    return tuple(sorted(held_out)), np.setdiff1d(np.arange(len(labels)), held_out)
