"""What a transport costs: three silos, 64 MiB to each and 64 MiB back, in one exchange.

    python tests/bench/transports.py            in-process, a mailbox on a folder, a mailbox in memory; a minute
    python tests/bench/transports.py --mib 8    with less
    python tests/bench/transports.py --folder /mnt/shared    the folder of the mailbox elsewhere than in the temporary one

Against the least that a mailbox can do, measured in the same turns: each of the six parcels sealed, written, synced to
the disk, read and opened, one after the other, by one process that does nothing else. Each silo of the mailbox on a
folder is a process of its own, as in the field; in memory, and in-process, all are threads of one. A ratio is the
median of the ratios of its turns. CPU is that of all processes together. Peak memory is that of the coordinator's
process and, in brackets, of the largest silo's, content and answers included. The first exchange of a turn, of a few
bytes, wakes the silos and is not counted.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

from cachefl_secure.crypto.hpke import TransportKey, seal_to
from cachefl_secure.crypto.sign import SigningKey
from cachefl_secure.federation.ports import CoordinatorChannel
from cachefl_secure.federation.state_dir import StateDir
from cachefl_secure.names import COORDINATOR, FederationId, SiloId, digest_of
from cachefl_secure.transport.in_process import InProcessNetwork
from cachefl_secure.transport.mailbox import CoordinatorMailbox, SiloMailbox
from cachefl_secure.transport.parcels import Sender, limit_bytes
from cachefl_secure.transport.store import ObjectStore

SILOS = tuple(SiloId(f"silo-{number}") for number in (1, 2, 3))
HERE = FederationId("0f" * 16)
PATIENCE_SECONDS = 300.0
TARGET = 2.0
FLARE = Path(__file__).with_name("flare_transport.py")

Exchange = Callable[[bytes], object]
"""Carries the content to every silo and an answer as long back."""


@dataclass(frozen=True)
class Figure:
    """One measured figure; ``met`` is None where there is no target."""

    name: str
    value: float
    unit: str
    target: str = ""
    met: bool | None = None


@dataclass(frozen=True)
class Cost:
    """Of one exchange, by all processes."""

    elapsed_seconds: float
    cpu_seconds: float


@dataclass(frozen=True)
class Footprint:
    """What a transport needed at most."""

    coordinator_mib: float
    silo_mib: float
    store_mib: float


def sender(party: str) -> Sender:
    """The same keys in every process, from the party's name: a bench has no secrets."""
    identity = SigningKey(bytes.fromhex(digest_of("bench/identity", party.encode())))
    return Sender(
        HERE, party, identity, TransportKey(bytes.fromhex(digest_of("bench/transport", party.encode())))
    )


def answer_of(size: int) -> Callable[[str, bytes], bytes]:
    """A handler whose answers are as long as what it was asked with, up to the size, and take no time."""
    longest = os.urandom(size)
    return lambda phase, content: longest[: len(content)] if len(content) < size else longest


# --- the transports, each in a process of its own


@contextmanager
def least(folder: Path, size: int) -> Iterator[Exchange]:
    """No transport: what must be done to the bytes in any case."""
    key, answer, path = TransportKey.generate(), os.urandom(size), folder / "parcel"

    def carry(content: bytes) -> None:
        for plaintext in (content, answer) * len(SILOS):
            sealed = seal_to(key.public_key, plaintext[: len(content)], b"label", peer="")
            with path.open("wb") as file:
                file.write(sealed)
                file.flush()
                os.fsync(file.fileno())
            del sealed
            key.open(path.read_bytes(), b"label", peer="")

    yield carry


@contextmanager
def in_process(folder: Path, size: int) -> Iterator[Exchange]:
    handler = answer_of(size)
    with InProcessNetwork(dict.fromkeys(SILOS, handler)) as network:
        yield _through(network)


@contextmanager
def in_memory(folder: Path, size: int) -> Iterator[Exchange]:
    url, stop = "memory://bench/store", threading.Event()
    threads = [threading.Thread(target=_serve, args=(url, silo, size, stop)) for silo in SILOS]
    for thread in threads:
        thread.start()
    yield _through(_coordinator(url, folder, size))
    stop.set()
    for thread in threads:
        thread.join()


@contextmanager
def on_a_folder(folder: Path, size: int) -> Iterator[Exchange]:
    url, context = f"dir://{folder / 'store'}", get_context("spawn")
    stop = context.Event()
    silos = [context.Process(target=_serve, args=(url, silo, size, stop)) for silo in SILOS]
    for silo in silos:
        silo.start()
    yield _through(_coordinator(url, folder, size))
    stop.set()
    for silo in silos:
        silo.join()


def _coordinator(url: str, folder: Path, size: int) -> CoordinatorMailbox:
    state = StateDir.create(folder / "coordinator")
    identities = {silo: (sender(silo).identity.public_key,) for silo in SILOS}
    # Parcels are kept until the turn is over, to be counted.
    return CoordinatorMailbox(
        ObjectStore.open(url),
        sender(COORDINATOR),
        state,
        lambda: identities,
        limit_bytes=size,
        keep_parcels=True,
    )


def _serve(url: str, silo: SiloId, size: int, stop: threading.Event) -> None:
    own, coordinator_key = sender(silo), sender(COORDINATOR).identity.public_key
    mailbox = SiloMailbox(ObjectStore.open(url), lambda: own, coordinator_key, limit_bytes=size)
    mailbox.serve(answer_of(size), stop=stop)


