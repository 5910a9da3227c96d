"""A masked input built and read in place has the bytes that the general codec gives it, and no others are taken."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachefl_secure.errors import BadSignature, MalformedMessage, PeerError, UnexpectedMessage
from cachefl_secure.names import Digest, SiloId
from cachefl_secure.protocol import wire
from cachefl_secure.protocol.attempt import Attempt, body_digest
from cachefl_secure.protocol.encoding import Encoding, RoundingSeed
from cachefl_secure.protocol.masked_input import InputBuffer, InputLayout
from cachefl_secure.protocol.messages import MaskedInput, Phase, Signed
from cachefl_secure.protocol.parameters import RoundParameters
from cachefl_secure.protocol.segments import COUNT_BITS, Segment
from cachefl_secure.updates import PrivateUpdate
from tests.protocol.rounds import LEDGER_HEAD, federation, fixed, parameters_for
from tests.protocol.table import Table, body_of, signed

HEAD = Digest("0a" * 32)
SIGNATURE = bytes(range(64))


def built(sender: str, parameters: RoundParameters, content: bytes) -> bytes:
    buffer = InputBuffer(sender, parameters, HEAD)
    buffer.vectors()[:] = np.frombuffer(content[: parameters.input_bytes], np.uint8)
    buffer.set_counters(content[parameters.input_bytes :])
    return buffer.sealed(SIGNATURE)


@given(
    st.integers(1, 70_000) | st.sampled_from([159, 160, 203, 204, 205, 206, 52_000, 52_428, 52_429]),
    st.from_regex(r"\A[a-z0-9][a-z0-9-]{0,62}\Z"),
    st.integers(0, 3),
)
@settings(max_examples=80, deadline=None)
def test_the_buffer_holds_what_the_general_codec_writes(dimension: int, sender: str, more: int) -> None:
    """Lengths around those where MessagePack takes a longer form of them, too."""
    segments = tuple(Segment(f"s{i}", 5 + i, (9, 21, COUNT_BITS)[i], 1) for i in range(more))
    parameters = replace(parameters_for(5, dimension=dimension), segments=segments)
    words, counters = parameters.input_bytes, parameters.counter_bytes
    content = np.random.default_rng(dimension).bytes(words + counters)
    body = wire.encode(MaskedInput(content[:words], content[words:], HEAD))
    raw = built(sender, parameters, content)
    assert raw == wire.encode(Signed(SiloId(sender), Phase.MASKED_INPUT, body, SIGNATURE))
    arrived = InputLayout.of(sender, parameters).read(raw)
    assert arrived is not None
    assert (arrived.body.tobytes(), arrived.signature, arrived.ledger_head) == (body, SIGNATURE, HEAD)
    assert arrived.vector.packed.tobytes() + arrived.vector.counters.tobytes() == content


@given(st.data())
@settings(max_examples=300)
def test_what_is_read_in_place_is_what_the_general_codec_reads(data: st.DataObject) -> None:
    """And where it reads nothing, nothing of this sender and these lengths is there."""
    parameters = parameters_for(3, dimension=40)
    raw = bytearray(built("silo-a", parameters, bytes(parameters.input_bytes + parameters.counter_bytes)))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    arrived = InputLayout.of("silo-a", parameters).read(bytes(raw))
    try:
        envelope = wire.decode(bytes(raw), Signed, limit_bytes=1000, peer="x")
        body = wire.decode(envelope.body, MaskedInput, limit_bytes=1000, peer="x")
    except MalformedMessage:
        assert arrived is None
        return
    due = ("silo-a", Phase.MASKED_INPUT, parameters.input_bytes, parameters.counter_bytes)
    if (envelope.sender, envelope.phase, len(body.words), len(body.counters)) != due:
        assert arrived is None
        return
    assert arrived is not None
    assert arrived.vector.packed.tobytes() == body.words
    assert (arrived.body.tobytes(), arrived.signature) == (envelope.body, envelope.signature)
    assert arrived.ledger_head == body.ledger_head


def _shorter(table: Table, raw: bytes) -> bytes:
    return raw[:-1]


def _longer(table: Table, raw: bytes) -> bytes:
    return raw + b"\x00"


def _other_sender(table: Table, raw: bytes) -> bytes:
    return wire.encode(msgspec.structs.replace(signed(raw), sender=table.others[0]))


def _other_phase(table: Table, raw: bytes) -> bytes:
    return wire.encode(msgspec.structs.replace(signed(raw), phase=Phase.SHARE))


def _other_bit(table: Table, raw: bytes) -> bytes:
    changed = bytearray(raw)
    changed[len(raw) // 3] ^= 1
    return bytes(changed)


def _other_counters(table: Table, raw: bytes) -> bytes:
    body = body_of(raw, MaskedInput)
    return table.say(msgspec.structs.replace(body, counters=bytes(16)), table.me)


def _no_head(table: Table, raw: bytes) -> bytes:
    body = body_of(raw, MaskedInput)
    return table.say(msgspec.structs.replace(body, ledger_head=Digest("0A" * 32)), table.me)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (_shorter, MalformedMessage),
        (_longer, MalformedMessage),
        (_other_sender, UnexpectedMessage),
        (_other_phase, UnexpectedMessage),
        (_other_bit, BadSignature),
        (_other_counters, MalformedMessage),
        (_no_head, MalformedMessage),
    ],
)
def test_a_changed_masked_input_drops_its_silo_with_the_reason(
    change: Callable[[Table, bytes], bytes], error: type[PeerError]
) -> None:
    table = Table()
    table.to_delivery()
    inputs = {
        silo: x.on_share_delivery(table.deliveries[silo], table.updates[silo], LEDGER_HEAD)
        for silo, x in table.sessions.items()
    }
    inputs[table.me] = change(table, inputs[table.me])
    table.coordinator.on_masked_inputs(inputs)
    assert type(table.coordinator.rejected[table.me]) is error
    assert table.coordinator.survivors == tuple(table.others)


def test_a_silo_holds_its_upload_once_and_four_mebibytes_at_most_besides() -> None:
    """From the noised update to the finished message: encoding, masks, packing, digest, signature, envelope.

    So does a coordinator that opens it: it holds the message and copies nothing.
    """
    for bits in (16, 21, 32):
        dimension = 4_000_000
        fed = federation(parameters_for(3, dimension=dimension, bound=(2 ** (bits - 1) - 1) // 3 - 1))
        assert fed.parameters.vector_bits == bits
        silos, coordinator = {silo: fed.silo(silo) for silo in fed.silos}, fed.coordinator()
        lists = coordinator.on_advertisements({silo: x.advertise() for silo, x in silos.items()})
        sealed = {silo: x.on_key_list(lists[silo]) for silo, x in silos.items()}
        me, delivery = next(iter(coordinator.on_sealed_shares(sealed).items()))
        update = PrivateUpdate(np.random.default_rng(0).normal(0, fed.parameters.clamp / 3, dimension))
        tracemalloc.start()
        encoding = Encoding(update, fed.parameters, RoundingSeed(fixed("coins", 28)))
        message = silos[me].on_share_delivery(delivery, encoding, LEDGER_HEAD)
        beyond = tracemalloc.get_traced_memory()[1] - len(message)
        attempt = Attempt.begin(fed.manifest, fed.roster, fed.coordinator_key, fed.parameters)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        arrived, digest = attempt.open_input(message, sender=me, view=silos[me]._state.view)
        copied = tracemalloc.get_traced_memory()[1] - before
        tracemalloc.stop()
        assert beyond <= 4 * 2**20
        assert copied <= 2**16
        assert digest == body_digest(arrived.body)
        assert len(message) > fed.parameters.input_bytes
