"""Speed and size of the secure sum, against its own parts and, where asked for, against Flower's SecAgg+.

    python tests/bench/secure_sum.py            10^6 entries; under two minutes
    python tests/bench/secure_sum.py --full     16.4 M entries: the cache of ImageNet-1k
    python tests/bench/secure_sum.py --flower ENV/bin/python    also against Flower (``pip install flwr`` into ENV)

Times are CPU seconds of one thread, the least of several runs, except for the line on two threads, which is
elapsed time and means something on a machine with two idle cores only. What is compared runs in turns, so that a
busy machine slows both sides; a ratio to Flower is the median of the ratios of its turns. Flower runs its own client functions on float32 values, at its default
22-bit range, counted from when its shares are open and its keys agreed on; ours encodes float64, over the
largest range that b bits allow.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from cachefl_secure.crypto import sign
from cachefl_secure.crypto.agreement import AgreementKey
from cachefl_secure.crypto.expand import CHUNK_BYTES, Keystream, MaskStreams
from cachefl_secure.crypto.sign import SigningKey
from cachefl_secure.federation.ports import Handler
from cachefl_secure.names import COORDINATOR, Digest, FederationId, SiloId
from cachefl_secure.protocol import wire
from cachefl_secure.protocol.attempt import NOTHING_YET, body_digest, open_manifest
from cachefl_secure.protocol.collecting import Aborted, Complete
from cachefl_secure.protocol.coordinator import CoordinatorSession
from cachefl_secure.protocol.encoding import Encoding, RoundingSeed, decode_sum
from cachefl_secure.protocol.graph import COMPLETE_UP_TO, ring_of
from cachefl_secure.protocol.masked_input import InputBuffer
from cachefl_secure.protocol.masking import Masks, MaskSeed, mask, sum_masked, unmask
from cachefl_secure.protocol.messages import (
    Body,
    Manifest,
    MaskedInput,
    Member,
    Roster,
    SealedShare,
    SealedShares,
    Signed,
    Statement,
    roster_digest,
)
from cachefl_secure.protocol.parameters import RoundParameters
from cachefl_secure.protocol.silo import SiloSession
from cachefl_secure.protocol.silo_secrets import SiloSecrets
from cachefl_secure.protocol.vectors import EncodedUpdate, MaskedSum, MaskedUpdate
from cachefl_secure.transport.in_process import InProcessNetwork
from cachefl_secure.updates import PrivateUpdate

IMAGENET = 16_384_000
HEAD = Digest("1e" * 32)
PATIENCE_SECONDS = 600.0
FLOWER = Path(__file__).parent / "flower" / "client.py"


@dataclass(frozen=True)
class Figure:
    """One measured figure; ``met`` is None where there is no target."""

    name: str
    value: float
    unit: str
    against: str
    target: str
    met: bool | None


def at_most(name: str, value: float, unit: str, against: str, target: float | None) -> Figure:
    if target is None:
        return Figure(name, round(value, 3), unit, "", "", None)
    return Figure(name, round(value, 3), unit, against, f"<= {target:g}", value <= target)


def at_least(name: str, value: float, unit: str, against: str, target: float) -> Figure:
    return Figure(name, round(value, 3), unit, against, f">= {target:g}", value >= target)


def cpu_seconds_by_turn(runs: int, **tasks: Callable[[], object]) -> dict[str, list[float]]:
    """The CPU time of each task in each turn. One turn before the first is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(runs + 1):
        for name, task in tasks.items():
            started = time.process_time()
            task()
            if turn:
                seconds[name].append(time.process_time() - started)
    return seconds


def cpu_seconds(runs: int, **tasks: Callable[[], object]) -> dict[str, float]:
    """The least CPU time of each task, the tasks taken in turns."""
    return {name: min(seconds) for name, seconds in cpu_seconds_by_turn(runs, **tasks).items()}


def within_turns(theirs: Sequence[float], ours: Sequence[float]) -> float:
    """The median over the turns of their time over ours: what slows a turn slows both of its sides."""
    return median(their / our for their, our in zip(theirs, ours, strict=True))