def _through(channel: CoordinatorChannel) -> Exchange:
    def carry(content: bytes) -> None:
        answers = channel.exchange("share", dict.fromkeys(SILOS, content), PATIENCE_SECONDS)
        assert [len(answer) for answer in answers.values()] == [len(content)] * len(SILOS)

    return carry


TRANSPORTS = {
    "least": least,
    "in-process": in_process,
    "mailbox in memory": in_memory,
    "mailbox on a folder": on_a_folder,
}


class Running:
    """A transport in a process of its own, asked for one exchange at a time."""

    def __init__(self, name: str, folder: Path, size: int) -> None:
        self._line, there = Pipe()
        self._process = get_context("spawn").Process(target=_run, args=(there, name, folder, size))
        self._process.start()
        self._line.recv()

    def exchange(self) -> Cost:
        self._line.send(True)
        return Cost(*self._line.recv())

    def end(self) -> Footprint:
        self._line.send(False)
        footprint = Footprint(*self._line.recv())
        self._process.join()
        return footprint


def _run(line: Connection, name: str, folder: Path, size: int) -> None:
    content, stored = os.urandom(size), 0
    with TRANSPORTS[name](folder, size) as carry:
        carry(b"wake up")
        line.send(None)
        while line.recv():
            carry(b"wake up")
            _clear(folder)
            started, busy = time.perf_counter(), _cpu_seconds()
            carry(content)
            elapsed, busy = time.perf_counter() - started, _cpu_seconds() - busy
            stored = max(stored, _clear(folder))
            line.send((elapsed, busy))
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    line.send((_mib_of_rss(own), _mib_of_rss(children), stored / (1 << 20)))


def _mib_of_rss(value: int) -> float:
    return value / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def _cpu_seconds() -> float:
    """Of this process and of the silos' while they run, where the system tells."""
    ticks, children = 0, Path(f"/proc/self/task/{os.getpid()}/children")
    if children.is_file():
        for child in children.read_text().split():
            times = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
            ticks += int(times[11]) + int(times[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def _clear(folder: Path) -> int:
    """Parcels are deleted, as after an exchange; their bytes."""
    from fsspec.implementations.memory import MemoryFileSystem

    found = 0
    for path in folder.glob("store/*/[tf]*/*/*"):
        found += path.stat().st_size
        path.unlink()
    for name in [name for name in MemoryFileSystem.store if "/to/" in name or "/from/" in name]:
        found += MemoryFileSystem.store.pop(name).size
    return found


# --- figures


def measure(size: int, turns: int, root: Path) -> list[Figure]:
    costs: dict[str, list[Cost]] = {name: [] for name in TRANSPORTS}
    footprints: dict[str, Footprint] = {}
    with ExitStack() as folders:
        running = {}
        for name in TRANSPORTS:
            folder = folders.enter_context(tempfile.TemporaryDirectory(dir=root))
            running[name] = Running(name, Path(folder), size)
        for _ in range(turns):
            for name, transport in running.items():
                costs[name].append(transport.exchange())
        for name, transport in running.items():
            footprints[name] = transport.end()
    figures: list[Figure] = []
    for name, own in costs.items():
        ratio = median(
            cost.elapsed_seconds / base.elapsed_seconds
            for cost, base in zip(own, costs["least"], strict=True)
        )
        footprint, is_mailbox = footprints[name], name.startswith("mailbox")
        figures += [
            Figure(f"{name}: elapsed", round(median(cost.elapsed_seconds for cost in own), 2), "s"),
            Figure(f"{name}: CPU", round(median(cost.cpu_seconds for cost in own), 2), "s"),
            Figure(f"{name}: peak memory", round(footprint.coordinator_mib), "MiB"),
        ]
        if footprint.silo_mib > 0:
            figures.append(Figure(f"{name}: peak memory of a silo", round(footprint.silo_mib), "MiB"))
        if is_mailbox:
            content = 2 * len(SILOS) * (limit_bytes(size) - limit_bytes(0)) / (1 << 20)
            figures += [
                Figure(
                    f"{name}: in the store beyond the content",
                    round(1024 * (footprint.store_mib - content), 1),
                    "KiB",
                ),
                Figure(
                    f"{name}: elapsed, times the least",
                    round(ratio, 2),
                    "x",
                    f"<= {TARGET:g}",
                    ratio <= TARGET,
                ),
            ]
    return figures


def others(mib: int, turns: int) -> list[Figure]:
    """Transports with a bench of their own, where what they need is installed: name, value, unit, target, met of each."""
    if not (FLARE.is_file() and importlib.util.find_spec("nvflare")):
        return []
    command = [sys.executable, str(FLARE), "--mib", str(mib), "--runs", str(turns), "--json"]
    printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    kept = [field.name for field in fields(Figure)]
    figures = [Figure(**{name: each[name] for name in kept if name in each}) for each in json.loads(printed)]
    return [replace(figure, name=f"FLARE: {figure.name}") for figure in figures]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mib", type=int, default=64)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    size = options.mib << 20
    figures = measure(size, options.turns, options.folder or Path(tempfile.gettempdir()))
    figures += others(options.mib, options.turns)
    if options.json:
        print(json.dumps([asdict(figure) for figure in figures], indent=2))
        return
    print(f"three silos, {options.mib} MiB each way, median of {options.turns} turns")
    for figure in figures:
        verdict = (
            "" if figure.met is None else f"   target {figure.target}: {'met' if figure.met else 'MISSED'}"
        )
        print(f"  {figure.name:<50} {figure.value:>9g} {figure.unit}{verdict}")


if __name__ == "__main__":
    main()
