"""Sessions under scripts of bytes: mutated, misplaced, missing and repeated messages, in any order.

Some of the mutated ones are signed anew, as a coordinator or a silo that lies would: they pass the signature.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import SimpleNamespace

from cachefl_secure.errors import LocalProtocolError, PeerError, RoundAborted
from cachefl_secure.names import COORDINATOR, SiloId
from cachefl_secure.protocol import attempt, wire
from cachefl_secure.protocol.collecting import Aborted
from cachefl_secure.protocol.messages import Phase, Signed, UnmaskShares, manifest_digest
from cachefl_secure.protocol.vectors import AggregateSum
from tests.protocol.rounds import (
    LEDGER_HEAD,
    Federation,
    exact_sum,
    federation,
    integers,
    parameters_for,
    random_updates,
    run_round,
)
from tests.protocol.table import body_of


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


def resigned(message: bytes, sender: str, recipe: bytes, fed: Federation, state: object) -> bytes:
    """The message with another body, signed as only a sender that lies can: what parsers and rules meet then."""
    signed = wire.decode(message, Signed, limit_bytes=1 << 20, peer=sender)
    body = mutate(signed.body, recipe)
    digest, view = manifest_digest(fed.manifest), getattr(state, "view", attempt.NOTHING_YET)
    statement = attempt._statement(digest, signed.phase, sender, attempt.body_digest(body), view)
    signature = fed.identities[sender].sign(attempt._purpose(signed.phase), statement)
    return wire.encode(Signed(SiloId(sender), signed.phase, body, signature))


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
        recipe = bytes([changes, how, which] * (1 + how % 3))
        if changes >= 220:
            message = mutate(message, recipe)
        elif changes >= 160:
            message = resigned(message, COORDINATOR, recipe, fed, session._state)
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


def drive_coordinator(script: bytes) -> int:
    """A coordinator under whatever the script says; returns how many phases it ended well.

    Four bytes a step: which phase, whose answer is not as it was, what becomes of that, and how.
    """
    game = played()
    fed: Federation = game.fed
    session, finished = fed.coordinator(), game.finished
    methods: tuple[tuple[Phase, Callable[[dict[SiloId, bytes]], object]], ...] = (
        (Phase.ADVERTISE, session.on_advertisements),
        (Phase.SHARE, session.on_sealed_shares),
        (Phase.MASKED_INPUT, session.on_masked_inputs),
        (Phase.CERTIFY, session.on_statements),
        (Phase.UNMASK, session.on_unmask_shares),
    )
    done = 0
    for step in range(0, len(script) - 3, 4):
        which, who, change, how = script[step : step + 4]
        # Often the phase that is due, so that a session gets anywhere.
        phase, method = methods[min(done, 4) if which < 200 else which % 5]
        answers = dict(finished.seen[phase])
        victim = fed.silos[who % len(fed.silos)]
        match change // 64:
            case 1:
                del answers[victim]
            case 2:
                answers[victim] = (
                    game.pool[how % len(game.pool)] if how < 128 else answers[fed.silos[how % 5]]
                )
            case 3:
                answers[victim] = mutate(answers[victim], bytes([how, who, change]))
        before = session._state
        try:
            result = method(answers)
        except LocalProtocolError:
            assert session._state is before, "changed by what it refused"
            continue
        except (RoundAborted, PeerError):
            assert isinstance(session._state, Aborted)
            continue
        assert session._state is not before
        assert (phase, method) == methods[done], "a phase out of its turn"
        done += 1
        if isinstance(result, AggregateSum):
            assert len(session.survivors) >= fed.parameters.minimum_survivors
            assert integers(result) == exact_sum(game.updates, session.survivors)
    return done
