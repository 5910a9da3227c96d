"""What is fuzzed, as functions of bytes: hypothesis calls them in every run, atheris for as long as it is let.

The contract of a parser: a value or its named error, nothing else, whatever the bytes.
The contract of a session: whatever comes, in whatever order, it answers or raises a ``PeerError`` and is then as
before; it never gives two answers to one phase, nor both kinds of share of one silo.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import SimpleNamespace

from cachefl_secure.errors import CacheflError, PeerError
from cachefl_secure.federation import letters
from cachefl_secure.federation.enrolment import open_roster
from cachefl_secure.federation.record import open_record
from cachefl_secure.names import COORDINATOR, SiloId
from cachefl_secure.protocol import messages, wire
from cachefl_secure.protocol.attempt import open_manifest
from cachefl_secure.protocol.journal import journal_from_bytes, journal_to_bytes
from cachefl_secure.protocol.messages import Phase, UnmaskShares
from cachefl_secure.protocol.silo import SiloSession
from cachefl_secure.protocol.unmasking import unmasking_from_bytes, unmasking_to_bytes
from tests.protocol.rounds import (
    LEDGER_HEAD,
    Federation,
    Round,
    a_plan,
    federation,
    parameters_for,
    random_updates,
    run_round,
)
from tests.protocol.table import body_of

Parser = tuple[Callable[[bytes], object], tuple[type[Exception], ...]]

_KINDS = (
    messages.Signed,
    messages.Manifest,
    messages.Advertisement,
    messages.KeyList,
    messages.SealedShares,
    messages.ShareDelivery,
    messages.MaskedInput,
    messages.SurvivorSet,
    messages.Statement,
    messages.Certificate,
    messages.UnmaskShares,
    letters.Hello,
    letters.Standing,
    letters.Sync,
    letters.Receipt,
    letters.Reply,
)


def _wire_parser(kind: type[messages.Message]) -> Parser:
    return (
        lambda data: wire.decode(data, kind, limit_bytes=1 << 16, peer="fuzzer"),
        (PeerError,),
    )


@cache
def parsers() -> dict[str, Parser]:
    """Name -> (parser, its errors)."""
    plan = a_plan()
    named: dict[str, Parser] = {kind.__name__: _wire_parser(kind) for kind in _KINDS}
    return named | {
        "signed manifest": (lambda data: open_manifest(data, plan.coordinator_key), (PeerError,)),
        "roster": (lambda data: open_roster(data, plan), (PeerError,)),
        "record": (lambda data: open_record(data, plan), (CacheflError,)),
        "receipts": (lambda data: letters.read_receipts(data, file="receipts.json"), (CacheflError,)),
        "session journal": (journal_from_bytes, (ValueError,)),
        "unmasking round": (unmasking_from_bytes, (ValueError,)),
    }


def parse(name: str, data: bytes) -> bool:
    """Whether the bytes are a value. Anything but the named error passes through: that is what a fuzzer finds."""
    parser, errors = parsers()[name]
    try:
        parser(data)
    except errors:
        return False
    return True


@cache
def played() -> SimpleNamespace:
    """A round of five silos, whose messages are what mutation starts from."""
    fed = federation(parameters_for(5, dimension=9, colluders=1))
    updates = random_updates(fed)
    finished = run_round(fed, updates)
    other = run_round(fed.with_manifest(attempt=2), updates)
    me = fed.silos[1]
    phases = (Phase.KEY_LIST, Phase.SHARE_DELIVERY, Phase.SURVIVOR_SET, Phase.CERTIFICATE)
    pool = [finished.seen[phase][silo] for phase in phases for silo in (me, fed.silos[2])]
    pool += [other.seen[phase][me] for phase in phases]
    return SimpleNamespace(fed=fed, updates=updates, finished=finished, me=me, phases=phases, pool=pool)


def seeds() -> list[bytes]:
    """Valid inputs of the parsers."""
    game = played()
    finished: Round = game.finished
    every = [raw for phase in finished.seen.values() for raw in phase.values()]
    bodies = [wire.decode(raw, messages.Signed, limit_bytes=1 << 20, peer="x").body for raw in every]
    session: SiloSession = finished.silos[game.me]
    return [*every, *bodies, journal_to_bytes(session._journal), *_unmasking(game.fed, game.updates)]


def _unmasking(fed: Federation, updates: dict[SiloId, object]) -> list[bytes]:
    saved: list[bytes] = []
    coordinator = fed.coordinator()
    genuine = coordinator.on_unmask_shares

    def listening(answers: object) -> object:
        saved.append(unmasking_to_bytes(coordinator.unmasking))
        return genuine(answers)  # type: ignore[arg-type]

    coordinator.on_unmask_shares = listening  # type: ignore[method-assign, assignment]
    run_round(fed, updates, coordinator=coordinator)  # type: ignore[arg-type]
    return saved


def mutate(data: bytes, recipe: bytes) -> bytes:
    """A few changes, as the recipe's bytes say: flips, cuts, insertions, doublings."""
    content = bytearray(data)
    for kind, where, what in zip(recipe[::3], recipe[1::3], recipe[2::3], strict=False):
        at = (where * 257 + what) % (len(content) + 1)
        match kind % 5:
            case 0 if at < len(content):
                content[at] ^= 1 << (what % 8)
            case 1:
                del content[at:]
            case 2:
                content[at:at] = bytes([what])
            case 3 if at < len(content):
                content[at] = what
            case _:
                content[at:at] = content[at : at + where % 16]
    return bytes(content)