# --- one client ---------------------------------------------------------------------------------------


def parameters_of(n: int, dimension: int, bits: int) -> RoundParameters:
    """Parameters with the largest entries that a sum of ``n`` in ``bits`` bits holds. One colluder in ten, or one."""
    bound = (2 ** (bits - 1) - 1) // n - 1
    ring = ring_of(n, n // 10, n // 10) if n > COMPLETE_UP_TO else None
    colluders = n // 10 if ring else 1
    threshold = (n + colluders) // 2 + 1
    return RoundParameters(
        cohort_size=n,
        roster_size=n,
        colluders=colluders,
        threshold=threshold,
        minimum_survivors=max(threshold, 3),
        dimension=dimension,
        clamp=float(bound),
        grid_step=1.0,
        vector_bits=bits,
        ring=ring,
    )


def an_update(parameters: RoundParameters, rng_seed: int = 0) -> PrivateUpdate:
    """Clamped at eight standard deviations, as a plan with noise has it."""
    rng = np.random.default_rng(rng_seed)
    return PrivateUpdate(rng.normal(0, parameters.clamp / 8, parameters.dimension))


def masks_of(neighbours: int) -> Masks:
    """A self mask, and one for each neighbour, half of them subtracted."""
    seeds = [MaskSeed.generate() for _ in range(neighbours + 1)]
    return Masks(seeds[: neighbours // 2 + 1], seeds[neighbours // 2 + 1 :])


def prepare(
    update: PrivateUpdate, masks: Masks, parameters: RoundParameters, threads: int = 1
) -> MaskedUpdate:
    """All that a silo does to the entries of its update, once the masks are agreed on."""
    return mask(Encoding(update, parameters, coins()), masks, parameters, threads=threads)


def coins() -> RoundingSeed:
    return RoundingSeed.generate()


def mask_efficiency(dimension: int, runs: int) -> list[Figure]:
    """Masking against 1 / (1 / B_prg + 1 / B_add): its two steps alone, on one chunk that stays in the cache."""
    figures = []
    for word in ("<u2", "<u4"):
        masks, words = masks_of(10), np.zeros(dimension, word)
        keystream, chunk = np.empty(CHUNK_BYTES, np.uint8), np.zeros(CHUNK_BYTES // words.itemsize, word)
        stream, chunks = Keystream(masks.added[0]), 11 * words.nbytes // CHUNK_BYTES

        def whole(masks: Masks = masks, words: Any = words) -> None:
            MaskStreams(add=masks.added, subtract=masks.subtracted).apply(words)

        def expand(stream: Keystream = stream, chunks: int = chunks, out: Any = keystream) -> None:
            for _ in range(chunks):
                stream.fill(out)

        def add(chunk: Any = chunk, mask: Any = keystream.view(word), chunks: int = chunks) -> None:
            for _ in range(chunks):
                np.add(chunk, mask, out=chunk)

        least = cpu_seconds(runs, whole=whole, expand=expand, add=add)
        share = 11 * words.nbytes / (chunks * CHUNK_BYTES)  # a rest of less than a chunk is left out above
        efficiency = share * (least["expand"] + least["add"]) / least["whole"]
        bits = 8 * words.itemsize
        each = least["whole"] / (11 * dimension) * 1e9
        figures += [
            at_least(f"mask efficiency, {bits}-bit words", efficiency, "", "keystream + add", 0.85),
            Figure(f"one mask, {bits}-bit words", round(each, 3), "ns/word", "", "", None),
        ]
    return figures


def client_time(dimension: int, runs: int, flower: str | None) -> list[Figure]:
    figures = []
    for neighbours in (5, 10, 20):
        tasks: dict[str, Callable[[], object]] = {}
        for bits in (16, 32):
            parameters = parameters_of(neighbours + 1, dimension, bits)

            def ours(
                update: PrivateUpdate = an_update(parameters),
                masks: Masks = masks_of(neighbours),
                parameters: RoundParameters = parameters,
            ) -> MaskedUpdate:
                return prepare(update, masks, parameters)

            tasks[f"b{bits}"] = ours
        with FlowerClient(flower, dimension, neighbours) as client:
            theirs: list[float] = []
            if flower is not None:
                tasks["flower"] = lambda client=client, theirs=theirs: theirs.append(client.mask())  # type: ignore[misc]
            seconds = cpu_seconds_by_turn(runs, **tasks)
        for bits, goal in ((32, 10.0), (16, 18.0)):
            what, ours_in_turn = f"{neighbours} neighbours, b = {bits}", seconds[f"b{bits}"]
            ms = 1000 * min(ours_in_turn)
            figures.append(Figure(f"encode, mask, pack, {what}", round(ms, 2), "ms", "", "", None))
            if theirs:
                ratio = within_turns(theirs[1:], ours_in_turn)
                figures.append(at_least(f"client, {what}", ratio, "x", "Flower SecAgg+", goal))
    return figures


class FlowerClient:
    """Flower's client functions in a process of their own environment, asked one run at a time."""

    def __init__(self, python: str | None, dimension: int, neighbours: int) -> None:
        self._command = [python, str(FLOWER), str(dimension), str(neighbours)] if python else []

    def __enter__(self) -> FlowerClient:
        if self._command:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/"
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._command:
            self._process.communicate()

    def mask(self) -> float:
        """CPU seconds of one run."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("mask\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())


def two_threads(dimension: int, runs: int) -> list[Figure]:
    """Elapsed time of one thread over that of two, the CPU time that the second costs, and what the machine allows.

    That is twice the elapsed time of one thread over that of two processes, which share nothing, each doing all of it.
    """
    figures = []
    for bits in (16, 32):
        parameters, masks = parameters_of(11, dimension, bits), masks_of(10)
        update, elapsed, cpu, both = an_update(parameters), {1: 9e9, 2: 9e9}, {1: 9e9, 2: 9e9}, 9e9
        with OtherProcess(dimension, bits) as other:
            for _ in range(2 * runs):
                for threads in (1, 2):
                    started, busy = time.perf_counter(), time.process_time()
                    prepare(update, masks, parameters, threads)
                    elapsed[threads] = min(elapsed[threads], time.perf_counter() - started)
                    cpu[threads] = min(cpu[threads], time.process_time() - busy)
                started = time.perf_counter()
                other.begin()
                prepare(update, masks, parameters)
                other.wait()
                both = min(both, time.perf_counter() - started)
        ratio, cost = elapsed[1] / elapsed[2], cpu[2] / cpu[1]
        figures += [
            at_least(f"two threads, b = {bits}, elapsed", ratio, "x", "one thread", 1.7),
            Figure(f"two processes, b = {bits}, elapsed", round(2 * elapsed[1] / both, 3), "x", "", "", None),
            Figure(f"two threads, b = {bits}, CPU", round(cost, 3), "x", "one thread", "", None),
        ]
    return figures


class OtherProcess:
    """A second process that does a client's work at the same time, when told to."""

    def __init__(self, dimension: int, bits: int) -> None:
        self._here, there = Pipe()
        self._process = get_context("spawn").Process(target=_work_when_told, args=(there, dimension, bits))

    def __enter__(self) -> OtherProcess:
        self._process.start()
        self.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._here.send(False)
        self._process.join()

    def begin(self) -> None:
        self._here.send(True)

    def wait(self) -> None:
        self._here.recv()


def _work_when_told(line: Connection, dimension: int, bits: int) -> None:
    parameters, masks = parameters_of(11, dimension, bits), masks_of(10)
    update = an_update(parameters)
    line.send(None)
    while line.recv():
        prepare(update, masks, parameters)
        line.send(None)


# --- the sessions -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sessions:
    """A coordinator and its silos at the start of an attempt."""

    coordinator: CoordinatorSession
    silos: Mapping[SiloId, SiloSession]
    keys: Mapping[SiloId, SigningKey]
    parameters: RoundParameters


def begin(parameters: RoundParameters) -> Sessions:
    digits = max(3, len(str(parameters.cohort_size)))
    names = [SiloId(f"silo-{i:0{digits}d}") for i in range(1, parameters.cohort_size + 1)]
    identity, keys = SigningKey.generate(), {name: SigningKey.generate() for name in names}
    members = tuple(Member(name, keys[name].public_key) for name in names)
    roster = Roster(FederationId("0f" * 16), Digest("ab" * 32), 1, members)
    manifest = Manifest(
        roster.plan_digest, roster_digest(roster), 1, 1, tuple(names), Digest("cd" * 32), Digest("ef" * 32)
    )
    silos = {
        name: SiloSession(
            manifest, name, keys[name], roster, identity.public_key, parameters, SiloSecrets.generate()
        )
        for name in names
    }
    return Sessions(CoordinatorSession(manifest, identity, roster, parameters), silos, keys, parameters)


def zeros(parameters: RoundParameters) -> EncodedUpdate:
    words = np.zeros(parameters.dimension, parameters.word)
    return EncodedUpdate(words, np.zeros(parameters.counters, np.uint64))


def one_silo_of(n: int) -> list[Figure]:
    """The time and the bytes of one silo in a round of ``n``, beyond its update.

    The others are played as far as that silo can see: well-signed, but only its neighbours seal real shares, and
    only for these does anybody mask anything.
    """
    table, clock, calls, traffic = begin(parameters_of(n, 1, 16)), Clock(), Calls(), 0
    coordinator, silos, me = table.coordinator, table.silos, next(iter(table.silos))
    attempt, update = coordinator._attempt, zeros(table.parameters)
    neighbours = frozenset(attempt.graph.holders(me))

    def say(silo: SiloId, body: Body) -> bytes:
        state = coordinator._state
        assert not isinstance(state, Complete | Aborted)
        return wire.encode(attempt.sign(body, silo, table.keys[silo], state.view))

    def ask(
        requests: Mapping[SiloId, bytes],
        step: Callable[[bytes], bytes],
        others: Callable[[SiloId, bytes], bytes],
    ) -> dict[SiloId, bytes]:
        nonlocal traffic
        with calls, clock:  # in this order: putting the counters in place is not the silo's time
            mine = step(requests[me])
        traffic += len(requests[me]) + len(mine)
        return {silo: mine if silo == me else others(silo, mine) for silo in requests}

    def share(silo: SiloId, _: bytes) -> bytes:
        if silo in neighbours:
            return silos[silo].on_key_list(lists[silo])
        holders = (other for other in attempt.graph.holders(silo) if other != silo)
        return say(silo, SealedShares(HEAD, tuple(SealedShare(other, bytes(88)) for other in holders)))

    def agree(silo: SiloId, mine: bytes) -> bytes:
        envelope = wire.decode(mine, Signed, limit_bytes=len(mine), peer=me)
        return say(silo, wire.decode(envelope.body, Statement, limit_bytes=len(mine), peer=me))

    own, words = silos[me], bytes(table.parameters.packed_bytes)
    manifest = dict.fromkeys(silos, coordinator.manifest_message())
    lists = coordinator.on_advertisements(
        ask(manifest, lambda _: own.advertise(), lambda silo, _: silos[silo].advertise())
    )
    advertised = clock.seconds
    deliveries = coordinator.on_sealed_shares(ask(lists, own.on_key_list, share))
    sharing = clock.seconds - advertised
    masked = ask(
        deliveries,
        lambda message: own.on_share_delivery(message, update, HEAD),
        lambda silo, _: say(silo, MaskedInput(words, bytes(8), HEAD)),
    )
    sets = coordinator.on_masked_inputs(masked)
    certificates = coordinator.on_statements(ask(sets, own.on_survivor_set, agree))
    ask({me: certificates[me]}, own.on_certificate, lambda *_: b"")
    share_goal, time_goal, byte_goal = {10: (3, 5, 8), 100: (30, 50, 70), 1000: (None, 400, 500)}[n]
    return [
        at_most(f"share keys, n = {n}", 1000 * sharing, "ms", "goal", share_goal),
        at_most(f"a silo's time beyond its update, n = {n}", 1000 * clock.seconds, "ms", "goal", time_goal),
        Figure(f"of that {calls} alone", round(1000 * calls.seconds(), 2), "ms", "", "", None),
        at_most(f"a silo's traffic beyond its update, n = {n}", traffic / 1000, "KB", "goal", byte_goal),
    ]


class Clock:
    """CPU seconds spent inside ``with``."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> None:
        self._started = time.process_time()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.process_time() - self._started


class Calls:
    """The signatures and agreements made inside ``with``: what no other code around them could save."""

    def __init__(self) -> None:
        self._made = dict.fromkeys(("verified", "signed", "agreed"), 0)
        self._patch = ExitStack()

    def __str__(self) -> str:
        return ", ".join(f"{number} {name}" for name, number in self._made.items())

    def __enter__(self) -> None:
        for place, name, kind in (
            (sign, "verify", "verified"),
            (SigningKey, "sign", "signed"),
            (AgreementKey, "agree", "agreed"),
        ):
            self._patch.enter_context(patch.object(place, name, self._counted(getattr(place, name), kind)))

    def __exit__(self, *_: object) -> None:
        self._patch.close()

    def _counted(self, genuine: Callable[..., Any], kind: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            self._made[kind] += 1
            return genuine(*arguments, **named)

        return call

    def seconds(self) -> float:
        """CPU time of as many bare calls of the library: the least of three turns each."""
        signing, agreeing, message = Ed25519PrivateKey.generate(), X25519PrivateKey.generate(), bytes(32)
        public, other = signing.public_key(), X25519PrivateKey.generate().public_key()
        signature = signing.sign(message)
        bare: dict[str, Callable[[], object]] = {
            "verified": lambda: public.verify(signature, message),
            "signed": lambda: signing.sign(message),
            "agreed": lambda: agreeing.exchange(other),
        }

        def many(kind: str) -> Callable[[], object]:
            return lambda: [bare[kind]() for _ in range(100)]

        least = cpu_seconds(3, **{kind: many(kind) for kind in bare})
        return sum(least[kind] / 100 * number for kind, number in self._made.items())


def protocol_overhead(n: int, runs: int) -> list[Figure]:
    """The least of several rounds, figure by figure."""
    return [
        min(same, key=lambda figure: figure.value)
        for same in zip(*(one_silo_of(n) for _ in range(runs)), strict=True)
    ]


def step_memory(dimension: int) -> list[Figure]:
    """The most that a silo holds beside its upload, from the update to the signed message in its envelope."""
    figures = []
    for bits in (16, 24, 32):
        table, (me, delivery) = to_delivery(parameters_of(11, dimension, bits))
        update = an_update(table.parameters)
        tracemalloc.start()
        encoding = Encoding(update, table.parameters, coins())
        message = table.silos[me].on_share_delivery(delivery, encoding, HEAD)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        beyond = (peak - len(message)) / 2**20
        figures.append(at_most(f"memory beyond the upload, b = {bits}", beyond, "MiB", "goal", 4))
    return figures


def to_delivery(parameters: RoundParameters) -> tuple[Sessions, tuple[SiloId, bytes]]:
    """An attempt played up to the shares that one silo is about to receive."""
    table = begin(parameters)
    coordinator, silos = table.coordinator, table.silos
    lists = coordinator.on_advertisements({silo: x.advertise() for silo, x in silos.items()})
    sealed = {silo: x.on_key_list(lists[silo]) for silo, x in silos.items()}
    deliveries = coordinator.on_sealed_shares(sealed)
    return table, next(iter(deliveries.items()))


def upload(dimension: int) -> list[Figure]:
    """A real masked input on the wire, envelope and counters included, beyond ceil(d b / 8)."""
    figures = []
    for bits in (13, 16, 21, 32):
        table, (me, delivery) = to_delivery(parameters_of(3, dimension, bits))
        message = table.silos[me].on_share_delivery(delivery, zeros(table.parameters), HEAD)
        beyond = len(message) - -(-dimension * bits // 8)
        figures.append(at_most(f"upload beyond the bits, b = {bits}", beyond, "B", "ceil(d b / 8)", 500))
    return figures


def recover_one_dropout(dimension: int, runs: int) -> list[Figure]:
    """What one dropped silo of ten costs the coordinator: nine pairwise masks, against nine passes of one mask."""
    figures = []
    for bits in (16, 32):
        parameters, masks = parameters_of(10, dimension, bits), masks_of(8)
        words = np.zeros(dimension, parameters.word)

        def nine_passes(masks: Masks = masks, words: Any = words) -> None:
            for seed in (*masks.added, *masks.subtracted):
                MaskStreams(add=[seed], subtract=[]).apply(words)

        def recover(masks: Masks = masks, parameters: RoundParameters = parameters) -> None:
            total = MaskedSum(np.zeros(dimension, parameters.word), np.zeros(1, np.uint64))
            unmask(total, masks, parameters, threads=1)

        least = cpu_seconds(runs, passes=nine_passes, recover=recover)
        name = f"recover one dropout of ten, b = {bits}"
        figures.append(at_most(name, least["recover"] / least["passes"], "x", "one pass a neighbour", 1.2))
        figures.append(Figure(name, round(1000 * least["recover"], 1), "ms", "", "", None))
    return figures


# --- a whole round ------------------------------------------------------------------------------------


def secure_round(parameters: RoundParameters, updates: Mapping[SiloId, PrivateUpdate]) -> None:
    """Five silos behind the in-process transport: encoding, every message, the sum."""
    table = begin(parameters)
    coordinator = table.coordinator

    def handler(silo: SiloId, session: SiloSession) -> Handler:
        def handle(phase: str, message: bytes) -> bytes:
            if phase == "advertise":
                return session.advertise()
            if phase == "share":
                return session.on_key_list(message)
            if phase == "mask":
                encoding = Encoding(updates[silo], parameters, coins())
                return session.on_share_delivery(message, encoding, HEAD)
            if phase == "certificate":
                return session.on_survivor_set(message)
            return session.on_certificate(message)

        return handle

    with InProcessNetwork({silo: handler(silo, session) for silo, session in table.silos.items()}) as network:
        manifest = dict.fromkeys(table.silos, coordinator.manifest_message())
        lists = coordinator.on_advertisements(network.exchange("advertise", manifest, PATIENCE_SECONDS))
        deliveries = coordinator.on_sealed_shares(network.exchange("share", lists, PATIENCE_SECONDS))
        sets = coordinator.on_masked_inputs(network.exchange("mask", deliveries, PATIENCE_SECONDS))
        certificates = coordinator.on_statements(network.exchange("certificate", sets, PATIENCE_SECONDS))
        total = coordinator.on_unmask_shares(network.exchange("unmask", certificates, PATIENCE_SECONDS))
    decode_sum(total, parameters)


def plain_round(parameters: RoundParameters, updates: Mapping[SiloId, PrivateUpdate]) -> None:
    """A secure round without what makes it secret: no masks, no shares, no certificate.

    The same transport, manifest, encoding, packing, digest, signed envelope, checks and decoding; one exchange.
    """
    table = begin(parameters)
    attempt = table.coordinator._attempt

    def handler(silo: SiloId) -> Handler:
        def handle(phase: str, message: bytes) -> bytes:
            open_manifest(message, attempt.public_keys[COORDINATOR])
            reply = InputBuffer(silo, parameters, HEAD)
            encoded = mask(
                Encoding(updates[silo], parameters, coins()), Masks(), parameters, content=reply.vectors()
            )
            reply.set_counters(encoded.counters.tobytes())
            digest = body_digest(reply.body())
            del encoded
            return attempt.sign_input(reply, digest, silo, table.keys[silo], NOTHING_YET)

        return handle

    manifest = table.coordinator.manifest_message()
    with InProcessNetwork({silo: handler(silo) for silo in updates}) as network:
        answers = network.exchange("update", dict.fromkeys(updates, manifest), PATIENCE_SECONDS)
    arrived = [attempt.open_input(answers[s], sender=s, view=NOTHING_YET)[0] for s in sorted(answers)]
    decode_sum(
        unmask(sum_masked((one.vector for one in arrived), parameters), Masks(), parameters), parameters
    )


def bare_round(updates: Mapping[SiloId, PrivateUpdate]) -> None:
    """The same transport, float32 values in the clear, nothing signed, and their sum."""

    def handler(update: PrivateUpdate) -> Handler:
        return lambda phase, message: update.values.astype("<f4").tobytes()

    total = np.zeros(next(iter(updates.values())).values.size)
    with InProcessNetwork({silo: handler(update) for silo, update in updates.items()}) as network:
        for content in network.exchange("update", dict.fromkeys(updates, b""), PATIENCE_SECONDS).values():
            total += np.frombuffer(content, "<f4")


def whole_round(dimension: int, runs: int) -> list[Figure]:
    """Five silos, all parties in this process: CPU time of everybody together, and what of it no entry causes."""
    parameters, of_one = parameters_of(5, dimension, 16), parameters_of(5, 1, 16)
    updates = {SiloId(f"silo-{i:03d}"): an_update(parameters, i) for i in range(1, 6)}
    ones = {silo: an_update(of_one) for silo in updates}
    least = cpu_seconds(
        runs,
        secure=lambda: secure_round(parameters, updates),
        plain=lambda: plain_round(parameters, updates),
        bare=lambda: bare_round(updates),
        secure_of_one=lambda: secure_round(of_one, ones),
        plain_of_one=lambda: plain_round(of_one, ones),
    )
    size = f"{dimension / 1e6:g} M"
    fixed = least["secure_of_one"] - least["plain_of_one"]
    entries = (least["secure"] - least["secure_of_one"]) / (least["plain"] - least["plain_of_one"])
    ms = {f"{kind} round, {size}": least[kind] for kind in ("secure", "plain", "bare")}
    return [
        at_most(f"secure round, {size}", least["secure"] / least["plain"], "x", "signed plain round", 1.5),
        Figure(f"the same, entries alone, {size}", round(entries, 2), "x", "signed plain round", "", None),
        Figure(
            f"secure round, {size}",
            round(least["secure"] / least["bare"], 2),
            "x",
            "unsigned float32",
            "",
            None,
        ),
        *(Figure(name, round(1000 * seconds, 1), "ms", "", "", None) for name, seconds in ms.items()),
        Figure("secure beyond plain round, 1 entry", round(1000 * fixed, 1), "ms", "", "", None),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="16.4 M entries instead of 10^6")
    parser.add_argument("--flower", metavar="PYTHON", help="interpreter of an environment with flwr")
    parser.add_argument("--runs", type=int, default=7, help="times that every figure is measured")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    dimension, runs = IMAGENET if arguments.full else 1_000_000, arguments.runs
    if arguments.flower is None:
        print("without --flower: `python -m venv ENV; ENV/bin/pip install flwr` for it", file=sys.stderr)
    figures = [
        *client_time(dimension, runs, arguments.flower),
        *mask_efficiency(dimension, runs),
        *two_threads(dimension, runs),
        *upload(1_000_000),
        *step_memory(dimension),
        *recover_one_dropout(dimension, runs),
        *protocol_overhead(10, 3 * runs),
        *protocol_overhead(100, min(runs, 3)),
        *protocol_overhead(1000, 1),
        *whole_round(1_000_000, 2 * runs),
        *(whole_round(dimension, runs) if arguments.full else ()),
    ]
    if arguments.json:
        print(json.dumps([asdict(figure) for figure in figures], indent=1))
        return
    print(f"| {'':45} | {'figure':>10} {'':5} | {'against':18} | {'goal':8} | |")
    print("| --- | --- | --- | --- | --- |")
    for figure in figures:
        met = {True: "met", False: "missed", None: ""}[figure.met]
        print(
            f"| {figure.name:45} | {figure.value:10g} {figure.unit:5} | {figure.against:18} | {figure.target:8} | {met} |"
        )


if __name__ == "__main__":
    main()