def drive_session(script: bytes) -> int:
    """A silo under whatever the script says; returns how many messages it answered.

    Four bytes a step: which method, which message of the pool, how much is changed, and how.
    """
    game = played()
    fed: Federation = game.fed
    session = fed.silo(game.me)
    answers: dict[Phase, bytes] = {Phase.MANIFEST: session.advertise()}
    methods: tuple[tuple[Phase, Callable[[bytes], bytes]], ...] = (
        (Phase.KEY_LIST, session.on_key_list),
        (
            Phase.SHARE_DELIVERY,
            lambda data: session.on_share_delivery(data, game.updates[game.me], LEDGER_HEAD),
        ),
        (Phase.SURVIVOR_SET, session.on_survivor_set),
        (Phase.CERTIFICATE, session.on_certificate),
    )
    for step in range(0, len(script) - 3, 4):
        which, source, changes, how = script[step : step + 4]
        phase, method = methods[which % len(methods)]
        # Often the right message for the method, so that a session gets anywhere.
        message = game.pool[2 * (which % 4)] if source < 160 else game.pool[source % len(game.pool)]
        if changes >= 200:
            message = mutate(message, bytes([changes, how, which] * (1 + how % 3)))
        before, journal = session._state, session._journal
        try:
            answer = method(message)
        except PeerError as error:
            refused = error
            blamed = refused.peer == COORDINATOR or refused.peer in fed.silos
            if not (blamed and session._state is before and session._journal is journal):
                raise AssertionError(f"changed by what it refused: {refused}") from None
            continue
        assert answers.setdefault(phase, answer) == answer, f"two answers to {phase.value}"
    if Phase.CERTIFICATE in answers:
        shares = body_of(answers[Phase.CERTIFICATE], UnmaskShares)
        assert not {s.silo for s in shares.self_mask} & {s.silo for s in shares.mask_key}
    return len(answers)


def one_input(data: bytes) -> None:
    """The whole of it for a fuzzer that knows bytes only."""
    if not data:
        return
    names = sorted(parsers())
    choice, rest = data[0], data[1:]
    if choice < 64:
        drive_session(rest)
    elif choice < 160:
        parse(names[choice % len(names)], rest)
    else:
        pool = _cached_seeds()
        seed = pool[(rest[0] if rest else 0) % len(pool)]
        parse(names[choice % len(names)], mutate(seed, rest[1:]))


@cache
def _cached_seeds() -> list[bytes]:
    return seeds()
